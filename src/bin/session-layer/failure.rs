//! How a command ends: its exit status, and the message of one that failed.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use session_layer::{StoreError, StoreErrorKind};

/// The exit status, as `docs/command-line.md` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Something did not work; nothing is known of what was not reported.
    Failed,
    /// The arguments, the URL, or the store's setup are wrong: the same again would fail again.
    Misused,
    /// Done, but something was left behind, and named.
    LeftBehind,
    /// Stopped by a signal, between two records.
    Interrupted,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::Misused => 2,
            Outcome::LeftBehind => 3,
            Outcome::Interrupted => 130,
        })
    }
}

/// Why a command did not get to its end.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    misused: bool,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            misused: false,
            cause: None,
        }
    }

    pub(crate) fn misuse(message: impl Into<String>) -> Self {
        Self {
            misused: true,
            ..Self::new(message)
        }
    }

    pub(crate) fn caused_by(self, cause: impl Error + Send + Sync + 'static) -> Self {
        Self {
            cause: Some(Box::new(cause)),
            ..self
        }
    }

    /// Says which of several stores it is about.
    pub(crate) fn prefixed(self, which: &str) -> Self {
        Self {
            message: format!("{which}: {}", self.message),
            ..self
        }
    }

    /// The store's error while `doing` something.
    pub(crate) fn of_store(doing: impl fmt::Display, error: StoreError) -> Self {
        let misused = matches!(
            error.kind(),
            StoreErrorKind::Config | StoreErrorKind::Unsupported
        );
        Self {
            misused,
            ..Self::new(doing.to_string()).caused_by(error)
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        if self.misused {
            Outcome::Misused
        } else {
            Outcome::Failed
        }
    }

    pub(crate) fn is_closed_output(&self) -> bool {
        self.cause
            .as_deref()
            .and_then(|cause| cause.downcast_ref::<io::Error>())
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What cannot be written to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new("cannot write").caused_by(error)
    }
}

/// The message and the cause. Of a store's error only its own text, which is safe to show; what the
/// driver said beneath it may quote a URL.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let Some(cause) = &self.cause else {
            return Ok(());
        };
        write!(f, ": {cause}")?;
        let system = cause.source().and_then(|s| s.downcast_ref::<io::Error>());
        if let Some(system) = system {
            write!(f, ": {}", system.kind())?;
        }
        Ok(())
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_why_and_never_what_a_driver_said() {
        let driver = io::Error::new(io::ErrorKind::ConnectionRefused, "redis://u:hunter2@host");
        let error = StoreError::new(StoreErrorKind::Unavailable, "cannot connect");
        let failure = Failure::of_store("cannot list", error.with_source(driver));
        assert_eq!(
            failure.to_string(),
            "cannot list: session store unavailable: cannot connect: connection refused"
        );
        assert_eq!(failure.outcome(), Outcome::Failed);
    }

    #[test]
    fn what_would_fail_again_is_told_from_what_may_not() {
        let outcome = |kind| Failure::of_store("x", StoreError::new(kind, "y")).outcome();
        assert_eq!(outcome(StoreErrorKind::Config), Outcome::Misused);
        assert_eq!(outcome(StoreErrorKind::Unsupported), Outcome::Misused);
        assert_eq!(outcome(StoreErrorKind::Timeout), Outcome::Failed);
        let closed = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(closed.is_closed_output());
    }
}
