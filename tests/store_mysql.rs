//! `MySqlStore`: the contract, then what only MySQL and MariaDB can do wrong.
#![cfg(unix)]

#[path = "support/apps.rs"]
mod apps;
#[path = "support/drills.rs"]
mod drills;
#[path = "support/mysql.rs"]
mod mysql;
#[path = "support/server.rs"]
mod server;
#[path = "support/sql.rs"]
mod sql;
mod support;

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use drills::{Durable, Proxy};
use server::Server;
use session_layer::StoreErrorKind;
use session_layer::store::{
    AnyStore, CreateOutcome, MySqlStore, NewRecord, Revision, SessionStore, TouchOutcome,
    UpdateOutcome,
};
use sql::{BRIEF, Certificates, HOUR, Log, Place, Tables, get, key, kind, new, put, shown, table};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, MySqlPool, Row};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

async fn started(settings: &'static [&'static str]) -> Server {
    let server = tokio::task::spawn_blocking(|| mysql::start(settings));
    let server = server.await.unwrap();
    let setup = format!(
        "CREATE DATABASE {}; CREATE USER app@localhost IDENTIFIED BY '{}'; \
         GRANT USAGE ON {}.* TO app@localhost; CREATE DATABASE other",
        mysql::DATABASE,
        mysql::PASSWORD,
        mysql::DATABASE
    );
    let root = mysql::url(&server).replace(mysql::DATABASE, "");
    mysql::execute_sql(&root, &setup).await;
    server
}

/// The database that most tests use, each with a table of its own.
async fn url() -> String {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let server = SERVER.get_or_init(|| started(&[])).await;
    mysql::url(server)
}

/// The server that is killed and frozen, by one test at a time.
async fn victim() -> MutexGuard<'static, Server> {
    static SERVER: OnceCell<Mutex<Server>> = OnceCell::const_new();
    let server = SERVER.get_or_init(async || Mutex::new(started(&[]).await));
    server.await.lock().await
}

async fn raw() -> MySqlConnection {
    mysql::connect(&url().await).await
}

async fn run(connection: &mut MySqlConnection, sql: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql));
    connection.execute(sql).await.unwrap();
}

async fn number(connection: &mut MySqlConnection, sql: &str) -> i64 {
    let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(connection).await;
    row.unwrap().get_unchecked(0)
}

async fn opened() -> (MySqlStore, String) {
    let table = table();
    let store = MySqlStore::connect(&format!("{}?table={table}", url().await)).await;
    (store.unwrap(), table)
}

async fn tables() -> Tables<MySqlStore> {
    Tables {
        store: opened().await.0,
        other: opened().await.0,
    }
}

async fn on_pool(pool: &MySqlPool) -> MySqlStore {
    let builder = MySqlStore::builder_from_pool(pool.clone()).with_table(table());
    builder.connect().await.unwrap()
}

async fn tables_on_a_pool() -> Tables<MySqlStore> {
    let pool = MySqlPoolOptions::new().connect(&url().await).await.unwrap();
    Tables {
        store: on_pool(&pool).await,
        other: on_pool(&pool).await,
    }
}

mod contract {
    session_layer::conformance!(super::tables, ignore = "needs MariaDB: run tests/run");
    session_layer::conformance_of_scan!(super::tables, ignore = "needs MariaDB: run tests/run");
}

mod contract_on_a_pool_of_the_users {
    session_layer::conformance!(
        super::tables_on_a_pool,
        ignore = "needs MariaDB: run tests/run"
    );
}

async fn place() -> Place {
    let url = url().await.replace("mysql:", "mariadb:");
    Place(format!("{url}?table={}&timeout=30s", table()))
}

mod two_applications {
    crate::two_apps!(super::place, ignore = "needs MariaDB: run tests/run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_killed_server_costs_requests_and_nothing_else() {
    let mut server = victim().await;
    let url = format!("{}?table={}", mysql::url(&server), table());
    drills::killed_and_restarted(&mut server, &url, Durable::Yes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_frozen_server_is_not_waited_for() {
    let server = victim().await;
    let url = format!("{}?table={}", mysql::url(&server), table());
    drills::frozen(&server, &url, Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn an_application_may_start_before_its_server() {
    let mut server = victim().await;
    let url = format!("{}?table={}", mysql::url(&server), table());
    tokio::task::block_in_place(|| server.kill());
    let store = AnyStore::connect(&url).await.unwrap();
    let start = Instant::now();
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Unavailable);
    assert!(start.elapsed() < Duration::from_millis(500));
    drills::started_before_its_server(&mut server, &url).await;
    assert!(drills::creates(&store).await);
}

async fn proxied() -> (Proxy, String) {
    let url = url().await;
    let port = url.rsplit_once(':').unwrap().1.split('/').next().unwrap();
    let port: u16 = port.parse().unwrap();
    let proxy = Proxy::to(([127, 0, 0, 1], port).into()).await;
    let url = url.replace(&port.to_string(), &proxy.port().to_string());
    (proxy, format!("{url}?table={}", table()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn no_verb_is_sent_twice() {
    let (proxy, url) = proxied().await;
    drills::nothing_is_sent_twice(&proxy, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_lost_answer_counts_at_most_once() {
    let (proxy, url) = proxied().await;
    drills::a_lost_answer_counts_at_most_once(&proxy, &url).await;
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn every_verb_is_one_round_trip() {
    let (proxy, url) = proxied().await;
    let store = MySqlStore::connect(&url).await.unwrap();
    sql::every_verb_is_one_round_trip(&store, &proxy).await;
    sql::a_rested_connection_is_asked_first(&store, &proxy).await;
    assert_eq!(proxy.connections(), 1, "one after the other");
}

/// As many connections as `store` may have, all at rest.
async fn fill_pool(store: &MySqlStore, url: &str, table: &str, count: usize) {
    let mut other = mysql::connect(url).await;
    run(&mut other, &format!("LOCK TABLES {table} WRITE")).await;
    let loads: Vec<_> = (0..count)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.load(&key(0)).await })
        })
        .collect();
    blocked(url, table, count).await;
    run(&mut other, "UNLOCK TABLES").await;
    for load in loads {
        load.await.unwrap().unwrap();
    }
}

/// Waits until so many other statements on the table are under way: they wait for a lock.
async fn blocked(url: &str, table: &str, count: usize) {
    let mut connection = mysql::connect(url).await;
    let start = Instant::now();
    let waiting = format!(
        "SELECT count(*) FROM information_schema.processlist \
         WHERE id <> connection_id() AND time_ms > 10 AND info LIKE '%{table}%'"
    );
    while number(&mut connection, &waiting).await < count as i64 {
        assert!(start.elapsed() < Duration::from_secs(20), "nobody waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_restart_costs_one_failure_and_not_one_for_each_connection() {
    let mut server = victim().await;
    let (url, table) = (mysql::url(&server), table());
    let store = MySqlStore::connect(&format!("{url}?table={table}&timeout=30s")).await;
    let store = store.unwrap();
    for rest in [0, 1100] {
        fill_pool(&store, &url, &table, 8).await;
        tokio::task::block_in_place(|| {
            server.kill();
            server.start_again();
        });
        mysql::connect(&url).await.close().await.unwrap();
        tokio::time::sleep(Duration::from_millis(rest)).await;
        let failures = sql::failures(&store).await;
        assert!(failures <= usize::from(rest == 0), "{failures} failures");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn statements_behind_a_lock_do_not_pile_up() {
    let (_, table) = opened().await;
    let mut raw = raw().await;
    run(
        &mut raw,
        &format!("CREATE USER {table}@localhost; GRANT ALL ON app.* TO {table}@localhost"),
    )
    .await;
    let url = url().await.replace("root@", &format!("{}@", table));
    let url = format!("{url}?table={table}&max_connections=3&timeout=300ms");
    let store = MySqlStore::connect(&url).await.unwrap();
    let wanted = key(0);
    put(&store, 0, b"").await;
    run(&mut raw, &format!("LOCK TABLES {table} WRITE")).await;
    for _ in 0..5 {
        let loads = (0..6).map(|_| store.load(&wanted));
        for load in futures_util::future::join_all(loads).await {
            assert_eq!(kind(load), StoreErrorKind::Timeout);
        }
    }
    let connections =
        format!("SELECT count(*) FROM information_schema.processlist WHERE user = '{table}'");
    assert_eq!(number(&mut raw, &connections).await, 3);
    run(&mut raw, "UNLOCK TABLES").await;
    let start = Instant::now();
    while store.load(&key(0)).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(number(&mut raw, &connections).await, 3);
}

/// What `verb` is answered that waits for another session, which has done `change` and then does `end`.
async fn racing<T: Send + 'static>(
    table: &str,
    change: &str,
    end: &str,
    verb: impl Future<Output = T> + Send + 'static,
) -> T {
    let mut other = raw().await;
    run(&mut other, "BEGIN").await;
    run(&mut other, change).await;
    let verb = tokio::spawn(verb);
    blocked(&url().await, table, 1).await;
    run(&mut other, end).await;
    verb.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn what_races_a_statement_decides_its_answer() {
    let (store, table) = opened().await;
    let cases = [
        (
            format!("DELETE FROM {table}"),
            "COMMIT",
            UpdateOutcome::Gone,
        ),
        (
            format!("DELETE FROM {table}"),
            "ROLLBACK",
            UpdateOutcome::Updated(0),
        ),
        (
            format!("UPDATE {table} SET revision = ''"),
            "COMMIT",
            UpdateOutcome::Conflict,
        ),
        (
            format!("UPDATE {table} SET revision = ''"),
            "ROLLBACK",
            UpdateOutcome::Updated(0),
        ),
        (
            format!("UPDATE {table} SET expires_at = 1"),
            "COMMIT",
            UpdateOutcome::Gone,
        ),
        (
            format!("UPDATE {table} SET payload = '1'"),
            "COMMIT",
            UpdateOutcome::Updated(0),
        ),
    ];
    for (n, (change, end, expected)) in cases.into_iter().enumerate() {
        let n = n as u64;
        let change = format!("{change} WHERE session_key = '{}'", key(n).as_str());
        for touch in [true, false] {
            store.delete(&key(n)).await.unwrap();
            put(&store, n, b"").await;
            let seen = get(&store, n).await;
            let verb = {
                let store = store.clone();
                async move {
                    if !touch {
                        return store.update(&key(n), &seen, &new(b"x")).await.unwrap();
                    }
                    match store.touch(&key(n), &seen, HOUR).await.unwrap() {
                        TouchOutcome::Touched(token) => UpdateOutcome::Updated(token),
                        TouchOutcome::Conflict => UpdateOutcome::Conflict,
                        TouchOutcome::Gone => UpdateOutcome::Gone,
                    }
                }
            };
            let outcome = racing(&table, &change, end, verb).await;
            assert_eq!(outcome, expected, "{change} {end}, touch: {touch}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_create_waits_for_another_and_sees_what_came_of_it() {
    let (store, table) = opened().await;
    for (n, end, expected) in [
        (0, "COMMIT", CreateOutcome::Taken),
        (1, "ROLLBACK", CreateOutcome::Created(0)),
    ] {
        let insert = format!(
            "INSERT INTO {table} VALUES ('{}', '', 9000000000000, '')",
            key(n).as_str()
        );
        let store = store.clone();
        let verb = async move { store.create(&key(n), &new(b"")).await.unwrap() };
        assert_eq!(racing(&table, &insert, end, verb).await, expected);
    }
}

/// The rows that a statement locks are those of its key: others go on.
#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_locked_row_holds_up_no_other_session() {
    let (store, table) = opened().await;
    for n in 0..3 {
        put(&store, n, b"").await;
    }
    let seen = get(&store, 1).await;
    let mut other = raw().await;
    run(&mut other, "BEGIN").await;
    for n in [0, 2] {
        let lock = format!(
            "SELECT * FROM {table} WHERE session_key = '{}' FOR UPDATE",
            key(n).as_str()
        );
        run(&mut other, &lock).await;
    }
    let updated = store.update(&key(1), &seen, &new(b"")).await.unwrap();
    assert_eq!(updated, UpdateOutcome::Updated(0));
    let stale = store.touch(&key(1), &seen, HOUR).await.unwrap();
    assert_eq!(stale, TouchOutcome::Conflict);
    put(&store, 3, b"").await;
    store.delete(&key(3)).await.unwrap();
    run(&mut other, "ROLLBACK").await;
}

/// A purge goes by the expiry and then to the rows, a create the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn purges_and_creates_get_past_each_other() {
    let (store, _) = opened().await;
    let brief = Duration::from_millis(1);
    let creating = (0..4_u64).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..150 {
                let new = NewRecord::new(Revision::generate(), b"x", brief);
                store
                    .create(&key(task / 2 * 10 + round % 10), &new)
                    .await
                    .unwrap();
            }
        })
    });
    let creating: Vec<_> = creating.collect();
    let purging = tokio::spawn({
        let store = store.clone();
        async move {
            let mut purged = 0;
            loop {
                purged += store.delete_expired(NonZeroUsize::MAX).await.unwrap();
                tokio::task::yield_now().await;
                if purged > 10 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    for task in creating {
        task.await.unwrap();
    }
    assert!(!purging.is_finished(), "a purge failed");
    purging.abort();
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn the_callers_transaction_is_left_alone() {
    let pool = MySqlPoolOptions::new().connect(&url().await).await.unwrap();
    let table = table();
    let store = MySqlStore::builder_from_pool(pool.clone())
        .with_table(&table)
        .connect()
        .await
        .unwrap();
    let mut transaction = pool.begin().await.unwrap();
    let rows = format!("SELECT count(*) FROM {table}");
    run(
        &mut transaction,
        &format!("INSERT INTO {table} VALUES ('mine', '', 1, '')"),
    )
    .await;
    put(&store, 0, b"committed").await;
    assert_eq!(number(&mut raw().await, &rows).await, 1);
    transaction.rollback().await.unwrap();
    get(&store, 0).await;
    assert_eq!(number(&mut raw().await, &rows).await, 1);
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_pool_that_does_not_commit_is_refused() {
    let options = MySqlPoolOptions::new().after_connect(|connection, _| {
        Box::pin(async move { connection.execute("SET autocommit = 0").await.map(drop) })
    });
    let pool = options.connect(&url().await).await.unwrap();
    let store = MySqlStore::builder_from_pool(pool).with_table(table());
    assert_eq!(kind(store.connect().await), StoreErrorKind::Config);
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_pool_without_a_free_connection_is_waited_for_in_time() {
    let options = MySqlPoolOptions::new().max_connections(1);
    let pool = options.connect(&url().await).await.unwrap();
    let store = on_pool(&pool).await;
    let held = pool.acquire().await.unwrap();
    let start = Instant::now();
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Timeout);
    assert!(start.elapsed() < Duration::from_millis(1500));
    drop(held);
    put(&store, 0, b"").await;
    pool.close().await;
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Unavailable);
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn time_zones_do_not_matter() {
    let table = table();
    let mut stores = Vec::new();
    for zone in ["%2B09:00", "%2B00:00", "-05:00"] {
        let url = format!("{}?table={table}&timezone={zone}", url().await);
        stores.push(MySqlStore::connect(&url).await.unwrap());
    }
    let half_a_year = Duration::from_secs(183 * 24 * 3600);
    for (n, writer) in stores.iter().enumerate() {
        let new = NewRecord::new(Revision::generate(), b"", half_a_year);
        writer.create(&key(n as u64), &new).await.unwrap();
        for reader in &stores {
            let ttl = get(reader, n as u64).await.ttl();
            assert!(
                ttl < half_a_year + BRIEF && ttl + Duration::from_secs(20) > half_a_year,
                "{ttl:?}"
            );
        }
    }
    let brief = NewRecord::new(Revision::generate(), b"", BRIEF);
    stores[0].create(&key(9), &brief).await.unwrap();
    tokio::time::sleep(2 * BRIEF).await;
    for reader in &stores {
        assert!(reader.load(&key(9)).await.unwrap().is_none());
    }
    let off = format!(
        "SELECT ABS(MAX(expires_at) - {} - UNIX_TIMESTAMP() * 1000) FROM {table}",
        half_a_year.as_millis()
    );
    let off = number(&mut raw().await, &off).await;
    assert!(off < 60_000, "{off} ms from the time by another clock");
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn what_is_set_wrongly_is_refused_at_the_start() {
    let good = url().await;
    for url in [
        good.replace("root@", "app:wrong@"),
        good.replace("root@", "nobody:wrong@"),
        good.replace("/app", "/nosuch"),
        good.replace("/app", ""),
        // May connect, and may not make a table.
        good.replace("root@", &format!("app:{}@", mysql::PASSWORD)),
        format!("{good}?ssl-mode=REQUIRED"),
        format!("{good}?ssl-mode=hunter2"),
        format!("{good}?sslmod=REQUIRED"),
        format!("{good}?statement-cache-capacity=0"),
        format!("{good}?table=a.b"),
        format!("{good}?max_connections=0"),
        format!("{good}?timeout=0s"),
        // More than `max_allowed_packet`.
        format!("{good}?max_payload=16777216"),
        "mysql://host:port/x".to_owned(),
    ] {
        let error = match MySqlStore::connect(&url).await {
            Ok(store) => panic!("{url}: {store:?}"),
            Err(error) => error,
        };
        assert_eq!(error.kind(), StoreErrorKind::Config, "{url}: {error:?}");
        assert!(!shown(&error).contains("hunter2"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn tls_and_who_vouches_for_the_server_are_settings_of_the_url() {
    let certificates = Certificates::new("mysql");
    let [certificate, key_file] = ["server.crt", "server.key"].map(|name| certificates.path(name));
    let server = mysql::start(&[
        &format!("--ssl-cert={certificate}"),
        &format!("--ssl-key={key_file}"),
    ]);
    let url = mysql::url(&server);
    let root = url.replace(mysql::DATABASE, "");
    let setup = "CREATE DATABASE app; CREATE USER safe@localhost REQUIRE SSL; \
                 GRANT ALL ON app.* TO safe@localhost";
    mysql::execute_sql(&root, setup).await;
    let safe = url.replace("root@", "safe@");
    let (right, wrong) = (certificates.path("ca.crt"), certificates.path("other.crt"));
    for mode in ["VERIFY_IDENTITY", "VERIFY_CA"] {
        let store = format!("{safe}?ssl-mode={mode}&ssl-ca={right}");
        let store = MySqlStore::connect(&store).await.unwrap();
        assert!(store.load(&key(0)).await.unwrap().is_none());
        for settings in [format!("&ssl-ca={wrong}"), String::new()] {
            let store = MySqlStore::connect(&format!("{safe}?ssl-mode={mode}{settings}")).await;
            assert_eq!(kind(store), StoreErrorKind::Config, "{mode} {settings}");
        }
    }
    // The server refuses this user without.
    let store = MySqlStore::connect(&format!("{safe}?ssl-mode=DISABLED")).await;
    assert_eq!(kind(store), StoreErrorKind::Config);
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn using_a_table_needs_four_rights_and_making_it_is_another() {
    let (owner, table) = opened().await;
    let app = url()
        .await
        .replace("root@", &format!("app:{}@", mysql::PASSWORD));
    let app = format!("{app}?table={table}");
    assert_eq!(
        kind(MySqlStore::connect(&app).await),
        StoreErrorKind::Config
    );
    put(&owner, 0, b"").await;
    let mut raw = raw().await;
    run(
        &mut raw,
        &format!("GRANT SELECT ON {table} TO app@localhost"),
    )
    .await;
    let store = MySqlStore::connect(&app).await.unwrap();
    let seen = get(&store, 0).await;
    let update = store.update(&key(0), &seen, &new(b"")).await;
    assert_eq!(kind(update), StoreErrorKind::Config);
    let grant = format!("GRANT INSERT, UPDATE, DELETE ON {table} TO app@localhost");
    run(&mut raw, &grant).await;
    let store = MySqlStore::connect(&app).await.unwrap();
    let update = store.update(&key(0), &seen, &new(b"")).await.unwrap();
    assert_eq!(update, UpdateOutcome::Updated(0));
    put(&store, 1, b"").await;
    store.delete(&key(1)).await.unwrap();
    store.delete_expired(NonZeroUsize::MIN).await.unwrap();
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_table_can_be_left_to_others() {
    let table = table();
    let url = format!("{}?table={table}&create_table=false", url().await);
    let store = MySqlStore::connect(&url).await.unwrap();
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
    run(&mut raw().await, &MySqlStore::schema(&table).unwrap()).await;
    put(&store, 0, b"").await;
    run(&mut raw().await, &MySqlStore::schema(&table).unwrap()).await;
    store.migrate().await.unwrap();
    get(&store, 0).await;
    run(&mut raw().await, &format!("DROP TABLE {table}")).await;
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
    store.migrate().await.unwrap();
    put(&store, 0, b"").await;
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_table_of_another_form_is_refused() {
    for columns in [
        "id BIGINT, expires_at BIGINT, KEY (expires_at)",
        "session_key VARBINARY(43) PRIMARY KEY, revision BINARY(16), expires_at BIGINT, \
         payload BLOB, KEY (expires_at)",
        "session_key VARBINARY(40) PRIMARY KEY, revision BINARY(16), expires_at BIGINT, \
         payload LONGBLOB, KEY (expires_at)",
        "session_key VARBINARY(43), revision BINARY(16), expires_at BIGINT, payload LONGBLOB, \
         KEY (expires_at)",
        "session_key VARBINARY(43) PRIMARY KEY, revision BINARY(8), expires_at BIGINT, \
         payload LONGBLOB, KEY (expires_at)",
        "session_key VARBINARY(43) PRIMARY KEY, revision BINARY(16), expires_at INT, \
         payload LONGBLOB, KEY (expires_at)",
    ] {
        let table = table();
        run(
            &mut raw().await,
            &format!("CREATE TABLE {table} ({columns})"),
        )
        .await;
        let store = MySqlStore::connect(&format!("{}?table={table}", url().await)).await;
        assert_eq!(kind(store), StoreErrorKind::Config, "{columns}");
    }
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn odd_names_are_quoted() {
    for name in ["Order", "select", &"x".repeat(63)] {
        let url = url().await.replace("/app", "/other");
        let store = MySqlStore::connect(&format!("{url}?table={name}"))
            .await
            .unwrap();
        put(&store, 0, b"").await;
        let there = format!("SELECT count(*) FROM other.`{name}`");
        assert_eq!(number(&mut raw().await, &there).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn many_make_the_table_at_once() {
    for _ in 0..5 {
        let url = format!("{}?table={}", url().await, table());
        let opening = (0..12).map(|n| {
            let url = url.clone();
            tokio::spawn(async move {
                let store = MySqlStore::connect(&url).await.unwrap();
                put(&store, n, b"").await;
            })
        });
        for opened in futures_util::future::join_all(opening).await {
            opened.unwrap();
        }
    }
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn rows_that_are_no_records_are_corrupt_and_can_be_deleted() {
    let (store, table) = opened().await;
    let alter = format!("ALTER TABLE {table} MODIFY revision VARBINARY(99) NOT NULL");
    run(&mut raw().await, &alter).await;
    for damage in [
        "revision = ''",
        "revision = REPEAT('x', 17)",
        "payload = REPEAT('x', 2000000)",
    ] {
        put(&store, 0, b"").await;
        run(&mut raw().await, &format!("UPDATE {table} SET {damage}")).await;
        assert_eq!(
            kind(store.load(&key(0)).await),
            StoreErrorKind::Corrupt,
            "{damage}"
        );
        let create = store.create(&key(0), &new(b"")).await.unwrap();
        assert_eq!(create, CreateOutcome::Taken);
        store.delete(&key(0)).await.unwrap();
    }
    for (expiry, is_there) in [(i64::MAX, true), (i64::MIN, false)] {
        put(&store, 0, b"").await;
        run(
            &mut raw().await,
            &format!("UPDATE {table} SET expires_at = {expiry}"),
        )
        .await;
        assert_eq!(store.load(&key(0)).await.unwrap().is_some(), is_there);
        store.delete(&key(0)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn purgers_share_the_work() {
    let (store, table) = opened().await;
    put(&store, 0, b"").await;
    let fill = format!("INSERT INTO {table} SELECT CONCAT('k', seq), '', 1, '' FROM seq_1_to_2500");
    run(&mut raw().await, &fill).await;
    let some = NonZeroUsize::new(700).unwrap();
    assert_eq!(store.delete_expired(some).await.unwrap(), 700);
    let purges = (0..4).map(|_| store.delete_expired(NonZeroUsize::MAX));
    let purged = futures_util::future::join_all(purges).await;
    let purged: u64 = purged.into_iter().map(Result::unwrap).sum();
    assert_eq!(purged, 1800);
    get(&store, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_full_server_refuses_and_keeps_the_old_record() {
    let server = started(&[
        "--innodb-file-per-table=0",
        "--innodb-data-file-path=ibdata1:12M:autoextend:max:24M",
        "--max-allowed-packet=2M",
    ])
    .await;
    let url = mysql::url(&server);
    let store = MySqlStore::connect(&url).await.unwrap();
    put(&store, 0, b"old").await;
    let seen = get(&store, 0).await;
    let large = vec![1; 1 << 20];
    let mut refused = None;
    for n in 1..40 {
        if let Err(error) = store.create(&key(n), &new(&large)).await {
            refused = Some(error.kind());
            break;
        }
    }
    assert_eq!(refused, Some(StoreErrorKind::Unavailable));
    let update = store.update(&key(0), &seen, &new(&large)).await;
    assert_eq!(kind(update), StoreErrorKind::Unavailable);
    let found = get(&store, 0).await;
    assert_eq!(found.revision(), seen.revision());
    assert_eq!(&found.payload()[..], b"old");

    // The server's limit is lowered: new stores say so, and the old one on its next connection.
    let mut raw = mysql::connect(&url).await;
    run(&mut raw, "SET GLOBAL max_allowed_packet = 65536").await;
    assert_eq!(
        kind(MySqlStore::connect(&url).await),
        StoreErrorKind::Config
    );
    let ours = "SELECT id FROM information_schema.processlist \
                WHERE user = 'root' AND id <> connection_id()";
    for row in raw.fetch_all(ours).await.unwrap() {
        let id: u64 = row.get_unchecked(0);
        run(&mut raw, &format!("KILL {id}")).await;
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    get(&store, 0).await;
    let refused = kind(store.update(&key(0), &seen, &new(&large)).await);
    // The server may hang up before it has been told everything, and so before it is listened to.
    assert!(matches!(
        refused,
        StoreErrorKind::TooLarge | StoreErrorKind::Unavailable
    ));
    get(&store, 0).await;
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn nothing_secret_is_shown_or_logged() {
    let url = url().await;
    let log = Log::collect();
    let (canary, table) = ("canary-in-the-payload", table());
    let app = url.replace("root@", &format!("app:{}x@", mysql::PASSWORD));
    let refused = MySqlStore::connect(&app).await.unwrap_err();
    let builder = MySqlStore::builder(&app);
    let mut text = format!("{builder:?} {}", shown(&refused));

    let store = MySqlStore::connect(&format!("{}?table={table}", url))
        .await
        .unwrap();
    put(&store, 6, canary.as_bytes()).await;
    put(&store, 7, b"").await;
    // Its error quotes the value.
    let alter = format!("ALTER TABLE {table} ADD UNIQUE KEY (payload(99))");
    run(&mut raw().await, &alter).await;
    let seen = get(&store, 7).await;
    let failed = store
        .update(&key(7), &seen, &new(canary.as_bytes()))
        .await
        .unwrap_err();
    assert!(shown(&failed).contains("23000"), "{failed:?}");
    text += &format!("{store:?} {}", shown(&failed));
    let logged = log.text();
    assert!(
        logged.contains(&table),
        "the driver's own events are in the log"
    );
    text += &logged;
    for secret in ["hunter2", canary, key(7).as_str()] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[tokio::test]
#[ignore = "needs MariaDB: run tests/run"]
async fn a_large_payload_outlives_its_connection() {
    let (store, _) = opened().await;
    let payload: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    put(&store, 0, &payload).await;
    put(&store, 1, b"small").await;
    let large = get(&store, 0).await;
    for _ in 0..10 {
        get(&store, 1).await;
    }
    drop(store);
    assert!(large.payload()[..] == payload);
}
