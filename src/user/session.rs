//! What a `Session` knows of its user.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{UserSession, check, of_same_user};
use crate::error::SessionError;
use crate::session::Session;

impl Session {
    /// Logs `user` in: the session is theirs from now on, under a new id; the old one is dead once the
    /// response leaves, so that an id which somebody has planted before leads nowhere.
    ///
    /// `user` is what your application knows them by for good: a number or a UUID rather than an
    /// address that may change hands. 1 to 256 bytes. Who they are, and that they may log in, you have
    /// found out before. To log out, call [`flush`](Self::flush).
    ///
    /// What an anonymous session holds is kept (a cart), and what the same user's does. A session of
    /// *another* user's is ended first, as by [`flush`](Self::flush): nothing of theirs is left, nor
    /// what this request has inserted so far, and a new session begins. (That ending counts even if the
    /// response is a server error, as every logout.) [`clear`](Self::clear) makes the session nobody's
    /// again; [`cycle_id`](Self::cycle_id) leaves it its user.
    ///
    /// The session is put on the list of its user's, for [`Sessions::of_user`](crate::Sessions::of_user)
    /// and for ending all of them, before anybody learns its id. If the user has more sessions than
    /// [`with_sessions_per_user`](crate::SessionConfig::with_sessions_per_user) allows, those with the
    /// oldest logins are ended. It lives at most 400 days from here, however much it is used.
    ///
    /// Like `cycle_id`, a login is dropped by a server error, and when another request has ended the
    /// session meanwhile; a handler that has to know calls [`save`](Self::save), which says `Ended`.
    /// Four round trips, and up to two more at once that look whether listed sessions have ended; at the
    /// limit, it looks at all of them, eight at a time.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::SessionErrorKind::Encode) for a name that is empty or too long, or if the
    /// session would become larger than allowed; [`Unsupported`](crate::SessionErrorKind::Unsupported)
    /// on a layer that shares its sessions with Flask. The session stays as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn example(session: session_layer::Session) -> Result<(), session_layer::SessionError> {
    /// // After checking the password:
    /// session.login("ada")?;
    /// assert_eq!(session.user().as_deref(), Some("ada"));
    /// # Ok(()) }
    /// ```
    pub fn login(&self, user: &str) -> Result<(), SessionError> {
        let shared = &self.inner().shared;
        check(shared, user)?;
        let now = shared.now();
        self.loaded().state().log_in(user, now, &shared.policy)
    }

    /// Whom [`login`](Self::login) has logged in; `None` for a session that is nobody's.
    #[must_use]
    pub fn user(&self) -> Option<Arc<str>> {
        let state = self.loaded().state();
        state.user().map(|user| Arc::clone(&user.name))
    }

    /// When the user has last proved who they are, by [`login`](Self::login); `None` for a session that
    /// is nobody's.
    ///
    /// Before something that matters, ask for the password again when that was too long ago, and call
    /// `login` once more.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use session_layer::Session;
    ///
    /// /// Whether the user has shown within a quarter of an hour that they are who they say.
    /// fn is_fresh(session: &Session) -> bool {
    ///     let age = session.authenticated_at().map(|at| at.elapsed().unwrap_or_default());
    ///     age.is_some_and(|age| age < Duration::from_secs(15 * 60))
    /// }
    /// ```
    #[must_use]
    pub fn authenticated_at(&self) -> Option<SystemTime> {
        let state = self.loaded().state();
        let at = state.user()?.authenticated?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at))
    }

    /// All sessions of this session's user, this one marked as
    /// [current](UserSession::is_current); the newest login first. Empty if it is nobody's. As
    /// [`Sessions::of_user`](crate::Sessions::of_user): one round trip, and one for each session.
    ///
    /// Shows what is stored: a login of this same request's only after [`save`](Self::save).
    ///
    /// # Errors
    ///
    /// When the store failed or did not answer in time.
    pub async fn of_same_user(&self) -> Result<Vec<UserSession>, SessionError> {
        let Some(user) = self.user() else {
            return Ok(Vec::new());
        };
        let shared = Arc::clone(&self.inner().shared);
        let key = self.key();
        Box::pin(of_same_user(shared, &user, key)).await
    }
}
