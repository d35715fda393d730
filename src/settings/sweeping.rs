//! A store that purges its expired records by itself.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::store::sweeper::{BATCH, sweep};
use crate::store::{
    AnyStore, CreateOutcome, Cursor, NewRecord, Page, Record, ScanStore, SessionKey, SessionStore,
    StoreError, StoreLimits, Sweeper, TouchOutcome, UpdateOutcome,
};

pub(super) const DEFAULT_INTERVAL: Duration = Duration::from_secs(600);

/// When expired records are purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sweep {
    Never,
    Every(Duration),
    /// Flask-Session's way: after so many requests that read their session. In a task of its own, of
    /// which there is one; requests that come while it sweeps begin no second sweep.
    AfterRequests(NonZeroU64),
}

impl Sweep {
    /// The store together with what sweeps it, which ends with the store's last clone.
    pub(super) fn start(self, store: AnyStore) -> AnyStore {
        match self {
            _ if store.limits().expires_by_itself() => store,
            Self::Never => store,
            Self::Every(interval) => {
                let sweeper = Sweeper::start(store.clone(), interval);
                store.with_sweeper(sweeper)
            }
            Self::AfterRequests(after) => AnyStore::with_scan(CountingStore::start(store, after)),
        }
    }
}

/// Counts what is loaded, and has the store swept every so often.
#[derive(Debug)]
struct CountingStore {
    store: AnyStore,
    after: NonZeroU64,
    loads: AtomicU64,
    due: Arc<Notify>,
    task: AbortHandle,
}

impl CountingStore {
    fn start(store: AnyStore, after: NonZeroU64) -> Self {
        let due = Arc::new(Notify::new());
        let task = tokio::spawn(sweep_when_due(store.clone(), Arc::clone(&due)));
        Self {
            store,
            after,
            loads: AtomicU64::new(0),
            due,
            task: task.abort_handle(),
        }
    }

    /// Costs one addition; whoever counts to the end wakes the task.
    fn count(&self) {
        let loads = self.loads.fetch_add(1, Ordering::Relaxed) + 1;
        if loads.is_multiple_of(self.after.get()) {
            self.due.notify_one();
        }
    }
}

async fn sweep_when_due(store: AnyStore, due: Arc<Notify>) {
    loop {
        due.notified().await;
        sweep(&store, BATCH).await;
    }
}

impl Drop for CountingStore {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for CountingStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        self.count();
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
        self.store.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.store.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }
}

impl ScanStore for CountingStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        self.store.scan(from, limit).await
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;
    use crate::id::{Revision, SessionId};
    use crate::store::SqliteStore;

    const SHORT: Duration = Duration::from_millis(1);

    async fn put(store: &impl SessionStore, n: u8) -> SessionKey {
        let key = SessionId::from_bytes([n; 32]).key();
        let new = NewRecord::new(Revision::generate(), b"x", SHORT);
        store.create(&key, &new).await.unwrap();
        key
    }

    async fn rows(path: &std::path::Path) -> i64 {
        let path = path.to_owned();
        let count = move || {
            let db = rusqlite::Connection::open(path).unwrap();
            db.query_row("SELECT count(*) FROM sessions", [], |row| row.get(0))
                .unwrap()
        };
        tokio::task::spawn_blocking(count).await.unwrap()
    }

    #[tokio::test]
    async fn expired_records_go_after_so_many_requests_and_not_before() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s.db");
        let inner = AnyStore::new(SqliteStore::open(&path).await.unwrap());
        let after = NonZeroU64::new(3).unwrap();
        let store = Sweep::AfterRequests(after).start(inner);
        let key = put(&store, 1).await;
        // The sweep leaves what has expired only just now.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for _ in 0..2 {
            assert!(store.load(&key).await.unwrap().is_none());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(rows(&path).await, 1);
        store.load(&key).await.unwrap();
        for _ in 0..500 {
            if rows(&path).await == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the expired record is still there");
    }

    #[cfg(all(feature = "memcached", feature = "null"))]
    #[tokio::test]
    async fn a_store_that_expires_by_itself_stays_as_it_is() {
        use crate::store::MemcachedStore;
        let sweep = Sweep::AfterRequests(NonZeroU64::MIN);
        let store = MemcachedStore::builder(["127.0.0.1:1"]).build().unwrap();
        let store = sweep.start(AnyStore::new(store));
        assert!(format!("{store:?}").starts_with("MemcachedStore"));
        let swept = sweep.start(AnyStore::new(crate::store::NullStore::new()));
        assert!(format!("{swept:?}").starts_with("CountingStore"));
    }

    #[tokio::test]
    async fn a_store_that_is_dropped_is_swept_no_more() {
        let scratch = tempfile::tempdir().unwrap();
        let inner = SqliteStore::open(scratch.path().join("s.db"))
            .await
            .unwrap();
        let after = NonZeroU64::MIN;
        let store = CountingStore::start(AnyStore::new(inner), after);
        let task = store.task.clone();
        drop(store);
        for _ in 0..500 {
            if task.is_finished() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the task goes on");
    }
}
