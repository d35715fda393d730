//! What is said to MongoDB. Time is the server's: `$$NOW`, one reading a command.

use std::time::Duration;

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, bson, doc};

use crate::store::{NewRecord, Revision, SessionKey};

/// The longest lifetime. What is larger would overflow the server's clock.
const LONGEST: i64 = i64::MAX / 4;

/// The document of `key`, whatever is in it.
pub(super) fn of(key: &SessionKey) -> Document {
    doc! { "_id": key.as_str() }
}

/// The document of `key`, if it has not expired.
pub(super) fn alive(key: &SessionKey) -> Document {
    doc! { "_id": key.as_str(), "$expr": { "$gt": ["$expires_at", "$$NOW"] } }
}

/// What of a document is read, and by which clock to judge it.
pub(super) fn fields() -> Document {
    doc! { "_id": 0, "revision": 1, "payload": 1, "expires_at": 1, "now": "$$NOW" }
}

/// Makes the record, in an upsert or over what is no living record. Changes nothing otherwise.
pub(super) fn create(new: &NewRecord<'_>) -> Vec<Document> {
    let taken = doc! { "$and": [
        { "$eq": [{ "$type": "$expires_at" }, "date"] },
        { "$gt": ["$expires_at", "$$NOW"] },
        { "$eq": [{ "$type": "$payload" }, "binData"] },
        { "$eq": [{ "$type": "$revision" }, "binData"] },
        { "$eq": [{ "$binarySize": "$revision" }, Revision::LEN as i32] },
    ] };
    let made = record(new, doc! { "$add": ["$$NOW", millis(new.ttl()), 1] });
    vec![doc! { "$replaceWith": { "$cond": [taken, "$$ROOT", made] } }]
}

/// Replaces the record if it is the one that was seen. Always a change then, never one otherwise.
pub(super) fn update(seen: Revision, new: &NewRecord<'_>) -> Vec<Document> {
    let made = record(new, another_expiry(new.ttl()));
    vec![doc! { "$replaceWith": { "$cond": [is(seen), made, "$$ROOT"] } }]
}

/// Renews the record if it is the one that was seen. Always a change then, never one otherwise.
pub(super) fn touch(seen: Revision, ttl: Duration) -> Vec<Document> {
    vec![doc! { "$set": { "expires_at": {
        "$cond": [is(seen), another_expiry(ttl), "$expires_at"],
    } } }]
}

/// The keys after `last`, and nothing that is no key.
pub(super) fn keys_after(last: &str) -> Document {
    // To the very end: `$` would pass over a last line break.
    let pattern = format!(r"^[A-Za-z0-9_-]{{{}}}\z", SessionKey::LEN);
    doc! { "_id": { "$gt": last, "$regex": pattern } }
}

fn record(new: &NewRecord<'_>, expires_at: Document) -> Document {
    doc! {
        "_id": "$_id",
        "revision": binary(new.revision().as_bytes()),
        "payload": binary(new.payload()),
        "expires_at": expires_at,
    }
}

fn is(seen: Revision) -> Document {
    doc! { "$eq": ["$revision", binary(seen.as_bytes())] }
}

/// `ttl` from now, but not the expiry that the record has already: the server counts the documents that
/// it has changed, and that count is how a caller knows.
fn another_expiry(ttl: Duration) -> Document {
    let then = bson!({ "$add": ["$$NOW", millis(ttl), 1] });
    let more = bson!({ "$cond": [{ "$eq": ["$expires_at", then] }, 0, 1] });
    doc! { "$add": ["$$NOW", millis(ttl), more] }
}

/// Rounded up, so that a record never lives shorter than asked. The server's clock is rounded down, for
/// which those who add to it add one more.
fn millis(ttl: Duration) -> i64 {
    let millis = ttl.as_nanos().div_ceil(1_000_000);
    i64::try_from(millis).map_or(LONGEST, |millis| millis.min(LONGEST))
}

fn binary(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary {
        subtype: BinarySubtype::Generic,
        bytes: bytes.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_rounded_up_and_bounded() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_millis(1500)), 1500);
        assert_eq!(millis(Duration::from_micros(1_500_001)), 1501);
        assert_eq!(millis(Duration::MAX), LONGEST);
        let now = 1_800_000_000_000;
        assert!(now + LONGEST > 0);
    }

    /// All text in what is said, field names left out.
    fn texts(value: &Bson, found: &mut Vec<String>) {
        match value {
            Bson::String(text) => found.push(text.clone()),
            Bson::Array(items) => items.iter().for_each(|item| texts(item, found)),
            Bson::Document(fields) => fields.iter().for_each(|(_, item)| texts(item, found)),
            _ => {}
        }
    }

    #[test]
    fn what_callers_bring_is_a_value_and_never_an_expression() {
        let (revision, ttl) = (Revision::from_bytes(*b"$$ROOT$$REMOVE$$"), Duration::ZERO);
        let new = NewRecord::new(revision, b"$$NOW-hush", ttl);
        let mut found = Vec::new();
        for pipeline in [create(&new), update(revision, &new), touch(revision, ttl)] {
            for stage in pipeline {
                texts(&stage.into(), &mut found);
            }
        }
        assert!(found.len() > 10, "{found:?}");
        for text in found {
            assert!(!text.contains("hush") && !text.contains("REMOVE"), "{text}");
        }
    }
}
