//! A Redis Cluster: which server holds which key, and a link to each.
//!
//! The driver's own cluster connection sends a command again when its answer was lost, and follows no
//! redirection when it is told not to; a write of a session must be sent once, and wherever the slot
//! is. With one key to each command, what is needed is small: the table of slots, and the two
//! redirections, which say that nothing was carried out.

mod slots;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, ServerErrorKind, Value, cmd,
};
use rand::seq::SliceRandom;
use tokio::task::JoinSet;

pub(super) use self::slots::slot;
use self::slots::{Address, Known, Range, address, address_of, known};
use super::errors::is_readonly;
use super::kept::{Kept, Make};
use super::link::{Link, Server};
use super::outbox::Outgoing;

/// How many redirections one command follows. A slot that moves takes one or two.
const REDIRECTIONS: usize = 5;
/// How long a server that is asked for the table may take before another one is asked, too.
const STAGGER: Duration = Duration::from_millis(20);
/// How long it may take at all.
const TABLE: Duration = Duration::from_millis(1500);

#[derive(Clone)]
pub(in crate::store) struct Cluster(Kept<Servers>);

/// How the table is made.
pub(super) struct Servers {
    seeds: Vec<ConnectionInfo>,
    met: Mutex<Met>,
}

/// The servers that were met so far.
#[derive(Default)]
struct Met {
    links: HashMap<Address, Link>,
    members: BTreeSet<Address>,
}

/// Who holds what.
#[derive(Clone)]
pub(super) struct Table(Arc<Slots>);

struct Slots {
    ranges: Vec<Range>,
    /// In the order of their addresses.
    primaries: Vec<(Address, Link)>,
}

impl Cluster {
    /// The cluster that some of these servers belong to; how the first is connected to is how all
    /// are. There is at least one.
    pub(super) fn new(seeds: Vec<ConnectionInfo>) -> Self {
        Self(Kept::new(Servers {
            seeds,
            met: Mutex::default(),
        }))
    }

    /// Carries `cmd` out where `slot` is.
    pub(super) async fn call(&self, slot: u16, cmd: &Cmd) -> Result<Value, RedisError> {
        let mut link = self.holder(slot).await?;
        let mut live = match link.get().await {
            Ok(live) => live,
            // Nothing was sent. Perhaps another server has taken over.
            Err(error) => {
                self.0.renew();
                self.0.made().await;
                let holder = self.holder(slot).await?;
                if holder.is(&link) {
                    return Err(error);
                }
                link = holder;
                link.get().await?
            }
        };
        let mut answer = live.send(Outgoing::Kept(cmd)).await;
        for _ in 0..REDIRECTIONS {
            let Err(error) = &answer else { break };
            let Some(redirection) = Redirection::of(error, &link) else {
                break;
            };
            link = self.0.maker().link(&redirection.to)?;
            live = link.get().await?;
            answer = if redirection.asking {
                live.send_asking(cmd).await
            } else {
                self.0.renew();
                live.send(Outgoing::Kept(cmd)).await
            };
        }
        if let Err(error) = &answer
            && (error.is_io_error() || error.is_cluster_error() || is_readonly(error))
        {
            self.0.renew();
        }
        answer
    }

    /// The server that holds `slot` does not answer.
    pub(super) fn renew(&self, slot: u16) {
        if let Some(link) = self.0.peek().and_then(|table| table.holder(slot)) {
            link.renew();
        }
        self.0.renew();
    }

    /// The table as it is now.
    pub(super) async fn table(&self) -> Result<Table, RedisError> {
        self.0.renew();
        self.0.made().await;
        self.0.get().await
    }

    async fn holder(&self, slot: u16) -> Result<Link, RedisError> {
        let table = self.0.get().await?;
        if let Some(link) = table.holder(slot) {
            return Ok(link);
        }
        self.0.renew();
        Err((
            ErrorKind::ClusterConnectionNotFound,
            "no server of the cluster holds the slot",
        )
            .into())
    }
}

impl Table {
    fn holder(&self, slot: u16) -> Option<Link> {
        let after = self.0.ranges.partition_point(|range| range.first <= slot);
        let range = self.0.ranges.get(after.checked_sub(1)?)?;
        if slot > range.last {
            return None;
        }
        let at = self
            .0
            .primaries
            .binary_search_by(|(address, _)| address.cmp(&range.holder))
            .ok()?;
        self.0.primaries.get(at).map(|(_, link)| link.clone())
    }

    pub(super) fn primary(&self, at: usize) -> Option<&Link> {
        self.0.primaries.get(at).map(|(_, link)| link)
    }

    /// Two tables say the same if and only if this is the same.
    pub(super) fn text(&self) -> String {
        self.0.ranges.iter().map(Range::to_string).collect()
    }
}

impl Servers {
    fn met(&self) -> MutexGuard<'_, Met> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, address: &Address) -> Result<Link, RedisError> {
        let mut met = self.met();
        if let Some(link) = met.links.get(address) {
            return Ok(link.clone());
        }
        let link = self.new_link(address)?;
        met.links.insert(address.clone(), link.clone());
        Ok(link)
    }

    fn new_link(&self, address: &Address) -> Result<Link, RedisError> {
        link_to(self.seeds.first().ok_or_else(no_server)?, address)
    }

    /// Whom to ask for the table: those there are links to, then those that were heard of or named
    /// by the user.
    fn candidates(&self) -> Vec<Link> {
        let met = self.met();
        let seeds = self.seeds.iter().filter_map(|seed| address_of(seed.addr()));
        let heard: BTreeSet<_> = met.members.iter().cloned().chain(seeds).collect();
        let others = heard
            .iter()
            .filter(|address| !met.links.contains_key(*address))
            .filter_map(|address| self.new_link(address).ok());
        let mut candidates: Vec<_> = met.links.values().cloned().collect();
        // No server is always asked first.
        candidates.shuffle(&mut rand::rng());
        candidates.extend(others);
        candidates
    }

    fn table(&self, known: Known) -> Result<Table, RedisError> {
        let holders: BTreeSet<_> = known.ranges.iter().map(|range| &range.holder).collect();
        let primaries = holders
            .into_iter()
            .map(|address| Ok((address.clone(), self.link(address)?)))
            .collect::<Result<Vec<_>, RedisError>>()?;
        let mut met = self.met();
        met.links = primaries.iter().cloned().collect();
        met.members = known.members;
        Ok(Table(Arc::new(Slots {
            ranges: known.ranges,
            primaries,
        })))
    }
}

impl Make for Servers {
    type Thing = Table;

    async fn make(&self) -> Result<Table, RedisError> {
        let mut asked = JoinSet::new();
        for (at, link) in self.candidates().into_iter().enumerate() {
            asked.spawn(async move {
                tokio::time::sleep(STAGGER * u32::try_from(at).unwrap_or(u32::MAX)).await;
                let table = async {
                    let live = link.get().await?;
                    let answer = live
                        .send(Outgoing::Kept(cmd("CLUSTER").arg("SLOTS")))
                        .await?;
                    known(&answer, link.host())
                };
                tokio::time::timeout(TABLE, table)
                    .await
                    .unwrap_or_else(|_| {
                        Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
                    })
            });
        }
        let mut failed = no_server();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(known)) => return self.table(known),
                Ok(Err(error)) => failed = error,
                Err(_) => {}
            }
        }
        Err(failed)
    }

    fn is_good(_: &Table) -> bool {
        true
    }
}

fn link_to(like: &ConnectionInfo, (host, port): &Address) -> Result<Link, RedisError> {
    let mut info = like.clone();
    let address = match info.addr().clone() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host: host.clone(),
            port: *port,
            insecure,
            tls_params,
        },
        _ => ConnectionAddr::Tcp(host.clone(), *port),
    };
    info = info.set_addr(address);
    Ok(Link::to(Server::At(Client::open(info)?)))
}

fn no_server() -> RedisError {
    (
        ErrorKind::ClusterConnectionNotFound,
        "no server of the cluster answers",
    )
        .into()
}

/// "Not here, but there."
struct Redirection {
    to: Address,
    asking: bool,
}

impl Redirection {
    fn of(error: &RedisError, from: &Link) -> Option<Self> {
        let asking = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => true,
            ErrorKind::Server(ServerErrorKind::Moved) => false,
            _ => return None,
        };
        let (there, _) = error.redirect_node()?;
        let to = address(there, from.host())?;
        Some(Self { to, asking })
    }
}
