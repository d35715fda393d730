//! Which sessions there are.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::FileStore;
use super::dir::Dir;
use crate::store::blocking::blocking;
use crate::store::{Cursor, Page, ScanStore, SessionKey, StoreError};

/// In the order of the keys, expired ones included. Each page walks through the names of the whole
/// directory, which knows no order: ask for large pages.
impl ScanStore for FileStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let after = Page::after(from)?;
        let shared = Arc::clone(&self.shared);
        blocking(move || Ok(Page::in_order(first(&shared.dir, after, limit)?, limit))).await
    }
}

fn first(
    dir: &Dir,
    after: Option<SessionKey>,
    limit: NonZeroUsize,
) -> Result<Vec<SessionKey>, StoreError> {
    let mut first = BTreeSet::new();
    for key in dir.keys()? {
        let key = key?;
        if after.is_some_and(|after| key <= after) {
            continue;
        }
        first.insert(key);
        if first.len() > limit.get() {
            first.pop_last();
        }
    }
    Ok(first.into_iter().collect())
}
