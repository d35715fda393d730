//! A record as an item of the table.

use std::collections::HashMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;

use crate::store::expiry::Now;
use crate::store::{NewRecord, Record, Revision, SessionKey};

pub(super) const KEY: &str = "session_key";
const REVISION: &str = "revision";
const PAYLOAD: &str = "payload";
/// For DynamoDB's own purge, which wants seconds.
pub(super) const EXPIRES_AT: &str = "expires_at";
/// The expiry that decides.
const EXPIRES_AT_MS: &str = "expires_at_ms";

/// For how many seconds DynamoDB leaves what has expired alone: hosts' clocks may differ.
const PURGE_MARGIN: i64 = 60;

/// What an item may take up: the names of its attributes and their values.
const LARGEST_ITEM: usize = 400 * 1024;
/// What a number takes up at most.
const NUMBER: usize = 21;
pub(super) const LARGEST_PAYLOAD: usize = LARGEST_ITEM
    - (KEY.len() + SessionKey::LEN)
    - (REVISION.len() + Revision::LEN)
    - PAYLOAD.len()
    - (EXPIRES_AT.len() + NUMBER)
    - (EXPIRES_AT_MS.len() + NUMBER);

/// That nothing alive is there. What lacks an attribute is no record; neither is what is not there.
pub(super) const IS_FREE: &str = "attribute_not_exists(revision) OR attribute_not_exists(payload) \
     OR attribute_not_exists(expires_at_ms) OR expires_at_ms <= :now";
/// That what is there is alive, and what was seen.
pub(super) const IS_SEEN: &str = "revision = :seen AND expires_at_ms > :now";
pub(super) const RENEW: &str = "SET expires_at = :at, expires_at_ms = :ms";

pub(super) type Item = HashMap<String, AttributeValue>;

pub(super) fn key(key: &SessionKey) -> AttributeValue {
    AttributeValue::S(key.as_str().to_owned())
}

pub(super) fn millis(millis: i64) -> AttributeValue {
    AttributeValue::N(millis.to_string())
}

pub(super) fn revision(revision: Revision) -> AttributeValue {
    bytes(revision.as_bytes())
}

/// When DynamoDB may remove what expires at `expiry`: in seconds.
pub(super) fn purge_after(expiry: i64) -> AttributeValue {
    let seconds = expiry / 1000 + i64::from(expiry % 1000 > 0);
    millis(seconds.saturating_add(PURGE_MARGIN))
}

fn bytes(bytes: &[u8]) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

pub(super) fn of(session: &SessionKey, new: &NewRecord<'_>, now: Now) -> Item {
    let expiry = now.expiry(new.ttl());
    [
        (KEY, key(session)),
        (REVISION, revision(new.revision())),
        (PAYLOAD, bytes(new.payload())),
        (EXPIRES_AT, purge_after(expiry)),
        (EXPIRES_AT_MS, millis(expiry)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// What an item is.
pub(super) enum Read {
    Absent,
    Alive(Record),
    /// No record.
    Damaged,
}

/// Reads an item; the payload is not copied.
pub(super) fn read(mut item: Item, now: Now, max_payload: usize) -> Read {
    let Some(expiry) = expiry(&item) else {
        return Read::Damaged;
    };
    let Some(ttl) = now.remaining(expiry) else {
        return Read::Absent;
    };
    let Some(revision) = revision_of(&item) else {
        return Read::Damaged;
    };
    match item.remove(PAYLOAD) {
        Some(AttributeValue::B(payload)) if payload.as_ref().len() <= max_payload => {
            let payload = Bytes::from(payload.into_inner());
            Read::Alive(Record::new(revision, payload, ttl))
        }
        _ => Read::Damaged,
    }
}

/// Why [`IS_SEEN`] did not hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Conflict,
    Gone,
}

/// `None` when what is there is no record.
pub(super) fn refusal(item: Option<&Item>, seen: Revision, now: Now) -> Option<Refusal> {
    let Some(item) = item else {
        return Some(Refusal::Gone);
    };
    if expiry(item)? <= now.millis() {
        return Some(Refusal::Gone);
    }
    (revision_of(item)? != seen).then_some(Refusal::Conflict)
}

fn expiry(item: &Item) -> Option<i64> {
    item.get(EXPIRES_AT_MS)?.as_n().ok()?.parse().ok()
}

fn revision_of(item: &Item) -> Option<Revision> {
    let bytes = item.get(REVISION)?.as_b().ok()?;
    bytes.as_ref().try_into().ok().map(Revision::from_bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SEEN: Revision = Revision::from_bytes([7; 16]);

    fn item(ttl: Duration) -> Item {
        let key = "a".repeat(43).parse().unwrap();
        of(&key, &NewRecord::new(SEEN, b"payload", ttl), Now::read())
    }

    fn expired() -> Item {
        let mut item = item(Duration::from_secs(60));
        item.insert(EXPIRES_AT_MS.to_owned(), millis(Now::read().millis()));
        item
    }

    #[test]
    fn the_limit_is_dynamodbs_less_what_is_around_the_payload() {
        assert_eq!(LARGEST_PAYLOAD, 409_600 - 54 - 24 - 7 - 31 - 34);
        for name in [REVISION, PAYLOAD, EXPIRES_AT_MS] {
            assert!(IS_FREE.contains(&format!("attribute_not_exists({name})")));
        }
        assert!(IS_SEEN.contains(REVISION) && IS_SEEN.contains(EXPIRES_AT_MS));
        assert_eq!(
            RENEW,
            format!("SET {EXPIRES_AT} = :at, {EXPIRES_AT_MS} = :ms")
        );
    }

    #[test]
    fn an_item_is_what_was_written() {
        let now = Now::read();
        let Read::Alive(record) = read(item(Duration::from_secs(60)), now, 7) else {
            panic!("not alive");
        };
        assert_eq!(record.revision(), SEEN);
        assert_eq!(&record.payload()[..], b"payload");
        assert!(record.ttl() > Duration::from_secs(59));
        assert!(matches!(read(expired(), Now::read(), 7), Read::Absent));
        let item = item(Duration::from_secs(60));
        assert!(matches!(read(item.clone(), now, 6), Read::Damaged));
        let seconds: i64 = item[EXPIRES_AT].as_n().unwrap().parse().unwrap();
        let late = seconds * 1000 - expiry(&item).unwrap();
        assert!((60_000..61_000).contains(&late), "{late} ms");
    }

    #[test]
    fn what_is_no_record_is_damaged_and_what_has_expired_is_not() {
        let whole = item(Duration::from_secs(60));
        for name in [REVISION, PAYLOAD, EXPIRES_AT_MS] {
            for damage in [
                None,
                Some(AttributeValue::S("7".to_owned())),
                Some(AttributeValue::Null(true)),
            ] {
                let mut item = whole.clone();
                match damage {
                    None => item.remove(name),
                    Some(value) => item.insert(name.to_owned(), value),
                };
                assert!(
                    matches!(read(item, Now::read(), 7), Read::Damaged),
                    "{name}"
                );
            }
        }
        let mut expired = expired();
        expired.remove(PAYLOAD);
        assert!(matches!(read(expired, Now::read(), 7), Read::Absent));
    }

    #[test]
    fn a_refusal_tells_conflict_from_absence() {
        let now = Now::read();
        let other = Revision::from_bytes([8; 16]);
        let there = item(Duration::from_secs(60));
        assert_eq!(refusal(None, SEEN, now), Some(Refusal::Gone));
        assert_eq!(refusal(Some(&there), other, now), Some(Refusal::Conflict));
        let expired = expired();
        for seen in [SEEN, other] {
            let refusal = refusal(Some(&expired), seen, Now::read());
            assert_eq!(refusal, Some(Refusal::Gone));
        }
        let mut damaged = there.clone();
        damaged.remove(EXPIRES_AT_MS);
        assert_eq!(refusal(Some(&damaged), SEEN, now), None);
        let mut damaged = there;
        damaged.remove(REVISION);
        assert_eq!(refusal(Some(&damaged), SEEN, now), None);
    }
}
