//! What a request has done to its session: applied to what it saw, and kept to be applied again.

use bytes::Bytes;

use crate::error::{SessionError, SessionErrorKind};
use crate::payload::{Format, Meta, Payload};

/// A closure given to `update`, with the typing worked in. It runs again on whatever the key holds
/// when the session turns out to have changed meanwhile.
pub(crate) type Updater =
    Box<dyn FnMut(Option<&[u8]>, Format) -> Result<Bytes, SessionError> + Send>;

/// The edits that one attempt to write takes along.
#[derive(Default)]
pub(crate) struct Batch {
    cleared: bool,
    keys: Vec<KeyEdits>,
    lifetime: Option<Option<u64>>,
    permanent: Option<bool>,
    /// Something that was taken turned out to be gone, or to be something else.
    lost_taken: bool,
    /// The format of the values; known as soon as there is one.
    format: Option<Format>,
}

struct KeyEdits {
    key: Box<str>,
    /// The last edit that does not depend on what was there.
    base: Base,
    /// What was done to the result.
    updates: Vec<Updater>,
    /// The outcome, on the data that the request saw last.
    current: Option<Bytes>,
}

enum Base {
    Stored,
    /// `None` while nothing was done to it: it is then `current`, and need not be kept twice.
    Set(Option<Bytes>),
    Removed,
    /// Removed, with the value that the request has got for it.
    Taken(Bytes),
}

/// What a batch says of a key.
pub(crate) enum Said<'a> {
    Nothing,
    Value(&'a Bytes),
    Absent,
}

impl Batch {
    pub(crate) fn get(&self, key: &str) -> Said<'_> {
        match self.keys.iter().find(|edits| *edits.key == *key) {
            Some(edits) => edits.current.as_ref().map_or(Said::Absent, Said::Value),
            None if self.cleared => Said::Absent,
            None => Said::Nothing,
        }
    }

    /// Answers the closures that this makes superfluous, as do the next ones.
    pub(crate) fn set(&mut self, key: &str, value: Bytes, format: Format) -> Vec<Updater> {
        self.format = Some(format);
        let edits = self.edits_of(key);
        edits.base = Base::Set(None);
        edits.current = Some(value);
        std::mem::take(&mut edits.updates)
    }

    pub(crate) fn remove(&mut self, key: &str) -> Vec<Updater> {
        let edits = self.edits_of(key);
        edits.base = Base::Removed;
        edits.current = None;
        std::mem::take(&mut edits.updates)
    }

    /// Removes what the request is going to use.
    pub(crate) fn take(&mut self, key: &str, value: Bytes) -> Vec<Updater> {
        let edits = self.edits_of(key);
        // What the request has put there itself, nobody else can take.
        edits.base = match edits.base {
            Base::Stored if edits.updates.is_empty() => Base::Taken(value),
            _ => Base::Removed,
        };
        edits.current = None;
        std::mem::take(&mut edits.updates)
    }

    pub(crate) fn has_lost_taken(&self) -> bool {
        self.lost_taken
    }

    /// Keeps `updater`, whose outcome on what is there now is `value`.
    pub(crate) fn update(&mut self, key: &str, updater: Updater, value: Bytes, format: Format) {
        self.format = Some(format);
        let edits = self.edits_of(key);
        if let Base::Set(set @ None) = &mut edits.base {
            *set = edits.current.take();
        }
        edits.updates.push(updater);
        edits.current = Some(value);
    }

    /// Takes back what was done to a key, because it comes to nothing.
    pub(crate) fn forget(&mut self, key: &str) -> Vec<Updater> {
        match self.keys.iter().position(|edits| *edits.key == *key) {
            Some(at) => self.keys.remove(at).updates,
            None => Vec::new(),
        }
    }

    pub(crate) fn clear(&mut self) -> Vec<Updater> {
        self.cleared = true;
        let keys = self.keys.drain(..);
        keys.flat_map(|edits| edits.updates).collect()
    }

    pub(crate) fn into_updaters(self) -> impl Iterator<Item = Updater> {
        self.keys.into_iter().flat_map(|edits| edits.updates)
    }

    pub(crate) fn set_lifetime(&mut self, lifetime: Option<u64>) {
        self.lifetime = Some(lifetime);
    }

    pub(crate) fn set_permanent(&mut self, permanent: bool) {
        self.permanent = Some(permanent);
    }

    pub(crate) fn is_clear(&self) -> bool {
        self.cleared
    }

    /// Whether applying this to `base` would make a difference.
    pub(crate) fn changes(&self, base: &Payload, meta: &Meta) -> bool {
        self.cleared
            || self.changes_cookie(meta)
            || self
                .keys
                .iter()
                .any(|edits| edits.current.as_deref() != base.get(&edits.key))
    }

    pub(crate) fn changes_cookie(&self, meta: &Meta) -> bool {
        self.lifetime
            .is_some_and(|lifetime| lifetime != meta.lifetime)
            || self
                .permanent
                .is_some_and(|permanent| Some(permanent) != meta.permanent)
    }

    pub(crate) fn apply_to_meta(&self, meta: &mut Meta) {
        if self.cleared {
            meta.generation = meta.generation.wrapping_add(1);
        }
        if let Some(lifetime) = self.lifetime {
            meta.lifetime = lifetime;
        }
        if let Some(permanent) = self.permanent {
            meta.permanent = Some(permanent);
        }
    }

    /// Lays the outcome over `entries`.
    pub(crate) fn apply_to_entries<'a>(&'a self, entries: &mut Vec<(&'a str, &'a [u8])>) {
        if self.cleared {
            entries.clear();
        }
        for edits in &self.keys {
            let at = entries.iter().position(|(key, _)| *key == &*edits.key);
            match (at, &edits.current) {
                (Some(at), Some(value)) => entries[at].1 = value,
                (Some(at), None) => {
                    entries.remove(at);
                }
                (None, Some(value)) => entries.push((&edits.key, value)),
                (None, None) => {}
            }
        }
    }

    /// Does it all again on other data: `base`, under the outcome of the batches `before`.
    fn replay(&mut self, base: &Payload, before: &[Self]) -> Result<(), SessionError> {
        if self.format.is_some_and(|format| format != base.format()) {
            // The record was rewritten in another format within this request; nothing can be lost by
            // asking the client to try again.
            return Err(SessionError::new(
                SessionErrorKind::Store,
                "the session changed its format meanwhile",
            ));
        }
        for edits in &mut self.keys {
            let mut value = match &edits.base {
                Base::Set(None) => edits.current.take(),
                Base::Set(value) => value.clone(),
                Base::Removed => None,
                Base::Taken(value) => {
                    self.lost_taken |= look_up(base, before, &edits.key).as_ref() != Some(value);
                    None
                }
                Base::Stored if self.cleared => None,
                Base::Stored => look_up(base, before, &edits.key),
            };
            for updater in &mut edits.updates {
                value = Some(updater(value.as_deref(), base.format())?);
            }
            edits.current = value;
        }
        Ok(())
    }

    fn edits_of(&mut self, key: &str) -> &mut KeyEdits {
        let at = match self.keys.iter().position(|edits| *edits.key == *key) {
            Some(at) => at,
            None => {
                self.keys.push(KeyEdits {
                    key: key.into(),
                    base: Base::Stored,
                    updates: Vec::new(),
                    current: None,
                });
                self.keys.len() - 1
            }
        };
        &mut self.keys[at]
    }
}

/// The value of `key` in `base` after `batches`, in place.
pub(crate) fn peek<'a>(base: &'a Payload, batches: &'a [Batch], key: &str) -> Option<&'a [u8]> {
    for batch in batches.iter().rev() {
        match batch.get(key) {
            Said::Value(value) => return Some(value),
            Said::Absent => return None,
            Said::Nothing => {}
        }
    }
    base.get(key)
}

/// The value of `key` in `base` after `batches`.
pub(crate) fn look_up(base: &Payload, batches: &[Batch], key: &str) -> Option<Bytes> {
    for batch in batches.iter().rev() {
        match batch.get(key) {
            Said::Value(value) => return Some(value.clone()),
            Said::Absent => return None,
            Said::Nothing => {}
        }
    }
    base.get_shared(key)
}

/// All of `base` after `batches`.
pub(crate) fn entries<'a>(base: &'a Payload, batches: &'a [Batch]) -> Vec<(&'a str, &'a [u8])> {
    let mut entries = Vec::with_capacity(base.len() + 4);
    entries.extend(base.iter());
    for batch in batches {
        batch.apply_to_entries(&mut entries);
    }
    entries
}

/// Runs every batch again on top of `base`. Calls the closures that were given to `update`.
pub(crate) fn replay(base: &Payload, batches: &mut [Batch]) -> Result<(), SessionError> {
    for at in 0..batches.len() {
        let (before, rest) = batches.split_at_mut(at);
        if let Some(batch) = rest.first_mut() {
            batch.replay(base, before)?;
        }
    }
    Ok(())
}
