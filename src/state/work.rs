//! What a commit takes along, and what becomes of it.

use bytes::Bytes;

use super::{CookieAction, Ending, Identity, Plan, State, Stored};
use crate::config::Policy;
use crate::edits::{self, Batch, Changes};
use crate::error::{SessionError, SessionErrorKind};
use crate::id::{Revision, SessionKey};
use crate::payload::{Meta, Payload};

/// One attempt to write whose fate may be unknown.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) revision: Revision,
    /// How many batches, from the first, it wrote.
    pub(crate) batches: usize,
    /// Whether the store failed to say what became of it.
    pub(crate) ambiguous: bool,
}

impl State {
    /// Hands out everything that the plan needs. Until [`State::settle`], the session reads as if it
    /// had been carried out.
    ///
    /// With the `last` commit of a request, edits that it does not store are dropped; those that come
    /// while it runs are not the response's any more, and wait for a `save`.
    pub(crate) fn begin(&mut self, plan: Plan, last: bool, now: u64) -> Work {
        self.forget_unsettled();
        self.committing = true;
        let mut work = Work {
            plan,
            endings: std::mem::take(&mut self.endings),
            stored: self.stored(),
            base: if plan.writes() {
                self.displace_base(Payload::empty(self.base.format()))
            } else {
                self.base.clone()
            },
            meta: self.meta.clone(),
            batches: Vec::new(),
            attempts: Vec::new(),
            rotate: false,
            lost_taken: false,
            written: None,
            replayed: None,
            flushes: self.flushes,
            last,
            too_late: None,
        };
        if plan.writes() {
            work.batches = std::mem::take(&mut self.batches);
            work.lost_taken = work.batches.iter().any(Batch::has_lost_taken);
            work.attempts = std::mem::take(&mut self.attempts);
            work.rotate = std::mem::take(&mut self.rotate);
            let (meta, payload) = work.encode(now);
            work.written = Some((meta.clone(), payload.bytes().clone()));
            self.base = payload;
            self.meta = meta;
        }
        work
    }

    /// Takes note of what became of `work`. Answers whether edits have come meanwhile that are to be
    /// done again on other data than they were made on: see [`State::take_batches`].
    pub(crate) fn settle(&mut self, work: &mut Work, outcome: Outcome, policy: &Policy) -> bool {
        let replay = self.conclude(work, outcome, policy);
        // What is being replayed is nowhere to be seen, but is to be stored all the same.
        self.committing = replay;
        replay
    }

    fn conclude(&mut self, work: &mut Work, outcome: Outcome, policy: &Policy) -> bool {
        let flushed = self.flushes != work.flushes;
        match outcome {
            Outcome::Stored { stored, replayed } => {
                // What a rotation could not end is still to be ended.
                self.endings.append(&mut work.endings);
                if flushed {
                    // What was just stored is what the flush was about.
                    self.end(Ending::of(stored.key, Some(stored.record)));
                    return false;
                }
                if let Some((meta, _)) = work.written.take() {
                    self.meta = meta;
                }
                // Otherwise `begin` has left here what was stored.
                if let Some(payload) = work.replayed.take() {
                    self.base = payload;
                }
                self.conclude_stored(stored.into(), work.plan.cookie);
                if work.lost_taken && !work.last {
                    self.lost = Some(lost_taken());
                }
                replayed && !self.batches.is_empty()
            }
            Outcome::Ended(key) => {
                if !flushed {
                    self.identity = Identity::Ended(key);
                    self.forget_data(policy);
                }
                false
            }
            Outcome::Nothing => {
                if !flushed && work.plan.cookie == CookieAction::Set {
                    self.owes_cookie |= matches!(self.identity, Identity::Stored(_));
                }
                false
            }
            Outcome::Failed => {
                self.endings.append(&mut work.endings);
                if flushed || work.written.is_none() {
                    return false;
                }
                if let Some(stored) = work.stored.take() {
                    self.identity = Identity::Stored(stored.into());
                }
                self.base = work.base.clone();
                self.meta = work.meta.clone();
                if work.last {
                    self.measure();
                    return !self.batches.is_empty();
                }
                let later = std::mem::replace(&mut self.batches, std::mem::take(&mut work.batches));
                self.batches.extend(later);
                self.attempts = std::mem::take(&mut work.attempts);
                self.rotate |= work.rotate;
                self.measure();
                false
            }
        }
    }

    /// The edits, to be replayed; with them, what [`State::return_batches`] wants back.
    pub(crate) fn take_batches(&mut self) -> (Payload, Vec<Batch>, u32) {
        let batches = std::mem::take(&mut self.batches);
        self.measure();
        (self.base.clone(), batches, self.flushes)
    }

    /// Puts batches back that were taken and replayed, unless the session they were meant for has
    /// been flushed. Answers whether more have come meanwhile.
    pub(crate) fn return_batches(&mut self, mut batches: Vec<Batch>, flushes: u32) -> bool {
        if flushes != self.flushes {
            let litter = batches.into_iter().flat_map(Batch::into_updaters);
            self.litter.extend(litter);
            self.committing = false;
            return false;
        }
        let more = !self.batches.is_empty();
        batches.append(&mut self.batches);
        self.batches = batches;
        self.measure();
        self.committing = more;
        more
    }

    /// Takes note that edits could not be done again, for the next [`State::take_lost`].
    pub(crate) fn lose(&mut self, why: SessionError) {
        self.lost = Some(why);
        self.committing = false;
    }

    pub(crate) fn take_lost(&mut self) -> Option<SessionError> {
        self.lost.take()
    }
}

/// One commit: what it is to do, and the edits it takes along.
pub(crate) struct Work {
    pub(crate) plan: Plan,
    pub(crate) endings: Vec<Ending>,
    pub(crate) stored: Option<Stored>,
    pub(super) base: Payload,
    pub(super) meta: Meta,
    pub(super) batches: Vec<Batch>,
    pub(super) attempts: Vec<Attempt>,
    pub(super) rotate: bool,
    pub(super) lost_taken: bool,
    /// What was written last, or is about to be.
    pub(super) written: Option<(Meta, Bytes)>,
    /// The same with its index, once it is no longer what [`State::begin`] has made.
    pub(super) replayed: Option<Payload>,
    pub(super) flushes: u32,
    pub(super) last: bool,
    /// What became of a change that could not be planned.
    pub(crate) too_late: Option<SessionError>,
}

/// What became of a commit.
pub(crate) enum Outcome {
    /// The store has it. `replayed`: on other data than the request had seen.
    Stored { stored: Stored, replayed: bool },
    /// The session of this key has ended; the edits are gone.
    Ended(SessionKey),
    /// There was nothing to store.
    Nothing,
    /// Not stored, as far as is known. The edits are still to be made.
    Failed,
}

/// What a record, read again after a conflict, means for the edits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reread {
    /// It is what this commit wrote, all of it.
    Landed,
    /// Edits have been laid over it; write again.
    Replayed,
    /// It is another generation's.
    OtherGeneration,
    /// An earlier write of this request may be in it or not; nobody can know.
    Unknown,
}

impl Work {
    /// Whether this failed for good, and took edits along.
    pub(crate) fn is_lost(&self) -> bool {
        self.last && (!self.batches.is_empty() || self.rotate)
    }

    /// What is to be written, and for how long.
    pub(crate) fn payload(&self) -> (&Meta, &Bytes) {
        match &self.written {
            Some((meta, payload)) => (meta, payload),
            None => (&self.meta, self.base.bytes()),
        }
    }

    /// Notes that everything is about to be written under `revision`.
    pub(crate) fn attempt(&mut self, revision: Revision) {
        self.attempts.push(Attempt {
            revision,
            batches: self.batches.len(),
            ambiguous: false,
        });
    }

    /// Notes that the last attempt may or may not have arrived.
    pub(crate) fn attempt_is_ambiguous(&mut self) {
        if let Some(last) = self.attempts.last_mut() {
            last.ambiguous = true;
        }
    }

    /// Looks at the record that is there after a conflict, and makes the edits ready to be written on
    /// top of it. Calls the closures that were given to `update`.
    pub(crate) fn reread(
        &mut self,
        revision: Revision,
        meta: Meta,
        payload: Payload,
        policy: &Policy,
        now: u64,
    ) -> Result<Reread, SessionError> {
        let seen = self.stored.as_ref().map(|stored| stored.record.revision());
        match self
            .attempts
            .iter()
            .rev()
            .find(|attempt| attempt.revision == revision)
        {
            Some(landed) => {
                self.batches.drain(..landed.batches);
                self.attempts.clear();
                if self.batches.is_empty() && !self.rotate {
                    self.replace(meta, payload);
                    return Ok(Reread::Landed);
                }
            }
            None if seen == Some(revision) => {}
            None if self.attempts.iter().any(|attempt| attempt.ambiguous) => {
                return Ok(Reread::Unknown);
            }
            None if meta.generation != self.meta.generation || meta.user != self.meta.user => {
                return Ok(Reread::OtherGeneration);
            }
            None => self.attempts.clear(),
        }
        edits::replay(&payload, &mut self.batches)?;
        self.lost_taken |= self.batches.iter().any(Batch::has_lost_taken);
        self.base = payload;
        self.meta = meta;
        let (meta, payload) = self.encode(now);
        if payload.bytes().len() > policy.limits.bytes || payload.len() > policy.limits.keys {
            return Err(SessionError::new(
                SessionErrorKind::Encode,
                "the session, with what other requests have added, is larger than allowed",
            ));
        }
        self.replace(meta, payload);
        Ok(Reread::Replayed)
    }

    fn replace(&mut self, meta: Meta, payload: Payload) {
        self.written = Some((meta, payload.bytes().clone()));
        self.replayed = Some(payload);
    }

    fn encode(&self, now: u64) -> (Meta, Payload) {
        let begins = self.rotate || self.stored.is_none();
        merge(&self.base, self.meta.clone(), &self.batches, begins, now)
    }
}

pub(super) fn lost_taken() -> SessionError {
    SessionError::new(
        SessionErrorKind::Taken,
        "a value that this request took was taken or changed by another",
    )
}

/// The batches laid over what was read. A session that `begins`, or begins anew under another id,
/// counts its age from `now`.
pub(super) fn merge(
    base: &Payload,
    mut meta: Meta,
    batches: &[Batch],
    begins: bool,
    now: u64,
) -> (Meta, Payload) {
    for batch in batches {
        batch.apply_to_meta(&mut meta);
    }
    if begins {
        meta.created = Some(now);
        meta.generation = 0;
    }
    meta.created.get_or_insert(now);
    let changes = Changes::of(batches);
    let empty = Payload::empty(base.format());
    let base = if changes.clears { &empty } else { base };
    // A handful of changes, as most requests make, needs no memory.
    let (mut few, mut count) = ([("", None); 8], 0);
    changes.each(|key, value| {
        if let Some(place) = few.get_mut(count) {
            *place = (key, value);
        }
        count += 1;
    });
    let payload = match few.get(..count) {
        Some(few) => base.changed(&meta, few),
        None => {
            let mut all = Vec::with_capacity(count);
            changes.each(|key, value| all.push((key, value)));
            base.changed(&meta, &all)
        }
    };
    (meta, payload)
}
