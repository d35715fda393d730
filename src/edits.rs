//! What a request has done to its session: applied to what it saw, and kept to be applied again.

use std::sync::Arc;

use crate::error::{SessionError, SessionErrorKind};
use crate::few::Few;
use crate::payload::{Format, Meta, Payload, User, Value};

/// A closure given to `update`, with the typing worked in. It runs again on whatever the key holds
/// when the session turns out to have changed meanwhile.
pub(crate) type Updater =
    Box<dyn FnMut(Option<&[u8]>, Format) -> Result<Value, SessionError> + Send>;

/// The edits that one attempt to write takes along.
#[derive(Default)]
pub(crate) struct Batch {
    cleared: bool,
    keys: Few<KeyEdits>,
    lifetime: Option<Option<u64>>,
    permanent: Option<bool>,
    /// After a `clear`, if there was one.
    login: Option<Arc<User>>,
    /// Something that was taken turned out to be gone, or to be something else.
    lost_taken: bool,
    /// The format of the values; known as soon as there is one.
    format: Option<Format>,
}

struct KeyEdits {
    key: Value,
    /// The last edit that does not depend on what was there.
    base: Base,
    /// What was done to the result.
    updates: Vec<Updater>,
    /// The outcome, on the data that the request saw last.
    current: Option<Value>,
}

enum Base {
    Stored,
    /// `None` while nothing was done to it: it is then `current`, and need not be kept twice.
    Set(Option<Value>),
    Removed,
    /// Removed, with the value that the request has got for it.
    Taken(Value),
}

/// What a batch says of a key.
pub(crate) enum Said<'a> {
    Nothing,
    Value(&'a Value),
    Absent,
}

impl Batch {
    pub(crate) fn get(&self, key: &str) -> Said<'_> {
        match self.keys.iter().find(|edits| edits.is_of(key)) {
            Some(edits) => edits.current.as_ref().map_or(Said::Absent, Said::Value),
            None if self.cleared => Said::Absent,
            None => Said::Nothing,
        }
    }

    /// Answers the closures that this makes superfluous, as do the next ones.
    pub(crate) fn set(&mut self, key: &str, value: Value, format: Format) -> Vec<Updater> {
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
    pub(crate) fn take(&mut self, key: &str, value: Value) -> Vec<Updater> {
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
    pub(crate) fn update(&mut self, key: &str, updater: Updater, value: Value, format: Format) {
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
        let edits = self.keys.take(|edits| edits.is_of(key));
        edits.map_or_else(Vec::new, |edits| edits.updates)
    }

    pub(crate) fn clear(&mut self) -> Vec<Updater> {
        self.cleared = true;
        self.login = None;
        let keys = std::mem::take(&mut self.keys).into_iter();
        keys.flat_map(|edits| edits.updates).collect()
    }

    pub(crate) fn has_updaters(&self) -> bool {
        self.keys.iter().any(|edits| !edits.updates.is_empty())
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

    pub(crate) fn log_in(&mut self, user: Arc<User>) {
        self.login = Some(user);
    }

    pub(crate) fn login(&self) -> Option<&Arc<User>> {
        self.login.as_ref()
    }

    pub(crate) fn is_clear(&self) -> bool {
        self.cleared
    }

    /// Whether applying this to `base` after the batches `before` would make a difference; `meta` is
    /// theirs.
    pub(crate) fn changes(&self, base: &Payload, before: &[Self], meta: &Meta) -> bool {
        self.cleared
            || self.login.is_some()
            || self.changes_cookie(meta)
            || self.keys.iter().any(|edits| edits.changes(base, before))
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
            meta.user = None;
        }
        if let Some(lifetime) = self.lifetime {
            meta.lifetime = lifetime;
        }
        if let Some(permanent) = self.permanent {
            meta.permanent = Some(permanent);
        }
        if let Some(user) = &self.login {
            meta.user = Some(Arc::clone(user));
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
        for edits in self.keys.iter_mut() {
            let mut value = match &edits.base {
                Base::Set(None) => edits.current.take(),
                Base::Set(value) => value.clone(),
                Base::Removed => None,
                Base::Taken(value) => {
                    self.lost_taken |= peek(base, before, edits.key()) != Some(&**value);
                    None
                }
                Base::Stored if self.cleared => None,
                Base::Stored => look_up(base, before, edits.key()),
            };
            for updater in &mut edits.updates {
                value = Some(updater(value.as_deref(), base.format())?);
            }
            edits.current = value;
        }
        Ok(())
    }

    fn edits_of(&mut self, key: &str) -> &mut KeyEdits {
        self.keys.find_or_push(
            |edits| edits.is_of(key),
            || KeyEdits {
                key: Value::from(key),
                base: Base::Stored,
                updates: Vec::new(),
                current: None,
            },
        )
    }
}

impl KeyEdits {
    fn changes(&self, base: &Payload, before: &[Batch]) -> bool {
        match self.base {
            // What is set to what it is is forgotten at once.
            Base::Set(None) => true,
            _ => self.current.as_deref() != peek(base, before, self.key()),
        }
    }

    fn is_of(&self, key: &str) -> bool {
        *self.key == *key.as_bytes()
    }

    fn key(&self) -> &str {
        // Made from a `str`.
        std::str::from_utf8(&self.key).unwrap_or_default()
    }
}

/// What `batches` say of a key, all together.
fn said<'a>(batches: &'a [Batch], key: &str) -> Said<'a> {
    let said = batches.iter().rev().map(|batch| batch.get(key));
    let mut said = said.skip_while(|said| matches!(said, Said::Nothing));
    said.next().unwrap_or(Said::Nothing)
}

/// The value of `key` in `base` after `batches`, in place.
pub(crate) fn peek<'a>(base: &'a Payload, batches: &'a [Batch], key: &str) -> Option<&'a [u8]> {
    match said(batches, key) {
        Said::Value(value) => Some(value),
        Said::Absent => None,
        Said::Nothing => base.get(key),
    }
}

/// The value of `key` in `base` after `batches`.
pub(crate) fn look_up(base: &Payload, batches: &[Batch], key: &str) -> Option<Value> {
    match said(batches, key) {
        Said::Value(value) => Some(value.clone()),
        Said::Absent => None,
        Said::Nothing => base.get_owned(key),
    }
}

/// What `batches` do to the data, all together, after the last of them that drops what was there.
#[derive(Clone, Copy)]
pub(crate) struct Changes<'a> {
    pub(crate) clears: bool,
    batches: &'a [Batch],
}

impl<'a> Changes<'a> {
    pub(crate) fn of(batches: &'a [Batch]) -> Self {
        let clear = batches.iter().rposition(Batch::is_clear);
        Self {
            clears: clear.is_some(),
            batches: batches.get(clear.unwrap_or(0)..).unwrap_or_default(),
        }
    }

    /// Each key once, with its value unless it is gone.
    pub(crate) fn each(self, mut take: impl FnMut(&'a str, Option<&'a [u8]>)) {
        for (at, batch) in self.batches.iter().enumerate() {
            let later = self.batches.get(at + 1..).unwrap_or_default();
            for edits in batch.keys.iter() {
                let is_said_later =
                    |batch: &Batch| batch.keys.iter().any(|later| later.key == edits.key);
                if !later.iter().any(is_said_later) {
                    take(edits.key(), edits.current.as_deref());
                }
            }
        }
    }
}

/// All of `base` after `batches`.
pub(crate) fn entries<'a>(base: &'a Payload, batches: &'a [Batch]) -> Vec<(&'a str, &'a [u8])> {
    let changes = Changes::of(batches);
    let mut entries = Vec::with_capacity(base.len() + 4);
    if !changes.clears {
        entries.extend(base.iter());
    }
    changes.each(|key, value| {
        entries.retain(|(before, _)| *before != key);
        entries.extend(value.map(|value| (key, value)));
    });
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
