//! Listing the keys.

use std::num::NonZeroUsize;

use ::redis::{Cmd, RedisError, Value, cmd, from_redis_value};
use sha2::{Digest, Sha256};

use super::client::{Route, call};
use super::cluster::Table;
use super::errors::{config, failed, timed_out};
use super::outbox::Outgoing;
use super::{RedisStore, Shared};
use crate::store::{Cursor, Page, ScanStore, SessionKey, StoreError, StoreErrorKind};

/// How many keys a server looks at before it serves others again.
const MOST: usize = 10_000;

/// Where a scan stands: in a cluster, at which of the servers of which table. As text
/// `<cursor>`, or `<cursor>.<server>.<table>`.
struct Position {
    cursor: u64,
    cluster: Option<(usize, String)>,
}

impl Position {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let cursor = parts.next()?.parse().ok()?;
        let cluster = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => None,
            (Some(at), Some(table), None) => Some((at.parse().ok()?, table.to_owned())),
            _ => return None,
        };
        Some(Self { cursor, cluster })
    }

    fn into_cursor(self) -> Cursor {
        Cursor::new(match self.cluster {
            None => self.cursor.to_string(),
            Some((at, table)) => format!("{}.{at}.{table}", self.cursor),
        })
    }
}

/// A scan of a cluster goes from server to server. One that fails over, or a slot that moves, would
/// take keys from a server that is still to come to one that was: then the scan begins again.
impl ScanStore for RedisStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let from = from
            .map(|cursor| Position::parse(cursor.as_str()).ok_or_else(foreign))
            .transpose()?;
        let page = self.shared.page(from, limit);
        tokio::time::timeout(self.shared.timeout, page)
            .await
            .unwrap_or_else(|_: tokio::time::error::Elapsed| Err(timed_out()))
    }
}

impl Shared {
    async fn page(&self, from: Option<Position>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let from = match (&self.route, from) {
            (_, None) => Position {
                cursor: 0,
                cluster: None,
            },
            (Route::Cluster(_), Some(from)) if from.cluster.is_some() => from,
            (Route::Link(..) | Route::Manager(..), Some(from)) if from.cluster.is_none() => from,
            _ => return Err(foreign()),
        };
        let cmd = self.scan_command(from.cursor, limit);
        let answer = match &self.route {
            Route::Link(link, _) => call(link, Outgoing::Kept(&cmd)).await,
            Route::Manager(manager, _) => {
                let answer = manager.clone().send_packed_command(&cmd).await;
                answer.and_then(Value::extract_error)
            }
            Route::Cluster(cluster) => {
                let table = cluster.table().await.map_err(|error| failed(&error))?;
                return self.page_of(&table, from.cluster, &cmd).await;
            }
        };
        let (cursor, keys) = self.read(answer)?;
        let next = (cursor != 0).then(|| {
            let cluster = None;
            Position { cursor, cluster }.into_cursor()
        });
        Ok(Page::new(keys, next))
    }

    async fn page_of(
        &self,
        table: &Table,
        from: Option<(usize, String)>,
        cmd: &Cmd,
    ) -> Result<Page, StoreError> {
        let print = fingerprint(table);
        let at = match from {
            Some((_, before)) if before != print => {
                return Err(StoreError::new(
                    StoreErrorKind::Unavailable,
                    "the cluster has changed since the scan began: begin again",
                ));
            }
            Some((at, _)) => at,
            None => 0,
        };
        let Some(link) = table.primary(at) else {
            return Err(foreign());
        };
        let (cursor, keys) = self.read(call(link, Outgoing::Kept(cmd)).await)?;
        let at = if cursor == 0 { at + 1 } else { at };
        let next = table.primary(at).map(|_| {
            let cluster = Some((at, print));
            Position { cursor, cluster }.into_cursor()
        });
        Ok(Page::new(keys, next))
    }

    fn scan_command(&self, cursor: u64, limit: NonZeroUsize) -> Cmd {
        let mut command = cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(pattern(&self.prefix));
        command.arg("COUNT").arg(limit.get().min(MOST));
        command
    }

    fn read(
        &self,
        answer: Result<Value, RedisError>,
    ) -> Result<(u64, Vec<SessionKey>), StoreError> {
        let (cursor, keys) = answer
            .and_then(|answer| Ok(from_redis_value::<(u64, Vec<Vec<u8>>)>(answer)?))
            .map_err(|error| failed(&error))?;
        let ours = |key: &Vec<u8>| {
            key.strip_prefix(self.prefix.as_bytes())
                .and_then(SessionKey::parse_bytes)
        };
        Ok((cursor, keys.iter().filter_map(ours).collect()))
    }
}

/// All that begins with `prefix`, whatever its characters mean in a pattern.
fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('*');
    pattern
}

fn fingerprint(table: &Table) -> String {
    let hash = Sha256::digest(table.text());
    let start = hash.iter().take(8);
    start.map(|byte| format!("{byte:02x}")).collect()
}

fn foreign() -> StoreError {
    config("the cursor is not one of a scan of this store")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_of_patterns_stand_for_themselves() {
        assert_eq!(pattern("session:"), "session:*");
        assert_eq!(pattern(r"a*b?c[d]e\f^"), r"a\*b\?c\[d\]e\\f\^*");
    }

    #[test]
    fn positions_are_told_and_read_again() {
        for text in ["0", "18446744073709551615", "7.2.0011223344556677"] {
            let position = Position::parse(text).unwrap();
            assert_eq!(position.into_cursor().as_str(), text);
        }
        for text in ["", "x", "-1", "1.", "1.2", "1.x.y", "1.2.3.4", "1 "] {
            assert!(Position::parse(text).is_none(), "{text}");
        }
    }
}
