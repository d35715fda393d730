//! Carrying out a plan in the store: the one place that writes sessions.
//!
//! Most commits are one call of the store, [`attempt`]. The rest, and what meets a conflict there, is
//! for [`perform`].

mod attempt;
mod rotation;
pub(crate) mod users;

use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::attempt::{First, attempt, attempt_at_once};
use crate::config::TOMBSTONE_TTL;
use crate::error::{SessionError, SessionErrorKind};
use crate::id::{Revision, SessionId, SessionKey};
use crate::payload::{Format, tombstone};
use crate::queue::Turn;
use crate::shared::{Found, Live, Shared, within};
use crate::state::{CookieAction, Ending, Outcome, Reread, StoreAction, Stored, Work, full_ttl};
use crate::store::{Answer, CreateOutcome, NewRecord, Record, TouchOutcome, UpdateOutcome};

/// How often an id is drawn again because its key is taken. Once is already a sign of a broken
/// generator.
const MAX_DRAWS: usize = 4;

/// Carries out `work`. An error can come with any outcome: what was stored before it stands.
pub(crate) async fn perform(
    shared: &Shared,
    work: &mut Work,
) -> (Outcome, Result<(), SessionError>) {
    Commit::new(shared, None).perform(work, false).await
}

/// Goes on with a commit whose first attempt has met a conflict. `deadline`: its own, if that runs.
pub(crate) async fn go_on(
    shared: &Shared,
    work: &mut Work,
    deadline: Option<Instant>,
) -> (Outcome, Result<(), SessionError>) {
    Commit::new(shared, deadline).perform(work, true).await
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

impl<'a> Commit<'a> {
    fn new(shared: &'a Shared, deadline: Option<Instant>) -> Self {
        Self {
            shared,
            deadline: deadline.unwrap_or_else(|| Instant::now() + shared.policy.commit_timeout),
            turn: None,
        }
    }

    async fn perform(
        &mut self,
        work: &mut Work,
        conflict: bool,
    ) -> (Outcome, Result<(), SessionError>) {
        while let Some(ending) = work.endings.first().cloned() {
            if let Err(error) = Box::pin(self.end(ending)).await {
                return (Outcome::Failed, Err(error));
            }
            work.endings.remove(0);
            self.turn = None;
        }
        let result = match (work.plan.store, work.stored.clone()) {
            (StoreAction::Nothing, _) => Ok(Outcome::Nothing),
            (StoreAction::Create, _) => match work.owner() {
                Some(owner) => return Box::pin(self.create_of_user(work, &owner)).await,
                None => self.create(work).await,
            },
            (StoreAction::Update, Some(stored)) => self.update(work, stored, conflict).await,
            (StoreAction::Touch, Some(stored)) => Box::pin(self.touch(work, stored)).await,
            (StoreAction::Rotate, Some(stored)) => {
                return Box::pin(self.rotate(work, stored)).await;
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

    /// Ends a session, and the one that it was rotated into. That one stays if only its old key is to
    /// end, unless the session turns out to have ended before: whoever did that did not know of it.
    async fn end(&mut self, ending: Ending) -> Result<(), SessionError> {
        let Ending {
            mut key,
            mut seen,
            successor: mut staying,
        } = ending;
        loop {
            let found = match seen.take() {
                Some(record) => Ok(record),
                None => match self.read(&key).await? {
                    Found::Live(live) => Ok(live.record()),
                    Found::Ended { successor } => Err(successor),
                    Found::Absent => Err(None),
                },
            };
            let successor = match found {
                Ok(record) => {
                    let buried = self.bury(&key, &record, staying.as_ref(), Revision::generate());
                    match buried.await? {
                        UpdateOutcome::Updated(_) => break,
                        UpdateOutcome::Conflict => {
                            self.queue(&key).await?;
                            continue;
                        }
                        UpdateOutcome::Gone => None,
                    }
                }
                Err(successor) if staying.is_some() && successor == staying => break,
                Err(successor) => successor,
            };
            let Some(next) = staying.take().or(successor) else {
                break;
            };
            self.turn = None;
            key = next;
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
            let key = self.shared.signer.key(&id);
            let new = NewRecord::new(Revision::generate(), payload, ttl);
            match self
                .call(&key, self.shared.store.as_dyn().create(&key, &new))
                .await?
            {
                CreateOutcome::Created(token) => {
                    let record = Record::new(new.revision(), payload.clone(), ttl);
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
        conflict: bool,
    ) -> Result<Outcome, SessionError> {
        let key = stored.key;
        let mut replayed = false;
        if conflict || self.shared.queues.is_contended(&key) {
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
            let new = NewRecord::new(revision, payload, ttl);
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
                    let record = Record::new(revision, payload.clone(), ttl);
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
        let Found::Live(live) = self.read(&key).await? else {
            return Ok(Conflict::Ended);
        };
        let record = live.record();
        let Live { meta, payload, .. } = live;
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
                Found::Live(_) => Ok(Outcome::Nothing),
                Found::Absent | Found::Ended { .. } => Ok(ended(&key)),
            },
            TouchOutcome::Gone => Ok(ended(&key)),
        }
    }

    async fn bury(
        &self,
        key: &SessionKey,
        seen: &Record,
        successor: Option<&SessionKey>,
        revision: Revision,
    ) -> Result<UpdateOutcome, SessionError> {
        let payload = tombstone(format_of(seen), successor);
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
    async fn call<T: Send>(
        &self,
        key: &SessionKey,
        answer: Answer<'_, T>,
    ) -> Result<T, SessionError> {
        let left = self.time_left()?;
        within(self.shared.policy.limit(left), answer)
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

fn format_of(record: &Record) -> Format {
    match record.payload().first() {
        Some(b'{') => Format::Json,
        _ => Format::MessagePack,
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
