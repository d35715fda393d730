//! `MemcachedStore`: the contract on one server, on three and on a client of the user's, then what
//! only memcached can do wrong.
#![cfg(unix)]

#[path = "support/apps.rs"]
mod apps;
#[path = "support/drills.rs"]
mod drills;
#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use drills::{Durable, Proxy};
use memcache::exp::AsyncMetaClient;
use server::{Folder, Server, free_port, is_root, program};
use session_layer::AnyStore;
use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    CreateOutcome, MemcachedStore, NewRecord, Record, Revision, ScanStore, SessionKey,
    SessionStore, StoreError, StoreErrorKind, TouchOutcome, UpdateOutcome,
};
use tokio::task::block_in_place;

const HOUR: Duration = Duration::from_secs(3600);

/// A memcached of the test's own.
fn memcached(options: &[&str]) -> Server {
    let (folder, port) = (Folder::new("memcached"), free_port());
    Server::start("memcached", folder, port, command(port, options))
}

fn command(port: u16, options: &[&str]) -> Vec<String> {
    let program = program("MEMCACHED", "memcached", &[]);
    let port = port.to_string();
    let mut command = vec![&*program, "-l", "127.0.0.1", "-p", &port, "-U", "0"];
    if is_root() {
        command.extend(["-u", "nobody"]);
    }
    command.extend(options);
    command.into_iter().map(str::to_owned).collect()
}

/// What the tests share that disturb nobody: three servers.
static SERVERS: LazyLock<[Server; 3]> =
    LazyLock::new(|| std::array::from_fn(|_| memcached(&["-m", "256"])));

fn addresses(count: usize) -> Vec<String> {
    let servers = SERVERS.iter().take(count);
    servers.map(|server| server.address().to_string()).collect()
}

fn prefix() -> String {
    format!("{:016x}:", rand::random::<u64>())
}

fn on(server: &Server) -> MemcachedStore {
    let builder = MemcachedStore::builder([server.address().to_string()]);
    builder.build().unwrap()
}

struct Namespaces {
    store: MemcachedStore,
    other: MemcachedStore,
}

impl Fixture for Namespaces {
    type Store = MemcachedStore;

    fn store(&self) -> MemcachedStore {
        self.store.clone()
    }

    fn other_namespace(&self) -> MemcachedStore {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::ByItself
    }
}

async fn on_servers(count: usize) -> Namespaces {
    let build = || {
        let builder = MemcachedStore::builder(addresses(count)).with_prefix(prefix());
        builder.build().unwrap()
    };
    Namespaces {
        store: build(),
        other: build(),
    }
}

async fn on_one_server() -> Namespaces {
    on_servers(1).await
}

async fn on_three_servers() -> Namespaces {
    on_servers(3).await
}

async fn on_a_client_of_the_users() -> Namespaces {
    let client = AsyncMetaClient::connect_multiple(addresses(3))
        .await
        .unwrap();
    let build = || {
        let builder = MemcachedStore::builder_from_client(client.clone()).with_prefix(prefix());
        builder.build().unwrap()
    };
    Namespaces {
        store: build(),
        other: build(),
    }
}

mod contract {
    session_layer::conformance!(
        super::on_one_server,
        ignore = "needs memcached: run tests/run"
    );
}

mod contract_on_three_servers {
    session_layer::conformance!(
        super::on_three_servers,
        ignore = "needs memcached: run tests/run"
    );
}

mod contract_on_a_client_of_the_users {
    session_layer::conformance!(
        super::on_a_client_of_the_users,
        ignore = "needs memcached: run tests/run"
    );
}

struct Url(String);

impl Url {
    fn url(&self) -> String {
        self.0.clone()
    }
}

async fn place() -> Url {
    Url(format!(
        "memcached://{}?prefix={}&timeout=30s",
        addresses(3).join(","),
        prefix()
    ))
}

mod two_applications {
    crate::two_apps!(super::place, ignore = "needs memcached: run tests/run");
}

/// A connection that speaks memcached's protocol, to look behind the store.
struct Raw {
    reader: BufReader<TcpStream>,
}

impl Raw {
    fn to(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address()).unwrap();
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    /// The first line of the answer.
    fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes())
    }

    fn send(&mut self, bytes: &[u8]) -> String {
        self.reader.get_mut().write_all(bytes).unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        let mut command = format!("ms {key} {} T3600\r\n", value.len()).into_bytes();
        command.extend_from_slice(value);
        command.extend_from_slice(b"\r\n");
        assert_eq!(self.send(&command), "HD");
    }

    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        let line = self.ask(&format!("mg {key} v"));
        let length = line.strip_prefix("VA ")?.parse::<usize>().unwrap();
        let mut value = vec![0; length + 2];
        self.reader.read_exact(&mut value).unwrap();
        value.truncate(length);
        Some(value)
    }

    /// In how many seconds memcached will forget the key.
    fn seconds_left(&mut self, key: &str) -> i64 {
        let line = self.ask(&format!("mg {key} t"));
        line.strip_prefix("HD t").expect(&line).parse().unwrap()
    }

    fn stat(&mut self, name: &str) -> u64 {
        self.sum(&[name])
    }

    /// How many commands about keys the server has seen.
    fn commands(&mut self) -> u64 {
        self.sum(&["cmd_get", "cmd_set", "delete_hits", "delete_misses"])
    }

    fn sum(&mut self, names: &[&str]) -> u64 {
        let mut values = Vec::new();
        let mut line = self.ask("stats");
        while line != "END" {
            let words: Vec<_> = line.split(' ').collect();
            if names.contains(&words[1]) {
                values.push(words[2].parse::<u64>().unwrap());
            }
            line = self.line();
        }
        assert_eq!(values.len(), names.len(), "{names:?}");
        values.iter().sum()
    }
}

fn key(number: u64) -> SessionKey {
    format!("{number:043}").parse().unwrap()
}

fn wire_key(number: u64) -> String {
    format!("session:{number:043}")
}

fn new(payload: &[u8]) -> NewRecord<'_> {
    NewRecord::new(Revision::generate(), payload, HOUR)
}

async fn put(store: &MemcachedStore, number: u64, payload: &[u8]) -> Record {
    let new = new(payload);
    match store.create(&key(number), &new).await.unwrap() {
        CreateOutcome::Created(token) => {
            Record::new(new.revision(), Bytes::copy_from_slice(payload), HOUR).with_token(token)
        }
        CreateOutcome::Taken => panic!("{number} is taken"),
    }
}

async fn load(store: &MemcachedStore, number: u64) -> Option<Record> {
    store.load(&key(number)).await.unwrap()
}

fn kind<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> StoreErrorKind {
    answer.unwrap_err().kind()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn each_verb_is_one_command() {
    let server = memcached(&[]);
    let (store, mut raw) = (on(&server), Raw::to(&server));
    let mut before = raw.commands();
    let mut commands = || {
        let now = raw.commands();
        std::mem::replace(&mut before, now).abs_diff(now)
    };
    assert!(load(&store, 0).await.is_none());
    assert_eq!(commands(), 1, "load of nothing");
    let old = put(&store, 0, b"one").await;
    assert_eq!(commands(), 1, "create");
    let seen = load(&store, 0).await.unwrap();
    assert_eq!(commands(), 1, "load");
    let outcome = store.touch(&key(0), &seen, HOUR).await.unwrap();
    assert!(matches!(outcome, TouchOutcome::Touched(_)));
    assert_eq!(commands(), 1, "touch");
    let outcome = store.touch(&key(0), &old, HOUR).await.unwrap();
    assert_eq!(outcome, TouchOutcome::Conflict);
    assert_eq!(commands(), 1, "touch that conflicts");
    let outcome = store.update(&key(0), &old, &new(b"two")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Conflict);
    assert_eq!(commands(), 1, "update that conflicts");
    let seen = load(&store, 0).await.unwrap();
    commands();
    let outcome = store.update(&key(0), &seen, &new(b"two")).await.unwrap();
    assert!(matches!(outcome, UpdateOutcome::Updated(_)));
    assert_eq!(commands(), 1, "update");
    let outcome = store.create(&key(0), &new(b"three")).await.unwrap();
    assert_eq!(outcome, CreateOutcome::Taken);
    assert_eq!(commands(), 2, "create of what is there");
    store.delete(&key(0)).await.unwrap();
    assert_eq!(commands(), 1, "delete");
    let outcome = store.update(&key(0), &seen, &new(b"four")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Gone);
    assert_eq!(commands(), 1, "update of nothing");
    store
        .delete_expired(std::num::NonZeroUsize::MAX)
        .await
        .unwrap();
    assert_eq!(commands(), 0, "delete_expired");
}

#[tokio::test]
#[ignore = "needs memcached: run tests/run"]
async fn a_value_is_laid_out_as_documented() {
    let server = memcached(&[]);
    let store = on(&server);
    let before = std::time::SystemTime::now();
    let record = put(&store, 0, b"payload").await;
    let value = Raw::to(&server).get(&wire_key(0)).unwrap();
    assert_eq!(value[0], 1);
    assert_eq!(value[1..17], *record.revision().as_bytes());
    let expiry = u64::from_be_bytes(value[17..25].try_into().unwrap());
    let hence = std::time::UNIX_EPOCH + Duration::from_millis(expiry);
    let late = hence.duration_since(before + HOUR).unwrap();
    assert!(late < Duration::from_secs(10), "{late:?}");
    assert_eq!(value[25..], *b"payload");
}

#[tokio::test]
#[ignore = "needs memcached: run tests/run"]
async fn memcached_forgets_a_value_after_its_expiry_and_never_before() {
    const DAY: u64 = 24 * 3600;
    let server = memcached(&[]);
    let (store, mut raw) = (on(&server), Raw::to(&server));
    // Where memcached reads a date, and where it would read "for ever" or "at once".
    for (number, millis, late) in [
        (0, 1, 3),
        (1, 999, 3),
        (2, 1000, 4),
        (3, 1800 * 1000, 4),
        (4, (30 * DAY - 3) * 1000, 4),
        (5, (30 * DAY - 2) * 1000, 70),
        (6, 30 * DAY * 1000, 70),
        (7, (30 * DAY + 1) * 1000, 70),
        (8, 31 * DAY * 1000, 70),
        (9, 400 * DAY * 1000, 70),
    ] {
        let ttl = Duration::from_millis(millis);
        let seconds = i64::try_from(millis / 1000).unwrap();
        let new = NewRecord::new(Revision::generate(), b"", ttl);
        let created = store.create(&key(number), &new).await.unwrap();
        let CreateOutcome::Created(token) = created else {
            panic!("{created:?}");
        };
        let left = raw.seconds_left(&wire_key(number));
        assert!(
            (seconds + 2..=seconds + late).contains(&left),
            "{ttl:?}: {left}"
        );
        if millis < 2000 {
            continue;
        }
        let seen = Record::new(new.revision(), Bytes::new(), ttl).with_token(token);
        store.touch(&key(number), &seen, HOUR).await.unwrap();
        let left = raw.seconds_left(&wire_key(number));
        assert!((3600..=3603).contains(&left), "{left}");
        let seen = load(&store, number).await.unwrap();
        let touched = store.touch(&key(number), &seen, ttl).await.unwrap();
        assert!(matches!(touched, TouchOutcome::Touched(_)));
        let left = raw.seconds_left(&wire_key(number));
        assert!(
            (seconds + 2..=seconds + late).contains(&left),
            "{ttl:?}: {left}"
        );
    }
}

#[tokio::test]
#[ignore = "needs memcached: run tests/run"]
async fn what_has_expired_is_absent_although_memcached_still_has_it() {
    let server = memcached(&[]);
    let (store, mut raw) = (on(&server), Raw::to(&server));
    let brief = NewRecord::new(Revision::generate(), b"brief", Duration::from_millis(60));
    let CreateOutcome::Created(token) = store.create(&key(0), &brief).await.unwrap() else {
        panic!("taken");
    };
    let seen = Record::new(brief.revision(), Bytes::from_static(b"brief"), HOUR).with_token(token);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(load(&store, 0).await.is_none());
    let update = store
        .update(&key(0), &seen, &new(b"revived"))
        .await
        .unwrap();
    assert_eq!(update, UpdateOutcome::Gone);
    let touch = store.touch(&key(0), &seen, HOUR).await.unwrap();
    assert_eq!(touch, TouchOutcome::Gone);
    // The same for who knows the revision and no token.
    let unknown = Record::new(brief.revision(), Bytes::new(), HOUR);
    let update = store
        .update(&key(0), &unknown, &new(b"revived"))
        .await
        .unwrap();
    assert_eq!(update, UpdateOutcome::Gone);
    assert!(
        raw.get(&wire_key(0)).is_some(),
        "memcached was too fast for this test"
    );

    put(&store, 0, b"second").await;
    assert_eq!(&load(&store, 0).await.unwrap().payload()[..], b"second");
}

#[tokio::test]
#[ignore = "needs memcached: run tests/run"]
async fn a_record_without_a_token_is_known_by_its_revision() {
    let server = memcached(&[]);
    let store = on(&server);
    let made = put(&store, 0, b"first").await;
    let bare = |record: &Record| Record::new(record.revision(), record.payload().clone(), HOUR);
    let touched = store.touch(&key(0), &bare(&made), HOUR).await.unwrap();
    assert!(matches!(touched, TouchOutcome::Touched(_)));
    let next = new(b"second");
    let updated = store.update(&key(0), &bare(&made), &next).await.unwrap();
    assert!(matches!(updated, UpdateOutcome::Updated(_)));
    let updated = store
        .update(&key(0), &bare(&made), &new(b"lost"))
        .await
        .unwrap();
    assert_eq!(updated, UpdateOutcome::Conflict);
    let touched = store.touch(&key(0), &bare(&made), HOUR).await.unwrap();
    assert_eq!(touched, TouchOutcome::Conflict);
    assert_eq!(load(&store, 0).await.unwrap().revision(), next.revision());
    let updated = store
        .update(&key(1), &bare(&made), &new(b"lost"))
        .await
        .unwrap();
    assert_eq!(updated, UpdateOutcome::Gone);
    assert!(load(&store, 1).await.is_none());
}

#[tokio::test]
#[ignore = "needs memcached: run tests/run"]
async fn values_that_are_no_records_are_corrupt_and_can_be_replaced() {
    let server = memcached(&[]);
    let builder = MemcachedStore::builder([server.address().to_string()]).with_max_payload(1000);
    let (store, mut raw) = (builder.build().unwrap(), Raw::to(&server));
    let seen = put(&store, 0, b"good").await;
    let good = raw.get(&wire_key(0)).unwrap();
    let mut of_the_future = good.clone();
    of_the_future[0] = 2;
    let too_large = [&good[..25], &[0; 1001]].concat();
    for damaged in [&b""[..], b"text", &good[..24], &of_the_future, &too_large] {
        raw.put(&wire_key(0), damaged);
        assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);
        let update = store.update(&key(0), &seen, &new(b"")).await.unwrap();
        assert_eq!(update, UpdateOutcome::Conflict);
        let touch = store.touch(&key(0), &seen, HOUR).await.unwrap();
        assert_eq!(touch, TouchOutcome::Conflict);
        assert_eq!(raw.get(&wire_key(0)).unwrap(), damaged);
        put(&store, 0, b"replaced").await;
        assert_eq!(&load(&store, 0).await.unwrap().payload()[..], b"replaced");
        raw.put(&wire_key(0), damaged);
        store.delete(&key(0)).await.unwrap();
        assert!(load(&store, 0).await.is_none());
    }
    // Marked as stale by hand, which is a way to end a session.
    let seen = put(&store, 0, b"good").await;
    assert_eq!(raw.ask(&format!("md {} I T60", wire_key(0))), "HD");
    assert!(load(&store, 0).await.is_none());
    let update = store.update(&key(0), &seen, &new(b"")).await.unwrap();
    assert_ne!(update, UpdateOutcome::Updated(0));
    assert!(load(&store, 0).await.is_none());
    put(&store, 0, b"again").await;
    assert_eq!(&load(&store, 0).await.unwrap().payload()[..], b"again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn a_password_or_no_cas_is_a_matter_of_configuration() {
    let folder = Folder::new("memcached");
    let passwords = folder.path().join("passwords");
    server::write(&passwords, "app:secret\n");
    let port = free_port();
    let passwords = passwords.display().to_string();
    let command = command(port, &["-Y", &passwords]);
    let server = Server::start("memcached", folder, port, command);
    let store = on(&server);
    for error in [
        store.load(&key(0)).await.unwrap_err(),
        store.create(&key(0), &new(b"")).await.unwrap_err(),
        store.delete(&key(0)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
        assert!(error.to_string().contains("password"), "{error}");
    }

    let server = memcached(&["-C"]);
    let store = on(&server);
    let error = store.create(&key(0), &new(b"")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(error.to_string().contains("-C"), "{error}");
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
}

/// Answers every line with `answer`.
fn impostor(answer: &'static str) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
                let _ = reader.get_mut().write_all(answer.as_bytes());
            }
        }
    });
    port
}

#[tokio::test]
async fn what_is_no_memcached_is_no_absent_session() {
    for (answer, expected) in [
        ("ERROR\r\n", StoreErrorKind::Config),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", StoreErrorKind::Other),
        ("\r\n", StoreErrorKind::Other),
        ("MN\r\n", StoreErrorKind::Other),
        ("VA 99999999999 c1\r\n", StoreErrorKind::Other),
        ("SERVER_ERROR busy\r\n", StoreErrorKind::Unavailable),
    ] {
        let server = format!("127.0.0.1:{}", impostor(answer));
        let store = MemcachedStore::builder([server]).build().unwrap();
        let error = store.load(&key(0)).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{answer:?}: {error}");
        let error = store.create(&key(0), &new(b"")).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{answer:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn what_memcached_made_room_for_is_gone_and_stays_so() {
    let server = memcached(&["-m", "8"]);
    let store = on(&server);
    assert!(store.limits().evicts());
    let first = put(&store, 0, &[0; 10_000]).await;
    for number in 1..2000 {
        put(&store, number, &[0; 10_000]).await;
    }
    assert!(Raw::to(&server).stat("evictions") > 0);
    assert!(load(&store, 0).await.is_none());
    let update = store.update(&key(0), &first, &new(b"")).await.unwrap();
    assert_eq!(update, UpdateOutcome::Gone);
    let touch = store.touch(&key(0), &first, HOUR).await.unwrap();
    assert_eq!(touch, TouchOutcome::Gone);
    assert!(load(&store, 0).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn a_memcached_that_is_full_and_makes_no_room_is_unavailable() {
    let server = memcached(&["-m", "4", "-M"]);
    let store = on(&server);
    let mut number = 0;
    let error = loop {
        match store.create(&key(number), &new(&[0; 10_000])).await {
            Ok(created) => assert!(matches!(created, CreateOutcome::Created(_))),
            Err(error) => break error,
        }
        number += 1;
        assert!(number < 5000, "it is never full");
    };
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("full"), "{error}");
    // Those that are there stay, and can be ended.
    for there in 0..number {
        assert!(load(&store, there).await.is_some(), "{there} of {number}");
    }
    assert!(load(&store, number).await.is_none());
    store.delete(&key(0)).await.unwrap();
    put(&store, 0, &[0; 10_000]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn the_largest_payload_is_what_the_server_takes() {
    let small = memcached(&["-I", "256k", "-o", "slab_chunk_max=128"]);
    let store = on(&small);
    let seen = put(&store, 0, b"old").await;
    let payload = vec![1; 300_000];
    let error = store
        .update(&key(0), &seen, &new(&payload))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(error.to_string().contains("max_payload"), "{error}");
    // What memcached does then, and why the limit is to be set right.
    assert!(load(&store, 0).await.is_none());

    let large = memcached(&["-I", "8m"]);
    let limit = (8 << 20) - 1024;
    let builder = MemcachedStore::builder([large.address().to_string()])
        .with_prefix("p".repeat(207))
        .with_max_payload(limit);
    let store = builder.build().unwrap();
    let payload: Vec<u8> = (0..limit).map(|n| (n % 251) as u8).collect();
    let seen = put(&store, 0, &payload).await;
    assert!(load(&store, 0).await.unwrap().payload()[..] == payload[..]);
    let error = store
        .update(&key(0), &seen, &new(&vec![0; limit + 1]))
        .await;
    assert_eq!(kind(error), StoreErrorKind::TooLarge);
    assert!(load(&store, 0).await.unwrap().payload()[..] == payload[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn a_restart_empties_the_store_and_fails_no_request() {
    let mut server = memcached(&[]);
    for address in [
        server.address().to_string(),
        format!("localhost:{}", server.port()),
    ] {
        let store = MemcachedStore::builder([address]).build().unwrap();
        let seen = put(&store, 0, b"here").await;
        block_in_place(|| server.kill());
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Unavailable);
            let update = store.update(&key(0), &seen, &new(b"")).await;
            assert_eq!(kind(update), StoreErrorKind::Unavailable);
        }
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        // Long enough for the name to be looked up again.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Unavailable);
        block_in_place(|| server.start_again());

        let update = store
            .update(&key(0), &seen, &new(b"revived"))
            .await
            .unwrap();
        assert_eq!(update, UpdateOutcome::Gone);
        assert!(load(&store, 0).await.is_none());
        put(&store, 1, b"new").await;
        // Idle meanwhile, with open connections: no verb fails.
        block_in_place(|| {
            server.kill();
            server.start_again();
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(load(&store, 1).await.is_none());
        put(&store, 1, b"new").await;
        store.delete(&key(1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn a_frozen_server_is_a_timeout_and_then_forgiven() {
    let server = memcached(&[]);
    let store = on(&server);
    let seen = put(&store, 0, b"here").await;
    server.freeze();
    let (load_of, create, update) = tokio::join!(
        async {
            let start = Instant::now();
            (kind(store.load(&key(0)).await), start.elapsed())
        },
        async {
            let start = Instant::now();
            (
                kind(store.create(&key(1), &new(b"")).await),
                start.elapsed(),
            )
        },
        async {
            let start = Instant::now();
            let update = store.update(&key(0), &seen, &new(b"")).await;
            (kind(update), start.elapsed())
        },
    );
    server.thaw();
    for (kind, took) in [load_of, create, update] {
        assert_eq!(kind, StoreErrorKind::Timeout);
        assert!(took >= Duration::from_millis(1450), "{took:?}");
        // The rest is for a busy machine.
        assert!(took < Duration::from_millis(2400), "{took:?}");
    }
    assert!(load(&store, 0).await.is_some());
    put(&store, 2, b"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn of_several_servers_one_that_fails_takes_its_own_sessions_only() {
    let mut servers = [memcached(&[]), memcached(&[]), memcached(&[])];
    let mut names: Vec<_> = servers.iter().map(|s| s.address().to_string()).collect();
    let store = MemcachedStore::builder(names.clone()).build().unwrap();
    names.reverse();
    let url = format!("memcached://{}", names.join(","));
    let same = MemcachedStore::connect(&url).await.unwrap();
    for number in 0..60 {
        put(&store, number, b"").await;
        assert!(load(&same, number).await.is_some(), "the order matters");
    }
    let counts: Vec<_> = servers
        .iter()
        .map(|server| Raw::to(server).stat("curr_items"))
        .collect();
    assert_eq!(counts.iter().sum::<u64>(), 60);
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");

    block_in_place(|| servers[1].kill());
    let mut lost = 0;
    for number in 0..60 {
        match store.load(&key(number)).await {
            Ok(found) => assert!(found.is_some(), "{number}"),
            Err(error) => {
                assert_eq!(error.kind(), StoreErrorKind::Unavailable);
                lost += 1;
            }
        }
    }
    assert_eq!(lost, counts[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn requests_survive_a_server_that_is_killed() {
    let mut server = memcached(&[]);
    let url = format!("memcached://{}", server.address());
    drills::killed_and_restarted(&mut server, &url, Durable::No).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn requests_survive_a_server_that_freezes() {
    let server = memcached(&[]);
    let url = format!("memcached://{}", server.address());
    drills::frozen(&server, &url, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn an_application_starts_before_its_server() {
    let mut server = memcached(&[]);
    block_in_place(|| server.kill());
    let url = format!("memcached://localhost:{}", server.port());
    drills::started_before_its_server(&mut server, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn nothing_is_sent_twice_when_the_answer_is_lost() {
    let server = memcached(&[]);
    let proxy = Proxy::to(server.address()).await;
    let url = format!("memcached://127.0.0.1:{}", proxy.port());
    drills::nothing_is_sent_twice(&proxy, &url).await;

    // The same, counted by the server.
    let store = MemcachedStore::connect(&url).await.unwrap();
    let mut raw = Raw::to(&server);
    for round in 0..10 {
        let seen = put(&store, round, b"here").await;
        let before = raw.commands();
        proxy.arm();
        let lost = match round % 5 {
            0 => store.load(&key(round)).await.map(drop),
            1 => store.create(&key(100 + round), &new(b"")).await.map(drop),
            2 => store.update(&key(round), &seen, &new(b"")).await.map(drop),
            3 => store.touch(&key(round), &seen, HOUR).await.map(drop),
            _ => store.delete(&key(round)).await,
        };
        assert_eq!(kind(lost), StoreErrorKind::Unavailable, "round {round}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(raw.commands(), before + 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn a_lost_answer_counts_at_most_once() {
    let server = memcached(&[]);
    let proxy = Proxy::to(server.address()).await;
    let url = format!("memcached://127.0.0.1:{}", proxy.port());
    drills::a_lost_answer_counts_at_most_once(&proxy, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs memcached: run tests/run"]
async fn debug_and_errors_show_no_key_and_no_data() {
    let mut server = memcached(&[]);
    let store = on(&server);
    let seen = put(&store, 7, b"hush").await;
    let mut errors = Vec::new();
    server.freeze();
    errors.push(store.load(&key(7)).await.unwrap_err());
    errors.push(
        store
            .update(&key(7), &seen, &new(b"hush"))
            .await
            .unwrap_err(),
    );
    server.thaw();
    block_in_place(|| server.kill());
    errors.push(store.load(&key(7)).await.unwrap_err());
    errors.push(store.create(&key(7), &new(b"hush")).await.unwrap_err());
    errors.push(store.delete(&key(7)).await.unwrap_err());
    let mut shown = format!("{store:?} {seen:?}");
    for error in &errors {
        let mut link: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = link {
            shown.push_str(&format!(" {error} {error:?}"));
            link = error.source();
        }
    }
    assert!(shown.contains("MemcachedStore"), "{shown}");
    assert!(
        !shown.contains("hush") && !shown.contains(key(7).as_str()) && !shown.contains("104, 117"),
        "{shown}"
    );
}

#[tokio::test]
async fn it_does_not_pretend_to_list_its_sessions() {
    let store = AnyStore::connect("memcached://127.0.0.1:1").await.unwrap();
    let scan = store.scan(None, std::num::NonZeroUsize::MIN).await;
    assert_eq!(kind(scan), StoreErrorKind::Unsupported);
}
