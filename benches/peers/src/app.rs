//! One application per row. The handlers of all rows do the same work.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tower_sessions::cookie::Key;

use crate::by_hand::{ByHand, Session as ByHandSession};
use crate::identity::IdentityLayer;

/// What handles the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// Nothing.
    Bare,
    /// A layer that does nothing.
    Identity,
    /// The least that a layer can do.
    ByHand,
    SessionLayer,
    TowerSessions,
    /// With signed cookies, which is what session-layer always has.
    TowerSessionsSigned,
}

impl Row {
    pub const ALL: [Self; 6] = [
        Self::Bare,
        Self::Identity,
        Self::ByHand,
        Self::SessionLayer,
        Self::TowerSessions,
        Self::TowerSessionsSigned,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare router",
            Self::Identity => "identity layer",
            Self::ByHand => "by hand",
            Self::SessionLayer => "session-layer",
            Self::TowerSessions => "tower-sessions",
            Self::TowerSessionsSigned => "tower-sessions signed",
        }
    }

    pub fn has_sessions(self) -> bool {
        !matches!(self, Self::Bare | Self::Identity)
    }

    /// The application, with an empty store. `with_state` has been called, so that the layers are
    /// applied here and not once per request.
    pub fn router(self) -> Router {
        match self {
            Self::Bare => plain(),
            Self::Identity => plain().layer(IdentityLayer),
            Self::ByHand => by_hand_routes().layer(ByHand::new()),
            Self::SessionLayer => {
                use session_layer::{SessionLayer, SigningKeys, store::MemoryStore};
                let keys = SigningKeys::generate().expect("keys");
                session_layer_routes().layer(SessionLayer::new(MemoryStore::new(), keys))
            }
            Self::TowerSessions => {
                use tower_sessions::{MemoryStore, SessionManagerLayer};
                tower_sessions_routes().layer(SessionManagerLayer::new(MemoryStore::default()))
            }
            Self::TowerSessionsSigned => {
                use tower_sessions::{MemoryStore, SessionManagerLayer};
                let layer = SessionManagerLayer::new(MemoryStore::default());
                tower_sessions_routes().layer(layer.with_signed(Key::generate()))
            }
        }
        .with_state(())
    }
}

/// What every session is filled with: ten keys, about a kilobyte in all.
const USER: &str = "somebody@example.com";
const NOTES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const NOTE_LENGTH: usize = 112;

async fn untouched() -> StatusCode {
    StatusCode::OK
}

/// Waits for its turn once, as for a database, so that many requests are under way at a time.
async fn waiting() -> StatusCode {
    tokio::task::yield_now().await;
    StatusCode::OK
}

/// `OK` if a value was there. A benchmark that measured failures would stop at once.
fn status<E>(found: Result<Option<impl Sized>, E>) -> StatusCode {
    match found {
        Ok(Some(_)) => StatusCode::OK,
        Ok(None) => StatusCode::NOT_FOUND,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn plain() -> Router {
    ["/untouched", "/read", "/read-write", "/create"]
        .into_iter()
        .fold(Router::new(), |router, path| {
            router.route(path, get(untouched))
        })
        .route("/read-and-wait", get(waiting))
}

fn by_hand_routes() -> Router {
    type Session = ByHandSession;

    async fn fill(session: Session) {
        session.insert("user", USER);
        session.insert("visits", 0u64);
        for note in NOTES {
            session.insert(note, note.repeat(NOTE_LENGTH));
        }
    }
    async fn read(session: Session) -> StatusCode {
        status(Ok::<_, ()>(session.get::<String>("user")))
    }
    async fn read_and_wait(session: Session) -> StatusCode {
        let found = session.get::<String>("user");
        tokio::task::yield_now().await;
        status(Ok::<_, ()>(found))
    }
    async fn read_write(session: Session) {
        let visits: u64 = session.get("visits").unwrap_or_default();
        session.insert("visits", visits + 1);
    }
    async fn create(session: Session) {
        session.insert("visits", 1u64);
    }
    async fn visits(session: Session) -> String {
        let visits: Option<u64> = session.get("visits");
        visits.unwrap_or_default().to_string()
    }
    Router::new()
        .route("/fill", get(fill))
        .route("/untouched", get(untouched))
        .route("/read", get(read))
        .route("/read-and-wait", get(read_and_wait))
        .route("/read-write", get(read_write))
        .route("/create", get(create))
        .route("/visits", get(visits))
}

fn session_layer_routes() -> Router {
    use session_layer::{Session, SessionError};

    async fn fill(session: Session) -> Result<(), SessionError> {
        session.insert("user", USER)?;
        session.insert("visits", 0u64)?;
        for note in NOTES {
            session.insert(note, note.repeat(NOTE_LENGTH))?;
        }
        Ok(())
    }
    async fn read(session: Session) -> StatusCode {
        status(session.get::<String>("user"))
    }
    async fn read_and_wait(session: Session) -> StatusCode {
        let found = session.get::<String>("user");
        tokio::task::yield_now().await;
        status(found)
    }
    async fn read_write(session: Session) -> Result<(), SessionError> {
        let visits: u64 = session.get("visits")?.unwrap_or_default();
        session.insert("visits", visits + 1)
    }
    async fn create(session: Session) -> Result<(), SessionError> {
        session.insert("visits", 1u64)
    }
    async fn visits(session: Session) -> Result<String, SessionError> {
        Ok(session
            .get::<u64>("visits")?
            .unwrap_or_default()
            .to_string())
    }
    Router::new()
        .route("/fill", get(fill))
        .route("/untouched", get(untouched))
        .route("/read", get(read))
        .route("/read-and-wait", get(read_and_wait))
        .route("/read-write", get(read_write))
        .route("/create", get(create))
        .route("/visits", get(visits))
}

fn tower_sessions_routes() -> Router {
    use tower_sessions::Session;
    use tower_sessions::session::Error;

    fn answer<T>(result: Result<T, Error>) -> Result<T, StatusCode> {
        result.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    }
    async fn fill(session: Session) -> Result<(), StatusCode> {
        answer(session.insert("user", USER).await)?;
        answer(session.insert("visits", 0u64).await)?;
        for note in NOTES {
            answer(session.insert(note, note.repeat(NOTE_LENGTH)).await)?;
        }
        Ok(())
    }
    async fn read(session: Session) -> StatusCode {
        status(session.get::<String>("user").await)
    }
    async fn read_and_wait(session: Session) -> StatusCode {
        let found = session.get::<String>("user").await;
        tokio::task::yield_now().await;
        status(found)
    }
    async fn read_write(session: Session) -> Result<(), StatusCode> {
        let visits: u64 = answer(session.get("visits").await)?.unwrap_or_default();
        answer(session.insert("visits", visits + 1).await)
    }
    async fn create(session: Session) -> Result<(), StatusCode> {
        answer(session.insert("visits", 1u64).await)
    }
    async fn visits(session: Session) -> Result<String, StatusCode> {
        let visits: Option<u64> = answer(session.get("visits").await)?;
        Ok(visits.unwrap_or_default().to_string())
    }
    Router::new()
        .route("/fill", get(fill))
        .route("/untouched", get(untouched))
        .route("/read", get(read))
        .route("/read-and-wait", get(read_and_wait))
        .route("/read-write", get(read_write))
        .route("/create", get(create))
        .route("/visits", get(visits))
}
