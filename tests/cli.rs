//! The program `session-layer`, run as people run it, on stores in a folder of their own.

mod support;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use session_layer::store::{
    CreateOutcome, NewRecord, Record, Revision, ScanStore, SessionKey, SessionStore,
};
use session_layer::{AnyStore, Session, SessionError, SessionInfo, SessionLayer};
use support::{Browser, send};
use tempfile::TempDir;
use tokio::sync::Notify;

const HOUR: Duration = Duration::from_secs(3600);
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
const ENDED: &[u8] = br#"{"_meta":{"ended":true}}"#;

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn files(&self, name: &str) -> String {
        format!("file://{}", self.path(name).display())
    }

    fn sqlite(&self, name: &str) -> String {
        format!("sqlite://{}", self.path(name).display())
    }
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_session-layer"));
    command.args(args).env_remove("SESSION_STORE");
    command
}

/// What the program answered.
struct Answer {
    status: i32,
    out: String,
    err: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("it ended by itself"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Answer {
    #[track_caller]
    fn with_status(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{}\n{}", self.out, self.err);
        self
    }

    /// The number at the end of the line that begins with `what`.
    #[track_caller]
    fn number(&self, what: &str) -> u64 {
        let line = self.out.lines().find(|line| line.starts_with(what));
        let line = line.unwrap_or_else(|| panic!("no {what:?} in\n{}", self.out));
        let number = line.rsplit(' ').next().unwrap().replace(',', "");
        number.parse().unwrap()
    }
}

fn run(args: &[&str]) -> Answer {
    program(args).output().unwrap().into()
}

fn key(n: usize) -> SessionKey {
    format!("{n:043}").parse().unwrap()
}

fn data(n: usize) -> Vec<u8> {
    format!(r#"{{"_meta":{{"created":1700000000123,"permanent":false}},"n":{n}}}"#).into_bytes()
}

async fn open(url: &str) -> AnyStore {
    AnyStore::connect(url).await.unwrap()
}

async fn put(store: &AnyStore, n: usize, payload: &[u8], ttl: Duration) {
    let new = NewRecord::new(Revision::generate(), payload, ttl);
    let created = store.create(&key(n), &new).await.unwrap();
    assert!(matches!(created, CreateOutcome::Created(_)));
}

async fn get_record(store: &AnyStore, n: usize) -> Option<Record> {
    store.load(&key(n)).await.unwrap()
}

async fn count(store: &AnyStore) -> usize {
    let page = store.scan(None, 100_000.try_into().unwrap()).await.unwrap();
    page.keys().len()
}

#[track_caller]
fn assert_same(source: &Record, copy: &Record) {
    assert_eq!(source.revision(), copy.revision());
    assert_eq!(source.payload(), copy.payload());
    let apart = source.ttl().abs_diff(copy.ttl());
    assert!(apart < Duration::from_secs(30), "{apart:?}");
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

fn wait(mut child: Child) -> Answer {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the program does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap().into()
}

#[tokio::test]
async fn statistics_tell_live_from_ended_and_unreadable() {
    let place = Place::new();
    let url = place.files("s");
    let store = open(&url).await;
    for n in 0..20 {
        put(&store, n, &data(n), HOUR / 2).await;
    }
    put(&store, 20, b"no session", HOUR).await;
    put(&store, 21, ENDED, HOUR).await;
    put(&store, 22, &data(0), HOUR * 48).await;
    std::fs::write(place.path("s").join(key(0).as_str()), "garbage").unwrap();

    let answer = run(&["stats", &url]).with_status(0);
    assert_eq!(answer.number("live"), 20);
    assert_eq!(answer.number("ended"), 1);
    assert_eq!(answer.number("unreadable"), 2);
    for n in [0, 20] {
        assert!(answer.err.contains(key(n).as_str()), "{}", answer.err);
    }

    let json: serde_json::Value =
        serde_json::from_str(&run(&["stats", &url, "--json"]).with_status(0).out).unwrap();
    assert_eq!(json["live"], 20);
    let bytes: usize = (1..20).map(|n| data(n).len()).sum::<usize>() + data(0).len();
    assert_eq!(json["bytes"], bytes);
    assert_eq!(json["sizes"][0]["up_to"], 256);
    assert_eq!(json["sizes"][0]["sessions"], 20);
    assert_eq!(json["expiring_within"][0]["sessions"], 19);
    assert_eq!(json["expiring_within"][2]["sessions"], 1);
}

#[tokio::test]
async fn a_list_shows_keys_and_circumstances_and_never_data() {
    let place = Place::new();
    let url = place.sqlite("s.db");
    let store = open(&url).await;
    put(
        &store,
        1,
        br#"{"_meta":{"created":1700000000123,"permanent":true},"n":"hunter2"}"#,
        HOUR,
    )
    .await;
    put(&store, 2, ENDED, HOUR / 60).await;
    put(&store, 3, b"hunter2", HOUR).await;

    let answer = run(&["list", &url]).with_status(0);
    let line = |n| {
        let line = answer
            .out
            .lines()
            .find(|line| line.starts_with(key(n).as_str()));
        line.unwrap().split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(line(1)[1..4], ["live", "2023-11-14T22:13:20Z", "yes"]);
    assert_eq!(line(1)[6], "59m");
    assert_eq!(line(2)[1..4], ["ended", "-", "-"]);
    assert_eq!(line(3)[1], "unreadable");
    assert!(!answer.out.contains("hunter2"));

    let answer = run(&["list", &url, "--json"]).with_status(0);
    assert!(!answer.out.contains("hunter2"));
    let rows: Vec<serde_json::Value> = answer
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 3);
    let row = rows
        .iter()
        .find(|row| row["key"] == key(1).as_str())
        .unwrap();
    assert_eq!(row["state"], "live");
    assert_eq!(row["created"], "2023-11-14T22:13:20Z");
    assert_eq!(row["permanent"], true);
    assert_eq!(row["bytes"], 66);
    assert!((3500..=3600).contains(&row["expires_in"].as_u64().unwrap()));

    let answer = run(&["list", &url, "--limit", "2", "--json"]).with_status(0);
    assert_eq!(answer.out.lines().count(), 2);
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let place = Place::new();
    let url = place.sqlite("s.db");
    let store = open(&url).await;
    for n in 0..2_000 {
        put(&store, n, &data(n), HOUR).await;
    }
    let mut child = program(&["list", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let answer = wait(child).with_status(0);
    assert_eq!(answer.err, "");
}

#[tokio::test]
async fn a_cleanup_removes_all_that_has_expired_and_nothing_else() {
    let place = Place::new();
    for url in [place.files("s"), place.sqlite("s.db")] {
        let store = open(&url).await;
        for n in 0..25 {
            put(&store, n, &data(n), Duration::from_millis(1)).await;
        }
        put(&store, 30, &data(30), HOUR).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answer = run(&["cleanup", &url, "--batch", "10"]).with_status(0);
        assert_eq!(answer.out, "removed 25 expired sessions\n");
        let answer = run(&["cleanup", &url]).with_status(0);
        assert_eq!(answer.out, "removed 0 expired sessions\n");
        assert!(get_record(&store, 30).await.is_some());
    }
}

#[cfg(feature = "memcached")]
#[test]
fn a_cleanup_of_a_store_that_expires_by_itself_says_so() {
    // No server: there is nothing to ask it.
    let answer = run(&["cleanup", "memcached://127.0.0.1:1"]).with_status(0);
    assert_eq!(
        answer.out,
        "removed 0 expired sessions: this store removes them by itself\n"
    );
}

#[tokio::test]
async fn a_cleanup_that_repeats_itself_ends_well_at_a_signal() {
    let place = Place::new();
    let url = place.sqlite("s.db");
    let store = open(&url).await;
    let child = program(&["cleanup", "--every", "1s"])
        .env("SESSION_STORE", &url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    for n in 0..3 {
        put(&store, n, &data(n), Duration::from_millis(1)).await;
        let db = rows(&place.path("s.db"));
        while db() > 0 {
            assert!(begin.elapsed() < PATIENCE, "nothing is removed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    signal(&child, "-TERM");
    let answer = wait(child).with_status(0);
    assert!(
        answer.out.matches("removed 1 expired session\n").count() == 3,
        "{}",
        answer.out
    );
}

/// How many rows a database has, expired or not.
fn rows(path: &std::path::Path) -> impl Fn() -> i64 + use<> {
    let db = rusqlite::Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    move || {
        db.query_row("SELECT count(*) FROM sessions", [], |row| row.get(0))
            .unwrap()
    }
}

#[tokio::test]
async fn sessions_are_revoked_by_key() {
    let place = Place::new();
    let url = place.sqlite("s.db");
    let store = open(&url).await;
    for n in 1..=2 {
        put(&store, n, &data(n), HOUR).await;
    }
    put(&store, 3, ENDED, HOUR).await;
    put(&store, 4, b"garbage", HOUR).await;
    // A key that looks like an option.
    let option: SessionKey = format!("--all{:x<38}", "").parse().unwrap();
    let new = NewRecord::new(Revision::generate(), b"{}", HOUR);
    store.create(&option, &new).await.unwrap();
    // Rotated into another, which is ended by either's key.
    let rotated = format!(r#"{{"_meta":{{"ended":true,"successor":"{}"}}}}"#, key(7));
    put(&store, 6, rotated.as_bytes(), HOUR).await;
    put(&store, 7, &data(7), HOUR).await;
    let keys: Vec<_> = [1, 3, 4, 5, 6].map(|n| key(n).to_string()).into();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let answer = run(&[&["revoke", &url, option.as_str()][..], &keys].concat()).with_status(0);
    assert!(
        answer.out.contains(&format!("{option}: ended\n")),
        "{}",
        answer.out
    );
    for (n, said) in [
        (1, "ended"),
        (3, "had ended"),
        (4, "unreadable, removed"),
        (5, "not there"),
        (6, "had ended"),
    ] {
        assert!(
            answer.out.contains(&format!("{}: {said}\n", key(n))),
            "{}",
            answer.out
        );
    }
    for n in [1, 7] {
        let record = get_record(&store, n).await.unwrap();
        assert!(SessionInfo::of(&record).unwrap().is_ended(), "{n}");
    }
    let record = get_record(&store, 2).await.unwrap();
    assert!(!SessionInfo::of(&record).unwrap().is_ended());
    assert!(get_record(&store, 4).await.is_none());
}

#[tokio::test]
async fn all_sessions_are_revoked_only_when_confirmed() {
    let place = Place::new();
    let url = place.files("s");
    let store = open(&url).await;
    for n in 0..50 {
        put(&store, n, &data(n), HOUR).await;
    }
    let refused = run(&["revoke", &url, "--all"]).with_status(2);
    assert!(refused.err.contains("--yes"), "{}", refused.err);
    run(&["revoke", &url, "--all", "--yes", key(1).as_str()]).with_status(2);
    run(&["revoke", &url]).with_status(2);
    let record = get_record(&store, 7).await.unwrap();
    assert!(!SessionInfo::of(&record).unwrap().is_ended());

    let answer = run(&["revoke", &url, "--all", "--yes"]).with_status(0);
    assert_eq!(answer.out, "ended 50 sessions\n");
    for n in 0..50 {
        let record = get_record(&store, n).await.unwrap();
        assert!(SessionInfo::of(&record).unwrap().is_ended(), "{n}");
    }
}

/// Where a slow request waits, and what it waits for.
#[derive(Clone, Default)]
struct Slow {
    loaded: Arc<Notify>,
    go_on: Arc<Notify>,
}

async fn login(session: Session) -> Result<String, SessionError> {
    session.insert("user", "alice")?;
    session.save().await?;
    Ok(session.key().map(|key| key.to_string()).unwrap_or_default())
}

async fn slow(session: Session, State(slow): State<Slow>) -> Result<(), SessionError> {
    slow.loaded.notify_one();
    slow.go_on.notified().await;
    session.insert("late", true)
}

async fn who(session: Session) -> Result<String, SessionError> {
    Ok(session.get::<String>("user")?.unwrap_or_default())
}

#[tokio::test]
async fn a_revoked_session_stays_dead_whatever_a_slow_request_writes() {
    let place = Place::new();
    let url = place.sqlite("s.db");
    let waits = Slow::default();
    let app = Router::new()
        .route("/login", get(login))
        .route("/slow", get(slow))
        .route("/who", get(who))
        .layer(SessionLayer::new(open(&url).await, support::keys()))
        .with_state(waits.clone());
    let mut browser = Browser::default();
    let answer = send(&app, browser.request("/login")).await;
    browser.take(&answer);
    let key: SessionKey = answer.body.parse().unwrap();
    assert_eq!(send(&app, browser.request("/who")).await.body, "alice");

    let request = browser.request("/slow");
    let under_way = tokio::spawn({
        let app = app.clone();
        async move { send(&app, request).await }
    });
    waits.loaded.notified().await;
    let args = ["revoke".to_owned(), url.clone(), key.to_string()];
    let answer = tokio::task::spawn_blocking(move || {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        run(&args)
    });
    assert_eq!(
        answer.await.unwrap().with_status(0).out,
        format!("{key}: ended\n")
    );
    waits.go_on.notify_one();
    let late = under_way.await.unwrap();
    assert!(late.sets_no_cookie());

    assert_eq!(send(&app, browser.request("/who")).await.body, "");
    let record = open(&url).await.load(&key).await.unwrap().unwrap();
    assert!(SessionInfo::of(&record).unwrap().is_ended());
}

#[tokio::test]
async fn all_of_a_users_sessions_are_revoked_by_name_also_in_a_copy() {
    async fn login(session: Session, Path(user): Path<String>) -> Result<(), SessionError> {
        session.login(&user)
    }
    async fn user(session: Session) -> String {
        session.user().as_deref().unwrap_or("nobody").to_owned()
    }
    let place = Place::new();
    let (url, copy) = (place.sqlite("sessions.db"), place.files("copy"));
    let app = async |url: &str| {
        let layer = SessionLayer::new(open(url).await, support::keys());
        let router = Router::new()
            .route("/login/{user}", get(login))
            .route("/user", get(user));
        (layer.sessions(), router.layer(layer))
    };
    let (_, router) = app(&url).await;
    let mut browsers = Vec::new();
    for user in ["ada", "bob", "ada"] {
        let mut browser = Browser::default();
        browser.get(&router, &format!("/login/{user}")).await;
        browsers.push(browser);
    }
    let answer = run(&["stats", &url]).with_status(0);
    assert_eq!((answer.number("live"), answer.number("ended")), (3, 0));
    assert_eq!(
        (answer.number("unreadable"), answer.number("indexes")),
        (0, 2)
    );
    let list = run(&["list", &url]).with_status(0).out;
    let indexes = list.lines().filter(|line| line.contains("  index  "));
    let index = indexes.map(|line| &line[..43]).next().unwrap();
    let answer = run(&["revoke", &url, index]).with_status(0);
    assert_eq!(
        answer.out,
        format!("{index}: no session, but a user's index\n")
    );

    run(&["copy", &url, &copy]).with_status(0);
    let (sessions, there) = app(&copy).await;
    assert_eq!(sessions.of_user("ada").await.unwrap().len(), 2);

    let answer = run(&["revoke", &url, "--user", "ada"]).with_status(0);
    assert_eq!(answer.out, "ended 2 sessions\n");
    for (router, expected) in [
        (&router, ["nobody", "bob", "nobody"]),
        (&there, ["ada", "bob", "ada"]),
    ] {
        for (browser, expected) in browsers.iter_mut().zip(expected) {
            assert_eq!(browser.get(router, "/user").await.body, expected);
        }
    }
    let answer = run(&["revoke", "--user", "bob", &copy]).with_status(0);
    assert_eq!(answer.out, "ended 1 session\n");
    assert_eq!(
        run(&["revoke", &copy, "--user", "bob"]).with_status(0).out,
        "ended 0 sessions\n"
    );
    let hyphen = run(&["revoke", &copy, "--user=-ada"]).with_status(0);
    assert_eq!(hyphen.out, "ended 0 sessions\n");
    for misuse in [
        &["--user", "ada", "--all", "--yes"][..],
        &["--user", "ada", index],
        &["--user", ""],
    ] {
        run(&[&["revoke", &*url], misuse].concat()).with_status(2);
    }
    // Lists stay when all sessions end.
    let answer = run(&["revoke", &copy, "--all", "--yes"]).with_status(0);
    assert_eq!(answer.out, "ended 2 sessions\n");
    assert_eq!(run(&["stats", &copy]).with_status(0).number("indexes"), 2);
}

#[tokio::test]
async fn a_copy_keeps_records_lifetimes_and_endings_and_the_source_as_it_was() {
    let place = Place::new();
    let (from, to) = (place.files("from"), place.sqlite("to.db"));
    let source = open(&from).await;
    for n in 0..200 {
        put(
            &source,
            n,
            &data(n),
            HOUR + Duration::from_secs(60 * n as u64),
        )
        .await;
    }
    put(&source, 200, ENDED, HOUR).await;
    let before = snapshot(&place.path("from"));

    let answer = run(&["copy", &from, &to]).with_status(0);
    assert_eq!(answer.number("copied"), 201);
    assert!(snapshot(&place.path("from")) == before);
    let target = open(&to).await;
    for n in 0..=200 {
        assert_same(
            &get_record(&source, n).await.unwrap(),
            &get_record(&target, n).await.unwrap(),
        );
    }
    let answer = run(&["copy", &from, &to]).with_status(0);
    assert_eq!(
        (answer.number("copied"), answer.number("already there")),
        (0, 201)
    );

    // And back, into a store of the first kind.
    let answer = run(&["copy", &to, &place.files("back"), "--concurrency", "1"]).with_status(0);
    assert_eq!(answer.number("copied"), 201);
    let back = open(&place.files("back")).await;
    assert_same(
        &get_record(&source, 199).await.unwrap(),
        &get_record(&back, 199).await.unwrap(),
    );
}

/// Every file of a folder, with its content and time of change.
fn snapshot(dir: &std::path::Path) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let changed = entry.metadata().unwrap().modified().unwrap();
            (entry.path(), std::fs::read(entry.path()).unwrap(), changed)
        })
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_records_survive_a_copy_that_is_killed_and_one_that_is_interrupted() {
    const ALL: usize = 10_000;
    let place = Place::new();
    let (from, to) = (place.files("from"), place.sqlite("to.db"));
    let source = open(&from).await;
    for n in 0..ALL {
        put(&source, n, &data(n), HOUR * 24).await;
    }
    let target = open(&to).await;
    for end in ["-KILL", "-INT"] {
        let begun = count(&target).await;
        let mut child = program(&["copy", &from, &to, "--concurrency", "4"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while count(&target).await < begun + 500 {
            assert!(begin.elapsed() < PATIENCE, "nothing is copied");
            assert!(child.try_wait().unwrap().is_none(), "it has ended before");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        signal(&child, end);
        if end == "-INT" {
            let answer = wait(child).with_status(130);
            assert!(
                answer.err.contains("run the same command again"),
                "{}",
                answer.err
            );
            let copied = answer.number("copied") as usize;
            assert_eq!(begun + copied, count(&target).await);
        } else {
            assert!(child.wait().unwrap().code().is_none());
        }
        let arrived = count(&target).await;
        assert!(arrived < ALL, "the copy was over before it was stopped");
        for n in 0..ALL {
            if let Some(copy) = get_record(&target, n).await {
                assert_eq!(copy.payload(), &data(n));
            }
        }
    }
    let begun = count(&target).await as u64;
    let answer = run(&["copy", &from, &to]).with_status(0);
    assert_eq!(answer.number("already there"), begun);
    assert_eq!(answer.number("copied"), ALL as u64 - begun);
    for n in 0..ALL {
        assert_same(
            &get_record(&source, n).await.unwrap(),
            &get_record(&target, n).await.unwrap(),
        );
    }
}

#[tokio::test]
async fn what_is_left_behind_is_named_and_told_by_the_status() {
    let place = Place::new();
    let from = place.files("from");
    let to = format!("{}?max_payload=100", place.sqlite("to.db"));
    let source = open(&from).await;
    put(&source, 1, &data(1), HOUR).await;
    put(&source, 2, &data(2), HOUR).await;
    std::fs::write(place.path("from").join(key(2).as_str()), "garbage").unwrap();
    let large = format!(r#"{{"n":"{}"}}"#, "x".repeat(200));
    put(&source, 3, large.as_bytes(), HOUR).await;
    put(&source, 4, &data(4), HOUR).await;
    put(&open(&to).await, 4, &data(5), HOUR).await;

    let answer = run(&["copy", &from, &to]).with_status(3);
    assert_eq!(answer.number("copied"), 1);
    for (what, n) in [("unreadable", 2), ("too large", 3), ("differs", 4)] {
        let named = answer
            .err
            .lines()
            .any(|line| line.starts_with(what) && line.contains(key(n).as_str()));
        assert!(named, "{what}: {}", answer.err);
    }
    assert_eq!(answer.number("left behind: unreadable"), 1);
    assert_eq!(answer.number("left behind: too large for the target"), 1);
    assert_eq!(answer.number("left behind: differ in the target"), 1);

    let answer = run(&["copy", &from, &to, "--overwrite"]).with_status(3);
    assert_eq!(answer.number("replaced in the target"), 1);
    let copy = get_record(&open(&to).await, 4).await.unwrap();
    assert_eq!(copy.payload(), &data(4));
}

#[tokio::test]
async fn a_mirror_ends_what_the_source_no_longer_has() {
    let place = Place::new();
    let (from, to) = (place.sqlite("from.db"), place.sqlite("to.db"));
    let source = open(&from).await;
    for n in 0..10 {
        put(&source, n, &data(n), HOUR).await;
    }
    run(&["copy", &from, &to]).with_status(0);
    source.delete(&key(3)).await.unwrap();
    run(&["copy", &from, &to, "--mirror"]).with_status(2);
    let answer = run(&["copy", &from, &to, "--mirror", "--yes"]).with_status(0);
    assert_eq!(answer.number("ended, since only the target had them"), 1);
    let record = get_record(&open(&to).await, 3).await.unwrap();
    assert!(SessionInfo::of(&record).unwrap().is_ended());
}

#[tokio::test]
async fn mistakes_are_explained_and_secrets_are_not_repeated() {
    let place = Place::new();
    let there = place.sqlite("s.db");
    open(&there).await;
    let typo = place.sqlite("typo.db");
    let cases: &[(&[&str], &str)] = &[
        (&["stats"], "SESSION_STORE"),
        (&["stats", "nosuch://u:hunter2@host"], "begin with one of"),
        (&["stats", "hunter2"], "`://`"),
        (&["stats", "env:NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (&["stats", &typo], "no store at"),
        (&["list", "a://u:hunter2@x", "b://u:hunter2@x"], "b://…"),
        (&["cleanup", &there, "--every", "5"], "5m or 1h"),
        (&["cleanup", &there, "--batch", "0"], "--batch"),
        (&["revoke", &there, "hunter2"], "43 characters"),
        (&["copy", &typo, &there], "FROM: there is no store"),
        (&["copy", &there, "x://hunter2"], "TO: "),
        (&["copy", &there], "<TO>"),
        (&["list", "null://"], "cannot list"),
        (&[], "Usage"),
    ];
    for (args, says) in cases {
        let answer = run(args).with_status(2);
        assert!(answer.err.contains(says), "{args:?}: {}", answer.err);
        let said = answer.out + &answer.err;
        assert!(!said.contains("hunter2"), "{args:?}: {said}");
    }
    assert!(!place.path("typo.db").exists());
}

#[tokio::test]
async fn a_url_may_come_from_the_environment() {
    let place = Place::new();
    let url = place.sqlite("s.db");
    put(&open(&url).await, 1, &data(1), HOUR).await;
    let answer: Answer = program(&["list"])
        .env("SESSION_STORE", &url)
        .output()
        .unwrap()
        .into();
    assert!(answer.with_status(0).out.contains(key(1).as_str()));
    let answer: Answer = program(&["copy", "env:OLD_STORE", "env:NEW_STORE"])
        .env("OLD_STORE", &url)
        .env("NEW_STORE", place.files("new"))
        .output()
        .unwrap()
        .into();
    assert_eq!(answer.with_status(0).number("copied"), 1);
    let answer: Answer = program(&["revoke", key(1).as_str()])
        .env("SESSION_STORE", &url)
        .output()
        .unwrap()
        .into();
    assert_eq!(answer.with_status(0).out, format!("{}: ended\n", key(1)));
}

#[test]
fn help_names_the_statuses_and_the_version_is_the_crates() {
    let help = run(&["--help"]).with_status(0).out;
    for word in [
        "cleanup",
        "stats",
        "list",
        "revoke",
        "copy",
        "130 interrupted",
    ] {
        assert!(help.contains(word), "{help}");
    }
    let version = run(&["--version"]).with_status(0).out;
    assert!(version.contains(env!("CARGO_PKG_VERSION")));
}
