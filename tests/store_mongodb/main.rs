//! `MongoStore`: the contract on a single server and on a replica set, then what only MongoDB can do
//! wrong.
#![cfg(unix)]

#[path = "../support/apps.rs"]
mod apps;
#[path = "../support/drills.rs"]
mod drills;
mod failover;
#[path = "../support/mongod.rs"]
mod mongod;
mod operation;
#[path = "../support/server.rs"]
mod server;
#[path = "../support/mod.rs"]
mod support;
mod trouble;

use std::sync::OnceLock;
use std::time::Duration;

use mongodb::Client;
use mongodb::bson::Document;
use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    CreateOutcome, MongoStore, NewRecord, Record, Revision, SessionKey, SessionStore, StoreError,
    StoreErrorKind,
};
use tokio::sync::OnceCell;

use mongod::{ReplicaSet, client_of, mongod};
use server::Server;

const HOUR: Duration = Duration::from_secs(3600);

/// One server for all tests that leave it alone.
fn single() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| mongod(&[]))
}

/// A replica set of one for all tests that leave it alone.
async fn set() -> &'static ReplicaSet {
    static SET: OnceCell<ReplicaSet> = OnceCell::const_new();
    SET.get_or_init(|| ReplicaSet::start(1)).await
}

/// A name that nothing else uses.
fn fresh(prefix: &str) -> String {
    format!("{prefix}_{:016x}", rand::random::<u64>())
}

fn single_url() -> String {
    format!("mongodb://{}/{}", single().address(), fresh("db"))
}

fn new_key() -> SessionKey {
    // Any 43 characters of the alphabet are a key.
    format!("{:043}", rand::random::<u128>()).parse().unwrap()
}

fn new(payload: &[u8]) -> NewRecord<'_> {
    NewRecord::new(Revision::generate(), payload, HOUR)
}

async fn put(store: &MongoStore, key: &SessionKey, payload: &[u8]) -> Record {
    let outcome = store.create(key, &new(payload)).await.unwrap();
    assert_eq!(outcome, CreateOutcome::Created(0));
    get(store, key).await
}

async fn get(store: &MongoStore, key: &SessionKey) -> Record {
    store.load(key).await.unwrap().expect("a record")
}

fn kind<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> StoreErrorKind {
    answer.unwrap_err().kind()
}

/// A store in a collection of its own, and that collection as the driver shows it.
async fn opened(url: &str) -> (MongoStore, mongodb::Collection<Document>) {
    let store = MongoStore::connect(url).await.unwrap();
    let raw = Client::with_uri_str(url).await.unwrap();
    let raw = raw.default_database().unwrap().collection("sessions");
    (store, raw)
}

/// That nothing of `secrets` is in what an error says, its causes included, as text or in hexadecimal.
fn assert_tells_none_of(secrets: &[&str], error: &StoreError) {
    let mut told = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        told.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    let lower = told.to_lowercase();
    for secret in secrets {
        let hexadecimal: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(
            !told.contains(secret) && !lower.contains(&hexadecimal),
            "{secret} is in {told}"
        );
    }
}

/// The URL for tests that are not about time: a busy machine may take long.
fn patient(url: &str) -> String {
    let mark = if url.contains('?') { '&' } else { '?' };
    format!("{url}{mark}timeout=30s&serverSelectionTimeoutMS=20000&connectTimeoutMS=20000")
}

struct Collections {
    store: MongoStore,
    other: MongoStore,
}

impl Fixture for Collections {
    type Store = MongoStore;

    fn store(&self) -> MongoStore {
        self.store.clone()
    }

    fn other_namespace(&self) -> MongoStore {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::ByItself
    }
}

async fn collections(url: &str) -> Collections {
    let store = MongoStore::connect(&patient(url)).await.unwrap();
    let client = Client::with_uri_str(url).await.unwrap();
    let database = client.default_database().unwrap().name().to_owned();
    Collections {
        store,
        other: MongoStore::builder_from_client(client, database)
            .with_collection("other")
            .with_timeout(Duration::from_secs(30))
            .connect()
            .await
            .unwrap(),
    }
}

mod contract_on_a_single_server {
    async fn fixture() -> super::Collections {
        let url = tokio::task::block_in_place(super::single_url);
        super::collections(&url).await
    }

    session_layer::conformance!(fixture, ignore = "needs mongod: run tests/run");
    session_layer::conformance_of_scan!(fixture, ignore = "needs mongod: run tests/run");
}

mod contract_on_a_replica_set {
    async fn fixture() -> super::Collections {
        let url = super::set().await.url(&super::fresh("db"));
        super::collections(&url).await
    }

    session_layer::conformance!(fixture, ignore = "needs mongod: run tests/run");
    session_layer::conformance_of_scan!(fixture, ignore = "needs mongod: run tests/run");
}

struct Place(String);

impl Place {
    fn url(&self) -> String {
        self.0.clone()
    }
}

mod two_apps_on_a_single_server {
    async fn place() -> super::Place {
        super::Place(super::patient(&tokio::task::block_in_place(
            super::single_url,
        )))
    }

    crate::two_apps!(place, ignore = "needs mongod: run tests/run");
}

mod two_apps_on_a_replica_set {
    async fn place() -> super::Place {
        super::Place(super::patient(&super::set().await.url(&super::fresh("db"))))
    }

    crate::two_apps!(place, ignore = "needs mongod: run tests/run");
}
