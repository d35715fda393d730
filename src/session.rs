//! `Session`: what handlers work with.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::MAX_LIFETIME;
use crate::edits::Updater;
use crate::error::{SessionError, SessionErrorKind};
use crate::id::SessionKey;
use crate::loaded::Loaded;
use crate::payload::{self, Format, Value};
use crate::request::Inner;
use crate::shared::finish;
use crate::state::Identity;

/// How often `update` starts over because its key changes under it.
const MAX_UPDATE_RUNS: usize = 64;

/// The session of a request: a map from strings to values of any type that `serde` can handle.
///
/// It has been read by the time a handler gets it, so that accessors are synchronous. Values are
/// decoded when they are asked for, one at a time. Nothing is written before the handler has
/// answered; the layer then stores the changes, over those that other requests have stored
/// meanwhile. Clones are the same session.
///
/// # What is promised
///
/// - Requests that change different keys never undo each other. Of requests that
///   [`insert`](Self::insert) the same key, one that was stored last wins; [`update`](Self::update)
///   takes all of them into account.
/// - A session that was ended by [`flush`](Self::flush), or whose id was changed by
///   [`cycle_id`](Self::cycle_id), is never brought back by a slower request. That request's changes
///   are dropped; its response stands.
/// - A response that is not 503 has its changes stored exactly once; a 503 at most once. Server
///   errors store nothing, by default.
///
/// After the response head has left (in a WebSocket, a stream, a spawned task), changes are stored by
/// [`save`](Self::save) only.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use session_layer::{Session, SessionError};
///
/// async fn visits(session: Session) -> Result<String, SessionError> {
///     let visits = session.update("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
///     Ok(format!("visit {visits}"))
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Session(Arc<Inner>);

impl Session {
    /// `inner` has been loaded.
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        debug_assert!(matches!(inner.loaded(), Some(Ok(_))));
        Self(inner)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    pub(crate) fn loaded(&self) -> &Loaded {
        match self.0.loaded() {
            Some(Ok(loaded)) => loaded,
            // Every caller of `new` has awaited `load`, and what is loaded stays.
            None | Some(Err(_)) => unreachable!("a session exists only once it is loaded"),
        }
    }

    /// Reads a value. `None` when the key is not there.
    ///
    /// # Errors
    ///
    /// [`Decode`](SessionErrorKind::Decode) when the value is not a `T`.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, SessionError> {
        let (value, format) = {
            let state = self.loaded().state();
            (state.get(key), state.format())
        };
        value
            .map(|value| payload::decode_value(format, &value))
            .transpose()
    }

    /// Reads a value and removes it.
    ///
    /// Provisional until the commit: two requests may both get a value. After [`save`](Self::save) has
    /// answered `Ok`, it is this request's alone; of all that have got it, the others are told
    /// [`Taken`](SessionErrorKind::Taken). Use that for what must not be used twice.
    ///
    /// # Errors
    ///
    /// [`Decode`](SessionErrorKind::Decode) when the value is not a `T`; it then stays.
    pub fn take<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, SessionError> {
        loop {
            let (before, format) = {
                let state = self.loaded().state();
                (state.get(key), state.format())
            };
            let Some(before) = before else {
                return Ok(None);
            };
            let value = payload::decode_value(format, &before)?;
            let mut state = self.loaded().state();
            if state.get(key) == Some(before) && state.format() == format {
                state.take(key);
                return Ok(Some(value));
            }
        }
    }

    /// Stores a value under a key. A value equal to what is there is no change.
    ///
    /// # Errors
    ///
    /// [`Encode`](SessionErrorKind::Encode) when the value has no form in the session's format, is
    /// nested too deep, would make the session larger than allowed, or the key is the reserved
    /// `_meta`. The session stays as it was.
    pub fn insert<T: Serialize>(&self, key: &str, value: T) -> Result<(), SessionError> {
        let policy = &self.0.shared.policy;
        loop {
            let format = self.loaded().state().format();
            let encoded = payload::encode_value(format, &value, &policy.limits)?;
            let mut state = self.loaded().state();
            // Unless somebody has flushed it meanwhile, it still has that format.
            if state.format() == format {
                return state.set(key, encoded, policy);
            }
        }
    }

    /// Removes a value, and says whether there was one.
    #[expect(
        clippy::must_use_candidate,
        reason = "it is called for what it removes"
    )]
    pub fn remove(&self, key: &str) -> bool {
        self.loaded().state().remove(key).is_some()
    }

    /// Computes a value from the one that is there, safely among concurrent requests.
    ///
    /// If another request turns out to have changed the session, `f` runs again, on the new value,
    /// until nothing came between; so it may run several times, also after the handler has returned.
    /// It must not depend on anything else in the session. What `update` returns is the outcome of
    /// the first run: provisional until the commit. After [`save`](Self::save) has answered `Ok`,
    /// [`get`](Self::get) has the outcome that counts.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get) and [`insert`](Self::insert).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn example(session: session_layer::Session) -> Result<(), session_layer::SessionError> {
    /// let visits = session.update("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
    /// # Ok(()) }
    /// ```
    pub fn update<T, F>(&self, key: &str, mut f: F) -> Result<T, SessionError>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(Option<T>) -> T + Send + 'static,
    {
        let policy = &self.0.shared.policy;
        let limits = policy.limits;
        let mut run =
            move |before: Option<&[u8]>, format: Format| -> Result<(Value, T), SessionError> {
                let before = before
                    .map(|value| payload::decode_value(format, value))
                    .transpose()?;
                let value = f(before);
                Ok((payload::encode_value(format, &value, &limits)?, value))
            };
        for _ in 0..MAX_UPDATE_RUNS {
            let (before, format) = {
                let state = self.loaded().state();
                (state.get(key), state.format())
            };
            let (encoded, value) = run(before.as_deref(), format)?;
            let mut state = self.loaded().state();
            if state.get(key) != before || state.format() != format {
                continue;
            }
            let updater: Updater =
                Box::new(move |before, format| run(before, format).map(|(encoded, _)| encoded));
            state.update(key, before.as_ref(), updater, encoded, policy)?;
            return Ok(value);
        }
        Err(SessionError::new(
            SessionErrorKind::Encode,
            "a closure given to `update` must not change its own key",
        ))
    }

    /// Whether the key is there.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.loaded().state().get(key).is_some()
    }

    /// The keys, in no particular order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let state = self.loaded().state();
        let entries = state.entries();
        entries.iter().map(|(key, _)| (*key).to_owned()).collect()
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.loaded().state().len()
    }

    /// Whether there are no keys. An empty session is a session all the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all data and keeps the session.
    ///
    /// Concurrent requests that saw the data before lose their changes: what was meant for one user's
    /// data never lands in another's. The session is nobody's afterwards, even if somebody had
    /// [logged in](Self::login). To end a session, use [`flush`](Self::flush).
    pub fn clear(&self) {
        self.loaded().state().clear();
    }

    /// Gives the session a new id, with the same data; the old id is dead once the response leaves.
    ///
    /// Call it whenever the user's rights change: an id that someone has planted before then leads
    /// nowhere. ([`login`](Self::login) does it by itself.) Resets the absolute timeout; whose session
    /// it is, and when they logged in, stays. On a session that has never been stored there is nothing
    /// to change, and the id is new anyway. Two round trips; four, and up to two more at once, for a
    /// session that somebody has logged in to.
    pub fn cycle_id(&self) {
        self.loaded().state().cycle_id();
    }

    /// Ends the session, in the store before the response leaves, and in the browser.
    ///
    /// Counts whatever the response's status, even if the client hangs up; if the store fails, the
    /// response is a 503 that removes the cookie. What is inserted afterwards begins a new session.
    pub fn flush(&self) {
        self.loaded().state().flush(&self.0.shared.policy);
    }

    /// The name under which the store has this session; `None` for one that was not stored (yet). No
    /// secret: use it in logs, and with [`Sessions`](crate::Sessions).
    #[must_use]
    pub fn key(&self) -> Option<SessionKey> {
        match self.loaded().state().identity() {
            Identity::Stored(stored) => Some(stored.key),
            Identity::Anonymous | Identity::Ended(_) => None,
        }
    }

    /// Whether the store has no such session (yet).
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.key().is_none()
    }

    /// Whether there is something to be stored, apart from a renewal of what is there.
    #[must_use]
    pub fn is_modified(&self) -> bool {
        self.loaded().state().is_modified()
    }

    /// When the session began, or last got a new id; `None` for one that was not stored (yet).
    #[must_use]
    pub fn created_at(&self) -> Option<SystemTime> {
        let created = self.loaded().state().created()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(created))
    }

    /// Whether the browser keeps the cookie when it closes: "remember me". Default: as configured,
    /// and the configuration's default is yes. The server's limits stay the same.
    pub fn set_permanent(&self, permanent: bool) {
        self.loaded().state().set_permanent(permanent);
    }

    /// Gives this session an idle timeout of its own; `None` takes it back. The absolute timeout goes
    /// on counting.
    ///
    /// # Errors
    ///
    /// [`Encode`](SessionErrorKind::Encode) for less than a millisecond or more than 400 days.
    pub fn set_lifetime(&self, lifetime: impl Into<Option<Duration>>) -> Result<(), SessionError> {
        let lifetime = lifetime.into();
        if lifetime.is_some_and(|value| value < Duration::from_millis(1) || value > MAX_LIFETIME) {
            return Err(SessionError::new(
                SessionErrorKind::Encode,
                "a session's lifetime is between a millisecond and 400 days",
            ));
        }
        // At most 400 days, which fit.
        let millis = lifetime.map(|value| value.as_millis() as u64);
        self.loaded().state().set_lifetime(millis);
        Ok(())
    }

    /// Stores the changes now, instead of when the response leaves; does nothing when there are none.
    ///
    /// Once begun it finishes, even if its future is dropped. What was saved stands, whatever becomes
    /// of the response; the layer still sends the cookie.
    ///
    /// # Errors
    ///
    /// [`Store`](SessionErrorKind::Store) when the store failed: the changes are kept, and the commit
    /// at the end tries again, without counting anything twice.
    /// [`Ended`](SessionErrorKind::Ended) when another request has ended the session: the changes are
    /// gone. [`Taken`](SessionErrorKind::Taken) when another request has got what this one took: the
    /// other changes are stored. [`CookieTooLate`](SessionErrorKind::CookieTooLate) when the response head has left and
    /// the browser would have to be told: nothing is stored.
    pub async fn save(&self) -> Result<(), SessionError> {
        let save = Box::pin(Arc::clone(&self.0).save());
        finish(&self.0.shared.background, save).await
    }

    /// Whether there is a session: one in the store, or data for a new one.
    #[cfg(feature = "axum")]
    pub(crate) fn exists(&self) -> bool {
        !self.is_new() || !self.is_empty()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
