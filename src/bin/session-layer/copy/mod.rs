//! `copy`: moves sessions to another store.

mod record;
mod report;
#[cfg(all(test, feature = "memory"))]
mod tests;
mod translation;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;

use session_layer::store::{ScanStore, SessionKey};

use self::record::{Copied, Copier};
use self::report::Report;
use self::translation::Translation;
use crate::args::Copy;
use crate::failure::{Failure, Outcome};
use crate::progress::Progress;
use crate::revoke::{Revoked, Revoker};
use crate::stop::Stop;
use crate::stores;
use crate::walk::{Walked, again, count, walk};

pub(crate) async fn run(args: Copy, stop: Stop) -> Result<Outcome, Failure> {
    let from = stores::open_existing(Some(&args.from))
        .await
        .map_err(|failure| failure.prefixed("FROM"))?;
    let to = stores::open(Some(&args.to))
        .await
        .map_err(|failure| failure.prefixed("TO"))?;
    let copier = Copier {
        translation: Translation::between(&from.scheme, &to.scheme)?,
        from: from.store,
        to: to.store,
        overwrite: args.overwrite || args.mirror,
    };
    let mut report = Report::default();
    let job = Job {
        copier,
        at_once: args.concurrency,
        mirror: args.mirror,
        stop,
    };
    let walked = job.run(&mut report).await;
    let outcome = match &walked {
        Ok(Walked::Everything | Walked::Enough) => Ok(report.outcome()),
        Ok(Walked::Interrupted) => Ok(Outcome::Interrupted),
        Err(_) => Err(()),
    };
    // Also after a failure: what was done stays done.
    report.write(&mut std::io::stdout().lock())?;
    match outcome {
        Ok(Outcome::Interrupted) => {
            eprintln!("session-layer: interrupted; run the same command again to go on");
            Ok(Outcome::Interrupted)
        }
        Ok(outcome) => Ok(outcome),
        Err(()) => walked.map(|_| Outcome::Failed),
    }
}

struct Job {
    copier: Copier,
    at_once: NonZeroUsize,
    mirror: bool,
    stop: Stop,
}

impl Job {
    async fn run(&self, report: &mut Report) -> Result<Walked, Failure> {
        let mut here = self.mirror.then(HashSet::new);
        if self.mirror {
            // Better to know before the copying that nothing can be compared after it.
            again(|| self.copier.to.scan(None, NonZeroUsize::MIN))
                .await
                .map_err(|error| {
                    Failure::of_store("--mirror needs to know what the target has", error)
                })?;
        }
        let walked = self.copy(report, here.as_mut()).await?;
        match here {
            // More likely the wrong store than one that everybody has left.
            Some(here) if here.is_empty() => Err(Failure::misuse(
                "--mirror would end every session of the target, since FROM has none; \
                 if that is what you want, `revoke --all` does it",
            )),
            Some(here) if walked == Walked::Everything => self.end_others(report, here).await,
            _ => Ok(walked),
        }
    }

    async fn copy(
        &self,
        report: &mut Report,
        mut here: Option<&mut HashSet<SessionKey>>,
    ) -> Result<Walked, Failure> {
        let from = &self.copier.from;
        let progress = Progress::new("copying");
        if progress.is_watched()
            && let Some(total) = count(from, &self.stop).await?
        {
            progress.expect(total);
        }
        walk(
            from,
            self.at_once,
            &self.stop,
            |key| {
                let copier = self.copier.clone();
                async move { copier.copy(&key).await }
            },
            |(name, copied)| {
                if copied != Copied::ExpiredMeanwhile
                    && let Some(here) = &mut here
                {
                    here.insert(name);
                }
                if let Some(line) = report.count(&name, copied) {
                    progress.say(&line);
                }
                progress.one_more();
                Ok(ControlFlow::Continue(()))
            },
        )
        .await
    }

    /// Ends what only the target has.
    async fn end_others(
        &self,
        report: &mut Report,
        here: HashSet<SessionKey>,
    ) -> Result<Walked, Failure> {
        let progress = Progress::new("comparing");
        let revoker = Revoker::new(&self.copier.to)?;
        let here = Arc::new(here);
        walk(
            &self.copier.to,
            self.at_once,
            &self.stop,
            |key| {
                let (revoker, here) = (revoker.clone(), Arc::clone(&here));
                async move {
                    if here.contains(&key) {
                        return Ok(Revoked::NotThere);
                    }
                    // A tombstone may name a session that both have.
                    revoker.end_alone(&key).await
                }
            },
            |revoked| {
                if matches!(revoked, Revoked::Ended | Revoked::Removed) {
                    report.ended_in_target();
                }
                progress.one_more();
                Ok(ControlFlow::Continue(()))
            },
        )
        .await
    }
}
