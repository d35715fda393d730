//! `PostgresStore`: a table in a PostgreSQL database.

mod dialect;
mod errors;
mod sql;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

use self::dialect::Postgresql;
use self::sql::Sql;
use super::sql::{Origin, Settings, Table};
use super::url::StoreUrl;
use super::{
    CreateOutcome, Cursor, NewRecord, Page, Record, ScanStore, SessionKey, SessionStore,
    StoreError, StoreLimits, TouchOutcome, UpdateOutcome,
};

/// Keeps sessions in a table of a PostgreSQL database.
///
/// Every verb is one statement on a connection of its own: never part of a transaction of yours, and
/// committed when it is answered. PostgreSQL 13 or later.
///
/// # Connections
///
/// [`connect`](Self::connect) opens up to ten connections, each when it is first needed. Nothing waits
/// for a server that is down when the application starts; the first verb after it has come up finds
/// it, and makes the table if it is to. A verb that fails is not sent again, for it may have been
/// carried out, except when the server itself says that it undid the statement (a deadlock, a
/// serialization failure). So that a restart of the server costs no more than the requests that were
/// under way, a connection that has rested for a second, or that is older than another one's failure,
/// is asked for a sign of life before it is used: one more round trip, then. A connection on which an
/// answer did not come in time keeps its place for ten seconds, in which the answer may still come.
///
/// With a [pool of yours](Self::from_pool) the pool's settings decide about all this.
///
/// # Durability
///
/// A write that ends a session, and a delete, is on the server's disk when it is answered, even where
/// `synchronous_commit` is `off`; other writes are as durable as that setting says. See the chapter on
/// stores for what a failover can undo.
///
/// # Expiry
///
/// By the server's clock, to the microsecond, whatever the time zones of server, session and host. An
/// expired record reads as absent at once; its row stays until a
/// [`delete_expired`](SessionStore::delete_expired) takes it. Run a [`Sweeper`](super::Sweeper).
///
/// # Examples
///
/// ```no_run
/// use session_layer::store::PostgresStore;
///
/// # async fn start() -> Result<(), session_layer::StoreError> {
/// let store = PostgresStore::connect("postgres://app:secret@db.internal/app?sslmode=verify-full").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    table: Arc<Table<Postgresql>>,
}

/// Settings of a [`PostgresStore`], from [`PostgresStore::builder`].
#[must_use = "call `connect` to get a store"]
pub struct PostgresStoreBuilder {
    origin: Origin<Postgresql>,
    settings: Settings,
    schema: Option<String>,
}

/// What sqlx reads from a URL.
fn is_drivers(name: &str) -> bool {
    const NAMES: [&str; 17] = [
        "application_name",
        "dbname",
        "host",
        "hostaddr",
        "options",
        "password",
        "port",
        "ssl-ca",
        "ssl-cert",
        "ssl-key",
        "ssl-mode",
        "ssl-root-cert",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslrootcert",
        "user",
    ];
    NAMES.contains(&name) || name.starts_with("options[")
}

impl PostgresStore {
    /// Connects to the database that `url` names, `postgres://user:password@host:port/database`, and
    /// makes the table where it is missing. Settings follow a `?`:
    ///
    /// | setting | see |
    /// | --- | --- |
    /// | `table`, `schema` | [`with_table`](PostgresStoreBuilder::with_table), [`with_schema`](PostgresStoreBuilder::with_schema) |
    /// | `max_payload` | [`with_max_payload`](PostgresStoreBuilder::with_max_payload) |
    /// | `max_connections` | [`with_max_connections`](PostgresStoreBuilder::with_max_connections) |
    /// | `create_table` | [`with_create_table`](PostgresStoreBuilder::with_create_table) |
    /// | `timeout` | [`with_timeout`](PostgresStoreBuilder::with_timeout): `1500ms`, `1s` |
    /// | `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `application_name`, `options`, `host` … | the driver's: [`PgConnectOptions`](sqlx::postgres::PgConnectOptions) |
    ///
    /// TLS is used where the server offers it; only `sslmode=verify-full` makes sure of it, and of the
    /// server. What the URL leaves open is taken from `PGHOST`, `PGUSER`, `PGPASSWORD` and the like.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::StoreErrorKind::Config) when the URL is not of this form, or when the server
    /// can be reached and refuses the user, has no such database or schema, does not let the user make
    /// the table, or has a table of that name and another form. A server that cannot be reached within
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
    pub async fn from_pool(pool: PgPool) -> Result<Self, StoreError> {
        Self::builder_from_pool(pool).connect().await
    }

    /// Settings for a store in the database that `url` names, beginning with those in the URL.
    pub fn builder(url: &str) -> PostgresStoreBuilder {
        let mut settings = Settings::default();
        let mut schema = None;
        let parsed = StoreUrl::parse(url).and_then(|mut url| {
            settings.take_from(&mut url)?;
            schema = url.take("schema")?;
            Ok(url)
        });
        let origin = match parsed {
            Ok(url) => {
                let ours = [&Settings::NAMES[..], &["schema"]].concat();
                Origin::new(&url, is_drivers, &ours)
            }
            Err(error) => Origin::Url(Err(error)),
        };
        PostgresStoreBuilder {
            origin,
            settings,
            schema,
        }
    }

    /// Settings for a store on a pool of yours.
    ///
    /// The store takes a connection from it for each statement. sqlx's pool waits for a connection for
    /// up to 30 seconds, of which the store waits only one: set `acquire_timeout` to as much. Keep
    /// `test_before_acquire`, or a restart of the server costs a failed request for each connection in
    /// the pool. The pool asks for a sign of life after each statement, too, but nobody waits for it.
    pub fn builder_from_pool(pool: PgPool) -> PostgresStoreBuilder {
        PostgresStoreBuilder {
            origin: Origin::Given(pool),
            settings: Settings::default(),
            schema: None,
        }
    }

    /// The statements that make the table, for a migration of your own. Running them again is
    /// harmless.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::StoreErrorKind::Config) when `table` is not a table name; see
    /// [`with_table`](PostgresStoreBuilder::with_table).
    ///
    /// # Examples
    ///
    /// ```
    /// use session_layer::store::PostgresStore;
    ///
    /// let schema = PostgresStore::schema("sessions")?;
    /// assert!(schema.starts_with("CREATE TABLE IF NOT EXISTS \"sessions\""));
    /// # Ok::<(), session_layer::StoreError>(())
    /// ```
    pub fn schema(table: &str) -> Result<String, StoreError> {
        Ok(Sql::new(None, table)?.schema)
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

impl PostgresStoreBuilder {
    /// The table. Default: `sessions`. A letter or an underscore, then letters, digits and
    /// underscores, ASCII, 52 characters at most; any other is refused by [`connect`](Self::connect).
    pub fn with_table(mut self, name: impl Into<String>) -> Self {
        self.settings.table = name.into();
        self
    }

    /// The schema that the table is in, which must exist. Default: the first one in the connection's
    /// `search_path` that does, which is `public` as a rule. The same grammar.
    pub fn with_schema(mut self, name: impl Into<String>) -> Self {
        self.schema = Some(name.into());
        self
    }

    /// The largest payload, in bytes. Default: 1 MiB; at most 500,000,000. A larger one is refused
    /// before it is sent, and a row with a larger one is not read.
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
    /// [`PostgresStore::schema`] or call [`PostgresStore::migrate`] before the first session; until
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
    /// As [`PostgresStore::connect`]; [`Config`](crate::StoreErrorKind::Config) too for a setting that
    /// cannot work.
    pub async fn connect(self) -> Result<PostgresStore, StoreError> {
        let sql = Sql::new(self.schema.as_deref(), &self.settings.table)?;
        let table = Table::open(Postgresql { sql }, self.origin, &self.settings).await?;
        Ok(PostgresStore {
            table: Arc::new(table),
        })
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("limits", &self.table.limits())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PostgresStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStoreBuilder")
            .field("settings", &self.settings)
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for PostgresStore {
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
impl ScanStore for PostgresStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        self.table.scan(from, limit).await
    }
}
