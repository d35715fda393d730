//! Finding a session: by the cookies of a request, or by its key.

use std::time::Duration;

use crate::cookie::CookieHeaders;
use crate::error::SessionError;
use crate::id::SessionKey;
use crate::loaded::Loaded;
use crate::shared::{Found, Live, Read, Shared};
use crate::signing::{Rejected, Verified};
use crate::state::{Identity, Known, Seen, State, is_cookie_due, is_due};
use crate::store::StoreAtOnce;

/// Goes through the cookies of our name until one leads to a live session.
pub(crate) async fn find(
    shared: &Shared,
    cookies: &CookieHeaders,
) -> Result<Box<Loaded>, SessionError> {
    let mut search = Search::new(shared, cookies);
    while let Some((candidate, key)) = search.next() {
        let record = shared.fetch(&key).await?;
        let read = record.map(|record| shared.parse(record));
        if let Some(loaded) = search.open(&candidate, key, read) {
            return Ok(loaded);
        }
    }
    Ok(search.give_up())
}

/// The same in a store that never waits.
pub(crate) fn find_at_once(
    shared: &Shared,
    store: &dyn StoreAtOnce,
    cookies: &CookieHeaders,
) -> Result<Box<Loaded>, SessionError> {
    let mut search = Search::new(shared, cookies);
    while let Some((candidate, key)) = search.next() {
        let record = shared.fetched(&key, store.load_now(&key))?;
        let read = record.map(|(version, body)| shared.parse_shared(version, body));
        if let Some(loaded) = search.open(&candidate, key, read) {
            return Ok(loaded);
        }
    }
    Ok(search.give_up())
}

/// The session under `key`, without a cookie.
pub(crate) async fn look_up(
    shared: &Shared,
    key: &SessionKey,
) -> Result<Box<Loaded>, SessionError> {
    let found = shared.load(key).await?;
    Ok(Loaded::new(|| match found {
        Found::Live(live) => {
            let known = Known::new(None, *key, live.version, live.now);
            let identity = Identity::Stored(known);
            State::read(identity, live.payload, live.meta, Seen::default())
        }
        Found::Absent | Found::Ended { .. } => {
            State::empty(&shared.policy, Identity::Ended(*key), false)
        }
    }))
}

/// A cookie of our name that verifies.
struct Candidate {
    verified: Verified,
    /// Which of the cookies of our name it is ...
    at: usize,
    /// ... and which one comes after it.
    next: Option<usize>,
}

/// How far the cookies have been gone through. What has to be remembered while the store is asked is
/// small, and the rest is found again.
struct Search<'a> {
    shared: &'a Shared,
    cookies: &'a CookieHeaders,
    next: Option<usize>,
    /// The first that led to a session that has ended.
    ended: Option<usize>,
}

impl<'a> Search<'a> {
    fn new(shared: &'a Shared, cookies: &'a CookieHeaders) -> Self {
        Self {
            shared,
            cookies,
            next: Some(0),
            ended: None,
        }
    }

    /// The next cookie that verifies, and the key to be asked for.
    fn next(&mut self) -> Option<(Candidate, SessionKey)> {
        let candidate = self.candidate(self.next?)?;
        let key = self.shared.signer.key(&candidate.verified.id);
        self.next = candidate.next;
        Some((candidate, key))
    }

    /// The session that was read, if it is alive.
    fn open(
        &mut self,
        candidate: &Candidate,
        key: SessionKey,
        read: Option<Read>,
    ) -> Option<Box<Loaded>> {
        match self.shared.judge(&key, read) {
            Found::Absent => {
                tracing::debug!(session.key = %key, reason = "no session", "session cookie rejected");
                None
            }
            Found::Ended { .. } => {
                self.ended = self.ended.or(Some(candidate.at));
                None
            }
            Found::Live(live) => {
                if self.other(candidate).is_some() {
                    tracing::warn!(
                        "two valid session cookies; the first with a live session counts"
                    );
                }
                Some(open(self.shared, live, &candidate.verified, key))
            }
        }
    }

    /// What there is if no cookie led to a live session.
    fn give_up(self) -> Box<Loaded> {
        let ended = self.ended.and_then(|at| self.candidate(at));
        let identity = ended.map_or(Identity::Anonymous, |ended| {
            Identity::Ended(self.shared.signer.key(&ended.verified.id))
        });
        let name = self.shared.cookie.name().as_bytes();
        let carried_cookie = self.cookies.candidates(name).next().is_some();
        Loaded::new(|| State::empty(&self.shared.policy, identity, carried_cookie))
    }

    /// The first of the cookies of our name that verifies, not counting those before `from`.
    fn candidate(&self, from: usize) -> Option<Candidate> {
        let mut values = self
            .cookies
            .candidates(self.shared.cookie.name().as_bytes());
        let mut at = from;
        let mut value = values.nth(from)?;
        loop {
            if let Some(verified) = self.verify(value) {
                let next = values.next().map(|_| at + 1);
                return Some(Candidate { verified, at, next });
            }
            value = values.next()?;
            at += 1;
        }
    }

    /// A later cookie that verifies and is for another session, if there is one.
    fn other(&self, than: &Candidate) -> Option<Candidate> {
        let mut next = than.next;
        while let Some(other) = next.and_then(|from| self.candidate(from)) {
            if other.verified.id != than.verified.id {
                return Some(other);
            }
            next = other.next;
        }
        None
    }

    fn verify(&self, cookie: &[u8]) -> Option<Verified> {
        let reason = match self.shared.signer.verify(cookie) {
            Ok(verified) => return Some(verified),
            Err(Rejected::Malformed) => "malformed",
            Err(Rejected::Signature) => "signature does not verify",
        };
        tracing::debug!(reason, "session cookie rejected");
        None
    }
}

#[inline]
fn open(shared: &Shared, live: Live, verified: &Verified, key: SessionKey) -> Box<Loaded> {
    let policy = &shared.policy;
    let passed = live.full.abs_diff(live.version.ttl);
    let touch_due = is_due(policy, live.full, passed);
    let seen = Seen {
        carried_cookie: true,
        touch_due,
        cookie_due: verified.old_key
            || verified.issued.is_none_or(|issued| {
                let age = Duration::from_millis(live.now.abs_diff(issued));
                is_cookie_due(policy, live.full, age)
            }),
        cookie_waits: !verified.old_key
            && match verified.issued {
                Some(_) => !policy.renews_by_reading(),
                // Of unknown age: renewed whenever the record is.
                None => !touch_due,
            },
    };
    let id = Some(verified.id);
    let identity = Identity::Stored(Known::new(id, key, live.version, live.now));
    Loaded::new(|| State::read(identity, live.payload, live.meta, seen))
}
