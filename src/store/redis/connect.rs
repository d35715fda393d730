//! A store's URL, taken apart.

use std::time::Duration;

use ::redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use ::redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    TlsCertificates, TlsMode, io::tcp::TcpSettings,
};

use super::builder::Settings;
use super::client::{RedisClient, provide_tls};
use super::errors::config;
use crate::store::StoreError;
use crate::store::url::StoreUrl;

const SETTINGS: &[&str] = &[
    "prefix",
    "max_payload",
    "timeout",
    "ca",
    "cert",
    "key",
    "protocol",
    "sentinel_user",
    "sentinel_password",
];
const SENTINEL_PORT: u16 = 26_379;

/// The servers of a URL, and how to reach them.
pub(in crate::store) struct Target {
    tls: bool,
    protocol: ProtocolVersion,
    certificates: TlsCertificates,
}

impl Target {
    pub(in crate::store) fn parse(
        url: &str,
        certificates: TlsCertificates,
    ) -> Result<(RedisClient, Settings), StoreError> {
        let mut url = StoreUrl::parse(url)?;
        let mut settings = Settings::default();
        if let Some(prefix) = url.take("prefix")? {
            settings.prefix = prefix;
        }
        if let Some(bytes) = url.take_as("max_payload", "a number of bytes")? {
            settings.max_payload = bytes;
        }
        if let Some(timeout) =
            url.take_as::<humantime::Duration>("timeout", "a time, as in `1500ms`")?
        {
            settings.timeout = Duration::from(timeout);
        }
        let scheme = url.scheme().replacen("valkey", "redis", 1);
        let (start, kind) = scheme.split_once('+').unwrap_or((&scheme, ""));
        let target = Self {
            tls: start == "rediss",
            protocol: protocol(&mut url)?,
            certificates: read_certificates(&mut url, certificates)?,
        };
        if !target.tls
            && (target.certificates.root_cert.is_some() || target.certificates.client_tls.is_some())
        {
            return Err(config("certificates need a URL that begins with `rediss`"));
        }
        let client = match (start, kind) {
            ("redis" | "rediss", "") => target.client(&format!("{start}://{}", url.body()))?.into(),
            ("redis", "unix") => target.unix(&mut url)?.into(),
            ("redis" | "rediss", "cluster") => target.cluster(url.body())?,
            ("redis" | "rediss", "sentinel") => target.sentinel(&mut url)?,
            _ => {
                return Err(config(
                    "the URL is to begin with redis://, rediss://, redis+cluster://, \
                     rediss+cluster://, redis+sentinel://, rediss+sentinel:// or redis+unix://",
                ));
            }
        };
        url.finish(SETTINGS)?;
        Ok((client, settings))
    }

    /// The client of one server. `url` is one that the driver knows, without settings.
    fn client(&self, url: &str) -> Result<Client, StoreError> {
        // Not in the error: the driver's may quote the URL.
        let info: ConnectionInfo = url.parse().map_err(|_| {
            config("the URL is not of the form redis://user:password@host:port/database")
        })?;
        let redis = self.login(info.redis_settings().clone());
        let info = info.set_redis_settings(redis).set_tcp_settings(tcp());
        provide_tls(info.addr());
        let client = if self.tls {
            Client::build_with_tls(info, self.certificates.clone())
        } else {
            Client::open(info)
        };
        client.map_err(|error| {
            config("the certificates or the key cannot be read: PEM is expected").with_source(error)
        })
    }

    fn login(&self, redis: RedisConnectionInfo) -> RedisConnectionInfo {
        redis
            .set_protocol(self.protocol)
            .set_lib_name("session-layer", env!("CARGO_PKG_VERSION"))
    }

    fn unix(&self, url: &mut StoreUrl) -> Result<Client, StoreError> {
        let mut redis = RedisConnectionInfo::default();
        if let Some(db) = url.take_as("db", "a number")? {
            redis = redis.set_db(db);
        }
        if let Some(user) = url.take("user")? {
            redis = redis.set_username(user);
        }
        if let Some(password) = url.take("pass")? {
            redis = redis.set_password(password);
        }
        let addr = ConnectionAddr::Unix(url.path()?);
        let info = ::redis::IntoConnectionInfo::into_connection_info(addr)
            .map(|info| info.set_redis_settings(self.login(redis)));
        info.and_then(Client::open)
            .map_err(|error| config("Unix sockets cannot be used here").with_source(error))
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "rediss" } else { "redis" }
    }

    fn cluster(&self, body: &str) -> Result<RedisClient, StoreError> {
        let (login, hosts, path) = split(body);
        if !path.is_empty() {
            return Err(config(
                "a cluster has no databases: the URL ends with its hosts",
            ));
        }
        let clients = hosts
            .map(|host| self.client(&format!("{}://{login}{host}", self.scheme())))
            .collect::<Result<Vec<_>, _>>()?;
        RedisClient::cluster(clients)
    }

    fn sentinel(&self, url: &mut StoreUrl) -> Result<RedisClient, StoreError> {
        let (user, password) = (url.take("sentinel_user")?, url.take("sentinel_password")?);
        let (login, hosts, path) = split(url.body());
        let (name, db) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err(config(
                "the URL of sentinels ends with the name of the primary, as in \
                 redis+sentinel://host1,host2/mymaster",
            ));
        }
        let sentinels = hosts
            .map(|host| {
                let client = self.client(&format!("{}://{host}", self.scheme()))?;
                let info = client.get_connection_info().addr().clone();
                Ok(with_port(info, has_port(host), SENTINEL_PORT))
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        // Only for how the driver reads user, password and database.
        let servers = self.client(&format!("{}://{login}host/{db}", self.scheme()))?;
        let servers = servers.get_connection_info().redis_settings();

        let wrong = |error| config("the sentinels cannot be used").with_source(error);
        let name = percent_encoding::percent_decode_str(name)
            .decode_utf8()
            .map_err(|_| config("the name of the primary is not percent-encoded UTF-8"))?;
        let mut builder = SentinelClientBuilder::new(sentinels, name, SentinelServerType::Master)
            .map_err(wrong)?
            .set_client_to_redis_protocol(self.protocol)
            .set_client_to_redis_db(servers.db())
            .set_client_to_redis_tcp_settings(tcp())
            .set_client_to_sentinel_tcp_settings(tcp());
        if let Some(user) = servers.username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = servers.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(user) = user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if self.tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(self.certificates.clone());
        }
        Ok(builder.build().map_err(wrong)?.into())
    }
}

/// Login (with its `@`), hosts, path (without its `/`).
fn split(body: &str) -> (&str, impl Iterator<Item = &str>, &str) {
    let at = body.rfind('@').map_or(0, |at| at + 1);
    let (login, rest) = body.split_at(at);
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    (login, hosts.split(','), path.trim_end_matches('/'))
}

fn has_port(host: &str) -> bool {
    // After the brackets of an IPv6 address.
    host.rsplit(']').next().is_some_and(|end| end.contains(':'))
}

fn with_port(addr: ConnectionAddr, has_one: bool, default: u16) -> ConnectionAddr {
    match addr {
        ConnectionAddr::Tcp(host, _) if !has_one => ConnectionAddr::Tcp(host, default),
        ConnectionAddr::TcpTls {
            host,
            insecure,
            tls_params,
            ..
        } if !has_one => ConnectionAddr::TcpTls {
            host,
            port: default,
            insecure,
            tls_params,
        },
        other => other,
    }
}

fn protocol(url: &mut StoreUrl) -> Result<ProtocolVersion, StoreError> {
    match url.take("protocol")?.as_deref() {
        None | Some("resp3" | "3") => Ok(ProtocolVersion::RESP3),
        Some("resp2" | "2") => Ok(ProtocolVersion::RESP2),
        Some(_) => Err(config("the URL's `protocol` is to be one of: resp3, resp2")),
    }
}

/// Those that were given in code count.
fn read_certificates(
    url: &mut StoreUrl,
    given: TlsCertificates,
) -> Result<TlsCertificates, StoreError> {
    let read = |name: &str, path: String| {
        std::fs::read(path).map_err(|error| {
            config(format!(
                "the file that the URL's `{name}` names cannot be read"
            ))
            .with_source(error)
        })
    };
    let root_cert = url.take("ca")?.map(|path| read("ca", path)).transpose()?;
    let client_tls = match (url.take("cert")?, url.take("key")?) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("cert", cert)?,
            client_key: read("key", key)?,
        }),
        _ => return Err(config("the URL's `cert` and `key` need each other")),
    };
    Ok(TlsCertificates {
        client_tls: given.client_tls.or(client_tls),
        root_cert: given.root_cert.or(root_cert),
    })
}

/// Small commands are not held back, and a connection that is idle is kept open, or found dead.
fn tcp() -> TcpSettings {
    let keepalive = ::redis::io::tcp::socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive)
}
