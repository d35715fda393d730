//! Flask-Session's records, and what the layer makes of them.
//!
//! There, a session is one map; whether it is permanent is its key `_permanent`. The layer's own notes
//! are in `_meta`, which Flask would carry along as data; so it is written only where it says something
//! that Flask has no way to say.

use bytes::Bytes;
use sha1::{Digest, Sha1};

use crate::payload::{Format, Head, Limits, Meta, Payload, plain_map};
use crate::store::{Revision, StoreError, StoreErrorKind, StoreLimits};

const PERMANENT: &str = "_permanent";

/// Room for what the layer's form has and Flask's has not.
const SLACK: usize = 256;

/// What a layer's configuration means for records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(unnameable_types, reason = "for the stores of this crate alone")]
pub struct Dialect {
    /// Whether new sessions are permanent.
    pub(crate) permanent: bool,
    /// Whether the time of creation is needed.
    pub(crate) keep_created: bool,
}

impl Default for Dialect {
    fn default() -> Self {
        Self {
            permanent: true,
            keep_created: false,
        }
    }
}

/// What Flask's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A session, in the layer's form.
    Session(Bytes),
    /// Nothing: what Flask takes for no session, too.
    Nothing,
    /// Something that is no session.
    Garbage(&'static str),
}

fn limits(bytes: usize) -> Limits {
    Limits {
        bytes,
        keys: 1 << 20,
        depth: 100,
    }
}

/// Never runs what it reads: a pickled session is garbage.
pub(super) fn read(stored: Vec<u8>, max: usize) -> Read {
    match stored.as_slice() {
        [] | [0xc0] | b"null" => return Read::Nothing,
        // A map without entries is this one byte; anything behind it makes it a pickle.
        [0x80, _, ..] => return Read::Garbage("pickled, which is never unpacked here"),
        _ => {}
    }
    let (head, payload) = match Payload::parse(stored.into(), &limits(max)) {
        Ok(parsed) => parsed,
        Err(malformed) => return Read::Garbage(malformed.0),
    };
    let Head::Live(mut meta) = head else {
        return Read::Garbage("ended, which is nothing that Flask says");
    };
    let format = payload.format();
    let permanent = payload
        .get(PERMANENT)
        .is_some_and(|value| is_true(format, value));
    meta.permanent = Some(permanent);
    let entries = data(&payload);
    Read::Session(plain_map(format, Some(&meta), entries.into_iter()).into())
}

/// Flask's form of what the layer writes.
pub(super) fn write(payload: &[u8], dialect: Dialect, max: usize) -> Result<Vec<u8>, StoreError> {
    let payload = Bytes::copy_from_slice(payload);
    let Ok((Head::Live(meta), payload)) = Payload::parse(payload, &limits(1 << 30)) else {
        return Err(StoreError::new(
            StoreErrorKind::Unsupported,
            "a Flask store keeps sessions, and nothing else",
        ));
    };
    let format = payload.format();
    let mut entries = data(&payload);
    if meta.permanent.unwrap_or(dialect.permanent) {
        let yes: &[u8] = match format {
            Format::Json => b"true",
            Format::MessagePack => &[0xc3],
        };
        entries.push((PERMANENT, yes));
    }
    let notes = Meta {
        created: meta.created.filter(|_| dialect.keep_created),
        permanent: None,
        // No layer that shares its sessions with Flask knows users.
        user: None,
        ..meta
    };
    let notes = (notes != Meta::default()).then_some(&notes);
    let written = plain_map(format, notes, entries.into_iter());
    if written.len() > max {
        return Err(StoreError::too_large(written.len(), max));
    }
    Ok(written)
}

/// The entries that are the application's.
fn data(payload: &Payload) -> Vec<(&str, &[u8])> {
    payload
        .iter()
        .filter(|(key, _)| *key != PERMANENT)
        .collect()
}

fn is_true(format: Format, value: &[u8]) -> bool {
    match format {
        Format::Json => value == b"true",
        Format::MessagePack => value == [0xc3],
    }
}

/// The layer's limits for a store that takes so many bytes, and forgets what has expired.
pub(super) fn store_limits(max: usize) -> StoreLimits {
    StoreLimits::new(max.saturating_sub(SLACK)).with_own_expiry(true)
}

/// What the bytes are compared by.
pub(super) fn digest(stored: &[u8]) -> [u8; 20] {
    Sha1::digest(stored).into()
}

pub(super) fn revision(digest: &[u8; 20]) -> Revision {
    let mut revision = [0; Revision::LEN];
    revision.copy_from_slice(&digest[..Revision::LEN]);
    Revision::from_bytes(revision)
}

/// The error for what is no session. The layer takes it for absent, with an event.
pub(super) fn garbage(why: &'static str) -> StoreError {
    StoreError::new(
        StoreErrorKind::Corrupt,
        format!("the value is no session: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECT: Dialect = Dialect {
        permanent: true,
        keep_created: false,
    };

    fn session(stored: &[u8]) -> (Meta, Payload) {
        let Read::Session(bytes) = read(stored.to_vec(), 1 << 20) else {
            panic!("{stored:?} is no session");
        };
        match Payload::parse(bytes, &limits(1 << 20)) {
            Ok((Head::Live(meta), payload)) => (meta, payload),
            other => panic!("{:?}", other.err()),
        }
    }

    /// `{"_permanent": true, "n": 1, "at": <extension>}` and the same without.
    const PACKED: &[u8] = b"\x83\xaa_permanent\xc3\xa1n\x01\xa2at\xd6\xff\x65\x00\x00\x00";
    const JSON: &[u8] = br#"{"_permanent":true,"n":1,"at":"x"}"#;

    #[test]
    fn what_flask_wrote_is_a_session_and_goes_back_as_it_came() {
        for stored in [PACKED, JSON] {
            let (meta, payload) = session(stored);
            assert_eq!(meta.permanent, Some(true));
            assert_eq!(payload.len(), 2, "_permanent is no data");
            let back = write(payload.bytes(), DIALECT, 1 << 20).unwrap();
            let (again, there) = session(&back);
            assert_eq!(again, meta);
            let entries = |payload: &Payload| -> Vec<_> {
                let entry = |(key, value): (&str, &[u8])| (key.to_owned(), value.to_vec());
                payload.iter().map(entry).collect()
            };
            assert_eq!(entries(&there), entries(&payload));
            // Nothing of ours is in it.
            assert!(!String::from_utf8_lossy(&back).contains("_meta"));
            assert_eq!(back.len(), stored.len());
        }
    }

    #[test]
    fn permanence_is_what_flask_says_and_is_said_to_flask() {
        let packed: &[u8] = b"\x81\xa1n\x01";
        let json: &[u8] = br#"{"n":1,"_permanent":false}"#;
        for stored in [packed, json] {
            let (meta, payload) = session(stored);
            assert_eq!(meta.permanent, Some(false));
            let back = write(payload.bytes(), DIALECT, 1 << 20).unwrap();
            assert!(!String::from_utf8_lossy(&back).contains("_permanent"));
        }
        // A session that begins here says nothing yet.
        let new = plain_map(Format::MessagePack, Some(&Meta::default()), [].into_iter());
        let permanent = write(&new, DIALECT, 1 << 20).unwrap();
        assert_eq!(permanent, b"\x81\xaa_permanent\xc3");
        let dialect = Dialect {
            permanent: false,
            ..DIALECT
        };
        assert_eq!(write(&new, dialect, 1 << 20).unwrap(), [0x80]);
    }

    #[test]
    fn notes_are_written_only_where_flask_has_no_word_for_them() {
        let meta = Meta {
            created: Some(1),
            generation: 2,
            lifetime: Some(3000),
            permanent: Some(true),
            ..Meta::default()
        };
        let keep = Dialect {
            keep_created: true,
            ..DIALECT
        };
        for format in [Format::Json, Format::MessagePack] {
            let new = plain_map(format, Some(&meta), [].into_iter());
            let (kept, payload) = session(&write(&new, keep, 1 << 20).unwrap());
            assert_eq!(kept, meta);
            assert_eq!(payload.len(), 0);
            let (dropped, _) = session(&write(&new, DIALECT, 1 << 20).unwrap());
            assert_eq!(
                dropped,
                Meta {
                    created: None,
                    ..meta.clone()
                }
            );
        }
    }

    #[test]
    fn nothing_and_garbage_are_told_apart_and_a_pickle_is_never_unpacked() {
        for nothing in [&b""[..], b"\xc0", b"null"] {
            assert_eq!(read(nothing.to_vec(), 1 << 20), Read::Nothing);
        }
        // An empty map is one byte, which a pickle also begins with.
        assert_eq!(session(b"\x80").1.len(), 0);
        for (garbage, why) in [
            // pickle.dumps({"n": 1}, 2) and 4, and 0, and 1.
            (
                &b"\x80\x02}q\x00X\x01\x00\x00\x00nq\x01K\x01s."[..],
                "pickled",
            ),
            (
                b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01n\x94K\x01s.",
                "pickled",
            ),
            (b"(dp0\nVn\np1\nI1\ns.", "not a map"),
            (b"}q\x00X\x01\x00\x00\x00nq\x01K\x01s.", "not a map"),
            (b"\xff\xfe garbage", "not a map"),
            (b"\x91\x01", "not a map"),
            (b"5", "not a map"),
            (b"[1]", "not a map"),
            (b"\x83\xa1n\x01", "truncated"),
            (br#"{"n":1"#, "not JSON"),
            (b"\x81\x01\x01", "a key that is no string"),
        ] {
            match read(garbage.to_vec(), 1 << 20) {
                Read::Garbage(said) => assert!(said.contains(why), "{garbage:?}: {said}"),
                other => panic!("{garbage:?} is {other:?}"),
            }
        }
        let large = read(PACKED.to_vec(), PACKED.len() - 1);
        assert_eq!(large, Read::Garbage("larger than allowed"));
    }

    #[test]
    fn what_is_too_large_is_refused_by_the_size_that_flask_would_see() {
        let new = plain_map(Format::MessagePack, None, [("k", &[0xc0][..])].into_iter());
        let size = write(&new, DIALECT, 1 << 20).unwrap().len();
        assert!(write(&new, DIALECT, size).is_ok());
        let error = write(&new, DIALECT, size - 1).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::TooLarge);
        assert!(write(b"no map", DIALECT, 1 << 20).is_err());
    }

    /// Records that Flask-Session 0.8.0 has written.
    #[derive(serde::Deserialize)]
    struct Recorded {
        sessions: Vec<RecordedSession>,
        values: Vec<RecordedValue>,
        pickles: Vec<RecordedValue>,
    }

    #[derive(serde::Deserialize)]
    struct RecordedSession {
        secret_key: String,
        signed: bool,
        permanent: bool,
        cookie: String,
        sid: String,
        /// In hexadecimal, as the next two.
        record: String,
        flashed: String,
    }

    #[derive(serde::Deserialize)]
    struct RecordedValue {
        format: String,
        name: String,
        record: String,
    }

    fn recorded() -> Recorded {
        serde_json::from_str(include_str!("../../../tests/flask_records.json")).unwrap()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    #[test]
    fn recorded_sessions_are_read_and_their_cookies_lead_to_them() {
        use crate::flask::FlaskCookies;
        use crate::payload::decode_value;

        for recorded in recorded().sessions {
            let cookies = match recorded.signed {
                true => FlaskCookies::signed(&recorded.secret_key).unwrap(),
                false => FlaskCookies::plain(),
            };
            let id = cookies.verify(recorded.cookie.as_bytes()).unwrap().id;
            assert_eq!(id.to_text(), recorded.sid.as_bytes());
            assert_eq!(cookies.value(&id), recorded.cookie.as_bytes());
            let (meta, payload) = session(&bytes(&recorded.record));
            assert_eq!(meta.permanent, Some(recorded.permanent));
            assert!(payload.len() > 0);
            let (_, flashed) = session(&bytes(&recorded.flashed));
            let flashes = flashed.get("_flashes").unwrap();
            let flashes: Vec<(String, String)> = decode_value(payload.format(), flashes).unwrap();
            assert_eq!(flashes[0], ("info".to_owned(), "saved".to_owned()));
            assert_eq!(flashed.len(), payload.len() + 1);
        }
    }

    #[test]
    fn recorded_values_of_every_kind_go_back_byte_for_byte() {
        let values = recorded().values;
        assert!(values.len() > 80);
        for recorded in values {
            let stored = bytes(&recorded.record);
            let (meta, payload) = session(&stored);
            assert_eq!(meta.permanent, Some(false), "{}", recorded.name);
            let dialect = Dialect {
                permanent: false,
                ..DIALECT
            };
            let back = write(payload.bytes(), dialect, 1 << 20).unwrap();
            assert_eq!(back, stored, "{} {}", recorded.format, recorded.name);
        }
    }

    #[test]
    fn recorded_pickles_are_never_unpacked() {
        let pickles = recorded().pickles;
        assert!(pickles.len() >= 8);
        for recorded in pickles {
            let read = read(bytes(&recorded.record), 1 << 20);
            assert!(
                matches!(read, Read::Garbage(why) if why.contains("pickled")),
                "{} {}",
                recorded.format,
                recorded.name
            );
        }
    }
}
