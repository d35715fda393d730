//! The sessions of a user: put on their list before anybody learns the id, ended as long as they are
//! theirs.
//!
//! The list is a hint, and may name sessions that have ended; but each live session whose id somebody
//! knows is on it. So a session is listed when it has been created and before the old one, which it
//! takes the place of, is buried: whatever fails in between leaves a list that is too long, and the
//! old session as it was.

use std::collections::HashMap;

use tokio::time::Instant;

use super::Commit;
use crate::config::{MAX_LIFETIME, TOMBSTONE_TTL, WIDEST};
use crate::error::{SessionError, StoreError, StoreErrorKind};
use crate::id::{Revision, SessionKey};
use crate::payload::{Head, Meta, Payload, tombstone};
use crate::shared::{Shared, within};
use crate::state::{Outcome, Owner, Work};
use crate::store::{CreateOutcome, NewRecord, Record, UpdateOutcome};
use crate::user::index::{Entry, Index};
use crate::user::several::{AT_ONCE, all};

/// How many listed sessions a login or a rotation looks at, to find those that have ended.
const LOOKS: usize = 2;

/// A live session of a user.
pub(crate) struct Found {
    pub(crate) key: SessionKey,
    pub(crate) record: Record,
    pub(crate) meta: Meta,
}

/// What a listed session is by now. Judged without regard to this layer's own limits, since others may
/// share the store.
enum Standing {
    Theirs(Record, Meta),
    Rotated(SessionKey),
    /// Ended, expired, or no longer this user's.
    Gone,
}

/// The list of a user's sessions; `None` if there is none.
pub(crate) async fn index(
    shared: &Shared,
    user: &str,
) -> Result<Option<(Record, Index)>, SessionError> {
    let commit = Commit::new(shared, None);
    let (record, index) = commit.index(&SessionKey::of_user(user)).await?;
    Ok(record.map(|record| (record, index)))
}

/// The session of `user` under `key`, or the one that it was rotated into.
pub(crate) async fn find(
    shared: &Shared,
    user: &str,
    mut key: SessionKey,
) -> Result<Option<Found>, SessionError> {
    let commit = Commit::new(shared, None);
    loop {
        match commit.look(user, &key).await? {
            Standing::Theirs(record, meta) => return Ok(Some(Found { key, record, meta })),
            Standing::Rotated(successor) => key = successor,
            Standing::Gone => return Ok(None),
        }
    }
}

/// What became of a session that was to be ended.
enum End {
    Ended,
    /// It goes on under this key.
    Rotated(SessionKey),
    Gone,
}

/// Ends the session under `key`, or the one that it was rotated into, if it is `user`'s and none of
/// `kept`. Answers whether there was one.
pub(crate) async fn end(
    shared: &Shared,
    user: &str,
    mut key: SessionKey,
    kept: &[SessionKey],
) -> Result<bool, SessionError> {
    let deadline = Commit::new(shared, None).deadline;
    while !kept.contains(&key) {
        match end_alone(shared, user, &key, deadline).await? {
            End::Ended => return Ok(true),
            End::Rotated(successor) => key = successor,
            End::Gone => return Ok(false),
        }
    }
    Ok(false)
}

/// Ends the session under `key` if it is `user`'s.
async fn end_alone(
    shared: &Shared,
    user: &str,
    key: &SessionKey,
    deadline: Instant,
) -> Result<End, SessionError> {
    let mut commit = Commit::new(shared, Some(deadline));
    loop {
        let record = match commit.look(user, key).await? {
            Standing::Theirs(record, _) => record,
            Standing::Rotated(successor) => return Ok(End::Rotated(successor)),
            Standing::Gone => return Ok(End::Gone),
        };
        match commit.bury_of_user(key, &record).await? {
            UpdateOutcome::Updated(_) => {
                tracing::debug!(session.key = %key, "session ended");
                return Ok(End::Ended);
            }
            UpdateOutcome::Gone => return Ok(End::Gone),
            UpdateOutcome::Conflict => commit.queue(key).await?,
        }
    }
}

impl Commit<'_> {
    /// Stores a new session that is somebody's.
    pub(super) async fn create_of_user(
        &mut self,
        work: &mut Work,
        owner: &Owner,
    ) -> (Outcome, Result<(), SessionError>) {
        let (id, mut stored) = match self.create_under_new_id(work).await {
            Ok(created) => created,
            Err(error) => return (Outcome::Failed, Err(error)),
        };
        let excess = match self.enlist(owner, &stored.key, None).await {
            Ok(excess) => excess,
            Err(error) => {
                self.discard(&stored.key).await;
                return (Outcome::Failed, Err(error));
            }
        };
        tracing::debug!(session.key = %stored.key, "session created");
        let kept = [stored.key];
        stored.id = Some(id);
        let stored = Outcome::Stored {
            stored,
            replayed: false,
        };
        (stored, self.end_excess(owner, excess, &kept).await)
    }

    /// Lists a session that was created and is still unknown to everybody, in the place of `old` if it
    /// is that, rotated. Answers which sessions are too many.
    pub(super) async fn enlist(
        &mut self,
        owner: &Owner,
        new: &SessionKey,
        old: Option<&SessionKey>,
    ) -> Result<Vec<Entry>, SessionError> {
        let listed = self.list(owner, new, old).await;
        self.turn = None;
        listed
    }

    async fn list(
        &mut self,
        owner: &Owner,
        new: &SessionKey,
        old: Option<&SessionKey>,
    ) -> Result<Vec<Entry>, SessionError> {
        let (user, at, login) = (&owner.user, owner.at, owner.logs_in);
        let place = SessionKey::of_user(user);
        let limit = self.shared.policy.sessions_per_user;
        // The old session counts as gone: it is about to be.
        let kept: Vec<_> = std::iter::once(new).chain(old).copied().collect();
        let mut alive = HashMap::new();
        let (mut first, mut failed, mut unreadable) = (true, false, 0);
        self.turn = None;
        if self.shared.queues.is_contended(&place) {
            self.queue(&place).await?;
        }
        let index = loop {
            let (seen, mut index) = match self.index(&place).await {
                // It is begun anew: most stores replace what they cannot read, ...
                Err(error) if unreadable < 2 && is(&error, StoreErrorKind::Corrupt) => {
                    unreadable += 1;
                    if unreadable == 2 {
                        // ... and the others call the place taken.
                        let store = self.shared.store.as_dyn();
                        self.call(&place, store.delete(&place)).await?;
                    }
                    (None, Index::new(self.shared.policy.format))
                }
                found => found?,
            };
            // A write whose answer was lost had arrived.
            if index.contains(new) {
                break index;
            }
            index.remove(|key| alive.get(key) == Some(&false));
            let unknown = index
                .keys()
                .filter(|key| !kept.contains(key) && !alive.contains_key(key));
            let mut unknown: Vec<_> = unknown.collect();
            let crowded = login && !index.beyond(limit, &kept).is_empty();
            if !crowded && index.len() < 2 * limit {
                unknown.truncate(if first { LOOKS } else { 0 });
            }
            first = false;
            self.look_at(user, &unknown, &mut alive).await?;
            index.remove(|key| alive.get(key) == Some(&false));
            index.looked_at(|key| alive.contains_key(key));
            if login {
                index.add_login(*new, old, at);
            } else {
                index.add_rotated(*new, old, at);
            }
            match self.write(&place, seen.as_ref(), &index).await {
                Ok(true) => break index,
                Ok(false) => {}
                // It may have arrived; the list itself says so.
                Err(_) if !failed => failed = true,
                Err(error) => return Err(error),
            }
            self.queue(&place).await?;
        };
        tracing::debug!(session.key = %new, "session listed");
        Ok(if login {
            index.beyond(limit, &kept)
        } else {
            Vec::new()
        })
    }

    /// Finds out which of these are still alive. What it does not find out counts as alive, and half
    /// of the time is left for what comes after.
    async fn look_at(
        &self,
        user: &str,
        keys: &[SessionKey],
        alive: &mut HashMap<SessionKey, bool>,
    ) -> Result<(), SessionError> {
        for keys in keys.chunks(AT_ONCE) {
            if self.time_left()? < self.shared.policy.commit_timeout / 2 {
                break;
            }
            let found = all(keys.iter().map(|key| self.look(user, key))).await;
            for (key, standing) in keys.iter().zip(found) {
                if let Ok(standing) = standing {
                    alive.insert(*key, matches!(standing, Standing::Theirs(..)));
                }
            }
        }
        Ok(())
    }

    /// Writes the list over what was `seen`. Answers whether that was still there.
    async fn write(
        &self,
        place: &SessionKey,
        seen: Option<&Record>,
        index: &Index,
    ) -> Result<bool, SessionError> {
        let payload = index.encode();
        let new = NewRecord::new(Revision::generate(), &payload, MAX_LIFETIME);
        let store = self.shared.store.as_dyn();
        Ok(match seen {
            None => {
                let outcome = self.call(place, store.create(place, &new)).await?;
                matches!(outcome, CreateOutcome::Created(_))
            }
            Some(seen) => {
                let outcome = self.call(place, store.update(place, seen, &new)).await?;
                matches!(outcome, UpdateOutcome::Updated(_))
            }
        })
    }

    /// Ends the sessions that are too many. If that fails the login stands all the same, and the next
    /// one ends them.
    pub(super) async fn end_excess(
        &self,
        owner: &Owner,
        mut excess: Vec<Entry>,
        kept: &[SessionKey],
    ) -> Result<(), SessionError> {
        let user = &owner.user;
        let mut tried = Vec::from(kept);
        while !excess.is_empty() {
            let mut rotated = Vec::new();
            for entries in excess.chunks(AT_ONCE) {
                let ends = entries
                    .iter()
                    .map(|entry| end_alone(self.shared, user, &entry.key, self.deadline));
                for (Entry { key, at }, ended) in entries.iter().zip(all(ends).await) {
                    match ended? {
                        End::Ended => {
                            tracing::info!(session.key = %key, "session ended: its user has too many");
                        }
                        End::Rotated(_) => rotated.push(*at),
                        End::Gone => {}
                    }
                }
            }
            if rotated.is_empty() {
                break;
            }
            // Its other key was listed before; as another login, if it was logged in to again: that
            // one counts for itself.
            tried.extend(excess.iter().map(|entry| entry.key));
            let (_, index) = self.index(&SessionKey::of_user(user)).await?;
            excess = index.of_logins(&rotated);
            excess.retain(|entry| !tried.contains(&entry.key));
        }
        Ok(())
    }

    /// The list under this key, empty if there is none, with the record that it comes from.
    async fn index(&self, place: &SessionKey) -> Result<(Option<Record>, Index), SessionError> {
        let format = self.shared.policy.format;
        let record = self.fetch(place).await?;
        let index = record.as_ref().map(|record| Index::parse(record.payload()));
        if let Some(None) = index {
            tracing::warn!(session.key = %place, "unreadable list of a user's sessions ignored");
        }
        let index = index.flatten().unwrap_or_else(|| Index::new(format));
        Ok((record, index))
    }

    async fn look(&self, user: &str, key: &SessionKey) -> Result<Standing, SessionError> {
        let record = match self.fetch(key).await {
            Err(error) if is(&error, StoreErrorKind::Corrupt) => None,
            record => record?,
        };
        let Some(record) = record else {
            return Ok(Standing::Gone);
        };
        Ok(match Payload::parse(record.payload().clone(), &WIDEST) {
            Ok((Head::Live(meta), _))
                if meta.user.as_ref().is_some_and(|owner| *owner.name == *user) =>
            {
                Standing::Theirs(record, meta)
            }
            Ok((
                Head::Ended {
                    successor: Some(successor),
                },
                _,
            )) => Standing::Rotated(successor),
            Ok(_) | Err(_) => Standing::Gone,
        })
    }

    async fn fetch(&self, key: &SessionKey) -> Result<Option<Record>, SessionError> {
        let limit = self.shared.policy.limit(self.time_left()?);
        match within(limit, self.shared.store.as_dyn().load(key)).await {
            // A store that is moved from and finds records by their ids: no user's session is there.
            Err(error) if error.kind() == StoreErrorKind::Unsupported => Ok(None),
            Err(error) => {
                tracing::error!(session.key = %key, %error, "session not loaded");
                Err(error.into())
            }
            Ok(record) => Ok(record),
        }
    }

    async fn bury_of_user(
        &self,
        key: &SessionKey,
        seen: &Record,
    ) -> Result<UpdateOutcome, SessionError> {
        match self.bury(key, seen, None, Revision::generate()).await {
            // As in `fetch`: there is nothing to be deleted where it is moved from.
            Err(error) if is(&error, StoreErrorKind::Unsupported) => {
                let payload = tombstone(super::format_of(seen), None);
                let new = NewRecord::new(Revision::generate(), &payload, TOMBSTONE_TTL);
                let store = self.shared.store.as_dyn();
                self.call(key, store.update(key, seen, &new)).await
            }
            outcome => outcome,
        }
    }
}

fn is(error: &SessionError, kind: StoreErrorKind) -> bool {
    error.store_error().map(StoreError::kind) == Some(kind)
}
