//! The bytes of a payload, and what parsing has found in them.

use std::sync::OnceLock;

use bytes::Bytes;

use super::index::{Index, MAX_LEN};
use super::meta::{Head, Meta};
use super::{Format, Limits, Malformed, json, msgpack};

/// Bytes that are parsed once, for all who share them: requests, and a store in the same process.
pub(crate) struct Body {
    bytes: Bytes,
    parsed: OnceLock<Parsed>,
}

pub(super) struct Parsed {
    pub(super) format: Format,
    pub(super) head: Head,
    pub(super) index: Index,
}

impl Body {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            parsed: OnceLock::new(),
        }
    }

    /// The same for one who wants to know at once what is in it.
    pub(super) fn parse(bytes: Bytes, limits: &Limits) -> Result<Self, Malformed> {
        let parsed = Parsed::of(&bytes, limits)?;
        Ok(Self {
            bytes,
            parsed: parsed.into(),
        })
    }

    /// The same for one who has just written them, and knows where.
    pub(super) fn written(bytes: Bytes, meta: &Meta, index: Index) -> Self {
        let parsed = Parsed {
            format: Format::MessagePack,
            head: Head::Live(meta.clone()),
            index,
        };
        Self {
            bytes,
            parsed: parsed.into(),
        }
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    #[cfg(feature = "memory")]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn parsed(&self, limits: &Limits) -> Result<&Parsed, Malformed> {
        if let Some(parsed) = self.parsed.get() {
            // Whoever has parsed it may have had other limits, and whoever has written it only knows how
            // deep it is nested at most.
            if limits.admit(self.bytes.len(), &parsed.index).is_err() {
                Parsed::of(&self.bytes, limits)?;
            }
            return Ok(parsed);
        }
        let parsed = Parsed::of(&self.bytes, limits)?;
        Ok(self.parsed.get_or_init(|| parsed))
    }
}

impl Parsed {
    fn of(bytes: &[u8], limits: &Limits) -> Result<Self, Malformed> {
        if bytes.len() > limits.bytes || bytes.len() >= MAX_LEN {
            return Err(Malformed::TOO_LARGE);
        }
        let (format, (head, index)) = match bytes.first() {
            Some(b'{') => (Format::Json, json::index(bytes, limits)?),
            Some(0x80..=0x8f | 0xde | 0xdf) => {
                (Format::MessagePack, msgpack::index(bytes, limits)?)
            }
            Some(_) => return Err(Malformed("not a map")),
            None => return Err(Malformed("empty")),
        };
        limits.admit(bytes.len(), &index)?;
        Ok(Self {
            format,
            head: head.unwrap_or(Head::Live(Meta::default())),
            index,
        })
    }
}

impl Malformed {
    pub(super) const TOO_LARGE: Self = Self("larger than allowed");
    pub(super) const TOO_DEEP: Self = Self("nested deeper than allowed");
    pub(super) const TOO_MANY: Self = Self("more keys than allowed");
}

impl Limits {
    fn admit(&self, len: usize, index: &Index) -> Result<(), Malformed> {
        if len > self.bytes {
            return Err(Malformed::TOO_LARGE);
        }
        if index.entries.len() > self.keys {
            return Err(Malformed::TOO_MANY);
        }
        if index.depth > self.depth {
            return Err(Malformed::TOO_DEEP);
        }
        Ok(())
    }
}
