//! A session store of your own: a map behind a lock, in about 40 lines, and the run of the contract
//! that says whether it keeps the promises.
//!
//! ```text
//! cargo run --example custom_store --features conformance
//! cargo test --example custom_store --features conformance
//! ```

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use session_layer::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, StoreError,
    StoreErrorKind, StoreLimits, TouchOutcome, UpdateOutcome,
};

#[derive(Debug, Clone, Default)]
struct MapStore(Arc<Mutex<Map>>);

#[derive(Default)]
struct Map(HashMap<SessionKey, (Revision, Vec<u8>, Instant)>);

impl SessionStore for MapStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        Ok(self.lock()?.alive(key).map(|(revision, payload, expires)| {
            let left = expires.saturating_duration_since(Instant::now());
            Record::new(*revision, payload.clone().into(), left)
        }))
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.limits().check(new)?;
        let mut map = self.lock()?;
        if map.alive(key).is_some() {
            return Ok(CreateOutcome::Taken);
        }
        map.0.insert(*key, row(new));
        Ok(CreateOutcome::Created(0))
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.limits().check(new)?;
        Ok(match self.lock()?.alive(key) {
            None => UpdateOutcome::Gone,
            Some((revision, ..)) if *revision != seen.revision() => UpdateOutcome::Conflict,
            Some(old) => {
                *old = row(new);
                UpdateOutcome::Updated(0)
            }
        })
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        Ok(match self.lock()?.alive(key) {
            None => TouchOutcome::Gone,
            Some((revision, ..)) if *revision != seen.revision() => TouchOutcome::Conflict,
            Some((_, _, expires)) => {
                *expires = Instant::now() + ttl;
                TouchOutcome::Touched(0)
            }
        })
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.lock()?.0.remove(key);
        Ok(())
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        let mut map = self.lock()?;
        let now = Instant::now();
        let expired = map.0.extract_if(|_, (_, _, expires)| *expires <= now);
        Ok(expired.take(limit.get()).count() as u64)
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits::new(1 << 20)
    }
}

impl MapStore {
    fn lock(&self) -> Result<MutexGuard<'_, Map>, StoreError> {
        let poisoned = |_| StoreError::new(StoreErrorKind::Other, "a thread panicked");
        self.0.lock().map_err(poisoned)
    }
}

impl Map {
    fn alive(&mut self, key: &SessionKey) -> Option<&mut (Revision, Vec<u8>, Instant)> {
        let found = self.0.get_mut(key);
        found.filter(|(_, _, expires)| *expires > Instant::now())
    }
}

/// Says nothing of what it holds: payloads belong in no log.
impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} records", self.0.len())
    }
}

fn row(new: &NewRecord<'_>) -> (Revision, Vec<u8>, Instant) {
    let expires = Instant::now() + new.ttl();
    (new.revision(), new.payload().to_vec(), expires)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = MapStore::default();
    let key: SessionKey = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ".parse()?;
    let hour = Duration::from_secs(3600);

    let first = NewRecord::new(Revision::generate(), b"hello", hour);
    println!("create: {:?}", store.create(&key, &first).await?);
    let seen = store.load(&key).await?.ok_or("nothing was stored")?;
    println!("load:   {:?}, {seen:?}", seen.payload());

    let second = NewRecord::new(Revision::generate(), b"hello again", hour);
    println!("update: {:?}", store.update(&key, &seen, &second).await?);
    // The record is no longer the one that was seen.
    let late = NewRecord::new(Revision::generate(), b"too late", hour);
    println!("update: {:?}", store.update(&key, &seen, &late).await?);

    store.delete(&key).await?;
    println!("update: {:?}", store.update(&key, &seen, &late).await?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use session_layer::conformance::{Fixture, Purge};

    use super::*;

    struct Maps {
        store: MapStore,
        other: MapStore,
    }

    impl Fixture for Maps {
        type Store = MapStore;

        fn store(&self) -> MapStore {
            self.store.clone()
        }

        // This store has no namespaces: the other one is independent.
        fn other_namespace(&self) -> MapStore {
            self.other.clone()
        }

        fn purge(&self) -> Purge {
            Purge::OnDemand {
                margin: Duration::ZERO,
            }
        }
    }

    async fn fixture() -> Maps {
        Maps {
            store: MapStore::default(),
            other: MapStore::default(),
        }
    }

    session_layer::conformance!(fixture);
}
