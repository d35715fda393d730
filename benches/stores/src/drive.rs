//! Sends requests to a subject, so many at a time, for so long.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::header::{COOKIE, HeaderValue};
use http::{Request, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tower_service::Service;

use crate::subject::{Operation, Subject};

/// How a request reaches the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The router is called.
    InProcess,
    /// HTTP over loopback, a connection for each request in flight.
    Sockets,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in process",
            Self::Sockets => "over sockets",
        }
    }
}

/// What a round measured.
pub struct Round {
    /// Requests per second.
    pub rate: f64,
    /// Latencies, in microseconds.
    pub p50: f64,
    pub p99: f64,
}

/// Lets `in_flight` tasks, each with a session of its own, ask for `duration`.
pub async fn drive(
    subject: &Subject,
    operation: Operation,
    transport: Transport,
    in_flight: usize,
    duration: Duration,
) -> Round {
    let served = match transport {
        Transport::InProcess => None,
        Transport::Sockets => {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let router = subject.router.clone();
            let server = tokio::spawn(async move { axum::serve(listener, router).await });
            Some((address, server))
        }
    };
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for cookie in subject.cookies.iter().take(in_flight) {
        let cookie = match operation {
            Operation::Create => None,
            Operation::Read | Operation::ReadWrite => Some(cookie.clone()),
        };
        let until = start + duration;
        match &served {
            None => {
                let router = subject.router.clone();
                tasks.spawn(in_process(router, operation, cookie, until));
            }
            Some((address, _)) => {
                tasks.spawn(over_sockets(*address, operation, cookie, until));
            }
        }
    }
    let mut latencies = Vec::new();
    while let Some(task) = tasks.join_next().await {
        latencies.append(&mut task.expect("a task that succeeds"));
    }
    let took = start.elapsed();
    if let Some((_, server)) = served {
        server.abort();
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let at = (latencies.len() as f64 * share) as usize;
        latencies[at.min(latencies.len() - 1)].as_secs_f64() * 1e6
    };
    Round {
        rate: latencies.len() as f64 / took.as_secs_f64(),
        p50: at(0.50),
        p99: at(0.99),
    }
}

async fn in_process(
    mut router: Router,
    operation: Operation,
    cookie: Option<HeaderValue>,
    until: Instant,
) -> Vec<Duration> {
    let uri = Uri::from_static(operation.path());
    let mut latencies = Vec::new();
    loop {
        let start = Instant::now();
        if start >= until {
            return latencies;
        }
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri.clone();
        if let Some(cookie) = &cookie {
            request.headers_mut().insert(COOKIE, cookie.clone());
        }
        let response = Service::<Request<Body>>::call(&mut router, request).await;
        let status = response.unwrap_or_else(|never| match never {}).status();
        assert!(status.is_success(), "{status}");
        latencies.push(start.elapsed());
    }
}

async fn over_sockets(
    address: std::net::SocketAddr,
    operation: Operation,
    cookie: Option<HeaderValue>,
    until: Instant,
) -> Vec<Duration> {
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    connection.set_nodelay(true).expect("a socket option");
    let mut request = format!("GET {} HTTP/1.1\r\nhost: localhost\r\n", operation.path());
    if let Some(cookie) = &cookie {
        request.push_str(&format!("cookie: {}\r\n", cookie.to_str().expect("ASCII")));
    }
    request.push_str("\r\n");
    let mut buffer = vec![0; 4096];
    let mut latencies = Vec::new();
    loop {
        let start = Instant::now();
        if start >= until {
            return latencies;
        }
        connection
            .write_all(request.as_bytes())
            .await
            .expect("to be heard");
        let mut filled = 0;
        // The bodies are empty.
        while !buffer[..filled].ends_with(b"\r\n\r\n") {
            let count = connection
                .read(&mut buffer[filled..])
                .await
                .expect("an answer");
            assert!(count > 0, "the connection was closed");
            filled += count;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{:?}", &buffer[..16]);
        latencies.push(start.elapsed());
    }
}
