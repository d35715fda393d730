//! Many requests at once on few threads.

use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Uri;
use axum::http::header::HeaderValue;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::app::Row;
use crate::scenario::{ask, issue};

const THREADS: usize = 2;
const TASKS: u64 = 64;

/// Whose sessions the tasks read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    /// Each its own.
    Different,
    /// All the same.
    Shared,
}

impl Sessions {
    pub const ALL: [Self; 2] = [Self::Different, Self::Shared];

    pub fn name(self) -> &'static str {
        match self {
            Self::Different => "64 sessions",
            Self::Shared => "one session",
        }
    }
}

/// 64 tasks on two threads, each of which sends one request after the other. The handler reads one
/// key, and lets the others have the thread once before it answers: 64 requests are in flight.
pub struct Contention {
    runtime: Runtime,
    router: Router,
    cookies: Vec<HeaderValue>,
}

impl Contention {
    pub fn new(row: Row, sessions: Sessions) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_time()
            .build()
            .expect("a runtime");
        let mut router = row.router();
        let cookies = runtime.block_on(async {
            let mut cookies: Vec<HeaderValue> = Vec::new();
            for _ in 0..TASKS {
                let cookie = match cookies.first() {
                    Some(first) if sessions == Sessions::Shared => first.clone(),
                    _ => issue(row, &mut router).await.parse().expect("a header"),
                };
                cookies.push(cookie);
            }
            cookies
        });
        Self {
            runtime,
            router,
            cookies,
        }
    }

    /// Handles about `requests` requests, at least one a task, and says how long each took of the
    /// time that passed.
    pub fn run(&self, requests: u64) -> Duration {
        let each = requests.div_ceil(TASKS).max(1);
        let start = Instant::now();
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for cookie in &self.cookies {
                let mut router = self.router.clone();
                let cookie = cookie.clone();
                tasks.spawn(async move {
                    let uri = Uri::from_static("/read-and-wait");
                    for _ in 0..each {
                        let response = ask(&mut router, &uri, Some(&cookie)).await;
                        assert!(response.status().is_success(), "{}", response.status());
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.expect("a task that succeeds");
            }
        });
        start.elapsed().div_f64((each * TASKS) as f64)
    }
}
