//! DynamoDB: `GetItem`, consistent, and `PutItem` with a condition. Amazon's own cannot be measured
//! here: a server that speaks its protocol stands in for it.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{
    BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig,
};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
    ReturnValuesOnConditionCheckFailure, ScalarAttributeType,
};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;

use super::{Floor, MONTH, millis, now, revision, subject};
use crate::Place;
use crate::server::{Folder, Server, free_port, program};
use crate::subject::Subject;

const TABLE: &str = "floor";

pub async fn open() -> Place {
    let (folder, port) = (Folder::new("bench-dynoxide"), free_port());
    let program = program("DYNOXIDE", "dynoxide", &[]);
    let port_text = port.to_string();
    let command = [&*program, "--host", "127.0.0.1", "-p", &port_text];
    let server = Server::start("dynoxide", folder, port, command);
    let bare = Bare::connect(port).await;
    let url = format!(
        "dynamodb://sessions?endpoint=http://127.0.0.1:{port}&region=local\
         &access_key_id=id&secret_access_key=secret"
    );
    Place {
        name: "dynamodb",
        note: "Not Amazon's DynamoDB: **dynoxide stands in for it**, in memory and on the same machine, \
               and what a request costs there is most of what is measured.",
        subjects: vec![subject(bare).await, Subject::session_layer(&url).await],
        empty: None,
        _keeps: Box::new(server),
    }
}

#[derive(Clone)]
struct Bare {
    client: Client,
}

struct Seen {
    revision: AttributeValue,
    payload: AttributeValue,
}

impl Bare {
    async fn connect(port: u16) -> Self {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("local"))
            .credentials_provider(Credentials::new("id", "secret", None, None, "bench"))
            .endpoint_url(format!("http://127.0.0.1:{port}"))
            .http_client(
                aws_smithy_http_client::Builder::new()
                    .pool_idle_timeout(Duration::from_secs(20))
                    .tls_provider(Provider::Rustls(CryptoMode::Ring))
                    .build_https(),
            )
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let client = Client::from_conf(config.build());
        let name = "session_key";
        let key = AttributeDefinition::builder()
            .attribute_name(name)
            .attribute_type(ScalarAttributeType::S);
        let schema = KeySchemaElement::builder()
            .attribute_name(name)
            .key_type(KeyType::Hash);
        client
            .create_table()
            .table_name(TABLE)
            .attribute_definitions(key.build().expect("whole"))
            .key_schema(schema.build().expect("whole"))
            .billing_mode(BillingMode::PayPerRequest)
            .send()
            .await
            .expect("CreateTable");
        Self { client }
    }

    fn put(&self, key: &str, payload: AttributeValue, condition: &str) -> PutItemFluentBuilder {
        let expiry = now() + MONTH;
        let item = [
            ("session_key", AttributeValue::S(key.to_owned())),
            ("revision", AttributeValue::B(Blob::new(revision()))),
            ("payload", payload),
            ("expires_at", number(expiry.as_secs() as i64 + 60)),
            ("expires_at_ms", number(millis(expiry))),
        ];
        let item = item.map(|(name, value)| (name.to_owned(), value));
        self.client
            .put_item()
            .table_name(TABLE)
            .set_item(Some(HashMap::from(item)))
            .condition_expression(condition)
            .expression_attribute_values(":now", number(millis(now())))
    }
}

impl Floor for Bare {
    type Seen = Seen;

    async fn load(&self, key: &str) -> Option<Seen> {
        let answer = self
            .client
            .get_item()
            .table_name(TABLE)
            .key("session_key", AttributeValue::S(key.to_owned()))
            .consistent_read(true)
            .send()
            .await
            .expect("GetItem");
        let mut item = answer.item?;
        let expiry = item["expires_at_ms"].as_n().expect("a number");
        let expiry: i64 = expiry.parse().expect("a number");
        (expiry > millis(now())).then(|| Seen {
            revision: item.remove("revision").expect("a revision"),
            payload: item.remove("payload").expect("a payload"),
        })
    }

    async fn update(&self, key: &str, seen: Seen) -> bool {
        let put = self
            .put(
                key,
                seen.payload,
                "revision = :seen AND expires_at_ms > :now",
            )
            .expression_attribute_values(":seen", seen.revision)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        is_put(put).await
    }

    async fn create(&self, key: &str, payload: usize) -> bool {
        let payload = AttributeValue::B(Blob::new(vec![b'x'; payload]));
        let put = self.put(
            key,
            payload,
            "attribute_not_exists(revision) OR attribute_not_exists(payload) \
             OR attribute_not_exists(expires_at_ms) OR expires_at_ms <= :now",
        );
        is_put(put).await
    }
}

async fn is_put(put: PutItemFluentBuilder) -> bool {
    match put.send().await.map_err(|error| error.into_service_error()) {
        Ok(_) => true,
        Err(PutItemError::ConditionalCheckFailedException(_)) => false,
        Err(error) => panic!("{error:?}"),
    }
}

fn number(number: i64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}
