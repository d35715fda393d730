//! How a request's session ends: commits, what the browser is told, and what is left over.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use http::HeaderValue;
use tracing::Instrument;

use crate::commit;
use crate::cookie::CookieHeaders;
use crate::error::{SessionError, SessionErrorKind};
use crate::id::SessionKey;
use crate::request::{Inner, Loaded, Source};
use crate::shared::Finish;
use crate::state::{CookieAction, Ending, Identity, Plan, State, StoreAction};

/// What the response tells the browser.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) set_cookie: Option<HeaderValue>,
    pub(crate) error: Option<SessionError>,
}

impl Inner {
    /// Stores what has been done so far. The `last` commit of a request draws a line: what was done
    /// before it, and is not stored by it, is dropped.
    async fn commit(&self, loaded: &Loaded, edits: bool, last: bool) -> Result<(), SessionError> {
        let shared = &*self.shared;
        let mut too_late = None;
        let mut work = {
            let mut state = loaded.state();
            let mut plan = state.plan(edits);
            if self.head_sent.load(Ordering::Acquire) && plan.needs_cookie {
                too_late = Some(SessionError::new(
                    SessionErrorKind::CookieTooLate,
                    "this change needs a cookie, which can no longer be sent",
                ));
                // A logout needs none, and never has to wait.
                plan = Plan::end_only(plan.end);
            } else if last {
                drop_unplanned(&mut state, plan);
            }
            if !plan.end && plan.store == StoreAction::Nothing {
                state.accept(plan);
                return too_late.map_or(Ok(()), Err);
            }
            state.begin(plan, last, shared.now())
        };
        let span = tracing::debug_span!(
            "session_commit",
            session.key = work.stored.as_ref().map(|stored| tracing::field::display(stored.key)),
            end = work.plan.end,
            action = ?work.plan.store,
        );
        let (outcome, result) = commit::perform(shared, &mut work).instrument(span).await;
        let key = work.stored.as_ref().map(|stored| stored.key);
        let replay = loaded.state().settle(&mut work, outcome, &shared.policy);
        if result.is_err() && work.is_lost() {
            edits_dropped(key, "they could not be stored");
        }
        if replay {
            self.replay_later_edits(loaded);
        }
        too_late.map_or(result, Err)
    }

    /// Does edits that came while a commit was under way again on the data that it found. Runs
    /// closures given to `update`, so not under the lock.
    fn replay_later_edits(&self, loaded: &Loaded) {
        loop {
            let (base, mut batches, flushes) = loaded.state().take_batches();
            if let Err(error) = crate::edits::replay(&base, &mut batches) {
                tracing::warn!(%error, "edits made during a commit were dropped");
                loaded.state().lose(error);
                return;
            }
            if !loaded.state().return_batches(batches, flushes) {
                return;
            }
        }
    }

    /// `Session::save`: a commit in the middle of a request, or after one.
    pub(crate) async fn save(self: Arc<Self>) -> Result<(), SessionError> {
        let loaded = self.load().await?;
        let _turn = loaded.committing.lock().await;
        let had_session = matches!(loaded.state().identity(), Identity::Stored(_));
        self.commit(loaded, true, false).await?;
        let mut state = loaded.state();
        if matches!(state.identity(), Identity::Ended(_)) && (had_session || state.is_modified()) {
            state.drop_edits();
            return Err(SessionError::new(
                SessionErrorKind::Ended,
                "the session was ended by another request; its edits are dropped",
            ));
        }
        state.take_lost().map_or(Ok(()), Err)
    }

    /// The answer, if it takes no store to find it. `edits`: whether this response's edits count.
    pub(crate) fn answer_now(&self, edits: bool) -> Option<Answer> {
        if self.flush_unloaded.load(Ordering::Acquire) {
            return None;
        }
        match self.loaded() {
            None | Some(Err(_)) => {
                self.head_sent.store(true, Ordering::Release);
                Some(Answer::default())
            }
            Some(Ok(loaded)) => {
                let mut state = loaded.state();
                let plan = state.plan(edits);
                if state.is_committing() || plan.end || plan.store != StoreAction::Nothing {
                    return None;
                }
                drop_unplanned(&mut state, plan);
                state.accept(plan);
                Some(self.close(&mut state, None))
            }
        }
    }

    /// The answer, after whatever has to be done in the store.
    pub(crate) async fn answer(self: Arc<Self>, edits: bool) -> Answer {
        let flush = self.flush_unloaded.load(Ordering::Acquire);
        let loaded = match self.load().await {
            Ok(loaded) => loaded,
            Err(error) => {
                self.head_sent.store(true, Ordering::Release);
                let carried = flush && self.carries_cookie();
                return Answer {
                    set_cookie: carried.then(|| self.shared.cookie.remove()).flatten(),
                    error: Some(error),
                };
            }
        };
        let _turn = loaded.committing.lock().await;
        let result = self.commit(loaded, edits, true).await;
        let mut state = loaded.state();
        self.close(&mut state, result.err())
    }

    /// Finds what the browser is to be told. After this, no cookie can be set.
    fn close(&self, state: &mut State, error: Option<SessionError>) -> Answer {
        self.head_sent.store(true, Ordering::Release);
        let set_cookie = match (state.cookie(), state.identity()) {
            (CookieAction::Set, Identity::Stored(stored)) => {
                let permanent = state.is_permanent(&self.shared.policy);
                let left = stored.ttl_at(self.shared.now());
                let id = stored.id.as_ref().filter(|_| !left.is_zero());
                id.and_then(|id| self.shared.set_cookie(id, left, permanent))
            }
            (CookieAction::Remove, _) => self.shared.cookie.remove(),
            (CookieAction::Set | CookieAction::Keep, _) => None,
        };
        state.cookie_sent();
        Answer { set_cookie, error }
    }

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
            drop(Finish::new(&self.shared.background, async move {
                inner.answer(false).await;
            }));
        }
    }
}

/// What the last commit of a request will not store is not to be stored by a later `save` either.
fn drop_unplanned(state: &mut State, plan: Plan) {
    if plan.writes() || !state.drop_edits() {
        return;
    }
    let reason = match state.identity() {
        Identity::Ended(_) => "the session has ended",
        Identity::Anonymous | Identity::Stored(_) => "the response is a server error",
    };
    edits_dropped(state.identity().key(), reason);
}

fn edits_dropped(key: Option<SessionKey>, reason: &str) {
    let key = key.map(tracing::field::display);
    tracing::info!(session.key = key, reason, "session edits dropped");
}

impl Inner {
    /// Ends a session that was flushed, but not loaded, after the response had left, or that could not
    /// be loaded then.
    fn flush_at_last(&mut self) {
        if !std::mem::take(self.flush_unloaded.get_mut()) {
            return;
        }
        let source = std::mem::replace(&mut self.source, Source::Cookies(CookieHeaders::None));
        let again = Self::new(Arc::clone(&self.shared), source);
        again.head_sent.store(true, Ordering::Release);
        drop(Finish::new(&self.shared.background, async move {
            if let Ok(loaded) = again.load().await {
                loaded.state().flush(&again.shared.policy);
                // A failure has already been reported.
                let _ = again.commit(loaded, false, true).await;
            }
        }));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(Ok(loaded)) = self.loaded.get_mut() else {
            return self.flush_at_last();
        };
        let state = loaded
            .state
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let endings: Vec<Ending> = state.take_endings();
        if state.drop_edits() {
            tracing::warn!("session edits were never stored; after the response, call `save`");
        }
        if endings.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        drop(Finish::new(&self.shared.background, async move {
            let mut state = State::without_record(&shared.policy, Identity::Anonymous, false);
            state.end_also(endings);
            let plan: Plan = state.plan(false);
            let mut work = state.begin(plan, true, shared.now());
            // A failure has already been reported.
            let _ = commit::perform(&shared, &mut work).await;
        }));
    }
}
