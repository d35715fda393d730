//! One shard of the memory store: a table of records, and the order in which they fall due.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;

use crate::store::{Revision, SessionKey};

/// Nanoseconds since the store was made. Its end, 584 years later, stands for "never".
pub(super) type Tick = u64;

pub(super) struct Entry {
    pub(super) revision: Revision,
    pub(super) payload: Bytes,
    pub(super) expires: Tick,
    /// When the schedule looks at this record: never later than `expires`. A renewal does not move
    /// it, so that a touch costs no search; whoever finds it due moves it then.
    due: Tick,
}

/// What a removal gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

pub(super) struct Shard {
    table: HashMap<SessionKey, Entry, KeyHashing>,
    /// Exactly one element for each record. A set, not a heap: what is deleted leaves it at once, so
    /// that logins and logouts leave nothing behind for the length of a lifetime.
    schedule: BTreeSet<(Tick, SessionKey)>,
}

impl Shard {
    pub(super) fn new(hashing: KeyHashing) -> Self {
        Self {
            table: HashMap::with_hasher(hashing),
            schedule: BTreeSet::new(),
        }
    }

    /// The record under `key` if it is alive.
    pub(super) fn alive(&mut self, key: &SessionKey, now: Tick) -> Option<&mut Entry> {
        self.table.get_mut(key).filter(|entry| entry.expires > now)
    }

    /// Writes a record where none is.
    pub(super) fn insert(
        &mut self,
        key: &SessionKey,
        revision: Revision,
        payload: Bytes,
        expires: Tick,
    ) {
        let entry = Entry {
            revision,
            payload,
            expires,
            due: expires,
        };
        if let Some(old) = self.table.insert(*key, entry) {
            self.schedule.remove(&(old.due, *key));
        }
        self.schedule.insert((expires, *key));
    }

    /// Sets the expiry of the record under `key`.
    pub(super) fn renew(&mut self, key: &SessionKey, expires: Tick) {
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
        entry.expires = expires;
        if expires < entry.due {
            self.schedule.remove(&(entry.due, *key));
            self.schedule.insert((expires, *key));
            entry.due = expires;
        }
    }

    /// Removes the record under `key`, alive or not.
    pub(super) fn remove(&mut self, key: &SessionKey) -> Option<Bytes> {
        let entry = self.table.remove(key)?;
        self.schedule.remove(&(entry.due, *key));
        self.shrink();
        Some(entry.payload)
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
            if !self.has_due(now) {
                break;
            }
            let Some((_, key)) = self.schedule.pop_first() else {
                break;
            };
            match self.table.get_mut(&key) {
                Some(entry) if entry.expires > now => {
                    entry.due = entry.expires;
                    self.schedule.insert((entry.due, key));
                }
                Some(entry) => {
                    freed.records += 1;
                    freed.bytes += entry.payload.len();
                    self.table.remove(&key);
                    self.shrink();
                }
                None => {}
            }
        }
        freed
    }

    /// Gives memory back once seven eighths of the table are empty. A shard holds some two thousand
    /// records at most, so that the pause is short however large the store is.
    fn shrink(&mut self) {
        let spare = self.table.capacity();
        if spare >= 64 && self.table.len() < spare / 8 {
            self.table.shrink_to(2 * self.table.len());
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
