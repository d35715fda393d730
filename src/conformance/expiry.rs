//! Lifetimes.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Fixture, LONG, SHORT, assert_same, assert_ttl, create, gone_after, load, load_live, new_key,
    outlive, touch, try_create, update,
};
use crate::store::SessionStore;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A record is there until its expiry, absent from then on, and never comes back.
pub async fn a_record_is_loaded_until_its_expiry_and_never_after<F: Fixture>(fixture: &F) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = fixture.store();
        let ttl = SHORT + Duration::from_millis(37 * n);
        tasks.spawn(async move {
            let (key, limits) = (new_key(), store.limits());
            let earliest = Instant::now() + ttl;
            create(&store, &key, b"brief", ttl).await;
            let latest = Instant::now() + gone_after(ttl, limits);
            let end = latest + Duration::from_millis(200);
            let mut was_gone = false;
            loop {
                let asked = Instant::now();
                let found = load(&store, &key).await;
                match &found {
                    Some(record) => {
                        assert!(!was_gone, "an expired record came back");
                        assert!(
                            asked < latest,
                            "a record was loaded {:?} after its expiry",
                            asked - earliest
                        );
                        assert!(record.ttl() <= ttl + limits.expiry_resolution());
                    }
                    None => {
                        was_gone = true;
                        assert!(
                            Instant::now() >= earliest,
                            "a record was gone {:?} before its expiry",
                            earliest - Instant::now()
                        );
                    }
                }
                if asked > end {
                    assert!(was_gone);
                    return;
                }
                sleep(Duration::from_millis(7)).await;
            }
        });
    }
    tasks.join_all().await;
}

/// A lifetime below a second is rounded up to the store's resolution, never down to nothing, by
/// `create`, `update` and `touch`.
pub async fn a_lifetime_below_a_second_is_kept<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let limits = store.limits();
    for verb in ["create", "update", "touch"] {
        let mut seen_alive = false;
        // A busy machine may answer too late to tell; then once more, with a little more time.
        for ttl in [150, 300, 450, 600, 750, 900, 900, 900].map(Duration::from_millis) {
            let key = new_key();
            let long = match verb {
                "create" => None,
                _ => Some(create(&store, &key, b"brief", LONG).await),
            };
            let earliest = Instant::now() + ttl;
            match (&long, verb) {
                (None, _) => drop(create(&store, &key, b"brief", ttl).await),
                (Some(seen), "update") => drop(update(&store, &key, seen, b"brief", ttl).await),
                (Some(seen), _) => drop(touch(&store, &key, seen, ttl).await),
            }
            let written = Instant::now();
            let found = load(&store, &key).await;
            if Instant::now() >= earliest {
                continue;
            }
            assert!(
                found.is_some(),
                "{verb} with {ttl:?}: the record was gone at once"
            );
            sleep_until(written + gone_after(ttl, limits)).await;
            assert!(
                load(&store, &key).await.is_none(),
                "{verb} with {ttl:?}: the record stayed"
            );
            seen_alive = true;
            break;
        }
        assert!(seen_alive, "{verb} and load together take most of a second");
    }
}

/// A lifetime beyond 30 days (where memcached reads a date) and up to 400 days is kept as it is, by
/// `create`, `update` and `touch`.
pub async fn a_lifetime_of_months_is_kept<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let limits = store.limits();
    for ttl in [
        30 * DAY - Duration::from_secs(1),
        30 * DAY,
        30 * DAY + Duration::from_secs(1),
        31 * DAY,
        365 * DAY,
        400 * DAY,
    ] {
        let key = new_key();
        let since = Instant::now();
        let made = create(&store, &key, b"long", ttl).await;
        assert_ttl(&load_live(&store, &key).await, ttl, since, limits);
        let made = touch(&store, &key, &made, LONG).await;
        assert_ttl(&load_live(&store, &key).await, LONG, since, limits);
        let since = Instant::now();
        let made = touch(&store, &key, &made, ttl).await;
        assert_ttl(&load_live(&store, &key).await, ttl, since, limits);
        let made = update(&store, &key, &made, b"brief", LONG).await;
        assert_ttl(&load_live(&store, &key).await, LONG, since, limits);
        let since = Instant::now();
        let made = update(&store, &key, &made, b"long", ttl).await;
        let found = load_live(&store, &key).await;
        assert_ttl(&found, ttl, since, limits);
        assert_same(&found, &made);
    }
}

/// An expired record is absent, purged or not, so its key can be created; the new record has its own
/// expiry.
pub async fn an_expired_key_can_be_created_again<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    create(&store, &key, b"a longer payload than the next", SHORT).await;
    outlive(SHORT, store.limits()).await;
    let since = Instant::now();
    let second = create(&store, &key, b"second", LONG).await;
    let found = load_live(&store, &key).await;
    assert_same(&found, &second);
    assert_ttl(&found, LONG, since, store.limits());
    assert!(try_create(&store, &key, b"third", LONG).await.is_none());
    // What was left of the first must not take the second with it.
    outlive(SHORT, store.limits()).await;
    assert_same(&load_live(&store, &key).await, &second);
}

/// An update renews the expiry in deed, not only in what `load` reports.
pub async fn an_updated_record_outlives_its_first_expiry<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    // Long enough that the update comes in time on a busy machine.
    let first = 5 * SHORT;
    let made = create(&store, &key, b"first", first).await;
    let newer = update(&store, &key, &made, b"second", LONG).await;
    outlive(first, store.limits()).await;
    assert_same(&load_live(&store, &key).await, &newer);
}

/// A touch renews the expiry in deed, not only in what `load` reports.
pub async fn a_touched_record_outlives_its_first_expiry<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let first = 5 * SHORT;
    let made = create(&store, &key, b"kept", first).await;
    let made = touch(&store, &key, &made, LONG).await;
    outlive(first, store.limits()).await;
    assert_same(&load_live(&store, &key).await, &made);
}
