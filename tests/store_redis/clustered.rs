//! A cluster: failovers, slots that move. The application is not restarted.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use session_layer::store::{
    CreateOutcome, RedisStore, SessionStore, StoreErrorKind, UpdateOutcome,
};
use tokio::task::JoinHandle;

use crate::servers::{Cluster, Wire, until};
use crate::{HOUR, get, key, new, put};

const PATIENCE: Duration = Duration::from_secs(30);

/// Requests without pause, each task on a key of its own: it reads, or creates, and writes.
pub(crate) struct Load {
    tasks: Vec<JoinHandle<()>>,
    tally: Arc<Tally>,
    count: u64,
}

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    written: AtomicU64,
    failed: AtomicU64,
    /// In milliseconds.
    slowest: AtomicU64,
}

impl Load {
    pub(crate) async fn start(store: &RedisStore, keys: Range<u64>) -> Self {
        Self::on(store, keys.collect()).await
    }

    pub(crate) async fn on(store: &RedisStore, keys: Vec<u64>) -> Self {
        let tally = Arc::new(Tally::default());
        let count = keys.len() as u64;
        let tasks = keys.into_iter().map(|number| {
            let (store, tally) = (store.clone(), Arc::clone(&tally));
            tokio::spawn(async move {
                while !tally.stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let written = write(&store, number).await;
                    let took = start.elapsed().as_millis() as u64;
                    match written {
                        Ok(()) => tally.written.fetch_add(1, Ordering::Relaxed),
                        Err(kind) => {
                            assert!(
                                matches!(
                                    kind,
                                    StoreErrorKind::Unavailable | StoreErrorKind::Timeout
                                ),
                                "{kind:?}"
                            );
                            tally.slowest.fetch_max(took, Ordering::Relaxed);
                            tally.failed.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        });
        Self {
            tasks: tasks.collect(),
            tally,
            count,
        }
    }

    fn written(&self) -> u64 {
        self.tally.written.load(Ordering::Relaxed)
    }

    fn failed(&self) -> u64 {
        self.tally.failed.load(Ordering::Relaxed)
    }

    async fn wait(&self, what: &str, limit: Duration, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn until_written(&self, times: u64) {
        self.wait("writes", PATIENCE, || self.written() >= times)
            .await;
    }

    pub(crate) async fn until_failed(&self, times: u64) {
        self.wait("failures", PATIENCE, || self.failed() >= times)
            .await;
    }

    /// Until all have written for a while, and nothing has failed meanwhile.
    pub(crate) async fn until_written_again(&self, limit: Duration) {
        let start = Instant::now();
        loop {
            let (written, failed) = (self.written(), self.failed());
            self.wait("writes", limit.saturating_sub(start.elapsed()), || {
                self.written() >= written + 20 * self.count
            })
            .await;
            if self.failed() == failed {
                return;
            }
        }
    }

    /// The longest time that a failure took.
    pub(crate) async fn end(self) -> Duration {
        self.tally.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        Duration::from_millis(self.tally.slowest.load(Ordering::Relaxed))
    }
}

async fn write(store: &RedisStore, number: u64) -> Result<(), StoreErrorKind> {
    let kind = |error: session_layer::StoreError| error.kind();
    match store.load(&key(number)).await.map_err(kind)? {
        Some(seen) => {
            let outcome = store
                .update(&key(number), &seen, &new(b"x"))
                .await
                .map_err(kind)?;
            // A failover undoes what the replica had not received.
            assert_ne!(outcome, UpdateOutcome::Conflict);
        }
        None => {
            let outcome = store.create(&key(number), &new(b"x")).await.map_err(kind)?;
            assert_eq!(outcome, CreateOutcome::Created(0));
        }
    }
    Ok(())
}

/// Keys of each of the three primaries: those of the one that will fail, and the others.
fn keys(cluster: &Cluster, victim: usize) -> (Vec<u64>, Vec<u64>) {
    (0..12).partition(|number| cluster.holder(&format!("session:{}", key(*number))) == victim)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_killed_primary_is_replaced_and_the_others_are_not_disturbed() {
    let mut cluster = tokio::task::block_in_place(Cluster::start);
    let store = RedisStore::connect(&cluster.url()).await.unwrap();
    let victim = cluster.holder(&format!("session:{}", key(0)));
    let (hit, spared) = keys(&cluster, victim);
    let (hit, spared) = (Load::on(&store, hit).await, Load::on(&store, spared).await);
    hit.until_written(50).await;
    spared.until_written(50).await;
    tokio::task::block_in_place(|| cluster.nodes[victim].kill());
    let start = Instant::now();
    hit.until_failed(8).await;
    hit.until_written_again(PATIENCE).await;
    println!("writes again {:?} after the kill", start.elapsed());
    let slowest = hit.end().await;
    println!("the slowest failure took {slowest:?}");
    // While a majority agrees on the new primary, the whole cluster may be down for a moment.
    println!(
        "{} of {} failed elsewhere",
        spared.failed(),
        spared.written()
    );
    assert!(
        spared.failed() * 20 < spared.written(),
        "{}",
        spared.failed()
    );
    spared.until_written_again(PATIENCE).await;
    spared.end().await;
    assert_ne!(cluster.holder(&format!("session:{}", key(0))), victim);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_frozen_primary_is_replaced_and_the_others_are_not_disturbed() {
    let cluster = tokio::task::block_in_place(Cluster::start);
    let store = RedisStore::connect(&cluster.url()).await.unwrap();
    let victim = cluster.holder(&format!("session:{}", key(0)));
    let (hit, spared) = keys(&cluster, victim);
    let (hit, spared) = (Load::on(&store, hit).await, Load::on(&store, spared).await);
    hit.until_written(50).await;
    cluster.nodes[victim].freeze();
    let start = Instant::now();
    hit.until_failed(2).await;
    hit.until_written_again(PATIENCE).await;
    println!("writes again {:?} after the freeze", start.elapsed());
    println!(
        "{} of {} failed elsewhere",
        spared.failed(),
        spared.written()
    );
    assert!(
        spared.failed() * 20 < spared.written(),
        "{}",
        spared.failed()
    );
    let slowest = hit.end().await;
    assert!(
        slowest < Duration::from_millis(1500 + 1500 + 1000),
        "{slowest:?}"
    );
    spared.end().await;
    cluster.nodes[victim].thaw();
    put(&store, 100, b"").await;
}

/// Every primary fails over while nobody asks anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_cluster_that_has_changed_altogether_is_found_again() {
    let mut cluster = tokio::task::block_in_place(Cluster::start);
    // Only the first is named.
    let url = format!("redis+cluster://{}", cluster.nodes[0].address());
    let store = RedisStore::connect(&url).await.unwrap();
    for number in 0..10 {
        put(&store, number, b"kept").await;
    }
    tokio::task::block_in_place(|| {
        for primary in 0..3 {
            let mut wire = Wire::to(&cluster.nodes[primary]);
            // What was acknowledged is to be there.
            let acknowledged: u64 = wire.ask("WAIT 1 10000");
            assert_eq!(acknowledged, 1);
            cluster.nodes[primary].kill();
            let asked = Wire::to(&cluster.nodes[5]);
            until("the failover", {
                let mut asked = asked;
                move || {
                    let info: String = asked.ask("CLUSTER INFO");
                    let nodes: String = asked.ask("CLUSTER NODES");
                    let failed = nodes
                        .lines()
                        .filter(|l| l.contains("master") && l.contains("fail"));
                    info.contains("cluster_state:ok")
                        && failed.clone().count() == primary + 1
                        && failed.clone().all(|line| line.split(' ').count() == 8)
                }
            });
        }
    });
    let start = Instant::now();
    for number in 0..10 {
        loop {
            match store.load(&key(number)).await {
                Ok(found) => break assert_eq!(&found.unwrap().payload()[..], b"kept"),
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
        }
    }
    println!("found again after {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn slots_that_move_are_followed_with_no_failure() {
    let cluster = tokio::task::block_in_place(Cluster::start);
    let store = RedisStore::connect(&cluster.url()).await.unwrap();
    let seen = put(&store, 0, b"moves").await;
    let place = format!("session:{}", key(0));
    let from = cluster.holder(&place);
    let to = (from + 1) % 3;
    let (mut source, mut target) = (Wire::to(&cluster.nodes[from]), Wire::to(&cluster.nodes[to]));
    let slot: u64 = source.ask(&format!("CLUSTER KEYSLOT {place}"));
    let (source_id, target_id): (String, String) =
        (source.ask("CLUSTER MYID"), target.ask("CLUSTER MYID"));
    let () = target.ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}"));
    let () = source.ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}"));

    // Still at the source.
    let outcome = store.update(&key(0), &seen, &new(b"1")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
    let port = cluster.nodes[to].port();
    let () = source.ask(&format!("MIGRATE 127.0.0.1 {port} {place} 0 5000"));
    // At the target, which the source says for this one command (ASK), whose scripts are not known.
    let seen = get(&store, 0).await;
    assert_eq!(&seen.payload()[..], b"1");
    let outcome = store.update(&key(0), &seen, &new(b"2")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
    store.delete(&key(0)).await.unwrap();
    assert!(store.load(&key(0)).await.unwrap().is_none());
    let seen = put(&store, 0, b"3").await;
    let there: u64 = {
        let () = target.ask("ASKING");
        target.ask(&format!("EXISTS {place}"))
    };
    assert_eq!(there, 1);

    for node in &cluster.nodes[..3] {
        let () = Wire::to(node).ask(&format!("CLUSTER SETSLOT {slot} NODE {target_id}"));
    }
    // For good (MOVED).
    let outcome = store.update(&key(0), &seen, &new(b"4")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
    let seen = get(&store, 0).await;
    store.touch(&key(0), &seen, HOUR).await.unwrap();
    // And then it is known where it is.
    let start = Instant::now();
    loop {
        source.commands();
        get(&store, 0).await;
        // One that is sent on is counted, too, as none that was carried out.
        if !source.commands().iter().any(|(name, _)| name == "get") {
            break;
        }
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Redis: run tests/run"]
async fn a_cluster_that_is_down_is_reported_at_once_and_found_again() {
    let mut cluster = tokio::task::block_in_place(Cluster::start);
    let store = RedisStore::connect(&cluster.url()).await.unwrap();
    put(&store, 0, b"").await;
    tokio::task::block_in_place(|| cluster.nodes.iter_mut().for_each(|node| node.kill()));
    for _ in 0..20 {
        let start = Instant::now();
        let error = store.load(&key(0)).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
    }
    tokio::task::block_in_place(|| cluster.nodes.iter_mut().for_each(|node| node.start_again()));
    let start = Instant::now();
    while store.create(&key(1), &new(b"")).await.is_err() {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("found again after {:?}", start.elapsed());
}
