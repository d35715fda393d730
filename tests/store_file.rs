//! `FileStore`: the contract, then what only files can do wrong.
#![cfg(unix)]

#[path = "support/child.rs"]
mod child;

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use child::{get, key, new, put};
use session_layer::conformance::{Fixture, Purge};
use session_layer::store::{
    CreateOutcome, FileStore, NewRecord, Revision, SessionStore, StoreError, StoreErrorKind,
    SyncPolicy, UpdateOutcome,
};
use tempfile::TempDir;

struct Directories {
    store: FileStore,
    other: FileStore,
    _scratch: TempDir,
}

impl Fixture for Directories {
    type Store = FileStore;

    fn store(&self) -> FileStore {
        self.store.clone()
    }

    fn other_namespace(&self) -> FileStore {
        self.other.clone()
    }

    fn purge(&self) -> Purge {
        Purge::OnDemand {
            margin: Duration::ZERO,
        }
    }
}

async fn directories() -> Directories {
    let scratch = tempfile::tempdir().unwrap();
    Directories {
        store: FileStore::open(scratch.path().join("a")).await.unwrap(),
        other: FileStore::open(scratch.path().join("b")).await.unwrap(),
        _scratch: scratch,
    }
}

mod contract {
    session_layer::conformance!(super::directories);
    session_layer::conformance_of_scan!(super::directories);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_test_program_starts_itself() {
    let Some((role, path)) = child::role() else {
        let scratch = tempfile::tempdir().unwrap();
        return child::can_be_started(&scratch.path().join("sessions"));
    };
    let store = FileStore::open(&path).await.unwrap();
    match role.as_str() {
        "overfill" => {
            let seen = get(&store, 0).await;
            let error = store
                .update(&key(0), &seen, &new(&[7; 200_000]))
                .await
                .unwrap_err();
            child::say(format_args!("refused {:?}", error.kind()));
        }
        "hold" => {
            let lock = lock_file_of_key_0(&path);
            lock.lock().unwrap();
            child::say(format_args!("holding"));
            std::thread::sleep(Duration::from_secs(60));
        }
        other => child::play(&store, other, &path).await,
    }
}

/// The lock file that an update of key 0 has made.
fn lock_file_of_key_0(path: &Path) -> fs::File {
    let mut locks = fs::read_dir(path.join("locks")).unwrap();
    let path = locks.next().unwrap().unwrap().path();
    assert!(locks.next().is_none(), "more than one key was written");
    fs::File::open(path).unwrap()
}

async fn opened() -> (FileStore, PathBuf, TempDir) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sessions");
    (FileStore::open(&path).await.unwrap(), path, scratch)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn record_path(path: &Path, number: u64) -> PathBuf {
    path.join(key(number).as_str())
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn kind<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> StoreErrorKind {
    answer.unwrap_err().kind()
}

fn age(path: &Path, by: Duration) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

async fn sweep(store: &FileStore) -> u64 {
    store.delete_expired(NonZeroUsize::MAX).await.unwrap()
}

#[tokio::test]
async fn everything_made_is_private() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"secret").await;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("locks")), 0o700);
    assert_eq!(mode(&record_path(&path, 0)), 0o600);
    for lock in fs::read_dir(path.join("locks")).unwrap() {
        assert_eq!(mode(&lock.unwrap().path()), 0o600);
    }
}

#[tokio::test]
async fn missing_parents_are_made() {
    let scratch = tempfile::tempdir().unwrap();
    let store = FileStore::open(scratch.path().join("a/b/c")).await.unwrap();
    put(&store, 0, b"").await;
}

#[tokio::test]
async fn a_directory_open_to_others_is_refused_with_the_remedy() {
    let scratch = tempfile::tempdir().unwrap();
    for bits in [0o750, 0o705, 0o710, 0o777] {
        let path = scratch.path().join(format!("{bits:o}"));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
        let error = FileStore::open(&path).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{bits:o}");
        assert!(error.to_string().contains("chmod 700"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        FileStore::open(&path).await.unwrap();
    }
}

#[tokio::test]
async fn a_directory_that_is_a_link_or_a_file_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let real = scratch.path().join("real");
    FileStore::open(&real).await.unwrap();
    let link = scratch.path().join("link");
    symlink(&real, &link).unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [link, file] {
        assert_eq!(kind(FileStore::open(&path).await), StoreErrorKind::Config);
    }
}

#[tokio::test]
async fn a_linked_record_is_not_followed() {
    let (store, path, scratch) = opened().await;
    put(&store, 0, b"mine").await;
    let outside = scratch.path().join("outside");
    fs::rename(record_path(&path, 0), &outside).unwrap();
    symlink(&outside, record_path(&path, 0)).unwrap();
    let before = fs::read(&outside).unwrap();

    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);
    put(&store, 0, b"replaced").await;
    assert_eq!(&get(&store, 0).await.payload()[..], b"replaced");
    assert_eq!(fs::read(&outside).unwrap(), before);
}

#[tokio::test]
async fn a_pipe_or_a_directory_in_a_records_place_does_not_hang() {
    let (store, path, _scratch) = opened().await;
    let made = Command::new("mkfifo")
        .arg(record_path(&path, 0))
        .status()
        .unwrap();
    assert!(made.success());
    fs::create_dir(record_path(&path, 1)).unwrap();
    // Should the store wait at the pipe after all, this lets it go, so that the test can end.
    let outside = tempfile::tempdir().unwrap();
    let pipe = outside.path().join("pipe");
    fs::hard_link(record_path(&path, 0), &pipe).unwrap();
    std::thread::spawn(move || {
        let _outside = outside;
        std::thread::sleep(Duration::from_secs(7));
        fs::File::options().read(true).write(true).open(pipe)
    });
    for number in [0, 1] {
        let answer = tokio::time::timeout(Duration::from_secs(5), store.load(&key(number))).await;
        assert_eq!(kind(answer.expect("it hangs")), StoreErrorKind::Corrupt);
    }
    put(&store, 0, b"").await;
}

#[tokio::test]
async fn damaged_files_are_corrupt_and_can_be_replaced() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"some payload").await;
    let seen = get(&store, 0).await;
    let whole = fs::read(record_path(&path, 0)).unwrap();
    let mut huge_length = whole.clone();
    huge_length[32..40].fill(0xff);
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut longer = whole.clone();
    longer.push(0);
    let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|n| whole[..n].to_vec()).collect();
    damaged.extend([
        huge_length,
        longer,
        vec![0; 5000],
        b"\x80\x04garbage".to_vec(),
    ]);
    for bytes in damaged {
        fs::write(record_path(&path, 0), &bytes).unwrap();
        assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);
        let update = store.update(&key(0), &seen, &new(b"x")).await;
        assert_eq!(kind(update), StoreErrorKind::Corrupt);
        let touch = store.touch(&key(0), &seen, child::HOUR).await;
        assert_eq!(kind(touch), StoreErrorKind::Corrupt);
        assert_eq!(sweep(&store).await, 0);
        put(&store, 0, b"fresh").await;
        assert_eq!(&get(&store, 0).await.payload()[..], b"fresh");
    }

    // Damage behind an intact head.
    fs::write(record_path(&path, 0), &flipped).unwrap();
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);
    let touch = store.touch(&key(0), &seen, child::HOUR).await;
    assert_eq!(kind(touch), StoreErrorKind::Corrupt);
    store.delete(&key(0)).await.unwrap();
    assert!(store.load(&key(0)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_file_beyond_the_largest_payload_is_not_read() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, &[1; 2000]).await;
    let small = FileStore::builder(&path).with_max_payload(1999);
    let small = small.open().await.unwrap();
    assert_eq!(kind(small.load(&key(0)).await), StoreErrorKind::Corrupt);
}

#[tokio::test]
async fn a_file_of_a_later_version_is_neither_replaced_nor_swept() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"").await;
    let mut bytes = fs::read(record_path(&path, 0)).unwrap();
    bytes[7] += 1;
    fs::write(record_path(&path, 0), &bytes).unwrap();
    age(&record_path(&path, 0), Duration::from_secs(1_000_000));
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Corrupt);
    let outcome = store.create(&key(0), &new(b"")).await.unwrap();
    assert_eq!(outcome, CreateOutcome::Taken);
    sweep(&store).await;
    assert_eq!(fs::read(record_path(&path, 0)).unwrap(), bytes);
}

#[tokio::test]
async fn a_sweep_takes_what_crashes_left_and_nothing_younger() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"").await;
    age(&record_path(&path, 0), Duration::from_secs(1_000_000));
    fs::write(record_path(&path, 1), "damaged long ago").unwrap();
    age(&record_path(&path, 1), Duration::from_secs(25 * 3600));
    fs::write(record_path(&path, 2), "damaged just now").unwrap();
    for (name, hours) in [("tmp.old", 2), ("tmp.new", 0), ("foreign", 999)] {
        fs::write(path.join(name), "").unwrap();
        age(&path.join(name), Duration::from_secs(hours * 3600));
    }
    assert_eq!(sweep(&store).await, 0);
    let (live, young) = (key(0).to_string(), key(2).to_string());
    let left = [live.as_str(), &young, "foreign", "locks", "tmp.new"];
    assert_eq!(names(&path), left);
}

#[tokio::test]
async fn a_sweep_in_batches_takes_everything() {
    let (store, _path, _scratch) = opened().await;
    for number in 0..50 {
        let ttl = Duration::from_millis(if number % 2 == 0 { 1 } else { 3_600_000 });
        let record = NewRecord::new(Revision::generate(), b"", ttl);
        store.create(&key(number), &record).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut went = Vec::new();
    while went.last() != Some(&0) {
        went.push(
            store
                .delete_expired(NonZeroUsize::new(7).unwrap())
                .await
                .unwrap(),
        );
    }
    assert_eq!(went, [7, 7, 7, 4, 0]);
    for number in (1..50).step_by(2) {
        get(&store, number).await;
    }
}

#[tokio::test]
async fn a_sweep_finds_what_expired_behind_the_last_batch() {
    let (store, _path, _scratch) = opened().await;
    let brief = NewRecord::new(Revision::generate(), b"", Duration::from_millis(1));
    for number in 0..40 {
        store.create(&key(number), &brief).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let first = store.delete_expired(NonZeroUsize::new(20).unwrap());
    assert_eq!(first.await.unwrap(), 20);
    for number in 40..80 {
        store.create(&key(number), &brief).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(sweep(&store).await, 60);
}

#[tokio::test]
async fn a_removed_directory_is_a_failure_and_not_an_empty_store() {
    let (store, path, scratch) = opened().await;
    put(&store, 0, b"").await;
    let seen = get(&store, 0).await;
    let away = scratch.path().join("away");
    fs::rename(&path, &away).unwrap();
    for _ in ["missing", "an empty mount point"] {
        assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Unavailable);
        let update = store.update(&key(0), &seen, &new(b"")).await;
        assert_eq!(kind(update), StoreErrorKind::Unavailable);
        let create = store.create(&key(1), &new(b"")).await;
        assert_eq!(kind(create), StoreErrorKind::Unavailable);
        assert_eq!(
            kind(store.delete(&key(0)).await),
            StoreErrorKind::Unavailable
        );
        fs::create_dir_all(&path).unwrap();
    }
    fs::remove_dir(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    get(&store, 0).await;
}

#[tokio::test]
async fn a_full_store_purges_and_then_refuses() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sessions");
    let builder = FileStore::builder(&path).with_max_records(NonZeroUsize::new(3).unwrap());
    let store = builder.open().await.unwrap();
    let brief = NewRecord::new(Revision::generate(), b"", Duration::from_millis(1));
    store.create(&key(0), &brief).await.unwrap();
    put(&store, 1, b"").await;
    put(&store, 2, b"").await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    put(&store, 3, b"").await;

    let refused = store.create(&key(4), &new(b"")).await;
    assert_eq!(kind(refused), StoreErrorKind::Unavailable);
    for number in 1..4 {
        let seen = get(&store, number).await;
        let outcome = store.update(&key(number), &seen, &new(b"more")).await;
        assert!(matches!(outcome, Ok(UpdateOutcome::Updated(_))));
    }
    store.delete(&key(1)).await.unwrap();
    put(&store, 4, b"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_creators_keep_to_the_maximum() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sessions");
    let builder = FileStore::builder(&path).with_max_records(NonZeroUsize::new(20).unwrap());
    let store = builder.open().await.unwrap();
    let creators: Vec<_> = (0..60)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.create(&key(number), &new(b"")).await })
        })
        .collect();
    let mut created = 0;
    for creator in creators {
        match creator.await.unwrap() {
            Ok(CreateOutcome::Created(_)) => created += 1,
            Ok(CreateOutcome::Taken) => panic!("nothing was there"),
            Err(error) => assert_eq!(error.kind(), StoreErrorKind::Unavailable),
        }
    }
    assert_eq!(created, 20);
    assert_eq!(names(&path).len(), 21, "20 records and the locks");
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_record_and_no_rubbish() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"old").await;
    let child = child::spawn_with_file_limit("overfill", &path, 8);
    assert_eq!(child.all("refused"), ["Unavailable"]);
    assert_eq!(&get(&store, 0).await.payload()[..], b"old");
    assert_eq!(names(&path), [key(0).as_str(), "locks"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_writer_leaves_the_old_record_or_the_new_one() {
    let (store, path, _scratch) = opened().await;
    let reader = store.clone();
    put(&store, 1, b"").await;
    let reading = tokio::spawn(async move {
        let mut reads = 0_u64;
        while reader.load(&key(1)).await.unwrap().is_some() {
            if let Some(record) = reader.load(&key(0)).await.unwrap() {
                child::stamp_of(&record);
                reads += 1;
            }
        }
        reads
    });
    child::killed_writers_leave_old_or_new(&store, &path).await;
    store.delete(&key(1)).await.unwrap();
    assert!(reading.await.unwrap() > 0);
}

#[tokio::test]
async fn two_processes_lose_no_update() {
    let (store, path, _scratch) = opened().await;
    child::two_processes_count_exactly(&store, &path).await;
}

#[tokio::test]
async fn two_processes_never_create_the_same_key() {
    let (_store, path, _scratch) = opened().await;
    child::two_processes_never_create_twice(&path);
}

#[tokio::test(flavor = "current_thread")]
async fn a_lock_held_elsewhere_is_a_timeout_and_blocks_no_async_thread() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"").await;
    let seen = get(&store, 0).await;
    let mut holder = child::spawn("hold", &path);
    holder.next("holding").expect("the child holds nothing");

    let start = Instant::now();
    let (key_0, record) = (key(0), new(b""));
    let mut update = std::pin::pin!(store.update(&key_0, &seen, &record));
    let mut ticks = 0;
    let answer = loop {
        tokio::select! {
            answer = &mut update => break answer,
            () = tokio::time::sleep(Duration::from_millis(10)) => ticks += 1,
        }
    };
    assert_eq!(kind(answer), StoreErrorKind::Timeout);
    // Its own limit is 1.5 s; the rest is for a busy machine. The holder would stay for a minute.
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(ticks > 5, "only {ticks} ticks");
    get(&store, 0).await;

    holder.kill();
    let outcome = store.update(&key(0), &seen, &new(b"")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
}

#[tokio::test]
async fn a_removed_lock_file_is_made_again() {
    let (store, path, _scratch) = opened().await;
    put(&store, 0, b"").await;
    let seen = get(&store, 0).await;
    let lock = lock_file_of_key_0(&path);
    lock.lock().unwrap();
    for entry in fs::read_dir(path.join("locks")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let outcome = store.update(&key(0), &seen, &new(b"")).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
}

#[tokio::test]
async fn a_store_that_always_syncs_answers_alike() {
    let scratch = tempfile::tempdir().unwrap();
    let builder = FileStore::builder(scratch.path().join("s")).with_sync(SyncPolicy::Always);
    let store = builder.open().await.unwrap();
    put(&store, 0, b"a").await;
    let seen = get(&store, 0).await;
    let ending = new(b"b").with_ending(true);
    let outcome = store.update(&key(0), &seen, &ending).await.unwrap();
    assert_eq!(outcome, UpdateOutcome::Updated(0));
    assert_eq!(&get(&store, 0).await.payload()[..], b"b");
    store.delete(&key(0)).await.unwrap();
    assert!(store.load(&key(0)).await.unwrap().is_none());
}

#[tokio::test]
async fn debug_and_errors_show_no_key_and_no_data() {
    let (store, path, _scratch) = opened().await;
    put(&store, 7, b"hush").await;
    let shown = format!("{store:?}");
    assert!(
        shown.contains("FileStore") && !shown.contains("hush"),
        "{shown}"
    );
    fs::write(record_path(&path, 7), "hush").unwrap();
    let error = store.load(&key(7)).await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(
        !shown.contains(key(7).as_str()) && !shown.contains("hush"),
        "{shown}"
    );
}
