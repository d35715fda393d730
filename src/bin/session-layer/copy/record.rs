//! One record on its way to the target.

use std::time::{Duration, Instant};

use bytes::Bytes;
use session_layer::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, TouchOutcome,
    UpdateOutcome,
};
use session_layer::{AnyStore, SessionInfo, StoreError, StoreErrorKind};
use tokio::time::sleep;

use super::translation::Translation;
use crate::failure::Failure;
use crate::walk::{Found, load, within};

/// How often one record is tried, with a pause before each further time. A target that is in use may
/// change under way.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(100);

/// What became of a session, in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    New,
    /// The very same write is there.
    There,
    /// What was there is replaced.
    Replaced,
    /// It has ended in the target; that is final.
    EndedThere,
    /// Something else is there, and stays.
    Differs,
    ExpiredMeanwhile,
    Unreadable,
    TooLarge {
        size: usize,
        limit: usize,
    },
}

#[derive(Clone)]
pub(super) struct Copier {
    pub(super) from: AnyStore,
    pub(super) to: AnyStore,
    pub(super) translation: Translation,
    pub(super) overwrite: bool,
}

/// A record of the source as it is to be in the target.
struct Draft {
    revision: Revision,
    payload: Bytes,
    ending: bool,
    ttl: Duration,
    read: Instant,
}

impl Draft {
    /// The lifetime that is left by now.
    fn left(&self) -> Option<Duration> {
        let left = self.ttl.checked_sub(self.read.elapsed())?;
        (!left.is_zero()).then_some(left)
    }

    fn new_record(&self, ttl: Duration) -> NewRecord<'_> {
        NewRecord::new(self.revision, &self.payload, ttl).with_ending(self.ending)
    }
}

/// One attempt: settled, or to be tried again.
enum Attempt {
    Settled(Copied),
    Again,
}

impl Copier {
    /// Copies one session. The first in the answer is its name.
    pub(super) async fn copy(&self, key: &SessionKey) -> Result<(SessionKey, Copied), Failure> {
        let name = (self.translation.key)(key);
        let cannot_read =
            |error| Failure::of_store(format_args!("cannot read session {name} to copy it"), error);
        let read = Instant::now();
        let record = match load(&self.from, key).await.map_err(cannot_read)? {
            Found::Absent => return Ok((name, Copied::ExpiredMeanwhile)),
            Found::Unreadable => return Ok((name, Copied::Unreadable)),
            Found::Record(record) => record,
        };
        let Some(payload) = (self.translation.payload)(&record) else {
            return Ok((name, Copied::Unreadable));
        };
        let draft = Draft {
            revision: record.revision(),
            ending: is_ended(&payload, &record),
            payload,
            ttl: record.ttl(),
            read,
        };
        let limit = self.to.limits().max_payload();
        let size = draft.payload.len();
        if size > limit {
            return Ok((name, Copied::TooLarge { size, limit }));
        }
        match self.write(&name, &draft).await {
            Ok(copied) => Ok((name, copied)),
            Err(error) if error.kind() == StoreErrorKind::TooLarge => {
                Ok((name, Copied::TooLarge { size, limit }))
            }
            Err(error) => Err(Failure::of_store(
                format_args!("cannot write session {name} to the target"),
                error,
            )),
        }
    }

    async fn write(&self, key: &SessionKey, draft: &Draft) -> Result<Copied, StoreError> {
        let mut unsure = None;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let error = match self.attempt(key, draft, &mut unsure).await {
                Ok(Attempt::Settled(copied)) => return Ok(copied),
                Ok(Attempt::Again) => StoreError::new(
                    StoreErrorKind::Unavailable,
                    "what is there changed at each attempt",
                ),
                Err(error) => match error.kind() {
                    StoreErrorKind::Timeout | StoreErrorKind::Unavailable => error,
                    _ => return Err(error),
                },
            };
            if attempt == TRIES {
                return Err(error);
            }
            sleep(PAUSE * attempt * attempt).await;
        }
    }

    /// `unsure` is what a write did that got no answer: if it arrived, the next attempt finds it.
    async fn attempt(
        &self,
        key: &SessionKey,
        draft: &Draft,
        unsure: &mut Option<Copied>,
    ) -> Result<Attempt, StoreError> {
        let Some(left) = draft.left() else {
            return Ok(Attempt::Settled(Copied::ExpiredMeanwhile));
        };
        let new = draft.new_record(left);
        match within(self.to.create(key, &new)).await {
            Ok(CreateOutcome::Created(_)) => return Ok(Attempt::Settled(Copied::New)),
            Ok(CreateOutcome::Taken) => {}
            Err(error) => {
                unsure.get_or_insert(Copied::New);
                return Err(error);
            }
        }
        let there = match load(&self.to, key).await? {
            Found::Absent => return Ok(Attempt::Again),
            Found::Unreadable => return self.clear(key).await,
            Found::Record(there) => there,
        };
        if there.revision() == draft.revision {
            return self
                .renew(key, &there, left, unsure.unwrap_or(Copied::There))
                .await;
        }
        let info = SessionInfo::of(&there);
        if info.is_some_and(|info| info.is_ended()) {
            return Ok(Attempt::Settled(Copied::EndedThere));
        }
        // That a session has ended counts, whatever the rest of the answer is.
        if !self.overwrite && !draft.ending {
            return Ok(Attempt::Settled(Copied::Differs));
        }
        match within(self.to.update(key, &there, &new)).await {
            Ok(UpdateOutcome::Updated(_)) => Ok(Attempt::Settled(Copied::Replaced)),
            Ok(UpdateOutcome::Conflict | UpdateOutcome::Gone) => Ok(Attempt::Again),
            Err(error) => {
                *unsure = Some(Copied::Replaced);
                Err(error)
            }
        }
    }

    /// Makes room where the target holds what nobody can read.
    async fn clear(&self, key: &SessionKey) -> Result<Attempt, StoreError> {
        if !self.overwrite {
            return Ok(Attempt::Settled(Copied::Differs));
        }
        within(self.to.delete(key)).await?;
        Ok(Attempt::Again)
    }

    /// The same write is there. The session may have been used since, in either store: the longer
    /// lifetime counts.
    async fn renew(
        &self,
        key: &SessionKey,
        there: &Record,
        left: Duration,
        settled: Copied,
    ) -> Result<Attempt, StoreError> {
        let coarse = self.to.limits().expiry_resolution();
        let slack = coarse.max(Duration::from_secs(1));
        if left <= there.ttl().saturating_add(slack) {
            return Ok(Attempt::Settled(settled));
        }
        Ok(match within(self.to.touch(key, there, left)).await? {
            TouchOutcome::Touched(_) => Attempt::Settled(settled),
            TouchOutcome::Conflict | TouchOutcome::Gone => Attempt::Again,
        })
    }
}

fn is_ended(payload: &Bytes, record: &Record) -> bool {
    let record = Record::new(record.revision(), payload.clone(), record.ttl());
    SessionInfo::of(&record).is_some_and(|info| info.is_ended())
}
