//! What an error of the driver means.

use std::error::Error;
use std::fmt;
use std::io;

use mongodb::error::{ErrorKind, WriteFailure};

use crate::store::{StoreError, StoreErrorKind};

/// The code of a write that would have made a second document of one key.
const DUPLICATE_KEY: i32 = 11000;
const REFUSED: &str = "the server does not accept the user name and password";

/// An error of the driver, for `doing`. The driver's own text quotes commands, and with them keys and
/// data; what is kept of it does not.
pub(super) fn failed(doing: &'static str, error: &mongodb::error::Error) -> StoreError {
    let (kind, message) = match &*error.kind {
        ErrorKind::Command(found) => of_code(found.code, doing),
        ErrorKind::Write(found) => of_code(code(found), doing),
        ErrorKind::Authentication { .. } => (StoreErrorKind::Config, REFUSED),
        ErrorKind::InvalidTlsConfig { .. } => (
            StoreErrorKind::Config,
            "TLS cannot work with these settings, or its files cannot be read",
        ),
        ErrorKind::InvalidArgument { .. }
        | ErrorKind::IncompatibleServer { .. }
        | ErrorKind::SessionsNotSupported => (
            StoreErrorKind::Config,
            "the driver or this server cannot work with these settings",
        ),
        ErrorKind::Io(found) if found.kind() == io::ErrorKind::TimedOut => {
            (StoreErrorKind::Timeout, "the server did not answer in time")
        }
        ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } => {
            (StoreErrorKind::Unavailable, "the connection was lost")
        }
        // For some seconds after it refused a password, the driver does not ask a server again.
        ErrorKind::ServerSelection { message, .. } if message.contains("Authentication failed") => {
            (StoreErrorKind::Config, REFUSED)
        }
        ErrorKind::ServerSelection { .. } => (
            StoreErrorKind::Unavailable,
            "there is no server that takes writes",
        ),
        ErrorKind::DnsResolve { .. } => (
            StoreErrorKind::Unavailable,
            "the servers' names cannot be looked up",
        ),
        ErrorKind::Shutdown => (StoreErrorKind::Unavailable, "the client was shut down"),
        _ => (StoreErrorKind::Other, doing),
    };
    StoreError::new(kind, message).with_source(Told::by(error))
}

/// Whether a write failed because there is a document of that key already.
pub(super) fn is_taken(error: &mongodb::error::Error) -> bool {
    match &*error.kind {
        ErrorKind::Write(WriteFailure::WriteError(found)) => {
            found.code == DUPLICATE_KEY && found.message.contains("index: _id_ ")
        }
        _ => false,
    }
}

/// The kind of what the server itself answered. The numbers are those of its `error_codes`.
fn of_code(code: i32, doing: &'static str) -> (StoreErrorKind, &'static str) {
    use StoreErrorKind::{Config, Other, Timeout, TooLarge, Unavailable, Unsupported};
    match code {
        // Unauthorized
        13 => (
            Config,
            "the user lacks a privilege: find, insert, update and remove are needed, and \
             createIndex unless the index is left to others",
        ),
        // UserNotFound, AuthenticationFailed, AtlasError, ReauthenticationRequired
        11 | 18 | 8000 | 391 => (Config, REFUSED),
        // CannotCreateIndex, IndexOptionsConflict, IndexKeySpecsConflict
        67 | 85 | 86 => (
            Config,
            "the index on `expires_at` cannot be made: another one is in its place; drop that, or \
             leave the index alone and see to it that expired documents go",
        ),
        // UnknownReplWriteConcern, UnsatisfiableWriteConcern
        79 | 100 => (
            Config,
            "the write concern asks for more members than there are",
        ),
        // NotAReplicaSet
        123 => (Config, "the read concern needs a replica set"),
        // DocumentValidationFailure
        121 => (Config, "the collection's validator refuses session records"),
        DUPLICATE_KEY => (
            Config,
            "the collection has a unique index beside `_id`: drop it",
        ),
        // InvalidNamespace, CommandNotSupportedOnView
        73 | 166 => (Config, "the collection cannot hold sessions"),
        // CommandNotFound, APIVersionError, APIStrictError
        59 | 322 | 323 => (Unsupported, doing),
        // BSONObjectTooLarge, and the document that would grow too large
        10334 | 17419 | 17420 => (TooLarge, "the server allows documents of 16 MiB"),
        // LockTimeout, MaxTimeMSExpired, WriteConcernFailed, NetworkTimeout,
        // NetworkInterfaceExceededTimeLimit, ExceededTimeLimit
        24 | 50 | 64 | 89 | 202 | 262 => (Timeout, "the server did not finish in time"),
        // NotWritablePrimary, NotPrimaryNoSecondaryOk, NotPrimaryOrSecondary, PrimarySteppedDown,
        // LegacyNotPrimary
        10107 | 13435 | 13436 | 189 | 10058 => {
            (Unavailable, "the server is not the primary any more")
        }
        // ShutdownInProgress, InterruptedAtShutdown, InterruptedDueToReplStateChange, Interrupted
        91 | 11600 | 11602 | 11601 => (Unavailable, "the server has stopped the command"),
        // HostUnreachable, HostNotFound, SocketException, FailedToSatisfyReadPreference,
        // ReadConcernMajorityNotAvailableYet
        6 | 7 | 9001 | 133 | 134 => (Unavailable, "the servers cannot reach each other"),
        // WriteConflict, ExceededMemoryLimit, IngressRequestRateLimitExceeded, OutOfDiskSpace
        112 | 146 | 462 | 14031 => (Unavailable, "the server refuses work for now"),
        _ => (Other, doing),
    }
}

fn code(failure: &WriteFailure) -> i32 {
    match failure {
        WriteFailure::WriteConcernError(found) => found.code,
        WriteFailure::WriteError(found) => found.code,
        _ => 0,
    }
}

/// What may be told of the driver's error.
#[derive(Debug)]
struct Told(String);

impl Told {
    fn by(error: &mongodb::error::Error) -> Self {
        Self(match &*error.kind {
            ErrorKind::Command(found) => format!("error {} ({})", found.code, found.code_name),
            ErrorKind::Write(WriteFailure::WriteError(found)) => {
                let name = found.code_name.as_deref().unwrap_or("write error");
                format!("error {} ({name})", found.code)
            }
            ErrorKind::Write(WriteFailure::WriteConcernError(found)) => {
                format!("write concern error {} ({})", found.code, found.code_name)
            }
            ErrorKind::Io(found) => found.to_string(),
            // Addresses, and why each server was not chosen.
            ErrorKind::ServerSelection { message, .. } => message.clone(),
            ErrorKind::Authentication { .. } => "authentication failed".to_owned(),
            ErrorKind::ConnectionPoolCleared { .. } => "the pool was cleared".to_owned(),
            _ => "an error that may quote what is confidential".to_owned(),
        })
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Told {}
