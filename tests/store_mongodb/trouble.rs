//! Servers that are down, slow, strange, or say no.

use mongodb::bson::doc;
use mongodb::options::ClientOptions;
use session_layer::AnyStore;
use session_layer::store::{ScanStore, TouchOutcome, UpdateOutcome};

use super::drills::{self, Durable, Proxy};
use super::*;

const CANARY: &str = "hush-canary-4711";

async fn open(url: String) -> MongoStore {
    MongoStore::connect(&url).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_killed_server_is_found_again() {
    let mut server = tokio::task::block_in_place(|| mongod(&[]));
    let url = format!("mongodb://{}/app", server.address());
    drills::killed_and_restarted(&mut server, &url, Durable::Yes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_killed_set_of_one_is_found_again() {
    let mut set = ReplicaSet::start(1).await;
    let url = set.url("app");
    drills::killed_and_restarted(&mut set.members[0], &url, Durable::Yes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_restart_between_two_requests_is_not_noticed() {
    let mut server = tokio::task::block_in_place(|| mongod(&[]));
    let (store, _) = opened(&format!("mongodb://{}/app", server.address())).await;
    let key = new_key();
    let seen = put(&store, &key, b"x").await;
    tokio::task::block_in_place(|| {
        server.kill();
        server.start_again();
    });
    // The driver's monitor notices at once that the server went.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let update = store.update(&key, &seen, &new(b"y")).await.unwrap();
    assert_eq!(update, UpdateOutcome::Updated(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_frozen_server_is_waited_for_so_long_and_no_longer() {
    let server = tokio::task::block_in_place(|| mongod(&[]));
    let url = format!("mongodb://{}/app", server.address());
    drills::frozen(&server, &url, Duration::from_secs(4)).await;

    let (store, _) = opened(&url).await;
    let key = new_key();
    let seen = put(&store, &key, b"x").await;
    server.freeze();
    let start = std::time::Instant::now();
    let (load, update, create, delete) = tokio::join!(
        store.load(&key),
        async { store.update(&key, &seen, &new(b"y")).await },
        async { store.create(&new_key(), &new(b"y")).await },
        store.delete(&key),
    );
    let took = start.elapsed();
    server.thaw();
    for kind in [kind(load), kind(update), kind(create), kind(delete)] {
        assert_eq!(kind, StoreErrorKind::Timeout);
    }
    // Its own limit is 1.5 s; the rest is for a busy machine.
    assert!(took >= Duration::from_millis(1400), "{took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn an_application_may_start_before_its_server() {
    let mut server = tokio::task::block_in_place(|| {
        let mut server = mongod(&[]);
        server.stop();
        server
    });
    let url = format!("mongodb://{}/app", server.address());
    let start = std::time::Instant::now();
    let store = MongoStore::connect(&url).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(900));
    let load = store.load(&new_key()).await;
    assert_eq!(kind(load), StoreErrorKind::Unavailable);
    drills::started_before_its_server(&mut server, &url).await;
    assert!(store.load(&new_key()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_single_server_is_sent_nothing_twice() {
    let at = tokio::task::block_in_place(single).address();
    let proxy = Proxy::for_requests_with(b"sessions", at).await;
    let url = format!("mongodb://127.0.0.1:{}/{}", proxy.port(), fresh("db"));
    drills::nothing_is_sent_twice(&proxy, &url).await;
    drills::a_lost_answer_counts_at_most_once(&proxy, &url).await;
}

/// How many statements the server has recognised as sent before.
async fn recognised(client: &Client) -> i64 {
    let status = mongod::admin(client, doc! { "serverStatus": 1 }).await;
    let transactions = status.get_document("transactions").unwrap();
    transactions.get_i64("retriedStatementsCount").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_replica_set_recognises_what_is_sent_twice() {
    let set = ReplicaSet::start(1).await;
    let at = set.members[0].address();
    let client = client_of(at).await;
    let proxy = Proxy::for_requests_with(b"sessions", at).await;
    let url = format!(
        "mongodb://127.0.0.1:{}/app?directConnection=true",
        proxy.port()
    );
    let store = MongoStore::connect(&url).await.unwrap();
    put(&store, &new_key(), b"x").await;
    assert_eq!(recognised(&client).await, 0);
    let cut = async || {
        let cuts = proxy.cuts();
        // A connection that works.
        while store.load(&new_key()).await.is_err() {}
        proxy.arm();
        cuts + 1
    };
    for round in 1..=3 {
        let key = new_key();
        let made = new(b"made");
        let cuts = cut().await;
        let create = store.create(&key, &made).await.unwrap();
        assert_eq!((create, proxy.cuts()), (CreateOutcome::Created(0), cuts));
        assert_eq!(recognised(&client).await, 4 * round - 3);

        let seen = get(&store, &key).await;
        assert_eq!(seen.revision(), made.revision());
        let cuts = cut().await;
        let touch = store.touch(&key, &seen, 2 * HOUR).await.unwrap();
        assert_eq!((touch, proxy.cuts()), (TouchOutcome::Touched(0), cuts));

        let next = new(b"next");
        let cuts = cut().await;
        let update = store.update(&key, &seen, &next).await.unwrap();
        assert_eq!((update, proxy.cuts()), (UpdateOutcome::Updated(0), cuts));
        assert_eq!(get(&store, &key).await.revision(), next.revision());

        let cuts = cut().await;
        store.delete(&key).await.unwrap();
        assert_eq!(proxy.cuts(), cuts);
        assert_eq!(recognised(&client).await, 4 * round);
    }
    drills::a_lost_answer_counts_at_most_once(&proxy, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn a_replica_set_is_sent_nothing_twice_where_the_url_says_so() {
    let at = set().await.members[0].address();
    let proxy = Proxy::for_requests_with(b"sessions", at).await;
    let (port, database) = (proxy.port(), fresh("db"));
    let url = format!("mongodb://127.0.0.1:{port}/{database}?directConnection=true");
    drills::nothing_is_sent_twice(&proxy, &format!("{url}&retryWrites=false")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn passwords_and_privileges_are_told_apart_and_never_told() {
    let server = tokio::task::block_in_place(|| mongod(&["--auth"]));
    let at = server.address();
    // The first user may be made from this machine without being one.
    let first = client_of(at).await;
    let root = doc! { "createUser": "root", "pwd": "root", "roles": ["root"] };
    mongod::admin(&first, root).await;
    let root = Client::with_options(
        ClientOptions::parse(format!("mongodb://root:root@{at}/?authSource=admin"))
            .await
            .unwrap(),
    )
    .unwrap();
    let app = root.database("app");
    let least = ["find", "insert", "update", "remove"];
    for (name, actions) in [
        ("full", &[&least[..], &["createIndex"]].concat()[..]),
        ("least", &least[..]),
        ("reader", &least[..1]),
    ] {
        let privilege = doc! {
            "resource": { "db": "app", "collection": "sessions" },
            "actions": actions,
        };
        app.run_command(doc! { "createRole": name, "privileges": [privilege], "roles": [] })
            .await
            .unwrap();
        app.run_command(doc! { "createUser": name, "pwd": CANARY, "roles": [name] })
            .await
            .unwrap();
    }
    let open_as = async |user: &str, password: &str, more: &str| {
        // Unoptimised, a password takes long to be hashed.
        open(format!(
            "mongodb://{user}:{password}@{at}/app?timeout=15s{more}"
        ))
        .await
    };

    // What docs/stores.md says is enough.
    let full = open_as("full", CANARY, "").await;
    let key = new_key();
    let payload = format!("payload {CANARY}");
    let seen = put(&full, &key, payload.as_bytes()).await;
    full.touch(&key, &seen, HOUR).await.unwrap();
    full.update(&key, &seen, &new(b"y")).await.unwrap();
    let page = full.scan(None, std::num::NonZeroUsize::MIN).await.unwrap();
    assert_eq!(page.keys(), [key]);
    full.migrate().await.unwrap();
    full.delete(&key).await.unwrap();
    // And without the index.
    let least = open_as("least", CANARY, "&create_index=false").await;
    put(&least, &key, payload.as_bytes()).await;

    let least = open_as("least", CANARY, "").await;
    let reader = open_as("reader", CANARY, "&create_index=false").await;
    let stranger = open_as("full", &format!("{CANARY}x"), "").await;
    let nobody = open_as("nobody", CANARY, "").await;
    let anonymous = open(format!("mongodb://{at}/app")).await;
    let record = new(payload.as_bytes());
    assert!(reader.load(&key).await.unwrap().is_some());
    let errors = [
        least.create(&key, &record).await.unwrap_err(),
        least.migrate().await.unwrap_err(),
        reader.create(&key, &record).await.unwrap_err(),
        reader.update(&key, &seen, &record).await.unwrap_err(),
        reader.touch(&key, &seen, HOUR).await.unwrap_err(),
        reader.delete(&key).await.unwrap_err(),
        stranger.load(&key).await.unwrap_err(),
        stranger.create(&key, &record).await.unwrap_err(),
        nobody.load(&key).await.unwrap_err(),
        anonymous.load(&key).await.unwrap_err(),
        anonymous.update(&key, &seen, &record).await.unwrap_err(),
    ];
    for error in &errors {
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error:?}");
        assert_tells_none_of(&[CANARY, key.as_str()], error);
    }
    assert!(
        errors[0].to_string().contains("createIndex"),
        "{}",
        errors[0]
    );
    assert!(errors[6].to_string().contains("password"), "{}", errors[6]);
    for shown in [
        format!("{stranger:?}"),
        format!(
            "{:?}",
            MongoStore::builder(format!("mongodb://u:{CANARY}@h"))
        ),
    ] {
        assert!(
            shown.contains("MongoStore") && !shown.contains(CANARY),
            "{shown}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn what_the_collection_refuses_is_configuration_and_is_not_quoted() {
    let url = tokio::task::block_in_place(single_url);
    let (store, raw) = opened(&url).await;
    let database = raw.client().default_database().unwrap();
    let index = doc! { "key": { "payload": 1 }, "name": "payload", "unique": true };
    database
        .run_command(doc! { "createIndexes": "sessions", "indexes": [index] })
        .await
        .unwrap();
    let (key, other, refused) = (new_key(), new_key(), new_key());
    put(&store, &key, CANARY.as_bytes()).await;
    let seen = put(&store, &other, b"x").await;
    let twice = new(CANARY.as_bytes());
    let mut errors = vec![
        store.create(&refused, &twice).await.unwrap_err(),
        store.update(&other, &seen, &twice).await.unwrap_err(),
    ];
    database
        .run_command(doc! {
            "collMod": "sessions",
            "validator": { "user": { "$exists": true } },
        })
        .await
        .unwrap();
    errors.push(
        store
            .create(&refused, &new(CANARY.as_bytes()))
            .await
            .unwrap_err(),
    );
    database
        .run_command(doc! { "create": "view", "viewOn": "sessions", "pipeline": [] })
        .await
        .unwrap();
    let view = open(format!("{url}?collection=view&create_index=false")).await;
    errors.push(view.create(&key, &twice).await.unwrap_err());
    for error in &errors {
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error:?}");
        let keys = [&key, &other, &refused].map(SessionKey::as_str);
        assert_tells_none_of(&[&keys[..], &[CANARY]].concat(), error);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn concerns_that_the_servers_cannot_meet_are_configuration() {
    let single = tokio::task::block_in_place(single_url);
    let store = open(format!("{single}?readConcernLevel=linearizable")).await;
    let load = store.load(&new_key()).await;
    assert_eq!(kind(load), StoreErrorKind::Config);
    let url = set().await.url(&fresh("db"));
    for concern in ["w=3", "w=nosuchmode"] {
        let store = open(format!("{url}&{concern}&create_index=false")).await;
        let create = store.create(&new_key(), &new(b"x")).await;
        assert_eq!(kind(create), StoreErrorKind::Config, "{concern}");
    }
    let store = open(format!("{url}&readConcernLevel=linearizable")).await;
    put(&store, &new_key(), b"x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: run tests/run"]
async fn tls_is_set_up_through_the_url() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    // Two authorities; the server's certificate is by the first.
    for ca in ["ca", "other"] {
        openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} -keyout {key} -out {cert} \
             -addext basicConstraints=critical,CA:TRUE",
            key = at(&format!("{ca}.key")),
            cert = at(&format!("{ca}.crt")),
        ));
    }
    std::fs::write(at("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(&format!(
        "req -newkey rsa:2048 -nodes -subj /CN=server -keyout {} -out {}",
        at("server.key"),
        at("server.csr")
    ));
    openssl(&format!(
        "x509 -req -days 2 -in {} -CA {} -CAkey {} -CAcreateserial -extfile {} -out {}",
        at("server.csr"),
        at("ca.crt"),
        at("ca.key"),
        at("ext"),
        at("server.crt")
    ));
    let both = ["server.key", "server.crt"].map(|name| std::fs::read(at(name)).unwrap());
    std::fs::write(at("server.pem"), both.concat()).unwrap();
    let server = tokio::task::block_in_place(|| {
        mongod(&[
            "--tlsMode=requireTLS",
            &format!("--tlsCertificateKeyFile={}", at("server.pem")),
            &format!("--tlsCAFile={}", at("ca.crt")),
            "--tlsAllowConnectionsWithoutCertificates",
        ])
    });
    let url = format!("mongodb://{}/app", server.address());
    let any = AnyStore::connect(&format!("{url}?tls=true&tlsCAFile={}", at("ca.crt"))).await;
    assert!(drills::creates(&any.unwrap()).await);
    for settings in [
        "",
        &format!("?tls=true&tlsCAFile={}", at("other.crt")),
        "?tls=true",
    ] {
        let store = MongoStore::connect(&format!("{url}{settings}"))
            .await
            .unwrap();
        let load = store.load(&new_key()).await;
        assert_eq!(kind(load), StoreErrorKind::Unavailable, "{settings}");
    }
}

fn openssl(arguments: &str) {
    server::run("openssl", arguments.split_whitespace());
}
