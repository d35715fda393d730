//! Settings from outside: the environment, a file, or any list of names and values.

mod de;
mod names;
mod store_url;
mod sweeping;
mod values;

use std::env;
use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use self::store_url::store_url;
use self::sweeping::Sweep;
use self::values::{Entries, Value, wrong};
use crate::config::{SameSite, ServerErrors, SessionConfig};
use crate::error::{ConfigError, StoreError, StoreErrorKind};
#[cfg(feature = "flask")]
use crate::flask::FlaskCookies;
use crate::layer::SessionLayer;
use crate::payload::Format;
use crate::signing::SigningKeys;
use crate::store::{AnyStore, StoreLimits};

/// Everything a [`SessionLayer`] needs, read from the environment or from a file: the
/// configuration, the signing keys, and which store.
///
/// The names are those of Flask and Flask-Session where they have one, with its meaning; a value that
/// is a Python object there is a URL here. `docs/configuration.md` lists them all, and where we differ
/// on purpose. Everything is checked at once: an unknown name, a value of the wrong type and settings
/// that exclude each other are errors that name the setting and what it takes. No value of a secret
/// setting is in an error or in `Debug`.
///
/// In a file, names may be in lower case and without their `SESSION_`: `store = "sqlite://app.db"`.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use session_layer::SessionSettings;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
/// # runtime.block_on(async {
/// // `from_env()` reads the same from the environment.
/// let settings = SessionSettings::from_pairs([
///     ("SESSION_STORE", "memory://"),
///     ("SECRET_KEY", "a secret from a password generator"),
///     ("PERMANENT_SESSION_LIFETIME", "30min"),
///     ("SESSION_COOKIE_SAMESITE", "Strict"),
/// ])?;
/// let layer = settings.layer().await?;
///
/// let same: SessionSettings = serde_json::from_str(
///     r#"{
///         "store": "memory://",
///         "secret_key": "a secret from a password generator",
///         "idle_timeout": "30min",
///         "cookie_samesite": "Strict"
///     }"#,
/// )?;
/// assert_eq!(settings.config(), same.config());
///
/// let typo = SessionSettings::from_pairs([("SESSION_COOKIE_SAME_SITE", "Strict")]);
/// assert!(typo.unwrap_err().to_string().contains("did you mean SESSION_COOKIE_SAMESITE?"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// # }
/// ```
#[derive(Clone)]
pub struct SessionSettings {
    config: SessionConfig,
    cookies: Cookies,
    store_url: String,
    sweep: Sweep,
}

#[derive(Debug, Clone)]
enum Cookies {
    Own(SigningKeys),
    #[cfg(feature = "flask")]
    Flask(FlaskCookies),
}

/// Names that other programs put into the environment.
const FOREIGN: &[&str] = &["SESSION_MANAGER"];
/// Of the tests of this crate.
const FOREIGN_PREFIX: &str = "SESSION_LAYER_";

impl SessionSettings {
    /// Reads the environment.
    ///
    /// Other programs' variables are passed over, but one that begins with `SESSION_` or `PERMANENT_`
    /// is taken for a setting. (`SESSION_MANAGER`, which desktops set, is not.)
    ///
    /// # Errors
    ///
    /// See [`from_pairs`](Self::from_pairs); also when a setting is not UTF-8.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_env_with_prefix("")
    }

    /// Reads the environment, with names that begin with `prefix`: `FLASK_SESSION_TYPE` with
    /// `"FLASK_"`, as Flask's `from_prefixed_env` does.
    ///
    /// # Errors
    ///
    /// As for [`from_env`](Self::from_env).
    pub fn from_env_with_prefix(prefix: &str) -> Result<Self, ConfigError> {
        let mut pairs = Vec::new();
        for (name, value) in env::vars_os() {
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else {
                continue;
            };
            if !is_ours(name) {
                continue;
            }
            let value = value.into_string().map_err(|_| {
                ConfigError::new(format!("environment variable {prefix}{name} is not UTF-8"))
            })?;
            pairs.push((name.to_owned(), value));
        }
        Self::from_pairs(pairs)
    }

    /// Reads names and values as the environment has them.
    ///
    /// # Errors
    ///
    /// When a name that begins with `SESSION_` or `PERMANENT_` is no setting, a value is not of its
    /// setting's type, settings exclude each other, or there is no store or no key.
    pub fn from_pairs<N: AsRef<str>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, ConfigError> {
        let mut entries = Entries::new();
        for (name, value) in pairs {
            let name = name.as_ref();
            if is_ours(name) {
                let setting = names::find(name).ok_or_else(|| names::unknown(name))?;
                entries.add(setting, Value::Text(value.into()))?;
            }
        }
        Self::from_entries(entries)
    }

    fn from_entries(mut entries: Entries) -> Result<Self, ConfigError> {
        let shared = entries.flag("SESSION_SHARED_WITH_FLASK")?.unwrap_or(false);
        let signer = entries.flag("SESSION_USE_SIGNER")?;
        let config = config(&mut entries, shared)?;
        let settings = Self {
            config,
            cookies: match shared {
                false => Cookies::Own(own_cookies(&mut entries, signer)?),
                true => flask_cookies(&mut entries, signer.unwrap_or(false))?,
            },
            store_url: store_url(&mut entries)?,
            sweep: sweep(&mut entries)?,
        };
        if shared && !can_be_shared(&settings.store_url) {
            return Err(ConfigError::new(
                "SESSION_SHARED_WITH_FLASK needs a store on Redis or on memcached",
            ));
        }
        match entries.left().next() {
            Some(name) => Err(ConfigError::new(format!("{name} has no effect here"))),
            None => Ok(settings),
        }
    }

    /// How sessions behave.
    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// The keys that sign cookies; `None` where the cookies are Flask's.
    #[must_use]
    pub fn keys(&self) -> Option<&SigningKeys> {
        match &self.cookies {
            Cookies::Own(keys) => Some(keys),
            #[cfg(feature = "flask")]
            Cookies::Flask(_) => None,
        }
    }

    /// The URL of the store, as [`AnyStore::connect`] takes it. It may hold a password.
    #[must_use]
    pub fn store_url(&self) -> &str {
        &self.store_url
    }

    /// Opens the store. It purges expired records by itself, in the background, for as long as any
    /// clone of it lives: every so often, or after so many requests. Not for sessions that are shared
    /// with Flask, whose store is the layer's alone.
    ///
    /// # Errors
    ///
    /// As [`AnyStore::connect`]; [`Unsupported`](StoreErrorKind::Unsupported) with
    /// `SESSION_SHARED_WITH_FLASK`.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn store(&self) -> Result<AnyStore, StoreError> {
        if self.keys().is_none() {
            return Err(StoreError::new(
                StoreErrorKind::Unsupported,
                "sessions that are shared with Flask are reached by their layer",
            ));
        }
        let store = AnyStore::connect(&self.store_url).await?;
        Ok(self.sweep.start(store))
    }

    /// Opens the store and builds the layer.
    ///
    /// # Errors
    ///
    /// As [`store`](Self::store); whatever does not depend on the store has been checked by now.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn layer(&self) -> Result<SessionLayer, StoreError> {
        if self.config.is_insecure() {
            tracing::warn!(
                "session cookies travel over plain HTTP: SESSION_COOKIE_SECURE is false"
            );
        }
        let config = self.config.clone();
        let layer = match &self.cookies {
            Cookies::Own(keys) => {
                SessionLayer::with_config(self.store().await?, keys.clone(), config)
            }
            #[cfg(feature = "flask")]
            Cookies::Flask(cookies) => {
                shared_layer(&self.store_url, cookies.clone(), config).await?
            }
        };
        layer.map_err(|error| StoreError::new(StoreErrorKind::Config, error.to_string()))
    }
}

impl fmt::Debug for SessionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.store_url.split("://").next().unwrap_or_default();
        f.debug_struct("SessionSettings")
            .field("config", &self.config)
            .field("cookies", &self.cookies)
            .field("store", &format_args!("{scheme}://…"))
            .field("sweep", &self.sweep)
            .finish()
    }
}

fn is_ours(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    names::find(&upper).is_some()
        || (["SESSION_", "PERMANENT_"]
            .iter()
            .any(|start| upper.starts_with(start))
            && !upper.starts_with(FOREIGN_PREFIX)
            && !FOREIGN.contains(&upper.as_str()))
}

/// Whether Flask-Session's records may be at this URL.
fn can_be_shared(url: &str) -> bool {
    let scheme = url
        .split("://")
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    (cfg!(feature = "redis") && (scheme.starts_with("redis") || scheme.starts_with("valkey")))
        || (cfg!(feature = "memcached") && scheme == "memcached")
}

#[cfg(feature = "flask")]
#[cfg_attr(
    not(any(feature = "memcached", feature = "redis")),
    expect(
        unused_variables,
        clippy::unused_async,
        reason = "no store can be shared"
    )
)]
async fn shared_layer(
    url: &str,
    cookies: FlaskCookies,
    config: SessionConfig,
) -> Result<Result<SessionLayer, ConfigError>, StoreError> {
    #[cfg(feature = "memcached")]
    if url.to_ascii_lowercase().starts_with("memcached://") {
        let store = crate::store::FlaskMemcachedStore::connect(url).await?;
        return Ok(SessionLayer::for_flask(store, cookies, config));
    }
    #[cfg(feature = "redis")]
    return Ok(SessionLayer::for_flask(
        crate::store::FlaskRedisStore::connect(url).await?,
        cookies,
        config,
    ));
    #[cfg(not(feature = "redis"))]
    Err(StoreError::new(
        StoreErrorKind::Config,
        "this store cannot be shared with Flask",
    ))
}

fn config(entries: &mut Entries, shared: bool) -> Result<SessionConfig, ConfigError> {
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
    exclude(
        entries,
        "PERMANENT_SESSION_LIFETIME",
        "SESSION_IDLE_TIMEOUT",
    )?;
    if let Some(timeout) = entries.duration("PERMANENT_SESSION_LIFETIME")? {
        idle_by = "PERMANENT_SESSION_LIFETIME";
        config = config.with_idle_timeout(timeout);
    }
    if let Some(timeout) = entries.duration("SESSION_IDLE_TIMEOUT")? {
        config = config.with_idle_timeout(timeout);
    }
    let absolute = entries.duration("SESSION_ABSOLUTE_TIMEOUT")?;
    config = config.with_absolute_timeout(absolute);
    exclude(
        entries,
        "SESSION_REFRESH_EACH_REQUEST",
        "SESSION_REFRESH_SHARE",
    )?;
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
    ];
    let text = error.to_string();
    let text = names
        .iter()
        .fold(text, |text, (field, name)| text.replace(field, name));
    ConfigError::new(text)
}

#[cfg(not(feature = "flask"))]
fn flask_cookies(_: &mut Entries, _: bool) -> Result<Cookies, ConfigError> {
    Err(ConfigError::new(
        "SESSION_SHARED_WITH_FLASK needs the cargo feature `flask`",
    ))
}

/// The cookies of a Flask application with the same settings.
#[cfg(feature = "flask")]
fn flask_cookies(entries: &mut Entries, signer: bool) -> Result<Cookies, ConfigError> {
    for ours in ["SESSION_SECRET", "SESSION_SECRET_FILE"] {
        if entries.has(ours) {
            return Err(ConfigError::new(format!(
                "{ours} is not Flask's: with SESSION_SHARED_WITH_FLASK set SECRET_KEY"
            )));
        }
    }
    let key = entries.text("SECRET_KEY")?;
    let fallbacks = entries.list("SECRET_KEY_FALLBACKS")?.unwrap_or_default();
    if !signer {
        // Flask has a SECRET_KEY for other things, too.
        return Ok(Cookies::Flask(FlaskCookies::plain()));
    }
    let Some(key) = key else {
        return Err(ConfigError::new(
            "SECRET_KEY is to be Flask's, because SESSION_USE_SIGNER is true (it is not set)",
        ));
    };
    let mut cookies = FlaskCookies::signed(key)?;
    for key in fallbacks {
        cookies = cookies.with_fallback(key)?;
    }
    Ok(Cookies::Flask(cookies))
}

fn own_cookies(entries: &mut Entries, signer: Option<bool>) -> Result<SigningKeys, ConfigError> {
    if signer == Some(false) {
        return Err(ConfigError::new(
            "SESSION_USE_SIGNER is to be true or left out: cookies are always signed, unless \
             SESSION_SHARED_WITH_FLASK is true",
        ));
    }
    exclude(entries, "SECRET_KEY", "SESSION_SECRET")?;
    exclude(entries, "SECRET_KEY", "SESSION_SECRET_FILE")?;
    exclude(entries, "SESSION_SECRET", "SESSION_SECRET_FILE")?;
    let of =
        |name: &'static str| move |error: ConfigError| ConfigError::new(format!("{name}: {error}"));
    let mut keys = None;
    if let Some(path) = entries.text("SESSION_SECRET_FILE")? {
        keys = Some(SigningKeys::load_or_create(path).map_err(of("SESSION_SECRET_FILE"))?);
    }
    if let Some(list) = entries.text("SESSION_SECRET")? {
        keys = Some(SigningKeys::from_list(&list).map_err(of("SESSION_SECRET"))?);
    }
    if let Some(key) = entries.text("SECRET_KEY")? {
        keys = Some(SigningKeys::new(key).map_err(of("SECRET_KEY"))?);
    }
    let Some(mut keys) = keys else {
        return Err(ConfigError::new(
            "there is no signing key: set SECRET_KEY (`openssl rand -base64 48` makes one), \
             SESSION_SECRET or SESSION_SECRET_FILE",
        ));
    };
    for key in entries.list("SECRET_KEY_FALLBACKS")?.unwrap_or_default() {
        keys = keys
            .with_fallback(key)
            .map_err(of("SECRET_KEY_FALLBACKS"))?;
    }
    Ok(keys)
}

fn sweep(entries: &mut Entries) -> Result<Sweep, ConfigError> {
    const INTERVAL: &str = "SESSION_SWEEP_INTERVAL";
    exclude(entries, "SESSION_CLEANUP_N_REQUESTS", INTERVAL)?;
    if let Some(requests) = entries.number::<NonZeroU64>("SESSION_CLEANUP_N_REQUESTS")? {
        return Ok(Sweep::AfterRequests(requests));
    }
    if entries.is_text(INTERVAL, "never") {
        let _ = entries.text(INTERVAL)?;
        return Ok(Sweep::Never);
    }
    match entries.duration(INTERVAL)? {
        None => Ok(Sweep::Every(sweeping::DEFAULT_INTERVAL)),
        Some(every) if every >= Duration::from_secs(1) => Ok(Sweep::Every(every)),
        Some(_) => Err(ConfigError::new(format!(
            "{INTERVAL} is to be a second at least, or \"never\""
        ))),
    }
}

fn exclude(entries: &Entries, one: &str, other: &str) -> Result<(), ConfigError> {
    if entries.has(one) && entries.has(other) {
        return Err(ConfigError::new(format!(
            "{one} and {other} say the same thing; leave one out"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
