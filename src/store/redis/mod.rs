//! `RedisStore`: a key in Redis or Valkey for each session.

pub(super) mod builder;
pub(super) mod client;
mod clock;
mod cluster;
pub(super) mod connect;
pub(super) mod errors;
mod kept;
mod link;
pub(super) mod outbox;
pub(super) mod record;
mod scan;
pub(super) mod script;

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::redis::{RedisError, Value, cmd};

pub use self::builder::RedisStoreBuilder;
pub use self::client::RedisClient;
use self::client::Route;
use self::clock::{Clock, Reading};
use self::errors::{corrupt, failed, timed_out, unexpected};
use self::outbox::Outgoing;
use self::record::{HEADER_LEN, Parts, decode, millis};
use self::script::Scripts;
use super::{
    CreateOutcome, NewRecord, Record, SessionKey, SessionStore, StoreError, StoreLimits,
    TouchOutcome, UpdateOutcome,
};

/// Keeps sessions in Redis or Valkey: one server, a primary that sentinels watch, or a cluster.
///
/// Needs Redis 6 or later, or Valkey. All requests of a process share one connection to each server;
/// what they send is pipelined. Each verb is one command on one key. A connection is opened when the
/// first request needs it, so a server that is down does not keep an application from starting.
///
/// # Layout
///
/// A record is a string under the key `<prefix><session key>` (default prefix: `session:`), with the
/// server's own expiry. 33 bytes precede the payload: a version byte, the revision, the time of the
/// last renewal and the lifetime given then. `update` and `touch` are scripts that compare the first
/// 17 of them with what was read.
///
/// # Expiry
///
/// The server decides, to the millisecond, by its own clock. How much lifetime is left, which is for
/// deciding when to renew, is told from the record and the server's time; for this the server is asked
/// once a minute (`TIME`). The clocks of the hosts matter only where the user may not run `TIME`.
///
/// # Durability
///
/// As the server is configured. By default it has not written to the disk, nor replicated, what it
/// acknowledges: a crash undoes the last second or more, a failover what the new primary had not
/// received, a logout included. `docs/stores.md` says how to narrow that. The server must not evict
/// (`maxmemory-policy noeviction`), or it ends sessions at random when it is full. A full server that
/// does not evict still renews and ends sessions, and refuses the rest as
/// [`Unavailable`](super::StoreErrorKind::Unavailable).
///
/// # Failures
///
/// A server that is down answers as [`Unavailable`](super::StoreErrorKind::Unavailable) within
/// milliseconds, one that hangs as [`Timeout`](super::StoreErrorKind::Timeout) at the store's time limit. Nothing
/// is sent twice, except to a server that says that it has done nothing because it does not know the
/// script, or that the key is elsewhere in the cluster. Lost connections are opened again; after a
/// timeout, too.
///
/// # Damage
///
/// A value that is no record (another type, too short, another version) loads as
/// [`Corrupt`](super::StoreErrorKind::Corrupt), as do `update` and `touch` of it; for `create` the key
/// is taken, and `delete` removes it.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use session_layer::store::{NewRecord, RedisStore, Revision, SessionKey, SessionStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisStore::connect("redis://127.0.0.1").await?;
/// let key: SessionKey = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ".parse()?;
/// let new = NewRecord::new(Revision::generate(), b"data", Duration::from_secs(60));
/// store.create(&key, &new).await?;
/// let record = store.load(&key).await?.ok_or("absent")?;
/// assert_eq!(&record.payload()[..], b"data");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

struct Shared {
    route: Route,
    prefix: String,
    limits: StoreLimits,
    timeout: Duration,
    scripts: Scripts,
    clock: Clock,
}

impl RedisStore {
    /// The store that `url` names. Does not wait for the server.
    ///
    /// | URL | |
    /// | --- | --- |
    /// | `redis://user:password@host:6379/0` | one server; without a user name: `redis://:password@host` |
    /// | `redis+cluster://user:password@host1:6379,host2:6379` | the cluster that these belong to |
    /// | `redis+sentinel://user:password@host1:26379,host2:26379/mymaster/0` | the primary that these sentinels call `mymaster` |
    /// | `redis+unix:///run/redis.sock?db=0&user=…&pass=…` | one server, on a Unix socket |
    ///
    /// `rediss` in the place of `redis` means TLS, to sentinels too; `valkey` means `redis`, and
    /// `valkeys` `rediss`. User and password are those of the servers; percent-encode what is not a
    /// letter or a digit.
    ///
    /// | setting after `?` | |
    /// | --- | --- |
    /// | `prefix`, `max_payload`, `timeout` | see [`RedisStoreBuilder`]; a time as in `1500ms` |
    /// | `ca` | a PEM file with the certificates of the authorities to trust, instead of the public ones |
    /// | `cert`, `key` | PEM files with the client's own certificate and key |
    /// | `protocol` | `resp3` (the default) or `resp2` |
    /// | `sentinel_user`, `sentinel_password` | for logging in to the sentinels |
    ///
    /// For TLS, `ring` becomes the `rustls` provider of the process if it has none.
    ///
    /// # Errors
    ///
    /// [`Config`](super::StoreErrorKind::Config) when the URL is not of this form, a setting cannot
    /// work, or a file cannot be read.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).build()
    }

    /// Settings for a store at this URL; see [`connect`](Self::connect). Those that the URL sets
    /// itself count less.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(builder::Origin::Url(url.into()))
    }

    /// Uses a client of yours, with the default settings.
    pub fn from_client(client: impl Into<RedisClient>) -> Self {
        Self::new(client.into().into_route(), builder::Settings::default())
    }

    /// Settings for a store on a client of yours.
    pub fn builder_from_client(client: impl Into<RedisClient>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(builder::Origin::Client(client.into()))
    }

    fn new(route: Route, settings: builder::Settings) -> Self {
        Self {
            shared: Arc::new(Shared {
                route,
                prefix: settings.prefix,
                limits: StoreLimits::new(settings.max_payload)
                    .with_own_expiry(true)
                    .with_timeout(settings.timeout),
                timeout: settings.timeout,
                scripts: Scripts::new(),
                clock: Clock::new(),
            }),
        }
    }
}

impl Shared {
    fn key<'a>(&'a self, key: &'a SessionKey) -> [&'a [u8]; 2] {
        [self.prefix.as_bytes(), key.as_str().as_bytes()]
    }

    /// Gives `work` on a key so much time and no more. It comes pinned, since it is large, and a future
    /// that is handed over is in two places.
    async fn within<T>(
        &self,
        key: [&[u8]; 2],
        work: Pin<&mut impl Future<Output = Result<T, RedisError>>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(answer) => answer.map_err(|error| failed(&error)),
            Err(_) => {
                self.route.renew(key);
                Err(timed_out())
            }
        }
    }

    /// The server's time, in milliseconds since 1970. Asks the server of `key` when it was never
    /// asked, and in the background from time to time.
    async fn now(self: &Arc<Self>, key: &SessionKey) -> Result<u64, RedisError> {
        match self.clock.read() {
            Reading::Known(now) => Ok(now),
            Reading::Due(now) => {
                let (shared, key) = (Arc::clone(self), *key);
                tokio::spawn(async move {
                    let asked = shared.ask_time(&key);
                    // If it fails, the next minute will do.
                    let _ = tokio::time::timeout(shared.timeout, asked).await;
                });
                Ok(now)
            }
            Reading::Unknown => {
                Box::pin(self.ask_time(key)).await?;
                Ok(match self.clock.read() {
                    Reading::Known(now) | Reading::Due(now) => now,
                    Reading::Unknown => clock::host(),
                })
            }
        }
    }

    async fn ask_time(&self, key: &SessionKey) -> Result<(), RedisError> {
        let asked = Instant::now();
        match self
            .route
            .call(self.key(key), Outgoing::Given(&mut cmd("TIME")))
            .await
        {
            Ok(answer) => {
                let [seconds, micros] = ::redis::from_redis_value::<[u64; 2]>(answer)?;
                let time = seconds.saturating_mul(1000).saturating_add(micros / 1000);
                self.clock.set(time, asked);
                Ok(())
            }
            // The user may not.
            Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => {
                self.clock.set_to_host();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("route", &self.shared.route.name())
            .field("prefix", &self.shared.prefix)
            .field("limits", &self.shared.limits)
            .field("timeout", &self.shared.timeout)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for RedisStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let shared = &self.shared;
        let at = shared.key(key);
        let work = pin!(async {
            let mut cmd = script::load(Parts(at));
            let value = shared.route.call(at, Outgoing::Given(&mut cmd)).await?;
            let now = match value {
                Value::Nil => 0,
                _ => shared.now(key).await?,
            };
            Ok((value, now))
        });
        let (value, now) = shared.within(at, work).await?;
        match value {
            Value::Nil => Ok(None),
            Value::BulkString(value) => {
                let payload = value.len().saturating_sub(HEADER_LEN);
                Some(value)
                    .filter(|_| payload <= shared.limits.max_payload())
                    .and_then(|value| decode(value, now))
                    .map(Some)
                    .ok_or_else(corrupt)
            }
            _ => Err(unexpected()),
        }
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        let shared = &self.shared;
        shared.limits.check(new)?;
        let at = shared.key(key);
        let work = pin!(async {
            let now = shared.now(key).await?;
            let mut cmd = script::create(Parts(at), new, now);
            shared.route.call(at, Outgoing::Given(&mut cmd)).await
        });
        let answer = shared.within(at, work).await?;
        match answer {
            Value::Okay => Ok(CreateOutcome::Created(0)),
            Value::Nil => Ok(CreateOutcome::Taken),
            _ => Err(unexpected()),
        }
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        let shared = &self.shared;
        shared.limits.check(new)?;
        let at = shared.key(key);
        let work = pin!(async {
            let now = shared.now(key).await?;
            let call = shared.scripts.update(Parts(at), seen.revision(), new, now);
            shared.route.script(at, &call).await
        });
        let answer = shared.within(at, work).await?;
        match answer {
            Value::Int(script::DONE) => Ok(UpdateOutcome::Updated(0)),
            Value::Int(script::CONFLICT) => Ok(UpdateOutcome::Conflict),
            Value::Int(script::GONE) => Ok(UpdateOutcome::Gone),
            Value::Int(script::CORRUPT) => Err(corrupt()),
            _ => Err(unexpected()),
        }
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let shared = &self.shared;
        let at = shared.key(key);
        let work = pin!(async {
            let now = shared.now(key).await?;
            let call = shared
                .scripts
                .touch(Parts(at), seen.revision(), millis(ttl), now);
            shared.route.script(at, &call).await
        });
        let answer = shared.within(at, work).await?;
        match answer {
            Value::Int(script::DONE) => Ok(TouchOutcome::Touched(0)),
            Value::Int(script::CONFLICT) => Ok(TouchOutcome::Conflict),
            Value::Int(script::GONE) => Ok(TouchOutcome::Gone),
            Value::Int(script::CORRUPT) => Err(corrupt()),
            _ => Err(unexpected()),
        }
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let shared = &self.shared;
        let at = shared.key(key);
        let mut cmd = script::delete(Parts(at));
        let work = pin!(shared.route.call(at, Outgoing::Given(&mut cmd)));
        shared.within(at, work).await?;
        Ok(())
    }

    /// 0: the server does it.
    async fn delete_expired(&self, _limit: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        self.shared.limits
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::Revision;

    /// Each call of the layer allocates one, and with many requests under way they fill the caches.
    #[tokio::test]
    async fn futures_stay_small() {
        let store = RedisStore::connect("redis://127.0.0.1:1").await.unwrap();
        let key: SessionKey = "a".repeat(43).parse().unwrap();
        let (revision, ttl) = (Revision::generate(), Duration::from_secs(1));
        let seen = Record::new(revision, Bytes::new(), ttl);
        let new = NewRecord::new(revision, b"", ttl);
        let sizes = [
            ("load", size_of_val(&store.load(&key))),
            ("create", size_of_val(&store.create(&key, &new))),
            ("update", size_of_val(&store.update(&key, &seen, &new))),
            ("touch", size_of_val(&store.touch(&key, &seen, ttl))),
        ];
        for (verb, size) in sizes {
            assert!(size <= 1024, "{verb}: {size} bytes of {sizes:?}");
        }
    }
}
