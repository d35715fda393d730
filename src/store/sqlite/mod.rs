//! `SqliteStore`: a table in a SQLite database.

mod link;
mod readers;
mod scan;
mod sql;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use self::link::{Link, failed};
use self::readers::Readers;
use self::sql::Sql;
use super::blocking::blocking;
use super::expiry::Now;
use super::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, StoreError,
    StoreErrorKind, StoreLimits, TouchOutcome, UpdateOutcome,
};

/// How long a verb waits for the locks of other connections. Less than the layer's own limit of two
/// seconds, so that the reason is known when it is reported.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The same for opening, where a process that starts at the same time may be making the table.
const PATIENCE_AT_OPEN: Duration = Duration::from_secs(5);
/// SQLite's own limit is a billion bytes, for the whole row.
const LARGEST_PAYLOAD: usize = 999_000_000;
/// How many rows one transaction of a purge takes: short enough for the others to wait.
const PURGE_CHUNK: usize = 1000;

/// Keeps sessions in a table of a SQLite database.
///
/// For one host: several processes may share the file, several hosts may not. SQLite is compiled in.
///
/// The database is used in WAL mode, with one connection that writes and a few that read, all on
/// blocking threads; an async thread never waits for a lock or the disk. A verb that meets the lock of
/// another connection waits for up to 1.5 seconds and then fails as
/// [`Timeout`](StoreErrorKind::Timeout). Reads wait for no writer.
///
/// # Durability
///
/// A killed process undoes nothing. A power cut can undo the ordinary writes of the last moments, but
/// not a write that ended a session, nor a delete: those, and with them all earlier ones, are flushed
/// to the disk before they are answered. The database itself stays whole.
///
/// # Files
///
/// A new database file is readable by this user only, as are the `-wal` and `-shm` files beside it;
/// the mode of one that exists is left alone. A file that is removed or replaced while the store runs
/// is noticed by the next verb: it fails as [`Unavailable`](StoreErrorKind::Unavailable) while there
/// is none, and goes on with the new one. (What was being written at that very moment goes into the
/// old one. Removing `-wal` or `-shm` alone damages a database, and is not noticed.)
///
/// # Expiry
///
/// An expired record reads as absent at once; its row stays until a
/// [`delete_expired`](SessionStore::delete_expired) takes it. Run a [`Sweeper`](super::Sweeper).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use session_layer::store::{NewRecord, Revision, SessionKey, SessionStore, SqliteStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let scratch = tempfile::tempdir()?;
/// # let path = scratch.path().join("sessions.db");
/// let store = SqliteStore::open(&path).await?;
/// let key: SessionKey = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ".parse()?;
/// let new = NewRecord::new(Revision::generate(), b"data", Duration::from_secs(60));
/// store.create(&key, &new).await?;
/// let record = store.load(&key).await?.ok_or("absent")?;
/// assert_eq!(&record.payload()[..], b"data");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

struct Shared {
    sql: Sql,
    table: String,
    path: Option<PathBuf>,
    limits: StoreLimits,
    writer: Arc<tokio::sync::Mutex<Link>>,
    readers: Option<Readers>,
}

/// Settings of a [`SqliteStore`], from [`SqliteStore::builder`].
#[derive(Debug)]
#[must_use = "call `open` to get a store"]
pub struct SqliteStoreBuilder {
    origin: Origin,
    table: String,
    max_payload: usize,
    create_table: bool,
    readers: usize,
}

#[derive(Debug)]
enum Origin {
    Connection(Connection),
    Path(PathBuf),
}

impl SqliteStore {
    /// Opens a database file with the default settings, and makes the file and the table `sessions`
    /// where they are missing. The directory must exist.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the file is not a database, cannot be made, or has a
    /// table of that name and another form; [`Timeout`](StoreErrorKind::Timeout) when it stays locked
    /// for five seconds.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::builder(path).open().await
    }

    /// Uses a connection of yours, with the default settings; see
    /// [`builder_from_connection`](Self::builder_from_connection).
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); [`Config`](StoreErrorKind::Config) too when a transaction is open.
    pub async fn from_connection(connection: Connection) -> Result<Self, StoreError> {
        Self::builder_from_connection(connection).open().await
    }

    /// Settings for a store in this database file.
    pub fn builder(path: impl AsRef<Path>) -> SqliteStoreBuilder {
        SqliteStoreBuilder::new(Origin::Path(path.as_ref().to_owned()))
    }

    /// Settings for a store on a connection of yours: a database in memory, an encrypted one, one that
    /// is attached to others.
    ///
    /// Reads and writes take turns on it. Its journal mode and its other settings stay as they are,
    /// except that the busy handler is replaced, and `synchronous` raised around writes that end a
    /// session.
    pub fn builder_from_connection(connection: Connection) -> SqliteStoreBuilder {
        SqliteStoreBuilder::new(Origin::Connection(connection))
    }

    /// The statements that make the table, for a migration of your own. Running them again is
    /// harmless.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when `table` is not a table name; see
    /// [`with_table`](SqliteStoreBuilder::with_table).
    ///
    /// # Examples
    ///
    /// ```
    /// use session_layer::store::SqliteStore;
    ///
    /// let schema = SqliteStore::schema("sessions")?;
    /// assert!(schema.starts_with("CREATE TABLE IF NOT EXISTS \"sessions\""));
    /// # Ok::<(), session_layer::StoreError>(())
    /// ```
    pub fn schema(table: &str) -> Result<String, StoreError> {
        Ok(Sql::new(table)?.schema)
    }

    /// Makes the table and its index where they are missing, and checks that the table has the form
    /// of [`schema`](Self::schema). Opening does this by default.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when a table of that name has another form; otherwise as
    /// every write.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut writer = Arc::clone(&shared.writer).lock_owned().await;
        let deadline = Instant::now() + PATIENCE_AT_OPEN;
        blocking(move || {
            writer.write(deadline, false, |transaction| {
                transaction.execute_batch(&shared.sql.schema)?;
                for verb in shared.sql.verbs() {
                    transaction.prepare_cached(verb)?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Does `work` in a transaction of its own, on a blocking thread. The writer belongs to the work,
    /// so that a caller who stops waiting opens no gap.
    async fn write<T: Send + 'static>(
        &self,
        durable: bool,
        work: impl FnOnce(&Transaction<'_>, &Sql, Now) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let shared = Arc::clone(&self.shared);
        let mut writer = Arc::clone(&shared.writer).lock_owned().await;
        blocking(move || {
            writer.write(deadline, durable, |transaction| {
                work(transaction, &shared.sql, Now::read())
            })
        })
        .await
    }
}

impl SqliteStoreBuilder {
    fn new(origin: Origin) -> Self {
        Self {
            origin,
            table: "sessions".to_owned(),
            max_payload: 1024 * 1024,
            create_table: true,
            readers: 4,
        }
    }

    /// The table. Default: `sessions`. A letter or an underscore, then letters, digits and
    /// underscores, ASCII, 63 characters at most, not beginning with `sqlite_`; any other is refused
    /// by [`open`](Self::open).
    pub fn with_table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// The largest payload, in bytes. Default: 1 MiB; at most 999,000,000. A larger one is refused
    /// before it is written, and a row with a larger one is not read.
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Whether opening makes the table where it is missing. Default: yes. Without, run the text of
    /// [`SqliteStore::schema`] or call [`SqliteStore::migrate`] before the first session; until then
    /// every verb fails as [`Config`](StoreErrorKind::Config).
    pub fn with_create_table(mut self, create: bool) -> Self {
        self.create_table = create;
        self
    }

    /// How many connections read at the same time, at most. Default: 4. Each is opened when it is
    /// first needed, and costs a cache of up to 2 MB. With 0, reads take turns with the writes, as
    /// they always do on a connection of yours.
    pub fn with_readers(mut self, readers: usize) -> Self {
        self.readers = readers;
        self
    }

    /// Opens the database.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::open`]; [`Config`](StoreErrorKind::Config) too for a setting that cannot
    /// work.
    pub async fn open(self) -> Result<SqliteStore, StoreError> {
        let sql = Sql::new(&self.table)?;
        if self.max_payload > LARGEST_PAYLOAD {
            return Err(StoreError::new(
                StoreErrorKind::Config,
                "SQLite takes payloads of at most 999,000,000 bytes",
            ));
        }
        let (origin, readers) = (self.origin, self.readers);
        let (link, path) = blocking(move || link_to(origin)).await?;
        let store = SqliteStore {
            shared: Arc::new(Shared {
                sql,
                table: self.table,
                limits: StoreLimits::new(self.max_payload),
                writer: Arc::new(tokio::sync::Mutex::new(link)),
                readers: path
                    .as_deref()
                    .filter(|_| readers > 0)
                    .map(|path| Readers::new(path, readers)),
                path,
            }),
        };
        if self.create_table {
            store.migrate().await?;
        }
        Ok(store)
    }
}

fn link_to(origin: Origin) -> Result<(Link, Option<PathBuf>), StoreError> {
    let path = match origin {
        Origin::Connection(connection) => return Ok((Link::given(connection)?, None)),
        Origin::Path(path) => path,
    };
    let text = path.as_os_str().as_encoded_bytes();
    if text.is_empty() || text == b":memory:" || text.starts_with(b"file:") {
        return Err(StoreError::new(
            StoreErrorKind::Config,
            "a path is expected: for a database in memory or a URI, open a connection and hand it \
             over with `from_connection`",
        ));
    }
    let path = std::path::absolute(path).map_err(|error| {
        StoreError::new(StoreErrorKind::Config, "cannot resolve the path").with_source(error)
    })?;
    link::make_private(&path)?;
    let mut link = Link::to(&path);
    link.get(Instant::now() + PATIENCE_AT_OPEN)?;
    Ok((link, Some(path)))
}

impl Shared {
    fn read(
        &self,
        link: &mut Link,
        key: &SessionKey,
        deadline: Instant,
    ) -> Result<Option<Record>, StoreError> {
        type Row = ([u8; Revision::LEN], i64, Option<Vec<u8>>);
        // `open` has bounded it.
        let max = i64::try_from(self.limits.max_payload()).unwrap_or(i64::MAX);
        let connection = link.get(deadline)?;
        let row: Option<Row> = connection
            .prepare_cached(&self.sql.load)
            .and_then(|mut statement| {
                let bound = params![key.as_str(), Now::read().millis(), max];
                statement
                    .query_row(bound, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                    .optional()
            })
            .map_err(|error| failed("cannot read", error))?;
        let Some((revision, expiry, payload)) = row else {
            return Ok(None);
        };
        // The clock has gone on while the row was waited for.
        let Some(ttl) = Now::read().remaining(expiry) else {
            return Ok(None);
        };
        let payload = payload.ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::Corrupt,
                "the row's payload is larger than this store allows",
            )
        })?;
        let revision = Revision::from_bytes(revision);
        Ok(Some(Record::new(revision, Bytes::from(payload), ttl)))
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.shared.path)
            .field("table", &self.shared.table)
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for SqliteStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let key = *key;
        let shared = Arc::clone(&self.shared);
        if let Some(readers) = &self.shared.readers {
            let permit = readers.permit().await?;
            return blocking(move || {
                let _permit = permit;
                match &shared.readers {
                    Some(readers) => readers.with(|link| shared.read(link, &key, deadline)),
                    None => Ok(None),
                }
            })
            .await;
        }
        let mut writer = Arc::clone(&shared.writer).lock_owned().await;
        blocking(move || shared.read(&mut writer, &key, deadline)).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        let (key, revision, ttl) = (*key, new.revision(), new.ttl());
        let payload = new.payload().to_vec();
        self.write(new.is_ending(), move |transaction, sql, now| {
            let written = transaction.prepare_cached(&sql.create)?.execute(params![
                key.as_str(),
                revision.as_bytes(),
                now.expiry(ttl),
                payload,
                now.millis(),
            ])?;
            Ok(match written {
                0 => CreateOutcome::Taken,
                _ => CreateOutcome::Created(0),
            })
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
        let (key, seen) = (*key, seen.revision());
        let (revision, ttl) = (new.revision(), new.ttl());
        let payload = new.payload().to_vec();
        self.write(new.is_ending(), move |transaction, sql, now| {
            let written = transaction.prepare_cached(&sql.update)?.execute(params![
                key.as_str(),
                revision.as_bytes(),
                now.expiry(ttl),
                payload,
                now.millis(),
                seen.as_bytes(),
            ])?;
            if written > 0 {
                return Ok(UpdateOutcome::Updated(0));
            }
            Ok(if is_alive(transaction, sql, &key, now)? {
                UpdateOutcome::Conflict
            } else {
                UpdateOutcome::Gone
            })
        })
        .await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let (key, seen) = (*key, seen.revision());
        self.write(false, move |transaction, sql, now| {
            let written = transaction.prepare_cached(&sql.touch)?.execute(params![
                key.as_str(),
                now.expiry(ttl),
                now.millis(),
                seen.as_bytes(),
            ])?;
            if written > 0 {
                return Ok(TouchOutcome::Touched(0));
            }
            Ok(if is_alive(transaction, sql, &key, now)? {
                TouchOutcome::Conflict
            } else {
                TouchOutcome::Gone
            })
        })
        .await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let key = *key;
        // A delete ends a session as well as a tombstone does.
        self.write(true, move |transaction, sql, _| {
            transaction
                .prepare_cached(&sql.delete)?
                .execute(params![key.as_str()])
                .map(drop)
        })
        .await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        let mut went = 0;
        while went < limit.get() {
            let chunk = (limit.get() - went).min(PURGE_CHUNK);
            let purged = self
                .write(false, move |transaction, sql, now| {
                    transaction
                        .prepare_cached(&sql.purge)?
                        .execute(params![now.millis(), chunk as i64])
                })
                .await?;
            went += purged;
            if purged < chunk {
                break;
            }
        }
        Ok(went as u64)
    }

    fn limits(&self) -> StoreLimits {
        self.shared.limits
    }
}

/// Within the transaction of the statement that found nothing to change.
fn is_alive(
    transaction: &Transaction<'_>,
    sql: &Sql,
    key: &SessionKey,
    now: Now,
) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached(&sql.exists)?
        .exists(params![key.as_str(), now.millis()])
}
