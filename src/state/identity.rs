//! Which session it is, and how the store has it.

use std::time::Duration;

use bytes::Bytes;

use crate::id::{SessionId, SessionKey};
use crate::payload::Payload;
use crate::store::{Record, Version};

/// Whose session it is.
#[derive(Clone)]
pub(crate) enum Identity {
    /// No cookie, or one that means nothing (any more).
    Anonymous,
    /// The session of this key was ended, or goes on under another id that this request does not have.
    Ended(SessionKey),
    Stored(Known),
}

impl Identity {
    pub(crate) fn key(&self) -> Option<SessionKey> {
        match self {
            Self::Anonymous => None,
            Self::Ended(key) => Some(*key),
            Self::Stored(known) => Some(known.key),
        }
    }
}

/// A session that the store has, as a request knows it.
#[derive(Clone)]
pub(crate) struct Known {
    /// `None` when it was looked up by its key; it can then get no cookie.
    pub(crate) id: Option<SessionId>,
    pub(crate) key: SessionKey,
    pub(crate) version: Version,
    /// The payload of the record, unless it is that of the state's base: sharing it would cost an atomic
    /// counter twice in each request.
    pub(super) payload: Option<Bytes>,
    /// When the record had the lifetime that it says, in milliseconds since 1970.
    pub(super) as_of: u64,
}

/// The same with its record, as a commit needs it.
#[derive(Clone)]
pub(crate) struct Stored {
    /// `None` when it was looked up by its key; it can then get no cookie.
    pub(crate) id: Option<SessionId>,
    pub(crate) key: SessionKey,
    pub(crate) record: Record,
    /// When the record had the lifetime that it says, in milliseconds since 1970.
    pub(crate) as_of: u64,
}

impl Known {
    /// A session whose payload is the state's.
    pub(crate) fn new(
        id: Option<SessionId>,
        key: SessionKey,
        version: Version,
        as_of: u64,
    ) -> Self {
        Self {
            id,
            key,
            version,
            payload: None,
            as_of,
        }
    }

    /// How much of the record's lifetime is left.
    pub(crate) fn ttl_at(&self, now: u64) -> Duration {
        let passed = Duration::from_millis(now.saturating_sub(self.as_of));
        self.version.ttl.saturating_sub(passed)
    }

    pub(super) fn record(&self, base: &Payload) -> Record {
        let payload = self.payload.as_ref().unwrap_or(base.bytes());
        self.version.with_payload(payload.clone())
    }
}

impl From<Stored> for Known {
    fn from(stored: Stored) -> Self {
        let (version, payload) = stored.record.into_parts();
        Self {
            payload: Some(payload),
            ..Self::new(stored.id, stored.key, version, stored.as_of)
        }
    }
}

/// A session to be ended, as far as it is known.
#[derive(Clone)]
pub(crate) struct Ending {
    pub(crate) key: SessionKey,
    pub(crate) seen: Option<Record>,
    /// Where the session goes on, if it is only the key that is to end.
    pub(crate) successor: Option<SessionKey>,
}

impl Ending {
    pub(super) fn of(key: SessionKey, seen: Option<Record>) -> Self {
        Self {
            key,
            seen,
            successor: None,
        }
    }
}
