//! Which sessions there are.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use aws_sdk_dynamodb::types::AttributeValue;

use super::DynamoStore;
use super::ask::ask;
use super::item::KEY;
use crate::store::{Cursor, Page, ScanStore, StoreError, StoreErrorKind};

/// What a place in a scan begins with. What follows is the key of an item, perhaps not a session's.
const MARK: &str = "after:";

/// In the order of DynamoDB's hashes; expired keys may be among them. Reads every item of the page
/// whole, and is charged accordingly.
impl ScanStore for DynamoStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let after = match from {
            None => None,
            Some(from) => Some(from.as_str().strip_prefix(MARK).ok_or_else(nowhere)?),
        };
        let start = after.map(|after| {
            let key = AttributeValue::S(after.to_owned());
            HashMap::from([(KEY.to_owned(), key)])
        });
        let deadline = self.start().await?;
        let request = || {
            self.shared
                .client
                .scan()
                .table_name(&self.shared.table)
                .projection_expression(KEY)
                .consistent_read(true)
                .limit(i32::try_from(limit.get()).unwrap_or(i32::MAX))
                .set_exclusive_start_key(start.clone())
                .send()
        };
        let answer = ask(deadline, request).await??;
        let text = |item: &HashMap<String, AttributeValue>| item.get(KEY)?.as_s().ok().cloned();
        let keys = answer
            .items()
            .iter()
            .filter_map(|item| text(item)?.parse().ok())
            .collect();
        let next = answer.last_evaluated_key().and_then(text);
        Ok(Page::new(
            keys,
            next.map(|key| Cursor::new(format!("{MARK}{key}"))),
        ))
    }
}

fn nowhere() -> StoreError {
    StoreError::new(
        StoreErrorKind::Config,
        "the scan is to go on where no scan of this store has ended",
    )
}
