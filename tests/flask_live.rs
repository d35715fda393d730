//! A real Flask application and an axum application that share their sessions: on Redis and on
//! memcached, with and without the signer, MessagePack and JSON, permanent and not.

#[path = "support/flask.rs"]
mod flask;
#[path = "support/server.rs"]
mod server;
mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use flask::{Backend, Flask, LIFETIME, SECRET_KEY};
use http::StatusCode;
use memcache::exp::AsyncMetaClient;
use server::Server;
use session_layer::store::{FlaskMemcachedStore, FlaskRedisStore, MemoryStore, MigratingStore};
use session_layer::{
    FlaskCookies, Format, Session, SessionConfig, SessionError, SessionLayer, SigningKeys,
};
use support::{Answer, Browser, KEY};
use tokio::sync::Notify;

type Flashes = Vec<(String, String)>;

fn routes(gate: Arc<Notify>) -> Router {
    let add = |session: Session| async move {
        session
            .update("n", |n: Option<u64>| n.unwrap_or(0) + 1)
            .map(|n| n.to_string())
    };
    let slow_set = move |session: Session| {
        let gate = Arc::clone(&gate);
        async move {
            gate.notified().await;
            session.insert("slow", true)
        }
    };
    let login = |session: Session, Path(user): Path<String>| async move {
        session.cycle_id();
        session.insert("user", user)
    };
    let flashes = |session: Session| async move {
        let flashes: Flashes = session.take("_flashes")?.unwrap_or_default();
        Ok::<_, SessionError>(format!("{flashes:?}"))
    };
    Router::new()
        .route("/add", get(add))
        .route("/slow-set", get(slow_set))
        .route("/login/{user}", get(login))
        .route("/flashes", get(flashes))
        .route(
            "/logout",
            get(|session: Session| async move { session.flush() }),
        )
        .route(
            "/user",
            get(|session: Session| async move {
                let user: Option<String> = session.get("user")?;
                Ok::<_, SessionError>(user.unwrap_or_else(|| "nobody".to_owned()))
            }),
        )
        .route(
            "/set/{key}/{value}",
            get(
                |session: Session, Path((key, value)): Path<(String, String)>| async move {
                    session.insert(&key, value)
                },
            ),
        )
        .route(
            "/keys",
            get(|session: Session| async move {
                let mut keys = session.keys();
                keys.sort();
                keys.join(" ")
            }),
        )
        .route(
            "/permanent/{permanent}",
            get(|session: Session, Path(permanent): Path<bool>| async move {
                session.set_permanent(permanent);
            }),
        )
        .route(
            "/flash/{text}",
            get(|session: Session, Path(text): Path<String>| async move {
                session.update("_flashes", move |flashes: Option<Flashes>| {
                    let mut flashes = flashes.unwrap_or_default();
                    flashes.push(("info".to_owned(), text.clone()));
                    flashes
                })?;
                Ok::<_, SessionError>(())
            }),
        )
        .route(
            "/save-twice",
            get(|session: Session| async move {
                session.insert("first", 1)?;
                session.save().await?;
                session.insert("second", 2)?;
                session.save().await?;
                session.insert("third", 3)
            }),
        )
}

/// How one of the Flask applications is set up.
#[derive(Debug, Clone, Copy)]
struct Setup {
    signed: bool,
    json: bool,
    permanent: bool,
}

impl Setup {
    const PLAIN: Self = Self {
        signed: false,
        json: false,
        permanent: true,
    };

    fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| Self {
            signed: bits & 1 > 0,
            json: bits & 2 > 0,
            permanent: bits & 4 > 0,
        })
    }

    fn mount(self) -> String {
        format!(
            "/{}-{}-{}",
            if self.signed { "signed" } else { "plain" },
            if self.json { "json" } else { "msgpack" },
            if self.permanent {
                "permanent"
            } else {
                "browser"
            },
        )
    }

    fn cookies(self) -> FlaskCookies {
        match self.signed {
            true => FlaskCookies::signed(SECRET_KEY).unwrap(),
            false => FlaskCookies::plain(),
        }
    }

    fn config(self) -> SessionConfig {
        SessionConfig::default()
            .with_idle_timeout(LIFETIME)
            .with_permanent(self.permanent)
            .with_format(if self.json {
                Format::Json
            } else {
                Format::MessagePack
            })
    }
}

struct World {
    backend: Backend,
    server: Server,
    flask: Flask,
    gate: Arc<Notify>,
}

impl World {
    fn start(backend: Backend) -> Self {
        let server = backend.start();
        let flask = Flask::start(backend, &server);
        Self {
            backend,
            server,
            flask,
            gate: Arc::default(),
        }
    }

    fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.backend.name(), self.server.port())
    }

    async fn layer(&self, setup: Setup) -> SessionLayer {
        let (cookies, config) = (setup.cookies(), setup.config());
        match self.backend {
            Backend::Redis => {
                let store = FlaskRedisStore::connect(&self.url()).await.unwrap();
                SessionLayer::for_flask(store, cookies, config)
            }
            Backend::Memcached => {
                let store = FlaskMemcachedStore::connect(&self.url()).await.unwrap();
                SessionLayer::for_flask(store, cookies, config)
            }
        }
        .unwrap()
    }

    async fn axum(&self, setup: Setup) -> Router {
        routes(Arc::clone(&self.gate)).layer(self.layer(setup).await)
    }

    fn redis(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_connection().unwrap()
    }

    async fn memcached(&self) -> AsyncMetaClient {
        AsyncMetaClient::connect(("127.0.0.1", self.server.port()))
            .await
            .unwrap()
    }

    /// The bytes that are there, and how long they live.
    async fn stored(&self, sid: &str) -> Option<(Vec<u8>, i64)> {
        let key = format!("session:{sid}");
        match self.backend {
            Backend::Redis => {
                let (value, ttl): (Option<Vec<u8>>, i64) = redis::pipe()
                    .cmd("GET")
                    .arg(&key)
                    .cmd("TTL")
                    .arg(&key)
                    .query(&mut self.redis())
                    .unwrap();
                Some((value?, ttl))
            }
            Backend::Memcached => {
                let meta = memcache::exp::Meta::NONE.ttl();
                let got = self
                    .memcached()
                    .await
                    .get(&key)
                    .meta(meta)
                    .send()
                    .await
                    .unwrap();
                Some((got.value?, got.item.ttl.unwrap()))
            }
        }
    }

    async fn put(&self, sid: &str, value: &[u8]) {
        let key = format!("session:{sid}");
        match self.backend {
            Backend::Redis => redis::cmd("SET")
                .arg(key)
                .arg(value)
                .arg("EX")
                .arg(1000)
                .exec(&mut self.redis())
                .unwrap(),
            Backend::Memcached => {
                let client = self.memcached().await;
                let set = client.set(&key, value).ttl_raw(1000);
                assert!(set.send().await.unwrap().applied());
            }
        }
    }
}

/// The id in a cookie of either form.
fn sid(browser: &Browser) -> &str {
    let value = &browser.jar["session"];
    value.split('.').next().unwrap()
}

fn max_age(answer: &Answer) -> Option<u64> {
    let cookies = answer.cookies();
    assert_eq!(cookies.len(), 1, "{cookies:?}");
    Some(cookies[0].max_age()?.whole_seconds() as u64)
}

/// Everything that a user does, on both sides in turn.
async fn a_session_is_one_on_both_sides(world: &World, setup: Setup) {
    let (flask, axum, at) = (&world.flask, world.axum(setup).await, setup.mount());
    let ctx = format!("{:?} {setup:?}", world.backend);
    let mut browser = Browser::default();

    // Log in there, be logged in here; change here, read there.
    flask
        .read(&mut browser, &format!("{at}/set/user/\"ada\""))
        .await;
    assert_eq!(browser.get(&axum, "/user").await.body, "ada", "{ctx}");
    assert_eq!(browser.get(&axum, "/add").await.body, "1", "{ctx}");
    assert_eq!(
        flask.read(&mut browser, &format!("{at}/add")).await,
        "2",
        "{ctx}"
    );
    assert_eq!(browser.get(&axum, "/add").await.body, "3", "{ctx}");
    assert_eq!(
        flask.read(&mut browser, &format!("{at}/get/user")).await,
        "\"ada\"",
        "{ctx}"
    );
    assert_eq!(browser.get(&axum, "/keys").await.body, "n user", "{ctx}");
    let permanent = flask.read(&mut browser, &format!("{at}/permanent")).await;
    assert_eq!(permanent, setup.permanent.to_string(), "{ctx}");
    let data = flask.read(&mut browser, &format!("{at}/all")).await;
    let mark = if setup.permanent {
        "\"_permanent\": true, "
    } else {
        ""
    };
    assert_eq!(
        data,
        format!("{{{mark}\"n\": 3, \"user\": \"ada\"}}"),
        "{ctx}"
    );

    // What is flashed there is shown here, once, and the other way round.
    flask.read(&mut browser, &format!("{at}/flash/hello")).await;
    let shown = browser.get(&axum, "/flashes").await.body;
    assert_eq!(shown, "[(\"info\", \"hello\")]", "{ctx}");
    assert_eq!(
        flask.read(&mut browser, &format!("{at}/flashes")).await,
        "[]",
        "{ctx}"
    );
    browser.get(&axum, "/flash/back").await;
    let shown = flask.read(&mut browser, &format!("{at}/flashes")).await;
    assert_eq!(shown, "[[\"info\", \"back\"]]", "{ctx}");
    assert_eq!(browser.get(&axum, "/flashes").await.body, "[]", "{ctx}");

    // Values that Rust has no type for survive a change here.
    let odd = flask.read(&mut browser, &format!("{at}/odd")).await;
    let odd = match setup.json {
        // JSON has already made text of the bytes and the date.
        true => flask.read(&mut browser, &format!("{at}/show-odd")).await,
        false => odd,
    };
    browser.get(&axum, "/add").await;
    assert_eq!(
        flask.read(&mut browser, &format!("{at}/show-odd")).await,
        odd,
        "{ctx}"
    );

    // A logout there is one here.
    let stale = browser.clone();
    flask.read(&mut browser, &format!("{at}/logout")).await;
    assert!(browser.jar.is_empty(), "{ctx}");
    assert_eq!(
        stale.clone().get(&axum, "/user").await.body,
        "nobody",
        "{ctx}"
    );

    // Log in here, be logged in there.
    let login = browser.get(&axum, "/login/grace").await;
    let expected = setup.permanent.then_some(LIFETIME.as_secs());
    assert_eq!(max_age(&login), expected, "{ctx}");
    let attributes = login.headers["set-cookie"].to_str().unwrap();
    for attribute in [
        "session=",
        "; Path=/",
        "; Secure",
        "; HttpOnly",
        "; SameSite=Lax",
    ] {
        assert!(attributes.contains(attribute), "{ctx}: {attributes}");
    }
    assert_eq!(
        flask.read(&mut browser, &format!("{at}/get/user")).await,
        "\"grace\"",
        "{ctx}"
    );
    let permanent = flask.read(&mut browser, &format!("{at}/permanent")).await;
    assert_eq!(permanent, setup.permanent.to_string(), "{ctx}");
    let (_, ttl) = world.stored(sid(&browser)).await.unwrap();
    assert!((900..=1001).contains(&ttl), "{ctx}: {ttl}");

    // A new id here leaves nothing under the old one, and one there neither.
    let before = browser.clone();
    browser.get(&axum, "/login/ada").await;
    assert_ne!(sid(&browser), sid(&before), "{ctx}");
    assert!(world.stored(sid(&before)).await.is_none(), "{ctx}");
    let old = flask
        .read(&mut before.clone(), &format!("{at}/get/user"))
        .await;
    assert_eq!(old, "null", "{ctx}");
    let before = browser.clone();
    flask.read(&mut browser, &format!("{at}/regenerate")).await;
    assert_ne!(sid(&browser), sid(&before), "{ctx}");
    assert_eq!(
        before.clone().get(&axum, "/user").await.body,
        "nobody",
        "{ctx}"
    );
    assert_eq!(browser.get(&axum, "/user").await.body, "ada", "{ctx}");

    // Permanence is one thing on both sides.
    let changed = browser
        .get(&axum, &format!("/permanent/{}", !setup.permanent))
        .await;
    let expected = (!setup.permanent).then_some(LIFETIME.as_secs());
    assert_eq!(max_age(&changed), expected, "{ctx}");
    let permanent = flask.read(&mut browser, &format!("{at}/permanent")).await;
    assert_eq!(permanent, (!setup.permanent).to_string(), "{ctx}");

    // A logout here is one there, and leaves nothing that Flask could take for a session.
    let stale = browser.clone();
    let logout = browser.get(&axum, "/logout").await;
    assert!(logout.removes_cookie(), "{ctx}: {logout:?}");
    assert!(world.stored(sid(&stale)).await.is_none(), "{ctx}");
    let there = flask
        .read(&mut stale.clone(), &format!("{at}/get/user"))
        .await;
    assert_eq!(there, "null", "{ctx}");
    assert_eq!(
        stale.clone().get(&axum, "/user").await.body,
        "nobody",
        "{ctx}"
    );
}

async fn every_setup(backend: Backend) {
    let world = World::start(backend);
    for setup in Setup::all() {
        a_session_is_one_on_both_sides(&world, setup).await;
    }
}

#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn a_session_is_one_on_both_sides_on_redis() {
    every_setup(Backend::Redis).await;
}

#[tokio::test]
#[ignore = "needs memcached and Flask"]
async fn a_session_is_one_on_both_sides_on_memcached() {
    every_setup(Backend::Memcached).await;
}

/// Cookies that nobody was given: anonymous, without a trace, and never adopted.
async fn forged_cookies(backend: Backend) {
    let world = World::start(backend);
    let (plain, signed) = (
        Setup::PLAIN,
        Setup {
            signed: true,
            ..Setup::PLAIN
        },
    );
    let (open, closed) = (world.axum(plain).await, world.axum(signed).await);
    let mut browser = Browser::default();
    world
        .flask
        .read(
            &mut browser,
            &format!("{}/set/user/\"ada\"", signed.mount()),
        )
        .await;
    let cookie = browser.jar["session"].clone();
    let sid = sid(&browser).to_owned();
    assert_eq!(browser.get(&closed, "/user").await.body, "ada");
    let with = |value: &str| Browser {
        jar: [("session".to_owned(), value.to_owned())].into(),
    };
    // The bare id is enough without the signer only.
    assert_eq!(with(&sid).get(&open, "/user").await.body, "ada");
    assert_eq!(with(&sid).get(&closed, "/user").await.body, "nobody");
    assert_eq!(with(&cookie).get(&open, "/user").await.body, "nobody");
    let mut changed = cookie.clone();
    let last = if changed.pop() == Some('A') { 'B' } else { 'A' };
    changed.insert(changed.len() - 5, last);
    for forged in [
        changed.as_str(),
        &cookie[..cookie.len() - 1],
        &format!("{sid}."),
        ".",
        "",
        &"x".repeat(300),
        "has space and \"quotes\"",
        "../../etc/passwd",
        &format!("{sid}\\012set"),
    ] {
        for app in [&open, &closed] {
            let answer = with(forged).get(app, "/user").await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (StatusCode::OK, "nobody")
            );
            assert!(answer.headers.get("set-cookie").is_none(), "{forged:?}");
        }
    }
    // An id of the right form that nobody has: a new one is drawn.
    let chosen = "A".repeat(42) + "E";
    let mut victim = with(&chosen);
    victim.get(&open, "/login/ada").await;
    assert_ne!(self::sid(&victim), chosen);
    assert!(world.stored(&chosen).await.is_none());
    assert_eq!(victim.get(&open, "/user").await.body, "ada");
}

#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn cookies_that_nobody_was_given_lead_nowhere_on_redis() {
    forged_cookies(Backend::Redis).await;
}

#[tokio::test]
#[ignore = "needs memcached and Flask"]
async fn cookies_that_nobody_was_given_lead_nowhere_on_memcached() {
    forged_cookies(Backend::Memcached).await;
}

/// What Flask answers with 500 for ever is a new visitor here.
async fn garbage(backend: Backend) {
    let world = World::start(backend);
    let axum = world.axum(Setup::PLAIN).await;
    let id = "q3Zr0vXkT8m1cB7yJ4uNwE5sHfL2aPdG9iKoR6tVxYU";
    for garbage in [
        &b""[..],
        b"null",
        b"\xc0",
        b"5",
        b"[1]",
        b"\x91\x01",
        b"\xff\xfe garbage",
        b"\x83\xa1n\x01",
        // pickle.dumps({"user": "ada"}, 4)
        b"\x80\x04\x95\x13\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x04user\x94\x8c\x03ada\x94s.",
    ] {
        world.put(id, garbage).await;
        let mut browser = Browser {
            jar: [("session".to_owned(), id.to_owned())].into(),
        };
        let answer = browser.get(&axum, "/user").await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (StatusCode::OK, "nobody")
        );
        let added = browser.get(&axum, "/add").await;
        assert_eq!((added.status, added.body.as_str()), (StatusCode::OK, "1"));
        assert_ne!(sid(&browser), id, "{garbage:?}");
        assert_eq!(
            world.stored(id).await.unwrap().0,
            garbage,
            "it is left alone"
        );
    }
    world.put(id, b"\x80").await;
    let mut browser = Browser {
        jar: [("session".to_owned(), id.to_owned())].into(),
    };
    browser.get(&axum, "/add").await;
    assert_eq!(sid(&browser), id, "an empty session is one");
    if backend == Backend::Redis {
        let key = format!("session:{id}");
        redis::cmd("DEL")
            .arg(&key)
            .exec(&mut world.redis())
            .unwrap();
        redis::cmd("LPUSH")
            .arg(&key)
            .arg("x")
            .exec(&mut world.redis())
            .unwrap();
        let answer = browser.get(&axum, "/user").await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (StatusCode::OK, "nobody")
        );
    }
}

#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn records_that_are_no_sessions_are_new_visitors_on_redis() {
    garbage(Backend::Redis).await;
}

#[tokio::test]
#[ignore = "needs memcached and Flask"]
async fn records_that_are_no_sessions_are_new_visitors_on_memcached() {
    garbage(Backend::Memcached).await;
}

/// Requests that overlap.
async fn overlapping(backend: Backend) {
    let world = World::start(backend);
    let axum = world.axum(Setup::PLAIN).await;
    let at = Setup::PLAIN.mount();
    let mut browser = Browser::default();
    world
        .flask
        .read(&mut browser, &format!("{at}/set/user/\"ada\""))
        .await;

    // Equal bytes are not taken for one's own write: each addition counts.
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let request = browser.request("/add");
        tasks.push(tokio::spawn(support::send(&axum, request)));
    }
    let mut refused = 0;
    for task in tasks {
        let status = task.await.unwrap().status;
        assert!(
            status.is_success() || status == StatusCode::SERVICE_UNAVAILABLE,
            "{status}"
        );
        refused += u64::from(!status.is_success());
    }
    let counted: u64 = world
        .flask
        .read(&mut browser, &format!("{at}/get/n"))
        .await
        .parse()
        .unwrap();
    assert_eq!(counted, 50 - refused);
    assert!(refused < 10, "{refused} of 50 could not be settled in time");

    // Several commits of one request.
    assert!(browser.get(&axum, "/save-twice").await.status.is_success());
    assert_eq!(
        browser.get(&axum, "/keys").await.body,
        "first n second third user"
    );

    // A request that was under way when the other side changed a key loses nothing, ...
    let slow = support::send(&axum, browser.request("/slow-set"));
    let slow = tokio::spawn(slow);
    tokio::time::sleep(Duration::from_millis(200)).await;
    world
        .flask
        .read(&mut browser, &format!("{at}/set/meanwhile/1"))
        .await;
    world.gate.notify_one();
    assert!(slow.await.unwrap().status.is_success());
    assert_eq!(
        browser.get(&axum, "/keys").await.body,
        "first meanwhile n second slow third user"
    );

    // ... and one that was under way when it logged out does not bring the session back.
    let stale = browser.clone();
    let slow = tokio::spawn(support::send(&axum, browser.request("/slow-set")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    world
        .flask
        .read(&mut browser, &format!("{at}/logout"))
        .await;
    world.gate.notify_one();
    let answer = slow.await.unwrap();
    assert!(
        answer.status.is_success() && answer.sets_no_cookie(),
        "{answer:?}"
    );
    assert!(world.stored(sid(&stale)).await.is_none());
    // The same when this side did.
    let mut browser = Browser::default();
    browser.get(&axum, "/login/ada").await;
    let slow = tokio::spawn(support::send(&axum, browser.request("/slow-set")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stale = browser.clone();
    browser.get(&axum, "/logout").await;
    world.gate.notify_one();
    assert!(slow.await.unwrap().sets_no_cookie());
    assert!(world.stored(sid(&stale)).await.is_none());
}

#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn overlapping_requests_lose_nothing_and_revive_nothing_on_redis() {
    overlapping(Backend::Redis).await;
}

#[tokio::test]
#[ignore = "needs memcached and Flask"]
async fn overlapping_requests_lose_nothing_and_revive_nothing_on_memcached() {
    overlapping(Backend::Memcached).await;
}

/// A session is renewed when it is read after the share of its lifetime, and its cookie with it.
async fn renewal(backend: Backend) {
    let world = World::start(backend);
    let config = Setup::PLAIN.config().with_refresh_share(0.0);
    let cookies = FlaskCookies::plain();
    let layer = match backend {
        Backend::Redis => {
            let store = FlaskRedisStore::connect(&world.url()).await.unwrap();
            SessionLayer::for_flask(store, cookies, config)
        }
        Backend::Memcached => {
            let store = FlaskMemcachedStore::connect(&world.url()).await.unwrap();
            SessionLayer::for_flask(store, cookies, config)
        }
    };
    let eager = routes(Arc::default()).layer(layer.unwrap());
    let axum = world.axum(Setup::PLAIN).await;
    let mut browser = Browser::default();
    world
        .flask
        .read(
            &mut browser,
            &format!("{}/set/user/\"ada\"", Setup::PLAIN.mount()),
        )
        .await;
    let before = world.stored(sid(&browser)).await.unwrap().0;
    assert!(browser.get(&axum, "/user").await.sets_no_cookie());
    // As if it had been left alone for a while.
    let id = sid(&browser).to_owned();
    match backend {
        Backend::Redis => {
            let key = format!("session:{id}");
            redis::cmd("EXPIRE")
                .arg(key)
                .arg(500)
                .exec(&mut world.redis())
                .unwrap();
        }
        Backend::Memcached => {
            let client = world.memcached().await;
            let touched = client
                .get(format!("session:{id}"))
                .touch_raw(500)
                .send()
                .await;
            assert!(touched.unwrap().hit());
        }
    }
    let renewed = browser.get(&axum, "/user").await;
    assert_eq!(max_age(&renewed), Some(LIFETIME.as_secs()));
    let (after, ttl) = world.stored(&id).await.unwrap();
    assert!((900..=1001).contains(&ttl), "{ttl}");
    assert_eq!(after, before, "a renewal writes no data");
    // A change renews the cookie together with the record, however young both are.
    assert_eq!(
        max_age(&browser.get(&axum, "/add").await),
        Some(LIFETIME.as_secs())
    );
    assert_eq!(
        max_age(&browser.get(&eager, "/user").await),
        Some(LIFETIME.as_secs())
    );
}

#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn sessions_are_renewed_without_being_rewritten_on_redis() {
    renewal(Backend::Redis).await;
}

#[tokio::test]
#[ignore = "needs memcached and Flask"]
async fn sessions_are_renewed_without_being_rewritten_on_memcached() {
    renewal(Backend::Memcached).await;
}

/// A store that is down fails the requests that use it, and is used again when it is back.
async fn outage(backend: Backend) {
    let mut world = World::start(backend);
    let axum = world.axum(Setup::PLAIN).await;
    let mut browser = Browser::default();
    browser.get(&axum, "/login/ada").await;
    let cookie = browser.jar.clone();
    world.server.kill();
    for path in ["/user", "/add"] {
        let answer = browser.get(&axum, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(browser.jar, cookie, "the cookie stays");
    }
    let logout = browser.get(&axum, "/logout").await;
    assert_eq!(logout.status, StatusCode::SERVICE_UNAVAILABLE);
    world.server.start_again();
    let mut browser = Browser::default();
    for _ in 0..100 {
        if browser.get(&axum, "/login/ada").await.status.is_success() {
            assert_eq!(browser.get(&axum, "/user").await.body, "ada");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the store is not used again");
}

#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn an_outage_is_a_503_and_passes_on_redis() {
    outage(Backend::Redis).await;
}

#[tokio::test]
#[ignore = "needs memcached and Flask"]
async fn an_outage_is_a_503_and_passes_on_memcached() {
    outage(Backend::Memcached).await;
}

/// What Flask-Session does with its default settings, so that the documentation's warning is true.
#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn flask_with_refresh_rewrites_what_it_only_reads() {
    let world = World::start(Backend::Redis);
    let mut browser = Browser::default();
    world
        .flask
        .read(&mut browser, "/refreshing/set/user/\"ada\"")
        .await;
    let key = format!("session:{}", sid(&browser));
    let mut redis = world.redis();
    redis::cmd("SET")
        .arg(&key)
        .arg(r#"{"user":"ada"}"#)
        .exec(&mut redis)
        .unwrap();
    world
        .flask
        .read(&mut browser, "/refreshing/untouched")
        .await;
    let stored = world.stored(sid(&browser)).await.unwrap().0;
    assert_eq!(
        stored, b"\x81\xa4user\xa3ada",
        "rewritten by a request that touched nothing"
    );
    redis::cmd("SET")
        .arg(&key)
        .arg(r#"{"user":"ada"}"#)
        .exec(&mut redis)
        .unwrap();
    let at = Setup::PLAIN.mount();
    world
        .flask
        .read(&mut browser, &format!("{at}/untouched"))
        .await;
    let stored = world.stored(sid(&browser)).await.unwrap().0;
    assert_eq!(
        stored, br#"{"user":"ada"}"#,
        "left alone without SESSION_REFRESH_EACH_REQUEST"
    );
}

/// Leaving Flask: its sessions are taken over as they are used.
#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn flask_sessions_are_taken_over_by_a_layer_of_our_own() {
    use session_layer::store::{ScanStore, SessionStore};
    use std::num::NonZeroUsize;

    let world = World::start(Backend::Redis);
    for permanent in [true, false] {
        let setup = Setup {
            signed: true,
            permanent,
            ..Setup::PLAIN
        };
        let at = setup.mount();
        let flask = FlaskRedisStore::connect(&world.url()).await.unwrap();
        let keys = SigningKeys::new(KEY).unwrap();
        let config = SessionConfig::default()
            .with_cookie_name("session")
            .with_idle_timeout(LIFETIME);
        let store = MigratingStore::new(flask.clone(), MemoryStore::new());
        let layer = SessionLayer::with_config(store, keys.clone(), config.clone())
            .unwrap()
            .with_flask_cookies(setup.cookies());
        let axum = routes(Arc::default()).layer(layer);

        let mut browser = Browser::default();
        world
            .flask
            .read(&mut browser, &format!("{at}/set/user/\"ada\""))
            .await;
        let of_flask = browser.clone();
        let answer = browser.get(&axum, "/user").await;
        assert_eq!(answer.body, "ada");
        // Issued again in our own form, and gone from where it was.
        assert_eq!(browser.jar["session"].len(), 97);
        assert_eq!(max_age(&answer).is_some(), permanent);
        assert!(world.stored(sid(&of_flask)).await.is_none());
        // Flask's cookie is as good until the session ends; then neither is.
        assert_eq!(of_flask.clone().get(&axum, "/user").await.body, "ada");
        browser.get(&axum, "/add").await;
        assert_eq!(browser.get(&axum, "/keys").await.body, "n user");
        let stale = browser.clone();
        browser.get(&axum, "/logout").await;
        for mut old in [of_flask, stale] {
            assert_eq!(old.get(&axum, "/user").await.body, "nobody");
        }
        // A forged one of Flask's form is none.
        let mut forged = Browser::default();
        forged.jar.insert("session".into(), "A".repeat(42) + "E");
        assert_eq!(forged.get(&axum, "/user").await.body, "nobody");

        // Records that were copied are found just as well.
        let mut browser = Browser::default();
        world
            .flask
            .read(&mut browser, &format!("{at}/set/user/\"grace\""))
            .await;
        let copy = MemoryStore::new();
        let (mut copied, mut from) = (0, None);
        loop {
            let page = flask
                .scan(from.as_ref(), NonZeroUsize::new(10).unwrap())
                .await
                .unwrap();
            for key in page.keys() {
                let record = flask.load(key).await.unwrap().unwrap();
                let new = session_layer::store::NewRecord::new(
                    record.revision(),
                    record.payload(),
                    record.ttl(),
                );
                copy.create(key, &new).await.unwrap();
                copied += 1;
            }
            from = page.into_next();
            if from.is_none() {
                break;
            }
        }
        assert_eq!(copied, 1);
        let layer = SessionLayer::with_config(copy, keys, config)
            .unwrap()
            .with_flask_cookies(setup.cookies());
        let axum = routes(Arc::default()).layer(layer);
        assert_eq!(browser.get(&axum, "/user").await.body, "grace");
        assert_eq!(browser.jar["session"].len(), 97);
        redis::cmd("FLUSHALL").exec(&mut world.redis()).unwrap();
    }
}

/// The id is Flask's key in the store, and nowhere else.
#[tokio::test]
#[ignore = "needs redis-server and Flask"]
async fn the_id_is_in_no_key_that_is_shown() {
    let world = World::start(Backend::Redis);
    let layer = world.layer(Setup::PLAIN).await;
    let show = |session: Session| async move {
        let key = session.key().unwrap();
        format!("{key} {key:?} {} {session:?}", key.as_str())
    };
    let axum = routes(Arc::default())
        .route("/show", get(show))
        .layer(layer.clone());
    let mut browser = Browser::default();
    browser.get(&axum, "/login/ada").await;
    let shown = browser.get(&axum, "/show").await.body;
    assert!(!shown.contains(sid(&browser)), "{shown}");
    let text = shown.split(' ').next().unwrap();
    // A key that was read from text leads nowhere, and says so.
    let error = layer
        .sessions()
        .load(&text.parse().unwrap())
        .await
        .unwrap_err();
    let why = error.store_error().unwrap().to_string();
    assert!(why.contains("by their ids"), "{why}");
}
