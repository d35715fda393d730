//! The sessions of a user: who is logged in where, and how that ends.

pub(crate) mod index;
mod session;
pub(crate) mod several;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::index::Index;
pub(crate) use self::index::ROOM;
use self::several::{AT_ONCE, all};
use crate::commit::users;
use crate::error::{SessionError, SessionErrorKind};
use crate::id::SessionKey;
use crate::sessions::Sessions;
use crate::shared::{Shared, within};
use crate::state::full_ttl;
use crate::store::{NewRecord, Record, Revision};

/// The longest name of a user, in bytes.
const MAX_NAME: usize = 256;

/// One of a user's sessions, as a page that lists them shows it. It holds neither data nor an id.
///
/// From [`Sessions::of_user`] or [`Session::of_same_user`](crate::Session::of_same_user).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSession {
    key: SessionKey,
    /// Milliseconds since 1970, as the next ones.
    created: Option<u64>,
    authenticated: Option<u64>,
    seen: u64,
    current: bool,
}

impl UserSession {
    /// The session's key, which [`Sessions::end`] takes. No secret: it may be in a form or a URL.
    #[must_use]
    pub fn key(&self) -> SessionKey {
        self.key
    }

    /// When the session began, or last got a new id: at the login, unless
    /// [`cycle_id`](crate::Session::cycle_id) was called since.
    #[must_use]
    pub fn created_at(&self) -> Option<SystemTime> {
        self.created.and_then(time)
    }

    /// When the user logged in.
    #[must_use]
    pub fn authenticated_at(&self) -> Option<SystemTime> {
        self.authenticated.and_then(time)
    }

    /// When the session was last renewed, in the store or by a change: the last use, or up to the
    /// refresh share (a tenth, by default) of the idle timeout before it. Close to the end that an
    /// absolute timeout sets, or to the 400 days that a login lasts, it may be too early by up to the
    /// idle timeout; it is never before [`created_at`](Self::created_at).
    #[must_use]
    pub fn last_seen(&self) -> SystemTime {
        time(self.seen).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether it is the session of the request that asks. Always `false` from [`Sessions::of_user`],
    /// which knows no request.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.current
    }
}

fn time(millis: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

impl Sessions {
    /// The sessions that `user` is logged in to, the newest login first. One round trip, and one for
    /// each session, eight at a time.
    ///
    /// What has ended since it was listed is taken off the list.
    ///
    /// # Errors
    ///
    /// When the store failed or did not answer in time;
    /// [`Unsupported`](SessionErrorKind::Unsupported) on a layer that shares its sessions with Flask;
    /// [`Encode`](SessionErrorKind::Encode) for what is no name: see
    /// [`Session::login`](crate::Session::login).
    ///
    /// # Examples
    ///
    /// ```
    /// # async fn example(sessions: session_layer::Sessions) -> Result<(), session_layer::SessionError> {
    /// for session in sessions.of_user("ada").await? {
    ///     println!("{} since {:?}", session.key(), session.authenticated_at());
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn of_user(&self, user: &str) -> Result<Vec<UserSession>, SessionError> {
        Box::pin(of_user(&self.shared, user, None)).await
    }

    /// Ends all sessions that `user` is logged in to, wherever they are used, and says how many those
    /// were: "log out everywhere", a password that has leaked, an account that is closed. One round
    /// trip, and two for each session, eight at a time.
    ///
    /// What was logged in when it began is ended; a login that is stored later is not. So close the
    /// account, or change the password, first.
    ///
    /// # Errors
    ///
    /// As for [`of_user`](Self::of_user). All sessions have been tried, unless the list could not be
    /// read; some may still be there. To repeat it is safe.
    ///
    /// # Examples
    ///
    /// ```
    /// # async fn example(sessions: session_layer::Sessions) -> Result<(), session_layer::SessionError> {
    /// let ended = sessions.end_all_of("ada").await?;
    /// println!("logged out of {ended} sessions");
    /// # Ok(()) }
    /// ```
    pub async fn end_all_of(&self, user: &str) -> Result<usize, SessionError> {
        Box::pin(end(&self.shared, user, None)).await
    }

    /// Ends all sessions that `user` is logged in to but `keep`, the session of the request that asks,
    /// and says how many those were: "log out on all other devices". Otherwise as
    /// [`end_all_of`](Self::end_all_of); one round trip more.
    ///
    /// In a request that has called [`login`](crate::Session::login) or
    /// [`cycle_id`](crate::Session::cycle_id), [`save`](crate::Session::save) first: the session's key
    /// changes with its id.
    ///
    /// # Errors
    ///
    /// As for [`end_all_of`](Self::end_all_of).
    ///
    /// # Examples
    ///
    /// ```
    /// # async fn example(sessions: session_layer::Sessions, session: session_layer::Session) -> Result<(), session_layer::SessionError> {
    /// if let (Some(user), Some(key)) = (session.user(), session.key()) {
    ///     sessions.end_others_of(&user, &key).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn end_others_of(
        &self,
        user: &str,
        keep: &SessionKey,
    ) -> Result<usize, SessionError> {
        Box::pin(end(&self.shared, user, Some(*keep))).await
    }
}

/// Refuses what is no user's name, and layers that know no users.
pub(crate) fn check(shared: &Shared, user: &str) -> Result<(), SessionError> {
    if shared.signer.is_of_flask() {
        return Err(SessionError::new(
            SessionErrorKind::Unsupported,
            "sessions that are shared with Flask have no place for a user",
        ));
    }
    if user.is_empty() || user.len() > MAX_NAME {
        return Err(SessionError::new(
            SessionErrorKind::Encode,
            format!("a user's name has between 1 and {MAX_NAME} bytes"),
        ));
    }
    Ok(())
}

async fn of_user(
    shared: &Shared,
    user: &str,
    current: Option<SessionKey>,
) -> Result<Vec<UserSession>, SessionError> {
    check(shared, user)?;
    let Some((seen, mut index)) = users::index(shared, user).await? else {
        return Ok(Vec::new());
    };
    let keys: Vec<_> = index.keys().collect();
    let (mut sessions, mut dead) = (Vec::<UserSession>::new(), Vec::new());
    for keys in keys.chunks(AT_ONCE) {
        let found = all(keys.iter().map(|key| users::find(shared, user, *key))).await;
        for (listed, found) in keys.iter().zip(found) {
            match found? {
                // It is listed itself, or will be.
                Some(found) if found.key != *listed => {
                    dead.push(*listed);
                    if !keys.contains(&found.key) {
                        sessions.extend(listing(shared, found, current));
                    }
                }
                Some(found) => sessions.extend(listing(shared, found, current)),
                None => dead.push(*listed),
            }
        }
    }
    sessions.sort_by_key(|session| std::cmp::Reverse(session.authenticated));
    let mut shown = Vec::with_capacity(sessions.len());
    sessions.retain(|session| {
        let new = !shown.contains(&session.key);
        shown.push(session.key);
        new
    });
    prune(shared, user, &seen, &mut index, &dead).await;
    Ok(sessions)
}

/// What there is to be shown; `None` if this layer's limits do not let it live.
fn listing(
    shared: &Shared,
    found: users::Found,
    current: Option<SessionKey>,
) -> Option<UserSession> {
    let now = shared.now();
    full_ttl(&shared.policy, &found.meta, now)?;
    let idle = found
        .meta
        .lifetime
        .map_or(shared.policy.idle, Duration::from_millis);
    let passed = idle.saturating_sub(found.record.ttl()).as_millis();
    let passed = u64::try_from(passed).unwrap_or(u64::MAX);
    let began = found.meta.created.unwrap_or(0);
    Some(UserSession {
        key: found.key,
        created: found.meta.created,
        authenticated: found.meta.user.as_ref().and_then(|user| user.authenticated),
        seen: now.saturating_sub(passed).max(began),
        current: current == Some(found.key),
    })
}

async fn end(shared: &Shared, user: &str, keep: Option<SessionKey>) -> Result<usize, SessionError> {
    check(shared, user)?;
    let Some((seen, mut index)) = users::index(shared, user).await? else {
        return Ok(0);
    };
    let mut kept = Vec::from_iter(keep);
    if let Some(keep) = keep {
        // It may have been rotated since the caller has read it.
        kept.extend(
            users::find(shared, user, keep)
                .await?
                .map(|found| found.key),
        );
    }
    let keys: Vec<_> = index.keys().filter(|key| !kept.contains(key)).collect();
    let (mut ended, mut dead, mut failed) = (0, Vec::new(), None);
    for keys in keys.chunks(AT_ONCE) {
        let ends = all(keys.iter().map(|key| users::end(shared, user, *key, &kept))).await;
        for (key, end) in keys.iter().zip(ends) {
            match end {
                Ok(was_live) => {
                    ended += usize::from(was_live);
                    dead.push(*key);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    prune(shared, user, &seen, &mut index, &dead).await;
    failed.map_or(Ok(ended), Err)
}

/// Takes sessions that have ended off the list, unless it has changed meanwhile; the next login does
/// it then.
async fn prune(shared: &Shared, user: &str, seen: &Record, index: &mut Index, dead: &[SessionKey]) {
    if dead.is_empty() {
        return;
    }
    index.remove(|key| dead.contains(key));
    let place = SessionKey::of_user(user);
    let payload = index.encode();
    let new = NewRecord::new(Revision::generate(), &payload, seen.ttl());
    let written = shared.store.as_dyn().update(&place, seen, &new);
    if let Err(error) = within(shared.policy.limit(Duration::MAX), written).await {
        tracing::warn!(%error, "list of a user's sessions not shortened");
    }
}

/// For [`Session::of_same_user`](crate::Session::of_same_user).
pub(crate) async fn of_same_user(
    shared: Arc<Shared>,
    user: &str,
    current: Option<SessionKey>,
) -> Result<Vec<UserSession>, SessionError> {
    of_user(&shared, user, current).await
}
