//! The JSON form of a payload.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::meta::{Fields, MAX_ENCODED};
use super::{
    Buffer, Head, Index, Limits, META_KEY, Malformed, Meta, Shape, Span, cannot_encode, msgpack,
};
use crate::error::{SessionError, SessionErrorKind};

pub(super) fn index(bytes: &[u8], limits: &Limits) -> Result<(Option<Head>, Index), Malformed> {
    // The outermost map is one level.
    let depth = depth(bytes).map(|depth| depth.saturating_sub(1));
    let Some(depth) = depth.filter(|depth| *depth <= limits.depth) else {
        return Err(Malformed::TOO_DEEP);
    };
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let entries = parser
        .deserialize_map(Indexing { bytes, depth })
        .map_err(|_| Malformed("not JSON"))?;
    parser.end().map_err(|_| Malformed("bytes after the map"))?;
    entries
}

struct Indexing<'a> {
    bytes: &'a [u8],
    depth: usize,
}

impl<'de> Visitor<'de> for Indexing<'de> {
    type Value = Result<(Option<Head>, Index), Malformed>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut meta = None;
        let mut index = Index::NONE;
        index.depth = self.depth;
        let within = |part: &[u8]| {
            let start = part.as_ptr() as usize - self.bytes.as_ptr() as usize;
            Span::new(start, start + part.len())
        };
        while let Some((Text(key), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
            if key == META_KEY {
                if meta.replace(value.get()).is_some() {
                    return Ok(Err(Malformed("two _meta entries")));
                }
                continue;
            }
            let value = within(value.get().as_bytes());
            match key {
                Cow::Borrowed(key) => index.push(0, within(key.as_bytes()), value),
                Cow::Owned(key) => index.push_unescaped(&key, value),
            }
        }
        let head = meta.map(|meta| head(meta.as_bytes())).transpose();
        Ok(head.map(|head| (head, index)))
    }
}

#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn head(meta: &[u8]) -> Result<Head, Malformed> {
    let fields: Fields<'_> =
        serde_json::from_slice(meta).map_err(|_| Malformed("its _meta entry is unreadable"))?;
    Ok(fields.head())
}

/// `about`: how much it takes.
pub(super) fn encode<'a>(
    meta: &Meta,
    entries: impl Iterator<Item = (&'a str, &'a [u8])>,
    about: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(about + MAX_ENCODED);
    out.push(b'{');
    write_key(&mut out, META_KEY);
    write(&mut out, &Fields::from(meta));
    for (key, value) in entries {
        out.push(b',');
        write_key(&mut out, key);
        out.extend_from_slice(value);
    }
    out.push(b'}');
    // As for `Buffer::into_value`.
    out.shrink_to_fit();
    out
}

fn write_key(out: &mut Vec<u8>, key: &str) {
    write(out, key);
    out.push(b':');
}

fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Strings and `Fields` always have a JSON form, and writing to a `Vec` does not fail.
    let result = serde_json::to_writer(out, value);
    debug_assert!(result.is_ok());
}

pub(super) fn encode_value<T: Serialize + ?Sized>(
    encoded: &mut Buffer,
    value: &T,
) -> Result<(), SessionError> {
    serde_json::to_writer(&mut *encoded, value).map_err(cannot_encode)?;
    // serde_json writes NaN and the infinities as null, which would not come back as they went in.
    if encoded.windows(4).any(|word| word == b"null") && has_non_finite(value) {
        return Err(SessionError::new(
            SessionErrorKind::Encode,
            "JSON has no form for NaN and infinity",
        ));
    }
    Ok(())
}

fn has_non_finite<T: Serialize + ?Sized>(value: &T) -> bool {
    let mut packed = Buffer::new();
    msgpack::encode_value(&mut packed, value).is_ok() && msgpack::has_non_finite(&packed)
}

/// As `serde_json` writes it between the quotes.
pub(super) fn key_len(key: &str) -> usize {
    let written = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0x00..=0x1f => 6,
        _ => 1,
    };
    key.bytes().map(written).sum()
}

pub(super) fn shape(text: &[u8], max_depth: usize) -> Shape {
    if serde_json::from_slice::<serde::de::IgnoredAny>(text).is_err() {
        return Shape::Broken;
    }
    match depth(text) {
        Some(depth) if depth <= max_depth => Shape::Whole,
        Some(_) | None => Shape::TooDeep,
    }
}

/// How deep JSON text is nested: 0 for a scalar. `None` if it closes more than it opens.
fn depth(text: &[u8]) -> Option<usize> {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    Some(deepest)
}
