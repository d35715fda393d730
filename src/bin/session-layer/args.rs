//! The arguments.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use session_layer::SessionKey;

const STORES: &str = "\
A store is named by its URL, as in `AnyStore::connect`: sqlite://app.db, file:///var/lib/app/sessions,
redis://127.0.0.1. A URL with a password stays out of the process list as env:NAME, which reads it from
the environment variable NAME; where one store is asked for and none is given, SESSION_STORE names it.

Exit status: 0 done; 1 failed; 2 wrong arguments, URL or setup; 3 done, but something was left behind;
130 interrupted.";

/// Looks after a session store: statistics, lists, endings, expired sessions, moving to another store.
#[derive(Debug, Parser)]
#[command(name = "session-layer", version, after_help = STORES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Cleanup(Cleanup),
    Stats(Stats),
    List(List),
    Revoke(Revoke),
    Copy(Copy),
}

/// Removes expired sessions, until none is left.
#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    /// The store's URL, or env:NAME [default: env:SESSION_STORE]
    pub(crate) store: Option<String>,
    /// How many sessions one call removes, at most
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) batch: NonZeroUsize,
    /// Goes on: once in this time, such as 5m or 1h, until a signal ends it
    #[arg(long, value_name = "TIME", value_parser = interval)]
    pub(crate) every: Option<Duration>,
}

/// Counts the sessions, their sizes and their remaining lifetimes. Reads each of them.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// The store's URL, or env:NAME [default: env:SESSION_STORE]
    pub(crate) store: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// How many sessions are read at a time
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) concurrency: NonZeroUsize,
}

/// Lists the sessions by their keys, in no order. Never their data.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// The store's URL, or env:NAME [default: env:SESSION_STORE]
    pub(crate) store: Option<String>,
    /// Stops after so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<NonZeroUsize>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Ends sessions, so that no request brings them back.
#[derive(Debug, Args)]
#[command(override_usage = "session-layer revoke [STORE] <KEY>...\n       \
                            session-layer revoke [STORE] --user <NAME>\n       \
                            session-layer revoke [STORE] --all --yes")]
pub(crate) struct Revoke {
    /// The store's URL, or env:NAME [default: env:SESSION_STORE], then the keys of the sessions, as
    /// `list` shows them
    #[arg(value_name = "STORE|KEY")]
    pub(crate) words: Vec<String>,
    /// Ends the sessions that this user is logged in to
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Ends every session of the store
    #[arg(long)]
    pub(crate) all: bool,
    /// Confirms --all
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Copies every session to another store. The first store stays as it is; run it again to go on.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// The URL of the store that has the sessions, or env:NAME
    pub(crate) from: String,
    /// The URL of the store that is to have them, or env:NAME
    pub(crate) to: String,
    /// Replaces what differs in TO; without, it is named and left alone
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Makes TO what FROM is: --overwrite, and ends the sessions that only TO has
    #[arg(long, requires = "yes")]
    pub(crate) mirror: bool,
    /// Confirms --mirror
    #[arg(long)]
    pub(crate) yes: bool,
    /// How many sessions are copied at a time
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) concurrency: NonZeroUsize,
}

impl Cli {
    /// Reads the program's arguments. A key may begin with a hyphen, or two, and is a key all the same.
    pub(crate) fn read(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let (keys, mut line): (Vec<_>, Vec<_>) = arguments.partition(looks_like_an_option);
        if !keys.is_empty() && !line.iter().any(|argument| argument == "--") {
            line.push("--".into());
        }
        Self::try_parse_from(line.into_iter().chain(keys))
    }
}

fn looks_like_an_option(argument: &OsString) -> bool {
    argument
        .to_str()
        .is_some_and(|text| text.starts_with('-') && text.parse::<SessionKey>().is_ok())
}

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(every) if every >= Duration::from_secs(1) => Ok(every),
        Ok(_) => Err("at least 1s".to_owned()),
        Err(_) => Err("a time is a number and a unit, as in 30s, 5m or 1h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn keys_may_begin_with_hyphens_and_options_are_options_all_the_same() {
        for start in ["-", "-a", "-h", "-V", "--", "--x"] {
            let key = format!("{start:k<43}");
            for line in [
                ["x://", "--all", &key, "--yes"],
                ["--yes", "x://", "--all", &key],
                ["--yes", "--all", "x://", &key],
                [&key, "--yes", "--all", "x://"],
            ] {
                let line = ["session-layer", "revoke"].into_iter().chain(line);
                let cli = Cli::read(line.map(OsString::from));
                let Ok(Command::Revoke(revoke)) = cli.map(|cli| cli.command) else {
                    panic!("{key}");
                };
                assert_eq!(revoke.words, ["x://", &key]);
                assert!(revoke.all && revoke.yes);
            }
            let line = ["session-layer", "revoke", "--", &key, "x"].map(OsString::from);
            let cli = Cli::read(line.into_iter()).unwrap();
            assert!(matches!(cli.command, Command::Revoke(revoke) if revoke.words == ["x", &key]));
        }
    }

    #[test]
    fn intervals_have_a_unit() {
        assert_eq!(interval("5m"), Ok(Duration::from_secs(300)));
        assert!(interval("5").is_err());
        assert!(interval("10ms").is_err());
    }
}
