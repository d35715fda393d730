//! Going through the sessions of a store, several at a time.

use std::future::Future;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Duration;

use session_layer::store::{Cursor, Page, Record, ScanStore, SessionKey, SessionStore};
use session_layer::{AnyStore, StoreError, StoreErrorKind};
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::stop::Stop;

/// Large, since a directory is read from its beginning for each page.
const PAGE: NonZeroUsize = match NonZeroUsize::new(10_000) {
    Some(page) => page,
    None => NonZeroUsize::MIN,
};
/// How many sessions are worked on at a time where the arguments do not say.
pub(crate) const AT_ONCE: NonZeroUsize = match NonZeroUsize::new(16) {
    Some(n) => n,
    None => NonZeroUsize::MIN,
};
/// The pauses before a store that does not answer is asked again.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(900),
    Duration::from_millis(2_700),
];
/// Longer than a healthy store takes, and stores have limits of their own.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a walk ended, unless it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walked {
    Everything,
    /// As far as `take` wanted.
    Enough,
    Interrupted,
}

/// Does `work` for each key of the store, `at_once` of them at a time, and hands the answers to `take`
/// as they come. Whatever ends it, work that has begun is waited for and its answer taken.
pub(crate) async fn walk<T, F>(
    store: &AnyStore,
    at_once: NonZeroUsize,
    stop: &Stop,
    work: impl Fn(SessionKey) -> F,
    mut take: impl FnMut(T) -> Result<ControlFlow<()>, Failure>,
) -> Result<Walked, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut end = None;
    let mut from = None;
    'pages: loop {
        let page = match page(store, from.as_ref()).await {
            Ok(page) => page,
            Err(failure) => {
                end = Some(Err(failure));
                break;
            }
        };
        for key in page.keys() {
            if stop.is_asked() {
                end = Some(Ok(Walked::Interrupted));
                break 'pages;
            }
            while running.len() >= at_once.get() {
                if let Some(answer) = running.join_next().await {
                    end = settle(answer, &mut take);
                }
                if end.is_some() {
                    break 'pages;
                }
            }
            running.spawn(work(*key));
        }
        from = page.into_next();
        if from.is_none() {
            break;
        }
    }
    while let Some(answer) = running.join_next().await {
        // Of several ends the first counts, unless a later one is a failure.
        match settle(answer, &mut take) {
            Some(Err(failure)) if !matches!(end, Some(Err(_))) => end = Some(Err(failure)),
            later => end = end.or(later),
        }
    }
    end.unwrap_or(Ok(Walked::Everything))
}

fn settle<T>(
    answer: Result<Result<T, Failure>, tokio::task::JoinError>,
    take: &mut impl FnMut(T) -> Result<ControlFlow<()>, Failure>,
) -> Option<Result<Walked, Failure>> {
    let answer = answer
        .map_err(|error| Failure::new("the work on a session broke off").caused_by(error))
        .and_then(|answer| answer);
    match answer.and_then(take) {
        Ok(ControlFlow::Continue(())) => None,
        Ok(ControlFlow::Break(())) => Some(Ok(Walked::Enough)),
        Err(failure) => Some(Err(failure)),
    }
}

/// How many keys the store names. `None` when asked to stop.
pub(crate) async fn count(store: &AnyStore, stop: &Stop) -> Result<Option<u64>, Failure> {
    let (mut count, mut from) = (0, None);
    loop {
        if stop.is_asked() {
            return Ok(None);
        }
        let page = page(store, from.as_ref()).await?;
        count += page.keys().len() as u64;
        from = page.into_next();
        if from.is_none() {
            return Ok(Some(count));
        }
    }
}

async fn page(store: &AnyStore, from: Option<&Cursor>) -> Result<Page, Failure> {
    again(|| store.scan(from, PAGE))
        .await
        .map_err(|error| Failure::of_store("cannot list the sessions", error))
}

/// What there is under a key.
#[derive(Debug)]
pub(crate) enum Found {
    Absent,
    Unreadable,
    Record(Record),
}

pub(crate) async fn load(store: &AnyStore, key: &SessionKey) -> Result<Found, StoreError> {
    match again(|| store.load(key)).await {
        Ok(None) => Ok(Found::Absent),
        Ok(Some(record)) => Ok(Found::Record(record)),
        Err(error) if error.kind() == StoreErrorKind::Corrupt => Ok(Found::Unreadable),
        Err(error) => Err(error),
    }
}

/// Calls the store until it answers or the pauses are used up. Only for what may be done twice.
pub(crate) async fn again<T, F>(call: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for pause in PAUSES {
        match within(call()).await {
            Err(error) if may_pass(&error) => tokio::time::sleep(pause).await,
            answer => return answer,
        }
    }
    within(call()).await
}

/// The store's answer, if it comes in time.
pub(crate) async fn within<T>(
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| {
            Err(StoreError::new(
                StoreErrorKind::Timeout,
                format!("no answer within {PATIENCE:?}"),
            ))
        })
}

fn may_pass(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        StoreErrorKind::Timeout | StoreErrorKind::Unavailable
    )
}
