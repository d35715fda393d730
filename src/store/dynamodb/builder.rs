//! The settings, from a builder or a URL, and the client made of them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{
    Builder, Credentials, ProvideCredentials, Region, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::item::LARGEST_PAYLOAD;
use super::{DynamoStore, Shared};
use crate::store::url::StoreUrl;
use crate::store::{StoreError, StoreErrorKind, StoreLimits};

/// How long region and credentials may take to be found.
const PATIENCE: Duration = Duration::from_secs(10);
/// After this time an idle connection is closed by us, not by DynamoDB in the moment of a request.
const IDLE: Duration = Duration::from_secs(20);

/// Settings of a [`DynamoStore`], from [`DynamoStore::builder`].
#[must_use = "call `connect` to get a store"]
pub struct DynamoStoreBuilder {
    origin: Origin,
    table: String,
    max_payload: usize,
    create_table: bool,
    timeout: Duration,
}

enum Origin {
    Client(Client),
    Settings(Account),
}

#[derive(Default)]
struct Account {
    region: Option<String>,
    endpoint: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
}

impl DynamoStore {
    /// A store on the table that `url` names, as `dynamodb://sessions?region=eu-central-1`. The
    /// settings, each optional:
    ///
    /// | setting | |
    /// | --- | --- |
    /// | `region` | the region |
    /// | `endpoint` | another endpoint than the region's own: `http://127.0.0.1:8000` |
    /// | `access_key_id`, `secret_access_key`, `session_token` | the credentials |
    /// | `max_payload` | [`with_max_payload`](DynamoStoreBuilder::with_max_payload) |
    /// | `create_table` | [`with_create_table`](DynamoStoreBuilder::with_create_table) |
    /// | `timeout` | [`with_timeout`](DynamoStoreBuilder::with_timeout), as `1500ms` |
    ///
    /// What is missing of region and credentials is found as by all of AWS's own programs: in the
    /// environment, in the profile files, from a web identity token, from the container, from the
    /// instance. (Not from SSO or a credential process.)
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL is not of this form, and as
    /// [`DynamoStoreBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let mut url = StoreUrl::parse(url)?;
        if url.scheme() != "dynamodb" {
            return Err(invalid("a DynamoDB URL begins with `dynamodb://`"));
        }
        let account = Account {
            region: url.take("region")?,
            endpoint: url.take("endpoint")?,
            access_key_id: url.take("access_key_id")?,
            secret_access_key: url.take("secret_access_key")?,
            session_token: url.take("session_token")?,
        };
        let mut builder = DynamoStoreBuilder::new(Origin::Settings(account), url.body());
        if let Some(bytes) = url.take_as("max_payload", "a number of bytes")? {
            builder = builder.with_max_payload(bytes);
        }
        if let Some(create) = url.take_as("create_table", "true or false")? {
            builder = builder.with_create_table(create);
        }
        if let Some(timeout) =
            url.take_as::<humantime::Duration>("timeout", "a time, such as 1500ms")?
        {
            builder = builder.with_timeout(timeout.into());
        }
        url.finish(&[
            "region",
            "endpoint",
            "access_key_id",
            "secret_access_key",
            "session_token",
            "max_payload",
            "create_table",
            "timeout",
        ])?;
        builder.connect().await
    }

    /// Settings for a store on this table: 3 to 255 letters, digits, `_`, `-` and `.`, ASCII; any other
    /// name is refused by [`connect`](DynamoStoreBuilder::connect).
    pub fn builder(table: impl Into<String>) -> DynamoStoreBuilder {
        DynamoStoreBuilder::new(Origin::Settings(Account::default()), table)
    }

    /// Uses a client of yours, with the default settings; see
    /// [`builder_from_client`](Self::builder_from_client).
    ///
    /// # Errors
    ///
    /// As [`DynamoStoreBuilder::connect`].
    pub async fn from_client(
        client: &Client,
        table: impl Into<String>,
    ) -> Result<Self, StoreError> {
        Self::builder_from_client(client, table).connect().await
    }

    /// Settings for a store with the connections, the credentials and all the settings of a client of
    /// yours, except that no request is sent twice.
    pub fn builder_from_client(client: &Client, table: impl Into<String>) -> DynamoStoreBuilder {
        let config = client.config().to_builder();
        let client = Client::from_conf(config.retry_config(RetryConfig::disabled()).build());
        DynamoStoreBuilder::new(Origin::Client(client), table)
    }
}

impl DynamoStoreBuilder {
    fn new(origin: Origin, table: impl Into<String>) -> Self {
        Self {
            origin,
            table: table.into(),
            max_payload: LARGEST_PAYLOAD,
            create_table: true,
            timeout: Duration::from_millis(1500),
        }
    }

    /// The region. Default: that of the environment, the profile or the instance. Of no effect on a
    /// client of yours, like the next two.
    pub fn with_region(mut self, region: impl Into<String>) -> Self {
        if let Origin::Settings(account) = &mut self.origin {
            account.region = Some(region.into());
        }
        self
    }

    /// Where DynamoDB is, as `http://127.0.0.1:8000`: an emulator, or an endpoint of your own network.
    /// Default: the region's own, with TLS.
    pub fn with_endpoint(mut self, url: impl Into<String>) -> Self {
        if let Origin::Settings(account) = &mut self.origin {
            account.endpoint = Some(url.into());
        }
        self
    }

    /// The credentials, with a session token if they are temporary. Default: those of the environment,
    /// the profile, the container or the instance, renewed as needed.
    pub fn with_credentials(
        mut self,
        access_key_id: impl Into<String>,
        secret_access_key: impl Into<String>,
        session_token: Option<String>,
    ) -> Self {
        if let Origin::Settings(account) = &mut self.origin {
            account.access_key_id = Some(access_key_id.into());
            account.secret_access_key = Some(secret_access_key.into());
            account.session_token = session_token;
        }
        self
    }

    /// The largest payload, in bytes. Default, and at most: 409,450, which with all that is around it
    /// makes the 400 KB of DynamoDB's largest item. A larger one is refused before it is sent, and an
    /// item with a larger one is no record.
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Whether the table is made where it is missing, charged by request, with its time to live
    /// switched on. Default: yes. Without, nothing is asked of the table before the first session; call
    /// [`DynamoStore::migrate`], or make it yourself.
    pub fn with_create_table(mut self, create: bool) -> Self {
        self.create_table = create;
        self
    }

    /// How long a verb may take, in all. Default: 1.5 seconds, less than the layer's own limit, so that
    /// the reason is known when it is reported. 1 ms to 1 hour.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes the store; with a table to make, waits until that is ready, which takes about ten seconds
    /// the first time. A DynamoDB that cannot be reached now is no error: the verbs try again.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) for a setting that cannot work, when there is no region or
    /// there are no credentials, and as [`DynamoStore::migrate`].
    pub async fn connect(self) -> Result<DynamoStore, StoreError> {
        self.check()?;
        let client = match self.origin {
            Origin::Client(client) => client,
            Origin::Settings(account) => account.client(self.timeout).await?,
        };
        let store = DynamoStore {
            shared: Arc::new(Shared {
                client,
                table: self.table,
                limits: StoreLimits::new(self.max_payload)
                    .with_own_expiry(true)
                    .with_timeout(self.timeout),
                timeout: self.timeout,
                create_table: self.create_table,
                ready: OnceCell::new(),
            }),
        };
        if self.create_table {
            match store.migrate().await {
                Err(error)
                    if matches!(
                        error.kind(),
                        StoreErrorKind::Timeout | StoreErrorKind::Unavailable
                    ) =>
                {
                    tracing::warn!(%error, "session store not reached yet");
                }
                other => other?,
            }
        }
        Ok(store)
    }

    fn check(&self) -> Result<(), StoreError> {
        let named = self
            .table
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
        if !named || !(3..=255).contains(&self.table.len()) {
            return Err(invalid(
                "the name of a DynamoDB table is 3 to 255 letters, digits, `_`, `-` and `.`",
            ));
        }
        if self.max_payload > LARGEST_PAYLOAD {
            return Err(invalid("DynamoDB takes payloads of at most 409,450 bytes"));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&self.timeout) {
            return Err(invalid("the timeout is to be 1 ms to 1 hour"));
        }
        Ok(())
    }
}

impl fmt::Debug for DynamoStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoStoreBuilder")
            .field("table", &self.table)
            .field("max_payload", &self.max_payload)
            .field("create_table", &self.create_table)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Account {
    async fn client(self, limit: Duration) -> Result<Client, StoreError> {
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(endpoint)?;
        }
        let credentials = self.credentials()?;
        let mut config = match (self.region, credentials) {
            (Some(region), Some(credentials)) => Builder::new()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(region))
                .credentials_provider(credentials)
                .http_client(http_client()),
            (region, credentials) => found(region, credentials).await?,
        };
        if let Some(endpoint) = self.endpoint {
            config = config.endpoint_url(endpoint);
        }
        // The store's own limit for a verb is above these.
        let limits = TimeoutConfig::builder()
            .connect_timeout(limit)
            .operation_attempt_timeout(PATIENCE)
            .operation_timeout(PATIENCE);
        let config = config
            .timeout_config(limits.build())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        Ok(Client::from_conf(config.build()))
    }

    fn credentials(&self) -> Result<Option<Credentials>, StoreError> {
        match (&self.access_key_id, &self.secret_access_key) {
            (Some(id), Some(secret)) => Ok(Some(Credentials::new(
                id,
                secret,
                self.session_token.clone(),
                None,
                "session-layer",
            ))),
            (None, None) if self.session_token.is_none() => Ok(None),
            _ => Err(invalid(
                "`access_key_id` and `secret_access_key` are set together, `session_token` with both",
            )),
        }
    }
}

/// What the environment says of region and credentials.
async fn found(
    region: Option<String>,
    credentials: Option<Credentials>,
) -> Result<Builder, StoreError> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http_client());
    if let Some(region) = region {
        loader = loader.region(Region::new(region));
    }
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    let config = timeout(PATIENCE, async {
        let config = loader.load().await;
        config.region()?;
        // Asked for now, so that their absence is not found out by the first user.
        let provider = config.credentials_provider()?;
        provider.provide_credentials().await.ok()?;
        Some(config)
    });
    let config = config.await.ok().flatten().ok_or_else(|| {
        invalid(
            "no AWS region or no AWS credentials were found: set AWS_REGION, AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, give the instance a role, or name them in the URL",
        )
    })?;
    Ok(Builder::from(&config))
}

fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .pool_idle_timeout(IDLE)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https()
}

fn check_endpoint(endpoint: &str) -> Result<(), StoreError> {
    let parsed: Option<http::Uri> = endpoint.parse().ok();
    let sound = parsed.is_some_and(|url| {
        let host = url
            .authority()
            .is_some_and(|host| !host.as_str().contains('@'));
        host && matches!(url.scheme_str(), Some("http" | "https"))
    });
    if sound {
        return Ok(());
    }
    Err(invalid(
        "the endpoint is to be a URL with `http://` or `https://`, a host, and no user",
    ))
}

fn invalid(message: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SessionStore;

    const ACCOUNT: &str =
        "region=local&access_key_id=id&secret_access_key=hunter2&create_table=false";

    #[tokio::test]
    async fn a_url_has_the_settings_and_waits_for_nothing() {
        let url = format!("dynamodb://my.table-1_x?{ACCOUNT}&max_payload=9&timeout=20ms");
        let store = DynamoStore::connect(&url).await.unwrap();
        let limits = StoreLimits::new(9)
            .with_own_expiry(true)
            .with_timeout(Duration::from_millis(20));
        assert_eq!(store.limits(), limits);
        let shown = format!("{store:?}");
        assert!(
            shown.contains("my.table-1_x") && shown.contains("20ms"),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"));
    }

    #[tokio::test]
    async fn mistakes_are_named_and_secrets_are_not() {
        for (url, says) in [
            (format!("dynamodb://?{ACCOUNT}"), "3 to 255"),
            (format!("dynamodb://ab?{ACCOUNT}"), "3 to 255"),
            (format!("dynamodb://a/b?{ACCOUNT}"), "3 to 255"),
            (format!("dynamodb://u:hunter2@abc?{ACCOUNT}"), "3 to 255"),
            (
                format!("dynamodb://{}?{ACCOUNT}", "x".repeat(256)),
                "3 to 255",
            ),
            (
                format!("dynamodb://abc?{ACCOUNT}&max_payload=409451"),
                "409,450",
            ),
            (format!("dynamodb://abc?{ACCOUNT}&timeout=0s"), "1 ms"),
            (format!("dynamodb://abc?{ACCOUNT}&timeout=2h"), "1 ms"),
            (
                format!("dynamodb://abc?{ACCOUNT}&endpoint=hunter2"),
                "http://",
            ),
            (
                format!("dynamodb://abc?{ACCOUNT}&endpoint=http://u:hunter2@x"),
                "no user",
            ),
            (
                format!("dynamodb://abc?{ACCOUNT}&prefix=hunter2"),
                "session_token",
            ),
            (
                "dynamodb://abc?region=x&access_key_id=hunter2".into(),
                "together",
            ),
            (
                "dynamodb://abc?region=x&session_token=hunter2".into(),
                "together",
            ),
            (format!("redis://abc?{ACCOUNT}"), "dynamodb://"),
        ] {
            let error = DynamoStore::connect(&url).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
            let text = format!("{error} {error:?}");
            assert!(text.contains(says), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
        let builder = DynamoStore::builder("abc").with_credentials("id", "hunter2", None);
        assert!(!format!("{builder:?}").contains("hunter2"));
    }
}
