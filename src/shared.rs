//! What all requests through one layer share.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::runtime::Handle;
use tokio::time::{Instant, Timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use tracing::level_filters::LevelFilter;

use crate::config::{Policy, SessionConfig};
use crate::cookie::CookieTemplate;
use crate::error::{ConfigError, StoreError, StoreErrorKind};
use crate::id::{SessionId, SessionKey};
use crate::payload::{Body, Head, Malformed, Meta, Payload};
use crate::queue::Queues;
use crate::signing::{Signer, SigningKeys};
use crate::state;
use crate::store::{Answer, AnyStore, Record, SessionStore, StoreAtOnce, Version};

type Now = dyn Fn() -> SystemTime + Send + Sync;

/// The layer without its type parameters.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) store: AnyStore,
    pub(crate) policy: Policy,
    pub(crate) signer: Signer,
    pub(crate) cookie: CookieTemplate,
    pub(crate) queues: Arc<Queues>,
    pub(crate) background: TaskTracker,
    pub(crate) clock: Option<Arc<Now>>,
}

/// What stands under a key.
pub(crate) enum Found {
    Absent,
    Ended { successor: Option<SessionKey> },
    Live(Live),
}

/// A record that was read, and what its payload turned out to be.
pub(crate) type Read = (Version, Result<(Head, Payload), Malformed>);

/// A session that can be gone on with.
pub(crate) struct Live {
    pub(crate) version: Version,
    pub(crate) meta: Meta,
    pub(crate) payload: Payload,
    /// How long it would live if it were renewed ...
    pub(crate) full: Duration,
    /// ... at this time, in milliseconds since 1970.
    pub(crate) now: u64,
}

impl Live {
    pub(crate) fn record(&self) -> Record {
        self.version.with_payload(self.payload.bytes().clone())
    }
}

impl Shared {
    pub(crate) fn new(
        store: impl SessionStore,
        keys: &SigningKeys,
        config: SessionConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_signer(store, |name| Signer::new(keys, name), config)
    }

    pub(crate) fn with_signer(
        store: impl SessionStore,
        signer: impl FnOnce(&str) -> Signer,
        config: SessionConfig,
    ) -> Result<Self, ConfigError> {
        let (policy, cookie) = config.validate(store.limits())?;
        Ok(Self {
            store: AnyStore::new(store),
            policy,
            signer: signer(&cookie.name),
            cookie: CookieTemplate::new(&cookie),
            queues: Arc::default(),
            background: TaskTracker::new(),
            clock: None,
        })
    }

    /// Milliseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        let now = self
            .clock
            .as_ref()
            .map_or_else(SystemTime::now, |clock| clock());
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Reads what stands under `key`.
    pub(crate) async fn load(&self, key: &SessionKey) -> Result<Found, StoreError> {
        let record = self.fetch(key).await?;
        Ok(self.judge(key, record.map(|record| self.parse(record))))
    }

    /// The store, if it never waits, and nobody wants to know how long it takes.
    pub(crate) fn at_once(&self) -> Option<&dyn StoreAtOnce> {
        let traced = LevelFilter::current() >= LevelFilter::DEBUG;
        self.store.as_dyn().at_once().filter(|_| !traced)
    }

    /// Asks the store for the record of `key`. One that it cannot read counts as absent.
    pub(crate) async fn fetch(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let mut answer = self.store.as_dyn().load(key);
        // A span that nobody listens to still costs something, as does entering it at each poll.
        if LevelFilter::current() >= LevelFilter::DEBUG {
            let span = tracing::debug_span!("session_load", session.key = %key);
            if !span.is_disabled() {
                answer = Box::pin(answer.instrument(span));
            }
        }
        let said = within(self.policy.limit(Duration::MAX), answer).await;
        self.fetched(key, said)
    }

    /// What the store said of `key`.
    pub(crate) fn fetched<T>(
        &self,
        key: &SessionKey,
        said: Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match said {
            Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                tracing::warn!(session.key = %key, %error, "unreadable session record ignored");
                Ok(None)
            }
            Err(error) => {
                tracing::error!(session.key = %key, %error, "session not loaded");
                Err(error)
            }
            record => record,
        }
    }

    pub(crate) fn parse(&self, record: Record) -> Read {
        let (version, payload) = record.into_parts();
        (version, Payload::parse(payload, &self.policy.limits))
    }

    /// The same for what may have been parsed before.
    pub(crate) fn parse_shared(&self, version: Version, body: Arc<Body>) -> Read {
        (version, Payload::of(body, &self.policy.limits))
    }

    /// What a record means. What is no session, and what is older than allowed, counts as absent.
    #[inline]
    pub(crate) fn judge(&self, key: &SessionKey, read: Option<Read>) -> Found {
        let Some((version, parsed)) = read else {
            tracing::debug!(session.key = %key, "no such session");
            return Found::Absent;
        };
        match parsed {
            Ok((Head::Live(meta), payload)) => {
                let now = self.now();
                let Some(full) = state::full_ttl(&self.policy, &meta, now) else {
                    tracing::debug!(session.key = %key, "session past its absolute timeout ignored");
                    return Found::Absent;
                };
                tracing::debug!(session.key = %key, bytes = payload.bytes().len(), "session loaded");
                Found::Live(Live {
                    version,
                    meta,
                    payload,
                    full,
                    now,
                })
            }
            // A user's list is no session, whoever comes with its key.
            Ok((Head::Index, _)) => Found::Ended { successor: None },
            Ok((Head::Ended { successor }, _)) => {
                tracing::debug!(session.key = %key, "session has ended");
                Found::Ended { successor }
            }
            Err(malformed) => {
                tracing::warn!(session.key = %key, reason = malformed.0, "unreadable session ignored");
                Found::Absent
            }
        }
    }

    /// The cookie that gives the browser `id`, from `now` on for `ttl` if it is to keep it.
    pub(crate) fn set_cookie(
        &self,
        id: &SessionId,
        now: u64,
        ttl: Duration,
        permanent: bool,
    ) -> Option<HeaderValue> {
        let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        #[cfg(feature = "flask")]
        if let Some(value) = self.signer.sign_for_flask(id) {
            return self.cookie.set(&value, permanent.then_some(whole));
        }
        let value = self.signer.sign(id, now)?;
        self.cookie.set(&value, permanent.then_some(whole))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("store", &self.store)
            .field("policy", &self.policy)
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}

/// Waits for a store, but not for long, or as long as it takes where it gives up by itself. A store
/// that answers at once costs no timer, nor a look at the clock.
pub(crate) fn within<T>(limit: Option<Duration>, answer: Answer<'_, T>) -> Within<'_, T> {
    Within {
        limit,
        answer: Asked::JustNow(answer),
        since: None,
    }
}

/// See [`within`]. Written out, because a load and a commit hold one, and are moved about.
pub(crate) struct Within<'a, T> {
    limit: Option<Duration>,
    answer: Asked<'a, T>,
    /// When the store began to make us wait.
    pub(crate) since: Option<Instant>,
}

enum Asked<'a, T> {
    JustNow(Answer<'a, T>),
    // Boxed, so that only those who wait make room for a timer.
    Waiting(Pin<Box<Timeout<Answer<'a, T>>>>),
}

impl<'a, T: Send + 'a> Future for Within<'a, T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Asked::JustNow(answer) = &mut this.answer {
            let said = answer.as_mut().poll(cx);
            if said.is_ready() {
                return said;
            }
            let now = *this.since.get_or_insert_with(Instant::now);
            let Some(limit) = this.limit else {
                return Poll::Pending;
            };
            let answer = std::mem::replace(answer, Box::pin(std::future::pending()));
            this.answer = Asked::Waiting(Box::pin(timeout_at(now + limit, answer)));
        }
        match &mut this.answer {
            Asked::JustNow(answer) => answer.as_mut().poll(cx),
            Asked::Waiting(answer) => answer.as_mut().poll(cx).map(|said| {
                said.unwrap_or_else(|_| {
                    let limit = this.limit.unwrap_or_default();
                    Err(StoreError::new(
                        StoreErrorKind::Timeout,
                        format!("no answer within {limit:?}"),
                    ))
                })
            }),
        }
    }
}

/// What is to be finished, whoever drops it.
pub(crate) type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Does it now, as far as it goes without waiting; the rest goes on in a task of its own if it is
/// dropped before it is done.
pub(crate) async fn finish<T: Send + 'static>(background: &TaskTracker, mut task: Task<T>) -> T {
    let polled = std::future::poll_fn(|cx| Poll::Ready(task.as_mut().poll(cx))).await;
    match polled {
        Poll::Ready(done) => done,
        Poll::Pending => Finish::new(background, task).await,
    }
}

/// A future that goes on in a task of its own when it is dropped before it is done.
pub(crate) struct Finish<T: Send + 'static> {
    task: Option<Task<T>>,
    background: TaskTracker,
    runtime: Option<Handle>,
}

impl<T: Send + 'static> Finish<T> {
    pub(crate) fn new(background: &TaskTracker, task: Task<T>) -> Self {
        Self {
            task: Some(task),
            background: background.clone(),
            // Kept, because it may be dropped where no runtime can be found.
            runtime: Handle::try_current().ok(),
        }
    }
}

impl<T: Send + 'static> Future for Finish<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out while it runs: one that panics is not put back, and so not polled again.
        let Some(mut task) = self.task.take() else {
            return Poll::Pending;
        };
        let polled = task.as_mut().poll(cx);
        if polled.is_pending() {
            self.task = Some(task);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Finish<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            let task = async move { drop(task.await) };
            match self.runtime.take().or_else(|| Handle::try_current().ok()) {
                Some(runtime) => drop(self.background.spawn_on(task, &runtime)),
                None => tracing::error!("no runtime to finish a session commit in; it is given up"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::store::{CreateOutcome, NewRecord, StoreLimits, TouchOutcome, UpdateOutcome};

    /// Takes three seconds to read, and says of itself what it is told to.
    #[derive(Debug)]
    struct Slow(StoreLimits);

    impl SessionStore for Slow {
        async fn load(&self, _: &SessionKey) -> Result<Option<Record>, StoreError> {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(None)
        }

        async fn create(
            &self,
            _: &SessionKey,
            _: &NewRecord<'_>,
        ) -> Result<CreateOutcome, StoreError> {
            Ok(CreateOutcome::Taken)
        }

        async fn update(
            &self,
            _: &SessionKey,
            _: &Record,
            _: &NewRecord<'_>,
        ) -> Result<UpdateOutcome, StoreError> {
            Ok(UpdateOutcome::Gone)
        }

        async fn touch(
            &self,
            _: &SessionKey,
            _: &Record,
            _: Duration,
        ) -> Result<TouchOutcome, StoreError> {
            Ok(TouchOutcome::Gone)
        }

        async fn delete(&self, _: &SessionKey) -> Result<(), StoreError> {
            Ok(())
        }

        async fn delete_expired(&self, _: NonZeroUsize) -> Result<u64, StoreError> {
            Ok(0)
        }

        fn limits(&self) -> StoreLimits {
            self.0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_store_that_gives_up_in_time_is_waited_for_without_a_timer() {
        let plain = StoreLimits::new(100);
        let two_seconds = Duration::from_secs(2);
        for (limits, cut_off) in [
            (plain, true),
            (
                plain.with_timeout(two_seconds + Duration::from_nanos(1)),
                true,
            ),
            (plain.with_timeout(two_seconds), false),
        ] {
            let keys = SigningKeys::generate().unwrap();
            let config = SessionConfig::default().with_store_timeout(two_seconds);
            let shared = Shared::new(Slow(limits), &keys, config).unwrap();
            let key = SessionId::generate().unwrap().key();
            let begun = Instant::now();
            let kind = shared.fetch(&key).await.err().map(|error| error.kind());
            let (timeout, took) = match cut_off {
                true => (Some(StoreErrorKind::Timeout), 2),
                false => (None, 3),
            };
            assert_eq!(
                (kind, begun.elapsed().as_secs()),
                (timeout, took),
                "{limits:?}"
            );
        }
    }

    #[tokio::test]
    async fn less_time_than_the_store_takes_is_measured() {
        let bounded = StoreLimits::new(100).with_timeout(Duration::from_secs(1));
        let (policy, _) = SessionConfig::default().validate(bounded).unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(policy.limit(Duration::MAX), None);
        assert_eq!(policy.limit(policy.store_timeout), None);
        assert_eq!(policy.limit(second), Some(second));
    }
}
