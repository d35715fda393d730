//! Going through all the sessions of a store, for those who look after it.

use std::future::Future;
use std::num::NonZeroUsize;

use super::{SessionKey, SessionStore, StoreError, StoreErrorKind};

/// A store that can say which sessions it holds.
///
/// The layer needs none of this: it is for copying a store, for statistics and lists. Apart from
/// [`SessionStore`], so that a store which cannot do it (a cache, say) need not pretend to.
///
/// # Contract
///
/// - **At least once.** A key whose record is alive during the whole scan is in some page. One that
///   comes or goes meanwhile may be missing; one may come twice.
/// - **Of this namespace.** Keys of other prefixes, tables or directories are in no page, nor is
///   anything that is not a session.
/// - **Perhaps expired.** A key may have expired: [`load`](SessionStore::load) tells.
/// - **It ends.** Whatever is written meanwhile.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use std::num::NonZeroUsize;
/// use session_layer::store::{ScanStore, StoreError};
///
/// async fn count(store: &impl ScanStore) -> Result<u64, StoreError> {
///     let (mut live, mut from) = (0, None);
///     loop {
///         let page = store.scan(from.as_ref(), NonZeroUsize::MIN).await?;
///         for key in page.keys() {
///             live += u64::from(store.load(key).await?.is_some());
///         }
///         from = page.into_next();
///         if from.is_none() {
///             return Ok(live);
///         }
///     }
/// }
/// # let store = session_layer::store::MemoryStore::new();
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # assert_eq!(runtime.block_on(count(&store)).unwrap(), 0);
/// # }
/// ```
pub trait ScanStore: SessionStore {
    /// The next page of keys, from the beginning or from where the page before ended. About `limit`
    /// keys, at most a few times as many; none is possible before the end. One round trip or few.
    ///
    /// # Errors
    ///
    /// When the store cannot answer; [`Config`](crate::StoreErrorKind::Config) when `from` did not
    /// come from this store; [`Unsupported`](crate::StoreErrorKind::Unsupported) when the backend
    /// cannot list.
    fn scan(
        &self,
        from: Option<&Cursor>,
        limit: NonZeroUsize,
    ) -> impl Future<Output = Result<Page, StoreError>> + Send;
}

/// Where a scan goes on: text that only the store understands. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cursor(String);

impl Cursor {
    /// The place that a store calls `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What the store called it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Some of the keys of a store.
#[derive(Debug, Clone)]
pub struct Page {
    keys: Vec<SessionKey>,
    next: Option<Cursor>,
}

impl Page {
    /// A page of `keys`; without `next` it is the last one.
    #[must_use]
    pub fn new(keys: Vec<SessionKey>, next: Option<Cursor>) -> Self {
        Self { keys, next }
    }

    /// The keys, in no order.
    #[must_use]
    pub fn keys(&self) -> &[SessionKey] {
        &self.keys
    }

    /// Where the next page begins; `None` at the end.
    #[must_use]
    pub fn next(&self) -> Option<&Cursor> {
        self.next.as_ref()
    }

    /// The same, to keep.
    #[must_use]
    pub fn into_next(self) -> Option<Cursor> {
        self.next
    }
}

#[allow(dead_code, reason = "for the stores that list their keys in order")]
impl Page {
    /// The key that the page before ended with, for a store that lists its keys in order.
    pub(super) fn after(from: Option<&Cursor>) -> Result<Option<SessionKey>, StoreError> {
        from.map(|from| {
            from.as_str().parse().map_err(|error| {
                StoreError::new(
                    StoreErrorKind::Config,
                    "the scan is to go on where no scan of this store has ended",
                )
                .with_source(error)
            })
        })
        .transpose()
    }

    /// The page of a store that was asked for its first `limit` keys after the page before.
    pub(super) fn in_order(keys: Vec<SessionKey>, limit: NonZeroUsize) -> Self {
        let next = keys
            .last()
            .filter(|_| keys.len() >= limit.get())
            .map(|last| Cursor::new(last.as_str()));
        Self { keys, next }
    }
}
