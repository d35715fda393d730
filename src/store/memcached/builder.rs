//! The settings, from a builder or a URL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use memcache::exp::AsyncMetaClient;

use super::servers::{Nodes, Servers, invalid};
use super::value::HEADER;
use super::{MemcachedStore, Shared};
use crate::store::url::StoreUrl;
use crate::store::{SessionKey, StoreError, StoreLimits};

/// memcached takes keys of up to 250 bytes.
const LONGEST_PREFIX: usize = 250 - SessionKey::LEN;
/// What memcached needs beside the payload: our header, the key, its own header.
const OVERHEAD: usize = 1024;
/// The driver reads values of up to 1 GiB.
const LARGEST_PAYLOAD: usize = (1 << 30) - OVERHEAD;
const _: () = assert!(OVERHEAD > HEADER + 250 + 64);

/// Settings of a [`MemcachedStore`], from [`MemcachedStore::builder`].
#[must_use = "call `build` to get a store"]
pub struct MemcachedStoreBuilder {
    origin: Origin,
    max_idle: usize,
    settings: Settings,
}

enum Origin {
    Client(AsyncMetaClient),
    Servers(Vec<String>),
}

/// What has to be right for any servers.
#[derive(Debug)]
struct Settings {
    prefix: String,
    max_payload: usize,
    timeout: Duration,
}

impl MemcachedStore {
    /// A store with the settings that `url` names:
    /// `memcached://cache1:11211,cache2:11211?prefix=shop:&max_payload=…&timeout=1500ms&max_idle=…`.
    /// Without a port, 11211 is meant. See [`MemcachedStoreBuilder`]. Waits for no server.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::StoreErrorKind::Config) when the URL is not of this form, or holds a user or a
    /// password, which would not be used.
    ///
    /// # Examples
    ///
    /// ```
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// use session_layer::store::MemcachedStore;
    ///
    /// let store = MemcachedStore::connect("memcached://cache1,cache2?prefix=shop:").await?;
    /// # Ok::<(), session_layer::StoreError>(())
    /// # }).unwrap();
    /// ```
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let mut url = StoreUrl::parse(url)?;
        if url.scheme() != "memcached" {
            return Err(invalid("a memcached URL begins with `memcached://`"));
        }
        let servers = url.body().trim_end_matches('/').split(',');
        let mut builder = Self::builder(servers);
        if let Some(prefix) = url.take("prefix")? {
            builder = builder.with_prefix(prefix);
        }
        if let Some(bytes) = url.take_as("max_payload", "a number of bytes")? {
            builder = builder.with_max_payload(bytes);
        }
        if let Some(timeout) =
            url.take_as::<humantime::Duration>("timeout", "a time, such as 1500ms")?
        {
            builder = builder.with_timeout(timeout.into());
        }
        if let Some(connections) = url.take_as("max_idle", "a number")? {
            builder = builder.with_max_idle(connections);
        }
        url.finish(&["prefix", "max_payload", "timeout", "max_idle"])?;
        builder.build()
    }

    /// Settings for a store on these servers, each as `host` or `host:port`.
    pub fn builder<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> MemcachedStoreBuilder {
        let servers = servers.into_iter().map(Into::into).collect();
        MemcachedStoreBuilder::new(Origin::Servers(servers))
    }

    /// Uses a client of yours, with the default settings; see
    /// [`builder_from_client`](Self::builder_from_client).
    #[must_use]
    pub fn from_client(client: AsyncMetaClient) -> Self {
        Settings::default().store(Servers::Client(client))
    }

    /// Settings for a store on a client of yours, with its servers, connections and time limits. The
    /// driver calls this part of itself experimental: its next minor version may break this function.
    ///
    /// Such a client looks names up once, when it is made, and finds the server of a key with a hash
    /// that may change with the version of Rust.
    pub fn builder_from_client(client: AsyncMetaClient) -> MemcachedStoreBuilder {
        MemcachedStoreBuilder::new(Origin::Client(client))
    }
}

impl MemcachedStoreBuilder {
    fn new(origin: Origin) -> Self {
        Self {
            origin,
            max_idle: 32,
            settings: Settings::default(),
        }
    }

    /// What every key in memcached begins with. Default: `session:`. 1 to 207 visible ASCII characters;
    /// any other is refused by [`build`](Self::build).
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.prefix = prefix.into();
        self
    }

    /// The largest payload, in bytes. Default: 1,047,552, which is what a memcached takes that was
    /// started without `-I`: 1 MiB, of which 1 KiB is not for the payload. At most 1 GiB less 1 KiB. A
    /// larger payload is refused before it is sent.
    ///
    /// Never more than the servers take: memcached answers too large a value by dropping the one that
    /// was there.
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.settings.max_payload = bytes;
        self
    }

    /// How long a verb may take in all, connecting included. Default: 1.5 seconds, less than the
    /// layer's own limit, so that the reason is known when it is reported. 1 ms to 1 hour.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// How many idle connections to each server are kept for later. Default: 32. As many verbs as are
    /// under way at the same time have a connection each; those above this number are closed again. Of
    /// no effect on a client of yours.
    pub fn with_max_idle(mut self, connections: usize) -> Self {
        self.max_idle = connections;
        self
    }

    /// Makes the store. Waits for no server, and looks no name up.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::StoreErrorKind::Config) for a setting that cannot work.
    pub fn build(self) -> Result<MemcachedStore, StoreError> {
        self.settings.check()?;
        let servers = match self.origin {
            Origin::Client(client) => Servers::Client(client),
            Origin::Servers(servers) => Servers::Nodes(Nodes::new(&servers, self.max_idle)?),
        };
        Ok(self.settings.store(servers))
    }
}

impl fmt::Debug for MemcachedStoreBuilder {
    /// Without the servers: what was meant for one may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedStoreBuilder")
            .field("max_idle", &self.max_idle)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: "session:".to_owned(),
            max_payload: (1 << 20) - OVERHEAD,
            timeout: Duration::from_millis(1500),
        }
    }
}

impl Settings {
    fn check(&self) -> Result<(), StoreError> {
        let visible = self.prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || !(1..=LONGEST_PREFIX).contains(&self.prefix.len()) {
            return Err(invalid(
                "a memcached prefix is 1 to 207 visible ASCII characters",
            ));
        }
        if self.max_payload > LARGEST_PAYLOAD {
            return Err(invalid(
                "memcached takes payloads of at most 1 GiB less 1 KiB",
            ));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&self.timeout) {
            return Err(invalid("the timeout is to be 1 ms to 1 hour"));
        }
        Ok(())
    }

    fn store(self, servers: Servers) -> MemcachedStore {
        MemcachedStore {
            shared: Arc::new(Shared {
                servers,
                prefix: self.prefix,
                limits: StoreLimits::new(self.max_payload)
                    .with_eviction(true)
                    .with_own_expiry(true)
                    .with_timeout(self.timeout),
                timeout: self.timeout,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SessionStore, StoreErrorKind};

    #[test]
    fn prefixes_are_visible_and_leave_room_for_the_key() {
        let build = |prefix: &str| MemcachedStore::builder(["a"]).with_prefix(prefix).build();
        for good in ["s", "session:", "a/b~c!", &"x".repeat(207)] {
            assert!(build(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "a b",
            "a\r\nflush_all\r\n",
            "a\0",
            "\u{7f}",
            "é",
            &"x".repeat(208),
        ] {
            let error = build(bad).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_url_has_the_same_settings() {
        let url = "memcached://a,B:1/?prefix=p%3A&max_payload=9&timeout=20ms&max_idle=2";
        let store = MemcachedStore::connect(url).await.unwrap();
        let limits = StoreLimits::new(9).with_eviction(true);
        assert_eq!(
            store.limits(),
            limits
                .with_own_expiry(true)
                .with_timeout(Duration::from_millis(20))
        );
        let shown = format!("{store:?}");
        for part in ["\"a:11211\", \"b:1\"", "\"p:\"", "20ms"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        for (url, says) in [
            ("memcached://", "host:port"),
            ("memcached://u:hunter2@a", "no password"),
            ("memcached://a/hunter2", "host:port"),
            ("memcached://a?timeout=hunter2", "1500ms"),
            ("memcached://a?timeout=0s", "1 ms"),
            ("memcached://a?max_payload=1073741824", "1 GiB"),
            ("memcached://a?password=hunter2", "max_idle"),
            ("redis://a", "memcached://"),
        ] {
            let error = MemcachedStore::connect(url).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
            let text = format!("{error} {error:?}");
            assert!(text.contains(says), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
        let builder = MemcachedStore::builder(["u:hunter2@a"]);
        assert!(!format!("{builder:?}").contains("hunter2"));
    }
}
