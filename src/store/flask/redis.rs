//! `FlaskRedisStore`: the sessions that Flask-Session keeps in Redis.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, ErrorKind, RedisError, Script, Value};

use super::record::{Dialect, Read, digest, garbage, read, revision, store_limits, write};
use super::{ENDLESS, PREFIX, Speaks, check_prefix, name};
use crate::flask;
use crate::store::url::StoreUrl;
use crate::store::{
    CreateOutcome, Cursor, NewRecord, Page, Record, ScanStore, SessionKey, SessionStore,
    StoreError, StoreErrorKind, StoreLimits, Token, TouchOutcome, UpdateOutcome,
};

/// Begins every script: what is there, if it is a string. Other errors are passed on.
macro_rules! with_what_is_there {
    ($deed:literal) => {
        concat!(
            "local there = redis.pcall('GET', KEYS[1])\n",
            "if type(there) == 'table' then\n",
            "  if string.sub(there.err, 1, 9) == 'WRONGTYPE' then return -2 end\n",
            "  return there\n",
            "end\n",
            "if not there then return -1 end\n",
            $deed
        )
    };
}

/// Compares the first half of the stored bytes' hash with what was read.
macro_rules! if_unchanged {
    ($deed:literal) => {
        concat!(
            with_what_is_there!(
                "if string.sub(redis.sha1hex(there), 1, 16) ~= ARGV[1] then return 0 end\n"
            ),
            $deed,
            "\nreturn 1"
        )
    };
}

const LOAD: &str = with_what_is_there!("return {there, redis.call('PTTL', KEYS[1])}");
const UPDATE: &str = if_unchanged!("redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])");
const TOUCH: &str = if_unchanged!("redis.call('PEXPIRE', KEYS[1], ARGV[2])");
const END: &str = if_unchanged!("redis.call('DEL', KEYS[1])");

const DONE: i64 = 1;
const CONFLICT: i64 = 0;
const GONE: i64 = -1;
const NO_STRING: i64 = -2;

/// What Flask-Session's own client takes, and Redis by default: far more than a session has.
const MAX_BYTES: usize = 16 << 20;

/// The sessions of a Flask application, where Flask-Session (`SESSION_TYPE = "redis"`) keeps them: under
/// `<prefix><session id>`, as MessagePack or JSON. See [`FlaskStore`](super::FlaskStore) for what it keeps of the store
/// contract. Needs one Redis server, version 6 or later, or Valkey.
///
/// A value that is pickled, as Flask-Session before 0.7 wrote it, is never unpacked: it counts as
/// absent, with an event. Each verb is one script, one round trip.
///
/// # Examples
///
/// ```no_run
/// use session_layer::{FlaskCookies, SessionConfig, SessionLayer};
/// use session_layer::store::FlaskRedisStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = FlaskRedisStore::connect("redis://127.0.0.1/0").await?;
/// let cookies = FlaskCookies::signed(std::env::var("SECRET_KEY")?)?;
/// let layer = SessionLayer::for_flask(store, cookies, SessionConfig::default())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FlaskRedisStore {
    connection: ConnectionManager,
    prefix: String,
    dialect: Dialect,
    max_bytes: usize,
    scripts: Arc<Scripts>,
}

struct Scripts {
    load: Script,
    update: Script,
    touch: Script,
    end: Script,
}

impl FlaskRedisStore {
    /// The store that `url` names: `redis://user:password@host:6379/0?prefix=session:`, or `rediss` for
    /// TLS; without `prefix`, Flask-Session's own default. Does not wait for the server.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL is not of this form.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let mut url = StoreUrl::parse(url)?;
        let prefix = url.take("prefix")?.unwrap_or_else(|| PREFIX.to_owned());
        check_prefix(&prefix)?;
        // With none, or with two, the driver panics.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let wrong = |_| {
            // The driver's own error may repeat the URL.
            StoreError::new(
                StoreErrorKind::Config,
                "this is not the URL of a Redis server",
            )
        };
        let client = Client::open(url.for_driver()).map_err(wrong)?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(50))
            .set_connection_timeout(Some(Duration::from_secs(1)))
            // The layer has a limit of its own.
            .set_response_timeout(Some(Duration::from_secs(5)));
        let connection = ConnectionManager::new_lazy_with_config(client, config).map_err(wrong)?;
        Self::new(connection, prefix)
    }

    /// Uses a connection of yours, and keys that begin with `prefix`: Flask's `SESSION_KEY_PREFIX`.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the prefix cannot be one.
    pub fn from_client(
        connection: ConnectionManager,
        prefix: impl Into<String>,
    ) -> Result<Self, StoreError> {
        let prefix = prefix.into();
        check_prefix(&prefix)?;
        Self::new(connection, prefix)
    }

    fn new(connection: ConnectionManager, prefix: String) -> Result<Self, StoreError> {
        Ok(Self {
            connection,
            prefix,
            dialect: Dialect::default(),
            max_bytes: MAX_BYTES,
            scripts: Arc::new(Scripts {
                load: Script::new(LOAD),
                update: Script::new(UPDATE),
                touch: Script::new(TOUCH),
                end: Script::new(END),
            }),
        })
    }

    async fn run(
        &self,
        script: &Script,
        key: &SessionKey,
        seen: &Record,
        arguments: &[&[u8]],
    ) -> Result<i64, StoreError> {
        let name = name(&self.prefix, key)?;
        let mut call = script.key(name);
        call.arg(hex(seen.token()));
        for argument in arguments {
            call.arg(*argument);
        }
        let mut connection = self.connection.clone();
        call.invoke_async(&mut connection)
            .await
            .map_err(|error| failed(&error))
    }
}

impl Speaks for FlaskRedisStore {
    fn with_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }
}

impl fmt::Debug for FlaskRedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlaskRedisStore")
            .field("prefix", &self.prefix)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for FlaskRedisStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let name = name(&self.prefix, key)?;
        let mut connection = self.connection.clone();
        let answer: Value = self
            .scripts
            .load
            .key(name)
            .invoke_async(&mut connection)
            .await
            .map_err(|error| failed(&error))?;
        let (stored, left) = match answer {
            Value::Int(GONE) => return Ok(None),
            Value::Int(NO_STRING) => return Err(no_string()),
            answer => {
                ::redis::from_redis_value::<(Vec<u8>, i64)>(answer).map_err(|_| unexpected())?
            }
        };
        let digest = digest(&stored);
        let ttl = match u64::try_from(left) {
            Ok(0) => return Ok(None),
            Ok(left) => Duration::from_millis(left),
            Err(_) => ENDLESS,
        };
        match read(stored, self.max_bytes) {
            Read::Nothing => Ok(None),
            Read::Garbage(why) => Err(garbage(why)),
            Read::Session(payload) => Ok(Some(
                Record::new(revision(&digest), payload, ttl).with_token(token(&digest)),
            )),
        }
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.limits().check(new)?;
        let written = write(new.payload(), self.dialect, self.max_bytes)?;
        let name = name(&self.prefix, key)?;
        let mut connection = self.connection.clone();
        let done: Option<String> = ::redis::cmd("SET")
            .arg(name)
            .arg(&written)
            .arg("NX")
            .arg("PX")
            .arg(millis(new.ttl()))
            .query_async(&mut connection)
            .await
            .map_err(|error| failed(&error))?;
        Ok(match done {
            Some(_) => CreateOutcome::Created(token(&digest(&written))),
            None => CreateOutcome::Taken,
        })
    }

    /// Ending a session deletes its record: Flask would take a tombstone for a session.
    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        let (answer, token) = if new.is_ending() {
            (self.run(&self.scripts.end, key, seen, &[]).await?, 0)
        } else {
            self.limits().check(new)?;
            let written = write(new.payload(), self.dialect, self.max_bytes)?;
            let millis = millis(new.ttl()).to_string();
            let arguments: [&[u8]; 2] = [&written, millis.as_bytes()];
            let answer = self.run(&self.scripts.update, key, seen, &arguments);
            (answer.await?, token(&digest(&written)))
        };
        match answer {
            DONE => Ok(UpdateOutcome::Updated(token)),
            CONFLICT => Ok(UpdateOutcome::Conflict),
            GONE => Ok(UpdateOutcome::Gone),
            NO_STRING => Err(no_string()),
            _ => Err(unexpected()),
        }
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let millis = millis(ttl).to_string();
        match self
            .run(&self.scripts.touch, key, seen, &[millis.as_bytes()])
            .await?
        {
            DONE => Ok(TouchOutcome::Touched(seen.token())),
            CONFLICT => Ok(TouchOutcome::Conflict),
            GONE => Ok(TouchOutcome::Gone),
            NO_STRING => Err(no_string()),
            _ => Err(unexpected()),
        }
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let mut connection = self.connection.clone();
        ::redis::cmd("DEL")
            .arg(name(&self.prefix, key)?)
            .query_async::<i64>(&mut connection)
            .await
            .map(drop)
            .map_err(|error| failed(&error))
    }

    /// 0: Redis does it.
    async fn delete_expired(&self, _limit: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        store_limits(self.max_bytes)
    }
}

impl ScanStore for FlaskRedisStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let from: u64 = match from {
            None => 0,
            Some(cursor) => cursor.as_str().parse().map_err(|_| {
                StoreError::new(
                    StoreErrorKind::Config,
                    "the cursor is not one of this store",
                )
            })?,
        };
        let mut connection = self.connection.clone();
        let (next, names): (u64, Vec<Vec<u8>>) = ::redis::cmd("SCAN")
            .arg(from)
            .arg("MATCH")
            .arg(format!("{}*", literally(&self.prefix)))
            .arg("COUNT")
            .arg(limit.get())
            .query_async(&mut connection)
            .await
            .map_err(|error| failed(&error))?;
        let key = |name: &Vec<u8>| {
            let sid = name.strip_prefix(self.prefix.as_bytes())?;
            Some(flask::parse(sid)?.key_with_id())
        };
        let keys = names.iter().filter_map(key).collect();
        Ok(Page::new(
            keys,
            (next != 0).then(|| Cursor::new(next.to_string())),
        ))
    }
}

/// The prefix as a pattern that matches it alone.
fn literally(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len());
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// The half of the hash that is compared: it travels with the record.
fn token(digest: &[u8; 20]) -> Token {
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    Token::from(u64::from_be_bytes(first))
}

/// As the scripts have it.
fn hex(token: Token) -> String {
    format!("{token:016x}")
}

/// Rounded up, so that nothing lives shorter than asked. Never 0, which Redis refuses.
fn millis(ttl: Duration) -> u64 {
    let millis = ttl.as_nanos().div_ceil(1_000_000).max(1);
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// Nothing of a server's own text is passed on: a key here is a secret.
fn failed(error: &RedisError) -> StoreError {
    let (kind, message) = match error.kind() {
        _ if error.is_timeout() => (StoreErrorKind::Timeout, "Redis did not answer in time"),
        ErrorKind::Io => (StoreErrorKind::Unavailable, "Redis cannot be reached"),
        ErrorKind::AuthenticationFailed => (StoreErrorKind::Config, "Redis refuses the password"),
        _ => match error.code() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => {
                (StoreErrorKind::Config, "Redis refuses the user")
            }
            Some("LOADING" | "BUSY" | "OOM" | "READONLY" | "MASTERDOWN" | "MISCONF") => {
                (StoreErrorKind::Unavailable, "Redis refuses for now")
            }
            Some(_) => (StoreErrorKind::Other, "Redis has refused the command"),
            None => (StoreErrorKind::Other, "the driver failed"),
        },
    };
    StoreError::new(kind, message)
}

fn no_string() -> StoreError {
    garbage("not a string")
}

fn unexpected() -> StoreError {
    StoreError::new(
        StoreErrorKind::Other,
        "the answer is not one that the script has",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_matches_itself_alone() {
        assert_eq!(literally("session:"), "session:");
        assert_eq!(literally("a*[b]?\\^"), "a\\*\\[b\\]\\?\\\\\\^");
    }

    #[test]
    fn a_token_is_what_redis_compares() {
        // printf abc | sha1sum
        let token = token(&digest(b"abc"));
        assert_eq!(hex(token), "a9993e364706816a");
        assert_eq!(hex(Token::from(1_u64)), "0000000000000001");
    }

    #[test]
    fn lifetimes_are_rounded_up_and_never_zero() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_micros(1500)), 2);
        assert_eq!(millis(Duration::ZERO), 1);
    }
}
