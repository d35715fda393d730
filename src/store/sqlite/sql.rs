//! What is said to SQLite.

use crate::store::table::TableName;
use crate::store::{StoreError, StoreErrorKind};

/// The statements for one table.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) schema: String,
    pub(super) load: String,
    pub(super) create: String,
    pub(super) update: String,
    pub(super) touch: String,
    pub(super) exists: String,
    pub(super) delete: String,
    pub(super) purge: String,
    pub(super) scan: String,
}

impl Sql {
    pub(super) fn new(name: &str) -> Result<Self, StoreError> {
        let table = TableName::parse(name)?;
        if name.len() >= 7 && name.as_bytes()[..7].eq_ignore_ascii_case(b"sqlite_") {
            return Err(StoreError::new(
                StoreErrorKind::Config,
                "SQLite keeps table names that begin with `sqlite_` to itself",
            ));
        }
        Ok(Self {
            // The payload comes last: a row that spills over several pages is not walked for the rest.
            schema: format!(
                "CREATE TABLE IF NOT EXISTS \"{table}\" (\n    \
                     session_key TEXT NOT NULL PRIMARY KEY,\n    \
                     revision BLOB NOT NULL,\n    \
                     expires_at INTEGER NOT NULL, -- unix time, milliseconds\n    \
                     payload BLOB NOT NULL\n\
                 ) STRICT;\n\
                 CREATE INDEX IF NOT EXISTS \"{table}_expires_at\" ON \"{table}\" (expires_at);\n"
            ),
            // The length of a blob is known without reading it: one that is too large stays on disk.
            load: format!(
                "SELECT revision, expires_at, CASE WHEN length(payload) <= ?3 THEN payload END \
                 FROM \"{table}\" WHERE session_key = ?1 AND expires_at > ?2"
            ),
            create: format!(
                "INSERT INTO \"{table}\" (session_key, revision, expires_at, payload) \
                 VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (session_key) DO UPDATE SET revision = excluded.revision, \
                 expires_at = excluded.expires_at, payload = excluded.payload \
                 WHERE expires_at <= ?5"
            ),
            update: format!(
                "UPDATE \"{table}\" SET revision = ?2, expires_at = ?3, payload = ?4 \
                 WHERE session_key = ?1 AND expires_at > ?5 AND revision = ?6"
            ),
            touch: format!(
                "UPDATE \"{table}\" SET expires_at = ?2 \
                 WHERE session_key = ?1 AND expires_at > ?3 AND revision = ?4"
            ),
            exists: format!("SELECT 1 FROM \"{table}\" WHERE session_key = ?1 AND expires_at > ?2"),
            delete: format!("DELETE FROM \"{table}\" WHERE session_key = ?1"),
            purge: format!(
                "DELETE FROM \"{table}\" WHERE rowid IN \
                 (SELECT rowid FROM \"{table}\" WHERE expires_at <= ?1 LIMIT ?2)"
            ),
            scan: format!(
                "SELECT session_key FROM \"{table}\" WHERE session_key > ?1 AND expires_at > ?2 \
                 AND length(session_key) = 43 AND session_key NOT GLOB '*[^-_0-9A-Za-z]*' \
                 ORDER BY session_key LIMIT ?3"
            ),
        })
    }

    /// Every statement a verb uses.
    pub(super) fn verbs(&self) -> [&str; 8] {
        [
            &self.load,
            &self.create,
            &self.update,
            &self.touch,
            &self.exists,
            &self.delete,
            &self.purge,
            &self.scan,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_sqlite_reserves_are_refused() {
        for bad in [
            "sqlite_sessions",
            "SQLite_x",
            "a\" (x); DROP TABLE b; --",
            "",
        ] {
            let error = Sql::new(bad).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{bad:?}");
        }
        assert!(Sql::new("sqlite").is_ok());
    }

    #[test]
    fn loads_and_purges_go_by_an_index() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let sql = Sql::new("order").unwrap();
        connection.execute_batch(&sql.schema).unwrap();
        for statement in sql.verbs() {
            let plan: Vec<String> = connection
                .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
                .unwrap()
                .raw_query_plan();
            assert!(
                !plan.iter().any(|line| line.starts_with("SCAN")),
                "{plan:?}"
            );
        }
    }

    trait QueryPlan {
        fn raw_query_plan(&mut self) -> Vec<String>;
    }

    impl QueryPlan for rusqlite::Statement<'_> {
        fn raw_query_plan(&mut self) -> Vec<String> {
            let nulls = vec![rusqlite::types::Null; self.parameter_count()];
            self.query_map(rusqlite::params_from_iter(nulls), |row| row.get(3))
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap()
        }
    }
}
