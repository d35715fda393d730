//! A primary that sentinels watch, and its failovers. The application is not restarted.

use std::time::{Duration, Instant};

use session_layer::store::{RedisStore, SessionStore, StoreErrorKind, UpdateOutcome};

use crate::clustered::Load;
use crate::drills::{self, Proxy};
use crate::servers::{self, Watched, Wire};
use crate::{get, key, new, put};

const PATIENCE: Duration = Duration::from_secs(30);

async fn begin() -> (Watched, RedisStore) {
    let watched = tokio::task::block_in_place(Watched::start);
    let store = RedisStore::connect(&watched.url()).await.unwrap();
    (watched, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_killed_primary_is_replaced_by_its_replica() {
    let (mut watched, store) = begin().await;
    let before = watched.primary();
    let load = Load::start(&store, 0..4).await;
    load.until_written(50).await;
    tokio::task::block_in_place(|| watched.servers[before].kill());
    let start = Instant::now();
    load.until_failed(8).await;
    load.until_written_again(PATIENCE).await;
    println!("writes again {:?} after the kill", start.elapsed());
    load.end().await;
    assert_ne!(watched.primary(), before);
    put(&store, 100, b"new").await;
    // The old one comes back as a replica, and nothing is written there.
    tokio::task::block_in_place(|| watched.servers[before].start_again());
    servers::until("the old primary's new role", || {
        let info: String = Wire::to(&watched.servers[before]).ask("INFO replication");
        info.contains("role:slave")
    });
    let seen = get(&store, 100).await;
    let outcome = store
        .update(&key(100), &seen, &new(b"newer"))
        .await
        .unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_frozen_primary_is_replaced_by_its_replica() {
    let (watched, store) = begin().await;
    let before = watched.primary();
    let load = Load::start(&store, 0..4).await;
    load.until_written(50).await;
    watched.servers[before].freeze();
    let start = Instant::now();
    load.until_failed(4).await;
    load.until_written_again(PATIENCE).await;
    println!("writes again {:?} after the freeze", start.elapsed());
    assert_ne!(watched.primary(), before);
    let slowest = load.end().await;
    assert!(slowest < Duration::from_millis(1500 + 1000), "{slowest:?}");
    // It wakes up and still thinks that it is the primary, but nobody asks it.
    watched.servers[before].thaw();
    let seen = put(&store, 100, b"new").await;
    let outcome = store
        .update(&key(100), &seen, &new(b"newer"))
        .await
        .unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
    let mut primary = Wire::to(&watched.servers[1 - before]);
    let found: u64 = primary.ask(&format!("EXISTS session:{}", key(100)));
    assert_eq!(found, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_planned_failover_loses_nothing_that_was_answered_after_it() {
    let (watched, store) = begin().await;
    let before = watched.primary();
    let load = Load::start(&store, 0..4).await;
    load.until_written(50).await;
    tokio::task::block_in_place(|| {
        // On a busy machine the sentinel may not have heard from the replica for a while.
        servers::until("a replica to promote", || {
            let asked = Wire::to(&watched.sentinel).try_ask::<()>("SENTINEL FAILOVER mymaster");
            asked.is_ok()
        });
        servers::until("the failover", || watched.primary() != before);
    });
    load.until_written_again(PATIENCE).await;
    load.end().await;
    put(&store, 100, b"").await;
}

/// The connection to a primary that was demoted stays open: READONLY leads to the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_demoted_primary_is_left() {
    let (watched, store) = begin().await;
    let before = watched.primary();
    put(&store, 0, b"").await;
    let (old, new_one) = (&watched.servers[before], &watched.servers[1 - before]);
    // Behind the sentinel's back at first, so that no client is disconnected.
    let () = Wire::to(new_one).ask("REPLICAOF NO ONE");
    let () = Wire::to(old).ask(&format!("REPLICAOF 127.0.0.1 {}", new_one.port()));
    let error = store.create(&key(1), &new(b"")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    let mut sentinel = Wire::to(&watched.sentinel);
    let () = sentinel.ask("SENTINEL REMOVE mymaster");
    let () = sentinel.ask(&format!(
        "SENTINEL MONITOR mymaster 127.0.0.1 {} 1",
        new_one.port()
    ));
    let start = Instant::now();
    while store.create(&key(1), &new(b"")).await.is_err() {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let found: u64 = Wire::to(new_one).ask(&format!("EXISTS session:{}", key(1)));
    assert_eq!(found, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_dead_sentinel_is_passed_over() {
    let (watched, _) = begin().await;
    let dead = crate::server::free_port();
    let url = format!(
        "redis+sentinel://127.0.0.1:{dead},{}/mymaster",
        watched.sentinel.address()
    );
    let store = RedisStore::connect(&url).await.unwrap();
    put(&store, 0, b"").await;
}

/// Many requests while there is no primary ask the sentinels a few times, not as often as they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn an_outage_is_no_storm_on_the_sentinels() {
    let mut watched = tokio::task::block_in_place(Watched::start);
    let proxy = Proxy::to(watched.sentinel.address()).await;
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster", proxy.port());
    let store = RedisStore::connect(&url).await.unwrap();
    put(&store, 0, b"").await;
    tokio::task::block_in_place(|| watched.servers.iter_mut().for_each(|server| server.kill()));
    let (start, sent) = (Instant::now(), proxy.sent());
    let mut failures = 0;
    while start.elapsed() < Duration::from_secs(2) {
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let store = store.clone();
            requests.spawn(async move { store.load(&key(0)).await.is_err() });
        }
        failures += requests
            .join_all()
            .await
            .into_iter()
            .filter(|failed| *failed)
            .count();
    }
    let asked = (proxy.sent() - sent) / "*2\r\n$8\r\nSENTINEL\r\n$7\r\nMASTERS\r\n".len() as u64;
    println!("{failures} requests failed, the sentinel was asked {asked} times");
    assert!(failures > 500, "{failures}");
    assert!(asked <= 2_000 / 50 + 2, "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn an_application_may_start_before_its_sentinel() {
    let mut watched = tokio::task::block_in_place(Watched::start);
    let url = watched.url();
    tokio::task::block_in_place(|| watched.sentinel.kill());
    drills::started_before_its_server(&mut watched.sentinel, &url).await;
}
