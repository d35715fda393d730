//! A pool of the store's own.
//!
//! sqlx's pool asks the server for a sign of life when a connection is taken, when one is given back,
//! or both; each is a round trip for every statement. This one asks only where there is a reason:
//! the connection has rested, or another one has failed since it was last heard of.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{ConnectOptions, Connection as _};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Connection, Dialect};

/// A connection that was used less long ago is taken for alive.
const TRUSTED: Duration = Duration::from_secs(1);
/// How long a sign of life, and a farewell, may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long connections that are not needed rest.
const LONGEST_REST: Duration = Duration::from_secs(10 * 60);
/// How long a connection lives, so that what a server keeps for it does not grow for ever, and a
/// change of what a name stands for is followed.
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 60);

type Options<D> = <Connection<D> as sqlx::Connection>::Options;

pub(super) struct Pool<D: Dialect> {
    options: Options<D>,
    permits: Arc<Semaphore>,
    /// The one used last is at the end, and is taken first.
    resting: Mutex<Vec<Link<D>>>,
    /// How often there was a reason to doubt that connections are alive.
    doubts: AtomicU64,
}

struct Link<D: Dialect> {
    connection: Connection<D>,
    made: Instant,
    used: Instant,
    /// The doubts there had been when it was last heard of.
    doubts: u64,
}

impl<D: Dialect> Pool<D> {
    pub(super) fn new(options: Options<D>, connections: usize) -> Self {
        Self {
            options,
            permits: Arc::new(Semaphore::new(connections)),
            resting: Mutex::default(),
            doubts: AtomicU64::new(0),
        }
    }

    /// A connection that is alive as far as can be known without asking each time. To be dropped when
    /// it takes too long.
    pub(super) async fn acquire(self: &Arc<Self>) -> sqlx::Result<Lent<D>> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
        let doubts = self.doubts();
        while let Some(mut link) = self.wake() {
            let is_alive = (link.doubts == doubts && link.used.elapsed() < TRUSTED)
                || matches!(timeout(PATIENCE, link.connection.ping()).await, Ok(Ok(())));
            if is_alive {
                return Ok(self.lend(link, permit));
            }
            // The others are no better, and asking each would take long.
            self.forget();
        }
        let mut connection = self.options.connect().await?;
        D::greet(&mut connection).await?;
        let now = Instant::now();
        let link = Link {
            connection,
            made: now,
            used: now,
            doubts,
        };
        Ok(self.lend(link, permit))
    }

    /// From now on, whoever rests is asked for a sign of life before it is used.
    pub(super) fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::Relaxed);
    }

    fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Relaxed)
    }

    fn forget(&self) {
        self.doubt();
        drop(std::mem::take(&mut *self.resting()));
    }

    fn wake(&self) -> Option<Link<D>> {
        self.resting().pop()
    }

    fn resting(&self) -> MutexGuard<'_, Vec<Link<D>>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lend(self: &Arc<Self>, link: Link<D>, permit: OwnedSemaphorePermit) -> Lent<D> {
        Lent {
            link,
            pool: Arc::clone(self),
            _permit: permit,
        }
    }

    /// Takes a link back, and answers one that has come to its end.
    fn rest(&self, link: Link<D>) -> Option<Link<D>> {
        if link.made.elapsed() > LONGEST_LIFE {
            return Some(link);
        }
        let mut resting = self.resting();
        resting.push(link);
        let oldest = resting.first()?;
        (oldest.used.elapsed() > LONGEST_REST).then(|| resting.remove(0))
    }
}

/// A connection on loan. Dropping it closes it.
pub(super) struct Lent<D: Dialect> {
    link: Link<D>,
    pool: Arc<Pool<D>>,
    // Dropped last: there are never more connections than permits.
    _permit: OwnedSemaphorePermit,
}

impl<D: Dialect> Lent<D> {
    /// Gives the connection back. One that has failed takes the others with it: it was not the
    /// statement's fault.
    pub(super) fn give_back(self, is_fit: bool) {
        let Self {
            mut link,
            pool,
            _permit,
        } = self;
        if !is_fit {
            return pool.forget();
        }
        link.used = Instant::now();
        link.doubts = pool.doubts();
        if let Some(old) = pool.rest(link)
            && let Ok(runtime) = Handle::try_current()
        {
            // Servers complain of those who leave without a word.
            runtime.spawn(timeout(PATIENCE, old.connection.close()));
        }
    }
}

impl<D: Dialect> Deref for Lent<D> {
    type Target = Connection<D>;

    fn deref(&self) -> &Self::Target {
        &self.link.connection
    }
}

impl<D: Dialect> DerefMut for Lent<D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.link.connection
    }
}
