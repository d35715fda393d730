//! The names of all settings.

use crate::error::ConfigError;

/// A setting, as `docs/configuration.md` lists it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// What it may be: the end of "`name` is to be ...".
    pub(super) accepts: &'static str,
    /// What holds without it.
    pub(super) default: &'static str,
    /// Whether Flask or Flask-Session has a setting of this name.
    pub(super) flask: bool,
}

const fn ours(name: &'static str, accepts: &'static str, default: &'static str) -> Setting {
    Setting {
        name,
        accepts,
        default,
        flask: false,
    }
}

const fn flask(name: &'static str, accepts: &'static str, default: &'static str) -> Setting {
    Setting {
        name,
        accepts,
        default,
        flask: true,
    }
}

const FLAG: &str = "true or false";
const DURATION: &str = "a duration: seconds, or text such as \"31days\" or \"1h 30m\"";
const COUNT: &str = "a whole number above zero";
const TABLE: &str = "a table's name";

pub(super) const SETTINGS: &[Setting] = &[
    // The keys.
    flask("SECRET_KEY", "a key of at least 32 bytes", "–"),
    flask(
        "SECRET_KEY_FALLBACKS",
        "older keys: a list, or text separated by commas or written as a JSON array",
        "none",
    ),
    ours(
        "SESSION_SECRET",
        "keys of at least 32 bytes, separated by commas, the newest first",
        "–",
    ),
    ours(
        "SESSION_SECRET_FILE",
        "a file of keys, one a line, the newest first; made if missing",
        "–",
    ),
    // The cookie.
    flask(
        "SESSION_COOKIE_NAME",
        "a cookie's name",
        "`__Host-id`; `id` without Secure",
    ),
    flask("SESSION_COOKIE_DOMAIN", "a host name", "none"),
    flask(
        "SESSION_COOKIE_PATH",
        "a path that begins with \"/\"",
        "`/`",
    ),
    flask("SESSION_COOKIE_HTTPONLY", FLAG, "true"),
    flask("SESSION_COOKIE_SECURE", FLAG, "true"),
    flask("SESSION_COOKIE_SAMESITE", "Lax, Strict or None", "Lax"),
    flask("SESSION_COOKIE_PARTITIONED", FLAG, "false"),
    flask(
        "SESSION_USE_SIGNER",
        "true, or also false with SESSION_SHARED_WITH_FLASK",
        "true",
    ),
    flask("SESSION_ID_LENGTH", "32", "32"),
    // Lifetimes.
    flask("SESSION_PERMANENT", FLAG, "true"),
    flask("PERMANENT_SESSION_LIFETIME", DURATION, "31 days"),
    ours("SESSION_IDLE_TIMEOUT", DURATION, "31 days"),
    ours("SESSION_ABSOLUTE_TIMEOUT", DURATION, "no limit"),
    flask("SESSION_REFRESH_EACH_REQUEST", FLAG, "after a share of 0.1"),
    ours("SESSION_REFRESH_SHARE", "a number from 0 to 1", "0.1"),
    // The data.
    flask("SESSION_SERIALIZATION_FORMAT", "msgpack or json", "msgpack"),
    ours("SESSION_MAX_PAYLOAD", COUNT, "1048576"),
    ours("SESSION_MAX_KEYS", COUNT, "1024"),
    ours("SESSION_MAX_DEPTH", COUNT, "64"),
    ours("SESSION_SERVER_ERRORS", "rollback or commit", "rollback"),
    ours("SESSION_STORE_TIMEOUT", DURATION, "2 s"),
    ours("SESSION_COMMIT_TIMEOUT", DURATION, "2 s"),
    ours("SESSION_MAX_PER_USER", COUNT, "100"),
    // The store.
    ours(
        "SESSION_STORE",
        "a URL, as `AnyStore::connect` takes it",
        "–",
    ),
    flask(
        "SESSION_TYPE",
        "redis, memcached, filesystem, mongodb, sqlalchemy, dynamodb, postgresql or null",
        "–",
    ),
    flask(
        "SESSION_KEY_PREFIX",
        "text, with the types redis and memcached",
        "the store's own",
    ),
    flask(
        "SESSION_REDIS",
        "a URL such as redis://127.0.0.1:6379/0",
        "–",
    ),
    flask(
        "SESSION_MEMCACHED",
        "addresses such as \"a:11211,b:11211\", as text or as a list",
        "–",
    ),
    flask(
        "SESSION_CACHELIB",
        "left out: set SESSION_TYPE to filesystem or redis",
        "–",
    ),
    flask("SESSION_FILE_DIR", "a directory", "–"),
    flask("SESSION_FILE_THRESHOLD", COUNT, "no limit"),
    flask("SESSION_FILE_MODE", "0600", "0600"),
    flask(
        "SESSION_MONGODB",
        "a URL such as mongodb://127.0.0.1/app",
        "–",
    ),
    flask("SESSION_MONGODB_DB", "a database's name", "the URL's"),
    flask(
        "SESSION_MONGODB_COLLECT",
        "a collection's name",
        "the store's own",
    ),
    flask(
        "SESSION_SQLALCHEMY",
        "a URL as SQLAlchemy has it: sqlite:///app.db, postgresql://…, mysql://…",
        "–",
    ),
    flask("SESSION_SQLALCHEMY_TABLE", TABLE, "the store's own"),
    flask(
        "SESSION_SQLALCHEMY_SCHEMA",
        "a schema's name, with postgresql:// URLs",
        "the connection's",
    ),
    flask(
        "SESSION_SQLALCHEMY_SEQUENCE",
        "left out: no table here has a sequence",
        "–",
    ),
    flask(
        "SESSION_SQLALCHEMY_BIND_KEY",
        "left out: give SESSION_SQLALCHEMY the URL of that bind",
        "–",
    ),
    flask(
        "SESSION_DYNAMODB",
        "an endpoint such as http://127.0.0.1:8000, or a region such as eu-central-1",
        "as AWS is set up",
    ),
    flask("SESSION_DYNAMODB_TABLE", TABLE, "Sessions"),
    flask("SESSION_DYNAMODB_TABLE_EXISTS", FLAG, "the store's own"),
    flask(
        "SESSION_POSTGRESQL",
        "a URL such as postgresql://user@host/database",
        "–",
    ),
    flask("SESSION_POSTGRESQL_TABLE", TABLE, "the store's own"),
    flask(
        "SESSION_POSTGRESQL_SCHEMA",
        "a schema's name",
        "the connection's",
    ),
    ours("SESSION_SHARED_WITH_FLASK", FLAG, "false"),
    // Cleaning up.
    flask("SESSION_CLEANUP_N_REQUESTS", COUNT, "–"),
    ours(
        "SESSION_SWEEP_INTERVAL",
        "a duration: seconds, or text such as \"10min\"; or \"never\"",
        "10 min",
    ),
];

/// Finds a setting by its name, in upper or lower case.
pub(super) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .find(|setting| setting.name.eq_ignore_ascii_case(name))
}

/// The error for a name that is none, with the one that was probably meant.
pub(super) fn unknown(name: &str) -> ConfigError {
    // A secret may stand where a name belongs; what looks like a name is one.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.len() > 48 || !name.bytes().all(plain) {
        return ConfigError::new("a setting has a name that is none");
    }
    let upper = name.to_ascii_uppercase();
    let meant = SETTINGS.iter().min_by_key(|setting| {
        let short = setting
            .name
            .strip_prefix("SESSION_")
            .unwrap_or(setting.name);
        distance(&upper, setting.name).min(distance(&upper, short))
    });
    ConfigError::new(match meant {
        Some(Setting { name: meant, .. }) => {
            format!("there is no setting {name}; did you mean {meant}?")
        }
        None => format!("there is no setting {name}"),
    })
}

/// Levenshtein's: how many characters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_are_answered_with_the_name_that_was_meant() {
        for (typo, meant) in [
            ("SESSION_COOKIE_NAM", "SESSION_COOKIE_NAME"),
            ("SESSION_COOKIE_SAME_SITE", "SESSION_COOKIE_SAMESITE"),
            ("SESSION_TYP", "SESSION_TYPE"),
            ("SESSION_REDIS_URL", "SESSION_REDIS"),
            ("SESSION_SQLALCHEMY_BINDKEY", "SESSION_SQLALCHEMY_BIND_KEY"),
            ("SESSION_KEY_LENGTH", "SESSION_ID_LENGTH"),
            ("SESSION_DYNAMODB_TABLE_NAME", "SESSION_DYNAMODB_TABLE"),
            ("PERMANENT_SESSION_LIFTIME", "PERMANENT_SESSION_LIFETIME"),
            ("idle_timeuot", "SESSION_IDLE_TIMEOUT"),
        ] {
            let error = unknown(typo).to_string();
            assert!(
                error.ends_with(&format!("did you mean {meant}?")),
                "{error}"
            );
            assert!(error.contains(typo), "{error}");
        }
    }

    #[test]
    fn what_is_no_name_is_not_repeated() {
        for text in ["postgres://user:hunter2@host", &"hunter2".repeat(9)] {
            assert!(!unknown(text).to_string().contains("hunter2"));
        }
    }

    #[test]
    fn names_are_unique() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            assert_eq!(find(setting.name), Some(setting));
            assert!(
                SETTINGS[at + 1..]
                    .iter()
                    .all(|other| other.name != setting.name)
            );
        }
    }

    #[test]
    fn a_distance_counts_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), edits);
            assert_eq!(distance(b, a), edits);
        }
    }
}
