//! What may go together, and what may not.

use std::time::Duration;

use super::{MAX_LIFETIME, Policy, SameSite, SessionConfig, TOMBSTONE_TTL};
use crate::error::ConfigError;
use crate::payload::Limits;
use crate::signing::VALUE_LEN;
use crate::store::StoreLimits;

/// The cookie's settings, once they are known to be sound.
#[derive(Debug, Clone)]
pub(crate) struct CookieSettings {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) domain: Option<String>,
    pub(crate) secure: bool,
    pub(crate) http_only: bool,
    pub(crate) same_site: SameSite,
    pub(crate) partitioned: bool,
}

/// Browsers drop a cookie whose name and value are longer together (RFC 6265bis).
const MAX_NAME_AND_VALUE: usize = 4096;
/// Browsers ignore an attribute that is longer (RFC 6265bis).
const MAX_ATTRIBUTE: usize = 1024;
/// A record is indexed with 32-bit offsets; anything near that is no session any more.
const MAX_PAYLOAD: usize = 256 << 20;
/// A user's list of sessions is read and written whole.
const MAX_PER_USER: usize = 1_000;
/// The decoders' own limit on nesting lies above this.
const MAX_DEPTH: usize = 100;

/// The limits of a layer that was configured to have none of its own: what passes these, some layer may
/// take for a session.
pub(crate) const WIDEST: Limits = Limits {
    bytes: MAX_PAYLOAD,
    keys: MAX_PAYLOAD,
    depth: MAX_DEPTH,
};

/// Store and commit must be done long before a tombstone expires.
const MAX_WAIT: Duration = Duration::from_secs(TOMBSTONE_TTL.as_secs() / 2);

fn refuse<T>(message: impl Into<std::borrow::Cow<'static, str>>) -> Result<T, ConfigError> {
    Err(ConfigError::new(message))
}

impl SessionConfig {
    /// Checks everything, against the store's limits too.
    pub(crate) fn validate(
        self,
        store: StoreLimits,
    ) -> Result<(Policy, CookieSettings), ConfigError> {
        let cookie = self.cookie()?;
        lifetime("idle_timeout", self.idle_timeout)?;
        if let Some(absolute) = self.absolute_timeout {
            lifetime("absolute_timeout", absolute)?;
            if absolute < self.idle_timeout {
                return refuse(format!(
                    "absolute_timeout ({absolute:?}) is shorter than idle_timeout ({:?}), which could \
                     never be reached; lower idle_timeout",
                    self.idle_timeout
                ));
            }
        }
        // Written so that NaN is refused too.
        if !(0.0..=1.0).contains(&self.refresh_share) {
            return refuse(format!(
                "refresh_share is {}; set it to between 0 and 1",
                self.refresh_share
            ));
        }
        wait("store_timeout", self.store_timeout)?;
        wait("commit_timeout", self.commit_timeout)?;
        at_least_one("max_payload", self.max_payload, MAX_PAYLOAD)?;
        at_least_one("max_keys", self.max_keys, MAX_PAYLOAD)?;
        at_least_one("max_depth", self.max_depth, MAX_DEPTH)?;
        at_least_one("sessions_per_user", self.sessions_per_user, MAX_PER_USER)?;
        let room = store.max_payload() / crate::user::ROOM;
        let policy = Policy {
            permanent: self.permanent,
            idle: self.idle_timeout,
            absolute: self.absolute_timeout,
            refresh_share: self.refresh_share,
            format: self.format,
            limits: Limits {
                bytes: self.max_payload.min(store.max_payload()),
                keys: self.max_keys,
                depth: self.max_depth,
            },
            server_errors: self.server_errors,
            store_timeout: self.store_timeout,
            store_is_bounded: (store.timeout()).is_some_and(|limit| limit <= self.store_timeout),
            commit_timeout: self.commit_timeout,
            sessions_per_user: self.sessions_per_user.min(room).max(1),
        };
        Ok((policy, cookie))
    }

    fn cookie(&self) -> Result<CookieSettings, ConfigError> {
        let secure = !self.insecure_plain_http_for_development;
        let name = match (&self.cookie_name, secure) {
            (Some(name), _) => name.clone(),
            (None, true) => "__Host-id".to_owned(),
            (None, false) => "id".to_owned(),
        };
        check_name(&name)?;
        check_path(&self.cookie_path)?;
        if let Some(domain) = &self.cookie_domain {
            check_domain(domain)?;
        }
        if !secure && self.same_site == SameSite::None {
            return refuse(
                "same_site = none needs a Secure cookie: browsers drop it otherwise; do not set \
                 insecure_plain_http_for_development, or choose another same_site",
            );
        }
        if !secure && self.partitioned {
            return refuse(
                "partitioned needs a Secure cookie: browsers drop it otherwise; do not set \
                 insecure_plain_http_for_development",
            );
        }
        let settings = CookieSettings {
            name,
            path: self.cookie_path.clone(),
            domain: self.cookie_domain.clone(),
            secure,
            http_only: self.http_only,
            same_site: self.same_site,
            partitioned: self.partitioned,
        };
        check_prefix(&settings)?;
        Ok(settings)
    }
}

fn lifetime(name: &str, value: Duration) -> Result<(), ConfigError> {
    if value < Duration::from_millis(1) {
        return refuse(format!(
            "{name} is {value:?}; set it to at least a millisecond"
        ));
    }
    if value > MAX_LIFETIME {
        return refuse(format!(
            "{name} is over 400 days, which is the most that browsers keep a cookie; lower it"
        ));
    }
    Ok(())
}

fn wait(name: &str, value: Duration) -> Result<(), ConfigError> {
    if value < Duration::from_millis(1) || value > MAX_WAIT {
        return refuse(format!(
            "{name} is {value:?}; set it to between 1 millisecond and {MAX_WAIT:?}"
        ));
    }
    Ok(())
}

fn at_least_one(name: &str, value: usize, most: usize) -> Result<(), ConfigError> {
    if value == 0 || value > most {
        return refuse(format!("{name} is {value}; set it to between 1 and {most}"));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return refuse(format!(
            "cookie_name {name:?} is not allowed; use ASCII letters, digits, '-' and '_'"
        ));
    }
    if name.len() + VALUE_LEN > MAX_NAME_AND_VALUE {
        return refuse("cookie_name is too long: browsers drop cookies over 4,096 bytes");
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), ConfigError> {
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b';';
    if !path.starts_with('/') || !path.bytes().all(plain) || path.len() > MAX_ATTRIBUTE {
        return refuse(format!(
            "cookie_path {path:?} is not allowed; it begins with '/' and holds up to 1,024 ASCII \
             characters other than ';' and control characters"
        ));
    }
    Ok(())
}

fn check_domain(domain: &str) -> Result<(), ConfigError> {
    if domain.starts_with('.') {
        return refuse(format!(
            "cookie_domain {domain:?} begins with a dot; leave it out, subdomains are included anyway"
        ));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if domain.len() > 253 || !domain.split('.').all(label) {
        return refuse(format!(
            "cookie_domain {domain:?} is no host name; write it like \"example.com\", without a port, \
             and names in other scripts in their xn-- form"
        ));
    }
    Ok(())
}

/// The promises of name prefixes. Browsers match them without regard to case.
fn check_prefix(cookie: &CookieSettings) -> Result<(), ConfigError> {
    let name = cookie.name.to_ascii_lowercase();
    let host = name.starts_with("__host-");
    let http = name.starts_with("__http-") || name.starts_with("__host-http-");
    let guarded = host || http || name.starts_with("__secure-");
    let broken = |rule: &str, instead: &str| {
        refuse(format!(
            "cookie_name {:?}: browsers take this prefix only {rule}; {instead}",
            cookie.name
        ))
    };
    if guarded && !cookie.secure {
        return broken(
            "with Secure",
            "choose a name without a prefix for plain-HTTP development",
        );
    }
    if host && cookie.domain.is_some() {
        return broken(
            "without a domain",
            "drop cookie_domain, or name the cookie \"__Secure-id\"",
        );
    }
    if host && cookie.path != "/" {
        return broken(
            "with the path \"/\"",
            "drop cookie_path, or name the cookie \"__Secure-id\"",
        );
    }
    if http && !cookie.http_only {
        return broken("with HttpOnly", "drop http_only = false");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: SessionConfig) -> Result<(Policy, CookieSettings), String> {
        config
            .validate(StoreLimits::new(1 << 30))
            .map_err(|error| error.to_string())
    }

    fn config() -> SessionConfig {
        SessionConfig::default()
    }

    #[test]
    fn the_defaults_are_secure() {
        let (policy, cookie) = check(config()).unwrap();
        assert_eq!(cookie.name, "__Host-id");
        assert!(cookie.secure && cookie.http_only && cookie.domain.is_none());
        assert_eq!(
            (cookie.path.as_str(), cookie.same_site),
            ("/", SameSite::Lax)
        );
        assert_eq!(policy.idle, Duration::from_secs(31 * 86_400));
    }

    #[test]
    fn what_browsers_would_drop_is_refused_with_advice() {
        let plain = config().with_insecure_plain_http_for_development(true);
        let cases = [
            (
                config().with_cookie_domain("example.com".to_owned()),
                "__Secure-id",
            ),
            (config().with_cookie_path("/app"), "__Secure-id"),
            (
                plain.clone().with_cookie_name("__Host-id"),
                "without a prefix",
            ),
            (
                plain.clone().with_cookie_name("__hOsT-id"),
                "without a prefix",
            ),
            (
                plain.clone().with_cookie_name("__SECURE-id"),
                "without a prefix",
            ),
            (
                plain.clone().with_same_site(SameSite::None),
                "insecure_plain_http",
            ),
            (plain.clone().with_partitioned(true), "insecure_plain_http"),
            (
                config()
                    .with_cookie_name("__Host-Http-id")
                    .with_http_only(false),
                "http_only",
            ),
            (
                config().with_cookie_name("__http-id").with_http_only(false),
                "http_only",
            ),
            (config().with_cookie_name(""), "letters"),
            (config().with_cookie_name("a b"), "letters"),
            (config().with_cookie_name("a=b"), "letters"),
            (config().with_cookie_name("a;b"), "letters"),
            (config().with_cookie_name("é"), "letters"),
            (config().with_cookie_name("n".repeat(4000)), "4,096"),
            (config().with_cookie_path("app"), "begins with"),
            (config().with_cookie_path("/a;b"), "begins with"),
            (config().with_cookie_path("/a\nb"), "begins with"),
            (
                config().with_cookie_domain(".example.com".to_owned()),
                "dot",
            ),
            (
                config().with_cookie_domain("exa mple.com".to_owned()),
                "host name",
            ),
            (
                config().with_cookie_domain("example.com; Secure".to_owned()),
                "host name",
            ),
            (
                config().with_cookie_domain("example.com:80".to_owned()),
                "host name",
            ),
            (config().with_cookie_domain(String::new()), "host name"),
            (config().with_idle_timeout(Duration::ZERO), "idle_timeout"),
            (
                config().with_idle_timeout(MAX_LIFETIME + Duration::from_secs(1)),
                "400 days",
            ),
            (
                config().with_absolute_timeout(Some(Duration::ZERO)),
                "absolute_timeout",
            ),
            (
                config().with_absolute_timeout(Some(Duration::from_secs(60))),
                "lower idle_timeout",
            ),
            (config().with_refresh_share(1.1), "refresh_share"),
            (config().with_refresh_share(-0.1), "refresh_share"),
            (config().with_refresh_share(f64::NAN), "refresh_share"),
            (config().with_store_timeout(Duration::ZERO), "store_timeout"),
            (
                config().with_commit_timeout(Duration::from_secs(3600)),
                "commit_timeout",
            ),
            (config().with_max_payload(0), "max_payload"),
            (config().with_max_keys(0), "max_keys"),
            (config().with_max_depth(101), "max_depth"),
            (config().with_sessions_per_user(0), "sessions_per_user"),
            (config().with_sessions_per_user(1_001), "sessions_per_user"),
        ];
        for (config, advice) in cases {
            let error = check(config.clone()).expect_err(&format!("{config:?}"));
            assert!(error.contains(advice), "{error} should mention {advice}");
        }
    }

    #[test]
    fn what_browsers_take_is_taken() {
        for config in [
            config().with_cookie_name("sid"),
            config().with_cookie_name("__Host-Http-id"),
            config()
                .with_cookie_name("__Secure-id")
                .with_cookie_domain("example.com".to_owned()),
            config()
                .with_cookie_name("__Secure-id")
                .with_cookie_path("/app"),
            config().with_insecure_plain_http_for_development(true),
            config()
                .with_same_site(SameSite::None)
                .with_partitioned(true),
            config()
                .with_idle_timeout(MAX_LIFETIME)
                .with_absolute_timeout(Some(MAX_LIFETIME)),
            config().with_nist_aal1(),
            config().with_nist_aal2(),
            config().with_nist_aal3(),
        ] {
            check(config).unwrap();
        }
    }

    #[test]
    fn a_smaller_store_lowers_the_payload_limit() {
        let (policy, _) = config().validate(StoreLimits::new(1000)).unwrap();
        assert_eq!(policy.limits.bytes, 1000);
        assert_eq!(policy.sessions_per_user, 1000 / 128);
        let (policy, _) = config().validate(StoreLimits::new(100)).unwrap();
        assert_eq!(policy.sessions_per_user, 1);
    }

    #[test]
    fn a_file_can_say_it_all_and_a_typo_is_an_error() {
        let read = serde_json::from_str::<SessionConfig>;
        let parsed = read(
            r#"{"idle_timeout": 90, "absolute_timeout": "2h", "format": "json", "same_site": "Strict",
                "server_errors": "commit", "store_timeout": 0.5, "cookie_domain": null}"#,
        )
        .unwrap();
        assert_eq!(parsed.idle_timeout, Duration::from_secs(90));
        assert_eq!(parsed.absolute_timeout, Some(Duration::from_secs(7200)));
        assert_eq!(parsed.store_timeout, Duration::from_millis(500));
        assert!(
            read(r#"{"idle_timeuot": 90}"#)
                .unwrap_err()
                .to_string()
                .contains("idle_timeout")
        );
        assert!(
            read(r#"{"idle_timeout": "soon"}"#)
                .unwrap_err()
                .to_string()
                .contains("31days")
        );
        assert!(read(r#"{"idle_timeout": -1}"#).is_err());
        assert!(read(r#"{"same_site": "whatever"}"#).is_err());
    }
}
