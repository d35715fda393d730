//! What a request knows of its session, and what it has done to it. No I/O, no clock.

mod at_once;
mod draft;
mod identity;
mod login;
mod plan;
mod renewal;
mod size;
mod work;

pub(crate) use self::draft::{Draft, Settled};
pub(crate) use self::identity::{Ending, Identity, Known, Stored};
pub(crate) use self::login::Owner;
pub(crate) use self::plan::{CookieAction, Plan, StoreAction};
pub(crate) use self::renewal::{full_ttl, is_cookie_due, is_due};
use self::work::Attempt;
pub(crate) use self::work::{Outcome, Reread, Work};
use crate::config::Policy;
use crate::edits::{self, Batch, Updater};
use crate::error::SessionError;
use crate::payload::{self, Meta, Payload, Value};

pub(crate) struct State {
    identity: Identity,
    /// What was loaded, or what the commit that is under way has written.
    base: Payload,
    meta: Meta,
    /// Edits on top of `base`. Only the last may still grow, and only if no attempt has taken it along.
    batches: Vec<Batch>,
    attempts: Vec<Attempt>,
    /// The attempt that is under way, if what it writes has stayed here: see [`State::draft`].
    sent: Option<Attempt>,
    rotate: bool,
    endings: Vec<Ending>,
    /// Whether a commit is under way.
    committing: bool,
    /// Counts `flush`, so that a commit notices one that came while it ran.
    flushes: u32,
    /// The request came with a cookie of our name, valid or not.
    carried_cookie: bool,
    touch_due: bool,
    cookie_due: bool,
    cookie_waits: bool,
    /// The browser is still to be told of a session that was stored, ...
    owes_cookie: bool,
    /// ... or of one that was ended.
    owes_removal: bool,
    /// Keys and bytes of the data, edits included.
    count: usize,
    size: usize,
    /// Closures that are no longer needed. They own values of the application, whose `drop` may want to
    /// look at this very session: see [`State::take_litter`].
    litter: Vec<Updater>,
    /// Why edits made during a commit are gone.
    lost: Option<SessionError>,
}

/// What loading has found out, besides the data.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) carried_cookie: bool,
    pub(crate) touch_due: bool,
    pub(crate) cookie_due: bool,
    /// The cookie that is due waits for an edit, which is all that renews the session.
    pub(crate) cookie_waits: bool,
}

impl State {
    /// A session without data, of nobody.
    pub(crate) fn new(policy: &Policy) -> Self {
        Self::empty(policy, Identity::Anonymous, false)
    }

    /// What there is when there is no record.
    pub(crate) fn empty(policy: &Policy, identity: Identity, carried_cookie: bool) -> Self {
        let seen = Seen {
            carried_cookie,
            ..Seen::default()
        };
        let base = Payload::empty(policy.format);
        Self::read(identity, base, Meta::default(), seen)
    }

    /// What was loaded.
    #[inline]
    pub(crate) fn read(identity: Identity, base: Payload, meta: Meta, seen: Seen) -> Self {
        Self {
            identity,
            count: base.len(),
            size: base.data_len(),
            base,
            meta,
            batches: Vec::new(),
            attempts: Vec::new(),
            sent: None,
            rotate: false,
            endings: Vec::new(),
            committing: false,
            flushes: 0,
            carried_cookie: seen.carried_cookie,
            touch_due: seen.touch_due,
            cookie_due: seen.cookie_due,
            cookie_waits: seen.cookie_waits,
            owes_cookie: false,
            owes_removal: false,
            litter: Vec::new(),
            lost: None,
        }
    }

    // What handlers see and do.

    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        edits::look_up(&self.base, &self.batches, key)
    }

    pub(crate) fn format(&self) -> payload::Format {
        self.base.format()
    }

    pub(crate) fn entries(&self) -> Vec<(&str, &[u8])> {
        edits::entries(&self.base, &self.batches)
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The session that the store has, with its record.
    pub(crate) fn stored(&self) -> Option<Stored> {
        match &self.identity {
            Identity::Stored(known) => Some(Stored {
                id: known.id,
                key: known.key,
                record: known.record(&self.base),
                as_of: known.as_of,
            }),
            Identity::Anonymous | Identity::Ended(_) => None,
        }
    }

    /// Puts something in the place of what the store has, as far as is known.
    fn displace_base(&mut self, base: Payload) -> Payload {
        if let Identity::Stored(known) = &mut self.identity {
            known
                .payload
                .get_or_insert_with(|| self.base.bytes().clone());
        }
        std::mem::replace(&mut self.base, base)
    }

    pub(crate) fn created(&self) -> Option<u64> {
        match self.identity {
            Identity::Stored(_) => self.meta.created,
            Identity::Anonymous | Identity::Ended(_) => None,
        }
    }

    /// Whether a commit is under way.
    pub(crate) fn is_committing(&self) -> bool {
        self.committing
    }

    /// Whether a commit would have something to do beyond renewing what is there.
    pub(crate) fn is_modified(&self) -> bool {
        !self.endings.is_empty() || self.owes_removal || self.rotate || self.has_edits()
    }

    pub(crate) fn set(
        &mut self,
        key: &str,
        value: Value,
        policy: &Policy,
    ) -> Result<(), SessionError> {
        let before = edits::peek(&self.base, &self.batches, key);
        let as_stored = self.is_as_stored(key);
        if as_stored && before == Some(&value[..]) {
            return Ok(());
        }
        let before = before.map(<[u8]>::len);
        self.make_room(key, before, value.len(), policy)?;
        let format = self.format();
        let nothing = !as_stored && self.comes_to_nothing(key, Some(&value));
        let litter = if nothing {
            self.pending().forget(key)
        } else {
            self.pending().set(key, value, format)
        };
        if !litter.is_empty() {
            self.litter.extend(litter);
        }
        Ok(())
    }

    /// Records an update whose outcome on `before`, which the key still holds, is `value`.
    pub(crate) fn update(
        &mut self,
        key: &str,
        before: Option<&Value>,
        updater: Updater,
        value: Value,
        policy: &Policy,
    ) -> Result<(), SessionError> {
        if let Err(refused) =
            self.make_room(key, before.map(|value| value.len()), value.len(), policy)
        {
            self.litter.push(updater);
            return Err(refused);
        }
        let format = self.format();
        self.pending().update(key, updater, value, format);
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Value> {
        self.remove_by(key, |batch, _| batch.remove(key))
    }

    /// Removes a value that the request is going to use, which nobody else may have done before.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.remove_by(key, |batch, value| batch.take(key, value.clone()))
    }

    fn remove_by(
        &mut self,
        key: &str,
        remove: impl FnOnce(&mut Batch, &Value) -> Vec<Updater>,
    ) -> Option<Value> {
        let before = self.get(key)?;
        self.count -= 1;
        self.size -= self.written_len(key, before.len());
        let nothing = self.comes_to_nothing(key, None);
        let litter = if nothing {
            self.pending().forget(key)
        } else {
            remove(self.pending(), &before)
        };
        self.litter.extend(litter);
        Some(before)
    }

    pub(crate) fn clear(&mut self) {
        let litter = self.pending().clear();
        self.litter.extend(litter);
        self.measure();
    }

    pub(crate) fn has_litter(&self) -> bool {
        !self.litter.is_empty()
    }

    /// What is to be dropped once the session is free to be looked at again.
    pub(crate) fn take_litter(&mut self) -> Vec<Updater> {
        std::mem::take(&mut self.litter)
    }

    pub(crate) fn set_lifetime(&mut self, lifetime: Option<u64>) {
        self.pending().set_lifetime(lifetime);
    }

    pub(crate) fn set_permanent(&mut self, permanent: bool) {
        self.pending().set_permanent(permanent);
    }

    pub(crate) fn cycle_id(&mut self) {
        self.rotate = true;
    }

    /// From here on the request has a new session without data; the old one is to be ended.
    pub(crate) fn flush(&mut self, policy: &Policy) {
        match std::mem::replace(&mut self.identity, Identity::Anonymous) {
            Identity::Anonymous => {}
            Identity::Ended(key) => self.endings.push(Ending::of(key, None)),
            Identity::Stored(known) => {
                self.owes_removal |= known.id.is_some();
                let ending = Ending::of(known.key, Some(known.record(&self.base)));
                self.endings.push(ending);
            }
        }
        self.owes_removal |= self.carried_cookie;
        self.flushes += 1;
        self.forget_data(policy);
    }

    fn forget_data(&mut self, policy: &Policy) {
        self.base = Payload::empty(policy.format);
        self.meta = Meta::default();
        self.drop_batches();
        self.attempts.clear();
        self.sent = None;
        self.rotate = false;
        self.touch_due = false;
        self.cookie_due = false;
        self.owes_cookie = false;
        self.measure();
    }

    fn drop_batches(&mut self) {
        self.drop_first_batches(self.batches.len());
    }

    fn drop_first_batches(&mut self, count: usize) {
        for batch in self.batches.drain(..count) {
            if batch.has_updaters() {
                self.litter.extend(batch.into_updaters());
            }
        }
    }

    /// How many batches, from the first, must stay as they are, because an attempt wrote them.
    fn taken(&self) -> usize {
        let attempts = self.attempts.iter().chain(&self.sent);
        attempts.map(|attempt| attempt.batches).max().unwrap_or(0)
    }

    fn pending(&mut self) -> &mut Batch {
        if self.batches.len() <= self.taken() {
            self.batches.reserve_exact(1);
            self.batches.push(Batch::default());
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }

    /// The batches that are under way count as stored, until it is known that they are not.
    fn unsent(&self) -> (&[Batch], &[Batch]) {
        let sent = self.sent.as_ref().map_or(0, |attempt| attempt.batches);
        self.batches.split_at(sent.min(self.batches.len()))
    }

    fn is_as_stored(&self, key: &str) -> bool {
        self.attempts.is_empty()
            && self
                .unsent()
                .1
                .iter()
                .all(|batch| matches!(batch.get(key), edits::Said::Nothing))
    }

    /// Whether giving `key` this value leaves it as it was before the last batch. Never so while the
    /// fate of an earlier write is unknown.
    fn comes_to_nothing(&self, key: &str, value: Option<&Value>) -> bool {
        if !self.attempts.is_empty() {
            return false;
        }
        let before = match self.unsent() {
            (sent, []) => edits::peek(&self.base, sent, key),
            (_, [.., last]) if last.is_clear() => None,
            // Earlier batches are there to stay: a commit has had them.
            (_, [.., _]) => {
                let earlier = &self.batches[..self.batches.len() - 1];
                edits::peek(&self.base, earlier, key)
            }
        };
        before == value.map(|value| &value[..])
    }

    fn has_edits(&self) -> bool {
        if !self.attempts.is_empty() {
            return true;
        }
        let (sent, unsent) = self.unsent();
        match self.identity {
            _ if sent.is_empty() && unsent.is_empty() => false,
            Identity::Anonymous | Identity::Ended(_) if sent.is_empty() => {
                self.count > 0 || self.logs_in()
            }
            Identity::Anonymous | Identity::Ended(_) | Identity::Stored(_) => {
                if sent.is_empty() {
                    return unsent
                        .iter()
                        .any(|batch| batch.changes(&self.base, sent, &self.meta));
                }
                let mut meta = self.meta.clone();
                for batch in sent {
                    batch.apply_to_meta(&mut meta);
                }
                unsent
                    .iter()
                    .any(|batch| batch.changes(&self.base, sent, &meta))
            }
        }
    }

    // When the request is over.

    /// Drops what the response does not store, and says whether that was anything.
    pub(crate) fn drop_edits(&mut self) -> bool {
        let rotates = self.rotate && !matches!(self.identity, Identity::Anonymous);
        let dropped = self.has_edits() || rotates;
        self.attempts.clear();
        self.rotate = false;
        let sent = self.unsent().0.len();
        if self.batches.len() > sent {
            let dropped = self.batches.drain(sent..).flat_map(Batch::into_updaters);
            self.litter.extend(dropped);
            self.measure();
        }
        dropped
    }

    /// Notes that a session is to be ended as it was seen last.
    fn end(&mut self, ending: Ending) {
        match self
            .endings
            .iter_mut()
            .find(|other| other.key == ending.key)
        {
            Some(other) => other.seen = ending.seen,
            None => self.endings.push(ending),
        }
    }

    pub(crate) fn take_endings(&mut self) -> Vec<Ending> {
        std::mem::take(&mut self.endings)
    }

    pub(crate) fn end_also(&mut self, endings: Vec<Ending>) {
        self.endings.extend(endings);
    }

    /// Takes note that the response has told the browser.
    pub(crate) fn cookie_sent(&mut self) {
        self.owes_cookie = false;
        self.owes_removal = false;
        self.cookie_due = false;
    }

    /// Takes note that a plan without any work in the store is carried out.
    pub(crate) fn accept(&mut self, plan: Plan) {
        self.owes_cookie |= plan.cookie == CookieAction::Set;
    }

    /// What the response tells the browser.
    pub(crate) fn cookie(&self) -> CookieAction {
        match &self.identity {
            Identity::Stored(stored) if self.owes_cookie && stored.id.is_some() => {
                CookieAction::Set
            }
            _ if self.owes_removal => CookieAction::Remove,
            Identity::Stored(_) | Identity::Anonymous | Identity::Ended(_) => CookieAction::Keep,
        }
    }

    /// Whether the browser is to keep the cookie when it closes.
    pub(crate) fn is_permanent(&self, policy: &Policy) -> bool {
        self.meta.permanent.unwrap_or(policy.permanent)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::SessionConfig;
    use crate::id::{Revision, SessionId};
    use crate::store::{StoreLimits, Version};

    #[test]
    fn dropped_edits_leave_nothing_to_store() {
        let limits = StoreLimits::new(1 << 20);
        let (policy, _) = SessionConfig::default().validate(limits).unwrap();
        let mut state = State::new(&policy);
        let value = Value::from("\x01");
        state.set("visits", value, &policy).unwrap();
        assert_eq!(state.plan(true).store, StoreAction::Create);
        assert!(state.drop_edits());
        assert_eq!(state.len(), 0);
        assert_eq!(state.plan(true).store, StoreAction::Nothing);
    }

    #[test]
    fn a_session_that_is_ended_while_it_is_written_is_ended_as_the_store_has_it() {
        let limits = StoreLimits::new(1 << 20);
        let (policy, _) = SessionConfig::default().validate(limits).unwrap();
        let value = Value::from("\x01");
        let entries = [("before", Some(&value[..]))];
        let base = Payload::empty(policy.format).changed(&Meta::default(), &entries);
        let stored = base.bytes().clone();
        let version = Version {
            revision: Revision::generate(),
            ttl: Duration::from_secs(60),
            token: 7,
        };
        let id = SessionId::generate().unwrap();
        for drafted in [false, true] {
            let known = Known::new(Some(id), id.key(), version, 0);
            let identity = Identity::Stored(known);
            let mut state = State::read(identity, base.clone(), Meta::default(), Seen::default());
            state.set("after", value.clone(), &policy).unwrap();
            let plan = state.plan(true);
            let work = if drafted {
                let mut draft = state.draft(plan, false, None, &policy, 1).unwrap();
                state.begin_again(&mut draft).unwrap()
            } else {
                state.begin(plan, false, 1)
            };
            let seen = work.stored.expect("a stored session").record;
            assert_eq!((seen.payload(), seen.token()), (&stored, 7));
            state.flush(&policy);
            let seen = state.take_endings().remove(0).seen.expect("a record");
            assert_eq!(seen.payload(), &stored);
            assert_eq!(seen.revision(), version.revision);
        }
    }

    #[test]
    fn a_session_is_as_large_without_edits_as_with_the_same_data_in_edits() {
        let limits = StoreLimits::new(1 << 20);
        let (policy, _) = SessionConfig::default().validate(limits).unwrap();
        let mut edited = State::new(&policy);
        let (key, value) = ("visits", Value::from("\x01"));
        edited.set(key, value.clone(), &policy).unwrap();
        let entries = [(key, Some(&value[..]))];
        let base = Payload::empty(policy.format).changed(&Meta::default(), &entries);
        let read = State::read(Identity::Anonymous, base, Meta::default(), Seen::default());
        assert_eq!((read.count, read.size), (edited.count, edited.size));
        assert_eq!((read.count, read.size), (1, key.len() + value.len()));
    }
}
