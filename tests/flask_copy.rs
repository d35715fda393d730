//! Leaving Flask by copying: what a real Flask-Session has left in Redis is moved into PostgreSQL by the
//! program, and users stay logged in.

#[path = "support/flask.rs"]
mod flask;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/server.rs"]
mod server;
mod support;

use std::process::Command;

use axum::Router;
use axum::routing::get;
use flask::{Backend, Flask, LIFETIME, SECRET_KEY};
use session_layer::{
    AnyStore, FlaskCookies, Session, SessionConfig, SessionError, SessionLayer, SigningKeys,
};
use support::{Browser, KEY};

fn copy(from: &str, to: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_session-layer"))
        .args(["copy", from, to])
        .output()
        .unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text.push_str(&String::from_utf8(output.stderr).unwrap());
    (output.status.code(), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server, Flask and PostgreSQL"]
async fn copied_flask_sessions_stay_logged_in_on_another_store() {
    let redis = Backend::Redis.start();
    let flask = Flask::start(Backend::Redis, &redis);
    let database = postgres::start(&[]);
    let from = format!("flask+redis://127.0.0.1:{}", redis.port());
    let to = postgres::url(&database, "postgres");
    postgres::execute_sql(&to, "SELECT 1").await;

    // Every way in which a user may have logged in there, and a record that is no session.
    let mut browsers = Vec::new();
    for mount in [
        "signed-msgpack-permanent",
        "signed-json-permanent",
        "signed-msgpack-browser",
    ] {
        let mut browser = Browser::default();
        let path = format!("/{mount}/set/user/\"{mount}\"");
        flask.read(&mut browser, &path).await;
        browsers.push((mount, browser));
    }
    let client = ::redis::Client::open(format!("redis://127.0.0.1:{}", redis.port())).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let pickle = format!("session:{}", "p".repeat(42) + "A");
    let () = ::redis::cmd("SET")
        .arg(&pickle)
        .arg(b"\x80\x04}.")
        .query_async(&mut connection)
        .await
        .unwrap();

    let (code, text) = copy(&from, &to);
    assert_eq!(
        code,
        Some(3),
        "one record is left behind, and named: {text}"
    );
    assert!(text.contains('3'), "{text}");
    for (_, browser) in &browsers {
        let cookie = &browser.jar["session"];
        let id = cookie.split('.').next().unwrap();
        assert!(!text.contains(id), "an id of Flask's is a secret: {text}");
    }
    // Again: nothing is written twice.
    let (code, again) = copy(&from, &to);
    assert_eq!(code, Some(3), "{again}");
    // The other way there is none.
    let (code, refused) = copy(&to, &from);
    assert_eq!(code, Some(2), "{refused}");

    let store = AnyStore::connect(&to).await.unwrap();
    let config = SessionConfig::default()
        .with_cookie_name("session")
        .with_idle_timeout(LIFETIME);
    let layer = SessionLayer::with_config(store, SigningKeys::new(KEY).unwrap(), config)
        .unwrap()
        .with_flask_cookies(FlaskCookies::signed(SECRET_KEY).unwrap());
    let user = |session: Session| async move {
        let user: Option<String> = session.get("user")?;
        Ok::<_, SessionError>(user.unwrap_or_else(|| "nobody".to_owned()))
    };
    let router = Router::new().route("/user", get(user)).layer(layer);
    for (mount, mut browser) in browsers {
        let answer = browser.get(&router, "/user").await;
        assert_eq!(answer.body, mount);
        // Issued again in our own form, for as long as Flask meant it to live.
        assert_eq!(browser.jar["session"].len(), 97);
        let kept = answer.cookies()[0].max_age().is_some();
        assert_eq!(kept, mount.ends_with("permanent"), "{answer:?}");
        assert_eq!(browser.get(&router, "/user").await.body, mount);
    }
}
