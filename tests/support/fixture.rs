//! An application whose handlers leave their sessions for the test to go on with.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::routing::get;
use session_layer::{LazySession, Session, SessionConfig};

use super::{App, Browser, Fault, SpyStore, Verb, app_with};

/// Where handlers leave what they have for the test to go on with.
pub type Kept<T> = Arc<Mutex<Option<T>>>;

pub struct Fixture {
    pub app: App,
    pub kept: Kept<Session>,
    pub lazy: Kept<LazySession>,
}

pub fn fixture() -> Fixture {
    fixture_of(Router::new(), SessionConfig::default())
}

pub fn fixture_with(config: SessionConfig) -> Fixture {
    fixture_of(Router::new(), config)
}

/// With routes of the test's own.
pub fn fixture_of(more: Router, config: SessionConfig) -> Fixture {
    let (kept, lazy) = (Kept::default(), Kept::default());
    let routes = routes(Arc::clone(&kept), Arc::clone(&lazy)).merge(more);
    let app = app_with(routes, config);
    Fixture { app, kept, lazy }
}

pub fn add(session: &Session) -> u64 {
    session
        .update("n", |n: Option<u64>| n.unwrap_or(0) + 1)
        .unwrap()
}

fn routes(kept: Kept<Session>, lazy: Kept<LazySession>) -> Router {
    let kept_too = Arc::clone(&kept);
    Router::new()
        .route(
            "/add",
            get(|session: Session| async move { add(&session).to_string() }),
        )
        .route(
            "/read",
            get(
                |session: Session| async move { format!("{:?}", session.get::<u64>("n").unwrap()) },
            ),
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
            "/login",
            get(|session: Session| async move {
                session.cycle_id();
                session.insert("user", "ada")
            }),
        )
        .route(
            "/short",
            get(|session: Session| async move { session.set_lifetime(Duration::from_secs(60)) }),
        )
        .route(
            "/keep",
            get(|session: Session| async move {
                *kept.lock().unwrap() = Some(session);
            }),
        )
        .route(
            "/add-and-keep",
            get(|session: Session| async move {
                add(&session);
                *kept_too.lock().unwrap() = Some(session);
            }),
        )
        .route(
            "/keep-lazy",
            get(|session: LazySession| async move {
                *lazy.lock().unwrap() = Some(session);
            }),
        )
        .route(
            "/lazy-relogin",
            get(|lazy: LazySession| async move {
                lazy.flush();
                let session = lazy.load().await.unwrap();
                let seen = session.keys().join(",");
                session.insert("user", "grace").unwrap();
                seen
            }),
        )
}

impl Fixture {
    pub async fn browser(&self) -> Browser {
        let mut browser = Browser::default();
        browser.get(&self.app.router, "/add").await;
        self.app.store.calls();
        browser
    }

    pub async fn get(&self, browser: &Browser, path: &str) -> String {
        browser.clone().get(&self.app.router, path).await.body
    }

    pub async fn until_called(&self, verb: Verb) {
        while self.app.store.calls().last() != Some(&verb) {
            tokio::task::yield_now().await;
        }
    }

    pub fn take_kept(&self) -> Session {
        self.kept.lock().unwrap().take().unwrap()
    }

    /// The same layer around another handler.
    pub fn around<H: Handler<T, ()>, T: 'static>(&self, handler: H) -> Router {
        let router = Router::new().route("/", get(handler));
        router.layer(self.app.layer.clone())
    }
}

/// The next update meets a record that somebody else has just written.
pub fn foreign_write() -> Fault {
    Fault::First(Arc::new(SpyStore::rewrite_all))
}
