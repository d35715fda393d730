//! SQLite, as a careful handler would use rusqlite: on blocking threads, one connection that writes and
//! four that read, in WAL mode with `synchronous = NORMAL` and statements that are kept. These are the
//! store's own settings and statements; the file is not looked at before each of them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::{Floor, MONTH, millis, now, revision, subject};
use crate::Place;
use crate::subject::Subject;

const READERS: usize = 4;

const SCHEMA: &str = "CREATE TABLE floor (\
     session_key TEXT NOT NULL PRIMARY KEY, \
     revision BLOB NOT NULL, \
     expires_at INTEGER NOT NULL, \
     payload BLOB NOT NULL\
     ) STRICT; \
     CREATE INDEX floor_expires_at ON floor (expires_at)";
const LOAD: &str = "SELECT revision, expires_at, CASE WHEN length(payload) <= ?3 THEN payload END \
     FROM floor WHERE session_key = ?1 AND expires_at > ?2";
const CREATE: &str = "INSERT INTO floor (session_key, revision, expires_at, payload) \
     VALUES (?1, ?2, ?3, ?4) \
     ON CONFLICT (session_key) DO UPDATE SET revision = excluded.revision, \
     expires_at = excluded.expires_at, payload = excluded.payload \
     WHERE expires_at <= ?5";
const UPDATE: &str = "UPDATE floor SET revision = ?2, expires_at = ?3, payload = ?4 \
     WHERE session_key = ?1 AND expires_at > ?5 AND revision = ?6";

pub async fn open() -> Place {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("sessions.db").display());
    let bare = Bare::open(&folder.path().join("floor.db"));
    Place {
        name: "sqlite",
        note: "The file system of the folder for temporary files, a database for each row.",
        subjects: vec![subject(bare).await, Subject::session_layer(&url).await],
        empty: None,
        _keeps: Box::new(folder),
    }
}

#[derive(Clone)]
struct Bare {
    writer: Arc<tokio::sync::Mutex<Connection>>,
    permits: Arc<Semaphore>,
    readers: Arc<Mutex<Vec<Connection>>>,
}

struct Seen {
    revision: [u8; 16],
    payload: Vec<u8>,
}

impl Bare {
    fn open(path: &Path) -> Self {
        let connect = || {
            let connection = Connection::open(path).expect("a database");
            connection
                .pragma_update(None, "journal_mode", "WAL")
                .and_then(|()| connection.pragma_update(None, "synchronous", "NORMAL"))
                .expect("settings");
            connection
        };
        let writer = connect();
        writer.execute_batch(SCHEMA).expect("a table");
        Self {
            writer: Arc::new(tokio::sync::Mutex::new(writer)),
            permits: Arc::new(Semaphore::new(READERS)),
            readers: Arc::new(Mutex::new((0..READERS).map(|_| connect()).collect())),
        }
    }

    async fn write(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<usize> + Send + 'static,
    ) -> bool {
        let mut writer = Arc::clone(&self.writer).lock_owned().await;
        let written: rusqlite::Result<usize> = spawn_blocking(move || {
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let written = work(&transaction)?;
            transaction.commit()?;
            Ok(written)
        })
        .await
        .expect("no panic");
        written.expect("to write") > 0
    }
}

impl Floor for Bare {
    type Seen = Seen;

    async fn load(&self, key: &str) -> Option<Seen> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("it is never closed");
        let (readers, key) = (Arc::clone(&self.readers), key.to_owned());
        let read = spawn_blocking(move || {
            let _permit = permit;
            let rested = readers.lock().expect("nothing panics here").pop();
            let connection = rested.expect("as many as permits");
            let mut statement = connection.prepare_cached(LOAD)?;
            let found = statement
                .query_row(params![key, millis(now()), 1 << 20], |row| {
                    Ok(Seen {
                        revision: row.get(0)?,
                        payload: row.get(2)?,
                    })
                })
                .optional();
            drop(statement);
            readers
                .lock()
                .expect("nothing panics here")
                .push(connection);
            found
        });
        read.await.expect("no panic").expect("to read")
    }

    async fn update(&self, key: &str, seen: Seen) -> bool {
        let key = key.to_owned();
        self.write(move |connection| {
            connection.prepare_cached(UPDATE)?.execute(params![
                key,
                revision(),
                millis(now() + MONTH),
                seen.payload,
                millis(now()),
                seen.revision,
            ])
        })
        .await
    }

    async fn create(&self, key: &str, payload: usize) -> bool {
        let key = key.to_owned();
        self.write(move |connection| {
            connection.prepare_cached(CREATE)?.execute(params![
                key,
                revision(),
                millis(now() + MONTH),
                vec![b'x'; payload],
                millis(now()),
            ])
        })
        .await
    }
}
