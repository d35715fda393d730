//! Many requests at once, whose commands go together.

use std::future::Future;
use std::time::{Duration, Instant};

use session_layer::store::{
    CreateOutcome, RedisClient, RedisStore, SessionStore, StoreErrorKind, UpdateOutcome,
};
use tokio::task::JoinSet;

use crate::server::Server;
use crate::servers::{self, SHARED, Wire, prefix, url};
use crate::{get, key, new, put, with_prefix};

const MANY: u64 = 400;

/// What each of many tasks has got from `work`, all at the same time.
async fn at_once<T, F>(numbers: std::ops::Range<u64>, work: impl Fn(u64) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for number in numbers.clone() {
        let work = work(number);
        tasks.spawn(async move { (number, work.await) });
    }
    let mut done = tasks.join_all().await;
    done.sort_by_key(|(number, _)| *number);
    assert!(done.iter().map(|(number, _)| *number).eq(numbers));
    done.into_iter().map(|(_, answer)| answer).collect()
}

async fn create_at_once(store: &RedisStore, numbers: std::ops::Range<u64>) {
    let created = at_once(numbers, |number| {
        let store = store.clone();
        async move {
            store
                .create(&key(number), &new(&number.to_le_bytes()))
                .await
        }
    });
    for created in created.await {
        assert_eq!(created.unwrap(), CreateOutcome::Created(0));
    }
}

/// How often the server has read from a connection since the last call.
fn reads(wire: &mut Wire) -> u64 {
    let info: String = wire.ask("INFO stats");
    let () = wire.ask("CONFIG RESETSTAT");
    let reads = info.lines().find_map(|line| {
        let (name, reads) = line.split_once(':')?;
        (name == "total_reads_processed").then(|| reads.trim().parse().unwrap())
    });
    reads.expect("a number of reads")
}

async fn managed(server: &Server) -> RedisStore {
    let client = redis::Client::open(url(server)).unwrap();
    let manager = client.get_connection_manager().await.unwrap();
    RedisStore::builder_from_client(RedisClient::from(manager))
        .with_prefix(prefix())
        .with_timeout(Duration::from_secs(30))
        .build()
        .unwrap()
}

// The queues of this runtime are what production has.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs Redis: run tests/run"]
async fn commands_go_together_and_each_has_its_own_answer() {
    let server = servers::start(&[]);
    let mut wire = Wire::to(&server);
    let linked = with_prefix(&url(&server), &prefix());
    for store in [linked, managed(&server).await] {
        put(&store, MANY, b"").await;
        reads(&mut wire);
        create_at_once(&store, 0..MANY).await;
        let read = reads(&mut wire);
        assert!(read < MANY / 4, "{MANY} commands were read {read} times");
        let found = at_once(0..MANY, |number| {
            let store = store.clone();
            async move { get(&store, number).await }
        });
        for (number, found) in (0..).zip(found.await) {
            assert_eq!(found.payload()[..], u64::to_le_bytes(number));
        }
        let read = reads(&mut wire);
        assert!(read < MANY / 4, "{MANY} commands were read {read} times");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn what_fails_fails_alone() {
    let prefix = prefix();
    let store = with_prefix(&url(&SHARED), &prefix);
    let mut wire = Wire::to(&SHARED);
    for number in 0..MANY {
        let name = format!("{prefix}{}", key(number));
        match number % 4 {
            0 => drop(put(&store, number, &number.to_le_bytes()).await),
            1 => {}
            2 => wire.set(&name, b"no record"),
            _ => assert_eq!(
                wire.ask_with::<u64>(&format!("LPUSH {name}"), "no record"),
                1
            ),
        }
    }
    let found = at_once(0..MANY, |number| {
        let store = store.clone();
        async move { store.load(&key(number)).await }
    });
    for (number, found) in (0..).zip(found.await) {
        match (number % 4, found) {
            (0, Ok(Some(record))) => assert_eq!(record.payload()[..], u64::to_le_bytes(number)),
            (1, Ok(None)) => {}
            (2 | 3, Err(error)) => assert_eq!(error.kind(), StoreErrorKind::Corrupt),
            (_, found) => panic!("{number}: {found:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn the_scripts_are_told_again_to_each() {
    let server = servers::start(&[]);
    let store = with_prefix(&url(&server), "p:");
    let mut wire = Wire::to(&server);
    create_at_once(&store, 0..MANY).await;
    let () = wire.ask("SCRIPT FLUSH");
    let updated = at_once(0..MANY, |number| {
        let store = store.clone();
        async move {
            let seen = get(&store, number).await;
            store.update(&key(number), &seen, &new(b"again")).await
        }
    });
    for updated in updated.await {
        assert_eq!(updated.unwrap(), UpdateOutcome::Updated(0));
    }
    for number in 0..MANY {
        assert_eq!(get(&store, number).await.payload()[..], b"again"[..]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn who_gives_up_takes_nobody_along() {
    let store = with_prefix(&url(&SHARED), &prefix());
    put(&store, MANY, b"").await;
    let created = at_once(0..MANY, |number| {
        let store = store.clone();
        async move {
            let (key, new) = (key(number), new(b"whole"));
            let create = store.create(&key, &new);
            match number % 2 {
                0 => Some(create.await),
                _ => tokio::time::timeout(Duration::ZERO, create).await.ok(),
            }
        }
    });
    for (number, created) in (0..).zip(created.await) {
        match created {
            Some(created) => assert_eq!(created.unwrap(), CreateOutcome::Created(0)),
            None => assert_eq!(number % 2, 1),
        }
    }
    for number in 0..MANY {
        if let Some(record) = store.load(&key(number)).await.unwrap() {
            assert_eq!(record.payload()[..], b"whole"[..]);
        } else {
            assert_eq!(number % 2, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn all_are_told_of_a_lost_connection() {
    let mut server = servers::start(&[]);
    let store = with_prefix(&url(&server), "p:");
    put(&store, MANY, b"").await;
    server.freeze();
    let start = Instant::now();
    let loading = async {
        let loading = at_once(0..MANY, |number| {
            let store = store.clone();
            async move { store.load(&key(number)).await }
        });
        loading.await
    };
    let killing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.kill();
    };
    for loaded in tokio::join!(loading, killing).0 {
        assert_eq!(loaded.unwrap_err().kind(), StoreErrorKind::Unavailable);
    }
    // Not for want of time: that would be thirty seconds.
    assert!(start.elapsed() < Duration::from_secs(20));
    tokio::task::block_in_place(|| servers::start_again(&mut server));
    create_at_once(&store, 0..MANY).await;
}

/// Whoever was to send for all is gone with its runtime, and nobody may wait for it.
#[test]
#[ignore = "needs Redis: run tests/run"]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let staying = runtime();
    let store = with_prefix(&url(&SHARED), &prefix());
    // The connection is made here.
    staying.block_on(put(&store, MANY, b""));
    for waiting in 1..16 {
        runtime().block_on(async {
            let keys: Vec<_> = (0..12 + waiting).map(key).collect();
            let mut loads: Vec<_> = keys.iter().map(|key| Box::pin(store.load(key))).collect();
            std::future::poll_fn(|cx| {
                for load in &mut loads {
                    assert!(load.as_mut().poll(cx).is_pending());
                }
                std::task::Poll::Ready(())
            })
            .await;
        });
        let start = Instant::now();
        staying.block_on(create_at_once(
            &store,
            waiting * MANY + 1..waiting * MANY + 15,
        ));
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
