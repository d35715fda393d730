//! Connections that only read: in WAL mode they wait for no writer.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::link::Link;
use crate::store::{StoreError, StoreErrorKind};

#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Link>>,
}

impl Readers {
    pub(super) fn new(path: &Path, count: usize) -> Self {
        Self {
            path: path.to_owned(),
            permits: Arc::new(Semaphore::new(count)),
            idle: Mutex::default(),
        }
    }

    /// Waits for the right to a connection, on no thread.
    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let permits = Arc::clone(&self.permits);
        permits
            .acquire_owned()
            .await
            .map_err(|error| StoreError::new(StoreErrorKind::Other, "closed").with_source(error))
    }

    /// Lends a connection to whoever has a permit. One that a panic kept is replaced.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Link) -> T) -> T {
        let idle = self.idle().pop();
        let mut link = idle.unwrap_or_else(|| Link::to(&self.path).reading());
        let answer = work(&mut link);
        self.idle().push(link);
        answer
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
