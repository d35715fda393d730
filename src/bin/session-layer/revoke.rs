//! `revoke`: ends sessions for good.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use session_layer::store::{SessionKey, SessionStore};
use session_layer::{
    AnyStore, SessionConfig, SessionError, SessionErrorKind, SessionInfo, SessionLayer, Sessions,
    SigningKeys, StoreError, StoreErrorKind,
};

use crate::args::Revoke;
use crate::failure::{Failure, Outcome};
use crate::output::counted;
use crate::progress::Progress;
use crate::stop::Stop;
use crate::stores;
use crate::walk::{AT_ONCE, Found, Walked, again, count, load, walk};

/// What became of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revoked {
    Ended,
    EndedBefore,
    NotThere,
    /// The record was no session; it is gone.
    Removed,
    /// It is the list of a user's sessions, which stays.
    Index,
}

/// Ends sessions as an application does: a tombstone takes the place of the record, so that a request
/// which has read it before does not bring it back.
#[derive(Clone)]
pub(crate) struct Revoker {
    store: AnyStore,
    sessions: Sessions,
}

impl Revoker {
    pub(crate) fn new(store: &AnyStore) -> Result<Self, Failure> {
        let cannot = |error| Failure::new("cannot set up").caused_by(error);
        // No cookie is read or written.
        let keys = SigningKeys::generate().map_err(cannot)?;
        // The limits of the application are not known here; these are the widest.
        let config = SessionConfig::default()
            .with_max_payload(256 << 20)
            .with_max_keys(256 << 20)
            .with_max_depth(100)
            .with_store_timeout(Duration::from_secs(30))
            .with_commit_timeout(Duration::from_secs(30));
        let layer = SessionLayer::with_config(store.clone(), keys, config).map_err(cannot)?;
        Ok(Self {
            store: store.clone(),
            sessions: layer.sessions(),
        })
    }

    /// Ends the session under this key, and the one that it was rotated into.
    pub(crate) async fn end(&self, key: &SessionKey) -> Result<Revoked, Failure> {
        let revoked = self.end_alone(key).await?;
        if revoked == Revoked::EndedBefore {
            self.bury(key).await?;
        }
        Ok(revoked)
    }

    /// Ends the session under this key. One that was rotated goes on under its other key.
    pub(crate) async fn end_alone(&self, key: &SessionKey) -> Result<Revoked, Failure> {
        let failed = |error| cannot_end(key, error);
        let info = match load(&self.store, key).await.map_err(failed)? {
            Found::Absent => return Ok(Revoked::NotThere),
            Found::Unreadable => None,
            Found::Record(record) => SessionInfo::of(&record),
        };
        match info {
            Some(info) if info.is_ended() => Ok(Revoked::EndedBefore),
            Some(info) if info.is_user_index() => Ok(Revoked::Index),
            Some(_) => {
                self.bury(key).await?;
                Ok(Revoked::Ended)
            }
            None => {
                // No layer reads it, or a later version does: gone is gone, since only `create` makes
                // records.
                again(|| self.store.delete(key)).await.map_err(failed)?;
                Ok(Revoked::Removed)
            }
        }
    }

    async fn bury(&self, key: &SessionKey) -> Result<(), Failure> {
        again(|| async { self.sessions.end(key).await.map_err(store_error) })
            .await
            .map_err(|error| cannot_end(key, error))
    }
}

fn cannot_end(key: &SessionKey, error: StoreError) -> Failure {
    Failure::of_store(format_args!("cannot end session {key}"), error)
}

fn store_error(error: SessionError) -> StoreError {
    let kind = match (error.store_error(), error.kind()) {
        (Some(store), _) => return store.clone(),
        // Out of time between two calls.
        (None, SessionErrorKind::Store) => StoreErrorKind::Timeout,
        (None, _) => StoreErrorKind::Other,
    };
    StoreError::new(kind, error.to_string())
}

pub(crate) async fn run(args: Revoke, stop: Stop) -> Result<Outcome, Failure> {
    let (store, keys) = match args.words.split_first() {
        Some((first, keys)) if stores::is_store(first) => (Some(first.as_str()), keys),
        _ => (None, &args.words[..]),
    };
    let keys = parse(keys)?;
    if let Some(user) = &args.user {
        if args.all || !keys.is_empty() {
            return Err(Failure::misuse("either --user, or --all, or keys"));
        }
        return of_user(store, user).await;
    }
    match (args.all, keys.is_empty()) {
        (true, false) => Err(Failure::misuse("either --all or keys, not both")),
        (false, true) => Err(Failure::misuse(
            "which sessions? Give their keys, as `list` shows them, or --all",
        )),
        (true, true) if !args.yes => Err(Failure::misuse(
            "--all ends every session of the store; add --yes if that is what you want",
        )),
        (true, true) => all(store, stop).await,
        (false, false) => some(store, &keys, stop).await,
    }
}

/// What is no key may be a cookie or an id, so it is not repeated.
fn parse(words: &[String]) -> Result<Vec<SessionKey>, Failure> {
    let numbered = words.iter().zip(1..);
    numbered
        .map(|(word, n)| {
            word.parse().map_err(|error| {
                Failure::misuse(format!("key {n} of {}", words.len())).caused_by(error)
            })
        })
        .collect()
}

async fn some(store: Option<&str>, keys: &[SessionKey], stop: Stop) -> Result<Outcome, Failure> {
    let opened = stores::open_existing(store).await?;
    let revoker = Revoker::new(&opened.store)?;
    for key in keys {
        if stop.is_asked() {
            return Ok(Outcome::Interrupted);
        }
        let said = match revoker.end(key).await? {
            Revoked::Ended => "ended",
            Revoked::EndedBefore => "had ended",
            Revoked::NotThere => "not there",
            Revoked::Removed => "unreadable, removed",
            Revoked::Index => "no session, but a user's index",
        };
        writeln!(std::io::stdout(), "{key}: {said}")?;
    }
    Ok(Outcome::Done)
}

async fn of_user(store: Option<&str>, user: &str) -> Result<Outcome, Failure> {
    let opened = stores::open_existing(store).await?;
    let sessions = Revoker::new(&opened.store)?.sessions;
    let ended = sessions
        .end_all_of(user)
        .await
        .map_err(|error| match error.kind() {
            SessionErrorKind::Encode => Failure::misuse(error.to_string()),
            _ => Failure::of_store("cannot end all of the user's sessions", store_error(error)),
        })?;
    let ended = counted(ended as u64, "session", "sessions");
    writeln!(std::io::stdout(), "ended {ended}")?;
    Ok(Outcome::Done)
}

async fn all(store: Option<&str>, stop: Stop) -> Result<Outcome, Failure> {
    let opened = stores::open_existing(store).await?;
    let revoker = Revoker::new(&opened.store)?;
    let progress = Progress::new("ending");
    if progress.is_watched()
        && let Some(total) = count(&opened.store, &stop).await?
    {
        progress.expect(total);
    }
    let (mut ended, mut removed) = (0, 0);
    let walked = walk(
        &opened.store,
        AT_ONCE,
        &stop,
        |key| {
            let revoker = revoker.clone();
            async move { Ok((key, revoker.end(&key).await?)) }
        },
        |(key, revoked)| {
            match revoked {
                Revoked::Ended => ended += 1,
                Revoked::Removed => {
                    removed += 1;
                    progress.say(&format!("unreadable, removed: {key}"));
                }
                Revoked::EndedBefore | Revoked::NotThere | Revoked::Index => {}
            }
            progress.one_more();
            Ok(ControlFlow::Continue(()))
        },
    )
    .await;
    drop(progress);
    let mut out = std::io::stdout();
    writeln!(out, "ended {}", counted(ended, "session", "sessions"))?;
    if removed > 0 {
        let removed = counted(removed, "unreadable record", "unreadable records");
        writeln!(out, "removed {removed}")?;
    }
    Ok(match walked? {
        Walked::Everything | Walked::Enough => Outcome::Done,
        Walked::Interrupted => Outcome::Interrupted,
    })
}
