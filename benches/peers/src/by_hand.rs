//! What no layer with signed cookies and hashed ids can leave out, written by hand and for nothing but
//! the requests that are measured: no errors, limits, conflicts, rotations, logouts or other stores. How
//! near a layer comes to it is what the report is about; it is not to be used for anything else.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use axum::extract::FromRequestParts;
use axum::http::header::{CACHE_CONTROL, COOKIE, HeaderMap, HeaderValue, SET_COOKIE, VARY};
use axum::http::request::Parts;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use base64_simd::{AsOut, URL_SAFE_NO_PAD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use pin_project_lite::pin_project;
use rand::TryRng;
use rand::rngs::SysRng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tower_layer::Layer;
use tower_service::Service;

const NAME: &[u8] = b"__Host-id=";
const ATTRIBUTES: &[u8] = b"; Max-Age=1209600; Path=/; Secure; HttpOnly; SameSite=Lax";
const IDLE: Duration = Duration::from_secs(14 * 24 * 60 * 60);
const ABSOLUTE: u64 = 30 * 24 * 60 * 60 * 1000;
const SHARDS: usize = 64;

/// The id, the time of issue and the signature.
const SEALED: usize = 32 + 8 + 32;
const TEXT: usize = SEALED / 3 * 4;

type Key = [u8; 32];
type Values = Vec<(Arc<str>, Bytes)>;

#[derive(Clone)]
struct Record {
    revision: u128,
    values: Arc<Values>,
    created: u64,
    expires: Instant,
}

struct Shared {
    /// Has seen the cookie's name.
    mac: Hmac<Sha256>,
    shards: [Mutex<HashMap<Key, Record>>; SHARDS],
}

impl Shared {
    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Record>> {
        let shard = &self.shards[usize::from(key[0]) % SHARDS];
        shard.lock().expect("nobody has panicked")
    }
}

struct Inner {
    shared: Arc<Shared>,
    cookie: Option<HeaderValue>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    loaded: bool,
    stored: Option<(Key, Record)>,
    renew: bool,
    changes: Values,
}

#[derive(Clone)]
pub(crate) struct Session(Arc<Inner>);

impl Session {
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let value = {
            let state = self.0.state();
            let stored = state.stored.iter();
            let all = stored.flat_map(|(_, record)| record.values.iter());
            let mut all = state.changes.iter().chain(all);
            all.find(|(name, _)| **name == *key)?.1.clone()
        };
        rmp_serde::from_slice(&value).ok()
    }

    pub(crate) fn insert(&self, key: &str, value: impl Serialize) {
        let value = rmp_serde::to_vec_named(&value).expect("a value with a form");
        self.0.state().changes.push((key.into(), value.into()));
    }
}

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        let session: Option<&Self> = parts.extensions.get();
        let session = session.ok_or(StatusCode::INTERNAL_SERVER_ERROR)?.clone();
        session.0.load();
        Ok(session)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody has panicked")
    }

    fn load(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.loaded, true) {
            return;
        }
        let mut rest = self.cookie.as_ref().map_or(&[][..], HeaderValue::as_bytes);
        while !rest.is_empty() {
            let end = memchr::memchr(b';', rest).unwrap_or(rest.len());
            let pair = rest[..end].trim_ascii_start();
            rest = rest.get(end + 1..).unwrap_or_default();
            let value = pair.strip_prefix(NAME);
            if let Some((id, issued)) = value.and_then(|value| self.verify(value)) {
                let key: Key = Sha256::digest(id).into();
                let now = Instant::now();
                let alive = |record: &&Record| record.expires > now;
                let found = self.shared.shard(&key).get(&key).filter(alive).cloned();
                let today = milliseconds();
                if let Some(record) = found.filter(|found| found.created + ABSOLUTE > today) {
                    let passed = IDLE.saturating_sub(record.expires - now);
                    let age = Duration::from_millis(today.saturating_sub(issued));
                    state.renew = passed.max(age) > IDLE / 10;
                    state.stored = Some((key, record));
                    return;
                }
            }
        }
    }

    fn verify(&self, value: &[u8]) -> Option<([u8; 32], u64)> {
        let text = value.strip_prefix(b"1")?;
        let mut sealed = [0; SEALED];
        if text.len() != TEXT {
            return None;
        }
        URL_SAFE_NO_PAD
            .decode(text, sealed.as_mut_slice().as_out())
            .ok()?;
        let (message, signature) = sealed.split_at(40);
        let mut mac = self.shared.mac.clone();
        mac.update(message);
        mac.verify_slice(signature).ok()?;
        let (id, issued) = message.split_at(32);
        Some((
            id.try_into().ok()?,
            u64::from_be_bytes(issued.try_into().ok()?),
        ))
    }

    fn sign(&self, id: &[u8; 32], issued: u64) -> Bytes {
        let mut sealed = [0; SEALED];
        sealed[..32].copy_from_slice(id);
        sealed[32..40].copy_from_slice(&issued.to_be_bytes());
        let mut mac = self.shared.mac.clone();
        mac.update(&sealed[..40]);
        sealed[40..].copy_from_slice(&mac.finalize().into_bytes());
        let mut text = [0; TEXT];
        let _ = URL_SAFE_NO_PAD.encode(&sealed, text.as_mut_slice().as_out());
        [NAME, b"1", &text, ATTRIBUTES].concat().into()
    }

    fn finish(&self, headers: &mut HeaderMap) {
        let mut state = self.state();
        if !state.loaded {
            return;
        }
        let changes = std::mem::take(&mut state.changes);
        if !changes.is_empty() || state.renew {
            self.store(&mut state, changes, headers);
        }
        headers.append(VARY, HeaderValue::from_static("Cookie"));
    }

    fn store(&self, state: &mut State, changes: Values, headers: &mut HeaderMap) {
        let before = state.stored.as_ref();
        let mut values = before.map_or_else(Values::new, |(_, before)| (*before.values).clone());
        for (key, value) in changes {
            match values.iter_mut().find(|(name, _)| *name == key) {
                Some((_, place)) => *place = value,
                None => values.push((key, value)),
            }
        }
        let (values, revision) = (Arc::new(values), rand::random());
        let expires = Instant::now() + IDLE;
        if let Some((key, before)) = before {
            let mut shard = self.shared.shard(key);
            let record = shard.get_mut(key).expect("a session that nobody ends");
            assert_eq!(record.revision, before.revision, "nobody else is there");
            (record.values, record.revision, record.expires) = (values, revision, expires);
            return;
        }
        let mut id = [0; 32];
        SysRng.try_fill_bytes(&mut id).expect("random bytes");
        let (key, created) = (Sha256::digest(id).into(), milliseconds());
        let record = Record {
            revision,
            values,
            created,
            expires,
        };
        self.shared.shard(&key).insert(key, record);
        let cookie = HeaderValue::from_maybe_shared(self.sign(&id, created));
        headers.append(SET_COOKIE, cookie.expect("visible characters"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}

fn milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_millis() as u64
}

#[derive(Clone)]
pub(crate) struct ByHand(Arc<Shared>);

impl ByHand {
    pub(crate) fn new() -> Self {
        let mut mac = Hmac::new_from_slice(&rand::random::<[u8; 32]>()).expect("any length does");
        mac.update(NAME);
        Self(Arc::new(Shared {
            mac,
            shards: std::array::from_fn(|_| Mutex::default()),
        }))
    }
}

impl<S> Layer<S> for ByHand {
    type Service = ByHandService<S>;

    fn layer(&self, inner: S) -> ByHandService<S> {
        let shared = Arc::clone(&self.0);
        ByHandService { inner, shared }
    }
}

#[derive(Clone)]
pub(crate) struct ByHandService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, A, B> Service<Request<A>> for ByHandService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let session = Session(Arc::new(Inner {
            shared: Arc::clone(&self.shared),
            cookie: request.headers().get(COOKIE).cloned(),
            state: Mutex::default(),
        }));
        request.extensions_mut().insert(session.clone());
        ResponseFuture {
            session,
            handler: self.inner.call(request),
        }
    }
}

pin_project! {
    pub(crate) struct ResponseFuture<F> {
        session: Session,
        #[pin]
        handler: F,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut response = ready!(this.handler.poll(cx))?;
        this.session.0.finish(response.headers_mut());
        Poll::Ready(Ok(response))
    }
}
