//! Rotation: the same data under a new id, and a tombstone under the old one.

use std::time::Duration;

use super::{Commit, ended};
use crate::error::{SessionError, SessionErrorKind};
use crate::id::{Revision, SessionKey};
use crate::shared::{Found, within};
use crate::state::{Ending, Outcome, Reread, Stored, Work};
use crate::store::{NewRecord, Record, UpdateOutcome};

/// Whether the old record of a rotation now names the new one.
enum Buried {
    Yes,
    /// The session had ended before.
    TooLate,
}

impl Commit<'_> {
    /// Stores the session under a new id, then turns the old record into a tombstone. Until that has
    /// happened nobody knows the new id.
    pub(super) async fn rotate(
        &mut self,
        work: &mut Work,
        mut old: Stored,
    ) -> (Outcome, Result<(), SessionError>) {
        let (id, mut new) = match self.create_under_new_id(work).await {
            Ok(created) => created,
            Err(error) => return (Outcome::Failed, Err(error)),
        };
        let owner = work.owner();
        let mut excess = Vec::new();
        if let Some(owner) = &owner {
            match Box::pin(self.enlist(owner, &new.key, Some(&old.key))).await {
                Ok(found) => excess = found,
                Err(error) => {
                    self.discard(&new.key).await;
                    return (Outcome::Failed, Err(error));
                }
            }
        }
        let mut replayed = false;
        let result = self.bury_for(work, &mut old, &mut new, &mut replayed).await;
        new.id = Some(id);
        match result {
            Ok(Buried::Yes) => {
                tracing::debug!(session.key = %old.key, session.new_key = %new.key, "session rotated");
                let kept = [new.key, old.key];
                let result = match &owner {
                    Some(owner) => Box::pin(self.end_excess(owner, excess, &kept)).await,
                    None => Ok(()),
                };
                (
                    Outcome::Stored {
                        stored: new,
                        replayed,
                    },
                    result,
                )
            }
            Ok(Buried::TooLate) => {
                self.discard(&new.key).await;
                (ended(&old.key), Ok(()))
            }
            Err((error, ambiguous)) => {
                if !ambiguous {
                    self.discard(&new.key).await;
                    return (Outcome::Failed, Err(error));
                }
                // The new record is whole and the old one may be gone: the browser needs the new id,
                // and the old one is still to be ended.
                work.endings.push(Ending {
                    key: old.key,
                    seen: Some(old.record),
                    successor: Some(new.key),
                });
                (
                    Outcome::Stored {
                        stored: new,
                        replayed,
                    },
                    Err(error),
                )
            }
        }
    }

    /// Replaces the old record by a tombstone that names the new one, bringing the new one up to date
    /// as often as the old one turns out to have changed. The error says whether the tombstone may
    /// have been written.
    async fn bury_for(
        &mut self,
        work: &mut Work,
        old: &mut Stored,
        new: &mut Stored,
        replayed: &mut bool,
    ) -> Result<Buried, (SessionError, bool)> {
        let mut may_be_buried = false;
        loop {
            self.time_left().map_err(|error| (error, may_be_buried))?;
            let revision = Revision::generate();
            match self
                .bury(&old.key, &old.record, Some(&new.key), revision)
                .await
            {
                Ok(UpdateOutcome::Updated(_)) => return Ok(Buried::Yes),
                Ok(UpdateOutcome::Gone) => return Ok(Buried::TooLate),
                Ok(UpdateOutcome::Conflict) => {
                    tracing::debug!(session.key = %old.key, "session changed meanwhile");
                }
                // It may still arrive; a second tombstone beside it would say the same, and one of
                // the two at most gets in. Left alone, a logout that sees the old record only would
                // miss the new one.
                Err(_) if !may_be_buried => may_be_buried = true,
                Err(error) => return Err((error, true)),
            }
            let uncertain = |error| (error, may_be_buried);
            self.queue(&old.key).await.map_err(uncertain)?;
            let found = self.read(&old.key).await.map_err(uncertain)?;
            let (record, meta, payload) = match found {
                Found::Live(live) => (live.record(), live.meta, live.payload),
                Found::Ended { successor } if successor == Some(new.key) => return Ok(Buried::Yes),
                Found::Ended { .. } | Found::Absent => return Ok(Buried::TooLate),
            };
            if record.revision() == old.record.revision() {
                old.record = record;
                continue;
            }
            // Every tombstone so far was for another revision, and can no longer get in.
            may_be_buried = false;
            let certain = |error| (error, false);
            let now = self.shared.now();
            match work
                .reread(record.revision(), meta, payload, &self.shared.policy, now)
                .map_err(certain)?
            {
                Reread::Landed | Reread::Replayed => *replayed = true,
                Reread::OtherGeneration => return Ok(Buried::TooLate),
                Reread::Unknown => {
                    let unknown = "an earlier write of this request may or may not have arrived";
                    return Err(certain(SessionError::new(SessionErrorKind::Store, unknown)));
                }
            }
            old.record = record;
            work.stored = Some(old.clone());
            if !self.refresh(work, new).await.map_err(certain)? {
                return Ok(Buried::TooLate);
            }
        }
    }

    /// Writes the edits, replayed, over the new record of a rotation, whose id nobody knows. Answers
    /// whether it is still there: whoever ends all sessions of its user ends it too.
    async fn refresh(&self, work: &mut Work, new: &mut Stored) -> Result<bool, SessionError> {
        let (_, payload) = work.payload();
        let ttl = self.new_ttl(work);
        let record = NewRecord::new(Revision::generate(), payload, ttl);
        match self
            .call(
                &new.key,
                self.shared
                    .store
                    .as_dyn()
                    .update(&new.key, &new.record, &record),
            )
            .await?
        {
            UpdateOutcome::Updated(token) => {
                let written = Record::new(record.revision(), payload.clone(), ttl);
                new.record = written.with_token(token);
                new.as_of = self.shared.now();
                Ok(true)
            }
            UpdateOutcome::Gone => Ok(false),
            UpdateOutcome::Conflict => match self.read(&new.key).await? {
                Found::Absent | Found::Ended { .. } => Ok(false),
                Found::Live(_) => Err(SessionError::new(
                    SessionErrorKind::Store,
                    "a record whose id nobody knows has changed",
                )),
            },
        }
    }

    /// Removes the new record of a rotation that came to nothing. If that fails, it is never found
    /// and expires.
    pub(super) async fn discard(&self, key: &SessionKey) {
        let limit = self.shared.policy.limit(Duration::MAX);
        if let Err(error) = within(limit, self.shared.store.as_dyn().delete(key)).await {
            tracing::warn!(session.key = %key, %error, "unused session record not deleted");
        }
    }
}
