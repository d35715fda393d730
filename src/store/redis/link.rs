//! One connection to one server, which all requests share: what they send is pipelined.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::sentinel::SentinelClient;
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, PushInfo, PushKind, RedisError,
    Value, pipe,
};
use tokio::sync::Mutex;

use super::kept::{Kept, Make};
use super::outbox::{Outbox, Outgoing};

/// How long a connection may take, DNS, TLS and login included.
const CONNECT: Duration = Duration::from_secs(1);

/// Keeps a connection to a server.
#[derive(Clone)]
pub(in crate::store) struct Link(Kept<Server>);

/// Which server.
pub(super) enum Server {
    At(Client),
    /// The primary that the sentinels name, each time anew.
    PrimaryOf(Mutex<SentinelClient>),
}

/// A connection that was good when it was handed out.
#[derive(Clone)]
pub(super) struct Live(Arc<Connection>);

struct Connection {
    driver: MultiplexedConnection,
    outbox: Outbox,
    lost: Arc<AtomicBool>,
}

impl Link {
    pub(super) fn to(server: Server) -> Self {
        Self(Kept::new(server))
    }

    /// The connection. While this fails, nothing has been sent.
    pub(super) async fn get(&self) -> Result<Live, RedisError> {
        self.0.get().await
    }

    /// Begins to make another connection: the server does not answer, or is no longer the primary.
    pub(super) fn renew(&self) {
        self.0.renew();
    }

    /// The name of the server, where it has one of its own.
    pub(super) fn host(&self) -> &str {
        match self.0.maker() {
            Server::At(client) => match client.get_connection_info().addr() {
                ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
                _ => "",
            },
            Server::PrimaryOf(_) => "",
        }
    }

    /// Whether it is the same one.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.is(&other.0)
    }
}

impl Live {
    /// Sends a command, once. After an error of the connection it may have been carried out.
    pub(super) async fn send(&self, cmd: Outgoing<'_>) -> Result<Value, RedisError> {
        let Connection { driver, outbox, .. } = &*self.0;
        let sent = outbox.send(driver, cmd, |mut driver, cmd| async move {
            driver.send_packed_command(&cmd).await
        });
        let answer = sent.await;
        self.judge(answer)
    }

    /// The same to a server that is taking over the key's slot.
    pub(super) async fn send_asking(&self, cmd: &Cmd) -> Result<Value, RedisError> {
        let mut both = pipe();
        both.cmd("ASKING").add_command(cmd.clone());
        let mut driver = self.0.driver.clone();
        let answers = driver.send_packed_commands(&both, 0, 2).await;
        let answer = answers.and_then(|answers| {
            let [asking, answer] = <[Value; 2]>::try_from(answers)
                .map_err(|_| RedisError::from((ErrorKind::Parse, "two answers were expected")))?;
            asking.extract_error()?;
            Ok(answer)
        });
        self.judge(answer)
    }

    fn judge(&self, answer: Result<Value, RedisError>) -> Result<Value, RedisError> {
        if let Err(error) = &answer
            && (error.is_io_error() || error.is_unrecoverable_error())
        {
            self.0.lost.store(true, Ordering::Relaxed);
        }
        answer?.extract_error()
    }
}

impl Make for Server {
    type Thing = Live;

    async fn make(&self) -> Result<Live, RedisError> {
        let resolved;
        let client = match self {
            Self::At(client) => client,
            Self::PrimaryOf(sentinels) => {
                resolved = sentinels.lock().await.async_get_client().await?;
                &resolved
            }
        };
        let lost = Arc::new(AtomicBool::new(false));
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            // Each verb has its own limit.
            .set_response_timeout(None);
        let settings = client.get_connection_info().redis_settings();
        // With RESP2 only the next command tells.
        if settings.protocol().supports_resp3() {
            let lost = Arc::clone(&lost);
            config = config.set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    lost.store(true, Ordering::Relaxed);
                }
                Ok::<(), ()>(())
            });
        }
        let driver = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        Ok(Live(Arc::new(Connection {
            driver,
            outbox: Outbox::default(),
            lost,
        })))
    }

    fn is_good(live: &Live) -> bool {
        !live.0.lost.load(Ordering::Relaxed)
    }
}
