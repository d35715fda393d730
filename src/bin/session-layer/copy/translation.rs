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
    /// Between stores of this crate's own records nothing changes. Nor does it from those of
    /// Flask-Session: the store reads them as sessions of ours, under the keys that they have here.
    pub(super) const NONE: Self = Self {
        key: |key| *key,
        payload: |record| SessionInfo::of(record).map(|_| record.payload().clone()),
    };

    /// What is needed between stores of these schemes.
    pub(super) fn between(from: &str, to: &str) -> Result<Self, Failure> {
        if is_flask(to) && !is_flask(from) {
            return Err(Failure::misuse(
                "sessions cannot be copied to Flask-Session: it names them by their ids, and other \
                 stores do not keep those",
            ));
        }
        Ok(Self::NONE)
    }
}

fn is_flask(scheme: &str) -> bool {
    scheme.starts_with("flask+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flask_sessions_can_become_flask_sessions() {
        for (from, to) in [
            ("redis", "sqlite"),
            ("flask+redis", "postgres"),
            ("flask+redis", "flask+redis"),
        ] {
            assert!(Translation::between(from, to).is_ok(), "{from} to {to}");
        }
        let refused = Translation::between("redis", "flask+redis").unwrap_err();
        assert!(refused.to_string().contains("Flask-Session"), "{refused}");
    }
}
