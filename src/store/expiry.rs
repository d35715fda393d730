//! Expiry as stores of this host keep it: a point in time, in milliseconds since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A reading of the host's clock.
#[derive(Clone, Copy)]
pub(super) struct Now(Duration);

impl Now {
    pub(super) fn read() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }

    /// The last whole millisecond. A record is alive as long as its expiry is greater.
    pub(super) fn millis(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }

    /// When a record written now expires: rounded up, so that it never lives shorter than asked.
    pub(super) fn expiry(self, ttl: Duration) -> i64 {
        let nanos = self.0.saturating_add(ttl).as_nanos();
        i64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(i64::MAX)
    }

    /// What is left until `expiry`; `None` once it has passed.
    pub(super) fn remaining(self, expiry: i64) -> Option<Duration> {
        let expiry = Duration::from_millis(u64::try_from(expiry).ok()?);
        expiry.checked_sub(self.0).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_rounded_up_and_never_down() {
        let now = Now(Duration::from_micros(10_900));
        assert_eq!(now.millis(), 10);
        assert_eq!(now.expiry(Duration::from_micros(1)), 11);
        assert_eq!(now.expiry(Duration::from_millis(1)), 12);
        assert_eq!(now.remaining(12), Some(Duration::from_micros(1_100)));
    }

    #[test]
    fn a_record_is_over_at_its_expiry() {
        let now = Now(Duration::from_millis(10));
        assert_eq!(now.remaining(10), None);
        assert_eq!(now.remaining(-1), None);
        assert_eq!(now.remaining(11), Some(Duration::from_millis(1)));
    }

    #[test]
    fn an_endless_lifetime_does_not_overflow() {
        let now = Now::read();
        assert_eq!(now.expiry(Duration::MAX), i64::MAX);
        assert!(now.remaining(i64::MAX).is_some());
    }
}
