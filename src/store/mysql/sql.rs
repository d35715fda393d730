//! What is said to MySQL and MariaDB: only what both of them document.

use std::sync::Arc;

use crate::store::StoreError;
use crate::store::table::TableName;

/// The statements for one table.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) table: String,
    pub(super) schema: String,
    pub(super) load: Arc<str>,
    pub(super) create: Arc<str>,
    pub(super) update: Arc<str>,
    pub(super) touch: Arc<str>,
    pub(super) delete: Arc<str>,
    pub(super) purge: Arc<str>,
    pub(super) scan: Arc<str>,
}

/// Microseconds since 1970 by the server's clock. `UNIX_TIMESTAMP` would go by way of the session's
/// time zone, in which an hour of each autumn comes twice.
const NOW: &str = "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))";

impl Sql {
    pub(super) fn new(table: &str) -> Result<Self, StoreError> {
        let name = TableName::parse(table)?;
        let now = format!("{NOW} DIV 1000");
        // Rounded up: a record never lives shorter than asked.
        let expiry = format!("({NOW} + ? + 999) DIV 1000");
        // `LAST_INSERT_ID(number)` puts the number into the answer to the statement: that is how one
        // statement says what it found. How many rows it changed does not tell: MySQL counts an
        // INSERT and an untouched row alike, and a row that is not there like one that does not match.
        let found = format!("LAST_INSERT_ID(IF(expires_at <= {now}, 0, IF(revision = ?, 1, 2)))");
        // The hint, because a table with few live rows looks as if its index on the expiry were as
        // good; that would lock other rows, in another order than others do.
        let change = |set: &str| {
            format!(
                "UPDATE `{name}` FORCE INDEX (PRIMARY) SET {set} \
                 WHERE session_key = ? AND {found} = 1"
            )
        };
        Ok(Self {
            table: table.to_owned(),
            schema: format!(
                "CREATE TABLE IF NOT EXISTS `{name}` (\n    \
                     session_key VARBINARY(43) NOT NULL PRIMARY KEY,\n    \
                     revision BINARY(16) NOT NULL,\n    \
                     expires_at BIGINT NOT NULL, -- unix time, milliseconds\n    \
                     payload LONGBLOB NOT NULL,\n    \
                     KEY expires_at (expires_at)\n\
                 ) ENGINE = InnoDB;\n"
            ),
            load: format!(
                "SELECT revision, CASE WHEN LENGTH(payload) <= ? THEN payload END, \
                 expires_at, {NOW} \
                 FROM `{name}` WHERE session_key = ? AND expires_at > {now}"
            )
            .into(),
            // An expired row is overwritten in the same statement. Assignments are made from left to
            // right, so the expiry, which decides, comes last.
            create: format!(
                "INSERT INTO `{name}` (session_key, revision, expires_at, payload) \
                 VALUES (?, ?, {expiry}, ?) ON DUPLICATE KEY UPDATE \
                 revision = IF(expires_at <= {now}, VALUES(revision), revision), \
                 payload = IF(expires_at <= {now}, VALUES(payload), payload), \
                 expires_at = IF(LAST_INSERT_ID(IF(expires_at <= {now}, 1, 2)) = 1, \
                 VALUES(expires_at), expires_at)"
            )
            .into(),
            update: change(&format!("revision = ?, expires_at = {expiry}, payload = ?")).into(),
            touch: change(&format!("expires_at = {expiry}")).into(),
            delete: format!("DELETE FROM `{name}` WHERE session_key = ?").into(),
            purge: format!(
                "DELETE FROM `{name}` WHERE expires_at <= {now} ORDER BY expires_at LIMIT ?"
            )
            .into(),
            scan: format!(
                "SELECT session_key FROM `{name}` \
                 WHERE session_key > ? AND expires_at > {now} \
                 AND CONVERT(session_key USING latin1) REGEXP '^[-_0-9A-Za-z]{{43}}$' \
                 ORDER BY session_key LIMIT ?"
            )
            .into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreErrorKind;

    #[test]
    fn names_are_checked_and_quoted() {
        let sql = Sql::new("Order").unwrap();
        for statement in [&*sql.schema, &sql.load, &sql.create, &sql.update, &sql.scan] {
            assert!(statement.contains("`Order`"), "{statement}");
        }
        for bad in ["", "a` (x); DROP TABLE b; --", "a.b", &"x".repeat(64)] {
            let error = Sql::new(bad).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{bad:?}");
        }
    }
}
