//! A replica set of three whose primary changes, with acknowledged writes to keep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use session_layer::store::UpdateOutcome;

use super::*;

/// Writers that each count on a record of their own, and know what they were told.
struct Counters {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<(u64, u64)>>,
}

impl Counters {
    async fn start(store: &MongoStore) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let key = new_key();
            put(store, &key, &0_u64.to_be_bytes()).await;
            let (store, stop, written) = (store.clone(), Arc::clone(&stop), Arc::clone(&written));
            tasks.push(tokio::spawn(count(store, key, stop, written)));
        }
        Self {
            stop,
            written,
            tasks,
        }
    }

    /// Waits until some more writes were acknowledged.
    async fn go_on(&self) -> Duration {
        let (start, goal) = (Instant::now(), self.written.load(Ordering::Relaxed) + 40);
        while self.written.load(Ordering::Relaxed) < goal {
            assert!(start.elapsed() < Duration::from_secs(30), "no recovery");
            assert!(self.tasks.iter().all(|task| !task.is_finished()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        start.elapsed()
    }

    async fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut acknowledged, mut failed) = (0, 0);
        for task in self.tasks {
            let (did, did_not) = task.await.unwrap();
            acknowledged += did;
            failed += did_not;
        }
        (acknowledged, failed)
    }
}

/// Counts until it is told to stop. What is read is never older than what was acknowledged, and never
/// newer than what was tried.
async fn count(
    store: MongoStore,
    key: SessionKey,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> (u64, u64) {
    let (mut acknowledged, mut tried, mut writes, mut failures) = (0, 0, 0, 0);
    loop {
        let start = Instant::now();
        let loaded = store.load(&key).await;
        assert!(start.elapsed() < Duration::from_secs(6), "{loaded:?}");
        let record = match loaded {
            Ok(record) => record.expect("the record was lost"),
            Err(_) => {
                failures += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        let found = u64::from_be_bytes(record.payload()[..].try_into().unwrap());
        assert!(
            (acknowledged..=tried).contains(&found),
            "{acknowledged} acknowledged, {tried} tried, {found} found"
        );
        if stop.load(Ordering::Relaxed) {
            return (writes, failures);
        }
        tried = tried.max(found + 1);
        match store
            .update(&key, &record, &new(&(found + 1).to_be_bytes()))
            .await
        {
            Ok(UpdateOutcome::Updated(_)) => {
                acknowledged = found + 1;
                writes += 1;
                written.fetch_add(1, Ordering::Relaxed);
            }
            // A write that failed has arrived after all.
            Ok(UpdateOutcome::Conflict) => {}
            Ok(UpdateOutcome::Gone) => panic!("the record was lost"),
            Err(_) => failures += 1,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn no_change_of_primary_loses_what_was_acknowledged() {
    let mut set = ReplicaSet::start(3).await;
    let store = MongoStore::connect(&set.url("app")).await.unwrap();
    let counters = Counters::start(&store).await;
    counters.go_on().await;

    let first = set.primary().await;
    set.step_down().await;
    let stepped = counters.go_on().await;
    set.wait_for_members().await;
    assert_ne!(set.primary().await, first);

    let second = set.primary().await;
    tokio::task::block_in_place(|| set.members[second].kill());
    let killed = counters.go_on().await;
    tokio::task::block_in_place(|| set.members[second].start_again());
    set.wait_for_members().await;
    counters.go_on().await;

    let third = set.primary().await;
    set.members[third].freeze();
    let frozen = counters.go_on().await;
    set.members[third].thaw();
    set.wait_for_members().await;
    counters.go_on().await;

    let (acknowledged, failed) = counters.end().await;
    println!(
        "recovered {stepped:?} after a step-down, {killed:?} after a kill, {frozen:?} after a freeze; \
         {acknowledged} writes acknowledged, {failed} calls failed"
    );
    assert!(acknowledged > 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn no_answer_rests_on_what_a_majority_does_not_have() {
    let set = ReplicaSet::start(3).await;
    let store = MongoStore::builder(set.url("app"))
        .with_timeout(Duration::from_millis(400))
        .connect()
        .await
        .unwrap();
    let key = new_key();
    let seen = loop {
        // Three servers on a busy machine may take longer than this store waits.
        match store.create(&key, &new(b"old")).await {
            Ok(_) => break get(&store, &key).await,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let primary = set.primary().await;
    let others = || {
        (0..3)
            .filter(|at| *at != primary)
            .map(|at| &set.members[at])
    };
    others().for_each(Server::freeze);
    let newer = new(b"newer");
    let update = store.update(&key, &seen, &newer).await;
    assert_eq!(kind(update), StoreErrorKind::Timeout);
    // The primary has it. But neither a conflict with it nor a key taken by it is said to be so.
    let update = store.update(&key, &seen, &new(b"other")).await;
    assert_eq!(kind(update), StoreErrorKind::Timeout);
    let create = store.create(&key, &new(b"other")).await;
    assert_eq!(kind(create), StoreErrorKind::Timeout);
    others().for_each(Server::thaw);

    let start = Instant::now();
    let update = loop {
        match store.update(&key, &seen, &new(b"other")).await {
            Ok(update) => break update,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(30), "{error}"),
        }
    };
    let found = get(&store, &key).await;
    match update {
        UpdateOutcome::Conflict => assert_eq!(&found.payload()[..], b"newer"),
        // Another primary, which had never heard of the newer one.
        UpdateOutcome::Updated(_) => assert_eq!(&found.payload()[..], b"other"),
        UpdateOutcome::Gone => panic!("the record was lost"),
    }
}
