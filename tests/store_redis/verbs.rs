//! What the verbs do on the server, and what is in the place of a record.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use session_layer::store::{
    CreateOutcome, Cursor, NewRecord, RedisClient, RedisStore, Revision, ScanStore, SessionStore,
    StoreErrorKind, TouchOutcome, UpdateOutcome,
};
use session_layer::{AnyStore, SessionKey};
use tokio::task::JoinSet;

use crate::servers::{self, SHARED, SHARED_CLUSTER, SHARED_WATCHED, Wire, prefix, url};
use crate::{HOUR, get, key, kind, new, put, with_prefix};

fn counted(commands: &[(&str, u64)]) -> Vec<(String, u64)> {
    let counted = commands
        .iter()
        .map(|(name, calls)| ((*name).to_owned(), *calls));
    counted.collect()
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn each_verb_is_one_command() {
    let server = servers::start(&[]);
    let store = RedisStore::connect(&url(&server)).await.unwrap();
    let mut wire = Wire::to(&server);
    // The connection, the time, and the scripts, once.
    let seen = put(&store, 0, b"first").await;
    store.update(&key(0), &seen, &new(b"second")).await.unwrap();
    let seen = get(&store, 0).await;
    store.touch(&key(0), &seen, HOUR).await.unwrap();
    wire.commands();

    let seen = get(&store, 0).await;
    assert_eq!(wire.commands(), counted(&[("get", 1)]));
    assert!(store.load(&key(9)).await.unwrap().is_none());
    assert_eq!(wire.commands(), counted(&[("get", 1)]));
    store.create(&key(1), &new(b"")).await.unwrap();
    assert_eq!(wire.commands(), counted(&[("set", 1)]));
    store.touch(&key(0), &seen, HOUR).await.unwrap();
    assert_eq!(
        wire.commands(),
        counted(&[
            ("evalsha", 1),
            ("getrange", 1),
            ("pexpire", 1),
            ("setrange", 1)
        ])
    );
    store.update(&key(0), &seen, &new(b"x")).await.unwrap();
    let update = [("evalsha", 1), ("getrange", 1), ("set", 1)];
    assert_eq!(wire.commands(), counted(&update));
    let conflict = store.update(&key(0), &seen, &new(b"y")).await.unwrap();
    assert_eq!(conflict, UpdateOutcome::Conflict);
    let refused = [("evalsha", 1), ("getrange", 1)];
    assert_eq!(wire.commands(), counted(&refused));
    let gone = store.touch(&key(9), &seen, HOUR).await.unwrap();
    assert_eq!(gone, TouchOutcome::Gone);
    assert_eq!(wire.commands(), counted(&refused));
    store.delete(&key(0)).await.unwrap();
    assert_eq!(wire.commands(), counted(&[("del", 1)]));
    store.delete_expired(NonZeroUsize::MIN).await.unwrap();
    assert_eq!(wire.commands(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn requests_share_one_connection() {
    let server = servers::start(&[]);
    let store = with_prefix(&url(&server), "p:");
    let mut wire = Wire::to(&server);
    let mut requests = JoinSet::new();
    for number in 0..500 {
        let store = store.clone();
        requests.spawn(async move { put(&store, number, &[7; 10_000]).await });
    }
    requests.join_all().await;
    let clients: String = wire.ask("CLIENT LIST TYPE normal");
    // The store's and the test's.
    assert_eq!(clients.lines().count(), 2, "{clients}");
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn the_scripts_are_told_again_after_a_flush() {
    let server = servers::start(&[]);
    let store = with_prefix(&url(&server), "p:");
    let mut wire = Wire::to(&server);
    put(&store, 0, b"0").await;
    for round in 1..4_u8 {
        let seen = get(&store, 0).await;
        let () = wire.ask("SCRIPT FLUSH");
        wire.commands();
        let outcome = store.update(&key(0), &seen, &new(&[round])).await.unwrap();
        assert_eq!(outcome, UpdateOutcome::Updated(0));
        let told = [("eval", 1), ("evalsha", 1), ("getrange", 1), ("set", 1)];
        assert_eq!(wire.commands(), counted(&told));
        let seen = get(&store, 0).await;
        assert_eq!(seen.payload()[..], [round]);
        let outcome = store.touch(&key(0), &seen, HOUR).await.unwrap();
        assert_eq!(outcome, TouchOutcome::Touched(0));
        wire.commands();
        store.update(&key(0), &seen, &new(&[round])).await.unwrap();
        assert!(!wire.commands().iter().any(|(name, _)| name == "eval"));
    }
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn the_server_keeps_the_expiry() {
    let prefix = prefix();
    let store = with_prefix(&url(&SHARED), &prefix);
    let mut wire = Wire::to(&SHARED);
    let pttl = format!("PTTL {prefix}{}", key(0));
    let mut left = |ttl: Duration| {
        let left: i64 = wire.ask(&pttl);
        let ttl = ttl.as_millis() as i64;
        assert!((ttl - 20_000..=ttl).contains(&left), "{left} of {ttl}");
    };
    let brief = |payload| NewRecord::new(Revision::generate(), payload, HOUR / 2);
    store.create(&key(0), &brief(b"0")).await.unwrap();
    left(HOUR / 2);
    let seen = get(&store, 0).await;
    store.touch(&key(0), &seen, HOUR).await.unwrap();
    left(HOUR);
    assert!(get(&store, 0).await.ttl() > HOUR - Duration::from_secs(20));
    store.update(&key(0), &seen, &brief(b"1")).await.unwrap();
    left(HOUR / 2);
    let seen = get(&store, 0).await;
    assert!(seen.ttl() <= HOUR / 2);
    let ending = brief(b"2").with_ending(true);
    store.update(&key(0), &seen, &ending).await.unwrap();
    left(HOUR / 2);
}

/// As if it had been written by a host whose clock is wrong by days, or by a server that has failed
/// over to one whose clock is.
#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn wrong_times_in_a_record_end_no_session_and_lengthen_none() {
    let prefix = prefix();
    let store = with_prefix(&url(&SHARED), &prefix);
    let mut wire = Wire::to(&SHARED);
    put(&store, 0, b"kept").await;
    let place = format!("{prefix}{}", key(0));
    let good: Vec<u8> = wire.ask(&format!("GET {place}"));
    for renewed in [0, 1_000_000_000_000, 9_000_000_000_000, u64::MAX] {
        let mut value = good.clone();
        value[17..25].copy_from_slice(&u64::to_be_bytes(renewed));
        wire.set(&place, &value);
        let found = get(&store, 0).await;
        assert!(found.ttl() > Duration::ZERO && found.ttl() <= HOUR);
        let outcome = store.touch(&key(0), &found, HOUR).await.unwrap();
        assert_eq!(outcome, TouchOutcome::Touched(0));
        assert!(get(&store, 0).await.ttl() > HOUR - Duration::from_secs(20));
    }
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn what_is_no_record_is_corrupt_and_can_be_deleted() {
    let prefix = prefix();
    let url = url(&SHARED);
    let builder = RedisStore::builder(&url).with_prefix(&prefix);
    let store = builder.with_max_payload(100).build().unwrap();
    let mut wire = Wire::to(&SHARED);
    let seen = put(&store, 0, b"good").await;
    let place = format!("{prefix}{}", key(0));
    let good: Vec<u8> = wire.ask(&format!("GET {place}"));
    let of_another_version = {
        let mut value = good.clone();
        value[0] = 2;
        value
    };
    for value in [
        b"\x01".to_vec(),
        b"text of somebody else, longer than a header".to_vec(),
        of_another_version,
    ] {
        wire.set(&place, &value);
        let shown = String::from_utf8_lossy(&value).into_owned();
        let load = store.load(&key(0)).await;
        assert_eq!(kind(load), StoreErrorKind::Corrupt, "{shown}");
        let update = store.update(&key(0), &seen, &new(b"")).await;
        assert_eq!(kind(update), StoreErrorKind::Corrupt, "{shown}");
        let touch = store.touch(&key(0), &seen, HOUR).await;
        assert_eq!(kind(touch), StoreErrorKind::Corrupt, "{shown}");
        let create = store.create(&key(0), &new(b"")).await.unwrap();
        assert_eq!(create, CreateOutcome::Taken, "{shown}");
        let kept: Vec<u8> = wire.ask(&format!("GET {place}"));
        assert_eq!(kept, value);
    }
    let too_large = [&good[..], &[0; 97]].concat();
    wire.set(&place, &too_large);
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);
    wire.set(&place, &good[..20]);
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);

    store.delete(&key(0)).await.unwrap();
    let () = wire.ask(&format!("LPUSH {place} x"));
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);
    let update = store.update(&key(0), &seen, &new(b"")).await;
    assert_eq!(kind(update), StoreErrorKind::Corrupt);
    let touch = store.touch(&key(0), &seen, HOUR).await;
    assert_eq!(kind(touch), StoreErrorKind::Corrupt);
    let create = store.create(&key(0), &new(b"")).await.unwrap();
    assert_eq!(create, CreateOutcome::Taken);
    store.delete(&key(0)).await.unwrap();
    put(&store, 0, b"again").await;
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn a_full_server_refuses_what_is_new_and_still_renews_and_ends() {
    let server = servers::start(&["--maxmemory-policy", "noeviction"]);
    let store = with_prefix(&url(&server), "p:");
    let mut wire = Wire::to(&server);
    let seen = put(&store, 0, b"old").await;
    // So that the scripts are there.
    store.touch(&key(0), &seen, HOUR).await.unwrap();
    let () = wire.ask("CONFIG SET maxmemory 1");

    let error = store.create(&key(1), &new(b"")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("full"), "{error}");
    let update = store.update(&key(0), &seen, &new(&[1; 100_000])).await;
    assert_eq!(kind(update), StoreErrorKind::Unavailable);
    let found = get(&store, 0).await;
    assert_eq!(
        (found.revision(), &found.payload()[..]),
        (seen.revision(), &b"old"[..])
    );

    let outcome = store.touch(&key(0), &found, 2 * HOUR).await.unwrap();
    assert_eq!(outcome, TouchOutcome::Touched(0));
    assert!(get(&store, 0).await.ttl() > HOUR);
    let tombstone = new(b"ended").with_ending(true);
    let outcome = store.update(&key(0), &found, &tombstone).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
    assert_eq!(&get(&store, 0).await.payload()[..], b"ended");
    store.delete(&key(0)).await.unwrap();
    assert!(store.load(&key(0)).await.unwrap().is_none());

    let () = wire.ask("CONFIG SET maxmemory 0");
    put(&store, 1, b"").await;
}

async fn all(store: &impl ScanStore, limit: usize) -> BTreeSet<SessionKey> {
    let mut from: Option<Cursor> = None;
    let mut found = BTreeSet::new();
    loop {
        let limit = NonZeroUsize::new(limit).unwrap();
        let page = store.scan(from.as_ref(), limit).await.unwrap();
        assert!(page.keys().len() < 50 * limit.get());
        found.extend(page.keys());
        from = page.into_next();
        if from.is_none() {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn scans_find_every_session_of_the_prefix_and_nothing_else() {
    for url in [url(&SHARED), SHARED_CLUSTER.url(), SHARED_WATCHED.url()] {
        // Characters of patterns, which are to stand for themselves.
        let prefix = format!("[a-z]*?\\{}", prefix());
        let store = with_prefix(&url, &prefix);
        let others = with_prefix(&url, &format!("b{prefix}"));
        let longer = with_prefix(&url, &format!("{prefix}x"));
        assert!(all(&store, 10).await.is_empty());
        let mut expected = BTreeSet::new();
        for number in 0..300 {
            put(&store, number, b"").await;
            put(&others, number, b"").await;
            expected.insert(key(number));
        }
        put(&longer, 1, b"").await;
        for limit in [1, 7, 1000] {
            assert_eq!(all(&store, limit).await, expected);
        }
        let any = AnyStore::with_scan(store.clone());
        assert_eq!(all(&any, 100).await, expected);
        for foreign in ["", "x", "1.2", "5.99.0123456789abcdef"] {
            let cursor = Cursor::new(foreign);
            let kind = kind(store.scan(Some(&cursor), NonZeroUsize::MIN).await);
            assert!(
                // A table of a cluster that is not this one.
                matches!(kind, StoreErrorKind::Config | StoreErrorKind::Unavailable),
                "{foreign}: {kind:?}"
            );
        }
    }
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn the_users_own_clients_are_used() {
    let client = || redis::Client::open(url(&SHARED)).unwrap();
    // As it comes, with RESP2.
    let store = RedisStore::from_client(client());
    let key: SessionKey = format!("{:043}", rand::random::<u128>()).parse().unwrap();
    store.create(&key, &new(b"0")).await.unwrap();
    let manager = client().get_connection_manager().await.unwrap();
    let managed = RedisStore::from_client(manager);
    assert!(managed.load(&key).await.unwrap().is_some());
    let sentinels = redis::sentinel::SentinelClient::build(
        vec![url(&SHARED_WATCHED.sentinel)],
        "mymaster",
        None,
        redis::sentinel::SentinelServerType::Master,
    )
    .unwrap();
    let watched = RedisStore::from_client(sentinels);
    watched.create(&key, &new(b"1")).await.unwrap();
    let nodes = SHARED_CLUSTER.nodes.iter();
    let nodes = nodes.map(|node| redis::Client::open(url(node)).unwrap());
    let cluster = RedisStore::from_client(RedisClient::cluster(nodes).unwrap());
    cluster.create(&key, &new(b"2")).await.unwrap();
    for (store, payload) in [(store, b"0"), (watched, b"1"), (cluster, b"2")] {
        let seen = store.load(&key).await.unwrap().unwrap();
        assert_eq!(&seen.payload()[..], payload);
        let outcome = store.update(&key, &seen, &new(b"x")).await.unwrap();
        assert_eq!(outcome, UpdateOutcome::Updated(0));
        store.delete(&key).await.unwrap();
    }
    assert_eq!(kind(RedisClient::cluster([])), StoreErrorKind::Config);
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn databases_unix_sockets_and_resp2_are_chosen_by_url() {
    let folder = crate::server::Folder::new("socket");
    let socket = folder.path().join("redis.sock");
    let server = servers::start(&["--unixsocket", socket.to_str().unwrap()]);
    let port = server.port();
    let at = async |url: String| RedisStore::connect(&url).await.unwrap();
    let second = at(format!("valkey://127.0.0.1:{port}/2?protocol=resp2")).await;
    put(&second, 0, b"in 2").await;
    let socket = at(format!("redis+unix://{}?db=2", socket.display())).await;
    assert_eq!(&get(&socket, 0).await.payload()[..], b"in 2");
    let first = at(format!("redis://127.0.0.1:{port}")).await;
    assert!(first.load(&key(0)).await.unwrap().is_none());
    let none = at(format!("redis://127.0.0.1:{port}/99")).await;
    assert_eq!(kind(none.load(&key(0)).await), StoreErrorKind::Config);
    let mut wire = Wire::at(&format!("redis://127.0.0.1:{port}/2"));
    let keys: Vec<String> = wire.ask("KEYS *");
    assert_eq!(keys, [format!("session:{}", key(0))]);
}

#[test]
fn urls_that_cannot_work_are_refused_and_give_nothing_away() {
    for (url, says) in [
        ("redis://:hunter2@host?prefix=", "prefix"),
        ("redis://:hunter2@host?prefix=%7Ba%7D", "prefix"),
        ("redis://:hunter2@host?prefix=a%20b", "prefix"),
        ("redis://:hunter2@host?prefix=a%0Ab", "prefix"),
        ("redis://:hunter2@host?prefix=%C3%A9", "prefix"),
        ("redis://:hunter2@host?max_payload=1000000000", "512 MiB"),
        ("redis://:hunter2@host?timeout=0s", "timeout"),
        ("redis://:hunter2@host?timeout=hunter2", "`timeout`"),
        ("redis://:hunter2@host?protocol=hunter2", "`protocol`"),
        ("redis://:hunter2@host?hunter2", "a setting that"),
        ("redis://:hunter2@host?tls=yes", "`tls`"),
        ("redis://:hunter2@host/x", "of the form"),
        ("redis://:hunter2@", "of the form"),
        ("redis://:hunter2@host:hunter2", "of the form"),
        ("redis://:hunter2@host?ca=/hunter2", "cannot be read"),
        ("rediss://:hunter2@host?cert=/dev/null", "need each other"),
        (
            "rediss://:hunter2@host?ca=/etc/passwd&cert=/etc/passwd&key=/etc/passwd",
            "PEM",
        ),
        ("redis+cluster://:hunter2@a,b/3", "no databases"),
        ("redis+cluster://:hunter2@a,,b", "of the form"),
        ("redis+sentinel://:hunter2@a,b", "name of the primary"),
        ("redis+sentinel://:hunter2@a,b/m/x", "of the form"),
        ("redis+unix://", "no path"),
        ("rediss+unix:///hunter2", "is to begin with"),
        ("redis+more://:hunter2@host", "is to begin with"),
    ] {
        let error = RedisStore::builder(url).build().unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
        assert!(error.to_string().contains(says), "{url}: {error}");
        let mut source = std::error::Error::source(&error);
        assert!(!error.to_string().contains("hunter2"), "{error}");
        while let Some(error) = source {
            assert!(!error.to_string().contains("hunter2"), "{error}");
            source = error.source();
        }
    }
    let builder = RedisStore::builder("redis://:hunter2@host/1");
    assert!(!format!("{builder:?}").contains("hunter2"));
    let store = builder.build().unwrap();
    assert!(!format!("{store:?}").contains("hunter2"));
    let client = redis::Client::open("redis://:hunter2@host/1").unwrap();
    assert!(!format!("{:?}", RedisClient::from(client)).contains("hunter2"));
    for url in [
        "redis://host",
        "rediss://user:p%40ss@[::1]:6380/3?prefix=a*b:&timeout=250ms",
        "redis+cluster://user:p%40ss@a:1,[::1]:2,c",
        "rediss+cluster://a",
        "valkeys+sentinel://user:p%40ss@a,[::1]:2/mymaster/3?sentinel_password=x",
        "redis+sentinel://a/my%20master",
        "valkey+unix:///run/redis.sock?db=3&user=u&pass=p",
    ] {
        RedisStore::builder(url).build().unwrap();
        let store = Arc::new(RedisStore::builder(url).build().unwrap());
        assert_eq!(store.limits().expiry_resolution(), Duration::from_millis(1));
    }
}
