//! What is measured: an application, and the cookies of its sessions.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::header::{COOKIE, HeaderValue, SET_COOKIE};
use http::{Request, StatusCode, Uri};
use session_layer::{AnyStore, Session, SessionError, SessionLayer, SigningKeys};
use tower_service::Service;

/// As many as there are requests in flight.
pub const SESSIONS: usize = 64;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// One of ten keys is read.
    Read,
    /// A counter is read and written.
    ReadWrite,
    /// A counter is put into a new session.
    Create,
}

impl Operation {
    pub const ALL: [Self; 3] = [Self::Read, Self::ReadWrite, Self::Create];

    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadWrite => "read and write",
            Self::Create => "create",
        }
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Read => "/read",
            Self::ReadWrite => "/read-write",
            Self::Create => "/create",
        }
    }
}

/// An application that answers the paths of [`Operation`] with an empty body.
pub struct Subject {
    pub name: &'static str,
    pub router: Router,
    /// What each session's requests say in `Cookie`.
    pub cookies: Vec<HeaderValue>,
}

/// What every session is filled with: ten keys, about a kilobyte in all.
pub const USER: &str = "somebody@example.com";
pub const NOTES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
pub const NOTE_LENGTH: usize = 112;

/// A payload as large as that.
pub const PAYLOAD: usize = 989;

/// A payload as large as that of a session which was just created.
pub const CREATED: usize = 33;

impl Subject {
    /// An application whose `/fill` makes a session.
    pub async fn filled(name: &'static str, router: Router) -> Self {
        let mut router = router.with_state(());
        let mut cookies = Vec::new();
        for _ in 0..SESSIONS {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = Uri::from_static("/fill");
            let response = Service::<Request<Body>>::call(&mut router, request).await;
            let response = response.unwrap_or_else(|never| match never {});
            assert_eq!(response.status(), StatusCode::OK);
            let set = response.headers()[SET_COOKIE].to_str().expect("ASCII");
            let pair = set.split(';').next().unwrap_or_default();
            cookies.push(pair.parse().expect("a header"));
        }
        Self {
            name,
            router,
            cookies,
        }
    }

    /// session-layer on the store at `url`.
    pub async fn session_layer(url: &str) -> Self {
        async fn fill(session: Session) -> Result<(), SessionError> {
            session.insert("user", USER)?;
            session.insert("visits", 0_u64)?;
            for note in NOTES {
                session.insert(note, note.repeat(NOTE_LENGTH))?;
            }
            Ok(())
        }
        async fn read(session: Session) -> Result<StatusCode, SessionError> {
            Ok(found(session.get::<String>("user")?))
        }
        async fn read_write(session: Session) -> Result<(), SessionError> {
            let visits: u64 = session.get("visits")?.unwrap_or_default();
            session.insert("visits", visits + 1)
        }
        async fn create(session: Session) -> Result<(), SessionError> {
            session.insert("visits", 1_u64)
        }
        let store = AnyStore::connect(url).await.expect("a store");
        let keys = SigningKeys::generate().expect("keys");
        let router = Router::new()
            .route("/fill", get(fill))
            .route("/read", get(read))
            .route("/read-write", get(read_write))
            .route("/create", get(create))
            .layer(SessionLayer::new(store, keys));
        Self::filled("session-layer", router).await
    }
}

/// A benchmark that measured failures would stop at once.
pub fn found(value: Option<impl Sized>) -> StatusCode {
    match value {
        Some(_) => StatusCode::OK,
        None => StatusCode::NOT_FOUND,
    }
}

/// What a floor's request says of its session: nothing is parsed.
pub fn key(headers: &http::HeaderMap) -> &str {
    headers
        .get(COOKIE)
        .and_then(|cookie| cookie.to_str().ok())
        .unwrap_or_default()
}

/// As many keys as [`SESSIONS`], none of which is taken.
pub fn new_keys() -> Vec<HeaderValue> {
    (0..SESSIONS)
        .map(|_| new_key().parse().expect("a header"))
        .collect()
}

/// As long as a session key.
pub fn new_key() -> String {
    format!("{:043}", rand::random::<u128>())
}
