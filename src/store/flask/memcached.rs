//! `FlaskMemcachedStore`: the sessions that Flask-Session keeps in memcached.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memcache::exp::{Delete, Get, GetStatus, Meta, MutationStatus, Operation, Set};
use tokio::time::Instant;

use super::record::{Dialect, Read, digest, garbage, read, revision, store_limits, write};
use super::{ENDLESS, PREFIX, Speaks, check_prefix, name};
use crate::store::memcached::servers::{Nodes, Servers};
use crate::store::url::StoreUrl;
use crate::store::{
    CreateOutcome, NewRecord, Record, SessionKey, SessionStore, StoreError, StoreErrorKind,
    StoreLimits, Token, TouchOutcome, UpdateOutcome,
};

/// What memcached takes by default is 1 MiB, its own notes included.
const MAX_BYTES: usize = (1 << 20) - 1024;

/// How many idle connections are kept for later.
const MAX_IDLE: usize = 32;

/// Up to here memcached reads a number as seconds from now; larger ones are dates.
const LONGEST_RELATIVE: u64 = 30 * 24 * 60 * 60;

/// The sessions of a Flask application, where Flask-Session (`SESSION_TYPE = "memcached"`) keeps them:
/// under `<prefix><session id>`, as MessagePack or JSON. See [`FlaskStore`](super::FlaskStore) for what it keeps of the
/// store contract. Needs memcached 1.6 or later.
///
/// One server: Python's clients spread keys over several each in a way of its own. memcached counts
/// lifetimes in seconds; they are rounded up. A touch is not conditional there: it renews the record
/// that is there, if one is. memcached drops sessions when it is full.
///
/// # Examples
///
/// ```no_run
/// use session_layer::{FlaskCookies, SessionConfig, SessionLayer};
/// use session_layer::store::FlaskMemcachedStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = FlaskMemcachedStore::connect("memcached://127.0.0.1:11211").await?;
/// let cookies = FlaskCookies::plain(); // SESSION_USE_SIGNER = False
/// let layer = SessionLayer::for_flask(store, cookies, SessionConfig::default())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FlaskMemcachedStore {
    servers: Arc<Servers>,
    prefix: String,
    timeout: Duration,
    dialect: Dialect,
}

impl FlaskMemcachedStore {
    /// The store that `url` names: `memcached://host:11211?prefix=session:&timeout=1500ms`. `prefix` is
    /// Flask's `SESSION_KEY_PREFIX`, and `session:` by default, as there. Does not wait for the server.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL is not of this form, or names several servers.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let mut url = StoreUrl::parse(url)?;
        let prefix = url.take("prefix")?.unwrap_or_else(|| PREFIX.to_owned());
        check_prefix(&prefix)?;
        let timeout = url.take_as::<humantime::Duration>("timeout", "a time, such as 1500ms")?;
        url.finish(&["prefix", "timeout"])?;
        let server = url.body().trim_end_matches('/');
        if server.contains(',') {
            return Err(config(
                "sessions are shared with Flask on one memcached server: Python's clients spread keys \
                 over several each in a way of its own",
            ));
        }
        let nodes = Nodes::new(&[server.to_owned()], MAX_IDLE)?;
        Ok(Self {
            servers: Arc::new(Servers::Nodes(nodes)),
            prefix,
            timeout: timeout.map_or(Duration::from_millis(1500), Into::into),
            dialect: Dialect::default(),
        })
    }

    async fn run<O: Operation>(&self, name: &str, operation: O) -> Result<O::Output, StoreError> {
        let deadline = Instant::now() + self.timeout;
        self.servers.run(name, operation, deadline).await
    }

    async fn set(
        &self,
        name: &str,
        set: Set,
        ttl: Duration,
    ) -> Result<(MutationStatus, Token), StoreError> {
        let set = set.ttl_raw(exptime(ttl)).return_cas();
        let done = self.run(name, set).await?;
        Ok((done.status, Token::from(done.cas.unwrap_or_default())))
    }
}

impl Speaks for FlaskMemcachedStore {
    fn with_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }
}

impl fmt::Debug for FlaskMemcachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlaskMemcachedStore")
            .field("servers", &self.servers)
            .field("prefix", &self.prefix)
            .field("dialect", &self.dialect)
            .finish()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for FlaskMemcachedStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let name = name(&self.prefix, key)?;
        let get = Get::new(&name).meta(Meta::NONE.cas().ttl());
        let got = self.run(&name, get).await?;
        if got.status == GetStatus::Miss {
            return Ok(None);
        }
        let cas = cas(got.item.cas)?;
        let stored = got.value.unwrap_or_default();
        let ttl = match got.item.ttl {
            Some(seconds) => match u64::try_from(seconds) {
                // In its last second.
                Ok(seconds) => Duration::from_secs(seconds.max(1)),
                Err(_) => ENDLESS,
            },
            None => ENDLESS,
        };
        let digest = digest(&stored);
        match read(stored, MAX_BYTES) {
            Read::Nothing => Ok(None),
            Read::Garbage(why) => Err(garbage(why)),
            Read::Session(payload) => Ok(Some(
                Record::new(revision(&digest), payload, ttl).with_token(Token::from(cas)),
            )),
        }
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.limits().check(new)?;
        let written = write(new.payload(), self.dialect, MAX_BYTES)?;
        let name = name(&self.prefix, key)?;
        let add = Set::new(&name, written).add();
        match self.set(&name, add, new.ttl()).await? {
            (MutationStatus::Applied, token) => Ok(CreateOutcome::Created(token)),
            (MutationStatus::AlreadyExists, _) => Ok(CreateOutcome::Taken),
            _ => Err(unexpected()),
        }
    }

    /// Ending a session deletes its record: Flask would take a tombstone for a session.
    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        let name = name(&self.prefix, key)?;
        let seen = cas_of(seen)?;
        let (status, token) = if new.is_ending() {
            let end = Delete::new(&name).compare_cas(seen);
            let ended = self.run(&name, end).await?;
            (ended.status, 0)
        } else {
            self.limits().check(new)?;
            let written = write(new.payload(), self.dialect, MAX_BYTES)?;
            let swap = Set::new(&name, written).compare_cas(seen);
            self.set(&name, swap, new.ttl()).await?
        };
        match status {
            MutationStatus::Applied => Ok(UpdateOutcome::Updated(token)),
            MutationStatus::CasMismatch => Ok(UpdateOutcome::Conflict),
            MutationStatus::NotFound => Ok(UpdateOutcome::Gone),
            _ => Err(unexpected()),
        }
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let name = name(&self.prefix, key)?;
        let touch = Get::new(&name)
            .without_value()
            .meta(Meta::NONE.cas())
            .touch_raw(exptime(ttl));
        let touched = self.run(&name, touch).await?;
        if touched.status == GetStatus::Miss {
            return Ok(TouchOutcome::Gone);
        }
        Ok(if cas(touched.item.cas)? == cas_of(seen)? {
            TouchOutcome::Touched(seen.token())
        } else {
            TouchOutcome::Conflict
        })
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let name = name(&self.prefix, key)?;
        self.run(&name, Delete::new(&name)).await.map(drop)
    }

    /// 0: memcached forgets what has expired by itself.
    async fn delete_expired(&self, _limit: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        store_limits(MAX_BYTES)
            .with_expiry_resolution(Duration::from_secs(1))
            .with_eviction(true)
    }
}

/// A lifetime as memcached takes it, rounded up; 0 would mean "for ever".
fn exptime(ttl: Duration) -> u32 {
    let seconds = ceil(ttl).max(1);
    let exptime = match seconds {
        ..=LONGEST_RELATIVE => seconds,
        _ => {
            ceil(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default(),
            ) + seconds
        }
    };
    u32::try_from(exptime).unwrap_or(u32::MAX)
}

fn ceil(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn cas(answered: Option<u64>) -> Result<u64, StoreError> {
    answered
        .filter(|cas| *cas != 0)
        .ok_or_else(|| config("memcached runs without CAS: start it without `-C`"))
}

fn cas_of(seen: &Record) -> Result<u64, StoreError> {
    u64::try_from(seen.token()).map_err(|_| unexpected())
}

fn config(message: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Config, message)
}

fn unexpected() -> StoreError {
    StoreError::new(
        StoreErrorKind::Other,
        "memcached's answer does not fit the question",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_seconds_or_dates_and_never_for_ever() {
        assert_eq!(exptime(Duration::ZERO), 1);
        assert_eq!(exptime(Duration::from_millis(1)), 1);
        assert_eq!(exptime(Duration::from_millis(1001)), 2);
        let month = Duration::from_secs(LONGEST_RELATIVE);
        assert_eq!(u64::from(exptime(month)), LONGEST_RELATIVE);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let longer = u64::from(exptime(month + Duration::from_secs(1)));
        assert!(
            longer.abs_diff(now.as_secs() + LONGEST_RELATIVE) <= 3,
            "{longer}"
        );
    }

    #[tokio::test]
    async fn one_server_is_named_and_secrets_are_not_repeated() {
        let store = FlaskMemcachedStore::connect("memcached://cache?prefix=p%3A")
            .await
            .unwrap();
        let shown = format!("{store:?}");
        assert!(
            shown.contains("\"cache:11211\"") && shown.contains("\"p:\""),
            "{shown}"
        );
        for (url, says) in [
            ("memcached://a,b", "one memcached server"),
            ("memcached://", "host:port"),
            ("memcached://u:hunter2@a", "no password"),
            ("memcached://a?prefix=a%20b", "prefix"),
            ("memcached://a?hunter2=1", "prefix"),
        ] {
            let error = FlaskMemcachedStore::connect(url).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
            let text = error.to_string();
            assert!(
                text.contains(says) && !text.contains("hunter2"),
                "{url}: {text}"
            );
        }
    }
}
