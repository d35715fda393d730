//! `RedisStore`: the contract on each topology, two processes, and what only Redis can do wrong.
//!
//! The servers are the tests' own. `tests/run` installs them.
#![cfg(unix)]

#[path = "../support/apps.rs"]
mod apps;
#[path = "../support/drills.rs"]
mod drills;
#[path = "../support/server.rs"]
mod server;
#[path = "../support/mod.rs"]
mod support;

mod clustered;
mod failures;
mod permissions;
mod sentinels;
mod servers;
mod tls;
mod together;
mod verbs;

use std::time::Duration;

use servers::{SHARED, SHARED_CLUSTER, SHARED_WATCHED, prefix, url};
use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    NewRecord, Record, RedisStore, Revision, SessionKey, SessionStore, StoreError, StoreErrorKind,
};

const HOUR: Duration = Duration::from_secs(3600);

fn key(number: u64) -> SessionKey {
    format!("{number:043}").parse().unwrap()
}

fn new(payload: &[u8]) -> NewRecord<'_> {
    NewRecord::new(Revision::generate(), payload, HOUR)
}

async fn put(store: &RedisStore, number: u64, payload: &[u8]) -> Record {
    store.create(&key(number), &new(payload)).await.unwrap();
    get(store, number).await
}

async fn get(store: &RedisStore, number: u64) -> Record {
    store.load(&key(number)).await.unwrap().expect("no record")
}

fn kind<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> StoreErrorKind {
    answer.unwrap_err().kind()
}

fn with_prefix(url: &str, prefix: &str) -> RedisStore {
    let builder = RedisStore::builder(url).with_prefix(prefix);
    // A busy machine with unoptimised code is not what most tests are about.
    builder
        .with_timeout(Duration::from_secs(30))
        .build()
        .unwrap()
}

struct Prefixes {
    store: RedisStore,
    other: RedisStore,
}

impl Prefixes {
    fn at(url: &str) -> Self {
        Self {
            store: with_prefix(url, &prefix()),
            other: with_prefix(url, &prefix()),
        }
    }
}

impl Fixture for Prefixes {
    type Store = RedisStore;

    fn store(&self) -> RedisStore {
        self.store.clone()
    }

    fn other_namespace(&self) -> RedisStore {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::ByItself
    }
}

mod contract_on_a_server {
    use super::*;

    async fn fixture() -> Prefixes {
        Prefixes::at(&url(&SHARED))
    }

    session_layer::conformance!(fixture, ignore = "needs Redis: run tests/run");
}

mod contract_on_a_cluster {
    use super::*;

    async fn fixture() -> Prefixes {
        Prefixes::at(&SHARED_CLUSTER.url())
    }

    session_layer::conformance!(fixture, ignore = "needs Redis: run tests/run");
}

mod contract_behind_a_sentinel {
    use super::*;

    async fn fixture() -> Prefixes {
        Prefixes::at(&SHARED_WATCHED.url())
    }

    session_layer::conformance!(fixture, ignore = "needs Redis: run tests/run");
}

mod contract_on_a_connection_manager_of_the_users {
    use super::*;

    async fn fixture() -> Prefixes {
        let client = redis::Client::open(url(&SHARED)).unwrap();
        let manager = client.get_connection_manager().await.unwrap();
        let store = || {
            RedisStore::builder_from_client(manager.clone())
                .with_prefix(prefix())
                .build()
                .unwrap()
        };
        Prefixes {
            store: store(),
            other: store(),
        }
    }

    session_layer::conformance!(fixture, ignore = "needs Redis: run tests/run");
}

struct Place(String);

impl Place {
    fn at(url: &str) -> Self {
        Self(format!("{url}?prefix={}&timeout=30s", prefix()))
    }

    fn url(&self) -> &str {
        &self.0
    }
}

mod two_processes_on_a_server {
    use super::*;

    async fn place() -> Place {
        Place::at(&url(&SHARED))
    }

    two_apps!(place, ignore = "needs Redis: run tests/run");
}

mod two_processes_on_a_cluster {
    use super::*;

    async fn place() -> Place {
        Place::at(&SHARED_CLUSTER.url())
    }

    two_apps!(place, ignore = "needs Redis: run tests/run");
}
