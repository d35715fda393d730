//! A store that asks for leave before each call, so that a test goes through every order of the calls
//! of concurrent requests.
//!
//! Needs `mod support;` beside it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use session_layer::store::{
    CreateOutcome, NewRecord, Record, SessionStore, StoreLimits, TouchOutcome, UpdateOutcome,
};
use session_layer::{AnyStore, SessionKey, StoreError};
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};

use crate::support::{Answer, Browser, send};

/// What a request has come to.
enum Event {
    /// It wants to call the store, and waits for leave.
    Calls(usize, oneshot::Sender<()>),
    Done(usize, Answer),
}

/// A store that asks for leave before each call.
#[derive(Debug, Clone)]
pub struct Gated {
    store: AnyStore,
    request: usize,
    events: mpsc::UnboundedSender<Event>,
    /// A request that calls several times at once is asked for one call after the other.
    one: Arc<Mutex<()>>,
}

impl Gated {
    async fn leave(&self) -> MutexGuard<'_, ()> {
        let one = self.one.lock().await;
        // First let the request get everything in line that it calls at once. A time limit that begins
        // polls twice, so once would not do.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        let (leave, granted) = oneshot::channel();
        let _ = self.events.send(Event::Calls(self.request, leave));
        let _ = granted.await;
        one
    }
}

impl SessionStore for Gated {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let _one = self.leave().await;
        self.store.load(key).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        let _one = self.leave().await;
        self.store.create(key, new).await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        let _one = self.leave().await;
        self.store.update(key, seen, new).await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let _one = self.leave().await;
        self.store.touch(key, seen, ttl).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let _one = self.leave().await;
        self.store.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.store.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }
}

/// Sends the requests at once, each to an application of its own, in the order of calls that `schedule`
/// says. Answers them, with the choices there were.
pub async fn in_order(
    store: &AnyStore,
    router: impl Fn(Gated) -> Router,
    requests: &[(&Browser, &str)],
    schedule: &[usize],
) -> (Vec<Answer>, Vec<(usize, usize)>) {
    let (sender, mut events) = mpsc::unbounded_channel();
    for (request, (browser, path)) in requests.iter().enumerate() {
        let gated = Gated {
            store: store.clone(),
            request,
            events: sender.clone(),
            one: Arc::default(),
        };
        let (answer, done) = (send(&router(gated), browser.request(path)), sender.clone());
        tokio::spawn(async move { drop(done.send(Event::Done(request, answer.await))) });
    }
    let mut answers: Vec<_> = requests.iter().map(|_| None).collect();
    let mut waiting: Vec<_> = requests.iter().map(|_| None).collect();
    let mut choices = Vec::new();
    let mut running = requests.len();
    loop {
        while running > 0 {
            match events.recv().await.unwrap() {
                Event::Calls(request, leave) => waiting[request] = Some(leave),
                Event::Done(request, answer) => answers[request] = Some(answer),
            }
            running -= 1;
        }
        let ready: Vec<_> = (0..requests.len())
            .filter(|at| waiting[*at].is_some())
            .collect();
        if ready.is_empty() {
            break;
        }
        let choice = schedule.get(choices.len()).copied().unwrap_or(0);
        choices.push((choice, ready.len()));
        waiting[ready[choice]].take().unwrap().send(()).unwrap();
        running = 1;
    }
    (answers.into_iter().map(Option::unwrap).collect(), choices)
}

/// The schedule after `choices` in depth-first order; `None` after the last.
pub fn next_schedule(choices: &[(usize, usize)]) -> Option<Vec<usize>> {
    let last = choices
        .iter()
        .rposition(|(choice, options)| choice + 1 < *options)?;
    let mut schedule: Vec<_> = choices[..last].iter().map(|(choice, _)| *choice).collect();
    schedule.push(choices[last].0 + 1);
    Some(schedule)
}
