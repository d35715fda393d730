//! A session store of your own: a map behind a lock, in about 40 lines, and the run of the contract
//! that says whether it keeps the promises.
//!
//! ```text
//! cargo run --example custom_store
//! cargo test --example custom_store --features conformance
//! ```

use std::collections::{HashMap, hash_map::Entry};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::{Router, body::Body, http::Request, routing::get};
use session_layer::store::{
    CreateOutcome as Create, NewRecord as New, Record, Revision, SessionKey as Key, SessionStore,
    StoreError, StoreLimits, TouchOutcome as Touch, UpdateOutcome as Update,
};
use session_layer::{Session, SessionError, SessionLayer, SigningKeys};
use tower::ServiceExt;

type Answer<T> = Result<T, StoreError>;
type Row = (Revision, Vec<u8>, Instant);

#[derive(Clone, Default)]
struct MapStore(Arc<Mutex<HashMap<Key, Row>>>);

impl MapStore {
    /// All rows that have not expired. (A store for more than a few sessions would not look at all
    /// of them each time.)
    fn rows(&self) -> MutexGuard<'_, HashMap<Key, Row>> {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.retain(|_, (_, _, expires)| *expires > Instant::now());
        rows
    }
}

fn row(new: &New<'_>) -> Row {
    let expires = Instant::now() + new.ttl();
    (new.revision(), new.payload().to_vec(), expires)
}

impl SessionStore for MapStore {
    async fn load(&self, key: &Key) -> Answer<Option<Record>> {
        Ok(self.rows().get(key).map(|(revision, payload, expires)| {
            let left = expires.saturating_duration_since(Instant::now());
            Record::new(*revision, payload.clone().into(), left)
        }))
    }

    async fn create(&self, key: &Key, new: &New<'_>) -> Answer<Create> {
        self.limits().check(new)?;
        Ok(match self.rows().entry(*key) {
            Entry::Occupied(_) => Create::Taken,
            Entry::Vacant(free) => {
                free.insert(row(new));
                Create::Created(0)
            }
        })
    }

    async fn update(&self, key: &Key, seen: &Record, new: &New<'_>) -> Answer<Update> {
        self.limits().check(new)?;
        Ok(match self.rows().get_mut(key) {
            None => Update::Gone,
            Some((revision, ..)) if *revision != seen.revision() => Update::Conflict,
            Some(old) => {
                *old = row(new);
                Update::Updated(0)
            }
        })
    }

    async fn touch(&self, key: &Key, seen: &Record, ttl: Duration) -> Answer<Touch> {
        Ok(match self.rows().get_mut(key) {
            None => Touch::Gone,
            Some((revision, ..)) if *revision != seen.revision() => Touch::Conflict,
            Some((_, _, expires)) => {
                *expires = Instant::now() + ttl;
                Touch::Touched(0)
            }
        })
    }

    async fn delete(&self, key: &Key) -> Answer<()> {
        self.rows().remove(key);
        Ok(())
    }

    async fn delete_expired(&self, _: NonZeroUsize) -> Answer<u64> {
        Ok(0) // Every call does this already.
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits::new(1 << 20).with_own_expiry(true)
    }
}

/// Says nothing of what the store holds: payloads belong in no log.
impl std::fmt::Debug for MapStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MapStore")
    }
}

async fn visits(session: Session) -> Result<String, SessionError> {
    let visits = session.update("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
    Ok(format!("visit {visits}"))
}

/// Three requests of one browser.
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layer = SessionLayer::new(MapStore::default(), SigningKeys::generate()?);
    let app = Router::new().route("/", get(visits)).layer(layer);
    let mut cookie = String::new();
    for _ in 0..3 {
        let request = Request::get("/").header("cookie", &cookie);
        let response = app.clone().oneshot(request.body(Body::empty())?).await?;
        if let Some(set) = response.headers().get("set-cookie") {
            let value = set.to_str()?.split(';').next();
            cookie = value.unwrap_or_default().to_owned();
        }
        let body = axum::body::to_bytes(response.into_body(), 1024).await?;
        println!("{}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

#[cfg(all(test, feature = "conformance"))]
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
            Purge::ByItself
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
