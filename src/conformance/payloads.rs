//! What fits into a record, and what does not.

use super::{Fixture, LARGEST_TRIED, LONG, assert_same, create, load, load_live, new_key, update};
use crate::store::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, StoreError,
    StoreErrorKind, UpdateOutcome,
};

/// A payload is bytes, of any value and any number, and comes back as it was.
pub async fn payloads_come_back_byte_for_byte<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let every_byte: Vec<u8> = (0..=255).collect();
    let backwards: Vec<u8> = (0..=255).rev().collect();
    let payloads: [&[u8]; 14] = [
        b"",
        b"\0",
        b"\0\0\0after",
        b"before\0",
        &every_byte,
        &backwards,
        b"\xff\xfe\xc3\x28 not utf-8 \xed\xa0\x80",
        b"\r\n",
        b"END\r\nSTORED\r\n",
        b"'; DROP TABLE sessions; --",
        b" leading and trailing ",
        b"\x1f\x8b\x08\0",
        b"1",
        "\u{1F980} \u{0}\u{FFFF}".as_bytes(),
    ];
    let reused = new_key();
    let mut seen = create(&store, &reused, b"start", LONG).await;
    for payload in payloads {
        let key = new_key();
        let made = create(&store, &key, payload, LONG).await;
        assert_same(&load_live(&store, &key).await, &made);
        seen = update(&store, &reused, &seen, payload, LONG).await;
        assert_same(&load_live(&store, &reused).await, &seen);
    }
}

/// A revision is 16 bytes of any value, compared as such.
pub async fn revisions_come_back_byte_for_byte<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let mut seen = create(&store, &key, b"start", LONG).await;
    for bytes in [
        [0; 16],
        [0xff; 16],
        *b"\r\n\0\r\n\0\r\n\0\r\n\0\r\n\0\0",
        *b"abcdefghijklmnop",
        *b"ABCDEFGHIJKLMNOP",
        *b"ABCDEFGHIJKLMNO ",
        *b"ABCDEFGHIJKLMNO\0",
        [0x80; 16],
        [b' '; 16],
    ] {
        let new = NewRecord::new(Revision::from_bytes(bytes), b"payload", LONG);
        let stale = seen.clone();
        let outcome = store.update(&key, &seen, &new).await.expect("update");
        assert!(
            matches!(outcome, UpdateOutcome::Updated(_)),
            "to revision {:?}: {outcome:?}",
            new.revision()
        );
        seen = load_live(&store, &key).await;
        assert_eq!(seen.revision(), new.revision());
        let again = NewRecord::new(Revision::generate(), b"lost", LONG);
        let outcome = store.update(&key, &stale, &again).await.expect("update");
        assert_eq!(
            outcome,
            UpdateOutcome::Conflict,
            "over {:?}",
            seen.revision()
        );
    }
}

fn filled(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// A payload of `limits().max_payload()` bytes is stored and read whole, by `create` and by
/// `update`. Where the limit is above 64 MiB, 64 MiB are tried.
pub async fn the_largest_payload_is_kept_whole<F: Fixture>(fixture: &F) {
    let store = fixture.store();
    let mut payload = filled(store.limits().max_payload().min(LARGEST_TRIED));
    let (key, grown) = (new_key(), new_key());
    let made = create(&store, &key, &payload, LONG).await;
    assert_same(&load_live(&store, &key).await, &made);
    store.delete(&key).await.expect("delete");
    drop(made);

    let small = create(&store, &grown, b"small", LONG).await;
    payload.reverse();
    let large = update(&store, &grown, &small, &payload, LONG).await;
    let found = load_live(&store, &grown).await;
    assert_same(&found, &large);
    let small = update(&store, &grown, &found, b"small again", LONG).await;
    assert_same(&load_live(&store, &grown).await, &small);
}

/// One byte more than the limit, or `None` where that is more than can be asked of a test's memory.
fn too_large<S: SessionStore>(store: &S) -> Option<Vec<u8>> {
    let size = store.limits().max_payload().checked_add(1)?;
    // Zeroed memory that is never read takes up no room.
    (size <= 1 << 30).then(|| vec![0; size])
}

#[track_caller]
fn assert_too_large(error: &StoreError, key: &SessionKey) {
    assert_eq!(error.kind(), StoreErrorKind::TooLarge, "{error}");
    let text = format!("{error} {error:?}");
    assert!(
        !text.contains(key.as_str()),
        "an error shows the session key"
    );
}

/// `create` refuses a payload over the limit as `TooLarge`, and nothing is stored. Not tried where
/// the limit is 1 GiB or more.
pub async fn a_payload_one_byte_too_large_is_refused_by_create<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let Some(payload) = too_large(&store) else {
        return;
    };
    let new = NewRecord::new(Revision::generate(), &payload, LONG);
    let error = store
        .create(&key, &new)
        .await
        .expect_err("a payload over the limit was taken");
    assert_too_large(&error, &key);
    assert!(load(&store, &key).await.is_none());
    let outcome = store
        .create(&key, &NewRecord::new(new.revision(), b"fits", LONG))
        .await
        .expect("create");
    assert!(matches!(outcome, CreateOutcome::Created(_)));
}

/// `update` refuses a payload over the limit as `TooLarge`, and the old record stays. Not tried
/// where the limit is 1 GiB or more.
pub async fn a_payload_one_byte_too_large_is_refused_by_update<F: Fixture>(fixture: &F) {
    let (store, key) = (fixture.store(), new_key());
    let made: Record = create(&store, &key, b"old", LONG).await;
    let Some(payload) = too_large(&store) else {
        return;
    };
    let new = NewRecord::new(Revision::generate(), &payload, LONG);
    let error = store
        .update(&key, &made, &new)
        .await
        .expect_err("a payload over the limit was taken");
    assert_too_large(&error, &key);
    assert_same(&load_live(&store, &key).await, &made);
    update(&store, &key, &made, b"fits", LONG).await;
}
