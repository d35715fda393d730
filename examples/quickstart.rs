//! A page that counts your visits, with sessions in a SQLite file.
//!
//! ```text
//! cargo run --example quickstart --features sqlite
//! ```
//!
//! Open the address it prints, and reload. A second browser has a count of its own. Stop the program
//! with ctrl-c and start it again: the counts go on. `PORT` chooses the port (default 3000; 0 takes
//! any that is free). Delete `quickstart.db*` and `quickstart.key` to start afresh.

use std::env;
use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use futures_util::FutureExt;
use session_layer::store::{SqliteStore, Sweeper};
use session_layer::{Session, SessionError, SessionLayer, SigningKeys};
use tokio::net::TcpListener;

async fn visits(session: Session) -> Result<Html<String>, SessionError> {
    let n = session.update("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
    Ok(Html(format!(
        r#"<!DOCTYPE html>
<html lang="en">
<title>Visits</title>
<h1>visit {n}</h1>
<form method="post" action="/logout"><button>Log out</button></form>
</html>
"#
    )))
}

async fn logout(session: Session) -> Redirect {
    session.flush();
    Redirect::to("/")
}

async fn run() -> Result<(), Box<dyn Error>> {
    let port = port()?;
    let keys = SigningKeys::load_or_create("quickstart.key")?;
    let store = SqliteStore::open("quickstart.db").await?;
    // Expired sessions are never read; this gives their space back.
    let _sweeper = Sweeper::start(store.clone(), Duration::from_secs(300));
    let sessions = SessionLayer::new(store, keys);

    let app = Router::new()
        .route("/", get(visits))
        .route("/logout", post(logout))
        .layer(sessions.clone());

    let stop = stop_signal()?.shared();
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    // By this name, since browsers take `Secure` cookies over plain HTTP from localhost only.
    println!("http://localhost:{}", listener.local_addr()?.port());
    let serve = axum::serve(listener, app).with_graceful_shutdown(stop.clone());
    let patience = stop.then(|()| tokio::time::sleep(Duration::from_secs(10)));
    tokio::select! {
        served = serve.into_future() => served?,
        () = patience => tracing::warn!("gave up on requests that did not end in 10 seconds"),
    }
    sessions.drain().await;
    Ok(())
}

fn port() -> Result<u16, String> {
    match env::var_os("PORT") {
        None => Ok(3000),
        Some(text) => text
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| format!("PORT is {text:?}; it must be a number from 0 to 65535")),
    }
}

/// Is ready when someone presses ctrl-c or, on Unix, asks the program to end (SIGTERM).
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(io::stderr)
        .init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}
