//! `LazySession`: what the layer puts into a request, and how it becomes a [`Session`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cookie::CookieHeaders;
use crate::error::{SessionError, SessionErrorKind};
use crate::request::{Inner, Source};
use crate::session::Session;
use crate::shared::Shared;

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
    /// (`MemoryStore` lets nobody wait: two who ask it at the same moment both do, and share what the
    /// first has found.)
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
