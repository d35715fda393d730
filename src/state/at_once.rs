//! The last commit of a request in a store that never waits: nothing has to be kept meanwhile.

use super::draft::{Place, Settled};
use super::work::merge;
use super::{Identity, Known, Plan, State, full_ttl};
use crate::config::Policy;
use crate::id::{Revision, SessionId, SessionKey};
use crate::store::{NewRecord, Version};

impl State {
    /// Writes what a plan asks for, if one call of the store does for that, as for a draft: `write` is
    /// that call. `None` if it does not, or was refused: then nothing has happened.
    pub(crate) fn write_at_once(
        &mut self,
        plan: Plan,
        fresh: Option<(SessionId, SessionKey)>,
        policy: &Policy,
        now: u64,
        write: impl FnOnce(&SessionKey, Option<Revision>, &NewRecord<'_>) -> Option<Settled>,
    ) -> Option<()> {
        let Place { id, key, seen } = self.place(plan, fresh)?;
        let begins = self.rotate || seen.is_none();
        let (meta, payload) = merge(&self.base, self.meta.clone(), &self.batches, begins, now);
        let ttl = full_ttl(policy, &meta, now)?;
        let revision = Revision::generate();
        let new = NewRecord::of(revision, &payload, ttl);
        match write(&key, seen, &new)? {
            Settled::Written(token) => {
                self.drop_batches();
                (self.base, self.meta) = (payload, meta);
                let version = Version {
                    revision,
                    ttl,
                    token,
                };
                self.conclude_stored(Known::new(id, key, version, now), plan.cookie);
            }
            Settled::Ended => {
                self.identity = Identity::Ended(key);
                self.forget_data(policy);
            }
            Settled::Failed => {
                self.drop_batches();
                self.measure();
            }
        }
        self.rotate = false;
        Some(())
    }
}
