use bytes::Bytes;

use super::*;
use crate::id::SessionId;
use crate::store::Revision;

const HOUR: Duration = Duration::from_secs(3600);

fn key() -> SessionKey {
    SessionId::generate().unwrap().key()
}

fn new(payload: &[u8], ttl: Duration) -> NewRecord<'_> {
    NewRecord::new(Revision::generate(), payload, ttl)
}

async fn create(store: &MemoryStore, key: &SessionKey, payload: &[u8], ttl: Duration) -> Record {
    let new = new(payload, ttl);
    let outcome = store.create(key, &new).await.unwrap();
    assert_eq!(outcome, CreateOutcome::Created(0));
    Record::new(new.revision(), Bytes::copy_from_slice(payload), ttl)
}

/// Records, elements of the schedule, room in the tables: of all shards together.
fn sizes(store: &MemoryStore) -> (usize, usize, usize) {
    let shards = 0..store.0.shards.len();
    shards.fold((0, 0, 0), |sum, home| {
        let (records, scheduled, room) = store.0.lock(home).sizes();
        (sum.0 + records, sum.1 + scheduled, sum.2 + room)
    })
}

#[track_caller]
fn assert_consistent(store: &MemoryStore) {
    let (records, scheduled, _) = sizes(store);
    assert_eq!(records, store.len());
    assert_eq!(records, scheduled);
    for home in 0..store.0.shards.len() {
        store.0.lock(home).assert_sound();
    }
    if records == 0 {
        assert_eq!(store.payload_bytes(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn reads_of_one_other_key_free_what_has_expired_everywhere() {
    let store = MemoryStore::new();
    let other = key();
    create(&store, &other, b"other", 1000 * HOUR).await;
    for _ in 0..5000 {
        create(&store, &key(), &[1; 100], HOUR).await;
    }
    assert_eq!(store.len(), 5001);
    tokio::time::advance(2 * HOUR).await;
    for _ in 0..5000 * READS_PER_VISIT {
        assert!(store.load(&other).await.unwrap().is_some());
    }
    assert_eq!(store.len(), 1);
    assert_eq!(store.payload_bytes(), 5);
    assert_consistent(&store);
    // The tables gave their memory back, too.
    assert!(sizes(&store).2 <= 64 * 64, "{:?}", sizes(&store));
}

#[tokio::test(start_paused = true)]
async fn creates_free_more_than_they_add() {
    let store = MemoryStore::new();
    for round in 0..5 {
        for _ in 0..2000 {
            create(&store, &key(), b"x", HOUR).await;
        }
        assert!(store.len() < 2500, "{} in round {round}", store.len());
        tokio::time::advance(2 * HOUR).await;
    }
    assert_consistent(&store);
}

#[tokio::test]
async fn logins_and_logouts_leave_nothing_behind() {
    let store = MemoryStore::new();
    for _ in 0..10_000 {
        let key = key();
        create(&store, &key, b"x", 24 * 31 * HOUR).await;
        store.delete(&key).await.unwrap();
    }
    assert_eq!(sizes(&store).0, 0);
    assert_consistent(&store);
}

#[tokio::test(start_paused = true)]
async fn changes_of_the_expiry_leave_nothing_behind() {
    let (store, key) = (MemoryStore::new(), key());
    let mut seen = create(&store, &key, b"x", 2 * HOUR).await;
    for n in 0..1000u32 {
        let ttl = HOUR - Duration::from_secs(n.into());
        store.touch(&key, &seen, ttl).await.unwrap();
        let new = new(b"y", 2 * HOUR);
        let outcome = store.update(&key, &seen, &new).await.unwrap();
        assert_eq!(outcome, UpdateOutcome::Updated(0));
        seen = Record::new(new.revision(), Bytes::new(), HOUR);
        assert_eq!(sizes(&store).1, 1);
    }
    // Due long ago by the schedule, alive by the record.
    tokio::time::advance(2 * HOUR - Duration::from_millis(1)).await;
    assert!(store.load(&key).await.unwrap().is_some());
    assert_consistent(&store);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(store.load(&key).await.unwrap().is_none());
    assert!(store.is_empty());
    assert_consistent(&store);
}

#[tokio::test(start_paused = true)]
async fn a_full_store_refuses_new_sessions_and_keeps_the_live_ones() {
    let store = MemoryStore::new().with_max_records(10);
    let keys: Vec<_> = (0..10).map(|_| key()).collect();
    for key in &keys {
        create(&store, key, b"x", HOUR).await;
    }
    let error = store.create(&key(), &new(b"x", HOUR)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("memory store is full"));
    let taken = store.create(&keys[0], &new(b"x", HOUR)).await.unwrap();
    assert_eq!(taken, CreateOutcome::Taken);
    for key in &keys {
        let seen = store.load(key).await.unwrap().unwrap();
        store
            .update(key, &seen, &new(b"grown", HOUR))
            .await
            .unwrap();
    }
    assert_eq!(store.len(), 10);

    store.delete(&keys[3]).await.unwrap();
    create(&store, &key(), b"x", HOUR).await;
    // Expired ones make room, wherever they are.
    tokio::time::advance(HOUR).await;
    for _ in 0..10 {
        create(&store, &key(), b"x", HOUR).await;
    }
    assert!(store.create(&key(), &new(b"x", HOUR)).await.is_err());
    assert_consistent(&store);
}

#[tokio::test(start_paused = true)]
async fn bytes_are_bounded_and_counted() {
    let store = MemoryStore::new().with_max_bytes(1000);
    let (a, b) = (key(), key());
    let seen = create(&store, &a, &[1; 600], HOUR).await;
    let small = create(&store, &b, &[1; 300], HOUR).await;
    assert_eq!(store.payload_bytes(), 900);
    let error = store.create(&key(), &new(&[1; 101], HOUR)).await;
    assert_eq!(error.unwrap_err().kind(), StoreErrorKind::Unavailable);
    let error = store.update(&b, &small, &new(&[1; 401], HOUR)).await;
    assert_eq!(error.unwrap_err().kind(), StoreErrorKind::Unavailable);
    assert_eq!(store.len(), 2);
    assert_eq!(store.payload_bytes(), 900);
    let kept = store.load(&b).await.unwrap().unwrap();
    assert_eq!(kept.revision(), small.revision());

    store.update(&a, &seen, &new(&[1; 10], HOUR)).await.unwrap();
    assert_eq!(store.payload_bytes(), 310);
    store
        .update(&b, &small, &new(&[1; 990], 2 * HOUR))
        .await
        .unwrap();
    assert_eq!(store.payload_bytes(), 1000);
    tokio::time::advance(HOUR).await;
    // `a` has expired: ten bytes to be had.
    create(&store, &key(), &[1; 10], HOUR).await;
    assert_eq!(store.payload_bytes(), 1000);
    assert_consistent(&store);
}

#[tokio::test(start_paused = true)]
async fn a_large_record_finds_room_where_many_small_ones_have_expired() {
    let store = MemoryStore::new().with_max_bytes(1 << 20);
    for _ in 0..256 {
        create(&store, &key(), &[1; 4096], HOUR).await;
    }
    assert_eq!(store.payload_bytes(), 1 << 20);
    tokio::time::advance(HOUR).await;
    create(&store, &key(), &vec![1; 900 << 10], HOUR).await;
}

#[tokio::test(start_paused = true)]
async fn a_growing_record_finds_room_where_others_have_expired() {
    let store = MemoryStore::new().with_max_bytes(1 << 20);
    let growing = key();
    let seen = create(&store, &growing, b"", 2 * HOUR).await;
    for _ in 0..256 {
        create(&store, &key(), &[1; 4096], HOUR).await;
    }
    tokio::time::advance(HOUR).await;
    let large = vec![1; 900 << 10];
    let outcome = store.update(&growing, &seen, &new(&large, HOUR)).await;
    assert_eq!(outcome.unwrap(), UpdateOutcome::Updated(0));
    assert!(store.payload_bytes() <= 1 << 20);
    assert_consistent(&store);
}

#[tokio::test(start_paused = true)]
async fn a_record_created_over_an_expired_one_is_counted_once() {
    let store = MemoryStore::new();
    let keys: Vec<_> = (0..1000).map(|_| key()).collect();
    for key in &keys {
        create(&store, key, &[1; 10], HOUR).await;
    }
    tokio::time::advance(HOUR).await;
    for key in &keys {
        create(&store, key, &[1; 7], HOUR).await;
        assert_consistent(&store);
    }
    assert_eq!(store.len(), 1000);
    assert_eq!(store.payload_bytes(), 7000);
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_expiry_was_shortened_is_freed_then() {
    let store = MemoryStore::new();
    for n in 0..100 {
        let key = key();
        let seen = create(&store, &key, b"x", 1000 * HOUR).await;
        if n % 2 == 0 {
            store.touch(&key, &seen, HOUR).await.unwrap();
        } else {
            store.update(&key, &seen, &new(b"y", HOUR)).await.unwrap();
        }
    }
    tokio::time::advance(HOUR).await;
    let purged = store.delete_expired(NonZeroUsize::new(1000).unwrap()).await;
    assert_eq!(purged.unwrap(), 100);
    assert!(store.is_empty());
}

#[tokio::test]
async fn the_largest_payload_is_the_smaller_of_two_bounds() {
    let store = MemoryStore::new();
    assert_eq!(store.limits().max_payload(), 1 << 20);
    let store = store.with_max_payload(10).with_max_bytes(5);
    assert_eq!(store.limits().max_payload(), 5);
    let error = store.create(&key(), &new(b"123456", HOUR)).await;
    assert_eq!(error.unwrap_err().kind(), StoreErrorKind::TooLarge);
}

#[tokio::test]
async fn a_store_without_room_takes_nothing() {
    let store = MemoryStore::new().with_max_records(0);
    let error = store.create(&key(), &new(b"", HOUR)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn lifetimes_beyond_counting_never_end() {
    let (store, key) = (MemoryStore::new(), key());
    let seen = create(&store, &key, b"x", Duration::MAX).await;
    tokio::time::advance(100_000 * HOUR).await;
    assert!(store.load(&key).await.unwrap().is_some());
    store.touch(&key, &seen, Duration::MAX).await.unwrap();
    assert!(store.load(&key).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_purge_counts_what_went_and_stops_at_its_limit() {
    let store = MemoryStore::new();
    for _ in 0..1000 {
        create(&store, &key(), b"x", HOUR).await;
    }
    let kept = key();
    let seen = create(&store, &kept, b"x", HOUR).await;
    store.touch(&kept, &seen, 3 * HOUR).await.unwrap();
    tokio::time::advance(2 * HOUR).await;
    let purge = |limit| store.delete_expired(NonZeroUsize::new(limit).unwrap());
    assert_eq!(purge(300).await.unwrap(), 300);
    assert_eq!(store.len(), 701);
    assert_eq!(purge(usize::MAX).await.unwrap(), 700);
    assert_eq!(purge(10).await.unwrap(), 0);
    assert!(store.load(&kept).await.unwrap().is_some());
    assert_consistent(&store);
}

#[test]
fn no_verb_is_ever_pending() {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("pending"),
        }
    }

    let (store, key) = (MemoryStore::new(), key());
    let seen = now(create(&store, &key, b"x", HOUR));
    assert!(now(store.load(&key)).unwrap().is_some());
    now(store.touch(&key, &seen, HOUR)).unwrap();
    now(store.update(&key, &seen, &new(b"y", HOUR))).unwrap();
    now(store.delete(&key)).unwrap();
    assert_eq!(now(store.delete_expired(NonZeroUsize::MIN)).unwrap(), 0);
}

#[test]
fn keys_spread_over_shards_and_buckets() {
    let store = MemoryStore::new();
    let mut shards = vec![0; store.0.shards.len()];
    let mut buckets = vec![0; 64];
    for _ in 0..64 * 100 {
        let key = key();
        shards[store.0.home(&key)] += 1;
        buckets[(store.0.hashing.hash_one(key) & 63) as usize] += 1;
    }
    // A hundred each; a standard deviation is ten.
    for count in shards.iter().chain(&buckets) {
        assert!((40..160).contains(count), "{shards:?} {buckets:?}");
    }
}

#[test]
fn a_large_store_has_more_shards_not_larger_ones() {
    let shards = |records| MemoryStore::new().with_max_records(records).0.shards.len();
    assert_eq!(shards(0), 64);
    assert_eq!(shards(100_000), 64);
    assert_eq!(shards(1_000_000), 512);
    assert_eq!(shards(usize::MAX), 65_536);
}
