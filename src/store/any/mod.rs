//! `AnyStore`: a store whose type is forgotten.

mod connect;
mod embedded;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{
    CreateOutcome, Cursor, NewRecord, Page, Record, ScanStore, SessionKey, SessionStore,
    StoreAtOnce, StoreError, StoreErrorKind, StoreLimits, Sweeper, TouchOutcome, UpdateOutcome,
};

pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The object-safe twin of [`SessionStore`]: the same verbs, one box a call.
pub(crate) trait DynStore: fmt::Debug + Send + Sync + 'static {
    fn load<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, Option<Record>>;
    fn create<'a>(
        &'a self,
        key: &'a SessionKey,
        new: &'a NewRecord<'a>,
    ) -> Answer<'a, CreateOutcome>;
    fn update<'a>(
        &'a self,
        key: &'a SessionKey,
        seen: &'a Record,
        new: &'a NewRecord<'a>,
    ) -> Answer<'a, UpdateOutcome>;
    fn touch<'a>(
        &'a self,
        key: &'a SessionKey,
        seen: &'a Record,
        ttl: Duration,
    ) -> Answer<'a, TouchOutcome>;
    fn delete<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, ()>;
    fn delete_expired(&self, limit: NonZeroUsize) -> Answer<'_, u64>;
    fn limits(&self) -> StoreLimits;
    /// The same store, if it never waits.
    fn at_once(&self) -> Option<&dyn StoreAtOnce>;
}

impl<S: SessionStore> DynStore for S {
    fn load<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, Option<Record>> {
        Box::pin(SessionStore::load(self, key))
    }

    fn create<'a>(
        &'a self,
        key: &'a SessionKey,
        new: &'a NewRecord<'a>,
    ) -> Answer<'a, CreateOutcome> {
        Box::pin(SessionStore::create(self, key, new))
    }

    fn update<'a>(
        &'a self,
        key: &'a SessionKey,
        seen: &'a Record,
        new: &'a NewRecord<'a>,
    ) -> Answer<'a, UpdateOutcome> {
        Box::pin(SessionStore::update(self, key, seen, new))
    }

    fn touch<'a>(
        &'a self,
        key: &'a SessionKey,
        seen: &'a Record,
        ttl: Duration,
    ) -> Answer<'a, TouchOutcome> {
        Box::pin(SessionStore::touch(self, key, seen, ttl))
    }

    fn delete<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, ()> {
        Box::pin(SessionStore::delete(self, key))
    }

    fn delete_expired(&self, limit: NonZeroUsize) -> Answer<'_, u64> {
        Box::pin(SessionStore::delete_expired(self, limit))
    }

    fn limits(&self) -> StoreLimits {
        SessionStore::limits(self)
    }

    fn at_once(&self) -> Option<&dyn StoreAtOnce> {
        #[cfg(feature = "memory")]
        if let Some(memory) = (self as &dyn Any).downcast_ref::<super::MemoryStore>() {
            return Some(memory);
        }
        None
    }
}

/// The object-safe twin of [`ScanStore`].
trait DynScan: Send + Sync + 'static {
    fn scan<'a>(&'a self, from: Option<&'a Cursor>, limit: NonZeroUsize) -> Answer<'a, Page>;
}

impl<S: ScanStore> DynScan for S {
    fn scan<'a>(&'a self, from: Option<&'a Cursor>, limit: NonZeroUsize) -> Answer<'a, Page> {
        Box::pin(ScanStore::scan(self, from, limit))
    }
}

/// A store of any type, chosen at run time.
///
/// Clones share the store. A call costs one allocation more than a call of the store itself.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use session_layer::store::{AnyStore, MemoryStore};
///
/// let store = AnyStore::new(MemoryStore::new());
/// # }
/// ```
#[derive(Clone)]
pub struct AnyStore {
    store: Arc<dyn DynStore>,
    scan: Option<Arc<dyn DynScan>>,
    /// What works for the store, and ends with its last clone.
    _helper: Option<Arc<Sweeper>>,
}

impl AnyStore {
    /// The verbs with their futures already boxed: what waits for one stays small.
    pub(crate) fn as_dyn(&self) -> &dyn DynStore {
        &*self.store
    }

    /// Forgets the type of `store`. An `AnyStore` stays the one it is.
    #[must_use]
    pub fn new(store: impl SessionStore) -> Self {
        match (&store as &dyn Any).downcast_ref::<Self>() {
            Some(any) => any.clone(),
            None => Self {
                store: Arc::new(store),
                scan: None,
                _helper: None,
            },
        }
    }

    /// The same for a store that can list its keys, so that [`ScanStore`] works on what comes back.
    #[must_use]
    pub fn with_scan(store: impl ScanStore) -> Self {
        match (&store as &dyn Any).downcast_ref::<Self>() {
            Some(any) => any.clone(),
            None => {
                let store = Arc::new(store);
                Self {
                    store: Arc::clone(&store) as Arc<dyn DynStore>,
                    scan: Some(store),
                    _helper: None,
                }
            }
        }
    }

    /// Keeps a sweeper, which must hold no clone of what comes back, for as long as there is one.
    pub(crate) fn with_sweeper(self, sweeper: Sweeper) -> Self {
        Self {
            _helper: Some(Arc::new(sweeper)),
            ..self
        }
    }
}

impl fmt::Debug for AnyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for AnyStore {
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
        self.store.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.store.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }
}

impl ScanStore for AnyStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        match &self.scan {
            Some(store) => store.scan(from, limit).await,
            None => Err(StoreError::new(
                StoreErrorKind::Unsupported,
                "this store cannot list its sessions",
            )),
        }
    }
}
