//! The conformance cases of `scan`, turned on themselves: stores that list their keys wrongly in one
//! way each, and the case that must notice.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use session_layer::conformance::{self, Fixture, Purge};
use session_layer::store::{
    CreateOutcome, Cursor, MemoryStore, NewRecord, Page, Record, ScanStore, SessionKey,
    SessionStore, StoreError, StoreLimits, TouchOutcome, UpdateOutcome,
};

/// What a store's `scan` does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// No fault: a page has no key now and then, and keys come twice.
    NoneButUntidy,
    InventsKeys,
    NamesDeletedKeys,
    CrossesNamespaces,
    SkipsFirstOfPage,
    LosesLastPage,
    DropsFullPages,
    GoesByPosition,
    IgnoresLimit,
    NeverEnds,
    RestartsFromNowhere,
    PanicsFromNowhere,
}

/// A store in memory, apart from its `scan`.
#[derive(Debug, Clone)]
struct Broken {
    fault: Fault,
    store: MemoryStore,
    other: MemoryStore,
    deleted: Arc<std::sync::Mutex<Vec<SessionKey>>>,
    pages: Arc<AtomicUsize>,
}

impl Broken {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            store: MemoryStore::new(),
            other: MemoryStore::new(),
            deleted: Arc::default(),
            pages: Arc::default(),
        }
    }

    async fn everything(&self) -> Result<Vec<SessionKey>, StoreError> {
        let mut keys = all(&self.store).await?;
        match self.fault {
            Fault::InventsKeys => keys.push("i".repeat(SessionKey::LEN).parse().unwrap()),
            Fault::NamesDeletedKeys => keys.extend(self.deleted.lock().unwrap().iter()),
            Fault::CrossesNamespaces => keys.extend(all(&self.other).await?),
            _ => {}
        }
        if self.fault != Fault::GoesByPosition {
            keys.sort_unstable();
        }
        Ok(keys)
    }
}

async fn all(store: &MemoryStore) -> Result<Vec<SessionKey>, StoreError> {
    let page = store.scan(None, NonZeroUsize::MAX).await?;
    Ok(page.keys().to_vec())
}

fn nowhere() -> StoreError {
    StoreError::new(session_layer::StoreErrorKind::Config, "from nowhere")
}

impl ScanStore for Broken {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let keys = self.everything().await?;
        if self.fault == Fault::GoesByPosition {
            let from = from.map_or(Ok(0), |from| from.as_str().parse());
            let from = from.map_err(|_| nowhere())?;
            let page: Vec<_> = keys.into_iter().skip(from).take(limit.get()).collect();
            let next =
                (page.len() == limit.get()).then(|| Cursor::new((from + page.len()).to_string()));
            return Ok(Page::new(page, next));
        }
        let untidy = self.fault == Fault::NoneButUntidy;
        let after: Option<SessionKey> = match (from.map(|from| from.as_str().parse()), self.fault) {
            (None, _) | (Some(Err(_)), Fault::RestartsFromNowhere) => None,
            (Some(Err(_)), Fault::PanicsFromNowhere) => panic!("from nowhere"),
            (Some(Err(_)), _) => return Err(nowhere()),
            (Some(Ok(key)), _) => Some(key),
        };
        if untidy && after.is_some() && self.pages.fetch_add(1, Ordering::Relaxed) % 3 == 1 {
            return Ok(Page::new(Vec::new(), from.cloned()));
        }
        let most = match self.fault {
            Fault::IgnoresLimit => usize::MAX,
            _ => limit.get(),
        };
        let skipped = usize::from(self.fault == Fault::SkipsFirstOfPage && after.is_some());
        let mut page: Vec<_> = keys
            .into_iter()
            .filter(|key| match after {
                Some(after) if untidy => *key >= after,
                Some(after) => *key > after,
                None => true,
            })
            .skip(skipped)
            .take(most.saturating_add(usize::from(untidy)))
            .collect();
        let next = page
            .last()
            .filter(|last| page.len() >= most && Some(**last) != after)
            .map(|last| Cursor::new(last.as_str()));
        match self.fault {
            Fault::LosesLastPage if next.is_none() && from.is_some() => page.clear(),
            Fault::DropsFullPages if page.len() == 7 => page.clear(),
            Fault::NeverEnds if next.is_none() => {
                let again = from
                    .cloned()
                    .or(page.last().map(|k| Cursor::new(k.as_str())));
                return Ok(Page::new(
                    page,
                    again.or_else(|| Some(Cursor::new("0".repeat(43)))),
                ));
            }
            _ => {}
        }
        Ok(Page::new(page, next))
    }
}

impl SessionStore for Broken {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        self.store.load(key).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.store.create(key, new).await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.store.update(key, seen, new).await
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
        self.deleted.lock().unwrap().push(*key);
        self.store.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.store.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }
}

struct Bench(Broken);

impl Fixture for Bench {
    type Store = Broken;

    fn store(&self) -> Broken {
        self.0.clone()
    }

    fn other_namespace(&self) -> Broken {
        Broken {
            store: self.0.other.clone(),
            other: self.0.store.clone(),
            ..self.0.clone()
        }
    }

    fn purge(&self) -> Purge {
        Purge::OnDemand {
            margin: Duration::ZERO,
        }
    }
}

mod a_right_store_passes {
    async fn fixture() -> super::Bench {
        super::Bench(super::Broken::new(super::Fault::None))
    }

    session_layer::conformance_of_scan!(fixture);
}

mod an_untidy_store_passes {
    async fn fixture() -> super::Bench {
        super::Bench(super::Broken::new(super::Fault::NoneButUntidy))
    }

    session_layer::conformance_of_scan!(fixture);
}

/// The case that must fail on each fault.
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
        }
    };
}

macro_rules! fails {
    ($case:ident, $fault:ident) => {{
        let case = tokio::spawn(async {
            let bench = Bench(Broken::new(Fault::$fault));
            tokio::time::timeout(Duration::from_secs(60), conformance::$case(&bench))
                .await
                .expect("the case hangs");
        });
        case.await.is_err_and(|error| error.is_panic())
    }};
}

#[test]
fn every_case_notices_some_fault() {
    let here = include_str!("conformance_kit_scan.rs");
    let (_, table) = here.rsplit_once("notices! {").unwrap();
    let list = include_str!("../src/conformance/mod.rs");
    let (_, list) = list.split_once("// scan").unwrap();
    let (list, _) = list.split_once('}').unwrap();
    let cases: Vec<_> = list
        .lines()
        .filter_map(|line| line.trim().strip_suffix(','))
        .collect();
    assert!(cases.len() > 5);
    for case in cases {
        let tried = table
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == case);
        assert!(tried, "nothing shows that {case} can fail");
    }
}

notices! {
    InventsKeys => a_scan_of_nothing_ends;
    NeverEnds => a_scan_of_nothing_ends;
    NamesDeletedKeys => a_scan_names_every_key;
    SkipsFirstOfPage => a_scan_names_every_key;
    LosesLastPage => a_scan_names_every_key, a_scan_misses_nothing_that_stays;
    DropsFullPages => a_scan_names_every_key;
    IgnoresLimit => a_scan_names_every_key;
    CrossesNamespaces => a_scan_stays_in_its_namespace;
    GoesByPosition => a_scan_keeps_its_place_when_others_come_and_go;
    RestartsFromNowhere => a_scan_from_nowhere_is_refused;
    PanicsFromNowhere => a_scan_from_nowhere_is_refused;
}
