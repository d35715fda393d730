//! Many tasks at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};

use super::{
    Fixture, LONG, SHORT, assert_same, create, load, load_live, new_key, outlive, touch,
    try_create, try_touch, try_update,
};
use crate::store::{
    NewRecord, Record, Revision, SessionKey, SessionStore, TouchOutcome, UpdateOutcome,
};

const RACERS: usize = 8;

/// Lets `RACERS` tasks try to create `key` at the same moment.
async fn race_to_create<S: SessionStore + Clone>(store: &S, key: SessionKey) -> Record {
    let start = Arc::new(Barrier::new(RACERS));
    let mut tasks = JoinSet::new();
    for n in 0..RACERS {
        let (store, start) = (store.clone(), Arc::clone(&start));
        tasks.spawn(async move {
            start.wait().await;
            try_create(&store, &key, format!("racer {n}").as_bytes(), LONG).await
        });
    }
    let mut winners: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1, "of {RACERS} creators not exactly one won");
    winners.remove(0)
}

/// Of creators that race for a key exactly one wins, and its record is the one that is kept.
pub async fn racing_creators_have_one_winner<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    for _ in 0..20 {
        let key = new_key();
        let winner = race_to_create(&store, key).await;
        assert_same(&load_live(&store, &key).await, &winner);
    }
}

/// The same where an expired record lies.
pub async fn creators_racing_over_an_expired_record_have_one_winner<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let keys: Vec<_> = (0..20).map(|_| new_key()).collect();
    for key in &keys {
        create(&store, key, b"brief", SHORT).await;
    }
    outlive(SHORT, store.limits()).await;
    for key in keys {
        let winner = race_to_create(&store, key).await;
        assert_same(&load_live(&store, &key).await, &winner);
    }
}

/// Of updates that race with the same record seen exactly one is made; the others are conflicts.
pub async fn racing_updaters_of_one_revision_have_one_winner<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let key = new_key();
    let mut seen = create(&store, &key, b"start", LONG).await;
    for _ in 0..20 {
        let start = Arc::new(Barrier::new(RACERS));
        let mut tasks = JoinSet::new();
        for n in 0..RACERS {
            let (store, start, seen) = (store.clone(), Arc::clone(&start), seen.clone());
            tasks.spawn(async move {
                start.wait().await;
                try_update(&store, &key, &seen, format!("racer {n}").as_bytes(), LONG).await
            });
        }
        let mut winners = Vec::new();
        for (outcome, record) in tasks.join_all().await {
            match outcome {
                UpdateOutcome::Updated(_) => winners.push(record),
                UpdateOutcome::Conflict => {}
                UpdateOutcome::Gone => panic!("a live record was answered Gone"),
            }
        }
        assert_eq!(winners.len(), 1, "of {RACERS} updates not exactly one won");
        seen = winners.remove(0);
        assert_same(&load_live(&store, &key).await, &seen);
    }
}

/// Adds one to the number that is the payload, trying again after each conflict.
async fn increment<S: SessionStore>(store: &S, key: &SessionKey) {
    loop {
        let seen = load_live(store, key).await;
        let payload = seen.payload()[..].try_into().expect("eight bytes");
        let next = (u64::from_le_bytes(payload) + 1).to_le_bytes();
        // Lets others in between, also on a store that never waits.
        yield_now().await;
        match try_update(store, key, &seen, &next, LONG).await.0 {
            UpdateOutcome::Updated(_) => return,
            UpdateOutcome::Conflict => yield_now().await,
            UpdateOutcome::Gone => panic!("a live record was answered Gone"),
        }
    }
}

async fn count<S: SessionStore>(store: &S, key: &SessionKey) -> u64 {
    let payload = load_live(store, key).await.payload()[..]
        .try_into()
        .expect("eight bytes");
    u64::from_le_bytes(payload)
}

/// Tasks that read, change and write the same records, and try again after a conflict, each count.
pub async fn racing_updaters_lose_nothing<F: Fixture>(fixture: &F) {
    const EACH: u64 = 10;
    let store = fixture.store();
    let keys: Vec<_> = (0..4).map(|_| new_key()).collect();
    for key in &keys {
        create(&store, key, &0u64.to_le_bytes(), LONG).await;
    }
    let mut tasks = JoinSet::new();
    for _ in 0..RACERS {
        let (store, keys) = (store.clone(), keys.clone());
        tasks.spawn(async move {
            for _ in 0..EACH {
                for key in &keys {
                    increment(&store, key).await;
                }
            }
        });
    }
    tasks.join_all().await;
    for key in &keys {
        assert_eq!(count(&store, key).await, RACERS as u64 * EACH);
    }
}

/// A touch that races an update leaves the update as it is.
pub async fn a_racing_touch_undoes_no_update<F: Fixture>(fixture: &F) {
    const EACH: u64 = 50;
    let (store, key) = (fixture.store(), new_key());
    create(&store, &key, &0u64.to_le_bytes(), LONG).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut touching = JoinSet::new();
    for n in 0..2u32 {
        let (store, done) = (store.clone(), Arc::clone(&done));
        touching.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let seen = load_live(&store, &key).await;
                yield_now().await;
                let outcome = try_touch(&store, &key, &seen, LONG * (2 + n)).await;
                assert_ne!(outcome, TouchOutcome::Gone, "a live record");
                yield_now().await;
            }
        });
    }
    let mut updating = JoinSet::new();
    for _ in 0..2 {
        let store = store.clone();
        updating.spawn(async move {
            for _ in 0..EACH {
                increment(&store, &key).await;
            }
        });
    }
    updating.join_all().await;
    done.store(true, Ordering::Relaxed);
    touching.join_all().await;
    assert_eq!(count(&store, &key).await, 2 * EACH);
}

/// Once a delete is answered, no update and no touch that raced it brings the record back.
pub async fn a_racing_delete_is_final<F: Fixture>(fixture: &F) {
    for round in 0..15 {
        let (store, key) = (fixture.store(), new_key());
        let made = create(&store, &key, b"alive", LONG).await;
        let start = Arc::new(Barrier::new(5));
        let deleted = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for n in 0..4 {
            let (store, start, deleted) = (store.clone(), Arc::clone(&start), Arc::clone(&deleted));
            let mut seen = made.clone();
            tasks.spawn(async move {
                start.wait().await;
                let mut after = 0;
                // A few more once it is deleted, with what was seen before.
                while after < 3 {
                    let was_deleted = deleted.load(Ordering::SeqCst);
                    after += u32::from(was_deleted);
                    let gone = if n % 2 == 0 {
                        let (outcome, newer) = try_update(&store, &key, &seen, &[n], LONG).await;
                        match outcome {
                            UpdateOutcome::Updated(_) => seen = newer,
                            UpdateOutcome::Conflict => {
                                seen = load(&store, &key).await.unwrap_or(seen);
                            }
                            UpdateOutcome::Gone => {}
                        }
                        outcome == UpdateOutcome::Gone
                    } else {
                        let outcome = try_touch(&store, &key, &seen, LONG).await;
                        if outcome == TouchOutcome::Conflict {
                            seen = load(&store, &key).await.unwrap_or(seen);
                        }
                        outcome == TouchOutcome::Gone
                    };
                    assert!(
                        gone || !was_deleted,
                        "a deleted record was not answered Gone"
                    );
                    yield_now().await;
                }
            });
        }
        start.wait().await;
        for _ in 0..round {
            yield_now().await;
        }
        store.delete(&key).await.expect("delete");
        deleted.store(true, Ordering::SeqCst);
        assert!(load(&store, &key).await.is_none());
        tasks.join_all().await;
        assert!(load(&store, &key).await.is_none(), "a record was revived");
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// A record of which each part tells the number of the others.
fn number<'a>(n: u8, payload: &'a mut Vec<u8>) -> NewRecord<'a> {
    payload.clear();
    payload.resize(1 + usize::from(n) * 4, n);
    let mut revision = *Revision::generate().as_bytes();
    revision[0] = n;
    NewRecord::new(
        Revision::from_bytes(revision),
        payload,
        HOUR * (u32::from(n) + 2),
    )
}

#[track_caller]
fn assert_whole(found: &Record) {
    let n = found.revision().as_bytes()[0];
    assert_eq!(
        found.payload().len(),
        1 + usize::from(n) * 4,
        "a payload of another write, or half of one"
    );
    assert!(
        found.payload().iter().all(|&byte| byte == n),
        "a payload mixed of two writes"
    );
    let hours = u32::from(n) + 2;
    assert!(
        found.ttl() > HOUR * (hours - 1) && found.ttl() <= HOUR * hours + HOUR / 2,
        "the expiry of another write"
    );
}

/// A reader sees all of one write: payload, revision and expiry.
pub async fn readers_see_records_whole<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let mut payload = Vec::new();
    store
        .create(&key, &number(0, &mut payload))
        .await
        .expect("create");
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..2 {
        let (store, done) = (store.clone(), Arc::clone(&done));
        readers.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                assert_whole(&load_live(&store, &key).await);
                yield_now().await;
            }
        });
    }
    let mut writers = JoinSet::new();
    for odd in 0..2u8 {
        let store = store.clone();
        writers.spawn(async move {
            let mut payload = Vec::new();
            for n in 0..60u8 {
                // Long and short by turns.
                let n = if n % 2 == 0 { n } else { 250 - n } ^ odd;
                let seen = load_live(&store, &key).await;
                assert_whole(&seen);
                let new = number(n, &mut payload);
                store.update(&key, &seen, &new).await.expect("update");
                yield_now().await;
            }
        });
    }
    let mut writers = writers;
    while let Some(writer) = writers.join_next().await {
        writer.expect("a writer failed");
    }
    done.store(true, Ordering::Relaxed);
    readers.join_all().await;
    let found = load_live(&store, &key).await;
    assert_whole(&found);
    touch(&store, &key, &found, found.ttl()).await;
}
