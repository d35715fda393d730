//! The store contract as tests, for the author of a [`SessionStore`].
//!
//! Every sentence of the contract is one case here, and [`conformance!`](crate::conformance!) makes
//! one separately named test of each. Needs the cargo feature `conformance`, which belongs among the
//! dev-dependencies; beside it the tests need nothing but `tokio` with `macros` and
//! `rt-multi-thread`. The list grows with the contract: this module is not covered by semver.
//!
//! A run takes a few seconds of waiting for records to expire, and writes records as large as
//! [`StoreLimits::max_payload`] says, at most 64 MiB each.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "memory")] mod shown {
//! use session_layer::conformance::{Fixture, Purge};
//! use session_layer::store::MemoryStore;
//! use std::time::Duration;
//!
//! struct InMemory {
//!     store: MemoryStore,
//!     other: MemoryStore,
//! }
//!
//! impl Fixture for InMemory {
//!     type Store = MemoryStore;
//!
//!     fn store(&self) -> MemoryStore {
//!         self.store.clone()
//!     }
//!
//!     fn other_namespace(&self) -> MemoryStore {
//!         self.other.clone()
//!     }
//!
//!     fn purge(&self) -> Purge {
//!         Purge::OnDemand { margin: Duration::ZERO }
//!     }
//! }
//!
//! async fn fixture() -> InMemory {
//!     InMemory { store: MemoryStore::new(), other: MemoryStore::new() }
//! }
//!
//! session_layer::conformance!(fixture);
//! # }
//! # fn main() {}
//! ```
//!
//! `examples/custom_store.rs` is a whole store with its run of this list.

mod basics;
mod cancellation;
mod expiry;
mod namespaces;
mod payloads;
mod purge;
mod races;
mod scan;
mod touch;
mod update;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::id::SessionId;
use crate::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, StoreLimits, Token,
    TouchOutcome, UpdateOutcome,
};

pub use self::basics::*;
pub use self::cancellation::*;
pub use self::expiry::*;
pub use self::namespaces::*;
pub use self::payloads::*;
pub use self::purge::*;
pub use self::races::*;
pub use self::scan::*;
pub use self::touch::*;
pub use self::update::*;

/// What a case runs against: one store, made for this case alone.
///
/// Made by the function that is named to [`conformance!`](crate::conformance!), once a case, and
/// dropped at its end; it may own a temporary directory or a server's handle. The function panics
/// when it cannot make one (no server, say): a case that does not run must not look like one that
/// passed.
pub trait Fixture: Send + Sync + 'static {
    /// The store that is tested.
    type Store: SessionStore + Clone;

    /// The store: always the same one, in a namespace that nothing else uses.
    fn store(&self) -> Self::Store;

    /// A second store on the same backend, under another prefix, table or directory. Where a store
    /// has no namespaces, one that is independent of the first.
    fn other_namespace(&self) -> Self::Store;

    /// How the store gets rid of expired records.
    fn purge(&self) -> Purge;
}

/// How a store gets rid of expired records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purge {
    /// The backend does it: `delete_expired` answers 0.
    ByItself,
    /// `delete_expired` does it. It may leave what expired less than `margin` ago; the cases wait
    /// that long, so give the fixture's store a short one.
    OnDemand {
        /// The longest time by which the store waits for other hosts' clocks.
        margin: Duration,
    },
}

/// Makes one test of each case of the store contract.
///
/// `conformance!(fixture)`, where `fixture` is the path of an `async fn() -> impl Fixture`. With
/// `conformance!(fixture, ignore = "needs a server")` the tests are marked `#[ignore]`, so that a run
/// without the server says "ignored" and never "ok".
///
/// The tests are made in the module that calls the macro, each on a runtime of its own with two
/// worker threads. A case that takes longer than [`DEADLINE`](crate::conformance::DEADLINE) fails.
///
/// See the module [`conformance`](mod@crate::conformance) for an example.
#[macro_export]
macro_rules! conformance {
    (@case $fixture:path, [$($attribute:tt)*], $case:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $($attribute)*
        async fn $case() {
            let fixture = $fixture().await;
            $crate::conformance::in_time($crate::conformance::$case(&fixture)).await;
        }
    };
    (@all $fixture:path, $attributes:tt, $($case:ident),+ $(,)?) => {
        $( $crate::conformance! { @case $fixture, $attributes, $case } )+
    };
    ($fixture:path $(, ignore = $why:literal)? $(,)?) => {
        $crate::conformance! { @all $fixture, [$(#[ignore = $why])?],
            // basics
            a_key_never_written_loads_as_none,
            a_created_record_loads_as_it_was_written,
            a_second_create_is_taken_and_changes_nothing,
            a_deleted_key_can_be_created_again,
            deleting_is_idempotent,
            a_delete_takes_any_revision,
            a_record_that_ends_a_session_is_kept_like_any_other,
            clones_share_the_data,
            keys_that_differ_only_in_case_are_different,
            every_key_of_the_grammar_works,
            a_thousand_records_coexist,
            limits_never_change,
            debug_prints_no_payload,
            verbs_run_on_tasks_of_their_own,
            // payloads
            payloads_come_back_byte_for_byte,
            revisions_come_back_byte_for_byte,
            the_largest_payload_is_kept_whole,
            a_payload_one_byte_too_large_is_refused_by_create,
            a_payload_one_byte_too_large_is_refused_by_update,
            // update
            an_update_replaces_payload_revision_and_expiry,
            an_update_with_the_same_payload_is_an_update,
            an_update_can_shorten_the_expiry,
            an_update_of_a_stale_revision_is_a_conflict_and_changes_nothing,
            an_update_of_an_absent_key_is_gone_and_creates_nothing,
            an_update_after_a_delete_is_gone_and_revives_nothing,
            an_update_after_the_expiry_is_gone_and_revives_nothing,
            an_update_meant_for_an_earlier_life_is_a_conflict,
            updates_follow_the_tokens_they_were_given,
            updates_follow_reloaded_records,
            // touch
            a_touch_sets_the_expiry_and_nothing_else,
            a_touch_can_shorten_the_expiry,
            a_touch_that_changes_nothing_is_a_touch,
            a_touch_of_a_stale_revision_is_a_conflict_and_leaves_the_expiry,
            a_touch_of_an_absent_key_is_gone_and_creates_nothing,
            a_touch_after_a_delete_is_gone_and_revives_nothing,
            a_touch_after_the_expiry_is_gone_and_revives_nothing,
            a_touch_meant_for_an_earlier_life_is_a_conflict,
            an_update_follows_the_token_of_a_touch,
            an_update_of_what_was_seen_before_a_touch_is_never_lost_silently,
            // expiry
            a_record_is_loaded_until_its_expiry_and_never_after,
            a_lifetime_below_a_second_is_kept,
            a_lifetime_of_months_is_kept,
            an_expired_key_can_be_created_again,
            an_updated_record_outlives_its_first_expiry,
            a_touched_record_outlives_its_first_expiry,
            // namespaces
            namespaces_do_not_see_each_other,
            purging_leaves_other_namespaces_alone,
            // purge
            purging_nothing_answers_zero,
            purging_removes_what_has_expired_and_counts_it,
            purging_respects_its_limit,
            purging_spares_what_was_created_again,
            the_limits_say_who_purges,
            // races
            racing_creators_have_one_winner,
            creators_racing_over_an_expired_record_have_one_winner,
            racing_updaters_of_one_revision_have_one_winner,
            racing_updaters_lose_nothing,
            a_racing_touch_undoes_no_update,
            a_racing_delete_is_final,
            readers_see_records_whole,
            // cancellation
            a_dropped_create_leaves_all_or_nothing,
            a_dropped_update_leaves_the_old_or_the_new_whole,
            dropped_verbs_block_nobody,
        }
    };
}

/// Makes one test of each case of the contract of [`ScanStore`](crate::store::ScanStore), for a store
/// that lists its keys, beside [`conformance!`](crate::conformance!) and in the same way.
#[macro_export]
macro_rules! conformance_of_scan {
    ($fixture:path $(, ignore = $why:literal)? $(,)?) => {
        $crate::conformance! { @all $fixture, [$(#[ignore = $why])?],
            // scan
            a_scan_of_nothing_ends,
            a_scan_names_every_key,
            a_scan_stays_in_its_namespace,
            a_scan_misses_nothing_that_stays,
            a_scan_keeps_its_place_when_others_come_and_go,
            a_scan_from_nowhere_is_refused,
        }
    };
}

/// How long a case may take.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// Fails when a case takes longer than [`DEADLINE`].
///
/// # Panics
///
/// Then.
pub async fn in_time(case: impl Future<Output = ()>) {
    if tokio::time::timeout(DEADLINE, case).await.is_err() {
        panic!("the case did not end within {DEADLINE:?}");
    }
}

// From here on a panic is a failed test, which is what this module is for.

/// A lifetime that no case outlives.
const LONG: Duration = Duration::from_secs(3600);

/// A lifetime that a case waits out.
const SHORT: Duration = Duration::from_millis(400);

/// How many bytes are written at most where the limit itself is the matter.
const LARGEST_TRIED: usize = 64 << 20;

fn new_key() -> SessionKey {
    SessionId::generate().expect("random bytes").key()
}

fn nonzero(n: usize) -> std::num::NonZeroUsize {
    std::num::NonZeroUsize::new(n).expect("not zero")
}

/// The record as a caller knows it that has just written it.
fn written(new: &NewRecord<'_>, token: Token) -> Record {
    Record::new(
        new.revision(),
        Bytes::copy_from_slice(new.payload()),
        new.ttl(),
    )
    .with_token(token)
}

async fn try_create<S: SessionStore>(
    store: &S,
    key: &SessionKey,
    payload: &[u8],
    ttl: Duration,
) -> Option<Record> {
    let new = NewRecord::new(Revision::generate(), payload, ttl);
    match store.create(key, &new).await.expect("create") {
        CreateOutcome::Created(token) => Some(written(&new, token)),
        CreateOutcome::Taken => None,
    }
}

async fn create<S: SessionStore>(
    store: &S,
    key: &SessionKey,
    payload: &[u8],
    ttl: Duration,
) -> Record {
    try_create(store, key, payload, ttl)
        .await
        .expect("an absent key was answered Taken")
}

async fn load<S: SessionStore>(store: &S, key: &SessionKey) -> Option<Record> {
    store.load(key).await.expect("load")
}

async fn load_live<S: SessionStore>(store: &S, key: &SessionKey) -> Record {
    load(store, key).await.expect("a live record was not there")
}

async fn try_update<S: SessionStore>(
    store: &S,
    key: &SessionKey,
    seen: &Record,
    payload: &[u8],
    ttl: Duration,
) -> (UpdateOutcome, Record) {
    let new = NewRecord::new(Revision::generate(), payload, ttl);
    let outcome = store.update(key, seen, &new).await.expect("update");
    let token = match outcome {
        UpdateOutcome::Updated(token) => token,
        UpdateOutcome::Conflict | UpdateOutcome::Gone => 0,
    };
    (outcome, written(&new, token))
}

async fn update<S: SessionStore>(
    store: &S,
    key: &SessionKey,
    seen: &Record,
    payload: &[u8],
    ttl: Duration,
) -> Record {
    match try_update(store, key, seen, payload, ttl).await {
        (UpdateOutcome::Updated(_), record) => record,
        (other, _) => panic!("an update of the current record was answered {other:?}"),
    }
}

async fn try_touch<S: SessionStore>(
    store: &S,
    key: &SessionKey,
    seen: &Record,
    ttl: Duration,
) -> TouchOutcome {
    store.touch(key, seen, ttl).await.expect("touch")
}

/// Touches, and gives back the record as the caller now knows it.
async fn touch<S: SessionStore>(
    store: &S,
    key: &SessionKey,
    seen: &Record,
    ttl: Duration,
) -> Record {
    match try_touch(store, key, seen, ttl).await {
        TouchOutcome::Touched(token) => {
            Record::new(seen.revision(), seen.payload().clone(), ttl).with_token(token)
        }
        other => panic!("a touch of the current record was answered {other:?}"),
    }
}

#[track_caller]
fn assert_same(found: &Record, expected: &Record) {
    assert_eq!(
        found.revision(),
        expected.revision(),
        "the revision is not the one that was written"
    );
    // Not `assert_eq!` on the payloads: it would print up to 64 MiB.
    assert_eq!(
        found.payload().len(),
        expected.payload().len(),
        "the payload is not as long as the one that was written"
    );
    assert!(
        found.payload() == expected.payload(),
        "the payload is not the one that was written"
    );
}

/// That `found` was written with `ttl`, at the earliest at `since`.
#[track_caller]
fn assert_ttl(found: &Record, ttl: Duration, since: Instant, limits: StoreLimits) {
    let slack = Duration::from_secs(1) + limits.expiry_resolution();
    assert!(
        found.ttl() <= ttl + limits.expiry_resolution(),
        "{:?} are left of {ttl:?}",
        found.ttl()
    );
    assert!(
        found.ttl() + since.elapsed() + slack >= ttl,
        "only {:?} are left of {ttl:?} after {:?}",
        found.ttl(),
        since.elapsed()
    );
}

/// The time after which a record written with `ttl` must be absent: its clock may be as coarse as
/// its resolution, and so may the rounding.
fn gone_after(ttl: Duration, limits: StoreLimits) -> Duration {
    ttl + 2 * limits.expiry_resolution() + Duration::from_millis(100)
}

/// Waits until a record written before now with `ttl` has expired, without asking for it: a load may
/// purge it.
async fn outlive(ttl: Duration, limits: StoreLimits) {
    tokio::time::sleep(gone_after(ttl, limits)).await;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn every_case_is_on_the_list_once() {
        let sources = [
            include_str!("basics.rs"),
            include_str!("cancellation.rs"),
            include_str!("expiry.rs"),
            include_str!("namespaces.rs"),
            include_str!("payloads.rs"),
            include_str!("purge.rs"),
            include_str!("races.rs"),
            include_str!("scan.rs"),
            include_str!("touch.rs"),
            include_str!("update.rs"),
        ];
        let cases: BTreeSet<_> = sources
            .iter()
            .flat_map(|source| source.lines())
            .filter_map(|line| line.strip_prefix("pub async fn ")?.split('<').next())
            .collect();
        let list = |first: &'static str| {
            include_str!("mod.rs")
                .lines()
                .skip_while(move |line| line.trim() != first)
                .take_while(|line| line.trim() != "}")
        };
        let listed: Vec<_> = list("// basics")
            .chain(list("// scan"))
            .filter_map(|line| line.trim().strip_suffix(','))
            .collect();
        assert!(!cases.is_empty());
        assert_eq!(listed.len(), cases.len());
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), cases);
    }
}
