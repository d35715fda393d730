//! The settings of a `MongoStore`, and what becomes of its URL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mongodb::Client;
use mongodb::options::{
    Acknowledgment, ClientOptions, CollectionOptions, ReadPreference, SelectionCriteria,
    WriteConcern,
};

use super::failure::failed;
use super::index::Index;
use super::{MongoStore, Shared};
use crate::store::url::StoreUrl;
use crate::store::{StoreError, StoreErrorKind, StoreLimits};

/// Less than the layer's own limit of two seconds, so that the reason is known when it is reported.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// How long the driver looks for a primary, and how long it waits for a connection.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long `connect` waits for a name server.
const LOOK_UP: Duration = Duration::from_secs(5);
/// What MongoDB's drivers have agreed on. This one's own default is 10.
const CONNECTIONS: u32 = 100;
/// A document of 16 MiB, less its other fields and the command around them.
const LARGEST_PAYLOAD: usize = 16 * 1024 * 1024 - 16 * 1024;

/// Settings of a [`MongoStore`], from [`MongoStore::builder`].
#[derive(Debug)]
#[must_use = "call `connect` to get a store"]
pub struct MongoStoreBuilder {
    origin: Origin,
    database: Option<String>,
    collection: Option<String>,
    max_payload: Option<usize>,
    create_index: Option<bool>,
    timeout: Option<Duration>,
}

enum Origin {
    Client(Client),
    Url(String),
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Client",
            Self::Url(_) => "Url",
        })
    }
}

impl MongoStoreBuilder {
    pub(super) fn of_url(url: String) -> Self {
        Self::new(Origin::Url(url), None)
    }

    pub(super) fn of_client(client: Client, database: String) -> Self {
        Self::new(Origin::Client(client), Some(database))
    }

    fn new(origin: Origin, database: Option<String>) -> Self {
        Self {
            origin,
            database,
            collection: None,
            max_payload: None,
            create_index: None,
            timeout: None,
        }
    }

    /// The database. Default: the path of the URL, else `session_layer`. Letters, digits, `_` and `-`,
    /// ASCII, 63 at most, and none of MongoDB's own (`admin`, `config`, `local`).
    pub fn with_database(mut self, name: impl Into<String>) -> Self {
        self.database = Some(name.into());
        self
    }

    /// The collection. Default: `sessions`. A letter or `_`, then letters, digits, `_`, `-` and `.`,
    /// ASCII, 120 at most, not beginning with `system.`, not ending with `.`.
    pub fn with_collection(mut self, name: impl Into<String>) -> Self {
        self.collection = Some(name.into());
        self
    }

    /// The largest payload, in bytes. Default: 1 MiB; at most 16 MiB less 16 KiB, which is what a
    /// document of MongoDB can hold. A larger one is refused before it is sent, and a document with a
    /// larger one is [`Corrupt`](StoreErrorKind::Corrupt).
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = Some(bytes);
        self
    }

    /// Whether the first `create` makes the index by which MongoDB removes expired documents. Default:
    /// yes. Without, call [`MongoStore::migrate`], or run this in the database:
    ///
    /// ```js
    /// db.sessions.createIndex({ expires_at: 1 }, { expireAfterSeconds: 0 })
    /// ```
    ///
    /// While there is no such index, expired sessions are absent and stay in the collection.
    pub fn with_create_index(mut self, create: bool) -> Self {
        self.create_index = Some(create);
        self
    }

    /// How long a call may take, all together; what takes longer fails as
    /// [`Timeout`](StoreErrorKind::Timeout). Default: 1.5 seconds. Keep it below the layer's own limit
    /// for the store, which is two seconds by default. A server that waits for a majority gives up after
    /// the same time, unless the URL sets `wtimeoutMS`.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Opens the store. Waits for no server.
    ///
    /// # Errors
    ///
    /// As [`MongoStore::connect`].
    pub async fn connect(mut self) -> Result<MongoStore, StoreError> {
        let client = match &self.origin {
            Origin::Client(client) => client.clone(),
            Origin::Url(url) => {
                let mut url = StoreUrl::parse(url)?;
                self.take_from(&mut url)?;
                let options = options_of(&url).await?;
                self.database = self.database.take().or(options.default_database.clone());
                Client::with_options(options).map_err(|error| failed("cannot connect", &error))?
            }
        };
        self.open(&client)
    }

    /// Takes the store's own settings out of the URL; what is set already stays.
    fn take_from(&mut self, url: &mut StoreUrl) -> Result<(), StoreError> {
        let collection = url.take("collection")?;
        let max_payload = url.take_as("max_payload", "a number of bytes")?;
        let create_index = url.take_as("create_index", "true or false")?;
        let timeout = url.take_as::<humantime::Duration>("timeout", "a time, as in `1500ms`")?;
        self.collection = self.collection.take().or(collection);
        self.max_payload = self.max_payload.or(max_payload);
        self.create_index = self.create_index.or(create_index);
        self.timeout = self.timeout.or(timeout.map(Into::into));
        Ok(())
    }

    /// The store on `client`, which knows its servers.
    pub(super) fn open(&self, client: &Client) -> Result<MongoStore, StoreError> {
        let database = self.database.as_deref().unwrap_or("session_layer");
        let collection = self.collection.as_deref().unwrap_or("sessions");
        if !is_database(database) {
            return Err(config(
                "the name of a database is made of letters, digits, `_` and `-`, 63 characters at \
                 most, and is none of `admin`, `config` and `local`",
            ));
        }
        if !is_collection(collection) {
            return Err(config(
                "the name of a collection is a letter or `_`, then letters, digits, `_`, `-` and \
                 `.`, 120 characters at most; it does not begin with `system.` or end with `.`",
            ));
        }
        let largest = self.max_payload.unwrap_or(1024 * 1024);
        if largest > LARGEST_PAYLOAD {
            return Err(config(format!(
                "MongoDB takes payloads of at most {LARGEST_PAYLOAD} bytes"
            )));
        }
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        if timeout.is_zero() {
            return Err(config("a time limit of zero lets nothing be done"));
        }
        let ordinary = write_concern(client.write_concern(), timeout)?;
        let durable = WriteConcern::builder()
            .w(ordinary.w.clone())
            .w_timeout(ordinary.w_timeout)
            .journal(true)
            .build();
        let database = client.database(database);
        let with = |write_concern| {
            let options = CollectionOptions::builder()
                .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
                .read_concern(client.read_concern().cloned())
                .write_concern(write_concern)
                .build();
            database.collection_with_options(collection, options)
        };
        Ok(MongoStore {
            shared: Arc::new(Shared {
                collection: with(ordinary),
                durable: with(durable),
                index: Index::new(self.create_index.unwrap_or(true)),
                limits: StoreLimits::new(largest)
                    .with_own_expiry(true)
                    .with_timeout(timeout),
                timeout,
            }),
        })
    }
}

/// What the driver is told: the URL, and shorter waits where it names none.
async fn options_of(url: &StoreUrl) -> Result<ClientOptions, StoreError> {
    let parsed = tokio::time::timeout(LOOK_UP, ClientOptions::parse(url.for_driver())).await;
    let parsed = parsed.map_err(|_| {
        StoreError::new(
            StoreErrorKind::Unavailable,
            "the name server does not say which servers there are",
        )
    })?;
    let mut options = parsed.map_err(|error| match &*error.kind {
        // Its text quotes the URL.
        mongodb::error::ErrorKind::InvalidArgument { .. } => config(
            "the URL is not one that MongoDB's driver takes: percent-encode the user name and the \
             password, and see its connection string options; the store's own settings are \
             collection, create_index, max_payload, timeout",
        ),
        _ => failed("cannot read the URL", &error),
    })?;
    match &options.selection_criteria {
        None | Some(SelectionCriteria::ReadPreference(ReadPreference::Primary)) => {}
        Some(_) => {
            return Err(config(
                "sessions are read from the primary: take `readPreference` out of the URL",
            ));
        }
    }
    options.server_selection_timeout.get_or_insert(PATIENCE);
    options.connect_timeout.get_or_insert(PATIENCE);
    options.max_pool_size.get_or_insert(CONNECTIONS);
    options
        .app_name
        .get_or_insert_with(|| "session-layer".to_owned());
    Ok(options)
}

/// What a write waits for: what the client says, and where it says nothing, a majority's journals.
fn write_concern(
    given: Option<&WriteConcern>,
    timeout: Duration,
) -> Result<WriteConcern, StoreError> {
    let mut concern = given.cloned().unwrap_or_default();
    if concern.w == Some(Acknowledgment::Nodes(0)) {
        return Err(config(
            "a write that is not acknowledged may be lost: the write concern `w` is to be at least 1",
        ));
    }
    concern.w.get_or_insert(Acknowledgment::Majority);
    concern.w_timeout.get_or_insert(timeout);
    concern.journal.get_or_insert(true);
    Ok(concern)
}

fn is_database(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(is_name_byte)
        && !["admin", "config", "local"]
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own))
}

fn is_collection(name: &str) -> bool {
    (1..=120).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| is_name_byte(byte) || byte == b'.')
        && !name.starts_with("system.")
        && !name.ends_with('.')
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn config(message: impl Into<std::borrow::Cow<'static, str>>) -> StoreError {
    StoreError::new(StoreErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(url: &str) -> String {
        let error = MongoStore::connect(url).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{url}: {error}");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error} {error:?} {source:?}")
    }

    async fn opened(url: &str) -> MongoStore {
        MongoStore::connect(url).await.unwrap()
    }

    #[test]
    fn names_have_one_grammar() {
        for good in ["a", "my-app_1", "0", &"x".repeat(63)] {
            assert!(is_database(good), "{good}");
        }
        for bad in [
            "",
            "a.b",
            "a/b",
            "a$b",
            "a b",
            "a\\b",
            "a\"b",
            "a\0",
            "é",
            "admin",
            "LOCAL",
            "config",
            &"x".repeat(64),
        ] {
            assert!(!is_database(bad), "{bad:?}");
        }
        for good in ["a", "_", "web.sessions", "order", "a-b", &"x".repeat(120)] {
            assert!(is_collection(good), "{good}");
        }
        for bad in [
            "",
            "1a",
            ".a",
            "a.",
            "system.users",
            "a$b",
            "$cmd",
            "a b",
            "a/b",
            "a\0",
            "é",
            &"x".repeat(121),
        ] {
            assert!(!is_collection(bad), "{bad:?}");
        }
    }

    #[test]
    fn writes_wait_for_a_majoritys_journals_unless_told_otherwise() {
        let limit = Duration::from_millis(700);
        let concern = write_concern(None, limit).unwrap();
        assert_eq!(concern.w, Some(Acknowledgment::Majority));
        assert_eq!(concern.journal, Some(true));
        assert_eq!(concern.w_timeout, Some(limit));
        let given = WriteConcern::builder()
            .w(Acknowledgment::Nodes(1))
            .journal(false)
            .w_timeout(Duration::from_secs(9))
            .build();
        assert_eq!(write_concern(Some(&given), limit).unwrap(), given);
        let none = WriteConcern::nodes(0);
        let error = write_concern(Some(&none), limit).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config);
    }

    #[tokio::test]
    async fn a_url_opens_a_store_without_a_server() {
        let shown = |store: &MongoStore| format!("{store:?}");
        let store = opened("mongodb://127.0.0.1:1").await;
        assert!(shown(&store).contains("session_layer.sessions"));
        let store = opened(
            "mongodb://u:hunter2@127.0.0.1:1/app?collection=web&max_payload=9&timeout=70ms\
             &create_index=false&authSource=admin&w=2&journal=false",
        )
        .await;
        let text = shown(&store);
        assert!(text.contains("app.web") && text.contains("70ms"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(store.shared.limits.max_payload(), 9);
        let concern = store.shared.collection.write_concern().unwrap();
        assert_eq!(concern.w, Some(Acknowledgment::Nodes(2)));
        assert_eq!(concern.journal, Some(false));
        let concern = store.shared.durable.write_concern().unwrap();
        assert_eq!(concern.w, Some(Acknowledgment::Nodes(2)));
        assert_eq!(concern.journal, Some(true));
    }

    #[tokio::test]
    async fn what_the_builder_sets_counts_whatever_the_url_says() {
        let builder =
            MongoStore::builder("mongodb://u:hunter2@127.0.0.1:1/app?collection=web&max_payload=9")
                .with_database("other")
                .with_collection("mine")
                .with_max_payload(5)
                .with_timeout(Duration::from_millis(3));
        let text = format!("{builder:?}");
        assert!(!text.contains("hunter2"), "{text}");
        let store = builder.connect().await.unwrap();
        let text = format!("{store:?}");
        assert!(
            text.contains("other.mine") && text.contains("3ms"),
            "{text}"
        );
        assert_eq!(store.shared.limits.max_payload(), 5);
    }

    #[tokio::test]
    async fn waits_are_short_unless_the_url_says_otherwise() {
        let of = async |url| options_of(&StoreUrl::parse(url).unwrap()).await.unwrap();
        let options = of("mongodb://127.0.0.1:1").await;
        assert_eq!(options.server_selection_timeout, Some(PATIENCE));
        assert_eq!(options.connect_timeout, Some(PATIENCE));
        assert_eq!(options.max_pool_size, Some(CONNECTIONS));
        let options = of(
            "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=7&connectTimeoutMS=8&maxPoolSize=9",
        )
        .await;
        let millis = Duration::from_millis;
        assert_eq!(options.server_selection_timeout, Some(millis(7)));
        assert_eq!(options.connect_timeout, Some(millis(8)));
        assert_eq!(options.max_pool_size, Some(9));
    }

    #[tokio::test]
    async fn mistakes_are_named_and_secrets_are_not() {
        for (url, says) in [
            ("mongodb://u:hunter2@h:hunter2/", "percent-encode"),
            ("mongodb://u:hun/ter2@h/", "percent-encode"),
            ("mongodb://u:hunter2@/", "percent-encode"),
            ("mongodb://u:hunter2@h/?hunter2=1", "percent-encode"),
            ("mongodb://u:hunter2@h/?colection=web", "collection"),
            ("mongodb://u:hunter2@h/?authMechanism=hunter2", "percent"),
            ("mongodb://u:hunter2@h/?max_payload=hunter2", "a number"),
            ("mongodb://u:hunter2@h/?max_payload=16777216", "16760832"),
            ("mongodb://u:hunter2@h/?create_index=hunter2", "true or"),
            ("mongodb://u:hunter2@h/?timeout=0s", "zero"),
            (
                "mongodb://u:hunter2@h/?collection=system.x",
                "name of a coll",
            ),
            ("mongodb://u:hunter2@h/admin", "name of a database"),
            ("mongodb://u:hunter2@h/?w=0", "at least 1"),
            ("mongodb://u:hunter2@h/?readPreference=nearest", "primary"),
            ("mongodb://h/?tls=true&tlsCAFile=/hunter2", "TLS"),
        ] {
            let text = refused(url).await;
            assert!(text.contains(says), "{url}: {text}");
            assert!(
                !text.contains("hunter2") && !text.contains("ter2"),
                "{text}"
            );
        }
    }
}
