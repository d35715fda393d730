//! One request's session: shared by everything that handles the request, and loaded once.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::cookie::CookieHeaders;
use crate::error::SessionError;
use crate::id::SessionKey;
use crate::loaded::Loaded;
use crate::search;
use crate::shared::Shared;
use crate::state::{Identity, State};

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
        if self.loaded().is_none() && !self.load_at_once() {
            // Boxed, because whoever waits is moved about: it stays small.
            Box::pin(self.load_in_turn()).await;
        }
        self.apply_flush();
        match self.loaded() {
            Some(Ok(loaded)) => Ok(loaded),
            Some(Err(error)) => Err(error.clone()),
            // Set above.
            None => unreachable!("a session that was loaded stays loaded"),
        }
    }

    /// Loads the session if that takes no waiting, and says whether it did. Two may do so at the same
    /// time; both get what the first has found.
    fn load_at_once(&self) -> bool {
        let found = match &self.source {
            Source::Cookies(CookieHeaders::None) => {
                Ok(Loaded::new(|| State::new(&self.shared.policy)))
            }
            Source::Cookies(cookies) => match self.shared.at_once() {
                Some(store) => search::find_at_once(&self.shared, store, cookies),
                None => return false,
            },
            Source::Key(_) => return false,
        };
        self.set(found);
        true
    }

    async fn load_in_turn(&self) {
        let _turn = self.turn().await;
        if self.loaded().is_some() {
            return;
        }
        let found = match &self.source {
            Source::Cookies(cookies) => search::find(&self.shared, cookies).await,
            Source::Key(key) => search::look_up(&self.shared, key).await,
        };
        self.set(found);
    }

    fn set(&self, found: Result<Box<Loaded>, SessionError>) {
        match found {
            Ok(loaded) => drop(self.loaded.set(loaded)),
            Err(error) => drop(self.failed.set(error)),
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
    use std::sync::Barrier;
    use std::time::Duration;

    use futures_util::FutureExt;
    use http::HeaderMap;
    use http::header::COOKIE;

    use super::*;
    use crate::id::{Revision, SessionId};
    use crate::payload::{Meta, Payload};
    use crate::store::{MemoryStore, NewRecord, SessionStore};

    /// A store that never waits is asked by each of them; what the first has found is everybody's.
    #[tokio::test]
    async fn who_loads_at_the_same_moment_has_the_same_session() {
        const THREADS: usize = 4;
        let store = MemoryStore::new();
        let keys = crate::SigningKeys::generate().unwrap();
        let config = crate::SessionConfig::default();
        let shared = Arc::new(Shared::new(store.clone(), &keys, config).unwrap());
        let id = SessionId::generate().unwrap();
        let payload = Payload::empty(shared.policy.format).changed(&Meta::default(), &[]);
        let new = NewRecord::of(Revision::generate(), &payload, Duration::from_secs(60));
        store.create(&id.key(), &new).await.unwrap();
        let cookie = shared.set_cookie(&id, shared.now(), Duration::from_secs(60), true);
        let headers = HeaderMap::from_iter([(COOKIE, cookie.unwrap())]);
        let mut races = 0;
        for _ in 0..20_000 {
            let source = Source::Cookies(CookieHeaders::of(&headers));
            let inner = Inner::new(Arc::clone(&shared), source);
            let (together, asked) = (Barrier::new(THREADS), AtomicBool::new(false));
            let load = || {
                together.wait();
                let first = inner.loaded().is_none() && !asked.swap(true, Ordering::SeqCst);
                let late = !first && inner.loaded().is_none();
                let loaded = inner.load().now_or_never().unwrap().unwrap();
                loaded.state().cycle_id();
                (std::ptr::from_ref(loaded) as usize, late)
            };
            let all: Vec<_> = std::thread::scope(|scope| {
                let threads = [(); THREADS].map(|()| scope.spawn(load));
                threads.map(|thread| thread.join().unwrap()).into()
            });
            assert!(all.iter().all(|(loaded, _)| *loaded == all[0].0));
            let state = inner.load().now_or_never().unwrap().unwrap().state();
            assert_eq!(state.identity().key(), Some(id.key()));
            assert!(state.is_modified());
            races += usize::from(all.iter().any(|(_, late)| *late));
            if races == 20 {
                return;
            }
        }
        assert!(races > 0, "no two of them were there at the same moment");
    }

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
            ("load in turn", size_of_val(&inner.load_in_turn())),
        ];
        for (what, size) in sizes {
            assert!(size <= 1024, "{what}: {size} bytes of {sizes:?}");
        }
    }
}
