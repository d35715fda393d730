//! Which sessions there are.

use std::num::NonZeroUsize;

use super::MemoryStore;
use crate::store::{Cursor, Page, ScanStore, SessionKey, StoreError, StoreErrorKind};

/// Shard by shard, and within a shard in the order of the keys, expired ones included. A page sorts the
/// keys of a shard or more, some two thousand each.
impl ScanStore for MemoryStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let (mut home, mut after) = from.map_or(Ok((0, None)), place)?;
        let shared = &*self.0;
        let mut keys = Vec::new();
        while home < shared.shards.len() {
            let mut here = shared.lock(home).keys();
            here.retain(|key| after.is_none_or(|after| *key > after));
            here.sort_unstable();
            let room = limit.get() - keys.len();
            if here.len() >= room {
                keys.extend(here.into_iter().take(room));
                let next = keys
                    .last()
                    .map(|last| Cursor::new(format!("{home}:{last}")));
                return Ok(Page::new(keys, next));
            }
            keys.append(&mut here);
            (home, after) = (home + 1, None);
        }
        Ok(Page::new(keys, None))
    }
}

fn place(from: &Cursor) -> Result<(usize, Option<SessionKey>), StoreError> {
    from.as_str()
        .split_once(':')
        .and_then(|(home, key)| Some((home.parse().ok()?, Some(key.parse().ok()?))))
        .ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::Config,
                "the scan is to go on where no scan of this store has ended",
            )
        })
}
