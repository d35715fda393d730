//! `MongoStore`: a collection in MongoDB.

mod builder;
mod failure;
mod index;
mod record;
mod words;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::results::UpdateResult;
use mongodb::{Client, Collection};

pub use self::builder::MongoStoreBuilder;
use self::failure::failed;
use self::index::Index;
use super::{
    CreateOutcome, Cursor, NewRecord, Page, Record, ScanStore, SessionKey, SessionStore,
    StoreError, StoreErrorKind, StoreLimits, TouchOutcome, UpdateOutcome,
};

/// The most keys that a page holds: what fits into one reply of the server.
const PAGE: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// Keeps each session in a document of a MongoDB collection.
///
/// For a replica set, a sharded cluster or a single server, MongoDB 4.4 or later. Clones share one
/// client, whose connections are opened when they are first needed and again after they were lost.
///
/// # Documents
///
/// ```text
/// { _id: <session key>, revision: BinData(16 bytes), payload: BinData, expires_at: Date }
/// ```
///
/// A TTL index on `expires_at` lets MongoDB remove what has expired; the first
/// [`create`](SessionStore::create) makes it, unless
/// [`with_create_index`](MongoStoreBuilder::with_create_index) says otherwise.
///
/// # Expiry
///
/// By the server's clock, to the millisecond, and exact whether or not MongoDB has removed the document,
/// which takes it about a minute. [`delete_expired`](SessionStore::delete_expired) does nothing and
/// answers 0: no [`Sweeper`](super::Sweeper) is needed. The clocks of a replica set's members must agree
/// as closely as expiry is to be exact after a failover.
///
/// # Durability
///
/// A write is answered when a majority of the members has it in its journal (write concern `majority`,
/// journaled), and reads go to the primary: no failover, crash or power cut undoes what was answered,
/// and what a new primary shows includes all of it. On a single server the same holds for crashes. A
/// write concern in the URL or of your own client counts instead, but a write that ends a session, and a
/// delete, always wait for the journal.
///
/// A read may show a write that is not answered yet and that a failover then undoes, and, for up to ten
/// seconds, a primary that was cut off from its majority still shows what it knew; it takes no writes.
/// `readConcernLevel=linearizable` in the URL rules both out, at the price of a majority's confirmation
/// for each read.
///
/// # Retries
///
/// On replica sets and sharded clusters the driver may send a write once more after a lost connection or
/// a change of primary, under the same transaction number, by which the servers recognise it
/// (`retryWrites`); it counts once. On a single server no write is sent twice.
///
/// # Time limits
///
/// Each call ends within [`with_timeout`](MongoStoreBuilder::with_timeout), 1.5 seconds by default.
/// Without a primary it fails after one second as [`Unavailable`](StoreErrorKind::Unavailable).
///
/// # Damage
///
/// A document that is not a record loads as [`Corrupt`](StoreErrorKind::Corrupt); `create` replaces it,
/// `delete` removes it, `update` and `touch` do not change it.
///
/// # Examples
///
/// ```no_run
/// use session_layer::store::MongoStore;
///
/// # async fn connect() -> Result<(), session_layer::StoreError> {
/// let store = MongoStore::connect("mongodb://db1,db2,db3/app?replicaSet=rs0&tls=true").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MongoStore {
    shared: Arc<Shared>,
}

struct Shared {
    /// Its writes wait as long as the settings say.
    collection: Collection<Document>,
    /// The same collection; its writes wait for the journal in any case.
    durable: Collection<Document>,
    index: Index,
    limits: StoreLimits,
    timeout: Duration,
}

impl MongoStore {
    /// Opens the collection that `url` names, as in `mongodb://user:password@host:27017/app`.
    ///
    /// The path is the database, by default `session_layer`. The store's own settings, and where they
    /// are described:
    ///
    /// | setting | see |
    /// | --- | --- |
    /// | `collection=sessions` | [`with_collection`](MongoStoreBuilder::with_collection) |
    /// | `create_index=true` | [`with_create_index`](MongoStoreBuilder::with_create_index) |
    /// | `max_payload=1048576` | [`with_max_payload`](MongoStoreBuilder::with_max_payload) |
    /// | `timeout=1500ms` | [`with_timeout`](MongoStoreBuilder::with_timeout) |
    ///
    /// The others are [MongoDB's](https://www.mongodb.com/docs/manual/reference/connection-string-options/):
    /// `replicaSet`, `tls`, `tlsCAFile`, `authSource`, `w` and so on. The user name and the password are
    /// percent-encoded. Where the URL does not say otherwise, `serverSelectionTimeoutMS` and
    /// `connectTimeoutMS` are 1000 and `maxPoolSize` is 100.
    ///
    /// Nothing is waited for, except a name server in the case of `mongodb+srv://`.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL or a setting cannot work;
    /// [`Unavailable`](StoreErrorKind::Unavailable) when the name server does not answer.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Settings for a store at `url`; see [`connect`](Self::connect). What is set here counts, whatever
    /// the URL says.
    pub fn builder(url: impl Into<String>) -> MongoStoreBuilder {
        MongoStoreBuilder::of_url(url.into())
    }

    /// Uses a client of yours, with the default settings; see
    /// [`builder_from_client`](Self::builder_from_client).
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when `database` is not the name of one, or the client's write
    /// concern is unacknowledged.
    pub fn from_client(client: Client, database: impl Into<String>) -> Result<Self, StoreError> {
        Self::builder_from_client(client.clone(), database).open(&client)
    }

    /// Settings for a store on a client of yours. Its read concern and its write concern count where it
    /// has any; its read preference does not, reads go to the primary. Give it a short
    /// `server_selection_timeout`: the driver's own is 30 seconds, which the store's time limit ends as
    /// [`Timeout`](StoreErrorKind::Timeout), whatever the reason.
    pub fn builder_from_client(client: Client, database: impl Into<String>) -> MongoStoreBuilder {
        MongoStoreBuilder::of_client(client, database.into())
    }

    /// Makes the collection and its index where they are missing. The first `create` does the same,
    /// unless [`with_create_index`](MongoStoreBuilder::with_create_index) says otherwise. Waits, without
    /// a limit, until the server has built the index.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when another index is in its place or the user may not make
    /// one; otherwise as every write.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        index::make(&self.shared.collection).await
    }

    /// Does `work` within the time limit.
    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = self.shared.timeout;
        match tokio::time::timeout(limit, work).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Timeout,
                format!("no answer within {limit:?}"),
            )),
        }
    }

    /// Writes what `change` says to the one document that `filter` finds.
    async fn write(
        &self,
        ending: bool,
        filter: Document,
        change: Vec<Document>,
    ) -> Result<UpdateResult, StoreError> {
        let collection = match ending {
            true => &self.shared.durable,
            false => &self.shared.collection,
        };
        self.bounded(async {
            let written = collection.update_one(filter, change).await;
            written.map_err(|error| failed("cannot write", &error))
        })
        .await
    }
}

impl fmt::Debug for MongoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoStore")
            .field(
                "collection",
                &self.shared.collection.namespace().to_string(),
            )
            .field("limits", &self.shared.limits)
            .field("timeout", &self.shared.timeout)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for MongoStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        self.bounded(async {
            let found = self
                .shared
                .collection
                .find(words::of(key))
                .projection(words::fields())
                // One, and no cursor on the server.
                .limit(-1);
            let failed = |error| failed("cannot read", &error);
            let mut found = found.await.map_err(failed)?;
            match found.advance().await.map_err(failed)? {
                true => record::read(found.current(), self.shared.limits.max_payload()),
                false => Ok(None),
            }
        })
        .await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        self.bounded(async {
            // Longer than the driver looks for a server, and time is left for the record.
            let patience = self.shared.timeout.mul_f32(0.75);
            let ready = self.shared.index.ready(&self.shared.collection, patience);
            ready.await?;
            let collection = match new.is_ending() {
                true => &self.shared.durable,
                false => &self.shared.collection,
            };
            let written = collection
                .update_one(words::of(key), words::create(new))
                .upsert(true)
                .await;
            match written {
                Ok(done) if done.upserted_id.is_some() || done.modified_count > 0 => {
                    Ok(CreateOutcome::Created(0))
                }
                Ok(_) => Ok(CreateOutcome::Taken),
                Err(error) if failure::is_taken(&error) => Ok(CreateOutcome::Taken),
                Err(error) => Err(failed("cannot write", &error)),
            }
        })
        .await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        let change = words::update(seen.revision(), new);
        let done = self
            .write(new.is_ending(), words::alive(key), change)
            .await?;
        Ok(match (done.matched_count, done.modified_count) {
            (0, _) => UpdateOutcome::Gone,
            (_, 0) => UpdateOutcome::Conflict,
            _ => UpdateOutcome::Updated(0),
        })
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let change = words::touch(seen.revision(), ttl);
        let done = self.write(false, words::alive(key), change).await?;
        Ok(match (done.matched_count, done.modified_count) {
            (0, _) => TouchOutcome::Gone,
            (_, 0) => TouchOutcome::Conflict,
            _ => TouchOutcome::Touched(0),
        })
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.bounded(async {
            // A delete ends a session as well as a tombstone does.
            match self.shared.durable.delete_one(words::of(key)).await {
                Ok(_) => Ok(()),
                Err(error) => Err(failed("cannot delete", &error)),
            }
        })
        .await
    }

    async fn delete_expired(&self, _limit: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        self.shared.limits
    }
}

impl ScanStore for MongoStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let last = Page::after(from)?;
        let last = last.as_ref().map_or("", SessionKey::as_str);
        let limit = limit.min(PAGE);
        self.bounded(async {
            let failed = |error| failed("cannot list", &error);
            let found = self
                .shared
                .collection
                .find(words::keys_after(last))
                .projection(doc! { "_id": 1 })
                .sort(doc! { "_id": 1 })
                // All in the first answer, which holds 101 otherwise.
                .batch_size(limit.get() as u32)
                .limit(-(limit.get() as i64));
            let mut found = found.await.map_err(failed)?;
            let mut keys = Vec::new();
            while found.advance().await.map_err(failed)? {
                let key = found.current().get_str("_id").ok();
                keys.extend(key.and_then(|key| key.parse::<SessionKey>().ok()));
            }
            Ok(Page::in_order(keys, limit))
        })
        .await
    }
}
