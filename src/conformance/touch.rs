//! Touch.

use tokio::time::Instant;

use super::{
    Fixture, LONG, SHORT, assert_same, assert_ttl, create, load, load_live, new_key, outlive,
    touch, try_create, try_touch, try_update, update,
};
use crate::store::{Record, SessionKey, SessionStore, TouchOutcome, UpdateOutcome};

/// `touch` sets the expiry; payload and revision stay.
pub async fn a_touch_sets_the_expiry_and_nothing_else<F: Fixture>(fixture: &F) {
    let (store, key, bystander) = (fixture.store(), new_key(), new_key());
    let before = Instant::now();
    let other = create(&store, &bystander, b"bystander", LONG).await;
    let made = create(&store, &key, b"kept", LONG).await;
    let since = Instant::now();
    touch(&store, &key, &made, 3 * LONG).await;
    let found = load_live(&store, &key).await;
    assert_same(&found, &made);
    assert_ttl(&found, 3 * LONG, since, store.limits());
    let found = load_live(&store, &bystander).await;
    assert_same(&found, &other);
    assert_ttl(&found, LONG, before, store.limits());
}

/// `touch` can set an earlier expiry.
pub async fn a_touch_can_shorten_the_expiry<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let made = create(&store, &key, b"kept", 2 * LONG).await;
    let since = Instant::now();
    let made = touch(&store, &key, &made, LONG).await;
    let found = load_live(&store, &key).await;
    assert_same(&found, &made);
    assert_ttl(&found, LONG, since, store.limits());
    touch(&store, &key, &found, SHORT).await;
    outlive(SHORT, store.limits()).await;
    assert!(load(&store, &key).await.is_none());
}

/// `touch` with the expiry that is there already is answered `Touched`.
pub async fn a_touch_that_changes_nothing_is_a_touch<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    // Dozens, so that some fall into the same tick of the store's clock.
    let made = create(&store, &key, b"kept", LONG).await;
    let mut seen = made.clone();
    for _ in 0..50 {
        seen = touch(&store, &key, &seen, LONG).await;
    }
    assert_same(&load_live(&store, &key).await, &made);
}

/// `touch` of a revision that is no longer there answers `Conflict` and leaves the record and its
/// expiry.
pub async fn a_touch_of_a_stale_revision_is_a_conflict_and_leaves_the_expiry<F: Fixture>(
    fixture: &F,
) {
    let (store, key) = (fixture.store(), new_key());
    let first = create(&store, &key, b"first", LONG).await;
    let since = Instant::now();
    let second = update(&store, &key, &first, b"second", 2 * LONG).await;
    for ttl in [9 * LONG, LONG] {
        let outcome = try_touch(&store, &key, &first, ttl).await;
        assert_eq!(outcome, TouchOutcome::Conflict);
        let found = load_live(&store, &key).await;
        assert_same(&found, &second);
        assert_ttl(&found, 2 * LONG, since, store.limits());
    }
}

/// Says of an absent `key` that `touch` answers `Gone` and makes nothing.
async fn assert_gone<S: SessionStore>(store: &S, key: &SessionKey, seen: &Record) {
    for _ in 0..2 {
        let outcome = try_touch(store, key, seen, LONG).await;
        assert_eq!(outcome, TouchOutcome::Gone);
        assert!(
            load(store, key).await.is_none(),
            "a touch made a record where none was"
        );
    }
    assert!(
        try_create(store, key, b"new", LONG).await.is_some(),
        "a touch that was answered Gone took the key"
    );
}

/// `touch` of what never was answers `Gone` and creates nothing.
pub async fn a_touch_of_an_absent_key_is_gone_and_creates_nothing<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let elsewhere = create(&store, &key, b"elsewhere", LONG).await;
    assert_gone(&store, &new_key(), &elsewhere).await;
    assert_same(&load_live(&store, &key).await, &elsewhere);
}

/// `touch` of a deleted record answers `Gone`.
pub async fn a_touch_after_a_delete_is_gone_and_revives_nothing<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    create(&store, &key, b"made", LONG).await;
    let seen = load_live(&store, &key).await;
    store.delete(&key).await.expect("delete");
    assert_gone(&store, &key, &seen).await;
}

/// `touch` of an expired record answers `Gone`, purged or not.
pub async fn a_touch_after_the_expiry_is_gone_and_revives_nothing<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let seen = create(&store, &key, b"made", SHORT).await;
    outlive(SHORT, store.limits()).await;
    assert_gone(&store, &key, &seen).await;
}

/// A record created after another was deleted is not the one that was seen.
pub async fn a_touch_meant_for_an_earlier_life_is_a_conflict<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let first = create(&store, &key, b"the same", LONG).await;
    store.delete(&key).await.expect("delete");
    let since = Instant::now();
    let second = create(&store, &key, b"the same", LONG).await;
    let outcome = try_touch(&store, &key, &first, 9 * LONG).await;
    assert_eq!(outcome, TouchOutcome::Conflict);
    let found = load_live(&store, &key).await;
    assert_same(&found, &second);
    assert_ttl(&found, LONG, since, store.limits());
}

/// What `touch` answers is enough for the next touch and the next update; so is a reloaded record.
pub async fn an_update_follows_the_token_of_a_touch<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let mut seen = create(&store, &key, b"0", LONG).await;
    for n in 1..=5u8 {
        seen = touch(&store, &key, &seen, 2 * LONG).await;
        seen = touch(&store, &key, &seen, 3 * LONG).await;
        seen = update(&store, &key, &seen, &[n], LONG).await;
        touch(&store, &key, &seen, 2 * LONG).await;
        let reread = load_live(&store, &key).await;
        assert_same(&reread, &seen);
        seen = update(&store, &key, &reread, &[n, n], LONG).await;
    }
    assert_same(&load_live(&store, &key).await, &seen);
}

/// `update` of a record that was touched since it was seen is `Updated`: the revision is the same.
/// Only a store that compares a token of its own may answer `Conflict`, and then nothing has changed.
pub async fn an_update_of_what_was_seen_before_a_touch_is_never_lost_silently<F: Fixture>(
    fixture: &F,
) {
    let (store, key) = (fixture.store(), new_key());
    let seen = create(&store, &key, b"seen", LONG).await;
    touch(&store, &key, &seen, 2 * LONG).await;
    let (outcome, newer) = try_update(&store, &key, &seen, b"newer", LONG).await;
    let found = load_live(&store, &key).await;
    match outcome {
        UpdateOutcome::Updated(_) => assert_same(&found, &newer),
        UpdateOutcome::Conflict => {
            assert_ne!(
                found.token(),
                seen.token(),
                "the revision is the same and so is the token: no reason for a conflict"
            );
            assert_same(&found, &seen);
            let newer = update(&store, &key, &found, b"newer", LONG).await;
            assert_same(&load_live(&store, &key).await, &newer);
        }
        UpdateOutcome::Gone => panic!("a live record was answered Gone"),
    }
}
