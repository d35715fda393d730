//! What memcached is given to keep: the bytes of a value, its `exptime`, and the token of a record.

use bytes::Bytes;

use crate::store::expiry::Now;
use crate::store::{NewRecord, Revision, Token};

const VERSION: u8 = 1;

/// What stands before the payload: the version, the revision, the expiry (unix time in
/// milliseconds, big endian).
pub(super) const HEADER: usize = 1 + Revision::LEN + 8;

/// What memcached reads as a lifetime; larger numbers are dates.
const LONGEST_RELATIVE: i64 = 30 * 24 * 3600;
/// By how many seconds memcached keeps a value longer than it counts. Its clock ticks once a second,
/// in a phase of its own, and may leave a second out.
const MARGIN: i64 = 2;
/// The same for dates, which memcached compares with its own host's clock.
const DATE_MARGIN: i64 = 60;
/// memcached's dates are 32 bits wide: up to January 2038.
const LAST_DATE: i64 = i32::MAX as i64;

/// A value that is a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) revision: Revision,
    pub(super) expiry: i64,
    pub(super) payload: Bytes,
}

impl Value {
    pub(super) fn of(new: &NewRecord<'_>, now: Now) -> (i64, Vec<u8>) {
        let expiry = now.expiry(new.ttl());
        (expiry, encode(new.revision(), expiry, new.payload()))
    }

    /// `None` when the bytes are something else. The payload is not copied.
    pub(super) fn decode(bytes: Vec<u8>) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (revision, rest) = rest.split_first_chunk()?;
        let (expiry, _) = rest.split_first_chunk()?;
        if *version != VERSION {
            return None;
        }
        Some(Self {
            revision: Revision::from_bytes(*revision),
            expiry: i64::from_be_bytes(*expiry),
            payload: Bytes::from(bytes).slice(HEADER..),
        })
    }
}

pub(super) fn encode(revision: Revision, expiry: i64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(revision.as_bytes());
    bytes.extend_from_slice(&expiry.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Until when memcached is to keep a value at least: never shorter than its expiry says, which
/// decides.
pub(super) fn exptime(expiry: i64, now: Now) -> u32 {
    let left = ceil_seconds(expiry.saturating_sub(now.millis()).max(0)) + MARGIN;
    let exptime = if left <= LONGEST_RELATIVE {
        left
    } else {
        (ceil_seconds(expiry) + DATE_MARGIN).min(LAST_DATE)
    };
    // Between 2 and LAST_DATE; 0 would mean "for ever".
    u32::try_from(exptime).unwrap_or(1)
}

fn ceil_seconds(millis: i64) -> i64 {
    millis / 1000 + i64::from(millis % 1000 > 0)
}

/// A token: which state of which value, and when it expires. memcached compares the first; the
/// second it cannot compare in the same step, so that it has to travel with the record.
pub(super) fn token(cas: u64, expiry: i64) -> Token {
    Token::from(cas) << 64 | Token::from(expiry.cast_unsigned())
}

/// The CAS unique and the expiry; `None` of a record that did not come from memcached.
pub(super) fn parts(token: Token) -> Option<(u64, i64)> {
    let cas = u64::try_from(token >> 64).ok().filter(|cas| *cas != 0)?;
    let expiry = u64::try_from(token & Token::from(u64::MAX)).ok()?;
    Some((cas, expiry.cast_signed()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_bytes_of_a_value_stay_as_they_are() {
        let revision = Revision::from_bytes(*b"0123456789abcdef");
        let bytes = encode(revision, 0x0102_0304, b"payload");
        assert_eq!(
            bytes,
            b"\x010123456789abcdef\0\0\0\0\x01\x02\x03\x04payload"
        );
        let value = Value::decode(bytes).unwrap();
        assert_eq!(value.revision, revision);
        assert_eq!(value.expiry, 0x0102_0304);
        assert_eq!(&value.payload[..], b"payload");
    }

    #[test]
    fn what_is_no_record_is_not_decoded() {
        let good = encode(Revision::from_bytes([7; 16]), 1, b"");
        assert!(Value::decode(good.clone()).is_some());
        for length in 0..good.len() {
            assert_eq!(Value::decode(good[..length].to_vec()), None, "{length}");
        }
        for version in [0, 2, b'{'] {
            let mut other = good.clone();
            other[0] = version;
            assert_eq!(Value::decode(other), None, "{version}");
        }
    }

    #[test]
    fn memcached_keeps_a_value_longer_than_it_lives_and_never_for_ever() {
        const DAY: u64 = 24 * 3600;
        let now = Now::read();
        let kept = |ttl| i64::from(exptime(now.expiry(ttl), now));
        assert!((2..=3).contains(&kept(Duration::ZERO)));
        assert_eq!(kept(Duration::from_millis(1)), 3);
        assert_eq!(kept(Duration::from_millis(999)), 3);
        assert!((3602..=3603).contains(&kept(Duration::from_secs(3600))));
        assert_eq!(exptime(-1, now), 2);
        // The last lifetime and the first date.
        let last = kept(Duration::from_secs(30 * DAY - 3)) - 30 * DAY as i64;
        assert!((-1..=0).contains(&last), "{last}");
        let today = now.millis() / 1000;
        for seconds in [30 * DAY - 2, 30 * DAY, 30 * DAY + 1, 31 * DAY, 400 * DAY] {
            let late = kept(Duration::from_secs(seconds)) - today - seconds as i64;
            assert!((60..=62).contains(&late), "{seconds} s and {late} s");
        }
        assert_eq!(kept(Duration::MAX), i64::from(i32::MAX));
    }

    #[test]
    fn a_token_is_taken_apart_as_it_was_made() {
        for cas in [1, 0xffff_ffff, u64::MAX] {
            for expiry in [0, -1, 1, i64::MAX, i64::MIN] {
                assert_eq!(parts(token(cas, expiry)), Some((cas, expiry)));
            }
        }
        assert_eq!(parts(0), None);
        assert_eq!(parts(12345), None);
    }
}
