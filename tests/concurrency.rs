//! Many requests of one session at once, on every store that keeps something, within one process
//! and from two: no update is lost, and rotations agree on one new id.

#[path = "support/apps.rs"]
mod apps;
#[path = "support/backends.rs"]
mod backends;
mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use backends::{ALL, Backend, Place};
use session_layer::{AnyStore, Session, SessionConfig, SessionLayer};
use support::{Browser, send};
use tokio::sync::Barrier;

fn router(store: AnyStore) -> Router {
    // Three rotations that have all read the session before the first of them commits: one that
    // comes later is a login with a dead cookie, and gets a session of its own.
    let all_three = Arc::new(Barrier::new(3));
    // A busy machine with unoptimised code is not what the deadline is about.
    let minute = Duration::from_secs(60);
    let config = SessionConfig::default()
        .with_commit_timeout(minute)
        .with_store_timeout(minute);
    Router::new()
        .route("/add", get(|session: Session| async move {
            session.update("n", |n: Option<u64>| n.unwrap_or(0) + 1).map(drop)
        }))
        .route("/set/{key}", get(|session: Session, Path(key): Path<String>| async move {
            session.insert(&key, &key)
        }))
        .route("/rotate/{key}", get(move |session: Session, Path(key): Path<String>| async move {
                all_three.wait().await;
                session.cycle_id();
                session.insert(&key, true)
        }))
        .route("/n", get(|session: Session| async move {
            session.get::<u64>("n").map(|n| n.unwrap_or(0).to_string())
        }))
        .route("/keys", get(|session: Session| async move {
            let mut keys = session.keys();
            keys.sort();
            keys.join(" ")
        }))
        .layer(SessionLayer::with_config(store, support::keys(), config).unwrap())
        .with_state(())
}

async fn all_at_once(router: &Router, browser: &Browser, paths: impl Iterator<Item = String>) {
    let requests: Vec<_> = paths
        .map(|path| tokio::spawn(send(router, browser.request(&path))))
        .collect();
    for request in requests {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.sets_no_cookie());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_leave_two_hundred_keys() {
    for backend in ALL {
        let place = backend.new_place().await;
        let router = router(place.store.clone());
        let mut browser = Browser::default();
        browser.get(&router, "/set/first").await;
        all_at_once(
            &router,
            &browser,
            (0..200).map(|at| format!("/set/key{at}")),
        )
        .await;
        let keys = browser.get(&router, "/keys").await.body;
        assert_eq!(keys.split(' ').count(), 201, "{backend:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_increments_are_a_thousand_more() {
    for backend in ALL {
        let place = backend.new_place().await;
        let router = router(place.store.clone());
        let mut browser = Browser::default();
        browser.get(&router, "/add").await;
        all_at_once(&router, &browser, (0..1000).map(|_| "/add".to_owned())).await;
        assert_eq!(browser.get(&router, "/n").await.body, "1001", "{backend:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_rotations_one_hands_out_an_id() {
    for backend in ALL {
        let place = backend.new_place().await;
        for _ in 0..20 {
            let router = router(place.store.clone());
            let mut browser = Browser::default();
            browser.get(&router, "/set/first").await;
            browser.get(&router, "/add").await;
            let rotations: Vec<_> = (0..3)
                .map(|at| {
                    tokio::spawn(send(&router, browser.request(&format!("/rotate/user{at}"))))
                })
                .collect();
            let mut handed_out = Vec::new();
            for rotation in rotations {
                let answer = rotation.await.unwrap();
                assert_eq!(answer.status, 200, "{backend:?}");
                if !answer.sets_no_cookie() {
                    handed_out.push(answer.set_value());
                }
            }
            assert_eq!(handed_out.len(), 1, "{backend:?}");
            assert_eq!(
                browser.get(&router, "/keys").await.body,
                "",
                "the old id is dead"
            );
            let keys = Browser::with_cookie(handed_out.remove(0))
                .get(&router, "/keys")
                .await
                .body;
            let keys: Vec<_> = keys.split(' ').collect();
            assert_eq!(keys[..2], ["first", "n"], "{backend:?}: the data is whole");
            assert_eq!(
                keys.len(),
                3,
                "{backend:?}: the winner's own edit, and no loser's: {keys:?}"
            );
        }
    }
}

// From two processes.

struct Shared(Place, Backend);

impl Shared {
    fn url(&self) -> String {
        let folder = self.0.path().display();
        match self.1 {
            Backend::Memory => panic!("processes share no memory"),
            Backend::File => format!("file://{folder}/sessions"),
            Backend::Sqlite => format!("sqlite://{folder}/sessions.db"),
        }
    }
}

async fn shared(backend: Backend) -> Shared {
    Shared(backend.new_place().await, backend)
}

mod on_files {
    async fn place() -> super::Shared {
        super::shared(super::Backend::File).await
    }

    crate::two_apps!(place);
}

mod on_sqlite {
    async fn place() -> super::Shared {
        super::shared(super::Backend::Sqlite).await
    }

    crate::two_apps!(place);
}
