//! `FileStore`: one file a session, in a directory of its own.

mod census;
mod dir;
mod record;
mod scan;

use std::fmt;
use std::fs::ReadDir;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::census::{Census, PURGE, Place, RECOUNT};
use self::dir::{Dir, Found, Purged, STRIPES, Swept};
use self::record::{Draft, Unreadable};
use super::blocking::blocking;
use super::expiry::Now;
use super::{
    CreateOutcome, NewRecord, Record, SessionKey, SessionStore, StoreError, StoreErrorKind,
    StoreLimits, TouchOutcome, UpdateOutcome,
};

/// How long a verb waits for the locks of other processes. Less than the layer's own limit of two
/// seconds, so that the reason is known when it is reported.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Keeps each session in a file of its own, in a directory that only this user can enter.
///
/// For one host without a database server. Several processes may share the directory; several hosts
/// may not (locks and atomic renames of network file systems are not to be relied on).
///
/// # Layout
///
/// A record is the file `<session key>`, mode 0600, with its expiry, its revision and check sums in
/// front of the payload. It is written to a temporary file beside it and renamed, so that readers and
/// crashes meet the old record or the new one, whole. The folder `locks` holds 256 empty files whose
/// locks order the writers of all processes; a reader takes no lock.
///
/// The file system must tell `a` from `A` (macOS formats volumes otherwise by default: there two
/// sessions share a file only if their 43 random characters are the same but for case).
///
/// # Durability
///
/// A killed process undoes nothing. A power cut can undo the ordinary writes of the last seconds, or
/// leave a damaged file that loads as [`Corrupt`](StoreErrorKind::Corrupt), but not a write that ended
/// a session, nor a delete: those are flushed to the disk before they are answered. See [`SyncPolicy`].
///
/// # Expiry
///
/// An expired record reads as absent at once; its file stays until a
/// [`delete_expired`](SessionStore::delete_expired) takes it. Run a [`Sweeper`](super::Sweeper). A
/// sweep also takes temporary files older than an hour, and damaged files older than a day.
///
/// # Damage
///
/// A file that is not a record (cut short, overwritten, a link, a pipe) loads as
/// [`Corrupt`](StoreErrorKind::Corrupt), as do `update` and `touch` of it; `create` replaces it and
/// `delete` removes it. A directory that has vanished is
/// [`Unavailable`](StoreErrorKind::Unavailable), never empty.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use session_layer::store::{FileStore, NewRecord, Revision, SessionKey, SessionStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let scratch = tempfile::tempdir()?;
/// # let path = scratch.path().join("sessions");
/// let store = FileStore::open(&path).await?;
/// let key: SessionKey = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ".parse()?;
/// let new = NewRecord::new(Revision::generate(), b"data", Duration::from_secs(60));
/// store.create(&key, &new).await?;
/// let record = store.load(&key).await?.ok_or("absent")?;
/// assert_eq!(&record.payload()[..], b"data");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FileStore {
    shared: Arc<Shared>,
}

struct Shared {
    dir: Dir,
    /// One per lock file: whoever holds it may wait for the file's lock, so that waiting costs one
    /// blocking thread a stripe and not one a request.
    stripes: Vec<Arc<tokio::sync::Mutex<()>>>,
    limits: StoreLimits,
    sync: SyncPolicy,
    census: Option<Arc<Census>>,
    /// Where the last sweep stopped. Without it, every batch would walk past all live records again.
    cursor: Mutex<Option<ReadDir>>,
}

/// Which writes of a [`FileStore`] wait until the disk has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// Every write. A power cut undoes nothing that was answered. Each write then costs two flushes,
    /// several milliseconds on many disks.
    Always,
    /// Writes that end a session, and deletes. The default: a logout outlives a power cut, and the
    /// rest is as fast as the page cache.
    #[default]
    Endings,
}

/// Settings of a [`FileStore`], from [`FileStore::builder`].
#[derive(Debug, Clone)]
#[must_use = "call `open` to get a store"]
pub struct FileStoreBuilder {
    path: PathBuf,
    max_payload: usize,
    max_records: Option<NonZeroUsize>,
    sync: SyncPolicy,
}

impl FileStore {
    /// Opens a directory with the default settings, and makes it (mode 0700) where it is missing.
    ///
    /// # Errors
    ///
    /// [`Config`](StoreErrorKind::Config) when the path is a symbolic link, is not a directory, is
    /// open to other users, belongs to another user, or cannot be written.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::builder(path).open().await
    }

    /// Settings for the store in this directory.
    pub fn builder(path: impl AsRef<Path>) -> FileStoreBuilder {
        FileStoreBuilder {
            path: path.as_ref().to_owned(),
            max_payload: 1024 * 1024,
            max_records: None,
            sync: SyncPolicy::default(),
        }
    }

    /// Does `work` on a blocking thread while holding the key's lock, in this process and among
    /// processes. Both locks belong to the work, so that a caller who stops waiting opens no gap.
    async fn locked<T: Send + 'static>(
        &self,
        key: &SessionKey,
        work: impl FnOnce(&Shared, &SessionKey) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let shared = Arc::clone(&self.shared);
        let key = *key;
        let stripe = stripe_of(&key);
        let turn = Arc::clone(&shared.stripes[stripe]).lock_owned().await;
        blocking(move || {
            let _turn = turn;
            let _lock = shared.dir.lock(stripe, deadline)?;
            work(&shared, &key)
        })
        .await
    }

    /// Finds room under the maximum for one more record.
    async fn place(&self) -> Result<Place, StoreError> {
        let Some(census) = &self.shared.census else {
            return Ok(Place::unlimited());
        };
        self.recount(census, RECOUNT).await?;
        if let Some(place) = census.reserve() {
            return Ok(place);
        }
        let mut purged = census.purged.lock().await;
        if let Some(place) = census.reserve() {
            return Ok(place);
        }
        if purged.is_none_or(|at| at.elapsed() >= PURGE) {
            const BATCH: NonZeroUsize = NonZeroUsize::new(256).unwrap();
            let went = self.delete_expired(BATCH).await?;
            *purged = (went < BATCH.get() as u64).then(Instant::now);
            self.recount(census, PURGE).await?;
        }
        census.reserve().ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::Unavailable,
                format!("the file store is full: it holds {} records", census.max()),
            )
        })
    }

    async fn recount(&self, census: &Census, after: Duration) -> Result<(), StoreError> {
        if let Some(made) = census.begin_recount(after) {
            let shared = Arc::clone(&self.shared);
            let count = blocking(move || shared.dir.count()).await?;
            census.recounted(count, made);
        }
        Ok(())
    }
}

impl FileStoreBuilder {
    /// The largest payload, in bytes. Default: 1 MiB. A larger one is refused before it is written,
    /// and a larger file is not read.
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// How many records the directory may hold. Default: no maximum.
    ///
    /// A full store purges expired records and, where there are none, refuses `create` as
    /// [`Unavailable`](StoreErrorKind::Unavailable); it never drops a live one. It looks for expired
    /// records at most once a second while there are none. One process keeps to the maximum; several
    /// on one directory learn of each other's records every ten seconds, and may pass it by what they
    /// create in between. Costs one listing of the directory every ten seconds in which something is
    /// created.
    pub fn with_max_records(mut self, records: NonZeroUsize) -> Self {
        self.max_records = Some(records);
        self
    }

    /// Which writes wait for the disk. Default: [`SyncPolicy::Endings`].
    pub fn with_sync(mut self, sync: SyncPolicy) -> Self {
        self.sync = sync;
        self
    }

    /// Opens the directory, and makes it (mode 0700) where it is missing.
    ///
    /// # Errors
    ///
    /// As [`FileStore::open`].
    pub async fn open(self) -> Result<FileStore, StoreError> {
        blocking(move || {
            let dir = Dir::open(&self.path, self.max_payload)?;
            let census = match self.max_records {
                Some(max) => Some(Arc::new(Census::new(max.get() as u64, dir.count()?))),
                None => None,
            };
            Ok(FileStore {
                shared: Arc::new(Shared {
                    dir,
                    stripes: (0..STRIPES).map(|_| Arc::default()).collect(),
                    limits: StoreLimits::new(self.max_payload),
                    sync: self.sync,
                    census,
                    cursor: Mutex::new(None),
                }),
            })
        })
        .await
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore")
            .field("path", &self.shared.dir.root())
            .field("limits", &self.shared.limits)
            .field("sync", &self.shared.sync)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn is_durable(&self, ending: bool) -> bool {
        match self.sync {
            SyncPolicy::Always => true,
            SyncPolicy::Endings => ending,
        }
    }

    /// Up to `limit` keys to purge, from where the last call stopped.
    fn candidates(&self, limit: usize) -> Result<Batch, StoreError> {
        let held = self.cursor().take();
        let mut batch = Batch {
            fresh: held.is_none(),
            ..Batch::default()
        };
        let mut entries = match held {
            Some(entries) => entries,
            None => self.dir.entries()?,
        };
        while batch.keys.len() < limit {
            match entries.next() {
                Some(Ok(entry)) => {
                    // One file that cannot be read must not end the sweep of all the others.
                    if let Ok(Swept::Candidate(key)) = self.dir.sweep(&entry, Now::read().millis())
                    {
                        batch.keys.push(key);
                    }
                }
                Some(Err(_)) | None => {
                    batch.ended = true;
                    return Ok(batch);
                }
            }
        }
        *self.cursor() = Some(entries);
        Ok(batch)
    }

    fn removed(&self) {
        if let Some(census) = &self.census {
            census.removed();
        }
    }

    fn cursor(&self) -> std::sync::MutexGuard<'_, Option<ReadDir>> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stretch of a walk through the directory.
#[derive(Default)]
struct Batch {
    keys: Vec<SessionKey>,
    /// The walk began with this stretch.
    fresh: bool,
    /// The walk ended with this stretch.
    ended: bool,
}

#[deny(clippy::missing_trait_methods)]
impl SessionStore for FileStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Record>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let key = *key;
        blocking(move || {
            let (head, file) = match shared.dir.find(&key)? {
                Found::Absent => return Ok(None),
                Found::Record(head, file) => (head, file),
                Found::Unreadable(why) => return Err(corrupt(why)),
            };
            let Some(ttl) = Now::read().remaining(head.expiry) else {
                return Ok(None);
            };
            match shared.dir.payload(&head, &file)? {
                Some(payload) => Ok(Some(Record::new(head.revision, payload, ttl))),
                None => Err(corrupt(Unreadable::Garbage)),
            }
        })
        .await
    }

    async fn create(
        &self,
        key: &SessionKey,
        new: &NewRecord<'_>,
    ) -> Result<CreateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        let draft = Draft::new(new.revision(), new.payload());
        let (ttl, ending) = (new.ttl(), new.is_ending());
        let place = self.place().await?;
        self.locked(key, move |shared, key| {
            let now = Now::read();
            let is_new = match shared.dir.find(key)? {
                Found::Record(head, _) if now.remaining(head.expiry).is_some() => {
                    return Ok(CreateOutcome::Taken);
                }
                Found::Unreadable(Unreadable::Foreign) => return Ok(CreateOutcome::Taken),
                Found::Record(..) | Found::Unreadable(Unreadable::Garbage) => false,
                Found::Absent => true,
            };
            let contents = draft.seal(key, now.expiry(ttl));
            shared
                .dir
                .write(key, &contents, shared.is_durable(ending))?;
            if is_new {
                place.take();
            }
            Ok(CreateOutcome::Created(0))
        })
        .await
    }

    async fn update(
        &self,
        key: &SessionKey,
        seen: &Record,
        new: &NewRecord<'_>,
    ) -> Result<UpdateOutcome, StoreError> {
        self.shared.limits.check(new)?;
        let draft = Draft::new(new.revision(), new.payload());
        let (ttl, ending) = (new.ttl(), new.is_ending());
        let seen = seen.revision();
        self.locked(key, move |shared, key| {
            let now = Now::read();
            match shared.dir.find(key)? {
                Found::Absent => Ok(UpdateOutcome::Gone),
                Found::Unreadable(why) => Err(corrupt(why)),
                Found::Record(head, _) if now.remaining(head.expiry).is_none() => {
                    Ok(UpdateOutcome::Gone)
                }
                Found::Record(head, _) if head.revision != seen => Ok(UpdateOutcome::Conflict),
                Found::Record(_, _old) => {
                    let contents = draft.seal(key, now.expiry(ttl));
                    shared
                        .dir
                        .write(key, &contents, shared.is_durable(ending))?;
                    Ok(UpdateOutcome::Updated(0))
                }
            }
        })
        .await
    }

    async fn touch(
        &self,
        key: &SessionKey,
        seen: &Record,
        ttl: Duration,
    ) -> Result<TouchOutcome, StoreError> {
        let seen = seen.revision();
        self.locked(key, move |shared, key| {
            let now = Now::read();
            match shared.dir.find(key)? {
                Found::Absent => Ok(TouchOutcome::Gone),
                Found::Unreadable(why) => Err(corrupt(why)),
                Found::Record(head, _) if now.remaining(head.expiry).is_none() => {
                    Ok(TouchOutcome::Gone)
                }
                Found::Record(head, _) if head.revision != seen => Ok(TouchOutcome::Conflict),
                Found::Record(head, file) => {
                    let payload = shared
                        .dir
                        .payload(&head, &file)?
                        .ok_or_else(|| corrupt(Unreadable::Garbage))?;
                    let contents = Draft::new(seen, &payload).seal(key, now.expiry(ttl));
                    shared.dir.write(key, &contents, shared.is_durable(false))?;
                    Ok(TouchOutcome::Touched(0))
                }
            }
        })
        .await
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.locked(key, |shared, key| {
            // A delete ends a session as well as a tombstone does.
            if shared.dir.remove(key, shared.is_durable(true))? {
                shared.removed();
            }
            Ok(())
        })
        .await
    }

    async fn delete_expired(&self, limit: NonZeroUsize) -> Result<u64, StoreError> {
        let mut went = 0;
        let mut whole = false;
        loop {
            let shared = Arc::clone(&self.shared);
            let want = (limit.get() - went).min(1024);
            let batch = blocking(move || shared.candidates(want)).await?;
            whole |= batch.fresh;
            for key in &batch.keys {
                let purged = self
                    .locked(key, |shared, key| {
                        let purged = shared.dir.purge(key, Now::read().millis())?;
                        if purged != Purged::Nothing {
                            shared.removed();
                        }
                        Ok(purged)
                    })
                    .await?;
                went += usize::from(purged == Purged::Record);
            }
            // A walk that an earlier call began has missed what expired behind it: it is not enough
            // for the answer that nothing is left.
            if went >= limit.get() || (batch.ended && whole) {
                return Ok(went as u64);
            }
        }
    }

    fn limits(&self) -> StoreLimits {
        self.shared.limits
    }
}

fn corrupt(why: Unreadable) -> StoreError {
    StoreError::new(
        StoreErrorKind::Corrupt,
        match why {
            Unreadable::Foreign => "the file was written by a later version of this crate",
            Unreadable::Garbage => "the file is not a session record, or is damaged",
        },
    )
}

/// The lock of a key. Part of the layout: all processes on one directory must agree.
fn stripe_of(key: &SessionKey) -> usize {
    let sum = key
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    // The low bits of such a sum are the weakest.
    ((sum >> 32) as usize) % STRIPES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_lock_across_versions() {
        let key: SessionKey = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"
            .parse()
            .unwrap();
        assert_eq!(stripe_of(&key), 182);
    }
}
