//! What happens to a session while it is being stored, and to what is done to it meanwhile.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use session_layer::{Session, SessionConfig, SessionErrorKind, StoreErrorKind};
use support::fixture::{Fixture, Kept, add, fixture, fixture_with, foreign_write};
use support::{Browser, Fault, Verb, send};
use tokio::sync::Notify;

use Verb::{Create, Load, Update};

#[tokio::test]
async fn every_attempt_to_write_draws_its_own_revision() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    for _ in 0..3 {
        fixture.app.store.fault(Update, foreign_write());
    }
    assert_eq!(browser.get(&fixture.app.router, "/add").await.body, "2");
    let drawn = fixture.app.store.drawn();
    let distinct: std::collections::HashSet<_> = drawn.iter().collect();
    assert_eq!((drawn.len(), distinct.len()), (4, 4));
}

#[tokio::test]
async fn commits_of_a_contended_session_stand_in_line() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let store = &fixture.app.store;
    let gate = Arc::new(Notify::new());
    store.fault(Update, foreign_write());
    store.fault(Load, Fault::First(Arc::new(|_| ())));
    store.fault(Load, Fault::Wait(Arc::clone(&gate)));
    let first = tokio::spawn(send(&fixture.app.router, browser.request("/add")));
    let mut calls = Vec::new();
    while calls != [Load, Update, Load] {
        tokio::task::yield_now().await;
        calls.extend(store.calls());
    }
    let second = tokio::spawn(send(&fixture.app.router, browser.request("/add")));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.calls(), [Load], "the second waits for the first");
    gate.notify_one();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(store.calls(), [Update, Load, Update]);
    assert_eq!(fixture.get(&browser, "/read").await, "Some(3)");
}

#[tokio::test]
async fn an_edit_made_during_the_last_commit_is_there_for_a_later_save() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let gate = Arc::new(Notify::new());
    fixture
        .app
        .store
        .fault(Update, Fault::Wait(Arc::clone(&gate)));
    let slow = tokio::spawn(send(&fixture.app.router, browser.request("/add-and-keep")));
    fixture.until_called(Update).await;
    let session = fixture.take_kept();
    session.insert("late", true).unwrap();
    gate.notify_one();
    assert_eq!(slow.await.unwrap().status, 200);
    session.save().await.unwrap();
    assert_eq!(fixture.get(&browser, "/keys").await, "late,n");
    assert_eq!(fixture.get(&browser, "/read").await, "Some(2)");
}

#[tokio::test]
async fn an_edit_made_during_a_last_commit_that_failed_is_there_for_a_later_save() {
    for (fault, n) in [
        (Fault::Fail(StoreErrorKind::Unavailable), "Some(2)"),
        (Fault::FailAfter(StoreErrorKind::Timeout), "Some(3)"),
    ] {
        let fixture = fixture();
        let browser = fixture.browser().await;
        let later = Kept::<Session>::default();
        fixture.app.store.fault(Update, fault);
        let kept = Arc::clone(&fixture.kept);
        // The edit is made from within the store call, while the commit waits for its answer.
        fixture.app.store.on_next(Update, {
            let later = Arc::clone(&later);
            move || {
                let session = kept.lock().unwrap().take().unwrap();
                add(&session);
                *later.lock().unwrap() = Some(session);
            }
        });
        let answer = browser
            .clone()
            .get(&fixture.app.router, "/add-and-keep")
            .await;
        assert_eq!(answer.status, 503);
        let session = later.lock().unwrap().take().unwrap();
        session.save().await.unwrap();
        assert_eq!(fixture.get(&browser, "/read").await, n);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_no_more_than_the_commit_deadline() {
    let config = SessionConfig::default().with_commit_timeout(Duration::from_millis(100));
    let fixture = fixture_with(config);
    let mut browser = fixture.browser().await;
    fixture.app.store.fault(Update, Fault::Hang);
    let start = tokio::time::Instant::now();
    assert_eq!(browser.get(&fixture.app.router, "/add").await.status, 503);
    assert_eq!(start.elapsed().as_millis() / 10, 10);
}

#[tokio::test]
async fn a_session_that_grows_too_old_during_a_request_is_not_written_again() {
    let hour = Duration::from_secs(3600);
    let config = SessionConfig::default()
        .with_idle_timeout(hour)
        .with_absolute_timeout(Some(hour));
    let fixture = fixture_with(config);
    let browser = fixture.browser().await;
    // A store whose clock is behind.
    for entry in fixture.app.store.records().values_mut() {
        entry.expires += 24 * hour;
    }
    let router = Router::new().route(
        "/slow",
        get({
            let clock = fixture.app.clock.clone();
            move |session: Session| async move {
                add(&session);
                clock.advance(hour);
                let error = session.save().await.unwrap_err();
                (error.kind() == SessionErrorKind::Ended).to_string()
            }
        }),
    );
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    let answer = send(&router, browser.request("/slow")).await;
    assert_eq!(answer.body, "true");
    assert!(answer.sets_no_cookie());
    assert_eq!(fixture.app.store.calls(), [Load]);
    assert_eq!(fixture.get(&browser, "/read").await, "None");
}

#[tokio::test]
async fn two_saves_of_one_session_come_one_after_the_other() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    let gate = Arc::new(Notify::new());
    let store = &fixture.app.store;
    store.fault(Update, Fault::Wait(Arc::clone(&gate)));
    let save = |session: &Session| {
        let session = session.clone();
        tokio::spawn(async move { session.save().await })
    };
    add(&session);
    let first = save(&session);
    fixture.until_called(Update).await;
    add(&session);
    let second = save(&session);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.calls(), []);
    gate.notify_one();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(store.calls(), [Update]);
    assert_eq!(fixture.get(&browser, "/read").await, "Some(3)");
}

/// Answers while a `save` of what it has inserted is under way; `then` comes in between.
async fn answered_during_a_save(
    fixture: &Fixture,
    verb: Verb,
    browser: &Browser,
    then: fn(&Session),
) -> support::Answer {
    let gate = Arc::new(Notify::new());
    let store = fixture.app.store.clone();
    store.fault(verb, Fault::Wait(Arc::clone(&gate)));
    let router = Router::new().route(
        "/",
        get(move |session: Session| async move {
            add(&session);
            let saving = session.clone();
            tokio::spawn(async move { saving.save().await });
            while store.calls().last() != Some(&verb) {
                tokio::task::yield_now().await;
            }
            then(&session);
        }),
    );
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    let answer = tokio::spawn(send(&router, browser.request("/")));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.app.store.calls(), []);
    assert!(!answer.is_finished(), "the response waits for the save");
    gate.notify_one();
    answer.await.unwrap()
}

#[tokio::test]
async fn a_response_waits_for_a_save_and_brings_its_cookie() {
    let fixture = fixture();
    let answer = answered_during_a_save(&fixture, Create, &Browser::default(), |_| ()).await;
    let mut browser = Browser::with_cookie(answer.set_value());
    assert_eq!(fixture.get(&browser, "/read").await, "Some(1)");
    let fixture = &fixture;
    let answer = answered_during_a_save(fixture, Update, &browser, |session| {
        add(session);
    })
    .await;
    browser.take(&answer);
    assert_eq!(fixture.app.store.calls(), [Update]);
    assert_eq!(fixture.get(&browser, "/read").await, "Some(3)");
}

#[tokio::test]
async fn a_flush_during_a_save_ends_what_was_saved() {
    for verb in [Create, Update] {
        let fixture = fixture();
        let browser = match verb {
            Create => Browser::default(),
            _ => fixture.browser().await,
        };
        let answer = answered_during_a_save(&fixture, verb, &browser, Session::flush).await;
        assert_eq!(answer.status, 200);
        assert!(answer.sets_no_cookie() || answer.removes_cookie());
        assert_eq!(answer.removes_cookie(), verb == Update);
        let calls = fixture.app.store.calls();
        assert_eq!(calls, [Update], "{verb:?}: it is known what is there");
        assert_eq!(fixture.app.store.live(), []);
    }
}

#[tokio::test]
async fn edits_done_again_come_out_as_they_did_the_first_time() {
    /// What is done to a session in which `n` is 1, and what `n` is afterwards.
    type Case = (fn(&Session), &'static str);
    let cases: [Case; 5] = [
        (
            |session| {
                add(session);
                add(session);
            },
            "Some(3)",
        ),
        (
            |session| {
                add(session);
                session.insert("n", 7).unwrap();
            },
            "Some(7)",
        ),
        (
            |session| {
                session.insert("n", 7).unwrap();
                add(session);
            },
            "Some(8)",
        ),
        (
            |session| {
                session.clear();
                add(session);
            },
            "Some(1)",
        ),
        (
            |session| {
                add(session);
                session.remove("n");
                add(session);
                add(session);
            },
            "Some(2)",
        ),
    ];
    for (edit, n) in cases {
        let fixture = fixture();
        let browser = fixture.browser().await;
        fixture.app.store.fault(Update, foreign_write());
        let router = Router::new().route("/", get(async move |session: Session| edit(&session)));
        let router = router.layer(fixture.app.layer.clone()).with_state(());
        assert_eq!(send(&router, browser.request("/")).await.status, 200);
        assert_eq!(fixture.app.store.calls(), [Load, Update, Load, Update]);
        assert_eq!(fixture.get(&browser, "/read").await, n);
    }
}

#[tokio::test]
async fn what_follows_a_failed_save_builds_on_it_when_done_again() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let store = fixture.app.store.clone();
    let router = Router::new().route(
        "/",
        get(move |session: Session| async move {
            add(&session);
            store.fault(Update, foreign_write());
            store.fault(Load, Fault::Fail(StoreErrorKind::Unavailable));
            session.save().await.unwrap_err();
            assert_eq!(add(&session), 3);
        }),
    );
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    assert_eq!(send(&router, browser.request("/")).await.status, 200);
    assert_eq!(fixture.get(&browser, "/read").await, "Some(3)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_waits_for_edits_that_are_being_done_again() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let store = fixture.app.store.clone();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(Some(released));
    let replaying = Arc::new(Notify::new());
    let router = Router::new().route(
        "/",
        get({
            let replaying = Arc::clone(&replaying);
            let released = Arc::new(released);
            move |session: Session| async move {
                session.insert("first", true).unwrap();
                let (late, entered) = (session.clone(), Arc::clone(&replaying));
                store.fault(Update, foreign_write());
                store.on_next(Update, move || {
                    let mut runs = 0;
                    let released = released.lock().unwrap().take().unwrap();
                    let released = Mutex::new(released);
                    let edit = late.update("late", move |_: Option<u64>| {
                        runs += 1;
                        if runs == 2 {
                            entered.notify_one();
                            let released = released.lock().unwrap();
                            released.recv_timeout(Duration::from_secs(5)).unwrap();
                        }
                        runs
                    });
                    edit.unwrap();
                });
                let saving = session.clone();
                // Not among the workers, one of which would have to wait for the closure.
                let runtime = tokio::runtime::Handle::current();
                tokio::task::spawn_blocking(move || runtime.block_on(saving.save()));
                replaying.notified().await;
            }
        }),
    );
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    let answer = tokio::spawn(send(&router, browser.request("/")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!answer.is_finished());
    release.send(()).unwrap();
    assert_eq!(answer.await.unwrap().status, 200);
    assert_eq!(fixture.get(&browser, "/keys").await, "first,late,n");
}

#[tokio::test]
async fn a_flush_while_edits_are_done_again_drops_them() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.insert("first", true).unwrap();
    let store = &fixture.app.store;
    store.fault(Update, foreign_write());
    store.on_next(Update, {
        let session = session.clone();
        move || {
            // Made during the save, done again after it; the second time something else happens.
            let (mut runs, flushing) = (0, session.clone());
            let late = session.update("late", move |_: Option<u64>| {
                runs += 1;
                if runs == 2 {
                    flushing.flush();
                }
                runs
            });
            late.unwrap();
        }
    });
    session.save().await.unwrap();
    assert!(session.is_empty(), "{:?}", session.keys());
    session.save().await.unwrap();
    assert_eq!(store.live(), []);
}

#[tokio::test]
async fn a_session_that_turns_out_to_have_ended_reads_as_empty() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    let key = session.key().unwrap();
    fixture.app.layer.sessions().end(&key).await.unwrap();
    add(&session);
    assert_eq!(
        session.save().await.unwrap_err().kind(),
        SessionErrorKind::Ended
    );
    assert!(session.is_empty() && session.keys().is_empty());
    assert_eq!((session.key(), session.is_modified()), (None, false));
}

/// A record that says "ended here", for long enough.
async fn tombstone() -> support::Entry {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.flush();
    session.save().await.unwrap();
    let mut entry = fixture.app.store.records().values().next().unwrap().clone();
    assert!(support::is_tombstone(&entry.payload));
    entry.expires += Duration::from_secs(30 * 86_400);
    entry
}

#[tokio::test]
async fn a_renewal_that_finds_the_session_ended_sends_no_cookie() {
    for how in ["deleted", "ended"] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        // Both the record and the cookie are to be renewed.
        fixture.app.clock.advance(Duration::from_secs(4 * 86_400));
        let tombstone = tombstone().await;
        let store = &fixture.app.store;
        let sibling = store.clone();
        store.on_next(Verb::Touch, move || {
            if how == "deleted" {
                sibling.records().clear();
            } else {
                for entry in sibling.records().values_mut() {
                    *entry = tombstone.clone();
                }
            }
        });
        let answer = browser.get(&fixture.app.router, "/read").await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.as_str()),
            (200, "Some(1)")
        );
        assert!(store.calls().contains(&Verb::Touch));
        assert!(answer.sets_no_cookie(), "{how}");
    }
}

#[tokio::test]
async fn edits_that_cannot_be_done_again_are_not_passed_over_in_silence() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.insert("first", true).unwrap();
    let gate = Arc::new(Notify::new());
    fixture
        .app
        .store
        .fault(Update, Fault::Wait(Arc::clone(&gate)));
    let saving = tokio::spawn({
        let session = session.clone();
        async move { session.save().await }
    });
    fixture.until_called(Update).await;
    add(&session);
    let key = session.key().unwrap();
    let other = fixture.app.layer.sessions().load(&key).await.unwrap();
    let other = other.unwrap();
    other.insert("n", "no number any more").unwrap();
    other.save().await.unwrap();
    gate.notify_one();
    let error = saving.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), SessionErrorKind::Decode);
}
