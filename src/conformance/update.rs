//! Update.

use tokio::time::Instant;

use super::{
    Fixture, LONG, SHORT, assert_same, assert_ttl, create, load, load_live, new_key, outlive,
    try_create, try_update, update,
};
use crate::store::{Record, SessionKey, SessionStore, UpdateOutcome};

/// `update` replaces payload, revision and expiry.
pub async fn an_update_replaces_payload_revision_and_expiry<F: Fixture>(fixture: &F) {
    let (store, key, bystander) = (fixture.store(), new_key(), new_key());
    let other = create(&store, &bystander, b"bystander", LONG).await;
    let made = create(&store, &key, b"a longer payload", LONG).await;
    let since = Instant::now();
    let newer = update(&store, &key, &made, b"short", 3 * LONG).await;
    assert_ne!(newer.revision(), made.revision());
    let found = load_live(&store, &key).await;
    assert_same(&found, &newer);
    assert_ttl(&found, 3 * LONG, since, store.limits());
    assert_same(&load_live(&store, &bystander).await, &other);
}

/// `update` with the payload that is there already is an update: the revision is another.
pub async fn an_update_with_the_same_payload_is_an_update<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let mut seen = create(&store, &key, b"same", LONG).await;
    for _ in 0..3 {
        let newer = update(&store, &key, &seen, b"same", LONG).await;
        let found = load_live(&store, &key).await;
        assert_same(&found, &newer);
        assert_ne!(found.revision(), seen.revision());
        seen = newer;
    }
}

/// `update` can set an earlier expiry.
pub async fn an_update_can_shorten_the_expiry<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let made = create(&store, &key, b"long", LONG).await;
    update(&store, &key, &made, b"brief", SHORT).await;
    outlive(SHORT, store.limits()).await;
    assert!(load(&store, &key).await.is_none());
}

/// `update` of a revision that is no longer there answers `Conflict` and leaves payload, revision
/// and expiry.
pub async fn an_update_of_a_stale_revision_is_a_conflict_and_changes_nothing<F: Fixture>(
    fixture: &F,
) {
    let (store, key) = (fixture.store(), new_key());
    let first = create(&store, &key, b"first", LONG).await;
    let reread = load_live(&store, &key).await;
    let since = Instant::now();
    let second = update(&store, &key, &first, b"second", 2 * LONG).await;
    for stale in [&first, &reread] {
        let (outcome, _) = try_update(&store, &key, stale, b"lost", 9 * LONG).await;
        assert_eq!(outcome, UpdateOutcome::Conflict);
        let found = load_live(&store, &key).await;
        assert_same(&found, &second);
        assert_ttl(&found, 2 * LONG, since, store.limits());
    }
}

/// Says of an absent `key` that `update` answers `Gone` and makes nothing.
async fn assert_gone<S: SessionStore>(store: &S, key: &SessionKey, seen: &Record) {
    for payload in [seen.payload().as_ref(), b"revived"] {
        let (outcome, _) = try_update(store, key, seen, payload, LONG).await;
        assert_eq!(outcome, UpdateOutcome::Gone);
        assert!(
            load(store, key).await.is_none(),
            "an update made a record where none was"
        );
    }
    assert!(
        try_create(store, key, b"new", LONG).await.is_some(),
        "an update that was answered Gone took the key"
    );
}

/// `update` of what never was answers `Gone` and creates nothing.
pub async fn an_update_of_an_absent_key_is_gone_and_creates_nothing<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let elsewhere = create(&store, &key, b"elsewhere", LONG).await;
    assert_gone(&store, &new_key(), &elsewhere).await;
    assert_same(&load_live(&store, &key).await, &elsewhere);
}

/// `update` of a deleted record answers `Gone`.
pub async fn an_update_after_a_delete_is_gone_and_revives_nothing<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    create(&store, &key, b"made", LONG).await;
    let seen = load_live(&store, &key).await;
    store.delete(&key).await.expect("delete");
    assert_gone(&store, &key, &seen).await;
}

/// `update` of an expired record answers `Gone`, purged or not.
pub async fn an_update_after_the_expiry_is_gone_and_revives_nothing<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let seen = create(&store, &key, b"made", SHORT).await;
    outlive(SHORT, store.limits()).await;
    assert_gone(&store, &key, &seen).await;
}

/// A record created after another was deleted is not the one that was seen.
pub async fn an_update_meant_for_an_earlier_life_is_a_conflict<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let first = create(&store, &key, b"the same", LONG).await;
    store.delete(&key).await.expect("delete");
    let second = create(&store, &key, b"the same", LONG).await;
    let (outcome, _) = try_update(&store, &key, &first, b"lost", LONG).await;
    assert_eq!(outcome, UpdateOutcome::Conflict);
    assert_same(&load_live(&store, &key).await, &second);
}

/// What `create` and `update` answer is enough for the next update, without a load between.
pub async fn updates_follow_the_tokens_they_were_given<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let mut seen = create(&store, &key, b"0", LONG).await;
    for n in 1..=20u8 {
        seen = update(&store, &key, &seen, &[n], LONG).await;
    }
    assert_same(&load_live(&store, &key).await, &seen);
}

/// What `load` answers is enough for the next update, whoever wrote it.
pub async fn updates_follow_reloaded_records<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    create(&store, &key, b"0", LONG).await;
    let other = fixture.store();
    for n in 1..=10u8 {
        let seen = load_live(&store, &key).await;
        update(&store, &key, &seen, &[n], LONG).await;
        let seen = load_live(&other, &key).await;
        assert_eq!(&seen.payload()[..], [n]);
        update(&other, &key, &seen, &[n, n], LONG).await;
    }
    assert_eq!(&load_live(&store, &key).await.payload()[..], [10, 10]);
}
