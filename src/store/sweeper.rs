//! The sweeper: purges expired records in the background, for stores whose backend does not.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::SessionStore;

/// The shortest time between two sweeps.
const SHORTEST: Duration = Duration::from_secs(1);
pub(crate) const BATCH: NonZeroUsize = match NonZeroUsize::new(1000) {
    Some(batch) => batch,
    None => NonZeroUsize::MIN,
};

/// Calls [`delete_expired`](SessionStore::delete_expired) every now and then, until it is dropped.
///
/// Expired records are never read, purged or not; sweeping gives their space back. Stores that need it
/// say so, and one that [expires by itself](super::StoreLimits::expires_by_itself) is left alone. Keep
/// the value as long as the server runs. Several processes may each sweep one store.
///
/// A sweep purges batch after batch until one comes back short, and lets other tasks run in between.
/// A store that fails is left alone until the next sweep, with a warning to `tracing`. The first sweep
/// comes after a random part of the interval, so that processes which start together do not sweep
/// together.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "file")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use session_layer::store::{FileStore, Sweeper};
///
/// # let scratch = tempfile::tempdir()?;
/// # let path = scratch.path().join("sessions");
/// let store = FileStore::open(&path).await?;
/// let _sweeper = Sweeper::start(store.clone(), Duration::from_secs(300));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "file"))]
/// # fn main() {}
/// ```
#[derive(Debug)]
#[must_use = "the sweeper stops when it is dropped"]
pub struct Sweeper {
    task: JoinHandle<()>,
}

/// Settings of a [`Sweeper`], from [`Sweeper::builder`].
#[derive(Debug, Clone)]
#[must_use = "call `start` to get a sweeper"]
pub struct SweeperBuilder<S> {
    store: S,
    every: Duration,
    batch: NonZeroUsize,
}

impl Sweeper {
    /// Sweeps `store` once in `every`, in batches of 1000. Less than a second counts as a second.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(store: impl SessionStore, every: Duration) -> Self {
        Self::builder(store, every).start()
    }

    /// Settings for sweeping `store` once in `every`. Less than a second counts as a second.
    pub fn builder<S: SessionStore>(store: S, every: Duration) -> SweeperBuilder<S> {
        SweeperBuilder {
            store,
            every: every.max(SHORTEST),
            batch: BATCH,
        }
    }
}

impl<S: SessionStore> SweeperBuilder<S> {
    /// How many records one call purges, at most. Default: 1000. Smaller batches keep a store's
    /// writers waiting for less time, and take more calls.
    pub fn with_batch(mut self, records: NonZeroUsize) -> Self {
        self.batch = records;
        self
    }

    /// Starts sweeping, in a task of its own.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(self) -> Sweeper {
        let Self {
            store,
            every,
            batch,
        } = self;
        let task = tokio::spawn(async move {
            if store.limits().expires_by_itself() {
                return;
            }
            let mut pause = every.mul_f64(rand::random_range(0.0..1.0));
            loop {
                tokio::time::sleep(pause).await;
                sweep(&store, batch).await;
                pause = every;
            }
        });
        Sweeper { task }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn sweep(store: &impl SessionStore, batch: NonZeroUsize) {
    let mut purged = 0_u64;
    loop {
        match store.delete_expired(batch).await {
            Ok(went) => {
                purged += went;
                if went < batch.get() as u64 {
                    break;
                }
            }
            Err(error) => {
                tracing::warn!(%error, purged, "cannot purge expired sessions; trying again later");
                return;
            }
        }
        tokio::task::yield_now().await;
    }
    tracing::debug!(purged, "purged expired sessions");
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::store::{
        CreateOutcome, NewRecord, Record, SessionKey, StoreError, StoreErrorKind, StoreLimits,
        TouchOutcome, UpdateOutcome,
    };

    /// Holds a number of expired records, and fails where the script says so.
    #[derive(Debug, Clone, Default)]
    struct Fake(Arc<Mutex<State>>);

    #[derive(Debug, Default)]
    struct State {
        expires_by_itself: bool,
        expired: usize,
        calls: Vec<usize>,
        failures: usize,
    }

    impl Fake {
        fn with(expired: usize, failures: usize) -> Self {
            Self(Arc::new(Mutex::new(State {
                expired,
                failures,
                ..State::default()
            })))
        }

        fn calls(&self) -> Vec<usize> {
            self.0.lock().unwrap().calls.clone()
        }
    }

    impl SessionStore for Fake {
        async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
            let mut state = self.0.lock().unwrap();
            let went = state.expired.min(limit.get());
            state.calls.push(went);
            if state.failures > 0 {
                state.failures -= 1;
                return Err(StoreError::new(StoreErrorKind::Unavailable, "down"));
            }
            state.expired -= went;
            Ok(went as u64)
        }

        async fn load(&self, _: &SessionKey) -> Result<Option<Record>, StoreError> {
            unimplemented!()
        }

        async fn create(
            &self,
            _: &SessionKey,
            _: &NewRecord<'_>,
        ) -> Result<CreateOutcome, StoreError> {
            unimplemented!()
        }

        async fn update(
            &self,
            _: &SessionKey,
            _: &Record,
            _: &NewRecord<'_>,
        ) -> Result<UpdateOutcome, StoreError> {
            unimplemented!()
        }

        async fn touch(
            &self,
            _: &SessionKey,
            _: &Record,
            _: Duration,
        ) -> Result<TouchOutcome, StoreError> {
            unimplemented!()
        }

        async fn delete(&self, _: &SessionKey) -> Result<(), StoreError> {
            unimplemented!()
        }

        fn limits(&self) -> StoreLimits {
            let by_itself = self.0.lock().unwrap().expires_by_itself;
            StoreLimits::new(0).with_own_expiry(by_itself)
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_sweep_goes_on_until_a_batch_comes_back_short() {
        let store = Fake::with(25, 0);
        let batch = NonZeroUsize::new(10).unwrap();
        let _sweeper = Sweeper::builder(store.clone(), MINUTE)
            .with_batch(batch)
            .start();
        tokio::time::sleep(MINUTE).await;
        assert_eq!(store.calls()[..3], [10, 10, 5]);
        assert_eq!(store.0.lock().unwrap().expired, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_expires_by_itself_is_left_alone() {
        let store = Fake::with(25, 0);
        store.0.lock().unwrap().expires_by_itself = true;
        let _sweeper = Sweeper::start(store.clone(), MINUTE);
        tokio::time::sleep(MINUTE * 10).await;
        assert!(store.calls().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_sweep_an_interval_and_the_first_within_one() {
        let store = Fake::with(0, 0);
        let _sweeper = Sweeper::start(store.clone(), MINUTE);
        assert!(store.calls().is_empty());
        tokio::time::sleep(MINUTE * 10).await;
        assert!(
            (9..=11).contains(&store.calls().len()),
            "{:?}",
            store.calls()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_is_asked_again_at_the_next_sweep() {
        let store = Fake::with(5, 2);
        let _sweeper = Sweeper::start(store.clone(), MINUTE);
        tokio::time::sleep(MINUTE).await;
        assert_eq!(store.calls(), [5]);
        tokio::time::sleep(MINUTE).await;
        assert_eq!(store.calls(), [5, 5]);
        tokio::time::sleep(MINUTE).await;
        assert_eq!(store.0.lock().unwrap().expired, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_sweeper_stops_it_and_frees_the_store() {
        let store = Fake::with(0, 0);
        let sweeper = Sweeper::start(store.clone(), MINUTE);
        tokio::time::sleep(MINUTE).await;
        drop(sweeper);
        let before = store.calls().len();
        tokio::time::sleep(MINUTE * 10).await;
        assert_eq!(store.calls().len(), before);
        assert_eq!(Arc::strong_count(&store.0), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_interval_of_zero_does_not_spin() {
        let store = Fake::with(0, 0);
        let _sweeper = Sweeper::start(store.clone(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(
            (9..=11).contains(&store.calls().len()),
            "{:?}",
            store.calls()
        );
    }
}
