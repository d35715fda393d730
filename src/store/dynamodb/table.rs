//! The table: made where it is missing, and found to be of the right form.

use std::time::Duration;

use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::describe_table::DescribeTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    TableDescription, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
};
use tokio::time::{Instant, sleep};

use super::Shared;
use super::ask::{ask, late};
use super::item::{EXPIRES_AT, KEY};
use crate::store::{StoreError, StoreErrorKind};

/// How long a request about the table may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a new table may take to be ready.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(250);

impl Shared {
    /// Makes the table where it is missing, and has DynamoDB purge it. Done again, it goes on where it
    /// was stopped.
    pub(super) async fn prepare(&self) -> Result<(), StoreError> {
        let end = Instant::now() + PATIENCE_IN_ALL;
        loop {
            match self.describe().await? {
                None => self.create_table().await?,
                Some(table) => {
                    check_form(&table)?;
                    if matches!(
                        table.table_status,
                        Some(TableStatus::Active | TableStatus::Updating)
                    ) {
                        break;
                    }
                }
            }
            if Instant::now() > end {
                return Err(late());
            }
            sleep(PAUSE).await;
        }
        self.purge_by_itself().await
    }

    async fn describe(&self) -> Result<Option<TableDescription>, StoreError> {
        let request = || {
            let describe = self.client.describe_table();
            describe.table_name(&self.table).send()
        };
        match ask(Instant::now() + PATIENCE, request).await? {
            Ok(answer) => Ok(answer.table),
            Err(refused) => match refused.error {
                DescribeTableError::ResourceNotFoundException(_) => Ok(None),
                _ => Err(refused.into()),
            },
        }
    }

    async fn create_table(&self) -> Result<(), StoreError> {
        let key = AttributeDefinition::builder()
            .attribute_name(KEY)
            .attribute_type(ScalarAttributeType::S)
            .build()
            .map_err(incomplete)?;
        let schema = KeySchemaElement::builder()
            .attribute_name(KEY)
            .key_type(KeyType::Hash)
            .build()
            .map_err(incomplete)?;
        let request = || {
            self.client
                .create_table()
                .table_name(&self.table)
                .attribute_definitions(key.clone())
                .key_schema(schema.clone())
                .billing_mode(BillingMode::PayPerRequest)
                .send()
        };
        match ask(Instant::now() + PATIENCE, request).await? {
            Ok(_) => Ok(()),
            Err(refused) => match refused.error {
                // Another process is making it.
                CreateTableError::ResourceInUseException(_) => Ok(()),
                _ => Err(refused.into()),
            },
        }
    }

    async fn purge_by_itself(&self) -> Result<(), StoreError> {
        if self.is_purged().await? {
            return Ok(());
        }
        let how = TimeToLiveSpecification::builder()
            .enabled(true)
            .attribute_name(EXPIRES_AT)
            .build()
            .map_err(incomplete)?;
        let request = || {
            self.client
                .update_time_to_live()
                .table_name(&self.table)
                .time_to_live_specification(how.clone())
                .send()
        };
        match ask(Instant::now() + PATIENCE, request).await? {
            Ok(_) => Ok(()),
            // Another process may have been faster, which DynamoDB calls an invalid request.
            Err(refused) => match self.is_purged().await? {
                true => Ok(()),
                false => Err(refused.into()),
            },
        }
    }

    async fn is_purged(&self) -> Result<bool, StoreError> {
        let request = || {
            let describe = self.client.describe_time_to_live();
            describe.table_name(&self.table).send()
        };
        let answer = ask(Instant::now() + PATIENCE, request).await??;
        let Some(purge) = answer.time_to_live_description else {
            return Ok(false);
        };
        let on = matches!(
            purge.time_to_live_status,
            Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)
        );
        if on && purge.attribute_name.as_deref() != Some(EXPIRES_AT) {
            return Err(StoreError::new(
                StoreErrorKind::Config,
                "the table's time to live is about another attribute than `expires_at`",
            ));
        }
        Ok(on)
    }
}

fn check_form(table: &TableDescription) -> Result<(), StoreError> {
    let is_key =
        |part: &KeySchemaElement| part.attribute_name == KEY && part.key_type == KeyType::Hash;
    let is_string = |attribute: &AttributeDefinition| {
        attribute.attribute_name == KEY && attribute.attribute_type == ScalarAttributeType::S
    };
    if let [part] = table.key_schema()
        && is_key(part)
        && table.attribute_definitions().iter().any(is_string)
    {
        return Ok(());
    }
    Err(StoreError::new(
        StoreErrorKind::Config,
        "the table has another form: its key is to be the string `session_key` alone",
    ))
}

fn incomplete(error: aws_sdk_dynamodb::error::BuildError) -> StoreError {
    StoreError::new(StoreErrorKind::Other, "the request is incomplete").with_source(error)
}
