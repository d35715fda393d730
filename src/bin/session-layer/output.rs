//! Numbers and times for people.

use std::time::{Duration, SystemTime};

pub(crate) use indicatif::{HumanBytes as Bytes, HumanCount as Count};

/// The last second that RFC 3339 can write.
const LAST: Duration = Duration::from_secs(253_402_300_799);

/// The largest unit and the next: `29d 4h`. Less than a second is `<1s`.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes, rest) {
        (0, 0, 0, 0) => "<1s".to_owned(),
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, 0) => format!("{m}m"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, 0, _) => format!("{h}h"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, 0, _, _) => format!("{d}d"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

/// A point in time as RFC 3339, to the second; `None` where it has no such form.
pub(crate) fn date(at: SystemTime) -> Option<String> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since <= LAST).then(|| humantime::format_rfc3339_seconds(at).to_string())
}

/// `1 session`, `2 sessions`.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", Count(count), if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in [
            (0, "<1s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3_600, "1h"),
            (86_399, "23h 59m"),
            (31 * 86_400, "31d"),
            (31 * 86_400 - 1, "30d 23h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        assert_eq!(span(Duration::from_millis(999)), "<1s");
    }

    #[test]
    fn dates_that_nobody_can_write_are_left_out() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(date(at(0)).as_deref(), Some("1970-01-01T00:00:00Z"));
        let last = date(at(LAST.as_secs()));
        assert_eq!(last.as_deref(), Some("9999-12-31T23:59:59Z"));
        assert_eq!(date(at(LAST.as_secs() + 1)), None);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(counted(1, "session", "sessions"), "1 session");
        assert_eq!(counted(1_000, "session", "sessions"), "1,000 sessions");
    }
}
