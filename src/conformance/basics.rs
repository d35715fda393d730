//! Create, load, delete.

use std::future::Future;

use tokio::time::Instant;

use super::{
    Fixture, LONG, SHORT, assert_same, assert_ttl, create, load, load_live, new_key, try_create,
    update,
};
use crate::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, UpdateOutcome,
};

/// `load` answers `None` for what was never written.
pub async fn a_key_never_written_loads_as_none<F: Fixture>(fixture: &F) {
    assert!(load(&fixture.store(), &new_key()).await.is_none());
}

/// What `create` wrote, `load` reads: revision, payload and expiry.
pub async fn a_created_record_loads_as_it_was_written<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let since = Instant::now();
    let made = create(&store, &key, b"first", LONG).await;
    let found = load_live(&store, &key).await;
    assert_same(&found, &made);
    assert_ttl(&found, LONG, since, store.limits());
    assert_same(&load_live(&store, &key).await, &made);
}

/// `create` where something alive is answers `Taken` and leaves payload, revision and expiry.
pub async fn a_second_create_is_taken_and_changes_nothing<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let since = Instant::now();
    let made = create(&store, &key, b"first", LONG).await;
    for payload in [&b"second"[..], b"first"] {
        let second = try_create(&store, &key, payload, 2 * LONG).await;
        assert!(second.is_none(), "a live record was created over");
    }
    let found = load_live(&store, &key).await;
    assert_same(&found, &made);
    assert_ttl(&found, LONG, since, store.limits());

    // Not even the same write a second time.
    let again = NewRecord::new(made.revision(), made.payload(), SHORT);
    let outcome = store.create(&key, &again).await.expect("create");
    assert_eq!(outcome, CreateOutcome::Taken);
    assert_ttl(&load_live(&store, &key).await, LONG, since, store.limits());
}

/// A deleted record is absent, so its key can be created.
pub async fn a_deleted_key_can_be_created_again<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    for payload in [&b"one"[..], b"two", b"three"] {
        let made = create(&store, &key, payload, LONG).await;
        assert_same(&load_live(&store, &key).await, &made);
        store.delete(&key).await.expect("delete");
        assert!(load(&store, &key).await.is_none());
    }
}

/// `delete` of what is absent is fine, and takes nothing else with it.
pub async fn deleting_is_idempotent<F: Fixture>(fixture: &F) {
    let (store, key, bystander) = (fixture.store(), new_key(), new_key());
    let other = create(&store, &bystander, b"bystander", LONG).await;
    store.delete(&key).await.expect("delete of what never was");
    create(&store, &key, b"x", LONG).await;
    for _ in 0..3 {
        store.delete(&key).await.expect("delete");
        assert!(load(&store, &key).await.is_none());
    }
    assert_same(&load_live(&store, &bystander).await, &other);
}

/// `delete` removes a record whatever its revision.
pub async fn a_delete_takes_any_revision<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let mut seen = create(&store, &key, b"0", LONG).await;
    for payload in [b"1", b"2"] {
        seen = update(&store, &key, &seen, payload, LONG).await;
    }
    store.delete(&key).await.expect("delete");
    assert!(load(&store, &key).await.is_none());
}

/// A record marked as ending is written, read and replaced like any other.
pub async fn a_record_that_ends_a_session_is_kept_like_any_other<F: Fixture>(fixture: &F) {
    let (store, key, fresh) = (fixture.store(), new_key(), new_key());
    let since = Instant::now();
    let seen = create(&store, &key, b"alive", LONG).await;
    let ending = NewRecord::new(Revision::generate(), b"ended", 2 * LONG).with_ending(true);
    let outcome = store.update(&key, &seen, &ending).await.expect("update");
    assert!(
        matches!(outcome, UpdateOutcome::Updated(_)),
        "the ending update was answered {outcome:?}"
    );
    let outcome = store.create(&fresh, &ending).await.expect("create");
    assert!(
        matches!(outcome, CreateOutcome::Created(_)),
        "the ending create was answered {outcome:?}"
    );
    for key in [key, fresh] {
        let found = load_live(&store, &key).await;
        assert_eq!(found.revision(), ending.revision());
        assert_eq!(&found.payload()[..], b"ended");
        assert_ttl(&found, 2 * LONG, since, store.limits());
        update(&store, &key, &found, b"on", LONG).await;
    }
}

/// A clone of the store is the same store.
pub async fn clones_share_the_data<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let clone = store.clone();
    let made = create(&store, &key, b"shared", LONG).await;
    assert_same(&load_live(&clone, &key).await, &made);
    assert!(try_create(&clone, &key, b"x", LONG).await.is_none());
    let newer = update(&clone, &key, &made, b"newer", LONG).await;
    assert_same(&load_live(&fixture.store(), &key).await, &newer);
    clone.delete(&key).await.expect("delete");
    drop(clone);
    assert!(load(&store, &key).await.is_none());
}

/// Keys are case-sensitive.
pub async fn keys_that_differ_only_in_case_are_different<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let key = new_key();
    let swapped: String = key
        .as_str()
        .chars()
        .map(|c| match c {
            c if c.is_ascii_lowercase() => c.to_ascii_uppercase(),
            c => c.to_ascii_lowercase(),
        })
        .collect();
    let lower: SessionKey = key.as_str().to_lowercase().parse().expect("a key");
    let upper: SessionKey = key.as_str().to_uppercase().parse().expect("a key");
    let keys = [key, swapped.parse().expect("a key"), lower, upper];
    let mut made = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        made.push(create(&store, key, &[n as u8], LONG).await);
    }
    for (key, made) in keys.iter().zip(&made) {
        assert_same(&load_live(&store, key).await, made);
    }
    store.delete(&lower).await.expect("delete");
    assert!(load(&store, &lower).await.is_none());
    for n in [0, 1, 3] {
        assert_same(&load_live(&store, &keys[n]).await, &made[n]);
    }
}

/// A key may begin and end with any character of its alphabet, and no character means more to the
/// backend than itself.
pub async fn every_key_of_the_grammar_works<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let random = new_key();
    let middle = &random.as_str()[..SessionKey::LEN - 8];
    let mut records: Vec<(SessionKey, Record)> = Vec::new();
    for edge in [
        "----", "____", "0000", "aaaa", "ZZZZ", "-_-_", "null", "1e99",
    ] {
        // The second is the same in every run: a fixture's namespace is its own.
        let repeated = edge.repeat(11);
        for text in [
            format!("{edge}{middle}{edge}"),
            repeated[..SessionKey::LEN].to_owned(),
        ] {
            let key: SessionKey = text.parse().expect("a key");
            let made = create(&store, &key, text.as_bytes(), LONG).await;
            records.push((key, made));
        }
    }
    for (key, made) in &mut records {
        assert_same(&load_live(&store, key).await, made);
        *made = update(&store, key, made, b"new", LONG).await;
    }
    for (key, made) in &records {
        assert_same(&load_live(&store, key).await, made);
        store.delete(key).await.expect("delete");
        assert!(load(&store, key).await.is_none());
    }
}

/// A thousand records are a thousand records.
pub async fn a_thousand_records_coexist<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut made = Vec::new();
            for _ in 0..100 {
                let key = new_key();
                made.push((
                    key,
                    create(&store, &key, key.as_ref().as_bytes(), LONG).await,
                ));
            }
            made
        });
    }
    let records = tasks.join_all().await.concat();
    assert_eq!(records.len(), 1000);
    for (key, made) in &records {
        assert_same(&load_live(&store, key).await, made);
    }
}

/// `limits` is the same for every clone and at every time, and takes at least a small session.
pub async fn limits_never_change<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let limits = store.limits();
    create(&store, &new_key(), b"x", LONG).await;
    assert_eq!(store.limits(), limits);
    assert_eq!(store.clone().limits(), limits);
    assert_eq!(fixture.store().limits(), limits);
    assert!(
        limits.max_payload() >= 1024,
        "a store takes at least 1 KiB, this one {} bytes",
        limits.max_payload()
    );
}

/// `Debug` of the store shows none of its data.
pub async fn debug_prints_no_payload<F: Fixture>(fixture: &F) {
    const CANARY: &str = "canary-in-the-payload";
    let (store, key) = (fixture.store(), new_key());
    create(&store, &key, CANARY.as_bytes(), LONG).await;
    let found = load_live(&store, &key).await;
    let numbers = format!("{:?}", CANARY.as_bytes());
    let numbers = numbers.trim_matches(['[', ']']);
    let lines = numbers.replace(", ", ",\n");
    for text in [
        format!("{store:?}"),
        format!("{store:#?}").replace(' ', ""),
        format!("{found:?}"),
    ] {
        let shown = [CANARY, numbers, &lines].iter().any(|c| text.contains(*c));
        assert!(!shown, "the payload can be read in a Debug output");
    }
}

/// Every verb's future can be spawned, and works on a thread other than the one that made the store.
pub async fn verbs_run_on_tasks_of_their_own<F: Fixture>(fixture: &F) {
    async fn spawned<T: Send + 'static>(verb: impl Future<Output = T> + Send + 'static) -> T {
        tokio::spawn(verb).await.expect("the verb panicked")
    }

    let (store, key) = (fixture.store(), new_key());
    let s = store.clone();
    let made = spawned(async move { create(&s, &key, b"a", LONG).await }).await;
    let s = store.clone();
    let seen = made.clone();
    let newer = spawned(async move { update(&s, &key, &seen, b"b", LONG).await }).await;
    let s = store.clone();
    let seen = newer.clone();
    spawned(async move { super::touch(&s, &key, &seen, LONG).await }).await;
    let s = store.clone();
    let found = spawned(async move { load_live(&s, &key).await }).await;
    assert_same(&found, &newer);
    let s = store.clone();
    spawned(async move { s.delete_expired(super::nonzero(10)).await.expect("purge") }).await;
    let s = store.clone();
    spawned(async move { s.delete(&key).await.expect("delete") }).await;
    assert!(load(&store, &key).await.is_none());
}
