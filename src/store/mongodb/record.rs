//! A record as it comes from the server.

use std::time::Duration;

use bytes::Bytes;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{RawBsonRef, RawDocument};

use crate::store::{Record, Revision, StoreError, StoreErrorKind};

/// The record in a document of [`fields`](super::words::fields); `None` when it has expired.
pub(super) fn read(document: &RawDocument, largest: usize) -> Result<Option<Record>, StoreError> {
    let (mut revision, mut payload, mut expires_at, mut now) = (None, None, None, None);
    for field in document {
        let (name, value) = field.map_err(|_| corrupt("the document is damaged"))?;
        match (name.as_str(), value) {
            ("revision", RawBsonRef::Binary(found)) if found.subtype == BinarySubtype::Generic => {
                revision = found.bytes.try_into().ok().map(Revision::from_bytes);
            }
            ("payload", RawBsonRef::Binary(found)) if found.subtype == BinarySubtype::Generic => {
                payload = Some(found.bytes);
            }
            ("expires_at", RawBsonRef::DateTime(found)) => {
                expires_at = Some(found.timestamp_millis());
            }
            ("now", RawBsonRef::DateTime(found)) => now = Some(found.timestamp_millis()),
            _ => {}
        }
    }
    let now = now.ok_or_else(|| {
        StoreError::new(StoreErrorKind::Other, "the server has not told its time")
    })?;
    let expires_at = expires_at.ok_or_else(|| corrupt("the document has no expiry"))?;
    let left = u64::try_from(expires_at.saturating_sub(now)).unwrap_or(0);
    if left == 0 {
        return Ok(None);
    }
    let (Some(revision), Some(payload)) = (revision, payload) else {
        return Err(corrupt("the document is not a session record"));
    };
    if payload.len() > largest {
        return Err(corrupt(
            "the document's payload is larger than this store allows",
        ));
    }
    let payload = Bytes::copy_from_slice(payload);
    let ttl = Duration::from_millis(left);
    Ok(Some(Record::new(revision, payload, ttl)))
}

fn corrupt(message: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, DateTime, RawDocumentBuf, rawdoc};

    use super::*;

    fn binary(bytes: &[u8], subtype: BinarySubtype) -> mongodb::bson::Binary {
        mongodb::bson::Binary {
            subtype,
            bytes: bytes.to_vec(),
        }
    }

    fn document(expires_at: i64) -> RawDocumentBuf {
        rawdoc! {
            "revision": binary(&[7; 16], BinarySubtype::Generic),
            "payload": binary(b"data", BinarySubtype::Generic),
            "expires_at": DateTime::from_millis(expires_at),
            "now": DateTime::from_millis(1000),
        }
    }

    fn kind(document: &RawDocumentBuf) -> StoreErrorKind {
        read(document, 4).unwrap_err().kind()
    }

    #[test]
    fn a_record_is_read_until_the_server_says_that_it_is_over() {
        let record = read(&document(1001), 4).unwrap().unwrap();
        assert_eq!(record.revision(), Revision::from_bytes([7; 16]));
        assert_eq!(&record.payload()[..], b"data");
        assert_eq!(record.ttl(), Duration::from_millis(1));
        for over in [1000, 999, -1, i64::MIN] {
            assert!(read(&document(over), 4).unwrap().is_none(), "{over}");
        }
        let endless = read(&document(i64::MAX), 4).unwrap().unwrap();
        assert!(endless.ttl() > Duration::from_secs(1 << 40));
    }

    #[test]
    fn what_is_no_record_is_corrupt() {
        let good = mongodb::bson::Document::try_from(document(2000)).unwrap();
        for (field, value) in [
            ("revision", Bson::Null),
            ("revision", "text".into()),
            ("revision", binary(&[7; 15], BinarySubtype::Generic).into()),
            ("revision", binary(&[7; 16], BinarySubtype::Uuid).into()),
            ("payload", Bson::Int32(1)),
            ("payload", binary(b"data", BinarySubtype::Md5).into()),
            ("payload", binary(b"large", BinarySubtype::Generic).into()),
            ("expires_at", Bson::Int64(i64::MAX)),
            ("expires_at", "2999-01-01".into()),
        ] {
            let mut bad = good.clone();
            bad.insert(field, value);
            let bad = RawDocumentBuf::try_from(&bad).unwrap();
            assert_eq!(kind(&bad), StoreErrorKind::Corrupt, "{bad:?}");
        }
        for field in ["revision", "payload", "expires_at"] {
            let mut bad = good.clone();
            bad.remove(field);
            let bad = RawDocumentBuf::try_from(&bad).unwrap();
            assert_eq!(kind(&bad), StoreErrorKind::Corrupt, "{field}");
        }
        let mut bad = good;
        bad.remove("now");
        let bad = RawDocumentBuf::try_from(&bad).unwrap();
        assert_eq!(kind(&bad), StoreErrorKind::Other);
    }
}
