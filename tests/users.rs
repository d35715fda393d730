//! `login`, and what there is to know and to end of a user's sessions, call by call of the store.

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use bytes::Bytes;
use http::StatusCode;
use session_layer::store::Record;
use session_layer::{
    Format, Session, SessionConfig, SessionError, SessionErrorKind, SessionInfo, SessionKey,
    SessionLayer, StoreErrorKind,
};
use support::{App, Browser, Clock, Fault, SpyStore, Verb, app, app_with, send};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn routes() -> Router {
    Router::new()
        .route(
            "/cart/{what}",
            get(|session: Session, Path(what): Path<String>| async move {
                session.insert("cart", what)
            }),
        )
        .route("/login/{user}", get(login))
        .route(
            "/login-and-fail/{user}",
            get(|session: Session, Path(user): Path<String>| async move {
                session.login(&user).unwrap();
                StatusCode::INTERNAL_SERVER_ERROR
            }),
        )
        .route(
            "/login-amid-edits/{user}",
            get(|session: Session, Path(user): Path<String>| async move {
                session.insert("before", true)?;
                session.login(&user)?;
                session.insert("after", true)
            }),
        )
        .route("/show", get(show))
        .route(
            "/read",
            get(|session: Session| async move { session.len().to_string() }),
        )
        .route(
            "/rotate",
            get(|session: Session| async move { session.cycle_id() }),
        )
        .route(
            "/clear",
            get(|session: Session| async move { session.clear() }),
        )
        .route(
            "/logout",
            get(|session: Session| async move { session.flush() }),
        )
        .route(
            "/login-and-clear/{user}",
            get(|session: Session, Path(user): Path<String>| async move {
                session.login(&user).unwrap();
                session.clear();
                assert_eq!(session.user(), None);
            }),
        )
        .route(
            "/remember",
            get(|session: Session| async move { session.set_lifetime(100 * DAY) }),
        )
        .route("/mine", get(mine))
}

async fn login(session: Session, Path(user): Path<String>) -> Result<(), SessionError> {
    session.login(&user)?;
    assert_eq!(
        session.user().as_deref(),
        Some(&*user),
        "it is told at once"
    );
    Ok(())
}

/// The user and the keys, in order.
async fn show(session: Session) -> String {
    let mut keys = session.keys();
    keys.sort();
    format!(
        "{}: {}",
        session.user().as_deref().unwrap_or("nobody"),
        keys.join(" ")
    )
}

/// How many sessions the user has, and which of them is this one.
async fn mine(session: Session) -> Result<String, SessionError> {
    let all = session.of_same_user().await?;
    let current = all.iter().position(|session| session.is_current());
    for listed in &all {
        assert_eq!(listed.is_current(), Some(listed.key()) == session.key());
    }
    Ok(format!("{} {current:?}", all.len()))
}

async fn logged_in(app: &App, user: &str) -> Browser {
    let mut browser = Browser::default();
    let answer = browser.get(&app.router, &format!("/login/{user}")).await;
    assert_eq!(answer.status, 200);
    browser
}

async fn shown(app: &App, browser: &Browser) -> String {
    browser.clone().get(&app.router, "/show").await.body
}

/// The keys of the user's sessions, the newest login first.
async fn listed(app: &App, user: &str) -> Vec<SessionKey> {
    let sessions = app.layer.sessions().of_user(user).await.unwrap();
    sessions.iter().map(|session| session.key()).collect()
}

fn infos(store: &SpyStore) -> Vec<(SessionKey, SessionInfo)> {
    let records = store.records();
    let info = |payload: &[u8]| {
        let payload = Bytes::copy_from_slice(payload);
        SessionInfo::of(&Record::new(
            session_layer::Revision::generate(),
            payload,
            MINUTE,
        ))
    };
    let all = records
        .iter()
        .filter_map(|(key, entry)| Some((*key, info(&entry.payload)?)));
    all.collect()
}

/// The one list of a user's sessions in the store.
fn index(store: &SpyStore) -> SessionKey {
    let mut indexes = infos(store);
    indexes.retain(|(_, info)| info.is_user_index());
    assert_eq!(indexes.len(), 1, "{indexes:?}");
    indexes[0].0
}

/// How many sessions the list names, dead or alive.
fn length(store: &SpyStore) -> usize {
    let index = index(store);
    let payload = &store.records()[&index].payload;
    // Each key is a string of 43 bytes.
    payload
        .windows(2)
        .filter(|word| word == b"\xd9\x2b")
        .count()
}

#[tokio::test]
async fn a_login_keeps_the_data_and_gives_the_session_a_new_id() {
    let app = app(routes());
    let mut browser = Browser::default();
    browser.get(&app.router, "/cart/tea").await;
    let before = browser.clone();
    let answer = browser.get(&app.router, "/login/ada").await;
    assert_ne!(answer.set_value(), before.cookie());
    assert_eq!(shown(&app, &browser).await, "ada: cart");
    assert_eq!(
        shown(&app, &before).await,
        "nobody: ",
        "the old id is dead at once"
    );
    assert_eq!(app.store.live().len(), 1);
    // Once more is a new proof, and again a new id.
    let before = browser.clone();
    browser.get(&app.router, "/login/ada").await;
    assert_eq!(shown(&app, &browser).await, "ada: cart");
    assert_eq!(shown(&app, &before).await, "nobody: ");
}

#[tokio::test]
async fn the_time_of_the_login_is_kept_and_renewed_by_the_next() {
    let app = app(routes());
    let mut browser = logged_in(&app, "ada").await;
    let began = app.clock.now();
    app.clock.advance(MINUTE);
    browser.get(&app.router, "/rotate").await;
    let at = async |user| app.layer.sessions().of_user(user).await.unwrap()[0].clone();
    assert_eq!(at("ada").await.authenticated_at(), Some(began));
    assert_eq!(at("ada").await.created_at(), Some(app.clock.now()));
    app.clock.advance(MINUTE);
    browser.get(&app.router, "/login/ada").await;
    assert_eq!(at("ada").await.authenticated_at(), Some(app.clock.now()));
    let session = app
        .layer
        .sessions()
        .load(&at("ada").await.key())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(session.authenticated_at(), Some(app.clock.now()));
    assert_eq!(session.user().as_deref(), Some("ada"));
}

#[tokio::test]
async fn an_id_that_somebody_has_planted_leads_nowhere_after_the_login() {
    let here = app(routes());
    // One that was issued, signed with the same key, for another store ...
    let elsewhere = app(routes());
    let mut attacker = Browser::default();
    attacker.get(&elsewhere.router, "/cart/x").await;
    let mut victim = attacker.clone();
    victim.get(&here.router, "/login/ada").await;
    assert_ne!(victim.cookie(), attacker.cookie());
    assert_eq!(shown(&here, &attacker).await, "nobody: ");
    // ... and one that is alive here.
    attacker.get(&here.router, "/cart/x").await;
    let mut victim = attacker.clone();
    victim.get(&here.router, "/login/ada").await;
    assert_eq!(shown(&here, &victim).await, "ada: cart");
    assert_eq!(shown(&here, &attacker).await, "nobody: ");
    attacker.get(&here.router, "/cart/y").await;
    assert_eq!(shown(&here, &attacker).await, "nobody: ");
}

#[tokio::test]
async fn nothing_of_another_users_is_carried_over() {
    let app = app(routes());
    let mut browser = logged_in(&app, "ada").await;
    browser.get(&app.router, "/cart/tea").await;
    let before = browser.clone();
    let answer = browser.get(&app.router, "/login-amid-edits/bob").await;
    assert_eq!(answer.cookies().len(), 1);
    assert_eq!(shown(&app, &browser).await, "bob: after");
    assert_eq!(shown(&app, &before).await, "nobody: ");
    assert_eq!(listed(&app, "ada").await, []);
    assert_eq!(listed(&app, "bob").await.len(), 1);
    // Nor does whoever ends ada's sessions find the way to bob's.
    assert_eq!(app.layer.sessions().end_all_of("ada").await.unwrap(), 0);
    assert_eq!(shown(&app, &browser).await, "bob: after");
}

#[tokio::test]
async fn a_second_login_in_one_request_counts_for_the_second_user() {
    let router = routes().route(
        "/both",
        get(|session: Session| async move {
            session.login("ada")?;
            session.insert("of ada", true)?;
            session.login("bob")
        }),
    );
    let app = app(router);
    let mut browser = Browser::default();
    browser.get(&app.router, "/both").await;
    assert_eq!(shown(&app, &browser).await, "bob: ");
    assert_eq!(listed(&app, "ada").await, []);
}

#[tokio::test]
async fn a_server_error_drops_the_login() {
    let app = app(routes());
    let mut browser = Browser::default();
    browser.get(&app.router, "/cart/tea").await;
    app.store.calls();
    let answer = browser.get(&app.router, "/login-and-fail/ada").await;
    assert!(answer.sets_no_cookie());
    assert_eq!(app.store.calls(), [Verb::Load]);
    assert_eq!(shown(&app, &browser).await, "nobody: cart");
    let answer = Browser::default()
        .get(&app.router, "/login-and-fail/ada")
        .await;
    assert!(answer.sets_no_cookie());
    assert_eq!(app.store.records().len(), 1);
}

#[tokio::test]
async fn a_failed_login_over_another_users_session_has_ended_that_one() {
    let app = app(routes());
    let mut browser = logged_in(&app, "ada").await;
    let before = browser.clone();
    let answer = browser.get(&app.router, "/login-and-fail/bob").await;
    assert_eq!(answer.status, 500);
    assert!(answer.removes_cookie());
    assert_eq!(shown(&app, &before).await, "nobody: ");
    assert_eq!(app.store.live(), []);
    assert_eq!(listed(&app, "bob").await, []);
}

#[tokio::test]
async fn a_login_begins_a_session_where_there_is_none() {
    let app = app(routes());
    let browser = logged_in(&app, "ada").await;
    assert_eq!(shown(&app, &browser).await, "ada: ");
    assert_eq!(listed(&app, "ada").await.len(), 1);
    // Under a tombstone, too.
    let mut late = browser.clone();
    let mut browser = browser;
    browser.get(&app.router, "/logout").await;
    late.get(&app.router, "/login-amid-edits/ada").await;
    assert_eq!(shown(&app, &late).await, "ada: after before");
    assert_eq!(listed(&app, "ada").await, app.store.live());
}

#[tokio::test]
async fn a_login_of_a_session_that_ends_meanwhile_is_dropped_and_save_says_so() {
    let router = routes().route(
        "/login-and-save",
        get(|session: Session| async move {
            session.login("ada")?;
            session.save().await
        }),
    );
    let app = app(router);
    let mut browser = Browser::default();
    browser.get(&app.router, "/cart/tea").await;
    let rotated_away = |store: &SpyStore| {
        let key = store.live()[0];
        store.records().remove(&key);
    };
    app.store
        .fault(Verb::Create, Fault::First(Arc::new(rotated_away)));
    let answer = browser.get(&app.router, "/login-and-save").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.sets_no_cookie());
    assert_eq!(app.store.live(), []);
    assert_eq!(listed(&app, "ada").await, []);
}

#[tokio::test]
async fn clear_makes_the_session_nobodys() {
    let app = app(routes());
    let mut browser = logged_in(&app, "ada").await;
    browser.get(&app.router, "/cart/tea").await;
    browser.get(&app.router, "/clear").await;
    assert_eq!(shown(&app, &browser).await, "nobody: ");
    assert_eq!(listed(&app, "ada").await, []);
    // It is not ada's to end.
    let live = app.store.live();
    assert_eq!(live.len(), 1);
    assert_eq!(app.layer.sessions().end_all_of("ada").await.unwrap(), 0);
    assert_eq!(app.store.live(), live);
    // In the request of the login, too.
    for mut browser in [browser, Browser::default()] {
        browser.get(&app.router, "/login-and-clear/ada").await;
        assert_eq!(shown(&app, &browser).await, "nobody: ");
        assert_eq!(listed(&app, "ada").await, []);
    }
    // Bob may go on with it, and what leads from ada's key to his session is not followed.
    let mut clear_and_login = logged_in(&app, "ada").await;
    clear_and_login.get(&app.router, "/clear").await;
    clear_and_login.get(&app.router, "/login/bob").await;
    assert_eq!(app.layer.sessions().end_all_of("ada").await.unwrap(), 0);
    assert_eq!(shown(&app, &clear_and_login).await, "bob: ");
}

#[tokio::test]
async fn rotation_keeps_the_user_and_the_list() {
    let app = app(routes());
    let mut browser = logged_in(&app, "ada").await;
    let other = logged_in(&app, "ada").await;
    for _ in 0..20 {
        browser.get(&app.router, "/rotate").await;
        assert_eq!(shown(&app, &browser).await, "ada: ");
        assert_eq!(listed(&app, "ada").await.len(), 2);
    }
    // The newest login is still the other one's.
    let newest = listed(&app, "ada").await[0];
    let session = app.layer.sessions().load(&newest).await.unwrap().unwrap();
    assert_eq!(session.created_at(), Some(app.clock.now()));
    assert!(length(&app.store) <= 3, "{}", length(&app.store));
    assert_eq!(app.layer.sessions().end_all_of("ada").await.unwrap(), 2);
    assert_eq!(shown(&app, &browser).await, "nobody: ");
    assert_eq!(shown(&app, &other).await, "nobody: ");
}

#[tokio::test]
async fn a_login_costs_four_round_trips_and_two_looks() {
    use Verb::{Create, Load, Update};
    let app = app(routes());
    let calls = async |browser: &mut Browser, path: &str| {
        app.store.calls();
        assert_eq!(browser.get(&app.router, path).await.status, 200);
        app.store.calls()
    };
    let mut browser = Browser::default();
    browser.get(&app.router, "/cart/tea").await;
    // The request's own load; the new session; the list, which is new; the end of the old session.
    assert_eq!(
        calls(&mut browser, "/login/ada").await,
        [Load, Create, Load, Create, Update]
    );
    // A new session; the list, and a look at each of the others.
    assert_eq!(
        calls(&mut Browser::default(), "/login/ada").await,
        [Create, Load, Load, Update]
    );
    for _ in 0..5 {
        calls(&mut Browser::default(), "/login/ada").await;
    }
    assert_eq!(
        calls(&mut Browser::default(), "/login/ada").await,
        [Create, Load, Load, Load, Update]
    );
    assert_eq!(
        calls(&mut browser, "/rotate").await,
        [Load, Create, Load, Load, Load, Update, Update]
    );
    // Nothing else costs more than it would without a user.
    assert_eq!(calls(&mut browser, "/read").await, [Load]);
    assert_eq!(calls(&mut browser, "/cart/rice").await, [Load, Update]);
    app.clock.advance(10 * DAY);
    assert_eq!(calls(&mut browser, "/read").await, [Load, Verb::Touch]);
    assert_eq!(calls(&mut browser, "/clear").await, [Load, Update]);
    assert_eq!(calls(&mut browser, "/rotate").await, [Load, Create, Update]);
    let mut browser = logged_in(&app, "bob").await;
    assert_eq!(calls(&mut browser, "/logout").await, [Load, Update]);
}

#[tokio::test]
async fn the_list_names_the_sessions_with_their_times() {
    let app = app(routes());
    let sessions = app.layer.sessions();
    assert_eq!(sessions.of_user("ada").await.unwrap(), []);
    let old = logged_in(&app, "ada").await;
    let first = app.clock.now();
    app.clock.advance(10 * DAY);
    let mut new = logged_in(&app, "ada").await;
    let second = app.clock.now();
    logged_in(&app, "bob").await;
    let shown = sessions.of_user("ada").await.unwrap();
    let times: Vec<_> = shown
        .iter()
        .map(|session| {
            assert!(!session.is_current());
            (
                session.created_at(),
                session.authenticated_at(),
                session.last_seen(),
            )
        })
        .collect();
    let at = |time| (Some(time), Some(time), time);
    assert_eq!(times, [at(second), at(first)]);
    // Reading renews, so that it shows.
    app.clock.advance(DAY);
    send(&app.router, old.request("/read")).await;
    let shown = sessions.of_user("ada").await.unwrap();
    assert_eq!(shown[1].last_seen(), app.clock.now());
    assert_eq!(shown[0].last_seen(), second);
    assert_eq!(new.get(&app.router, "/mine").await.body, "2 Some(0)");
    assert_eq!(
        old.clone().get(&app.router, "/mine").await.body,
        "2 Some(1)"
    );
    assert_eq!(
        Browser::default().get(&app.router, "/mine").await.body,
        "0 None"
    );
    // No id is to be seen.
    let text = format!("{shown:?}");
    assert!(!text.contains(&new.cookie()[1..40]), "{text}");
}

#[tokio::test]
async fn what_a_session_was_last_used_is_never_before_it_began() {
    let hour = Duration::from_secs(3600);
    let config = SessionConfig::default()
        .with_idle_timeout(hour)
        .with_absolute_timeout(Some(2 * hour));
    let app = app_with(routes(), config);
    let mut browser = logged_in(&app, "ada").await;
    browser.get(&app.router, "/remember").await;
    let began = app.clock.now();
    let seen = async || app.layer.sessions().of_user("ada").await.unwrap()[0].last_seen();
    assert_eq!(seen().await, began);
    for _ in 0..5 {
        app.clock.advance(20 * MINUTE);
        send(&app.router, browser.request("/read")).await;
        assert!(seen().await >= began && seen().await <= app.clock.now());
    }
    app.clock.advance(20 * MINUTE);
    assert_eq!(app.layer.sessions().of_user("ada").await.unwrap(), []);
}

#[tokio::test]
async fn one_session_others_or_all_can_be_ended() {
    let app = app(routes());
    let sessions = app.layer.sessions();
    let mut ada = Vec::new();
    for _ in 0..4 {
        ada.push(logged_in(&app, "ada").await);
        app.clock.advance(MINUTE);
    }
    let bob = logged_in(&app, "bob").await;
    let alive = async || {
        let mut alive = Vec::new();
        for browser in &ada {
            alive.push(shown(&app, browser).await == "ada: ");
        }
        alive
    };
    let keys = listed(&app, "ada").await;
    sessions.end(&keys[0]).await.unwrap();
    assert_eq!(alive().await, [true, true, true, false]);
    assert_eq!(sessions.end_others_of("ada", &keys[2]).await.unwrap(), 2);
    assert_eq!(alive().await, [false, true, false, false]);
    assert_eq!(listed(&app, "ada").await, keys[2..3]);
    assert_eq!(sessions.end_all_of("ada").await.unwrap(), 1);
    assert_eq!(alive().await, [false; 4]);
    assert_eq!(sessions.end_all_of("ada").await.unwrap(), 0);
    assert_eq!(sessions.end_all_of("nobody").await.unwrap(), 0);
    assert_eq!(shown(&app, &bob).await, "bob: ");
    assert_eq!(length_of_lists(&app.store), 1, "ada's list is empty");
}

/// How many sessions all lists name together.
fn length_of_lists(store: &SpyStore) -> usize {
    let lists = infos(store)
        .into_iter()
        .filter(|(_, info)| info.is_user_index());
    let records = store.records();
    lists
        .map(|(key, _)| {
            let payload = &records[&key].payload;
            payload
                .windows(2)
                .filter(|word| word == b"\xd9\x2b")
                .count()
        })
        .sum()
}

#[tokio::test]
async fn the_session_to_be_kept_is_kept_by_its_old_key_too() {
    let app = app(routes());
    let mut keep = logged_in(&app, "ada").await;
    let old = listed(&app, "ada").await[0];
    keep.get(&app.router, "/rotate").await;
    let other = logged_in(&app, "ada").await;
    // By the key it had when the request read it ...
    let sessions = app.layer.sessions();
    assert_eq!(sessions.end_others_of("ada", &old).await.unwrap(), 1);
    assert_eq!(shown(&app, &keep).await, "ada: ");
    assert_eq!(shown(&app, &other).await, "nobody: ");
    // ... and by its own, although the old key may still be listed and leads there.
    keep.get(&app.router, "/rotate").await;
    let own = app.store.live()[0];
    assert_eq!(sessions.end_others_of("ada", &own).await.unwrap(), 0);
    assert_eq!(shown(&app, &keep).await, "ada: ");
}

#[tokio::test]
async fn a_users_list_is_no_session() {
    for format in [Format::MessagePack, Format::Json] {
        let app = app_with(routes(), SessionConfig::default().with_format(format));
        let browser = logged_in(&app, "ada-of-no-record").await;
        let index = index(&app.store);
        let sessions = app.layer.sessions();
        assert!(sessions.load(&index).await.unwrap().is_none());
        sessions.end(&index).await.unwrap();
        assert_eq!(listed(&app, "ada-of-no-record").await.len(), 1);
        assert_eq!(shown(&app, &browser).await, "ada-of-no-record: ");
        let payload = app.store.records()[&index].payload.clone();
        let text = String::from_utf8_lossy(&payload).into_owned();
        assert!(!text.contains("ada"), "{text}");
        assert_eq!(payload[0] == b'{', format == Format::Json);
        let lifetime = app.store.records()[&index]
            .expires
            .duration_since(app.clock.now());
        assert_eq!(lifetime.unwrap(), 400 * DAY);
    }
}

#[tokio::test]
async fn names_have_limits_and_every_name_within_them_comes_back() {
    let router = Router::new().route("/", get(names));
    let app = app(router);
    async fn names(session: Session) {
        for refused in ["", &"x".repeat(257)] {
            let error = session.login(refused).unwrap_err();
            assert_eq!(error.kind(), SessionErrorKind::Encode);
        }
        assert!(session.user().is_none() && !session.is_modified());
        for name in ["x", "a \"quoted\" \\ \u{1}\u{7f} żółć", &"x".repeat(256)] {
            session.login(name).unwrap();
            session.save().await.unwrap();
            assert_eq!(session.user().as_deref(), Some(name));
        }
    }
    assert_eq!(Browser::default().get(&app.router, "/").await.status, 200);
    let sessions = app.layer.sessions();
    let error = sessions.end_all_of("").await.unwrap_err();
    assert_eq!(error.kind(), SessionErrorKind::Encode);
    assert!(sessions.of_user(&"x".repeat(257)).await.is_err());
    assert_eq!(sessions.of_user(&"x".repeat(256)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_user_counts_for_the_size_of_a_session() {
    let router = Router::new().route(
        "/",
        get(async |session: Session| {
            session.insert("data", "x".repeat(700)).unwrap();
            let error = session.login(&"u".repeat(256)).unwrap_err();
            assert_eq!(error.kind(), SessionErrorKind::Encode);
            assert!(session.user().is_none());
            session.insert("data", "x".repeat(400)).unwrap();
            session.login(&"u".repeat(200)).unwrap();
            // Without the user it would do.
            assert!(session.insert("more", "x".repeat(250)).is_err());
            session.clear();
            session.insert("data", "x".repeat(400)).unwrap();
            session.insert("more", "x".repeat(250)).unwrap();
        }),
    );
    let app = app_with(router, SessionConfig::default().with_max_payload(1000));
    assert_eq!(Browser::default().get(&app.router, "/").await.status, 200);
}

/// What another user's session is followed by is as large as it will be in the format of new sessions.
#[tokio::test]
async fn a_user_counts_in_the_format_that_the_session_is_going_to_have() {
    let name = "\u{1}".repeat(250);
    let login = |name: &str| {
        let name = name.to_owned();
        get(async move |session: Session| session.login(&name))
    };
    let router = |name: &str| routes().route("/own", login(name));
    let config = SessionConfig::default().with_max_payload(1000);
    let before = app_with(router(&name), config.clone());
    let mut browser = logged_in(&before, "ada").await;
    let layer = SessionLayer::with_config(
        before.store.clone(),
        support::keys(),
        config.with_format(Format::Json),
    );
    let clock = before.clock.clone();
    let layer = layer.unwrap().with_clock(move || clock.now());
    let after = router(&name).layer(layer);
    let answer = browser.get(&after, "/own").await;
    assert_ne!(answer.status, 200, "it could not be read again");
    assert!(answer.sets_no_cookie());
    assert_eq!(shown(&before, &browser).await, "ada: ");
}

#[tokio::test]
async fn a_session_ends_400_days_after_its_login_however_much_it_is_used() {
    let app = app(routes());
    let mut browser = logged_in(&app, "ada").await;
    for day in 0..400 {
        assert_eq!(shown(&app, &browser).await, "ada: ", "{day}");
        browser
            .get(&app.router, if day % 90 == 0 { "/rotate" } else { "/read" })
            .await;
        app.clock.advance(DAY);
    }
    assert_eq!(shown(&app, &browser).await, "nobody: ");
    let anonymous = &mut Browser::default();
    anonymous.get(&app.router, "/cart/tea").await;
    for _ in 0..410 {
        app.clock.advance(DAY);
        anonymous.get(&app.router, "/read").await;
    }
    assert_eq!(shown(&app, anonymous).await, "nobody: cart");
}

#[tokio::test]
async fn beyond_the_limit_the_oldest_logins_end() {
    let app = app_with(routes(), SessionConfig::default().with_sessions_per_user(3));
    let mut browsers = Vec::new();
    for n in 0..8 {
        browsers.push(logged_in(&app, "ada").await);
        // The clock of one host is behind.
        if n % 2 == 0 {
            app.clock.advance(MINUTE);
        } else {
            app.clock.go_back(MINUTE / 2);
        }
        assert_eq!(listed(&app, "ada").await.len(), (n + 1).min(3));
    }
    for (n, browser) in browsers.iter().enumerate() {
        let expected = if n < 5 { "nobody: " } else { "ada: " };
        assert_eq!(shown(&app, browser).await, expected, "{n}");
    }
    // Renewing a login, or an id, pushes nobody out.
    for _ in 0..3 {
        browsers[6].get(&app.router, "/login/ada").await;
        browsers[5].get(&app.router, "/rotate").await;
        assert_eq!(listed(&app, "ada").await.len(), 3);
    }
    // It makes the login newer, though, and a rotation does not.
    logged_in(&app, "ada").await;
    assert_eq!(shown(&app, &browsers[5]).await, "nobody: ");
    assert_eq!(shown(&app, &browsers[6]).await, "ada: ");
    assert_eq!(shown(&app, &browsers[7]).await, "ada: ");
    logged_in(&app, "bob").await;
    assert_eq!(listed(&app, "ada").await.len(), 3);
}

#[tokio::test]
async fn dead_sessions_push_nobody_out_and_do_not_pile_up() {
    let app = app_with(
        routes(),
        SessionConfig::default().with_sessions_per_user(10),
    );
    let mut kept = Vec::new();
    for n in 0..200 {
        let mut browser = logged_in(&app, "ada").await;
        if kept.len() < 4 {
            kept.push(browser);
        } else if n % 2 == 0 {
            browser.get(&app.router, "/logout").await;
        } else {
            browser.get(&app.router, "/clear").await;
        }
        // Two looks find two of them, so that each login leaves less than it found.
        assert!(length(&app.store) <= 11, "{n}: {}", length(&app.store));
    }
    for browser in &kept {
        assert_eq!(shown(&app, browser).await, "ada: ");
    }
    assert_eq!(listed(&app, "ada").await.len(), 4);
    assert_eq!(length(&app.store), 4);
}

#[tokio::test]
async fn before_a_live_session_is_ended_all_dead_ones_are_forgotten() {
    let app = app_with(
        routes(),
        SessionConfig::default().with_sessions_per_user(20),
    );
    let mut browsers = Vec::new();
    for _ in 0..20 {
        browsers.push(logged_in(&app, "ada").await);
    }
    for browser in &mut browsers[2..] {
        browser.get(&app.router, "/logout").await;
    }
    let newest = logged_in(&app, "ada").await;
    for browser in [&browsers[0], &browsers[1], &newest] {
        assert_eq!(shown(&app, browser).await, "ada: ");
    }
    assert_eq!(length(&app.store), 3);
}

/// Between the listing of a login's session and the end of the old one, the old one changes, and all
/// sessions of the user are ended.
#[tokio::test]
async fn a_login_that_is_ended_before_it_is_done_is_dropped() {
    for gone in [false, true] {
        let app = app(routes());
        let mut browser = Browser::default();
        browser.get(&app.router, "/cart/tea").await;
        let old = app.store.live()[0];
        let store = app.store.clone();
        app.store.on_next(Verb::Update, move || {
            let mut live = store.live();
            live.retain(|key| *key != old);
            assert_eq!(live.len(), 1, "the new session");
            store.rewrite_all();
            if gone {
                store.records().remove(&live[0]);
            } else {
                let tombstone = br#"{"_meta":{"ended":true}}"#.to_vec();
                store.records().get_mut(&live[0]).unwrap().payload = tombstone;
            }
        });
        let answer = browser.get(&app.router, "/login/ada").await;
        assert_eq!(answer.status, 200, "{gone}");
        assert!(answer.sets_no_cookie(), "{gone}");
        assert_eq!(shown(&app, &browser).await, "nobody: cart", "{gone}");
        assert_eq!(listed(&app, "ada").await, [], "{gone}");
    }
}

/// A login with or without a session before it, whose user has so many sessions; the list cannot be
/// read, or be made, or be changed. `landed`: it can, but nobody says so.
async fn a_login_that_is_not_listed(fresh: bool, others: usize, verb: Verb, landed: bool) {
    let what = format!("{fresh} {verb:?} {landed}");
    let app = app(routes());
    for _ in 0..others {
        logged_in(&app, "ada").await;
    }
    let mut browser = Browser::default();
    if !fresh {
        browser.get(&app.router, "/cart/tea").await;
    }
    let live = app.store.live();
    let before = shown(&app, &browser).await;
    let kind = StoreErrorKind::Unavailable;
    let pass = |verb, count| {
        for _ in 0..count {
            app.store.fault(verb, Fault::First(Arc::new(|_| {})));
        }
    };
    let own_load = usize::from(!fresh);
    match verb {
        Verb::Load => pass(verb, own_load),
        Verb::Create => pass(verb, 1),
        _ => {}
    }
    if landed {
        app.store.fault(verb, Fault::FailAfter(kind));
        // It would be found there, if it could be looked for.
        pass(Verb::Load, own_load + 1 + others);
        app.store.fault(Verb::Load, Fault::Fail(kind));
    } else {
        // Once more is tried.
        app.store.fault(verb, Fault::Fail(kind));
        app.store.fault(verb, Fault::Fail(kind));
    }
    let answer = browser.get(&app.router, "/login/ada").await;
    assert_eq!(answer.status, 503, "{what}");
    assert!(answer.sets_no_cookie(), "{what}");
    app.store.clear_faults();
    let now = app.store.live();
    assert_eq!(now.len(), live.len(), "{what}: the new session is gone");
    assert!(
        now.iter().all(|key| live.contains(key)),
        "{what}: it is the new one that went"
    );
    assert_eq!(shown(&app, &browser).await, before, "{what}");
    assert_eq!(listed(&app, "ada").await.len(), others, "{what}");
    // The next attempt finds nothing in its way.
    browser.get(&app.router, "/login/ada").await;
    assert_eq!(
        shown(&app, &browser).await,
        before.replace("nobody", "ada"),
        "{what}"
    );
    assert_eq!(listed(&app, "ada").await.len(), others + 1, "{what}");
}

#[tokio::test]
async fn a_login_that_cannot_be_listed_is_a_503_that_leaves_everything_as_it_was() {
    for fresh in [false, true] {
        a_login_that_is_not_listed(fresh, 0, Verb::Load, false).await;
        for landed in [false, true] {
            a_login_that_is_not_listed(fresh, 0, Verb::Create, landed).await;
            a_login_that_is_not_listed(fresh, 1, Verb::Update, landed).await;
        }
    }
}

#[tokio::test]
async fn a_list_whose_write_was_not_answered_is_looked_at_again() {
    for fault in [Fault::FailAfter, Fault::Fail] {
        let app = app(routes());
        logged_in(&app, "ada").await;
        app.store
            .fault(Verb::Update, fault(StoreErrorKind::Timeout));
        let browser = logged_in(&app, "ada").await;
        assert_eq!(shown(&app, &browser).await, "ada: ");
        assert_eq!(listed(&app, "ada").await.len(), 2);
        assert_eq!(length(&app.store), 2);
    }
}

/// A login's write of the list arrives, and the answer does not; before the list is read again, somebody
/// else logs in.
#[tokio::test]
async fn two_logins_at_the_limit_do_not_end_each_other() {
    for fault in [
        Fault::FailAfter(StoreErrorKind::Timeout),
        Fault::ConflictAfter,
    ] {
        let app = app_with(routes(), SessionConfig::default().with_sessions_per_user(1));
        let zeroth = logged_in(&app, "ada").await;
        app.store.fault(Verb::Update, fault);
        let gate = Arc::new(tokio::sync::Notify::new());
        // The list, the look at the other session, and the list again.
        app.store.fault(Verb::Load, Fault::First(Arc::new(|_| {})));
        app.store.fault(Verb::Load, Fault::First(Arc::new(|_| {})));
        app.store.fault(Verb::Load, Fault::Wait(Arc::clone(&gate)));
        let mut first = Browser::default();
        let login = tokio::spawn(send(&app.router, first.request("/login/ada")));
        while app.store.calls().last() != Some(&Verb::Load) || length(&app.store) < 2 {
            tokio::task::yield_now().await;
        }
        // On another host, so that it does not wait in line.
        let other = SessionLayer::with_config(
            app.store.clone(),
            support::keys(),
            SessionConfig::default().with_sessions_per_user(1),
        );
        let clock = app.clock.clone();
        let other = other.unwrap().with_clock(move || clock.now());
        let mut second = Browser::default();
        let router = routes().layer(other);
        assert_eq!(second.get(&router, "/login/ada").await.status, 200);
        gate.notify_one();
        let answer = login.await.unwrap();
        assert_eq!(answer.status, 200);
        first.take(&answer);
        assert_eq!(shown(&app, &zeroth).await, "nobody: ");
        assert_eq!(shown(&app, &first).await, "nobody: ");
        assert_eq!(shown(&app, &second).await, "ada: ", "the newest login");
        assert_eq!(listed(&app, "ada").await.len(), 1);
    }
}

#[tokio::test]
async fn a_login_whose_excess_cannot_be_ended_stands_and_the_next_one_ends_it() {
    let app = app_with(routes(), SessionConfig::default().with_sessions_per_user(1));
    let first = logged_in(&app, "ada").await;
    // The list is written; ending the other session fails.
    app.store
        .fault(Verb::Update, Fault::First(Arc::new(|_| {})));
    app.store
        .fault(Verb::Update, Fault::Fail(StoreErrorKind::Unavailable));
    let mut second = Browser::default();
    let answer = second.get(&app.router, "/login/ada").await;
    assert_eq!(answer.status, 503);
    assert!(
        !answer.sets_no_cookie(),
        "the session is there, so the browser has to know"
    );
    assert_eq!(shown(&app, &second).await, "ada: ");
    let third = logged_in(&app, "ada").await;
    assert_eq!(listed(&app, "ada").await.len(), 1);
    for (browser, expected) in [(first, "nobody: "), (second, "nobody: "), (third, "ada: ")] {
        assert_eq!(shown(&app, &browser).await, expected);
    }
}

#[tokio::test]
async fn a_login_whose_old_session_cannot_be_ended_stands_and_goes_on_ending_it() {
    for still_down in [false, true] {
        let app = app(routes());
        let mut browser = logged_in(&app, "ada").await;
        let before = browser.clone();
        // The list is written; the old session is not ended, nor at the second attempt.
        app.store
            .fault(Verb::Update, Fault::First(Arc::new(|_| {})));
        let failures = if still_down { 3 } else { 2 };
        for _ in 0..failures {
            app.store
                .fault(Verb::Update, Fault::Fail(StoreErrorKind::Unavailable));
        }
        let answer = browser.get(&app.router, "/login/ada").await;
        assert_eq!(answer.status, 503);
        assert_ne!(answer.set_value(), before.cookie());
        assert_eq!(shown(&app, &browser).await, "ada: ");
        // Once more, after the response; then it is left alone.
        app.layer.drain().await;
        let (shows, sessions) = if still_down {
            ("ada: ", 2)
        } else {
            ("nobody: ", 1)
        };
        assert_eq!(shown(&app, &before).await, shows);
        // Whoever ends all of them ends both.
        assert_eq!(listed(&app, "ada").await.len(), sessions);
        let ended = app.layer.sessions().end_all_of("ada").await.unwrap();
        assert_eq!(ended, sessions);
    }
}

/// A process that dies at each call of a login in turn. What it leaves: no session that anybody knows
/// and that is not listed, and the old session as it was unless the last step was done.
#[test]
fn a_process_that_dies_during_a_login_leaves_nothing_that_is_not_listed() {
    let run = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let calls = [
        (Verb::Create, 0),
        (Verb::Load, 1),
        (Verb::Load, 2),
        (Verb::Update, 0),
        (Verb::Update, 1),
    ];
    for (verb, passed) in calls {
        let clock = Clock::default();
        let store = SpyStore::new(clock.clone());
        let build = || {
            let layer = SessionLayer::new(store.clone(), support::keys()).with_clock({
                let clock = clock.clone();
                move || clock.now()
            });
            App {
                router: routes().layer(layer.clone()).with_state(()),
                store: store.clone(),
                clock: clock.clone(),
                layer,
            }
        };
        let mut browser = Browser::default();
        let before = run();
        let app = build();
        before.block_on(async {
            logged_in(&app, "ada").await;
            browser.get(&app.router, "/cart/tea").await;
            for _ in 0..passed {
                store.fault(verb, Fault::First(Arc::new(|_| {})));
            }
            store.fault(verb, Fault::Hang);
            let login = tokio::spawn(send(&app.router, browser.request("/login/ada")));
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!login.is_finished(), "{verb:?} {passed}");
        });
        drop(before);
        drop(app);
        store.clear_faults();
        let app = build();
        run().block_on(async {
            assert_eq!(
                shown(&app, &browser).await,
                "nobody: cart",
                "{verb:?} {passed}"
            );
            browser.get(&app.router, "/login/ada").await;
            assert_eq!(shown(&app, &browser).await, "ada: cart");
            // Whoever is listed in vain is no danger: nobody knows the id.
            let ended = app.layer.sessions().end_all_of("ada").await.unwrap();
            assert!((2..=3).contains(&ended), "{verb:?} {passed}: {ended}");
            assert_eq!(shown(&app, &browser).await, "nobody: ");
        });
    }
}

#[tokio::test]
async fn a_list_that_nobody_can_read_is_begun_anew() {
    let app = app(routes());
    logged_in(&app, "ada").await;
    let index = index(&app.store);
    for garbage in [&b"garbage"[..], b"\x80", b""] {
        app.store.records().get_mut(&index).unwrap().payload = garbage.to_vec();
        assert_eq!(listed(&app, "ada").await, []);
        let browser = logged_in(&app, "ada").await;
        assert_eq!(shown(&app, &browser).await, "ada: ");
        assert_eq!(listed(&app, "ada").await.len(), 1);
    }
}

#[tokio::test]
async fn a_list_that_the_store_cannot_read_is_begun_anew() {
    let corrupt = || Fault::Fail(StoreErrorKind::Corrupt);
    for held_on_to in [false, true] {
        let app = app(routes());
        let mut browser = Browser::default();
        browser.get(&app.router, "/cart/tea").await;
        logged_in(&app, "ada").await;
        let index = index(&app.store);
        // The request's own.
        app.store.fault(Verb::Load, Fault::First(Arc::new(|_| {})));
        app.store.fault(Verb::Load, corrupt());
        if held_on_to {
            // `create` says that the place is taken.
            app.store.fault(Verb::Load, corrupt());
        } else {
            app.store.records().remove(&index);
        }
        let sessions = app.layer.sessions();
        let answer = browser.get(&app.router, "/login/ada").await;
        assert_eq!(answer.status, 200, "{held_on_to}");
        assert_eq!(shown(&app, &browser).await, "ada: cart");
        assert_eq!(listed(&app, "ada").await.len(), 1);
        assert_eq!(sessions.end_all_of("ada").await.unwrap(), 1);
        // Until the next login, nobody says that all have been ended.
        app.store.fault(Verb::Load, corrupt());
        assert!(sessions.end_all_of("ada").await.is_err());
    }
    // A store that gives out nothing else is no store.
    let app = app(routes());
    logged_in(&app, "ada").await;
    for _ in 0..3 {
        app.store.fault(Verb::Load, corrupt());
    }
    app.store
        .fault(Verb::Create, Fault::First(Arc::new(|_| {})));
    for _ in 0..2 {
        app.store.fault(Verb::Create, Fault::Taken);
    }
    let live = app.store.live();
    let answer = Browser::default().get(&app.router, "/login/ada").await;
    assert_eq!(answer.status, 503);
    assert_eq!(app.store.live(), live);
}

#[tokio::test]
async fn ending_all_tries_all_and_may_be_repeated() {
    let app = app(routes());
    for _ in 0..20 {
        logged_in(&app, "ada").await;
    }
    app.store
        .fault(Verb::Update, Fault::Fail(StoreErrorKind::Unavailable));
    app.store.fault(Verb::Load, Fault::First(Arc::new(|_| {})));
    app.store
        .fault(Verb::Load, Fault::Fail(StoreErrorKind::Timeout));
    let sessions = app.layer.sessions();
    let error = sessions.end_all_of("ada").await.unwrap_err();
    assert_eq!(error.kind(), SessionErrorKind::Store);
    assert_eq!(app.store.live().len(), 2);
    assert_eq!(sessions.end_all_of("ada").await.unwrap(), 2);
    assert_eq!(app.store.live(), []);
    // No list, no answer.
    app.store
        .fault(Verb::Load, Fault::Fail(StoreErrorKind::Unavailable));
    assert!(sessions.end_all_of("ada").await.is_err());
    app.store
        .fault(Verb::Load, Fault::Fail(StoreErrorKind::Unavailable));
    assert!(sessions.of_user("ada").await.is_err());
}

#[tokio::test]
async fn a_login_without_a_response_is_refused() {
    let app = app(routes());
    logged_in(&app, "ada").await;
    let key = app.store.live()[0];
    let session = app.layer.sessions().load(&key).await.unwrap().unwrap();
    session.login("bob").unwrap();
    let error = session.save().await.unwrap_err();
    assert_eq!(error.kind(), SessionErrorKind::CookieTooLate);
    assert_eq!(listed(&app, "bob").await, []);
}

#[cfg(all(feature = "flask", feature = "redis"))]
#[tokio::test]
async fn where_sessions_are_shared_with_flask_a_login_is_an_error() {
    use session_layer::FlaskCookies;
    use session_layer::store::FlaskRedisStore;

    async fn refused(session: Session) {
        let error = session.login("ada").unwrap_err();
        assert_eq!(error.kind(), SessionErrorKind::Unsupported);
        assert!(!session.is_modified());
    }
    // Nobody listens there, and nobody is asked.
    let store = FlaskRedisStore::connect("redis://127.0.0.1:1/0")
        .await
        .unwrap();
    let config = SessionConfig::default();
    let layer = SessionLayer::for_flask(store, FlaskCookies::plain(), config).unwrap();
    let sessions = layer.sessions();
    let router = Router::new().route("/", get(refused)).layer(layer);
    assert_eq!(Browser::default().get(&router, "/").await.status, 200);
    for error in [
        sessions.of_user("ada").await.unwrap_err(),
        sessions.end_all_of("ada").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), SessionErrorKind::Unsupported);
        assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}

#[cfg(feature = "flask")]
mod migrating {
    use std::num::NonZeroUsize;

    use session_layer::StoreError;
    use session_layer::store::{
        CreateOutcome, MigratingStore, NewRecord, SessionStore, StoreLimits, TouchOutcome,
        UpdateOutcome,
    };

    use super::*;

    /// Knows sessions by their ids only, as Flask's stores do, and has none.
    #[derive(Debug)]
    struct ByIds;

    fn unsupported<T>() -> Result<T, StoreError> {
        Err(StoreError::new(StoreErrorKind::Unsupported, "no id"))
    }

    impl SessionStore for ByIds {
        async fn load(&self, _: &SessionKey) -> Result<Option<Record>, StoreError> {
            unsupported()
        }

        async fn create(
            &self,
            _: &SessionKey,
            _: &NewRecord<'_>,
        ) -> Result<CreateOutcome, StoreError> {
            unsupported()
        }

        async fn update(
            &self,
            _: &SessionKey,
            _: &Record,
            _: &NewRecord<'_>,
        ) -> Result<UpdateOutcome, StoreError> {
            unsupported()
        }

        async fn touch(
            &self,
            _: &SessionKey,
            _: &Record,
            _: Duration,
        ) -> Result<TouchOutcome, StoreError> {
            unsupported()
        }

        async fn delete(&self, _: &SessionKey) -> Result<(), StoreError> {
            unsupported()
        }

        async fn delete_expired(&self, _: NonZeroUsize) -> Result<u64, StoreError> {
            unsupported()
        }

        fn limits(&self) -> StoreLimits {
            StoreLimits::new(1 << 20)
        }
    }

    #[tokio::test]
    async fn users_log_in_while_sessions_move_from_a_store_that_knows_no_keys() {
        let store = SpyStore::default();
        let config = SessionConfig::default().with_sessions_per_user(2);
        let moving = MigratingStore::new(ByIds, store.clone());
        let layer = SessionLayer::with_config(moving, support::keys(), config).unwrap();
        let sessions = layer.sessions();
        let router = routes().layer(layer);
        for n in 1..5 {
            let answer = Browser::default().get(&router, "/login/ada").await;
            assert_eq!(answer.status, 200);
            assert_eq!(sessions.of_user("ada").await.unwrap().len(), n.min(2));
        }
        assert_eq!(sessions.end_all_of("ada").await.unwrap(), 2);
        assert_eq!(store.live(), []);
    }
}
