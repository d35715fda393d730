//! Hostile cookies, fixation, exposure: what an attacker sends, and what must come of it.

mod support;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::header::{CACHE_CONTROL, HeaderValue, VARY};
use http::{Request, StatusCode};
use session_layer::{Session, SessionConfig, SessionError};
use support::{Answer, App, Browser, Verb, app, app_with, send};

use Verb::Load;

fn routes() -> Router {
    Router::new()
        .route(
            "/who",
            get(|session: Session| async move {
                session
                    .get::<String>("user")
                    .map(|user| user.unwrap_or("nobody".into()))
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
            get(|session: Session| async move { session.insert("visited", true) }),
        )
        .route(
            "/logout",
            get(|session: Session| async move { session.flush() }),
        )
        .route(
            "/cached",
            get(|session: Session| async move {
                session.insert("visited", true)?;
                let headers = [
                    (CACHE_CONTROL, "public, max-age=60, s-maxage=600"),
                    (VARY, "Accept-Encoding"),
                ];
                Ok::<_, SessionError>((headers, "ok"))
            }),
        )
        .route(
            "/not-modified",
            get(|session: Session| async move {
                let _ = session.contains_key("user");
                StatusCode::NOT_MODIFIED
            }),
        )
}

fn with_cookies(lines: &[&[u8]]) -> Request<Body> {
    let mut request = Request::get("/who").body(Body::empty()).unwrap();
    for line in lines {
        let value = HeaderValue::from_bytes(line).unwrap();
        request.headers_mut().append("cookie", value);
    }
    request
}

async fn who(app: &App, lines: &[&[u8]]) -> String {
    let answer = send(&app.router, with_cookies(lines)).await;
    assert_eq!(answer.status, 200);
    answer.body
}

async fn logged_in(app: &App) -> Browser {
    let mut browser = Browser::default();
    browser.get(&app.router, "/login").await;
    app.store.calls();
    browser
}

#[tokio::test]
async fn the_cookie_is_found_whatever_stands_beside_it() {
    let app = app(routes());
    let cookie = logged_in(&app).await.cookie();
    let ours = format!("__Host-id={cookie}");
    let ours = ours.as_bytes();
    let garbage = &b"__Host-id=garbage"[..];
    let join = |parts: &[&[u8]]| parts.join(&b"; "[..]);
    for line in [
        join(&[b"theme=caf\xe9", ours]),
        join(&[ours, b"theme=caf\xe9"]),
        join(&[b"a=\"x", ours, b"b=y\""]),
        join(&[garbage, ours]),
        join(&[ours, garbage]),
        join(&[garbage, garbage, ours]),
        join(&[ours, ours]),
        join(&[b"__Host-id=", ours]),
    ] {
        assert_eq!(who(&app, &[&line]).await, "ada-the-secret-name", "{line:?}");
    }
    assert_eq!(
        who(&app, &[b"a=1", ours, b"b=2"]).await,
        "ada-the-secret-name"
    );
    let seven = [garbage; 7].join(&b"; "[..]);
    assert_eq!(who(&app, &[&seven, ours]).await, "ada-the-secret-name");
    let eight = [garbage; 8].join(&b"; "[..]);
    assert_eq!(who(&app, &[&eight, ours]).await, "nobody");
}

#[tokio::test]
async fn a_dead_cookie_gives_way_to_a_live_one() {
    let app = app(routes());
    let dead = logged_in(&app).await;
    dead.clone().get(&app.router, "/logout").await;
    let live = logged_in(&app).await;
    app.store.calls();
    let garbage = "garbage".to_owned();
    for (cookies, loads) in [
        ([dead.cookie(), live.cookie(), garbage.clone()], 2),
        ([garbage, dead.cookie(), live.cookie()], 2),
        ([live.cookie(), dead.cookie(), dead.cookie()], 1),
    ] {
        let line = cookies
            .map(|cookie| format!("__Host-id={cookie}"))
            .join("; ");
        assert_eq!(who(&app, &[line.as_bytes()]).await, "ada-the-secret-name");
        assert_eq!(app.store.calls(), vec![Verb::Load; loads], "{line}");
    }
}

#[tokio::test]
async fn a_logout_with_two_dead_cookies_ends_what_the_first_has_become() {
    let app = app(routes());
    let dead = logged_in(&app).await;
    dead.clone().get(&app.router, "/logout").await;
    let rotated = logged_in(&app).await;
    rotated.clone().get(&app.router, "/login").await;
    assert_eq!(app.store.live().len(), 1);
    let (dead, rotated) = (dead.cookie(), rotated.cookie());
    let line = format!("__Host-id={rotated}; __Host-id={dead}");
    let mut request = with_cookies(&[line.as_bytes()]);
    *request.uri_mut() = "/logout".parse().unwrap();
    assert!(send(&app.router, request).await.removes_cookie());
    assert_eq!(app.store.live(), []);
}

#[tokio::test]
async fn a_cookie_is_found_among_ten_thousand() {
    let app = app(routes());
    let cookie = logged_in(&app).await.cookie();
    let others = "__Host-ix=1; ".repeat(5_000);
    let line = format!("{others}__Host-id={cookie}; {others}");
    assert_eq!(who(&app, &[line.as_bytes()]).await, "ada-the-secret-name");
}

#[tokio::test]
async fn no_forged_cookie_reaches_the_store_and_all_get_the_same_answer() {
    let app = app(routes());
    let good = logged_in(&app).await.cookie();
    let mut flipped = good.clone().into_bytes();
    flipped[50] ^= 1;
    let theirs = {
        let other = app_with(routes(), SessionConfig::default().with_cookie_name("theme"));
        let mut browser = Browser::default();
        browser.get(&other.router, "/login").await;
        browser.jar["theme"].clone()
    };
    let other_key = {
        let keys =
            session_layer::SigningKeys::new("some other key that is long enough too").unwrap();
        let layer = session_layer::SessionLayer::new(app.store.clone(), keys);
        let mut browser = Browser::default();
        browser
            .get(&routes().layer(layer).with_state(()), "/login")
            .await;
        app.store.calls();
        browser.cookie()
    };
    let unknown = {
        let elsewhere = crate::app(routes());
        logged_in(&elsewhere).await.cookie()
    };
    let long = "A".repeat(5000);
    let forged: Vec<Vec<u8>> = [
        &good.as_bytes()[..good.len() - 1],
        &good.as_bytes()[..54],
        &good.as_bytes()[1..],
        &flipped,
        theirs.as_bytes(),
        other_key.as_bytes(),
        b"",
        b"../../../../etc/passwd",
        b"/etc/passwd",
        b"..\\..\\windows",
        b"a:b",
        b"{\"$ne\":null}",
        b"$where",
        b"' OR 1=1 --",
        b"*",
        b"1",
        b"LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ",
        b"550e8400-e29b-41d4-a716-446655440000",
        &[b'A'; 251],
        long.as_bytes(),
        &[0xff; 97],
    ]
    .map(<[u8]>::to_vec)
    .into();
    let expected = Browser::with_cookie(unknown).get(&app.router, "/who").await;
    assert_eq!(app.store.calls(), [Load], "an unknown id is looked up");
    for value in forged {
        let line = [b"__Host-id=", &value[..]].concat();
        let answer = send(&app.router, with_cookies(&[&line])).await;
        assert_eq!(app.store.calls(), [], "{value:?}");
        assert_eq!(answer.status, expected.status);
        assert_eq!(answer.headers, expected.headers);
        assert_eq!(answer.body, expected.body);
    }
}

#[tokio::test]
async fn an_id_is_taken_from_the_cookie_only() {
    let app = app(routes());
    let cookie = logged_in(&app).await.cookie();
    let request = Request::post(format!("/who?__Host-id={cookie}&id={cookie}"))
        .header("x-session-id", &cookie)
        .header("authorization", format!("Bearer {cookie}"))
        .header("set-cookie", format!("__Host-id={cookie}"))
        .body(Body::from(format!("__Host-id={cookie}")))
        .unwrap();
    let (mut parts, body) = request.into_parts();
    parts.method = http::Method::GET;
    let answer = send(&app.router, Request::from_parts(parts, body)).await;
    assert_eq!(answer.body, "nobody");
    assert_eq!(app.store.calls(), []);
}

#[tokio::test]
async fn a_planted_session_does_not_carry_the_login() {
    let app = app(routes());
    let mut attacker = Browser::default();
    attacker.get(&app.router, "/visit").await;
    let mut victim = attacker.clone();
    victim.get(&app.router, "/login").await;
    assert_ne!(victim.cookie(), attacker.cookie());
    assert_eq!(
        victim.get(&app.router, "/who").await.body,
        "ada-the-secret-name"
    );
    assert_eq!(attacker.get(&app.router, "/who").await.body, "nobody");
    attacker.get(&app.router, "/visit").await;
    assert_eq!(attacker.get(&app.router, "/who").await.body, "nobody");
}

#[tokio::test]
async fn an_unknown_id_is_never_adopted() {
    let app = app(routes());
    let elsewhere = crate::app(routes());
    let planted = logged_in(&elsewhere).await;
    let mut victim = planted.clone();
    victim.get(&app.router, "/login").await;
    assert_ne!(victim.cookie(), planted.cookie());
    assert_eq!(
        planted.clone().get(&app.router, "/who").await.body,
        "nobody"
    );
}

#[tokio::test]
async fn thousands_of_requests_without_a_session_leave_no_record() {
    let app = app(routes());
    let dead = logged_in(&app).await;
    app.store.records().clear();
    for at in 0..2500 {
        let path = ["/who", "/logout", "/not-modified"][at % 3];
        for browser in [
            Browser::default(),
            dead.clone(),
            Browser::with_cookie("bad"),
            Browser::with_cookie("x".repeat(97)),
        ] {
            browser.clone().get(&app.router, path).await;
        }
    }
    assert!(app.store.records().is_empty());
    assert!(app.store.calls().iter().all(|verb| *verb == Load));
}

#[tokio::test]
async fn responses_with_a_session_are_not_for_shared_caches() {
    let app = app(routes());
    let answer = Browser::default().get(&app.router, "/cached").await;
    assert_eq!(answer.headers[CACHE_CONTROL], "max-age=60, private");
    assert_eq!(answer.vary(), ["Accept-Encoding", "Cookie"]);
    let mut browser = logged_in(&app).await;
    let answer = browser.get(&app.router, "/not-modified").await;
    assert_eq!(answer.status, 304);
    assert_eq!(answer.vary(), ["Cookie"]);
    for method in ["HEAD", "OPTIONS"] {
        let mut request = browser.request("/who");
        *request.method_mut() = method.parse().unwrap();
        let answer = send(&app.router, request).await;
        assert!(answer.sets_no_cookie());
    }
}

#[tokio::test]
async fn secure_does_not_depend_on_the_request() {
    let app = app(routes());
    for proto in ["http", "https"] {
        let request = Request::get("/visit")
            .header("x-forwarded-proto", proto)
            .header("forwarded", format!("proto={proto}"))
            .body(Body::empty())
            .unwrap();
        let answer = send(&app.router, request).await;
        assert_eq!(answer.cookies()[0].secure(), Some(true));
    }
    let config = SessionConfig::default().with_insecure_plain_http_for_development(true);
    let plain = app_with(routes(), config);
    let answer = Browser::default().get(&plain.router, "/visit").await;
    assert_eq!(
        (answer.cookies()[0].name(), answer.cookies()[0].secure()),
        ("id", None)
    );
}

#[tokio::test]
async fn an_absolute_timeout_holds_however_much_the_session_is_used() {
    let hour = Duration::from_secs(3600);
    let config = SessionConfig::default()
        .with_idle_timeout(hour)
        .with_absolute_timeout(Some(3 * hour));
    let app = app_with(routes(), config);
    let mut browser = logged_in(&app).await;
    let mut answers: Vec<Answer> = Vec::new();
    for _ in 0..7 {
        app.clock.advance(hour / 2 - Duration::from_secs(60));
        answers.push(browser.get(&app.router, "/who").await);
    }
    assert!(
        answers[..6]
            .iter()
            .all(|answer| answer.body == "ada-the-secret-name")
    );
    assert_eq!(answers[6].body, "nobody", "at 3 h 23 min");
    for answer in &answers[..6] {
        for cookie in answer.cookies() {
            assert!(cookie.max_age().unwrap() <= cookie::time::Duration::hours(1));
        }
    }
    // Even if the store's own expiry says otherwise.
    let mut browser = logged_in(&app).await;
    for entry in app.store.records().values_mut() {
        entry.expires += 100 * hour;
    }
    app.clock.advance(3 * hour);
    assert_eq!(browser.get(&app.router, "/who").await.body, "nobody");
    // A new id is a new start.
    let mut browser = logged_in(&app).await;
    for _ in 0..5 {
        app.clock.advance(hour - Duration::from_secs(60));
        browser.get(&app.router, "/login").await;
    }
    assert_eq!(
        browser.get(&app.router, "/who").await.body,
        "ada-the-secret-name"
    );
}

#[tokio::test]
async fn a_session_cookie_has_no_expiry() {
    let app = app_with(routes(), SessionConfig::default().with_permanent(false));
    let answer = Browser::default().get(&app.router, "/visit").await;
    let cookie = &answer.cookies()[0];
    assert_eq!(cookie.max_age(), None);
    assert_eq!(cookie.expires(), None);
}
