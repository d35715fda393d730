//! PostgreSQL, as the shared verbs see it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnection, PgRow, Postgres};
use sqlx::{
    AssertSqlSafe, Column, Connection, Executor, Row, SqlSafeStr, Statement as _, Type, query_with,
    raw_sql,
};

use super::sql::Sql;
use crate::store::sql::{Dialect, EXPIRY, OTHER_FORM, Statement, Verdict, micros};
use crate::store::{NewRecord, Revision, SessionKey, StoreLimits};

/// How often making the table is tried, while others make it too.
const MOST_TRIES: u32 = 3;

/// A table, and how it is talked about.
#[derive(Debug)]
pub(super) struct Postgresql {
    pub(super) sql: Sql,
}

impl Dialect for Postgresql {
    type Db = Postgres;

    fn load(&self, key: &SessionKey, max_payload: i64) -> Statement<Postgres> {
        Statement::new(&self.sql.load)
            .bind(key.as_str())
            .bind(max_payload)
    }

    fn create(&self, key: &SessionKey, new: &NewRecord<'_>) -> Statement<Postgres> {
        let sql = if new.is_ending() {
            &self.sql.create_ending
        } else {
            &self.sql.create
        };
        Statement::new(sql)
            .bind(key.as_str())
            .bind(&new.revision().as_bytes()[..])
            .bind(micros(new.ttl()))
            .bind(new.payload())
    }

    fn update(&self, key: &SessionKey, seen: Revision, new: &NewRecord<'_>) -> Statement<Postgres> {
        let sql = if new.is_ending() {
            &self.sql.update_ending
        } else {
            &self.sql.update
        };
        Statement::new(sql)
            .bind(key.as_str())
            .bind(&seen.as_bytes()[..])
            .bind(&new.revision().as_bytes()[..])
            .bind(micros(new.ttl()))
            .bind(new.payload())
    }

    fn touch(&self, key: &SessionKey, seen: Revision, ttl: Duration) -> Statement<Postgres> {
        Statement::new(&self.sql.touch)
            .bind(key.as_str())
            .bind(&seen.as_bytes()[..])
            .bind(micros(ttl))
    }

    fn delete(&self, key: &SessionKey) -> Statement<Postgres> {
        Statement::new(&self.sql.delete).bind(key.as_str())
    }

    fn purge(&self, limit: i64) -> Statement<Postgres> {
        Statement::new(&self.sql.purge).bind(limit)
    }

    fn scan(&self, after: &str, limit: i64) -> Statement<Postgres> {
        Statement::new(&self.sql.scan).bind(after).bind(limit)
    }

    async fn rows(
        connection: &mut PgConnection,
        statement: Statement<Postgres>,
    ) -> sqlx::Result<Vec<PgRow>> {
        let arguments = statement.arguments.map_err(sqlx::Error::Encode)?;
        let query = query_with(statement.sql, arguments);
        query.fetch_all(connection).await
    }

    async fn number(
        connection: &mut PgConnection,
        statement: Statement<Postgres>,
    ) -> sqlx::Result<u64> {
        let rows = Self::rows(connection, statement).await?;
        let number = rows.first().map_or(Ok(0), |row| row.try_get::<i64, _>(0))?;
        Ok(u64::try_from(number).unwrap_or(0))
    }

    fn bytes(row: &PgRow, column: usize) -> sqlx::Result<Option<&[u8]>> {
        // Text is bytes too: a key is asked for in the same way as a payload.
        row.try_get_unchecked(column)
    }

    fn remaining(row: &PgRow) -> sqlx::Result<i64> {
        row.try_get(EXPIRY)
    }

    async fn greet(_: &mut PgConnection) -> sqlx::Result<()> {
        Ok(())
    }

    async fn prepare(
        &self,
        connection: &mut PgConnection,
        _: StoreLimits,
        create: bool,
    ) -> sqlx::Result<Result<(), &'static str>> {
        if create {
            return self.make(connection).await;
        }
        Ok(Ok(()))
    }

    fn judge(error: &dyn DatabaseError) -> Verdict {
        super::errors::judge(&error.code().unwrap_or_default())
    }
}

impl Postgresql {
    /// Does nothing to a table that is there: making one needs rights that using it does not.
    async fn make(&self, connection: &mut PgConnection) -> sqlx::Result<Result<(), &'static str>> {
        let mut tries = 0;
        loop {
            match self.look(connection).await {
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => {}
                looked => return looked,
            }
            tries += 1;
            // Several statements, one transaction: whoever sees the table sees its index.
            let schema = AssertSqlSafe(self.sql.schema.as_str());
            match raw_sql(schema).execute(&mut *connection).await {
                Ok(_) => {}
                // Another application makes it at this very moment, and was faster.
                Err(sqlx::Error::Database(error))
                    if tries < MOST_TRIES
                        && matches!(
                            error.code().as_deref(),
                            Some("23505" | "40P01" | "42710" | "42P07")
                        ) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Has the server read every statement, and with it the form of the table.
    async fn look(&self, connection: &mut PgConnection) -> sqlx::Result<Result<(), &'static str>> {
        let text = <str as Type<Postgres>>::type_info();
        let bytes = <[u8] as Type<Postgres>>::type_info();
        let number = <i64 as Type<Postgres>>::type_info();
        let (text, bytes, number) = (&text, &bytes, &number);
        let verbs = [
            (&self.sql.create, vec![text, bytes, number, bytes]),
            (&self.sql.update, vec![text, bytes, bytes, number, bytes]),
            (&self.sql.touch, vec![text, bytes, number]),
            (&self.sql.delete, vec![text]),
            (&self.sql.purge, vec![number]),
            (&self.sql.scan, vec![text, number]),
            (&self.sql.load, vec![text, number]),
        ];
        // One that is known already would not be read.
        connection.clear_cached_statements().await?;
        let mut answers = Vec::new();
        for (sql, types) in verbs {
            let sql = AssertSqlSafe(Arc::clone(sql)).into_sql_str();
            let types: Vec<_> = types.into_iter().cloned().collect();
            let statement = connection.prepare_with(sql, &types).await?;
            answers = statement.columns().to_vec();
        }
        // Text takes bytes without a word, in another form.
        let is_ours = answers
            .iter()
            .map(Column::type_info)
            .eq([bytes, bytes, number]);
        Ok(if is_ours { Ok(()) } else { Err(OTHER_FORM) })
    }
}
