//! Applications in processes of their own that share one store: the test program starts itself, and
//! each process serves a router on a socket.
//!
//! Needs `mod support;` beside it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use session_layer::{AnyStore, Session, SessionConfig, SessionError, SessionLayer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::support::{self, Answer, Browser};

const STORE: &str = "SESSION_LAYER_TEST_STORE";

/// A busy machine with unoptimised code is not what the deadlines are about.
const PATIENCE: Duration = Duration::from_secs(60);

/// Handlers that have done their work and wait for leave to answer.
#[derive(Clone, Default)]
struct Holds(Arc<Mutex<HashMap<String, Hold>>>);

#[derive(Clone)]
struct Hold {
    waiting: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Holds {
    fn get(&self, name: &str) -> Hold {
        let mut holds = self.0.lock().unwrap();
        let hold = holds.entry(name.to_owned()).or_insert_with(|| Hold {
            waiting: watch::Sender::new(0),
            open: watch::Sender::new(false),
        });
        hold.clone()
    }

    async fn wait(&self, query: &HashMap<String, String>) {
        let Some(name) = query.get("hold") else {
            return;
        };
        let hold = self.get(name);
        hold.waiting.send_modify(|waiting| *waiting += 1);
        let mut open = hold.open.subscribe();
        open.wait_for(|open| *open).await.unwrap();
    }
}

type Asked = Query<HashMap<String, String>>;

/// The application. Every handler loads the session, does its work, then waits where `?hold=` says.
pub fn router(store: AnyStore, config: SessionConfig) -> Router {
    let config = config.with_sessions_per_user(3);
    let layer = SessionLayer::with_config(store, support::keys(), config).unwrap();
    let sessions = layer.sessions();
    let end_all = async move |Path(user): Path<String>| -> Result<String, SessionError> {
        Ok(sessions.end_all_of(&user).await?.to_string())
    };
    Router::new()
        .route("/untouched", get(async || "untouched"))
        .route("/add", get(add))
        .route("/set/{key}", get(set))
        .route("/read", get(read))
        .route("/rotate/{key}", get(rotate))
        .route("/logout", get(logout))
        .route("/login/{user}", get(login))
        .route("/user", get(user))
        .route("/end-all/{user}", get(end_all))
        .route("/n", get(n))
        .route("/keys", get(keys))
        .layer(layer)
        // Beyond the layer: how a test knows and says when.
        .route("/waiting/{hold}/{count}", get(waiting))
        .route("/open/{hold}", get(open))
        .with_state(Holds::default())
}

async fn add(
    State(holds): State<Holds>,
    Query(asked): Asked,
    session: Session,
) -> Result<String, SessionError> {
    let n = session.update("n", |n: Option<u64>| n.unwrap_or(0) + 1)?;
    holds.wait(&asked).await;
    Ok(n.to_string())
}

async fn set(
    State(holds): State<Holds>,
    Path(key): Path<String>,
    Query(asked): Asked,
    session: Session,
) -> Result<(), SessionError> {
    session.insert(&key, &key)?;
    holds.wait(&asked).await;
    Ok(())
}

/// Renews the session where the configuration says so, and changes nothing.
async fn read(State(holds): State<Holds>, Query(asked): Asked, session: Session) -> String {
    let found = session.contains_key("n");
    holds.wait(&asked).await;
    found.to_string()
}

async fn rotate(
    State(holds): State<Holds>,
    Path(key): Path<String>,
    Query(asked): Asked,
    session: Session,
) -> Result<(), SessionError> {
    session.cycle_id();
    session.insert(&key, true)?;
    holds.wait(&asked).await;
    Ok(())
}

async fn logout(session: Session) {
    session.flush();
}

async fn login(session: Session, Path(user): Path<String>) -> Result<(), SessionError> {
    session.login(&user)
}

async fn user(session: Session) -> String {
    session.user().as_deref().unwrap_or("nobody").to_owned()
}

async fn n(session: Session) -> Result<String, SessionError> {
    let n = session.get::<u64>("n")?;
    Ok(n.map_or("none".to_owned(), |n| n.to_string()))
}

async fn keys(session: Session) -> String {
    let mut keys = session.keys();
    keys.sort();
    keys.join(" ")
}

async fn waiting(State(holds): State<Holds>, Path((hold, count)): Path<(String, usize)>) {
    let mut waiting = holds.get(&hold).waiting.subscribe();
    waiting.wait_for(|waiting| *waiting >= count).await.unwrap();
}

async fn open(State(holds): State<Holds>, Path(hold): Path<String>) {
    holds.get(&hold).open.send_replace(true);
}

/// What the started process does: serves until its stdin ends. Answers whether it was one.
pub async fn serve_if_ordered() -> bool {
    let Ok(url) = std::env::var(STORE) else {
        return false;
    };
    let store = AnyStore::connect(&url).await.unwrap();
    let config = SessionConfig::default()
        // Every request is due for a touch.
        .with_refresh_share(0.0)
        .with_store_timeout(PATIENCE)
        .with_commit_timeout(PATIENCE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // The harness leaves its own line open.
    println!("\nserves {address}");
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        served = axum::serve(listener, router(store, config)) => served.unwrap(),
        _ = ended => {}
    }
    true
}

/// A process that serves the application on a store.
pub struct App {
    process: Child,
    _stdin: ChildStdin,
    address: String,
}

impl App {
    /// Starts this test program again, at the test `entry`, which is to call [`serve_if_ordered`].
    pub fn start(url: &str, entry: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([entry, "--exact", "--nocapture"])
            .env(STORE, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let address = out
            .lines()
            .find_map(|line| Some(line.unwrap().strip_prefix("serves ")?.to_owned()))
            .expect("the application did not start");
        Self {
            _stdin: process.stdin.take().unwrap(),
            process,
            address,
        }
    }

    pub async fn get(&self, browser: &Browser, path: &str) -> Answer {
        ask(&self.address, browser, path).await
    }

    /// The same in a task of its own.
    pub fn begin(&self, browser: &Browser, path: &str) -> tokio::task::JoinHandle<Answer> {
        let (address, browser, path) = (self.address.clone(), browser.clone(), path.to_owned());
        tokio::spawn(async move { ask(&address, &browser, &path).await })
    }

    async fn control(&self, path: &str) {
        assert_eq!(self.get(&Browser::default(), path).await.status, 200);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One request on a connection of its own.
async fn ask(address: &str, browser: &Browser, path: &str) -> Answer {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let mut head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    if let Some(cookie) = browser.request(path).headers().get("cookie") {
        head.push_str(&format!("cookie: {}\r\n", cookie.to_str().unwrap()));
    }
    head.push_str("\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a response");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").expect("a header");
        let name: http::HeaderName = name.parse().unwrap();
        (name, value.parse::<http::HeaderValue>().unwrap())
    });
    Answer {
        status: status.expect("a status").parse().unwrap(),
        headers: headers.collect(),
        body: body.to_owned(),
    }
}

/// Two applications on one store, and a browser with a session: `n` is 1.
pub struct Two {
    pub apps: [App; 2],
    pub browser: Browser,
}

impl Two {
    pub async fn start(url: &str, entry: &str) -> Self {
        let apps = [App::start(url, entry), App::start(url, entry)];
        let mut browser = Browser::default();
        let answer = apps[0].get(&browser, "/add").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        browser.take(&answer);
        Self { apps, browser }
    }

    async fn both_show(&self, path: &str, expected: &str) {
        for app in &self.apps {
            let answer = app.get(&self.browser, path).await;
            assert_eq!((answer.status.as_u16(), &*answer.body), (200, expected));
        }
    }
}

/// 200 requests at once, each with a key of its own, half of them in each process.
pub async fn two_hundred_keys(two: &Two) {
    let requests: Vec<_> = (0..200)
        .map(|at| two.apps[at % 2].begin(&two.browser, &format!("/set/key{at:03}")))
        .collect();
    for request in requests {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let expected: Vec<_> = (0..200).map(|at| format!("key{at:03}")).collect();
    two.both_show("/keys", &format!("{} n", expected.join(" ")))
        .await;
}

/// 1,000 increments of one number, half of them in each process, 64 at a time in each.
pub async fn a_thousand_increments(two: &Two) {
    let slots = Arc::new(Semaphore::new(128));
    let mut requests = Vec::new();
    for at in 0..1000 {
        let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
        let request = two.apps[at % 2].begin(&two.browser, "/add");
        requests.push(tokio::spawn(async move {
            let answer = request.await.unwrap();
            drop(slot);
            answer
        }));
    }
    for request in requests {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    two.both_show("/n", "1001").await;
}

/// A logout in one process while the other is in the middle of a request that writes, renews or
/// rotates.
pub async fn a_logout_against(two: &Two, slow: &str) {
    let [near, far] = &two.apps;
    let request = far.begin(&two.browser, &format!("{slow}?hold=logout"));
    far.control("/waiting/logout/1").await;
    let logout = near.get(&two.browser, "/logout").await;
    assert_eq!(logout.status, 200, "{logout:?}");
    assert!(logout.removes_cookie(), "{logout:?}");
    far.control("/open/logout").await;
    let answer = request.await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.sets_no_cookie(), "{answer:?}");
    two.both_show("/keys", "").await;
    two.both_show("/n", "none").await;
    // Nor does the dead cookie start a session.
    let answer = far.get(&two.browser, "/set/late").await;
    assert!(answer.sets_no_cookie(), "{answer:?}");
    two.both_show("/keys", "").await;
}

/// Three rotations that have all read the session before the first of them commits.
pub async fn three_rotations(two: &Two) {
    let [near, far] = &two.apps;
    let rotations = [
        near.begin(&two.browser, "/rotate/user0?hold=r"),
        near.begin(&two.browser, "/rotate/user1?hold=r"),
        far.begin(&two.browser, "/rotate/user2?hold=r"),
    ];
    near.control("/waiting/r/2").await;
    far.control("/waiting/r/1").await;
    tokio::join!(near.control("/open/r"), far.control("/open/r"));
    let mut handed_out = Vec::new();
    for rotation in rotations {
        let answer = rotation.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        if !answer.sets_no_cookie() {
            handed_out.push(answer.set_value());
        }
    }
    assert_eq!(handed_out.len(), 1, "{handed_out:?}");
    two.both_show("/keys", "").await;
    let keys = far
        .get(&Browser::with_cookie(handed_out.remove(0)), "/keys")
        .await
        .body;
    let keys: Vec<_> = keys.split(' ').collect();
    assert_eq!(keys[0], "n", "the data is whole: {keys:?}");
    assert_eq!(keys.len(), 2, "the winner's edit and no loser's: {keys:?}");
}

/// Ten logins of one user at once, half of them in each process: three are left, and end together.
pub async fn ten_logins(two: &Two) {
    let logins: Vec<_> = (0..10)
        .map(|at| two.apps[at % 2].begin(&Browser::default(), "/login/ada"))
        .collect();
    let mut browsers = Vec::new();
    for login in logins {
        let answer = login.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        browsers.push(Browser::with_cookie(answer.set_value()));
    }
    let alive = async |app: &App| {
        let mut alive = 0;
        for browser in &browsers {
            alive += usize::from(app.get(browser, "/user").await.body == "ada");
        }
        alive
    };
    let [near, far] = &two.apps;
    assert_eq!((alive(near).await, alive(far).await), (3, 3));
    let answer = far.get(&two.browser, "/end-all/ada").await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, "3"));
    assert_eq!((alive(near).await, alive(far).await), (0, 0));
    // Whoever is not logged in is none of them.
    two.both_show("/n", "1").await;
}

/// The tests with two processes, for a module of their own.
///
/// `two_apps!(place, ignore = "needs a server")`, where `place` is the path of an `async fn() -> P`,
/// and `P` keeps the server or the folder and has a method `url`, which answers the URL of a store
/// that nothing else uses.
#[macro_export]
macro_rules! two_apps {
    (@case $place:path, [$($attribute:tt)*], $name:ident, $run:path $(, $argument:expr)?) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $($attribute)*
        async fn $name() {
            let place = $place().await;
            let two = $crate::apps::Two::start(&place.url(), &entry()).await;
            $run(&two $(, $argument)?).await;
        }
    };
    (@all $place:path, $attributes:tt) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn the_test_program_starts_itself() {
            use $crate::apps;
            if !apps::serve_if_ordered().await {
                let app = apps::App::start("memory://", &entry());
                let answer = app.get(&$crate::support::Browser::default(), "/add").await;
                assert_eq!((answer.status.as_u16(), &*answer.body), (200, "1"));
            }
        }

        fn entry() -> String {
            let (_, module) = module_path!().split_once("::").expect("a module");
            format!("{module}::the_test_program_starts_itself")
        }

        $crate::two_apps! { @case $place, $attributes, two_processes_leave_two_hundred_keys,
            $crate::apps::two_hundred_keys }
        $crate::two_apps! { @case $place, $attributes, two_processes_count_to_a_thousand,
            $crate::apps::a_thousand_increments }
        $crate::two_apps! { @case $place, $attributes,
            a_logout_is_final_against_a_slow_writer_elsewhere,
            $crate::apps::a_logout_against, "/add" }
        $crate::two_apps! { @case $place, $attributes,
            a_logout_is_final_against_a_slow_toucher_elsewhere,
            $crate::apps::a_logout_against, "/read" }
        $crate::two_apps! { @case $place, $attributes,
            a_logout_is_final_against_a_slow_rotator_elsewhere,
            $crate::apps::a_logout_against, "/rotate/user" }
        $crate::two_apps! { @case $place, $attributes,
            of_three_rotations_in_two_processes_one_counts,
            $crate::apps::three_rotations }
        $crate::two_apps! { @case $place, $attributes,
            of_ten_logins_in_two_processes_three_are_left_and_end_together,
            $crate::apps::ten_logins }
    };
    ($place:path $(, ignore = $why:literal)? $(,)?) => {
        $crate::two_apps! { @all $place, [$(#[ignore = $why])?] }
    };
}
