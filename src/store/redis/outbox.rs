//! Commands of several requests, sent together.
//!
//! The driver is woken for each command and sends it at once, by itself. While few requests are under
//! way, nothing is faster. With many, it makes a system call for each command on both sides, of a
//! server that falls asleep in between, which costs more than the commands themselves. So when some
//! are under way, the next ones wait until every task that is ready has had its turn, and go as one
//! pipeline.

use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use ::redis::aio::ConnectionLike;
use ::redis::{Cmd, ErrorKind, Pipeline, RedisError, Value};
use tokio::sync::oneshot;

/// How many are under way before any waits for others.
const BUSY: usize = 12;

/// The most that are sent together: the server is to have something to do while the next are
/// gathered.
const MOST: usize = 22;

/// What is larger, in bytes, goes by itself: it has a system call's worth of work, and is not to be
/// copied once more.
const LARGE: usize = 16 << 10;

type Answer = Result<Value, RedisError>;

/// What is to be sent on one connection. Clones are the same one.
#[derive(Clone, Default)]
pub(in crate::store) struct Outbox(Arc<Shared>);

#[derive(Default)]
struct Shared {
    under_way: AtomicUsize,
    waiting: Mutex<Vec<Waiting>>,
}

struct Waiting {
    cmd: Cmd,
    answer: oneshot::Sender<Answer>,
}

/// A command that is to be sent. Not a `Cow`, which is large, and of which each future on the way would
/// keep one.
pub(in crate::store) enum Outgoing<'a> {
    /// It may have to be sent again, elsewhere.
    Kept(&'a Cmd),
    /// It is of no use to its owner any more.
    Given(&'a mut Cmd),
}

impl Deref for Outgoing<'_> {
    type Target = Cmd;

    fn deref(&self) -> &Cmd {
        match self {
            Self::Kept(cmd) => cmd,
            Self::Given(cmd) => cmd,
        }
    }
}

impl Outgoing<'_> {
    fn into_owned(self) -> Cmd {
        match self {
            Self::Kept(cmd) => cmd.clone(),
            Self::Given(cmd) => std::mem::replace(cmd, Cmd::new()),
        }
    }
}

impl Outbox {
    /// Sends a command on `connection`, once: together with others, or `alone`. After an error of the
    /// connection it may have been carried out, and also if this is dropped.
    pub(super) async fn send<'a, C, F>(
        &self,
        connection: &C,
        cmd: Outgoing<'a>,
        alone: impl FnOnce(C, Outgoing<'a>) -> F,
    ) -> Answer
    where
        C: ConnectionLike + Clone + Send + 'static,
        F: Future<Output = Answer>,
    {
        let others = self.0.under_way.fetch_add(1, Ordering::Relaxed);
        let _under_way = UnderWay(&self.0);
        if others < BUSY || size(&cmd) > LARGE {
            // Boxed: the driver's future is large, and the other way has no need of the room.
            return Box::pin(alone(connection.clone(), cmd)).await;
        }
        let (answer, together) = oneshot::channel();
        let cmd = cmd.into_owned();
        self.push(connection, Waiting { cmd, answer });
        let given_up = || RedisError::from((ErrorKind::Io, "the command was given up"));
        together.await.unwrap_or_else(|_| Err(given_up()))
    }

    fn push<C>(&self, connection: &C, one: Waiting)
    where
        C: ConnectionLike + Clone + Send + 'static,
    {
        let mut waiting = self.0.lock();
        if waiting.is_empty() {
            waiting.reserve_exact(MOST);
        }
        waiting.push(one);
        match waiting.len() {
            1 => {
                drop(waiting);
                let mut turn = Turn(Some(self.clone()));
                let connection = connection.clone();
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    deliver(connection, turn.take()).await;
                });
            }
            MOST => {
                let batch = std::mem::take(&mut *waiting);
                drop(waiting);
                tokio::spawn(deliver(connection.clone(), batch));
            }
            _ => {}
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        // Nothing panics under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct UnderWay<'a>(&'a Shared);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whoever has it is to send what waits. A runtime that ends drops it instead; nobody may then be left
/// waiting for it.
struct Turn(Option<Outbox>);

impl Turn {
    fn take(&mut self) -> Vec<Waiting> {
        let outbox = self.0.take();
        outbox.map_or_else(Vec::new, |outbox| std::mem::take(&mut *outbox.0.lock()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Sends a batch and hands out the answers, unless nobody waits for any of them any more.
async fn deliver(mut connection: impl ConnectionLike, batch: Vec<Waiting>) {
    let mut pipeline = Pipeline::with_capacity(batch.len());
    let mut waiting = Vec::with_capacity(batch.len());
    for Waiting { cmd, answer } in batch {
        if !answer.is_closed() {
            pipeline.add_command(cmd);
            waiting.push(answer);
        }
    }
    let count = waiting.len();
    if count == 0 {
        return;
    }
    let answers = {
        let mut sent = pin!(connection.req_packed_commands(&pipeline, 0, count));
        let mut gone = pin!(all_gone(&mut waiting));
        poll_fn(|cx| match sent.as_mut().poll(cx) {
            Poll::Ready(answers) => Poll::Ready(Some(answers)),
            Poll::Pending => gone.as_mut().poll(cx).map(|()| None),
        })
        .await
    };
    match answers {
        Some(Ok(values)) => {
            // What has no answer is told so when its sender is dropped.
            for (answer, value) in waiting.into_iter().zip(values) {
                let _ = answer.send(Ok(value));
            }
        }
        Some(Err(error)) => {
            for answer in waiting {
                let _ = answer.send(Err(error.clone()));
            }
        }
        None => {}
    }
}

async fn all_gone(waiting: &mut [oneshot::Sender<Answer>]) {
    for answer in waiting {
        answer.closed().await;
    }
}

/// The bytes of the arguments.
fn size(cmd: &Cmd) -> usize {
    cmd.args_iter()
        .map(|argument| match argument {
            ::redis::Arg::Simple(bytes) => bytes.len(),
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use ::redis::{Arg, RedisFuture, cmd};
    use tokio::sync::watch;
    use tokio::task::{JoinSet, yield_now};

    use super::*;

    /// A connection that answers each command with its last argument, once it may.
    #[derive(Clone)]
    struct Echo {
        open: watch::Sender<bool>,
        /// How many commands each sending had, and how many were given up.
        sent: Arc<Mutex<Vec<usize>>>,
        given_up: Arc<AtomicUsize>,
        /// How many of a pipeline's answers are missing.
        missing: usize,
        fails: bool,
    }

    struct GivenUp(Arc<AtomicUsize>, usize);

    impl Drop for GivenUp {
        fn drop(&mut self) {
            self.0.fetch_add(self.1, Ordering::Relaxed);
        }
    }

    fn number(cmd: &Cmd) -> Value {
        match cmd.args_iter().last() {
            Some(Arg::Simple(text)) => {
                let text = std::str::from_utf8(text).unwrap();
                Value::Int(text.parse().unwrap_or(-1))
            }
            _ => Value::Nil,
        }
    }

    impl Echo {
        fn new(open: bool) -> Self {
            Self {
                open: watch::Sender::new(open),
                sent: Arc::default(),
                given_up: Arc::default(),
                missing: 0,
                fails: false,
            }
        }

        async fn answer(self, values: Vec<Value>) -> Result<Vec<Value>, RedisError> {
            let mut guard = GivenUp(Arc::clone(&self.given_up), values.len());
            self.sent.lock().unwrap().push(values.len());
            self.open.subscribe().wait_for(|open| *open).await.unwrap();
            guard.1 = 0;
            match self.fails {
                true => Err((ErrorKind::Io, "on demand").into()),
                false => Ok(values),
            }
        }

        fn sent(&self) -> Vec<usize> {
            std::mem::take(&mut *self.sent.lock().unwrap())
        }
    }

    impl ConnectionLike for Echo {
        fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
            let answer = self.clone().answer(vec![number(cmd)]);
            Box::pin(async move { Ok(answer.await?.remove(0)) })
        }

        fn req_packed_commands<'a>(
            &'a mut self,
            pipeline: &'a Pipeline,
            _: usize,
            count: usize,
        ) -> RedisFuture<'a, Vec<Value>> {
            let mut values: Vec<_> = pipeline.cmd_iter().map(number).collect();
            assert_eq!(values.len(), count);
            values.truncate(count - self.missing);
            Box::pin(self.clone().answer(values))
        }

        fn get_db(&self) -> i64 {
            0
        }
    }

    fn send(
        outbox: &Outbox,
        echo: &Echo,
        number: usize,
        size: usize,
    ) -> impl Future<Output = Answer> + Send + 'static {
        let (outbox, echo) = (outbox.clone(), echo.clone());
        async move {
            let mut cmd = cmd("ECHO");
            cmd.arg(vec![b'x'; size]).arg(number);
            let sent = outbox.send(
                &echo,
                Outgoing::Given(&mut cmd),
                |mut echo, cmd| async move { echo.req_packed_command(&cmd).await },
            );
            sent.await
        }
    }

    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn few_go_alone_and_many_together() {
        let (outbox, echo) = (Outbox::default(), Echo::new(false));
        let mut tasks = JoinSet::new();
        let mut begin = |numbers: std::ops::Range<usize>| {
            for number in numbers {
                let sending = send(&outbox, &echo, number, 0);
                tasks
                    .spawn(async move { assert_eq!(sending.await, Ok(Value::Int(number as i64))) });
            }
        };
        begin(0..BUSY);
        settle().await;
        assert_eq!(echo.sent(), [1; BUSY]);
        begin(BUSY..BUSY + 2 * MOST + 3);
        settle().await;
        assert_eq!(echo.sent(), [MOST, MOST, 3]);
        begin(200..201);
        settle().await;
        assert_eq!(echo.sent(), [1]);
        echo.open.send_replace(true);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        // It is quiet again: nothing waits for others.
        assert_eq!(outbox.0.under_way.load(Ordering::Relaxed), 0);
        assert!(outbox.0.lock().is_empty());
    }

    #[tokio::test]
    async fn what_is_large_goes_alone() {
        let (outbox, echo) = (Outbox::default(), Echo::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..BUSY {
            tasks.spawn(send(&outbox, &echo, number, 0));
        }
        settle().await;
        echo.sent();
        for size in [LARGE - 10, LARGE, LARGE - 10] {
            tasks.spawn(send(&outbox, &echo, 7, size));
        }
        settle().await;
        assert_eq!(echo.sent(), [1, 2]);
    }

    #[tokio::test]
    async fn all_learn_of_an_error_and_nobody_gets_what_is_anothers() {
        for (fails, missing, refused) in [(true, 0, MOST), (false, 3, 3)] {
            let (outbox, mut echo) = (Outbox::default(), Echo::new(true));
            let blocked = Echo::new(false);
            let mut busy = JoinSet::new();
            for number in 0..BUSY {
                busy.spawn(send(&outbox, &blocked, number, 0));
            }
            settle().await;
            (echo.fails, echo.missing) = (fails, missing);
            let mut tasks = JoinSet::new();
            for number in 0..MOST {
                let sending = send(&outbox, &echo, number, 0);
                tasks.spawn(async move { (number, sending.await) });
            }
            let mut errors = 0;
            for (number, answer) in tasks.join_all().await {
                match answer {
                    Ok(value) => assert_eq!(value, Value::Int(number as i64)),
                    Err(error) => {
                        assert!(error.is_io_error());
                        errors += 1;
                    }
                }
            }
            assert_eq!(errors, refused);
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_given_up_or_never_sent() {
        let (outbox, echo) = (Outbox::default(), Echo::new(false));
        let mut busy = JoinSet::new();
        for number in 0..BUSY {
            busy.spawn(send(&outbox, &echo, number, 0));
        }
        settle().await;
        echo.sent();
        let begin = || {
            let mut tasks = JoinSet::new();
            for number in 0..5 {
                tasks.spawn(send(&outbox, &echo, number, 0));
            }
            tasks
        };
        let mut sent = begin();
        settle().await;
        assert_eq!(echo.sent(), [5]);
        sent.abort_all();
        while sent.join_next().await.is_some() {}
        settle().await;
        assert_eq!(echo.given_up.load(Ordering::Relaxed), 5);

        let mut first = Box::pin(send(&outbox, &echo, 1, 0));
        assert!(futures_util::poll!(&mut first).is_pending());
        drop(first);
        settle().await;
        assert!(echo.sent().is_empty());
        assert_eq!(outbox.0.under_way.load(Ordering::Relaxed), BUSY);
    }
}
