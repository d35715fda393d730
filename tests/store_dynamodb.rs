//! `DynamoStore`: the contract on a server that speaks DynamoDB's protocol, then what only DynamoDB
//! can do wrong. Amazon's own is not reached by any test.
#![cfg(unix)]

#[path = "support/apps.rs"]
mod apps;
#[path = "support/drills.rs"]
mod drills;
#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
    ScalarAttributeType, TimeToLiveSpecification,
};
use drills::{Durable, Proxy};
use server::{Folder, Server, free_port, program};
use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    CreateOutcome, DynamoStore, NewRecord, Record, Revision, ScanStore, SessionKey, SessionStore,
    StoreError, StoreErrorKind, TouchOutcome, UpdateOutcome,
};
use tokio::task::block_in_place;

const HOUR: Duration = Duration::from_secs(3600);
const SECRET: &str = "hush/secret+access=key";

/// A server of the test's own; with `durable` it keeps its data when it is killed.
fn dynoxide(durable: bool) -> Server {
    let (folder, port) = (Folder::new("dynoxide"), free_port());
    let database = folder.path().join("data.db").display().to_string();
    let program = program("DYNOXIDE", "dynoxide", &[]);
    let port_text = port.to_string();
    let mut command = vec![&*program, "--host", "127.0.0.1", "-p", &port_text];
    if durable {
        command.extend(["--db-path", &database]);
    }
    let command: Vec<_> = command.into_iter().map(str::to_owned).collect();
    Server::start("dynoxide", folder, port, command)
}

/// What the tests share that disturb nobody.
static SERVER: LazyLock<Server> = LazyLock::new(|| dynoxide(false));

fn new_table() -> String {
    format!("sessions-{:016x}", rand::random::<u64>())
}

fn url(port: u16, table: &str) -> String {
    format!(
        "dynamodb://{table}?endpoint=http://127.0.0.1:{port}&region=local\
         &access_key_id=id&secret_access_key={SECRET}"
    )
}

async fn on(server: &Server) -> (DynamoStore, String) {
    let table = new_table();
    let store = DynamoStore::connect(&url(server.port(), &table)).await;
    (store.unwrap(), table)
}

/// A client of the user's, which sends everything up to three times.
fn client(port: u16) -> Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("local"))
        .credentials_provider(Credentials::new("id", SECRET, None, None, "test"))
        .endpoint_url(format!("http://127.0.0.1:{port}"))
        .http_client(
            aws_smithy_http_client::Builder::new()
                .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                    aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
                ))
                .build_https(),
        );
    Client::from_conf(config.build())
}

struct Tables {
    store: DynamoStore,
    other: DynamoStore,
}

impl Fixture for Tables {
    type Store = DynamoStore;

    fn store(&self) -> DynamoStore {
        self.store.clone()
    }

    fn other_namespace(&self) -> DynamoStore {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::ByItself
    }
}

async fn tables() -> Tables {
    Tables {
        store: on(&SERVER).await.0,
        other: on(&SERVER).await.0,
    }
}

mod contract {
    session_layer::conformance!(super::tables, ignore = "needs dynoxide: run tests/run");
    session_layer::conformance_of_scan!(super::tables, ignore = "needs dynoxide: run tests/run");
}

struct Url(String);

impl Url {
    fn url(&self) -> String {
        self.0.clone()
    }
}

async fn place() -> Url {
    let table = new_table();
    // Made before two processes want to make it.
    DynamoStore::connect(&url(SERVER.port(), &table))
        .await
        .unwrap();
    Url(url(SERVER.port(), &table) + "&timeout=30s")
}

mod two_applications {
    crate::two_apps!(super::place, ignore = "needs dynoxide: run tests/run");
}

fn key(number: u64) -> SessionKey {
    format!("{number:043}").parse().unwrap()
}

fn new(payload: &[u8]) -> NewRecord<'_> {
    NewRecord::new(Revision::generate(), payload, HOUR)
}

async fn put(store: &DynamoStore, number: u64, payload: &[u8]) -> Record {
    let outcome = store.create(&key(number), &new(payload)).await.unwrap();
    assert!(matches!(outcome, CreateOutcome::Created(_)), "{outcome:?}");
    load(store, number).await.expect("a record")
}

async fn load(store: &DynamoStore, number: u64) -> Option<Record> {
    store.load(&key(number)).await.unwrap()
}

fn kind<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> StoreErrorKind {
    answer.unwrap_err().kind()
}

/// Stands before a server and notes what it is asked.
struct Listener {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    fn before(server: &Server) -> Self {
        let (address, listener) = (server.address(), TcpListener::bind("127.0.0.1:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(address).unwrap());
                let answers = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(|| forward(answers.0, answers.1, |_| {}));
                let (noted, mut sent) = (Arc::clone(&noted), Vec::new());
                std::thread::spawn(move || {
                    forward(client, server, |bytes| {
                        sent.extend_from_slice(bytes);
                        noted.lock().unwrap().extend(targets(&mut sent));
                    });
                });
            }
        });
        Self { port, heard }
    }

    /// What was asked since the last time.
    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut hear: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        hear(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Takes the operations out of what was sent.
fn targets(sent: &mut Vec<u8>) -> Vec<String> {
    const BEFORE: &[u8] = b"x-amz-target: DynamoDB_20120810.";
    let mut found = Vec::new();
    while let Some(at) = sent
        .windows(BEFORE.len())
        .position(|window| window == BEFORE)
    {
        let rest = &sent[at + BEFORE.len()..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\r') else {
            break;
        };
        found.push(String::from_utf8(rest[..end].to_vec()).unwrap());
        sent.drain(..at + BEFORE.len() + end);
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn each_verb_is_one_request() {
    let listener = Listener::before(&SERVER);
    let table = new_table();
    let store = DynamoStore::connect(&url(listener.port, &table))
        .await
        .unwrap();
    assert_eq!(
        listener.heard(),
        [
            "DescribeTable",
            "CreateTable",
            "DescribeTable",
            "DescribeTimeToLive",
            "UpdateTimeToLive"
        ]
    );
    assert!(load(&store, 0).await.is_none());
    assert_eq!(listener.heard(), ["GetItem"]);
    let created = store.create(&key(0), &new(b"one")).await.unwrap();
    assert_eq!(created, CreateOutcome::Created(0));
    assert_eq!(listener.heard(), ["PutItem"]);
    let created = store.create(&key(0), &new(b"two")).await.unwrap();
    assert_eq!(created, CreateOutcome::Taken);
    assert_eq!(listener.heard(), ["PutItem"]);
    let old = load(&store, 0).await.unwrap();
    assert_eq!(listener.heard(), ["GetItem"]);
    let updated = store.update(&key(0), &old, &new(b"two")).await.unwrap();
    assert_eq!(updated, UpdateOutcome::Updated(0));
    assert_eq!(listener.heard(), ["PutItem"]);
    let updated = store.update(&key(0), &old, &new(b"three")).await.unwrap();
    assert_eq!(updated, UpdateOutcome::Conflict);
    assert_eq!(listener.heard(), ["PutItem"]);
    let touched = store.touch(&key(0), &old, HOUR).await.unwrap();
    assert_eq!(touched, TouchOutcome::Conflict);
    assert_eq!(listener.heard(), ["UpdateItem"]);
    let seen = load(&store, 0).await.unwrap();
    listener.heard();
    let touched = store.touch(&key(0), &seen, HOUR).await.unwrap();
    assert_eq!(touched, TouchOutcome::Touched(0));
    assert_eq!(listener.heard(), ["UpdateItem"]);
    store.delete(&key(0)).await.unwrap();
    assert_eq!(listener.heard(), ["DeleteItem"]);
    let updated = store.update(&key(0), &seen, &new(b"four")).await.unwrap();
    assert_eq!(updated, UpdateOutcome::Gone);
    let touched = store.touch(&key(0), &seen, HOUR).await.unwrap();
    assert_eq!(touched, TouchOutcome::Gone);
    assert_eq!(listener.heard(), ["PutItem", "UpdateItem"]);
    store
        .delete_expired(std::num::NonZeroUsize::MAX)
        .await
        .unwrap();
    assert_eq!(listener.heard(), [""; 0]);

    // A table that is there costs two questions when the application starts, or none.
    let again = DynamoStore::connect(&url(listener.port, &table))
        .await
        .unwrap();
    assert_eq!(listener.heard(), ["DescribeTable", "DescribeTimeToLive"]);
    assert!(load(&again, 0).await.is_none());
    assert_eq!(listener.heard(), ["GetItem"]);
    let bare = url(listener.port, &table) + "&create_table=false";
    assert!(
        load(&DynamoStore::connect(&bare).await.unwrap(), 0)
            .await
            .is_none()
    );
    assert_eq!(listener.heard(), ["GetItem"]);
}

#[tokio::test]
#[ignore = "needs dynoxide: run tests/run"]
async fn an_item_is_laid_out_as_documented() {
    let (store, table) = on(&SERVER).await;
    let before = std::time::SystemTime::now();
    let record = put(&store, 0, b"payload").await;
    let answer = client(SERVER.port())
        .get_item()
        .table_name(&table)
        .key("session_key", AttributeValue::S(key(0).to_string()))
        .send()
        .await
        .unwrap();
    let mut item = answer.item.unwrap();
    let mut take = |name| item.remove(name).unwrap();
    assert_eq!(take("session_key"), AttributeValue::S(key(0).to_string()));
    assert_eq!(
        take("revision"),
        AttributeValue::B(Blob::new(record.revision().as_bytes()))
    );
    assert_eq!(take("payload"), AttributeValue::B(Blob::new(b"payload")));
    let mut number = |name| take(name).as_n().unwrap().parse::<u64>().unwrap();
    let (millis, seconds) = (number("expires_at_ms"), number("expires_at"));
    let expiry = std::time::UNIX_EPOCH + Duration::from_millis(millis);
    assert!(expiry.duration_since(before + HOUR).unwrap() < Duration::from_secs(10));
    assert!((60_000..61_000).contains(&(seconds * 1000 - millis)));
    assert!(item.is_empty(), "{item:?}");
}

#[tokio::test]
#[ignore = "needs dynoxide: run tests/run"]
async fn the_table_is_made_once_and_purged_by_dynamodb() {
    let (store, table) = on(&SERVER).await;
    let client = client(SERVER.port());
    let described = client
        .describe_table()
        .table_name(&table)
        .send()
        .await
        .unwrap();
    let described = described.table.unwrap();
    let billing = described
        .billing_mode_summary
        .unwrap()
        .billing_mode
        .unwrap();
    assert_eq!(billing, BillingMode::PayPerRequest);
    let purge = client
        .describe_time_to_live()
        .table_name(&table)
        .send()
        .await
        .unwrap();
    let purge = purge.time_to_live_description.unwrap();
    assert_eq!(purge.attribute_name.as_deref(), Some("expires_at"));
    assert_eq!(purge.time_to_live_status.unwrap().as_str(), "ENABLED");

    put(&store, 0, b"kept").await;
    store.migrate().await.unwrap();
    let again = DynamoStore::from_client(&client, &table).await.unwrap();
    assert_eq!(&load(&again, 0).await.unwrap().payload()[..], b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn many_applications_may_start_at_once() {
    let table = new_table();
    let starts: Vec<_> = (0..12)
        .map(|number| {
            let url = url(SERVER.port(), &table);
            tokio::spawn(async move {
                let store = DynamoStore::connect(&url).await.unwrap();
                put(&store, number, b"").await;
            })
        })
        .collect();
    for start in starts {
        start.await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs dynoxide: run tests/run"]
async fn without_a_table_every_verb_says_what_is_missing() {
    let url = url(SERVER.port(), &new_table()) + "&create_table=false";
    let store = DynamoStore::connect(&url).await.unwrap();
    let seen = Record::new(Revision::generate(), bytes::Bytes::new(), HOUR);
    for error in [
        store.load(&key(0)).await.unwrap_err(),
        store.create(&key(0), &new(b"")).await.unwrap_err(),
        store.update(&key(0), &seen, &new(b"")).await.unwrap_err(),
        store.touch(&key(0), &seen, HOUR).await.unwrap_err(),
        store.delete(&key(0)).await.unwrap_err(),
        store
            .scan(None, std::num::NonZeroUsize::MIN)
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
        assert!(error.to_string().contains("no such table"), "{error}");
    }
    store.migrate().await.unwrap();
    put(&store, 0, b"").await;
}

async fn make_table(client: &Client, keys: &[(&str, KeyType, ScalarAttributeType)]) -> String {
    let table = new_table();
    let mut create = client.create_table().table_name(&table);
    for (name, key_type, scalar) in keys {
        let part = KeySchemaElement::builder()
            .attribute_name(*name)
            .key_type(key_type.clone());
        let attribute = AttributeDefinition::builder()
            .attribute_name(*name)
            .attribute_type(scalar.clone());
        create = create
            .key_schema(part.build().unwrap())
            .attribute_definitions(attribute.build().unwrap());
    }
    create
        .billing_mode(BillingMode::PayPerRequest)
        .send()
        .await
        .unwrap();
    table
}

#[tokio::test]
#[ignore = "needs dynoxide: run tests/run"]
async fn a_table_of_another_form_is_refused() {
    use KeyType::{Hash, Range};
    use ScalarAttributeType::{N, S};

    let client = client(SERVER.port());
    for keys in [
        vec![("id", Hash, S)],
        vec![("session_key", Hash, N)],
        vec![("session_key", Hash, S), ("sort", Range, S)],
        vec![("id", Hash, S), ("session_key", Range, S)],
    ] {
        let table = make_table(&client, &keys).await;
        let error = DynamoStore::from_client(&client, &table).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{keys:?}");
        assert!(error.to_string().contains("another form"), "{error}");
        // Nor does a store that asks nothing at its start take it for an empty one.
        let builder = DynamoStore::builder_from_client(&client, &table);
        let store = builder.with_create_table(false).connect().await.unwrap();
        assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
        let create = store.create(&key(0), &new(b"")).await;
        assert_eq!(kind(create), StoreErrorKind::Config);
    }
    let table = make_table(&client, &[("session_key", Hash, S)]).await;
    let how = TimeToLiveSpecification::builder()
        .enabled(true)
        .attribute_name("other");
    let purge = client.update_time_to_live().table_name(&table);
    purge
        .time_to_live_specification(how.build().unwrap())
        .send()
        .await
        .unwrap();
    let error = DynamoStore::from_client(&client, &table).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(error.to_string().contains("expires_at"), "{error}");
}

#[tokio::test]
#[ignore = "needs dynoxide: run tests/run"]
async fn what_has_expired_is_absent_although_dynamodb_still_has_it() {
    let (store, table) = on(&SERVER).await;
    let brief = NewRecord::new(Revision::generate(), b"brief", Duration::from_millis(150));
    store.create(&key(0), &brief).await.unwrap();
    let seen = Record::new(brief.revision(), bytes::Bytes::new(), HOUR);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(load(&store, 0).await.is_none());
    let updated = store
        .update(&key(0), &seen, &new(b"revived"))
        .await
        .unwrap();
    assert_eq!(updated, UpdateOutcome::Gone);
    let touched = store.touch(&key(0), &seen, HOUR).await.unwrap();
    assert_eq!(touched, TouchOutcome::Gone);
    // Nor has it changed for whoever knows an older state of it.
    let older = Record::new(Revision::generate(), bytes::Bytes::new(), HOUR);
    let updated = store
        .update(&key(0), &older, &new(b"revived"))
        .await
        .unwrap();
    assert_eq!(updated, UpdateOutcome::Gone);
    let there = client(SERVER.port())
        .scan()
        .table_name(&table)
        .send()
        .await
        .unwrap();
    assert_eq!(there.count(), 1);
    put(&store, 0, b"second").await;
    assert_eq!(&load(&store, 0).await.unwrap().payload()[..], b"second");
}

#[tokio::test]
#[ignore = "needs dynoxide: run tests/run"]
async fn the_largest_payload_fills_an_item_to_a_few_bytes() {
    let (store, table) = on(&SERVER).await;
    let limit = store.limits().max_payload();
    let longest = NewRecord::new(Revision::generate(), &[], Duration::MAX);
    let created = store.create(&key(1), &longest).await.unwrap();
    assert_eq!(created, CreateOutcome::Created(0));
    let payload: Vec<u8> = (0..limit).map(|n| (n % 251) as u8).collect();
    let seen = put(&store, 0, &payload).await;
    assert!(seen.payload()[..] == payload[..]);
    let update = store
        .update(&key(0), &seen, &new(&vec![0; limit + 1]))
        .await;
    assert_eq!(kind(update), StoreErrorKind::TooLarge);
    assert!(load(&store, 0).await.unwrap().payload()[..] == payload[..]);
    // What is left is the numbers, which may become longer than they are.
    let put = |size: usize| {
        client(SERVER.port())
            .update_item()
            .table_name(&table)
            .key("session_key", AttributeValue::S(key(0).to_string()))
            .update_expression("SET payload = :p")
            .expression_attribute_values(":p", AttributeValue::B(Blob::new(vec![0; size])))
            .send()
    };
    assert!(put(limit).await.is_ok());
    assert!(put(limit + 42).await.is_err());
}

#[tokio::test]
#[ignore = "needs dynoxide: run tests/run"]
async fn items_that_are_no_records_are_corrupt_and_can_be_deleted() {
    let (store, table) = on(&SERVER).await;
    let client = client(SERVER.port());
    let change = |expression: &str, value: Option<AttributeValue>| {
        client
            .update_item()
            .table_name(&table)
            .key("session_key", AttributeValue::S(key(0).to_string()))
            .update_expression(expression)
            .set_expression_attribute_values(value.map(|value| [(":v".to_owned(), value)].into()))
            .send()
    };
    let text = || Some(AttributeValue::S("text".to_owned()));
    let binary = |length| Some(AttributeValue::B(Blob::new(vec![0; length])));
    for (expression, value, replaceable) in [
        ("REMOVE revision", None, true),
        ("REMOVE payload", None, true),
        ("REMOVE expires_at_ms", None, true),
        ("SET revision = :v", binary(15), false),
        ("SET revision = :v", text(), false),
        ("SET payload = :v", text(), false),
        ("SET expires_at_ms = :v", text(), false),
    ] {
        let seen = put(&store, 0, b"good").await;
        change(expression, value).await.unwrap();
        assert_eq!(
            kind(store.load(&key(0)).await),
            StoreErrorKind::Corrupt,
            "{expression}"
        );
        match store.update(&key(0), &seen, &new(b"")).await {
            Err(error) => assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{expression}"),
            Ok(UpdateOutcome::Conflict) => {}
            // The revision is the one that was seen, so the payload may be replaced.
            Ok(outcome) => {
                assert_eq!(outcome, UpdateOutcome::Updated(0));
                assert!(expression.contains("payload"), "{expression}");
                store.delete(&key(0)).await.unwrap();
                continue;
            }
        }
        let created = store.create(&key(0), &new(b"new")).await.unwrap();
        match replaceable {
            true => assert_eq!(created, CreateOutcome::Created(0), "{expression}"),
            false => assert_eq!(created, CreateOutcome::Taken, "{expression}"),
        }
        store.delete(&key(0)).await.unwrap();
        assert!(load(&store, 0).await.is_none());
    }

    // A limit that was lowered.
    put(&store, 1, &[0; 100]).await;
    let builder = DynamoStore::builder_from_client(&client, &table).with_max_payload(99);
    let smaller = builder.connect().await.unwrap();
    assert_eq!(kind(smaller.load(&key(1)).await), StoreErrorKind::Corrupt);
}

#[tokio::test]
#[ignore = "needs dynoxide: run tests/run"]
async fn a_scan_passes_over_what_is_no_session() {
    let (store, table) = on(&SERVER).await;
    let client = client(SERVER.port());
    for number in 0..10 {
        put(&store, number, b"").await;
        client
            .put_item()
            .table_name(&table)
            .item(
                "session_key",
                AttributeValue::S(format!("foreign {number}")),
            )
            .send()
            .await
            .unwrap();
    }
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = store
            .scan(from.as_ref(), 3.try_into().unwrap())
            .await
            .unwrap();
        found.extend_from_slice(page.keys());
        from = page.into_next();
        if from.is_none() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, (0..10).map(key).collect::<Vec<_>>());
}

/// Answers requests as it was told, one after the other, and the last way for ever.
struct Script {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn of(answers: &[(u16, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let answers: Vec<_> = answers
            .iter()
            .map(|(status, body)| (*status, (*body).to_owned()))
            .collect();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, mut received) = (client.unwrap(), Vec::new());
                while let Some(body) = read_request(&mut client, &mut received) {
                    let at = {
                        let mut asked = noted.lock().unwrap();
                        asked.push(body);
                        asked.len().min(answers.len()) - 1
                    };
                    let (status, body) = &answers[at];
                    let head = format!(
                        "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\n\
                         content-length: {}\r\n\r\n",
                        body.len()
                    );
                    let _ = client.write_all((head + body).as_bytes());
                }
            }
        });
        Self { port, asked }
    }

    async fn store(&self, extra: &str) -> DynamoStore {
        let url = url(self.port, "sessions") + "&create_table=false" + extra;
        DynamoStore::connect(&url).await.unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// The last request's body.
    fn last(&self) -> String {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

/// Takes one request off the connection, and gives its body.
fn read_request(client: &mut TcpStream, received: &mut Vec<u8>) -> Option<String> {
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(received).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse::<usize>().unwrap());
            let end = head.len() + 4 + length;
            if received.len() >= end {
                let request: Vec<_> = received.drain(..end).collect();
                return Some(String::from_utf8_lossy(&request[end - length..]).into_owned());
            }
        }
        match client.read(&mut buffer) {
            Ok(count @ 1..) => received.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
}

fn refusal(code: &str) -> String {
    format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"hush"}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_strongly_consistent() {
    let script = Script::of(&[(200, "{}")]);
    let store = script.store("").await;
    assert!(load(&store, 0).await.is_none());
    assert!(
        script.last().contains(r#""ConsistentRead":true"#),
        "{}",
        script.last()
    );
    store.scan(None, std::num::NonZeroUsize::MIN).await.unwrap();
    assert!(
        script.last().contains(r#""ConsistentRead":true"#),
        "{}",
        script.last()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_unread_is_asked_again_for_a_while() {
    for code in [
        "ThrottlingException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
    ] {
        let throttled = refusal(code);
        let script = Script::of(&[(400, &throttled), (400, &throttled), (200, "{}")]);
        let created = script.store("").await.create(&key(0), &new(b"")).await;
        assert_eq!(created.unwrap(), CreateOutcome::Created(0));
        assert_eq!(script.asked(), 3);

        let script = Script::of(&[(400, &throttled)]);
        let store = script.store("&timeout=500ms").await;
        let start = Instant::now();
        let error = store.create(&key(0), &new(b"")).await.unwrap_err();
        assert!(
            start.elapsed() < Duration::from_millis(900),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains(code), "{error}");
        assert!((3..12).contains(&script.asked()), "{}", script.asked());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_otherwise_is_asked_once_and_says_why() {
    let large = r#"{"__type":"x#ValidationException","message":"Item size has exceeded the maximum allowed size"}"#;
    for (status, body, expected) in [
        (
            400,
            refusal("AccessDeniedException"),
            StoreErrorKind::Config,
        ),
        (
            400,
            refusal("UnrecognizedClientException"),
            StoreErrorKind::Config,
        ),
        (
            400,
            refusal("InvalidSignatureException"),
            StoreErrorKind::Config,
        ),
        (
            400,
            refusal("MissingAuthenticationTokenException"),
            StoreErrorKind::Config,
        ),
        (
            400,
            refusal("ResourceNotFoundException"),
            StoreErrorKind::Config,
        ),
        (400, refusal("ValidationException"), StoreErrorKind::Config),
        (400, large.to_owned(), StoreErrorKind::TooLarge),
        (
            500,
            refusal("InternalServerError"),
            StoreErrorKind::Unavailable,
        ),
        (
            503,
            refusal("ServiceUnavailable"),
            StoreErrorKind::Unavailable,
        ),
        (
            502,
            "<html>hush</html>".to_owned(),
            StoreErrorKind::Unavailable,
        ),
        (418, "hush".to_owned(), StoreErrorKind::Other),
        (200, "hush".to_owned(), StoreErrorKind::Other),
    ] {
        let script = Script::of(&[(status, &body)]);
        let store = script.store("").await;
        let error = store.load(&key(0)).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{body}: {error}");
        let seen = Record::new(Revision::generate(), bytes::Bytes::new(), HOUR);
        if status != 200 {
            let update = store.update(&key(0), &seen, &new(b"")).await;
            assert_eq!(kind(update), expected, "{body}");
            assert_eq!(script.asked(), 2, "{body}");
        }
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    }
    // The same, before there is a table: a right that is missing stops the application.
    let script = Script::of(&[(400, &refusal("AccessDeniedException"))]);
    let error = DynamoStore::connect(&url(script.port, "sessions"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn a_restart_is_waited_for_by_nobody_and_noticed_by_itself() {
    let mut server = dynoxide(true);
    let (store, _) = on(&server).await;
    let seen = put(&store, 0, b"here").await;
    // Idle meanwhile.
    block_in_place(|| {
        server.kill();
        server.start_again();
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(load(&store, 0).await.is_some());

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
    block_in_place(|| server.start_again());
    let update = store.update(&key(0), &seen, &new(b"there")).await.unwrap();
    assert_eq!(update, UpdateOutcome::Updated(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn a_frozen_server_is_a_timeout_and_then_forgiven() {
    let server = dynoxide(false);
    let (store, _) = on(&server).await;
    let seen = put(&store, 0, b"here").await;
    server.freeze();
    let timed = async |verb: &str| {
        let start = Instant::now();
        let kind = match verb {
            "load" => kind(store.load(&key(0)).await),
            "create" => kind(store.create(&key(1), &new(b"")).await),
            _ => kind(store.update(&key(0), &seen, &new(b"")).await),
        };
        (kind, start.elapsed())
    };
    let answers = tokio::join!(timed("load"), timed("create"), timed("update"));
    server.thaw();
    for (kind, took) in [answers.0, answers.1, answers.2] {
        assert_eq!(kind, StoreErrorKind::Timeout);
        assert!(took >= Duration::from_millis(1450), "{took:?}");
        // The rest is for a busy machine.
        assert!(took < Duration::from_millis(2400), "{took:?}");
    }
    assert!(load(&store, 0).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn requests_survive_a_server_that_is_killed() {
    let mut server = dynoxide(true);
    let url = url(server.port(), &new_table());
    drills::killed_and_restarted(&mut server, &url, Durable::Yes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn requests_survive_a_server_that_freezes() {
    let server = dynoxide(false);
    let url = url(server.port(), &new_table());
    drills::frozen(&server, &url, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn an_application_starts_before_its_server_and_its_table() {
    let mut server = dynoxide(false);
    block_in_place(|| server.kill());
    let url = url(server.port(), &new_table());
    drills::started_before_its_server(&mut server, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn nothing_is_sent_twice_when_the_answer_is_lost() {
    let server = dynoxide(false);
    let proxy = Proxy::to(server.address()).await;
    let url = url(proxy.port(), &new_table());
    drills::nothing_is_sent_twice(&proxy, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn nothing_is_sent_twice_by_a_client_of_the_users() {
    let listener = Listener::before(&SERVER);
    let proxy = Proxy::to(([127, 0, 0, 1], listener.port).into()).await;
    let client = client(proxy.port());
    let table = new_table();
    let store = DynamoStore::from_client(&client, &table).await.unwrap();
    for round in 0..10 {
        let seen = put(&store, round, b"here").await;
        listener.heard();
        proxy.arm();
        let lost = match round % 5 {
            0 => store.load(&key(round)).await.map(drop),
            1 => store.create(&key(100 + round), &new(b"")).await.map(drop),
            2 => store.update(&key(round), &seen, &new(b"")).await.map(drop),
            3 => store.touch(&key(round), &seen, HOUR).await.map(drop),
            _ => store.delete(&key(round)).await,
        };
        assert_eq!(kind(lost), StoreErrorKind::Unavailable, "round {round}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(listener.heard().len(), 1, "round {round}");
    }
    // Which the client itself would do.
    proxy.arm();
    let describe = client.describe_table().table_name(&table).send().await;
    assert!(describe.is_ok());
    assert_eq!(listener.heard(), ["DescribeTable", "DescribeTable"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn a_lost_answer_counts_at_most_once() {
    let server = dynoxide(false);
    let proxy = Proxy::to(server.address()).await;
    let url = url(proxy.port(), &new_table());
    drills::a_lost_answer_counts_at_most_once(&proxy, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn debug_and_errors_show_no_secret_no_key_and_no_data() {
    let mut server = dynoxide(false);
    let (store, table) = on(&server).await;
    let seen = put(&store, 7, b"hush").await;
    let mut errors = Vec::new();
    // The refusal brings the item along.
    let damage = client(server.port())
        .update_item()
        .table_name(&table)
        .key("session_key", AttributeValue::S(key(7).to_string()))
        .update_expression("REMOVE revision");
    damage.send().await.unwrap();
    errors.push(
        store
            .update(&key(7), &seen, &new(b"hush"))
            .await
            .unwrap_err(),
    );
    server.freeze();
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
    let mut shown = format!("{store:?} {seen:?}");
    for error in &errors {
        let mut link: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = link {
            shown.push_str(&format!(" {error} {error:?}"));
            link = error.source();
        }
    }
    assert!(shown.contains("DynamoStore"), "{shown}");
    for secret in ["hush", "104, 117", "aHVzaA", key(7).as_str()] {
        assert!(!shown.contains(secret), "{secret} is in {shown}");
    }
}

/// What a process of its own, with this environment, says of a store that it opens and uses.
fn in_a_process(url: &str, variables: &[(&str, &str)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["the_test_program_opens_a_store", "--exact", "--nocapture"])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env(URL, url)
        .envs(variables.iter().copied());
    let output = String::from_utf8(child.output().unwrap().stdout).unwrap();
    let said = output.lines().find_map(|line| line.strip_prefix("said "));
    said.expect(&output).to_owned()
}

const URL: &str = "STORE_TEST_URL";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_test_program_opens_a_store() {
    let Ok(url) = std::env::var(URL) else {
        let said = in_a_process("dynamodb://x", &[]);
        assert!(said.starts_with("Config"), "{said}");
        return;
    };
    let stored = async {
        let store = DynamoStore::connect(&url).await?;
        store.create(&key(0), &new(b"")).await
    };
    match stored.await {
        Ok(outcome) => println!("\nsaid {outcome:?}"),
        Err(error) => println!("\nsaid {:?} {error}", error.kind()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide: run tests/run"]
async fn the_environment_has_region_and_credentials() {
    let (id, secret, region) = (
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "local"),
    );
    let url = format!(
        "dynamodb://{}?endpoint=http://127.0.0.1:{}",
        new_table(),
        SERVER.port()
    );
    assert_eq!(in_a_process(&url, &[id, secret, region]), "Created(0)");
    for missing in [&[][..], &[id, secret], &[region]] {
        let said = in_a_process(&url, missing);
        assert!(
            said.starts_with("Config") && said.contains("AWS_REGION"),
            "{said}"
        );
    }
}

/// A TLS server that passes everything on, in Python.
const TLS: &str = r#"
import socket, ssl, sys, threading
port, certificate, key, to = sys.argv[1:]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)
def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    sink.close()
def serve(client):
    try:
        client = context.wrap_socket(client, server_side=True)
    except OSError:
        return
    server = socket.create_connection(("127.0.0.1", int(to)))
    threading.Thread(target=pump, args=(server, client), daemon=True).start()
    pump(client, server)
listener = socket.create_server(("127.0.0.1", int(port)))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs dynoxide, openssl and Python: run tests/run"]
async fn tls_trusts_the_systems_certificates_and_no_others() {
    let (folder, port) = (Folder::new("tls"), free_port());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (certificate, private) = (file("certificate.pem"), file("key.pem"));
    server::run(
        "openssl",
        [
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            &private,
            "-out",
            &certificate,
        ],
    );
    let (port_text, to) = (port.to_string(), SERVER.port().to_string());
    let command = [
        "python3",
        "-c",
        TLS,
        &port_text,
        &certificate,
        &private,
        &to,
    ];
    let command: Vec<_> = command.map(str::to_owned).into();
    let _server = Server::start("tls", folder, port, command);
    let url = url(port, &new_table()).replace("http://", "https://");
    let trusted = in_a_process(&url, &[("SSL_CERT_FILE", &certificate)]);
    assert_eq!(trusted, "Created(0)");
    let foreign = in_a_process(&url, &[]);
    assert!(
        foreign.starts_with("Config") && foreign.contains("certificate"),
        "{foreign}"
    );
    // Where no TLS is spoken.
    let plain = self::url(SERVER.port(), &new_table()).replace("http://", "https://");
    let plain = in_a_process(&plain, &[("SSL_CERT_FILE", &certificate)]);
    assert!(plain.starts_with("Config"), "{plain}");
}
