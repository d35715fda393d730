//! `DynamoStore`: items in a table of DynamoDB.

mod ask;
mod builder;
mod item;
mod scan;
mod table;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::ReturnValuesOnConditionCheckFailure;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use self::ask::{ask, damaged};
pub use self::builder::DynamoStoreBuilder;
use self::item::{IS_FREE, IS_SEEN, KEY, RENEW, Read, Refusal, millis, refusal};
use super::expiry::Now;
use super::{
    CreateOutcome, NewRecord, Record, SessionKey, SessionStore, StoreError, StoreLimits,
    TouchOutcome, UpdateOutcome,
};

/// Keeps sessions in a table of Amazon DynamoDB.
///
/// Every verb is one request: reads are strongly consistent, writes conditional. What DynamoDB has
/// acknowledged it keeps, in three data centres of the region. A *global* table is to be of the
/// strongly consistent kind, or used from one region: otherwise the regions overwrite each other's
/// updates, and a logout.
///
/// # Expiry
///
/// Exact to the millisecond by the clocks of the application's hosts, which therefore have to agree. An
/// expired record reads as absent at once; DynamoDB removes its item, free of charge, within days.
///
/// # Requests
///
/// None is sent twice: the SDK's own repetition is switched off, on a client of yours too. Only what
/// DynamoDB refuses unread, because there are too many requests, is tried again, a few times within the
/// time limit; after that it is [`Unavailable`](super::StoreErrorKind::Unavailable).
///
/// # Examples
///
/// ```no_run
/// use session_layer::store::DynamoStore;
///
/// # async fn example() -> Result<(), session_layer::StoreError> {
/// // Region and credentials as for all of AWS's own programs.
/// let store = DynamoStore::builder("sessions").connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DynamoStore {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    table: String,
    limits: StoreLimits,
    timeout: Duration,
    create_table: bool,
    /// Set once the table is known to be there.
    ready: OnceCell<()>,
}

impl DynamoStore {
    /// Makes the table where it is missing, waits until it is ready, and has DynamoDB remove what has
    /// expired. Connecting does this by default. Doing it again is harmless.
    ///
    /// # Errors
    ///
    /// [`Config`](super::StoreErrorKind::Config) when a table of that name has another form, or the
    /// credentials do not allow it; [`Timeout`](super::StoreErrorKind::Timeout) when the table is not
    /// ready within a minute; otherwise as every verb.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.shared.prepare().await?;
        // It may have been found ready meanwhile.
        let _ = self.shared.ready.set(());
        Ok(())
    }

    /// The beginning of a verb: until when it may take. What connecting could not do for want of a
    /// server is done here.
    async fn start(&self) -> Result<Instant, StoreError> {
        let deadline = Instant::now() + self.shared.timeout;
        if self.shared.create_table && !self.shared.ready.initialized() {
            let prepare = || self.shared.prepare();
            let ready = self.shared.ready.get_or_try_init(prepare);
            let ready = tokio::time::timeout_at(deadline, ready).await;
            ready.map_err(|_| ask::late())??;
        }
        Ok(deadline)
    }
}

impl fmt::Debug for DynamoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoStore")
            .field("table", &self.shared.table)
            .field("limits", &self.shared.limits)
            .field("timeout", &self.shared.timeout)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for DynamoStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let deadline = self.start().await?;
        let request = || {
            self.shared
                .client
                .get_item()
                .table_name(&self.shared.table)
                .key(KEY, item::key(key))
                .consistent_read(true)
                .send()
        };
        let Some(item) = ask(deadline, request).await??.item else {
            return Ok(None);
        };
        match item::read(item, Now::read(), self.shared.limits.max_payload()) {
            Read::Absent => Ok(None),
            Read::Alive(record) => Ok(Some(record)),
            Read::Damaged => Err(damaged()),
        }
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        let deadline = self.start().await?;
        let request = || {
            let now = Now::read();
            self.shared
                .client
                .put_item()
                .table_name(&self.shared.table)
                .set_item(Some(item::of(key, new, now)))
                .condition_expression(IS_FREE)
                .expression_attribute_values(":now", millis(now.millis()))
                .send()
        };
        match ask(deadline, request).await? {
            Ok(_) => Ok(CreateOutcome::Created(0)),
            Err(refused) => match refused.error {
                PutItemError::ConditionalCheckFailedException(_) => Ok(CreateOutcome::Taken),
                _ => Err(refused.into()),
            },
        }
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        let deadline = self.start().await?;
        let request = || {
            let now = Now::read();
            self.shared
                .client
                .put_item()
                .table_name(&self.shared.table)
                .set_item(Some(item::of(key, new, now)))
                .condition_expression(IS_SEEN)
                .expression_attribute_values(":seen", item::revision(seen.revision()))
                .expression_attribute_values(":now", millis(now.millis()))
                .return_values_on_condition_check_failure(OLD)
                .send()
        };
        match ask(deadline, request).await? {
            Ok(_) => Ok(UpdateOutcome::Updated(0)),
            Err(answer) => match answer.error {
                PutItemError::ConditionalCheckFailedException(failed) => {
                    let refusal = refusal(failed.item(), seen.revision(), Now::read());
                    Ok(match refusal.ok_or_else(damaged)? {
                        Refusal::Conflict => UpdateOutcome::Conflict,
                        Refusal::Gone => UpdateOutcome::Gone,
                    })
                }
                _ => Err(answer.into()),
            },
        }
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let deadline = self.start().await?;
        let request = || {
            let now = Now::read();
            let expiry = now.expiry(ttl);
            self.shared
                .client
                .update_item()
                .table_name(&self.shared.table)
                .key(KEY, item::key(key))
                .update_expression(RENEW)
                .condition_expression(IS_SEEN)
                .expression_attribute_values(":at", item::purge_after(expiry))
                .expression_attribute_values(":ms", millis(expiry))
                .expression_attribute_values(":seen", item::revision(seen.revision()))
                .expression_attribute_values(":now", millis(now.millis()))
                .return_values_on_condition_check_failure(OLD)
                .send()
        };
        match ask(deadline, request).await? {
            Ok(_) => Ok(TouchOutcome::Touched(0)),
            Err(answer) => match answer.error {
                UpdateItemError::ConditionalCheckFailedException(failed) => {
                    let refusal = refusal(failed.item(), seen.revision(), Now::read());
                    Ok(match refusal.ok_or_else(damaged)? {
                        Refusal::Conflict => TouchOutcome::Conflict,
                        Refusal::Gone => TouchOutcome::Gone,
                    })
                }
                _ => Err(answer.into()),
            },
        }
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let deadline = self.start().await?;
        let request = || {
            self.shared
                .client
                .delete_item()
                .table_name(&self.shared.table)
                .key(KEY, item::key(key))
                .send()
        };
        ask(deadline, request).await??;
        Ok(())
    }

    /// 0: DynamoDB removes what has expired by itself.
    async fn delete_expired(&self, _limit: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        self.shared.limits
    }
}

/// What was there comes with the refusal, payload included: that is how a conflict is told from a
/// session that is gone without asking again.
const OLD: ReturnValuesOnConditionCheckFailure = ReturnValuesOnConditionCheckFailure::AllOld;
