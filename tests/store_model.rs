//! The store contract as a model: whatever several clients do in whatever order, a store answers like
//! a map. Each client acts on what it saw last, which may long be stale.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use session_layer::store::{
    CreateOutcome, MemoryStore, NewRecord, Record, Revision, SessionKey, SessionStore, Token,
    TouchOutcome, UpdateOutcome,
};
use tokio::time::{Instant, advance};

const CLIENTS: usize = 3;
const KEYS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Load {
        client: usize,
        key: usize,
    },
    Create {
        client: usize,
        key: usize,
        payload: Vec<u8>,
        ttl: Duration,
    },
    Update {
        client: usize,
        key: usize,
        payload: Vec<u8>,
        ttl: Duration,
    },
    Touch {
        client: usize,
        key: usize,
        ttl: Duration,
    },
    Delete {
        key: usize,
    },
    DeleteExpired {
        limit: NonZeroUsize,
    },
    Wait {
        time: Duration,
    },
}

fn lifetime() -> impl Strategy<Value = Duration> {
    // Few values, so that expiry and waiting meet exactly.
    prop_oneof![
        (1..=4u64).prop_map(Duration::from_secs),
        Just(Duration::from_millis(1)),
        Just(Duration::from_secs(400 * 24 * 3600)),
        Just(Duration::MAX),
    ]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn step() -> impl Strategy<Value = Step> {
    let (client, key) = (0..CLIENTS, 0..KEYS);
    prop_oneof![
        3 => (client.clone(), key.clone()).prop_map(|(client, key)| Step::Load { client, key }),
        3 => (client.clone(), key.clone(), payload(), lifetime())
            .prop_map(|(client, key, payload, ttl)| Step::Create { client, key, payload, ttl }),
        4 => (client.clone(), key.clone(), payload(), lifetime())
            .prop_map(|(client, key, payload, ttl)| Step::Update { client, key, payload, ttl }),
        3 => (client, key.clone(), lifetime())
            .prop_map(|(client, key, ttl)| Step::Touch { client, key, ttl }),
        1 => key.prop_map(|key| Step::Delete { key }),
        1 => (1..4usize).prop_map(|n| Step::DeleteExpired { limit: NonZeroUsize::new(n).unwrap() }),
        2 => (0..=2u64).prop_map(|n| Step::Wait { time: Duration::from_secs(n) }),
    ]
}

/// What the contract says is there.
struct Row {
    revision: Revision,
    payload: Vec<u8>,
    /// `None`: later than can be told.
    expires: Option<Instant>,
}

impl Row {
    fn alive(&self) -> bool {
        self.expires.is_none_or(|at| at > Instant::now())
    }
}

fn expires(ttl: Duration) -> Option<Instant> {
    Instant::now().checked_add(ttl)
}

fn key(n: usize) -> SessionKey {
    format!("{n:0>43}").parse().unwrap()
}

/// The n-th write; no two are alike.
fn revision(n: usize) -> Revision {
    Revision::from_bytes((n as u128).to_be_bytes())
}

fn record(new: &NewRecord<'_>, token: Token) -> Record {
    let payload = Bytes::copy_from_slice(new.payload());
    Record::new(new.revision(), payload, new.ttl()).with_token(token)
}

/// Runs `steps` against `store` and the model at once. For stores that compare revisions, in a
/// runtime whose clock they share.
async fn check<S: SessionStore>(store: &S, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut model: HashMap<usize, Row> = HashMap::new();
    // What a client saw of a key, or a record of nowhere.
    let mut seen: HashMap<(usize, usize), Record> = HashMap::new();
    for n in 0..CLIENTS * KEYS {
        let nowhere = Record::new(revision(n), Bytes::new(), Duration::ZERO);
        seen.insert((n / KEYS, n % KEYS), nowhere);
    }
    for (n, step) in steps.into_iter().enumerate() {
        let write = revision(1000 + n);
        match step {
            Step::Load { client, key: k } => {
                let found = store.load(&key(k)).await.unwrap();
                let row = model.get(&k).filter(|row| row.alive());
                prop_assert_eq!(found.is_some(), row.is_some());
                if let (Some(found), Some(row)) = (found, row) {
                    same(&found, row)?;
                    seen.insert((client, k), found);
                }
            }
            Step::Create {
                client,
                key: k,
                payload,
                ttl,
            } => {
                let new = NewRecord::new(write, &payload, ttl);
                let taken = model.get(&k).is_some_and(Row::alive);
                match store.create(&key(k), &new).await.unwrap() {
                    CreateOutcome::Taken => prop_assert!(taken),
                    CreateOutcome::Created(token) => {
                        prop_assert!(!taken);
                        seen.insert((client, k), record(&new, token));
                        let expires = expires(ttl);
                        model.insert(
                            k,
                            Row {
                                revision: write,
                                payload,
                                expires,
                            },
                        );
                    }
                }
            }
            Step::Update {
                client,
                key: k,
                payload,
                ttl,
            } => {
                let new = NewRecord::new(write, &payload, ttl);
                let old = &seen[&(client, k)];
                let row = model.get_mut(&k).filter(|row| row.alive());
                let outcome = store.update(&key(k), old, &new).await.unwrap();
                match row {
                    None => prop_assert_eq!(outcome, UpdateOutcome::Gone),
                    Some(row) if row.revision != old.revision() => {
                        prop_assert_eq!(outcome, UpdateOutcome::Conflict);
                    }
                    Some(row) => {
                        let UpdateOutcome::Updated(token) = outcome else {
                            return Err(TestCaseError::fail(format!("{outcome:?}")));
                        };
                        seen.insert((client, k), record(&new, token));
                        *row = Row {
                            revision: write,
                            payload,
                            expires: expires(ttl),
                        };
                    }
                }
            }
            Step::Touch {
                client,
                key: k,
                ttl,
            } => {
                let old = seen[&(client, k)].clone();
                let row = model.get_mut(&k).filter(|row| row.alive());
                let outcome = store.touch(&key(k), &old, ttl).await.unwrap();
                match row {
                    None => prop_assert_eq!(outcome, TouchOutcome::Gone),
                    Some(row) if row.revision != old.revision() => {
                        prop_assert_eq!(outcome, TouchOutcome::Conflict);
                    }
                    Some(row) => {
                        let TouchOutcome::Touched(token) = outcome else {
                            return Err(TestCaseError::fail(format!("{outcome:?}")));
                        };
                        seen.insert((client, k), old.with_token(token));
                        row.expires = expires(ttl);
                    }
                }
            }
            Step::Delete { key: k } => {
                store.delete(&key(k)).await.unwrap();
                model.remove(&k);
            }
            Step::DeleteExpired { limit } => {
                let purged = store.delete_expired(limit).await.unwrap();
                // Others may have been freed before, by the verbs.
                let expired = model.values().filter(|row| !row.alive()).count();
                prop_assert!(purged <= limit.get().min(expired) as u64);
            }
            Step::Wait { time } => advance(time).await,
        }
        // Every key after every step: what a step must not do counts as much.
        for k in 0..KEYS {
            let found = store.load(&key(k)).await.unwrap();
            match (found, model.get(&k).filter(|row| row.alive())) {
                (Some(found), Some(row)) => same(&found, row)?,
                (None, None) => {}
                (found, _) => {
                    return Err(TestCaseError::fail(format!("key {k} holds {found:?}")));
                }
            }
        }
    }
    Ok(())
}

fn same(found: &Record, row: &Row) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.revision(), row.revision);
    prop_assert_eq!(&found.payload()[..], &row.payload[..]);
    if let Some(expires) = row.expires {
        let left = expires - Instant::now();
        let off = left.abs_diff(found.ttl());
        prop_assert!(
            off <= Duration::from_millis(1),
            "{:?} left, not {left:?}",
            found.ttl()
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_memory_store_answers_like_a_map(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        // The store is made where its clock is.
        runtime.block_on(async { check(&MemoryStore::new(), steps).await })?;
    }
}
