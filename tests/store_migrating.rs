//! One store in the place of another: the contract, and that nothing comes back from the old one.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    CreateOutcome, MemoryStore, MigratingStore, NewRecord, Record, Revision, SessionKey,
    SessionStore, StoreError, StoreErrorKind, StoreLimits, TouchOutcome, UpdateOutcome,
};

type Memory = MigratingStore<MemoryStore, MemoryStore>;

struct Migrating {
    store: Memory,
    other: Memory,
}

fn empty() -> Memory {
    MigratingStore::new(MemoryStore::new(), MemoryStore::new())
}

impl Fixture for Migrating {
    type Store = Memory;

    fn store(&self) -> Memory {
        self.store.clone()
    }

    fn other_namespace(&self) -> Memory {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::OnDemand {
            margin: Duration::ZERO,
        }
    }
}

async fn fixture() -> Migrating {
    Migrating {
        store: empty(),
        other: empty(),
    }
}

session_layer::conformance!(fixture);

const HOUR: Duration = Duration::from_secs(3600);

fn key() -> SessionKey {
    "a".repeat(43).parse().unwrap()
}

fn new(payload: &[u8]) -> NewRecord<'_> {
    NewRecord::new(Revision::generate(), payload, HOUR)
}

/// A store in memory that refuses to delete while it is told to.
#[derive(Debug, Clone, Default)]
struct Stubborn {
    store: MemoryStore,
    refuses: Arc<AtomicBool>,
}

impl SessionStore for Stubborn {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        self.store.load(key).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.store.create(key, new).await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.store.update(key, seen, new).await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        self.store.touch(key, seen, ttl).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "on demand"));
        }
        self.store.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.store.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }
}

#[tokio::test]
async fn a_session_is_moved_when_it_is_used() {
    let (old, target) = (MemoryStore::new(), MemoryStore::new());
    let store = MigratingStore::new(old.clone(), target.clone());
    old.create(&key(), &new(b"data")).await.unwrap();
    let seen = store.load(&key()).await.unwrap().unwrap();
    assert_eq!(&seen.payload()[..], b"data");
    assert!(seen.ttl() <= HOUR && seen.ttl() > HOUR - Duration::from_secs(60));
    assert!(old.load(&key()).await.unwrap().is_none());
    assert!(target.load(&key()).await.unwrap().is_some());
    let changed = store.update(&key(), &seen, &new(b"more")).await.unwrap();
    assert!(matches!(changed, UpdateOutcome::Updated(_)), "{changed:?}");
}

#[tokio::test]
async fn requests_that_find_it_at_once_move_it_once() {
    for _ in 0..100 {
        let (old, target) = (MemoryStore::new(), MemoryStore::new());
        let store = MigratingStore::new(old.clone(), target);
        old.create(&key(), &new(b"data")).await.unwrap();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.load(&key()).await.unwrap().unwrap().revision() })
            })
            .collect();
        let mut revisions = Vec::new();
        for task in tasks {
            revisions.push(task.await.unwrap());
        }
        revisions.dedup();
        assert_eq!(revisions.len(), 1);
        assert!(old.load(&key()).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn what_has_ended_does_not_come_back_from_the_old_store() {
    let (old, target) = (Stubborn::default(), MemoryStore::new());
    let store = MigratingStore::new(old.clone(), target.clone());
    old.create(&key(), &new(b"data")).await.unwrap();
    // The move gets as far as the new store.
    old.refuses.store(true, Ordering::SeqCst);
    let error = store.load(&key()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    let seen = store.load(&key()).await.unwrap().unwrap();
    // While the old store cannot forget it, it cannot be ended.
    let tombstone = NewRecord::new(Revision::generate(), b"ended", HOUR).with_ending(true);
    assert!(store.update(&key(), &seen, &tombstone).await.is_err());
    assert!(store.delete(&key()).await.is_err());
    old.refuses.store(false, Ordering::SeqCst);
    let ended = store.update(&key(), &seen, &tombstone).await.unwrap();
    assert!(matches!(ended, UpdateOutcome::Updated(_)), "{ended:?}");
    // Also when the tombstone is gone.
    target.delete(&key()).await.unwrap();
    assert!(store.load(&key()).await.unwrap().is_none());
}
