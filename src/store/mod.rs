//! The store contract: what a [`SessionStore`] is asked to do, and what it answers.

mod any;
mod at_once;
#[cfg(any(feature = "file", feature = "sqlite"))]
mod blocking;
#[cfg(feature = "dynamodb")]
mod dynamodb;
#[cfg(any(
    feature = "dynamodb",
    feature = "file",
    feature = "memcached",
    feature = "sqlite"
))]
mod expiry;
#[cfg(feature = "file")]
mod file;
#[cfg(feature = "flask")]
pub(crate) mod flask;
#[cfg(feature = "memcached")]
mod memcached;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "flask")]
mod migrating;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "null")]
mod null;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod scan;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
pub(crate) mod sweeper;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod table;
#[allow(dead_code, reason = "each store uses its part")]
mod url;

use std::fmt::Debug;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub(crate) use self::any::Answer;
pub use self::any::AnyStore;
pub(crate) use self::at_once::StoreAtOnce;
#[cfg(feature = "dynamodb")]
pub use self::dynamodb::{DynamoStore, DynamoStoreBuilder};
#[cfg(feature = "file")]
pub use self::file::{FileStore, FileStoreBuilder, SyncPolicy};
#[cfg(all(feature = "flask", feature = "memcached"))]
pub use self::flask::FlaskMemcachedStore;
#[cfg(all(feature = "flask", feature = "redis"))]
pub use self::flask::FlaskRedisStore;
#[cfg(feature = "flask")]
pub use self::flask::FlaskStore;
#[cfg(feature = "memcached")]
pub use self::memcached::{MemcachedStore, MemcachedStoreBuilder};
#[cfg(feature = "memory")]
pub use self::memory::MemoryStore;
#[cfg(feature = "flask")]
pub use self::migrating::MigratingStore;
#[cfg(feature = "mongodb")]
pub use self::mongodb::{MongoStore, MongoStoreBuilder};
#[cfg(feature = "mysql")]
pub use self::mysql::{MySqlStore, MySqlStoreBuilder};
#[cfg(feature = "null")]
pub use self::null::NullStore;
#[cfg(feature = "postgres")]
pub use self::postgres::{PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "redis")]
pub use self::redis::{RedisClient, RedisStore, RedisStoreBuilder};
pub use self::scan::{Cursor, Page, ScanStore};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{SqliteStore, SqliteStoreBuilder};
pub use self::sweeper::{Sweeper, SweeperBuilder};

pub use crate::error::{StoreError, StoreErrorKind};
pub use crate::id::{ParseKeyError, Revision, SessionKey};
#[cfg(feature = "memory")]
use crate::payload::Body;
use crate::payload::Payload;

/// A place that keeps sessions.
///
/// Implement it with plain `async fn`; about 40 lines do for a store of your own (see
/// `examples/custom_store.rs`). The layer turns the store into one without a type parameter, so an
/// implementation is never named again after it was handed over.
///
/// # Contract
///
/// A store knows records, not sessions: a [`Revision`], opaque bytes, and an expiry. Six verbs keep
/// every promise of this crate, and the `conformance` feature tests each sentence here.
///
/// - **Absent.** A record that is missing, was deleted, or has expired is *absent*, in every verb,
///   whether or not the backend has purged it. Expiry is judged by the store's clock where it has
///   one, else by the host's.
/// - **Conditional.** [`create`](Self::create) writes only where nothing alive is;
///   [`update`](Self::update) and [`touch`](Self::touch) write only if the record's revision still is
///   the one that was read. Test and write are one atomic step, also between processes.
/// - **No revival.** Only `create` makes a record. `update` and `touch` of an absent record say `Gone`.
/// - **Whole.** A reader sees the old record or the new one, never a mixture, never a part.
/// - **Once.** No verb is sent twice on the store's own initiative, nor by its driver, unless the
///   backend recognises the second as a repetition.
/// - **Outcomes are values.** Conflict, absence and a taken key are answers; a [`StoreError`] is for
///   what the contract does not foresee. After an error from a writing verb the caller assumes that
///   the write may or may not have happened.
/// - **Limits first.** A payload larger than [`limits`](Self::limits) allow is refused as
///   [`StoreErrorKind::TooLarge`] before anything is sent, and the old record stays.
///
/// # Clone
///
/// Stores are cheap to clone, and clones share the data.
///
/// # Cancellation
///
/// The future of a verb may be dropped at any point (a timeout). What it was writing is then either
/// written whole or not at all, at once or a little later.
///
/// # Wrappers
///
/// A store that wraps another forwards every method; no method has a default body that would let one
/// be forgotten.
pub trait SessionStore: Debug + Send + Sync + 'static {
    /// Reads a record, with its remaining lifetime. `None` when absent. One round trip.
    ///
    /// # Errors
    ///
    /// When the store cannot answer; [`Corrupt`](StoreErrorKind::Corrupt) when what it holds is not a
    /// record.
    fn load(
        &self,
        key: &SessionKey,
    ) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Writes a record where nothing alive is. Of N racing creators exactly one is answered
    /// [`Created`](CreateOutcome::Created). One round trip.
    ///
    /// # Errors
    ///
    /// When the store cannot answer, or the payload is too large.
    fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> impl Future<Output = Result<CreateOutcome, StoreError>> + Send;

    /// Replaces the record if its revision still is that of `seen`: payload, revision and expiry.
    /// One round trip.
    ///
    /// # Errors
    ///
    /// When the store cannot answer, or the payload is too large.
    fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> impl Future<Output = Result<UpdateOutcome, StoreError>> + Send;

    /// Sets the expiry to `ttl` from now if the revision still is that of `seen`. Payload and
    /// revision stay. One round trip.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<TouchOutcome, StoreError>> + Send;

    /// Removes a record, whatever its revision. Removing what is absent is fine.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn delete(&self, key: &SessionKey) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Purges up to `limit` expired records and says how many went. A store whose backend does this
    /// by itself ([`StoreLimits::expires_by_itself`]) answers 0. Records of this store's own namespace only; a store shared by several
    /// hosts leaves those that expired only just now, in case the clocks differ.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn delete_expired(
        &self,
        limit: NonZeroUsize,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// What this store can hold. Answers at once and never changes.
    fn limits(&self) -> StoreLimits;
}

/// A record as a store holds it.
#[derive(Clone)]
pub struct Record {
    revision: Revision,
    payload: Bytes,
    ttl: Duration,
    token: Token,
}

/// A value of the store's own that travels with a record: memcached's CAS unique and the record's
/// expiry, say. 0 where the store has no use for it.
pub type Token = u128;

impl Record {
    /// A record that was read, with the lifetime it has left.
    #[must_use]
    pub fn new(revision: Revision, payload: Bytes, ttl: Duration) -> Self {
        Self {
            revision,
            payload,
            ttl,
            token: 0,
        }
    }

    /// Sets the store's own token. Default: 0.
    #[must_use]
    pub fn with_token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// The write that this record came from.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The bytes as they were written.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The lifetime that was left when the record was read.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The store's own token.
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }
}

/// A record without its payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    pub(crate) revision: Revision,
    pub(crate) ttl: Duration,
    pub(crate) token: Token,
}

impl Record {
    pub(crate) fn into_parts(self) -> (Version, Bytes) {
        let version = Version {
            revision: self.revision,
            ttl: self.ttl,
            token: self.token,
        };
        (version, self.payload)
    }
}

impl Version {
    pub(crate) fn with_payload(self, payload: Bytes) -> Record {
        Record::new(self.revision, payload, self.ttl).with_token(self.token)
    }
}

impl Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("revision", &self.revision)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .field("ttl", &self.ttl)
            .field("token", &self.token)
            .finish()
    }
}

/// What is to be written.
#[derive(Clone, Copy)]
pub struct NewRecord<'a> {
    revision: Revision,
    payload: &'a [u8],
    /// The payload once more, for a store that can keep it without copying it.
    #[cfg(feature = "memory")]
    shared: Option<&'a Arc<Body>>,
    ttl: Duration,
    ending: bool,
}

impl<'a> NewRecord<'a> {
    /// A record to write under `revision`, to expire `ttl` from now.
    #[must_use]
    pub fn new(revision: Revision, payload: &'a [u8], ttl: Duration) -> Self {
        Self {
            revision,
            payload,
            #[cfg(feature = "memory")]
            shared: None,
            ttl,
            ending: false,
        }
    }

    /// The same of a payload that may be shared, and takes no more memory than it is long.
    pub(crate) fn of(revision: Revision, payload: &'a Payload, ttl: Duration) -> Self {
        Self {
            #[cfg(feature = "memory")]
            shared: payload.body(),
            ..Self::new(revision, payload.bytes(), ttl)
        }
    }

    /// Marks a record that ends a session. A store that can choose how durable a write is makes this
    /// one outlive a power cut. Default: not marked.
    #[must_use]
    pub fn with_ending(mut self, ending: bool) -> Self {
        self.ending = ending;
        self
    }

    /// The name of this write.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The bytes to keep.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The bytes to keep, copied only if they have to be.
    #[cfg(feature = "memory")]
    pub(crate) fn to_body(self) -> Arc<Body> {
        let copied = || Arc::new(Body::new(Bytes::copy_from_slice(self.payload)));
        self.shared.map_or_else(copied, Arc::clone)
    }

    /// The lifetime from now. Never zero.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether this write ends a session.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending
    }
}

impl Debug for NewRecord<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewRecord")
            .field("revision", &self.revision)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .field("ttl", &self.ttl)
            .field("ending", &self.ending)
            .finish()
    }
}

/// The answer to [`SessionStore::create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the contract knows no third answer"
)]
pub enum CreateOutcome {
    /// Written.
    Created(Token),
    /// Something alive is there; it stays as it is.
    Taken,
}

/// The answer to [`SessionStore::update`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the contract knows no fourth answer"
)]
pub enum UpdateOutcome {
    /// Written.
    Updated(Token),
    /// The record is no longer the one that was seen; it stays as it is.
    Conflict,
    /// The record is absent.
    Gone,
}

/// The answer to [`SessionStore::touch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the contract knows no fourth answer"
)]
pub enum TouchOutcome {
    /// The expiry was set.
    Touched(Token),
    /// The record is no longer the one that was seen; its expiry stays as it is.
    Conflict,
    /// The record is absent.
    Gone,
}

/// What a store can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    max_payload: usize,
    expiry_resolution: Duration,
    evicts: bool,
    timeout: Option<Duration>,
    expires_by_itself: bool,
}

impl StoreLimits {
    /// Payloads of up to `max_payload` bytes, expiry to the millisecond, no eviction, expired records
    /// purged by [`delete_expired`](SessionStore::delete_expired).
    #[must_use]
    pub const fn new(max_payload: usize) -> Self {
        Self {
            max_payload,
            expiry_resolution: Duration::from_millis(1),
            evicts: false,
            timeout: None,
            expires_by_itself: false,
        }
    }

    /// How finely the store tells time; lifetimes are rounded up to it. Default: 1 ms.
    #[must_use]
    pub const fn with_expiry_resolution(mut self, resolution: Duration) -> Self {
        self.expiry_resolution = resolution;
        self
    }

    /// Whether the store may drop a live record to make room. Default: no.
    #[must_use]
    pub const fn with_eviction(mut self, evicts: bool) -> Self {
        self.evicts = evicts;
        self
    }

    /// The store gives up by itself: after `timeout` at the latest, every verb but `delete_expired`
    /// has answered, if only with [`StoreErrorKind::Timeout`]. A layer that would wait as long does
    /// then not set a timer of its own, which is a good part of what it costs to wait for a store.
    /// Default: the store may take for ever, and the layer sees to it that it does not.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Whether the backend removes what has expired, so that
    /// [`delete_expired`](SessionStore::delete_expired) has nothing to do and answers 0. A
    /// [`Sweeper`] then leaves the store alone. Default: no.
    #[must_use]
    pub const fn with_own_expiry(mut self, expires_by_itself: bool) -> Self {
        self.expires_by_itself = expires_by_itself;
        self
    }

    /// The largest payload, in bytes.
    #[must_use]
    pub const fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// How finely the store tells time.
    #[must_use]
    pub const fn expiry_resolution(&self) -> Duration {
        self.expiry_resolution
    }

    /// Whether the store may drop a live record to make room.
    #[must_use]
    pub const fn evicts(&self) -> bool {
        self.evicts
    }

    /// When the store gives up by itself, if it does.
    #[must_use]
    pub const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Whether the backend removes what has expired, without
    /// [`delete_expired`](SessionStore::delete_expired).
    #[must_use]
    pub const fn expires_by_itself(&self) -> bool {
        self.expires_by_itself
    }

    /// Refuses a payload that is larger than this store takes: the first line of `create` and
    /// `update`.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::TooLarge`].
    pub fn check(&self, new: &NewRecord<'_>) -> Result<(), StoreError> {
        if new.payload.len() > self.max_payload {
            return Err(StoreError::too_large(new.payload.len(), self.max_payload));
        }
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: SessionStore> SessionStore for Arc<S> {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        S::load(self, key).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        S::create(self, key, new).await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        S::update(self, key, seen, new).await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        S::touch(self, key, seen, ttl).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        S::delete(self, key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        S::delete_expired(self, limit).await
    }

    fn limits(&self) -> StoreLimits {
        S::limits(self)
    }
}

impl<S: ScanStore> ScanStore for Arc<S> {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        S::scan(self, from, limit).await
    }
}
