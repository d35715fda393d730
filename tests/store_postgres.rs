//! `PostgresStore`: the contract, then what only PostgreSQL can do wrong.
#![cfg(unix)]

#[path = "support/apps.rs"]
mod apps;
#[path = "support/drills.rs"]
mod drills;
#[path = "support/postgres.rs"]
mod postgres;
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
use session_layer::conformance;
use session_layer::store::{
    AnyStore, CreateOutcome, NewRecord, PostgresStore, Revision, SessionStore, TouchOutcome,
    UpdateOutcome,
};
use sql::{BRIEF, Certificates, HOUR, Log, Place, Tables, get, key, kind, new, put, shown, table};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

async fn started(settings: &'static [&'static str]) -> Server {
    let server = tokio::task::spawn_blocking(|| postgres::start(settings));
    let server = server.await.unwrap();
    let setup = format!("CREATE ROLE app LOGIN PASSWORD '{}'", postgres::PASSWORD);
    postgres::execute_sql(&postgres::url(&server, "postgres"), &setup).await;
    server
}

/// The database that most tests use, each with a table of its own.
async fn url() -> String {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let server = SERVER.get_or_init(|| started(&[])).await;
    postgres::url(server, "postgres")
}

/// The server that is killed and frozen, by one test at a time.
async fn victim() -> MutexGuard<'static, Server> {
    static SERVER: OnceCell<Mutex<Server>> = OnceCell::const_new();
    let server = SERVER.get_or_init(async || Mutex::new(started(&[]).await));
    server.await.lock().await
}

async fn raw() -> PgConnection {
    postgres::connect(&url().await).await
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql));
    connection.execute(sql).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(connection).await;
    row.unwrap().get(0)
}

async fn opened() -> (PostgresStore, String) {
    let table = table();
    let store = PostgresStore::connect(&format!("{}?table={table}", url().await)).await;
    (store.unwrap(), table)
}

async fn tables() -> Tables<PostgresStore> {
    Tables {
        store: opened().await.0,
        other: opened().await.0,
    }
}

async fn on_pool(pool: &PgPool) -> PostgresStore {
    let builder = PostgresStore::builder_from_pool(pool.clone()).with_table(table());
    builder.connect().await.unwrap()
}

async fn tables_on_a_pool() -> Tables<PostgresStore> {
    let pool = PgPoolOptions::new().connect(&url().await).await.unwrap();
    Tables {
        store: on_pool(&pool).await,
        other: on_pool(&pool).await,
    }
}

mod contract {
    session_layer::conformance!(super::tables, ignore = "needs PostgreSQL: run tests/run");
    session_layer::conformance_of_scan!(super::tables, ignore = "needs PostgreSQL: run tests/run");
}

mod contract_on_a_pool_of_the_users {
    session_layer::conformance!(
        super::tables_on_a_pool,
        ignore = "needs PostgreSQL: run tests/run"
    );
}

async fn place() -> Place {
    let url = url().await;
    Place(format!("{url}?table={}&timeout=30s", table()))
}

mod two_applications {
    crate::two_apps!(super::place, ignore = "needs PostgreSQL: run tests/run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_killed_server_costs_requests_and_nothing_else() {
    let mut server = victim().await;
    let url = format!("{}?table={}", postgres::url(&server, "postgres"), table());
    drills::killed_and_restarted(&mut server, &url, Durable::Yes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_frozen_server_is_not_waited_for() {
    let server = victim().await;
    let url = format!("{}?table={}", postgres::url(&server, "postgres"), table());
    drills::frozen(&server, &url, Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn an_application_may_start_before_its_server() {
    let mut server = victim().await;
    let url = format!("{}?table={}", postgres::url(&server, "postgres"), table());
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
#[ignore = "needs PostgreSQL: run tests/run"]
async fn no_verb_is_sent_twice() {
    let (proxy, url) = proxied().await;
    drills::nothing_is_sent_twice(&proxy, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_lost_answer_counts_at_most_once() {
    let (proxy, url) = proxied().await;
    drills::a_lost_answer_counts_at_most_once(&proxy, &url).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn every_verb_is_one_round_trip() {
    let (proxy, url) = proxied().await;
    let store = PostgresStore::connect(&url).await.unwrap();
    sql::every_verb_is_one_round_trip(&store, &proxy).await;
    sql::a_rested_connection_is_asked_first(&store, &proxy).await;
    assert_eq!(proxy.connections(), 1, "one after the other");
}

/// As many connections as `store` may have, all at rest.
async fn fill_pool(store: &PostgresStore, url: &str, table: &str, count: usize) {
    let mut other = postgres::connect(url).await;
    run(&mut other, &format!("BEGIN; LOCK TABLE {table}")).await;
    let loads: Vec<_> = (0..count)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.load(&key(0)).await })
        })
        .collect();
    blocked(url, table, count).await;
    run(&mut other, "COMMIT").await;
    for load in loads {
        load.await.unwrap().unwrap();
    }
}

/// Waits until so many statements on the table wait for a lock.
async fn blocked(url: &str, table: &str, count: usize) {
    // Of its own: within a transaction the view does not change.
    let mut connection = postgres::connect(url).await;
    let start = Instant::now();
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity \
         WHERE wait_event_type = 'Lock' AND query LIKE '%{table}%'"
    );
    while number(&mut connection, &waiting).await < count as i64 {
        assert!(start.elapsed() < Duration::from_secs(20), "nobody waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_restart_costs_one_failure_and_not_one_for_each_connection() {
    let mut server = victim().await;
    let (url, table) = (postgres::url(&server, "postgres"), table());
    let store = PostgresStore::connect(&format!("{url}?table={table}&timeout=30s")).await;
    let store = store.unwrap();
    for rest in [0, 1100] {
        fill_pool(&store, &url, &table, 8).await;
        tokio::task::block_in_place(|| {
            server.kill();
            server.start_again();
        });
        postgres::connect(&url).await.close().await.unwrap();
        tokio::time::sleep(Duration::from_millis(rest)).await;
        let failures = sql::failures(&store).await;
        assert!(failures <= usize::from(rest == 0), "{failures} failures");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn statements_behind_a_lock_do_not_pile_up() {
    let (_, table) = opened().await;
    let url = url().await;
    let settings = format!("max_connections=3&timeout=300ms&application_name={table}");
    let url = format!("{url}?table={table}&{settings}");
    let store = PostgresStore::connect(&url).await.unwrap();
    let wanted = key(0);
    put(&store, 0, b"").await;
    let mut other = raw().await;
    run(&mut other, &format!("BEGIN; LOCK TABLE {table}")).await;
    for _ in 0..5 {
        let loads = (0..6).map(|_| store.load(&wanted));
        for load in futures_util::future::join_all(loads).await {
            assert_eq!(kind(load), StoreErrorKind::Timeout);
        }
    }
    let backends =
        format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{table}'");
    assert_eq!(number(&mut other, &backends).await, 3);
    run(&mut other, "COMMIT").await;
    let start = Instant::now();
    while store.load(&key(0)).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(number(&mut other, &backends).await, 3);
}

/// What `verb` is answered that waits for another session, which has done `change` and then does `end`.
async fn racing<T: Send + 'static>(
    table: &str,
    change: &str,
    end: &str,
    verb: impl Future<Output = T> + Send + 'static,
) -> T {
    let mut other = raw().await;
    run(&mut other, &format!("BEGIN; {change}")).await;
    let verb = tokio::spawn(verb);
    blocked(&url().await, table, 1).await;
    run(&mut other, end).await;
    verb.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn what_races_a_statement_decides_its_answer() {
    let (store, table) = opened().await;
    let written = "revision = decode(repeat('00', 16), 'hex')";
    let row = |n: u64| format!("WHERE session_key = '{}'", key(n).as_str());
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
            format!("UPDATE {table} SET {written}"),
            "COMMIT",
            UpdateOutcome::Conflict,
        ),
        (
            format!("UPDATE {table} SET {written}"),
            "ROLLBACK",
            UpdateOutcome::Updated(0),
        ),
        (
            format!("UPDATE {table} SET expires_at = now()"),
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
        let change = format!("{change} {}", row(n));
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
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_create_waits_for_another_and_sees_what_came_of_it() {
    let (store, table) = opened().await;
    for (n, end, expected) in [
        (0, "COMMIT", CreateOutcome::Taken),
        (1, "ROLLBACK", CreateOutcome::Created(0)),
    ] {
        let insert = format!(
            "INSERT INTO {table} VALUES ('{}', '', now() + interval '1 hour', '')",
            key(n).as_str()
        );
        let store = store.clone();
        let verb = async move { store.create(&key(n), &new(b"")).await.unwrap() };
        assert_eq!(racing(&table, &insert, end, verb).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn stricter_isolation_changes_no_answer() {
    let open = async || {
        let option = "options[default_transaction_isolation]=serializable";
        let url = format!("{}?table={}&timeout=20s&{option}", url().await, table());
        PostgresStore::connect(&url).await.unwrap()
    };
    let tables = Tables {
        store: open().await,
        other: open().await,
    };
    conformance::racing_creators_have_one_winner(&tables).await;
    conformance::creators_racing_over_an_expired_record_have_one_winner(&tables).await;
    conformance::racing_updaters_of_one_revision_have_one_winner(&tables).await;
    conformance::a_racing_delete_is_final(&tables).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn the_callers_transaction_is_left_alone() {
    let pool = PgPoolOptions::new().connect(&url().await).await.unwrap();
    let table = table();
    let store = PostgresStore::builder_from_pool(pool.clone())
        .with_table(&table)
        .connect()
        .await
        .unwrap();
    let mut transaction = pool.begin().await.unwrap();
    put(&store, 0, b"committed").await;
    let rows = format!("SELECT count(*) FROM {table}");
    assert_eq!(number(&mut transaction, &rows).await, 1);
    run(&mut transaction, &format!("DELETE FROM {table}")).await;
    assert_eq!(&get(&store, 0).await.payload()[..], b"committed");
    transaction.rollback().await.unwrap();
    get(&store, 0).await;
    assert_eq!(number(&mut raw().await, &rows).await, 1);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_pool_without_a_free_connection_is_waited_for_in_time() {
    let options = PgPoolOptions::new().max_connections(1);
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
#[ignore = "needs PostgreSQL: run tests/run"]
async fn time_zones_do_not_matter() {
    let table = table();
    let mut stores = Vec::new();
    for zone in ["Asia/Tokyo", "UTC", "America/New_York"] {
        let set = format!("SET TIME ZONE '{zone}'");
        let options = PgPoolOptions::new().after_connect(move |connection, _| {
            let set = sqlx::raw_sql(AssertSqlSafe(set.clone()));
            Box::pin(async move { connection.execute(set).await.map(drop) })
        });
        let pool = options.connect(&url().await).await.unwrap();
        let shown: String = sqlx::query_scalar("SHOW TIME ZONE")
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(shown, zone);
        let store = PostgresStore::builder_from_pool(pool).with_table(&table);
        stores.push(store.connect().await.unwrap());
    }
    // Over the change of the clocks, in either direction, wherever there is one.
    let half_a_year = Duration::from_secs(183 * 24 * 3600);
    for (n, writer) in stores.iter().enumerate() {
        let new = NewRecord::new(Revision::generate(), b"", half_a_year);
        writer.create(&key(n as u64), &new).await.unwrap();
        for reader in &stores {
            let ttl = get(reader, n as u64).await.ttl();
            assert!(
                ttl <= half_a_year && ttl + Duration::from_secs(20) > half_a_year,
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
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn what_is_set_wrongly_is_refused_at_the_start() {
    let good = url().await;
    for url in [
        good.replace("postgres@", "app:wrong@"),
        good.replace("postgres@", "app@"),
        good.replace("/postgres", "/nosuch"),
        format!("{good}?schema=nosuch"),
        // May connect, and may not make a table.
        good.replace("postgres@", &format!("app:{}@", postgres::PASSWORD)),
        format!("{good}?sslmode=require"),
        format!("{good}?sslmode=hunter2"),
        format!("{good}?sslmod=require"),
        format!("{good}?statement-cache-capacity=0"),
        format!("{good}?table=a.b"),
        format!("{good}?max_connections=0"),
        format!("{good}?timeout=0s"),
        format!("{good}?max_payload=500000001"),
        "postgres://host:port/x".to_owned(),
    ] {
        let error = PostgresStore::connect(&url).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{url}: {error:?}");
        assert!(!shown(&error).contains("hunter2"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn tls_and_who_vouches_for_the_server_are_settings_of_the_url() {
    let certificates = Certificates::new("postgres");
    let [certificate, key_file] = ["server.crt", "server.key"].map(|name| certificates.path(name));
    let server = postgres::start(&[
        "ssl=on",
        &format!("ssl_cert_file={certificate}"),
        &format!("ssl_key_file={key_file}"),
    ]);
    let url = postgres::url(&server, "postgres");
    postgres::connect(&url).await.close().await.unwrap();
    let (right, wrong) = (certificates.path("ca.crt"), certificates.path("other.crt"));
    for mode in ["verify-full", "verify-ca"] {
        let store = format!("{url}?sslmode={mode}&sslrootcert={right}&application_name={mode}");
        let store = PostgresStore::connect(&store).await.unwrap();
        store.load(&key(0)).await.unwrap();
        let encrypted = format!(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE ssl AND application_name = '{mode}'"
        );
        let mut raw = postgres::connect(&url).await;
        assert_eq!(number(&mut raw, &encrypted).await, 1);
        for settings in [format!("&sslrootcert={wrong}"), String::new()] {
            let store = PostgresStore::connect(&format!("{url}?sslmode={mode}{settings}")).await;
            assert_eq!(kind(store), StoreErrorKind::Config, "{mode} {settings}");
        }
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn using_a_table_needs_four_rights_and_making_it_is_another() {
    let (owner, table) = opened().await;
    let app = url()
        .await
        .replace("postgres@", &format!("app:{}@", postgres::PASSWORD));
    let store = PostgresStore::connect(&format!("{app}?table={table}"))
        .await
        .unwrap();
    put(&owner, 0, b"").await;
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
    let mut raw = raw().await;
    run(&mut raw, &format!("GRANT SELECT ON {table} TO app")).await;
    let seen = get(&store, 0).await;
    assert_eq!(
        kind(store.update(&key(0), &seen, &new(b"")).await),
        StoreErrorKind::Config
    );
    run(
        &mut raw,
        &format!("GRANT INSERT, UPDATE, DELETE ON {table} TO app"),
    )
    .await;
    let store = PostgresStore::connect(&format!("{app}?table={table}"))
        .await
        .unwrap();
    assert_eq!(
        store.update(&key(0), &seen, &new(b"")).await.unwrap(),
        UpdateOutcome::Updated(0)
    );
    put(&store, 1, b"").await;
    let seen = get(&store, 1).await;
    let ended = store
        .update(&key(1), &seen, &new(b"").with_ending(true))
        .await;
    assert_eq!(ended.unwrap(), UpdateOutcome::Updated(0));
    store.delete(&key(1)).await.unwrap();
    store.delete_expired(NonZeroUsize::MIN).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_table_can_be_left_to_others() {
    let table = table();
    let url = format!("{}?table={table}&create_table=false", url().await);
    let store = PostgresStore::connect(&url).await.unwrap();
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
    run(&mut raw().await, &PostgresStore::schema(&table).unwrap()).await;
    put(&store, 0, b"").await;
    run(&mut raw().await, &PostgresStore::schema(&table).unwrap()).await;
    store.migrate().await.unwrap();
    get(&store, 0).await;
    run(&mut raw().await, &format!("DROP TABLE {table}")).await;
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
    store.migrate().await.unwrap();
    put(&store, 0, b"").await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_table_of_another_form_is_refused() {
    for columns in [
        "id BIGINT, expires_at TIMESTAMPTZ",
        "session_key TEXT PRIMARY KEY, revision TEXT, expires_at TIMESTAMPTZ, payload BYTEA",
        "session_key TEXT PRIMARY KEY, revision BYTEA, expires_at BIGINT, payload BYTEA",
        "session_key TEXT PRIMARY KEY, revision BYTEA, expires_at TIMESTAMPTZ, payload TEXT",
    ] {
        let table = table();
        run(
            &mut raw().await,
            &format!("CREATE TABLE {table} ({columns})"),
        )
        .await;
        let store = PostgresStore::connect(&format!("{}?table={table}", url().await)).await;
        assert_eq!(kind(store), StoreErrorKind::Config, "{columns}");
    }
    let table = table();
    let columns = "session_key TEXT, revision BYTEA, expires_at TIMESTAMPTZ, payload BYTEA";
    run(
        &mut raw().await,
        &format!("CREATE TABLE {table} ({columns})"),
    )
    .await;
    let store = PostgresStore::connect(&format!("{}?table={table}", url().await)).await;
    let create = store.unwrap().create(&key(0), &new(b"")).await;
    assert_eq!(kind(create), StoreErrorKind::Config);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn schemas_and_odd_names_are_quoted() {
    let schema = table();
    run(&mut raw().await, &format!("CREATE SCHEMA {schema}")).await;
    for name in ["Order", "select", &"x".repeat(52)] {
        let url = format!("{}?schema={schema}&table={name}", url().await);
        let store = PostgresStore::connect(&url).await.unwrap();
        put(&store, 0, b"").await;
        let there = format!("SELECT count(*) FROM \"{schema}\".\"{name}\"");
        assert_eq!(number(&mut raw().await, &there).await, 1);
        let index = format!(
            "SELECT count(*) FROM pg_indexes WHERE schemaname = '{schema}' \
             AND indexname = '{name}_expires_at'"
        );
        assert_eq!(number(&mut raw().await, &index).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn many_make_the_table_at_once() {
    for _ in 0..5 {
        let url = format!("{}?table={}", url().await, table());
        let opening = (0..12).map(|n| {
            let url = url.clone();
            tokio::spawn(async move {
                let store = PostgresStore::connect(&url).await.unwrap();
                put(&store, n, b"").await;
            })
        });
        for opened in futures_util::future::join_all(opening).await {
            opened.unwrap();
        }
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn rows_that_are_no_records_are_corrupt_and_can_be_deleted() {
    let (store, table) = opened().await;
    for damage in [
        "revision = ''",
        "revision = decode(repeat('00', 17), 'hex')",
        "payload = decode(repeat('00', 2000000), 'hex')",
        "expires_at = 'infinity'",
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
    put(&store, 0, b"").await;
    run(
        &mut raw().await,
        &format!("UPDATE {table} SET expires_at = '-infinity'"),
    )
    .await;
    assert!(store.load(&key(0)).await.unwrap().is_none());
    put(&store, 0, b"").await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn a_table_that_is_altered_is_found_again() {
    let (store, table) = opened().await;
    put(&store, 0, b"").await;
    get(&store, 0).await;
    // The prepared statements answer with another type from now on.
    let alter = format!("ALTER TABLE {table} ALTER COLUMN payload TYPE BYTEA USING payload || 'x'");
    run(&mut raw().await, &alter).await;
    get(&store, 0).await;
    let alter = format!("ALTER TABLE {table} ALTER COLUMN revision TYPE VARCHAR USING 'x'");
    run(&mut raw().await, &alter).await;
    assert!(store.load(&key(0)).await.is_err());
    let alter = format!("ALTER TABLE {table} ALTER COLUMN revision TYPE BYTEA USING ''");
    run(&mut raw().await, &alter).await;
    let _ = store.load(&key(0)).await;
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn purgers_share_the_work() {
    let (store, table) = opened().await;
    put(&store, 0, b"").await;
    run(
        &mut raw().await,
        &format!(
            "INSERT INTO {table} SELECT 'k' || n, '', now() - interval '1 second', '' \
             FROM generate_series(1, 2500) n"
        ),
    )
    .await;
    let some = NonZeroUsize::new(700).unwrap();
    assert_eq!(store.delete_expired(some).await.unwrap(), 700);
    let purges = (0..4).map(|_| store.delete_expired(NonZeroUsize::MAX));
    let purged = futures_util::future::join_all(purges).await;
    let purged: u64 = purged.into_iter().map(Result::unwrap).sum();
    assert_eq!(purged, 1800);
    get(&store, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn endings_outlive_a_crash_where_other_writes_need_not() {
    let mut server = started(&["synchronous_commit=off", "wal_writer_delay=10s"]).await;
    let url = postgres::url(&server, "postgres");
    let (key, verbs) = (key(0), ["update", "end", "delete", "end by create"]);
    for verb in verbs {
        let mut kept = 0;
        for _ in 0..3 {
            let store = PostgresStore::connect(&format!("{url}?table={}", table()))
                .await
                .unwrap();
            if verb != "end by create" {
                put(&store, 0, b"old").await;
            }
            let mut raw = postgres::connect(&url).await;
            run(&mut raw, "CHECKPOINT").await;
            let seen = store.load(&key).await.unwrap();
            let ending = new(b"new").with_ending(true);
            match (verb, seen) {
                ("update", Some(seen)) => store
                    .update(&key, &seen, &new(b"new"))
                    .await
                    .map(drop)
                    .unwrap(),
                ("end", Some(seen)) => store.update(&key, &seen, &ending).await.map(drop).unwrap(),
                ("delete", Some(_)) => store.delete(&key).await.unwrap(),
                (_, None) => store.create(&key, &ending).await.map(drop).unwrap(),
                (_, Some(_)) => panic!("a record before it was made"),
            }
            tokio::task::block_in_place(|| {
                server.kill();
                server.start_again();
            });
            let _ = postgres::connect(&url).await;
            let found = loop {
                if let Ok(found) = store.load(&key).await {
                    break found;
                }
            };
            kept += match found {
                Some(record) => usize::from(&record.payload()[..] == b"new"),
                None => usize::from(verb == "delete"),
            };
        }
        match verb {
            // Or this test shows nothing.
            "update" => assert!(kept < 3, "no write was lost"),
            _ => assert_eq!(kept, 3, "{verb}"),
        }
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
async fn nothing_secret_is_shown_or_logged() {
    let url = url().await;
    let log = Log::collect();
    let (canary, table) = ("canary-in-the-payload", table());
    let app = url.replace("postgres@", &format!("app:{}x@", postgres::PASSWORD));
    let refused = PostgresStore::connect(&app).await.unwrap_err();
    let builder = PostgresStore::builder(&app);
    let mut text = format!("{builder:?} {}", shown(&refused));

    let store = PostgresStore::connect(&format!("{}?table={table}", url))
        .await
        .unwrap();
    put(&store, 7, b"").await;
    // Its error quotes the whole row, which the driver's `Debug` shows.
    let check = format!("ALTER TABLE {table} ADD CHECK (octet_length(payload) < 5)");
    run(&mut raw().await, &check).await;
    let seen = get(&store, 7).await;
    let failed = store
        .update(&key(7), &seen, &new(canary.as_bytes()))
        .await
        .unwrap_err();
    assert!(shown(&failed).contains("23514"), "{failed:?}");
    text += &format!("{store:?} {}", shown(&failed));
    let logged = log.text();
    assert!(
        logged.contains(&table),
        "the driver's own events are in the log"
    );
    text += &logged;
    let hex: String = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
    for secret in ["hunter2", canary, &hex, key(7).as_str()] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run tests/run"]
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
