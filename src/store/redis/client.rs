//! Where the commands go: one server, the primary that sentinels name, a cluster, or through a
//! connection manager of the user's.

use std::fmt;

use ::redis::aio::ConnectionManager;
use ::redis::sentinel::SentinelClient;
use ::redis::{Client, ConnectionAddr, RedisError, Value};
use tokio::sync::Mutex;

use super::cluster::{Cluster, slot};
use super::errors::{config, is_no_script, is_readonly};
use super::link::{Link, Server};
use super::outbox::{Outbox, Outgoing};
use super::script::Call;
use crate::store::StoreError;

/// A client of the `redis` crate that a [`RedisStore`](super::RedisStore) can use: made with `From`
/// from a [`Client`], a [`ConnectionManager`] or a [`SentinelClient`], or with
/// [`cluster`](Self::cluster).
///
/// The driver's own cluster connection is not among them: it sends a command again when its answer
/// was lost, and a write of a session must not be sent twice.
///
/// A new major version of the `redis` crate is a breaking change of this one.
pub struct RedisClient(Route);

pub(in crate::store) enum Route {
    /// The link, and what it is called.
    Link(Link, &'static str),
    Cluster(Cluster),
    Manager(ConnectionManager, Outbox),
}

impl RedisClient {
    /// The cluster that these servers belong to; one that answers is enough. All servers are
    /// connected to like the first (user, password, TLS, protocol).
    ///
    /// # Errors
    ///
    /// [`Config`](crate::StoreErrorKind::Config) when there is no server among them, or one on a Unix
    /// socket.
    pub fn cluster(servers: impl IntoIterator<Item = Client>) -> Result<Self, StoreError> {
        let servers: Vec<_> = servers
            .into_iter()
            .map(|client| client.get_connection_info().clone())
            .collect();
        let on_network = |addr: &ConnectionAddr| !matches!(addr, ConnectionAddr::Unix(_));
        if servers.is_empty() || !servers.iter().all(|server| on_network(server.addr())) {
            return Err(config("a cluster needs the address of a server"));
        }
        servers.iter().for_each(|server| provide_tls(server.addr()));
        Ok(Self(Route::Cluster(Cluster::new(servers))))
    }

    pub(in crate::store) fn into_route(self) -> Route {
        self.0
    }
}

impl From<Client> for RedisClient {
    /// One server, on one connection that all requests share. It is opened when it is needed, and
    /// again when it is lost. `protocol=resp3` in the client's URL makes a lost connection noticed
    /// before the next request uses it.
    fn from(client: Client) -> Self {
        provide_tls(client.get_connection_info().addr());
        Self(Route::Link(Link::to(Server::At(client)), "server"))
    }
}

impl From<SentinelClient> for RedisClient {
    /// The primary of the group that the client was made for. It is to be made with
    /// [`SentinelServerType::Master`](redis::sentinel::SentinelServerType::Master): with replicas,
    /// every write fails. For TLS, `rustls` needs a provider that was installed before.
    fn from(client: SentinelClient) -> Self {
        let server = Server::PrimaryOf(Mutex::new(client));
        Self(Route::Link(Link::to(server), "sentinel"))
    }
}

impl From<ConnectionManager> for RedisClient {
    /// Shares the manager's connection. It is for the manager to reconnect; by default it tries for
    /// seconds, so that requests fail at the store's own time limit while the server is down.
    fn from(manager: ConnectionManager) -> Self {
        Self(Route::Manager(manager, Outbox::default()))
    }
}

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisClient").field(&self.0.name()).finish()
    }
}

impl Route {
    pub(in crate::store) fn name(&self) -> &'static str {
        match self {
            Self::Link(_, name) => name,
            Self::Cluster(_) => "cluster",
            Self::Manager(..) => "connection manager",
        }
    }

    /// Carries `cmd` out, once, where `key` is.
    pub(in crate::store) async fn call(
        &self,
        key: [&[u8]; 2],
        cmd: Outgoing<'_>,
    ) -> Result<Value, RedisError> {
        // Boxed where it is large: every call has room for all of them.
        match self {
            Self::Link(link, _) => call(link, cmd).await,
            Self::Cluster(cluster) => Box::pin(cluster.call(slot(key), &cmd)).await,
            Self::Manager(manager, outbox) => {
                let sent = outbox.send(manager, cmd, |mut manager, cmd| async move {
                    manager.send_packed_command(&cmd).await
                });
                let answer = sent.await;
                answer?.extract_error()
            }
        }
    }

    /// The same for a script. A server that does not know it has done nothing, and is told.
    pub(in crate::store) async fn script(
        &self,
        key: [&[u8]; 2],
        script: &Call,
    ) -> Result<Value, RedisError> {
        match self.call(key, Outgoing::Kept(&script.cmd)).await {
            Err(error) if is_no_script(&error) => {
                Box::pin(self.call(key, Outgoing::Given(&mut script.with_text()))).await
            }
            answer => answer,
        }
    }

    /// There was no answer in time from where `key` is: looks for a better connection.
    pub(in crate::store) fn renew(&self, key: [&[u8]; 2]) {
        match self {
            Self::Link(link, _) => link.renew(),
            Self::Cluster(cluster) => cluster.renew(slot(key)),
            Self::Manager(..) => {}
        }
    }
}

pub(super) async fn call(link: &Link, cmd: Outgoing<'_>) -> Result<Value, RedisError> {
    let answer = link.get().await?.send(cmd).await;
    if answer.as_ref().is_err_and(is_readonly) {
        // Its name, or the sentinels, may lead to the new primary by now.
        link.renew();
    }
    answer
}

/// Sees to it that `rustls` has a provider, without which the driver panics.
pub(super) fn provide_tls(addr: &ConnectionAddr) {
    if matches!(addr, ConnectionAddr::TcpTls { .. })
        && rustls::crypto::CryptoProvider::get_default().is_none()
    {
        // Somebody may have been faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
