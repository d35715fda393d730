//! How a request's session ends: commits, and what the browser is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::HeaderValue;
use tokio::time::Instant;
use tracing::Instrument;

use crate::commit::{self, First};
use crate::error::{SessionError, SessionErrorKind};
use crate::id::{Revision, SessionId, SessionKey};
use crate::loaded::Loaded;
use crate::request::Inner;
use crate::state::{CookieAction, Draft, Identity, Plan, Settled, State, StoreAction, Work};
use crate::store::{NewRecord, Record, StoreAtOnce};

/// What is left to do once a commit has been planned.
enum Begun {
    /// Nothing in the store.
    Nothing,
    /// A draft, and what it is to replace.
    Drafted(Plan, Option<Record>),
    Work(Plan, Box<Work>),
}

type Fresh = Option<(SessionId, SessionKey)>;

/// What the response tells the browser.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) set_cookie: Option<HeaderValue>,
    pub(crate) error: Option<SessionError>,
}

impl Inner {
    /// Stores what has been done so far. The `last` commit of a request draws a line: what was done
    /// before it, and is not stored by it, is dropped.
    pub(crate) async fn commit(
        &self,
        loaded: &Loaded,
        edits: bool,
        last: bool,
    ) -> Result<(), SessionError> {
        let now = self.shared.now();
        // Made here, where it is to stay: it is large.
        let mut draft = None;
        let (plan, seen, work) = match self.begin(loaded, edits, last, now, &mut draft)? {
            Begun::Nothing => return Ok(()),
            Begun::Drafted(plan, seen) => (plan, seen, None),
            Begun::Work(plan, work) => (plan, None, Some(work)),
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
            commit::attempt(&self.shared, draft, seen.as_ref()).await
        } else {
            let attempt = commit::attempt(&self.shared, draft, seen.as_ref());
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
        let (replay, result) = self.settle(&mut loaded.state(), draft, settled);
        if replay {
            self.replay_later_edits(loaded);
        }
        result
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
        *draft = self.draft(&mut state, plan, last, now);
        Ok(match draft {
            Some(draft) => {
                let stored = draft.seen.and_then(|_| state.stored());
                Begun::Drafted(plan, stored.map(|stored| stored.record))
            }
            None => Begun::Work(plan, Box::new(state.begin(plan, last, now))),
        })
    }

    /// What one call of the store does for, if that is likely to do.
    fn draft(&self, state: &mut State, plan: Plan, last: bool, now: u64) -> Option<Draft> {
        let fresh = self.fresh(state, plan)?;
        state.draft(plan, last, fresh, &self.shared.policy, now)
    }

    /// An id and its key, for a plan that takes new ones. `None` if others are changing the session:
    /// what was read is then most likely out of date.
    fn fresh(&self, state: &State, plan: Plan) -> Option<Fresh> {
        let key = state.identity().key();
        if key.is_some_and(|key| self.shared.queues.is_contended(&key)) {
            return None;
        }
        Some(match plan.store {
            // What fails here fails again in `perform`.
            StoreAction::Create => {
                let id = SessionId::generate().ok();
                id.map(|id| (id, self.shared.signer.key(&id)))
            }
            _ => None,
        })
    }

    /// Takes note of what became of the one call that does for most commits. Says, too, whether edits
    /// have come meanwhile that are to be done again.
    fn settle(
        &self,
        state: &mut State,
        draft: &mut Draft,
        settled: Result<Settled, SessionError>,
    ) -> (bool, Result<(), SessionError>) {
        let (settled, result) = match settled {
            Ok(settled) => (settled, Ok(())),
            Err(error) => (Settled::Failed, Err(error)),
        };
        if result.is_err() && draft.is_last() {
            let key = draft.seen.as_ref().map(|_| draft.key);
            edits_dropped(key, "they could not be stored");
        }
        let replay = state.settle_draft(draft, settled, &self.shared.policy);
        (replay, result)
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

    /// The answer, if there is nothing to wait for: because nothing was done to the session, or because
    /// its store never waits. Otherwise nothing has happened.
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
                if state.may_write() {
                    let store = self.shared.at_once()?;
                    let now = self.shared.now();
                    let stored = self.store_at_once(store, &mut state, edits, now)?;
                    return Some(self.close(&mut state, stored.err(), Some(now)));
                }
                if state.may_tell() {
                    let plan = state.plan(true);
                    state.accept(plan);
                    return Some(self.close(&mut state, None, None));
                }
                self.head_sent.store(true, Ordering::Release);
                Some(Answer::default())
            }
        }
    }

    /// The last commit of a request, if one call of a store that never waits does for it. Nobody else
    /// sees the session meanwhile, so that it need not be anybody's turn.
    fn store_at_once(
        &self,
        store: &dyn StoreAtOnce,
        state: &mut State,
        edits: bool,
        now: u64,
    ) -> Option<Result<(), SessionError>> {
        if state.is_committing() {
            return None;
        }
        let plan = state.plan(edits);
        let fresh = self.fresh(state, plan)?;
        let stored = matches!(state.identity(), Identity::Stored(_));
        let key = state.identity().key().filter(|_| stored);
        let mut result = Ok(());
        let write = |at: &SessionKey, seen: Option<Revision>, new: &NewRecord<'_>| {
            Some(match commit::attempt_at_once(store, at, seen, new) {
                Ok(First::Written(token)) => Settled::Written(token),
                Ok(First::Gone) => Settled::Ended,
                Ok(First::Conflict(_)) => return None,
                Err(error) => {
                    result = Err(error);
                    Settled::Failed
                }
            })
        };
        state.write_at_once(plan, fresh, &self.shared.policy, now, write)?;
        if result.is_err() {
            edits_dropped(key, "they could not be stored");
        }
        Some(result)
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
        self.close(&mut state, result.err(), None)
    }

    /// Finds what the browser is to be told. After this, no cookie can be set. `now`: if it is known.
    fn close(&self, state: &mut State, error: Option<SessionError>, now: Option<u64>) -> Answer {
        self.head_sent.store(true, Ordering::Release);
        let set_cookie = match (state.cookie(), state.identity()) {
            (CookieAction::Set, Identity::Stored(stored)) => {
                let permanent = state.is_permanent(&self.shared.policy);
                let now = now.unwrap_or_else(|| self.shared.now());
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
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use super::*;
    use crate::config::SessionConfig;
    use crate::id::SessionKey;
    use crate::request::Source;
    use crate::shared::Shared;
    use crate::store::MemoryStore;

    /// Somebody else's `save` is not to be overtaken, even where nobody has to wait.
    #[tokio::test]
    async fn a_commit_that_is_under_way_is_waited_for() {
        let keys = crate::SigningKeys::generate().unwrap();
        let config = SessionConfig::default();
        let shared = Arc::new(Shared::new(MemoryStore::new(), &keys, config).unwrap());
        let source = Source::Cookies(crate::cookie::CookieHeaders::None);
        let inner = Arc::new(Inner::new(Arc::clone(&shared), source));
        let loaded = inner.load().await.unwrap();
        let value = crate::payload::Value::from("\x01");
        let set = |key| loaded.state().set(key, value.clone(), &shared.policy);
        set("first").unwrap();
        let mut state = loaded.state();
        let (plan, now) = (state.plan(true), shared.now());
        let mut draft = inner.draft(&mut state, plan, false, now).unwrap();
        drop(state);
        set("second").unwrap();
        assert!(inner.answer_now(true).is_none());
        let failed = Err(SessionError::new(SessionErrorKind::Store, "on demand"));
        let (replay, result) = inner.settle(&mut loaded.state(), &mut draft, failed);
        assert!(!replay && result.is_err());
        assert!(inner.answer_now(true).unwrap().set_cookie.is_some());
        let stored: Option<SessionKey> = loaded.state().identity().key();
        assert!(stored.is_some());
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

pub(crate) fn edits_dropped(key: Option<SessionKey>, reason: &str) {
    let key = key.map(tracing::field::display);
    tracing::info!(session.key = key, reason, "session edits dropped");
}
