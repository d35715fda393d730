//! What the stores on SQL servers share: the verbs, in terms of a [`Dialect`].

mod ask;
mod builder;
mod failure;
mod payload;
mod pool;
mod source;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::{BoxDynError, DatabaseError};
use sqlx::{Arguments, AssertSqlSafe, Database, Encode, SqlSafeStr, SqlStr, Type};
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use self::ask::Ask;
pub(super) use self::builder::{Origin, Settings};
pub(super) use self::failure::{NO_TABLE, OTHER_FORM, Then, Verdict};
use self::failure::{failed, judge};
use self::source::{Lease, Source};
use super::{
    CreateOutcome, Cursor, NewRecord, Page, Record, Revision, SessionKey, StoreError,
    StoreErrorKind, StoreLimits, TouchOutcome, UpdateOutcome,
};

/// How many rows one statement of a purge takes: short enough for the others to wait.
const PURGE_CHUNK: usize = 250;
/// How long one such statement, and making the table, may take. Neither is part of a request.
const PATIENCE_AT_WORK: Duration = Duration::from_secs(10);
/// How long an application that starts waits for its server, at most.
const PATIENCE_AT_START: Duration = Duration::from_secs(3);
/// How often a statement that the server says it rolled back is tried, in all.
const MOST_TRIES: u64 = 20;
/// The longest lifetime, in microseconds: about a hundred years, exact in a float.
const LONGEST: i64 = 100 * 366 * 24 * 3600 * 1_000_000;

/// What is said to one kind of server, and what its answers mean.
pub(super) trait Dialect: fmt::Debug + Send + Sync + 'static {
    type Db: Database;

    fn load(&self, key: &SessionKey, max_payload: i64) -> Statement<Self::Db>;
    fn create(&self, key: &SessionKey, new: &NewRecord<'_>) -> Statement<Self::Db>;
    fn update(&self, key: &SessionKey, seen: Revision, new: &NewRecord<'_>) -> Statement<Self::Db>;
    fn touch(&self, key: &SessionKey, seen: Revision, ttl: Duration) -> Statement<Self::Db>;
    fn delete(&self, key: &SessionKey) -> Statement<Self::Db>;
    fn purge(&self, limit: i64) -> Statement<Self::Db>;
    fn scan(&self, after: &str, limit: i64) -> Statement<Self::Db>;

    /// Carries a statement out that answers with rows.
    fn rows(
        connection: &mut Connection<Self>,
        statement: Statement<Self::Db>,
    ) -> impl Future<Output = sqlx::Result<Vec<Row<Self>>>> + Send;

    /// Carries a statement out that answers with a number: [`DONE`], [`CONFLICT`] or nothing of the
    /// kind, or how many rows there were.
    fn number(
        connection: &mut Connection<Self>,
        statement: Statement<Self::Db>,
    ) -> impl Future<Output = sqlx::Result<u64>> + Send;

    /// The bytes in a column of a row.
    fn bytes(row: &Row<Self>, column: usize) -> sqlx::Result<Option<&[u8]>>;

    /// What is left of the lifetime of a loaded row, in microseconds.
    fn remaining(row: &Row<Self>) -> sqlx::Result<i64>;

    /// What a connection of the store's own is told first.
    fn greet(connection: &mut Connection<Self>) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Makes the table where it is missing, if `create` says so, and checks what can be checked. The
    /// inner error says what is wrong with the settings.
    fn prepare(
        &self,
        connection: &mut Connection<Self>,
        limits: StoreLimits,
        create: bool,
    ) -> impl Future<Output = sqlx::Result<Result<(), &'static str>>> + Send;

    /// What an error of the server means.
    fn judge(error: &dyn DatabaseError) -> Verdict;
}

pub(super) type Connection<D> = <<D as Dialect>::Db as Database>::Connection;
pub(super) type Row<D> = <<D as Dialect>::Db as Database>::Row;

/// The columns of a loaded row.
pub(super) const REVISION: usize = 0;
pub(super) const PAYLOAD: usize = 1;
pub(super) const EXPIRY: usize = 2;

/// The numbers with which statements answer.
pub(super) const DONE: u64 = 1;
pub(super) const CONFLICT: u64 = 2;

/// A statement with its arguments, which are encoded already: it outlives what it was made from.
pub(super) struct Statement<Db: Database> {
    pub(super) sql: SqlStr,
    pub(super) arguments: Result<Db::Arguments, BoxDynError>,
}

impl<Db: Database> Statement<Db> {
    pub(super) fn new(sql: &Arc<str>) -> Self {
        Self {
            // Made of literals and names of one grammar.
            sql: AssertSqlSafe(Arc::clone(sql)).into_sql_str(),
            arguments: Ok(Db::Arguments::default()),
        }
    }

    pub(super) fn bind<'v, T: Encode<'v, Db> + Type<Db>>(mut self, value: T) -> Self {
        if let Ok(arguments) = &mut self.arguments
            && let Err(error) = arguments.add(value)
        {
            self.arguments = Err(error);
        }
        self
    }
}

/// A lifetime in microseconds, rounded up.
pub(super) fn micros(ttl: Duration) -> i64 {
    let micros = ttl.as_nanos().div_ceil(1000);
    i64::try_from(micros).map_or(LONGEST, |micros| micros.min(LONGEST))
}

/// A table for sessions on a server.
pub(super) struct Table<D: Dialect> {
    dialect: D,
    source: Source<D>,
    limits: StoreLimits,
    timeout: Duration,
    create_table: bool,
    /// Set once the server has been reached and the table is there.
    ready: OnceCell<()>,
}

impl<D: Dialect> Table<D> {
    /// Reaches for the server; one that cannot be reached now is reached for by the verbs.
    pub(super) async fn open(
        dialect: D,
        origin: Origin<D>,
        settings: &Settings,
    ) -> Result<Self, StoreError> {
        let table = Self {
            dialect,
            source: origin.into_source(settings)?,
            limits: StoreLimits::new(settings.max_payload).with_timeout(settings.timeout),
            timeout: settings.timeout,
            create_table: settings.create_table,
            ready: OnceCell::new(),
        };
        let first = timeout(PATIENCE_AT_START, table.ready()).await;
        match first.unwrap_or_else(|_| Err(late(PATIENCE_AT_START))) {
            Err(error)
                if matches!(
                    error.kind(),
                    StoreErrorKind::Timeout | StoreErrorKind::Unavailable
                ) =>
            {
                tracing::warn!(%error, "session store not reached yet");
            }
            other => other?,
        }
        Ok(table)
    }

    async fn ready(&self) -> Result<(), StoreError> {
        let prepare = || self.prepare(self.create_table);
        self.ready.get_or_try_init(prepare).await.map(drop)
    }

    async fn prepare(&self, create: bool) -> Result<(), StoreError> {
        let mut lease = self.source.acquire().await.map_err(failed::<D>)?;
        let answer = self.dialect.prepare(&mut lease, self.limits, create).await;
        lease.give_back(&answer);
        let verdict = answer.map_err(failed::<D>)?;
        verdict.map_err(|wrong| StoreError::new(StoreErrorKind::Config, wrong))
    }

    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        let migrated = timeout(PATIENCE_AT_WORK, self.prepare(true)).await;
        migrated.unwrap_or_else(|_| Err(late(PATIENCE_AT_WORK)))?;
        // Somebody may have been here first.
        let _ = self.ready.set(());
        Ok(())
    }

    /// Asks the server, within `patience` in all. Sends a statement a second time only if the server
    /// has said of the first that it rolled it back.
    async fn ask<T, F>(
        &self,
        patience: Duration,
        statement: impl Fn() -> Statement<D::Db>,
        carry_out: impl Fn(Lease<D>, Statement<D::Db>) -> F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = sqlx::Result<T>> + Send + 'static,
    {
        let asked = timeout(patience, async {
            if !self.ready.initialized() {
                self.ready().await?;
            }
            let mut tries = 0_u64;
            loop {
                tries += 1;
                // Two thirds of the time, so that a statement that is sent has time to be answered.
                let lease = timeout(patience * 2 / 3, self.source.acquire()).await;
                let lease = lease.map_err(|_| busy())?.map_err(failed::<D>)?;
                // Boxed and of its own: a connection is of use only after the whole answer, whoever
                // stops waiting for it.
                let answer = Ask::new(carry_out(lease, statement())).await;
                match answer {
                    Err(error)
                        if tries < MOST_TRIES && judge::<D>(&error).then == Then::TryAgain =>
                    {
                        // Those who got into each other's way do not start together again.
                        let pause = rand::random_range(0..1000 * tries);
                        sleep(Duration::from_micros(pause)).await;
                    }
                    answer => return answer.map_err(failed::<D>),
                }
            }
        });
        asked.await.unwrap_or_else(|_| {
            self.source.doubt();
            Err(late(patience))
        })
    }

    async fn rows(
        &self,
        statement: impl Fn() -> Statement<D::Db>,
    ) -> Result<Vec<Row<D>>, StoreError> {
        let carry_out = |mut lease: Lease<D>, statement| async move {
            let answer = D::rows(&mut lease, statement).await;
            lease.give_back(&answer);
            answer
        };
        self.ask(self.timeout, statement, carry_out).await
    }

    async fn number(
        &self,
        patience: Duration,
        statement: impl Fn() -> Statement<D::Db>,
    ) -> Result<u64, StoreError> {
        let carry_out = |mut lease: Lease<D>, statement| async move {
            let answer = D::number(&mut lease, statement).await;
            lease.give_back(&answer);
            answer
        };
        self.ask(patience, statement, carry_out).await
    }

    pub(super) async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        // The builder has bounded it.
        let max = i64::try_from(self.limits.max_payload()).unwrap_or(i64::MAX);
        let rows = self.rows(|| self.dialect.load(key, max)).await?;
        rows.into_iter().next().map_or(Ok(None), record::<D>)
    }

    pub(super) async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.limits.check(new)?;
        let create = || self.dialect.create(key, new);
        Ok(match self.number(self.timeout, create).await? {
            DONE => CreateOutcome::Created(0),
            _ => CreateOutcome::Taken,
        })
    }

    pub(super) async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.limits.check(new)?;
        let update = || self.dialect.update(key, seen.revision(), new);
        Ok(match self.number(self.timeout, update).await? {
            DONE => UpdateOutcome::Updated(0),
            CONFLICT => UpdateOutcome::Conflict,
            _ => UpdateOutcome::Gone,
        })
    }

    pub(super) async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let touch = || self.dialect.touch(key, seen.revision(), ttl);
        Ok(match self.number(self.timeout, touch).await? {
            DONE => TouchOutcome::Touched(0),
            CONFLICT => TouchOutcome::Conflict,
            _ => TouchOutcome::Gone,
        })
    }

    pub(super) async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let delete = || self.dialect.delete(key);
        self.number(self.timeout, delete).await.map(drop)
    }

    pub(super) async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        let mut went = 0;
        while went < limit.get() as u64 {
            let chunk = (limit.get() as u64 - went).min(PURGE_CHUNK as u64);
            let purge = || self.dialect.purge(chunk as i64);
            let purged = self.number(PATIENCE_AT_WORK, purge).await?;
            went += purged;
            if purged < chunk {
                break;
            }
        }
        Ok(went)
    }

    pub(super) async fn scan(
        &self,
        from: Option<&Cursor>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError> {
        let after = Page::after(from)?;
        let after = after.as_ref().map_or("", SessionKey::as_str);
        let limited = i64::try_from(limit.get()).unwrap_or(i64::MAX);
        let rows = self.rows(|| self.dialect.scan(after, limited)).await?;
        let keys = rows.iter().filter_map(|row| {
            let bytes = D::bytes(row, 0).ok().flatten()?;
            std::str::from_utf8(bytes).ok()?.parse().ok()
        });
        Ok(Page::in_order(keys.collect(), limit))
    }

    pub(super) fn limits(&self) -> StoreLimits {
        self.limits
    }
}

impl<D: Dialect> fmt::Debug for Table<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("dialect", &self.dialect)
            .field("limits", &self.limits)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

fn record<D: Dialect>(row: Row<D>) -> Result<Option<Record>, StoreError> {
    let corrupt = |message| StoreError::new(StoreErrorKind::Corrupt, message);
    let foreign = |_| corrupt("the row is not a session record");
    let Ok(left @ 1..) = u64::try_from(D::remaining(&row).map_err(foreign)?) else {
        return Ok(None);
    };
    let revision = D::bytes(&row, REVISION).map_err(foreign)?;
    let revision = revision.and_then(|bytes| bytes.try_into().ok());
    let revision = revision.ok_or_else(|| corrupt("the row's revision is not 16 bytes long"))?;
    let payload = payload::of::<D>(row)
        .map_err(foreign)?
        .ok_or_else(|| corrupt("the row's payload is missing, or larger than this store allows"))?;
    Ok(Some(Record::new(
        Revision::from_bytes(revision),
        payload,
        Duration::from_micros(left),
    )))
}

fn late(patience: Duration) -> StoreError {
    StoreError::new(
        StoreErrorKind::Timeout,
        format!("no answer within {patience:?}"),
    )
}

/// Nothing has been sent.
fn busy() -> StoreError {
    StoreError::new(
        StoreErrorKind::Timeout,
        "no connection to the server became free, or could be made, in time",
    )
}
