//! The first attempt of a commit, which for most commits is the only one.

use std::time::Duration;

use super::work::{Attempt, lost_taken, merge};
use super::{CookieAction, Ending, Identity, Known, Plan, State, StoreAction, Work, full_ttl};
use crate::config::Policy;
use crate::edits::Batch;
use crate::id::{Revision, SessionId, SessionKey};
use crate::payload::{Meta, Payload};
use crate::store::{Token, Version};

/// What is to be written, while the edits that it is made of stay in the [`State`].
pub(crate) struct Draft {
    plan: Plan,
    id: Option<SessionId>,
    pub(crate) key: SessionKey,
    /// What it is to replace; `None` if the session is to be created.
    pub(crate) seen: Option<Revision>,
    pub(crate) revision: Revision,
    pub(crate) payload: Payload,
    pub(crate) ttl: Duration,
    meta: Meta,
    now: u64,
    rotate: bool,
    lost_taken: bool,
    flushes: u32,
    last: bool,
}

/// Where something is to be written.
pub(super) struct Place {
    pub(super) id: Option<SessionId>,
    pub(super) key: SessionKey,
    /// What it is to replace; `None` if the session is to be created.
    pub(super) seen: Option<Revision>,
}

/// What became of a draft.
pub(crate) enum Settled {
    Written(Token),
    /// The session has ended; the edits are gone.
    Ended,
    /// Not written, as far as is known.
    Failed,
}

impl Draft {
    /// Whether edits are gone if this fails.
    pub(crate) fn is_last(&self) -> bool {
        self.last
    }

    fn take_payload(&mut self) -> Payload {
        let empty = Payload::empty(self.payload.format());
        std::mem::replace(&mut self.payload, empty)
    }
}

impl State {
    /// Writes down what a plan asks for that takes one call of the store, if nothing has gone wrong
    /// before: an update, or a creation under the id `fresh`. Until [`State::settle_draft`] the edits
    /// stay where they are, and count as stored.
    pub(crate) fn draft(
        &mut self,
        plan: Plan,
        last: bool,
        fresh: Option<(SessionId, SessionKey)>,
        policy: &Policy,
        now: u64,
    ) -> Option<Draft> {
        self.forget_unsettled();
        let Place { id, key, seen } = self.place(plan, fresh)?;
        let begins = self.rotate || seen.is_none();
        let (meta, payload) = merge(&self.base, self.meta.clone(), &self.batches, begins, now);
        let ttl = full_ttl(policy, &meta, now)?;
        let revision = Revision::generate();
        self.committing = true;
        self.sent = Some(Attempt {
            revision,
            batches: self.batches.len(),
            ambiguous: false,
        });
        Some(Draft {
            plan,
            id,
            key,
            seen,
            revision,
            payload,
            ttl,
            meta,
            now,
            rotate: std::mem::take(&mut self.rotate),
            lost_taken: self.batches.iter().any(Batch::has_lost_taken),
            flushes: self.flushes,
            last,
        })
    }

    /// Where one call of the store does for a plan.
    pub(super) fn place(
        &self,
        plan: Plan,
        fresh: Option<(SessionId, SessionKey)>,
    ) -> Option<Place> {
        if plan.end || !self.attempts.is_empty() || self.logs_in() {
            return None;
        }
        let (id, key, seen) = match (plan.store, &self.identity, fresh) {
            (StoreAction::Create, _, Some((id, key))) => (Some(id), key, None),
            (StoreAction::Update, Identity::Stored(known), _) => {
                (known.id, known.key, Some(known.version.revision))
            }
            _ => return None,
        };
        Some(Place { id, key, seen })
    }

    /// A commit that never came to an end, because its store panicked, has its edits with it.
    pub(super) fn forget_unsettled(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.drop_first_batches(sent.batches);
            self.measure();
        }
    }

    /// Takes note of what became of `draft`. Answers as [`State::settle`] does.
    pub(crate) fn settle_draft(
        &mut self,
        draft: &mut Draft,
        settled: Settled,
        policy: &Policy,
    ) -> bool {
        let flushed = self.flushes != draft.flushes;
        self.committing = false;
        // A flush has dropped what was sent.
        let sent = self.sent.take();
        let batches = sent.map_or(0, |sent| sent.batches);
        match settled {
            Settled::Written(token) => {
                let version = Version {
                    revision: draft.revision,
                    ttl: draft.ttl,
                    token,
                };
                if flushed {
                    // What was just stored is what the flush was about.
                    let record = version.with_payload(draft.payload.bytes().clone());
                    self.end(Ending::of(draft.key, Some(record)));
                    return false;
                }
                self.drop_first_batches(batches);
                (self.base, self.meta) = (draft.take_payload(), draft.meta.clone());
                let known = Known::new(draft.id, draft.key, version, draft.now);
                self.conclude_stored(known, draft.plan.cookie);
                if draft.lost_taken && !draft.last {
                    self.lost = Some(lost_taken());
                }
            }
            Settled::Ended if !flushed => {
                self.identity = Identity::Ended(draft.key);
                self.forget_data(policy);
            }
            Settled::Failed if !flushed && draft.last => {
                self.drop_first_batches(batches);
                self.measure();
                // What came meanwhile was done on top of what is lost.
                self.committing = !self.batches.is_empty();
            }
            Settled::Failed if !flushed => {
                self.rotate |= draft.rotate;
                if draft.seen.is_some() {
                    let ambiguous = |sent| Attempt {
                        ambiguous: true,
                        ..sent
                    };
                    self.attempts.extend(sent.map(ambiguous));
                }
            }
            Settled::Ended | Settled::Failed => {}
        }
        self.committing
    }

    /// Takes note that the store has the session.
    pub(super) fn conclude_stored(&mut self, known: Known, cookie: CookieAction) {
        self.owes_cookie |= cookie == CookieAction::Set;
        self.owes_removal &= !self.owes_cookie;
        self.touch_due = false;
        self.identity = Identity::Stored(known);
        self.measure();
    }

    /// Makes work of a draft that has met a conflict. `None` if the session was flushed meanwhile, so
    /// that there is nothing left to be stored.
    pub(crate) fn begin_again(&mut self, draft: &mut Draft) -> Option<Work> {
        let sent = self.sent.take().filter(|_| self.flushes == draft.flushes);
        let Some(sent) = sent else {
            self.committing = false;
            return None;
        };
        let stored = self.stored();
        let batches = self.batches.drain(..sent.batches).collect();
        let written = (draft.meta.clone(), draft.payload.bytes().clone());
        let work = Work {
            plan: draft.plan,
            endings: Vec::new(),
            base: self.displace_base(draft.take_payload()),
            meta: std::mem::replace(&mut self.meta, draft.meta.clone()),
            batches,
            // A creation that is refused has written nothing.
            attempts: Vec::from_iter(stored.is_some().then_some(sent)),
            stored,
            rotate: draft.rotate,
            lost_taken: draft.lost_taken,
            written: Some(written),
            replayed: None,
            flushes: draft.flushes,
            last: draft.last,
            too_late: None,
        };
        self.measure();
        Some(work)
    }
}
