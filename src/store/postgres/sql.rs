//! What is said to PostgreSQL.

use std::sync::Arc;

use crate::store::table::TableName;
use crate::store::{StoreError, StoreErrorKind};

/// Names longer than 63 bytes are cut off, and so two of them may become one.
const LONGEST_TABLE: usize = 63 - "_expires_at".len();

/// The statements for one table.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) schema: String,
    pub(super) load: Arc<str>,
    pub(super) create: Arc<str>,
    pub(super) create_ending: Arc<str>,
    pub(super) update: Arc<str>,
    pub(super) update_ending: Arc<str>,
    pub(super) touch: Arc<str>,
    pub(super) delete: Arc<str>,
    pub(super) purge: Arc<str>,
    pub(super) scan: Arc<str>,
}

/// "Done", as a number.
const ONE: &str = "1::bigint";

/// The same, and the commit of this statement waits for the disk, even if others do not. Whatever is
/// chosen beyond that (to wait for a standby, say) stays.
const ONE_DURABLY: &str = "CASE current_setting('synchronous_commit') \
     WHEN 'off' THEN (set_config('synchronous_commit', 'on', true) = 'on')::int \
     ELSE 1 END::bigint";

impl Sql {
    pub(super) fn new(schema: Option<&str>, table: &str) -> Result<Self, StoreError> {
        let name = TableName::parse(table)?;
        if table.len() > LONGEST_TABLE {
            return Err(StoreError::new(
                StoreErrorKind::Config,
                "a table name for PostgreSQL has 52 characters at most",
            ));
        }
        let table = match schema {
            Some(schema) => format!("\"{}\".\"{name}\"", TableName::parse(schema)?),
            None => format!("\"{name}\""),
        };
        // An hour has as many microseconds in every time zone and on every day, so a lifetime is one
        // interval of them. The clock is read when the row is locked: a statement may have waited.
        let expiry = |ttl: &str| format!("clock_timestamp() + {ttl} * interval '1 microsecond'");
        let create = |one: &str| {
            format!(
                "INSERT INTO {table} AS old (session_key, revision, expires_at, payload) \
                 VALUES ($1, $2, {}, $4) \
                 ON CONFLICT (session_key) DO UPDATE SET revision = excluded.revision, \
                 expires_at = excluded.expires_at, payload = excluded.payload \
                 WHERE old.expires_at <= clock_timestamp() \
                 RETURNING {one}",
                expiry("$3")
            )
        };
        // The first part changes the row, if it is the one that was seen. Only if it is not, the second
        // says why, of the row as it is then: `FOR SHARE` waits for whoever is changing or deleting it,
        // and then looks at what they have left, where a plain SELECT would show the row as it was when
        // the statement began, and call a deleted one a conflict. A row that was not there when the
        // statement began stays unseen; absent is what it was then. In between, nothing can turn a
        // mismatch into a match: a revision is written once, and an expired row is only ever replaced.
        let change = |set: &str, seen: &str, one: &str| {
            format!(
                "WITH changed AS (UPDATE {table} SET {set} \
                 WHERE session_key = $1 AND expires_at > clock_timestamp() AND revision = {seen} \
                 RETURNING {one} AS answer), \
                 other AS (SELECT 2::bigint AS answer FROM {table} \
                 WHERE session_key = $1 AND expires_at > clock_timestamp() \
                 AND NOT EXISTS (SELECT FROM changed) FOR SHARE) \
                 SELECT answer FROM changed UNION ALL SELECT answer FROM other"
            )
        };
        let update = |one: &str| {
            let set = format!("revision = $3, expires_at = {}, payload = $5", expiry("$4"));
            change(&set, "$2", one)
        };
        Ok(Self {
            // `CREATE INDEX` puts an index into the schema of its table.
            schema: format!(
                "CREATE TABLE IF NOT EXISTS {table} (\n    \
                     session_key TEXT COLLATE \"C\" NOT NULL PRIMARY KEY,\n    \
                     revision BYTEA NOT NULL,\n    \
                     expires_at TIMESTAMP WITH TIME ZONE NOT NULL,\n    \
                     payload BYTEA NOT NULL\n\
                 );\n\
                 CREATE INDEX IF NOT EXISTS \"{name}_expires_at\" ON {table} (expires_at);\n"
            ),
            // The length of a value is known without reading it: one that is too large stays there.
            load: format!(
                "SELECT revision, CASE WHEN octet_length(payload) <= $2 THEN payload END, \
                 (extract(epoch FROM expires_at - statement_timestamp()) * 1000000)::bigint \
                 FROM {table} WHERE session_key = $1 AND expires_at > statement_timestamp()"
            )
            .into(),
            create: create(ONE).into(),
            create_ending: create(ONE_DURABLY).into(),
            update: update(ONE).into(),
            update_ending: update(ONE_DURABLY).into(),
            touch: change(&format!("expires_at = {}", expiry("$3")), "$2", ONE).into(),
            delete: format!(
                "WITH gone AS (DELETE FROM {table} WHERE session_key = $1) SELECT {ONE_DURABLY}"
            )
            .into(),
            // An array, for a subquery may run more than once and lock more rows than its limit says.
            purge: format!(
                "WITH gone AS (DELETE FROM {table} WHERE session_key = ANY (ARRAY(\
                 SELECT session_key FROM {table} WHERE expires_at <= statement_timestamp() \
                 ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING 1) \
                 SELECT count(*) FROM gone"
            )
            .into(),
            scan: format!(
                "SELECT session_key FROM {table} \
                 WHERE session_key > $1 AND expires_at > statement_timestamp() \
                 AND session_key ~ '^[-_0-9A-Za-z]{{43}}$' \
                 ORDER BY session_key LIMIT $2"
            )
            .into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_quoted() {
        let longest = "x".repeat(52);
        for (schema, table) in [(None, &*longest), (Some("select"), "Order")] {
            assert!(Sql::new(schema, table).is_ok());
        }
        let sql = Sql::new(Some("app"), "Order").unwrap();
        for statement in [
            &sql.schema,
            &*sql.load,
            &*sql.create,
            &*sql.update,
            &*sql.purge,
        ] {
            assert!(statement.contains("\"app\".\"Order\""), "{statement}");
        }
        for (schema, table) in [
            (None, &*"x".repeat(53)),
            (None, "a\"; DROP TABLE b; --"),
            (Some("a.b"), "t"),
            (Some(""), "t"),
        ] {
            let error = Sql::new(schema, table).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{schema:?} {table:?}");
        }
    }
}
