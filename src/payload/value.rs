//! One encoded value, and what it is written into.

use std::fmt;
use std::io;
use std::ops::Deref;

use bytes::Bytes;

/// As much as fits into a [`Value`] that has to have room for [`Bytes`] and a tag.
const SHORT: usize = 38;

/// An encoded value. Short ones, which most are, take no memory of their own, and copying them
/// touches no counter that other threads count with.
#[derive(Clone)]
pub(crate) enum Value {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Bytes),
}

impl Value {
    /// `None` if `text` is not short.
    fn short(text: &[u8]) -> Option<Self> {
        // Written where it is to stay: what was just written byte by byte is slow to move.
        let mut value = Some(Self::Short {
            len: text.len() as u8,
            bytes: [0; SHORT],
        });
        match &mut value {
            Some(Self::Short { bytes, .. }) if text.len() <= SHORT => {
                bytes[..text.len()].copy_from_slice(text);
                value
            }
            _ => None,
        }
    }

    /// `part` of `whole`, sharing its memory if that is worth it.
    pub(super) fn part(whole: &Bytes, part: std::ops::Range<usize>) -> Self {
        let text = whole.get(part.clone()).unwrap_or_default();
        Self::short(text).unwrap_or_else(|| Self::Long(whole.slice(part)))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::short(text.as_bytes()).unwrap_or_else(|| Self::Long(Bytes::from(text.to_owned())))
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.len())
    }
}

/// Where a value is written: in place while it is short.
pub(super) struct Buffer {
    len: usize,
    short: [u8; SHORT],
    long: Vec<u8>,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Self {
            len: 0,
            short: [0; SHORT],
            long: Vec::new(),
        }
    }

    pub(super) fn into_value(self) -> Value {
        if self.long.is_empty() {
            return Value::Short {
                len: self.len as u8,
                bytes: self.short,
            };
        }
        let mut long = self.long;
        // Room to spare would cost an allocation of its own to become `Bytes`.
        long.shrink_to_fit();
        Value::Long(long.into())
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.short.get(..self.len) {
            Some(short) if self.long.is_empty() => short,
            Some(_) | None => &self.long,
        }
    }
}

impl io::Write for Buffer {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.long.is_empty() {
            let end = self.len + text.len();
            if let Some(room) = self.short.get_mut(self.len..end) {
                room.copy_from_slice(text);
                self.len = end;
                return Ok(text.len());
            }
            self.long.reserve(128.max(end));
            let short = self.short.get(..self.len).unwrap_or_default();
            self.long.extend_from_slice(short);
        }
        self.long.extend_from_slice(text);
        Ok(text.len())
    }

    fn write_all(&mut self, text: &[u8]) -> io::Result<()> {
        self.write(text).map(drop)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_values_leave_no_room_unused() {
        assert_eq!(size_of::<Value>(), size_of::<Bytes>() + align_of::<Bytes>());
        assert_eq!(size_of::<Option<Value>>(), size_of::<Value>());
        assert_eq!(size_of::<Value>(), SHORT + 2);
    }

    proptest! {
        #[test]
        fn what_was_written_is_there_however_it_came(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..45), 0..4)) {
            let mut buffer = Buffer::new();
            for part in &parts {
                buffer.write_all(part).unwrap();
            }
            let whole = parts.concat();
            prop_assert_eq!(&buffer[..], &whole[..]);
            let value = buffer.into_value();
            prop_assert_eq!(&value[..], &whole[..]);
            prop_assert_eq!(matches!(value, Value::Short { .. }), whole.len() <= SHORT);
            let around = Bytes::from([b"<", &whole[..], b">"].concat());
            prop_assert_eq!(Value::part(&around, 1..around.len() - 1), value);
        }
    }
}
