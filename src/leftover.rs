//! What is left of a session when nobody waits for its answer: a logout still counts, edits do not.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::answer::edits_dropped;
use crate::commit;
use crate::cookie::CookieHeaders;
use crate::request::{Inner, Source};
use crate::shared::Finish;
use crate::state::{Ending, Plan, State};

impl Inner {
    /// The request will not be answered: only a logout still counts.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let mut flush = self.flush_unloaded.load(Ordering::Acquire);
        if let Some(Ok(loaded)) = self.loaded() {
            let mut state = loaded.state();
            flush |= state.plan(false).end;
            if state.drop_edits() {
                let key = state.identity().key();
                edits_dropped(key, "the client hung up, or the handler panicked");
            }
        }
        self.head_sent.store(true, Ordering::Release);
        if flush {
            let inner = Arc::clone(self);
            let answer = Box::pin(async move { drop(inner.answer(false).await) });
            drop(Finish::new(&self.shared.background, answer));
        }
    }

    /// Ends a session that was flushed, but not loaded, after the response had left, or that could not
    /// be loaded then.
    fn flush_at_last(&mut self) {
        if !std::mem::take(self.flush_unloaded.get_mut()) {
            return;
        }
        let source = std::mem::replace(&mut self.source, Source::Cookies(CookieHeaders::None));
        let again = Self::new(Arc::clone(&self.shared), source);
        again.head_sent.store(true, Ordering::Release);
        let flush = Box::pin(async move {
            if let Ok(loaded) = again.load().await {
                loaded.state().flush(&again.shared.policy);
                // A failure has already been reported.
                let _ = again.commit(loaded, false, true).await;
            }
        });
        drop(Finish::new(&self.shared.background, flush));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(loaded) = self.loaded.get_mut() else {
            return self.flush_at_last();
        };
        let state = loaded
            .state
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if !state.may_write() {
            return;
        }
        let endings: Vec<Ending> = state.take_endings();
        if state.drop_edits() {
            tracing::warn!("session edits were never stored; after the response, call `save`");
        }
        if endings.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let end = Box::pin(async move {
            let mut state = State::new(&shared.policy);
            state.end_also(endings);
            let plan: Plan = state.plan(false);
            let mut work = state.begin(plan, true, shared.now());
            // A failure has already been reported.
            let _ = commit::perform(&shared, &mut work).await;
        });
        drop(Finish::new(&self.shared.background, end));
    }
}
