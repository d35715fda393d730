//! What the tests of stores on SQL servers share.
//!
//! Needs `support/drills.rs` and what that needs beside it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::cell::RefCell;
use std::error::Error;
use std::fmt::Debug;
use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Once;
use std::time::{Duration, Instant};

use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionStore, TouchOutcome, UpdateOutcome,
};
use session_layer::{SessionKey, StoreError, StoreErrorKind};

use crate::drills::Proxy;
use crate::server::{self, Folder, is_root, run};

pub const HOUR: Duration = Duration::from_secs(3600);
pub const BRIEF: Duration = Duration::from_millis(50);

/// A name that nothing else has.
pub fn table() -> String {
    format!("t_{:016x}", rand::random::<u64>())
}

pub fn key(number: u64) -> SessionKey {
    format!("{number:043}").parse().unwrap()
}

pub fn new(payload: &[u8]) -> NewRecord<'_> {
    NewRecord::new(Revision::generate(), payload, HOUR)
}

pub async fn put<S: SessionStore>(store: &S, number: u64, payload: &[u8]) {
    let outcome = store.create(&key(number), &new(payload)).await.unwrap();
    assert_eq!(outcome, CreateOutcome::Created(0));
}

pub async fn get<S: SessionStore>(store: &S, number: u64) -> Record {
    store.load(&key(number)).await.unwrap().expect("no record")
}

pub fn kind<T: Debug>(answer: Result<T, StoreError>) -> StoreErrorKind {
    answer.unwrap_err().kind()
}

/// Two tables.
pub struct Tables<S> {
    pub store: S,
    pub other: S,
}

impl<S: SessionStore + Clone> Fixture for Tables<S> {
    type Store = S;

    fn store(&self) -> S {
        self.store.clone()
    }

    fn other_namespace(&self) -> S {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::OnDemand {
            margin: Duration::ZERO,
        }
    }
}

/// Where two applications keep their sessions.
pub struct Place(pub String);

impl Place {
    pub fn url(&self) -> String {
        self.0.clone()
    }
}

/// The number of round trips that `verb` makes on a connection that has been used a moment ago.
async fn trips<T: Debug>(
    proxy: &Proxy,
    verb: impl Future<Output = Result<T, StoreError>>,
) -> (usize, T) {
    let before = proxy.turns();
    let answer = verb.await.unwrap();
    (proxy.turns() - before, answer)
}

/// Each verb is one round trip, whatever it finds. `store` goes through `proxy`.
pub async fn every_verb_is_one_round_trip<S: SessionStore>(store: &S, proxy: &Proxy) {
    // The first time, each statement is prepared.
    for turn in 0..2 {
        let n = 100 * turn;
        let mut counts = Vec::new();
        let mut note = |name: &'static str, count: usize| counts.push((name, count));
        let (count, absent) = trips(proxy, store.load(&key(n))).await;
        note("load of nothing", count);
        assert!(absent.is_none());
        let (count, made) = trips(proxy, store.create(&key(n), &new(b"0"))).await;
        note("create", count);
        assert_eq!(made, CreateOutcome::Created(0));
        let (count, taken) = trips(proxy, store.create(&key(n), &new(b"0"))).await;
        note("create, taken", count);
        assert_eq!(taken, CreateOutcome::Taken);
        let brief = NewRecord::new(Revision::generate(), b"", BRIEF);
        store.create(&key(n + 1), &brief).await.unwrap();
        tokio::time::sleep(2 * BRIEF).await;
        let (count, made) = trips(proxy, store.create(&key(n + 1), &new(b"1"))).await;
        note("create over an expired record", count);
        assert_eq!(made, CreateOutcome::Created(0));
        let (count, seen) = trips(proxy, store.load(&key(n))).await;
        note("load", count);
        let seen = seen.unwrap();
        let (count, touched) = trips(proxy, store.touch(&key(n), &seen, HOUR)).await;
        note("touch", count);
        assert_eq!(touched, TouchOutcome::Touched(0));
        let (count, updated) = trips(proxy, store.update(&key(n), &seen, &new(b"1"))).await;
        note("update", count);
        assert_eq!(updated, UpdateOutcome::Updated(0));
        let (count, conflict) = trips(proxy, store.update(&key(n), &seen, &new(b"2"))).await;
        note("update, conflict", count);
        assert_eq!(conflict, UpdateOutcome::Conflict);
        let (count, conflict) = trips(proxy, store.touch(&key(n), &seen, HOUR)).await;
        note("touch, conflict", count);
        assert_eq!(conflict, TouchOutcome::Conflict);
        let seen = get(store, n).await;
        let ending = new(b"end").with_ending(true);
        let (count, ended) = trips(proxy, store.update(&key(n), &seen, &ending)).await;
        note("update that ends", count);
        assert_eq!(ended, UpdateOutcome::Updated(0));
        let (count, ()) = trips(proxy, store.delete(&key(n))).await;
        note("delete", count);
        let (count, gone) = trips(proxy, store.update(&key(n), &seen, &new(b"2"))).await;
        note("update, gone", count);
        assert_eq!(gone, UpdateOutcome::Gone);
        let (count, gone) = trips(proxy, store.touch(&key(n), &seen, HOUR)).await;
        note("touch, gone", count);
        assert_eq!(gone, TouchOutcome::Gone);
        let (count, 0) = trips(proxy, store.delete_expired(NonZeroUsize::MIN)).await else {
            panic!("nothing has expired");
        };
        note("purge", count);
        store.delete(&key(n + 1)).await.unwrap();
        if turn == 1 {
            let other: Vec<_> = counts.iter().filter(|(_, count)| *count != 1).collect();
            assert!(other.is_empty(), "{other:?}");
        }
    }
}

/// After a rest, one more round trip finds out whether the connection is alive.
pub async fn a_rested_connection_is_asked_first<S: SessionStore>(store: &S, proxy: &Proxy) {
    put(store, 0, b"").await;
    get(store, 0).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = proxy.turns();
    get(store, 0).await;
    assert_eq!(proxy.turns() - before, 2);
    get(store, 0).await;
    assert_eq!(proxy.turns() - before, 3);
}

/// How many of 20 loads fail, one after the other.
pub async fn failures<S: SessionStore>(store: &S) -> usize {
    let mut failures = 0;
    for _ in 0..20 {
        let start = Instant::now();
        failures += usize::from(store.load(&key(0)).await.is_err());
        assert!(start.elapsed() < Duration::from_millis(1700));
    }
    failures
}

/// Certificates for a server on 127.0.0.1 that runs as `user`.
pub struct Certificates(Folder);

impl Certificates {
    pub fn new(user: &str) -> Self {
        let certificates = Self(Folder::new("certificates"));
        let path = |name: &str| certificates.path(name);
        let openssl = |arguments: String| run("openssl", arguments.split_whitespace());
        for authority in ["ca", "other"] {
            openssl(format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={authority} \
                 -keyout {} -out {}",
                path(&format!("{authority}.key")),
                path(&format!("{authority}.crt"))
            ));
        }
        openssl(format!(
            "req -newkey rsa:2048 -nodes -subj /CN=server -keyout {} -out {}",
            path("server.key"),
            path("server.csr")
        ));
        server::write(path("extensions").as_ref(), "subjectAltName=IP:127.0.0.1\n");
        openssl(format!(
            "x509 -req -days 2 -CAcreateserial -in {} -CA {} -CAkey {} -extfile {} -out {}",
            path("server.csr"),
            path("ca.crt"),
            path("ca.key"),
            path("extensions"),
            path("server.crt")
        ));
        run("chmod", ["600", &path("server.key")]);
        if is_root() {
            run("chown", [user, &path("server.key")]);
        }
        certificates
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

/// Everything that can be read of an error.
pub fn shown(error: &StoreError) -> String {
    let mut shown = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(error) = source {
        shown += &format!(" {error} {error:?}");
        source = error.source();
    }
    shown
}

thread_local! {
    static LOGGED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// What a thread logs, at every level.
///
/// The subscriber is one for all threads: a thread that has none of its own would switch events off
/// for the others.
pub struct Log;

impl Log {
    /// From now on, what this thread logs is kept.
    pub fn collect() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::TRACE)
                .with_ansi(false)
                .with_writer(|| Self)
                .init();
        });
        LOGGED.set(Some(Vec::new()));
        Self
    }

    pub fn text(self) -> String {
        String::from_utf8(LOGGED.take().unwrap_or_default()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| {
            if let Some(logged) = logged {
                logged.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
