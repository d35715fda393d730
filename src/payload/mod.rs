//! The session's data as bytes: one map with string keys, indexed but not decoded.
//!
//! Values stay as they were written. A handler that reads one key decodes one value, and what other
//! programs have put into the map survives untouched.

mod json;
mod meta;
mod msgpack;
mod plain;
mod value;

use std::sync::OnceLock;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::meta::{Head, META_KEY, Meta, User};
#[cfg(feature = "flask")]
pub(crate) use self::plain::plain_map;
pub(crate) use self::plain::{index_map, tombstone};
use self::value::Buffer;
pub(crate) use self::value::Value;
use crate::error::{SessionError, SessionErrorKind};
use crate::few::Few;

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
    count: usize,
    data_len: usize,
    /// What parsing has found ...
    index: Index,
    /// ... or else, for what was just written, what is found when somebody asks: nobody may.
    late: OnceLock<Box<Index>>,
}

/// Where the entries are.
#[derive(Clone, Default)]
struct Index {
    entries: Vec<Entry>,
    /// Keys that the payload spells with escapes, as JSON may.
    unescaped: Vec<Box<str>>,
    /// The bytes of all keys and values, as they are written, without what goes around them.
    data_len: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Where the key begins, with what goes before it; only in MessagePack.
    start: u32,
    /// Or a position in `Index::unescaped`, if it ends at `UNESCAPED`.
    key: Span,
    value: Span,
}

const UNESCAPED: u32 = u32::MAX;

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

    fn len(self) -> usize {
        self.end.wrapping_sub(self.start) as usize
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }
}

impl Payload {
    pub(crate) fn empty(format: Format) -> Self {
        Self::indexed(format, Bytes::new(), Index::default())
    }

    fn indexed(format: Format, bytes: Bytes, index: Index) -> Self {
        Self {
            format,
            bytes,
            count: index.entries.len(),
            data_len: index.data_len,
            index,
            late: OnceLock::new(),
        }
    }

    /// Finds the entries of a stored payload, and reads the part that is the layer's own.
    pub(crate) fn parse(bytes: Bytes, limits: &Limits) -> Result<(Head, Self), Malformed> {
        if bytes.len() > limits.bytes || bytes.len() >= UNESCAPED as usize {
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
        let payload = Self::indexed(format, bytes, index);
        Ok((head.unwrap_or(Head::Live(Meta::default())), payload))
    }

    /// The same map with another `meta`, and with `changes`, which name each key once: a key without
    /// a value goes.
    pub(crate) fn changed(&self, meta: &Meta, changes: &[(&str, Option<&[u8]>)]) -> Self {
        let index = self.index();
        let is_kept = |entry: &Entry| {
            let mut changed = changes.iter();
            !changed.any(|(key, _)| index.is_of(entry, key, &self.bytes))
        };
        let (mut count, mut data_len) = (self.count, self.data_len);
        let mut leave_out = |entry: &Entry| {
            count -= 1;
            data_len -= index.key_len(entry) + entry.value.len();
        };
        let set = changes
            .iter()
            .filter_map(|(key, value)| Some((*key, (*value)?)));
        let bytes = match self.format {
            Format::Json => {
                let (kept, left_out): (Vec<_>, Vec<_>) =
                    index.entries.iter().partition(|entry| is_kept(entry));
                left_out.into_iter().for_each(leave_out);
                let kept = kept.into_iter().map(|entry| {
                    let key = index.key_text(entry, &self.bytes);
                    (key, entry.value.of(&self.bytes))
                });
                json::encode(meta, kept.chain(set.clone()), self.bytes.len())
            }
            Format::MessagePack => {
                let mut runs: Few<Span> = Few::default();
                let mut run: Option<Span> = None;
                for entry in &index.entries {
                    match &mut run {
                        _ if !is_kept(entry) => leave_out(entry),
                        Some(run) if run.end == entry.start => run.end = entry.value.end,
                        _ => {
                            let next = Span {
                                start: entry.start,
                                end: entry.value.end,
                            };
                            runs.extend(run.replace(next));
                        }
                    }
                }
                runs.extend(run);
                let runs = runs.iter().map(|run| run.of(&self.bytes));
                msgpack::encode(meta, runs, set.clone(), count + set.clone().count())
            }
        };
        for (key, value) in set {
            count += 1;
            data_len += key_len(self.format, key) + value.len();
        }
        Self {
            format: self.format,
            bytes: bytes.into(),
            count,
            data_len,
            index: Index::default(),
            late: OnceLock::new(),
        }
    }

    fn index(&self) -> &Index {
        if self.index.entries.len() == self.count {
            return &self.index;
        }
        self.late.get_or_init(|| {
            // What was not parsed was encoded, within the limits of the session it came from.
            let limits = Limits {
                bytes: usize::MAX,
                keys: usize::MAX - 1,
                depth: usize::MAX - 1,
            };
            let found = match self.format {
                Format::Json => json::index(&self.bytes, &limits),
                Format::MessagePack => msgpack::index(&self.bytes, &limits),
            };
            debug_assert!(found.is_ok());
            Box::new(found.map(|(_, index)| index).unwrap_or_default())
        })
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The bytes of all keys and values, as they are written, without what goes around them.
    pub(crate) fn data_len(&self) -> usize {
        self.data_len
    }

    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        Some(self.find(key)?.of(&self.bytes))
    }

    /// The encoded value, which outlives the payload.
    pub(crate) fn get_owned(&self, key: &str) -> Option<Value> {
        let Span { start, end } = self.find(key)?;
        Some(Value::part(&self.bytes, start as usize..end as usize))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        let index = self.index();
        index.entries.iter().map(|entry| {
            (
                index.key_text(entry, &self.bytes),
                entry.value.of(&self.bytes),
            )
        })
    }

    /// The value of a key; the last, if another program has written it twice.
    fn find(&self, key: &str) -> Option<Span> {
        let index = self.index();
        let mut entries = index.entries.iter();
        let entry = entries.rfind(|entry| index.is_of(entry, key, &self.bytes));
        entry.map(|entry| entry.value)
    }
}

impl Index {
    fn push(&mut self, start: usize, key: Span, value: Span) {
        self.data_len += key.len() + value.len();
        self.entries.push(Entry {
            start: start as u32,
            key,
            value,
        });
    }

    fn push_unescaped(&mut self, key: &str, value: Span) {
        self.data_len += json::key_len(key) + value.len();
        self.entries.push(Entry {
            start: 0,
            key: Span {
                start: self.unescaped.len() as u32,
                end: UNESCAPED,
            },
            value,
        });
        self.unescaped.push(key.into());
    }

    fn is_of(&self, entry: &Entry, key: &str, bytes: &[u8]) -> bool {
        // Most keys differ in length.
        let may_be = entry.key.end == UNESCAPED || entry.key.len() == key.len();
        may_be && self.key(entry, bytes) == key.as_bytes()
    }

    /// The length of the key as it is written.
    fn key_len(&self, entry: &Entry) -> usize {
        match self.unescaped.get(entry.key.start as usize) {
            Some(key) if entry.key.end == UNESCAPED => json::key_len(key),
            Some(_) | None => entry.key.len(),
        }
    }

    fn key_text<'a>(&'a self, entry: &Entry, bytes: &'a [u8]) -> &'a str {
        // Indexing has checked that the key is UTF-8.
        std::str::from_utf8(self.key(entry, bytes)).unwrap_or_default()
    }

    fn key<'a>(&'a self, entry: &Entry, bytes: &'a [u8]) -> &'a [u8] {
        if entry.key.end == UNESCAPED {
            let key = self.unescaped.get(entry.key.start as usize);
            return key.map_or(&[], |key| key.as_bytes());
        }
        entry.key.of(bytes)
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

/// The most bytes that `user` adds to that.
pub(crate) fn user_bound(format: Format, user: &str) -> usize {
    match format {
        Format::Json => json::key_len(user) + 10,
        Format::MessagePack => msgpack::user_len(user),
    }
}

/// Encodes one value, refusing what the format cannot give back.
pub(crate) fn encode_value<T: Serialize + ?Sized>(
    format: Format,
    value: &T,
    limits: &Limits,
) -> Result<Value, SessionError> {
    let refuse = |message| Err(SessionError::new(SessionErrorKind::Encode, message));
    let mut encoded = Buffer::new();
    let shape = match format {
        Format::Json => {
            json::encode_value(&mut encoded, value)?;
            json::shape(&encoded, limits.depth)
        }
        Format::MessagePack => {
            msgpack::encode_value(&mut encoded, value)?;
            msgpack::shape(&encoded, limits.depth)
        }
    };
    match shape {
        Shape::Whole => Ok(encoded.into_value()),
        // A type that announces other elements than it gives would take its neighbours down with it.
        Shape::Broken => refuse(format!(
            "{} does not serialize to one whole value",
            std::any::type_name::<T>()
        )),
        Shape::TooDeep => refuse(format!(
            "the value is nested more than {} levels deep",
            limits.depth
        )),
    }
}

/// What an encoded value turned out to be.
enum Shape {
    Whole,
    Broken,
    TooDeep,
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
