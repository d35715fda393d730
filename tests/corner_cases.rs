//! What happens when two rare things come together.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use serde::ser::{Serialize, SerializeSeq, Serializer};
use session_layer::{
    Format, Session, SessionConfig, SessionErrorKind, SessionLayer, StoreErrorKind,
};
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
async fn what_is_inserted_after_a_lazy_flush_is_in_the_new_session() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let old = browser.clone();
    let answer = browser.get(&fixture.app.router, "/lazy-relogin").await;
    assert_eq!(answer.body, "", "the flush comes before the load");
    answer.set_value();
    assert_eq!(fixture.get(&browser, "/keys").await, "user");
    assert_eq!(fixture.get(&old, "/keys").await, "");
}

#[tokio::test]
async fn a_lazy_flush_after_the_head_ends_the_session_when_the_last_clone_goes() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep-lazy").await;
    let lazy = fixture.lazy.lock().unwrap().take().unwrap();
    lazy.flush();
    drop(lazy);
    fixture.app.layer.drain().await;
    assert_eq!(fixture.app.store.live(), []);
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

#[tokio::test]
async fn after_the_head_a_flush_is_saved_though_a_new_session_cannot_be() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.flush();
    session.insert("user", "grace").unwrap();
    let error = session.save().await.unwrap_err();
    assert_eq!(error.kind(), SessionErrorKind::CookieTooLate);
    assert_eq!(fixture.app.store.live(), []);
}

#[tokio::test]
async fn what_a_failed_save_leaves_can_be_taken_back() {
    let fixture = fixture();
    let store = fixture.app.store.clone();
    let router = Router::new().route(
        "/",
        get(|session: Session| async move {
            session.insert("a", 1).unwrap();
            let clone = session.clone();
            store.on_next(Create, move || clone.insert("b", 2).unwrap());
            store.fault(Create, Fault::Fail(StoreErrorKind::Unavailable));
            session.save().await.unwrap_err();
            assert!(session.remove("a"));
            assert!(!session.remove("a"), "it is gone");
            assert_eq!(session.keys(), ["b"]);
            assert_eq!(session.len(), 1);
        }),
    );
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    let mut browser = Browser::default();
    assert_eq!(browser.get(&router, "/").await.status, 200);
    assert_eq!(fixture.get(&browser, "/keys").await, "b");
}

#[tokio::test]
async fn keys_that_grow_in_json_count_as_they_are_written() {
    let config = SessionConfig::default()
        .with_format(Format::Json)
        .with_max_payload(4000);
    let fixture = fixture_with(config);
    let router = Router::new().route(
        "/odd",
        get(|session: Session| async move {
            let kept = session.insert("fine", 1).is_ok();
            let odd = session.insert(&"\u{1}".repeat(1000), 1).is_ok();
            format!("{kept} {odd}")
        }),
    );
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    let mut browser = Browser::default();
    let body = browser.get(&router, "/odd").await.body;
    assert_eq!(fixture.get(&browser, "/keys").await, "fine");
    assert_eq!(body, "true false");
}

#[tokio::test]
async fn what_an_abandoned_request_has_done_is_not_saved_by_a_task_that_it_started() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let kept = Kept::<Session>::default();
    let router = Router::new().route(
        "/stuck",
        get({
            let kept = Arc::clone(&kept);
            move |session: Session| async move {
                session.insert("half", "done").unwrap();
                *kept.lock().unwrap() = Some(session);
                std::future::pending::<()>().await;
            }
        }),
    );
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    let stuck = tokio::spawn(send(&router, browser.request("/stuck")));
    while kept.lock().unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    stuck.abort();
    assert!(stuck.await.unwrap_err().is_cancelled());
    let session: Session = kept.lock().unwrap().take().unwrap();
    session.insert("own", true).unwrap();
    session.save().await.unwrap();
    assert_eq!(fixture.get(&browser, "/keys").await, "n,own");
    session.cycle_id();
    assert_eq!(
        session.save().await.unwrap_err().kind(),
        SessionErrorKind::CookieTooLate
    );
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
async fn a_session_first_loaded_after_the_head_gets_no_cookie() {
    let fixture = fixture();
    Browser::default()
        .get(&fixture.app.router, "/keep-lazy")
        .await;
    let lazy = fixture.lazy.lock().unwrap().take().unwrap();
    let session = lazy.load().await.unwrap();
    session.insert("n", 1).unwrap();
    let error = session.save().await.unwrap_err();
    assert_eq!(error.kind(), SessionErrorKind::CookieTooLate);
    assert_eq!(fixture.app.store.calls(), []);
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
async fn middleware_between_two_layers_of_one_cookie_shares_the_session() {
    async fn visit(
        session: Session,
        request: axum::extract::Request,
        next: axum::middleware::Next,
    ) -> axum::response::Response {
        session.insert("visited", true).unwrap();
        next.run(request).await
    }
    let fixture = fixture();
    let router = fixture
        .app
        .router
        .clone()
        .layer(axum::middleware::from_fn(visit))
        .layer(fixture.app.layer.clone())
        .with_state(());
    let mut browser = Browser::default();
    browser.get(&router, "/add").await.set_value();
    assert_eq!(fixture.app.store.calls(), [Create]);
    assert_eq!(fixture.get(&browser, "/keys").await, "n,visited");
}

#[tokio::test]
async fn layers_of_two_cookies_have_two_sessions() {
    let inner = fixture();
    let config = SessionConfig::default().with_cookie_name("__Host-outer");
    let outer = fixture_with(config);
    let router = inner
        .app
        .router
        .clone()
        .layer(outer.app.layer.clone())
        .with_state(());
    let mut browser = Browser::default();
    browser.get(&router, "/add").await.set_value();
    assert_eq!(inner.app.store.calls(), [Create]);
    assert_eq!(outer.app.store.calls(), []);
    assert_eq!(browser.jar.keys().collect::<Vec<_>>(), ["__Host-id"]);
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

#[tokio::test]
async fn what_a_server_error_rolled_back_is_not_saved_later() {
    for days in [0, 4] {
        let fixture = fixture();
        let browser = fixture.browser().await;
        // After four days, the renewal makes a commit of it.
        fixture
            .app
            .clock
            .advance(Duration::from_secs(days * 86_400));
        let kept = Kept::<Session>::default();
        let router = Router::new().route(
            "/",
            get({
                let kept = Arc::clone(&kept);
                async move |session: Session| {
                    session.insert("rolled", "back").unwrap();
                    *kept.lock().unwrap() = Some(session);
                    http::StatusCode::INTERNAL_SERVER_ERROR
                }
            }),
        );
        let router = router.layer(fixture.app.layer.clone()).with_state(());
        assert_eq!(send(&router, browser.request("/")).await.status, 500);
        let session: Session = kept.lock().unwrap().take().unwrap();
        session.insert("own", true).unwrap();
        session.save().await.unwrap();
        assert_eq!(fixture.get(&browser, "/keys").await, "n,own");
    }
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

#[tokio::test]
async fn requests_that_together_exceed_the_limit_leave_a_session_that_can_be_read() {
    for keys in [true, false] {
        let config = match keys {
            true => SessionConfig::default().with_max_keys(2),
            false => SessionConfig::default().with_max_payload(600),
        };
        let fixture = fixture_with(config);
        let mut browser = fixture.browser().await;
        browser.get(&fixture.app.router, "/keep").await;
        let first = fixture.take_kept();
        browser.get(&fixture.app.router, "/keep").await;
        let second = fixture.take_kept();
        first.insert("a", "a".repeat(300)).unwrap();
        second.insert("b", "b".repeat(300)).unwrap();
        first.save().await.unwrap();
        let error = second.save().await.unwrap_err();
        assert_eq!(error.kind(), SessionErrorKind::Encode);
        assert_eq!(fixture.get(&browser, "/keys").await, "a,n");
        // What was too much can be taken back.
        second.remove("b");
        add(&second);
        second.save().await.unwrap();
        assert_eq!(fixture.get(&browser, "/read").await, "Some(2)");
        assert_eq!(fixture.get(&browser, "/keys").await, "a,n");
    }
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

/// Says that it has one element, and gives three.
struct Liar(usize);

impl Serialize for Liar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0))?;
        for element in 1..=3 {
            seq.serialize_element(&element)?;
        }
        seq.end()
    }
}

#[tokio::test]
async fn a_value_that_lies_about_its_length_is_refused_and_harms_nothing() {
    for format in [Format::Json, Format::MessagePack] {
        let fixture = fixture_with(SessionConfig::default().with_format(format));
        let router = Router::new().route(
            "/lie",
            get(|session: Session| async move {
                for length in [0, 1, 2, 9] {
                    // JSON does not write lengths, but for an empty list.
                    let _ = session.insert("lie", Liar(length));
                }
            }),
        );
        let router = router.layer(fixture.app.layer.clone()).with_state(());
        let mut browser = fixture.browser().await;
        browser.get(&router, "/lie").await;
        assert_eq!(
            fixture.get(&browser, "/read").await,
            "Some(1)",
            "{format:?}"
        );
    }
}

/// Looks at the session when it is dropped, as a guard that logs would.
struct Nosy(Session);

impl Drop for Nosy {
    fn drop(&mut self) {
        assert!(!format!("{:?} {}", self.0, self.0.len()).is_empty());
    }
}

#[test]
fn a_closure_may_look_at_the_session_when_it_is_dropped() {
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let fixture = fixture();
            let nosy = |session: &Session, key: &str| {
                let guard = Nosy(session.clone());
                let update = move |n: Option<u64>| {
                    let _ = &guard;
                    n.unwrap_or(0) + 1
                };
                session.update(key, update)
            };
            let router = Router::new().route(
                "/",
                get(move |session: Session| async move {
                    for undo in ["set", "remove", "clear", "flush", "refuse", "leave"] {
                        nosy(&session, "n").unwrap();
                        match undo {
                            "set" => session.insert("n", 5).unwrap(),
                            "remove" => drop(session.remove("n")),
                            "clear" => session.clear(),
                            "flush" => session.flush(),
                            "refuse" => drop(nosy(&session, "_meta").unwrap_err()),
                            _ => {}
                        }
                    }
                    session.save().await.unwrap();
                    nosy(&session, "m").unwrap();
                    http::StatusCode::INTERNAL_SERVER_ERROR
                }),
            );
            let router = router.layer(fixture.app.layer.clone()).with_state(());
            let mut browser = fixture.browser().await;
            assert_eq!(browser.get(&router, "/").await.status, 500);
            assert_eq!(fixture.get(&browser, "/keys").await, "n");
        });
        done.send(()).unwrap();
    });
    let waited = finished.recv_timeout(Duration::from_secs(20));
    assert!(waited.is_ok(), "stuck: {waited:?}");
}

#[tokio::test]
async fn of_two_clones_that_take_a_value_one_gets_it() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();

    /// Takes the value away while it is being decoded.
    struct Greedy;
    thread_local!(static OTHER: std::cell::RefCell<Option<Session>> = const { std::cell::RefCell::new(None) });
    impl<'de> serde::Deserialize<'de> for Greedy {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let other = OTHER.take();
            if let Some(other) = other {
                assert_eq!(other.take::<u64>("n").unwrap(), Some(1));
            }
            u64::deserialize(deserializer).map(|_| Self)
        }
    }
    OTHER.set(Some(session.clone()));
    assert!(session.take::<Greedy>("n").unwrap().is_none());
    session.save().await.unwrap();
    assert_eq!(fixture.get(&browser, "/read").await, "None");
}

#[tokio::test]
async fn a_cookie_never_outlives_its_session_however_slow_the_handler() {
    let old = fixture();
    let browser = old.browser().await;
    let clock = old.app.clock.clone();
    let slow = {
        let clock = clock.clone();
        Router::new().route(
            "/",
            get(move |session: Session| async move {
                clock.advance(Duration::from_secs(90));
                drop(session);
            }),
        )
    };
    let ring = session_layer::SigningKeys::new("another key, which is new and long enough")
        .unwrap()
        .with_fallback(support::KEY)
        .unwrap();
    let layer = SessionLayer::new(old.app.store.clone(), ring).with_clock({
        let clock = clock.clone();
        move || clock.now()
    });
    let answer = browser
        .clone()
        .get(&slow.layer(layer).with_state(()), "/")
        .await;
    let expires = old.app.store.records().values().next().unwrap().expires;
    let left = expires.duration_since(clock.now()).unwrap();
    let max_age = answer.cookies()[0].max_age().unwrap().whole_seconds() as u64;
    assert!(max_age <= left.as_secs() + 1, "{max_age} s, {left:?}");
    assert!(max_age >= left.as_secs());
}

#[tokio::test]
async fn a_cookie_from_a_clock_that_was_ahead_is_issued_again() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    fixture.app.clock.go_back(Duration::from_secs(20 * 86_400));
    let answer = browser.get(&fixture.app.router, "/read").await;
    assert_eq!(answer.body, "Some(1)");
    answer.set_value();
    assert!(
        browser
            .get(&fixture.app.router, "/read")
            .await
            .sets_no_cookie()
    );
}

#[tokio::test]
async fn no_error_prints_what_the_session_holds() {
    for format in [Format::Json, Format::MessagePack] {
        let fixture = fixture_with(SessionConfig::default().with_format(format));
        let seen = Arc::new(Mutex::new(String::new()));
        let router = Router::new().route(
            "/",
            get({
                let seen = Arc::clone(&seen);
                move |session: Session| async move {
                    session.insert("token", "hunter2").unwrap();
                    let error = session.get::<u64>("token").unwrap_err();
                    *seen.lock().unwrap() = format!("{error} {error:?} {session:?}");
                }
            }),
        );
        let router = router.layer(fixture.app.layer.clone()).with_state(());
        Browser::default().get(&router, "/").await;
        let seen = seen.lock().unwrap();
        assert!(!seen.contains("hunter2"), "{seen}");
        assert!(seen.contains("u64"), "{seen}");
    }
}

#[tokio::test]
async fn two_drains_at_once_both_end() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let gate = Arc::new(Notify::new());
    fixture
        .app
        .store
        .fault(Update, Fault::Wait(Arc::clone(&gate)));
    let task = tokio::spawn(send(&fixture.app.router, browser.request("/add")));
    fixture.until_called(Update).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let layer = &fixture.app.layer;
    let both = async {
        tokio::join!(layer.drain(), layer.drain(), async { gate.notify_one() });
        layer.drain().await;
    };
    tokio::time::timeout(Duration::from_secs(5), both)
        .await
        .unwrap();
    assert_eq!(fixture.get(&browser, "/read").await, "Some(2)");
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
