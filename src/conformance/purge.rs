//! `delete_expired`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};
use tokio::time::sleep;

use super::{
    Fixture, LONG, Purge, SHORT, assert_same, create, load, load_live, new_key, nonzero, outlive,
};
use crate::store::{Record, SessionKey, SessionStore};

/// Long enough to write a few dozen records before the first of them expires.
const BRIEF: Duration = Duration::from_secs(2);

/// `delete_expired` answers 0 when there is nothing to do, and takes nothing that lives.
pub async fn purging_nothing_answers_zero<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    assert_eq!(purge(&store, 10).await, 0);
    let made = create(&store, &key, b"alive", LONG).await;
    assert_eq!(purge(&store, 10).await, 0);
    assert_same(&load_live(&store, &key).await, &made);
    store.delete(&key).await.expect("delete");
    assert_eq!(purge(&store, 10).await, 0, "a deleted record was purged");
}

/// `limits` say whether the backend purges, as the fixture does.
pub async fn the_limits_say_who_purges<F: Fixture>(fixture: &F) {
    let by_itself = fixture.store().limits().expires_by_itself();
    assert_eq!(by_itself, fixture.purge() == Purge::ByItself);
}

async fn purge<S: SessionStore>(store: &S, limit: usize) -> u64 {
    store.delete_expired(nonzero(limit)).await.expect("purge")
}

/// `count` records that have expired, and as many that have not.
async fn half_expired<F: Fixture>(
    fixture: &F,
    count: usize,
) -> (Vec<SessionKey>, Vec<(SessionKey, Record)>) {
    let store = fixture.store();
    let (mut expired, mut alive) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let key = new_key();
        alive.push((key, create(&store, &key, b"alive", LONG).await));
        let key = new_key();
        create(&store, &key, b"brief", BRIEF).await;
        expired.push(key);
    }
    outlive(BRIEF, store.limits()).await;
    if let Purge::OnDemand { margin } = fixture.purge() {
        sleep(margin).await;
    }
    (expired, alive)
}

/// `delete_expired` removes what has expired and nothing else, and says how many went; a store
/// whose backend purges answers 0.
pub async fn purging_removes_what_has_expired_and_counts_it<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let (expired, alive) = half_expired(fixture, 12).await;
    match fixture.purge() {
        Purge::ByItself => assert_eq!(purge(&store, 1000).await, 0),
        Purge::OnDemand { .. } => {
            assert_eq!(purge(&store, 1000).await, 12);
            assert_eq!(purge(&store, 1000).await, 0, "they were purged twice");
        }
    }
    for key in &expired {
        assert!(load(&store, key).await.is_none());
    }
    for (key, record) in &alive {
        assert_same(&load_live(&store, key).await, record);
    }
}

/// `delete_expired` purges no more than `limit` at once; what is left is purged by the next ones,
/// and is absent meanwhile.
pub async fn purging_respects_its_limit<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let (expired, alive) = half_expired(fixture, 10).await;
    match fixture.purge() {
        Purge::ByItself => assert_eq!(purge(&store, 4).await, 0),
        Purge::OnDemand { .. } => {
            let mut counts = Vec::new();
            for _ in 0..4 {
                counts.push(purge(&store, 4).await);
            }
            assert_eq!(counts, [4, 4, 2, 0]);
        }
    }
    for key in &expired {
        assert!(load(&store, key).await.is_none());
    }
    for (key, record) in &alive {
        assert_same(&load_live(&store, key).await, record);
    }
}

/// A record that is created over an expired one while a purge is on its way is not purged.
pub async fn purging_spares_what_was_created_again<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let keys: Vec<_> = (0..32).map(|_| new_key()).collect();
    for _ in 0..3 {
        for key in &keys {
            create(&store, key, b"brief", SHORT).await;
        }
        outlive(SHORT, store.limits()).await;
        if let Purge::OnDemand { margin } = fixture.purge() {
            sleep(margin).await;
        }
        let start = Arc::new(Barrier::new(3));
        let done = Arc::new(AtomicBool::new(false));
        let mut purging = JoinSet::new();
        for limit in [3, 100] {
            let (store, start, done) = (store.clone(), Arc::clone(&start), Arc::clone(&done));
            purging.spawn(async move {
                start.wait().await;
                while !done.load(Ordering::Relaxed) {
                    purge(&store, limit).await;
                    yield_now().await;
                }
            });
        }
        let mut made = Vec::new();
        start.wait().await;
        for key in &keys {
            made.push(create(&store, key, b"again", LONG).await);
            yield_now().await;
        }
        done.store(true, Ordering::Relaxed);
        purging.join_all().await;
        for (key, made) in keys.iter().zip(&made) {
            assert_same(&load_live(&store, key).await, made);
            store.delete(key).await.expect("delete");
        }
    }
}
