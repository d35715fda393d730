//! A thing that is made when it is first needed, kept, and made again when it is lost: by one task at
//! a time, however many wait for it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::redis::{ErrorKind, RedisError};
use tokio::sync::watch;

/// How long nothing is made after something was made, or failed to be.
const PAUSE: Duration = Duration::from_millis(50);

/// How a thing is made.
pub(super) trait Make: Send + Sync + 'static {
    type Thing: Clone + Send + Sync + 'static;

    fn make(&self) -> impl Future<Output = Result<Self::Thing, RedisError>> + Send;

    /// Whether it is of use to anybody.
    fn is_good(thing: &Self::Thing) -> bool;
}

pub(super) struct Kept<M: Make> {
    shared: Arc<Shared<M>>,
}

impl<M: Make> Clone for Kept<M> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

struct Shared<M: Make> {
    maker: M,
    state: watch::Sender<State<M::Thing>>,
}

enum State<T> {
    Nothing,
    /// Made at this time.
    Have(T, Instant),
    /// One is being made. Until then there is perhaps an older one.
    Making(Option<T>),
    Failed(RedisError, Instant),
}

enum Next {
    Wait,
    Pause(Duration),
    Make,
}

impl<M: Make> Kept<M> {
    pub(super) fn new(maker: M) -> Self {
        Self {
            shared: Arc::new(Shared {
                maker,
                state: watch::Sender::new(State::Nothing),
            }),
        }
    }

    pub(super) fn maker(&self) -> &M {
        &self.shared.maker
    }

    /// Whether it is the same one, not only alike.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The thing, if it is there.
    pub(super) fn peek(&self) -> Option<M::Thing> {
        match &*self.shared.state.borrow() {
            State::Have(thing, _) | State::Making(Some(thing)) => Some(thing.clone()),
            State::Nothing | State::Making(None) | State::Failed(..) => None,
        }
    }

    /// The thing. Makes it when there is none; fails only with an attempt that ended after this call.
    pub(super) async fn get(&self) -> Result<M::Thing, RedisError> {
        if let Some(thing) = self.peek().filter(M::is_good) {
            return Ok(thing);
        }
        // Boxed, so that only those who wait make room for it.
        Box::pin(self.get_made()).await
    }

    async fn get_made(&self) -> Result<M::Thing, RedisError> {
        let called = Instant::now();
        loop {
            let next = match &*self.shared.state.borrow() {
                State::Have(thing, _) | State::Making(Some(thing)) if M::is_good(thing) => {
                    return Ok(thing.clone());
                }
                State::Failed(error, at) if *at >= called => return Err(error.clone()),
                State::Failed(_, at) if at.elapsed() < PAUSE => Next::Pause(PAUSE - at.elapsed()),
                State::Making(_) => Next::Wait,
                State::Nothing | State::Have(..) | State::Failed(..) => Next::Make,
            };
            match next {
                Next::Pause(rest) => tokio::time::sleep(rest).await,
                Next::Make => self.make(),
                Next::Wait => self.made().await,
            }
        }
    }

    /// Makes another one in the background; the old one is used until it is there. Nothing happens
    /// while one is being made, or was a moment ago.
    pub(super) fn renew(&self) {
        let due = match &*self.shared.state.borrow() {
            State::Have(thing, at) => !M::is_good(thing) || at.elapsed() >= PAUSE,
            State::Failed(_, at) => at.elapsed() >= PAUSE,
            State::Nothing | State::Making(_) => false,
        };
        if due {
            self.make();
        }
    }

    /// Waits until nothing is being made.
    pub(super) async fn made(&self) {
        let mut state = self.shared.state.subscribe();
        // The sender is in `self`.
        let _ = state
            .wait_for(|state| !matches!(state, State::Making(_)))
            .await;
    }

    fn make(&self) {
        let begun = self.shared.state.send_if_modified(|state| {
            let old = match std::mem::replace(state, State::Nothing) {
                State::Making(old) => {
                    *state = State::Making(old);
                    return false;
                }
                State::Have(old, _) => Some(old).filter(M::is_good),
                State::Nothing | State::Failed(..) => None,
            };
            *state = State::Making(old);
            true
        });
        if begun {
            let mut attempt = Attempt {
                shared: Arc::clone(&self.shared),
                ended: false,
            };
            // A task of its own: whoever waits for it may give up.
            tokio::spawn(async move {
                let made = attempt.shared.maker.make().await;
                attempt.end(made);
            });
        }
    }
}

/// Says how it ended, whether or not its task is run to the end.
struct Attempt<M: Make> {
    shared: Arc<Shared<M>>,
    ended: bool,
}

impl<M: Make> Attempt<M> {
    fn end(&mut self, made: Result<M::Thing, RedisError>) {
        self.ended = true;
        let now = Instant::now();
        self.shared.state.send_modify(|state| {
            let old = match std::mem::replace(state, State::Nothing) {
                State::Making(old) => old.filter(M::is_good),
                State::Nothing | State::Have(..) | State::Failed(..) => None,
            };
            *state = match (made, old) {
                (Ok(thing), _) => State::Have(thing, now),
                // It may answer again.
                (Err(_), Some(old)) => State::Have(old, now),
                (Err(error), None) => State::Failed(error, now),
            };
        });
    }
}

impl<M: Make> Drop for Attempt<M> {
    fn drop(&mut self) {
        if !self.ended {
            let error = (ErrorKind::Io, "the runtime that was connecting has ended");
            self.end(Err(error.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    #[derive(Default)]
    struct Maker {
        made: AtomicUsize,
        fails: AtomicBool,
        takes: Duration,
    }

    #[derive(Clone)]
    struct Thing(usize, Arc<AtomicBool>);

    impl Make for Maker {
        type Thing = Thing;

        async fn make(&self) -> Result<Thing, RedisError> {
            let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(self.takes).await;
            if self.fails.load(Ordering::Relaxed) {
                return Err((ErrorKind::Io, "on demand").into());
            }
            Ok(Thing(number, Arc::new(AtomicBool::new(true))))
        }

        fn is_good(thing: &Thing) -> bool {
            thing.1.load(Ordering::Relaxed)
        }
    }

    fn slow() -> Kept<Maker> {
        Kept::new(Maker {
            takes: Duration::from_millis(20),
            ..Maker::default()
        })
    }

    fn made(kept: &Kept<Maker>) -> usize {
        kept.maker().made.load(Ordering::Relaxed)
    }

    async fn all_get(kept: &Kept<Maker>) -> Vec<Result<usize, RedisError>> {
        let mut waiting = JoinSet::new();
        for _ in 0..50 {
            let kept = kept.clone();
            waiting.spawn(async move { kept.get().await.map(|thing| thing.0) });
        }
        waiting.join_all().await
    }

    #[tokio::test]
    async fn many_who_need_it_make_it_once() {
        let kept = slow();
        for got in all_get(&kept).await {
            assert_eq!(got.unwrap(), 1);
        }
        assert_eq!(made(&kept), 1);
        kept.get().await.unwrap().1.store(false, Ordering::Relaxed);
        for got in all_get(&kept).await {
            assert_eq!(got.unwrap(), 2);
        }
        assert_eq!(made(&kept), 2);
    }

    #[tokio::test]
    async fn a_failure_is_shared_and_no_older_one_is_reported() {
        let kept = slow();
        kept.maker().fails.store(true, Ordering::Relaxed);
        for got in all_get(&kept).await {
            got.unwrap_err();
        }
        assert_eq!(made(&kept), 1);
        kept.maker().fails.store(false, Ordering::Relaxed);
        assert_eq!(kept.get().await.unwrap().0, 2);
    }

    #[tokio::test]
    async fn failures_are_paced() {
        let kept = Kept::new(Maker::default());
        kept.maker().fails.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            all_get(&kept).await;
        }
        let most = start.elapsed().as_millis() / PAUSE.as_millis() + 1;
        assert!((made(&kept) as u128) <= most, "{}", made(&kept));
    }

    #[tokio::test]
    async fn an_old_one_serves_until_the_new_one_is_there() {
        let kept = slow();
        assert_eq!(kept.get().await.unwrap().0, 1);
        kept.renew();
        assert_eq!(made(&kept), 1, "it is new");
        tokio::time::sleep(PAUSE).await;
        kept.renew();
        assert_eq!(kept.get().await.unwrap().0, 1);
        kept.made().await;
        assert_eq!(kept.get().await.unwrap().0, 2);

        kept.maker().fails.store(true, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
        kept.renew();
        kept.made().await;
        assert_eq!(made(&kept), 3);
        assert_eq!(kept.get().await.unwrap().0, 2);
    }

    #[tokio::test]
    async fn who_gives_up_does_not_stop_it() {
        let kept = slow();
        let impatient = tokio::time::timeout(Duration::from_millis(1), kept.get());
        assert!(impatient.await.is_err());
        assert_eq!(kept.get().await.unwrap().0, 1);
    }

    #[test]
    fn a_runtime_that_ends_leaves_nobody_waiting() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
        };
        let kept = slow();
        runtime().block_on(async {
            let _ = tokio::time::timeout(Duration::from_millis(1), kept.get()).await;
        });
        assert_eq!(runtime().block_on(kept.get()).unwrap().0, 2);
    }
}
