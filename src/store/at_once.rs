//! Stores that never wait: what a request needs most, as plain functions.

use std::sync::Arc;

use super::{CreateOutcome, NewRecord, Revision, SessionKey, StoreError, UpdateOutcome, Version};
use crate::payload::Body;

/// The verbs of [`SessionStore`](super::SessionStore) that most requests come to, with the same
/// contract: no future to be boxed and polled, nothing to be kept or handed to another task meanwhile.
/// What is read is shared with the store, which parses nothing twice.
pub(crate) trait StoreAtOnce {
    fn load_now(&self, key: &SessionKey) -> Result<Option<(Version, Arc<Body>)>, StoreError>;

    fn create_now(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError>;

    fn update_now(
        &self,
        key: &SessionKey,
        seen: Revision,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError>;
}
