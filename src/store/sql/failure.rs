//! What errors of the driver mean, and what may be said of them.

use std::error::Error;
use std::fmt;
use std::io::ErrorKind;

use sqlx::error::DatabaseError;

use super::Dialect;
use crate::store::{StoreError, StoreErrorKind};

/// What an error means.
#[derive(Clone, Copy)]
pub(in crate::store) struct Verdict {
    pub(in crate::store) kind: StoreErrorKind,
    pub(in crate::store) message: &'static str,
    pub(in crate::store) then: Then,
}

/// What follows from an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Then {
    /// The connection can be used again.
    GoOn,
    /// It cannot.
    HangUp,
    /// The server says that it has undone the statement for the sake of another one.
    TryAgain,
}

impl Verdict {
    pub(in crate::store) const fn new(
        kind: StoreErrorKind,
        then: Then,
        message: &'static str,
    ) -> Self {
        Self {
            kind,
            message,
            then,
        }
    }
}

pub(super) fn judge<D: Dialect>(error: &sqlx::Error) -> Verdict {
    use StoreErrorKind::{Config, Other, Unavailable};
    match error {
        sqlx::Error::Database(error) => D::judge(&**error),
        // What rustls says of a certificate.
        sqlx::Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
            Verdict::new(Config, Then::HangUp, NO_TLS)
        }
        sqlx::Error::Tls(_) => Verdict::new(Config, Then::HangUp, NO_TLS),
        sqlx::Error::Io(_) => Verdict::new(
            Unavailable,
            Then::HangUp,
            "the server cannot be reached, or the connection was lost",
        ),
        sqlx::Error::Configuration(_) => {
            Verdict::new(Config, Then::HangUp, "the driver cannot use these settings")
        }
        sqlx::Error::PoolTimedOut => Verdict::new(
            Unavailable,
            Then::GoOn,
            "the pool had no connection to the server in time",
        ),
        sqlx::Error::PoolClosed => Verdict::new(Unavailable, Then::GoOn, "the pool is closed"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) => {
            Verdict::new(Config, Then::GoOn, OTHER_FORM)
        }
        _ => Verdict::new(Other, Then::HangUp, "the driver failed"),
    }
}

const NO_TLS: &str = "no TLS connection to the server can be made";

pub(in crate::store) const NO_TABLE: &str =
    "there is no table for sessions: call `migrate`, or run the text of `schema`";

pub(in crate::store) const OTHER_FORM: &str = "the table for sessions is not the one of `schema`";

/// The store's error for one of the driver's.
pub(super) fn failed<D: Dialect>(error: sqlx::Error) -> StoreError {
    let verdict = judge::<D>(&error);
    let failed = StoreError::new(verdict.kind, verdict.message);
    match error {
        sqlx::Error::Database(error) => failed.with_source(ServerError::new(&*error)),
        // It quotes what it does not understand, which may be a part of a password.
        sqlx::Error::Configuration(_) => failed,
        error => failed.with_source(error),
    }
}

/// What a server has said, without details: those quote keys and rows.
#[derive(Debug)]
struct ServerError {
    code: String,
    message: String,
}

impl ServerError {
    fn new(error: &dyn DatabaseError) -> Self {
        let code = error.code().unwrap_or_default().into_owned();
        // Of values that are wrong, and of keys that are there already, the message itself does.
        let quotes = code.starts_with("22") || code.starts_with("23");
        Self {
            message: if quotes {
                "about a value".to_owned()
            } else {
                error.message().to_owned()
            },
            code,
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SQLSTATE {}: {}", self.code, self.message)
    }
}

impl Error for ServerError {}
