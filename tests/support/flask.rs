//! A real Flask application on a real store, and what it takes to talk to it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::server::{Folder, Server, free_port, is_root, program};
use super::support::{Answer, Browser};

/// As in flask_app.py.
pub const SECRET_KEY: &str = "the secret key of the Flask application";
pub const LIFETIME: Duration = Duration::from_secs(1000);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Redis,
    Memcached,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Memcached => "memcached",
        }
    }

    pub fn start(self) -> Server {
        let port = free_port();
        let folder = Folder::new(self.name());
        let mut arguments = match self {
            Self::Redis => vec![
                program("REDIS_SERVER", "redis-server", &[]),
                "--bind".into(),
                "127.0.0.1".into(),
                "--save".into(),
                String::new(),
                "--dir".into(),
                folder.path().display().to_string(),
                "--port".into(),
            ],
            Self::Memcached => vec![
                program("MEMCACHED", "memcached", &[]),
                "-l".into(),
                "127.0.0.1".into(),
                "-p".into(),
            ],
        };
        arguments.push(port.to_string());
        if self == Self::Memcached && is_root() {
            arguments.extend(["-u".to_owned(), "nobody".to_owned()]);
        }
        Server::start(self.name(), folder, port, arguments)
    }
}

/// The Python that tests/run has installed Flask for.
fn python() -> String {
    if let Ok(path) = std::env::var("SESSION_LAYER_PYTHON") {
        return path;
    }
    // …/target/debug/deps/this
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().nth(3).map(PathBuf::from).unwrap();
    let python = target.join("tests-venv/bin/python");
    assert!(
        python.is_file(),
        "Flask is not installed: tests/run does that"
    );
    python.display().to_string()
}

/// Flask applications, mounted as flask_app.py says.
pub struct Flask {
    server: Server,
}

impl Flask {
    /// On the store at this port.
    pub fn start(backend: Backend, store: &Server) -> Self {
        let port = free_port();
        let app = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/flask_app.py");
        let arguments = [
            python(),
            app.to_owned(),
            port.to_string(),
            backend.name().to_owned(),
            store.port().to_string(),
        ];
        Self {
            server: Server::start("flask", Folder::new("flask"), port, arguments),
        }
    }

    /// Sends a request with the browser's cookies, and has it take what comes back.
    pub async fn get(&self, browser: &mut Browser, path: &str) -> Answer {
        let mut stream = TcpStream::connect(self.server.address()).await.unwrap();
        let mut request = format!("GET {path} HTTP/1.0\r\n");
        for (name, value) in browser.request(path).headers() {
            request += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        request += "\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name: HeaderName = name.to_lowercase().parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let answer = Answer {
            status: StatusCode::from_bytes(status.as_bytes()).unwrap(),
            headers,
            body: body.to_owned(),
        };
        assert!(
            answer.status.is_success(),
            "{path}: {answer:?}\n{}",
            self.server.log_end()
        );
        browser.take(&answer);
        answer
    }

    /// The body alone.
    pub async fn read(&self, browser: &mut Browser, path: &str) -> String {
        self.get(browser, path).await.body
    }
}
