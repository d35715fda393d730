//! A record as Redis holds it: 33 bytes, then the payload.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0 | the version of this layout, 1 |
//! | 1–16 | the revision |
//! | 17–24 | when the expiry was set last: milliseconds since 1970, big endian, by the server's clock |
//! | 25–32 | the lifetime that it was given then, in milliseconds, big endian |
//! | 33– | the payload |
//!
//! Fixed offsets, so that scripts compare and renew without moving the payload.

use std::io::Write;
use std::time::Duration;

use ::redis::{RedisWrite, ToRedisArgs};
use bytes::Bytes;

use crate::store::{NewRecord, Record, Revision};

const VERSION: u8 = 1;
/// Version and revision: what is compared.
pub(super) const STAMP_LEN: usize = 1 + Revision::LEN;
pub(super) const HEADER_LEN: usize = STAMP_LEN + RENEWAL_LEN;
const RENEWAL_LEN: usize = 16;

/// A hundred years: Redis refuses lifetimes that end beyond its calendar.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// The first bytes of a record of this revision.
pub(super) fn stamp(revision: Revision) -> [u8; STAMP_LEN] {
    let mut stamp = [VERSION; STAMP_LEN];
    stamp[1..].copy_from_slice(revision.as_bytes());
    stamp
}

/// A lifetime in milliseconds, rounded up, so that nothing lives shorter than asked.
pub(in crate::store) fn millis(ttl: Duration) -> u64 {
    let nanos = ttl.min(LONGEST).as_nanos();
    u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What a renewal changes: when, and for how long.
pub(super) fn renewal(now: u64, ttl: u64) -> [u8; RENEWAL_LEN] {
    let mut renewal = [0; RENEWAL_LEN];
    renewal[..8].copy_from_slice(&now.to_be_bytes());
    renewal[8..].copy_from_slice(&ttl.to_be_bytes());
    renewal
}

/// One argument of a command, in parts.
pub(in crate::store) struct Parts<'a, const N: usize>(pub(in crate::store) [&'a [u8]; N]);

impl<const N: usize> Parts<'_, N> {
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }
}

impl<const N: usize> ToRedisArgs for Parts<'_, N> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut argument = out.writer_for_next_arg();
        for part in self.0 {
            // Into memory, which does not fail.
            let _ = argument.write_all(part);
        }
    }
}

/// The value to keep for `new`.
pub(super) struct Encoded<'a> {
    header: [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Encoded<'a> {
    pub(super) fn new(new: &NewRecord<'a>, now: u64) -> Self {
        let mut header = [0; HEADER_LEN];
        header[..STAMP_LEN].copy_from_slice(&stamp(new.revision()));
        header[STAMP_LEN..].copy_from_slice(&renewal(now, millis(new.ttl())));
        Self {
            header,
            payload: new.payload(),
        }
    }

    pub(super) fn parts(&self) -> Parts<'_, 2> {
        Parts([&self.header, self.payload])
    }
}

/// Reads a value; `None` when it is not one of ours. Redis has judged that the record is alive, so
/// some lifetime is always left; never more than it was given.
pub(super) fn decode(value: Vec<u8>, now: u64) -> Option<Record> {
    let value = Bytes::from(value);
    let (stamp, renewal) = value.get(..HEADER_LEN)?.split_at(STAMP_LEN);
    let (&version, revision) = stamp.split_first()?;
    if version != VERSION {
        return None;
    }
    let (renewed, ttl) = renewal.split_at(8);
    let renewed = u64::from_be_bytes(renewed.try_into().ok()?);
    let ttl = u64::from_be_bytes(ttl.try_into().ok()?);
    let left = ttl.saturating_sub(now.saturating_sub(renewed)).max(1);
    Some(Record::new(
        Revision::from_bytes(revision.try_into().ok()?),
        value.slice(HEADER_LEN..),
        Duration::from_millis(left),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn value(ttl: Duration) -> Vec<u8> {
        let new = NewRecord::new(Revision::from_bytes([7; 16]), b"payload", ttl);
        Encoded::new(&new, NOW).parts().0.concat()
    }

    #[test]
    fn the_layout_is_fixed() {
        let value = value(Duration::from_millis(0x0102));
        let expected = [
            &[1][..],
            &[7; 16],
            &NOW.to_be_bytes(),
            &[0, 0, 0, 0, 0, 0, 1, 2],
            b"payload",
        ];
        assert_eq!(value, expected.concat());
    }

    #[test]
    fn what_is_left_is_counted_from_the_last_renewal() {
        for (since, left) in [(0, 9_000), (1, 8_999), (8_999, 1)] {
            let record = decode(value(Duration::from_secs(9)), NOW + since).unwrap();
            assert_eq!(record.ttl(), Duration::from_millis(left));
            assert_eq!(record.revision(), Revision::from_bytes([7; 16]));
            assert_eq!(&record.payload()[..], b"payload");
        }
    }

    #[test]
    fn a_wrong_clock_ends_no_session_and_lengthens_none() {
        for now in [0, NOW - 1, NOW + 9_000, NOW + 10_000_000, u64::MAX] {
            let left = decode(value(Duration::from_secs(9)), now).unwrap().ttl();
            assert!(left > Duration::ZERO, "{now}");
            assert!(left <= Duration::from_secs(9), "{now}");
        }
    }

    #[test]
    fn lifetimes_are_rounded_up() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_micros(1_001)), 2);
        assert_eq!(millis(Duration::from_millis(5)), 5);
        assert!(millis(Duration::MAX) < i64::MAX as u64 / 2);
    }

    #[test]
    fn what_is_not_ours_is_none() {
        let good = value(Duration::from_secs(9));
        for length in 0..HEADER_LEN {
            assert!(decode(good[..length].to_vec(), NOW).is_none(), "{length}");
        }
        let mut other = good.clone();
        other[0] = 2;
        assert!(decode(other, NOW).is_none());
        assert!(decode(good[..HEADER_LEN].to_vec(), NOW).is_some());
        assert!(
            decode(
                br#"{"a":"session of another library, as JSON"}"#.to_vec(),
                NOW
            )
            .is_none()
        );
    }
}
