//! The sessions of a user against everything at once, through the whole layer, on every store that
//! keeps something, each request handled by an application of its own.

#[path = "support/backends.rs"]
mod backends;
#[path = "support/gates.rs"]
mod gates;
mod support;

use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use backends::{ALL, Backend, Place};
use gates::{Gated, in_order, next_schedule};
use session_layer::store::{SessionStore, SqliteStore};
use session_layer::{
    AnyStore, Session, SessionConfig, SessionError, SessionInfo, SessionKey, SessionLayer, Sessions,
};
use support::{Browser, send};

/// An application, and its sessions.
fn app(store: impl SessionStore, limit: usize) -> (Router, Sessions) {
    let minute = Duration::from_secs(60);
    let config = SessionConfig::default()
        .with_sessions_per_user(limit)
        .with_store_timeout(minute)
        .with_commit_timeout(minute);
    let layer = SessionLayer::with_config(store, support::keys(), config).unwrap();
    let sessions = layer.sessions();
    let end_all = {
        let sessions = sessions.clone();
        async move || -> Result<String, SessionError> {
            Ok(sessions.end_all_of("ada").await?.to_string())
        }
    };
    let router = Router::new()
        .route(
            "/login/{user}",
            get(|session: Session, Path(user): Path<String>| async move { session.login(&user) }),
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
            "/logout",
            get(|session: Session| async move { session.flush() }),
        )
        .route(
            "/user",
            get(|session: Session| async move {
                session.user().as_deref().unwrap_or("nobody").to_owned()
            }),
        )
        .route("/end-all", get(end_all))
        .layer(layer)
        .with_state(());
    (router, sessions)
}

fn gated(store: Gated) -> Router {
    app(store, 100).0
}

async fn user_of(router: &Router, cookie: &str) -> String {
    let mut browser = Browser::with_cookie(cookie);
    browser.get(router, "/user").await.body
}

/// All orders of the end of all of ada's sessions and another request, with the cookie of one of them
/// or of nobody's. Whatever was there before is ended; what a login has made since is there and listed,
/// or not there at all.
async fn ending_all_against(other: &'static str, by_ada: bool) {
    for backend in ALL {
        let mut schedule = Some(Vec::new());
        let (mut orders, mut survived) = (0, 0);
        let place = backend.new_place().await;
        let (router, sessions) = app(place.store.clone(), 100);
        while let Some(at) = schedule {
            let mut ada = Browser::default();
            ada.get(&router, "/login/ada").await;
            let mut cookies = vec![ada.cookie()];
            let mut nobody = Browser::default();
            nobody.get(&router, "/write").await;
            let who = if by_ada { &ada } else { &nobody };
            let requests = [(&Browser::default(), "/end-all"), (who, other)];
            let (answers, choices) = in_order(&place.store, gated, &requests, &at).await;
            let what = format!("{backend:?} {at:?}: {answers:?}");
            assert!(answers.iter().all(|answer| answer.status == 200), "{what}");
            if !answers[1].sets_no_cookie() && !answers[1].removes_cookie() {
                cookies.push(answers[1].set_value());
            }
            assert_eq!(user_of(&router, &cookies[0]).await, "nobody", "{what}");
            let mut alive = 0;
            for cookie in &cookies {
                alive += usize::from(user_of(&router, cookie).await == "ada");
            }
            assert_eq!(
                sessions.of_user("ada").await.unwrap().len(),
                alive,
                "{what}"
            );
            // Only a login may be after the end.
            assert!(alive == 0 || other == "/login/ada", "{what}");
            survived += alive;
            assert_eq!(sessions.end_all_of("ada").await.unwrap(), alive, "{what}");
            for cookie in &cookies {
                assert_ne!(user_of(&router, cookie).await, "ada", "{what}");
            }
            schedule = next_schedule(&choices);
            orders += 1;
        }
        assert!(orders > 4, "{backend:?}: {orders}");
        let may_survive = other == "/login/ada" && !by_ada;
        assert!(survived == 0 || other == "/login/ada");
        assert!(
            survived > 0 || !may_survive,
            "{backend:?}: no login came after"
        );
        assert!(survived < orders, "{backend:?}: no login came before");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_all_is_final_against_a_login_elsewhere() {
    ending_all_against("/login/ada", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_all_is_final_against_the_same_user_logging_in_again() {
    ending_all_against("/login/ada", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_all_is_final_against_a_slow_rotator() {
    ending_all_against("/rotate", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_all_is_final_against_a_slow_writer() {
    ending_all_against("/write", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_all_is_final_against_a_logout() {
    ending_all_against("/logout", true).await;
}

/// How many are logged in, of those who were before and those who have been answered.
async fn alive<'a>(router: &Router, cookies: impl IntoIterator<Item = &'a String>) -> usize {
    let mut alive = 0;
    for cookie in cookies {
        alive += usize::from(user_of(router, cookie).await == "ada");
    }
    alive
}

/// Orders of two requests, by `by`: one of so many browsers in which ada is logged in, or another one.
/// In the end as many sessions are there as the limit allows.
async fn at_the_limit(limit: usize, before: usize, requests: [(Option<usize>, &'static str); 2]) {
    let place = Backend::Memory.new_place().await;
    let (router, sessions) = app(place.store.clone(), limit);
    let gated = match limit {
        1 => |store| app(store, 1).0,
        _ => |store| app(store, 2).0,
    };
    let (mut schedule, mut orders) = (Some(Vec::new()), 0);
    while let Some(at) = schedule
        && orders < 200
    {
        let mut browsers = vec![Browser::default(); before + 1];
        for browser in &mut browsers[..before] {
            browser.get(&router, "/login/ada").await;
        }
        let what = format!("{limit} {before} {requests:?} {at:?}");
        let requests = requests.map(|(by, path)| (&browsers[by.unwrap_or(before)], path));
        let (answers, choices) = in_order(&place.store, gated, &requests, &at).await;
        let what = format!("{what}: {answers:?}");
        assert!(answers.iter().all(|answer| answer.status == 200), "{what}");
        let mut cookies: Vec<_> = browsers[..before].iter().map(Browser::cookie).collect();
        let answered = answers.iter().filter(|answer| !answer.sets_no_cookie());
        cookies.extend(answered.map(support::Answer::set_value));
        assert_eq!(alive(&router, &cookies).await, limit, "{what}");
        assert_eq!(sessions.end_all_of("ada").await.unwrap(), limit, "{what}");
        schedule = next_schedule(&choices);
        orders += 1;
    }
}

/// A session that is getting a new id is listed under both keys for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_with_two_keys_counts_once_and_is_not_ended_for_its_old_one() {
    let login = (None, "/login/ada");
    for again in ["/login/ada", "/rotate"] {
        at_the_limit(1, 1, [login, (Some(0), again)]).await;
        at_the_limit(2, 1, [login, (Some(0), again)]).await;
        at_the_limit(2, 2, [login, (Some(1), again)]).await;
        at_the_limit(2, 2, [(Some(0), "/login/ada"), (Some(1), again)]).await;
    }
}

/// Two applications with the same sessions. What is in memory they share; the others are opened twice.
async fn two(backend: Backend, limit: usize) -> (Place, [(Router, Sessions); 2]) {
    let place = backend.new_place().await;
    let near = app(place.store.clone(), limit);
    let far = match backend {
        Backend::Memory => app(place.store.clone(), limit),
        Backend::File | Backend::Sqlite => app(backend.open(place.path()).await, limit),
    };
    (place, [near, far])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_logins_at_once_leave_the_newest_three() {
    for backend in ALL {
        let (_place, apps) = two(backend, 3).await;
        let mut before = Vec::new();
        for _ in 0..3 {
            let mut browser = Browser::default();
            browser.get(&apps[0].0, "/login/ada").await;
            before.push(browser.cookie());
        }
        let logins: Vec<_> = (0..20)
            .map(|at| {
                let request = Browser::default().request("/login/ada");
                tokio::spawn(send(&apps[at % 2].0, request))
            })
            .collect();
        let mut cookies = Vec::new();
        for login in logins {
            let answer = login.await.unwrap();
            assert_eq!(answer.status, 200, "{backend:?}: {answer:?}");
            cookies.push(answer.set_value());
        }
        for (router, sessions) in &apps {
            let mut alive = 0;
            for cookie in &cookies {
                alive += usize::from(user_of(router, cookie).await == "ada");
            }
            assert_eq!(alive, 3, "{backend:?}");
            for cookie in &before {
                assert_eq!(
                    user_of(router, cookie).await,
                    "nobody",
                    "{backend:?}: the oldest"
                );
            }
            assert_eq!(
                sessions.of_user("ada").await.unwrap().len(),
                3,
                "{backend:?}"
            );
        }
        // The next is the newest.
        let mut browser = Browser::default();
        browser.get(&apps[1].0, "/login/ada").await;
        assert_eq!(user_of(&apps[0].0, &browser.cookie()).await, "ada");
        assert_eq!(apps[0].1.of_user("ada").await.unwrap().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ended_in_one_application_has_ended_at_the_next_request_in_the_other() {
    for backend in ALL {
        let (_place, [(near, _), (far, sessions)]) = two(backend, 100).await;
        let mut cookies = Vec::new();
        for user in ["ada", "ada", "ada", "ada", "bob"] {
            let mut browser = Browser::default();
            browser.get(&near, &format!("/login/{user}")).await;
            cookies.push(browser.cookie());
        }
        let alive = async || {
            let mut alive = Vec::new();
            for cookie in &cookies {
                alive.push(user_of(&near, cookie).await != "nobody");
            }
            alive
        };
        let keys: Vec<SessionKey> = {
            let listed = sessions.of_user("ada").await.unwrap();
            listed.iter().map(|session| session.key()).collect()
        };
        assert_eq!(keys.len(), 4);
        sessions.end(&keys[3]).await.unwrap();
        let one = alive().await;
        assert_eq!(one.iter().filter(|alive| **alive).count(), 4, "{backend:?}");
        assert_eq!(sessions.end_others_of("ada", &keys[1]).await.unwrap(), 2);
        let others = alive().await;
        assert_eq!(
            others.iter().filter(|alive| **alive).count(),
            2,
            "{backend:?}"
        );
        assert_eq!(sessions.end_all_of("ada").await.unwrap(), 1);
        assert_eq!(
            alive().await,
            [false, false, false, false, true],
            "{backend:?}"
        );
        assert_eq!(user_of(&far, &cookies[4]).await, "bob");
    }
}

/// Its file is damaged, or it was written when the store allowed more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_its_store_can_no_longer_read_is_begun_anew() {
    for backend in [Backend::File, Backend::Sqlite] {
        let place = backend.new_place().await;
        let (router, _) = app(place.store.clone(), 100);
        for _ in 0..40 {
            Browser::default().get(&router, "/login/ada").await;
        }
        let store = match backend {
            Backend::File => {
                let mut damaged = 0;
                for file in std::fs::read_dir(place.path().join("sessions")).unwrap() {
                    let file = file.unwrap();
                    let Ok(key) = file.file_name().to_str().unwrap().parse() else {
                        continue;
                    };
                    let record = place.store.load(&key).await.unwrap().unwrap();
                    if SessionInfo::of(&record).unwrap().is_user_index() {
                        std::fs::write(file.path(), "garbage").unwrap();
                        damaged += 1;
                    }
                }
                assert_eq!(damaged, 1);
                place.store.clone()
            }
            _ => {
                let smaller = SqliteStore::builder(place.path().join("sessions.db"));
                AnyStore::new(smaller.with_max_payload(1000).open().await.unwrap())
            }
        };
        let (router, sessions) = app(store, 100);
        assert!(sessions.end_all_of("ada").await.is_err(), "{backend:?}");
        let mut browser = Browser::default();
        let answer = browser.get(&router, "/login/ada").await;
        assert_eq!(answer.status, 200, "{backend:?}");
        assert_eq!(user_of(&router, &browser.cookie()).await, "ada");
        assert_eq!(sessions.end_all_of("ada").await.unwrap(), 1, "{backend:?}");
        assert_eq!(user_of(&router, &browser.cookie()).await, "nobody");
    }
}

/// Logins, rotations and ends of everything, all at once, again and again: when they are done, whoever
/// is logged in is listed, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_logged_in_is_listed() {
    for backend in ALL {
        let (_place, apps) = two(backend, 5).await;
        for round in 0..10 {
            let mut old = Browser::default();
            old.get(&apps[0].0, "/login/ada").await;
            let paths = ["/login/ada", "/rotate", "/login/ada", "/end-all", "/logout"];
            let requests: Vec<_> = (0..15)
                .map(|at| {
                    let path = paths[(at * 7 + round) % paths.len()];
                    let browser = if at % 3 == 0 {
                        old.clone()
                    } else {
                        Browser::default()
                    };
                    tokio::spawn(send(&apps[at % 2].0, browser.request(path)))
                })
                .collect();
            let mut cookies = vec![old.cookie()];
            for request in requests {
                let answer = request.await.unwrap();
                assert_eq!(answer.status, 200, "{backend:?}: {answer:?}");
                let set = answer
                    .cookies()
                    .into_iter()
                    .filter(|cookie| !cookie.value().is_empty());
                cookies.extend(set.map(|cookie| cookie.value().to_owned()));
            }
            let mut alive = 0;
            for cookie in &cookies {
                alive += usize::from(user_of(&apps[0].0, cookie).await == "ada");
            }
            let listed = apps[1].1.of_user("ada").await.unwrap().len();
            assert_eq!(listed, alive, "{backend:?} {round}");
            assert!(listed <= 5, "{backend:?} {round}: {listed}");
            assert_eq!(apps[round % 2].1.end_all_of("ada").await.unwrap(), alive);
        }
    }
}
