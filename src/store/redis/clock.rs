//! The server's clock, as this process knows it: asked for now and then, told by the time that has
//! passed since. The host's own clock may say what it likes, and may be set while the store runs.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long an answer of the server is trusted. Two clocks drift apart by milliseconds meanwhile.
const TRUST: Duration = Duration::from_secs(60);

/// All times in milliseconds.
pub(super) struct Clock {
    start: Instant,
    /// The server's time at `start`.
    origin: AtomicI64,
    /// After this much since `start` the server is to be asked again.
    due: AtomicU64,
}

pub(super) enum Reading {
    Known(u64),
    /// It is time to ask again; until then this is good enough.
    Due(u64),
    /// The server was never asked.
    Unknown,
}

const UNKNOWN: i64 = i64::MIN;

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            origin: AtomicI64::new(UNKNOWN),
            due: AtomicU64::new(0),
        }
    }

    pub(super) fn read(&self) -> Reading {
        let origin = self.origin.load(Ordering::Relaxed);
        if origin == UNKNOWN {
            return Reading::Unknown;
        }
        let passed = millis(self.start.elapsed());
        let now = origin.saturating_add_unsigned(passed).max(0).unsigned_abs();
        // Of many who find it due, one asks.
        let due = self.due.load(Ordering::Relaxed);
        let next = passed + millis(TRUST);
        if passed >= due
            && self
                .due
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            return Reading::Due(now);
        }
        Reading::Known(now)
    }

    /// The server said `time` in answer to a question that was sent at `asked`.
    pub(super) fn set(&self, time: u64, asked: Instant) {
        let halfway = asked.duration_since(self.start) + asked.elapsed() / 2;
        let time = i64::try_from(time).unwrap_or(i64::MAX);
        let origin = time.saturating_sub_unsigned(millis(halfway));
        self.origin.store(origin, Ordering::Relaxed);
        self.due
            .store(millis(self.start.elapsed() + TRUST), Ordering::Relaxed);
    }

    /// The server does not tell: its clock is taken for the host's.
    pub(super) fn set_to_host(&self) {
        self.set(host(), Instant::now());
    }
}

/// The host's own time.
pub(super) fn host() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    millis(since.unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(clock: &Clock) -> u64 {
        match clock.read() {
            Reading::Known(now) => now,
            Reading::Due(_) => panic!("due"),
            Reading::Unknown => panic!("unknown"),
        }
    }

    #[test]
    fn the_server_is_asked_first_and_then_from_time_to_time() {
        let clock = Clock::new();
        assert!(matches!(clock.read(), Reading::Unknown));
        clock.set(5_000_000, Instant::now());
        let now = known(&clock);
        assert!((5_000_000..5_000_500).contains(&now), "{now}");
        clock.due.store(0, Ordering::Relaxed);
        assert!(matches!(clock.read(), Reading::Due(_)));
        known(&clock);
    }

    #[test]
    fn half_of_the_way_is_taken_into_account() {
        let clock = Clock::new();
        let asked = clock.start;
        std::thread::sleep(Duration::from_millis(100));
        clock.set(1_000_000, asked);
        let now = known(&clock);
        assert!((1_000_049..1_000_500).contains(&now), "{now}");
    }

    #[test]
    fn any_time_of_a_server_is_taken() {
        let clock = Clock::new();
        for time in [0, 1, u64::MAX] {
            clock.set(time, Instant::now());
            known(&clock);
        }
    }
}
