//! The conformance cases, turned on themselves: stores that break the contract in one way each, and
//! the case that must notice.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use session_layer::conformance::{self, Fixture, Purge};
use session_layer::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, StoreError,
    StoreErrorKind, StoreLimits, Token, TouchOutcome, UpdateOutcome,
};
use tokio::task::yield_now;
use tokio::time::Instant;

/// What a store does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// No fault: compares tokens, as memcached does, and a touch changes them.
    NoneByToken,
    /// No fault: tells time in seconds, and its backend purges.
    NoneBySeconds,
    // create
    CreateOverwrites,
    CreateChecksThenWrites,
    CreateLeavesExpired,
    CreateTakenRenewsExpiry,
    EndingIsNotKept,
    // load
    AbsentIsEmpty,
    ExpiredIsVisible,
    ForgetsAfterManyRecords,
    TruncatesPayload,
    StopsAtNul,
    ReadsInParts,
    ReportsFullTtl,
    FoldsCase,
    // update
    UpdateUpserts,
    UpdateRevivesExpired,
    UpdateIgnoresRevision,
    UpdateChecksThenWrites,
    UpdateKeepsExpiry,
    UpdateKeepsRevision,
    UpdateAnswersGoneForSameBytes,
    UpdateComparesTextually,
    UpdateSentTwice,
    // touch
    TouchRewritesPayload,
    TouchUpserts,
    TouchRevivesExpired,
    TouchIgnoresRevision,
    TouchOnlyReports,
    TouchNeverShortens,
    TouchOfSameExpiryIsGone,
    TouchWritesBack,
    TouchAnswersOldToken,
    TouchCausesConflicts,
    // delete and purge
    DeleteOfAbsentFails,
    DeleteIsForgotten,
    DeleteReadsPatterns,
    PurgeTakesLive,
    PurgeCountsWrong,
    PurgeIgnoresLimit,
    PurgeCrossesNamespaces,
    PurgeIsStale,
    PurgeDoesNothing,
    PurgeIsSaidToBeTheBackends,
    // limits and the rest
    TtlInWholeSecondsDown,
    TtlCappedAtThirtyDays,
    NoNamespaces,
    ClonesDiverge,
    AcceptsTooLarge,
    RefusesLargest,
    TooLargeLosesOld,
    TooLargeShowsKey,
    DebugShowsData,
    LimitsChange,
    BoundToOneTask,
    LockIsLeaked,
    HalfWrites,
}

#[derive(Clone)]
struct Row {
    revision: Revision,
    payload: Vec<u8>,
    expires: Instant,
    token: Token,
    touched: bool,
}

type Rows = HashMap<(u8, SessionKey), Row>;

/// A right store, apart from its fault.
struct Broken {
    fault: Fault,
    namespace: u8,
    rows: Arc<Mutex<Rows>>,
    /// Held by the verbs of `LockIsLeaked` across a point where they can be dropped.
    flag: Arc<Mutex<bool>>,
    task: Option<tokio::task::Id>,
}

const MAX: usize = 64 * 1024;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clone for Broken {
    fn clone(&self) -> Self {
        Self {
            fault: self.fault,
            namespace: self.namespace,
            rows: if self.fault == Fault::ClonesDiverge {
                Arc::new(Mutex::new(self.rows().clone()))
            } else {
                Arc::clone(&self.rows)
            },
            flag: Arc::clone(&self.flag),
            task: self.task,
        }
    }
}

impl std::fmt::Debug for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut broken = f.debug_struct("Broken");
        if self.is(Fault::DebugShowsData) {
            let payloads: Vec<_> = self.rows().values().map(|r| r.payload.clone()).collect();
            broken.field("payloads", &payloads);
        }
        broken.finish_non_exhaustive()
    }
}

impl Broken {
    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap()
    }

    fn name(&self, key: &SessionKey) -> (u8, SessionKey) {
        let key = if self.is(Fault::FoldsCase) {
            key.as_str().to_lowercase().parse().unwrap()
        } else {
            *key
        };
        (self.namespace, key)
    }

    fn alive(&self, row: &Row) -> bool {
        row.expires > Instant::now()
    }

    fn expires(&self, ttl: Duration) -> Instant {
        const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
        let ttl = match self.fault {
            Fault::TtlInWholeSecondsDown => Duration::from_secs(ttl.as_secs()),
            Fault::TtlCappedAtThirtyDays => ttl.min(MONTH),
            _ => ttl,
        };
        let at = Instant::now() + ttl;
        if self.is(Fault::NoneBySeconds) {
            // To the next full second of the store's clock.
            let past = (at - *EPOCH).subsec_nanos();
            return at + Duration::from_nanos(u64::from(1_000_000_000 - past));
        }
        at
    }

    fn by_token(&self) -> bool {
        matches!(self.fault, Fault::NoneByToken | Fault::TouchAnswersOldToken)
    }

    /// A token that no other write was given.
    fn token(&self) -> Token {
        static LAST: AtomicU64 = AtomicU64::new(0);
        if self.by_token() {
            Token::from(LAST.fetch_add(1, Ordering::Relaxed) + 1)
        } else {
            0
        }
    }

    fn row(&self, new: &NewRecord<'_>) -> Row {
        let mut payload = new.payload();
        if self.is(Fault::TruncatesPayload) {
            payload = &payload[..payload.len().min(200)];
        }
        if self.is(Fault::StopsAtNul) {
            payload = payload.split(|byte| *byte == 0).next().unwrap();
        }
        Row {
            revision: new.revision(),
            payload: payload.to_vec(),
            expires: self.expires(new.ttl()),
            token: self.token(),
            touched: false,
        }
    }

    fn same_revision(&self, seen: &Record, row: &Row) -> bool {
        if self.is(Fault::UpdateComparesTextually) {
            let fold = |r: Revision| r.as_bytes().map(|b| b.to_ascii_lowercase());
            return fold(seen.revision()) == fold(row.revision);
        }
        if self.by_token() {
            return seen.token() == row.token;
        }
        seen.revision() == row.revision
    }

    fn overdue(&self, rows: &Rows, limit: NonZeroUsize) -> Vec<(u8, SessionKey)> {
        let all = self.is(Fault::PurgeCrossesNamespaces);
        let live = self.is(Fault::PurgeTakesLive);
        let most = if self.is(Fault::PurgeIgnoresLimit) {
            usize::MAX
        } else {
            limit.get()
        };
        rows.iter()
            .filter(|(name, row)| (all || name.0 == self.namespace) && (live || !self.alive(row)))
            .map(|(name, _)| *name)
            .take(most)
            .collect()
    }

    async fn lock_that_leaks(&self) {
        while std::mem::replace(&mut *self.flag.lock().unwrap(), true) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        yield_now().await;
        *self.flag.lock().unwrap() = false;
    }

    fn refuse(&self, key: &SessionKey, new: &NewRecord<'_>) -> Result<(), StoreError> {
        match self.fault {
            Fault::AcceptsTooLarge => Ok(()),
            Fault::RefusesLargest if new.payload().len() == MAX => {
                Err(StoreError::too_large(MAX, MAX - 1))
            }
            Fault::TooLargeShowsKey if new.payload().len() > MAX => Err(StoreError::new(
                StoreErrorKind::TooLarge,
                format!("{key} is too large"),
            )),
            Fault::TooLargeLosesOld if new.payload().len() > MAX => {
                self.rows().remove(&self.name(key));
                self.limits().check(new)
            }
            _ => self.limits().check(new),
        }
    }
}

/// Long enough for somebody else to get in, however busy the machine is: what is tested here is that
/// a race is noticed, not how often it happens.
async fn others_come_between() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

impl SessionStore for Broken {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        if self.is(Fault::LockIsLeaked) {
            self.lock_that_leaks().await;
        }
        if self.is(Fault::ReadsInParts) {
            let first = self.rows().get(&self.name(key)).map(|row| row.revision);
            for _ in 0..3 {
                others_come_between().await;
            }
            return Ok(self.rows().get(&self.name(key)).and_then(|row| {
                let ttl = row.expires.checked_duration_since(Instant::now())?;
                Some(Record::new(first?, row.payload.clone().into(), ttl))
            }));
        }
        if self.is(Fault::BoundToOneTask) && tokio::task::try_id() != self.task {
            return Err(StoreError::new(StoreErrorKind::Other, "wrong task"));
        }
        let rows = self.rows();
        if self.is(Fault::ForgetsAfterManyRecords) && rows.len() > 999 {
            return Ok(None);
        }
        let Some(row) = rows.get(&self.name(key)) else {
            let empty = Record::new(Revision::from_bytes([0; 16]), Bytes::new(), Duration::ZERO);
            return Ok(self.is(Fault::AbsentIsEmpty).then_some(empty));
        };
        if !self.alive(row) && !self.is(Fault::ExpiredIsVisible) {
            return Ok(None);
        }
        let ttl = if self.is(Fault::ReportsFullTtl) {
            Duration::from_secs(31 * 24 * 3600)
        } else {
            row.expires.saturating_duration_since(Instant::now())
        };
        let payload = Bytes::from(row.payload.clone());
        Ok(Some(
            Record::new(row.revision, payload, ttl).with_token(row.token),
        ))
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.refuse(key, new)?;
        if self.is(Fault::LockIsLeaked) {
            self.lock_that_leaks().await;
        }
        let name = self.name(key);
        if self.is(Fault::CreateChecksThenWrites) {
            let taken = self.rows().get(&name).is_some_and(|row| self.alive(row));
            others_come_between().await;
            if taken {
                return Ok(CreateOutcome::Taken);
            }
            self.rows().insert(name, self.row(new));
            return Ok(CreateOutcome::Created(0));
        }
        if self.is(Fault::HalfWrites) {
            let mut half = self.row(new);
            half.payload.truncate(half.payload.len() / 2);
            if self.rows().get(&name).is_some_and(|row| self.alive(row)) {
                return Ok(CreateOutcome::Taken);
            }
            self.rows().insert(name, half);
            yield_now().await;
            self.rows().insert(name, self.row(new));
            return Ok(CreateOutcome::Created(0));
        }
        let mut rows = self.rows();
        if let Some(old) = rows.get_mut(&name)
            && (self.alive(old) || self.is(Fault::CreateLeavesExpired))
            && !self.is(Fault::CreateOverwrites)
        {
            if self.is(Fault::CreateTakenRenewsExpiry) {
                old.expires = self.expires(new.ttl());
            }
            return Ok(CreateOutcome::Taken);
        }
        let row = self.row(new);
        let token = row.token;
        if !(self.is(Fault::EndingIsNotKept) && new.is_ending()) {
            rows.insert(name, row);
        }
        Ok(CreateOutcome::Created(token))
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.refuse(key, new)?;
        if self.is(Fault::LockIsLeaked) {
            self.lock_that_leaks().await;
        }
        let name = self.name(key);
        if self.is(Fault::UpdateChecksThenWrites) {
            let found = self.rows().get(&name).map(|row| row.revision);
            others_come_between().await;
            return Ok(match found {
                None => UpdateOutcome::Gone,
                Some(revision) if revision != seen.revision() => UpdateOutcome::Conflict,
                Some(_) => {
                    self.rows().insert(name, self.row(new));
                    UpdateOutcome::Updated(0)
                }
            });
        }
        if self.is(Fault::HalfWrites) {
            if let Some(row) = self.rows().get_mut(&name)
                && row.revision == seen.revision()
            {
                row.revision = new.revision();
                row.payload.clear();
            }
            yield_now().await;
            if let Some(row) = self.rows().get_mut(&name)
                && row.revision == new.revision()
            {
                *row = self.row(new);
                return Ok(UpdateOutcome::Updated(0));
            }
            return Ok(UpdateOutcome::Conflict);
        }
        let mut rows = self.rows();
        let revives = self.is(Fault::UpdateRevivesExpired);
        let Some(row) = rows.get_mut(&name).filter(|row| self.alive(row) || revives) else {
            if self.is(Fault::UpdateUpserts) {
                rows.insert(name, self.row(new));
                return Ok(UpdateOutcome::Updated(0));
            }
            return Ok(UpdateOutcome::Gone);
        };
        if !self.same_revision(seen, row) && !self.is(Fault::UpdateIgnoresRevision) {
            return Ok(UpdateOutcome::Conflict);
        }
        if self.is(Fault::TouchCausesConflicts) && row.touched {
            row.touched = false;
            return Ok(UpdateOutcome::Conflict);
        }
        if self.is(Fault::UpdateAnswersGoneForSameBytes) && row.payload == new.payload() {
            return Ok(UpdateOutcome::Gone);
        }
        let old = std::mem::replace(row, self.row(new));
        if self.is(Fault::UpdateKeepsExpiry) {
            row.expires = old.expires;
        }
        if self.is(Fault::UpdateKeepsRevision) {
            row.revision = old.revision;
        }
        if self.is(Fault::UpdateSentTwice) {
            // The second finds the first's revision.
            return Ok(UpdateOutcome::Conflict);
        }
        Ok(UpdateOutcome::Updated(row.token))
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        if self.is(Fault::LockIsLeaked) {
            self.lock_that_leaks().await;
        }
        let name = self.name(key);
        if self.is(Fault::TouchWritesBack) {
            let Some(mut row) = self.rows().get(&name).cloned().filter(|r| self.alive(r)) else {
                return Ok(TouchOutcome::Gone);
            };
            if row.revision != seen.revision() {
                return Ok(TouchOutcome::Conflict);
            }
            others_come_between().await;
            row.expires = self.expires(ttl);
            if let Some(old) = self.rows().get_mut(&name) {
                *old = row;
            }
            return Ok(TouchOutcome::Touched(0));
        }
        let mut rows = self.rows();
        let revives = self.is(Fault::TouchRevivesExpired);
        let Some(row) = rows.get_mut(&name).filter(|row| self.alive(row) || revives) else {
            if self.is(Fault::TouchUpserts) {
                let row = Row {
                    revision: seen.revision(),
                    payload: seen.payload().to_vec(),
                    expires: self.expires(ttl),
                    token: 0,
                    touched: true,
                };
                rows.insert(name, row);
                return Ok(TouchOutcome::Touched(0));
            }
            return Ok(TouchOutcome::Gone);
        };
        if !self.same_revision(seen, row) && !self.is(Fault::TouchIgnoresRevision) {
            return Ok(TouchOutcome::Conflict);
        }
        row.touched = true;
        let old_token = std::mem::replace(&mut row.token, self.token());
        if self.is(Fault::TouchRewritesPayload) {
            row.payload.push(b'!');
        }
        let expires = self.expires(ttl);
        let shown = |at: Instant| at.duration_since(Instant::now()).as_millis();
        if self.is(Fault::TouchOfSameExpiryIsGone) && shown(expires) == shown(row.expires) {
            return Ok(TouchOutcome::Gone);
        }
        row.expires = match self.fault {
            Fault::TouchOnlyReports => row.expires,
            Fault::TouchNeverShortens => row.expires.max(expires),
            _ => expires,
        };
        Ok(TouchOutcome::Touched(match self.fault {
            Fault::TouchAnswersOldToken => old_token,
            _ => row.token,
        }))
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        if self.is(Fault::LockIsLeaked) {
            self.lock_that_leaks().await;
        }
        if self.is(Fault::DeleteIsForgotten) {
            return Ok(());
        }
        if self.is(Fault::DeleteReadsPatterns) {
            let matches = |(a, b): (u8, u8)| a == b'_' || a == b;
            let pattern = key.as_str().bytes();
            self.rows()
                .retain(|(_, name), _| !pattern.clone().zip(name.as_str().bytes()).all(matches));
        }
        let removed = self.rows().remove(&self.name(key));
        if removed.is_none() && self.is(Fault::DeleteOfAbsentFails) {
            return Err(StoreError::new(StoreErrorKind::Other, "no such record"));
        }
        Ok(())
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        if matches!(self.fault, Fault::PurgeDoesNothing | Fault::NoneBySeconds) {
            return Ok(0);
        }
        let stale = self
            .is(Fault::PurgeIsStale)
            .then(|| self.overdue(&self.rows(), limit));
        if stale.is_some() {
            // Long enough for others to come in between, on a busy machine too.
            for _ in 0..20 {
                yield_now().await;
            }
        }
        let mut rows = self.rows();
        let names = stale.unwrap_or_else(|| self.overdue(&rows, limit));
        rows.retain(|name, _| !names.contains(name));
        let more = u64::from(self.is(Fault::PurgeCountsWrong) && !names.is_empty());
        Ok(names.len() as u64 + more)
    }

    fn limits(&self) -> StoreLimits {
        if self.is(Fault::NoneBySeconds) {
            return StoreLimits::new(MAX)
                .with_expiry_resolution(Duration::from_secs(1))
                .with_own_expiry(true);
        }
        if self.is(Fault::PurgeIsSaidToBeTheBackends) {
            return StoreLimits::new(MAX).with_own_expiry(true);
        }
        if self.is(Fault::LimitsChange) {
            return StoreLimits::new(MAX - self.rows().len());
        }
        StoreLimits::new(MAX)
    }
}

struct Bench {
    store: Broken,
}

impl Bench {
    fn new(fault: Fault) -> Self {
        Self {
            store: Broken {
                fault,
                namespace: 1,
                rows: Arc::default(),
                flag: Arc::default(),
                task: tokio::task::try_id(),
            },
        }
    }
}

impl Fixture for Bench {
    type Store = Broken;

    fn store(&self) -> Broken {
        self.store.clone()
    }

    fn other_namespace(&self) -> Broken {
        let mut other = self.store.clone();
        if !other.is(Fault::NoNamespaces) {
            other.namespace = 2;
        }
        other
    }

    fn purge(&self) -> Purge {
        if self.store.is(Fault::NoneBySeconds) {
            return Purge::ByItself;
        }
        Purge::OnDemand {
            margin: Duration::ZERO,
        }
    }
}

mod a_right_store_passes {
    async fn fixture() -> super::Bench {
        super::Bench::new(super::Fault::None)
    }

    session_layer::conformance!(fixture);
}

mod a_right_store_with_tokens_passes {
    async fn fixture() -> super::Bench {
        super::Bench::new(super::Fault::NoneByToken)
    }

    session_layer::conformance!(fixture);
}

mod a_right_store_with_a_coarse_clock_passes {
    async fn fixture() -> super::Bench {
        super::Bench::new(super::Fault::NoneBySeconds)
    }

    session_layer::conformance!(fixture);
}

#[test]
fn every_case_notices_some_fault() {
    let here = include_str!("conformance_kit.rs");
    let (_, table) = here.rsplit_once("notices! {").unwrap();
    let list = include_str!("../src/conformance/mod.rs");
    let (_, list) = list.split_once("// basics").unwrap();
    let (list, _) = list.split_once('}').unwrap();
    let cases: Vec<_> = list
        .lines()
        .filter_map(|line| line.trim().strip_suffix(','))
        .collect();
    assert!(cases.len() > 50);
    for case in cases {
        let tried = table
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == case);
        assert!(tried, "nothing shows that {case} can fail");
    }
}

/// The case that must fail on each fault. A race is given a few chances to be lost.
macro_rules! notices {
    ($($fault:ident => $case:ident $(, $more:ident)*;)+) => {
        mod notices {
            use super::*;
            $(
                #[expect(non_snake_case, reason = "named like the fault")]
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $fault() {
                    assert!(
                        fails!($case, $fault),
                        "{} did not notice {:?}", stringify!($case), Fault::$fault
                    );
                    $(
                        assert!(
                            fails!($more, $fault),
                            "{} did not notice {:?}", stringify!($more), Fault::$fault
                        );
                    )*
                }
            )+
            const TRIED: &[Fault] = &[Fault::None, $(Fault::$fault),+];

            #[test]
            fn no_fault_is_tried_twice() {
                for (n, fault) in TRIED.iter().enumerate() {
                    assert!(!TRIED[..n].contains(fault), "{fault:?}");
                }
            }
        }
    };
}

macro_rules! fails {
    ($case:ident, $fault:ident) => {{
        let mut failed = false;
        for _ in 0..5 {
            let case = tokio::spawn(async {
                let bench = Bench::new(Fault::$fault);
                tokio::time::timeout(Duration::from_secs(12), conformance::$case(&bench))
                    .await
                    .expect("the case hangs");
            });
            failed |= case.await.is_err_and(|error| error.is_panic());
            if failed {
                break;
            }
        }
        failed
    }};
}

notices! {
    EndingIsNotKept => a_record_that_ends_a_session_is_kept_like_any_other;
    AbsentIsEmpty => a_key_never_written_loads_as_none;
    TouchAnswersOldToken => an_update_follows_the_token_of_a_touch;
    TouchCausesConflicts => an_update_of_what_was_seen_before_a_touch_is_never_lost_silently;
    DeleteReadsPatterns => every_key_of_the_grammar_works;
    LimitsChange => limits_never_change;
    BoundToOneTask => verbs_run_on_tasks_of_their_own;
    CreateOverwrites => a_second_create_is_taken_and_changes_nothing;
    CreateChecksThenWrites => racing_creators_have_one_winner, creators_racing_over_an_expired_record_have_one_winner;
    CreateLeavesExpired => an_expired_key_can_be_created_again;
    CreateTakenRenewsExpiry => a_second_create_is_taken_and_changes_nothing;
    ExpiredIsVisible => a_record_is_loaded_until_its_expiry_and_never_after, a_lifetime_below_a_second_is_kept, an_update_can_shorten_the_expiry;
    ForgetsAfterManyRecords => a_thousand_records_coexist;
    TruncatesPayload => payloads_come_back_byte_for_byte, the_largest_payload_is_kept_whole;
    StopsAtNul => payloads_come_back_byte_for_byte;
    ReadsInParts => readers_see_records_whole;
    ReportsFullTtl => a_created_record_loads_as_it_was_written, a_touch_sets_the_expiry_and_nothing_else;
    FoldsCase => keys_that_differ_only_in_case_are_different;
    UpdateUpserts => an_update_of_an_absent_key_is_gone_and_creates_nothing, an_update_after_a_delete_is_gone_and_revives_nothing, a_racing_delete_is_final;
    UpdateRevivesExpired => an_update_after_the_expiry_is_gone_and_revives_nothing;
    UpdateIgnoresRevision => an_update_of_a_stale_revision_is_a_conflict_and_changes_nothing, racing_updaters_lose_nothing, an_update_meant_for_an_earlier_life_is_a_conflict, racing_updaters_of_one_revision_have_one_winner;
    UpdateChecksThenWrites => racing_updaters_lose_nothing, racing_updaters_of_one_revision_have_one_winner, a_racing_delete_is_final;
    UpdateKeepsExpiry => an_update_replaces_payload_revision_and_expiry, an_update_can_shorten_the_expiry, an_updated_record_outlives_its_first_expiry;
    UpdateKeepsRevision => an_update_replaces_payload_revision_and_expiry, updates_follow_the_tokens_they_were_given;
    UpdateAnswersGoneForSameBytes => an_update_with_the_same_payload_is_an_update;
    UpdateComparesTextually => revisions_come_back_byte_for_byte;
    UpdateSentTwice => updates_follow_reloaded_records;
    TouchRewritesPayload => a_touch_sets_the_expiry_and_nothing_else;
    TouchUpserts => a_touch_of_an_absent_key_is_gone_and_creates_nothing, a_touch_after_a_delete_is_gone_and_revives_nothing, a_racing_delete_is_final;
    TouchRevivesExpired => a_touch_after_the_expiry_is_gone_and_revives_nothing;
    TouchIgnoresRevision => a_touch_of_a_stale_revision_is_a_conflict_and_leaves_the_expiry, a_touch_meant_for_an_earlier_life_is_a_conflict;
    TouchOnlyReports => a_touch_sets_the_expiry_and_nothing_else, a_touched_record_outlives_its_first_expiry;
    TouchNeverShortens => a_touch_can_shorten_the_expiry;
    TouchOfSameExpiryIsGone => a_touch_that_changes_nothing_is_a_touch;
    TouchWritesBack => a_racing_touch_undoes_no_update;
    DeleteOfAbsentFails => deleting_is_idempotent;
    DeleteIsForgotten => a_deleted_key_can_be_created_again, a_delete_takes_any_revision;
    PurgeTakesLive => purging_nothing_answers_zero, purging_removes_what_has_expired_and_counts_it;
    PurgeCountsWrong => purging_removes_what_has_expired_and_counts_it;
    PurgeIgnoresLimit => purging_respects_its_limit;
    PurgeCrossesNamespaces => purging_leaves_other_namespaces_alone;
    PurgeIsStale => purging_spares_what_was_created_again;
    PurgeDoesNothing => purging_removes_what_has_expired_and_counts_it;
    PurgeIsSaidToBeTheBackends => the_limits_say_who_purges;
    TtlInWholeSecondsDown => a_lifetime_below_a_second_is_kept;
    TtlCappedAtThirtyDays => a_lifetime_of_months_is_kept;
    NoNamespaces => namespaces_do_not_see_each_other;
    ClonesDiverge => clones_share_the_data;
    AcceptsTooLarge => a_payload_one_byte_too_large_is_refused_by_create, a_payload_one_byte_too_large_is_refused_by_update;
    RefusesLargest => the_largest_payload_is_kept_whole;
    TooLargeLosesOld => a_payload_one_byte_too_large_is_refused_by_update;
    TooLargeShowsKey => a_payload_one_byte_too_large_is_refused_by_create;
    DebugShowsData => debug_prints_no_payload;
    LockIsLeaked => dropped_verbs_block_nobody;
    HalfWrites => a_dropped_create_leaves_all_or_nothing, a_dropped_update_leaves_the_old_or_the_new_whole;
}
