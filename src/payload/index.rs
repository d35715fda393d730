//! Where the entries of a payload are.

use super::json;

/// Where the entries are.
pub(super) struct Index {
    pub(super) entries: Vec<Entry>,
    /// Keys that the payload spells with escapes, as JSON may.
    unescaped: Vec<Box<str>>,
    /// The bytes of all keys and values, as they are written, without what goes around them.
    pub(super) data_len: usize,
    /// At most how deep values are nested: 0 if all are scalars.
    pub(super) depth: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where the key begins, with what goes before it; only in MessagePack.
    pub(super) start: u32,
    /// Or a position in `Index::unescaped`, if it ends at `UNESCAPED`.
    key: Span,
    pub(super) value: Span,
}

const UNESCAPED: u32 = u32::MAX;

/// A payload is shorter than this.
pub(super) const MAX_LEN: usize = UNESCAPED as usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    /// Both ends lie within a payload that is shorter than `MAX_LEN`.
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    pub(super) fn len(self) -> usize {
        self.end.wrapping_sub(self.start) as usize
    }

    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }
}

impl Entry {
    /// All of it, in MessagePack.
    pub(super) fn whole(&self) -> Span {
        Span {
            start: self.start,
            end: self.value.end,
        }
    }

    /// The same entry once it begins at `at`; only in MessagePack.
    pub(super) fn moved(&self, at: usize) -> Self {
        let by = (at as u32).wrapping_sub(self.start);
        let span = |span: Span| Span {
            start: span.start.wrapping_add(by),
            end: span.end.wrapping_add(by),
        };
        Self {
            start: at as u32,
            key: span(self.key),
            value: span(self.value),
        }
    }
}

impl Index {
    /// Of nothing.
    pub(super) const NONE: Self = Self {
        entries: Vec::new(),
        unescaped: Vec::new(),
        data_len: 0,
        depth: 0,
    };

    /// Of nothing yet, with room for so many entries.
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self {
            entries: Vec::with_capacity(entries),
            ..Self::NONE
        }
    }

    pub(super) fn push(&mut self, start: usize, key: Span, value: Span) {
        self.push_entry(Entry {
            start: start as u32,
            key,
            value,
        });
    }

    pub(super) fn push_entry(&mut self, entry: Entry) {
        self.data_len += entry.key.len() + entry.value.len();
        self.entries.push(entry);
    }

    pub(super) fn push_unescaped(&mut self, key: &str, value: Span) {
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

    pub(super) fn is_of(&self, entry: &Entry, key: &str, bytes: &[u8]) -> bool {
        // Most keys differ in length.
        let may_be = entry.key.end == UNESCAPED || entry.key.len() == key.len();
        may_be && self.key(entry, bytes) == key.as_bytes()
    }

    pub(super) fn key_text<'a>(&'a self, entry: &Entry, bytes: &'a [u8]) -> &'a str {
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
