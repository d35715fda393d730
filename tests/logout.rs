//! A logout against everything slow, in every order, through the whole layer, on every store that
//! keeps something.
//!
//! As in `interleavings`, one store call at a time is let through, in all orders; but here each
//! request is handled by an application of its own, and the stores are real.

#[path = "support/backends.rs"]
mod backends;
mod support;

use std::num::NonZeroUsize;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use backends::ALL;
use session_layer::store::{
    CreateOutcome, NewRecord, Record, SessionStore, StoreLimits, TouchOutcome, UpdateOutcome,
};
use session_layer::{AnyStore, Session, SessionConfig, SessionKey, SessionLayer, StoreError};
use support::{Answer, Browser, send};
use tokio::sync::{mpsc, oneshot};

/// What a request has come to.
enum Event {
    /// It wants to call the store, and waits for leave.
    Calls(usize, oneshot::Sender<()>),
    Done(usize, Answer),
}

/// A store that asks for leave before each call.
#[derive(Debug, Clone)]
struct Gated {
    store: AnyStore,
    request: usize,
    events: mpsc::UnboundedSender<Event>,
}

impl Gated {
    async fn leave(&self) {
        let (leave, granted) = oneshot::channel();
        let _ = self.events.send(Event::Calls(self.request, leave));
        let _ = granted.await;
    }
}

impl SessionStore for Gated {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        self.leave().await;
        self.store.load(key).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.leave().await;
        self.store.create(key, new).await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.leave().await;
        self.store.update(key, seen, new).await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        self.leave().await;
        self.store.touch(key, seen, ttl).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.leave().await;
        self.store.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.store.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }
}

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

/// Sends the requests at once, in the order of calls that `schedule` says. Answers them, with the
/// choices there were.
async fn in_order(
    store: &AnyStore,
    browser: &Browser,
    paths: &[&'static str],
    schedule: &[usize],
) -> (Vec<Answer>, Vec<(usize, usize)>) {
    let (sender, mut events) = mpsc::unbounded_channel();
    for (request, path) in paths.iter().enumerate() {
        let gated = Gated {
            store: store.clone(),
            request,
            events: sender.clone(),
        };
        let (answer, done) = (send(&router(gated), browser.request(path)), sender.clone());
        tokio::spawn(async move { drop(done.send(Event::Done(request, answer.await))) });
    }
    let mut answers: Vec<_> = paths.iter().map(|_| None).collect();
    let mut waiting: Vec<_> = paths.iter().map(|_| None).collect();
    let mut choices = Vec::new();
    let mut running = paths.len();
    loop {
        while running > 0 {
            match events.recv().await.unwrap() {
                Event::Calls(request, leave) => waiting[request] = Some(leave),
                Event::Done(request, answer) => answers[request] = Some(answer),
            }
            running -= 1;
        }
        let ready: Vec<_> = (0..paths.len())
            .filter(|at| waiting[*at].is_some())
            .collect();
        if ready.is_empty() {
            break;
        }
        let choice = schedule.get(choices.len()).copied().unwrap_or(0);
        choices.push((choice, ready.len()));
        waiting[ready[choice]].take().unwrap().send(()).unwrap();
        running = 1;
    }
    (answers.into_iter().map(Option::unwrap).collect(), choices)
}

fn next_schedule(choices: &[(usize, usize)]) -> Option<Vec<usize>> {
    let last = choices
        .iter()
        .rposition(|(choice, options)| choice + 1 < *options)?;
    let mut schedule: Vec<_> = choices[..last].iter().map(|(choice, _)| *choice).collect();
    schedule.push(choices[last].0 + 1);
    Some(schedule)
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
            let (answers, choices) =
                in_order(&place.store, &browser, &["/logout", other], &at).await;
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
