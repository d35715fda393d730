//! Stores whose records Flask-Session reads and writes, too.

#[cfg(feature = "memcached")]
mod memcached;
mod record;
#[cfg(feature = "redis")]
mod redis;

#[cfg(feature = "memcached")]
pub use self::memcached::FlaskMemcachedStore;
pub(crate) use self::record::Dialect;
#[cfg(feature = "redis")]
pub use self::redis::FlaskRedisStore;
use self::sealed::Speaks;
#[cfg(any(feature = "memcached", feature = "redis"))]
use super::{SessionKey, StoreError, StoreErrorKind};
use crate::config::SessionConfig;

/// A store of Flask-Session's records, for
/// [`SessionLayer::for_flask`](crate::SessionLayer::for_flask).
///
/// Implemented by the stores of this crate; a store of one's own cannot get at the ids that Flask finds
/// its sessions by.
///
/// # What is kept and what is not
///
/// These stores keep the contract of [`SessionStore`](crate::SessionStore) among the requests of this crate, apart from
/// these points. There is no place for a revision in Flask's records: what is compared is a hash of the
/// stored bytes (on memcached its CAS unique), so a record that was changed and changed back counts as
/// unchanged, and a write whose answer was lost cannot be recognised: the request is answered with 503.
/// There is none for a tombstone: ending a session deletes its record, so a logout that races a
/// rotation may find nothing to end, and a request with the cookie of an ended session is simply a new
/// visitor. Flask-Session itself writes without any condition, and can undo what was done here.
pub trait FlaskStore: Speaks {}

impl<S: Speaks> FlaskStore for S {}

#[expect(unnameable_types, reason = "nobody else is to implement it")]
mod sealed {
    use super::Dialect;
    use crate::store::SessionStore;

    /// A store that takes what a layer's configuration means for its records.
    pub trait Speaks: SessionStore + Sized {
        #[must_use]
        fn with_dialect(self, dialect: Dialect) -> Self;
    }
}

impl Dialect {
    pub(crate) fn of(config: &SessionConfig) -> Self {
        Self {
            permanent: config.is_permanent(),
            keep_created: config.has_absolute_timeout(),
        }
    }
}

/// The name of a record: the prefix and the id.
#[cfg(any(feature = "memcached", feature = "redis"))]
fn name(prefix: &str, key: &SessionKey) -> Result<String, StoreError> {
    let Some(id) = key.id() else {
        return Err(StoreError::new(
            StoreErrorKind::Unsupported,
            "a Flask store finds sessions by their ids, and this key has none: it was read from text, \
             or the layer is not one made by `SessionLayer::for_flask`",
        ));
    };
    let text = id.to_text();
    // base64url is ASCII.
    let text = std::str::from_utf8(&text).unwrap_or_default();
    Ok(format!("{prefix}{text}"))
}

/// The error for a prefix that cannot be one.
#[cfg(feature = "memcached")]
fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    if prefix.len() <= 200 && prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(StoreError::new(
        StoreErrorKind::Config,
        "a key prefix is up to 200 ASCII characters without spaces",
    ))
}

/// Flask-Session's own default.
#[cfg(feature = "memcached")]
const PREFIX: &str = "session:";

/// How long a record lives that Flask, or somebody else, has left without an expiry.
#[cfg(any(feature = "memcached", feature = "redis"))]
const ENDLESS: std::time::Duration = crate::config::MAX_LIFETIME;
