//! `_meta`: what the layer itself keeps in a payload.

use std::borrow::Cow;
use std::sync::Arc;

use crate::id::SessionKey;

pub(crate) const META_KEY: &str = "_meta";

/// More than any encoded `_meta` entry takes, key included, without a user.
pub(super) const MAX_ENCODED: usize = 176;

/// The layer's notes on a live session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// When the session began, in milliseconds since 1970. `None` in a record that another program
    /// has written.
    pub(crate) created: Option<u64>,
    /// Raised by `clear`, so that edits made for the data before it never land in the data after it.
    pub(crate) generation: u64,
    /// This session's own idle lifetime in milliseconds, instead of the configured one.
    pub(crate) lifetime: Option<u64>,
    /// Whether the browser is to keep the cookie when it closes. `None`: as configured.
    pub(crate) permanent: Option<bool>,
    /// Whose session it is. Behind a pointer, because many a session is nobody's, and notes are moved
    /// about.
    pub(crate) user: Option<Arc<User>>,
}

/// Who is logged in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: Arc<str>,
    /// When they logged in, in milliseconds since 1970. `None` in a record that another program has
    /// written.
    pub(crate) authenticated: Option<u64>,
}

#[expect(
    clippy::derivable_impls,
    reason = "each field's absence is spelled out"
)]
impl Default for Meta {
    fn default() -> Self {
        Self {
            created: None,
            generation: 0,
            lifetime: None,
            permanent: None,
            user: None,
        }
    }
}

/// What a payload turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Head {
    Live(Meta),
    /// A tombstone. After a rotation it names the key under which the session goes on.
    Ended {
        successor: Option<SessionKey>,
    },
    /// No session, but the list of those of a user. It is marked as ended too: a layer that knows
    /// nothing of such lists has no use for what has ended.
    Index,
}

/// A text of `_meta`'s that may be spelled with escapes.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// The fields as they are stored, in either format.
#[derive(Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Fields<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lifetime: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) permanent: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) authenticated: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<Name<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<bool>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) successor: Option<&'a str>,
}

impl<'a> From<&'a Meta> for Fields<'a> {
    fn from(meta: &'a Meta) -> Self {
        Self {
            created: meta.created,
            generation: (meta.generation != 0).then_some(meta.generation),
            lifetime: meta.lifetime,
            permanent: meta.permanent,
            authenticated: meta.user.as_ref().and_then(|user| user.authenticated),
            user: meta.user.as_ref().map(|user| Name((*user.name).into())),
            ended: None,
            index: None,
            successor: None,
        }
    }
}

impl Fields<'_> {
    pub(super) fn head(&self) -> Head {
        if self.index == Some(true) {
            return Head::Index;
        }
        if self.ended == Some(true) {
            return Head::Ended {
                successor: self.successor.and_then(|key| key.parse().ok()),
            };
        }
        Head::Live(Meta {
            created: self.created,
            generation: self.generation.unwrap_or(0),
            lifetime: self.lifetime,
            permanent: self.permanent,
            user: self.user.as_ref().map(|Name(user)| {
                Arc::new(User {
                    name: Arc::from(&**user),
                    authenticated: self.authenticated,
                })
            }),
        })
    }
}
