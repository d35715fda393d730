//! What the crate tells `tracing`. One test, in a program of its own: which events are looked at is
//! decided for a whole process.

mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use session_layer::store::MemoryStore;
use session_layer::{Session, SessionConfig, SessionLayer, StoreErrorKind};
use support::{Browser, Fault, Verb, app, app_with};

fn routes() -> Router {
    Router::new()
        .route(
            "/who",
            get(|session: Session| async move {
                session.get::<String>("user").map(Option::unwrap_or_default)
            }),
        )
        .route(
            "/login",
            get(|session: Session| async move {
                session.cycle_id();
                session.insert("user", "ada-the-secret-name")
            }),
        )
        .route(
            "/visit",
            get(|session: Session| async move {
                session
                    .update("visits", |n: Option<u32>| n.unwrap_or(0) + 1)
                    .map(drop)
            }),
        )
        .route(
            "/login-by-name",
            get(|session: Session| async move { session.login("ada-the-secret-name") }),
        )
        .route(
            "/logout",
            get(|session: Session| async move { session.flush() }),
        )
}

/// Everything the crate says, at the finest level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_tells_what_happened_but_no_secret() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_writer({
            let log = log.clone();
            move || log.clone()
        })
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let app = app(routes());
    let mut secrets = vec![support::KEY.to_owned(), "ada-the-secret-name".to_owned()];
    let mut browser = Browser::default();
    for path in ["/visit", "/login", "/visit", "/who"] {
        browser.get(&app.router, path).await;
        secrets.push(browser.cookie());
    }
    // One call of the store does for each of these: told once, and nothing is said to be lost.
    let said = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for (event, count) in [
        ("session created", 1),
        ("session rotated", 1),
        ("session updated", 1),
        ("edits dropped", 0),
        ("never stored", 0),
    ] {
        assert_eq!(
            said().matches(event).count(),
            count,
            "{event:?} in\n{}",
            said()
        );
    }
    let unavailable = || Fault::Fail(StoreErrorKind::Unavailable);
    let gone = Fault::First(Arc::new(|store| store.records().clear()));
    let dropped = "reason=\"they could not be stored\"";
    let mut forgotten = Browser::default();
    for (verb, fault, events) in [
        (Verb::Update, unavailable(), ["session not stored", dropped]),
        (
            Verb::Create,
            Fault::Taken,
            ["session key taken", "session created"],
        ),
        (
            Verb::Update,
            gone,
            ["session ended meanwhile", "session loaded"],
        ),
    ] {
        let before = said().len();
        app.store.fault(verb, fault);
        let mut browser = match verb {
            Verb::Create => Browser::default(),
            _ => browser.clone(),
        };
        browser.get(&app.router, "/visit").await;
        if verb == Verb::Create {
            forgotten = browser;
        }
        let said = said().split_off(before);
        for event in events {
            assert_eq!(said.matches(event).count(), 1, "{event:?} in\n{said}");
        }
    }
    // Where a conflict comes first, likewise.
    let mut browser = Browser::default();
    browser.get(&app.router, "/visit").await;
    secrets.push(browser.cookie());
    let before = said().len();
    app.store.fault(
        Verb::Update,
        Fault::First(Arc::new(support::SpyStore::rewrite_all)),
    );
    app.store.fault(Verb::Update, unavailable());
    browser.get(&app.router, "/visit").await;
    assert!(said()[before..].contains(dropped), "{}", said());
    browser.get(&app.router, "/login").await;
    let cookie = |browser: &Browser| format!("__Host-id={}", browser.cookie());
    let (ours, others) = (cookie(&browser), cookie(&forgotten));
    for (line, warned) in [
        (format!("{ours}; {ours}"), false),
        (format!("{ours}; {ours}; {others}"), true),
    ] {
        let before = said().len();
        let mut request = Browser::default().request("/who");
        request
            .headers_mut()
            .insert("cookie", line.parse().unwrap());
        support::send(&app.router, request).await;
        let said = said().split_off(before);
        assert_eq!(said.contains("two valid session cookies"), warned, "{said}");
    }
    let sessions = app.layer.sessions();
    let live = app.store.live();
    let session = sessions.load(&live[0]).await.unwrap().unwrap();
    session.insert("late", true).unwrap();
    let before = said().len();
    drop(session);
    assert!(said()[before..].contains("never stored"), "{}", said());

    app.clock.advance(Duration::from_secs(10 * 86_400));
    let before = said().len();
    app.store.fault(Verb::Touch, unavailable());
    browser.clone().get(&app.router, "/who").await;
    let failed = said().split_off(before);
    assert!(failed.contains("session not stored"), "{failed}");
    assert!(!failed.contains("edits dropped"), "{failed}");
    browser.get(&app.router, "/who").await;
    secrets.push(browser.cookie());
    let conflict = Fault::First(Arc::new(|store| {
        for entry in store.records().values_mut() {
            entry.revision = session_layer::Revision::generate();
        }
    }));
    app.store.fault(Verb::Update, conflict);
    browser.get(&app.router, "/visit").await;
    browser.get(&app.router, "/login").await;
    secrets.push(browser.cookie());
    let old = browser.clone();
    app.store
        .fault(Verb::Load, Fault::Fail(StoreErrorKind::Unavailable));
    browser.get(&app.router, "/who").await;
    app.store
        .fault(Verb::Create, Fault::Fail(StoreErrorKind::Timeout));
    browser.get(&app.router, "/login").await;
    browser.get(&app.router, "/logout").await;
    old.clone().get(&app.router, "/visit").await;
    Browser::with_cookie("forged")
        .get(&app.router, "/who")
        .await;
    Browser::with_cookie(format!("1{}", "A".repeat(96)))
        .get(&app.router, "/who")
        .await;
    let config = SessionConfig::default().with_sessions_per_user(1);
    let limited = app_with(routes(), config);
    for _ in 0..2 {
        let mut browser = Browser::default();
        browser.get(&limited.router, "/login-by-name").await;
        secrets.push(browser.cookie());
    }
    let sessions = limited.layer.sessions();
    let listed = sessions.of_user("ada-the-secret-name").await.unwrap();
    tracing::info!("{listed:?}");
    let kind = StoreErrorKind::Unavailable;
    limited.store.fault(Verb::Update, Fault::Fail(kind));
    let ended = sessions.end_all_of("ada-the-secret-name").await;
    tracing::info!("{ended:?}");
    sessions.end_all_of("ada-the-secret-name").await.unwrap();
    for entry in limited.store.records().values_mut() {
        entry.payload = b"garbage".to_vec();
    }
    sessions.of_user("ada-the-secret-name").await.unwrap();
    tracing::info!(
        "{:?} {:?} {:?}",
        app.layer,
        app.layer.sessions(),
        support::keys()
    );

    // A store that never waits is heard of like any other.
    let before = said().len();
    let layer = SessionLayer::new(MemoryStore::new(), support::keys());
    let router = routes().layer(layer);
    let mut browser = Browser::default();
    for _ in 0..2 {
        browser.get(&router, "/visit").await;
        secrets.push(browser.cookie());
    }
    let memory = said().split_off(before);
    for event in [
        "session_load{session.key=",
        "session_commit{session.key=",
        "session created",
        "session loaded",
        "session updated",
    ] {
        assert!(memory.contains(event), "no {event:?} in\n{memory}");
    }

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for event in [
        "session loaded",
        "session created",
        "session updated",
        "session changed meanwhile",
        "session touched",
        "session rotated",
        "session ended",
        "session listed",
        "session ended: its user has too many",
        "unreadable list of a user's sessions ignored",
        "reason=\"malformed\"",
        "reason=\"signature does not verify\"",
        "session not loaded",
        "session not stored",
        "session edits dropped",
        "reason=\"the session has ended\"",
        "session_load{session.key=",
        "session_commit{session.key=",
        "session.key=",
    ] {
        assert!(log.contains(event), "no {event:?} in\n{log}");
    }
    for secret in secrets {
        assert!(!log.contains(&secret), "{secret:?} in\n{log}");
        if let Some(id) = secret.get(1..43) {
            assert!(!log.contains(id), "{id:?} in\n{log}");
        }
    }
}
