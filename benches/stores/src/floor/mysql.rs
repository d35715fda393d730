//! MySQL: the store's three statements, prepared, on ten connections.

use std::sync::LazyLock;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Row, query};

use super::pool::Pool;
use super::{Floor, MONTH, revision, subject};
use crate::Place;
use crate::subject::Subject;

const SCHEMA: &str = "CREATE TABLE floor (\
     session_key VARBINARY(43) NOT NULL PRIMARY KEY, \
     revision BINARY(16) NOT NULL, \
     expires_at BIGINT NOT NULL, \
     payload LONGBLOB NOT NULL, \
     KEY expires_at (expires_at)\
     ) ENGINE = InnoDB";

struct Sql {
    load: String,
    create: String,
    update: String,
}

static SQL: LazyLock<Sql> = LazyLock::new(|| {
    let micros = "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))";
    let now = format!("{micros} DIV 1000");
    let expiry = format!("({micros} + ? + 999) DIV 1000");
    Sql {
        load: format!(
            "SELECT revision, CASE WHEN LENGTH(payload) <= ? THEN payload END, \
             expires_at, {micros} \
             FROM floor WHERE session_key = ? AND expires_at > {now}"
        ),
        create: format!(
            "INSERT INTO floor (session_key, revision, expires_at, payload) \
             VALUES (?, ?, {expiry}, ?) ON DUPLICATE KEY UPDATE \
             revision = IF(expires_at <= {now}, VALUES(revision), revision), \
             payload = IF(expires_at <= {now}, VALUES(payload), payload), \
             expires_at = IF(LAST_INSERT_ID(IF(expires_at <= {now}, 1, 2)) = 1, \
             VALUES(expires_at), expires_at)"
        ),
        update: format!(
            "UPDATE floor SET revision = ?, expires_at = {expiry}, payload = ? \
             WHERE session_key = ? \
             AND LAST_INSERT_ID(IF(expires_at <= {now}, 0, IF(revision = ?, 1, 2))) = 1"
        ),
    }
});

pub async fn open() -> Place {
    let server = crate::mysql::start(&[]);
    let url = crate::mysql::url(&server);
    let database = crate::mysql::DATABASE;
    let root = url.replace(database, "");
    crate::mysql::execute_sql(&root, &format!("CREATE DATABASE {database}")).await;
    crate::mysql::execute_sql(&url, SCHEMA).await;
    let bare = Bare(Pool::new(&url));
    Place {
        name: "mysql",
        note: "MariaDB with `innodb_flush_log_at_trx_commit=2` and no binary log, so that no disk is \
               measured; ten connections.",
        subjects: vec![subject(bare).await, Subject::session_layer(&url).await],
        empty: None,
        _keeps: Box::new(server),
    }
}

#[derive(Clone)]
struct Bare(Pool<MySqlConnection>);

struct Seen {
    revision: [u8; 16],
    payload: Vec<u8>,
}

impl Floor for Bare {
    type Seen = Seen;

    async fn load(&self, key: &str) -> Option<Seen> {
        let load = query(AssertSqlSafe(&*SQL.load))
            .bind(1_i64 << 20)
            .bind(key.as_bytes());
        let rows = self
            .0
            .with(async |connection: &mut MySqlConnection| load.fetch_all(connection).await)
            .await
            .expect("SELECT");
        let row = rows.first()?;
        let (_expiry, _now): (i64, i64) = (row.get(2), row.get(3));
        let revision: &[u8] = row.get(0);
        Some(Seen {
            revision: revision.try_into().expect("a revision"),
            payload: row.get(1),
        })
    }

    async fn update(&self, key: &str, seen: Seen) -> bool {
        let new = revision();
        let update = query(AssertSqlSafe(&*SQL.update))
            .bind(&new[..])
            .bind(micros())
            .bind(&seen.payload[..])
            .bind(key.as_bytes())
            .bind(&seen.revision[..]);
        let done = self
            .0
            .with(async |connection: &mut MySqlConnection| update.execute(connection).await)
            .await
            .expect("UPDATE");
        done.last_insert_id() == 1
    }

    async fn create(&self, key: &str, payload: usize) -> bool {
        let (new, payload) = (revision(), vec![b'x'; payload]);
        let create = query(AssertSqlSafe(&*SQL.create))
            .bind(key.as_bytes())
            .bind(&new[..])
            .bind(micros())
            .bind(&payload[..]);
        let done = self
            .0
            .with(async |connection: &mut MySqlConnection| create.execute(connection).await)
            .await
            .expect("INSERT");
        match done.last_insert_id() {
            0 => done.rows_affected() == 1,
            said => said == 1,
        }
    }
}

fn micros() -> i64 {
    MONTH.as_micros() as i64
}
