//! `MemoryStore`: sessions in this process.

mod scan;
mod shard;
mod verbs;

use std::cell::Cell;
use std::fmt;
use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use self::shard::{Freed, KeyHashing, Shard, Tick};
use super::{
    CreateOutcome, NewRecord, Record, SessionKey, SessionStore, StoreAtOnce, StoreError,
    StoreErrorKind, StoreLimits, TouchOutcome, UpdateOutcome,
};
use crate::payload::Body;

/// How many records a shard is meant to hold: what one lock protects, and what a growing table copies
/// at once.
const RECORDS_PER_SHARD: usize = 2048;
const LEAST_SHARDS: usize = 64;
const MOST_SHARDS: usize = 1 << 16;

/// How many due records an operation looks at in its own shard.
const STEPS: usize = 2;

/// One operation in so many looks into another shard, too, and at so many records there. With `STEPS`
/// that is more than the one record which a `create` adds, so that what expires cannot pile up.
const WRITES_PER_VISIT: usize = 4;
const READS_PER_VISIT: usize = 16;
const VISIT_STEPS: usize = 8;

/// How much is done to make room in a full store: so many shards, so many records in each.
const ROOM_SHARDS: usize = 64;
const ROOM_STEPS: usize = 16;

/// How many records `delete_expired` looks at before it lets others have the shard.
const PURGE_STEPS: usize = 64;

/// Sessions in the memory of this process: for one process, and for tests.
///
/// What is in it is gone when the process ends, and no other process sees it. Clones share the data.
/// A `load` takes one short lock on a small part of the store and copies nothing.
///
/// # Bounds
///
/// A store never holds more than [`with_max_records`](Self::with_max_records) records (default
/// 100,000), nor more than [`with_max_bytes`](Self::with_max_bytes) bytes of payload (default
/// 256 MiB), nor a payload larger than [`with_max_payload`](Self::with_max_payload) (default 1 MiB).
/// Beside its payload a record takes about 0.4 KiB, and 20 bytes for each key of the session: where
/// its values are is found once and kept.
///
/// A full store refuses new sessions, and updates that would make one larger, with
/// [`StoreErrorKind::Unavailable`]; it never drops a live session to make room. What has expired is
/// dropped first.
///
/// # Expiry
///
/// Expired records are freed without a background task: every operation, reads included, looks at a
/// few of those that are due, and no operation looks at more than a few. An idle store frees nothing
/// until it is used again. [`delete_expired`](SessionStore::delete_expired) frees them at once.
///
/// Time is tokio's, so that tests with a paused clock need not wait.
///
/// # Examples
///
/// ```
/// use session_layer::store::MemoryStore;
///
/// let store = MemoryStore::new().with_max_records(10_000);
/// assert!(store.is_empty());
/// ```
#[derive(Clone)]
pub struct MemoryStore(Arc<Shared>);

struct Shared {
    shards: Box<[Aligned<Mutex<Shard>>]>,
    hashing: KeyHashing,
    start: Instant,
    bounds: Bounds,
    used: Aligned<Used>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    records: usize,
    bytes: usize,
    payload: usize,
}

/// Written by `create`, `update` and `delete` only, never by a read that frees nothing.
struct Used {
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// The shard to make room in next.
    turn: AtomicUsize,
}

/// Apart from its neighbours, so that threads do not slow each other down by cache line.
#[repr(align(128))]
struct Aligned<T>(T);

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store with the default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::with_bounds(Bounds {
            records: 100_000,
            bytes: 256 << 20,
            payload: 1 << 20,
        })
    }

    /// Holds at most `records` records. Default: 100,000. A bound costs nothing until it is used,
    /// apart from 64 bytes or so for every thousand records.
    ///
    /// Bounds are set before the store is used: what comes back is an empty store of its own.
    #[must_use]
    pub fn with_max_records(self, records: usize) -> Self {
        Self::with_bounds(Bounds {
            records,
            ..self.0.bounds
        })
    }

    /// Holds at most `bytes` bytes of payload, all records together. Default: 256 MiB.
    ///
    /// Bounds are set before the store is used: what comes back is an empty store of its own.
    #[must_use]
    pub fn with_max_bytes(self, bytes: usize) -> Self {
        Self::with_bounds(Bounds {
            bytes,
            ..self.0.bounds
        })
    }

    /// Holds no payload of more than `bytes` bytes. Default: 1 MiB.
    ///
    /// Bounds are set before the store is used: what comes back is an empty store of its own.
    #[must_use]
    pub fn with_max_payload(self, bytes: usize) -> Self {
        Self::with_bounds(Bounds {
            payload: bytes,
            ..self.0.bounds
        })
    }

    fn with_bounds(bounds: Bounds) -> Self {
        let hashing = KeyHashing {
            seed: rand::rng().next_u64(),
        };
        let shards = (bounds.records / RECORDS_PER_SHARD)
            .clamp(LEAST_SHARDS, MOST_SHARDS)
            .next_power_of_two();
        Self(Arc::new(Shared {
            shards: (0..shards)
                .map(|_| Aligned(Mutex::new(Shard::new(hashing))))
                .collect(),
            hashing,
            start: Instant::now(),
            bounds,
            used: Aligned(Used {
                records: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                turn: AtomicUsize::new(0),
            }),
        }))
    }

    /// How many records are held, expired ones that are not freed yet included. Costs nothing.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.used.0.records.load(Ordering::Relaxed)
    }

    /// Whether no record is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes of payload are held, expired ones that are not freed yet included. Costs
    /// nothing.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.0.used.0.bytes.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("records", &self.len())
            .field("payload_bytes", &self.payload_bytes())
            .field("max_records", &self.0.bounds.records)
            .field("max_bytes", &self.0.bounds.bytes)
            .field("max_payload", &self.0.bounds.payload)
            .finish()
    }
}

impl Shared {
    fn now(&self) -> Tick {
        ticks(self.start.elapsed())
    }

    fn home(&self, key: &SessionKey) -> usize {
        // Bits that the table in the shard uses neither for its buckets nor for its tags.
        (self.hashing.hash_one(key) >> 40) as usize & (self.shards.len() - 1)
    }

    fn lock(&self, home: usize) -> MutexGuard<'_, Shard> {
        // No verb panics while it holds the lock, save for want of memory, which ends the process.
        self.shards[home]
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the shard of `key`, after freeing a little in it and, once in `per_visit` operations, a
    /// little in another.
    fn enter(&self, key: &SessionKey, now: Tick, per_visit: usize) -> MutexGuard<'_, Shard> {
        let home = self.home(key);
        let turn = TURN.get().wrapping_add(1);
        TURN.set(turn);
        if turn.is_multiple_of(per_visit) {
            let away = home.wrapping_add(turn / per_visit) & (self.shards.len() - 1);
            // Whoever has a busy shard locked is freeing there.
            if let Ok(mut other) = self.shards[away].0.try_lock() {
                self.release(other.reap(now, VISIT_STEPS));
            }
        }
        let mut shard = self.lock(home);
        self.release(shard.reap(now, STEPS));
        shard
    }

    /// Takes room for `records` and `bytes`, if there is.
    fn reserve(&self, records: usize, bytes: usize) -> bool {
        if !add_within(&self.used.0.records, records, self.bounds.records) {
            return false;
        }
        if !add_within(&self.used.0.bytes, bytes, self.bounds.bytes) {
            self.used.0.records.fetch_sub(records, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn release(&self, freed: Freed) {
        if freed.records > 0 {
            self.used
                .0
                .records
                .fetch_sub(freed.records, Ordering::Relaxed);
        }
        if freed.bytes > 0 {
            self.used.0.bytes.fetch_sub(freed.bytes, Ordering::Relaxed);
        }
    }

    fn has_room(&self, records: usize, bytes: usize) -> bool {
        let fits = |used: &AtomicUsize, more: usize, most: usize| {
            used.load(Ordering::Relaxed).saturating_add(more) <= most
        };
        fits(&self.used.0.records, records, self.bounds.records)
            && fits(&self.used.0.bytes, bytes, self.bounds.bytes)
    }

    /// Frees what has expired, until there is room or enough was done. The next call goes on where
    /// this one stopped.
    fn make_room(&self, records: usize, bytes: usize, now: Tick) {
        for _ in 0..self.shards.len().min(ROOM_SHARDS) {
            let turn = self.used.0.turn.fetch_add(1, Ordering::Relaxed);
            let freed = self
                .lock(turn & (self.shards.len() - 1))
                .reap(now, ROOM_STEPS);
            self.release(freed);
            if self.has_room(records, bytes) {
                return;
            }
        }
    }
}

thread_local! {
    /// Counts this thread's operations: whose turn it is to be looked after. Not a counter of the
    /// store, which all threads would have to write.
    static TURN: Cell<usize> = const { Cell::new(0) };
}

fn ticks(duration: Duration) -> Tick {
    Tick::try_from(duration.as_nanos()).unwrap_or(Tick::MAX)
}

/// Adds `more` unless the sum is above `most`.
fn add_within(used: &AtomicUsize, more: usize, most: usize) -> bool {
    more == 0
        || used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|sum| *sum <= most)
            })
            .is_ok()
}

fn removed(payload: Option<Arc<Body>>) -> Freed {
    payload.map_or(Freed::default(), |payload| Freed {
        records: 1,
        bytes: payload.len(),
    })
}

fn full() -> StoreError {
    StoreError::new(
        StoreErrorKind::Unavailable,
        "memory store is full of live sessions; raise its bounds or shorten their lifetime",
    )
}

impl SessionStore for MemoryStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let found = self.load_now(key)?;
        Ok(found.map(|(version, body)| version.with_payload(body.bytes().clone())))
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.create_now(key, new)
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.update_now(key, seen.revision(), new)
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let shared = &*self.0;
        let now = shared.now();
        let mut shard = shared.enter(key, now, WRITES_PER_VISIT);
        Ok(match shard.alive(key, now) {
            None => TouchOutcome::Gone,
            Some(at) if shard.entry(at).revision != seen.revision() => TouchOutcome::Conflict,
            Some(at) => {
                shard.renew(at, now.saturating_add(ticks(ttl)));
                TouchOutcome::Touched(0)
            }
        })
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let shared = &*self.0;
        let now = shared.now();
        let payload = shared.enter(key, now, WRITES_PER_VISIT).remove(key);
        shared.release(removed(payload));
        Ok(())
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        let shared = &*self.0;
        let now = shared.now();
        let mut left = limit.get();
        for home in 0..shared.shards.len() {
            loop {
                let steps = left.min(PURGE_STEPS);
                let (freed, more) = {
                    let mut shard = shared.lock(home);
                    (shard.reap(now, steps), shard.has_due(now))
                };
                shared.release(freed);
                left -= freed.records;
                if left == 0 {
                    return Ok(limit.get() as u64);
                }
                if !more {
                    break;
                }
            }
        }
        Ok((limit.get() - left) as u64)
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits::new(self.0.bounds.payload.min(self.0.bounds.bytes))
    }
}

#[cfg(test)]
mod tests;
