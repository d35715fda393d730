//! One cell of the matrix: a row's application and one kind of request.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::header::{COOKIE, HeaderValue, SET_COOKIE};
use axum::http::{Request, Uri};
use axum::response::Response;
use tower_service::Service;

use crate::app::Row;

/// How many sessions a store is filled with before a fresh one takes its place.
const CREATED_PER_STORE: u64 = 2000;

/// For rows that issue no cookie: one of the same length as session-layer's.
const STAND_IN: &str = "__Host-id=AabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH";

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The handler does not ask for the session, and the browser has none.
    Untouched,
    /// The handler does not ask for the session that the browser has.
    UntouchedWithCookie,
    /// The same, among five cookies of others.
    UntouchedAmongFive,
    /// One of ten keys is read.
    Read,
    /// A counter is read and written.
    ReadWrite,
    /// A counter is put into a new session.
    Create,
}

impl Column {
    pub const ALL: [Self; 6] = [
        Self::Untouched,
        Self::UntouchedWithCookie,
        Self::UntouchedAmongFive,
        Self::Read,
        Self::ReadWrite,
        Self::Create,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Untouched => "untouched, no cookie",
            Self::UntouchedWithCookie => "untouched, cookie",
            Self::UntouchedAmongFive => "untouched, cookie and 5 foreign",
            Self::Read => "read",
            Self::ReadWrite => "read and write",
            Self::Create => "create",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Untouched | Self::UntouchedWithCookie | Self::UntouchedAmongFive => "/untouched",
            Self::Read => "/read",
            Self::ReadWrite => "/read-write",
            Self::Create => "/create",
        }
    }
}

/// An application that is ready to be asked the same thing over and over.
pub struct Scenario {
    row: Row,
    column: Column,
    router: Router,
    uri: Uri,
    cookie: Option<HeaderValue>,
    /// How many requests `router` has answered.
    answered: u64,
}

impl Scenario {
    pub async fn new(row: Row, column: Column) -> Self {
        let mut router = row.router();
        let cookie = match column {
            Column::Untouched | Column::Create => None,
            Column::UntouchedWithCookie | Column::Read | Column::ReadWrite => {
                Some(issue(row, &mut router).await)
            }
            Column::UntouchedAmongFive => Some(format!(
                "_ga=GA1.1.1234567890.1700000000; theme=dark; {}; \
                 consent=analytics%3Dno%26ads%3Dno; lang=en-GB; _gid=GA1.2.987654321.1700000001",
                issue(row, &mut router).await
            )),
        };
        Self {
            row,
            column,
            router,
            uri: Uri::from_static(column.path()),
            cookie: cookie.map(|text| text.parse().expect("a header")),
            answered: 0,
        }
    }

    async fn request(&mut self) {
        let response = ask(&mut self.router, &self.uri, self.cookie.as_ref()).await;
        assert!(response.status().is_success(), "{}", response.status());
    }

    /// Handles `requests` requests, and says how long that took.
    pub async fn run(&mut self, requests: u64) -> Duration {
        let mut left = requests;
        let mut took = Duration::ZERO;
        while left > 0 {
            let mut now = left;
            if self.column == Column::Create {
                if self.answered >= CREATED_PER_STORE {
                    self.router = self.row.router();
                    self.answered = 0;
                }
                now = left.min(CREATED_PER_STORE - self.answered);
            }
            // A server gives each request a budget of its own; here it would run out in between.
            let start = Instant::now();
            tokio::task::unconstrained(async {
                for _ in 0..now {
                    self.request().await;
                }
            })
            .await;
            took += start.elapsed();
            self.answered += now;
            left -= now;
        }
        took
    }
}

/// Answers one request.
pub(crate) async fn ask(router: &mut Router, uri: &Uri, cookie: Option<&HeaderValue>) -> Response {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = uri.clone();
    if let Some(cookie) = cookie {
        request.headers_mut().insert(COOKIE, cookie.clone());
    }
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A cookie that the row's own layer has issued for a full session.
pub(crate) async fn issue(row: Row, router: &mut Router) -> String {
    if !row.has_sessions() {
        return STAND_IN.into();
    }
    let response = ask(router, &Uri::from_static("/fill"), None).await;
    assert!(response.status().is_success(), "{}", response.status());
    let set_cookie = response.headers()[SET_COOKIE].to_str().expect("text");
    let pair = set_cookie.split(';').next().expect("a pair");
    pair.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_write_of_every_layer_arrives() {
        for row in Row::ALL.into_iter().filter(|row| row.has_sessions()) {
            let mut scenario = Scenario::new(row, Column::ReadWrite).await;
            scenario.run(7).await;
            let uri = Uri::from_static("/visits");
            let response = ask(&mut scenario.router, &uri, scenario.cookie.as_ref()).await;
            let body = axum::body::to_bytes(response.into_body(), 100).await;
            assert_eq!(body.unwrap(), "7", "{row:?}");
        }
    }

    #[tokio::test]
    async fn every_creation_of_every_layer_sets_a_cookie() {
        for row in Row::ALL.into_iter().filter(|row| row.has_sessions()) {
            let mut scenario = Scenario::new(row, Column::Create).await;
            scenario.run(CREATED_PER_STORE + 1).await;
            assert_eq!(scenario.answered, 1, "{row:?}");
            let response = ask(&mut scenario.router, &scenario.uri, None).await;
            assert!(response.headers().contains_key(SET_COOKIE), "{row:?}");
        }
    }

    #[tokio::test]
    async fn an_unread_session_is_found_among_five_foreign_cookies() {
        for row in Row::ALL.into_iter().filter(|row| row.has_sessions()) {
            let mut scenario = Scenario::new(row, Column::UntouchedAmongFive).await;
            scenario.run(1).await;
            scenario.uri = Uri::from_static("/read");
            scenario.request().await;
        }
    }

    #[test]
    fn the_stand_in_is_as_long_as_a_cookie_of_session_layer() {
        let runtime = crate::one_thread();
        let issued = runtime.block_on(async {
            let row = Row::SessionLayer;
            issue(row, &mut row.router()).await
        });
        assert_eq!(STAND_IN.len(), issued.len());
    }
}
