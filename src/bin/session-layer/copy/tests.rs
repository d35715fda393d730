//! Copying between stores that misbehave on cue.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use session_layer::store::{
    CreateOutcome, Cursor, MemoryStore, NewRecord, Page, Record, Revision, SessionStore,
    StoreLimits, TouchOutcome, UpdateOutcome,
};
use session_layer::{AnyStore, SessionInfo, StoreError, StoreErrorKind};
use tokio::sync::watch;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const ENDED: &[u8] = br#"{"_meta":{"ended":true}}"#;

/// After so many writes, the signal.
type StopAt = (usize, watch::Sender<bool>);

/// A store in memory that fails where it is told to.
#[derive(Debug, Clone, Default)]
struct Flaky {
    store: MemoryStore,
    /// So many writes arrive, and are answered with a timeout.
    unanswered: Arc<AtomicUsize>,
    /// So many creations and updates do not arrive at all.
    down: Arc<AtomicUsize>,
    unreadable: Arc<Mutex<Vec<SessionKey>>>,
    /// Told to stop at the creation with this number, counting down.
    stop_at: Arc<Mutex<Option<StopAt>>>,
    writes: Arc<AtomicUsize>,
}

fn spent(counter: &AtomicUsize) -> bool {
    counter
        .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1))
        .is_ok()
}

impl Flaky {
    fn before_write(&self) -> Result<(), StoreError> {
        self.writes.fetch_add(1, Relaxed);
        if let Some((left, stop)) = &mut *self.stop_at.lock().unwrap() {
            *left = left.wrapping_sub(1);
            if *left == 0 {
                stop.send_replace(true);
            }
        }
        if spent(&self.down) {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "down"));
        }
        Ok(())
    }

    fn after_write<T>(&self, answer: T) -> Result<T, StoreError> {
        if spent(&self.unanswered) {
            return Err(StoreError::new(StoreErrorKind::Timeout, "lost"));
        }
        Ok(answer)
    }
}

impl SessionStore for Flaky {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        if self.unreadable.lock().unwrap().contains(key) {
            return Err(StoreError::new(StoreErrorKind::Corrupt, "garbage"));
        }
        self.store.load(key).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.before_write()?;
        let answer = self.store.create(key, new).await?;
        self.after_write(answer)
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.before_write()?;
        let answer = self.store.update(key, seen, new).await?;
        self.after_write(answer)
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        self.store.touch(key, seen, ttl).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.unreadable.lock().unwrap().retain(|bad| bad != key);
        self.store.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.store.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }
}

impl ScanStore for Flaky {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        self.store.scan(from, limit).await
    }
}

fn key(n: usize) -> SessionKey {
    format!("{n:043}").parse().unwrap()
}

fn data(n: usize) -> Vec<u8> {
    format!(r#"{{"_meta":{{"created":1}},"n":{n}}}"#).into_bytes()
}

async fn put(store: &Flaky, n: usize, payload: &[u8], ttl: Duration) -> Revision {
    let revision = Revision::generate();
    let new = NewRecord::new(revision, payload, ttl);
    let created = store.store.create(&key(n), &new).await.unwrap();
    assert!(matches!(created, CreateOutcome::Created(_)));
    revision
}

async fn get(store: &Flaky, n: usize) -> Option<Record> {
    store.store.load(&key(n)).await.unwrap()
}

fn job(from: &Flaky, to: &Flaky) -> Job {
    Job {
        copier: Copier {
            from: AnyStore::with_scan(from.clone()),
            to: AnyStore::with_scan(to.clone()),
            translation: Translation::NONE,
            overwrite: false,
        },
        at_once: NonZeroUsize::new(4).unwrap(),
        mirror: false,
        stop: Stop::by_hand().1,
    }
}

async fn report_of(job: Job) -> Report {
    let mut report = Report::default();
    assert_eq!(job.run(&mut report).await.unwrap(), Walked::Everything);
    report
}

fn overwriting(mut job: Job) -> Job {
    job.copier.overwrite = true;
    job
}

fn mirroring(mut job: Job) -> Job {
    job.copier.overwrite = true;
    job.mirror = true;
    job
}

#[tokio::test]
async fn every_record_arrives_with_its_revision_payload_and_lifetime() {
    let (from, to) = (Flaky::default(), Flaky::default());
    for n in 0..100 {
        put(&from, n, &data(n), HOUR + Duration::from_secs(n as u64)).await;
    }
    let expected = Report {
        new: 100,
        ..Report::default()
    };
    assert_eq!(report_of(job(&from, &to)).await, expected);
    for n in 0..100 {
        let (source, copy) = (get(&from, n).await.unwrap(), get(&to, n).await.unwrap());
        assert_eq!(copy.revision(), source.revision());
        assert_eq!(copy.payload(), source.payload());
        let apart = copy.ttl().abs_diff(source.ttl());
        assert!(apart < Duration::from_secs(5), "{apart:?}");
    }
    let expected = Report {
        there: 100,
        ..Report::default()
    };
    assert_eq!(report_of(job(&from, &to)).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_counts_once() {
    let (from, to) = (Flaky::default(), Flaky::default());
    for n in 0..10 {
        put(&from, n, &data(n), HOUR).await;
    }
    to.unanswered.store(3, Relaxed);
    let expected = Report {
        new: 10,
        ..Report::default()
    };
    assert_eq!(report_of(job(&from, &to)).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_replacement_whose_answer_was_lost_is_a_replacement() {
    let (from, to) = (Flaky::default(), Flaky::default());
    put(&from, 1, &data(1), HOUR).await;
    put(&to, 1, &data(2), HOUR).await;
    // The creation is answered `Taken`, or not at all; the update neither.
    to.unanswered.store(2, Relaxed);
    let report = report_of(overwriting(job(&from, &to))).await;
    assert_eq!(
        report,
        Report {
            replaced: 1,
            ..Report::default()
        }
    );
    assert_eq!(get(&to, 1).await.unwrap().payload(), &data(1));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_comes_back_is_waited_for_and_one_that_does_not_is_a_failure() {
    let (from, to) = (Flaky::default(), Flaky::default());
    put(&from, 1, &data(1), HOUR).await;
    to.down.store(3, Relaxed);
    assert_eq!(report_of(job(&from, &to)).await.new, 1);

    put(&from, 2, &data(2), HOUR).await;
    to.down.store(usize::MAX, Relaxed);
    let mut report = Report::default();
    let failure = job(&from, &to).run(&mut report).await.unwrap_err();
    assert!(
        failure.to_string().contains("cannot write session"),
        "{failure}"
    );
    assert_eq!(failure.outcome(), Outcome::Failed);
}

#[tokio::test]
async fn what_differs_is_left_alone_unless_told_otherwise() {
    let (from, to) = (Flaky::default(), Flaky::default());
    put(&from, 1, &data(1), HOUR).await;
    let theirs = put(&to, 1, &data(2), HOUR).await;
    let report = report_of(job(&from, &to)).await;
    assert_eq!(
        report,
        Report {
            differs: 1,
            ..Report::default()
        }
    );
    assert_eq!(report.outcome(), Outcome::LeftBehind);
    assert_eq!(get(&to, 1).await.unwrap().revision(), theirs);

    let report = report_of(overwriting(job(&from, &to))).await;
    assert_eq!(
        report,
        Report {
            replaced: 1,
            ..Report::default()
        }
    );
    assert_eq!(report.outcome(), Outcome::Done);
    assert_eq!(get(&to, 1).await.unwrap().payload(), &data(1));
}

#[tokio::test]
async fn a_session_that_has_ended_in_either_store_has_ended_in_the_target() {
    let (from, to) = (Flaky::default(), Flaky::default());
    put(&from, 1, ENDED, HOUR).await;
    put(&to, 1, &data(1), HOUR).await;
    put(&from, 2, &data(2), HOUR).await;
    put(&to, 2, ENDED, HOUR).await;
    put(&from, 3, ENDED, HOUR).await;
    let report = report_of(overwriting(job(&from, &to))).await;
    let expected = Report {
        new: 1,
        replaced: 1,
        ended_there: 1,
        ..Report::default()
    };
    assert_eq!(report, expected);
    for n in 1..=3 {
        let record = get(&to, n).await.unwrap();
        assert!(SessionInfo::of(&record).unwrap().is_ended(), "{n}");
    }
    // Without --overwrite too.
    put(&from, 4, ENDED, HOUR).await;
    put(&to, 4, &data(4), HOUR).await;
    assert_eq!(report_of(job(&from, &to)).await.replaced, 1);
}

#[tokio::test]
async fn a_session_that_was_used_since_keeps_its_longer_lifetime() {
    let (from, to) = (Flaky::default(), Flaky::default());
    for n in 0..2 {
        put(&from, n, &data(n), HOUR).await;
    }
    report_of(job(&from, &to)).await;
    let (used, unused) = (get(&from, 0).await.unwrap(), get(&to, 1).await.unwrap());
    from.touch(&key(0), &used, HOUR * 3).await.unwrap();
    to.touch(&key(1), &unused, HOUR * 3).await.unwrap();
    assert_eq!(report_of(job(&from, &to)).await.there, 2);
    for n in 0..2 {
        assert!(get(&to, n).await.unwrap().ttl() > HOUR * 2, "{n}");
    }
}

#[tokio::test]
async fn what_is_no_session_and_what_is_too_large_is_named_and_the_rest_is_copied() {
    let from = Flaky::default();
    let to = Flaky {
        store: MemoryStore::new().with_max_payload(64),
        ..Flaky::default()
    };
    put(&from, 1, &data(1), HOUR).await;
    put(&from, 2, b"no session", HOUR).await;
    put(&from, 3, &data(3), HOUR).await;
    from.unreadable.lock().unwrap().push(key(3));
    let large = format!(r#"{{"n":"{}"}}"#, "x".repeat(100));
    put(&from, 4, large.as_bytes(), HOUR).await;
    let report = report_of(job(&from, &to)).await;
    let expected = Report {
        new: 1,
        unreadable: 2,
        too_large: 1,
        ..Report::default()
    };
    assert_eq!(report, expected);
    assert_eq!(report.outcome(), Outcome::LeftBehind);
    let too_large = Copied::TooLarge {
        size: 108,
        limit: 64,
    };
    let line = Report::default().count(&key(4), too_large).unwrap();
    assert!(line.contains(key(4).as_str()) && line.contains("108 bytes of at most 64"));
}

#[tokio::test]
async fn what_is_unreadable_in_the_target_makes_room_only_when_told_so() {
    let (from, to) = (Flaky::default(), Flaky::default());
    put(&from, 1, &data(1), HOUR).await;
    put(&to, 1, b"garbage", HOUR).await;
    to.unreadable.lock().unwrap().push(key(1));
    assert_eq!(report_of(job(&from, &to)).await.differs, 1);
    assert_eq!(report_of(overwriting(job(&from, &to))).await.new, 1);
    assert_eq!(get(&to, 1).await.unwrap().payload(), &data(1));
}

#[tokio::test]
async fn a_mirror_ends_what_only_the_target_has() {
    let (from, to) = (Flaky::default(), Flaky::default());
    for n in 0..5 {
        put(&from, n, &data(n), HOUR).await;
        put(&to, n + 3, &data(n), HOUR).await;
    }
    let report = report_of(mirroring(job(&from, &to))).await;
    let expected = Report {
        new: 3,
        replaced: 2,
        others_ended: 3,
        ..Report::default()
    };
    assert_eq!(report, expected);
    for n in 5..8 {
        let record = get(&to, n).await.unwrap();
        assert!(SessionInfo::of(&record).unwrap().is_ended(), "{n}");
    }
}

#[tokio::test]
async fn a_mirror_spares_the_session_that_an_old_tombstone_leads_to() {
    let (from, to) = (Flaky::default(), Flaky::default());
    put(&from, 1, &data(1), HOUR).await;
    let rotated = format!(r#"{{"_meta":{{"ended":true,"successor":"{}"}}}}"#, key(1));
    put(&to, 2, rotated.as_bytes(), HOUR).await;
    let report = report_of(mirroring(job(&from, &to))).await;
    assert_eq!(
        report,
        Report {
            new: 1,
            ..Report::default()
        }
    );
    let record = get(&to, 1).await.unwrap();
    assert!(!SessionInfo::of(&record).unwrap().is_ended());
}

#[tokio::test]
async fn an_empty_source_is_not_mirrored() {
    let (from, to) = (Flaky::default(), Flaky::default());
    put(&to, 1, &data(1), HOUR).await;
    let mut report = Report::default();
    let refused = mirroring(job(&from, &to))
        .run(&mut report)
        .await
        .unwrap_err();
    assert_eq!(refused.outcome(), Outcome::Misused);
    let record = get(&to, 1).await.unwrap();
    assert!(!SessionInfo::of(&record).unwrap().is_ended());
}

#[tokio::test]
async fn an_interrupted_copy_ends_between_records_and_goes_on_where_it_was() {
    let (from, to) = (Flaky::default(), Flaky::default());
    for n in 0..100 {
        put(&from, n, &data(n), HOUR).await;
    }
    let (sender, stop) = Stop::by_hand();
    *to.stop_at.lock().unwrap() = Some((30, sender));
    let mut first = Report::default();
    let interrupted = Job {
        stop,
        ..job(&from, &to)
    };
    assert_eq!(
        interrupted.run(&mut first).await.unwrap(),
        Walked::Interrupted
    );
    // Those that had begun were finished, and counted.
    let arrived = to.writes.load(Relaxed) as u64;
    assert_eq!(first.new, arrived);
    assert!((30..40).contains(&arrived), "{arrived}");

    *to.stop_at.lock().unwrap() = None;
    let second = report_of(job(&from, &to)).await;
    assert_eq!((second.there, second.new), (arrived, 100 - arrived));
}

#[tokio::test]
async fn a_translation_decides_on_keys_names_and_payloads() {
    let (from, to) = (Flaky::default(), Flaky::default());
    put(&from, 1, b"theirs:1", HOUR).await;
    put(&from, 2, b"broken", HOUR).await;
    let mut job = job(&from, &to);
    job.copier.translation = Translation {
        key: |key| key.as_str().replace('0', "A").parse().unwrap(),
        payload: |record| {
            let text = std::str::from_utf8(record.payload()).unwrap();
            let n = text.strip_prefix("theirs:")?;
            Some(Bytes::from(format!(r#"{{"n":{n}}}"#)))
        },
    };
    let (name, copied) = job.copier.copy(&key(2)).await.unwrap();
    assert_eq!(copied, Copied::Unreadable);
    assert!(!name.as_str().contains('0'));
    assert_eq!(report_of(job).await.new, 1);
    let renamed = key(1).as_str().replace('0', "A").parse().unwrap();
    let copy = to.store.load(&renamed).await.unwrap().unwrap();
    assert_eq!(copy.payload(), &br#"{"n":1}"#[..]);
}
