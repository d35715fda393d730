//! Connections of sqlx's, lent out as the SQL stores do it: the one used last first, and no questions
//! asked. sqlx's own pool makes a round trip when a connection is given back.

use std::sync::{Arc, Mutex};

use sqlx::Connection;
use tokio::sync::Semaphore;

/// As many as a store opens by default.
const CONNECTIONS: usize = 10;

pub struct Pool<C> {
    url: Arc<str>,
    permits: Arc<Semaphore>,
    resting: Arc<Mutex<Vec<C>>>,
}

impl<C> Clone for Pool<C> {
    fn clone(&self) -> Self {
        Self {
            url: Arc::clone(&self.url),
            permits: Arc::clone(&self.permits),
            resting: Arc::clone(&self.resting),
        }
    }
}

impl<C: Connection> Pool<C> {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.into(),
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
            resting: Arc::default(),
        }
    }

    /// Does `work` on a connection.
    pub async fn with<T>(&self, work: impl AsyncFnOnce(&mut C) -> T) -> T {
        let _permit = self.permits.acquire().await.expect("it is never closed");
        let rested = self.resting.lock().expect("nothing panics here").pop();
        let mut connection = match rested {
            Some(connection) => connection,
            None => C::connect(&self.url).await.expect("a connection"),
        };
        let answer = work(&mut connection).await;
        self.resting
            .lock()
            .expect("nothing panics here")
            .push(connection);
        answer
    }
}
