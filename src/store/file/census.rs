//! The optional maximum: how many records there are, as far as this process knows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a count is trusted: what other processes created meanwhile is not in it.
pub(super) const RECOUNT: Duration = Duration::from_secs(10);
/// How often a full store looks for expired records once a look has found none.
pub(super) const PURGE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Census {
    max: u64,
    tally: Mutex<Tally>,
    /// When a purge last came back with nothing more to purge. Held while purging, so that everyone
    /// who finds the store full waits for the same purge.
    pub(super) purged: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Tally {
    count: u64,
    /// Places given to creators that are not done.
    pending: u64,
    /// Records made by this process so far. A count that was under way meanwhile may have missed them.
    made: u64,
    counted: Instant,
}

/// A record's place under the maximum, given back when dropped unused.
pub(super) struct Place(Option<Arc<Census>>);

impl Census {
    pub(super) fn new(max: u64, count: u64) -> Self {
        Self {
            max,
            tally: Mutex::new(Tally {
                count,
                pending: 0,
                made: 0,
                counted: Instant::now(),
            }),
            purged: tokio::sync::Mutex::new(None),
        }
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    pub(super) fn reserve(self: &Arc<Self>) -> Option<Place> {
        let mut tally = self.tally();
        if tally.count.saturating_add(tally.pending) >= self.max {
            return None;
        }
        tally.pending += 1;
        Some(Place(Some(Arc::clone(self))))
    }

    pub(super) fn removed(&self) {
        let mut tally = self.tally();
        tally.count = tally.count.saturating_sub(1);
    }

    /// Whether a recount is due. Whoever hears `Some` does it, and hands the number back with the count.
    pub(super) fn begin_recount(&self, after: Duration) -> Option<u64> {
        let mut tally = self.tally();
        if tally.counted.elapsed() < after {
            return None;
        }
        tally.counted = Instant::now();
        Some(tally.made)
    }

    pub(super) fn recounted(&self, count: u64, made_before: u64) {
        let mut tally = self.tally();
        tally.count = count.saturating_add(tally.made - made_before);
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Plain numbers: a panic between two of them leaves nothing that the next count does not mend.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Where there is no maximum, there is always a place.
    pub(super) fn unlimited() -> Self {
        Self(None)
    }

    /// A file was made where none was.
    pub(super) fn take(self) {
        if let Some(census) = &self.0 {
            let mut tally = census.tally();
            tally.count += 1;
            tally.made += 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(census) = &self.0 {
            census.tally().pending -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_place_is_given_twice_and_an_unused_one_returns() {
        let census = Arc::new(Census::new(2, 1));
        let place = census.reserve().unwrap();
        assert!(census.reserve().is_none());
        drop(place);
        census.reserve().unwrap().take();
        assert!(census.reserve().is_none());
        census.removed();
        assert!(census.reserve().is_some());
    }

    #[test]
    fn what_is_made_during_a_count_is_added_to_it() {
        let census = Arc::new(Census::new(10, 0));
        let made = census.begin_recount(Duration::ZERO).unwrap();
        census.reserve().unwrap().take();
        census.recounted(9, made);
        assert!(census.reserve().is_none());
    }

    #[test]
    fn one_of_many_counts() {
        let census = Census::new(1, 0);
        assert!(census.begin_recount(RECOUNT).is_none());
        assert!(census.begin_recount(Duration::ZERO).is_some());
        assert!(census.begin_recount(RECOUNT).is_none());
    }
}
