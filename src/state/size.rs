//! How large the session is with what was done to it, and how large it may become.

use super::State;
use crate::config::Policy;
use crate::error::{SessionError, SessionErrorKind};
use crate::payload::{self, META_KEY};

impl State {
    pub(super) fn make_room(
        &mut self,
        key: &str,
        before: Option<usize>,
        value: usize,
        policy: &Policy,
    ) -> Result<(), SessionError> {
        let refuse = |message| Err(SessionError::new(SessionErrorKind::Encode, message));
        if key == META_KEY {
            return refuse(format!("the key {META_KEY:?} is reserved"));
        }
        let (old_count, old_size) =
            before.map_or((0, 0), |before| (1, self.written_len(key, before)));
        let count = self.count - old_count + 1;
        let size = self.size - old_size + self.written_len(key, value);
        if count > policy.limits.keys {
            return refuse(format!("a session has at most {} keys", policy.limits.keys));
        }
        let bound = payload::size_bound(count, size) + self.user_bound();
        if bound > policy.limits.bytes {
            return refuse(format!(
                "the session would take {bound} bytes; at most {} are allowed",
                policy.limits.bytes
            ));
        }
        (self.count, self.size) = (count, size);
        Ok(())
    }

    pub(super) fn written_len(&self, key: &str, value: usize) -> usize {
        payload::key_len(self.format(), key) + value
    }

    pub(super) fn measure(&mut self) {
        if self.batches.is_empty() {
            (self.count, self.size) = (self.base.len(), self.base.data_len());
            return;
        }
        let entries = self.entries();
        let lengths = entries.iter();
        let size = lengths
            .map(|(key, value)| self.written_len(key, value.len()))
            .sum();
        let count = entries.len();
        (self.count, self.size) = (count, size);
    }
}
