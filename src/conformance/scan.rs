//! `scan`, for stores that have it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Fixture, LONG, create, new_key, nonzero};
use crate::store::{Cursor, Page, ScanStore, SessionKey, SessionStore};

/// More pages than any case has keys: a scan that goes round in circles fails.
const MOST_PAGES: usize = 10_000;

async fn scan<S: ScanStore>(store: &S, limit: usize) -> Vec<SessionKey> {
    let (mut keys, mut from) = (Vec::new(), None);
    for _ in 0..MOST_PAGES {
        let page = page(store, from.as_ref(), limit).await;
        keys.extend_from_slice(page.keys());
        match page.into_next() {
            Some(next) => from = Some(next),
            None => return keys,
        }
    }
    panic!("the scan does not end");
}

async fn page<S: ScanStore>(store: &S, from: Option<&Cursor>, limit: usize) -> Page {
    let page = store.scan(from, nonzero(limit)).await.expect("scan");
    assert!(
        page.keys().len() <= 16 + 4 * limit,
        "a page of {} keys, where {limit} were asked for",
        page.keys().len()
    );
    page
}

async fn fill<S: SessionStore>(store: &S, count: usize) -> BTreeSet<SessionKey> {
    let mut keys = BTreeSet::new();
    for _ in 0..count {
        let key = new_key();
        create(store, &key, b"here", LONG).await;
        keys.insert(key);
    }
    keys
}

/// An empty store's scan ends with the first page or soon after, without a key.
pub async fn a_scan_of_nothing_ends<F: Fixture>(fixture: &F)
where
    F::Store: ScanStore,
{
    assert_eq!(scan(&fixture.store(), 10).await, []);
}

/// Every live key is in some page, whatever the size of the pages, and nothing else is.
pub async fn a_scan_names_every_key<F: Fixture>(fixture: &F)
where
    F::Store: ScanStore,
{
    let store = fixture.store();
    let mut keys = fill(&store, 150).await;
    for limit in [1, 7, 150, 1000] {
        let found: BTreeSet<_> = scan(&store, limit).await.into_iter().collect();
        assert!(
            found == keys,
            "pages of {limit}: {} of {}",
            found.len(),
            keys.len()
        );
    }
    let gone = keys.pop_first().expect("a key");
    store.delete(&gone).await.expect("delete");
    let found: BTreeSet<_> = scan(&store, 50).await.into_iter().collect();
    assert!(
        found == keys,
        "a deleted key was named, or a live one was not"
    );
}

/// Keys of another namespace are in no page.
pub async fn a_scan_stays_in_its_namespace<F: Fixture>(fixture: &F)
where
    F::Store: ScanStore,
{
    let (ours, theirs) = (fixture.store(), fixture.other_namespace());
    let mine = fill(&ours, 20).await;
    fill(&theirs, 20).await;
    let found: BTreeSet<_> = scan(&ours, 7).await.into_iter().collect();
    assert!(found == mine);
}

/// Keys that are there all the time are named although others come and go, and the scan ends.
pub async fn a_scan_misses_nothing_that_stays<F: Fixture>(fixture: &F)
where
    F::Store: ScanStore,
{
    let store = fixture.store();
    let staying = fill(&store, 100).await;
    let (done, passed) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let traffic = tokio::spawn({
        let (store, done) = (store.clone(), Arc::clone(&done));
        let passed: Arc<AtomicUsize> = Arc::clone(&passed);
        async move {
            while !done.load(Ordering::Relaxed) {
                let key = new_key();
                create(&store, &key, b"passing", LONG).await;
                store.delete(&key).await.expect("delete");
                passed.fetch_add(1, Ordering::Relaxed);
                // A store that never waits would keep a failed case from ending.
                tokio::task::yield_now().await;
            }
        }
    });
    let mut scans = 0;
    // The traffic must have been there.
    while scans < 5 || (passed.load(Ordering::Relaxed) < 50 && !traffic.is_finished()) {
        let found: BTreeSet<_> = scan(&store, 9).await.into_iter().collect();
        assert!(found.is_superset(&staying));
        scans += 1;
    }
    done.store(true, Ordering::Relaxed);
    traffic.await.expect("traffic");
}

/// Keys that are there all the time are named although others come before one page and go before the
/// next.
pub async fn a_scan_keeps_its_place_when_others_come_and_go<F: Fixture>(fixture: &F)
where
    F::Store: ScanStore,
{
    let store = fixture.store();
    let staying = fill(&store, 100).await;
    let (mut found, mut passing) = (BTreeSet::new(), BTreeSet::new());
    let mut from = None;
    for _ in 0..MOST_PAGES {
        if passing.is_empty() {
            passing = fill(&store, 20).await;
        } else {
            for key in std::mem::take(&mut passing) {
                store.delete(&key).await.expect("delete");
            }
        }
        let page = page(&store, from.as_ref(), 9).await;
        found.extend(page.keys().iter().copied());
        from = page.into_next();
        if from.is_none() {
            break;
        }
    }
    assert!(from.is_none(), "the scan does not end");
    assert!(
        found.is_superset(&staying),
        "{} of {} keys were not named",
        staying.difference(&found).count(),
        staying.len()
    );
}

/// A place that no scan of the store has ended at is an error, not a panic and not the beginning.
pub async fn a_scan_from_nowhere_is_refused<F: Fixture>(fixture: &F)
where
    F::Store: ScanStore,
{
    let store = fixture.store();
    for text in ["", "nowhere", "0:", "\u{0}'\"; --"] {
        let from = Cursor::new(text);
        assert!(
            store.scan(Some(&from), nonzero(10)).await.is_err(),
            "a scan from {text:?} was answered"
        );
    }
}
