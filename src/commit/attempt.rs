//! One call of the store, which is all that most commits need.

use tokio::time::Instant;

use crate::error::{SessionError, StoreError};
use crate::id::{Revision, SessionKey};
use crate::shared::{Shared, within};
use crate::state::Draft;
use crate::store::{CreateOutcome, NewRecord, Record, StoreAtOnce, Token, UpdateOutcome};

/// What became of the first attempt.
pub(crate) enum First {
    Written(Token),
    /// The session has ended.
    Gone,
    /// Somebody else has been there: [`go_on`](super::go_on) does, until the commit's deadline, if the
    /// store has made us wait so that it began to run.
    Conflict(Option<Instant>),
}

/// Writes `draft`, in the place of `seen` unless it is to be created.
pub(crate) async fn attempt(
    shared: &Shared,
    draft: &Draft,
    seen: Option<&Record>,
) -> Result<First, SessionError> {
    let store = shared.store.as_dyn();
    let policy = &shared.policy;
    let limit = policy.limit(policy.commit_timeout);
    let deadline = |since: Option<Instant>| since.map(|since| since + policy.commit_timeout);
    let key = &draft.key;
    let new = NewRecord::of(draft.revision, &draft.payload, draft.ttl);
    let said = match seen {
        Some(seen) => {
            let mut answer = within(limit, store.update(key, seen, &new));
            let said = (&mut answer).await;
            said.map(|outcome| updated(key, outcome, deadline(answer.since)))
        }
        None => {
            let mut answer = within(limit, store.create(key, &new));
            let said = (&mut answer).await;
            said.map(|outcome| created(key, outcome, deadline(answer.since)))
        }
    };
    said.map_err(|error| failed(key, error))
}

/// The same in a store that never waits.
pub(crate) fn attempt_at_once(
    store: &dyn StoreAtOnce,
    key: &SessionKey,
    seen: Option<Revision>,
    new: &NewRecord<'_>,
) -> Result<First, SessionError> {
    let said = match seen {
        Some(seen) => {
            let said = store.update_now(key, seen, new);
            said.map(|outcome| updated(key, outcome, None))
        }
        None => store
            .create_now(key, new)
            .map(|outcome| created(key, outcome, None)),
    };
    said.map_err(|error| failed(key, error))
}

fn updated(key: &SessionKey, outcome: UpdateOutcome, deadline: Option<Instant>) -> First {
    match outcome {
        UpdateOutcome::Updated(token) => {
            tracing::debug!(session.key = %key, "session updated");
            First::Written(token)
        }
        UpdateOutcome::Conflict => First::Conflict(deadline),
        UpdateOutcome::Gone => {
            super::ended(key);
            First::Gone
        }
    }
}

fn created(key: &SessionKey, outcome: CreateOutcome, deadline: Option<Instant>) -> First {
    match outcome {
        CreateOutcome::Created(token) => {
            tracing::debug!(session.key = %key, "session created");
            First::Written(token)
        }
        CreateOutcome::Taken => {
            tracing::warn!(session.key = %key, "session key taken; another is drawn");
            First::Conflict(deadline)
        }
    }
}

fn failed(key: &SessionKey, error: StoreError) -> SessionError {
    tracing::error!(session.key = %key, %error, "session not stored");
    error.into()
}
