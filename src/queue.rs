//! Queues for sessions that several requests of this process are changing at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::id::SessionKey;

type Line = Arc<tokio::sync::Mutex<()>>;

/// One line for each contended session; none for the others.
#[derive(Default)]
pub(crate) struct Queues {
    lines: Mutex<HashMap<SessionKey, Line>>,
    /// How many lines there are, so that a commit without contention looks at one number only.
    count: AtomicUsize,
}

impl Queues {
    /// Whether requests are standing in line for this session.
    pub(crate) fn is_contended(&self, key: &SessionKey) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.lock().contains_key(key)
    }

    /// Stands in line; one's turn lasts until the answer is dropped.
    pub(crate) async fn wait(self: &Arc<Self>, key: SessionKey) -> Turn {
        let line = {
            let mut lines = self.lock();
            let line = Arc::clone(lines.entry(key).or_default());
            self.count.store(lines.len(), Ordering::Relaxed);
            line
        };
        // Holds the place, so that the line is also closed when this future is dropped.
        let mut turn = Turn {
            queues: Arc::clone(self),
            key,
            line: Some(Arc::clone(&line)),
            guard: None,
        };
        turn.guard = Some(line.lock_owned().await);
        turn
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queues({})", self.count.load(Ordering::Relaxed))
    }
}

/// A place in the line of one session.
pub(crate) struct Turn {
    queues: Arc<Queues>,
    key: SessionKey,
    line: Option<Line>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut lines = self.queues.lock();
        self.line = None;
        // Nobody else holds the line if the map does alone; whoever wants it has to come here first.
        if lines
            .get(&self.key)
            .is_some_and(|line| Arc::strong_count(line) == 1)
        {
            lines.remove(&self.key);
            self.queues.count.store(lines.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(letter: &str) -> SessionKey {
        letter.repeat(SessionKey::LEN).parse().unwrap()
    }

    #[tokio::test]
    async fn a_line_is_closed_when_the_last_has_left() {
        let queues = Arc::new(Queues::default());
        let first = queues.wait(key("a")).await;
        let other = queues.wait(key("b")).await;
        assert!(queues.is_contended(&key("a")));
        let mut second = Box::pin(queues.wait(key("a")));
        let mut third = Box::pin(queues.wait(key("a")));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(futures_util::poll!(&mut third).is_pending());
        drop(third);
        drop(first);
        let second = second.await;
        drop(other);
        assert!(!queues.is_contended(&key("b")));
        assert!(queues.is_contended(&key("a")));
        drop(second);
        assert!(!queues.is_contended(&key("a")));
        assert!(queues.lock().is_empty());
    }
}
