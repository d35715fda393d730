//! How commits behave: each row of the table, with the calls of the store counted.

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use session_layer::{LazySession, Session, SessionConfig, SessionError, StoreErrorKind};
use support::{Answer, App, Browser, Fault, Verb, app, app_with, send};

use Verb::{Create, Delete, Load, Touch, Update};

fn routes() -> Router {
    Router::new()
        .route("/untouched", get(|| async { "ok" }))
        .route(
            "/read",
            get(
                |session: Session| async move { format!("{:?}", session.get::<u64>("n").unwrap()) },
            ),
        )
        .route(
            "/contains",
            get(|session: Session| async move { session.contains_key("n").to_string() }),
        )
        .route(
            "/add",
            get(|session: Session| async move {
                session
                    .update("n", |n: Option<u64>| n.unwrap_or(0) + 1)
                    .map(|n| n.to_string())
            }),
        )
        .route(
            "/set/{key}/{value}",
            get(
                |session: Session, Path((key, value)): Path<(String, u64)>| async move {
                    session.insert(&key, value)
                },
            ),
        )
        .route(
            "/remove/{key}",
            get(|session: Session, Path(key): Path<String>| async move {
                session.remove(&key).to_string()
            }),
        )
        .route(
            "/undone",
            get(|session: Session| async move {
                session.insert("none", 1).unwrap();
                session.remove("none").to_string()
            }),
        )
        .route(
            "/clear",
            get(|session: Session| async move { session.clear() }),
        )
        .route(
            "/login",
            get(|session: Session| async move {
                session.cycle_id();
                session.insert("user", "ada")
            }),
        )
        .route(
            "/rotate",
            get(|session: Session| async move { session.cycle_id() }),
        )
        .route(
            "/logout",
            get(|session: Session| async move { session.flush() }),
        )
        .route(
            "/lazy-logout",
            get(|session: LazySession| async move { session.flush() }),
        )
        .route(
            "/relogin",
            get(|session: Session| async move {
                session.flush();
                session.insert("user", "grace")
            }),
        )
        .route(
            "/keys",
            get(|session: Session| async move {
                let mut keys = session.keys();
                keys.sort();
                keys.join(",")
            }),
        )
        .route(
            "/status/{status}/{what}",
            get(
                |session: Session, Path((status, what)): Path<(u16, String)>| async move {
                    match what.as_str() {
                        "add" => drop(session.update("n", |n: Option<u64>| n.unwrap_or(0) + 1)),
                        "rotate" => session.cycle_id(),
                        "logout" => session.flush(),
                        "save" => {
                            session.insert("saved", true).unwrap();
                            session.save().await.unwrap();
                            session.insert("unsaved", true).unwrap();
                        }
                        _ => {}
                    }
                    StatusCode::from_u16(status).unwrap()
                },
            ),
        )
        .route(
            "/forever",
            get(|session: Session| async move {
                session.set_permanent(true);
                session.set_lifetime(Duration::from_secs(60))
            }),
        )
        .route(
            "/option",
            get(|session: Option<Session>| async move { session.is_some().to_string() }),
        )
}

/// A browser with a session in which `n` is 1, and no calls counted yet.
async fn with_session(app: &App) -> Browser {
    let mut browser = Browser::default();
    assert_eq!(browser.get(&app.router, "/add").await.body, "1");
    app.store.calls();
    browser
}

#[tokio::test]
async fn an_untouched_session_costs_nothing() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    for mut browser in [
        Browser::default(),
        browser.clone(),
        Browser::with_cookie("garbage"),
    ] {
        let answer = browser.get(&app.router, "/untouched").await;
        assert_eq!(answer.status, 200);
        assert!(answer.sets_no_cookie() && answer.vary().is_empty());
    }
    assert_eq!(app.store.calls(), []);
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(1)");
}

#[tokio::test]
async fn a_read_is_one_round_trip() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    for path in ["/read", "/contains", "/option"] {
        let answer = browser.get(&app.router, path).await;
        assert_eq!(app.store.calls(), [Load]);
        assert!(answer.sets_no_cookie());
        assert_eq!(answer.vary(), ["Cookie"]);
        assert!(!answer.headers.contains_key("cache-control"));
    }
}

#[tokio::test]
async fn reading_without_a_session_asks_no_store_and_sets_no_cookie() {
    let app = app(routes());
    for path in [
        "/read",
        "/contains",
        "/logout",
        "/rotate",
        "/clear",
        "/forever",
        "/remove/n",
        "/option",
        "/lazy-logout",
    ] {
        let answer = Browser::default().get(&app.router, path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.sets_no_cookie(), "{path}: {answer:?}");
        assert_eq!(answer.vary(), ["Cookie"], "{path}");
    }
    assert_eq!(app.store.calls(), []);
    assert_eq!(
        Browser::default().get(&app.router, "/option").await.body,
        "false"
    );
}

#[tokio::test]
async fn a_new_session_is_one_round_trip_and_one_cookie() {
    let app = app(routes());
    let mut browser = Browser::default();
    let answer = browser.get(&app.router, "/add").await;
    assert_eq!(app.store.calls(), [Create]);
    let cookies = answer.cookies();
    assert_eq!(cookies.len(), 1);
    let cookie = &cookies[0];
    assert_eq!(cookie.name(), "__Host-id");
    assert_eq!(
        (cookie.secure(), cookie.http_only()),
        (Some(true), Some(true))
    );
    assert_eq!((cookie.path(), cookie.domain()), (Some("/"), None));
    assert_eq!(cookie.same_site(), Some(cookie::SameSite::Lax));
    assert_eq!(cookie.max_age(), Some(cookie::time::Duration::days(31)));
    assert_eq!(answer.headers["cache-control"], "private");
    assert_eq!(answer.vary(), ["Cookie"]);
}

#[tokio::test]
async fn a_change_is_two_round_trips_and_no_cookie() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    let answer = browser.get(&app.router, "/add").await;
    assert_eq!(answer.body, "2");
    assert_eq!(app.store.calls(), [Load, Update]);
    assert!(answer.sets_no_cookie());
}

#[tokio::test]
async fn an_equal_value_is_no_change() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    browser.get(&app.router, "/set/n/1").await;
    browser.get(&app.router, "/remove/none").await;
    assert_eq!(app.store.calls(), [Load, Load]);
}

#[tokio::test]
async fn a_session_is_renewed_only_when_a_tenth_of_its_life_has_passed() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    let day = Duration::from_secs(86_400);
    app.clock.advance(3 * day);
    assert!(browser.get(&app.router, "/read").await.sets_no_cookie());
    assert_eq!(app.store.calls(), [Load]);
    app.clock.advance(day);
    let answer = browser.get(&app.router, "/read").await;
    assert_eq!(app.store.calls(), [Load, Touch]);
    assert_eq!(
        answer.cookies()[0].max_age(),
        Some(cookie::time::Duration::days(31))
    );
    browser.get(&app.router, "/read").await;
    assert_eq!(app.store.calls(), [Load]);
    // 30 days of idleness are survived, 32 are not.
    app.clock.advance(30 * day);
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(1)");
    app.clock.advance(32 * day);
    assert_eq!(browser.get(&app.router, "/read").await.body, "None");
}

#[tokio::test]
async fn a_change_renews_the_record_and_a_due_cookie_goes_along() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    app.clock.advance(Duration::from_secs(4 * 86_400));
    let answer = browser.get(&app.router, "/add").await;
    assert_eq!(app.store.calls(), [Load, Update]);
    assert_eq!(
        answer.cookies()[0].max_age(),
        Some(cookie::time::Duration::days(31))
    );
}

#[tokio::test]
async fn where_reading_renews_nothing_a_cookie_that_is_due_waits_for_a_change() {
    let config = SessionConfig::default().with_refresh_share(1.0);
    let app = app_with(routes(), config);
    let mut browser = with_session(&app).await;
    app.clock.advance(Duration::from_secs(4 * 86_400));
    assert!(browser.get(&app.router, "/read").await.sets_no_cookie());
    assert_eq!(app.store.calls(), [Load]);
    let answer = browser.get(&app.router, "/add").await;
    assert_eq!(app.store.calls(), [Load, Update]);
    let month = cookie::time::Duration::days(31);
    assert_eq!(answer.cookies()[0].max_age(), Some(month));
    assert!(browser.get(&app.router, "/add").await.sets_no_cookie());
}

#[tokio::test]
async fn a_cookie_of_an_old_key_is_signed_again() {
    let old = app(routes());
    let mut browser = with_session(&old).await;
    let new_keys =
        || session_layer::SigningKeys::new("the new key, which is also long enough").unwrap();
    let with_keys = |keys, share| {
        let config = SessionConfig::default().with_refresh_share(share);
        let store = old.store.clone();
        let layer = session_layer::SessionLayer::with_config(store, keys, config).unwrap();
        let clock = old.clock.clone();
        let layer = layer.with_clock(move || clock.now());
        routes().layer(layer).with_state(())
    };
    let before = browser.cookie();
    // Also with edits that come to nothing, and where reading renews nothing.
    for (path, share) in [
        ("/undone", 0.1),
        ("/status/500/add", 0.1),
        ("/read", 1.0),
        ("/read", 0.1),
    ] {
        let ring = new_keys().with_fallback(support::KEY).unwrap();
        browser = Browser::with_cookie(before.clone());
        let answer = browser.get(&with_keys(ring, share), path).await;
        assert_ne!(answer.set_value(), before, "{path}");
        assert_eq!(old.store.calls(), [Load], "{path}");
    }
    let router = with_keys(new_keys(), 0.1);
    assert_eq!(browser.get(&router, "/read").await.body, "Some(1)");
    assert_eq!(
        Browser::with_cookie(before)
            .get(&router, "/read")
            .await
            .body,
        "None"
    );
}

#[tokio::test]
async fn a_conflict_keeps_both_edits() {
    let app = app(routes());
    let browser = with_session(&app).await;
    let gate = Arc::new(tokio::sync::Notify::new());
    app.store.fault(Update, Fault::Wait(Arc::clone(&gate)));
    let slow = tokio::spawn(send(&app.router, browser.request("/set/slow/1")));
    while app.store.calls().last() != Some(&Update) {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        browser
            .clone()
            .get(&app.router, "/set/quick/2")
            .await
            .status,
        200
    );
    assert_eq!(browser.clone().get(&app.router, "/add").await.body, "2");
    app.store.calls();
    gate.notify_one();
    let answer = slow.await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.sets_no_cookie());
    assert_eq!(app.store.calls(), [Load, Update]);
    assert_eq!(
        browser.clone().get(&app.router, "/keys").await.body,
        "n,quick,slow"
    );
    assert_eq!(
        browser.clone().get(&app.router, "/read").await.body,
        "Some(2)"
    );
}

#[tokio::test]
async fn a_write_that_arrived_counts_once() {
    // As after a driver that sends a request again: the first is carried out, the second conflicts.
    let app = app(routes());
    let mut browser = with_session(&app).await;
    app.store.fault(Update, Fault::ConflictAfter);
    assert_eq!(browser.get(&app.router, "/add").await.status, 200);
    assert_eq!(app.store.calls(), [Load, Update, Load]);
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(2)");
}

#[tokio::test]
async fn a_session_that_has_ended_takes_no_edits_and_no_cookie() {
    for end in ["deleted", "flushed", "rotated", "cleared"] {
        let app = app(routes());
        let browser = with_session(&app).await;
        let mut other = browser.clone();
        let gate = Arc::new(tokio::sync::Notify::new());
        app.store.fault(Update, Fault::Wait(Arc::clone(&gate)));
        let slow = tokio::spawn(send(&app.router, browser.request("/add")));
        while app.store.calls().last() != Some(&Update) {
            tokio::task::yield_now().await;
        }
        match end {
            "deleted" => app.store.records().clear(),
            "flushed" => assert!(other.get(&app.router, "/logout").await.removes_cookie()),
            "rotated" => drop(other.get(&app.router, "/login").await.set_value()),
            _ => assert_eq!(other.get(&app.router, "/clear").await.status, 200),
        }
        let live = app.store.live();
        gate.notify_one();
        let answer = slow.await.unwrap();
        assert_eq!(answer.status, 200, "{end}");
        assert_eq!(answer.body, "2");
        assert!(answer.sets_no_cookie(), "{end}: {answer:?}");
        assert_eq!(app.store.live(), live, "{end}");
        let left = other.get(&app.router, "/read").await.body;
        assert_eq!(
            left,
            if end == "rotated" { "Some(1)" } else { "None" },
            "{end}"
        );
    }
}

#[tokio::test]
async fn a_taken_key_is_drawn_again() {
    let app = app(routes());
    let mut browser = Browser::default();
    app.store.fault(Create, Fault::Taken);
    assert_eq!(browser.get(&app.router, "/add").await.status, 200);
    assert_eq!(app.store.calls(), [Create, Create]);
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(1)");
}

#[tokio::test]
async fn the_last_key_gone_leaves_a_session() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    let answer = browser.get(&app.router, "/remove/n").await;
    assert_eq!(app.store.calls(), [Load, Update]);
    assert!(answer.sets_no_cookie());
    assert_eq!(app.store.live().len(), 1);
    assert_eq!(browser.get(&app.router, "/option").await.body, "true");
    assert!(browser.get(&app.router, "/add").await.sets_no_cookie());
}

#[tokio::test]
async fn a_logout_is_two_round_trips_and_a_removal() {
    for path in ["/logout", "/lazy-logout"] {
        let app = app(routes());
        let mut browser = with_session(&app).await;
        let old = browser.clone();
        let answer = browser.get(&app.router, path).await;
        assert_eq!(app.store.calls(), [Load, Update]);
        assert!(answer.removes_cookie());
        let cookie = &answer.cookies()[0];
        assert_eq!((cookie.secure(), cookie.path()), (Some(true), Some("/")));
        assert_eq!(app.store.live(), []);
        assert_eq!(old.clone().get(&app.router, "/read").await.body, "None");
        let again = old.clone().get(&app.router, "/add").await;
        assert!(
            again.sets_no_cookie(),
            "edits under a tombstone are dropped"
        );
        assert_eq!(app.store.live(), []);
    }
}

#[tokio::test]
async fn a_logout_counts_whatever_the_status() {
    for status in [200, 302, 404, 500, 503] {
        let app = app(routes());
        let mut browser = with_session(&app).await;
        let answer = browser
            .get(&app.router, &format!("/status/{status}/logout"))
            .await;
        assert_eq!(answer.status, status);
        assert!(answer.removes_cookie());
        assert_eq!(app.store.live(), []);
    }
}

#[tokio::test]
async fn a_logout_that_fails_is_a_503_that_removes_the_cookie() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    app.store
        .fault(Update, Fault::Fail(StoreErrorKind::Unavailable));
    let answer = browser.get(&app.router, "/logout").await;
    assert_eq!(answer.status, 503);
    assert!(answer.removes_cookie());

    let mut browser = with_session(&app).await;
    app.store
        .fault(Load, Fault::Fail(StoreErrorKind::Unavailable));
    let answer = browser.get(&app.router, "/lazy-logout").await;
    assert_eq!(answer.status, 503);
    assert!(answer.removes_cookie());
}

#[tokio::test]
async fn flush_then_insert_is_a_new_session_with_one_cookie() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    let old = browser.clone();
    let answer = browser.get(&app.router, "/relogin").await;
    assert_eq!(app.store.calls(), [Load, Update, Create]);
    answer.set_value();
    assert_eq!(browser.get(&app.router, "/keys").await.body, "user");
    assert_eq!(old.clone().get(&app.router, "/keys").await.body, "");
    assert_eq!(app.store.live().len(), 1);
}

#[tokio::test]
async fn a_rotation_moves_the_data_and_kills_the_old_id() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    let old = browser.clone();
    let answer = browser.get(&app.router, "/login").await;
    assert_eq!(app.store.calls(), [Load, Create, Update]);
    assert_ne!(answer.set_value(), old.cookie());
    assert_eq!(browser.get(&app.router, "/keys").await.body, "n,user");
    assert_eq!(old.clone().get(&app.router, "/keys").await.body, "");
    assert_eq!(app.store.live().len(), 1);
}

#[tokio::test]
async fn a_rotation_takes_concurrent_edits_along() {
    let app = app(routes());
    let browser = with_session(&app).await;
    let gate = Arc::new(tokio::sync::Notify::new());
    app.store.fault(Update, Fault::Wait(Arc::clone(&gate)));
    let rotation = tokio::spawn(send(&app.router, browser.request("/login")));
    while app.store.calls().last() != Some(&Update) {
        tokio::task::yield_now().await;
    }
    assert_eq!(browser.clone().get(&app.router, "/add").await.body, "2");
    app.store.calls();
    gate.notify_one();
    let answer = rotation.await.unwrap();
    assert_eq!(app.store.calls(), [Load, Update, Update]);
    let mut browser = browser;
    browser.take(&answer);
    assert_eq!(browser.get(&app.router, "/keys").await.body, "n,user");
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(2)");
    assert_eq!(app.store.live().len(), 1);
}

#[tokio::test]
async fn a_rotation_that_comes_too_late_leaves_nothing() {
    let app = app(routes());
    let browser = with_session(&app).await;
    let gate = Arc::new(tokio::sync::Notify::new());
    app.store.fault(Update, Fault::Wait(Arc::clone(&gate)));
    let rotation = tokio::spawn(send(&app.router, browser.request("/login")));
    while app.store.calls().last() != Some(&Update) {
        tokio::task::yield_now().await;
    }
    assert!(
        browser
            .clone()
            .get(&app.router, "/logout")
            .await
            .removes_cookie()
    );
    app.store.calls();
    gate.notify_one();
    let answer = rotation.await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.sets_no_cookie());
    assert_eq!(app.store.calls(), [Load, Delete]);
    assert_eq!(app.store.live(), []);
}

#[tokio::test]
async fn a_logout_follows_a_rotation_that_it_did_not_see() {
    let app = app(routes());
    let old = with_session(&app).await;
    let mut rotated = old.clone();
    rotated.get(&app.router, "/login").await;
    rotated.get(&app.router, "/login").await;
    app.store.calls();
    let answer = old.clone().get(&app.router, "/logout").await;
    assert!(answer.removes_cookie());
    assert_eq!(app.store.calls(), [Load, Load, Load, Load, Update]);
    assert_eq!(app.store.live(), []);
    assert_eq!(rotated.get(&app.router, "/keys").await.body, "");
}

#[tokio::test]
async fn an_ambiguous_tombstone_is_a_503_with_the_new_cookie() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    // One failure is settled by looking again; a second is not.
    let failure = Fault::Fail(StoreErrorKind::Timeout);
    app.store.fault(Update, failure.clone());
    app.store.fault(Update, failure);
    let answer = browser.get(&app.router, "/login").await;
    assert_eq!(answer.status, 503);
    answer.set_value();
    assert_eq!(app.store.calls(), [Load, Create, Update, Load, Update]);
    assert_eq!(browser.get(&app.router, "/keys").await.body, "n,user");
}

#[tokio::test]
async fn a_tombstone_that_arrived_is_recognised() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    app.store
        .fault(Update, Fault::FailAfter(StoreErrorKind::Timeout));
    let answer = browser.get(&app.router, "/login").await;
    assert_eq!(answer.status, 200);
    answer.set_value();
    assert_eq!(browser.get(&app.router, "/keys").await.body, "n,user");
    assert_eq!(app.store.live().len(), 1);
}

#[tokio::test]
async fn under_a_tombstone_only_a_login_creates() {
    let app = app(routes());
    let old = with_session(&app).await;
    old.clone().get(&app.router, "/logout").await;
    app.store.calls();
    for path in ["/read", "/add", "/rotate", "/untouched"] {
        let answer = old.clone().get(&app.router, path).await;
        assert!(answer.sets_no_cookie(), "{path}");
    }
    assert_eq!(app.store.live(), []);
    app.store.calls();
    let mut browser = old;
    let answer = browser.get(&app.router, "/login").await;
    assert_eq!(app.store.calls(), [Load, Create]);
    answer.set_value();
    assert_eq!(browser.get(&app.router, "/keys").await.body, "user");
}

#[tokio::test]
async fn an_unknown_cookie_is_neither_adopted_nor_removed() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    app.store.records().clear();
    let before = browser.cookie();
    assert!(browser.get(&app.router, "/read").await.sets_no_cookie());
    assert_ne!(browser.get(&app.router, "/add").await.set_value(), before);
}

#[tokio::test]
async fn a_server_error_rolls_back() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    for what in ["add", "rotate"] {
        let answer = browser
            .get(&app.router, &format!("/status/500/{what}"))
            .await;
        assert_eq!(app.store.calls(), [Load]);
        assert!(answer.sets_no_cookie());
    }
    let answer = Browser::default().get(&app.router, "/status/500/add").await;
    assert!(answer.sets_no_cookie());
    assert_eq!(app.store.calls(), []);
    for status in [400, 401, 404, 499] {
        browser
            .get(&app.router, &format!("/status/{status}/add"))
            .await;
        assert_eq!(app.store.calls(), [Load, Update]);
    }
}

#[tokio::test]
async fn a_server_error_can_be_made_to_commit() {
    let config = SessionConfig::default().with_server_errors(session_layer::ServerErrors::Commit);
    let app = app_with(routes(), config);
    let mut browser = with_session(&app).await;
    browser.get(&app.router, "/status/500/add").await;
    assert_eq!(app.store.calls(), [Load, Update]);
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(2)");
}

#[tokio::test]
async fn what_was_saved_stands_after_a_server_error() {
    let app = app(routes());
    let mut browser = Browser::default();
    let answer = browser.get(&app.router, "/status/500/save").await;
    assert_eq!(answer.status, 500);
    answer.set_value();
    assert_eq!(app.store.calls(), [Create]);
    assert_eq!(browser.get(&app.router, "/keys").await.body, "saved");
}

#[tokio::test]
async fn a_store_that_is_down_at_load_is_a_503_and_nothing_is_overwritten() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    for fault in [
        StoreErrorKind::Unavailable,
        StoreErrorKind::Timeout,
        StoreErrorKind::Other,
    ] {
        app.store.fault(Load, Fault::Fail(fault));
        let answer = browser.get(&app.router, "/add").await;
        assert_eq!(answer.status, 503);
        assert!(answer.sets_no_cookie());
        assert!(!answer.body.is_empty() && answer.body.len() < 100);
        assert_eq!(answer.vary(), ["Cookie"]);
        assert_eq!(app.store.calls(), [Load]);
    }
    app.store
        .fault(Load, Fault::Fail(StoreErrorKind::Unavailable));
    assert_eq!(browser.get(&app.router, "/option").await.status, 503);
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(1)");
    app.store.calls();
    app.store
        .fault(Load, Fault::Fail(StoreErrorKind::Unavailable));
    assert_eq!(browser.get(&app.router, "/untouched").await.status, 200);
}

#[tokio::test]
async fn a_store_that_is_down_at_commit_is_an_empty_503_without_cookie() {
    let app = app(routes());
    let mut browser = Browser::default();
    app.store
        .fault(Create, Fault::Fail(StoreErrorKind::Unavailable));
    let answer = browser.get(&app.router, "/add").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (503, ""));
    assert!(answer.sets_no_cookie());
    let mut browser = with_session(&app).await;
    for fault in [
        Fault::Fail(StoreErrorKind::Unavailable),
        Fault::FailAfter(StoreErrorKind::Timeout),
    ] {
        app.store.fault(Update, fault);
        let answer = browser.get(&app.router, "/add").await;
        assert_eq!(answer.status, 503);
        assert!(answer.sets_no_cookie());
        assert_eq!(app.store.calls(), [Load, Update]);
    }
    assert_eq!(
        browser.get(&app.router, "/read").await.body,
        "Some(2)",
        "the second had arrived"
    );
}

#[tokio::test]
async fn the_error_response_is_the_applications() {
    let app = app(routes());
    let layer = app
        .layer
        .clone()
        .with_error_response(|error: &SessionError| {
            http::Response::builder()
                .status(error.status())
                .body(axum::body::Body::from(format!("sorry: {error}")))
                .unwrap()
        });
    let router = routes().layer(layer).with_state(());
    app.store
        .fault(Create, Fault::Fail(StoreErrorKind::Unavailable));
    let answer = Browser::default().get(&router, "/add").await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_str()),
        (503, "sorry: session store unavailable")
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_its_timeout() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    for (verb, path) in [(Load, "/read"), (Update, "/add")] {
        app.store.fault(verb, Fault::Hang);
        let start = tokio::time::Instant::now();
        assert_eq!(browser.get(&app.router, path).await.status, 503);
        assert_eq!(start.elapsed().as_millis() / 10, 200, "{path}");
    }
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(1)");
}

#[tokio::test(start_paused = true)]
async fn the_commit_deadline_counts_from_the_first_attempt() {
    let limit = Duration::from_secs(3);
    let config = SessionConfig::default().with_commit_timeout(limit);
    let app = app_with(routes(), config);
    let browser = with_session(&app).await;
    let gate = Arc::new(tokio::sync::Notify::new());
    let conflict = Fault::First(Arc::new(support::SpyStore::rewrite_all));
    let slow = Fault::WaitThen(Arc::clone(&gate), Box::new(conflict));
    app.store.fault(Update, slow);
    let start = tokio::time::Instant::now();
    let answer = tokio::spawn(send(&app.router, browser.request("/add")));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(app.store.calls(), [Load, Update]);
    app.store.fault(Load, Fault::Hang);
    gate.notify_one();
    assert_eq!(answer.await.unwrap().status, 503);
    assert_eq!(app.store.calls(), [Load]);
    let took = start.elapsed();
    assert!(took < limit + Duration::from_millis(100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_that_never_ends_is_a_503_at_the_deadline() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    for _ in 0..100_000 {
        app.store.fault(
            Update,
            Fault::First(Arc::new(|store| {
                for entry in store.records().values_mut() {
                    entry.revision = session_layer::Revision::generate();
                }
            })),
        );
    }
    let limit = Duration::from_millis(30);
    for _ in 0..100_000 {
        app.store.fault(Load, Fault::First(Arc::new(|_| ())));
    }
    let config = SessionConfig::default().with_commit_timeout(limit);
    let layer =
        session_layer::SessionLayer::with_config(app.store.clone(), support::keys(), config)
            .unwrap();
    let clock = app.clock.clone();
    let router = routes()
        .layer(layer.with_clock(move || clock.now()))
        .with_state(());
    tokio::time::resume();
    let answer = browser.get(&router, "/add").await;
    assert_eq!(answer.status, 503);
    assert!(answer.sets_no_cookie());
    assert_eq!(browser.get(&router, "/read").await.body, "Some(1)");
}

#[tokio::test]
async fn a_record_that_is_no_session_counts_as_absent() {
    let app = app(routes());
    for garbage in [
        &b""[..],
        b"[1]",
        b"\x81",
        b"{\"a\":",
        b"\xdf\xff\xff\xff\xff",
        b"\x80\x04\x95pickle",
    ] {
        let mut browser = with_session(&app).await;
        for entry in app.store.records().values_mut() {
            entry.payload = garbage.to_vec();
        }
        let answer = browser.get(&app.router, "/read").await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.as_str()),
            (200, "None")
        );
        assert!(answer.sets_no_cookie());
        let before = browser.cookie();
        assert_ne!(browser.get(&app.router, "/add").await.set_value(), before);
    }
    app.store.fault(Load, Fault::Fail(StoreErrorKind::Corrupt));
    let mut browser = with_session(&app).await;
    assert_eq!(browser.get(&app.router, "/read").await.status, 200);
}

#[tokio::test]
async fn concurrent_extractors_share_one_load() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let answered = Arc::clone(&gate);
    let router = Router::new().route(
        "/",
        get(|a: LazySession, b: LazySession| async move {
            let answered = async { answered.notify_one() };
            let (a, b, ()) = tokio::join!(a.load(), b.load(), answered);
            a.unwrap().insert("from a", 1).unwrap();
            assert!(b.unwrap().contains_key("from a"));
        }),
    );
    let app = app(router.merge(routes()));
    let mut browser = with_session(&app).await;
    app.store.fault(Load, Fault::Wait(gate));
    browser.get(&app.router, "/").await;
    assert_eq!(app.store.calls(), [Load, Update]);
}

#[tokio::test]
async fn nested_layers_of_one_cookie_commit_once() {
    let plain = app(routes());
    let router = plain
        .router
        .clone()
        .layer(plain.layer.clone())
        .with_state(());
    let mut browser = Browser::default();
    let answer = browser.get(&router, "/add").await;
    assert_eq!(plain.store.calls(), [Create]);
    answer.set_value();
    assert_eq!(answer.vary(), ["Cookie"]);
    assert_eq!(browser.get(&router, "/add").await.body, "2");
}

#[tokio::test]
async fn a_route_without_the_layer_says_so() {
    let answer = Browser::default().get(&routes(), "/read").await;
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("SessionLayer"), "{}", answer.body);
}

#[tokio::test]
async fn a_lifetime_of_its_own_is_kept_and_told_to_the_browser() {
    let app = app(routes());
    let mut browser = with_session(&app).await;
    let answer: Answer = browser.get(&app.router, "/forever").await;
    assert_eq!(app.store.calls(), [Load, Update]);
    assert_eq!(
        answer.cookies()[0].max_age(),
        Some(cookie::time::Duration::seconds(60))
    );
    assert!(
        browser.get(&app.router, "/forever").await.sets_no_cookie(),
        "no change"
    );
    app.clock.advance(Duration::from_secs(50));
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(1)");
    app.clock.advance(Duration::from_secs(50));
    assert_eq!(
        browser.get(&app.router, "/read").await.body,
        "Some(1)",
        "it was renewed"
    );
    app.clock.advance(Duration::from_secs(61));
    assert_eq!(browser.get(&app.router, "/read").await.body, "None");
}
