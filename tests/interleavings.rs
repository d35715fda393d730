//! Every order in which the store calls of concurrent requests can happen.
//!
//! The layer, the session and the commit run as they are; only the store is a model, which lets one
//! call at a time through, in an order that the test chooses. Depth-first search goes through all
//! orders. Whatever the order, requests must end as if they had come one after the other: the same
//! answers, the same cookies, the same sessions in the store.

mod support;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use session_layer::store::{
    CreateOutcome, NewRecord, Record, SessionStore, StoreLimits, TouchOutcome, UpdateOutcome,
};
use session_layer::{
    Revision, Session, SessionConfig, SessionKey, SessionLayer, Sessions, StoreError,
    StoreErrorKind,
};
use support::{Answer, Browser, is_tombstone, send};

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Op {
    Read,
    Change,
    Update,
    Clear,
    Rotate,
    Flush,
    Touch,
    Login,
}

const OPS: [Op; 8] = [
    Op::Read,
    Op::Change,
    Op::Update,
    Op::Clear,
    Op::Rotate,
    Op::Flush,
    Op::Touch,
    Op::Login,
];

impl Op {
    fn path(self) -> &'static str {
        match self {
            Self::Read | Self::Touch => "/read",
            Self::Change => "/change",
            Self::Update => "/update",
            Self::Clear => "/clear",
            Self::Rotate => "/rotate",
            Self::Flush => "/flush",
            Self::Login => "/login",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Before,
    After,
}

/// The model: records, and a gate in front of every call.
#[derive(Debug, Clone, Default)]
struct Model(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    records: HashMap<SessionKey, (Revision, Vec<u8>, Duration)>,
    /// While false, calls pass at once.
    gated: bool,
    /// Whose turn it is to make one call, and how that call fails.
    grant: Option<Fault>,
    /// Set when a call waits at the gate.
    waiting: bool,
}

impl Model {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// One call: waits for the grant, then happens in one step.
    async fn call<T>(
        &self,
        act: impl FnOnce(&mut HashMap<SessionKey, (Revision, Vec<u8>, Duration)>) -> T,
    ) -> Result<T, StoreError> {
        let mut act = Some(act);
        std::future::poll_fn(move |_| {
            let mut inner = self.lock();
            let fault = match (inner.gated, inner.grant.take()) {
                (false, _) => Fault::None,
                (true, Some(fault)) => fault,
                (true, None) => {
                    inner.waiting = true;
                    return Poll::Pending;
                }
            };
            let failure = StoreError::new(StoreErrorKind::Unavailable, "on demand");
            if fault == Fault::Before {
                return Poll::Ready(Err(failure));
            }
            let act = act.take().expect("polled after it was done");
            let answer = act(&mut inner.records);
            Poll::Ready(if fault == Fault::After {
                Err(failure)
            } else {
                Ok(answer)
            })
        })
        .await
    }

    fn live(&self) -> Vec<SessionKey> {
        let inner = self.lock();
        let live = inner
            .records
            .iter()
            .filter(|(_, (_, payload, _))| !is_tombstone(payload));
        live.map(|(key, _)| *key).collect()
    }
}

impl SessionStore for Model {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let (key, make) = (
            *key,
            |(revision, payload, ttl): &(Revision, Vec<u8>, Duration)| {
                Record::new(*revision, Bytes::from(payload.clone()), *ttl)
            },
        );
        self.call(move |records| records.get(&key).map(make)).await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        let (key, entry) = (*key, (new.revision(), new.payload().to_vec(), new.ttl()));
        self.call(move |records| match records.entry(key) {
            Entry::Vacant(place) => {
                place.insert(entry);
                CreateOutcome::Created(0)
            }
            Entry::Occupied(there) => {
                let payload = &there.get().1;
                assert!(
                    payload.windows(5).any(|word| word == b"index"),
                    "ids do not repeat"
                );
                CreateOutcome::Taken
            }
        })
        .await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        let (key, seen) = (*key, seen.revision());
        let entry = (new.revision(), new.payload().to_vec(), new.ttl());
        self.call(move |records| match records.get_mut(&key) {
            None => UpdateOutcome::Gone,
            Some(record) if record.0 != seen => UpdateOutcome::Conflict,
            Some(record) => {
                *record = entry;
                UpdateOutcome::Updated(0)
            }
        })
        .await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let (key, seen) = (*key, seen.revision());
        self.call(move |records| match records.get_mut(&key) {
            None => TouchOutcome::Gone,
            Some(record) if record.0 != seen => TouchOutcome::Conflict,
            Some(record) => {
                record.2 = ttl;
                TouchOutcome::Touched(0)
            }
        })
        .await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let key = *key;
        self.call(move |records| drop(records.remove(&key))).await
    }

    async fn delete_expired(&self, _: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits::new(1 << 20)
    }
}

fn routes() -> Router {
    Router::new()
        .route(
            "/read",
            get(|session: Session| async move { drop(session.get::<u64>("n")) }),
        )
        .route(
            "/change",
            get(|session: Session| async move {
                // A key of one's own: requests are told apart by how many such keys there are.
                let key = format!("{:?}", Revision::generate());
                session.insert(&key, true)
            }),
        )
        .route(
            "/update",
            get(|session: Session| async move {
                session
                    .update("n", |n: Option<u64>| n.unwrap_or(0) + 1)
                    .map(drop)
            }),
        )
        .route(
            "/clear",
            get(|session: Session| async move { session.clear() }),
        )
        .route(
            "/rotate",
            get(|session: Session| async move { session.cycle_id() }),
        )
        .route(
            "/flush",
            get(|session: Session| async move { session.flush() }),
        )
        .route(
            "/login",
            get(|session: Session| async move { session.login("ada") }),
        )
        .route(
            "/show",
            get(|session: Option<Session>| async move {
                session.map_or("none".to_owned(), |session| {
                    let n = session.get::<u64>("n").unwrap();
                    format!(
                        "n {n:?}, {} changes{}",
                        session.len() - usize::from(n.is_some()),
                        if session.user().is_some() {
                            ", of ada"
                        } else {
                            ""
                        },
                    )
                })
            }),
        )
}

fn routed(layer: SessionLayer) -> Router {
    routes().layer(layer).with_state(())
}

/// Whether requests are handled by one process or each by its own.
#[derive(Debug, Clone, Copy)]
enum Processes {
    One,
    Many,
}

/// How one run of a few concurrent requests ended: comparable between runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    answers: Vec<(u16, &'static str)>,
    /// What the original cookie leads to, then what each cookie that was handed out leads to.
    original: String,
    handed_out: Vec<String>,
    live: usize,
    /// How many sessions of ada's the cookies lead to, and how many of those are listed.
    of_ada: (usize, usize),
}

/// How a run ended, and the choices made on the way: which of how many.
struct Run {
    end: End,
    choices: Vec<(usize, usize)>,
}

type Task = Pin<Box<dyn Future<Output = Answer>>>;

struct World {
    store: Model,
    browser: Browser,
    routers: HashMap<bool, Router>,
    sessions: Option<Sessions>,
    processes: Processes,
}

impl World {
    fn new(processes: Processes) -> Self {
        let store = Model::default();
        let mut world = Self {
            store,
            browser: Browser::default(),
            routers: HashMap::new(),
            sessions: None,
            processes,
        };
        for renewing in [false, true] {
            let layer = world.layer(renewing);
            world.sessions = Some(layer.sessions());
            world.routers.insert(renewing, routed(layer));
        }
        let mut browser = Browser::default();
        world.now(&mut browser, "/update");
        world.browser = browser;
        world
    }

    /// That of an application of its own. A renewing one touches at every request, and sends the cookie
    /// again.
    fn layer(&self, renewing: bool) -> SessionLayer {
        let share = if renewing { 0.0 } else { 0.9 };
        let config = SessionConfig::default().with_refresh_share(share);
        SessionLayer::with_config(self.store.clone(), support::keys(), config).unwrap()
    }

    fn router(&self, op: Op) -> Router {
        match self.processes {
            Processes::One => self.routers[&(op == Op::Touch)].clone(),
            Processes::Many => routed(self.layer(op == Op::Touch)),
        }
    }

    /// A request that nothing comes between.
    fn now(&self, browser: &mut Browser, path: &str) -> Answer {
        let mut task: Task = Box::pin(send(&self.routers[&false], browser.request(path)));
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(answer) = task.as_mut().poll(&mut cx) else {
            panic!("a store that answers at once keeps nobody waiting");
        };
        browser.take(&answer);
        answer
    }

    fn start(&self, op: Op) -> Task {
        Box::pin(send(&self.router(op), self.browser.request(op.path())))
    }

    fn end(&self, answers: &[Answer]) -> End {
        self.store.lock().gated = false;
        let show = |mut browser: Browser| self.now(&mut browser, "/show").body;
        let mut handed_out = Vec::new();
        let answers = answers
            .iter()
            .map(|answer| {
                let cookie = if answer.sets_no_cookie() {
                    "no cookie"
                } else if answer.removes_cookie() {
                    "removal"
                } else {
                    handed_out.push(show(Browser::with_cookie(answer.set_value())));
                    "cookie"
                };
                (answer.status.as_u16(), cookie)
            })
            .collect();
        handed_out.sort();
        let original = show(self.browser.clone());
        let shown = handed_out.iter().chain([&original]);
        let of_ada = shown.filter(|shown| shown.ends_with("of ada")).count();
        let sessions = self.sessions.as_ref().unwrap();
        let mut listed = Box::pin(sessions.of_user("ada"));
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(listed) = listed.as_mut().poll(&mut cx) else {
            panic!("a store that answers at once keeps nobody waiting");
        };
        End {
            answers,
            original,
            handed_out,
            live: self.store.live().len(),
            of_ada: (of_ada, listed.unwrap().len()),
        }
    }
}

/// Runs the requests `ops` at once, following `schedule` as far as it goes, and then always the first
/// that can go on. `fault` is the number of the store call that fails, and how.
fn run(ops: &[Op], processes: Processes, schedule: &[usize], fault: Option<(usize, Fault)>) -> Run {
    let world = World::new(processes);
    world.store.lock().gated = true;
    let mut cx = Context::from_waker(Waker::noop());
    let mut tasks: Vec<Option<Task>> = ops.iter().map(|op| Some(world.start(*op))).collect();
    let mut answers: Vec<Option<Answer>> = ops.iter().map(|_| None).collect();
    let mut at_gate = vec![false; ops.len()];
    let mut choices = Vec::new();
    let mut calls = 0;
    loop {
        // Everybody goes on as far as possible without the store: to a gate, or to a line in which
        // the one in front is at a gate.
        for at in 0..tasks.len() {
            let Some(task) = &mut tasks[at] else { continue };
            if at_gate[at] {
                continue;
            }
            world.store.lock().waiting = false;
            if let Poll::Ready(answer) = task.as_mut().poll(&mut cx) {
                answers[at] = Some(answer);
                tasks[at] = None;
            } else {
                at_gate[at] = world.store.lock().waiting;
            }
        }
        let ready: Vec<_> = (0..tasks.len()).filter(|at| at_gate[*at]).collect();
        if ready.is_empty() {
            assert!(
                tasks.iter().all(Option::is_none),
                "{ops:?} {schedule:?}: everybody waits"
            );
            break;
        }
        // There can be fewer to choose from than the schedule foresees.
        let choice = schedule
            .get(choices.len())
            .copied()
            .unwrap_or(0)
            .min(ready.len() - 1);
        choices.push((choice, ready.len()));
        let at = ready[choice];
        let how = match fault {
            Some((number, how)) if number == calls => how,
            _ => Fault::None,
        };
        calls += 1;
        world.store.lock().grant = Some(how);
        world.store.lock().waiting = false;
        let task = tasks[at].as_mut().expect("only unfinished tasks wait");
        if let Poll::Ready(answer) = task.as_mut().poll(&mut cx) {
            answers[at] = Some(answer);
            tasks[at] = None;
            at_gate[at] = false;
        } else {
            at_gate[at] = world.store.lock().waiting;
        }
        assert!(choices.len() < 200, "{ops:?} {schedule:?}: does not end");
    }
    let answers: Vec<_> = answers.into_iter().map(Option::unwrap).collect();
    Run {
        end: world.end(&answers),
        choices,
    }
}

/// The schedule after `choices` in depth-first order; `None` after the last.
fn next_schedule(choices: &[(usize, usize)]) -> Option<Vec<usize>> {
    let last = choices
        .iter()
        .rposition(|(choice, options)| choice + 1 < *options)?;
    let mut schedule: Vec<_> = choices[..last].iter().map(|(choice, _)| *choice).collect();
    schedule.push(choices[last].0 + 1);
    Some(schedule)
}

/// How the requests end one after the other, in the given order.
fn serial(ops: &[Op], order: &[usize], processes: Processes) -> End {
    let world = World::new(processes);
    let mut answers: Vec<Option<Answer>> = ops.iter().map(|_| None).collect();
    let mut cx = Context::from_waker(Waker::noop());
    for at in order {
        let Poll::Ready(answer) = world.start(ops[*at]).as_mut().poll(&mut cx) else {
            panic!("a store that answers at once keeps nobody waiting");
        };
        answers[*at] = Some(answer);
    }
    let answers: Vec<_> = answers.into_iter().map(Option::unwrap).collect();
    world.end(&answers)
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    (0..count)
        .flat_map(|at| {
            shorter.iter().map(move |order| {
                let mut order = order.clone();
                order.insert(at, count - 1);
                order
            })
        })
        .collect()
}

fn with_timers<T>(test: impl FnOnce() -> T) -> T {
    // Timers can be set, but never go off: nobody drives the runtime.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let _context = runtime.enter();
    test()
}

/// What the requests may come down to. A rotation that saw the data before a concurrent `clear` is
/// dropped, like every other edit of that generation; it then has only read. So is a login that saw the
/// session before another request ended or rotated it; one that came later begins a new session.
fn as_allowed(ops: &[Op]) -> Vec<Vec<Op>> {
    let mut all = vec![ops.to_vec()];
    let ends = |at: usize, op: &Op| match ops[at] {
        Op::Rotate => *op == Op::Clear,
        Op::Login => matches!(op, Op::Clear | Op::Rotate | Op::Flush | Op::Login),
        _ => false,
    };
    for at in 0..ops.len() {
        let mut others = ops.iter().enumerate().filter(|(other, _)| *other != at);
        if others.any(|(_, op)| ends(at, op)) {
            for mut dropped in all.clone() {
                dropped[at] = Op::Read;
                all.push(dropped);
            }
        }
    }
    all
}

/// How `ops` may end.
fn allowed(ops: &[Op], processes: Processes) -> BTreeSet<End> {
    let allowed: BTreeSet<End> = as_allowed(ops)
        .iter()
        .flat_map(|ops| {
            orders(ops.len())
                .into_iter()
                .map(|order| serial(ops, &order, processes))
        })
        .collect();
    let logins = ops.iter().filter(|op| **op == Op::Login).count();
    for end in &allowed {
        assert!(
            end.live <= usize::from(!ops.contains(&Op::Flush)) + logins,
            "{ops:?}"
        );
        assert_eq!(end.of_ada.0, end.of_ada.1, "{ops:?}");
    }
    allowed
}

fn check(ops: &[Op], processes: Processes, run: &Run, allowed: &BTreeSet<End>) {
    assert!(
        allowed.contains(&run.end),
        "{ops:?} in order {:?} by {processes:?} ended as {:#?}\nwhich is none of {allowed:#?}",
        run.choices
            .iter()
            .map(|(choice, _)| choice)
            .collect::<Vec<_>>(),
        run.end,
    );
}

#[test]
fn two_requests_end_as_if_one_had_come_after_the_other() {
    with_timers(|| {
        let mut runs = 0;
        for processes in [Processes::One, Processes::Many] {
            for (at, first) in OPS.iter().enumerate() {
                for second in &OPS[at..] {
                    let ops = [*first, *second];
                    let allowed = allowed(&ops, processes);
                    let mut schedule = Some(Vec::new());
                    while let Some(at) = schedule {
                        let run = run(&ops, processes, &at, None);
                        check(&ops, processes, &run, &allowed);
                        schedule = next_schedule(&run.choices);
                        runs += 1;
                    }
                }
            }
        }
        // Fewer would mean that the gates do not hold.
        assert!(runs > 300, "{runs}");
    });
}

/// The orders of three requests are too many for a test: 40 of each three kinds (of logins, which call
/// more often, 12), evenly drawn, the same at every run.
#[test]
fn three_requests_end_as_if_they_had_come_one_after_the_other() {
    let mut draw = {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        }
    };
    with_timers(|| {
        for processes in [Processes::One, Processes::Many] {
            for (at, first) in OPS.iter().enumerate() {
                for (then, second) in OPS.iter().enumerate().skip(at) {
                    for third in &OPS[then..] {
                        let ops = [*first, *second, *third];
                        let allowed = allowed(&ops, processes);
                        let draws = if ops.contains(&Op::Login) { 12 } else { 40 };
                        for _ in 0..draws {
                            let schedule: Vec<_> = (0..40).map(|_| draw(3)).collect();
                            check(
                                &ops,
                                processes,
                                &run(&ops, processes, &schedule, None),
                                &allowed,
                            );
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn with_one_failing_call_nothing_counts_twice_and_no_logout_is_undone() {
    let ops = [Op::Update, Op::Rotate, Op::Flush, Op::Login];
    with_timers(|| {
        let mut failed = 0;
        for (first, second) in ops
            .iter()
            .enumerate()
            .flat_map(|(at, first)| ops[at..].iter().map(move |second| (*first, *second)))
        {
            let mut schedule = Vec::new();
            loop {
                let calls = run(&[first, second], Processes::Many, &schedule, None).choices;
                for number in 0..calls.len() + 2 {
                    for how in [Fault::Before, Fault::After] {
                        let run = run(
                            &[first, second],
                            Processes::Many,
                            &schedule,
                            Some((number, how)),
                        );
                        failed += run
                            .end
                            .answers
                            .iter()
                            .filter(|(status, _)| *status == 503)
                            .count();
                        check_failed_run(
                            [first, second],
                            &run.end,
                            &format!("{first:?} {second:?} {schedule:?} {number} {how:?}"),
                        );
                    }
                }
                match next_schedule(&calls) {
                    Some(next) => schedule = next,
                    None => break,
                }
            }
        }
        assert!(failed > 100, "{failed}");
    });
}

fn check_failed_run(ops: [Op; 2], end: &End, what: &str) {
    let answered = |op: Op, status: u16| {
        ops.iter()
            .zip(&end.answers)
            .filter(|(o, (s, _))| **o == op && *s == status)
            .count() as u64
    };
    for (status, _) in &end.answers {
        assert!([200, 503].contains(status), "{what}: {end:?}");
    }
    // Whatever fails: whoever can be logged in with a cookie is listed.
    assert!(end.of_ada.0 <= end.of_ada.1, "{what}: {end:?}");
    if answered(Op::Flush, 200) > 0 {
        assert_eq!(end.original, "none", "{what}: {end:?}");
        // A login that came after the end is a session without what was in the old one.
        assert!(
            end.handed_out
                .iter()
                .all(|shown| shown == "none" || shown == "n None, 0 changes, of ada"),
            "{what}: {end:?}"
        );
    }
    if !ops.contains(&Op::Flush) && !ops.contains(&Op::Login) {
        let shown = end
            .handed_out
            .iter()
            .chain([&end.original])
            .filter(|shown| *shown != "none");
        for shown in shown {
            let n: u64 = shown.split(['(', ')']).nth(1).unwrap().parse().unwrap();
            let least = if ops.contains(&Op::Rotate) {
                1
            } else {
                1 + answered(Op::Update, 200)
            };
            let most = 1 + answered(Op::Update, 200) + answered(Op::Update, 503);
            assert!((least..=most).contains(&n), "{what}: {n} {end:?}");
        }
    }
}
