//! The bare drivers: for each store a server, and a handler that sends the commands which the store
//! sends for a load, a create and an update, without a session around them. Driver, connections and
//! statements are the store's, and so is the comparison before a write; nothing is signed, hashed or
//! decoded.

mod dynamodb;
mod file;
mod memcached;
mod mongodb;
mod mysql;
mod pool;
mod postgres;
mod redis;
mod sqlite;

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::{HeaderMap, StatusCode};

use crate::Place;
use crate::subject::{CREATED, PAYLOAD, Subject, found, key, new_key, new_keys};

type Opening = fn() -> Pin<Box<dyn Future<Output = Place>>>;

/// Every store that is measured.
pub const PLACES: &[(&str, Opening)] = &[
    ("file", || Box::pin(file::open())),
    ("sqlite", || Box::pin(sqlite::open())),
    ("redis", || Box::pin(redis::open())),
    ("memcached", || Box::pin(memcached::open())),
    ("postgres", || Box::pin(postgres::open())),
    ("mysql", || Box::pin(mysql::open())),
    ("mongodb", || Box::pin(mongodb::open())),
    ("dynamodb", || Box::pin(dynamodb::open())),
];

/// How long records live: as long as sessions do by default.
const MONTH: Duration = Duration::from_secs(31 * 24 * 3600);

/// The commands of a store. What fails, panics: a benchmark that measured failures is to stop.
trait Floor: Clone + Send + Sync + 'static {
    /// A record as it was read: what a write compares with, and the payload, to be written again.
    type Seen: Send;

    fn load(&self, key: &str) -> impl Future<Output = Option<Self::Seen>> + Send;

    /// Writes the payload of `seen` under another revision. `false` when it was not there any more.
    fn update(&self, key: &str, seen: Self::Seen) -> impl Future<Output = bool> + Send;

    /// Makes a record whose payload is so many bytes long. `false` when there is one already.
    fn create(&self, key: &str, payload: usize) -> impl Future<Output = bool> + Send;
}

async fn subject<F: Floor>(floor: F) -> Subject {
    async fn read<F: Floor>(State(floor): State<F>, headers: HeaderMap) -> StatusCode {
        found(floor.load(key(&headers)).await)
    }
    async fn read_write<F: Floor>(State(floor): State<F>, headers: HeaderMap) -> StatusCode {
        let key = key(&headers);
        match floor.load(key).await {
            Some(seen) => done(floor.update(key, seen).await),
            None => StatusCode::NOT_FOUND,
        }
    }
    async fn create<F: Floor>(State(floor): State<F>) -> StatusCode {
        done(floor.create(&new_key(), CREATED).await)
    }
    let cookies = new_keys();
    for cookie in &cookies {
        let key = cookie.to_str().expect("ASCII");
        assert!(floor.create(key, PAYLOAD).await, "the key is new");
    }
    Subject {
        name: "bare driver",
        router: Router::new()
            .route("/read", get(read::<F>))
            .route("/read-write", get(read_write::<F>))
            .route("/create", get(create::<F>))
            .with_state(floor),
        cookies,
    }
}

fn done(done: bool) -> StatusCode {
    match done {
        true => StatusCode::OK,
        false => StatusCode::CONFLICT,
    }
}

fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a date after 1970")
}

/// A point in time, in milliseconds since 1970.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).expect("a date")
}

fn revision() -> [u8; 16] {
    rand::random()
}
