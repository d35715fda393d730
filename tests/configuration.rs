//! What settings do to requests.

mod support;

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use session_layer::{Session, SessionConfig, SessionSettings};
use support::{Browser, KEY, Verb, app_with, send};
use tower::ServiceExt;

use Verb::{Create, Load, Touch, Update};

fn routes() -> Router {
    let add = |session: Session| async move {
        session
            .update("n", |n: Option<u64>| n.unwrap_or(0) + 1)
            .map(|n| n.to_string())
    };
    let read = |session: Session| async move { format!("{:?}", session.get::<u64>("n").unwrap()) };
    Router::new()
        .route("/add", get(add))
        .route("/read", get(read))
}

fn config(pairs: &[(&str, &str)]) -> SessionConfig {
    let base = [("SECRET_KEY", KEY), ("SESSION_STORE", "null://")];
    SessionSettings::from_pairs(base.iter().chain(pairs).copied())
        .unwrap()
        .config()
        .clone()
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test]
async fn refreshing_each_request_touches_and_never_rewrites() {
    let app = app_with(
        routes(),
        config(&[("SESSION_REFRESH_EACH_REQUEST", "true")]),
    );
    let mut browser = Browser::default();
    browser.get(&app.router, "/add").await;
    assert_eq!(app.store.calls(), [Create]);
    for _ in 0..3 {
        let answer = browser.get(&app.router, "/read").await;
        assert_eq!(app.store.calls(), [Load, Touch]);
        assert!(!answer.sets_no_cookie());
    }
}

#[tokio::test]
async fn without_refreshing_only_a_change_renews_the_session_and_its_cookie() {
    let app = app_with(
        routes(),
        config(&[
            ("SESSION_REFRESH_EACH_REQUEST", "false"),
            ("PERMANENT_SESSION_LIFETIME", "10days"),
        ]),
    );
    let mut browser = Browser::default();
    let first = browser.get(&app.router, "/add").await;
    assert_eq!(app.store.calls(), [Create]);
    app.clock.advance(9 * DAY);
    let read = browser.get(&app.router, "/read").await;
    assert_eq!(read.body, "Some(1)");
    assert!(read.sets_no_cookie());
    assert_eq!(app.store.calls(), [Load]);
    // Right after a read: the cookie must not be left with the day that the session had.
    let added = browser.get(&app.router, "/add").await;
    assert_eq!(app.store.calls(), [Load, Update]);
    let max_age = added.cookies()[0].max_age();
    assert_eq!(max_age, first.cookies()[0].max_age());
    app.clock.advance(9 * DAY);
    assert_eq!(browser.get(&app.router, "/read").await.body, "Some(2)");
    app.clock.advance(2 * DAY);
    assert_eq!(browser.get(&app.router, "/read").await.body, "None");
}

#[cfg(feature = "memory")]
#[tokio::test]
async fn a_layer_from_settings_serves_requests() {
    let settings = SessionSettings::from_pairs([
        ("SECRET_KEY", KEY),
        ("SESSION_STORE", "memory://"),
        ("SESSION_COOKIE_NAME", "sid"),
        ("SESSION_COOKIE_SECURE", "False"),
        ("SESSION_COOKIE_SAMESITE", "Strict"),
        ("SESSION_COOKIE_DOMAIN", "example.com"),
        ("SESSION_COOKIE_PATH", "/"),
        ("PERMANENT_SESSION_LIFETIME", "90"),
        ("SESSION_CLEANUP_N_REQUESTS", "1"),
    ])
    .unwrap();
    let router = routes().layer(settings.layer().await.unwrap());
    let mut browser = Browser::default();
    let answer = browser.get(&router, "/add").await;
    let header = answer.headers["set-cookie"].to_str().unwrap();
    let attributes = "; Max-Age=90; Path=/; Domain=example.com; HttpOnly; SameSite=Strict";
    assert!(
        header.starts_with("sid=1") && header.ends_with(attributes),
        "{header}"
    );
    assert_eq!(browser.get(&router, "/add").await.body, "2");
    // The key ring of another process reads the same cookie.
    let other = SessionSettings::from_pairs([
        ("SECRET_KEY", "another key, newer than the one before"),
        ("SECRET_KEY_FALLBACKS", &format!("[\"{KEY}\"]")),
        ("SESSION_STORE", "memory://"),
    ]);
    assert_eq!(
        format!("{:?}", other.unwrap().keys().unwrap()),
        "SigningKeys(2 REDACTED)"
    );
    let request = browser.request("/read");
    assert_eq!(send(&router, request).await.body, "Some(2)");
    let plain = router.oneshot(Browser::default().request("/read")).await;
    assert!(!plain.unwrap().headers().contains_key("set-cookie"));
}
