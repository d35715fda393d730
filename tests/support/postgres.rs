//! A PostgreSQL server for the tests, and databases on it.
//!
//! Needs `support/server.rs` beside it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::path::Path;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::server::{Folder, Server, free_port, is_root, program, run, write};

/// The password of the user `app`, which may do nothing yet.
pub const PASSWORD: &str = "hunter2-canary";

fn places() -> Vec<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let mut places: Vec<_> = versions
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin").display().to_string())
        .collect();
    places.sort();
    places
}

fn pg(name: &str) -> String {
    let places = places();
    let places: Vec<_> = places.iter().map(String::as_str).collect();
    program(
        &format!("SESSION_LAYER_{}", name.to_uppercase()),
        name,
        &places,
    )
}

/// PostgreSQL refuses to be run by root.
fn as_postgres(command: Vec<String>) -> Vec<String> {
    if !is_root() {
        return command;
    }
    let user = [
        "setpriv",
        "--reuid=postgres",
        "--regid=postgres",
        "--init-groups",
    ];
    user.into_iter().map(str::to_owned).chain(command).collect()
}

fn execute(command: Vec<String>) {
    run(&command[0], &command[1..]);
}

/// Starts a server with these settings: `["synchronous_commit=off"]`. The user `postgres` needs no
/// password.
pub fn start(settings: &[&str]) -> Server {
    let folder = Folder::new("postgres");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    if is_root() {
        execute(vec!["chown".into(), "postgres:".into(), path(&data)]);
        // The log is made by root before the server starts.
        execute(vec!["chmod".into(), "777".into(), path(folder.path())]);
    }
    let initdb = [
        &pg("initdb"),
        "-D",
        &path(&data),
        "-U",
        "postgres",
        "-A",
        "trust",
    ];
    let initdb = initdb
        .into_iter()
        .chain(["--no-sync", "-E", "UTF8", "--locale=C"]);
    execute(as_postgres(initdb.map(str::to_owned).collect()));
    write(
        &data.join("pg_hba.conf"),
        "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n",
    );
    let port = free_port();
    let mut command = vec![
        pg("postgres"),
        "-D".into(),
        path(&data),
        "-p".into(),
        port.to_string(),
    ];
    let always = [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        "max_connections=200",
    ];
    for setting in always.iter().chain(settings) {
        command.extend(["-c".into(), (*setting).to_owned()]);
    }
    Server::start("postgres", folder, port, as_postgres(command))
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The URL of a database, without settings.
pub fn url(server: &Server, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{}/{database}", server.port())
}

/// A connection of the test's own, once the server lets one in.
pub async fn connect(url: &str) -> PgConnection {
    let start = std::time::Instant::now();
    loop {
        match PgConnection::connect(url).await {
            Ok(connection) => return connection,
            Err(error) => assert!(start.elapsed().as_secs() < 60, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

pub async fn execute_sql(url: &str, sql: &str) {
    let mut connection = connect(url).await;
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
        .await
        .unwrap();
    connection.close().await.unwrap();
}
