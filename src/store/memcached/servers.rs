//! The servers: which one has a key, and how it is asked.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use memcache::exp::{AsyncMetaClient, Error, Operation};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};

use crate::store::{StoreError, StoreErrorKind};

const DEFAULT_PORT: u16 = 11211;
/// How long the addresses of a server that fails are used before its name is looked up again.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(1);

pub(in crate::store) enum Servers {
    /// The user's own, which finds the server of a key itself.
    Client(AsyncMetaClient),
    Nodes(Nodes),
}

impl Servers {
    /// Runs one operation, once. The driver sends it again only when the connection turned out to be
    /// closed before the first byte was handed to it.
    pub(in crate::store) async fn run<O: Operation>(
        &self,
        key: &str,
        operation: O,
        deadline: Instant,
    ) -> Result<O::Output, StoreError> {
        match self {
            Self::Client(client) => within(deadline, client.run(operation)).await,
            Self::Nodes(nodes) => {
                let node = nodes.of(key);
                let answer = within(deadline, async {
                    node.client().await?.run(operation).await
                });
                let answer = answer.await;
                if let Err(error) = &answer
                    && matches!(
                        error.kind(),
                        StoreErrorKind::Timeout | StoreErrorKind::Unavailable
                    )
                {
                    node.has_failed();
                }
                answer
            }
        }
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(_) => f.write_str("Client"),
            Self::Nodes(nodes) => f
                .debug_list()
                .entries(nodes.iter().map(|node| &node.address))
                .finish(),
        }
    }
}

/// At least one server, each with connections of its own.
pub(in crate::store) struct Nodes {
    first: Node,
    others: Vec<Node>,
}

impl Nodes {
    /// Servers as `host` or `host:port`. Nothing is looked up yet.
    pub(in crate::store) fn new(servers: &[String], max_idle: usize) -> Result<Self, StoreError> {
        let mut nodes = Vec::new();
        for server in servers {
            let node = Node::new(address(server)?, max_idle);
            if nodes
                .iter()
                .any(|there: &Node| there.address == node.address)
            {
                return Err(invalid("a memcached server is named twice"));
            }
            nodes.push(node);
        }
        let mut nodes = nodes.into_iter();
        let first = nodes
            .next()
            .ok_or_else(|| invalid("no memcached server is named"))?;
        Ok(Self {
            first,
            others: nodes.collect(),
        })
    }

    fn iter(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Rendezvous hashing: of all servers the one whose name, hashed with the key, gives the highest
    /// number. The order of the list is of no matter, and a server that comes or goes moves no keys
    /// but its own. The driver does the same with a hash that changes with the version of Rust.
    fn of(&self, key: &str) -> &Node {
        if self.others.is_empty() {
            return &self.first;
        }
        let score = |node: &Node| -> [u8; 32] {
            let name = Sha256::new().chain_update(&node.address).chain_update([0]);
            name.chain_update(key).finalize().into()
        };
        let best = self.iter().max_by_key(|node| score(node));
        best.unwrap_or(&self.first)
    }
}

struct Node {
    /// `host:port`.
    address: String,
    max_idle: usize,
    link: RwLock<Option<Link>>,
}

#[derive(Clone)]
struct Link {
    client: Arc<AsyncMetaClient>,
    since: Instant,
}

impl Node {
    fn new(address: String, max_idle: usize) -> Self {
        Self {
            address,
            max_idle,
            link: RwLock::default(),
        }
    }

    async fn client(&self) -> Result<Arc<AsyncMetaClient>, Error> {
        {
            let link = self.link.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(link) = &*link {
                return Ok(Arc::clone(&link.client));
            }
        }
        // The store's own limit is the only one.
        let builder = AsyncMetaClient::builder()
            .connect_timeout(None)
            .io_timeout(None)
            .max_idle(self.max_idle);
        let client = Arc::new(builder.connect_async(self.address.as_str()).await?);
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        let link = link.get_or_insert_with(|| Link {
            client,
            since: Instant::now(),
        });
        Ok(Arc::clone(&link.client))
    }

    /// The driver looks a name up once; a server that comes back may have got another address.
    fn has_failed(&self) {
        if self.address.parse::<SocketAddr>().is_ok() {
            return;
        }
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        if link
            .as_ref()
            .is_some_and(|link| link.since.elapsed() > LOOK_UP_AGAIN)
        {
            *link = None;
        }
    }
}

/// `host:port`, in lower case and with a port.
fn address(server: &str) -> Result<String, StoreError> {
    let unclear = || {
        invalid(
            "a memcached server is named as host or host:port, as in `cache1:11211` or \
             `[::1]:11211`; memcached's clients know no user and no password here",
        )
    };
    let (host, port) = match server.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(unclear)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| unclear())?;
            (format!("[{host}]"), port)
        }
        None => {
            let end = server.find(':').unwrap_or(server.len());
            let (host, port) = server.split_at(end);
            let named = host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
            if host.is_empty() || !named {
                return Err(unclear());
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| unclear())?,
        None if port.is_empty() => DEFAULT_PORT,
        None => return Err(unclear()),
    };
    Ok(format!("{host}:{port}"))
}

async fn within<T>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    match timeout_at(deadline, answer).await {
        Ok(answer) => answer.map_err(failed),
        Err(_) => Err(timed_out()),
    }
}

fn timed_out() -> StoreError {
    StoreError::new(StoreErrorKind::Timeout, "memcached did not answer in time")
}

/// What the driver's error means. Of its texts only those of the system are passed on: the others
/// name the key, or repeat what came over the connection.
fn failed(error: Error) -> StoreError {
    match error {
        Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            timed_out().with_source(error)
        }
        Error::Io(error) => StoreError::new(StoreErrorKind::Unavailable, "cannot reach memcached")
            .with_source(error),
        Error::Timeout { .. } => timed_out(),
        Error::Ambiguous { source, .. } => failed(*source),
        Error::Server(message) if message.contains("too large") => StoreError::new(
            StoreErrorKind::Config,
            "memcached takes smaller values than this store was told, and has dropped the old one: \
             lower max_payload, or start memcached with a larger `-I`",
        ),
        Error::Server(message) if message.contains("out of memory") => {
            StoreError::new(StoreErrorKind::Unavailable, "memcached is full")
        }
        Error::Server(_) => {
            StoreError::new(StoreErrorKind::Unavailable, "memcached refuses for now")
        }
        Error::Rejected(message) if message.contains("unauthenticated") => StoreError::new(
            StoreErrorKind::Config,
            "memcached asks for a password, which its meta protocol's client cannot give",
        ),
        Error::Rejected(_) => StoreError::new(
            StoreErrorKind::Config,
            "memcached does not understand the meta protocol; version 1.6 or later is needed",
        ),
        Error::Protocol(_) => StoreError::new(
            StoreErrorKind::Other,
            "the answer is not that of a memcached",
        ),
        // Of the driver's arguments and of its other layers.
        _ => StoreError::new(StoreErrorKind::Other, "memcached's client has failed"),
    }
}

pub(super) fn invalid(message: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_one_name_each() {
        for (server, known) in [
            ("cache1", "cache1:11211"),
            ("Cache1.Example:11212", "cache1.example:11212"),
            ("127.0.0.1", "127.0.0.1:11211"),
            ("[::1]", "[::1]:11211"),
            ("[::1]:1", "[::1]:1"),
            ("my_cache-2:65535", "my_cache-2:65535"),
        ] {
            assert_eq!(address(server).unwrap(), known);
        }
        for bad in [
            "",
            ":1",
            "a:",
            "a:x",
            "a:65536",
            "a:1:2",
            "a b",
            "::1",
            "[::1",
            "[::1]1",
            "[x]:1",
            "user:hunter2@a:1",
            "hunter2@a",
            "a/b",
            "é",
            "a\n",
        ] {
            let error = address(bad).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{bad:?}");
            assert!(!error.to_string().contains("hunter2"));
        }
        for bad in [&[][..], &["a", "A:11211"]] {
            let servers: Vec<_> = bad.iter().map(|s| (*s).to_owned()).collect();
            assert!(Nodes::new(&servers, 1).is_err(), "{bad:?}");
        }
    }

    fn nodes(names: &[&str]) -> Nodes {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Nodes::new(&names, 1).unwrap()
    }

    #[test]
    fn keys_keep_their_server_whatever_the_version_of_rust() {
        let three = nodes(&["a", "b", "c"]);
        let found: String = (0..12)
            .map(|n| &three.of(&format!("session:{n}")).address[..1])
            .collect();
        // printf 'a:11211\0session:0' | sha256sum, and so on; the highest wins.
        assert_eq!(found, EXPECTED);
    }

    const EXPECTED: &str = "bbbbabbbcbcb";

    #[test]
    fn a_server_that_goes_moves_only_its_own_keys() {
        let (all, backwards) = (nodes(&["a", "b", "c"]), nodes(&["c", "b", "a"]));
        let two = nodes(&["a", "c"]);
        let mut counts = [0; 3];
        for n in 0..3000 {
            let key = format!("session:{n}");
            let before = &all.of(&key).address;
            assert_eq!(before, &backwards.of(&key).address);
            if before != "b:11211" {
                assert_eq!(before, &two.of(&key).address);
            }
            counts[usize::from(before.as_bytes()[0] - b'a')] += 1;
        }
        assert!(counts.iter().all(|count| *count > 850), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_name_of_a_server_that_fails_is_looked_up_again_after_a_while() {
        for (server, forgotten) in [("localhost:1", true), ("127.0.0.1:1", false)] {
            let node = Node::new(server.to_owned(), 1);
            let client = node.client().await.unwrap();
            assert!(Arc::ptr_eq(&client, &node.client().await.unwrap()));
            node.has_failed();
            assert!(Arc::ptr_eq(&client, &node.client().await.unwrap()));
            tokio::time::advance(LOOK_UP_AGAIN * 2).await;
            assert!(Arc::ptr_eq(&client, &node.client().await.unwrap()));
            node.has_failed();
            let same = Arc::ptr_eq(&client, &node.client().await.unwrap());
            assert_eq!(same, !forgotten, "{server}");
        }
    }

    #[test]
    fn errors_show_no_key_and_say_what_to_do() {
        let ambiguous = |source| Error::Ambiguous {
            key: b"hunter2".to_vec(),
            source: Box::new(source),
        };
        for (error, kind) in [
            (
                Error::Timeout {
                    key: b"hunter2".to_vec(),
                },
                StoreErrorKind::Timeout,
            ),
            (
                ambiguous(Error::Timeout {
                    key: b"hunter2".to_vec(),
                }),
                StoreErrorKind::Timeout,
            ),
            (
                ambiguous(Error::Io(std::io::ErrorKind::ConnectionReset.into())),
                StoreErrorKind::Unavailable,
            ),
            (
                ambiguous(Error::Server("out of memory storing object".into())),
                StoreErrorKind::Unavailable,
            ),
            (
                ambiguous(Error::Server("object too large for cache".into())),
                StoreErrorKind::Config,
            ),
            (
                Error::Rejected("unauthenticated".into()),
                StoreErrorKind::Config,
            ),
            (Error::Rejected("ERROR".into()), StoreErrorKind::Config),
            (Error::Protocol("hunter2".into()), StoreErrorKind::Other),
            (Error::Usage("hunter2"), StoreErrorKind::Other),
        ] {
            let error = failed(error);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(
                !format!("{error} {error:?}").contains("hunter2"),
                "{error:?}"
            );
        }
    }
}
