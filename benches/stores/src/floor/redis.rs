//! Redis: `GET`, `SET NX PX`, and a script that compares 16 bytes and writes.

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{AsyncCommands, Script};
use axum::Router;
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use http::StatusCode;

use super::{Floor, MONTH, revision, subject};
use crate::server::{Folder, Server, free_port, program};
use crate::subject::{Subject, found};
use crate::{Empty, Place};

pub async fn open() -> Place {
    let folder = Folder::new("bench-redis");
    let port = free_port();
    let directory = folder.path().display().to_string();
    let server = Server::start(
        "redis",
        folder,
        port,
        [
            program("REDIS_SERVER", "redis-server", &[]),
            "--port".to_owned(),
            port.to_string(),
            "--bind".to_owned(),
            "127.0.0.1".to_owned(),
            "--dir".to_owned(),
            directory,
            "--save".to_owned(),
            String::new(),
        ],
    );
    let url = format!("redis://127.0.0.1:{port}");
    Place {
        name: "redis",
        note: "redis-server without persistence, one multiplexed connection.",
        subjects: vec![
            subject(Bare::connect(&url).await).await,
            Subject::session_layer(&url).await,
            tower_sessions(port).await,
        ],
        empty: Some(empty(&url)),
        _keeps: Box::new(server),
    }
}

/// A table of millions is being moved to a larger one half of the time, which takes the server longer than
/// what is measured.
fn empty(url: &str) -> Empty {
    let client = ::redis::Client::open(url).expect("a client");
    Box::new(move || {
        let client = client.clone();
        Box::pin(async move {
            let connection = client.get_multiplexed_async_connection().await;
            let mut connection = connection.expect("a connection");
            let flush = ::redis::cmd("FLUSHALL");
            let () = flush.query_async(&mut connection).await.expect("FLUSHALL");
        })
    })
}

#[derive(Clone)]
struct Bare {
    connection: ConnectionManager,
    script: Script,
}

impl Bare {
    async fn connect(url: &str) -> Self {
        let client = ::redis::Client::open(format!("{url}?protocol=resp3")).expect("a client");
        let config = ConnectionManagerConfig::new();
        let connection = ConnectionManager::new_with_config(client, config).await;
        Self {
            connection: connection.expect("a connection"),
            script: Script::new(
                "local c = redis.call('GETRANGE', KEYS[1], 1, 16) \
                 if c == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1 end \
                 return 0",
            ),
        }
    }
}

impl Floor for Bare {
    type Seen = Bytes;

    async fn load(&self, key: &str) -> Option<Bytes> {
        self.connection.clone().get(key).await.expect("GET")
    }

    async fn update(&self, key: &str, seen: Bytes) -> bool {
        let mut new = BytesMut::from(&seen[..]);
        new[1..17].copy_from_slice(&revision());
        let mut invocation = self.script.key(key);
        invocation.arg(&seen[1..17]).arg(&new[..]).arg(lifetime());
        let mut connection = self.connection.clone();
        invocation
            .invoke_async(&mut connection)
            .await
            .expect("EVALSHA")
    }

    async fn create(&self, key: &str, payload: usize) -> bool {
        let mut command = ::redis::cmd("SET");
        command
            .arg(key)
            .arg(vec![b'x'; 17 + payload])
            .arg("NX")
            .arg("PX")
            .arg(lifetime());
        let mut connection = self.connection.clone();
        // `OK`, or nothing.
        let set: Option<String> = command.query_async(&mut connection).await.expect("SET");
        set.is_some()
    }
}

fn lifetime() -> u64 {
    MONTH.as_millis() as u64
}

async fn tower_sessions(port: u16) -> Subject {
    use tower_sessions::cookie::Key;
    use tower_sessions::session::Error;
    use tower_sessions::{Session, SessionManagerLayer};
    use tower_sessions_redis_store::RedisStore;
    use tower_sessions_redis_store::fred::prelude::{ClientLike, Config, Pool};

    fn answer<T>(result: Result<T, Error>) -> Result<T, StatusCode> {
        result.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    }
    async fn fill(session: Session) -> Result<(), StatusCode> {
        answer(session.insert("user", crate::subject::USER).await)?;
        answer(session.insert("visits", 0_u64).await)?;
        for note in crate::subject::NOTES {
            let text = note.repeat(crate::subject::NOTE_LENGTH);
            answer(session.insert(note, text).await)?;
        }
        Ok(())
    }
    async fn read(session: Session) -> Result<StatusCode, StatusCode> {
        Ok(found(answer(session.get::<String>("user").await)?))
    }
    async fn read_write(session: Session) -> Result<(), StatusCode> {
        let visits: u64 = answer(session.get("visits").await)?.unwrap_or_default();
        answer(session.insert("visits", visits + 1).await)
    }
    async fn create(session: Session) -> Result<(), StatusCode> {
        answer(session.insert("visits", 1_u64).await)
    }
    let config = Config::from_url(&format!("redis://127.0.0.1:{port}")).expect("a URL");
    // Six connections, as in its documentation.
    let pool = Pool::new(config, None, None, None, 6).expect("a pool");
    pool.connect();
    pool.wait_for_connect().await.expect("connections");
    let layer = SessionManagerLayer::new(RedisStore::new(pool)).with_signed(Key::generate());
    let router = Router::new()
        .route("/fill", get(fill))
        .route("/read", get(read))
        .route("/read-write", get(read_write))
        .route("/create", get(create))
        .layer(layer);
    Subject::filled("tower-sessions signed", router).await
}
