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
use support::fixture::{Kept, add, fixture, fixture_with};
use support::{Browser, Fault, Verb, send};
use tokio::sync::Notify;

use Verb::{Create, Update};

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
