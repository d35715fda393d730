//! Logging in and out: a list of one's sessions, the end of one or of all of them, and a page that
//! asks for the password again when that was too long ago.
//!
//! ```text
//! cargo run --example login --features memory
//! ```
//!
//! Open the address it prints and log in as `ada` with the password `engine`, in two browsers. `PORT`
//! chooses the port (default 3000; 0 takes any that is free). Sessions last as long as the program.

use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

use axum::extract::{Form, Path, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, http::StatusCode};
use session_layer::store::MemoryStore;
use session_layer::{Session, SessionError, SessionLayer, Sessions, SigningKeys};
use tokio::net::TcpListener;

/// How long a password counts for what matters.
const FRESH: Duration = Duration::from_secs(15 * 60);

#[derive(serde::Deserialize)]
struct Login {
    user: String,
    password: String,
}

/// In an application: a look into its table of users, and a slow hash such as Argon2.
fn may_log_in(login: &Login) -> bool {
    login.user == "ada" && login.password == "engine"
}

/// Whether the user has given the password within the last quarter of an hour.
fn is_fresh(session: &Session) -> bool {
    let age = session
        .authenticated_at()
        .map(|at| at.elapsed().unwrap_or_default());
    age.is_some_and(|age| age < FRESH)
}

fn page(body: &str) -> Html<String> {
    Html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<title>Login</title>\n{body}"
    ))
}

fn form(heading: &str) -> Html<String> {
    page(&format!(
        r#"<h1>{heading}</h1>
<form method="post" action="/login">
<input name="user" placeholder="user" autocomplete="username">
<input name="password" type="password" autocomplete="current-password">
<button>Log in</button>
</form>
"#
    ))
}

async fn home(session: Session) -> Result<Html<String>, SessionError> {
    let Some(user) = session.user() else {
        return Ok(form("Who are you?"));
    };
    let mut body = format!("<h1>Hello, {user}</h1>\n<p><a href=\"/secret\">A secret</a>\n<ul>\n");
    for listed in session.of_same_user().await? {
        let ago = listed.last_seen().elapsed().unwrap_or_default().as_secs() / 60;
        let here = if listed.is_current() {
            " (this one)"
        } else {
            ""
        };
        let _ = write!(
            body,
            "<li>last seen {ago} minutes ago{here}\n\
             <form method=\"post\" action=\"/end/{}\"><button>End</button></form>\n",
            listed.key()
        );
    }
    body.push_str(
        "</ul>\n\
         <form method=\"post\" action=\"/logout\"><button>Log out</button></form>\n\
         <form method=\"post\" action=\"/logout-elsewhere\"><button>Log out elsewhere</button></form>\n\
         <form method=\"post\" action=\"/logout-everywhere\"><button>Log out everywhere</button></form>\n",
    );
    Ok(page(&body))
}

async fn login(session: Session, Form(login): Form<Login>) -> Result<Response, SessionError> {
    if !may_log_in(&login) {
        return Ok((StatusCode::UNAUTHORIZED, form("Once more, please")).into_response());
    }
    session.login(&login.user)?;
    Ok(Redirect::to("/").into_response())
}

async fn logout(session: Session) -> Redirect {
    session.flush();
    Redirect::to("/")
}

/// Ends one of the user's sessions, and nobody else's, whatever key comes with the request.
async fn end(
    session: Session,
    State(sessions): State<Sessions>,
    Path(key): Path<String>,
) -> Result<Response, SessionError> {
    let all = session.of_same_user().await?;
    let Some(listed) = all.iter().find(|listed| listed.key().as_str() == key) else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    sessions.end(&listed.key()).await?;
    Ok(Redirect::to("/").into_response())
}

async fn logout_elsewhere(
    session: Session,
    State(sessions): State<Sessions>,
) -> Result<Redirect, SessionError> {
    if let (Some(user), Some(key)) = (session.user(), session.key()) {
        sessions.end_others_of(&user, &key).await?;
    }
    Ok(Redirect::to("/"))
}

async fn logout_everywhere(
    session: Session,
    State(sessions): State<Sessions>,
) -> Result<Redirect, SessionError> {
    if let Some(user) = session.user() {
        sessions.end_all_of(&user).await?;
    }
    // This one has ended, too; this takes its cookie away.
    session.flush();
    Ok(Redirect::to("/"))
}

async fn secret(session: Session) -> Html<String> {
    if is_fresh(&session) {
        page("<h1>Notes on Bernoulli numbers</h1>\n")
    } else {
        form("Your password, please, before you see this")
    }
}

fn app(layer: SessionLayer) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/logout-elsewhere", post(logout_elsewhere))
        .route("/logout-everywhere", post(logout_everywhere))
        .route("/end/{key}", post(end))
        .route("/secret", get(secret))
        .with_state(layer.sessions())
        .layer(layer)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = match std::env::var("PORT") {
        Ok(port) => port.parse()?,
        Err(_) => 3000,
    };
    let layer = SessionLayer::new(MemoryStore::new(), SigningKeys::generate()?);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    // By this name, since browsers take `Secure` cookies over plain HTTP from localhost only.
    println!("http://localhost:{}", listener.local_addr()?.port());
    Ok(axum::serve(listener, app(layer)).await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::SystemTime;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    #[derive(Clone)]
    struct Browser {
        app: Router,
        cookie: String,
    }

    impl Browser {
        async fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("cookie", &self.cookie)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(Body::from(body.to_owned()))
                .unwrap();
            let response = self.app.clone().oneshot(request).await.unwrap();
            if let Some(cookie) = response.headers().get("set-cookie") {
                let cookie = cookie.to_str().unwrap();
                self.cookie = cookie.split(';').next().unwrap().to_owned();
            }
            let status = response.status().as_u16();
            let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        }

        async fn log_in(&mut self) {
            let (status, _) = self.ask("POST", "/login", "user=ada&password=engine").await;
            assert_eq!(status, 303);
        }

        async fn is_logged_in(&mut self) -> bool {
            self.ask("GET", "/", "").await.1.contains("Hello, ada")
        }
    }

    /// Two browsers that are logged in, and by how many seconds the clock is behind.
    async fn two() -> ([Browser; 2], Arc<AtomicU64>) {
        let behind = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&behind);
        let now = move || SystemTime::now() - Duration::from_secs(clock.load(Ordering::SeqCst));
        let keys = SigningKeys::generate().unwrap();
        let app = app(SessionLayer::new(MemoryStore::new(), keys).with_clock(now));
        let browser = Browser {
            app,
            cookie: String::new(),
        };
        let mut two = [browser.clone(), browser];
        for browser in &mut two {
            browser.log_in().await;
        }
        (two, behind)
    }

    #[tokio::test]
    async fn a_wrong_password_logs_nobody_in() {
        let ([mut browser, _], _) = two().await;
        browser.ask("POST", "/logout", "").await;
        let (status, _) = browser.ask("POST", "/login", "user=ada&password=x").await;
        assert_eq!(status, 401);
        assert!(!browser.is_logged_in().await);
    }

    #[tokio::test]
    async fn one_session_is_ended_from_another() {
        let ([mut here, mut there], _) = two().await;
        let (_, body) = here.ask("GET", "/", "").await;
        assert_eq!(body.matches("last seen").count(), 2);
        let other = body
            .split("<li>")
            .find(|line| line.contains("ago\n"))
            .unwrap();
        let path = other
            .split('"')
            .find(|part| part.starts_with("/end/"))
            .unwrap();
        assert_eq!(here.ask("POST", path, "").await.0, 303);
        assert!(here.is_logged_in().await);
        assert!(!there.is_logged_in().await);
        // It is no longer on the list.
        assert_eq!(here.ask("POST", path, "").await.0, 404);
    }

    #[tokio::test]
    async fn sessions_end_elsewhere_and_everywhere() {
        let ([mut here, mut there], _) = two().await;
        here.ask("POST", "/logout-elsewhere", "").await;
        assert!(here.is_logged_in().await);
        assert!(!there.is_logged_in().await);
        there.log_in().await;
        here.ask("POST", "/logout-everywhere", "").await;
        assert!(!here.is_logged_in().await);
        assert!(!there.is_logged_in().await);
    }

    #[tokio::test]
    async fn the_secret_asks_for_the_password_again_after_a_while() {
        let ([mut browser, mut early], behind) = two().await;
        assert!(
            browser
                .ask("GET", "/secret", "")
                .await
                .1
                .contains("Bernoulli")
        );
        // Log in as if twenty minutes ago.
        behind.store(20 * 60, Ordering::SeqCst);
        early.log_in().await;
        behind.store(0, Ordering::SeqCst);
        assert!(
            early
                .ask("GET", "/secret", "")
                .await
                .1
                .contains("Your password")
        );
        early.log_in().await;
        assert!(
            early
                .ask("GET", "/secret", "")
                .await
                .1
                .contains("Bernoulli")
        );
    }
}
