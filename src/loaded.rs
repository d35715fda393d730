//! A session that has been read: what is known of it and done to it, for one at a time.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::edits::Updater;
use crate::state::State;

pub(crate) struct Loaded {
    pub(crate) state: Mutex<State>,
}

impl Loaded {
    /// Made where it is to stay: it is large, and what was just written is slow to move.
    #[inline]
    pub(crate) fn new(state: impl FnOnce() -> State) -> Box<Self> {
        let place = Box::new_uninit();
        Box::write(
            place,
            Self {
                state: Mutex::new(state()),
            },
        )
    }

    pub(crate) fn state(&self) -> StateGuard<'_> {
        // Nothing that can panic runs under this lock.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        StateGuard {
            state,
            litter: None,
        }
    }
}

/// The state of a session, for as long as nobody else may look at it. What the application's closures
/// own is dropped after that, because dropping runs the application's code.
pub(crate) struct StateGuard<'a> {
    // In this order: first unlocked, then dropped.
    state: MutexGuard<'a, State>,
    litter: Option<Vec<Updater>>,
}

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for StateGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.state.has_litter() {
            self.litter = Some(self.state.take_litter());
        }
    }
}
