//! `NullStore`: no sessions.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::{
    CreateOutcome, NewRecord, Record, SessionKey, SessionStore, StoreError, StoreErrorKind,
    StoreLimits, TouchOutcome, UpdateOutcome,
};

/// A store that holds nothing and takes nothing, for an application whose store is chosen later.
///
/// Every session reads as empty. The first change fails with [`StoreErrorKind::Unsupported`] and a
/// message that names the stores to choose from, so that a forgotten choice shows at once instead of
/// losing data. It never waits.
///
/// It cannot pass the `conformance` cases, which begin by creating a record.
///
/// # Examples
///
/// ```
/// use session_layer::SessionStore;
/// use session_layer::store::NullStore;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # runtime.block_on(async {
/// let key = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ".parse().unwrap();
/// assert!(NullStore::new().load(&key).await?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NullStore;

impl NullStore {
    /// The store that holds nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

fn no_store() -> StoreError {
    StoreError::new(
        StoreErrorKind::Unsupported,
        "the null store keeps nothing; choose another one: memory, file, sqlite, postgres, mysql, \
         redis, memcached, mongodb, dynamodb, or a SessionStore of your own",
    )
}

impl SessionStore for NullStore {
    async fn load(&self, _key: &SessionKey) -> Result<Option<Record>, StoreError> {
        Ok(None)
    }

    async fn create(
        &self,
        _key: &SessionKey,
        _new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        Err(no_store())
    }

    async fn update(
        &self,
        _key: &SessionKey,
        _seen: &Record,
        _new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        Err(no_store())
    }

    async fn touch(
        &self,
        _key: &SessionKey,
        _seen: &Record,
        _ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        Err(no_store())
    }

    async fn delete(&self, _key: &SessionKey) -> Result<(), StoreError> {
        Ok(())
    }

    async fn delete_expired(&self, _limit: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    /// No limit: a change is refused for what it is, not for its size.
    fn limits(&self) -> StoreLimits {
        StoreLimits::new(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::SessionId;
    use crate::store::Revision;

    const TTL: Duration = Duration::from_secs(60);

    fn key() -> SessionKey {
        SessionId::from_bytes([7; 32]).key()
    }

    #[tokio::test]
    async fn every_change_fails_and_names_the_stores_to_choose_from() {
        let (store, key) = (NullStore::new(), key());
        let seen = Record::new(Revision::from_bytes([1; 16]), Bytes::new(), TTL);
        let new = NewRecord::new(Revision::from_bytes([2; 16]), b"payload", TTL);
        for error in [
            store.create(&key, &new).await.unwrap_err(),
            store.update(&key, &seen, &new).await.unwrap_err(),
            store.touch(&key, &seen, TTL).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), StoreErrorKind::Unsupported);
            let text = error.to_string();
            for name in [
                "memory",
                "file",
                "sqlite",
                "postgres",
                "mysql",
                "redis",
                "memcached",
                "mongodb",
                "dynamodb",
            ] {
                assert!(text.contains(name), "{name} is missing in {text:?}");
            }
            assert!(!text.contains(key.as_str()) && !text.contains("payload"));
        }
        assert!(store.load(&key).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_needs_nothing_stored_works() {
        let (store, key) = (NullStore, key());
        assert!(store.load(&key).await.unwrap().is_none());
        store.delete(&key).await.unwrap();
        let purged = store.delete_expired(NonZeroUsize::MIN).await.unwrap();
        assert_eq!(purged, 0);
    }
}
