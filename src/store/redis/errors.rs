//! What an error of the driver or the server means.

use std::error::Error;
use std::fmt;

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::{StoreError, StoreErrorKind};

/// What an error means for the verb that met it.
pub(in crate::store) fn failed(error: &RedisError) -> StoreError {
    if let Some(said) = Said::of(error) {
        let (kind, message) = said.meaning();
        return StoreError::new(kind, message).with_source(said);
    }
    let (kind, message) = match error.kind() {
        _ if error.is_timeout() => (StoreErrorKind::Timeout, "the server did not answer in time"),
        ErrorKind::AuthenticationFailed => WRONG_PASSWORD,
        ErrorKind::RESP3NotSupported => (
            StoreErrorKind::Config,
            "the server does not speak RESP3: add `protocol=resp2` to its URL",
        ),
        ErrorKind::InvalidClientConfig | ErrorKind::EmptySentinelList => (
            StoreErrorKind::Config,
            "the connection is not set up correctly",
        ),
        ErrorKind::MasterNameNotFoundBySentinel => (
            StoreErrorKind::Unavailable,
            "the sentinels know no primary of this name that is up",
        ),
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => (
            StoreErrorKind::Unavailable,
            "the server cannot be reached, or closed the connection",
        ),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => (
            StoreErrorKind::Other,
            "the answer is not one that a Redis server gives",
        ),
        _ => (StoreErrorKind::Other, "the driver failed"),
    };
    StoreError::new(kind, message).with_source(error.clone())
}

pub(in crate::store) fn timed_out() -> StoreError {
    StoreError::new(StoreErrorKind::Timeout, "the server did not answer in time")
}

pub(in crate::store) fn unexpected() -> StoreError {
    StoreError::new(
        StoreErrorKind::Other,
        "the answer is not one that this command has",
    )
}

pub(super) fn corrupt() -> StoreError {
    StoreError::new(
        StoreErrorKind::Corrupt,
        "the value is not a session record of this version, or larger than allowed",
    )
}

pub(super) fn config(message: impl Into<std::borrow::Cow<'static, str>>) -> StoreError {
    StoreError::new(StoreErrorKind::Config, message)
}

/// Whether the command was not carried out because the server is a replica.
pub(super) fn is_readonly(error: &RedisError) -> bool {
    Said::of(error).is_some_and(|said| said.code == "READONLY")
}

/// Whether the command was not carried out because the server does not know the script.
pub(super) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

const WRONG_PASSWORD: (StoreErrorKind, &str) = (
    StoreErrorKind::Config,
    "the server does not accept the user name and password",
);

/// An error that a server has answered, without the arguments that some quote.
#[derive(Debug)]
struct Said {
    code: String,
    text: String,
}

impl Said {
    fn of(error: &RedisError) -> Option<Self> {
        let code = error.code()?;
        let text = error.detail().unwrap_or_default();
        let text = text
            .find("with args beginning")
            .map_or(text, |at| text[..at].trim_end_matches([',', ' ']));
        Some(Self {
            code: inner_code(code, text).unwrap_or(code).to_owned(),
            text: text.to_owned(),
        })
    }

    fn meaning(&self) -> (StoreErrorKind, &'static str) {
        let says = |words| self.text.contains(words);
        match &*self.code {
            "WRONGTYPE" => (
                StoreErrorKind::Corrupt,
                "another kind of value is in the place of the session",
            ),
            "OOM" => (
                StoreErrorKind::Unavailable,
                "the server's memory is full (`maxmemory`), and it may evict nothing",
            ),
            "NOAUTH" => (StoreErrorKind::Config, "the server wants a password"),
            "WRONGPASS" => WRONG_PASSWORD,
            "NOPERM" => (
                StoreErrorKind::Config,
                "the user may not run a command that the store needs, or not on its keys",
            ),
            "READONLY" => (
                StoreErrorKind::Unavailable,
                "the server is a replica, which takes no writes",
            ),
            "LOADING" => (
                StoreErrorKind::Unavailable,
                "the server is loading its data",
            ),
            "BUSY" => (
                StoreErrorKind::Unavailable,
                "the server is busy with somebody's script",
            ),
            "CLUSTERDOWN" => (
                StoreErrorKind::Unavailable,
                "the cluster is down, or no server holds the key's slot",
            ),
            "MASTERDOWN" | "NOREPLICAS" | "MISCONF" => (
                StoreErrorKind::Unavailable,
                "the server refuses work because of its replication or its disk",
            ),
            "MOVED" | "ASK" | "TRYAGAIN" => (
                StoreErrorKind::Unavailable,
                "the key is on another server of the cluster, or on its way to one",
            ),
            "ERR" if says("invalid password") || says("without any password configured") => {
                WRONG_PASSWORD
            }
            "ERR" if says("unknown command") || says("unknown subcommand") => (
                StoreErrorKind::Config,
                "the server does not know a command that the store needs",
            ),
            "ERR" if says("DB index") => {
                (StoreErrorKind::Config, "the server has no such database")
            }
            "ERR" if says("max number of clients") => (
                StoreErrorKind::Unavailable,
                "the server has as many clients as it may",
            ),
            "ERR" if says("string exceeds maximum") || says("invalid bulk length") => (
                StoreErrorKind::TooLarge,
                "larger than the server's `proto-max-bulk-len` allows",
            ),
            _ => (StoreErrorKind::Other, "the server refused the command"),
        }
    }
}

/// The code of an error within a script, where the server reports the script's failure as `ERR`
/// (up to Redis 6, and for permissions).
fn inner_code(code: &str, text: &str) -> Option<&'static str> {
    if code != "ERR" {
        return None;
    }
    if text.contains("user executing the script can't") {
        return Some("NOPERM");
    }
    if !text.starts_with("Error running script") {
        return None;
    }
    [
        "WRONGTYPE",
        "OOM",
        "READONLY",
        "NOPERM",
        "MISCONF",
        "NOREPLICAS",
    ]
    .into_iter()
    .find(|code| text.contains(&format!("{code} ")))
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

impl Error for Said {}

#[cfg(test)]
mod tests {
    use ::redis::parse_redis_value;

    use super::*;

    fn said(text: &str) -> RedisError {
        parse_redis_value(format!("-{text}\r\n").as_bytes())
            .and_then(|value| value.extract_error())
            .unwrap_err()
    }

    #[test]
    fn answers_of_servers_have_meanings() {
        use StoreErrorKind::*;
        for (text, kind) in [
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                Corrupt,
            ),
            (
                "ERR Error running script (call to f_ab): @user_script:1: WRONGTYPE Operation",
                Corrupt,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Unavailable,
            ),
            (
                "ERR Error running script (call to f_ab): @user_script: 1: -OOM command not",
                Unavailable,
            ),
            ("NOAUTH Authentication required.", Config),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                Config,
            ),
            ("ERR invalid password", Config),
            (
                "NOPERM this user has no permissions to run the 'get' command",
                Config,
            ),
            (
                "ERR The user executing the script can't run this command or subcommand",
                Config,
            ),
            (
                "ERR unknown command 'EVALSHA', with args beginning with: 'ab' '1'",
                Config,
            ),
            ("ERR DB index is out of range", Config),
            (
                "READONLY You can't write against a read only replica.",
                Unavailable,
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                Unavailable,
            ),
            ("BUSY Redis is busy running a script.", Unavailable),
            ("CLUSTERDOWN The cluster is down", Unavailable),
            ("MASTERDOWN Link with MASTER is down", Unavailable),
            ("NOREPLICAS Not enough good replicas to write.", Unavailable),
            (
                "MISCONF Redis is configured to save RDB snapshots",
                Unavailable,
            ),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                Unavailable,
            ),
            ("MOVED 1234 127.0.0.1:7000", Unavailable),
            ("ERR max number of clients reached", Unavailable),
            ("ERR Protocol error: invalid bulk length", TooLarge),
            ("SOMETHING else", Other),
            ("ERR something else", Other),
        ] {
            let error = failed(&said(text));
            assert_eq!(error.kind(), kind, "{text}");
        }
        assert!(
            failed(&said("OOM command not allowed"))
                .to_string()
                .contains("full")
        );
    }

    #[test]
    fn errors_of_the_connection_have_meanings() {
        use std::io;
        for (io, kind) in [
            (
                io::ErrorKind::ConnectionRefused,
                StoreErrorKind::Unavailable,
            ),
            (io::ErrorKind::BrokenPipe, StoreErrorKind::Unavailable),
            (io::ErrorKind::TimedOut, StoreErrorKind::Timeout),
        ] {
            assert_eq!(failed(&io::Error::from(io).into()).kind(), kind);
        }
        let refused = RedisError::from((ErrorKind::AuthenticationFailed, "x"));
        assert_eq!(failed(&refused).kind(), StoreErrorKind::Config);
    }

    #[test]
    fn arguments_that_a_server_quotes_are_left_out() {
        for text in [
            "ERR unknown command `EVALSHA`, with args beginning with: `hunter2`, ",
            "ERR unknown command 'EVALSHA', with args beginning with: 'hunter2' ",
        ] {
            let error = failed(&said(text));
            let source = error.source().unwrap();
            assert!(source.to_string().contains("EVALSHA"), "{source}");
            for shown in [format!("{error:?}"), source.to_string(), error.to_string()] {
                assert!(!shown.contains("hunter2"), "{shown}");
            }
        }
    }

    #[test]
    fn replicas_and_unknown_scripts_are_recognised() {
        assert!(is_readonly(&said("READONLY You can't write")));
        assert!(is_no_script(&said("NOSCRIPT No matching script.")));
        for other in ["ERR x", "NOPERM x"] {
            assert!(!is_readonly(&said(other)) && !is_no_script(&said(other)));
        }
    }
}
