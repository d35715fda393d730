//! Rotations that something goes wrong with, or that meet other requests.

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use session_layer::{Format, Session, SessionConfig, StoreErrorKind};
use support::fixture::{fixture, fixture_with, foreign_write};
use support::{Fault, send};
use tokio::sync::Notify;

use support::Verb::{Create, Delete, Load, Update};

#[tokio::test]
async fn a_tombstone_that_may_have_arrived_keeps_the_new_session_though_the_store_went_down() {
    for arrived in [true, false] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        let store = &fixture.app.store;
        store.fault(
            Update,
            if arrived {
                Fault::FailAfter(StoreErrorKind::Timeout)
            } else {
                Fault::Fail(StoreErrorKind::Timeout)
            },
        );
        // The request's own load, and the look at what became of the tombstone.
        store.fault(Load, Fault::First(Arc::new(|_| ())));
        store.fault(Load, Fault::Fail(StoreErrorKind::Unavailable));
        let answer = browser.get(&fixture.app.router, "/login").await;
        assert_eq!(answer.status, 503);
        answer.set_value();
        assert_eq!(fixture.get(&browser, "/keys").await, "n,user");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_without_an_answer_leaves_the_browser_with_the_new_session() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    fixture.app.store.fault(Update, Fault::Hang);
    let answer = browser.get(&fixture.app.router, "/login").await;
    assert_eq!(answer.status, 503);
    answer.set_value();
    assert_eq!(fixture.get(&browser, "/keys").await, "n,user");
}

#[tokio::test]
async fn a_rotation_that_surely_failed_leaves_no_second_session() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let store = &fixture.app.store;
    store.fault(Update, foreign_write());
    store.fault(Load, Fault::First(Arc::new(|_| ())));
    store.fault(Load, Fault::Fail(StoreErrorKind::Unavailable));
    let answer = browser.get(&fixture.app.router, "/login").await;
    assert_eq!(answer.status, 503);
    assert!(answer.sets_no_cookie());
    assert_eq!(store.calls(), [Load, Create, Update, Load, Delete]);
    assert_eq!(store.live().len(), 1);
    assert_eq!(fixture.get(&browser, "/keys").await, "n");
}

#[tokio::test]
async fn a_lost_tombstone_is_forgotten_once_the_old_session_has_changed() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let store = &fixture.app.store;
    let failure = Fault::Fail(StoreErrorKind::Timeout);
    // Of the tombstone, and of bringing the new record up to date.
    store.fault(Update, failure.clone());
    store.fault(Update, failure);
    store.on_next(Update, {
        let store = store.clone();
        move || store.rewrite_all()
    });
    let answer = browser.get(&fixture.app.router, "/login").await;
    assert_eq!(answer.status, 503);
    assert!(answer.sets_no_cookie());
    assert_eq!(store.calls(), [Load, Create, Update, Load, Update, Delete]);
    assert_eq!(fixture.get(&browser, "/keys").await, "n");
}

#[tokio::test]
async fn a_lost_tombstone_casts_no_doubt_on_a_later_one() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let store = &fixture.app.store;
    let old = store.live()[0];
    let rewrite = move |store: &support::SpyStore| {
        let revision = session_layer::Revision::generate();
        store.records().get_mut(&old).unwrap().revision = revision;
    };
    store.fault(Update, Fault::Fail(StoreErrorKind::Timeout));
    store.on_next(Update, {
        let store = store.clone();
        move || rewrite(&store)
    });
    // The new record is brought up to date; then there is another change, and the store goes down.
    store.fault(Update, Fault::First(Arc::new(|_| ())));
    store.fault(Update, Fault::First(Arc::new(rewrite)));
    for _ in 0..2 {
        store.fault(Load, Fault::First(Arc::new(|_| ())));
    }
    store.fault(Load, Fault::Fail(StoreErrorKind::Unavailable));
    let answer = browser.get(&fixture.app.router, "/login").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        store.calls(),
        [Load, Create, Update, Load, Update, Update, Load, Delete]
    );
    assert!(answer.sets_no_cookie());
    assert_eq!(store.live(), [old]);
}

#[tokio::test]
async fn a_rotation_of_data_that_was_cleared_meanwhile_is_dropped() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let gate = Arc::new(Notify::new());
    fixture
        .app
        .store
        .fault(Update, Fault::Wait(Arc::clone(&gate)));
    let rotation = tokio::spawn(send(&fixture.app.router, browser.request("/login")));
    fixture.until_called(Update).await;
    browser.get(&fixture.app.router, "/keep").await;
    let other = fixture.take_kept();
    other.clear();
    other.insert("other", true).unwrap();
    other.save().await.unwrap();
    gate.notify_one();
    let answer = rotation.await.unwrap();
    assert!(answer.sets_no_cookie());
    assert_eq!(fixture.app.store.live().len(), 1);
    assert_eq!(fixture.get(&browser, "/keys").await, "other");
}

#[tokio::test]
async fn a_rotation_takes_a_concurrent_change_of_the_lifetime_along() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let gate = Arc::new(Notify::new());
    fixture
        .app
        .store
        .fault(Update, Fault::Wait(Arc::clone(&gate)));
    let rotation = tokio::spawn(send(&fixture.app.router, browser.request("/login")));
    fixture.until_called(Update).await;
    browser.clone().get(&fixture.app.router, "/short").await;
    gate.notify_one();
    let answer = rotation.await.unwrap();
    assert_eq!(
        answer.cookies()[0].max_age(),
        Some(cookie::time::Duration::seconds(60))
    );
    let mut browser = browser;
    browser.take(&answer);
    fixture.app.clock.advance(Duration::from_secs(61));
    assert_eq!(fixture.get(&browser, "/keys").await, "");
}

#[tokio::test]
async fn a_rotation_that_could_not_be_saved_is_made_up_for() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let old = browser.clone();
    let store = fixture.app.store.clone();
    let router = Router::new().route(
        "/",
        get(move |session: Session| async move {
            session.cycle_id();
            store.fault(Create, Fault::Fail(StoreErrorKind::Unavailable));
            session.save().await.unwrap_err();
        }),
    );
    let router = router.layer(fixture.app.layer.clone()).with_state(());
    browser.get(&router, "/").await.set_value();
    assert_eq!(fixture.get(&browser, "/keys").await, "n");
    assert_eq!(fixture.get(&old, "/keys").await, "");
}

#[tokio::test]
async fn a_rotation_begins_the_absolute_timeout_anew() {
    let hour = Duration::from_secs(3600);
    let config = SessionConfig::default()
        .with_idle_timeout(hour)
        .with_absolute_timeout(Some(hour));
    let fixture = fixture_with(config);
    let mut browser = fixture.browser().await;
    for _ in 0..3 {
        fixture.app.clock.advance(hour * 2 / 3);
        browser.get(&fixture.app.router, "/login").await.set_value();
    }
    fixture.app.clock.advance(hour * 2 / 3);
    browser.get(&fixture.app.router, "/add").await;
    assert_eq!(fixture.get(&browser, "/keys").await, "n,user");
    fixture.app.clock.advance(hour / 2);
    assert_eq!(fixture.get(&browser, "/keys").await, "");
}

#[tokio::test]
async fn a_tombstone_has_the_format_of_its_session() {
    for format in [Format::Json, Format::MessagePack] {
        let fixture = fixture_with(SessionConfig::default().with_format(format));
        let mut browser = fixture.browser().await;
        browser.get(&fixture.app.router, "/keep").await;
        let key = fixture.take_kept().key().unwrap();
        fixture.app.layer.sessions().end(&key).await.unwrap();
        let json = fixture.app.store.records()[&key].payload.starts_with(b"{");
        assert_eq!(json, format == Format::Json);
        assert_eq!(fixture.get(&browser, "/keys").await, "");
    }
}
