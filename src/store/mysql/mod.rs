//! `MySqlStore`: a table in a MySQL or MariaDB database.

mod dialect;
mod errors;
mod sql;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use sqlx::MySqlPool;

use self::dialect::Mysql;
use self::sql::Sql;
use super::sql::{Origin, Settings, Table};
use super::url::StoreUrl;
use super::{
    CreateOutcome, Cursor, NewRecord, Page, Record, ScanStore, SessionKey, SessionStore,
    StoreError, StoreLimits, TouchOutcome, UpdateOutcome,
};

/// Keeps sessions in a table of a MySQL or MariaDB database.
///
/// Every verb is one statement, one round trip, whatever it finds, on a connection of its own: never
/// part of a transaction of yours, and committed when it is answered. MySQL 8.0 or later, MariaDB
/// 10.6 or later, InnoDB. (The tests run on MariaDB; the statements are such as both document.)
///
/// # Connections
///
/// [`connect`](Self::connect) opens up to ten connections, each when it is first needed. Nothing waits
/// for a server that is down when the application starts; the first verb after it has come up finds
/// it, and makes the table if it is to. A verb that fails is not sent again, for it may have been
/// carried out, except when the server itself says that it rolled the statement back (a deadlock). So
/// that a restart of the server costs no more than the requests that were under way, a connection that
/// has rested for a second, or that is older than another one's failure, is asked for a sign of life
/// before it is used: one more round trip, then. A connection on which an answer did not come in time
/// keeps its place for ten seconds, in which the answer may still come.
///
/// With a [pool of yours](Self::from_pool) the pool's settings decide about all this.
///
/// # Durability
///
/// That of the server: with `innodb_flush_log_at_trx_commit = 1`, its default, a write is on the disk
/// when it is answered. The server does not let a client choose, so with 0 or 2 a power cut can undo
/// a logout of the last second. See the chapter on stores for what a failover can undo.
///
/// # Expiry
///
/// By the server's clock, to the millisecond, whatever the time zones of server, session and host. An
/// expired record reads as absent at once; its row stays until a
/// [`delete_expired`](SessionStore::delete_expired) takes it. Run a [`Sweeper`](super::Sweeper).
///
/// # Examples
///
/// ```no_run
/// use session_layer::store::MySqlStore;
///
/// # async fn start() -> Result<(), session_layer::StoreError> {
/// let store = MySqlStore::connect("mysql://app:secret@db.internal/app?ssl-mode=VERIFY_IDENTITY").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MySqlStore {
    table: Arc<Table<Mysql>>,
}

/// Settings of a [`MySqlStore`], from [`MySqlStore::builder`].
#[must_use = "call `connect` to get a store"]
pub struct MySqlStoreBuilder {
    origin: Origin<Mysql>,
    settings: Settings,
}

/// What sqlx reads from a URL.
fn is_drivers(name: &str) -> bool {
    const NAMES: [&str; 13] = [
        "charset",
        "collation",
        "socket",
        "ssl-ca",
        "ssl-cert",
        "ssl-key",
        "ssl-mode",
        "sslca",
        "sslcert",
        "sslkey",
        "sslmode",
        "time-zone",
        "timezone",
    ];
    NAMES.contains(&name)
}

impl MySqlStore {
    /// Connects to the database that `url` names, `mysql://user:password@host:port/database` or
    /// `mariadb://…`, and makes the table where it is missing. Settings follow a `?`:
    ///
    /// | setting | see |
    /// | --- | --- |
    /// | `table` | [`with_table`](MySqlStoreBuilder::with_table) |
    /// | `max_payload` | [`with_max_payload`](MySqlStoreBuilder::with_max_payload) |
    /// | `max_connections` | [`with_max_connections`](MySqlStoreBuilder::with_max_connections) |
    /// | `create_table` | [`with_create_table`](MySqlStoreBuilder::with_create_table) |
    /// | `timeout` | [`with_timeout`](MySqlStoreBuilder::with_timeout): `1500ms`, `1s` |
    /// | `ssl-mode`, `ssl-ca`, `ssl-cert`, `ssl-key`, `socket` … | the driver's: [`MySqlConnectOptions`](sqlx::mysql::MySqlConnectOptions) |
    ///
    /// TLS is used where the server offers it; only `ssl-mode=VERIFY_IDENTITY` makes sure of it, and
    /// of the server.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::StoreErrorKind::Config) when the URL is not of this form, or when the server
    /// can be reached and refuses the user, has no such database, does not let the user make the table,
    /// has a table of that name and another form, or takes no packets as large as the largest payload. A server that cannot be reached within
    /// three seconds is no error here, but a warning to `tracing`.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Uses a pool of yours, with the default settings; see
    /// [`builder_from_pool`](Self::builder_from_pool).
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn from_pool(pool: MySqlPool) -> Result<Self, StoreError> {
        Self::builder_from_pool(pool).connect().await
    }

    /// Settings for a store in the database that `url` names, beginning with those in the URL.
    pub fn builder(url: &str) -> MySqlStoreBuilder {
        let mut settings = Settings::default();
        let parsed = StoreUrl::parse(url).and_then(|mut url| {
            settings.take_from(&mut url)?;
            Ok(url)
        });
        let origin = match parsed {
            Ok(url) => Origin::new(&url, is_drivers, &Settings::NAMES),
            Err(error) => Origin::Url(Err(error)),
        };
        MySqlStoreBuilder { origin, settings }
    }

    /// Settings for a store on a pool of yours.
    ///
    /// The store takes a connection from it for each statement. sqlx's pool waits for a connection for
    /// up to 30 seconds, of which the store waits only one: set `acquire_timeout` to as much. Keep
    /// `test_before_acquire`, or a restart of the server costs a failed request for each connection in
    /// the pool. The pool asks for a sign of life after each statement, too, but nobody waits for it.
    pub fn builder_from_pool(pool: MySqlPool) -> MySqlStoreBuilder {
        MySqlStoreBuilder {
            origin: Origin::Given(pool),
            settings: Settings::default(),
        }
    }

    /// The statements that make the table, for a migration of your own. Running them again is
    /// harmless.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::StoreErrorKind::Config) when `table` is not a table name; see
    /// [`with_table`](MySqlStoreBuilder::with_table).
    ///
    /// # Examples
    ///
    /// ```
    /// use session_layer::store::MySqlStore;
    ///
    /// let schema = MySqlStore::schema("sessions")?;
    /// assert!(schema.starts_with("CREATE TABLE IF NOT EXISTS `sessions`"));
    /// # Ok::<(), session_layer::StoreError>(())
    /// ```
    pub fn schema(table: &str) -> Result<String, StoreError> {
        Ok(Sql::new(table)?.schema)
    }

    /// Makes the table and its index where they are missing, and checks that the table has the form
    /// of [`schema`](Self::schema). Several applications may do so at once. Connecting does it by
    /// default; if it cannot, the first verb that reaches the server does.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::StoreErrorKind::Config) when a table of that name has another form, or the
    /// user may not make it; otherwise as every verb.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.table.migrate().await
    }
}

impl MySqlStoreBuilder {
    /// The table. Default: `sessions`. A letter or an underscore, then letters, digits and
    /// underscores, ASCII, 63 characters at most; any other is refused by [`connect`](Self::connect).
    pub fn with_table(mut self, name: impl Into<String>) -> Self {
        self.settings.table = name.into();
        self
    }

    /// The largest payload, in bytes. Default: 1 MiB; at most 500,000,000. A larger one is refused
    /// before it is sent, and a row with a larger one is not read. The server's `max_allowed_packet`
    /// (16 MiB by default in MariaDB, 64 MiB in MySQL) must be larger: connecting checks it.
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.settings.max_payload = bytes;
        self
    }

    /// How many connections are open at the same time, at most. Default: 10. The server's own
    /// `max_connections` is to be larger than those of all the processes together. Of no effect on a
    /// pool of yours.
    pub fn with_max_connections(mut self, connections: u32) -> Self {
        self.settings.max_connections = connections;
        self
    }

    /// Whether the table is made where it is missing. Default: yes. Without, run the text of
    /// [`MySqlStore::schema`] or call [`MySqlStore::migrate`] before the first session; until
    /// then every verb fails as [`Config`](crate::StoreErrorKind::Config).
    pub fn with_create_table(mut self, create: bool) -> Self {
        self.settings.create_table = create;
        self
    }

    /// How long a verb may take, in all. Default: 1.5 seconds, a little less than the layer waits, so
    /// that the reason is known. Up to two thirds of it are for getting a connection.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// Makes the store.
    ///
    /// # Errors
    ///
    /// As [`MySqlStore::connect`]; [`Config`](crate::StoreErrorKind::Config) too for a setting that
    /// cannot work.
    pub async fn connect(self) -> Result<MySqlStore, StoreError> {
        let sql = Sql::new(&self.settings.table)?;
        let table = Table::open(Mysql { sql }, self.origin, &self.settings).await?;
        Ok(MySqlStore {
            table: Arc::new(table),
        })
    }
}

impl fmt::Debug for MySqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlStore")
            .field("limits", &self.table.limits())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MySqlStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlStoreBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for MySqlStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        self.table.load(key).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.table.create(key, new).await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.table.update(key, seen, new).await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        self.table.touch(key, seen, ttl).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.table.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.table.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        self.table.limits()
    }
}

/// In the order of the keys; what has expired is left out.
impl ScanStore for MySqlStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        self.table.scan(from, limit).await
    }
}
