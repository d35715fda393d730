//! Processes for the tests of stores that several processes share: the test binary runs itself.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use session_layer::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, UpdateOutcome,
};

const ROLE: &str = "STORE_TEST_ROLE";
const PATH: &str = "STORE_TEST_PATH";
/// The test that is the child's `main`.
const ENTRY: &str = "the_test_program_starts_itself";

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// The role and the path this process was started with, if a test started it.
pub(crate) fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var(ROLE).ok()?, std::env::var_os(PATH)?.into()))
}

/// A child process comes up, knows its role and is heard.
pub(crate) fn can_be_started(path: &Path) {
    assert_eq!(spawn("hello", path).all("hello"), ["world"]);
}

/// A process in `role`, its output piped.
pub(crate) fn spawn(role: &str, path: &Path) -> Running {
    start(Command::new(exe()).args(arguments()), role, path)
}

/// The same under a limit on the size of files, in units of at most 1 KiB.
pub(crate) fn spawn_with_file_limit(role: &str, path: &Path, blocks: u32) -> Running {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(exe()).args(arguments());
    start(&mut shell, role, path)
}

fn exe() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn arguments() -> [&'static str; 3] {
    [ENTRY, "--exact", "--nocapture"]
}

fn start(command: &mut Command, role: &str, path: &Path) -> Running {
    let mut child = command
        .env(ROLE, role)
        .env(PATH, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    Running { child, out }
}

pub(crate) struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// The next line that starts with `word`, without it. `None` at the end of the output; a line
    /// that was cut off by the end does not count.
    pub(crate) fn next(&mut self, word: &str) -> Option<String> {
        let mut line = String::new();
        while self.out.read_line(&mut line).unwrap() > 0 {
            if let Some(rest) = line.strip_suffix('\n').and_then(|l| l.strip_prefix(word)) {
                return Some(rest.trim().to_owned());
            }
            line.clear();
        }
        None
    }

    pub(crate) fn all(mut self, word: &str) -> Vec<String> {
        let lines = std::iter::from_fn(|| self.next(word)).collect();
        assert!(self.child.wait().unwrap().success(), "the child failed");
        lines
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn say(line: std::fmt::Arguments<'_>) {
    // The harness leaves its own line open.
    let mut out = std::io::stdout().lock();
    write!(out, "\n{line}\n").unwrap();
    out.flush().unwrap();
}

/// Waits until the file exists: the signal to start at the same time.
pub(crate) fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        assert!(Instant::now() < deadline, "no signal to start");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn key(number: u64) -> SessionKey {
    format!("{number:043}").parse().unwrap()
}

/// A payload that shows when it is a mixture: one number, over and over.
pub(crate) fn stamped(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(8 * 1024)
}

pub(crate) fn stamp_of(record: &Record) -> u64 {
    let payload = record.payload();
    assert_eq!(payload.len(), 64 * 1024, "a part of a record");
    let number = u64::from_le_bytes(payload[..8].try_into().unwrap());
    assert!(payload[..] == stamped(number)[..], "a mixture of records");
    number
}

pub(crate) fn new(payload: &[u8]) -> NewRecord<'_> {
    NewRecord::new(Revision::generate(), payload, HOUR)
}

pub(crate) async fn put<S: SessionStore>(store: &S, number: u64, payload: &[u8]) {
    let outcome = store.create(&key(number), &new(payload)).await.unwrap();
    assert!(matches!(outcome, CreateOutcome::Created(_)), "{outcome:?}");
}

pub(crate) async fn get<S: SessionStore>(store: &S, number: u64) -> Record {
    store.load(&key(number)).await.unwrap().expect("no record")
}

/// Writes ever higher numbers and says each one that was answered, until it is killed.
pub(crate) async fn write_until_killed<S: SessionStore>(store: &S) {
    let mut number = stamp_of(&get(store, 0).await);
    loop {
        number += 1;
        let seen = get(store, 0).await;
        let outcome = store
            .update(&key(0), &seen, &new(&stamped(number)))
            .await
            .unwrap();
        assert!(matches!(outcome, UpdateOutcome::Updated(_)), "{outcome:?}");
        say(format_args!("wrote {number}"));
    }
}

/// Kills a writer at many moments; each time the record is whole, and the last one answered or the
/// one that was under way.
pub(crate) async fn killed_writers_leave_old_or_new<S: SessionStore>(store: &S, path: &Path) {
    put(store, 0, &stamped(0)).await;
    let mut highest = 0;
    for round in 0..20_u64 {
        let mut writer = spawn("write", path);
        let mut answered: u64 = writer.next("wrote").expect("no write").parse().unwrap();
        std::thread::sleep(Duration::from_micros(rand::random_range(0..15_000)));
        writer.kill();
        while let Some(number) = writer.next("wrote") {
            answered = number.parse().unwrap();
        }
        let found = stamp_of(&get(store, 0).await);
        assert!(
            found == answered || found == answered + 1,
            "round {round}: answered {answered}, found {found}"
        );
        highest = found;
    }
    assert!(highest >= 20, "the writers hardly wrote");
}

/// Adds 1 to a number `times` times.
pub(crate) async fn count<S: SessionStore>(store: &S, times: u64) {
    for _ in 0..times {
        loop {
            let seen = get(store, 0).await;
            let number = u64::from_le_bytes(seen.payload()[..].try_into().unwrap()) + 1;
            let outcome = store
                .update(&key(0), &seen, &new(&number.to_le_bytes()))
                .await
                .unwrap();
            match outcome {
                UpdateOutcome::Updated(_) => break,
                UpdateOutcome::Conflict => {}
                UpdateOutcome::Gone => panic!("the record has gone"),
            }
        }
    }
}

/// Two processes count on one record, and nothing is lost.
pub(crate) async fn two_processes_count_exactly<S: SessionStore>(store: &S, path: &Path) {
    put(store, 0, &0_u64.to_le_bytes()).await;
    let children = [spawn("count", path), spawn("count", path)];
    std::fs::write(path.with_extension("go"), "").unwrap();
    for child in children {
        assert_eq!(child.all("counted"), ["150"]);
    }
    let payload = get(store, 0).await.payload().clone();
    assert_eq!(payload[..], 300_u64.to_le_bytes());
}

/// Creates a row of keys and says which ones it won.
pub(crate) async fn create_row<S: SessionStore>(store: &S) {
    for number in 0..100 {
        let outcome = store.create(&key(number), &new(b"mine")).await.unwrap();
        if let CreateOutcome::Created(_) = outcome {
            say(format_args!("won {number}"));
        }
    }
}

/// Two processes create the same keys, and each key has one winner.
pub(crate) fn two_processes_never_create_twice(path: &Path) {
    let children = [spawn("create", path), spawn("create", path)];
    std::fs::write(path.with_extension("go"), "").unwrap();
    let mut won: Vec<u64> = children
        .into_iter()
        .flat_map(|child| child.all("won"))
        .map(|number| number.parse().unwrap())
        .collect();
    won.sort_unstable();
    assert_eq!(won, (0..100).collect::<Vec<_>>());
}

/// Plays the role that a test gave to this process.
pub(crate) async fn play<S: SessionStore>(store: &S, role: &str, path: &Path) {
    match role {
        "hello" => say(format_args!("hello world")),
        "write" => write_until_killed(store).await,
        "count" => {
            wait_for(&path.with_extension("go"));
            count(store, 150).await;
            say(format_args!("counted 150"));
        }
        "create" => {
            wait_for(&path.with_extension("go"));
            create_row(store).await;
        }
        other => panic!("no role {other}"),
    }
}
