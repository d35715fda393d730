//! What the tests of the request path share: a store that counts and obeys, a browser, a clock.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

pub mod fixture;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use session_layer::store::{
    CreateOutcome, NewRecord, Record, SessionStore, StoreLimits, Token, TouchOutcome, UpdateOutcome,
};
use session_layer::{
    Revision, SessionConfig, SessionKey, SessionLayer, SigningKeys, StoreError, StoreErrorKind,
};
use tower::ServiceExt;

pub const KEY: &str = "a signing key for tests, long enough for HMAC-SHA256";

pub fn keys() -> SigningKeys {
    SigningKeys::new(KEY).unwrap()
}

/// A verb of the store contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Load,
    Create,
    Update,
    Touch,
    Delete,
}

/// What a call of [`SpyStore`] does instead of answering.
#[derive(Clone)]
pub enum Fault {
    /// Nothing happens, and an error is answered.
    Fail(StoreErrorKind),
    /// The verb is carried out, and an error is answered.
    FailAfter(StoreErrorKind),
    /// The verb is carried out, and a conflict is answered: as if a driver had sent it twice.
    ConflictAfter,
    /// The verb is carried out, and then the store panics.
    PanicAfter,
    /// No answer, ever.
    Hang,
    /// Nothing happens, and `Taken` is answered.
    Taken,
    /// First this is awaited.
    Wait(Arc<tokio::sync::Notify>),
    /// First this is awaited, then comes the other fault.
    WaitThen(Arc<tokio::sync::Notify>, Box<Self>),
    /// First the store is changed by somebody else.
    First(Arc<dyn Fn(&SpyStore) + Send + Sync>),
}

#[derive(Clone)]
pub struct Entry {
    pub revision: Revision,
    pub payload: Vec<u8>,
    pub expires: SystemTime,
}

/// A store in memory that counts calls, tells its own time, and fails on demand.
#[derive(Clone, Default)]
pub struct SpyStore(Arc<Spy>);

type Meanwhile = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Spy {
    records: Mutex<HashMap<SessionKey, Entry>>,
    calls: Mutex<Vec<Verb>>,
    faults: Mutex<HashMap<Verb, VecDeque<Fault>>>,
    drawn: Mutex<Vec<Revision>>,
    meanwhile: Mutex<Option<(Verb, Meanwhile)>>,
    clock: Clock,
}

impl std::fmt::Debug for SpyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SpyStore")
    }
}

impl SpyStore {
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Spy {
            clock,
            ..Spy::default()
        }))
    }

    pub fn records(&self) -> MutexGuard<'_, HashMap<SessionKey, Entry>> {
        self.0.records.lock().unwrap()
    }

    /// The calls since the last time this was asked.
    pub fn calls(&self) -> Vec<Verb> {
        std::mem::take(&mut self.0.calls.lock().unwrap())
    }

    /// The next call of `verb` meets `fault`.
    pub fn fault(&self, verb: Verb, fault: Fault) {
        self.0
            .faults
            .lock()
            .unwrap()
            .entry(verb)
            .or_default()
            .push_back(fault);
    }

    /// From here on it does what it is told.
    pub fn clear_faults(&self) {
        self.0.faults.lock().unwrap().clear();
    }

    /// The revisions of all attempts to update.
    pub fn drawn(&self) -> Vec<Revision> {
        self.0.drawn.lock().unwrap().clone()
    }

    /// As if somebody else had written the same data again.
    pub fn rewrite_all(&self) {
        for entry in self.records().values_mut() {
            entry.revision = Revision::generate();
        }
    }

    /// The next call of `verb` does this first, faults or not.
    pub fn on_next(&self, verb: Verb, act: impl FnOnce() + Send + 'static) {
        *self.0.meanwhile.lock().unwrap() = Some((verb, Box::new(act)));
    }

    /// The records that are sessions, not tombstones.
    pub fn live(&self) -> Vec<SessionKey> {
        let now = self.0.clock.now();
        self.records()
            .iter()
            .filter(|(_, entry)| entry.expires > now && !is_tombstone(&entry.payload))
            .map(|(key, _)| *key)
            .collect()
    }

    async fn called(&self, verb: Verb) -> Result<Option<Fault>, StoreError> {
        self.0.calls.lock().unwrap().push(verb);
        let meanwhile = self
            .0
            .meanwhile
            .lock()
            .unwrap()
            .take_if(|(on, _)| *on == verb);
        if let Some((_, act)) = meanwhile {
            act();
        }
        let fault = self
            .0
            .faults
            .lock()
            .unwrap()
            .get_mut(&verb)
            .and_then(VecDeque::pop_front);
        let fault = match fault {
            Some(Fault::WaitThen(notify, then)) => {
                notify.notified().await;
                Some(*then)
            }
            fault => fault,
        };
        match fault {
            Some(Fault::Fail(kind)) => Err(StoreError::new(kind, "on demand")),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Wait(notify)) => {
                notify.notified().await;
                Ok(None)
            }
            Some(Fault::First(change)) => {
                change(self);
                Ok(None)
            }
            other => Ok(other),
        }
    }

    fn live_entry(&self, key: &SessionKey) -> Option<Entry> {
        let now = self.0.clock.now();
        self.records()
            .get(key)
            .filter(|entry| entry.expires > now)
            .cloned()
    }

    fn put(&self, key: &SessionKey, new: &NewRecord<'_>) {
        let entry = Entry {
            revision: new.revision(),
            payload: new.payload().to_vec(),
            expires: self.0.clock.now() + new.ttl(),
        };
        self.records().insert(*key, entry);
    }
}

/// What the store wants to be shown with the record that it has under this revision.
fn token(revision: Revision) -> Token {
    let mut hasher = DefaultHasher::new();
    revision.hash(&mut hasher);
    hasher.finish() as Token
}

pub fn is_tombstone(payload: &[u8]) -> bool {
    payload.windows(5).any(|word| word == b"ended")
}

impl SessionStore for SpyStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let fault = self.called(Verb::Load).await?;
        if let Some(Fault::FailAfter(kind)) = fault {
            return Err(StoreError::new(kind, "on demand"));
        }
        let now = self.0.clock.now();
        Ok(self.live_entry(key).map(|entry| {
            let ttl = entry.expires.duration_since(now).unwrap();
            let token = token(entry.revision);
            Record::new(entry.revision, Bytes::from(entry.payload), ttl).with_token(token)
        }))
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        let fault = self.called(Verb::Create).await?;
        if matches!(fault, Some(Fault::Taken)) || self.live_entry(key).is_some() {
            return Ok(CreateOutcome::Taken);
        }
        self.put(key, new);
        match fault {
            Some(Fault::FailAfter(kind)) => Err(StoreError::new(kind, "on demand")),
            _ => Ok(CreateOutcome::Created(token(new.revision()))),
        }
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.0.drawn.lock().unwrap().push(new.revision());
        let fault = self.called(Verb::Update).await?;
        match self.live_entry(key) {
            None => return Ok(UpdateOutcome::Gone),
            Some(entry) if entry.revision != seen.revision() => return Ok(UpdateOutcome::Conflict),
            Some(entry) => {
                assert_eq!(seen.token(), token(seen.revision()));
                assert_eq!(seen.payload(), &entry.payload);
                self.put(key, new);
            }
        }
        match fault {
            Some(Fault::FailAfter(kind)) => Err(StoreError::new(kind, "on demand")),
            Some(Fault::ConflictAfter) => Ok(UpdateOutcome::Conflict),
            Some(Fault::PanicAfter) => panic!("on purpose"),
            _ => Ok(UpdateOutcome::Updated(token(new.revision()))),
        }
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        self.called(Verb::Touch).await?;
        let expires = self.0.clock.now() + ttl;
        match self.live_entry(key) {
            None => Ok(TouchOutcome::Gone),
            Some(entry) if entry.revision != seen.revision() => Ok(TouchOutcome::Conflict),
            Some(entry) => {
                assert_eq!(seen.token(), token(seen.revision()));
                assert_eq!(seen.payload(), &entry.payload);
                if let Some(entry) = self.records().get_mut(key) {
                    entry.expires = expires;
                }
                Ok(TouchOutcome::Touched(token(seen.revision())))
            }
        }
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.called(Verb::Delete).await?;
        self.records().remove(key);
        Ok(())
    }

    async fn delete_expired(&self, _: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits::new(1 << 20)
    }
}

/// A clock that stands still until it is told to go on.
#[derive(Clone)]
pub struct Clock(Arc<AtomicU64>);

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(1_800_000_000_000)))
    }
}

impl Clock {
    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }

    pub fn go_back(&self, by: Duration) {
        self.0.fetch_sub(by.as_millis() as u64, Ordering::SeqCst);
    }
}

/// An application with one store and one clock, and the layer around it.
pub struct App {
    pub store: SpyStore,
    pub clock: Clock,
    pub layer: SessionLayer,
    pub router: Router,
}

pub fn app(router: Router) -> App {
    app_with(router, SessionConfig::default())
}

pub fn app_with(router: Router, config: SessionConfig) -> App {
    let clock = Clock::default();
    let store = SpyStore::new(clock.clone());
    let layer = SessionLayer::with_config(store.clone(), keys(), config)
        .unwrap()
        .with_clock({
            let clock = clock.clone();
            move || clock.now()
        });
    App {
        router: router.layer(layer.clone()).with_state(()),
        store,
        clock,
        layer,
    }
}

/// A response that has been read.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: String,
}

impl Answer {
    pub async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// The cookies that are set, parsed by a library that is not ours.
    pub fn cookies(&self) -> Vec<cookie::Cookie<'static>> {
        let all = self.headers.get_all("set-cookie").iter();
        all.map(|value| cookie::Cookie::parse(value.to_str().unwrap().to_owned()).unwrap())
            .collect()
    }

    pub fn vary(&self) -> Vec<&str> {
        self.headers
            .get_all("vary")
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect()
    }

    pub fn sets_no_cookie(&self) -> bool {
        !self.headers.contains_key("set-cookie")
    }

    /// The value of the one cookie that is set.
    pub fn set_value(&self) -> String {
        let cookies = self.cookies();
        assert_eq!(cookies.len(), 1, "{cookies:?}");
        assert!(!cookies[0].value().is_empty(), "{cookies:?}");
        cookies[0].value().to_owned()
    }

    /// Whether the one cookie that is set is a removal.
    pub fn removes_cookie(&self) -> bool {
        let cookies = self.cookies();
        cookies.len() == 1
            && cookies[0].value().is_empty()
            && cookies[0].max_age() == Some(cookie::time::Duration::ZERO)
    }
}

/// Keeps cookies the way a browser does.
#[derive(Default, Clone)]
pub struct Browser {
    pub jar: BTreeMap<String, String>,
}

impl Browser {
    pub fn request(&self, path: &str) -> Request<Body> {
        let mut request = Request::get(path);
        if !self.jar.is_empty() {
            let cookies: Vec<_> = self
                .jar
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request = request.header("cookie", cookies.join("; "));
        }
        request.body(Body::empty()).unwrap()
    }

    pub fn take(&mut self, answer: &Answer) {
        for cookie in answer.cookies() {
            if cookie.max_age() == Some(cookie::time::Duration::ZERO) {
                self.jar.remove(cookie.name());
            } else {
                self.jar
                    .insert(cookie.name().to_owned(), cookie.value().to_owned());
            }
        }
    }

    pub async fn get(&mut self, router: &Router, path: &str) -> Answer {
        let answer = send(router, self.request(path)).await;
        self.take(&answer);
        answer
    }

    pub fn cookie(&self) -> String {
        self.jar["__Host-id"].clone()
    }

    pub fn with_cookie(value: impl Into<String>) -> Self {
        Self {
            jar: BTreeMap::from([("__Host-id".to_owned(), value.into())]),
        }
    }
}

pub fn send(
    router: &Router,
    request: Request<Body>,
) -> impl Future<Output = Answer> + Send + 'static {
    let response = router.clone().oneshot(request);
    async move {
        let response: Result<_, Infallible> = response.await;
        Answer::of(response.unwrap()).await
    }
}
