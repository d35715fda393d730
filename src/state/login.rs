//! Whose session it is: what `login` does to what a request knows.

use std::sync::Arc;

use super::{State, Work};
use crate::config::Policy;
use crate::edits::Login;
use crate::error::{SessionError, SessionErrorKind};
use crate::payload;

impl State {
    /// The user, and when they logged in, in milliseconds since 1970.
    pub(crate) fn user(&self) -> Option<(&Arc<str>, Option<u64>)> {
        for batch in self.batches.iter().rev() {
            if let Some(login) = batch.login() {
                return Some((&login.user, Some(login.at)));
            }
            if batch.is_clear() {
                return None;
            }
        }
        let user = self.meta.user.as_ref()?;
        Some((user, self.meta.authenticated))
    }

    /// From here on the session is `user`'s, under a new id. One of another user's is ended first.
    pub(crate) fn log_in(
        &mut self,
        user: &str,
        now: u64,
        policy: &Policy,
    ) -> Result<(), SessionError> {
        let others = self.user().is_some_and(|(before, _)| **before != *user);
        let (count, size) = if others {
            (0, 0)
        } else {
            (self.count, self.size)
        };
        let bound = payload::size_bound(count, size) + payload::user_bound(self.format(), user);
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
        self.pending().log_in(Login {
            user: user.into(),
            at: now,
        });
        Ok(())
    }

    /// Whether there is a login to be stored.
    pub(super) fn logs_in(&self) -> bool {
        self.unsent().1.iter().any(|batch| batch.login().is_some())
    }

    /// The most bytes that the user takes.
    pub(super) fn user_bound(&self) -> usize {
        self.user()
            .map_or(0, |(user, _)| payload::user_bound(self.format(), user))
    }
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
        Some(Owner {
            user: Arc::clone(meta.user.as_ref()?),
            at: meta.authenticated.or(meta.created).unwrap_or_default(),
            logs_in: self.batches.iter().any(|batch| batch.login().is_some()),
        })
    }
}
