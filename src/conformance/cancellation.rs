//! Futures that are dropped before they are done.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    Fixture, LONG, assert_same, create, load, load_live, new_key, touch, try_create, update,
};
use crate::store::{NewRecord, Record, Revision, SessionStore, UpdateOutcome};

const ROUNDS: u32 = 30;

/// Runs `verb` for a while that depends on `round`, then drops it: after a number of polls, or after
/// some microseconds.
async fn abandon<T>(verb: impl Future<Output = T>, round: u32) {
    if round.is_multiple_of(2) {
        let mut verb = pin!(verb);
        for _ in 0..=round / 2 % 5 {
            let done = poll_fn(|cx| Poll::Ready(verb.as_mut().poll(cx).is_ready())).await;
            if done {
                return;
            }
            tokio::task::yield_now().await;
        }
    } else {
        let while_ = Duration::from_micros(u64::from(round * round) * 3);
        let _ = tokio::time::timeout(while_, verb).await;
    }
}

/// A `create` that is dropped has made the whole record, or none, at once or a little later.
pub async fn a_dropped_create_leaves_all_or_nothing<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let payload = vec![7; 1000];
    for round in 0..ROUNDS {
        let key = new_key();
        let new = NewRecord::new(Revision::generate(), &payload, LONG);
        abandon(store.create(&key, &new), round).await;
        let mut was_there = false;
        for _ in 0..3 {
            match load(&store, &key).await {
                Some(found) => {
                    was_there = true;
                    assert_eq!(found.revision(), new.revision());
                    assert!(found.payload()[..] == payload, "half a payload");
                }
                None => assert!(!was_there, "a created record went away"),
            }
            sleep(Duration::from_millis(2)).await;
        }
        // The key can be used, whichever way it went.
        match try_create(&store, &key, b"second", LONG).await {
            Some(second) => assert_same(&load_live(&store, &key).await, &second),
            None => assert_eq!(load_live(&store, &key).await.revision(), new.revision()),
        }
    }
}

/// An `update` that is dropped leaves the old record or the new one, whole; and it happens at most
/// once.
pub async fn a_dropped_update_leaves_the_old_or_the_new_whole<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    for round in 0..ROUNDS {
        let key = new_key();
        let old = create(&store, &key, &[1; 1000], LONG).await;
        let payload = vec![2; 900];
        let new = NewRecord::new(Revision::generate(), &payload, LONG);
        abandon(store.update(&key, &old, &new), round).await;
        let mut was_new = false;
        for _ in 0..3 {
            let found = load_live(&store, &key).await;
            if found.revision() == new.revision() {
                was_new = true;
                assert!(found.payload()[..] == payload, "half a payload");
            } else {
                assert!(!was_new, "an update was undone");
                assert_same(&found, &old);
            }
            sleep(Duration::from_millis(2)).await;
        }
        let last = settle(&store, &key).await;
        sleep(Duration::from_millis(5)).await;
        assert_same(&load_live(&store, &key).await, &last);
    }
}

/// Updates, reloading after conflicts: what was dropped may still arrive, once.
async fn settle<S: SessionStore>(store: &S, key: &crate::store::SessionKey) -> Record {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let seen = load_live(store, key).await;
        match super::try_update(store, key, &seen, b"last", LONG).await {
            (UpdateOutcome::Updated(_), record) => return record,
            (UpdateOutcome::Conflict, _) => {
                assert!(Instant::now() < end, "conflicts without end");
            }
            (UpdateOutcome::Gone, _) => panic!("a live record was answered Gone"),
        }
    }
}

/// After any verb was dropped the store still answers, about that key and about others.
pub async fn dropped_verbs_block_nobody<F: Fixture>(fixture: &F) {
    let (store, bystander) = (fixture.store(), new_key());
    let mut other = create(&store, &bystander, b"bystander", LONG).await;
    for round in 0..ROUNDS {
        let key = new_key();
        let seen = create(&store, &key, b"seen", LONG).await;
        let new = NewRecord::new(Revision::generate(), b"new", LONG);
        abandon(store.load(&key), round).await;
        abandon(store.touch(&key, &seen, LONG), round).await;
        abandon(store.create(&key, &new), round).await;
        abandon(store.update(&key, &seen, &new), round).await;
        abandon(store.delete_expired(super::nonzero(10)), round).await;
        let last = settle(&store, &key).await;
        touch(&store, &key, &last, LONG).await;
        abandon(store.delete(&key), round).await;
        store.delete(&key).await.expect("delete");
        assert!(load(&store, &key).await.is_none());
        other = update(&store, &bystander, &other, b"bystander", LONG).await;
    }
    assert_same(&load_live(&store, &bystander).await, &other);
}
