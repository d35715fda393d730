//! The stores without a server, opened by URL.

#![allow(unused_imports, reason = "each store uses its part")]

use crate::store::url::StoreUrl;
use crate::store::{StoreError, StoreErrorKind};

#[cfg(any(feature = "memory", feature = "null"))]
fn no_place(url: &StoreUrl) -> Result<(), StoreError> {
    if url.body().is_empty() {
        return Ok(());
    }
    Err(StoreError::new(
        StoreErrorKind::Config,
        format!("`{}://` is followed by nothing but settings", url.scheme()),
    ))
}

#[cfg(feature = "memory")]
impl crate::store::MemoryStore {
    /// A store with the bounds that `url` sets: `memory://?max_records=10000&max_bytes=…&max_payload=…`.
    /// See [`with_max_records`](Self::with_max_records) and its neighbours.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL is not of this form.
    pub fn connect(url: &str) -> Result<Self, StoreError> {
        let mut url = StoreUrl::parse(url)?;
        no_place(&url)?;
        let mut store = Self::new();
        if let Some(records) = url.take_as("max_records", "a number")? {
            store = store.with_max_records(records);
        }
        if let Some(bytes) = url.take_as("max_bytes", "a number of bytes")? {
            store = store.with_max_bytes(bytes);
        }
        if let Some(bytes) = url.take_as("max_payload", "a number of bytes")? {
            store = store.with_max_payload(bytes);
        }
        url.finish(&["max_records", "max_bytes", "max_payload"])?;
        Ok(store)
    }
}

#[cfg(feature = "null")]
impl crate::store::NullStore {
    /// The store that holds nothing, as `null://`.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL says more.
    pub fn connect(url: &str) -> Result<Self, StoreError> {
        let url = StoreUrl::parse(url)?;
        no_place(&url)?;
        url.finish(&[])?;
        Ok(Self::new())
    }
}

#[cfg(feature = "file")]
impl crate::store::FileStore {
    /// Opens the directory that `url` names:
    /// `file:///var/lib/app/sessions?max_records=…&max_payload=…&sync=endings`; without a third slash
    /// the path is relative. `sync` is `endings` (the default) or `always`. See
    /// [`FileStoreBuilder`](crate::store::FileStoreBuilder).
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL is not of this form, and as
    /// [`open`](Self::open).
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        use crate::store::SyncPolicy;

        let mut url = StoreUrl::parse(url)?;
        let mut builder = Self::builder(url.path()?);
        if let Some(records) = url.take_as("max_records", "a number above zero")? {
            builder = builder.with_max_records(records);
        }
        if let Some(bytes) = url.take_as("max_payload", "a number of bytes")? {
            builder = builder.with_max_payload(bytes);
        }
        match url.take("sync")?.as_deref() {
            None => {}
            Some("always") => builder = builder.with_sync(SyncPolicy::Always),
            Some("endings") => builder = builder.with_sync(SyncPolicy::Endings),
            Some(_) => {
                return Err(StoreError::new(
                    StoreErrorKind::Config,
                    "the URL's `sync` is to be one of: always, endings",
                ));
            }
        }
        url.finish(&["max_records", "max_payload", "sync"])?;
        builder.open().await
    }
}

#[cfg(feature = "sqlite")]
impl crate::store::SqliteStore {
    /// Opens the database file that `url` names:
    /// `sqlite://sessions.db?table=sessions&max_payload=…&create_table=true&readers=4`; with a third
    /// slash the path is absolute. See [`SqliteStoreBuilder`](crate::store::SqliteStoreBuilder).
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL is not of this form, and as
    /// [`open`](Self::open).
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let mut url = StoreUrl::parse(url)?;
        let mut builder = Self::builder(url.path()?);
        if let Some(table) = url.take("table")? {
            builder = builder.with_table(table);
        }
        if let Some(bytes) = url.take_as("max_payload", "a number of bytes")? {
            builder = builder.with_max_payload(bytes);
        }
        if let Some(create) = url.take_as("create_table", "true or false")? {
            builder = builder.with_create_table(create);
        }
        if let Some(readers) = url.take_as("readers", "a number")? {
            builder = builder.with_readers(readers);
        }
        url.finish(&["table", "max_payload", "create_table", "readers"])?;
        builder.open().await
    }
}
