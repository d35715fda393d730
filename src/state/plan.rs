//! Deciding what a commit has to do: no I/O, no clock.

use super::{Identity, State};

/// What to do in the store. An end that was asked for comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreAction {
    Nothing,
    Create,
    Update,
    Touch,
    Rotate,
}

/// What to do about the cookie, if the store plays along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CookieAction {
    Keep,
    Set,
    Remove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) end: bool,
    pub(crate) store: StoreAction,
    pub(crate) cookie: CookieAction,
    /// Whether the store action makes no sense unless the browser learns of it.
    pub(crate) needs_cookie: bool,
}

impl Plan {
    /// Nothing but the end that was asked for, if one was.
    pub(crate) fn end_only(end: bool) -> Self {
        Self {
            end,
            store: StoreAction::Nothing,
            cookie: CookieAction::Keep,
            needs_cookie: false,
        }
    }

    /// Whether edits are stored.
    pub(crate) fn writes(self) -> bool {
        !matches!(self.store, StoreAction::Nothing | StoreAction::Touch)
    }
}

impl State {
    /// Whether there may be anything to store. Where there is not, no commit is needed to answer.
    pub(crate) fn may_write(&self) -> bool {
        self.committing
            || self.touch_due
            || self.rotate
            || !self.batches.is_empty()
            || !self.attempts.is_empty()
            || !self.endings.is_empty()
    }

    /// Whether there may be anything to tell the browser, apart from what a commit brings about.
    pub(crate) fn may_tell(&self) -> bool {
        self.cookie_due || self.owes_cookie || self.owes_removal
    }

    /// Decides what is to be done; `edits` is whether this response's edits count.
    pub(crate) fn plan(&self, edits: bool) -> Plan {
        let edited = edits && self.has_edits();
        let rotate = edits && self.rotate;
        let (store, needs_cookie) = match &self.identity {
            Identity::Stored(_) if rotate => (StoreAction::Rotate, true),
            Identity::Stored(_) if edited => (
                StoreAction::Update,
                self.batches
                    .iter()
                    .any(|batch| batch.changes_cookie(&self.meta)),
            ),
            Identity::Stored(_) if self.touch_due => (StoreAction::Touch, false),
            Identity::Anonymous if edited => (StoreAction::Create, true),
            // Whoever logs in may do so even with the cookie of a session that has just ended; other
            // edits were meant for data that this request has no right to.
            Identity::Ended(_) if edited && rotate => (StoreAction::Create, true),
            Identity::Stored(_) | Identity::Anonymous | Identity::Ended(_) => {
                (StoreAction::Nothing, false)
            }
        };
        let due = self.cookie_due
            && (edited || !self.cookie_waits)
            && matches!(self.identity, Identity::Stored(_));
        let cookie = if needs_cookie || due || self.owes_cookie {
            CookieAction::Set
        } else if self.owes_removal {
            CookieAction::Remove
        } else {
            CookieAction::Keep
        };
        Plan {
            end: !self.endings.is_empty(),
            store,
            cookie,
            needs_cookie,
        }
    }
}
