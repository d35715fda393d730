//! `MemcachedStore`: values in one memcached or several.

mod builder;
pub(super) mod servers;
mod value;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use memcache::exp::{Delete, Get, GetResult, GetStatus, Meta, MutationResult, MutationStatus, Set};
use tokio::time::Instant;

pub use self::builder::MemcachedStoreBuilder;
use self::servers::Servers;
use self::value::{HEADER, Value, encode, exptime, parts, token};
use super::expiry::Now;
use super::{
    CreateOutcome, NewRecord, Record, SessionKey, SessionStore, StoreError, StoreErrorKind,
    StoreLimits, Token, TouchOutcome, UpdateOutcome,
};

/// Keeps sessions in memcached, 1.6 or later.
///
/// For sessions that may be lost: memcached holds them in memory and makes room when it is full.
/// Whatever is lost is lost whole, and an ended session stays ended. A restart of memcached, or its
/// making room, logs users out; nothing else breaks.
///
/// # Expiry
///
/// Exact to the millisecond by the clocks of the application's hosts, which therefore have to agree:
/// a host whose clock is a minute ahead sees sessions end a minute early. The expiry is part of the
/// value; memcached's own, which counts whole seconds, follows two or three seconds later (a minute
/// later for lifetimes above 30 days, which memcached compares with the date of its own host). No
/// lifetime reaches beyond January 2038, where memcached's dates end.
///
/// # Several servers
///
/// Each key lives on one of them, found by rendezvous hashing of the server's name as it is given
/// here. All instances of an application must name the same servers, in any order. A server that does
/// not answer fails the sessions that live on it and no others; its sessions do not move. **Empty a
/// server (restart it) before it is named again after it was left out**: it may still hold sessions
/// that have been ended meanwhile on another one.
///
/// # Compare-and-set
///
/// By memcached's CAS unique, in one round trip; a touch writes the value again for that reason, and
/// makes an update of what was seen before it a conflict (which the layer resolves by reading again).
/// memcached counts CAS uniques from 1 again after a restart. That could let an update through which
/// was meant for a record of before the restart if the same key had been created again since; session
/// keys are never created twice. Proxies that copy a value to several servers, as `mcrouter` can, give
/// each copy a CAS unique of its own: do not use them here.
///
/// # Connections
///
/// Opened when they are needed, to addresses that are looked up then, and again when a server fails:
/// a server that is down when the application starts, is restarted, or moves, needs no restart of the
/// application. Plain TCP without a password: the driver has no other. Keep memcached in a network of
/// its own, or behind a tunnel.
///
/// # Examples
///
/// ```no_run
/// use session_layer::store::MemcachedStore;
///
/// let store = MemcachedStore::builder(["cache1:11211", "cache2:11211"])
///     .with_prefix("shop:")
///     .build()?;
/// # Ok::<(), session_layer::StoreError>(())
/// ```
#[derive(Clone)]
pub struct MemcachedStore {
    shared: Arc<Shared>,
}

struct Shared {
    servers: Servers,
    prefix: String,
    limits: StoreLimits,
    timeout: Duration,
}

/// What is under a key.
enum Found {
    Absent,
    /// Something that counts as absent: a value that has expired, or was marked stale.
    Over {
        cas: u64,
    },
    /// A value that is no record.
    Garbage {
        cas: u64,
    },
    Live {
        cas: u64,
        value: Value,
    },
}

/// What became of a compare-and-set.
enum Swapped {
    Done(Token),
    Conflict,
    Gone,
}

impl MemcachedStore {
    fn wire_key(&self, key: &SessionKey) -> String {
        let mut wire = String::with_capacity(self.shared.prefix.len() + SessionKey::LEN);
        wire.push_str(&self.shared.prefix);
        wire.push_str(key.as_str());
        wire
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.timeout
    }

    async fn look(&self, key: &str, deadline: Instant) -> Result<Found, StoreError> {
        let get = Get::new(key).meta(Meta::NONE.cas());
        let got = self.shared.servers.run(key, get, deadline).await?;
        if got.status == GetStatus::Miss {
            return Ok(Found::Absent);
        }
        let cas = cas(got.item.cas)?;
        if got.is_stale() {
            return Ok(Found::Over { cas });
        }
        Ok(match self.value_of(got) {
            None => Found::Garbage { cas },
            Some(value) if Now::read().remaining(value.expiry).is_none() => Found::Over { cas },
            Some(value) => Found::Live { cas, value },
        })
    }

    fn value_of(&self, got: GetResult) -> Option<Value> {
        got.value
            .filter(|bytes| bytes.len() <= HEADER + self.shared.limits.max_payload())
            .and_then(Value::decode)
    }

    async fn set(
        &self,
        key: &str,
        mut set: Set,
        (expiry, value): (i64, Vec<u8>),
        deadline: Instant,
    ) -> Result<MutationResult, StoreError> {
        set.value = value;
        set = set.ttl_raw(exptime(expiry, Now::read())).return_cas();
        self.shared.servers.run(key, set, deadline).await
    }

    /// Replaces the value whose CAS unique is `seen`, or none.
    async fn swap(
        &self,
        key: &str,
        seen: u64,
        value: (i64, Vec<u8>),
        deadline: Instant,
    ) -> Result<Swapped, StoreError> {
        let set = Set::new(key, []).compare_cas(seen);
        let expiry = value.0;
        let set = self.set(key, set, value, deadline).await?;
        match set.status {
            MutationStatus::Applied => Ok(Swapped::Done(token(cas(set.cas)?, expiry))),
            MutationStatus::CasMismatch => Ok(Swapped::Conflict),
            MutationStatus::NotFound => Ok(Swapped::Gone),
            _ => Err(unexpected()),
        }
    }

    /// The CAS unique to compare with so that `seen` is what is replaced. Known from the record's
    /// token, without asking; a record that another store or a test has made is looked up.
    async fn cas_of(
        &self,
        key: &str,
        seen: &Record,
        deadline: Instant,
    ) -> Result<Result<u64, Swapped>, StoreError> {
        if let Some((cas, expiry)) = parts(seen.token()) {
            let alive = Now::read().remaining(expiry).is_some();
            return Ok(if alive { Ok(cas) } else { Err(Swapped::Gone) });
        }
        Ok(match self.look(key, deadline).await? {
            Found::Live { cas, value } if value.revision == seen.revision() => Ok(cas),
            Found::Live { .. } | Found::Garbage { .. } => Err(Swapped::Conflict),
            Found::Absent | Found::Over { .. } => Err(Swapped::Gone),
        })
    }
}

impl fmt::Debug for MemcachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedStore")
            .field("servers", &self.shared.servers)
            .field("prefix", &self.shared.prefix)
            .field("limits", &self.shared.limits)
            .field("timeout", &self.shared.timeout)
            .finish()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for MemcachedStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        match self.look(&self.wire_key(key), self.deadline()).await? {
            Found::Absent | Found::Over { .. } => Ok(None),
            Found::Garbage { .. } => Err(StoreError::new(
                StoreErrorKind::Corrupt,
                "the value is not a session record, or larger than this store allows",
            )),
            Found::Live { cas, value } => {
                // The clock has gone on since.
                let left = Now::read().remaining(value.expiry);
                Ok(left.map(|ttl| {
                    Record::new(value.revision, value.payload, ttl)
                        .with_token(token(cas, value.expiry))
                }))
            }
        }
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        let (key, deadline) = (self.wire_key(key), self.deadline());
        loop {
            let value = Value::of(new, Now::read());
            let expiry = value.0;
            let add = Set::new(&key, []).add();
            let add = self.set(&key, add, value, deadline).await?;
            match add.status {
                MutationStatus::Applied => {
                    return Ok(CreateOutcome::Created(token(cas(add.cas)?, expiry)));
                }
                MutationStatus::AlreadyExists => {}
                _ => return Err(unexpected()),
            }
            // Nothing was written. What is there may count as absent all the same.
            let over = match self.look(&key, deadline).await? {
                Found::Live { .. } => return Ok(CreateOutcome::Taken),
                Found::Over { cas } | Found::Garbage { cas } => cas,
                Found::Absent => continue,
            };
            let value = Value::of(new, Now::read());
            match self.swap(&key, over, value, deadline).await? {
                Swapped::Done(token) => return Ok(CreateOutcome::Created(token)),
                // Another creator was faster.
                Swapped::Conflict => return Ok(CreateOutcome::Taken),
                Swapped::Gone => {}
            }
        }
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        let (key, deadline) = (self.wire_key(key), self.deadline());
        let swapped = match self.cas_of(&key, seen, deadline).await? {
            Ok(cas) => {
                let value = Value::of(new, Now::read());
                self.swap(&key, cas, value, deadline).await?
            }
            Err(swapped) => swapped,
        };
        Ok(match swapped {
            Swapped::Done(token) => UpdateOutcome::Updated(token),
            Swapped::Conflict => UpdateOutcome::Conflict,
            Swapped::Gone => UpdateOutcome::Gone,
        })
    }

    /// Writes the payload of `seen` again: the expiry is part of the value, and memcached has no
    /// conditional way to change its own.
    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let (key, deadline) = (self.wire_key(key), self.deadline());
        let swapped = match self.cas_of(&key, seen, deadline).await? {
            Ok(cas) => {
                let expiry = Now::read().expiry(ttl);
                let value = encode(seen.revision(), expiry, seen.payload());
                self.swap(&key, cas, (expiry, value), deadline).await?
            }
            Err(swapped) => swapped,
        };
        Ok(match swapped {
            Swapped::Done(token) => TouchOutcome::Touched(token),
            Swapped::Conflict => TouchOutcome::Conflict,
            Swapped::Gone => TouchOutcome::Gone,
        })
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let key = self.wire_key(key);
        let delete = Delete::new(&key);
        self.shared
            .servers
            .run(&key, delete, self.deadline())
            .await
            .map(drop)
    }

    /// 0: memcached forgets what has expired by itself.
    async fn delete_expired(&self, _limit: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        self.shared.limits
    }
}

/// The CAS unique in an answer, which without CAS is 0.
fn cas(answered: Option<u64>) -> Result<u64, StoreError> {
    answered.filter(|cas| *cas != 0).ok_or_else(|| {
        StoreError::new(
            StoreErrorKind::Config,
            "memcached runs without CAS: start it without `-C`",
        )
    })
}

fn unexpected() -> StoreError {
    StoreError::new(
        StoreErrorKind::Other,
        "memcached's answer does not fit the question",
    )
}
