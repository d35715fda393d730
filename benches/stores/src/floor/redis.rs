//! Redis: `GET`, `SET NX PX`, and a script that compares 16 bytes and writes.

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{AsyncCommands, Script};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use crate::Place;
use crate::server::{Folder, Server, free_port, program};
use crate::subject::{PAYLOAD, Subject, found, key, new_key, new_keys};

const MONTH: u64 = 31 * 24 * 3600 * 1000;

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
        subjects: vec![
            floor(&url).await,
            Subject::session_layer(&url).await,
            tower_sessions(port).await,
        ],
        _keeps: vec![Box::new(server)],
    }
}

#[derive(Clone)]
struct Floor {
    connection: ConnectionManager,
    script: Script,
}

async fn floor(url: &str) -> Subject {
    let client = ::redis::Client::open(format!("{url}?protocol=resp3")).expect("a client");
    let config = ConnectionManagerConfig::new();
    let connection = ConnectionManager::new_with_config(client, config).await;
    let floor = Floor {
        connection: connection.expect("a connection"),
        script: Script::new(
            "local c = redis.call('GETRANGE', KEYS[1], 1, 16) \
             if c == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1 end \
             return 0",
        ),
    };
    let cookies = new_keys();
    for cookie in &cookies {
        let mut connection = floor.connection.clone();
        let key = cookie.to_str().expect("ASCII");
        let value = vec![b'x'; 17 + PAYLOAD];
        let () = connection.pset_ex(key, value, MONTH).await.expect("SET");
    }
    let router = Router::new()
        .route("/read", get(read))
        .route("/read-write", get(read_write))
        .route("/create", get(create))
        .with_state(floor);
    Subject {
        name: "bare driver",
        router,
        cookies,
    }
}

async fn load(connection: &mut ConnectionManager, key: &str) -> Option<Bytes> {
    connection.get(key).await.ok().flatten()
}

async fn read(State(mut floor): State<Floor>, headers: HeaderMap) -> StatusCode {
    found(load(&mut floor.connection, key(&headers)).await)
}

async fn read_write(State(mut floor): State<Floor>, headers: HeaderMap) -> StatusCode {
    let key = key(&headers);
    let Some(old) = load(&mut floor.connection, key).await else {
        return StatusCode::NOT_FOUND;
    };
    let mut new = BytesMut::from(&old[..]);
    new[1..17].copy_from_slice(&rand::random::<[u8; 16]>());
    let mut invocation = floor.script.key(key);
    invocation.arg(&old[1..17]).arg(&new[..]).arg(MONTH);
    let written: Result<u8, _> = invocation.invoke_async(&mut floor.connection).await;
    match written {
        Ok(1) => StatusCode::OK,
        Ok(_) => StatusCode::CONFLICT,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn create(State(mut floor): State<Floor>) -> StatusCode {
    let mut command = ::redis::cmd("SET");
    command
        .arg(new_key())
        .arg([b'x'; 60].as_slice())
        .arg("NX")
        .arg("PX")
        .arg(MONTH);
    match command.query_async(&mut floor.connection).await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
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
