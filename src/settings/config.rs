//! The part of the settings that becomes a `SessionConfig`.

use super::values::{Entries, wrong};
use crate::config::{SameSite, ServerErrors, SessionConfig};
use crate::error::ConfigError;
use crate::payload::Format;
use crate::store::StoreLimits;

pub(super) fn config(entries: &mut Entries, shared: bool) -> Result<SessionConfig, ConfigError> {
    let mut config = SessionConfig::default();
    if shared {
        config = config.with_cookie_name("session");
    }
    let mut idle_by = "SESSION_IDLE_TIMEOUT";
    if let Some(name) = entries.text("SESSION_COOKIE_NAME")? {
        config = config.with_cookie_name(name);
    }
    if let Some(domain) = entries.text("SESSION_COOKIE_DOMAIN")? {
        config = config.with_cookie_domain(domain);
    }
    if let Some(path) = entries.text("SESSION_COOKIE_PATH")? {
        config = config.with_cookie_path(path);
    }
    if let Some(http_only) = entries.flag("SESSION_COOKIE_HTTPONLY")? {
        config = config.with_http_only(http_only);
    }
    if let Some(secure) = entries.flag("SESSION_COOKIE_SECURE")? {
        config = config.with_insecure_plain_http_for_development(!secure);
    }
    if let Some(same_site) = entries.word("SESSION_COOKIE_SAMESITE")? {
        config = config.with_same_site(match same_site.as_str() {
            "lax" => SameSite::Lax,
            "strict" => SameSite::Strict,
            "none" => SameSite::None,
            _ => return Err(wrong("SESSION_COOKIE_SAMESITE")),
        });
    }
    if let Some(partitioned) = entries.flag("SESSION_COOKIE_PARTITIONED")? {
        config = config.with_partitioned(partitioned);
    }
    if entries
        .number::<u32>("SESSION_ID_LENGTH")?
        .is_some_and(|bytes| bytes != 32)
    {
        return Err(ConfigError::new(
            "SESSION_ID_LENGTH is to be 32 or left out: an id is always 32 random bytes",
        ));
    }
    if let Some(permanent) = entries.flag("SESSION_PERMANENT")? {
        config = config.with_permanent(permanent);
    }
    entries.exclude("PERMANENT_SESSION_LIFETIME", "SESSION_IDLE_TIMEOUT")?;
    if let Some(timeout) = entries.duration("PERMANENT_SESSION_LIFETIME")? {
        idle_by = "PERMANENT_SESSION_LIFETIME";
        config = config.with_idle_timeout(timeout);
    }
    if let Some(timeout) = entries.duration("SESSION_IDLE_TIMEOUT")? {
        config = config.with_idle_timeout(timeout);
    }
    let absolute = entries.duration("SESSION_ABSOLUTE_TIMEOUT")?;
    config = config.with_absolute_timeout(absolute);
    entries.exclude("SESSION_REFRESH_EACH_REQUEST", "SESSION_REFRESH_SHARE")?;
    if let Some(each) = entries.flag("SESSION_REFRESH_EACH_REQUEST")? {
        config = config.with_refresh_share(if each { 0.0 } else { 1.0 });
    }
    if let Some(share) = entries.number("SESSION_REFRESH_SHARE")? {
        config = config.with_refresh_share(share);
    }
    if let Some(format) = entries.word("SESSION_SERIALIZATION_FORMAT")? {
        config = config.with_format(match format.as_str() {
            "msgpack" => Format::MessagePack,
            "json" => Format::Json,
            _ => return Err(wrong("SESSION_SERIALIZATION_FORMAT")),
        });
    }
    if let Some(bytes) = entries.number("SESSION_MAX_PAYLOAD")? {
        config = config.with_max_payload(bytes);
    }
    if let Some(keys) = entries.number("SESSION_MAX_KEYS")? {
        config = config.with_max_keys(keys);
    }
    if let Some(levels) = entries.number("SESSION_MAX_DEPTH")? {
        config = config.with_max_depth(levels);
    }
    if let Some(policy) = entries.word("SESSION_SERVER_ERRORS")? {
        config = config.with_server_errors(match policy.as_str() {
            "rollback" => ServerErrors::Rollback,
            "commit" => ServerErrors::Commit,
            _ => return Err(wrong("SESSION_SERVER_ERRORS")),
        });
    }
    if let Some(timeout) = entries.duration("SESSION_STORE_TIMEOUT")? {
        config = config.with_store_timeout(timeout);
    }
    if let Some(timeout) = entries.duration("SESSION_COMMIT_TIMEOUT")? {
        config = config.with_commit_timeout(timeout);
    }
    if let Some(limit) = entries.number("SESSION_MAX_PER_USER")? {
        config = config.with_sessions_per_user(limit);
    }
    match config.clone().validate(StoreLimits::new(usize::MAX)) {
        Ok(_) => Ok(config),
        Err(error) => Err(in_settings(&error, idle_by)),
    }
}

/// The same error, with the names that are used here.
fn in_settings(error: &ConfigError, idle_by: &str) -> ConfigError {
    let names = [
        (
            "insecure_plain_http_for_development",
            "SESSION_COOKIE_SECURE=false",
        ),
        ("cookie_name", "SESSION_COOKIE_NAME"),
        ("cookie_path", "SESSION_COOKIE_PATH"),
        ("cookie_domain", "SESSION_COOKIE_DOMAIN"),
        ("http_only", "SESSION_COOKIE_HTTPONLY"),
        ("same_site", "SESSION_COOKIE_SAMESITE"),
        ("partitioned", "SESSION_COOKIE_PARTITIONED"),
        ("idle_timeout", idle_by),
        ("absolute_timeout", "SESSION_ABSOLUTE_TIMEOUT"),
        ("refresh_share", "SESSION_REFRESH_SHARE"),
        ("max_payload", "SESSION_MAX_PAYLOAD"),
        ("max_keys", "SESSION_MAX_KEYS"),
        ("max_depth", "SESSION_MAX_DEPTH"),
        ("store_timeout", "SESSION_STORE_TIMEOUT"),
        ("commit_timeout", "SESSION_COMMIT_TIMEOUT"),
        ("sessions_per_user", "SESSION_MAX_PER_USER"),
    ];
    let text = error.to_string();
    let text = names
        .iter()
        .fold(text, |text, (field, name)| text.replace(field, name));
    ConfigError::new(text)
}
