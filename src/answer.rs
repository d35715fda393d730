//! How a request's session ends: commits, what the browser is told, and what is left over.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use http::HeaderValue;
use tokio::time::Instant;
use tracing::Instrument;

use crate::commit::{self, First};
use crate::cookie::CookieHeaders;
use crate::error::{SessionError, SessionErrorKind};
use crate::id::{SessionId, SessionKey};
use crate::request::{Inner, Loaded, Source};
use crate::shared::Finish;
use crate::state::{
    CookieAction, Draft, Ending, Identity, Plan, Settled, State, StoreAction, Work,
};

/// What is left to do once a commit has been planned.
enum Begun {
    /// Nothing in the store.
    Nothing,
    Drafted(Plan),
    Work(Plan, Box<Work>),
}

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
        let now = self.shared.now();
        // Made here, where it is to stay: it is large.
        let mut draft = None;
        let (plan, work) = match self.begin(loaded, edits, last, now, &mut draft)? {
            Begun::Nothing => return Ok(()),
            Begun::Drafted(plan) => (plan, None),
            Begun::Work(plan, work) => (plan, Some(work)),
        };
        let span = tracing::debug_span!(
            "session_commit",
            session.key = loaded.state().identity().key().map(tracing::field::display),
            end = plan.end,
            action = ?plan.store,
        );
        if let Some(work) = work {
            return Box::pin(self.perform(loaded, work, None).instrument(span)).await;
        }
        let Some(draft) = &mut draft else {
            return Ok(());
        };
        // Entering a span that nobody listens to still costs something, at each poll.
        let first = if span.is_disabled() {
            commit::attempt(&self.shared, draft).await
        } else {
            let attempt = commit::attempt(&self.shared, draft);
            Box::pin(attempt.instrument(span.clone())).await
        };
        let settled = match first {
            Ok(First::Written(token)) => Ok(Settled::Written(token)),
            Ok(First::Gone) => Ok(Settled::Ended),
            Ok(First::Conflict(deadline)) => {
                let Some(work) = loaded.state().begin_again(draft) else {
                    return Ok(());
                };
                let work = self.perform(loaded, Box::new(work), Some(deadline));
                return Box::pin(work.instrument(span)).await;
            }
            Err(error) => Err(error),
        };
        let _entered = (!span.is_disabled()).then(|| span.enter());
        self.settle(loaded, draft, settled)
    }

    /// Plans, and prepares what the plan asks for: a `draft` where that will do, or else work.
    fn begin(
        &self,
        loaded: &Loaded,
        edits: bool,
        last: bool,
        now: u64,
        draft: &mut Option<Draft>,
    ) -> Result<Begun, SessionError> {
        let mut state = loaded.state();
        let plan = state.plan(edits);
        if plan.needs_cookie && self.head_sent.load(Ordering::Acquire) {
            let error = SessionError::new(
                SessionErrorKind::CookieTooLate,
                "this change needs a cookie, which can no longer be sent",
            );
            if !plan.end {
                return Err(error);
            }
            // A logout needs none, and never has to wait.
            let plan = Plan::end_only(true);
            let mut work = state.begin(plan, last, now);
            work.too_late = Some(error);
            return Ok(Begun::Work(plan, Box::new(work)));
        }
        if last {
            drop_unplanned(&mut state, plan);
        }
        if !plan.end && plan.store == StoreAction::Nothing {
            state.accept(plan);
            return Ok(Begun::Nothing);
        }
        // What was read of a session that others are changing is most likely out of date.
        let key = state.identity().key();
        let contended = key.is_some_and(|key| self.shared.queues.is_contended(&key));
        let fresh = match plan.store {
            // What fails here fails again there.
            StoreAction::Create => {
                let id = SessionId::generate().ok();
                id.map(|id| (id, self.shared.signer.key(&id)))
            }
            _ => None,
        };
        if !contended {
            *draft = state.draft(plan, last, fresh, &self.shared.policy, now);
        }
        Ok(match draft {
            Some(_) => Begun::Drafted(plan),
            None => Begun::Work(plan, Box::new(state.begin(plan, last, now))),
        })
    }

    /// Takes note of what became of the one call that does for most commits.
    fn settle(
        &self,
        loaded: &Loaded,
        draft: &mut Draft,
        settled: Result<Settled, SessionError>,
    ) -> Result<(), SessionError> {
        let (settled, result) = match settled {
            Ok(settled) => (settled, Ok(())),
            Err(error) => (Settled::Failed, Err(error)),
        };
        if result.is_err() && draft.is_last() {
            let key = draft.seen.as_ref().map(|_| draft.key);
            edits_dropped(key, "they could not be stored");
        }
        let policy = &self.shared.policy;
        if loaded.state().settle_draft(draft, settled, policy) {
            self.replay_later_edits(loaded);
        }
        result
    }

    /// Everything else. `conflict`: a first attempt has met one; with the commit's deadline, if that
    /// runs.
    async fn perform(
        &self,
        loaded: &Loaded,
        mut work: Box<Work>,
        conflict: Option<Option<Instant>>,
    ) -> Result<(), SessionError> {
        let shared = &*self.shared;
        let (outcome, result) = match conflict {
            None => commit::perform(shared, &mut work).await,
            Some(deadline) => commit::go_on(shared, &mut work, deadline).await,
        };
        let key = work.stored.as_ref().map(|stored| stored.key);
        let replay = loaded.state().settle(&mut work, outcome, &shared.policy);
        if result.is_err() && work.is_lost() {
            edits_dropped(key, "they could not be stored");
        }
        if replay {
            self.replay_later_edits(loaded);
        }
        work.too_late.take().map_or(result, Err)
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
        let _turn = self.turn().await;
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

    /// The answer, if nothing was done to the session, so that it takes no store to find it.
    pub(crate) fn answer_now(&self) -> Option<Answer> {
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
                if state.may_write() {
                    return None;
                }
                let plan = state.plan(true);
                state.accept(plan);
                Some(self.close(&mut state, None))
            }
        }
    }

    /// The answer, after whatever has to be done in the store.
    pub(crate) async fn answer(self: Arc<Self>, edits: bool) -> Answer {
        let flush = self.flush_unloaded.load(Ordering::Acquire);
        let loaded = match self.loaded() {
            Some(Ok(loaded)) if !flush => Ok(loaded),
            _ => Box::pin(self.load()).await,
        };
        let loaded = match loaded {
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
        let _turn = self.turn().await;
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
                let now = self.shared.now();
                let left = stored.ttl_at(now);
                let id = stored.id.as_ref().filter(|_| !left.is_zero());
                id.and_then(|id| self.shared.set_cookie(id, now, left, permanent))
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
            let answer = Box::pin(async move { drop(inner.answer(false).await) });
            drop(Finish::new(&self.shared.background, answer));
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
