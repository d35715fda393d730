//! Edits that are made while earlier ones are on their way to the store: whatever becomes of those,
//! all of them count, once, and in their order.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use proptest::prelude::*;
use session_layer::{Session, StoreErrorKind};
use support::{App, Browser, Fault, Verb, app};
use tokio::sync::Notify;

#[derive(Debug, Clone, Copy)]
enum Edit {
    Insert(&'static str),
    Remove(&'static str),
    Add(&'static str),
}

/// What becomes of the write that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// Somebody else was there before.
    Conflicts,
    /// It arrived, and nobody heard of it.
    IsLostFromSight,
    Fails,
}

type Data = BTreeMap<String, u64>;

/// Does `edits` to a session and to what it is compared with. `number` is different each time.
fn edit(session: &Session, model: &mut Data, edits: &[Edit], number: &mut u64) {
    for edit in edits {
        match *edit {
            Edit::Insert(key) => {
                *number += 1;
                session.insert(key, *number).unwrap();
                model.insert(key.to_owned(), *number);
            }
            Edit::Remove(key) => {
                assert_eq!(session.remove(key), model.remove(key).is_some());
            }
            Edit::Add(key) => {
                let add = |n: Option<u64>| n.unwrap_or(0) + 1;
                session.update(key, add).unwrap();
                *model.entry(key.to_owned()).or_default() += 1;
            }
        }
    }
}

/// The same without a session: what happens to edits when they are done again.
fn edit_model(model: &mut Data, edits: &[Edit], number: &mut u64) {
    for edit in edits {
        match *edit {
            Edit::Insert(key) => {
                *number += 1;
                model.insert(key.to_owned(), *number);
            }
            Edit::Remove(key) => drop(model.remove(key)),
            Edit::Add(key) => *model.entry(key.to_owned()).or_default() += 1,
        }
    }
}

fn data(session: &Session) -> Data {
    let value = |key: String| {
        let value = session.get(&key).unwrap().unwrap();
        (key, value)
    };
    session.keys().into_iter().map(value).collect()
}

type Kept = Arc<Mutex<Option<Session>>>;

/// Sessions begin with `a` and `b`. `/keep` hands the session to the test, `/other` is somebody else.
fn application(kept: &Kept) -> App {
    let kept = Arc::clone(kept);
    app(Router::new()
        .route(
            "/begin",
            get(|session: Session| async move {
                session.insert("a", 1).unwrap();
                session.insert("b", 2).unwrap();
            }),
        )
        .route(
            "/keep",
            get(|session: Session| async move {
                *kept.lock().unwrap() = Some(session);
            }),
        )
        .route(
            "/other",
            get(|session: Session| async move {
                let add = |n: Option<u64>| n.unwrap_or(0) + 100;
                session.update("a", add).unwrap();
                session.insert("other", 7).unwrap();
            }),
        ))
}

async fn check(before: Vec<Edit>, during: Vec<Edit>, fate: Fate) {
    let kept = Kept::default();
    let app = application(&kept);
    let mut browser = Browser::default();
    browser.get(&app.router, "/begin").await;
    browser.get(&app.router, "/keep").await;
    let session = kept.lock().unwrap().take().unwrap();
    let mut seen = data(&session);
    let mut number = 1000;
    edit(&session, &mut seen, &before, &mut number);
    assert_eq!(data(&session), seen);

    let gate = Arc::new(Notify::new());
    app.store.calls();
    let wait = Arc::clone(&gate);
    let fault = match fate {
        Fate::Arrives | Fate::Conflicts => Fault::Wait(wait),
        Fate::IsLostFromSight => {
            let lost = Fault::FailAfter(StoreErrorKind::Timeout);
            Fault::WaitThen(wait, Box::new(lost))
        }
        Fate::Fails => {
            let failed = Fault::Fail(StoreErrorKind::Unavailable);
            Fault::WaitThen(wait, Box::new(failed))
        }
    };
    let under_way = session.is_modified();
    if under_way {
        app.store.fault(Verb::Update, fault);
    }
    let saving = tokio::spawn({
        let session = session.clone();
        async move { session.save().await }
    });
    while !saving.is_finished() && app.store.calls().last() != Some(&Verb::Update) {
        tokio::task::yield_now().await;
    }
    assert_ne!(saving.is_finished(), under_way);
    edit(&session, &mut seen, &during, &mut number);
    assert_eq!(data(&session), seen);
    let conflicts = under_way && fate == Fate::Conflicts;
    if conflicts {
        browser.get(&app.router, "/other").await;
    }
    gate.notify_one();
    let saved = saving.await.unwrap();
    let fails = under_way && matches!(fate, Fate::IsLostFromSight | Fate::Fails);
    assert_eq!(saved.is_err(), fails, "{saved:?}");

    // What had failed is there again, and whatever was done meanwhile, on top of it.
    session.save().await.unwrap();
    let mut model = Data::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
    if conflicts {
        *model.entry("a".to_owned()).or_default() += 100;
        model.insert("other".to_owned(), 7);
    }
    let mut number = 1000;
    edit_model(&mut model, &before, &mut number);
    edit_model(&mut model, &during, &mut number);
    assert_eq!(data(&session), model, "as the session says");
    browser.get(&app.router, "/keep").await;
    let stored = kept.lock().unwrap().take().unwrap();
    assert_eq!(data(&stored), model, "as it is stored");
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let key = prop::sample::select(vec!["a", "b", "c"]);
    let edit = (0..3, key).prop_map(|(what, key)| match what {
        0 => Edit::Insert(key),
        1 => Edit::Remove(key),
        _ => Edit::Add(key),
    });
    prop::collection::vec(edit, 0..5)
}

proptest! {
    #[test]
    fn edits_count_once_whatever_becomes_of_those_before_them(
        before in edits(),
        during in edits(),
        fate in prop::sample::select(vec![
            Fate::Arrives,
            Fate::Conflicts,
            Fate::IsLostFromSight,
            Fate::Fails,
        ]),
    ) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(check(before, during, fate));
    }
}
