//! Whose session it is: what `login` does to what a request knows.

use std::sync::Arc;
use std::time::Duration;

use super::{State, Work};
use crate::config::{MAX_LIFETIME, Policy};
use crate::error::{SessionError, SessionErrorKind};
use crate::payload::{self, User};

impl State {
    pub(crate) fn user(&self) -> Option<&User> {
        for batch in self.batches.iter().rev() {
            if let Some(user) = batch.login() {
                return Some(user);
            }
            if batch.is_clear() {
                return None;
            }
        }
        self.meta.user.as_deref()
    }

    /// From here on the session is `user`'s, under a new id. One of another user's is ended first.
    pub(crate) fn log_in(
        &mut self,
        user: &str,
        now: u64,
        policy: &Policy,
    ) -> Result<(), SessionError> {
        let others = self.user().is_some_and(|before| *before.name != *user);
        let (count, size, format) = if others {
            (0, 0, policy.format)
        } else {
            (self.count, self.size, self.format())
        };
        let bound = payload::size_bound(count, size) + payload::user_bound(format, user);
        if bound > policy.limits.bytes {
            return Err(SessionError::new(
                SessionErrorKind::Encode,
                format!(
                    "the session, with its user, would take {bound} bytes; at most {} are allowed",
                    policy.limits.bytes
                ),
            ));
        }
        if others {
            self.flush(policy);
        }
        self.rotate = true;
        self.pending().log_in(Arc::new(User {
            name: user.into(),
            authenticated: Some(now),
        }));
        Ok(())
    }

    /// Whether there is a login to be stored.
    pub(super) fn logs_in(&self) -> bool {
        self.unsent().1.iter().any(|batch| batch.login().is_some())
    }

    /// The most bytes that the user takes.
    pub(super) fn user_bound(&self) -> usize {
        self.user()
            .map_or(0, |user| payload::user_bound(self.format(), &user.name))
    }
}

/// How long a session of this user's may go on from `now`: as long as their list lasts. `None` if that is
/// over.
pub(super) fn time_left(user: &User, now: u64) -> Option<Duration> {
    let passed = now.saturating_sub(user.authenticated.unwrap_or(now));
    MAX_LIFETIME.checked_sub(Duration::from_millis(passed))
}

/// Whose the session is that a commit writes.
pub(crate) struct Owner {
    pub(crate) user: Arc<str>,
    /// When they logged in, in milliseconds since 1970.
    pub(crate) at: u64,
    /// Whether that is part of the commit.
    pub(crate) logs_in: bool,
}

impl Work {
    pub(crate) fn owner(&self) -> Option<Owner> {
        let (meta, _) = self.payload();
        let user = meta.user.as_ref()?;
        Some(Owner {
            user: Arc::clone(&user.name),
            at: user.authenticated.or(meta.created).unwrap_or_default(),
            logs_in: self.batches.iter().any(|batch| batch.login().is_some()),
        })
    }
}
