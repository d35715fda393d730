//! `FlaskRedisStore`: the sessions that Flask-Session keeps in Redis.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, RedisError, Script, TlsCertificates, Value, cmd};

use super::record::{Dialect, Read, digest, garbage, read, revision, store_limits, write};
use super::{ENDLESS, Speaks, name};
use crate::flask;
use crate::store::redis::RedisClient;
use crate::store::redis::builder::Settings;
use crate::store::redis::client::Route;
use crate::store::redis::connect::Target;
use crate::store::redis::errors::{failed, timed_out, unexpected};
use crate::store::redis::outbox::Outgoing;
use crate::store::redis::record::{Parts, millis};
use crate::store::redis::script::Call;
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

/// Compares the first 16 bytes of the stored bytes' hash with what was read.
macro_rules! if_unchanged {
    ($deed:literal) => {
        concat!(
            with_what_is_there!(
                "if string.sub(redis.sha1hex(there), 1, 32) ~= ARGV[1] then return 0 end\n"
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

/// The sessions of a Flask application, where Flask-Session (`SESSION_TYPE = "redis"`) keeps them: under
/// `<prefix><session id>`, as MessagePack or JSON. See [`FlaskStore`](super::FlaskStore) for what it
/// keeps of the store contract; for the rest it is like [`RedisStore`](crate::store::RedisStore).
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
    shared: Arc<Shared>,
    dialect: Dialect,
}

struct Shared {
    route: Route,
    prefix: String,
    max_bytes: usize,
    timeout: Duration,
    load: Text,
    update: Text,
    touch: Text,
    end: Text,
}

/// A script and its name.
struct Text {
    script: Script,
    text: &'static str,
}

impl Text {
    fn new(text: &'static str) -> Self {
        Self {
            script: Script::new(text),
            text,
        }
    }
}

impl FlaskRedisStore {
    /// The store that `url` names, with the forms and settings that
    /// [`RedisStore::connect`](crate::store::RedisStore::connect) has. `prefix` is Flask's
    /// `SESSION_KEY_PREFIX`, and `session:` by default, as there. Does not wait for the server.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the URL is not of this form.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let certificates = TlsCertificates {
            client_tls: None,
            root_cert: None,
        };
        let (client, settings) = Target::parse(url, certificates)?;
        Self::new(client, settings)
    }

    /// Uses a client of yours, and keys that begin with `prefix`: Flask's `SESSION_KEY_PREFIX`.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the prefix cannot be one.
    pub fn from_client(
        client: impl Into<RedisClient>,
        prefix: impl Into<String>,
    ) -> Result<Self, StoreError> {
        let settings = Settings {
            prefix: prefix.into(),
            ..Settings::default()
        };
        Self::new(client.into(), settings)
    }

    fn new(client: RedisClient, settings: Settings) -> Result<Self, StoreError> {
        settings.check()?;
        Ok(Self {
            shared: Arc::new(Shared {
                route: client.into_route(),
                prefix: settings.prefix,
                max_bytes: settings.max_payload,
                timeout: settings.timeout,
                load: Text::new(LOAD),
                update: Text::new(UPDATE),
                touch: Text::new(TOUCH),
                end: Text::new(END),
            }),
            dialect: Dialect::default(),
        })
    }
}

impl Shared {
    async fn within<T>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(answer) => answer.map_err(|error| failed(&error)),
            Err(_) => {
                self.route.renew(parts(name));
                Err(timed_out())
            }
        }
    }

    async fn call(&self, name: &str, cmd: &Cmd) -> Result<Value, StoreError> {
        self.within(name, self.route.call(parts(name), Outgoing::Kept(cmd)))
            .await
    }

    async fn run(
        &self,
        script: &Text,
        key: &SessionKey,
        arguments: &[&[u8]],
    ) -> Result<Value, StoreError> {
        let name = name(&self.prefix, key)?;
        let room = arguments
            .iter()
            .map(|argument| argument.len())
            .sum::<usize>()
            + 256;
        let place = Parts(parts(&name));
        let mut call = Call::new(
            &script.script,
            script.text,
            &place,
            4 + arguments.len(),
            room,
        );
        for argument in arguments {
            call.cmd.arg(*argument);
        }
        self.within(&name, self.route.script(parts(&name), &call))
            .await
    }

    /// The same for a script that compares.
    async fn run_if_unchanged(
        &self,
        script: &Text,
        key: &SessionKey,
        seen: &Record,
        arguments: &[&[u8]],
    ) -> Result<i64, StoreError> {
        let seen = hex(seen.token());
        let mut all = vec![seen.as_bytes()];
        all.extend_from_slice(arguments);
        match self.run(script, key, &all).await? {
            Value::Int(NO_STRING) => Err(garbage("not a string")),
            Value::Int(answer @ (DONE | CONFLICT | GONE)) => Ok(answer),
            _ => Err(unexpected()),
        }
    }
}

/// A key as the route wants it, for finding its place in a cluster.
fn parts(name: &str) -> [&[u8]; 2] {
    [name.as_bytes(), b""]
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
            .field("route", &self.shared.route.name())
            .field("prefix", &self.shared.prefix)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for FlaskRedisStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let (stored, left) = match self.shared.run(&self.shared.load, key, &[]).await? {
            Value::Int(GONE) => return Ok(None),
            Value::Int(NO_STRING) => return Err(garbage("not a string")),
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
        match read(stored, self.shared.max_bytes) {
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
        let written = write(new.payload(), self.dialect, self.shared.max_bytes)?;
        let name = name(&self.shared.prefix, key)?;
        let mut set = cmd("SET");
        set.arg(&name)
            .arg(&written)
            .arg("NX")
            .arg("PX")
            .arg(millis(new.ttl()));
        match self.shared.call(&name, &set).await? {
            Value::Okay => Ok(CreateOutcome::Created(token(&digest(&written)))),
            Value::Nil => Ok(CreateOutcome::Taken),
            _ => Err(unexpected()),
        }
    }

    /// Ending a session deletes its record: Flask would take a tombstone for a session.
    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        let shared = &self.shared;
        let (answer, token) = if new.is_ending() {
            (
                shared.run_if_unchanged(&shared.end, key, seen, &[]).await?,
                0,
            )
        } else {
            self.limits().check(new)?;
            let written = write(new.payload(), self.dialect, shared.max_bytes)?;
            let millis = millis(new.ttl()).to_string();
            let arguments: [&[u8]; 2] = [&written, millis.as_bytes()];
            let answer = shared.run_if_unchanged(&shared.update, key, seen, &arguments);
            (answer.await?, token(&digest(&written)))
        };
        Ok(match answer {
            DONE => UpdateOutcome::Updated(token),
            CONFLICT => UpdateOutcome::Conflict,
            _ => UpdateOutcome::Gone,
        })
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let shared = &self.shared;
        let millis = millis(ttl).to_string();
        let arguments = [millis.as_bytes()];
        let answer = shared.run_if_unchanged(&shared.touch, key, seen, &arguments);
        Ok(match answer.await? {
            DONE => TouchOutcome::Touched(seen.token()),
            CONFLICT => TouchOutcome::Conflict,
            _ => TouchOutcome::Gone,
        })
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let name = name(&self.shared.prefix, key)?;
        let mut delete = cmd("DEL");
        delete.arg(&name);
        self.shared.call(&name, &delete).await.map(drop)
    }

    /// 0: Redis does it.
    async fn delete_expired(&self, _limit: NonZeroUsize) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn limits(&self) -> StoreLimits {
        store_limits(self.shared.max_bytes)
    }
}

/// Of one server; [`Unsupported`](StoreErrorKind::Unsupported) on a cluster.
impl ScanStore for FlaskRedisStore {
    async fn scan(&self, from: Option<&Cursor>, limit: NonZeroUsize) -> Result<Page, StoreError> {
        let shared = &self.shared;
        if matches!(shared.route, Route::Cluster(_)) {
            return Err(StoreError::new(
                StoreErrorKind::Unsupported,
                "Flask's sessions are listed on one server, not on a cluster",
            ));
        }
        let from: u64 = match from {
            None => 0,
            Some(cursor) => cursor.as_str().parse().map_err(|_| {
                StoreError::new(
                    StoreErrorKind::Config,
                    "the cursor is not one of this store",
                )
            })?,
        };
        let mut scan = cmd("SCAN");
        scan.arg(from)
            .arg("MATCH")
            .arg(format!("{}*", literally(&shared.prefix)))
            .arg("COUNT")
            .arg(limit.get().min(10_000));
        let answer = shared.call(&shared.prefix, &scan).await?;
        let (next, names) =
            ::redis::from_redis_value::<(u64, Vec<Vec<u8>>)>(answer).map_err(|_| unexpected())?;
        let key = |name: &Vec<u8>| {
            let sid = name.strip_prefix(shared.prefix.as_bytes())?;
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

/// The part of the hash that is compared: it travels with the record.
fn token(digest: &[u8; 20]) -> Token {
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]);
    Token::from_be_bytes(first)
}

/// As the scripts have it.
fn hex(token: Token) -> String {
    format!("{token:032x}")
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
        assert_eq!(hex(token), "a9993e364706816aba3e25717850c26c");
        assert_eq!(hex(1), "00000000000000000000000000000001");
    }
}
