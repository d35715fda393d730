//! One shard of the memory store: a table of records, and the order in which they fall due.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use crate::payload::Body;
use crate::store::{Revision, SessionKey};

/// Nanoseconds since the store was made. Its end, 584 years later, stands for "never".
pub(super) type Tick = u64;

pub(super) struct Entry {
    key: SessionKey,
    pub(super) revision: Revision,
    pub(super) payload: Arc<Body>,
    pub(super) expires: Tick,
    /// Where the schedule has this record.
    place: usize,
}

/// What a removal gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

pub(super) struct Shard {
    /// Where in `entries` the record of a key is.
    table: HashMap<SessionKey, usize, KeyHashing>,
    entries: Vec<Entry>,
    /// When a record is to be looked at, never later than it expires, and where in `entries` it is.
    /// A heap: the next is at the top. A renewal leaves it as it is, so that a touch costs no search;
    /// whoever finds the record due moves it then. Records know their places, so that what is deleted
    /// leaves at once: logins and logouts leave nothing behind for the length of a lifetime.
    schedule: Vec<(Tick, usize)>,
}

impl Shard {
    pub(super) fn new(hashing: KeyHashing) -> Self {
        Self {
            table: HashMap::with_hasher(hashing),
            entries: Vec::new(),
            schedule: Vec::new(),
        }
    }

    /// Where the record under `key` is, if it is alive.
    pub(super) fn alive(&self, key: &SessionKey, now: Tick) -> Option<usize> {
        let at = *self.table.get(key)?;
        (self.entries[at].expires > now).then_some(at)
    }

    pub(super) fn entry(&mut self, at: usize) -> &mut Entry {
        &mut self.entries[at]
    }

    /// Writes a record where none is.
    pub(super) fn insert(
        &mut self,
        key: &SessionKey,
        revision: Revision,
        payload: Arc<Body>,
        expires: Tick,
    ) {
        let (at, place) = (self.entries.len(), self.schedule.len());
        let before = self.table.insert(*key, at);
        debug_assert!(before.is_none());
        self.entries.push(Entry {
            key: *key,
            revision,
            payload,
            expires,
            place,
        });
        self.schedule.push((expires, at));
        self.rise(place);
    }

    /// Sets the expiry of a record.
    pub(super) fn renew(&mut self, at: usize, expires: Tick) {
        let entry = &mut self.entries[at];
        entry.expires = expires;
        let place = entry.place;
        if expires < self.schedule[place].0 {
            self.schedule[place].0 = expires;
            self.rise(place);
        }
    }

    /// Removes the record under `key`, alive or not.
    pub(super) fn remove(&mut self, key: &SessionKey) -> Option<Arc<Body>> {
        let at = self.table.remove(key)?;
        Some(self.remove_at(at))
    }

    /// Removes what the table no longer knows.
    fn remove_at(&mut self, at: usize) -> Arc<Body> {
        let removed = self.entries.swap_remove(at);
        if let Some(moved) = self.entries.get(at) {
            self.schedule[moved.place].1 = at;
            if let Some(moved_at) = self.table.get_mut(&moved.key) {
                *moved_at = at;
            }
        }
        let place = removed.place;
        self.schedule.swap_remove(place);
        if let Some((_, moved)) = self.schedule.get(place) {
            self.entries[*moved].place = place;
            self.sink(place);
            self.rise(place);
        }
        self.shrink();
        removed.payload
    }

    /// Moves an element of the schedule up to where it belongs.
    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let above = (place - 1) / 2;
            if self.schedule[above].0 <= self.schedule[place].0 {
                return;
            }
            self.swap(above, place);
            place = above;
        }
    }

    /// Moves an element of the schedule down to where it belongs.
    fn sink(&mut self, mut place: usize) {
        loop {
            let below = [2 * place + 1, 2 * place + 2].into_iter();
            let below = below.filter(|below| *below < self.schedule.len());
            let Some(first) = below.min_by_key(|below| self.schedule[*below].0) else {
                return;
            };
            if self.schedule[place].0 <= self.schedule[first].0 {
                return;
            }
            self.swap(place, first);
            place = first;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.schedule.swap(a, b);
        for place in [a, b] {
            let (_, at) = self.schedule[place];
            self.entries[at].place = place;
        }
    }

    /// The keys of all records, alive or not.
    pub(super) fn keys(&self) -> Vec<SessionKey> {
        self.table.keys().copied().collect()
    }

    /// Whether there is something for `reap` to look at.
    pub(super) fn has_due(&self, now: Tick) -> bool {
        self.schedule.first().is_some_and(|(due, _)| *due <= now)
    }

    /// Looks at up to `steps` records that are due, and frees those that have expired.
    pub(super) fn reap(&mut self, now: Tick, steps: usize) -> Freed {
        let mut freed = Freed::default();
        for _ in 0..steps {
            let Some((due, at)) = self.schedule.first_mut().filter(|(due, _)| *due <= now) else {
                break;
            };
            let entry = &self.entries[*at];
            if entry.expires > now {
                *due = entry.expires;
                self.sink(0);
                continue;
            }
            let key = entry.key;
            freed.records += 1;
            freed.bytes += entry.payload.len();
            self.remove(&key);
        }
        freed
    }

    /// Gives memory back once seven eighths of the table are empty. A shard holds some two thousand
    /// records at most, so that the pause is short however large the store is.
    fn shrink(&mut self) {
        let spare = self.table.capacity();
        if spare >= 64 && self.table.len() < spare / 8 {
            let kept = 2 * self.table.len();
            self.table.shrink_to(kept);
            self.entries.shrink_to(kept);
            self.schedule.shrink_to(kept);
        }
    }

    #[cfg(test)]
    pub(super) fn assert_sound(&self) {
        assert_eq!(self.table.len(), self.entries.len());
        assert_eq!(self.table.len(), self.schedule.len());
        for (at, entry) in self.entries.iter().enumerate() {
            assert_eq!(self.table.get(&entry.key), Some(&at));
            let (due, of) = self.schedule[entry.place];
            assert_eq!(of, at);
            assert!(due <= entry.expires);
            assert!(entry.place == 0 || self.schedule[(entry.place - 1) / 2].0 <= due);
        }
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.table.len(), self.schedule.len(), self.table.capacity())
    }
}

/// Keys are the text of a SHA-256, so 16 of their characters are 96 bits that are already random: one
/// multiplication folds them. The seed keeps the layout of the table from being predicted.
#[derive(Clone, Copy)]
pub(super) struct KeyHashing {
    pub(super) seed: u64,
}

impl BuildHasher for KeyHashing {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.seed)
    }
}

pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some((&low, rest)) = bytes.split_first_chunk::<8>()
            && let Some((&high, _)) = rest.split_first_chunk::<8>()
        {
            let low = u128::from(u64::from_le_bytes(low) ^ self.0);
            let high = u128::from(u64::from_le_bytes(high) ^ 0x9E37_79B9_7F4A_7C15);
            let product = low * high;
            self.0 = product as u64 ^ (product >> 64) as u64;
        }
    }

    // The length that precedes the bytes of an array: the same for every key.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
