//! What a healthy server sees: commands, plans, documents, indexes.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::options::{ClientOptions, ReadPreference, WriteConcern};
use session_layer::AnyStore;
use session_layer::store::{Cursor, ScanStore, TouchOutcome, UpdateOutcome};

use super::*;

/// What the server did for stores since the last time it was asked, and how many bytes it answered.
async fn done(database: &mongodb::Database) -> (BTreeMap<String, usize>, i32) {
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let profile = database.collection::<Document>("system.profile");
    let (mut counts, mut bytes) = (BTreeMap::new(), 0);
    // Only stores of this crate call themselves so.
    let mut entries = profile
        .find(doc! { "appName": "session-layer" })
        .await
        .unwrap();
    while entries.advance().await.unwrap() {
        let entry = entries.deserialize_current().unwrap();
        let command = entry.get_document("command").unwrap();
        let operation = match entry.get_str("op").unwrap() {
            "command" => command.keys().next().unwrap(),
            operation => operation,
        };
        *counts.entry(operation.to_owned()).or_default() += 1;
        bytes += entry.get_i32("responseLength").unwrap_or(0);
    }
    profile.drop().await.unwrap();
    database
        .run_command(doc! { "profile": 2, "slowms": 0 })
        .await
        .unwrap();
    (counts, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn each_verb_is_one_command() {
    let url = tokio::task::block_in_place(single_url);
    let (store, raw) = opened(&url).await;
    let database = raw.client().default_database().unwrap();
    let large = vec![7; 100_000];
    let did = async |expected: &[(&str, usize)], largest_answer: i32| {
        let (counts, bytes) = done(&database).await;
        let expected = expected.iter().map(|(name, n)| ((*name).to_owned(), *n));
        assert_eq!(counts, expected.collect());
        assert!(bytes <= largest_answer, "{bytes} bytes: {counts:?}");
    };
    did(&[], 0).await;
    store.create(&new_key(), &new(&large)).await.unwrap();
    did(&[("createIndexes", 1), ("update", 1)], 1000).await;

    let keys: Vec<_> = (0..10).map(|_| new_key()).collect();
    for key in &keys {
        store.create(key, &new(&large)).await.unwrap();
    }
    did(&[("update", 10)], 3000).await;
    for key in &keys {
        let outcome = store.create(key, &new(&large)).await.unwrap();
        assert_eq!(outcome, CreateOutcome::Taken);
    }
    did(&[("update", 10)], 3000).await;
    let mut seen = Vec::new();
    for key in &keys {
        seen.push(get(&store, key).await);
    }
    did(&[("query", 10)], 1_010_000).await;
    for (key, seen) in keys.iter().zip(&seen) {
        let outcome = store.touch(key, seen, HOUR).await.unwrap();
        assert_eq!(outcome, TouchOutcome::Touched(0));
    }
    did(&[("update", 10)], 3000).await;
    for (key, seen) in keys.iter().zip(&seen) {
        let outcome = store.update(key, seen, &new(&large)).await.unwrap();
        assert_eq!(outcome, UpdateOutcome::Updated(0));
    }
    did(&[("update", 10)], 3000).await;
    for (key, seen) in keys.iter().zip(&seen) {
        let outcome = store.update(key, seen, &new(&large)).await.unwrap();
        assert_eq!(outcome, UpdateOutcome::Conflict);
        let outcome = store.touch(&new_key(), seen, HOUR).await.unwrap();
        assert_eq!(outcome, TouchOutcome::Gone);
    }
    did(&[("update", 20)], 6000).await;
    for key in &keys {
        store.delete(key).await.unwrap();
    }
    did(&[("remove", 10)], 3000).await;
    for _ in 0..10 {
        assert_eq!(store.delete_expired(NonZeroUsize::MAX).await.unwrap(), 0);
    }
    did(&[], 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn every_command_goes_by_the_index_of_the_keys() {
    let url = tokio::task::block_in_place(single_url);
    let (store, raw) = opened(&url).await;
    let database = raw.client().default_database().unwrap();
    let mut keys = Vec::new();
    for _ in 0..50 {
        let key = new_key();
        put(&store, &key, b"x").await;
        keys.push(key);
    }
    database
        .run_command(doc! { "profile": 2, "slowms": 0 })
        .await
        .unwrap();
    let seen = get(&store, &keys[0]).await;
    store.touch(&keys[0], &seen, HOUR).await.unwrap();
    store.update(&keys[0], &seen, &new(b"y")).await.unwrap();
    store.update(&keys[0], &seen, &new(b"y")).await.unwrap();
    store.create(&keys[1], &new(b"y")).await.unwrap();
    store.create(&new_key(), &new(b"y")).await.unwrap();
    store.delete(&keys[2]).await.unwrap();
    let page = store.scan(None, NonZeroUsize::new(5).unwrap()).await;
    assert_eq!(page.unwrap().keys().len(), 5);
    database.run_command(doc! { "profile": 0 }).await.unwrap();

    let mut profile = database
        .collection::<Document>("system.profile")
        .find(doc! { "ns": raw.namespace().to_string() })
        .await
        .unwrap();
    let mut plans = Vec::new();
    while profile.advance().await.unwrap() {
        let entry = profile.deserialize_current().unwrap();
        let Ok(plan) = entry.get_str("planSummary") else {
            continue;
        };
        let examined = entry.get_i32("docsExamined").unwrap_or(0);
        assert!(["IDHACK", "IXSCAN { _id: 1 }"].contains(&plan), "{entry}");
        assert!(examined <= 1, "{entry}");
        plans.push(entry.get_str("op").unwrap().to_owned());
    }
    let operations: BTreeSet<_> = plans.iter().map(String::as_str).collect();
    assert_eq!(operations, BTreeSet::from(["query", "remove", "update"]));
    assert_eq!(plans.len(), 8, "{plans:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_document_has_the_documented_form() {
    let url = tokio::task::block_in_place(single_url);
    let (store, raw) = opened(&url).await;
    let key = new_key();
    let before = DateTime::now().timestamp_millis();
    let record = put(&store, &key, b"payload").await;
    let document = raw.find_one(doc! {}).await.unwrap().unwrap();
    let names: Vec<_> = document.keys().map(String::as_str).collect();
    assert_eq!(names, ["_id", "revision", "payload", "expires_at"]);
    assert_eq!(document.get_str("_id").unwrap(), key.as_str());
    let revision = record.revision().as_bytes().to_vec();
    assert_eq!(document.get_binary_generic("revision").unwrap(), &revision);
    let payload = document.get_binary_generic("payload").unwrap();
    assert_eq!(payload, b"payload");
    let expires_at = document.get_datetime("expires_at").unwrap();
    let left = expires_at.timestamp_millis() - before;
    // This server's clock is this machine's.
    assert!((3_600_000..3_660_000).contains(&left), "{left}");

    store.update(&key, &record, &new(b"other")).await.unwrap();
    let document = raw.find_one(doc! {}).await.unwrap().unwrap();
    let names: Vec<_> = document.keys().map(String::as_str).collect();
    assert_eq!(names, ["_id", "revision", "payload", "expires_at"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn renewals_in_the_same_millisecond_are_renewals() {
    let url = tokio::task::block_in_place(single_url);
    let (store, _) = opened(&format!("{url}?w=1&journal=false")).await;
    let key = new_key();
    let seen = put(&store, &key, b"x").await;
    for _ in 0..10 {
        let touches = (0..50).map(|_| store.touch(&key, &seen, HOUR));
        for touch in futures_util::future::join_all(touches).await {
            assert_eq!(touch.unwrap(), TouchOutcome::Touched(0));
        }
    }
    let left = get(&store, &key).await.ttl();
    assert!(left <= HOUR + Duration::from_millis(1), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn the_largest_documents_are_kept_whole() {
    const LARGEST: usize = 16 * 1024 * 1024 - 16 * 1024;
    let single = tokio::task::block_in_place(single_url);
    let set = set().await.url(&fresh("db"));
    for url in [single, set] {
        let store = MongoStore::builder(patient(&url))
            .with_max_payload(LARGEST)
            .connect()
            .await
            .unwrap();
        let key = new_key();
        let mut payload = vec![1; LARGEST];
        payload[LARGEST - 1] = 2;
        let seen = put(&store, &key, &payload).await;
        assert!(seen.payload()[..] == payload);
        payload[0] = 3;
        let update = store.update(&key, &seen, &new(&payload)).await.unwrap();
        assert_eq!(update, UpdateOutcome::Updated(0));
        let seen = get(&store, &key).await;
        assert!(seen.payload()[..] == payload);
        payload.push(0);
        let update = store.update(&key, &seen, &new(&payload)).await;
        assert_eq!(kind(update), StoreErrorKind::TooLarge);
        assert_eq!(get(&store, &key).await.revision(), seen.revision());
    }
}

/// The options of the index that removes expired documents.
async fn ttl_index(raw: &mongodb::Collection<Document>) -> Option<(String, Option<Duration>)> {
    let mut indexes = raw.list_indexes().await.ok()?;
    while indexes.advance().await.unwrap() {
        let index = indexes.deserialize_current().unwrap();
        if index.keys == doc! { "expires_at": 1 } {
            let options = index.options.unwrap();
            return Some((options.name.unwrap(), options.expire_after));
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn the_first_record_brings_the_index_unless_told_otherwise() {
    let url = tokio::task::block_in_place(single_url);
    let (store, raw) = opened(&url).await;
    assert!(store.load(&new_key()).await.unwrap().is_none());
    assert_eq!(ttl_index(&raw).await, None);
    put(&store, &new_key(), b"x").await;
    let made = Some(("expires_at_1".to_owned(), Some(Duration::ZERO)));
    assert_eq!(ttl_index(&raw).await, made);
    // A second process finds it there.
    let (again, _) = opened(&url).await;
    put(&again, &new_key(), b"x").await;
    again.migrate().await.unwrap();

    let url = tokio::task::block_in_place(single_url);
    let (_, raw) = opened(&url).await;
    let store = MongoStore::builder(&url).with_create_index(false);
    let store = store.connect().await.unwrap();
    put(&store, &new_key(), b"x").await;
    assert_eq!(ttl_index(&raw).await, None);
    store.migrate().await.unwrap();
    assert_eq!(ttl_index(&raw).await, made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn an_index_of_somebody_elses_does_if_it_removes_what_has_expired() {
    let database = fresh("db");
    let at = tokio::task::block_in_place(single).address();
    let client = client_of(at).await;
    let with = |name: &str, keys: Document, options: Document| {
        let mut index = doc! { "key": keys, "name": name };
        index.extend(options);
        doc! { "indexes": [index] }
    };
    let expires = || doc! { "expires_at": 1 };
    for (collection, index, does) in [
        // Codes 85 and 86 of the server.
        (
            "a",
            with("ttl", expires(), doc! { "expireAfterSeconds": 0 }),
            true,
        ),
        (
            "b",
            with(
                "expires_at_1",
                expires(),
                doc! { "expireAfterSeconds": 3600 },
            ),
            true,
        ),
        ("c", with("expires_at_1", expires(), doc! {}), false),
        (
            "d",
            with("expires_at_1", doc! { "revision": 1 }, doc! {}),
            false,
        ),
        (
            "e",
            with(
                "some",
                expires(),
                doc! { "expireAfterSeconds": 0, "partialFilterExpression": { "old": true } },
            ),
            // The server makes ours beside it.
            true,
        ),
    ] {
        let mut command = doc! { "createIndexes": collection };
        command.extend(index);
        client
            .database(&database)
            .run_command(command)
            .await
            .unwrap();
        let store = MongoStore::connect(&format!(
            "mongodb://{at}/{database}?collection={collection}"
        ))
        .await
        .unwrap();
        let key = new_key();
        if does {
            put(&store, &key, b"x").await;
            store.migrate().await.unwrap();
            continue;
        }
        for error in [
            store.create(&key, &new(b"x")).await.unwrap_err(),
            store.migrate().await.unwrap_err(),
            store.create(&key, &new(b"x")).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), StoreErrorKind::Config, "{collection}");
            assert!(error.to_string().contains("expires_at"), "{error}");
        }
        assert!(store.load(&key).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn the_server_removes_what_has_expired() {
    let options = ["--setParameter=ttlMonitorSleepSecs=1"];
    let server = tokio::task::block_in_place(|| mongod(&options));
    let (store, raw) = opened(&format!("mongodb://{}/app", server.address())).await;
    let (brief, long) = (new_key(), new_key());
    let new_brief = NewRecord::new(Revision::generate(), b"", Duration::from_millis(300));
    store.create(&brief, &new_brief).await.unwrap();
    put(&store, &long, b"kept").await;
    assert_eq!(raw.count_documents(doc! {}).await.unwrap(), 2);
    let start = std::time::Instant::now();
    while raw.count_documents(doc! {}).await.unwrap() == 2 {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing went");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    get(&store, &long).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn documents_that_are_no_records_are_corrupt_and_can_be_replaced() {
    let url = tokio::task::block_in_place(single_url);
    let (store, raw) = opened(&url).await;
    let binary = |bytes: &[u8]| {
        Bson::Binary(Binary {
            subtype: BinarySubtype::Generic,
            bytes: bytes.to_vec(),
        })
    };
    let later = DateTime::from_millis(DateTime::now().timestamp_millis() + 3_600_000);
    let seen = Record::new(
        Revision::from_bytes([9; 16]),
        bytes::Bytes::from_static(b"x"),
        HOUR,
    );
    for damaged in [
        doc! {},
        doc! { "user": "somebody else's document" },
        doc! { "expires_at": later },
        doc! { "expires_at": later, "revision": binary(&[1; 15]), "payload": binary(b"x") },
        doc! { "expires_at": later, "revision": "text", "payload": binary(b"x") },
        doc! { "expires_at": later, "revision": binary(&[1; 16]), "payload": ["x"] },
        doc! { "expires_at": later, "revision": binary(&[1; 16]) },
        doc! { "expires_at": "2999-01-01", "revision": binary(&[1; 16]), "payload": binary(b"x") },
        doc! { "expires_at": i64::MAX, "revision": binary(&[1; 16]), "payload": binary(b"x") },
        doc! { "expires_at": { "no": 1 }, "revision": binary(&[1; 16]), "payload": binary(b"x") },
    ] {
        let key = new_key();
        let mut document = doc! { "_id": key.as_str() };
        document.extend(damaged);
        raw.insert_one(&document).await.unwrap();
        let load = store.load(&key).await;
        assert_eq!(kind(load), StoreErrorKind::Corrupt, "{document}");
        let update = store.update(&key, &seen, &new(b"y")).await.unwrap();
        assert!(!matches!(update, UpdateOutcome::Updated(_)), "{document}");
        let touch = store.touch(&key, &seen, HOUR).await.unwrap();
        assert!(!matches!(touch, TouchOutcome::Touched(_)), "{document}");
        let unchanged = raw.find_one(doc! { "_id": key.as_str() }).await.unwrap();
        assert_eq!(unchanged.as_ref(), Some(&document));

        let record = put(&store, &key, b"whole").await;
        assert_eq!(&record.payload()[..], b"whole");
        store.delete(&key).await.unwrap();
        raw.insert_one(&document).await.unwrap();
        store.delete(&key).await.unwrap();
        assert!(store.load(&key).await.unwrap().is_none());
    }
}

async fn keys_of(store: &impl ScanStore, page: usize) -> Vec<SessionKey> {
    let (mut keys, mut from) = (Vec::new(), None);
    loop {
        let page = store.scan(from.as_ref(), NonZeroUsize::new(page).unwrap());
        let page = page.await.unwrap();
        keys.extend(page.keys());
        from = page.into_next();
        if from.is_none() {
            return keys;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_scan_meets_each_session_once_and_nothing_else() {
    let url = tokio::task::block_in_place(single_url);
    let (store, raw) = opened(&url).await;
    assert!(keys_of(&store, 3).await.is_empty());
    let mut expected = Vec::new();
    for text in ["-", "_", "0", "A", "a", "z", "Z", "9"] {
        expected.push(text.repeat(43).parse().unwrap());
    }
    expected.extend((0..13).map(|_| new_key()));
    for key in &expected {
        put(&store, key, b"x").await;
    }
    for foreign in [
        Bson::String("short".to_owned()),
        Bson::String("x".repeat(44)),
        Bson::String(format!("{}é", "x".repeat(42))),
        Bson::String(format!("{}\n", "x".repeat(43))),
        Bson::String(String::new()),
        Bson::Int32(7),
        Bson::ObjectId(mongodb::bson::oid::ObjectId::new()),
        Bson::Null,
    ] {
        raw.insert_one(doc! { "_id": foreign }).await.unwrap();
    }
    expected.sort();
    for page in [1, 2, 7, 21, 22, 100, usize::MAX] {
        let mut keys = keys_of(&store, page).await;
        keys.sort();
        assert_eq!(keys, expected, "in pages of {page}");
    }
    // Through a store whose type is forgotten, too.
    let any = AnyStore::connect(&url).await.unwrap();
    assert_eq!(keys_of(&any, 5).await.len(), expected.len());
    for cursor in ["", "17", "\0", &"é".repeat(43)] {
        let cursor = Cursor::new(cursor);
        let page = store.scan(Some(&cursor), NonZeroUsize::MIN).await;
        assert_eq!(kind(page), StoreErrorKind::Config);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_client_of_the_users_is_used_and_read_from_the_primary() {
    let set = set().await;
    let mut options = ClientOptions::parse(set.url("ignored")).await.unwrap();
    // Finds no server in a set without secondaries.
    options.selection_criteria = Some(ReadPreference::Secondary { options: None }.into());
    options.write_concern = Some(WriteConcern::nodes(1));
    options.server_selection_timeout = Some(Duration::from_secs(1));
    let client = Client::with_options(options).unwrap();
    let database = fresh("db");
    let store = MongoStore::from_client(client.clone(), &database).unwrap();
    let key = new_key();
    put(&store, &key, b"x").await;
    assert!(format!("{store:?}").contains(&database));
    let raw = client_of(set.members[0].address()).await;
    let raw = raw.database(&database).collection::<Document>("sessions");
    assert_eq!(raw.count_documents(doc! {}).await.unwrap(), 1);
    for bad in ["", "a.b", "admin", "a\0"] {
        let store = MongoStore::from_client(client.clone(), bad);
        assert_eq!(kind(store), StoreErrorKind::Config, "{bad:?}");
    }
}
