//! Requests that do not end the usual way: saves, panics, clients that hang up, work after the head.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures_util::poll;
use http::StatusCode;
use session_layer::{LazySession, Session, SessionConfig, SessionErrorKind, StoreErrorKind};
use support::fixture::{Fixture, Kept, fixture_of};
use support::{Browser, Fault, Verb, send};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use Verb::{Create, Load, Update};

fn routes(gate: Arc<Notify>) -> Router {
    let wait = Arc::clone(&gate);
    let stuck = Arc::clone(&gate);
    Router::new()
        .route(
            "/save-twice",
            get(|session: Session| async move {
                session.insert("a", 1).unwrap();
                session.save().await.unwrap();
                session.save().await.unwrap();
                session.insert("b", 2).unwrap();
            }),
        )
        .route(
            "/save-anyway",
            get(|session: Session| async move {
                session
                    .update("n", |n: Option<u64>| n.unwrap_or(0) + 1)
                    .unwrap();
                let saved = session.save().await;
                session
                    .update("n", |n: Option<u64>| n.unwrap_or(0) + 10)
                    .unwrap();
                format!("{:?}", saved.map_err(|error| error.kind()))
            }),
        )
        .route(
            "/save-rotation",
            get(|session: Session| async move {
                session.insert("user", "ada").unwrap();
                session.cycle_id();
                session.save().await.unwrap();
                StatusCode::INTERNAL_SERVER_ERROR
            }),
        )
        .route(
            "/add-and-panic",
            get(|session: Session| async move {
                session.insert("n", 99).unwrap();
                if !session.is_empty() {
                    panic!("on purpose");
                }
            }),
        )
        .route(
            "/logout-and-panic",
            get(|session: Session| async move {
                session.flush();
                if session.is_empty() {
                    panic!("on purpose");
                }
            }),
        )
        .route(
            "/logout-and-wait",
            get(|session: Session| async move {
                session.flush();
                wait.notified().await;
            }),
        )
        .route(
            "/lazy-logout-and-wait",
            get(|session: LazySession| async move {
                session.flush();
                stuck.notified().await;
            }),
        )
        .route(
            "/add-and-wait",
            get(|session: Session| async move {
                session.insert("n", 99).unwrap();
                gate.notified().await;
            }),
        )
}

fn fixture() -> Fixture {
    fixture_of(routes(Arc::default()), SessionConfig::default())
}

/// A client that hangs up while its `n` is being counted; that goes on once it is let.
async fn hang_up_during_commit(fixture: &Fixture, browser: &Browser) -> Arc<Notify> {
    let gate = Arc::new(Notify::new());
    let wait = Fault::Wait(Arc::clone(&gate));
    fixture.app.store.fault(Update, wait);
    let task = tokio::spawn(send(&fixture.app.router, browser.request("/add")));
    fixture.until_called(Update).await;
    hang_up(task).await;
    gate
}

async fn hang_up<T: std::fmt::Debug>(request: JoinHandle<T>) {
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_save_stores_at_once_and_only_what_is_new() {
    let Fixture { app, .. } = fixture();
    let mut browser = Browser::default();
    let answer = browser.get(&app.router, "/save-twice").await;
    assert_eq!(app.store.calls(), [Create, Update]);
    answer.set_value();
}

#[tokio::test]
async fn a_save_whose_answer_was_lost_counts_once() {
    for (fault, n) in [
        (Fault::FailAfter(StoreErrorKind::Timeout), 12),
        (Fault::Fail(StoreErrorKind::Timeout), 12),
    ] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        fixture.app.store.fault(Update, fault);
        let answer = browser.get(&fixture.app.router, "/save-anyway").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, "Err(Store)");
        assert_eq!(
            browser.get(&fixture.app.router, "/read").await.body,
            format!("Some({n})")
        );
    }
}

#[tokio::test]
async fn a_lost_save_under_a_foreign_write_is_a_503_and_counts_at_most_once() {
    for fault in [
        Fault::FailAfter(StoreErrorKind::Timeout),
        Fault::Fail(StoreErrorKind::Timeout),
    ] {
        let fixture = fixture();
        let browser = fixture.browser().await;
        let landed = matches!(fault, Fault::FailAfter(_));
        fixture.app.store.fault(Update, fault);
        let gate = Arc::new(Notify::new());
        fixture
            .app
            .store
            .fault(Update, Fault::Wait(Arc::clone(&gate)));
        let slow = tokio::spawn(send(&fixture.app.router, browser.request("/save-anyway")));
        loop {
            // The save, and then the commit, which waits.
            if fixture.app.store.records().is_empty() || !slow.is_finished() {
                tokio::task::yield_now().await;
            }
            if fixture
                .app
                .store
                .calls()
                .iter()
                .filter(|verb| **verb == Update)
                .count()
                > 0
            {
                break;
            }
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            browser
                .clone()
                .get(&fixture.app.router, "/add")
                .await
                .status,
            200
        );
        gate.notify_one();
        assert_eq!(slow.await.unwrap().status, 503);
        let n = if landed { "Some(3)" } else { "Some(2)" };
        assert_eq!(
            browser.clone().get(&fixture.app.router, "/read").await.body,
            n
        );
    }
}

#[tokio::test]
async fn a_saved_rotation_stands_after_a_server_error() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let old = browser.clone();
    let answer = browser.get(&fixture.app.router, "/save-rotation").await;
    assert_eq!(answer.status, 500);
    answer.set_value();
    assert_eq!(
        browser.get(&fixture.app.router, "/read").await.body,
        "Some(1)"
    );
    assert_eq!(
        old.clone().get(&fixture.app.router, "/read").await.body,
        "None"
    );
}

/// Whatever the handler makes of the error of its `save`: the old id has ended when a 200 leaves.
#[tokio::test]
async fn an_old_id_that_a_saved_rotation_could_not_end_is_ended_with_the_response() {
    for still_down in [false, true] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        let old = browser.clone();
        let store = fixture.app.store.clone();
        let handler = move |session: Session| async move {
            session.cycle_id();
            let failures = if still_down { 3 } else { 2 };
            for _ in 0..failures {
                store.fault(Update, Fault::Fail(StoreErrorKind::Unavailable));
            }
            session.save().await.unwrap_err();
        };
        let router = Router::new().route("/", get(handler));
        let router = router.layer(fixture.app.layer.clone()).with_state(());
        let answer = browser.get(&router, "/").await;
        assert_eq!(answer.status, if still_down { 503 } else { 200 });
        answer.set_value();
        // It goes on being tried after the response.
        fixture.app.layer.drain().await;
        let read = |browser: &Browser| {
            let mut browser = browser.clone();
            let router = fixture.app.router.clone();
            async move { browser.get(&router, "/read").await.body }
        };
        assert_eq!(read(&old).await, "None", "{still_down}");
        assert_eq!(read(&browser).await, "Some(1)", "{still_down}");
        assert_eq!(fixture.app.store.live().len(), 1);
    }
}

/// Nor does it outlive a logout that came with the old id while nobody knew of the new one.
#[tokio::test]
async fn a_logout_between_a_saved_rotation_and_its_late_end_is_final() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let kept = Arc::clone(&fixture.kept);
    browser.clone().get(&fixture.app.router, "/keep").await;
    let other = kept.lock().unwrap().take().unwrap();
    let store = fixture.app.store.clone();
    let handler = move |session: Session| async move {
        session.cycle_id();
        for _ in 0..2 {
            store.fault(Update, Fault::Fail(StoreErrorKind::Unavailable));
        }
        session.save().await.unwrap_err();
        other.flush();
        other.save().await.unwrap();
    };
    let router = Router::new().route("/", get(handler));
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    browser.get(&router, "/").await;
    assert_eq!(fixture.app.store.live(), []);
    let read = browser.get(&fixture.app.router, "/read").await;
    assert_eq!(read.body, "None");
}

/// A logout that comes with the old id finds the session under the new one all the same.
#[tokio::test]
async fn an_old_id_that_is_ended_late_leads_a_logout_to_the_new_one() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let store = fixture.app.store.clone();
    let kept = Arc::clone(&fixture.kept);
    browser.clone().get(&fixture.app.router, "/keep").await;
    let late = kept.lock().unwrap().take().unwrap();
    let handler = move |session: Session| async move {
        session.cycle_id();
        for _ in 0..2 {
            store.fault(Update, Fault::Fail(StoreErrorKind::Unavailable));
        }
        session.save().await.unwrap_err();
    };
    let router = Router::new().route("/", get(handler));
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    assert_eq!(browser.clone().get(&router, "/").await.status, 200);
    late.flush();
    late.save().await.unwrap();
    assert_eq!(fixture.app.store.live(), []);
}

#[tokio::test]
async fn a_panic_drops_edits_but_not_a_logout() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let panicked = tokio::spawn(send(&fixture.app.router, browser.request("/add-and-panic"))).await;
    assert!(panicked.unwrap_err().is_panic());
    fixture.app.layer.drain().await;
    assert_eq!(fixture.app.store.calls(), [Load]);
    assert_eq!(
        browser.clone().get(&fixture.app.router, "/read").await.body,
        "Some(1)"
    );
    let panicked = tokio::spawn(send(
        &fixture.app.router,
        browser.request("/logout-and-panic"),
    ))
    .await;
    assert!(panicked.unwrap_err().is_panic());
    fixture.app.layer.drain().await;
    assert_eq!(fixture.app.store.live(), []);
}

#[tokio::test]
async fn a_client_that_hangs_up_drops_edits_but_not_a_logout() {
    for path in ["/add-and-wait", "/logout-and-wait", "/lazy-logout-and-wait"] {
        let fixture = fixture();
        let browser = fixture.browser().await;
        let task = tokio::spawn(send(&fixture.app.router, browser.request(path)));
        if path.starts_with("/lazy") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else {
            fixture.until_called(Load).await;
            tokio::task::yield_now().await;
        }
        hang_up(task).await;
        fixture.app.layer.drain().await;
        let live = fixture.app.store.live().len();
        assert_eq!(live, usize::from(path == "/add-and-wait"), "{path}");
        assert!(!fixture.app.store.calls().contains(&Update) || live == 0);
        if live == 1 {
            assert_eq!(
                browser.clone().get(&fixture.app.router, "/read").await.body,
                "Some(1)"
            );
        }
    }
}

#[tokio::test]
async fn a_commit_that_has_begun_finishes_without_its_client() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let gate = hang_up_during_commit(&fixture, &browser).await;
    let draining = tokio::spawn({
        let layer = fixture.app.layer.clone();
        async move { layer.drain().await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!draining.is_finished(), "drain waits for the commit");
    gate.notify_one();
    draining.await.unwrap();
    assert_eq!(
        browser.clone().get(&fixture.app.router, "/read").await.body,
        "Some(2)"
    );
}

#[tokio::test]
async fn a_commit_that_has_begun_finishes_though_it_is_dropped_where_no_runtime_is() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let gate = Arc::new(Notify::new());
    let wait = Fault::Wait(Arc::clone(&gate));
    fixture.app.store.fault(Update, wait);
    let mut answer = Box::pin(send(&fixture.app.router, browser.request("/add")));
    assert!(poll!(&mut answer).is_pending());
    assert_eq!(fixture.app.store.calls(), [Load, Update]);
    std::thread::spawn(move || drop(answer)).join().unwrap();
    gate.notify_one();
    fixture.app.layer.drain().await;
    let stored = browser.clone().get(&fixture.app.router, "/read").await;
    assert_eq!(stored.body, "Some(2)");
}

#[tokio::test]
async fn a_later_drain_waits_as_the_first_did() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    for n in [2, 3] {
        let gate = hang_up_during_commit(&fixture, &browser).await;
        let mut drain = Box::pin(fixture.app.layer.drain());
        assert!(poll!(&mut drain).is_pending());
        gate.notify_one();
        drain.await;
        let stored = browser.clone().get(&fixture.app.router, "/read").await;
        assert_eq!(stored.body, format!("Some({n})"));
    }
}

#[tokio::test]
async fn a_drain_that_ends_leaves_no_other_waiting() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let gate = hang_up_during_commit(&fixture, &browser).await;
    let mut first = Box::pin(fixture.app.layer.drain());
    assert!(poll!(&mut first).is_pending());
    gate.notify_one();
    let read = || async { browser.clone().get(&fixture.app.router, "/read").await.body };
    while read().await != "Some(2)" {
        tokio::task::yield_now().await;
    }
    // The next commit has begun before the first `drain` sees that its own is done.
    let gate = hang_up_during_commit(&fixture, &browser).await;
    let mut second = Box::pin(fixture.app.layer.drain());
    assert!(poll!(&mut second).is_pending());
    assert!(poll!(&mut first).is_ready());
    gate.notify_one();
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, second).await.unwrap();
    assert_eq!(read().await, "Some(3)");
}

#[tokio::test]
async fn a_logout_whose_client_hangs_up_waits_for_no_task_that_has_the_session() {
    for loads in [true, false] {
        let fixture = fixture();
        let browser = fixture.browser().await;
        let kept = Arc::new(Mutex::new(None));
        let router = fixture.around({
            let kept = Arc::clone(&kept);
            move |session: LazySession| async move {
                if loads {
                    session.load().await.unwrap().flush();
                } else {
                    session.flush();
                }
                *kept.lock().unwrap() = Some(session);
                std::future::pending::<()>().await;
            }
        });
        let task = tokio::spawn(send(&router, browser.request("/")));
        while kept.lock().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        hang_up(task).await;
        fixture.app.layer.drain().await;
        assert_eq!(fixture.app.store.live(), [], "loaded: {loads}");
        assert!(kept.lock().unwrap().is_some());
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_costs_an_untouched_session_nothing() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let begun = Arc::new(Notify::new());
    let router = fixture.around({
        let begun = Arc::clone(&begun);
        move || async move {
            begun.notify_one();
            std::future::pending::<()>().await;
        }
    });
    let task = tokio::spawn(send(&router, browser.request("/")));
    begun.notified().await;
    hang_up(task).await;
    fixture.app.layer.drain().await;
    assert_eq!(fixture.app.store.calls(), []);
}

#[tokio::test]
async fn what_the_response_has_told_the_browser_is_no_change_any_more() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let kept = Kept::<Session>::default();
    let router = fixture.around({
        let kept = Arc::clone(&kept);
        move |session: Session| async move {
            session.flush();
            assert!(session.is_modified());
            *kept.lock().unwrap() = Some(session);
        }
    });
    assert!(browser.get(&router, "/").await.removes_cookie());
    let session = kept.lock().unwrap().take().unwrap();
    assert!(!session.is_modified());
    fixture.app.store.calls();
    session.save().await.unwrap();
    assert_eq!(fixture.app.store.calls(), []);
}

#[tokio::test]
async fn a_session_that_expires_before_its_response_leaves_gets_no_cookie() {
    let fixture = fixture();
    let clock = fixture.app.clock.clone();
    let router = fixture.around(move |session: Session| async move {
        let minute = Duration::from_secs(60);
        session.insert("n", 1).unwrap();
        session.set_lifetime(minute).unwrap();
        session.save().await.unwrap();
        clock.advance(minute);
    });
    let answer = Browser::default().get(&router, "/").await;
    assert_eq!(answer.status, 200);
    assert!(answer.sets_no_cookie(), "{answer:?}");
}

#[tokio::test]
async fn a_save_that_has_begun_finishes_without_its_caller() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.insert("n", 5).unwrap();
    let gate = Arc::new(Notify::new());
    fixture
        .app
        .store
        .fault(Update, Fault::Wait(Arc::clone(&gate)));
    let saving = tokio::spawn(async move { session.save().await });
    fixture.until_called(Update).await;
    saving.abort();
    assert!(saving.await.unwrap_err().is_cancelled());
    gate.notify_one();
    fixture.app.layer.drain().await;
    assert_eq!(
        browser.get(&fixture.app.router, "/read").await.body,
        "Some(5)"
    );
}

#[tokio::test]
async fn after_the_head_only_what_needs_no_cookie_is_saved() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.insert("n", 7).unwrap();
    session.save().await.unwrap();
    assert_eq!(
        browser.get(&fixture.app.router, "/read").await.body,
        "Some(7)"
    );
    fixture.app.store.calls();
    session.insert("n", 8).unwrap();
    session.cycle_id();
    assert_eq!(
        session.save().await.unwrap_err().kind(),
        SessionErrorKind::CookieTooLate
    );
    assert_eq!(fixture.app.store.calls(), [], "nothing is stored");

    Browser::default().get(&fixture.app.router, "/keep").await;
    let anonymous = fixture.take_kept();
    anonymous.insert("n", 1).unwrap();
    assert_eq!(
        anonymous.save().await.unwrap_err().kind(),
        SessionErrorKind::CookieTooLate
    );
    assert_eq!(fixture.app.store.calls(), []);

    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.flush();
    session.save().await.unwrap();
    assert_eq!(fixture.app.store.live(), [], "a logout needs no cookie");
}

#[tokio::test]
async fn a_flush_after_the_head_counts_even_without_a_save() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.flush();
    drop(session);
    fixture.app.layer.drain().await;
    assert_eq!(fixture.app.store.live(), []);
}

#[tokio::test]
async fn a_save_after_another_requests_logout_says_so() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    let key = session.key().unwrap();
    fixture.app.layer.sessions().end(&key).await.unwrap();
    session.insert("n", 9).unwrap();
    assert_eq!(
        session.save().await.unwrap_err().kind(),
        SessionErrorKind::Ended
    );
    session.insert("n", 9).unwrap();
    assert_eq!(
        session.save().await.unwrap_err().kind(),
        SessionErrorKind::Ended
    );
    assert!(session.is_empty(), "the edits are gone");
    session.save().await.unwrap();
    assert_eq!(fixture.app.store.live(), []);
}

#[tokio::test]
async fn edits_made_during_a_save_are_stored_by_the_next() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    let add = |session: &Session| {
        session
            .update("n", |n: Option<u64>| n.unwrap_or(0) + 1)
            .unwrap()
    };
    add(&session);
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
    // Another request comes between, and this one goes on editing.
    assert_eq!(browser.get(&fixture.app.router, "/add").await.body, "2");
    assert_eq!(add(&session), 3);
    session.insert("late", true).unwrap();
    gate.notify_one();
    saving.await.unwrap().unwrap();
    assert_eq!(
        session.get::<u64>("n").unwrap(),
        Some(4),
        "done again on what the save found"
    );
    assert_eq!(
        browser.get(&fixture.app.router, "/read").await.body,
        "Some(3)"
    );
    session.save().await.unwrap();
    assert_eq!(
        browser.get(&fixture.app.router, "/read").await.body,
        "Some(4)"
    );
}

#[tokio::test]
async fn a_session_can_be_read_changed_and_ended_by_its_key() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let key = fixture.take_kept().key().unwrap();
    let sessions = fixture.app.layer.sessions();
    let session = sessions.load(&key).await.unwrap().unwrap();
    session.insert("n", 40).unwrap();
    session.save().await.unwrap();
    assert_eq!(
        browser.get(&fixture.app.router, "/read").await.body,
        "Some(40)"
    );
    session.cycle_id();
    assert_eq!(
        session.save().await.unwrap_err().kind(),
        SessionErrorKind::CookieTooLate
    );
    sessions.end(&key).await.unwrap();
    assert!(sessions.load(&key).await.unwrap().is_none());
    sessions.end(&key).await.unwrap();
    assert_eq!(browser.get(&fixture.app.router, "/read").await.body, "None");
    let unknown = "x".repeat(43).parse().unwrap();
    assert!(sessions.load(&unknown).await.unwrap().is_none());
    sessions.end(&unknown).await.unwrap();
}

#[tokio::test]
async fn an_end_by_its_old_key_finds_a_session_under_its_new_one() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let key = fixture.take_kept().key().unwrap();
    let rotate = fixture.around(|session: Session| async move { session.cycle_id() });
    browser.get(&rotate, "/").await.set_value();
    let sessions = fixture.app.layer.sessions();
    assert!(sessions.load(&key).await.unwrap().is_none());
    sessions.end(&key).await.unwrap();
    assert_eq!(fixture.app.store.live(), []);
    assert_eq!(browser.get(&fixture.app.router, "/read").await.body, "None");
}

#[tokio::test]
async fn a_client_that_hangs_up_during_a_save_drops_only_what_came_later() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let kept = Kept::<Session>::default();
    let router = fixture.around({
        let kept = Arc::clone(&kept);
        move |session: Session| async move {
            session.insert("n", 5).unwrap();
            *kept.lock().unwrap() = Some(session.clone());
            session.save().await.unwrap();
        }
    });
    let gate = Arc::new(Notify::new());
    let wait = Fault::Wait(Arc::clone(&gate));
    fixture.app.store.fault(Update, wait);
    let task = tokio::spawn(send(&router, browser.request("/")));
    fixture.until_called(Update).await;
    let session = kept.lock().unwrap().take().unwrap();
    session.insert("late", true).unwrap();
    hang_up(task).await;
    assert_eq!(session.keys(), ["n"]);
    gate.notify_one();
    fixture.app.layer.drain().await;
    assert_eq!(session.get::<u64>("n").unwrap(), Some(5));
    assert!(!session.is_modified());
    let stored = browser.clone().get(&fixture.app.router, "/read").await;
    assert_eq!(stored.body, "Some(5)");
}

#[tokio::test]
async fn what_two_requests_take_is_one_requests_after_a_save() {
    for saves in [true, false] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        let mut both = Vec::new();
        for _ in 0..2 {
            browser.get(&fixture.app.router, "/keep").await;
            both.push(fixture.take_kept());
        }
        let [first, second] = [both.remove(0), both.remove(0)];
        assert_eq!(first.take::<u64>("n").unwrap(), Some(1));
        if saves {
            assert_eq!(second.take::<u64>("n").unwrap(), Some(1));
        } else {
            assert!(second.remove("n"));
        }
        second.insert("mine", 2).unwrap();
        first.save().await.unwrap();
        let saved = second.save().await.map_err(|error| error.kind());
        let expected = if saves {
            Err(SessionErrorKind::Taken)
        } else {
            Ok(())
        };
        assert_eq!(saved, expected);
        // The rest is stored, and said once.
        assert_eq!(second.get::<u64>("mine").unwrap(), Some(2));
        second.save().await.unwrap();
        browser.get(&fixture.app.router, "/keep").await;
        assert_eq!(fixture.take_kept().keys(), ["mine"]);
    }
}

#[tokio::test]
async fn what_was_taken_is_kept_when_others_change_something_else() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    assert_eq!(session.take::<u64>("n").unwrap(), Some(1));
    browser.get(&fixture.app.router, "/save-twice").await;
    session.save().await.unwrap();
    session.insert("own", 1).unwrap();
    assert_eq!(session.take::<u64>("own").unwrap(), Some(1));
    session.save().await.unwrap();
}

#[tokio::test]
async fn a_failure_in_between_does_not_hide_that_a_value_was_taken() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    assert_eq!(session.take::<u64>("n").unwrap(), Some(1));
    session.insert("mine", 2).unwrap();
    browser.get(&fixture.app.router, "/add").await;
    // The first attempt meets a conflict, the second fails.
    let nothing = Fault::First(Arc::new(|_| ()));
    fixture.app.store.fault(Update, nothing);
    let failure = Fault::Fail(StoreErrorKind::Unavailable);
    fixture.app.store.fault(Update, failure);
    let kind = |saved: Result<(), session_layer::SessionError>| saved.unwrap_err().kind();
    assert_eq!(kind(session.save().await), SessionErrorKind::Store);
    assert_eq!(kind(session.save().await), SessionErrorKind::Taken);
    session.save().await.unwrap();
}
