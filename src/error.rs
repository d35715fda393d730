//! The errors of the crate: [`StoreError`], [`SessionError`], [`ConfigError`].

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

type Source = Arc<dyn Error + Send + Sync + 'static>;

/// Why a store could not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store is set up wrongly: bad credentials, a missing table, a directory others can read.
    Config,
    /// What the store holds under this key is no record. The layer takes it for absent, so this is
    /// never said of a store that is damaged as a whole.
    Corrupt,
    /// Anything else.
    Other,
    /// No answer in time. A write may or may not have happened.
    Timeout,
    /// The record is larger than [`StoreLimits`](crate::store::StoreLimits) allow. Nothing was written.
    TooLarge,
    /// The store cannot be reached, is full, or refuses work for now. A write may have happened.
    Unavailable,
    /// The store does not do this at all.
    Unsupported,
}

impl fmt::Display for StoreErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "session store misconfigured",
            Self::Corrupt => "session record unreadable",
            Self::Other => "session store failed",
            Self::Timeout => "session store timed out",
            Self::TooLarge => "session record too large",
            Self::Unavailable => "session store unavailable",
            Self::Unsupported => "not supported by this session store",
        })
    }
}

/// An error of a [`SessionStore`](crate::SessionStore).
///
/// Its text is safe to log: a store puts no session key, no data, and no URL with a password into
/// it. The driver's own error is behind [`source`](Error::source); its type is not part of this
/// crate's stable interface.
///
/// # Examples
///
/// ```
/// use session_layer::{StoreError, StoreErrorKind};
///
/// let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// let error = StoreError::new(StoreErrorKind::Unavailable, "cannot connect").with_source(refused);
/// assert_eq!(error.kind(), StoreErrorKind::Unavailable);
/// assert_eq!(error.to_string(), "session store unavailable: cannot connect");
/// ```
#[derive(Debug, Clone)]
pub struct StoreError {
    kind: StoreErrorKind,
    message: Cow<'static, str>,
    source: Option<Source>,
}

impl StoreError {
    /// An error of this kind; `message` says what was being done or what to change.
    #[must_use]
    pub fn new(kind: StoreErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// What went wrong, for deciding what to do.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// The error for a record of `size` bytes in a store that takes at most `limit`.
    #[must_use]
    pub fn too_large(size: usize, limit: usize) -> Self {
        Self::new(
            StoreErrorKind::TooLarge,
            format!("{size} bytes, at most {limit} are allowed"),
        )
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// What kept a session operation from working.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionErrorKind {
    /// The change needs a cookie, and the response head has left (or there never was a request).
    /// Nothing was stored.
    CookieTooLate,
    /// The stored value is not of the type asked for.
    Decode,
    /// The value cannot be encoded: its type has no form in the session's format, its key is
    /// reserved, or a limit on size, number of keys or nesting would be passed.
    Encode,
    /// The session was ended or rotated by another request; the edits are dropped.
    Ended,
    /// The request did not pass through a [`SessionLayer`](crate::SessionLayer).
    MissingLayer,
    /// A value that this request took was taken or changed by another one; the rest is stored.
    Taken,
    /// The store failed, did not answer in time, or could not settle a conflict before the commit
    /// deadline.
    Store,
    /// The layer cannot do this with its store: users, where sessions are shared with Flask.
    Unsupported,
}

/// The error of [`Session`](crate::Session) and its relatives.
///
/// With the `axum` feature it is a response: 503 where the store failed, 409 where the session has
/// ended meanwhile, 500 otherwise, with a short plain-text body that gives nothing away.
///
/// `Display` and `Debug` are safe to log. The [`source`](Error::source) of a
/// [`Decode`](SessionErrorKind::Decode) error is not: it is the format's own error, which may quote the
/// value.
#[derive(Clone)]
pub struct SessionError {
    kind: SessionErrorKind,
    message: Cow<'static, str>,
    source: Option<Source>,
}

impl SessionError {
    pub(crate) fn new(kind: SessionErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// What went wrong, for deciding what to do.
    #[must_use]
    pub fn kind(&self) -> SessionErrorKind {
        self.kind
    }

    /// The store's error, when the store was the cause.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        self.source.as_deref()?.downcast_ref()
    }

    /// The HTTP status that fits this error: 503, 409 or 500.
    #[must_use]
    pub fn status(&self) -> http::StatusCode {
        match self.kind {
            SessionErrorKind::Store => http::StatusCode::SERVICE_UNAVAILABLE,
            SessionErrorKind::Ended | SessionErrorKind::Taken => http::StatusCode::CONFLICT,
            SessionErrorKind::CookieTooLate
            | SessionErrorKind::Decode
            | SessionErrorKind::Encode
            | SessionErrorKind::MissingLayer
            | SessionErrorKind::Unsupported => http::StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<StoreError> for SessionError {
    fn from(error: StoreError) -> Self {
        Self::new(SessionErrorKind::Store, error.kind().to_string()).with_source(error)
    }
}

impl fmt::Debug for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("SessionError");
        out.field("kind", &self.kind)
            .field("message", &self.message);
        if let Some(error) = self.store_error() {
            out.field("source", error);
        }
        out.finish_non_exhaustive()
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for SessionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// A setting that cannot work. The text names it and says what to change.
///
/// `Debug` prints the same text: that is what is seen of an error which `main` returns.
///
/// # Examples
///
/// ```
/// use session_layer::SigningKeys;
///
/// let error = SigningKeys::new("too short").unwrap_err();
/// assert!(error.to_string().contains("`openssl rand -base64 48`"));
/// assert_eq!(format!("{error:?}"), error.to_string());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigError {
    message: Cow<'static, str>,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ConfigError {}
