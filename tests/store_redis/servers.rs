//! Redis servers of the tests' own.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::{FromRedisValue, cmd};

use crate::server::{self, Folder, Server, free_port, program};

/// How long servers may take to agree, on a busy machine.
const AGREED: Duration = Duration::from_secs(60);

pub(crate) fn start(extra: &[&str]) -> Server {
    start_on(free_port(), Folder::new("redis"), extra)
}

pub(crate) fn start_on(port: u16, folder: Folder, extra: &[&str]) -> Server {
    let mut arguments = vec![
        program("REDIS_SERVER", "redis-server", &[]),
        "--bind".into(),
        "127.0.0.1".into(),
        "--dir".into(),
        folder.path().to_str().unwrap().into(),
        "--save".into(),
        String::new(),
        "--enable-debug-command".into(),
        "yes".into(),
    ];
    if !extra.contains(&"--tls-port") {
        arguments.extend(["--port".into(), port.to_string()]);
    }
    arguments.extend(extra.iter().map(|argument| (*argument).to_owned()));
    Server::start("redis", folder, port, arguments)
}

/// A server that several tests use, each under a prefix of its own.
pub(crate) static SHARED: LazyLock<Server> = LazyLock::new(|| start(&[]));

pub(crate) fn url(server: &Server) -> String {
    format!("redis://127.0.0.1:{}", server.port())
}

/// A prefix that nothing else uses.
pub(crate) fn prefix() -> String {
    format!("t{:016x}:", rand::random::<u64>())
}

/// Another client's connection to a server.
pub(crate) struct Wire(redis::Connection);

impl Wire {
    pub(crate) fn to(server: &Server) -> Self {
        Self::at(&url(server))
    }

    pub(crate) fn at(url: &str) -> Self {
        let client = redis::Client::open(url).unwrap();
        Self(client.get_connection().unwrap())
    }

    /// Asks, in words that spaces part.
    pub(crate) fn ask<T: FromRedisValue>(&mut self, words: &str) -> T {
        self.try_ask(words)
            .unwrap_or_else(|error| panic!("{words}: {error}"))
    }

    pub(crate) fn try_ask<T: FromRedisValue>(&mut self, words: &str) -> redis::RedisResult<T> {
        let mut words = words.split(' ');
        let mut command = cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query(&mut self.0)
    }

    /// The same with one argument more, which may be anything.
    pub(crate) fn ask_with<T: FromRedisValue>(&mut self, words: &str, last: &str) -> T {
        let mut words = words.split(' ');
        let mut command = cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.arg(last).query(&mut self.0).unwrap()
    }

    pub(crate) fn set(&mut self, key: &str, value: &[u8]) {
        let () = cmd("SET").arg(key).arg(value).query(&mut self.0).unwrap();
    }

    /// The commands that were carried out since the last call, those of scripts too.
    pub(crate) fn commands(&mut self) -> Vec<(String, u64)> {
        let info: String = self.ask("INFO commandstats");
        let () = self.ask("CONFIG RESETSTAT");
        let mut commands: Vec<_> = info
            .lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
            .map(|(name, rest)| (name.to_owned(), rest))
            .map(|(name, rest)| (name, rest.split(',').next().unwrap().parse().unwrap()))
            .filter(|(name, _)| !["info", "config|resetstat"].contains(&&**name))
            .collect();
        commands.sort();
        commands
    }
}

/// Starts a server again and waits until it has loaded its data.
pub(crate) fn start_again(server: &mut Server) {
    server.start_again();
    until("the data", || {
        Wire::to(server).try_ask::<String>("PING").is_ok()
    });
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < AGREED, "{what}: not within {AGREED:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Three primaries with a replica each.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let mut nodes: Vec<_> = (0..6).map(|_| Self::node(&[])).collect();
        let mut arguments = vec!["--cluster".to_owned(), "create".to_owned()];
        arguments.extend(nodes.iter().map(|node| node.address().to_string()));
        arguments.extend(["--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned));
        server::run(&program("REDIS_CLI", "redis-cli", &[]), &arguments);
        let cluster = Self {
            nodes: std::mem::take(&mut nodes),
        };
        for node in &cluster.nodes {
            until("the cluster", || Self::is_whole(node));
        }
        cluster
    }

    pub(crate) fn node(extra: &[&str]) -> Server {
        let mut arguments = vec![
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1500",
            "--cluster-replica-validity-factor",
            "0",
            // Else all of it refuses work while a part has no primary.
            "--cluster-require-full-coverage",
            "no",
        ];
        arguments.extend(extra);
        // Between them and the clients, the servers use a second port.
        let bus = free_port().to_string();
        arguments.extend(["--cluster-port", &bus]);
        start(&arguments)
    }

    fn is_whole(node: &Server) -> bool {
        let info: String = Wire::to(node).ask("CLUSTER INFO");
        let slots: redis::Value = Wire::to(node).ask("CLUSTER SLOTS");
        let redis::Value::Array(ranges) = slots else {
            panic!("{slots:?}");
        };
        // Every range names a primary and a replica.
        let replicated =
            |range: &redis::Value| matches!(range, redis::Value::Array(row) if row.len() == 4);
        info.contains("cluster_state:ok") && ranges.len() == 3 && ranges.iter().all(replicated)
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes[..2]
            .iter()
            .map(|node| node.address().to_string())
            .collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// The number of the node that holds the key now, as a node that runs sees it.
    pub(crate) fn holder(&self, key: &str) -> usize {
        let asked = self.nodes.iter().find(|node| node.is_running()).unwrap();
        let mut wire = Wire::to(asked);
        let slot: i64 = wire.ask(&format!("CLUSTER KEYSLOT {key}"));
        let nodes: String = wire.ask("CLUSTER NODES");
        let port: u16 = nodes
            .lines()
            .filter(|line| line.contains("master") && !line.contains("fail"))
            .find(|line| {
                line.split(' ').skip(8).any(|range| {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    matches!((first.parse::<i64>(), last.parse::<i64>()),
                        (Ok(first), Ok(last)) if (first..=last).contains(&slot))
                })
            })
            .and_then(|line| {
                line.split(' ')
                    .nth(1)?
                    .split(['@', ':'])
                    .nth(1)?
                    .parse()
                    .ok()
            })
            .unwrap_or_else(|| panic!("nobody holds {slot}:\n{nodes}"));
        self.nodes
            .iter()
            .position(|node| node.port() == port)
            .unwrap()
    }
}

pub(crate) static SHARED_CLUSTER: LazyLock<Cluster> = LazyLock::new(Cluster::start);

/// A primary, a replica, and a sentinel that watches them.
pub(crate) struct Watched {
    pub(crate) servers: [Server; 2],
    pub(crate) sentinel: Server,
}

impl Watched {
    pub(crate) fn start() -> Self {
        Self::with_password("")
    }

    /// The password is the sentinel's, if it is to have one.
    pub(crate) fn with_password(password: &str) -> Self {
        let primary = start(&[]);
        let primary_port = primary.port().to_string();
        let replica = start(&["--replicaof", "127.0.0.1", &primary_port]);
        until("the replica", || {
            let info: String = Wire::to(&replica).ask("INFO replication");
            info.contains("master_link_status:up")
        });
        let (port, folder) = (free_port(), Folder::new("sentinel"));
        let file = folder.path().join("sentinel.conf");
        server::write(
            &file,
            &format!(
                "port {port}\nbind 127.0.0.1\ndir {}\n\
                 sentinel monitor mymaster 127.0.0.1 {primary_port} 1\n\
                 sentinel down-after-milliseconds mymaster 1000\n\
                 sentinel failover-timeout mymaster 3000\n{}",
                folder.path().display(),
                match password {
                    "" => String::new(),
                    password => format!("requirepass {password}\n"),
                }
            ),
        );
        let sentinel = Server::start(
            "sentinel",
            folder,
            port,
            [
                program("REDIS_SENTINEL", "redis-sentinel", &[]),
                file.to_str().unwrap().to_owned(),
            ],
        );
        until("the sentinel", || {
            let url = format!("redis://:{password}@{}", sentinel.address());
            let info: String = Wire::at(&url).ask("INFO sentinel");
            info.contains("status=ok") && info.contains("slaves=1")
        });
        Self {
            servers: [primary, replica],
            sentinel,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis+sentinel://{}/mymaster", self.sentinel.address())
    }

    /// The number of the server that the sentinel calls the primary.
    pub(crate) fn primary(&self) -> usize {
        let named: (String, u16) =
            Wire::to(&self.sentinel).ask("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster");
        let is_named = |server: &Server| server.port() == named.1;
        self.servers.iter().position(is_named).unwrap()
    }
}

pub(crate) static SHARED_WATCHED: LazyLock<Watched> = LazyLock::new(Watched::start);
