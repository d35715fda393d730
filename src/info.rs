//! `SessionInfo`: what a stored record says about its session.

use std::time::{Duration, SystemTime};

use crate::config::WIDEST;
use crate::payload::{Head, Payload};
use crate::store::Record;

/// What the layer has noted in a record about its session, for lists and statistics. Never its data.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use session_layer::store::{ScanStore, StoreError};
/// use session_layer::SessionInfo;
///
/// async fn live(store: &impl ScanStore) -> Result<usize, StoreError> {
///     let (mut live, mut from) = (0, None);
///     loop {
///         let page = store.scan(from.as_ref(), std::num::NonZeroUsize::MIN).await?;
///         for key in page.keys() {
///             let record = store.load(key).await?;
///             let info = record.as_ref().and_then(SessionInfo::of);
///             live += usize::from(info.is_some_and(|info| !info.is_ended() && !info.is_user_index()));
///         }
///         from = page.into_next();
///         if from.is_none() {
///             return Ok(live);
///         }
///     }
/// }
/// # let store = session_layer::store::MemoryStore::new();
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # assert_eq!(runtime.block_on(live(&store)).unwrap(), 0);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionInfo {
    kind: Kind,
    created: Option<u64>,
    permanent: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Live,
    Ended,
    UserIndex,
}

impl SessionInfo {
    /// Reads the notes in `record`. `None` when it is no session, as every layer then takes it for
    /// absent, whatever its limits.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let (head, _) = Payload::parse(record.payload().clone(), &WIDEST).ok()?;
        let nothing = |kind| Self {
            kind,
            created: None,
            permanent: None,
        };
        Some(match head {
            Head::Live(meta) => Self {
                kind: Kind::Live,
                created: meta.created,
                permanent: meta.permanent,
            },
            Head::Ended { .. } => nothing(Kind::Ended),
            Head::Index => nothing(Kind::UserIndex),
        })
    }

    /// Whether this is what remains of a session that was ended or rotated: a tombstone.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.kind == Kind::Ended
    }

    /// Whether this is no session, but the list of the sessions that a user has
    /// [logged in](crate::Session::login) to.
    #[must_use]
    pub fn is_user_index(&self) -> bool {
        self.kind == Kind::UserIndex
    }

    /// When the session began, or was last rotated. `None` for what is no live session, and where
    /// another program has written the record.
    #[must_use]
    pub fn created_at(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(self.created?))
    }

    /// What [`set_permanent`](crate::Session::set_permanent) has set for this session. `None`: as the
    /// layer is configured.
    #[must_use]
    pub fn permanent(&self) -> Option<bool> {
        self.permanent
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::payload::{Format, Meta, index_map, tombstone};
    use crate::store::Revision;

    fn of(payload: impl Into<Bytes>) -> Option<SessionInfo> {
        let ttl = Duration::from_secs(60);
        SessionInfo::of(&Record::new(Revision::generate(), payload.into(), ttl))
    }

    #[test]
    fn a_live_session_tells_its_beginning_and_its_permanence() {
        for format in [Format::Json, Format::MessagePack] {
            let meta = Meta {
                created: Some(1_700_000_000_123),
                permanent: Some(false),
                ..Meta::default()
            };
            let payload = Payload::empty(format).changed(&meta, &[]);
            let info = of(payload.bytes().clone()).unwrap();
            let began = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
            assert_eq!(info.created_at(), Some(began));
            assert_eq!(info.permanent(), Some(false));
            assert!(!info.is_ended());
        }
    }

    #[test]
    fn a_tombstone_has_ended_and_tells_nothing_else() {
        for format in [Format::Json, Format::MessagePack] {
            let info = of(tombstone(format, None)).unwrap();
            assert!(info.is_ended());
            assert_eq!((info.created_at(), info.permanent()), (None, None));
        }
    }

    #[test]
    fn the_list_of_a_users_sessions_is_neither_a_live_session_nor_an_ended_one() {
        for format in [Format::Json, Format::MessagePack] {
            let info = of(index_map(format, [].into_iter())).unwrap();
            assert!(info.is_user_index() && !info.is_ended());
            assert_eq!((info.created_at(), info.permanent()), (None, None));
        }
    }

    #[test]
    fn what_another_program_wrote_is_a_session_without_notes() {
        let info = of(&br#"{"user": 7}"#[..]).unwrap();
        assert_eq!((info.created_at(), info.permanent()), (None, None));
        assert!(!info.is_ended());
    }

    #[test]
    fn what_is_no_session_says_nothing() {
        for payload in [&b""[..], b"\0", b"[1]", b"\x81\xa1a", b"{\"a\":"] {
            assert_eq!(of(payload), None, "{payload:?}");
        }
    }
}
