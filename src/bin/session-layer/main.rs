//! `session-layer`: looks after a session store from the command line. See `docs/command-line.md`.

#![forbid(unsafe_code)]

mod args;
mod cleanup;
mod copy;
mod failure;
mod list;
mod output;
mod progress;
mod revoke;
mod stats;
mod stop;
mod stores;
mod walk;

use std::process::ExitCode;

use self::args::{Cli, Command};
use self::failure::{Failure, Outcome};
use self::stop::Stop;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return complain(&Failure::new("cannot start").caused_by(error)),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(outcome) => outcome.into(),
        // Whoever read the output, `head` say, has seen enough.
        Err(failure) if failure.is_closed_output() => ExitCode::SUCCESS,
        Err(failure) => complain(&failure),
    }
}

async fn run(command: Command) -> Result<Outcome, Failure> {
    let stop = Stop::on_signals()?;
    match command {
        Command::Cleanup(args) => cleanup::run(args, stop).await,
        Command::Stats(args) => stats::run(args, stop).await,
        Command::List(args) => list::run(args, stop).await,
        Command::Revoke(args) => revoke::run(args, stop).await,
        Command::Copy(args) => copy::run(args, stop).await,
    }
}

fn complain(failure: &Failure) -> ExitCode {
    eprintln!("session-layer: {failure}");
    failure.outcome().into()
}

/// Help, the version, or what is wrong with the arguments; a URL among them may hold a password.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<_> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    eprint!("{}", stores::without_urls(&error.to_string(), &arguments));
    Outcome::Misused.into()
}
