//! Connections: how one is opened, how long it waits for locks, what its errors mean. Every call
//! blocks.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::store::{StoreError, StoreErrorKind};

/// `synchronous`: the database survives a power cut whole, the last commits may not.
const NORMAL: i64 = 1;
/// `synchronous`: a commit is on the disk when it is answered, in every journal mode. In WAL mode the
/// same as FULL.
const EXTRA: i64 = 3;

/// A connection of the store's own, opened again when the file in its place is another one.
#[derive(Debug)]
pub(super) struct Link {
    connection: Option<Connection>,
    origin: Origin,
    /// What `synchronous` is between the writes that end a session.
    synchronous: i64,
    /// Refuses to write.
    reading: bool,
}

#[derive(Debug)]
enum Origin {
    /// Handed over by the user.
    Given,
    Path(PathBuf, Option<FileId>),
}

impl Link {
    pub(super) fn to(path: &Path) -> Self {
        Self {
            connection: None,
            origin: Origin::Path(path.to_owned(), None),
            synchronous: NORMAL,
            reading: false,
        }
    }

    pub(super) fn reading(mut self) -> Self {
        self.reading = true;
        self
    }

    pub(super) fn given(mut connection: Connection) -> Result<Self, StoreError> {
        if !connection.is_autocommit() {
            return Err(StoreError::new(
                StoreErrorKind::Config,
                "the connection has a transaction open: end it first",
            ));
        }
        be_patient(&mut connection)?;
        let synchronous = connection
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .map_err(|error| failed("cannot read a setting", error))?;
        Ok(Self {
            connection: Some(connection),
            origin: Origin::Given,
            synchronous,
            reading: false,
        })
    }

    /// The connection, to the file that is in its place now.
    pub(super) fn get(&mut self, deadline: Instant) -> Result<&mut Connection, StoreError> {
        DEADLINE.set(Some(deadline));
        if let Origin::Path(path, known) = &mut self.origin {
            let there = FileId::of(path)?;
            if self.connection.is_none() || *known != Some(there) {
                self.connection = None;
                self.connection = Some(open(path, self.reading, deadline)?);
                *known = Some(there);
            }
        }
        // Given, or opened just now.
        self.connection
            .as_mut()
            .ok_or_else(|| StoreError::new(StoreErrorKind::Other, "the connection is gone"))
    }

    /// Runs `work` in a transaction of its own that has the write lock from its start: what `work`
    /// reads is still so when it writes, and a clock that it reads is not older than its wait.
    pub(super) fn write<T>(
        &mut self,
        deadline: Instant,
        durable: bool,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let synchronous = self.synchronous;
        let connection = self.get(deadline)?;
        if durable {
            set_synchronous(connection, EXTRA).map_err(|error| failed("cannot write", error))?;
        }
        let answer = transact(connection, work);
        if durable {
            // Should this fail, later writes are safer than they need to be.
            let _ = set_synchronous(connection, synchronous);
        }
        answer.map_err(|error| failed("cannot write", error))
    }
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let answer = work(&transaction)?;
    transaction.commit()?;
    Ok(answer)
}

fn set_synchronous(connection: &Connection, level: i64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", level)
}

/// Makes an empty file that only this user can read, if there is none; SQLite gives the files beside
/// it the same mode. Never opens one that exists: closing it would drop the locks that SQLite holds
/// on it for this process.
pub(super) fn make_private(path: &Path) -> Result<(), StoreError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StoreError::new(
            StoreErrorKind::Config,
            "cannot create the database file: its directory must exist and be writable",
        )
        .with_source(error)),
    }
}

fn open(path: &Path, reading: bool, deadline: Instant) -> Result<Connection, StoreError> {
    // No CREATE: a database that has vanished must not come back empty. No URI: a path is a path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)
        .map_err(|error| failed("cannot open the database", error))?;
    be_patient(&mut connection)?;
    use_wal(&connection, deadline)?;
    let set = set_synchronous(&connection, NORMAL)
        // Where the system's plain flush does not reach the disk (macOS), use the one that does.
        .and_then(|()| connection.pragma_update(None, "fullfsync", true))
        .and_then(|()| connection.pragma_update(None, "query_only", reading));
    set.map_err(|error| failed("cannot change a setting", error))?;
    Ok(connection)
}

fn use_wal(connection: &Connection, deadline: Instant) -> Result<(), StoreError> {
    loop {
        let mode = connection.query_row("PRAGMA journal_mode = WAL", [], |row| {
            row.get::<_, String>(0)
        });
        match mode {
            Ok(mode) if mode.eq_ignore_ascii_case("wal") => return Ok(()),
            Ok(_) => {
                return Err(StoreError::new(
                    StoreErrorKind::Config,
                    "the file system of the database does not support write-ahead logging",
                ));
            }
            // SQLite does not call the busy handler where two processes switch at the same time.
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(failed("cannot open the database", error)),
        }
    }
}

thread_local! {
    /// Until when this thread waits for the locks of other connections. Set for each verb, when it
    /// was called: a queue of verbs behind one lock gives up together, and not one after the other.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn be_patient(connection: &mut Connection) -> Result<(), StoreError> {
    connection
        .busy_handler(Some(pause as fn(i32) -> bool))
        .map_err(|error| failed("cannot change a setting", error))
}

/// SQLite's own handler ends at pauses of 100 ms, in which the lock may change hands often.
fn pause(tries: i32) -> bool {
    let in_time = DEADLINE
        .get()
        .is_some_and(|deadline| Instant::now() < deadline);
    if in_time {
        thread::sleep(Duration::from_micros(match tries {
            0..4 => 200,
            4..12 => 500,
            _ => 2000,
        }));
    }
    in_time
}

/// Which file a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileId(u64, u64);

impl FileId {
    fn of(path: &Path) -> Result<Self, StoreError> {
        let meta = std::fs::metadata(path).map_err(|error| {
            StoreError::new(
                StoreErrorKind::Unavailable,
                "the database file was removed or cannot be reached",
            )
            .with_source(error)
        })?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            Ok(Self(meta.dev(), meta.ino()))
        }
        #[cfg(not(unix))]
        {
            let _ = meta;
            Ok(Self(0, 0))
        }
    }
}

/// What an error of SQLite means. Its text names tables, columns and the path, never values.
pub(super) fn failed(doing: &'static str, error: rusqlite::Error) -> StoreError {
    let (kind, message) = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy) => (
            StoreErrorKind::Timeout,
            "another connection keeps the database locked",
        ),
        Some(ErrorCode::DiskFull) => (
            StoreErrorKind::Unavailable,
            "the disk or the database is full",
        ),
        Some(ErrorCode::NotADatabase) => {
            (StoreErrorKind::Config, "the file is not a SQLite database")
        }
        // Not `Corrupt`, which is said of one record and makes it count as absent.
        Some(ErrorCode::DatabaseCorrupt) => (StoreErrorKind::Other, "the database is damaged"),
        Some(ErrorCode::ReadOnly) => (StoreErrorKind::Config, "the database cannot be written"),
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::DatabaseLocked
            | ErrorCode::OperationInterrupted
            | ErrorCode::OutOfMemory
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure,
        ) => (StoreErrorKind::Unavailable, doing),
        Some(ErrorCode::Unknown) | None if says(&error, "no such table") => (
            StoreErrorKind::Config,
            "there is no table for sessions: call `migrate`, or run the text of `schema`",
        ),
        Some(ErrorCode::Unknown) | None
            if says(&error, "no such column") || says(&error, "ON CONFLICT clause") =>
        {
            (
                StoreErrorKind::Config,
                "the table for sessions is not the one of `schema`",
            )
        }
        Some(_) => (StoreErrorKind::Other, doing),
        None if is_type_error(&error) => {
            (StoreErrorKind::Corrupt, "the row is not a session record")
        }
        None => (StoreErrorKind::Other, doing),
    };
    StoreError::new(kind, message).with_source(error)
}

fn says(error: &rusqlite::Error, words: &str) -> bool {
    error.to_string().contains(words)
}

fn is_type_error(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
    )
}
