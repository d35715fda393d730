//! `cleanup`: removes what has expired.

use std::io::Write;
use std::num::NonZeroUsize;

use session_layer::AnyStore;
use session_layer::store::SessionStore;

use crate::args::Cleanup;
use crate::failure::{Failure, Outcome};
use crate::output::counted;
use crate::stop::Stop;
use crate::{stores, walk};

pub(crate) async fn run(args: Cleanup, mut stop: Stop) -> Result<Outcome, Failure> {
    let opened = stores::open_existing(args.store.as_deref()).await?;
    loop {
        match purge(&opened.store, args.batch, &stop).await {
            Ok(removed) => {
                let removed = counted(removed, "expired session", "expired sessions");
                let why = if opened.store.limits().expires_by_itself() {
                    ": this store removes them by itself"
                } else {
                    ""
                };
                writeln!(std::io::stdout(), "removed {removed}{why}")?;
            }
            // The next round may find it answering again.
            Err(failure) if args.every.is_some() && failure.outcome() == Outcome::Failed => {
                eprintln!("session-layer: {failure}; trying again later");
            }
            Err(failure) => return Err(failure),
        }
        let Some(every) = args.every else {
            return Ok(if stop.is_asked() {
                Outcome::Interrupted
            } else {
                Outcome::Done
            });
        };
        // A signal is how this is meant to end.
        if stop.or(tokio::time::sleep(every)).await.is_none() {
            return Ok(Outcome::Done);
        }
    }
}

/// Removes batch after batch, until one comes back short.
async fn purge(store: &AnyStore, batch: NonZeroUsize, stop: &Stop) -> Result<u64, Failure> {
    let mut removed = 0;
    while !stop.is_asked() {
        let went = walk::again(|| store.delete_expired(batch))
            .await
            .map_err(|error| {
                Failure::of_store(
                    format_args!("stopped after removing {removed} expired sessions"),
                    error,
                )
            })?;
        removed += went;
        if went < batch.get() as u64 {
            break;
        }
    }
    Ok(removed)
}
