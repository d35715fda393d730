//! `MigratingStore`: one store in the place of another, while the old one still has sessions.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::{
    CreateOutcome, NewRecord, Record, Revision, SessionKey, SessionStore, StoreError, StoreLimits,
    TouchOutcome, UpdateOutcome,
};

/// Moves sessions from an old store to a new one as they are used.
///
/// A session that the new store does not have is looked for in the old one, written to the new one and
/// deleted from the old one: from then on it is the new one's. New sessions begin there. Ending a
/// session deletes it from the old store first, so that it cannot come back from there, whatever became
/// of an earlier move.
///
/// A session that is moved costs three round trips more, an unknown one and one that is ended one more.
/// Sessions that nobody uses are not moved; they expire in the old store. When they have, take the old
/// store out.
///
/// # Examples
///
/// ```no_run
/// use session_layer::{FlaskCookies, SessionConfig, SessionLayer, SigningKeys};
/// # #[cfg(all(feature = "redis", feature = "memory"))] {
/// use session_layer::store::{FlaskRedisStore, MemoryStore, MigratingStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let flask = FlaskRedisStore::connect("redis://127.0.0.1/0").await?;
/// let store = MigratingStore::new(flask, MemoryStore::new());
/// let keys = SigningKeys::from_env("SESSION_SECRET")?;
/// let config = SessionConfig::default().with_cookie_name("session");
/// let layer = SessionLayer::with_config(store, keys, config)?
///     .with_flask_cookies(FlaskCookies::signed(std::env::var("SECRET_KEY")?)?);
/// # Ok(())
/// # }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MigratingStore<Old, New> {
    old: Old,
    new: New,
}

impl<Old: SessionStore, New: SessionStore> MigratingStore<Old, New> {
    /// A store that moves what `old` has to `new`.
    pub fn new(old: Old, new: New) -> Self {
        Self { old, new }
    }

    async fn move_over(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let Some(found) = self.old.load(key).await? else {
            return Ok(None);
        };
        let revision = Revision::generate();
        let moved = NewRecord::new(revision, found.payload(), found.ttl());
        let record = match self.new.create(key, &moved).await? {
            CreateOutcome::Created(token) => {
                let record = Record::new(revision, found.payload().clone(), found.ttl());
                Some(record.with_token(token))
            }
            // Another request was faster.
            CreateOutcome::Taken => self.new.load(key).await?,
        };
        self.old.delete(key).await?;
        Ok(record)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<Old: SessionStore, New: SessionStore> SessionStore for MigratingStore<Old, New> {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        match self.new.load(key).await? {
            Some(record) => Ok(Some(record)),
            None => self.move_over(key).await,
        }
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.new.create(key, new).await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        if new.is_ending() {
            self.old.delete(key).await?;
        }
        self.new.update(key, seen, new).await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        self.new.touch(key, seen, ttl).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.old.delete(key).await?;
        self.new.delete(key).await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        self.new.delete_expired(limit).await
    }

    fn limits(&self) -> StoreLimits {
        // A verb may ask both stores, one after the other.
        StoreLimits {
            timeout: None,
            ..self.new.limits()
        }
    }
}
