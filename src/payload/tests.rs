use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    keys: 100,
    depth: 8,
};

fn encode<'a>(
    format: Format,
    meta: &Meta,
    entries: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
) -> Payload {
    let entries: Vec<_> = entries.map(|(key, value)| (key, Some(value))).collect();
    Payload::empty(format).changed(meta, &entries)
}

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) {
    for format in [Format::Json, Format::MessagePack] {
        let bytes = encode_value(format, &value, &LIMITS).unwrap();
        assert_eq!(
            decode_value::<T>(format, &bytes).unwrap(),
            value,
            "{format:?}"
        );
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    One(u8),
    Pair(i64, String),
    Named { at: (f64, f64), tags: Vec<String> },
}

#[test]
fn values_of_every_kind_come_back_as_they_went_in() {
    round_trip(0u8);
    round_trip(u64::MAX);
    round_trip(i64::MIN);
    round_trip(i128::from(u64::MAX) + 1);
    round_trip(-0.5f64);
    round_trip(f64::MAX);
    round_trip(f32::MIN_POSITIVE);
    round_trip(String::from("żółć \u{0} \"quoted\" \\"));
    round_trip('€');
    round_trip(Option::<u8>::None);
    round_trip(Some(5u8));
    round_trip(vec![Some(1), None]);
    round_trip(serde_bytes::ByteBuf::from(vec![0, 255, 128]));
    round_trip(BTreeMap::from([
        (1u32, "one".to_owned()),
        (2, "two".to_owned()),
    ]));
    round_trip(vec![
        Shape::Unit,
        Shape::One(1),
        Shape::Pair(-1, "x".into()),
        Shape::Named {
            at: (1.0, 2.5),
            tags: vec!["a".into()],
        },
    ]);
    round_trip(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 5));
    round_trip(std::time::Duration::from_nanos(1));
    round_trip("192.0.2.1".parse::<std::net::IpAddr>().unwrap());
    round_trip(());
}

#[test]
fn what_a_format_cannot_give_back_is_refused() {
    for bad in [f64::NAN, f64::INFINITY] {
        assert!(encode_value(Format::Json, &vec![bad], &LIMITS).is_err());
        let kept = encode_value(Format::MessagePack, &bad, &LIMITS).unwrap();
        assert_eq!(
            decode_value::<f64>(Format::MessagePack, &kept)
                .unwrap()
                .to_bits(),
            bad.to_bits()
        );
    }
    assert!(encode_value(Format::Json, &Option::<u8>::None, &LIMITS).is_ok());
    let structs_as_keys = BTreeMap::from([(vec![1u8], 1)]);
    assert!(encode_value(Format::Json, &structs_as_keys, &LIMITS).is_err());
}

#[test]
fn nesting_is_bounded_on_the_way_in_and_on_the_way_out() {
    fn nest(depth: usize) -> serde_json::Value {
        (0..depth).fold(1.into(), |inner, _| serde_json::Value::Array(vec![inner]))
    }
    for format in [Format::Json, Format::MessagePack] {
        assert!(encode_value(format, &nest(8), &LIMITS).is_ok());
        assert!(encode_value(format, &nest(9), &LIMITS).is_err());
        let deep = Limits { depth: 9, ..LIMITS };
        let value = encode_value(format, &nest(9), &deep).unwrap();
        let payload = encode(format, &Meta::default(), [("a", &value[..])].into_iter());
        assert!(Payload::parse(payload.bytes().clone(), &deep).is_ok());
        assert!(Payload::parse(payload.bytes().clone(), &LIMITS).is_err());
    }
}

/// Whoever shares a body with others may have parsed it before them, within limits of their own.
#[test]
fn a_body_is_parsed_for_all_and_judged_for_each() {
    let entries = ["a", "b", "c"].map(|key| (key, Some(&b"[[1]]"[..])));
    let json = Payload::empty(Format::Json).changed(&Meta::default(), &entries);
    let packed = entries.map(|(key, _)| (key, Some(&b"\x91\x91\x01"[..])));
    let packed = Payload::empty(Format::MessagePack).changed(&Meta::default(), &packed);
    for written in [json, packed] {
        let bytes = written.bytes().clone();
        let exact = Limits {
            bytes: bytes.len(),
            keys: 3,
            depth: 2,
        };
        let narrow = [
            Limits {
                bytes: bytes.len() - 1,
                ..exact
            },
            Limits { keys: 2, ..exact },
            Limits { depth: 1, ..exact },
        ];
        let fresh = Arc::new(Body::new(bytes));
        for body in [fresh, Arc::clone(written.body.as_ref().unwrap())] {
            for limits in narrow.into_iter().chain([exact]).chain(narrow) {
                let parsed = Payload::of(Arc::clone(&body), &limits);
                let again = Payload::parse(body.bytes().clone(), &limits);
                assert_eq!(parsed.as_ref().err(), again.as_ref().err());
                assert_eq!(
                    parsed.is_ok(),
                    limits.bytes + limits.keys + limits.depth == exact.bytes + 5
                );
                if let Ok((head, payload)) = parsed {
                    assert_eq!(head, Head::Live(Meta::default()));
                    assert_eq!(payload.iter().count(), 3);
                }
            }
        }
    }
}

#[test]
fn what_is_gone_is_not_deep() {
    for format in [Format::Json, Format::MessagePack] {
        let deep = encode_value(format, &[[1]], &LIMITS).unwrap();
        let payload = encode(format, &Meta::default(), [("a", &deep[..])].into_iter());
        let payload = payload.changed(&Meta::default(), &[("a", None)]);
        let flat = Limits { depth: 1, ..LIMITS };
        let body = payload.body.unwrap();
        assert!(Payload::of(Arc::clone(&body), &flat).is_ok());
        assert!(Payload::of(body, &Limits { bytes: 1, ..flat }).is_err());
    }
}

#[test]
fn a_payload_gives_back_its_meta_and_its_entries() {
    let meta = Meta {
        created: Some(1_700_000_000_000),
        generation: 3,
        lifetime: Some(60_000),
        permanent: Some(false),
        user: Some(Arc::new(User {
            name: "ada \"\u{1}\" é".into(),
            authenticated: Some(1_700_000_000_001),
        })),
    };
    for format in [Format::Json, Format::MessagePack] {
        let value = |text: &str| encode_value(format, text, &LIMITS).unwrap();
        let (one, two) = (value("1"), value("2"));
        let entries = [
            ("plain", &one[..]),
            ("with \"quotes\" and \u{7f}é", &two[..]),
        ];
        let encoded = encode(format, &meta, entries.into_iter());
        assert!(
            encoded.bytes().len()
                <= size_bound(2, entries.iter().map(|(k, v)| k.len() + v.len()).sum())
                    + user_bound(format, "ada \"\u{1}\" é")
        );
        assert_eq!(encoded.iter().collect::<Vec<_>>(), entries);
        let (head, read) = Payload::parse(encoded.bytes().clone(), &LIMITS).unwrap();
        assert_eq!(head, Head::Live(meta.clone()));
        assert_eq!(read.iter().collect::<Vec<_>>(), entries);
        assert_eq!(read.format(), format);
        assert_eq!(read.len(), 2);
        assert_eq!(read.get("plain"), Some(&one[..]));
        assert_eq!(read.get_owned("plain").as_deref(), Some(&one[..]));
        assert_eq!(read.get(META_KEY), None);
    }
}

#[test]
fn notes_take_no_more_than_is_counted_for_them() {
    let users = [None, Some("u"), Some("\u{1}\"é"), Some(&*"x".repeat(256))];
    for format in [Format::Json, Format::MessagePack] {
        for user in users {
            let meta = Meta {
                created: Some(u64::MAX),
                generation: u64::MAX,
                lifetime: Some(u64::MAX),
                permanent: Some(false),
                user: user.map(|name| {
                    Arc::new(User {
                        name: name.into(),
                        authenticated: Some(u64::MAX),
                    })
                }),
            };
            let payload = Payload::empty(format).changed(&meta, &[]);
            let bound = size_bound(0, 0) + user.map_or(0, |user| user_bound(format, user));
            assert!(payload.bytes().len() <= bound, "{format:?} {user:?}");
            let (head, _) = Payload::parse(payload.bytes().clone(), &LIMITS).unwrap();
            assert_eq!(head, Head::Live(meta));
        }
    }
}

#[test]
fn a_user_that_is_no_text_makes_no_session() {
    let cases: [&[u8]; 5] = [
        br#"{"_meta":{"user":7}}"#,
        br#"{"_meta":{"user":["ada"]}}"#,
        b"\x81\xa5_meta\x81\xa4user\x07",
        b"\x81\xa5_meta\x81\xa4user\xa1\xff",
        b"\x81\xa5_meta\x81\xa4user\xc4\x01a",
    ];
    for case in cases {
        assert!(
            Payload::parse(Bytes::from_static(case), &LIMITS).is_err(),
            "{case:x?}"
        );
    }
}

#[test]
fn a_tombstone_names_its_successor() {
    let key: crate::SessionKey = "a".repeat(43).parse().unwrap();
    for format in [Format::Json, Format::MessagePack] {
        for successor in [None, Some(key)] {
            let bytes = tombstone(format, successor.as_ref());
            let (head, payload) = Payload::parse(bytes.into(), &LIMITS).unwrap();
            assert_eq!(head, Head::Ended { successor });
            assert_eq!(payload.len(), 0);
        }
    }
}

#[test]
fn garbage_is_no_session() {
    let cases: &[&[u8]] = &[
        b"",
        b"[]",
        b"null",
        b"{",
        b"{}x",
        b"{\"a\":}",
        b"{\"a\":1]",
        b"\x81",
        b"\x81\xa1a",
        b"\x81\xa1a\xc1",
        b"\x81\x01\x01",
        b"\x80\x00",
        b"\x81\xa1\xff\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        b"\x81\xa1a\xc9\xff\xff\xff\xff",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa5_meta\x01",
        b"\x93\x01\x02\x03",
        b"\x80\x04\x95pickle",
    ];
    for case in cases {
        assert!(
            Payload::parse(Bytes::from_static(case), &LIMITS).is_err(),
            "{case:x?}"
        );
    }
    assert!(Payload::parse(vec![b' '; LIMITS.bytes + 1].into(), &LIMITS).is_err());
}

#[test]
fn extension_types_of_others_survive() {
    let foreign = b"\x82\xa1a\xd6\xff\x65\x00\x00\x00\xa1b\xc7\x03\x05xyz";
    let (head, payload) = Payload::parse(Bytes::from_static(foreign), &LIMITS).unwrap();
    assert_eq!(head, Head::Live(Meta::default()));
    let again = encode(payload.format(), &Meta::default(), payload.iter());
    assert_eq!(again.get("a"), Some(&b"\xd6\xff\x65\x00\x00\x00"[..]));
    assert_eq!(again.get("b"), Some(&b"\xc7\x03\x05xyz"[..]));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), first in any::<u8>()) {
        let _ = Payload::parse(bytes.clone().into(), &LIMITS);
        for start in [b'{', 0x80 | first & 0x0f, 0xde, 0xdf] {
            let mut bytes = bytes.clone();
            bytes.insert(0, start);
            let _ = Payload::parse(bytes.into(), &LIMITS);
        }
    }

    #[test]
    fn a_cut_payload_is_refused(keys in prop::collection::btree_map("[a-z]{0,6}", any::<i64>(), 0..6), cut in any::<prop::sample::Index>()) {
        for format in [Format::Json, Format::MessagePack] {
            let values: Vec<_> = keys.values().map(|v| encode_value(format, v, &LIMITS).unwrap()).collect();
            let whole = encode(format, &Meta::default(), keys.keys().map(String::as_str).zip(values.iter().map(|v| &v[..])));
            let cut = whole.bytes().slice(..cut.index(whole.bytes().len()));
            prop_assert!(Payload::parse(cut, &LIMITS).is_err());
        }
    }
}

#[test]
fn two_entries_of_the_layers_own_are_refused() {
    let json = br#"{"_meta":{"created":1},"n":1,"_meta":{"created":2}}"#;
    let mut packed = vec![0x82];
    for _ in 0..2 {
        packed.extend_from_slice(b"\xa5_meta\x80");
    }
    for text in [&json[..], &packed] {
        let parsed = Payload::parse(Bytes::copy_from_slice(text), &LIMITS);
        assert_eq!(parsed.err(), Some(Malformed("two _meta entries")));
    }
}

proptest! {
    /// What was written is found again where it was written, and as if somebody else read it.
    #[test]
    fn a_changed_payload_reads_like_a_parsed_one(
        before in prop::collection::btree_map("[a-z\"é]{0,40}", prop::collection::vec(any::<u8>(), 0..50), 0..12),
        changes in prop::collection::btree_map("[a-c\"é]{0,40}", prop::option::of(prop::collection::vec(any::<i64>(), 0..3)), 0..12),
        created in any::<u64>(),
        user in prop::option::of("[a-z\"é]{0,40}"),
    ) {
        let user = user.map(|name| Arc::new(User { name: name.into(), authenticated: Some(created) }));
        let meta = Meta { created: Some(created), user, ..Meta::default() };
        for format in [Format::Json, Format::MessagePack] {
            let old: BTreeMap<_, _> = before
                .iter()
                .map(|(key, value)| (key.as_str(), encode_value(format, value, &LIMITS).unwrap()))
                .collect();
            let base = encode(format, &meta, old.iter().map(|(key, value)| (*key, &value[..])));
            // As the store gives it back, and as the session that wrote it has it.
            let parsed = Payload::parse(base.bytes().clone(), &LIMITS).unwrap().1;
            let encoded: BTreeMap<_, _> = changes
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_ref().map(|n| match &n[..] {
                    [n] => encode_value(format, n, &LIMITS).unwrap(),
                    many => encode_value(format, many, &LIMITS).unwrap(),
                })))
                .collect();
            let list: Vec<_> = encoded.iter().map(|(key, value)| (*key, value.as_deref())).collect();
            let mut expected = old.clone();
            for (key, value) in &encoded {
                match value {
                    Some(value) => expected.insert(key, value.clone()),
                    None => expected.remove(key),
                };
            }
            for base in [base, parsed] {
                let changed = base.changed(&meta, &list);
                let (head, again) = Payload::parse(changed.bytes().clone(), &LIMITS).unwrap();
                prop_assert_eq!(head, Head::Live(meta.clone()));
                let shared = changed.body.clone().unwrap();
                let (head, shared) = Payload::of(shared, &LIMITS).unwrap();
                prop_assert_eq!(head, Head::Live(meta.clone()));
                prop_assert_eq!(&changed.index().entries, &again.index().entries);
                prop_assert!(changed.index().depth >= again.index().depth);
                for payload in [&changed, &again, &shared] {
                    prop_assert_eq!(payload.len(), expected.len());
                    prop_assert_eq!(payload.data_len(), again.data_len());
                    let found: BTreeMap<_, _> = payload.iter().collect();
                    let expected_pairs = expected.iter().map(|(key, value)| (*key, &value[..]));
                    prop_assert!(found.into_iter().eq(expected_pairs));
                    for (key, value) in &expected {
                        prop_assert_eq!(payload.get(key), Some(&value[..]));
                    }
                }
            }
        }
    }
}

#[test]
fn a_key_that_is_there_twice_is_changed_for_good() {
    let json = Bytes::from_static(br#"{"n":1,"a":0,"n":2}"#);
    let packed = Bytes::from_static(b"\x83\xa1n\x01\xa1a\x00\xa1n\x02");
    for twice in [json, packed] {
        let (_, payload) = Payload::parse(twice, &LIMITS).unwrap();
        let three = encode_value(payload.format(), &3, &LIMITS).unwrap();
        let changed = payload.changed(&Meta::default(), &[("n", Some(&three))]);
        assert_eq!(changed.len(), 2);
        assert_eq!(changed.get("n"), Some(&three[..]));
    }
}
