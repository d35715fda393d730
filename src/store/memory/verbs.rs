//! What most requests do: no verb ever waits.

use std::sync::Arc;
use std::time::Duration;

use super::shard::Freed;
use super::{MemoryStore, READS_PER_VISIT, WRITES_PER_VISIT, full, removed, ticks};
use crate::payload::Body;
use crate::store::{
    CreateOutcome, NewRecord, Revision, SessionKey, SessionStore, StoreAtOnce, StoreError,
    UpdateOutcome, Version,
};

impl StoreAtOnce for MemoryStore {
    fn load_now(&self, key: &SessionKey) -> Result<Option<(Version, Arc<Body>)>, StoreError> {
        let shared = &*self.0;
        let now = shared.now();
        let mut shard = shared.enter(key, now, READS_PER_VISIT);
        Ok(shard.alive(key, now).map(|at| {
            let entry = shard.entry(at);
            let version = Version {
                revision: entry.revision,
                ttl: Duration::from_nanos(entry.expires - now),
                token: 0,
            };
            (version, Arc::clone(&entry.payload))
        }))
    }

    fn create_now(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.limits().check(new)?;
        let shared = &*self.0;
        // Copied before the lock is taken: what is done under it does not depend on the size.
        let payload = new.to_body();
        let size = payload.len();
        let mut tried = false;
        loop {
            let now = shared.now();
            {
                let mut shard = shared.enter(key, now, WRITES_PER_VISIT);
                if shard.alive(key, now).is_some() {
                    return Ok(CreateOutcome::Taken);
                }
                // One that has expired goes before the new one comes.
                shared.release(removed(shard.remove(key)));
                if shared.reserve(1, size) {
                    let expires = now.saturating_add(ticks(new.ttl()));
                    shard.insert(key, new.revision(), payload, expires);
                    return Ok(CreateOutcome::Created(0));
                }
            }
            if std::mem::replace(&mut tried, true) {
                return Err(full());
            }
            shared.make_room(1, size, now);
        }
    }

    fn update_now(
        &self,
        key: &SessionKey,
        seen: Revision,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.limits().check(new)?;
        let shared = &*self.0;
        let payload = new.to_body();
        let size = payload.len();
        let mut tried = false;
        loop {
            let now = shared.now();
            let growth;
            {
                let mut shard = shared.enter(key, now, WRITES_PER_VISIT);
                let Some(at) = shard.alive(key, now) else {
                    return Ok(UpdateOutcome::Gone);
                };
                let entry = shard.entry(at);
                if entry.revision != seen {
                    return Ok(UpdateOutcome::Conflict);
                }
                growth = size.saturating_sub(entry.payload.len());
                if shared.reserve(0, growth) {
                    let old = std::mem::replace(&mut entry.payload, payload);
                    entry.revision = new.revision();
                    shard.renew(at, now.saturating_add(ticks(new.ttl())));
                    shared.release(Freed {
                        records: 0,
                        bytes: old.len().saturating_sub(size),
                    });
                    drop(shard);
                    return Ok(UpdateOutcome::Updated(0));
                }
            }
            if std::mem::replace(&mut tried, true) {
                return Err(full());
            }
            shared.make_room(0, growth, now);
        }
    }
}
