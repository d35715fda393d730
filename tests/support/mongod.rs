//! MongoDB for the tests: single servers and replica sets.
//!
//! Needs `support/server.rs` beside it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mongodb::Client;
use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;

use crate::server::{Folder, Server, free_port, program};

/// A server, small enough for several of them. `options` come after those that all have.
pub fn mongod(options: &[&str]) -> Server {
    let (folder, port) = (Folder::new("mongod"), free_port());
    let mut arguments = vec![
        program("MONGOD", "mongod", &[]),
        format!("--port={port}"),
        format!("--dbpath={}", folder.path().display()),
    ];
    arguments.extend(
        [
            "--bind_ip=127.0.0.1",
            "--nounixsocket",
            "--wiredTigerCacheSizeGB=0.25",
            "--wiredTigerEngineConfigString=log=(file_max=8MB,prealloc=false)",
            "--setParameter=diagnosticDataCollectionEnabled=false",
        ]
        .map(str::to_owned),
    );
    arguments.extend(options.iter().map(|option| (*option).to_owned()));
    Server::start("mongod", folder, port, arguments)
}

/// A client that talks to this server alone, whatever set it is a member of.
pub async fn client_of(server: SocketAddr) -> Client {
    let url = format!("mongodb://{server}/?directConnection=true&serverSelectionTimeoutMS=5000");
    Client::with_options(ClientOptions::parse(url).await.unwrap()).unwrap()
}

pub async fn admin(client: &Client, command: Document) -> Document {
    client.database("admin").run_command(command).await.unwrap()
}

/// A replica set whose members all are on this machine.
pub struct ReplicaSet {
    pub members: Vec<Server>,
}

impl ReplicaSet {
    /// Starts a set of `size` members and waits for its primary.
    pub async fn start(size: usize) -> Self {
        let members: Vec<_> = tokio::task::block_in_place(|| {
            let one = |_| mongod(&["--replSet=rs0", "--oplogSize=64"]);
            (0..size).map(one).collect()
        });
        let configured = members.iter().enumerate().map(|(id, member)| {
            doc! { "_id": id as i32, "host": member.address().to_string() }
        });
        let configuration = doc! {
            "_id": "rs0",
            "members": configured.collect::<Vec<_>>(),
            "settings": { "electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 300 },
        };
        let first = client_of(members[0].address()).await;
        admin(&first, doc! { "replSetInitiate": configuration }).await;
        let set = Self { members };
        set.primary().await;
        set.wait_for_members().await;
        set
    }

    /// The URL of a database in this set.
    pub fn url(&self, database: &str) -> String {
        let members: Vec<_> = self
            .members
            .iter()
            .map(|m| m.address().to_string())
            .collect();
        format!("mongodb://{}/{database}?replicaSet=rs0", members.join(","))
    }

    /// Which member is the primary, as soon as there is one.
    pub async fn primary(&self) -> usize {
        let start = Instant::now();
        loop {
            for (at, member) in self.members.iter().enumerate() {
                if member.is_running() && is_primary(member).await {
                    return at;
                }
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no primary");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until every member is the primary or a secondary.
    pub async fn wait_for_members(&self) {
        let start = Instant::now();
        let primary = client_of(self.members[self.primary().await].address()).await;
        loop {
            let status = admin(&primary, doc! { "replSetGetStatus": 1 }).await;
            let members = status.get_array("members").unwrap();
            let states = members
                .iter()
                .map(|member| member.as_document().unwrap().get_i32("state").unwrap());
            if states.into_iter().all(|state| matches!(state, 1 | 2)) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes the primary a secondary, for at least three seconds.
    pub async fn step_down(&self) {
        let primary = client_of(self.members[self.primary().await].address()).await;
        admin(
            &primary,
            doc! { "replSetStepDown": 3, "secondaryCatchUpPeriodSecs": 2 },
        )
        .await;
    }
}

async fn is_primary(member: &Server) -> bool {
    let client = client_of(member.address()).await;
    let admin = client.database("admin");
    let hello = admin.run_command(doc! { "hello": 1 });
    match tokio::time::timeout(Duration::from_secs(1), hello.into_future()).await {
        Ok(Ok(hello)) => hello.get_bool("isWritablePrimary").unwrap_or(false),
        _ => false,
    }
}
