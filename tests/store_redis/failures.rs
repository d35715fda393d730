//! Servers that are killed, hang, or lose answers.

use std::time::{Duration, Instant};

use session_layer::store::{RedisStore, SessionStore, StoreErrorKind, UpdateOutcome};

use crate::drills::{self, Durable, Proxy};
use crate::server::Server;
use crate::servers::{self, Cluster, SHARED, Wire, prefix, url};
use crate::{HOUR, get, key, kind, new, put, with_prefix};

/// A server that has written to the disk what it acknowledges.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

/// A little more than milliseconds, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_killed_server_that_comes_back_is_used_again() {
    let mut server = servers::start(DURABLE);
    let url = url(&server);
    drills::killed_and_restarted(&mut server, &url, Durable::Yes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_frozen_server_is_answered_for_in_time() {
    let server = servers::start(&[]);
    drills::frozen(&server, &url(&server), Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn an_application_may_start_before_its_server() {
    let mut server = servers::start(&[]);
    server.kill();
    let url = url(&server);
    drills::started_before_its_server(&mut server, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_restart_while_idle_costs_no_request() {
    let mut server = servers::start(DURABLE);
    let store = RedisStore::connect(&url(&server)).await.unwrap();
    put(&store, 0, b"kept").await;
    for _ in 0..3 {
        tokio::task::block_in_place(|| {
            server.kill();
            servers::start_again(&mut server);
        });
        assert_eq!(&get(&store, 0).await.payload()[..], b"kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_server_that_is_down_is_reported_at_once_and_found_at_once() {
    let mut server = servers::start(DURABLE);
    let store = RedisStore::connect(&url(&server)).await.unwrap();
    let seen = put(&store, 0, b"kept").await;
    tokio::task::block_in_place(|| server.kill());
    for round in 0..40 {
        let start = Instant::now();
        let error = match round % 4 {
            0 => store.load(&key(0)).await.unwrap_err(),
            1 => store.create(&key(1), &new(b"")).await.unwrap_err(),
            2 => store.touch(&key(0), &seen, HOUR).await.unwrap_err(),
            _ => store.delete(&key(0)).await.unwrap_err(),
        };
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }
    tokio::task::block_in_place(|| servers::start_again(&mut server));
    assert_eq!(&get(&store, 0).await.payload()[..], b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_server_that_hangs_is_a_timeout_and_recovers() {
    let server = servers::start(&[]);
    let builder = RedisStore::builder(url(&server)).with_timeout(Duration::from_millis(300));
    let store = builder.build().unwrap();
    let seen = put(&store, 0, b"kept").await;
    server.freeze();
    for _ in 0..5 {
        let start = Instant::now();
        assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Timeout);
        let update = store.update(&key(0), &seen, &new(b"")).await;
        assert_eq!(kind(update), StoreErrorKind::Timeout);
        assert!(start.elapsed() < 2 * Duration::from_millis(300) + AT_ONCE);
    }
    // It hangs from the start.
    let late = RedisStore::connect(&url(&server)).await.unwrap();
    let start = Instant::now();
    assert_eq!(kind(late.load(&key(0)).await), StoreErrorKind::Timeout);
    assert!(start.elapsed() < Duration::from_millis(1500) + AT_ONCE);
    server.thaw();
    let start = Instant::now();
    while store.load(&key(0)).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn nothing_is_sent_twice() {
    let proxy = Proxy::to(SHARED.address()).await;
    let url = format!("redis://127.0.0.1:{}?prefix={}", proxy.port(), prefix());
    drills::nothing_is_sent_twice(&proxy, &url).await;
    drills::a_lost_answer_counts_at_most_once(&proxy, &url).await;
}

/// A cluster of one server, which tells its clients that it is where the proxy is.
async fn cluster_behind_a_proxy() -> (Server, Proxy, String) {
    let server = Cluster::node(&[]);
    let proxy = Proxy::to(server.address()).await;
    let mut wire = Wire::to(&server);
    let () = wire.ask(&format!(
        "CONFIG SET cluster-announce-port {}",
        proxy.port()
    ));
    let () = wire.ask("CLUSTER ADDSLOTSRANGE 0 16383");
    servers::until("the cluster", || {
        let info: String = wire.ask("CLUSTER INFO");
        info.contains("cluster_state:ok")
    });
    let url = format!("redis+cluster://127.0.0.1:{}", proxy.port());
    (server, proxy, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn nothing_is_sent_twice_to_a_cluster() {
    let (_server, proxy, url) = cluster_behind_a_proxy().await;
    drills::nothing_is_sent_twice(&proxy, &url).await;
    drills::a_lost_answer_counts_at_most_once(&proxy, &url).await;
}

/// What the server itself has counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_write_whose_answer_is_lost_arrives_once() {
    let server = servers::start(&[]);
    let direct = Proxy::to(server.address()).await;
    let url = format!("redis://127.0.0.1:{}", direct.port());
    let (node, to_node, cluster) = cluster_behind_a_proxy().await;
    let managed = servers::start(&[]);
    let to_managed = Proxy::to(managed.address()).await;
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", to_managed.port()));
    let manager = client.unwrap().get_connection_manager().await.unwrap();
    for (server, proxy, store) in [
        (server, direct, with_prefix(&url, "p:")),
        (node, to_node, with_prefix(&cluster, "p:")),
        (managed, to_managed, RedisStore::from_client(manager)),
    ] {
        let mut wire = Wire::to(&server);
        put(&store, 0, b"0").await;
        for round in 0..5 {
            let seen = get(&store, 0).await;
            if round == 0 {
                // From here on the server knows the scripts.
                store.update(&key(0), &seen, &new(b"")).await.unwrap();
                store.touch(&key(0), &seen, HOUR).await.unwrap();
            }
            let seen = get(&store, 0).await;
            let wait = Duration::from_millis(100);
            for (verb, command) in [
                ("update", "evalsha"),
                ("touch", "evalsha"),
                ("delete", "del"),
            ] {
                let seen = store.load(&key(0)).await.unwrap().unwrap_or(seen.clone());
                wire.commands();
                proxy.arm();
                let error = match verb {
                    "update" => store.update(&key(0), &seen, &new(b"1")).await.unwrap_err(),
                    "touch" => store.touch(&key(0), &seen, HOUR).await.unwrap_err(),
                    _ => store.delete(&key(0)).await.unwrap_err(),
                };
                assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
                tokio::time::sleep(wait).await;
                let commands = wire.commands();
                let sent = commands.iter().find(|(name, _)| name == command);
                assert_eq!(
                    sent.map(|(_, calls)| *calls),
                    Some(1),
                    "{verb}: {commands:?}"
                );
                assert!(!commands.iter().any(|(name, _)| name == "eval"));
                settle(&store).await;
            }
            assert!(store.load(&key(0)).await.unwrap().is_none());
            proxy.arm();
            store.create(&key(0), &new(b"0")).await.unwrap_err();
            tokio::time::sleep(wait).await;
            let commands = wire.commands();
            assert!(commands.contains(&("set".to_owned(), 1)), "{commands:?}");
            settle(&store).await;
        }
        assert!(proxy.cuts() >= 20);
    }
}

async fn settle(store: &RedisStore) {
    let start = Instant::now();
    while store.load(&key(0)).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn a_replica_takes_no_writes_and_says_so() {
    let replica = servers::start(&["--replicaof", "127.0.0.1", &SHARED.port().to_string()]);
    servers::until("the replica", || {
        let info: String = Wire::to(&replica).ask("INFO replication");
        info.contains("master_link_status:up")
    });
    let prefix = prefix();
    let seen = put(&with_prefix(&url(&SHARED), &prefix), 0, b"").await;
    let store = with_prefix(&url(&replica), &prefix);
    let error = store.create(&key(1), &new(b"")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("replica"), "{error}");
    servers::until("the record", || {
        let found: u64 = Wire::to(&replica).ask(&format!("EXISTS {prefix}{}", key(0)));
        found == 1
    });
    for _ in 0..2 {
        let update = store.update(&key(0), &seen, &new(b"")).await;
        assert_eq!(kind(update), StoreErrorKind::Unavailable);
        let touch = store.touch(&key(0), &seen, HOUR).await;
        assert_eq!(kind(touch), StoreErrorKind::Unavailable);
    }
    // Promoted, it does.
    let () = Wire::to(&replica).ask("REPLICAOF NO ONE");
    let outcome = store.update(&key(0), &seen, &new(b"")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn a_server_that_refuses_for_now_is_unavailable() {
    let server = servers::start(&["--min-replicas-to-write", "0"]);
    let store = with_prefix(&url(&server), "p:");
    let seen = put(&store, 0, b"").await;
    let mut wire = Wire::to(&server);
    let () = wire.ask("CONFIG SET min-replicas-to-write 1");
    let create = store.create(&key(1), &new(b"")).await;
    assert_eq!(kind(create), StoreErrorKind::Unavailable);
    let update = store.update(&key(0), &seen, &new(b"")).await;
    assert_eq!(kind(update), StoreErrorKind::Unavailable);
    let () = wire.ask("CONFIG SET min-replicas-to-write 0");
    put(&store, 1, b"").await;

    let () = wire.ask("CONFIG SET maxclients 1");
    let late = with_prefix(&url(&server), "p:");
    assert_eq!(kind(late.load(&key(0)).await), StoreErrorKind::Unavailable);
    let () = wire.ask("CONFIG SET maxclients 100");
    get(&late, 0).await;
}
