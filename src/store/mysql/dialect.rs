//! MySQL and MariaDB, as the shared verbs see them.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::mysql::{MySql, MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, Row, query, query_with, raw_sql};

use super::sql::Sql;
use crate::store::sql::{Dialect, EXPIRY, OTHER_FORM, Statement, Verdict, micros};
use crate::store::{NewRecord, Revision, SessionKey, StoreLimits};

/// What a statement needs beside its payload, in bytes, with a margin.
const STATEMENT: u64 = 4096;

/// A table, and how it is talked about.
#[derive(Debug)]
pub(super) struct Mysql {
    pub(super) sql: Sql,
}

impl Dialect for Mysql {
    type Db = MySql;

    fn load(&self, key: &SessionKey, max_payload: i64) -> Statement<MySql> {
        Statement::new(&self.sql.load)
            .bind(max_payload)
            .bind(key.as_str().as_bytes())
    }

    fn create(&self, key: &SessionKey, new: &NewRecord<'_>) -> Statement<MySql> {
        Statement::new(&self.sql.create)
            .bind(key.as_str().as_bytes())
            .bind(&new.revision().as_bytes()[..])
            .bind(micros(new.ttl()))
            .bind(new.payload())
    }

    fn update(&self, key: &SessionKey, seen: Revision, new: &NewRecord<'_>) -> Statement<MySql> {
        Statement::new(&self.sql.update)
            .bind(&new.revision().as_bytes()[..])
            .bind(micros(new.ttl()))
            .bind(new.payload())
            .bind(key.as_str().as_bytes())
            .bind(&seen.as_bytes()[..])
    }

    fn touch(&self, key: &SessionKey, seen: Revision, ttl: Duration) -> Statement<MySql> {
        Statement::new(&self.sql.touch)
            .bind(micros(ttl))
            .bind(key.as_str().as_bytes())
            .bind(&seen.as_bytes()[..])
    }

    fn delete(&self, key: &SessionKey) -> Statement<MySql> {
        Statement::new(&self.sql.delete).bind(key.as_str().as_bytes())
    }

    fn purge(&self, limit: i64) -> Statement<MySql> {
        Statement::new(&self.sql.purge).bind(limit)
    }

    fn scan(&self, after: &str, limit: i64) -> Statement<MySql> {
        Statement::new(&self.sql.scan)
            .bind(after.as_bytes())
            .bind(limit)
    }

    async fn rows(
        connection: &mut MySqlConnection,
        statement: Statement<MySql>,
    ) -> sqlx::Result<Vec<MySqlRow>> {
        let arguments = statement.arguments.map_err(sqlx::Error::Encode)?;
        let query = query_with(statement.sql, arguments);
        query.fetch_all(connection).await
    }

    async fn number(
        connection: &mut MySqlConnection,
        statement: Statement<MySql>,
    ) -> sqlx::Result<u64> {
        let arguments = statement.arguments.map_err(sqlx::Error::Encode)?;
        let query = query_with(statement.sql, arguments);
        let done = query.execute(connection).await?;
        Ok(match done.last_insert_id() {
            0 => done.rows_affected(),
            said => said,
        })
    }

    fn bytes(row: &MySqlRow, column: usize) -> sqlx::Result<Option<&[u8]>> {
        row.try_get(column)
    }

    fn remaining(row: &MySqlRow) -> sqlx::Result<i64> {
        let (expiry, now): (i64, i64) = (row.try_get(EXPIRY)?, row.try_get(EXPIRY + 1)?);
        Ok(expiry.saturating_mul(1000).saturating_sub(now))
    }

    async fn greet(connection: &mut MySqlConnection) -> sqlx::Result<()> {
        // A server can be set to begin a transaction with the first statement of each session.
        let autocommit = raw_sql("SET autocommit = 1");
        autocommit.execute(connection).await.map(drop)
    }

    async fn prepare(
        &self,
        connection: &mut MySqlConnection,
        limits: StoreLimits,
        create: bool,
    ) -> sqlx::Result<Result<(), &'static str>> {
        let server = query("SELECT @@autocommit, @@max_allowed_packet");
        let server = server.fetch_one(&mut *connection).await?;
        if server.try_get_unchecked::<i64, _>(0)? == 0 {
            return Ok(Err(
                "the connections of the pool do not commit by themselves",
            ));
        }
        if server.try_get_unchecked::<u64, _>(1)? < limits.max_payload() as u64 + STATEMENT {
            return Ok(Err(
                "the server's `max_allowed_packet` is smaller than the store's largest payload: \
                 raise the one or lower the other",
            ));
        }
        if !create {
            return Ok(Ok(()));
        }
        // Making a table needs rights that using one does not.
        let mut columns = self.columns(connection).await?;
        if columns.is_empty() {
            let schema = AssertSqlSafe(self.sql.schema.as_str());
            raw_sql(schema).execute(&mut *connection).await?;
            columns = self.columns(connection).await?;
        }
        let is_ours = FORM
            .iter()
            .all(|column| columns.iter().any(|c| c == column));
        Ok(if is_ours { Ok(()) } else { Err(OTHER_FORM) })
    }

    fn judge(error: &dyn DatabaseError) -> Verdict {
        let error = error.try_downcast_ref::<MySqlDatabaseError>();
        super::errors::judge(error.map_or(0, MySqlDatabaseError::number))
    }
}

/// A server that is not strict cuts off what is too long for a column. So the columns are looked at
/// before anything is stored.
const FORM: [&str; 4] = [
    "session_key varbinary(43) pri",
    "revision binary(16) ",
    "expires_at bigint mul",
    "payload longblob ",
];

impl Mysql {
    /// Name, type and key of each column.
    async fn columns(&self, connection: &mut MySqlConnection) -> sqlx::Result<Vec<String>> {
        let columns = query(
            "SELECT CONVERT(LOWER(CONCAT(column_name, ' ', column_type, ' ', column_key)) USING utf8mb4) \
             FROM information_schema.columns \
             WHERE table_schema = DATABASE() AND table_name = ?",
        );
        let rows = columns.bind(&self.sql.table).fetch_all(connection).await?;
        rows.iter()
            // MariaDB says how wide a number is shown.
            .map(|row| Ok(row.try_get::<String, _>(0)?.replace("bigint(20)", "bigint")))
            .collect()
    }
}
