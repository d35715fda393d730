//! A logout against everything slow, in every order, through the whole layer, on every store that
//! keeps something.
//!
//! As in `interleavings`, one store call at a time is let through, in all orders; but here each
//! request is handled by an application of its own, and the stores are real.

#[path = "support/backends.rs"]
mod backends;
#[path = "support/gates.rs"]
mod gates;
mod support;

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use backends::ALL;
use gates::{in_order, next_schedule};
use session_layer::{AnyStore, Session, SessionConfig, SessionLayer, SessionStore};
use support::Browser;

fn router(store: impl SessionStore) -> Router {
    // Every request is due for a touch, and for its cookie to be sent again.
    let minute = Duration::from_secs(60);
    let config = SessionConfig::default()
        .with_refresh_share(0.0)
        .with_store_timeout(minute)
        .with_commit_timeout(minute);
    Router::new()
        .route(
            "/touch",
            get(|session: Session| async move { session.contains_key("n").to_string() }),
        )
        .route(
            "/write",
            get(|session: Session| async move {
                session
                    .update("n", |n: Option<u64>| n.unwrap_or(0) + 1)
                    .map(drop)
            }),
        )
        .route(
            "/rotate",
            get(|session: Session| async move { session.cycle_id() }),
        )
        .route(
            "/login",
            get(|session: Session| async move {
                session.cycle_id();
                session.insert("user", "ada")
            }),
        )
        .route(
            "/logout",
            get(|session: Session| async move { session.flush() }),
        )
        .layer(SessionLayer::with_config(store, support::keys(), config).unwrap())
        .with_state(())
}

/// Whether any of these cookies leads to a session.
async fn leads_somewhere(store: &AnyStore, cookies: &[String]) -> bool {
    let router = router(store.clone());
    for cookie in cookies {
        if Browser::with_cookie(cookie)
            .get(&router, "/touch")
            .await
            .body
            != "false"
        {
            return true;
        }
    }
    false
}

/// All orders of a logout and another request that came with the same cookie.
async fn logout_against(other: &'static str) {
    for backend in ALL {
        let place = backend.new_place().await;
        let mut schedule = Some(Vec::new());
        let mut orders = 0;
        while let Some(at) = schedule {
            let mut browser = Browser::default();
            browser.get(&router(place.store.clone()), "/write").await;
            let mut cookies = vec![browser.cookie()];
            let (answers, choices) = in_order(
                &place.store,
                router,
                &[(&browser, "/logout"), (&browser, other)],
                &at,
            )
            .await;
            assert!(
                answers[0].removes_cookie(),
                "{backend:?} {at:?}: {answers:?}"
            );
            assert!(
                answers.iter().all(|answer| answer.status == 200),
                "{backend:?} {at:?}"
            );
            if !answers[1].sets_no_cookie() {
                cookies.push(answers[1].set_value());
            }
            // A login is a new session of its own; what came before it is gone.
            if other == "/login" && cookies.len() == 2 {
                let new = Browser::with_cookie(cookies.pop().unwrap());
                let shown = new
                    .clone()
                    .get(&router(place.store.clone()), "/touch")
                    .await
                    .body;
                assert_eq!(
                    shown, "false",
                    "{backend:?} {at:?}: n was the old session's"
                );
            }
            // Nor does whoever comes later with one of these cookies bring the session back.
            for cookie in &cookies {
                let later = router(place.store.clone());
                Browser::with_cookie(cookie).get(&later, "/write").await;
            }
            assert!(
                !leads_somewhere(&place.store, &cookies).await,
                "{backend:?} {at:?}"
            );
            schedule = next_schedule(&choices);
            orders += 1;
        }
        assert!(orders > 4, "{backend:?}: {orders}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_is_final_against_a_slow_writer() {
    logout_against("/write").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_is_final_against_a_slow_toucher() {
    logout_against("/touch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_is_final_against_a_slow_rotator() {
    logout_against("/rotate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_is_final_against_a_login() {
    logout_against("/login").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_is_final_after_rotations_that_it_did_not_see() {
    for backend in ALL {
        let place = backend.new_place().await;
        let router = router(place.store.clone());
        let mut browser = Browser::default();
        browser.get(&router, "/write").await;
        let mut cookies = vec![browser.cookie()];
        for _ in 0..3 {
            browser.get(&router, "/rotate").await;
            cookies.push(browser.cookie());
        }
        for first in 0..cookies.len() {
            let answer = Browser::with_cookie(&cookies[first])
                .get(&router, "/logout")
                .await;
            assert!(answer.removes_cookie(), "{backend:?}");
            assert!(
                !leads_somewhere(&place.store, &cookies).await,
                "{backend:?}"
            );
        }
    }
}
