//! The memory store against the contract, and under many threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    CreateOutcome, MemoryStore, NewRecord, Revision, SessionKey, SessionStore, StoreErrorKind,
    UpdateOutcome,
};

struct InMemory {
    store: MemoryStore,
    /// Memory stores have no namespaces: another one is independent.
    other: MemoryStore,
}

impl Fixture for InMemory {
    type Store = MemoryStore;

    fn store(&self) -> MemoryStore {
        self.store.clone()
    }

    fn other_namespace(&self) -> MemoryStore {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::OnDemand {
            margin: Duration::ZERO,
        }
    }
}

async fn fixture() -> InMemory {
    InMemory {
        store: MemoryStore::new(),
        other: MemoryStore::new(),
    }
}

session_layer::conformance!(fixture);
session_layer::conformance_of_scan!(fixture);

const HOUR: Duration = Duration::from_secs(3600);
const THREADS: usize = 8;

fn key(n: usize) -> SessionKey {
    format!("{n:0>43}").parse().unwrap()
}

/// Runs a future that is never pending.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => panic!("pending"),
    }
}

#[test]
fn eight_threads_lose_no_update() {
    const KEYS: usize = 100;
    const EACH: usize = 20;
    let store = MemoryStore::new();
    for n in 0..KEYS {
        let new = NewRecord::new(Revision::generate(), &[0; 8], HOUR);
        now(store.create(&key(n), &new)).unwrap();
    }
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for n in (0..KEYS).cycle().take(KEYS * EACH) {
                    loop {
                        let seen = now(store.load(&key(n))).unwrap().unwrap();
                        let count = u64::from_le_bytes(seen.payload()[..].try_into().unwrap());
                        let next = (count + 1).to_le_bytes();
                        let new = NewRecord::new(Revision::generate(), &next, HOUR);
                        match now(store.update(&key(n), &seen, &new)).unwrap() {
                            UpdateOutcome::Updated(_) => break,
                            UpdateOutcome::Conflict => {}
                            UpdateOutcome::Gone => panic!("gone"),
                        }
                    }
                }
            });
        }
    });
    for n in 0..KEYS {
        let found = now(store.load(&key(n))).unwrap().unwrap();
        assert_eq!(found.payload()[..], ((THREADS * EACH) as u64).to_le_bytes());
    }
}

#[test]
fn eight_threads_never_pass_the_bounds() {
    const MOST: usize = 500;
    let store = MemoryStore::new().with_max_records(MOST);
    let created = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, created) = (&store, &created);
            scope.spawn(move || {
                for n in 0..200 {
                    let new = NewRecord::new(Revision::generate(), b"x", HOUR);
                    match now(store.create(&key(thread * 1000 + n), &new)) {
                        Ok(CreateOutcome::Created(_)) => {
                            created.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(CreateOutcome::Taken) => panic!("taken"),
                        Err(error) => assert_eq!(error.kind(), StoreErrorKind::Unavailable),
                    }
                    assert!(store.len() <= MOST);
                }
            });
        }
    });
    assert_eq!(created.into_inner(), MOST);
    assert_eq!(store.len(), MOST);
    assert_eq!(store.payload_bytes(), MOST);
}

#[test]
fn eight_threads_that_come_and_go_leave_an_empty_store() {
    let store = MemoryStore::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                for n in 0..2000 {
                    // Every key is contended by two threads.
                    let key = key(thread / 2 * 10_000 + n);
                    let brief = Duration::from_micros(50);
                    let ttl = if n % 3 == 0 { brief } else { HOUR };
                    let new = NewRecord::new(Revision::generate(), &[1; 64], ttl);
                    now(store.create(&key, &new)).unwrap();
                    now(store.load(&key)).unwrap();
                    now(store.delete(&key)).unwrap();
                }
            });
        }
    });
    // The slower thread of a pair may have created what the faster one had deleted, never the reverse.
    assert!(store.is_empty(), "{store:?}");
    assert_eq!(store.payload_bytes(), 0);
}
