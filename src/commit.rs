//! Carrying out a plan in the store: the one place that writes sessions.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::TOMBSTONE_TTL;
use crate::error::{SessionError, SessionErrorKind};
use crate::id::{Revision, SessionId, SessionKey};
use crate::payload::{Format, tombstone};
use crate::queue::Turn;
use crate::shared::{Found, Shared, within};
use crate::state::{CookieAction, Ending, Outcome, Reread, StoreAction, Stored, Work, full_ttl};
use crate::store::{Answer, CreateOutcome, NewRecord, Record, TouchOutcome, UpdateOutcome};

/// How often an id is drawn again because its key is taken. Once is already a sign of a broken
/// generator.
const MAX_DRAWS: usize = 4;

/// Carries out `work`. An error can come with any outcome: what was stored before it stands.
///
/// What is rare is boxed, so that the future of a plain update or creation, which is boxed as a whole,
/// stays under a kilobyte: allocators are slower beyond.
pub(crate) async fn perform(
    shared: &Shared,
    work: &mut Work,
) -> (Outcome, Result<(), SessionError>) {
    let mut commit = Commit {
        shared,
        deadline: Instant::now() + shared.policy.commit_timeout,
        turn: None,
    };
    while let Some(ending) = work.endings.first().cloned() {
        if let Err(error) = Box::pin(commit.end(ending)).await {
            return (Outcome::Failed, Err(error));
        }
        work.endings.remove(0);
        commit.turn = None;
    }
    let result = match (work.plan.store, work.stored.clone()) {
        (StoreAction::Nothing, _) => Ok(Outcome::Nothing),
        (StoreAction::Create, _) => commit.create(work).await,
        (StoreAction::Update, Some(stored)) => commit.update(work, stored).await,
        (StoreAction::Touch, Some(stored)) => Box::pin(commit.touch(work, stored)).await,
        (StoreAction::Rotate, Some(stored)) => {
            return Box::pin(commit.rotate(work, stored)).await;
        }
        // The plan asks for these of a stored session only.
        (StoreAction::Update | StoreAction::Touch | StoreAction::Rotate, None) => {
            Ok(Outcome::Nothing)
        }
    };
    match result {
        Ok(outcome) => (outcome, Ok(())),
        Err(error) => (Outcome::Failed, Err(error)),
    }
}

struct Commit<'a> {
    shared: &'a Shared,
    deadline: Instant,
    /// Held from the first conflict on.
    turn: Option<Turn>,
}

/// What a conflict turned out to be.
enum Conflict {
    /// The edits are ready to be written over this record.
    Again,
    /// They are already in this record.
    Landed(Record),
    /// The session has ended.
    Ended,
}

/// Whether the old record of a rotation now names the new one.
enum Buried {
    Yes,
    /// The session had ended before.
    TooLate,
}

impl Commit<'_> {
    /// Ends a session, and the one that it was rotated into.
    async fn end(&mut self, ending: Ending) -> Result<(), SessionError> {
        let Ending { mut key, mut seen } = ending;
        loop {
            let record = match seen.take() {
                Some(record) => record,
                None => match self.read(&key).await? {
                    Found::Absent => break,
                    Found::Ended { successor: None } => break,
                    Found::Ended {
                        successor: Some(successor),
                    } => {
                        self.turn = None;
                        key = successor;
                        continue;
                    }
                    Found::Live { record, .. } => record,
                },
            };
            match self.bury(&key, &record, None, Revision::generate()).await? {
                UpdateOutcome::Updated(_) => break,
                UpdateOutcome::Gone => break,
                UpdateOutcome::Conflict => self.queue(&key).await?,
            }
        }
        tracing::debug!(session.key = %key, "session ended");
        Ok(())
    }

    async fn create(&mut self, work: &mut Work) -> Result<Outcome, SessionError> {
        let (id, stored) = self.create_under_new_id(work).await?;
        tracing::debug!(session.key = %stored.key, "session created");
        Ok(Outcome::Stored {
            stored: Stored {
                id: Some(id),
                ..stored
            },
            replayed: false,
        })
    }

    async fn create_under_new_id(
        &self,
        work: &mut Work,
    ) -> Result<(SessionId, Stored), SessionError> {
        let (_, payload) = work.payload();
        let ttl = self.new_ttl(work);
        for _ in 0..MAX_DRAWS {
            let id = SessionId::generate()?;
            let key = id.key();
            let new = NewRecord::new(Revision::generate(), payload.bytes(), ttl);
            match self
                .call(&key, self.shared.store.as_dyn().create(&key, &new))
                .await?
            {
                CreateOutcome::Created(token) => {
                    let record = Record::new(new.revision(), payload.bytes().clone(), ttl);
                    let stored = Stored {
                        id: Some(id),
                        key,
                        record: record.with_token(token),
                        as_of: self.shared.now(),
                    };
                    return Ok((id, stored));
                }
                CreateOutcome::Taken => {
                    tracing::warn!(session.key = %key, "session key taken; another is drawn");
                }
            }
        }
        Err(SessionError::new(
            SessionErrorKind::Store,
            "every session key drawn is taken",
        ))
    }

    async fn update(
        &mut self,
        work: &mut Work,
        mut stored: Stored,
    ) -> Result<Outcome, SessionError> {
        let key = stored.key;
        let mut replayed = false;
        if self.shared.queues.is_contended(&key) {
            // What was read is most likely out of date; a turn and a fresh look save a failed write.
            match Box::pin(self.after_conflict(work, &mut stored)).await? {
                Conflict::Again => replayed = true,
                Conflict::Landed(record) => return Ok(self.landed(stored, record)),
                Conflict::Ended => return Ok(ended(&key)),
            }
        }
        loop {
            let revision = Revision::generate();
            let Some(ttl) = self.ttl(work) else {
                return Ok(ended(&key));
            };
            work.attempt(revision);
            let (_, payload) = work.payload();
            let new = NewRecord::new(revision, payload.bytes(), ttl);
            let outcome = self
                .call(
                    &key,
                    self.shared
                        .store
                        .as_dyn()
                        .update(&key, &stored.record, &new),
                )
                .await;
            match outcome {
                Ok(UpdateOutcome::Updated(token)) => {
                    tracing::debug!(session.key = %key, "session updated");
                    let record = Record::new(revision, payload.bytes().clone(), ttl);
                    stored.record = record.with_token(token);
                    stored.as_of = self.shared.now();
                    return Ok(Outcome::Stored { stored, replayed });
                }
                Ok(UpdateOutcome::Gone) => return Ok(ended(&key)),
                Ok(UpdateOutcome::Conflict) => {
                    match Box::pin(self.after_conflict(work, &mut stored)).await? {
                        Conflict::Again => replayed = true,
                        Conflict::Landed(record) => return Ok(self.landed(stored, record)),
                        Conflict::Ended => return Ok(ended(&key)),
                    }
                }
                Err(error) => {
                    work.attempt_is_ambiguous();
                    return Err(error);
                }
            }
        }
    }

    /// Gets in line, reads the session again, and lays the edits over it.
    async fn after_conflict(
        &mut self,
        work: &mut Work,
        stored: &mut Stored,
    ) -> Result<Conflict, SessionError> {
        let key = stored.key;
        tracing::debug!(session.key = %key, "session changed meanwhile");
        self.queue(&key).await?;
        let Found::Live {
            record,
            meta,
            payload,
            ..
        } = self.read(&key).await?
        else {
            return Ok(Conflict::Ended);
        };
        let now = self.shared.now();
        match work.reread(record.revision(), meta, payload, &self.shared.policy, now)? {
            Reread::Landed => return Ok(Conflict::Landed(record)),
            Reread::OtherGeneration => return Ok(Conflict::Ended),
            Reread::Unknown => {
                return Err(SessionError::new(
                    SessionErrorKind::Store,
                    "an earlier write of this request may or may not have arrived",
                ));
            }
            Reread::Replayed => {}
        }
        stored.record = record;
        stored.as_of = now;
        work.stored = Some(stored.clone());
        Ok(Conflict::Again)
    }

    async fn touch(
        &mut self,
        work: &mut Work,
        mut stored: Stored,
    ) -> Result<Outcome, SessionError> {
        let key = stored.key;
        let Some(ttl) = self.ttl(work) else {
            return Ok(ended(&key));
        };
        match self
            .call(
                &key,
                self.shared.store.as_dyn().touch(&key, &stored.record, ttl),
            )
            .await?
        {
            TouchOutcome::Touched(token) => {
                tracing::debug!(session.key = %key, "session touched");
                let touched = Record::new(
                    stored.record.revision(),
                    stored.record.payload().clone(),
                    ttl,
                );
                stored.record = touched.with_token(token);
                stored.as_of = self.shared.now();
                Ok(Outcome::Stored {
                    stored,
                    replayed: false,
                })
            }
            // Whoever changed the session has renewed it. Only a cookie that is about to be sent
            // again has to know whether they have ended it.
            TouchOutcome::Conflict if work.plan.cookie == CookieAction::Keep => {
                Ok(Outcome::Nothing)
            }
            TouchOutcome::Conflict => match self.read(&key).await? {
                Found::Live { .. } => Ok(Outcome::Nothing),
                Found::Absent | Found::Ended { .. } => Ok(ended(&key)),
            },
            TouchOutcome::Gone => Ok(ended(&key)),
        }
    }

    /// Stores the session under a new id, then turns the old record into a tombstone. Until that has
    /// happened nobody knows the new id.
    async fn rotate(
        &mut self,
        work: &mut Work,
        mut old: Stored,
    ) -> (Outcome, Result<(), SessionError>) {
        let (id, mut new) = match self.create_under_new_id(work).await {
            Ok(created) => created,
            Err(error) => return (Outcome::Failed, Err(error)),
        };
        let mut replayed = false;
        let result = self.bury_for(work, &mut old, &mut new, &mut replayed).await;
        new.id = Some(id);
        match result {
            Ok(Buried::Yes) => {
                tracing::debug!(session.key = %old.key, session.new_key = %new.key, "session rotated");
                (
                    Outcome::Stored {
                        stored: new,
                        replayed,
                    },
                    Ok(()),
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
                // The new record is whole and the old one may be gone: the browser needs the new id.
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
                Found::Live {
                    record,
                    meta,
                    payload,
                    ..
                } => (record, meta, payload),
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
            self.refresh(work, new).await.map_err(certain)?;
        }
    }

    /// Writes the edits, replayed, over the new record of a rotation, which nobody else knows.
    async fn refresh(&self, work: &mut Work, new: &mut Stored) -> Result<(), SessionError> {
        let (_, payload) = work.payload();
        let ttl = self.new_ttl(work);
        let record = NewRecord::new(Revision::generate(), payload.bytes(), ttl);
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
                let written = Record::new(record.revision(), payload.bytes().clone(), ttl);
                new.record = written.with_token(token);
                new.as_of = self.shared.now();
                Ok(())
            }
            UpdateOutcome::Conflict | UpdateOutcome::Gone => Err(SessionError::new(
                SessionErrorKind::Store,
                "a record that nobody else knows has changed",
            )),
        }
    }

    /// Removes the new record of a rotation that came to nothing. If that fails, it is never found
    /// and expires.
    async fn discard(&self, key: &SessionKey) {
        let limit = self.shared.policy.store_timeout;
        if let Err(error) = within(limit, self.shared.store.as_dyn().delete(key)).await {
            tracing::warn!(session.key = %key, %error, "unused session record not deleted");
        }
    }

    async fn bury(
        &self,
        key: &SessionKey,
        seen: &Record,
        successor: Option<&SessionKey>,
        revision: Revision,
    ) -> Result<UpdateOutcome, SessionError> {
        let format = match seen.payload().first() {
            Some(b'{') => Format::Json,
            _ => Format::MessagePack,
        };
        let payload = tombstone(format, successor);
        let new = NewRecord::new(revision, &payload, TOMBSTONE_TTL).with_ending(true);
        self.call(key, self.shared.store.as_dyn().update(key, seen, &new))
            .await
    }

    async fn queue(&mut self, key: &SessionKey) -> Result<(), SessionError> {
        if self.turn.is_none() {
            let turn = tokio::time::timeout_at(self.deadline, self.shared.queues.wait(*key)).await;
            self.turn = Some(turn.map_err(|_| out_of_time())?);
        }
        Ok(())
    }

    async fn read(&self, key: &SessionKey) -> Result<Found, SessionError> {
        self.time_left()?;
        let loading = self.shared.load(key);
        match tokio::time::timeout_at(self.deadline, loading).await {
            Ok(found) => Ok(found?),
            Err(_) => Err(out_of_time()),
        }
    }

    /// Calls the store, no longer than the store timeout and the commit deadline allow.
    async fn call<T>(&self, key: &SessionKey, answer: Answer<'_, T>) -> Result<T, SessionError> {
        let left = self.time_left()?;
        within(left.min(self.shared.policy.store_timeout), answer)
            .await
            .map_err(|error| {
                tracing::error!(session.key = %key, %error, "session not stored");
                error.into()
            })
    }

    /// How long what is written is to live; `None` if its absolute timeout has passed meanwhile.
    fn ttl(&self, work: &Work) -> Option<Duration> {
        let (meta, _) = work.payload();
        full_ttl(&self.shared.policy, meta, self.shared.now())
    }

    /// The same for a session that begins now, so that no absolute timeout can have passed.
    fn new_ttl(&self, work: &Work) -> Duration {
        let (meta, _) = work.payload();
        full_ttl(&self.shared.policy, meta, meta.created.unwrap_or_default())
            .unwrap_or(self.shared.policy.idle)
    }

    fn landed(&self, stored: Stored, record: Record) -> Outcome {
        tracing::debug!(session.key = %stored.key, "an earlier write had arrived");
        Outcome::Stored {
            stored: Stored {
                record,
                as_of: self.shared.now(),
                ..stored
            },
            replayed: true,
        }
    }

    fn time_left(&self) -> Result<Duration, SessionError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(out_of_time());
        }
        Ok(left)
    }
}

fn ended(key: &SessionKey) -> Outcome {
    tracing::info!(session.key = %key, "session ended meanwhile; edits dropped");
    Outcome::Ended(*key)
}

fn out_of_time() -> SessionError {
    SessionError::new(
        SessionErrorKind::Store,
        "the session could not be stored before the commit deadline",
    )
}
