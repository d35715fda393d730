//! Configuration: one object, checked once, when the layer is built.

pub(crate) mod de;
mod validate;

use std::time::Duration;

use crate::payload::{Format, Limits};

pub(crate) use self::validate::{CookieSettings, WIDEST};

/// No session, and no cookie, lives longer: the limit that browsers set (RFC 6265bis).
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// How long a tombstone is kept: longer than any request takes.
pub(crate) const TOMBSTONE_TTL: Duration = Duration::from_secs(10 * 60);

/// Which requests from other sites bring the session cookie along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SameSite {
    /// Links from other sites, but no embedded requests and no forms. The default.
    #[default]
    #[serde(alias = "Lax")]
    Lax,
    /// All. The cookie must be `Secure`, and the application needs its own defence against forged
    /// requests.
    #[serde(alias = "None")]
    None,
    /// None, not even a link: a user who comes from another site is not logged in on the first page.
    #[serde(alias = "Strict")]
    Strict,
}

/// What happens to a session's edits when the response is a server error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ServerErrors {
    /// They are stored like those of any other response.
    Commit,
    /// Edits and rotation are dropped, like a transaction that is rolled back. The default.
    #[default]
    Rollback,
}

/// How sessions behave. The default is meant for production; every setter says what it changes.
///
/// Nothing is checked until [`SessionLayer::with_config`](crate::SessionLayer::with_config), which
/// refuses what cannot work with an error that says what to change. With `serde`, durations are
/// seconds (`3600`, `0.5`) or text (`"31days"`, `"1h 30m"`), and an unknown name is an error.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use session_layer::{SameSite, SessionConfig};
///
/// let config = SessionConfig::default()
///     .with_idle_timeout(Duration::from_secs(30 * 60))
///     .with_absolute_timeout(Some(Duration::from_secs(12 * 60 * 60)))
///     .with_same_site(SameSite::Strict);
///
/// let same: SessionConfig = serde_json::from_str(
///     r#"{ "idle_timeout": "30min", "absolute_timeout": "12h", "same_site": "strict" }"#,
/// )?;
/// assert_eq!(config, same);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionConfig {
    cookie_name: Option<String>,
    cookie_path: String,
    cookie_domain: Option<String>,
    http_only: bool,
    same_site: SameSite,
    partitioned: bool,
    insecure_plain_http_for_development: bool,
    permanent: bool,
    #[serde(deserialize_with = "de::duration")]
    idle_timeout: Duration,
    #[serde(deserialize_with = "de::optional_duration")]
    absolute_timeout: Option<Duration>,
    refresh_share: f64,
    format: Format,
    max_payload: usize,
    max_keys: usize,
    max_depth: usize,
    server_errors: ServerErrors,
    #[serde(deserialize_with = "de::duration")]
    store_timeout: Duration,
    #[serde(deserialize_with = "de::duration")]
    commit_timeout: Duration,
    sessions_per_user: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            cookie_name: None,
            cookie_path: "/".into(),
            cookie_domain: None,
            http_only: true,
            same_site: SameSite::Lax,
            partitioned: false,
            insecure_plain_http_for_development: false,
            permanent: true,
            idle_timeout: Duration::from_secs(31 * 24 * 60 * 60),
            absolute_timeout: None,
            refresh_share: 0.1,
            format: Format::MessagePack,
            max_payload: 1 << 20,
            max_keys: 1024,
            max_depth: 64,
            server_errors: ServerErrors::Rollback,
            store_timeout: Duration::from_secs(2),
            commit_timeout: Duration::from_secs(2),
            sessions_per_user: 100,
        }
    }
}

impl SessionConfig {
    /// The cookie's name. Default: `__Host-id`, or `id` with plain HTTP.
    ///
    /// Two applications on one host need two names. The prefixes `__Host-`, `__Secure-`, `__Http-`
    /// and `__Host-Http-` make browsers guard the cookie and bring rules of their own, which are
    /// checked when the layer is built. Changing the name ends every session.
    #[must_use]
    pub fn with_cookie_name(mut self, name: impl Into<String>) -> Self {
        self.cookie_name = Some(name.into());
        self
    }

    /// The path below which the browser sends the cookie. Default: `/`, which the `__Host-` prefix
    /// requires. It keeps the cookie from other paths' requests, not from other paths' scripts.
    #[must_use]
    pub fn with_cookie_path(mut self, path: impl Into<String>) -> Self {
        self.cookie_path = path.into();
        self
    }

    /// The domain whose subdomains all get the cookie. Default: none, so that only the host that set
    /// it does, which the `__Host-` prefix requires.
    #[must_use]
    pub fn with_cookie_domain(mut self, domain: impl Into<Option<String>>) -> Self {
        self.cookie_domain = domain.into();
        self
    }

    /// Whether scripts are kept from reading the cookie. Default: yes. Turning it off hands the
    /// session to any script that gets into a page.
    #[must_use]
    pub fn with_http_only(mut self, http_only: bool) -> Self {
        self.http_only = http_only;
        self
    }

    /// Which requests from other sites bring the cookie along. Default: [`SameSite::Lax`].
    #[must_use]
    pub fn with_same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Whether an embedded page has a session of its own under each embedding site (CHIPS). Default:
    /// no. Most useful together with [`SameSite::None`].
    #[must_use]
    pub fn with_partitioned(mut self, partitioned: bool) -> Self {
        self.partitioned = partitioned;
        self
    }

    /// Drops `Secure` from the cookie, so that it travels over plain HTTP, where anyone on the way can
    /// read it. Default: no. Only for development on a host that the browser does not trust;
    /// `http://localhost` works without.
    #[must_use]
    pub fn with_insecure_plain_http_for_development(mut self, insecure: bool) -> Self {
        self.insecure_plain_http_for_development = insecure;
        self
    }

    #[cfg(feature = "flask")]
    pub(crate) fn or_cookie_name(mut self, name: &str) -> Self {
        self.cookie_name.get_or_insert_with(|| name.to_owned());
        self
    }

    #[cfg(feature = "flask")]
    pub(crate) fn is_permanent(&self) -> bool {
        self.permanent
    }

    #[cfg(feature = "flask")]
    pub(crate) fn has_absolute_timeout(&self) -> bool {
        self.absolute_timeout.is_some()
    }

    pub(crate) fn is_insecure(&self) -> bool {
        self.insecure_plain_http_for_development
    }

    /// Whether the browser keeps the cookie of a new session when it closes. Default: yes.
    /// [`Session::set_permanent`](crate::Session::set_permanent) changes it for one session. The
    /// server's limits are the same either way.
    #[must_use]
    pub fn with_permanent(mut self, permanent: bool) -> Self {
        self.permanent = permanent;
        self
    }

    /// How long a session lives without being used. Default: 31 days; more than zero, at most 400
    /// days. [`Session::set_lifetime`](crate::Session::set_lifetime) changes it for one session.
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// How long a session lives however much it is used, counted from its creation or from the last
    /// [`cycle_id`](crate::Session::cycle_id). Default: no limit; at least the idle timeout, at most
    /// 400 days.
    #[must_use]
    pub fn with_absolute_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.absolute_timeout = timeout;
        self
    }

    /// The limits of NIST SP 800-63B-4 for assurance level 1: 30 days.
    #[must_use]
    pub fn with_nist_aal1(self) -> Self {
        let days = Duration::from_secs(30 * 24 * 60 * 60);
        self.with_idle_timeout(days)
            .with_absolute_timeout(Some(days))
    }

    /// The limits of NIST SP 800-63B-4 for assurance level 2: 24 hours, 1 hour idle.
    #[must_use]
    pub fn with_nist_aal2(self) -> Self {
        self.with_idle_timeout(Duration::from_secs(60 * 60))
            .with_absolute_timeout(Some(Duration::from_secs(24 * 60 * 60)))
    }

    /// The limits of NIST SP 800-63B-4 for assurance level 3: 12 hours, 15 minutes idle.
    #[must_use]
    pub fn with_nist_aal3(self) -> Self {
        self.with_idle_timeout(Duration::from_secs(15 * 60))
            .with_absolute_timeout(Some(Duration::from_secs(12 * 60 * 60)))
    }

    /// The share of the lifetime that passes before a session that is only read is renewed, in the
    /// store and in the browser. Default: 0.1; at least 0 (each request costs a second round trip),
    /// at most 1 (reading renews nothing: the lifetime counts from the last change). A session may end
    /// this share early.
    #[must_use]
    pub fn with_refresh_share(mut self, share: f64) -> Self {
        self.refresh_share = share;
        self
    }

    /// The encoding of new sessions. Default: [`Format::MessagePack`].
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// The most bytes that a session may have when encoded. Default: 1 MiB, or what the store takes if
    /// that is less. More is refused when it is inserted.
    #[must_use]
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// The most keys that a session may have. Default: 1,024.
    #[must_use]
    pub fn with_max_keys(mut self, keys: usize) -> Self {
        self.max_keys = keys;
        self
    }

    /// How deep a value may be nested. Default: 64; at most 100.
    #[must_use]
    pub fn with_max_depth(mut self, levels: usize) -> Self {
        self.max_depth = levels;
        self
    }

    /// What happens to edits when the response has a status of 500 or more, or the inner service
    /// fails. Default: [`ServerErrors::Rollback`]. A `flush` counts whatever the status.
    #[must_use]
    pub fn with_server_errors(mut self, policy: ServerErrors) -> Self {
        self.server_errors = policy;
        self
    }

    /// How long to wait for one answer of the store. Default: 2 seconds. After that the request is
    /// answered with 503.
    #[must_use]
    pub fn with_store_timeout(mut self, timeout: Duration) -> Self {
        self.store_timeout = timeout;
        self
    }

    /// How long a commit may take, all attempts to settle a conflict together. Default: 2 seconds; at
    /// most 5 minutes.
    #[must_use]
    pub fn with_commit_timeout(mut self, timeout: Duration) -> Self {
        self.commit_timeout = timeout;
        self
    }

    /// How many sessions a user can be logged in to at a time. Default: 100; at least 1, at most 1,000,
    /// or fewer if the store takes small records only (128 bytes each). A
    /// [`login`](crate::Session::login) beyond that ends those with the oldest logins.
    #[must_use]
    pub fn with_sessions_per_user(mut self, limit: usize) -> Self {
        self.sessions_per_user = limit;
        self
    }
}

/// The settings that the request path asks for, once they are known to be sound.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) permanent: bool,
    pub(crate) idle: Duration,
    pub(crate) absolute: Option<Duration>,
    pub(crate) refresh_share: f64,
    pub(crate) format: Format,
    pub(crate) limits: Limits,
    pub(crate) server_errors: ServerErrors,
    pub(crate) store_timeout: Duration,
    /// Whether the store itself gives up in time.
    pub(crate) store_is_bounded: bool,
    pub(crate) commit_timeout: Duration,
    pub(crate) sessions_per_user: usize,
}

impl Policy {
    /// How long to wait for the store when so much time is `left`; `None` where the store sees to
    /// that.
    pub(crate) fn limit(&self, left: Duration) -> Option<Duration> {
        let measured = left < self.store_timeout || !self.store_is_bounded;
        measured.then(|| left.min(self.store_timeout))
    }

    /// Whether a session that is only read is ever renewed.
    pub(crate) fn renews_by_reading(&self) -> bool {
        self.refresh_share < 1.0
    }
}
