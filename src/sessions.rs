//! `Sessions`: the layer's sessions, without a request.

use std::sync::Arc;

use crate::error::SessionError;
use crate::id::SessionKey;
use crate::request::Inner;
use crate::session::Session;
use crate::shared::Shared;
use crate::store::AnyStore;

/// A layer's sessions by their keys, or by their users: for WebSocket tasks, back-channel logout, and
/// pages that show users their sessions. From [`SessionLayer::sessions`](crate::SessionLayer::sessions).
///
/// # Examples
///
/// ```
/// # async fn example(layer: session_layer::SessionLayer, key: session_layer::SessionKey) -> Result<(), session_layer::SessionError> {
/// let sessions = layer.sessions();
/// if let Some(session) = sessions.load(&key).await? {
///     session.insert("notice", "You have mail.")?;
///     session.save().await?;
/// }
/// sessions.end(&key).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Sessions {
    pub(crate) shared: Arc<Shared>,
}

impl Sessions {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Reads a session; `None` if there is none (any more). One round trip.
    ///
    /// Changes are stored by [`Session::save`] only. What the browser would have to be told of, such
    /// as a new id, is refused there.
    ///
    /// # Errors
    ///
    /// When the store failed or did not answer in time.
    pub async fn load(&self, key: &SessionKey) -> Result<Option<Session>, SessionError> {
        let inner = Arc::new(Inner::by_key(Arc::clone(&self.shared), *key));
        inner.load().await?;
        let session = Session::new(inner);
        Ok((!session.is_new()).then_some(session))
    }

    /// Ends a session wherever it is used, together with the one it was rotated into. Ending what is
    /// not there is fine. Two round trips.
    ///
    /// # Errors
    ///
    /// When the store failed or did not answer in time; the session may then still be there.
    pub async fn end(&self, key: &SessionKey) -> Result<(), SessionError> {
        let inner = Arc::new(Inner::by_key(Arc::clone(&self.shared), *key));
        inner.load().await?;
        let session = Session::new(inner);
        session.flush();
        session.save().await
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &AnyStore {
        &self.shared.store
    }
}
