//! Which store the settings name: one URL, as `AnyStore::connect` takes it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::values::{Entries, wrong};
use crate::error::ConfigError;

/// What stands for itself in a path or a query.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/')
    .remove(b':');

/// The settings that say where a type of store is; each belongs to that type alone.
const OF_TYPES: &[(&str, &[&str])] = &[
    ("redis", &["SESSION_REDIS"]),
    ("memcached", &["SESSION_MEMCACHED"]),
    ("cachelib", &["SESSION_CACHELIB"]),
    (
        "filesystem",
        &[
            "SESSION_FILE_DIR",
            "SESSION_FILE_THRESHOLD",
            "SESSION_FILE_MODE",
        ],
    ),
    (
        "mongodb",
        &[
            "SESSION_MONGODB",
            "SESSION_MONGODB_DB",
            "SESSION_MONGODB_COLLECT",
        ],
    ),
    (
        "sqlalchemy",
        &[
            "SESSION_SQLALCHEMY",
            "SESSION_SQLALCHEMY_TABLE",
            "SESSION_SQLALCHEMY_SCHEMA",
            "SESSION_SQLALCHEMY_SEQUENCE",
            "SESSION_SQLALCHEMY_BIND_KEY",
        ],
    ),
    (
        "dynamodb",
        &[
            "SESSION_DYNAMODB",
            "SESSION_DYNAMODB_TABLE",
            "SESSION_DYNAMODB_TABLE_EXISTS",
        ],
    ),
    (
        "postgresql",
        &[
            "SESSION_POSTGRESQL",
            "SESSION_POSTGRESQL_TABLE",
            "SESSION_POSTGRESQL_SCHEMA",
        ],
    ),
];

/// The URL of the store that is chosen. What was given for another one is an error.
pub(super) fn store_url(entries: &mut Entries) -> Result<String, ConfigError> {
    let url = entries.text("SESSION_STORE")?;
    let kind = entries.word("SESSION_TYPE")?;
    let (chosen, url) = match (url, kind) {
        (Some(_), Some(_)) => {
            return refuse("SESSION_STORE and SESSION_TYPE both choose a store; leave one out");
        }
        (None, None) => {
            return refuse(
                "no store is chosen: set SESSION_STORE to a URL such as sqlite://sessions.db, or \
                 SESSION_TYPE to the type that Flask-Session has",
            );
        }
        (Some(url), None) => ("SESSION_STORE".to_owned(), url),
        (None, Some(kind)) => {
            let url = of_type(&kind, entries)?;
            (format!("SESSION_TYPE={kind}"), url)
        }
    };
    if entries.has("SESSION_KEY_PREFIX") {
        return refuse(if chosen == "SESSION_STORE" {
            "SESSION_KEY_PREFIX goes with SESSION_TYPE; with SESSION_STORE, say it in the URL: \
             `?prefix=…`"
                .to_owned()
        } else {
            format!("SESSION_KEY_PREFIX goes with the types redis and memcached, not with {chosen}")
        });
    }
    let belongs = |name| OF_TYPES.iter().find(|(_, names)| names.contains(&name));
    if let Some((name, (kind, _))) = entries.left().find_map(|name| Some((name, belongs(name)?))) {
        return refuse(format!(
            "{name} goes with SESSION_TYPE={kind}, but the store is chosen by {chosen}"
        ));
    }
    Ok(url)
}

fn of_type(kind: &str, entries: &mut Entries) -> Result<String, ConfigError> {
    match kind {
        "redis" => {
            let url = required(entries, "SESSION_REDIS")?;
            let prefix = entries.text("SESSION_KEY_PREFIX")?;
            Ok(with_query(url, &[("prefix", prefix)]))
        }
        "memcached" => memcached(entries),
        "filesystem" => filesystem(entries),
        "mongodb" => mongodb(entries),
        "sqlalchemy" => sqlalchemy(entries),
        "postgresql" => {
            let url = required(entries, "SESSION_POSTGRESQL")?;
            let (_, rest) = split(&url).ok_or_else(|| wrong("SESSION_POSTGRESQL"))?;
            let table = entries.text("SESSION_POSTGRESQL_TABLE")?;
            let schema = entries.text("SESSION_POSTGRESQL_SCHEMA")?;
            let url = format!("postgres://{rest}");
            Ok(with_query(url, &[("table", table), ("schema", schema)]))
        }
        "dynamodb" => dynamodb(entries),
        "null" => Ok("null://".into()),
        "cachelib" => refuse(
            "SESSION_TYPE=cachelib names Python objects; in the place of cachelib's FileSystemCache \
             set SESSION_TYPE to filesystem, in that of its RedisCache to redis",
        ),
        _ => Err(wrong("SESSION_TYPE")),
    }
}

fn memcached(entries: &mut Entries) -> Result<String, ConfigError> {
    const NAME: &str = "SESSION_MEMCACHED";
    let addresses = entries.list(NAME)?.ok_or_else(|| missing(NAME))?;
    let prefix = entries.text("SESSION_KEY_PREFIX")?;
    let addresses: Vec<_> = addresses
        .iter()
        .map(|address| address.strip_prefix("memcached://").unwrap_or(address))
        .collect();
    // Anything else, a `?` in the middle of a list say, would end up in the wrong place.
    let plain = |address: &&str| !address.is_empty() && !address.contains(['/', '@', ' ']);
    let last = addresses.len() - 1;
    let whole = |(at, address): (usize, &&str)| at == last || !address.contains('?');
    if !addresses.iter().all(plain) || !addresses.iter().enumerate().all(whole) {
        return Err(wrong(NAME));
    }
    let url = format!("memcached://{}", addresses.join(","));
    Ok(with_query(url, &[("prefix", prefix)]))
}

fn filesystem(entries: &mut Entries) -> Result<String, ConfigError> {
    let path = required(entries, "SESSION_FILE_DIR")?;
    let most = entries.number::<std::num::NonZeroUsize>("SESSION_FILE_THRESHOLD")?;
    if let Some(mode) = entries.mode("SESSION_FILE_MODE")?
        && mode != 0o600
    {
        return refuse("SESSION_FILE_MODE is to be 0600: session files are their owner's alone");
    }
    let path = utf8_percent_encode(&path, ESCAPED);
    let most = most.map(|most| most.to_string());
    Ok(with_query(
        format!("file://{path}"),
        &[("max_records", most)],
    ))
}

fn mongodb(entries: &mut Entries) -> Result<String, ConfigError> {
    let url = required(entries, "SESSION_MONGODB")?;
    let database = entries.text("SESSION_MONGODB_DB")?;
    let collection = entries.text("SESSION_MONGODB_COLLECT")?;
    let (base, query) = url.split_once('?').unwrap_or((&url, ""));
    let (scheme, rest) = split(base).ok_or_else(|| wrong("SESSION_MONGODB"))?;
    let (hosts, named) = rest.split_once('/').unwrap_or((rest, ""));
    let database = match database.map(|name| utf8_percent_encode(&name, ESCAPED).to_string()) {
        Some(name) if named.is_empty() || named == name => name,
        Some(_) => {
            return refuse("SESSION_MONGODB_DB and the URL in SESSION_MONGODB name two databases");
        }
        None => named.to_owned(),
    };
    let mark = if query.is_empty() { "" } else { "?" };
    let url = format!("{scheme}://{hosts}/{database}{mark}{query}");
    Ok(with_query(url, &[("collection", collection)]))
}

/// In SQLAlchemy's URLs a path that begins behind the third slash is relative, and a driver may
/// follow the database's name.
fn sqlalchemy(entries: &mut Entries) -> Result<String, ConfigError> {
    const NAME: &str = "SESSION_SQLALCHEMY";
    let url = required(entries, NAME)?;
    for absent in ["SESSION_SQLALCHEMY_SEQUENCE", "SESSION_SQLALCHEMY_BIND_KEY"] {
        if entries.has(absent) {
            return Err(wrong(absent));
        }
    }
    let table = entries.text("SESSION_SQLALCHEMY_TABLE")?;
    let schema = entries.text("SESSION_SQLALCHEMY_SCHEMA")?;
    let (scheme, rest) = split(&url).ok_or_else(|| wrong(NAME))?;
    let database = scheme.split('+').next().unwrap_or_default();
    if schema.is_some() && !matches!(database, "postgresql" | "postgres") {
        return Err(wrong("SESSION_SQLALCHEMY_SCHEMA"));
    }
    let url = match database {
        "postgresql" | "postgres" => format!("postgres://{rest}"),
        "mysql" | "mariadb" => format!("mysql://{rest}"),
        "sqlite" => match rest.strip_prefix('/') {
            Some(path) if !path.is_empty() && !path.starts_with([':', '?']) => {
                format!("sqlite://{path}")
            }
            Some(_) | None => {
                return refuse(
                    "SESSION_SQLALCHEMY is to name a file: sqlite:///relative.db or \
                     sqlite:////absolute.db; for sessions in memory set SESSION_STORE=memory://",
                );
            }
        },
        _ => return Err(wrong(NAME)),
    };
    Ok(with_query(url, &[("table", table), ("schema", schema)]))
}

fn dynamodb(entries: &mut Entries) -> Result<String, ConfigError> {
    const NAME: &str = "SESSION_DYNAMODB";
    let place = entries.text(NAME)?;
    let table = entries.text("SESSION_DYNAMODB_TABLE")?;
    let exists = entries.flag("SESSION_DYNAMODB_TABLE_EXISTS")?;
    let (endpoint, region) = match place {
        None => (None, None),
        Some(url) if url.starts_with("http://") || url.starts_with("https://") => (Some(url), None),
        Some(region)
            if region
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
        {
            (None, Some(region))
        }
        Some(_) => return Err(wrong(NAME)),
    };
    let table = table.as_deref().unwrap_or("Sessions");
    let table = utf8_percent_encode(table, ESCAPED);
    Ok(with_query(
        format!("dynamodb://{table}"),
        &[
            ("region", region),
            ("endpoint", endpoint),
            ("create_table", exists.map(|exists| (!exists).to_string())),
        ],
    ))
}

/// Whether a setting is for one type of store only.
#[cfg(test)]
pub(super) fn is_of_a_type(name: &str) -> bool {
    OF_TYPES.iter().any(|(_, names)| names.contains(&name))
}

/// The scheme, in lower case, and what follows it.
fn split(url: &str) -> Option<(String, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    Some((scheme.to_ascii_lowercase(), rest))
}

fn with_query(mut url: String, settings: &[(&str, Option<String>)]) -> String {
    for (name, value) in settings {
        let Some(value) = value else { continue };
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(name);
        url.push('=');
        url.extend(utf8_percent_encode(value, ESCAPED));
    }
    url
}

fn required(entries: &mut Entries, name: &str) -> Result<String, ConfigError> {
    entries.text(name)?.ok_or_else(|| missing(name))
}

fn missing(name: &str) -> ConfigError {
    ConfigError::new(format!("{} (it is not set)", wrong(name)))
}

fn refuse<T>(message: impl Into<std::borrow::Cow<'static, str>>) -> Result<T, ConfigError> {
    Err(ConfigError::new(message))
}

#[cfg(test)]
mod tests;
