//! From the records of one kind of store to those of another: the one place that knows of both.

use bytes::Bytes;
use session_layer::SessionInfo;
use session_layer::store::{Record, SessionKey};

use crate::failure::Failure;

/// How a session is called and written in the target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Translation {
    /// The key in the target. It also is the session's name in what people are told: the source's own
    /// may be a secret.
    pub(super) key: fn(&SessionKey) -> SessionKey,
    /// The payload in the target; `None` when the record is no session.
    pub(super) payload: fn(&Record) -> Option<Bytes>,
}

impl Translation {
    /// Between stores of this crate's own records nothing changes.
    pub(super) const NONE: Self = Self {
        key: |key| *key,
        payload: |record| SessionInfo::of(record).map(|_| record.payload().clone()),
    };

    /// What is needed between stores of these schemes.
    pub(super) fn between(from: &str, to: &str) -> Result<Self, Failure> {
        match (foreign(from), foreign(to)) {
            (None, None) => Ok(Self::NONE),
            (Some(format), _) | (None, Some(format)) => Err(Failure::misuse(format!(
                "sessions of {format} cannot be copied: no translation of them is known"
            ))),
        }
    }
}

/// Whose records a store of this scheme holds, unless they are this crate's own.
fn foreign(scheme: &str) -> Option<&'static str> {
    scheme.starts_with("flask+").then_some("Flask-Session")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_records_need_no_translation_and_foreign_ones_are_not_copied_as_they_are() {
        assert!(Translation::between("redis", "sqlite").is_ok());
        for (from, to) in [("flask+redis", "redis"), ("redis", "flask+redis")] {
            let refused = Translation::between(from, to).unwrap_err().to_string();
            assert!(refused.contains("Flask-Session"), "{refused}");
        }
    }
}
