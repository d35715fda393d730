//! What happens to requests while a server fails: killed, frozen, cut off after it was asked.
//!
//! Needs `mod support;`, `support/apps.rs` and `support/server.rs` beside it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use session_layer::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionStore, UpdateOutcome,
};
use session_layer::{AnyStore, SessionConfig, SessionKey, StoreErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::apps;
use crate::server::Server;
use crate::support::{Browser, send};

/// The layer's own limits, and what a busy machine adds.
const ANSWERED: Duration = Duration::from_millis(2000 + 2000 + 2000);

/// Whether the store keeps what it has acknowledged when its server is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    Yes,
    /// A cache: sessions are gone afterwards.
    No,
}

async fn router(url: &str) -> Router {
    let store = AnyStore::connect(url).await.unwrap();
    apps::router(store, SessionConfig::default())
}

async fn log_in(router: &Router) -> Browser {
    let mut browser = Browser::default();
    let answer = browser.get(router, "/add").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    browser
}

/// Requests that come without pause, and what was answered.
struct Load {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    slowest: AtomicU64,
}

impl Load {
    fn start(router: &Router, browser: &Browser, path: &'static str) -> Self {
        let tally = Arc::new(Tally::default());
        let tasks = (0..4).map(|_| {
            let (router, browser, tally) = (router.clone(), browser.clone(), Arc::clone(&tally));
            tokio::spawn(async move {
                while !tally.stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let answer = send(&router, browser.request(path)).await;
                    let took = start.elapsed().as_millis() as u64;
                    tally.slowest.fetch_max(took, Ordering::Relaxed);
                    match answer.status.as_u16() {
                        200 => tally.acknowledged.fetch_add(1, Ordering::Relaxed),
                        503 => tally.refused.fetch_add(1, Ordering::Relaxed),
                        _ => panic!("{answer:?}"),
                    };
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        });
        Self {
            tasks: tasks.collect(),
            tally,
        }
    }

    fn acknowledged(&self) -> u64 {
        self.tally.acknowledged.load(Ordering::Relaxed)
    }

    fn refused(&self) -> u64 {
        self.tally.refused.load(Ordering::Relaxed)
    }

    async fn end(self) -> Arc<Tally> {
        self.tally.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.tally
    }
}

async fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// The server is killed under load and comes back. Requests fail with 503 meanwhile, those that leave
/// their session alone do not, and all is well again by itself.
pub async fn killed_and_restarted(server: &mut Server, url: &str, durable: Durable) {
    let router = router(url).await;
    let browser = log_in(&router).await;
    let load = Load::start(&router, &browser, "/add");
    until("load", ANSWERED, || load.acknowledged() > 20).await;

    tokio::task::block_in_place(|| server.kill());
    let refused = load.refused();
    until("refusals", ANSWERED, || load.refused() > refused + 8).await;
    let start = Instant::now();
    let answer = send(&router, browser.request("/untouched")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(1));
    let answer = send(&router, browser.request("/n")).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.sets_no_cookie(), "{answer:?}");

    tokio::task::block_in_place(|| server.start_again());
    let acknowledged = load.acknowledged();
    let recovery = until("recovery", Duration::from_secs(10), || {
        load.acknowledged() > acknowledged + 4
    })
    .await;
    let tally = load.end().await;
    let slowest = Duration::from_millis(tally.slowest.load(Ordering::Relaxed));
    println!("recovered {recovery:?} after the restart; slowest answer {slowest:?}");
    assert!(slowest < ANSWERED, "{slowest:?}");

    let answer = send(&router, browser.request("/n")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let (acknowledged, refused) = (
        tally.acknowledged.load(Ordering::Relaxed) + 1,
        tally.refused.load(Ordering::Relaxed),
    );
    match durable {
        Durable::Yes => {
            let n: u64 = answer.body.parse().expect("the session is there");
            assert!(
                (acknowledged..=acknowledged + refused).contains(&n),
                "{acknowledged} acknowledged, {refused} refused, {n} found"
            );
        }
        // The dead cookie starts no session that it could name.
        Durable::No => assert_eq!(answer.body, "none"),
    }
    log_in(&router).await;
}

/// The server stops answering for a while and keeps its connections. Every request is answered in
/// time, and all is well again by itself.
pub async fn frozen(server: &Server, url: &str, pause: Duration) {
    let router = router(url).await;
    let browser = log_in(&router).await;
    let load = Load::start(&router, &browser, "/add");
    until("load", ANSWERED, || load.acknowledged() > 20).await;
    server.freeze();
    tokio::time::sleep(pause).await;
    server.thaw();
    let acknowledged = load.acknowledged();
    let recovery = until("recovery", Duration::from_secs(10), || {
        load.acknowledged() > acknowledged + 4
    })
    .await;
    let tally = load.end().await;
    let slowest = Duration::from_millis(tally.slowest.load(Ordering::Relaxed));
    println!("recovered {recovery:?} after the thaw; slowest answer {slowest:?}");
    assert!(slowest < ANSWERED, "{slowest:?}");
    assert!(tally.refused.load(Ordering::Relaxed) > 0);
    let n: u64 = send(&router, browser.request("/n"))
        .await
        .body
        .parse()
        .unwrap();
    let (acknowledged, refused) = (
        tally.acknowledged.load(Ordering::Relaxed) + 1,
        tally.refused.load(Ordering::Relaxed),
    );
    assert!(
        (acknowledged..=acknowledged + refused).contains(&n),
        "{acknowledged} acknowledged, {refused} refused, {n} found"
    );
}

/// The application starts while its server is down, and works once it is up. `url` names a server
/// that is not running.
pub async fn started_before_its_server(server: &mut Server, url: &str) {
    let router = router(url).await;
    let answer = send(&router, Browser::default().request("/add")).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.sets_no_cookie(), "{answer:?}");
    tokio::task::block_in_place(|| server.start_again());
    let start = Instant::now();
    loop {
        let answer = send(&router, Browser::default().request("/add")).await;
        if answer.status == 200 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("worked {:?} after the start", start.elapsed());
}

/// Stands between a store and its server, and loses answers on demand.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    /// The next answer is cut off.
    armed: AtomicBool,
    cuts: AtomicUsize,
    connections: AtomicUsize,
    /// Bytes that the store has sent.
    sent: AtomicU64,
    /// What is in a request whose answer may be cut off.
    marker: &'static [u8],
    /// How often the store has spoken after the server had, or first.
    turns: AtomicUsize,
}

impl Proxy {
    pub async fn to(server: SocketAddr) -> Self {
        Self::for_requests_with(b"", server).await
    }

    /// The same for a driver that also asks by itself whether the server is well: only requests that
    /// contain `marker`, near their beginning, lose their answers.
    pub async fn for_requests_with(marker: &'static [u8], server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Wire {
            marker,
            ..Wire::default()
        });
        let wire = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                wire.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(forward(client, server, Arc::clone(&wire)));
            }
        });
        Self { address, shared }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on, the first answer after something was sent does not arrive: both sides are cut.
    pub fn arm(&self) {
        self.shared.armed.store(true, Ordering::SeqCst);
    }

    pub fn is_armed(&self) -> bool {
        self.shared.armed.load(Ordering::SeqCst)
    }

    /// How many answers were cut off.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many questions the store has asked, on all its connections: round trips.
    pub fn turns(&self) -> usize {
        self.shared.turns.load(Ordering::SeqCst)
    }

    /// How many bytes the store has sent.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

async fn forward(client: TcpStream, server: SocketAddr, wire: Arc<Wire>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // What was sent after the proxy was armed, on this connection: only its answer is cut.
    let asked = Arc::new(AtomicBool::new(false));
    let speaks = Arc::new(AtomicBool::new(false));
    let up = {
        let (wire, asked) = (Arc::clone(&wire), Arc::clone(&asked));
        let speaks = Arc::clone(&speaks);
        async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                let armed = wire.armed.load(Ordering::SeqCst);
                let marked = contains(&buffer[..count], wire.marker);
                // The rest of a large request has no marker.
                asked.store(
                    armed && (marked || asked.load(Ordering::SeqCst)),
                    Ordering::SeqCst,
                );
                wire.sent.fetch_add(count as u64, Ordering::Relaxed);
                if !speaks.swap(true, Ordering::SeqCst) {
                    wire.turns.fetch_add(1, Ordering::SeqCst);
                }
                if to_server.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
        }
    };
    let down = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            speaks.store(false, Ordering::SeqCst);
            if asked.load(Ordering::SeqCst) && wire.armed.swap(false, Ordering::SeqCst) {
                wire.cuts.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if to_client.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    // Either end ends both.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

fn contains(text: &[u8], marker: &[u8]) -> bool {
    marker.is_empty() || text.windows(marker.len()).any(|found| found == marker)
}

fn new_key() -> SessionKey {
    // Any 43 characters of the alphabet are a key.
    format!("{:043}", rand::random::<u128>()).parse().unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);

/// Verbs whose answer is lost after the server has carried them out: an error each, for a verb that
/// had been sent twice would find its own traces. `url` goes through `proxy`.
pub async fn nothing_is_sent_twice(proxy: &Proxy, url: &str) {
    let store = AnyStore::connect(url).await.unwrap();
    let lost = |kind| matches!(kind, StoreErrorKind::Unavailable | StoreErrorKind::Timeout);
    for _ in 0..10 {
        let first = new_key();
        // A connection that works, and every statement prepared.
        let new = NewRecord::new(Revision::generate(), b"0", HOUR);
        settled(|| store.create(&first, &new)).await;
        let seen = settled(|| store.load(&first)).await.expect("a record");
        let next = NewRecord::new(Revision::generate(), b"1", HOUR);
        assert!(matches!(
            store.update(&first, &seen, &next).await.unwrap(),
            UpdateOutcome::Updated(_)
        ));
        let seen = store.load(&first).await.unwrap().expect("a record");

        let mut cuts = proxy.cuts();
        let mut cut = || {
            let more = proxy.cuts() == cuts + 1;
            cuts = proxy.cuts();
            more
        };
        let key = new_key();
        let new = NewRecord::new(Revision::generate(), b"0", HOUR);
        proxy.arm();
        let error = store.create(&key, &new).await.expect_err("no answer");
        assert!(lost(error.kind()), "{error}");
        assert!(cut(), "the answer to create was not cut off");
        // It had arrived.
        let found = settled(|| store.load(&key)).await.expect("a record");
        assert_eq!(found.revision(), new.revision());

        let next = NewRecord::new(Revision::generate(), b"2", HOUR);
        let seen = settled(|| reload(&store, &first, &seen)).await;
        // Some drivers prepare a statement on each connection, which is a question of its own.
        let between = NewRecord::new(Revision::generate(), b"1", HOUR);
        assert!(matches!(
            store.update(&first, &seen, &between).await.unwrap(),
            UpdateOutcome::Updated(_)
        ));
        let seen = store.load(&first).await.unwrap().expect("a record");
        proxy.arm();
        let error = store
            .update(&first, &seen, &next)
            .await
            .expect_err("no answer");
        assert!(lost(error.kind()), "{error}");
        assert!(cut(), "the answer to update was not cut off");
        let found = settled(|| store.load(&first)).await.expect("a record");
        assert_eq!(found.revision(), next.revision());
    }
}

/// Reads again, so that the connection is a good one; the record has not changed.
async fn reload(
    store: &AnyStore,
    key: &SessionKey,
    seen: &Record,
) -> Result<Record, session_layer::StoreError> {
    let found = store.load(key).await?.expect("a record");
    assert_eq!(found.revision(), seen.revision());
    Ok(found)
}

/// Calls until there is an answer: the connection was cut a moment ago.
async fn settled<T, F>(mut call: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, session_layer::StoreError>>,
{
    let start = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(start.elapsed() < Duration::from_secs(10), "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// The same through the whole layer: what was answered with 503 counts at most once, the rest exactly
/// once. `url` goes through `proxy`.
pub async fn a_lost_answer_counts_at_most_once(proxy: &Proxy, url: &str) {
    let router = router(url).await;
    let browser = log_in(&router).await;
    let (mut least, mut most) = (1_u64, 1_u64);
    for _ in 0..10 {
        // A good connection, so that it is the write that meets the cut now and then.
        for _ in 0..3 {
            let answer = send(&router, browser.request("/add")).await;
            most += 1;
            least += u64::from(answer.status == 200);
        }
        proxy.arm();
        let answer = send(&router, browser.request("/add")).await;
        most += 1;
        least += u64::from(answer.status == 200);
        assert!([200, 503].contains(&answer.status.as_u16()), "{answer:?}");
    }
    let start = Instant::now();
    let n: u64 = loop {
        let answer = send(&router, browser.request("/n")).await;
        if answer.status == 200 {
            break answer.body.parse().unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{answer:?}");
    };
    assert!((least..=most).contains(&n), "{least} to {most}, {n} found");
    assert!(proxy.cuts() > 0);
}

/// Whether `create` of something new works now.
pub async fn creates(store: &AnyStore) -> bool {
    let new = NewRecord::new(Revision::generate(), b"x", HOUR);
    matches!(
        store.create(&new_key(), &new).await,
        Ok(CreateOutcome::Created(_))
    )
}
