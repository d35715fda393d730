//! Settings from outside: the environment, a file, or any list of names and values.

mod config;
mod cookies;
mod de;
mod names;
mod store_url;
mod sweeping;
mod values;

use std::env;
use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use self::config::config;
use self::cookies::{Cookies, flask_cookies, own_cookies};
use self::store_url::store_url;
use self::sweeping::Sweep;
use self::values::{Entries, Value};
use crate::config::SessionConfig;
use crate::error::{ConfigError, StoreError, StoreErrorKind};
#[cfg(feature = "flask")]
use crate::flask::FlaskCookies;
use crate::layer::SessionLayer;
use crate::signing::SigningKeys;
use crate::store::AnyStore;

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

fn sweep(entries: &mut Entries) -> Result<Sweep, ConfigError> {
    const INTERVAL: &str = "SESSION_SWEEP_INTERVAL";
    entries.exclude("SESSION_CLEANUP_N_REQUESTS", INTERVAL)?;
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

#[cfg(test)]
mod tests;
