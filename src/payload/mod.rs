//! The session's data as bytes: one map with string keys, indexed but not decoded.
//!
//! Values stay as they were written. A handler that reads one key decodes one value, and what other
//! programs have put into the map survives untouched.

mod json;
mod meta;
mod msgpack;
#[cfg(feature = "flask")]
mod plain;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::meta::{Head, META_KEY, Meta, tombstone};
#[cfg(feature = "flask")]
pub(crate) use self::plain::plain_map;
use crate::error::{SessionError, SessionErrorKind};

/// How new sessions are encoded.
///
/// An existing session keeps the format it was created in, so changing the setting loses nothing:
/// both are read, told apart by their first byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// JSON: readable in the store's own tools, larger and slower, knows no bytes and no NaN.
    Json,
    /// MessagePack with named fields. The default.
    #[default]
    #[serde(alias = "msgpack")]
    MessagePack,
}

/// What a payload may be. Checked when a value goes in, and when a record is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: usize,
    pub(crate) keys: usize,
    pub(crate) depth: usize,
}

/// Why a payload is no session. The text goes into an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A map whose values are still encoded.
#[derive(Clone)]
pub(crate) struct Payload {
    format: Format,
    bytes: Bytes,
    index: Index,
}

/// Where the entries are.
#[derive(Clone, Default)]
struct Index {
    entries: Vec<Entry>,
    /// Keys that the payload spells with escapes, as JSON may.
    unescaped: Vec<Box<str>>,
}

#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    value: Span,
}

#[derive(Clone, Copy)]
enum Key {
    At(Span),
    /// The position in `Index::unescaped`.
    Unescaped(u32),
}

#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Both ends lie within a payload, whose length `Payload::parse` has checked.
    fn new(start: usize, end: usize) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }
}

impl Payload {
    pub(crate) fn empty(format: Format) -> Self {
        Self {
            format,
            bytes: Bytes::new(),
            index: Index::default(),
        }
    }

    /// Finds the entries of a stored payload, and reads the part that is the layer's own.
    pub(crate) fn parse(bytes: Bytes, limits: &Limits) -> Result<(Head, Self), Malformed> {
        if bytes.len() > limits.bytes || u32::try_from(bytes.len()).is_err() {
            return Err(Malformed("larger than allowed"));
        }
        let (format, (head, index)) = match bytes.first() {
            Some(b'{') => (Format::Json, json::index(&bytes, limits)?),
            Some(0x80..=0x8f | 0xde | 0xdf) => {
                (Format::MessagePack, msgpack::index(&bytes, limits)?)
            }
            Some(_) => return Err(Malformed("not a map")),
            None => return Err(Malformed("empty")),
        };
        let payload = Self {
            format,
            bytes,
            index,
        };
        Ok((head.unwrap_or(Head::Live(Meta::default())), payload))
    }

    /// Writes a map of `meta` and `entries`; the values are already encoded in `format`.
    pub(crate) fn encode<'a>(
        format: Format,
        meta: &Meta,
        entries: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    ) -> Self {
        let size: usize = entries
            .clone()
            .map(|(key, value)| key.len() + value.len() + 8)
            .sum();
        let count = entries.clone().count();
        let mut out = Vec::with_capacity(size + meta::MAX_ENCODED + 8);
        let mut index = Index {
            entries: Vec::with_capacity(count),
            unescaped: Vec::new(),
        };
        match format {
            Format::Json => json::encode(&mut out, &mut index, meta, entries),
            Format::MessagePack => msgpack::encode(&mut out, &mut index, meta, entries, count),
        }
        Self {
            format,
            bytes: out.into(),
            index,
        }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.index.entries.len()
    }

    /// The bytes of all keys and values, as they are written, without what goes around them.
    pub(crate) fn data_len(&self) -> usize {
        let len = |entry: &Entry| {
            let key = match entry.key {
                Key::At(span) => span.of(&self.bytes).len(),
                Key::Unescaped(_) => {
                    let key = std::str::from_utf8(self.key(entry)).unwrap_or_default();
                    json::key_len(key)
                }
            };
            key + entry.value.of(&self.bytes).len()
        };
        self.index.entries.iter().map(len).sum()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        Some(self.find(key)?.value.of(&self.bytes))
    }

    /// The encoded value, sharing the payload's memory.
    pub(crate) fn get_shared(&self, key: &str) -> Option<Bytes> {
        let Span { start, end } = self.find(key)?.value;
        Some(self.bytes.slice(start as usize..end as usize))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        self.index.entries.iter().map(|entry| {
            // Indexing has checked that the key is UTF-8.
            let key = std::str::from_utf8(self.key(entry)).unwrap_or_default();
            (key, entry.value.of(&self.bytes))
        })
    }

    /// The entry of a key; the last, if another program has written it twice.
    fn find(&self, key: &str) -> Option<&Entry> {
        let mut entries = self.index.entries.iter();
        entries.rfind(|entry| self.key(entry) == key.as_bytes())
    }

    fn key(&self, entry: &Entry) -> &[u8] {
        match entry.key {
            Key::At(span) => span.of(&self.bytes),
            Key::Unescaped(at) => {
                let key = self.index.unescaped.get(at as usize);
                key.map_or(&[], |key| key.as_bytes())
            }
        }
    }
}

impl Index {
    fn push(&mut self, key: Span, value: Span) {
        let key = Key::At(key);
        self.entries.push(Entry { key, value });
    }

    fn push_unescaped(&mut self, key: &str, value: Span) {
        let key_at = Key::Unescaped(self.unescaped.len() as u32);
        self.unescaped.push(key.into());
        self.entries.push(Entry { key: key_at, value });
    }
}

/// The length of a key as it is written, apart from what goes around it.
pub(crate) fn key_len(format: Format, key: &str) -> usize {
    match format {
        Format::Json => json::key_len(key),
        Format::MessagePack => key.len(),
    }
}

/// The most bytes that [`Payload::encode`] makes of entries with these lengths in all,
/// keys counted by [`key_len`].
pub(crate) fn size_bound(count: usize, keys_and_values: usize) -> usize {
    meta::MAX_ENCODED + 8 + keys_and_values + count * 6
}

/// Encodes one value, refusing what the format cannot give back.
pub(crate) fn encode_value<T: Serialize + ?Sized>(
    format: Format,
    value: &T,
    limits: &Limits,
) -> Result<Bytes, SessionError> {
    let mut encoded = match format {
        Format::Json => json::encode_value(value)?,
        Format::MessagePack => msgpack::encode_value(value)?,
    };
    let nested = match format {
        Format::Json => json::depth(&encoded),
        Format::MessagePack => msgpack::depth(&encoded, limits.depth),
    };
    // A type that announces other elements than it gives would take its neighbours down with it.
    let whole = match format {
        Format::Json => json::is_one_value(&encoded),
        Format::MessagePack => msgpack::is_one_value(&encoded),
    };
    if !whole {
        return Err(SessionError::new(
            SessionErrorKind::Encode,
            format!(
                "{} does not serialize to one whole value",
                std::any::type_name::<T>()
            ),
        ));
    }
    if nested.is_none_or(|depth| depth > limits.depth) {
        return Err(SessionError::new(
            SessionErrorKind::Encode,
            format!("the value is nested more than {} levels deep", limits.depth),
        ));
    }
    // Room to spare would cost an allocation of its own to become `Bytes`.
    encoded.shrink_to_fit();
    Ok(encoded.into())
}

/// Decodes one value.
pub(crate) fn decode_value<T: DeserializeOwned>(
    format: Format,
    bytes: &[u8],
) -> Result<T, SessionError> {
    let wrong = |error: Box<dyn std::error::Error + Send + Sync>| {
        SessionError::new(
            SessionErrorKind::Decode,
            format!("the stored value is no {}", std::any::type_name::<T>()),
        )
        .with_source(error)
    };
    match format {
        Format::Json => serde_json::from_slice(bytes).map_err(|error| wrong(error.into())),
        Format::MessagePack => rmp_serde::from_slice(bytes).map_err(|error| wrong(error.into())),
    }
}

fn cannot_encode(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SessionError {
    SessionError::new(SessionErrorKind::Encode, "the value cannot be encoded").with_source(error)
}

#[cfg(test)]
mod tests;
