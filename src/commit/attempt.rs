//! One call of the store, which is all that most commits need.

use tokio::time::Instant;

use crate::error::SessionError;
use crate::shared::{Shared, within};
use crate::state::Draft;
use crate::store::{CreateOutcome, NewRecord, Token, UpdateOutcome};

/// What became of the first attempt.
pub(crate) enum First {
    Written(Token),
    /// The session has ended.
    Gone,
    /// Somebody else has been there: [`go_on`](super::go_on) does, until the commit's deadline, if the
    /// store has made us wait so that it began to run.
    Conflict(Option<Instant>),
}

/// Writes `draft`.
pub(crate) async fn attempt(shared: &Shared, draft: &Draft) -> Result<First, SessionError> {
    let store = shared.store.as_dyn();
    let policy = &shared.policy;
    let limit = policy.limit(policy.commit_timeout);
    let deadline = |since: Option<Instant>| since.map(|since| since + policy.commit_timeout);
    let key = &draft.key;
    let new = NewRecord::of(draft.revision, draft.payload.bytes(), draft.ttl);
    let said = match &draft.seen {
        Some(seen) => {
            let mut answer = within(limit, store.update(key, seen, &new));
            (&mut answer).await.map(|outcome| match outcome {
                UpdateOutcome::Updated(token) => {
                    tracing::debug!(session.key = %key, "session updated");
                    First::Written(token)
                }
                UpdateOutcome::Conflict => First::Conflict(deadline(answer.since)),
                UpdateOutcome::Gone => {
                    super::ended(key);
                    First::Gone
                }
            })
        }
        None => {
            let mut answer = within(limit, store.create(key, &new));
            (&mut answer).await.map(|outcome| match outcome {
                CreateOutcome::Created(token) => {
                    tracing::debug!(session.key = %key, "session created");
                    First::Written(token)
                }
                CreateOutcome::Taken => {
                    tracing::warn!(session.key = %key, "session key taken; another is drawn");
                    First::Conflict(deadline(answer.since))
                }
            })
        }
    };
    said.map_err(|error| {
        tracing::error!(session.key = %key, %error, "session not stored");
        error.into()
    })
}
