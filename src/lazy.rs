//! `LazySession`: what the layer puts into a request, and how it becomes a [`Session`].

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::OnceCell;
use tracing::Instrument;

use crate::commit;
use crate::cookie::CookieHeaders;
use crate::edits::Updater;
use crate::error::{SessionError, SessionErrorKind};
use crate::id::SessionKey;
use crate::session::Session;
use crate::shared::{Finish, Found, Shared};
use crate::signing::{Rejected, Verified};
use crate::state::{
    CookieAction, Ending, Identity, Plan, Seen, State, StoreAction, Stored, is_due,
};

/// A session that has not been looked at yet.
///
/// The layer puts one into the extensions of every request. Holding, cloning and dropping it costs no
/// I/O and no cryptography. Use it in Tower services and middleware, and in handlers that need the
/// session only sometimes; other handlers extract [`Session`].
///
/// # Examples
///
/// ```
/// use http::Request;
/// use session_layer::{LazySession, SessionError};
///
/// async fn user<B>(request: &Request<B>) -> Result<Option<String>, SessionError> {
///     let session = LazySession::of(request.extensions())?.load().await?;
///     session.get("user")
/// }
/// ```
#[derive(Clone)]
pub struct LazySession(Arc<Inner>);

impl LazySession {
    /// The session of a request, by its extensions.
    ///
    /// # Errors
    ///
    /// [`MissingLayer`](SessionErrorKind::MissingLayer) when the request came by no
    /// [`SessionLayer`](crate::SessionLayer).
    pub fn of(extensions: &http::Extensions) -> Result<Self, SessionError> {
        extensions.get::<Self>().cloned().ok_or_else(|| {
            SessionError::new(
                SessionErrorKind::MissingLayer,
                "no session: this route is not wrapped in a SessionLayer",
            )
        })
    }

    /// Reads the session, once: whoever asks first waits for the store, later callers and concurrent
    /// ones share the outcome, also that of a failure. One round trip, none without a valid cookie.
    ///
    /// # Errors
    ///
    /// [`Store`](SessionErrorKind::Store) when the store failed or did not answer in time.
    pub async fn load(&self) -> Result<Session, SessionError> {
        self.clone().into_session().await
    }

    pub(crate) async fn into_session(self) -> Result<Session, SessionError> {
        self.0.load().await?;
        Ok(Session::new(self.0))
    }

    /// Ends the session without reading it first: a logout that also works while the store is down,
    /// in that the response then is a 503 that removes the cookie. Otherwise like
    /// [`Session::flush`].
    pub fn flush(&self) {
        self.0.flush_unloaded.store(true, Ordering::SeqCst);
        self.0.apply_flush();
    }

    pub(crate) fn new(shared: Arc<Shared>, cookies: CookieHeaders) -> Self {
        Self(Arc::new(Inner::new(shared, Source::Cookies(cookies))))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }
}

impl fmt::Debug for LazySession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One request's session, shared by everything that handles the request.
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    source: Source,
    /// Boxed, because most requests never load their session.
    loaded: OnceCell<Result<Box<Loaded>, SessionError>>,
    /// A `flush` was asked for that the loaded session does not know of yet.
    flush_unloaded: AtomicBool,
    /// No cookie can be set any more.
    head_sent: AtomicBool,
}

enum Source {
    Cookies(CookieHeaders),
    Key(SessionKey),
}

pub(crate) struct Loaded {
    state: Mutex<State>,
    /// One commit at a time.
    committing: tokio::sync::Mutex<()>,
}

impl Loaded {
    fn new(state: State) -> Box<Self> {
        Box::new(Self {
            state: Mutex::new(state),
            committing: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) fn state(&self) -> StateGuard<'_> {
        // Nothing that can panic runs under this lock.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        StateGuard {
            state,
            litter: Vec::new(),
        }
    }
}

/// The state of a session, for as long as nobody else may look at it. What the application's closures
/// own is dropped after that, because dropping runs the application's code.
pub(crate) struct StateGuard<'a> {
    // In this order: first unlocked, then dropped.
    state: MutexGuard<'a, State>,
    litter: Vec<Updater>,
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
    fn drop(&mut self) {
        self.litter = self.state.take_litter();
    }
}

/// What the response tells the browser.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) set_cookie: Option<HeaderValue>,
    pub(crate) error: Option<SessionError>,
}

impl Inner {
    fn new(shared: Arc<Shared>, source: Source) -> Self {
        Self {
            shared,
            source,
            loaded: OnceCell::new(),
            flush_unloaded: AtomicBool::new(false),
            head_sent: AtomicBool::new(false),
        }
    }

    /// A session without a request: it can get no cookie.
    pub(crate) fn by_key(shared: Arc<Shared>, key: SessionKey) -> Self {
        let inner = Self::new(shared, Source::Key(key));
        inner.head_sent.store(true, Ordering::Release);
        inner
    }

    pub(crate) async fn load(&self) -> Result<&Loaded, SessionError> {
        let loaded =
            self.loaded
                .get_or_init(|| async {
                    match &self.source {
                        Source::Cookies(CookieHeaders::None) => Ok(Loaded::new(
                            State::without_record(&self.shared.policy, Identity::Anonymous, false),
                        )),
                        // Boxed, because the handler's future holds this one: axum boxes that, and
                        // allocations over a kilobyte are slow.
                        Source::Cookies(cookies) => Box::pin(self.find(cookies)).await,
                        Source::Key(key) => Box::pin(self.look_up(key)).await,
                    }
                })
                .await
                .as_deref()
                .map_err(Clone::clone)?;
        self.apply_flush();
        Ok(loaded)
    }

    fn apply_flush(&self) {
        if let Some(Ok(loaded)) = self.loaded()
            && self.flush_unloaded.swap(false, Ordering::SeqCst)
        {
            loaded.state().flush(&self.shared.policy);
        }
    }

    /// The outcome of loading, if that has been tried.
    pub(crate) fn loaded(&self) -> Option<&Result<Box<Loaded>, SessionError>> {
        self.loaded.get()
    }

    /// Goes through the cookies of our name until one leads to a live session.
    async fn find(&self, cookies: &CookieHeaders) -> Result<Box<Loaded>, SessionError> {
        let shared = &*self.shared;
        let mut candidates = cookies.candidates(shared.cookie.name().as_bytes());
        let mut carried_cookie = false;
        let mut tombstone = None;
        while let Some(value) = candidates.next() {
            carried_cookie = true;
            let Some(verified) = self.verify(value) else {
                continue;
            };
            let key = verified.id.key();
            match shared.judge(&key, shared.fetch(&key).await?) {
                Found::Absent => {
                    tracing::debug!(session.key = %key, reason = "no session", "session cookie rejected")
                }
                Found::Ended { .. } => tombstone = tombstone.or(Some(key)),
                Found::Live {
                    record,
                    meta,
                    payload,
                    full,
                    now,
                } => {
                    // Only now: what is held while the store answers makes every future larger.
                    let mut others = candidates.filter_map(|value| self.verify(value));
                    if others.any(|other| other.id != verified.id) {
                        tracing::warn!(
                            "two valid session cookies; the first with a live session counts"
                        );
                    }
                    let age = Duration::from_millis(now.abs_diff(verified.issued));
                    let seen = Seen {
                        carried_cookie,
                        touch_due: is_due(&shared.policy, full, full.abs_diff(record.ttl())),
                        cookie_due: verified.old_key || is_due(&shared.policy, full, age),
                    };
                    let id = Some(verified.id);
                    let stored = Stored {
                        id,
                        key,
                        record,
                        as_of: now,
                    };
                    let identity = Identity::Stored(stored);
                    return Ok(Loaded::new(State::new(identity, payload, meta, seen)));
                }
            }
        }
        let identity = tombstone.map_or(Identity::Anonymous, Identity::Ended);
        let state = State::without_record(&shared.policy, identity, carried_cookie);
        Ok(Loaded::new(state))
    }

    fn verify(&self, cookie: &[u8]) -> Option<Verified> {
        let reason = match self.shared.signer.verify(cookie) {
            Ok(verified) => return Some(verified),
            Err(Rejected::Malformed) => "malformed",
            Err(Rejected::Signature) => "signature does not verify",
        };
        tracing::debug!(reason, "session cookie rejected");
        None
    }

    async fn look_up(&self, key: &SessionKey) -> Result<Box<Loaded>, SessionError> {
        let shared = &*self.shared;
        Ok(Loaded::new(match shared.load(key).await? {
            Found::Live {
                record,
                meta,
                payload,
                ..
            } => {
                let stored = Stored {
                    id: None,
                    key: *key,
                    record,
                    as_of: shared.now(),
                };
                State::new(Identity::Stored(stored), payload, meta, Seen::default())
            }
            Found::Absent | Found::Ended { .. } => {
                State::without_record(&shared.policy, Identity::Ended(*key), false)
            }
        }))
    }

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

    fn carries_cookie(&self) -> bool {
        match &self.source {
            Source::Cookies(cookies) => cookies
                .candidates(self.shared.cookie.name().as_bytes())
                .next()
                .is_some(),
            Source::Key(_) => false,
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

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Session");
        match self.loaded() {
            None => out.field("loaded", &false),
            Some(Err(error)) => out.field("error", error),
            Some(Ok(loaded)) => {
                let state = loaded.state();
                if let Identity::Stored(stored) = state.identity() {
                    out.field("key", &stored.key);
                }
                out.field("keys", &state.len())
            }
        };
        out.finish_non_exhaustive()
    }
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

#[cfg(all(test, feature = "memory"))]
mod tests {
    use super::*;

    /// Allocators are slower beyond a kilobyte, and axum boxes a handler's future, which holds a load.
    #[tokio::test]
    async fn what_a_read_allocates_is_under_a_kilobyte() {
        let store = crate::store::MemoryStore::new();
        let keys = crate::SigningKeys::generate().unwrap();
        let config = crate::SessionConfig::default();
        let shared = Arc::new(Shared::new(store, &keys, config).unwrap());
        let inner = Arc::new(Inner::new(shared, Source::Cookies(CookieHeaders::None)));
        let sizes = [
            ("inner", size_of::<Inner>()),
            ("load", size_of_val(&inner.load())),
            ("find", size_of_val(&inner.find(&CookieHeaders::None))),
        ];
        for (what, size) in sizes {
            assert!(size <= 1024, "{what}: {size} bytes of {sizes:?}");
        }
    }
}
