//! Which sessions there are.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::params;

use super::link::{Link, failed};
use super::{PATIENCE, Shared, SqliteStore};
use crate::store::blocking::blocking;
use crate::store::expiry::Now;
use crate::store::{Cursor, Page, ScanStore, SessionKey, StoreError};

/// In the order of the keys; what has expired is left out.
impl ScanStore for SqliteStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let after = Page::after(from)?;
        let shared = Arc::clone(&self.shared);
        if let Some(readers) = &self.shared.readers {
            let permit = readers.permit().await?;
            return blocking(move || {
                let _permit = permit;
                match &shared.readers {
                    Some(readers) => readers.with(|link| shared.page(link, after, limit, deadline)),
                    None => Ok(Page::new(Vec::new(), None)),
                }
            })
            .await;
        }
        let mut writer = Arc::clone(&shared.writer).lock_owned().await;
        blocking(move || shared.page(&mut writer, after, limit, deadline)).await
    }
}

impl Shared {
    fn page(
        &self,
        link: &mut Link,
        after: Option<SessionKey>,
        limit: NonZeroUsize,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        let connection = link.get(deadline)?;
        let after = after.as_ref().map_or("", SessionKey::as_str);
        let limited = i64::try_from(limit.get()).unwrap_or(i64::MAX);
        let keys: rusqlite::Result<Vec<_>> =
            connection
                .prepare_cached(&self.sql.scan)
                .and_then(|mut statement| {
                    statement
                        .query_map(params![after, Now::read().millis(), limited], |row| {
                            row.get::<_, String>(0)
                        })?
                        .collect()
                });
        let keys = keys.map_err(|error| failed("cannot list", error))?;
        let keys: Vec<_> = keys.iter().filter_map(|key| key.parse().ok()).collect();
        Ok(Page::in_order(keys, limit))
    }
}
