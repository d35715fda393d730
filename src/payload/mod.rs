//! The session's data as bytes: one map with string keys, indexed but not decoded.
//!
//! Values stay as they were written. A handler that reads one key decodes one value, and what other
//! programs have put into the map survives untouched.

mod body;
mod index;
mod json;
mod meta;
mod msgpack;
mod plain;
mod value;

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::body::Body;
use self::body::Parsed;
use self::index::{Entry, Index, Span};
pub(crate) use self::meta::{Head, META_KEY, Meta, User};
#[cfg(feature = "flask")]
pub(crate) use self::plain::plain_map;
pub(crate) use self::plain::{index_map, tombstone};
use self::value::Buffer;
pub(crate) use self::value::Value;
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

/// A map whose values are still encoded. Cheap to clone and to move; clones share everything.
#[derive(Clone)]
pub(crate) struct Payload {
    format: Format,
    count: usize,
    data_len: usize,
    /// `None`: there are no bytes. JSON that was just written is parsed when somebody asks: nobody may.
    body: Option<Arc<Body>>,
}

impl Payload {
    pub(crate) fn empty(format: Format) -> Self {
        Self {
            format,
            count: 0,
            data_len: 0,
            body: None,
        }
    }

    /// Finds the entries of a stored payload, and reads the part that is the layer's own.
    pub(crate) fn parse(bytes: Bytes, limits: &Limits) -> Result<(Head, Self), Malformed> {
        Self::of(Arc::new(Body::parse(bytes, limits)?), limits)
    }

    /// The same for a body that somebody may have parsed before.
    pub(crate) fn of(body: Arc<Body>, limits: &Limits) -> Result<(Head, Self), Malformed> {
        let Parsed {
            format,
            head,
            index,
        } = body.parsed(limits)?;
        let (head, format) = (head.clone(), *format);
        let (count, data_len) = (index.entries.len(), index.data_len);
        let payload = Self {
            format,
            count,
            data_len,
            body: Some(body),
        };
        Ok((head, payload))
    }

    /// The same map with another `meta`, and with `changes`, which name each key once: a key without
    /// a value goes.
    pub(crate) fn changed(&self, meta: &Meta, changes: &[(&str, Option<&[u8]>)]) -> Self {
        let (index, bytes) = (self.index(), self.bytes());
        let kept = index.entries.iter().filter(|entry| {
            let mut changed = changes.iter();
            !changed.any(|(key, _)| index.is_of(entry, key, bytes))
        });
        let set = changes
            .iter()
            .filter_map(|(key, value)| Some((*key, (*value)?)));
        match self.format {
            Format::Json => {
                let mut count = 0;
                let mut data_len = 0;
                let kept = kept.map(|entry| {
                    let key = index.key_text(entry, bytes);
                    (key, entry.value.of(bytes))
                });
                let entries = kept.chain(set).inspect(|(key, value)| {
                    count += 1;
                    data_len += json::key_len(key) + value.len();
                });
                let encoded = json::encode(meta, entries, bytes.len());
                Self {
                    format: self.format,
                    count,
                    data_len,
                    body: Some(Arc::new(Body::new(encoded.into()))),
                }
            }
            Format::MessagePack => {
                let room = self.count + changes.len();
                let (encoded, index) = msgpack::encode(meta, bytes, index.depth, kept, set, room);
                Self {
                    format: self.format,
                    count: index.entries.len(),
                    data_len: index.data_len,
                    body: Some(Arc::new(Body::written(encoded.into(), meta, index))),
                }
            }
        }
    }

    fn index(&self) -> &Index {
        static NONE: Index = Index::NONE;
        // What was not parsed was encoded, within the limits of the session it came from.
        let limits = Limits {
            bytes: usize::MAX,
            keys: usize::MAX - 1,
            depth: usize::MAX - 1,
        };
        let parsed = self.body.as_ref().map(|body| body.parsed(&limits));
        debug_assert!(!matches!(parsed, Some(Err(_))));
        parsed
            .and_then(Result::ok)
            .map_or(&NONE, |parsed| &parsed.index)
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        self.body.as_ref().map_or(&NONE, |body| body.bytes())
    }

    /// The bytes, to be shared with a store; `None` if there are none.
    #[cfg(feature = "memory")]
    pub(crate) fn body(&self) -> Option<&Arc<Body>> {
        self.body.as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The bytes of all keys and values, as they are written, without what goes around them.
    pub(crate) fn data_len(&self) -> usize {
        self.data_len
    }

    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        Some(self.find(key)?.of(self.bytes()))
    }

    /// The encoded value, which outlives the payload.
    pub(crate) fn get_owned(&self, key: &str) -> Option<Value> {
        let Span { start, end } = self.find(key)?;
        Some(Value::part(self.bytes(), start as usize..end as usize))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        let index = self.index();
        index.entries.iter().map(|entry| {
            (
                index.key_text(entry, self.bytes()),
                entry.value.of(self.bytes()),
            )
        })
    }

    /// The value of a key; the last, if another program has written it twice.
    fn find(&self, key: &str) -> Option<Span> {
        let index = self.index();
        let mut entries = index.entries.iter();
        let entry = entries.rfind(|entry| index.is_of(entry, key, self.bytes()));
        entry.map(|entry| entry.value)
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
