//! Settings of the store.

use std::fmt;
use std::time::Duration;

use ::redis::{ClientTlsConfig, TlsCertificates};

use super::client::RedisClient;
use super::connect::Target;
use super::errors::config;
use super::record::HEADER_LEN;
use super::{RedisStore, StoreError};

/// What Redis allows for a value.
const LARGEST_PAYLOAD: usize = 512 * 1024 * 1024 - HEADER_LEN;
const LONGEST_PREFIX: usize = 128;

/// Settings of a [`RedisStore`], from [`RedisStore::builder`].
#[must_use = "call `build` to get a store"]
pub struct RedisStoreBuilder {
    origin: Origin,
    prefix: Option<String>,
    max_payload: Option<usize>,
    timeout: Option<Duration>,
    certificates: TlsCertificates,
}

pub(super) enum Origin {
    Url(String),
    Client(RedisClient),
}

pub(in crate::store) struct Settings {
    pub(in crate::store) prefix: String,
    pub(in crate::store) max_payload: usize,
    pub(in crate::store) timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: "session:".to_owned(),
            max_payload: 1024 * 1024,
            // Less than the layer's own limit of two seconds, so that the reason is known when it is
            // reported.
            timeout: Duration::from_millis(1500),
        }
    }
}

impl RedisStoreBuilder {
    pub(super) fn new(origin: Origin) -> Self {
        Self {
            origin,
            prefix: None,
            max_payload: None,
            timeout: None,
            certificates: TlsCertificates {
                client_tls: None,
                root_cert: None,
            },
        }
    }

    /// What the keys begin with. Default: `session:`. One to 128 visible ASCII characters, without
    /// braces, which would keep all the sessions of a cluster on one server. Stores with different
    /// prefixes see nothing of each other.
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// The largest payload, in bytes. Default: 1 MiB; at most 512 MiB less 33 bytes, and less than
    /// the server's `proto-max-bulk-len`. A larger one is refused before it is sent, and one that is
    /// met is not read.
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = Some(bytes);
        self
    }

    /// How long a verb may take, connecting included. Default: 1.5 seconds. Keep it below the
    /// layer's own limit ([`SessionConfig::with_store_timeout`](crate::SessionConfig::with_store_timeout)).
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The certificates, as PEM, of the authorities that may vouch for the server, instead of the
    /// public ones. For a URL with TLS only.
    pub fn with_ca_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.root_cert = Some(pem.into());
        self
    }

    /// The certificate and the key, as PEM, with which this client shows who it is. For a URL with
    /// TLS only.
    pub fn with_client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.certificates.client_tls = Some(ClientTlsConfig {
            client_cert: certificate.into(),
            client_key: key.into(),
        });
        self
    }

    /// Makes the store. Does not wait for the server.
    ///
    /// # Errors
    ///
    /// [`Config`](super::super::StoreErrorKind::Config) for a setting that cannot work, and as
    /// [`RedisStore::connect`].
    pub fn build(self) -> Result<RedisStore, StoreError> {
        let has_certificates =
            self.certificates.client_tls.is_some() || self.certificates.root_cert.is_some();
        let (client, mut settings) = match self.origin {
            Origin::Url(url) => Target::parse(&url, self.certificates)?,
            Origin::Client(_) if has_certificates => {
                return Err(config(
                    "certificates are set on the client that is handed over",
                ));
            }
            Origin::Client(client) => (client, Settings::default()),
        };
        if let Some(prefix) = self.prefix {
            settings.prefix = prefix;
        }
        if let Some(bytes) = self.max_payload {
            settings.max_payload = bytes;
        }
        if let Some(timeout) = self.timeout {
            settings.timeout = timeout;
        }
        settings.check()?;
        Ok(RedisStore::new(client.into_route(), settings))
    }
}

impl Settings {
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        let visible = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}');
        if self.prefix.is_empty()
            || self.prefix.len() > LONGEST_PREFIX
            || !self.prefix.bytes().all(visible)
        {
            return Err(config(
                "a prefix is 1 to 128 visible ASCII characters without braces",
            ));
        }
        if self.max_payload > LARGEST_PAYLOAD {
            return Err(config(
                "Redis takes payloads of at most 512 MiB less 33 bytes",
            ));
        }
        if self.timeout.is_zero() {
            return Err(config("a timeout of zero leaves no time to answer"));
        }
        Ok(())
    }
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder")
            .field("prefix", &self.prefix)
            .field("max_payload", &self.max_payload)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
