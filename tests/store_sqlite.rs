//! `SqliteStore`: the contract, then what only SQLite can do wrong.
#![cfg(unix)]

#[path = "support/child.rs"]
mod child;

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use child::{get, key, new, put};
use rusqlite::Connection;
use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    CreateOutcome, NewRecord, Revision, ScanStore, SessionStore, SqliteStore, StoreError,
    StoreErrorKind, TouchOutcome, UpdateOutcome,
};
use tempfile::TempDir;

struct Tables {
    store: SqliteStore,
    other: SqliteStore,
    _scratch: Option<TempDir>,
}

impl Fixture for Tables {
    type Store = SqliteStore;

    fn store(&self) -> SqliteStore {
        self.store.clone()
    }

    fn other_namespace(&self) -> SqliteStore {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::OnDemand {
            margin: Duration::ZERO,
        }
    }
}

async fn tables() -> Tables {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sessions.db");
    Tables {
        store: SqliteStore::open(&path).await.unwrap(),
        other: SqliteStore::builder(&path)
            .with_table("other")
            .open()
            .await
            .unwrap(),
        _scratch: Some(scratch),
    }
}

async fn in_memory() -> Tables {
    let open = || SqliteStore::from_connection(Connection::open_in_memory().unwrap());
    Tables {
        store: open().await.unwrap(),
        other: open().await.unwrap(),
        _scratch: None,
    }
}

mod contract {
    session_layer::conformance!(super::tables);
    session_layer::conformance_of_scan!(super::tables);
}

mod contract_on_a_connection_of_the_users {
    session_layer::conformance!(super::in_memory);
    session_layer::conformance_of_scan!(super::in_memory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_test_program_starts_itself() {
    let Some((role, path)) = child::role() else {
        let scratch = tempfile::tempdir().unwrap();
        return child::can_be_started(&scratch.path().join("sessions.db"));
    };
    let store = SqliteStore::open(&path).await.unwrap();
    child::play(&store, &role, &path).await;
}

async fn opened() -> (SqliteStore, PathBuf, TempDir) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sessions.db");
    (SqliteStore::open(&path).await.unwrap(), path, scratch)
}

fn kind<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> StoreErrorKind {
    answer.unwrap_err().kind()
}

/// Another program's connection, with the write lock.
fn lock(path: &Path) -> Connection {
    let other = Connection::open(path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    other
}

#[tokio::test]
async fn all_files_are_private() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"secret").await;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        let mode = fs::metadata(&name).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name:?}");
    }
}

#[tokio::test]
async fn the_mode_of_a_file_that_exists_is_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("app.db");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    SqliteStore::open(&path).await.unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o640);
}

#[tokio::test]
async fn hostile_table_names_are_refused_and_change_nothing() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"").await;
    for name in [
        "",
        "x\" (a); DROP TABLE sessions; --",
        "sessions; DROP TABLE sessions",
        "a b",
        "main.sessions",
        "é",
        "a\0",
        "sqlite_master",
        &"x".repeat(64),
    ] {
        let opened = SqliteStore::builder(&path).with_table(name).open().await;
        assert_eq!(kind(opened), StoreErrorKind::Config, "{name:?}");
        assert_eq!(kind(SqliteStore::schema(name)), StoreErrorKind::Config);
    }
    get(&store, 0).await;
}

#[tokio::test]
async fn words_of_sql_are_table_names_like_any_other() {
    let (_store, path, _scratch) = opened().await;
    for name in ["order", "SELECT", "_", "table", &"x".repeat(63)] {
        let builder = SqliteStore::builder(&path).with_table(name);
        let store = builder.open().await.unwrap();
        put(&store, 0, name.as_bytes()).await;
        assert_eq!(&get(&store, 0).await.payload()[..], name.as_bytes());
    }
}

#[tokio::test]
async fn a_table_is_made_by_a_migration_or_not_at_all() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("app.db");
    let builder = SqliteStore::builder(&path).with_create_table(false);
    let store = builder.open().await.unwrap();
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
    let create = store.create(&key(0), &new(b"")).await;
    assert_eq!(kind(create), StoreErrorKind::Config);

    let schema = SqliteStore::schema("sessions").unwrap();
    let migration = Connection::open(&path).unwrap();
    migration.execute_batch(&schema).unwrap();
    migration.execute_batch(&schema).unwrap();
    put(&store, 0, b"kept").await;
    store.migrate().await.unwrap();
    assert_eq!(&get(&store, 0).await.payload()[..], b"kept");
}

#[tokio::test]
async fn a_table_of_another_form_is_refused() {
    for columns in [
        "id INTEGER, expires_at INTEGER",
        "session_key TEXT, revision BLOB, expires_at INTEGER, payload BLOB",
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("app.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch(&format!("CREATE TABLE sessions ({columns})"))
            .unwrap();
        let error = SqliteStore::open(&path).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error:?}");
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let text = scratch.path().join("text");
    fs::write(&text, "not a database ".repeat(1000)).unwrap();
    assert_eq!(kind(SqliteStore::open(&text).await), StoreErrorKind::Config);
    let nowhere = scratch.path().join("missing/sessions.db");
    let opened = SqliteStore::open(&nowhere).await;
    assert_eq!(kind(opened), StoreErrorKind::Config);
    for path in ["", ":memory:", "file:sessions.db?mode=memory"] {
        let opened = SqliteStore::open(path).await;
        assert_eq!(kind(opened), StoreErrorKind::Config, "{path:?}");
        assert!(!Path::new(path).exists());
    }
}

#[tokio::test]
async fn rows_that_are_no_records_are_corrupt_and_can_be_deleted() {
    let (store, path, _scratch) = opened().await;
    let raw = Connection::open(&path).unwrap();
    for damage in [
        "revision = x'00'",
        "revision = zeroblob(1000000)",
        "payload = zeroblob(2000000)",
    ] {
        put(&store, 0, b"").await;
        raw.execute_batch(&format!("UPDATE sessions SET {damage}"))
            .unwrap();
        let load = store.load(&key(0)).await;
        assert_eq!(kind(load), StoreErrorKind::Corrupt, "{damage}");
        store.delete(&key(0)).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_database_refuses_and_keeps_the_old_record() {
    let connection = Connection::open_in_memory().unwrap();
    connection
        .query_row("PRAGMA max_page_count = 20", [], |_| Ok(()))
        .unwrap();
    let store = SqliteStore::from_connection(connection).await.unwrap();
    put(&store, 0, b"old").await;
    let seen = get(&store, 0).await;
    let update = store.update(&key(0), &seen, &new(&[1; 200_000])).await;
    assert_eq!(kind(update), StoreErrorKind::Unavailable);
    let found = get(&store, 0).await;
    assert_eq!(found.revision(), seen.revision());
    assert_eq!(&found.payload()[..], b"old");
    let outcome = store.update(&key(0), &seen, &new(b"new")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
}

#[tokio::test]
async fn only_endings_are_flushed_before_they_are_answered() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("app.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA synchronous = NORMAL;
             CREATE TABLE log (level);
             CREATE TABLE template (x);",
        )
        .unwrap();
    connection
        .execute_batch(&SqliteStore::schema("sessions").unwrap())
        .unwrap();
    for event in ["INSERT", "UPDATE", "DELETE"] {
        connection
            .execute_batch(&format!(
                "CREATE TRIGGER log_{event} AFTER {event} ON sessions BEGIN
                     INSERT INTO log SELECT synchronous FROM pragma_synchronous;
                 END"
            ))
            .unwrap();
    }
    let store = SqliteStore::from_connection(connection).await.unwrap();
    put(&store, 0, b"").await;
    let seen = get(&store, 0).await;
    let renewed = store.touch(&key(0), &seen, child::HOUR).await.unwrap();
    assert_eq!(renewed, TouchOutcome::Touched(0));
    let ending = new(b"").with_ending(true);
    let outcome = store.update(&key(0), &seen, &ending).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
    put(&store, 1, b"").await;
    store.delete(&key(0)).await.unwrap();
    put(&store, 2, b"").await;

    let log = Connection::open(&path).unwrap();
    let mut statement = log.prepare("SELECT level FROM log ORDER BY rowid").unwrap();
    let levels: Vec<i64> = statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(levels, [1, 1, 3, 1, 3, 1]);
}

#[tokio::test]
async fn a_connection_with_an_open_transaction_is_refused() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("BEGIN").unwrap();
    let opened = SqliteStore::from_connection(connection).await;
    assert_eq!(kind(opened), StoreErrorKind::Config);
}

#[tokio::test]
async fn a_connection_keeps_its_journal_mode() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("app.db");
    let connection = Connection::open(&path).unwrap();
    let store = SqliteStore::from_connection(connection).await.unwrap();
    put(&store, 0, b"").await;
    let mode: String = Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "delete");
}

#[tokio::test(flavor = "current_thread")]
async fn a_locked_database_is_a_timeout_and_blocks_no_async_thread() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"").await;
    let seen = get(&store, 0).await;
    let other = lock(&path);

    let start = Instant::now();
    let writers: Vec<_> = (1..6)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.create(&key(number), &new(b"")).await })
        })
        .collect();
    let mut ticks = 0;
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        get(&store, 0).await;
        ticks += 1;
    }
    let waited = start.elapsed();
    for writer in writers {
        assert_eq!(kind(writer.await.unwrap()), StoreErrorKind::Timeout);
    }
    assert!(waited > Duration::from_millis(1400), "{waited:?}");
    // One after the other they would take 7.5 s; the rest is for a busy machine.
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    assert!(ticks > 5, "only {ticks} ticks and reads");

    other.execute_batch("ROLLBACK").unwrap();
    let outcome = store.update(&key(0), &seen, &new(b"")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
}

#[tokio::test]
async fn a_lock_that_is_given_up_in_time_is_waited_for() {
    let (store, path, _scratch) = opened().await;
    let other = lock(&path);
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        other.execute_batch("COMMIT").unwrap();
    });
    put(&store, 0, b"").await;
    release.join().unwrap();
}

#[tokio::test]
async fn a_record_that_expires_while_its_update_waits_is_gone() {
    let (store, path, _scratch) = opened().await;
    let brief = NewRecord::new(Revision::generate(), b"", Duration::from_millis(200));
    store.create(&key(0), &brief).await.unwrap();
    let seen = get(&store, 0).await;
    let other = lock(&path);
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        other.execute_batch("COMMIT").unwrap();
    });
    let outcome = store.update(&key(0), &seen, &new(b"")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Gone);
    release.join().unwrap();
}

#[tokio::test]
async fn a_removed_database_is_a_failure_and_a_new_one_is_used() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"").await;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        fs::remove_file(name).unwrap();
    }
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Unavailable);
    let create = store.create(&key(1), &new(b"")).await;
    assert_eq!(kind(create), StoreErrorKind::Unavailable);
    assert!(!path.exists());

    let restarted = SqliteStore::open(&path).await.unwrap();
    put(&restarted, 2, b"").await;
    get(&store, 2).await;
    put(&store, 3, b"").await;
    get(&restarted, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_database_can_be_opened_by_many_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sessions.db");
    let opening: Vec<_> = (0..16)
        .map(|number| {
            let path = path.clone();
            tokio::spawn(async move {
                let store = SqliteStore::open(&path).await.unwrap();
                put(&store, number, b"").await;
            })
        })
        .collect();
    for opened in opening {
        opened.await.unwrap();
    }
}

#[tokio::test]
async fn a_store_without_readers_reads() {
    let scratch = tempfile::tempdir().unwrap();
    let builder = SqliteStore::builder(scratch.path().join("s.db")).with_readers(0);
    let store = builder.open().await.unwrap();
    put(&store, 0, b"a").await;
    assert_eq!(&get(&store, 0).await.payload()[..], b"a");
}

#[tokio::test]
async fn a_large_purge_takes_everything_expired() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"").await;
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
             INSERT INTO sessions SELECT 'k' || i, zeroblob(16), i, x'' FROM n",
        )
        .unwrap();
    let some = NonZeroUsize::new(1200).unwrap();
    assert_eq!(store.delete_expired(some).await.unwrap(), 1200);
    let rest = store.delete_expired(NonZeroUsize::MAX).await.unwrap();
    assert_eq!(rest, 1300);
    get(&store, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_writer_leaves_the_old_record_or_the_new_one() {
    let (store, path, _scratch) = opened().await;
    let reader = store.clone();
    put(&store, 1, b"").await;
    let reading = tokio::spawn(async move {
        let mut reads = 0_u64;
        while reader.load(&key(1)).await.unwrap().is_some() {
            if let Some(record) = reader.load(&key(0)).await.unwrap() {
                child::stamp_of(&record);
                reads += 1;
            }
        }
        reads
    });
    child::killed_writers_leave_old_or_new(&store, &path).await;
    store.delete(&key(1)).await.unwrap();
    assert!(reading.await.unwrap() > 0);
}

#[tokio::test]
async fn two_processes_lose_no_update() {
    let (store, path, _scratch) = opened().await;
    child::two_processes_count_exactly(&store, &path).await;
}

#[tokio::test]
async fn two_processes_never_create_the_same_key() {
    let (_store, path, _scratch) = opened().await;
    child::two_processes_never_create_twice(&path);
}

#[tokio::test]
async fn debug_and_errors_show_no_key_and_no_data() {
    let (store, path, _scratch) = opened().await;
    put(&store, 7, b"hush").await;
    let outcome = store.create(&key(7), &new(b"hush")).await.unwrap();
    assert_eq!(outcome, CreateOutcome::Taken);
    Connection::open(&path)
        .unwrap()
        .execute_batch("UPDATE sessions SET revision = x'68757368'")
        .unwrap();
    let error = store.load(&key(7)).await.unwrap_err();
    let shown = format!("{store:?} {error} {error:?}");
    assert!(shown.contains("SqliteStore"), "{shown}");
    assert!(
        !shown.contains("hush") && !shown.contains(key(7).as_str()),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_database_is_an_error_and_not_an_absent_session() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"here").await;
    drop(store);
    // The last connection that closes leaves everything in the one file.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while path.with_extension("db-wal").exists() {
        assert!(std::time::Instant::now() < deadline, "the store stays open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let failure = match SqliteStore::open(&path).await {
        Ok(store) => store.load(&key(0)).await.unwrap_err(),
        Err(failure) => failure,
    };
    assert_eq!(failure.kind(), StoreErrorKind::Other, "{failure}");
}

#[tokio::test]
async fn a_scan_passes_over_rows_that_are_no_sessions() {
    let (store, path, _scratch) = opened().await;
    let other = Connection::open(&path).unwrap();
    for n in 0..20 {
        put(&store, n, b"here").await;
        // Between any two of ours in the order of keys.
        for name in [
            format!("{n:043}!"),
            format!("{n:043}").replacen('0', "é", 1),
        ] {
            other
                .execute(
                    "INSERT INTO sessions VALUES (?1, zeroblob(16), 9000000000000, x'80')",
                    [name],
                )
                .unwrap();
        }
    }
    let limit = NonZeroUsize::new(3).unwrap();
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = store.scan(from.as_ref(), limit).await.unwrap();
        found.extend_from_slice(page.keys());
        from = page.into_next();
        if from.is_none() {
            break;
        }
    }
    assert_eq!(found, (0..20).map(key).collect::<Vec<_>>());
}
