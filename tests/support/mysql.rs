//! A MySQL server (MariaDB) for the tests.
//!
//! Needs `support/server.rs` beside it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection};

use crate::server::{Folder, Server, free_port, is_root, program, run};

/// The password of the user `app`, which may do nothing yet.
pub const PASSWORD: &str = "hunter2-canary";

/// The database of the tests.
pub const DATABASE: &str = "app";

/// Starts a server with these settings: `["--max-allowed-packet=2M"]`. The user `root` needs no
/// password.
pub fn start(settings: &[&str]) -> Server {
    let folder = Folder::new("mysql");
    let [data, temporary] = ["data", "tmp"].map(|name| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let user: &[&str] = if is_root() { &["--user=mysql"] } else { &[] };
    if is_root() {
        run("chown", ["mysql:", &data, &temporary]);
    }
    let mut install = vec![
        "--no-defaults".to_owned(),
        format!("--datadir={data}"),
        // Two that are made at once would get into each other's way in the common one.
        format!("--tmpdir={temporary}"),
        "--auth-root-authentication-method=normal".to_owned(),
        "--skip-test-db".to_owned(),
    ];
    install.extend(user.iter().map(|&user| user.to_owned()));
    run(
        &program(
            "SESSION_LAYER_MARIADB_INSTALL_DB",
            "mariadb-install-db",
            &[],
        ),
        &install,
    );
    let port = free_port();
    let command = [
        program("SESSION_LAYER_MARIADBD", "mariadbd", &[]),
        "--no-defaults".to_owned(),
        format!("--datadir={data}"),
        format!("--tmpdir={temporary}"),
        format!("--port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--socket={data}/m.sock"),
        format!("--pid-file={data}/m.pid"),
        "--skip-log-bin".to_owned(),
        "--innodb-flush-log-at-trx-commit=2".to_owned(),
        "--max-connections=200".to_owned(),
    ];
    let settings = user
        .iter()
        .chain(settings)
        .map(|&setting| setting.to_owned());
    Server::start(
        "mariadbd",
        folder,
        port,
        command.into_iter().chain(settings),
    )
}

/// The URL of the database, without settings.
pub fn url(server: &Server) -> String {
    format!("mysql://root@127.0.0.1:{}/{DATABASE}", server.port())
}

/// A connection of the test's own, once the server lets one in.
pub async fn connect(url: &str) -> MySqlConnection {
    let start = Instant::now();
    loop {
        match MySqlConnection::connect(url).await {
            Ok(connection) => return connection,
            Err(error) => assert!(start.elapsed().as_secs() < 60, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
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
