//! One request's session: shared by everything that handles the request, and loaded once.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::cookie::CookieHeaders;
use crate::edits::Updater;
use crate::error::SessionError;
use crate::id::SessionKey;
use crate::shared::{Found, Shared};
use crate::signing::{Rejected, Verified};
use crate::state::{Identity, Seen, State, Stored, is_cookie_due, is_due};

/// One request's session, shared by everything that handles the request.
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) source: Source,
    /// Boxed, because most requests never load their session.
    pub(crate) loaded: OnceCell<Result<Box<Loaded>, SessionError>>,
    /// A `flush` was asked for that the loaded session does not know of yet.
    pub(crate) flush_unloaded: AtomicBool,
    /// No cookie can be set any more.
    pub(crate) head_sent: AtomicBool,
}

pub(crate) enum Source {
    Cookies(CookieHeaders),
    Key(SessionKey),
}

pub(crate) struct Loaded {
    pub(crate) state: Mutex<State>,
    /// One commit at a time.
    pub(crate) committing: tokio::sync::Mutex<()>,
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

impl Inner {
    pub(crate) fn new(shared: Arc<Shared>, source: Source) -> Self {
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

    pub(crate) fn apply_flush(&self) {
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
            let key = shared.signer.key(&verified.id);
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
                    let touch_due = is_due(&shared.policy, full, full.abs_diff(record.ttl()));
                    let seen = Seen {
                        carried_cookie,
                        touch_due,
                        cookie_due: verified.old_key
                            || verified.issued.is_none_or(|issued| {
                                let age = Duration::from_millis(now.abs_diff(issued));
                                is_cookie_due(&shared.policy, full, age)
                            }),
                        cookie_waits: !verified.old_key
                            && match verified.issued {
                                Some(_) => !shared.policy.renews_by_reading(),
                                // Of unknown age: renewed whenever the record is.
                                None => !touch_due,
                            },
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
