//! A store chosen by a URL, at run time.

use super::AnyStore;
use crate::store::url::StoreUrl;
use crate::store::{StoreError, StoreErrorKind};

impl AnyStore {
    /// Opens the store that `url` names: the choice of a store as a setting.
    ///
    /// | URL | store | feature |
    /// | --- | --- | --- |
    /// | `memory://` | `MemoryStore` | `memory` |
    /// | `null://` | `NullStore` | `null` |
    /// | `file:///var/lib/app/sessions` | `FileStore` | `file` |
    /// | `sqlite://sessions.db` | `SqliteStore` | `sqlite` |
    /// | `postgres://user:password@host/database`, `postgresql://…` | `PostgresStore` | `postgres` |
    /// | `mysql://user:password@host/database`, `mariadb://…` | `MySqlStore` | `mysql` |
    /// | `redis://host:6379/0`, `redis+cluster://host1,host2`, `redis+sentinel://host1,host2/mymaster`, `redis+unix:///path`; `rediss…` for TLS; `valkey…` | `RedisStore` | `redis` |
    /// | `memcached://cache1:11211,cache2:11211` | `MemcachedStore` | `memcached` |
    /// | `dynamodb://sessions?region=eu-central-1` | `DynamoStore` | `dynamodb` |
    /// | `mongodb://host/app`, `mongodb+srv://host/app` | `MongoStore` | `mongodb` |
    /// | `flask+redis://host/0`, `flask+memcached://cache1` | `FlaskRedisStore`, `FlaskMemcachedStore`: for copying Flask-Session's sessions; a layer on them is made by `SessionLayer::for_flask` | `flask` |
    ///
    /// Settings of the store follow a `?`, as in `sqlite://app.db?table=sessions`; the `connect` of
    /// each store lists its own. Names and passwords are percent-encoded. Most stores on servers do
    /// not wait for their server here; the first request does.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL names no store, one whose feature is not
    /// enabled, or a setting that the store does not know, and as the store's own `connect`. What the
    /// URL holds beside names is in no error.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use session_layer::AnyStore;
    ///
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// let url = std::env::var("SESSION_STORE").unwrap_or("memory://".into());
    /// let store = AnyStore::connect(&url).await?;
    /// # Ok::<(), session_layer::StoreError>(())
    /// # }).unwrap();
    /// # }
    /// ```
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let parsed = StoreUrl::parse(url)?;
        match parsed.scheme() {
            #[cfg(feature = "memory")]
            "memory" => Ok(Self::with_scan(crate::store::MemoryStore::connect(url)?)),
            #[cfg(feature = "null")]
            "null" => Ok(Self::new(crate::store::NullStore::connect(url)?)),
            #[cfg(feature = "file")]
            "file" => Ok(Self::with_scan(
                crate::store::FileStore::connect(url).await?,
            )),
            #[cfg(feature = "sqlite")]
            "sqlite" => Ok(Self::with_scan(
                crate::store::SqliteStore::connect(url).await?,
            )),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => Ok(Self::with_scan(
                crate::store::PostgresStore::connect(url).await?,
            )),
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => Ok(Self::with_scan(
                crate::store::MySqlStore::connect(url).await?,
            )),
            #[cfg(feature = "redis")]
            scheme if of_redis(scheme) => {
                let store = crate::store::RedisStore::connect(url).await?;
                Ok(Self::with_scan(store))
            }
            #[cfg(feature = "memcached")]
            "memcached" => Ok(Self::new(crate::store::MemcachedStore::connect(url).await?)),
            #[cfg(feature = "dynamodb")]
            "dynamodb" => Ok(Self::with_scan(
                crate::store::DynamoStore::connect(url).await?,
            )),
            #[cfg(feature = "mongodb")]
            "mongodb" | "mongodb+srv" => Ok(Self::with_scan(
                crate::store::MongoStore::connect(url).await?,
            )),
            #[cfg(all(feature = "flask", any(feature = "redis", feature = "memcached")))]
            scheme if scheme.starts_with(FLASK) => of_flask(scheme, &url[FLASK.len()..]).await,
            scheme => Err(unknown(scheme)),
        }
    }
}

/// Begins the schemes of stores whose records are Flask-Session's.
#[cfg(all(feature = "flask", any(feature = "redis", feature = "memcached")))]
const FLASK: &str = "flask+";

#[cfg(all(feature = "flask", any(feature = "redis", feature = "memcached")))]
async fn of_flask(scheme: &str, url: &str) -> Result<AnyStore, StoreError> {
    match &scheme[FLASK.len()..] {
        #[cfg(feature = "redis")]
        inner if of_redis(inner) => {
            let store = crate::store::FlaskRedisStore::connect(url).await?;
            Ok(AnyStore::with_scan(store))
        }
        #[cfg(feature = "memcached")]
        "memcached" => {
            let store = crate::store::FlaskMemcachedStore::connect(url).await?;
            Ok(AnyStore::new(store))
        }
        _ => Err(unknown(scheme)),
    }
}

/// The schemes there are, and the feature that brings each.
const SCHEMES: &[(&str, &str)] = &[
    ("memory", "memory"),
    ("null", "null"),
    ("file", "file"),
    ("sqlite", "sqlite"),
    ("postgres", "postgres"),
    ("postgresql", "postgres"),
    ("mysql", "mysql"),
    ("mariadb", "mysql"),
    ("redis", "redis"),
    ("rediss", "redis"),
    ("redis+cluster", "redis"),
    ("rediss+cluster", "redis"),
    ("redis+sentinel", "redis"),
    ("rediss+sentinel", "redis"),
    ("redis+unix", "redis"),
    ("valkey", "redis"),
    ("valkeys", "redis"),
    ("valkey+cluster", "redis"),
    ("valkeys+cluster", "redis"),
    ("valkey+sentinel", "redis"),
    ("valkeys+sentinel", "redis"),
    ("valkey+unix", "redis"),
    ("memcached", "memcached"),
    ("dynamodb", "dynamodb"),
    ("mongodb", "mongodb"),
    ("mongodb+srv", "mongodb"),
    ("flask+redis", "flask"),
    ("flask+memcached", "flask"),
];

#[cfg(feature = "redis")]
fn of_redis(scheme: &str) -> bool {
    SCHEMES.contains(&(scheme, "redis"))
}

fn unknown(scheme: &str) -> StoreError {
    let message = match SCHEMES.iter().find(|(known, _)| *known == scheme) {
        Some((known, feature)) => format!(
            "the URL begins with `{known}://`, whose store needs the cargo feature `{feature}`"
        ),
        None => {
            let known: Vec<_> = SCHEMES
                .iter()
                .map(|(known, _)| format!("{known}://"))
                .collect();
            format!(
                "the URL names no store: it is to begin with one of {}",
                known.join(", ")
            )
        }
    };
    StoreError::new(StoreErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_there_is_named_and_secrets_are_not() {
        for url in ["", "hunter2", "nosuch://user:hunter2@host", "://hunter2"] {
            let error = AnyStore::connect(url).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let error = unknown("sqlite").to_string();
        assert!(error.contains("cargo feature `sqlite`"), "{error}");
        assert!(unknown("nosuch").to_string().contains("sqlite://"));
    }

    #[cfg(all(feature = "memory", feature = "null"))]
    #[tokio::test]
    async fn schemes_count_in_either_case_and_settings_must_be_known() {
        assert!(AnyStore::connect("MEMORY://").await.is_ok());
        assert!(AnyStore::connect("memory://?max_records=5").await.is_ok());
        for (url, says) in [
            ("memory://?max_record=5", "max_records"),
            ("memory://?max_records=many", "a number"),
            ("memory://here", "nothing but settings"),
            ("null://?x=1", "none"),
        ] {
            let error = AnyStore::connect(url).await.unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[cfg(all(feature = "file", feature = "sqlite"))]
    #[tokio::test]
    async fn embedded_stores_open_where_the_url_says() {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path().display();
        AnyStore::connect(&format!(
            "file://{at}/a%20b?sync=always&max_records=3&max_payload=9"
        ))
        .await
        .unwrap();
        assert!(scratch.path().join("a b").is_dir());
        AnyStore::connect(&format!(
            "sqlite://{at}/s.db?table=t&readers=1&max_payload=9"
        ))
        .await
        .unwrap();
        assert!(scratch.path().join("s.db").is_file());
        for (url, says) in [
            (format!("file://{at}/x?sync=never"), "always, endings"),
            (format!("file://{at}/x?table=t"), "max_records"),
            (format!("sqlite://{at}/x?table=a%22b"), "table name"),
            (format!("sqlite://{at}/x?tabel=t"), "create_table"),
        ] {
            let error = AnyStore::connect(&url).await.unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
        assert!(!scratch.path().join("x").exists());
    }
}
