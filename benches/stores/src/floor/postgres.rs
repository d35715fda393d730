//! PostgreSQL: the store's three statements, prepared, on ten connections.

use sqlx::postgres::PgConnection;
use sqlx::{Row, query};

use super::pool::Pool;
use super::{Floor, MONTH, revision, subject};
use crate::Place;
use crate::subject::Subject;

const SCHEMA: &str = "CREATE TABLE floor (\
     session_key TEXT COLLATE \"C\" NOT NULL PRIMARY KEY, \
     revision BYTEA NOT NULL, \
     expires_at TIMESTAMP WITH TIME ZONE NOT NULL, \
     payload BYTEA NOT NULL\
     ); \
     CREATE INDEX floor_expires_at ON floor (expires_at)";
const LOAD: &str = "SELECT revision, CASE WHEN octet_length(payload) <= $2 THEN payload END, \
     (extract(epoch FROM expires_at - statement_timestamp()) * 1000000)::bigint \
     FROM floor WHERE session_key = $1 AND expires_at > statement_timestamp()";
const CREATE: &str = "INSERT INTO floor AS old (session_key, revision, expires_at, payload) \
     VALUES ($1, $2, clock_timestamp() + $3 * interval '1 microsecond', $4) \
     ON CONFLICT (session_key) DO UPDATE SET revision = excluded.revision, \
     expires_at = excluded.expires_at, payload = excluded.payload \
     WHERE old.expires_at <= clock_timestamp() \
     RETURNING 1::bigint";
const UPDATE: &str = "WITH changed AS (UPDATE floor SET revision = $3, \
     expires_at = clock_timestamp() + $4 * interval '1 microsecond', payload = $5 \
     WHERE session_key = $1 AND expires_at > clock_timestamp() AND revision = $2 \
     RETURNING 1::bigint AS answer), \
     other AS (SELECT 2::bigint AS answer FROM floor \
     WHERE session_key = $1 AND expires_at > clock_timestamp() \
     AND NOT EXISTS (SELECT FROM changed) FOR SHARE) \
     SELECT answer FROM changed UNION ALL SELECT answer FROM other";

pub async fn open() -> Place {
    let server = crate::postgres::start(&[]);
    let url = crate::postgres::url(&server, "postgres");
    crate::postgres::execute_sql(&url, SCHEMA).await;
    let bare = Bare(Pool::new(&url));
    Place {
        name: "postgres",
        note: "PostgreSQL with `fsync=off`, so that no disk is measured; ten connections.",
        subjects: vec![subject(bare).await, Subject::session_layer(&url).await],
        empty: None,
        _keeps: Box::new(server),
    }
}

#[derive(Clone)]
struct Bare(Pool<PgConnection>);

struct Seen {
    revision: [u8; 16],
    payload: Vec<u8>,
}

impl Floor for Bare {
    type Seen = Seen;

    async fn load(&self, key: &str) -> Option<Seen> {
        let load = query(LOAD).bind(key).bind(1_i64 << 20);
        let rows = self
            .0
            .with(async |connection: &mut PgConnection| load.fetch_all(connection).await)
            .await
            .expect("SELECT");
        let row = rows.first()?;
        let _left: i64 = row.get(2);
        let revision: &[u8] = row.get(0);
        Some(Seen {
            revision: revision.try_into().expect("a revision"),
            payload: row.get(1),
        })
    }

    async fn update(&self, key: &str, seen: Seen) -> bool {
        let new = revision();
        let update = query(UPDATE)
            .bind(key)
            .bind(&seen.revision[..])
            .bind(&new[..])
            .bind(micros())
            .bind(&seen.payload[..]);
        let rows = self
            .0
            .with(async |connection: &mut PgConnection| update.fetch_all(connection).await)
            .await
            .expect("UPDATE");
        rows.first().is_some_and(|row| row.get::<i64, _>(0) == 1)
    }

    async fn create(&self, key: &str, payload: usize) -> bool {
        let (new, payload) = (revision(), vec![b'x'; payload]);
        let create = query(CREATE)
            .bind(key)
            .bind(&new[..])
            .bind(micros())
            .bind(&payload[..]);
        let rows = self
            .0
            .with(async |connection: &mut PgConnection| create.fetch_all(connection).await)
            .await
            .expect("INSERT");
        !rows.is_empty()
    }
}

fn micros() -> i64 {
    MONTH.as_micros() as i64
}
