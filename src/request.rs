//! One request's session: shared by everything that handles the request, and loaded once.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::cookie::CookieHeaders;
use crate::edits::Updater;
use crate::error::SessionError;
use crate::id::SessionKey;
use crate::shared::{Found, Live, Shared};
use crate::signing::{Rejected, Verified};
use crate::state::{Identity, Seen, State, Stored, is_cookie_due, is_due};

/// One request's session, shared by everything that handles the request.
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) source: Source,
    /// Boxed, because most requests never load their session.
    pub(crate) loaded: OnceLock<Box<Loaded>>,
    failed: OnceLock<SessionError>,
    /// Whose turn it is to load the session, or to store it: one at a time.
    turn: tokio::sync::Mutex<()>,
    /// A `flush` was asked for that the loaded session does not know of yet.
    pub(crate) flush_unloaded: AtomicBool,
    /// No cookie can be set any more.
    pub(crate) head_sent: AtomicBool,
}

pub(crate) enum Source {
    Cookies(CookieHeaders),
    Key(SessionKey),
}

/// A cookie of our name that verifies.
struct Candidate {
    verified: Verified,
    /// Which of the cookies of our name it is ...
    at: usize,
    /// ... and which one comes after it.
    next: Option<usize>,
}

pub(crate) struct Loaded {
    pub(crate) state: Mutex<State>,
}

impl Loaded {
    /// Made where it is to stay: it is large, and what was just written is slow to move.
    #[inline]
    fn new(state: impl FnOnce() -> State) -> Box<Self> {
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
    fn drop(&mut self) {
        if self.state.has_litter() {
            self.litter = Some(self.state.take_litter());
        }
    }
}

impl Inner {
    pub(crate) fn new(shared: Arc<Shared>, source: Source) -> Self {
        Self {
            shared,
            source,
            loaded: OnceLock::new(),
            failed: OnceLock::new(),
            turn: tokio::sync::Mutex::new(()),
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
        if self.loaded().is_none() {
            let _turn = self.turn().await;
            if self.loaded().is_none() {
                let found = match &self.source {
                    Source::Cookies(CookieHeaders::None) => {
                        Ok(Loaded::new(|| State::new(&self.shared.policy)))
                    }
                    Source::Cookies(cookies) => self.find(cookies).await,
                    Source::Key(key) => Box::pin(self.look_up(key)).await,
                };
                // Nobody else has the turn.
                match found {
                    Ok(loaded) => drop(self.loaded.set(loaded)),
                    Err(error) => drop(self.failed.set(error)),
                }
            }
        }
        self.apply_flush();
        match self.loaded() {
            Some(Ok(loaded)) => Ok(loaded),
            Some(Err(error)) => Err(error.clone()),
            // Set above.
            None => unreachable!("a session that was loaded stays loaded"),
        }
    }

    /// Waits until the session is neither being loaded nor stored.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => Box::pin(self.turn.lock()).await,
        }
    }

    pub(crate) fn apply_flush(&self) {
        if let Some(Ok(loaded)) = self.loaded()
            // Looked at before, because a swap costs as much as a lock.
            && self.flush_unloaded.load(Ordering::SeqCst)
            && self.flush_unloaded.swap(false, Ordering::SeqCst)
        {
            loaded.state().flush(&self.shared.policy);
        }
    }

    /// The outcome of loading, if that has been tried.
    pub(crate) fn loaded(&self) -> Option<Result<&Loaded, &SessionError>> {
        match self.loaded.get() {
            Some(loaded) => Some(Ok(loaded)),
            None => self.failed.get().map(Err),
        }
    }

    /// Goes through the cookies of our name until one leads to a live session. What is kept while the
    /// store is asked is small: the handler's future holds this one, and is moved before it runs.
    async fn find(&self, cookies: &CookieHeaders) -> Result<Box<Loaded>, SessionError> {
        let (mut next, mut tombstone) = (Some(0), None);
        while let Some(candidate) = next.and_then(|from| self.candidate(cookies, from)) {
            let key = self.shared.signer.key(&candidate.verified.id);
            let record = self.shared.fetch(&key).await?;
            match self.shared.judge(&key, record) {
                Found::Absent => {
                    tracing::debug!(session.key = %key, reason = "no session", "session cookie rejected")
                }
                Found::Ended { .. } => tombstone = tombstone.or(Some(candidate.at)),
                Found::Live(live) => {
                    let other = candidate
                        .next
                        .and_then(|from| self.other(cookies, from, &candidate));
                    if other.is_some() {
                        tracing::warn!(
                            "two valid session cookies; the first with a live session counts"
                        );
                    }
                    return Ok(self.open(live, &candidate.verified, key));
                }
            }
            next = candidate.next;
        }
        let identity = tombstone
            .and_then(|at| self.candidate(cookies, at))
            .map_or(Identity::Anonymous, |ended| {
                Identity::Ended(self.shared.signer.key(&ended.verified.id))
            });
        let carried_cookie = self.carries_cookie();
        let policy = &self.shared.policy;
        Ok(Loaded::new(|| {
            State::empty(policy, identity, carried_cookie)
        }))
    }

    /// The first of the cookies of our name that verifies, not counting those before `from`.
    fn candidate(&self, cookies: &CookieHeaders, from: usize) -> Option<Candidate> {
        let mut values = cookies.candidates(self.shared.cookie.name().as_bytes());
        let mut at = from;
        let mut value = values.nth(from)?;
        loop {
            if let Some(verified) = self.verify(value) {
                let next = values.next().map(|_| at + 1);
                return Some(Candidate { verified, at, next });
            }
            value = values.next()?;
            at += 1;
        }
    }

    /// Whether there is a cookie that verifies and is for another session.
    fn other(&self, cookies: &CookieHeaders, from: usize, than: &Candidate) -> Option<Candidate> {
        let mut next = Some(from);
        while let Some(other) = next.and_then(|from| self.candidate(cookies, from)) {
            if other.verified.id != than.verified.id {
                return Some(other);
            }
            next = other.next;
        }
        None
    }

    #[inline]
    fn open(&self, live: Live, verified: &Verified, key: SessionKey) -> Box<Loaded> {
        let policy = &self.shared.policy;
        let passed = live.full.abs_diff(live.record.ttl());
        let touch_due = is_due(policy, live.full, passed);
        let seen = Seen {
            carried_cookie: true,
            touch_due,
            cookie_due: verified.old_key
                || verified.issued.is_none_or(|issued| {
                    let age = Duration::from_millis(live.now.abs_diff(issued));
                    is_cookie_due(policy, live.full, age)
                }),
            cookie_waits: !verified.old_key
                && match verified.issued {
                    Some(_) => !policy.renews_by_reading(),
                    // Of unknown age: renewed whenever the record is.
                    None => !touch_due,
                },
        };
        let identity = Identity::Stored(Stored {
            id: Some(verified.id),
            key,
            record: live.record,
            as_of: live.now,
        });
        Loaded::new(|| State::read(identity, live.payload, live.meta, seen))
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
        let found = self.shared.load(key).await?;
        Ok(Loaded::new(|| match found {
            Found::Live(live) => {
                let identity = Identity::Stored(Stored {
                    id: None,
                    key: *key,
                    record: live.record,
                    as_of: live.now,
                });
                State::read(identity, live.payload, live.meta, Seen::default())
            }
            Found::Absent | Found::Ended { .. } => {
                State::empty(&self.shared.policy, Identity::Ended(*key), false)
            }
        }))
    }

    pub(crate) fn carries_cookie(&self) -> bool {
        match &self.source {
            Source::Cookies(cookies) => cookies
                .candidates(self.shared.cookie.name().as_bytes())
                .next()
                .is_some(),
            Source::Key(_) => false,
        }
    }
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
