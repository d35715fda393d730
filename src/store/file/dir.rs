//! The directory: everything that touches the file system. Every call blocks.

use std::fs::{self, File, OpenOptions, ReadDir, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::record::{Head, Unreadable};
use crate::store::{Revision, SessionKey, StoreError, StoreErrorKind};

/// How many locks there are. Part of the layout: all processes on one directory must agree.
pub(super) const STRIPES: usize = 256;

const LOCKS: &str = "locks";
const TEMP: &str = "tmp.";
/// No write takes this long: a temporary file that is older was left behind by a process that died.
const STALE_TEMP: Duration = Duration::from_secs(60 * 60);
/// Time enough to look at a damaged file before a sweep takes it.
const STALE_GARBAGE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
pub(super) struct Dir {
    root: PathBuf,
    max_payload: u64,
}

/// What a key's place holds.
pub(super) enum Found {
    Absent,
    Record(Head, File),
    Unreadable(Unreadable),
}

/// What a sweep makes of one directory entry.
pub(super) enum Swept {
    Candidate(SessionKey),
    Kept,
}

impl Dir {
    /// Makes the directory where it is missing, and refuses one that others can get at.
    pub(super) fn open(path: &Path, max_payload: usize) -> Result<Self, StoreError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|error| failed("cannot create the parent of the directory", error))?;
        }
        make_private(path)?;
        check_private(path)?;
        let root = fs::canonicalize(path)
            .map_err(|error| failed("cannot resolve the directory's path", error))?;
        let dir = Self {
            root,
            max_payload: max_payload as u64,
        };
        dir.check_owner()?;
        make_private(&dir.root.join(LOCKS))?;
        check_private(&dir.root.join(LOCKS))?;
        Ok(dir)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, key: &SessionKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Proves that files can be made here, and that they belong to whoever owns the directory: root
    /// working in a service's directory would leave files that the service cannot read.
    fn check_owner(&self) -> Result<(), StoreError> {
        let probe = self.temp();
        let made = create(&probe).and_then(|file| file.metadata());
        let _ = fs::remove_file(&probe);
        let made = made.map_err(|error| failed("cannot write into the directory", error))?;
        let dir = fs::metadata(&self.root)
            .map_err(|error| failed("cannot look at the directory", error))?;
        if same_owner(&made, &dir) {
            return Ok(());
        }
        Err(config(format!(
            "{} belongs to another user than this process runs as: change one of them",
            self.root.display()
        )))
    }

    /// Opens a record and reads its head.
    pub(super) fn find(&self, key: &SessionKey) -> Result<Found, StoreError> {
        let file = match guarded().read(true).open(self.path(key)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.still_there()?;
                return Ok(Found::Absent);
            }
            Err(error) if is_special(&error) => {
                return Ok(Found::Unreadable(Unreadable::Garbage));
            }
            Err(error) => return Err(failed("cannot open a record", error)),
        };
        let meta = file
            .metadata()
            .map_err(|error| failed("cannot look at a record", error))?;
        let mut head = [0; Head::LEN];
        if !meta.is_file() || meta.len() < Head::LEN as u64 {
            return Ok(Found::Unreadable(Unreadable::Garbage));
        }
        if !read_whole(&file, &mut head)? {
            return Ok(Found::Unreadable(Unreadable::Garbage));
        }
        Ok(match Head::decode(key, &head) {
            Ok(head)
                if head.payload_len() == meta.len() - Head::LEN as u64
                    && head.payload_len() <= self.max_payload =>
            {
                Found::Record(head, file)
            }
            Ok(_) => Found::Unreadable(Unreadable::Garbage),
            Err(why) => Found::Unreadable(why),
        })
    }

    /// The payload of a record that was found. `None` when it is damaged.
    pub(super) fn payload(&self, head: &Head, file: &File) -> Result<Option<Bytes>, StoreError> {
        // `find` has held the length against the file's and the largest allowed.
        let mut payload = vec![0; usize::try_from(head.payload_len()).unwrap_or(0)];
        if !read_whole(file, &mut payload)? || !head.matches(&payload) {
            return Ok(None);
        }
        Ok(Some(payload.into()))
    }

    /// Puts `contents` in the key's place, whole or not at all.
    ///
    /// Whoever has the file open that is there keeps it open meanwhile: to be rid of it may take a wait
    /// for the disk, which is not to happen during the rename, with the directory locked.
    pub(super) fn write(
        &self,
        key: &SessionKey,
        contents: &[u8],
        durable: bool,
    ) -> Result<(), StoreError> {
        let temp = self.temp();
        let written = create(&temp)
            .and_then(|mut file| {
                file.write_all(contents)?;
                if durable { file.sync_all() } else { Ok(()) }
            })
            .and_then(|()| fs::rename(&temp, self.path(key)));
        if let Err(error) = written {
            let _ = fs::remove_file(&temp);
            return Err(failed("cannot write a record", error));
        }
        if durable { self.sync() } else { Ok(()) }
    }

    /// Removes a record and says whether there was one.
    pub(super) fn remove(&self, key: &SessionKey, durable: bool) -> Result<bool, StoreError> {
        match fs::remove_file(self.path(key)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.still_there()?;
                return Ok(false);
            }
            Err(error) => return Err(failed("cannot remove a record", error)),
        }
        if durable {
            self.sync()?;
        }
        Ok(true)
    }

    /// Waits for the lock of a stripe, which holds between processes, and not longer than `deadline`.
    pub(super) fn lock(&self, stripe: usize, deadline: Instant) -> Result<Lock, StoreError> {
        let path = self.root.join(LOCKS).join(format!("{stripe:02x}"));
        let mut pause = Duration::from_micros(50);
        loop {
            let file = guarded()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|error| failed("cannot open a lock file", error))?;
            match file.try_lock() {
                // A lock on a file that somebody has removed meanwhile keeps nobody out.
                Ok(()) if is_linked(&file)? => return Ok(Lock(file)),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(failed("cannot lock", error)),
            }
            if Instant::now() >= deadline {
                return Err(StoreError::new(
                    StoreErrorKind::Timeout,
                    "another process holds the lock of this session",
                ));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(4));
        }
    }

    /// How many records there are, dead or alive.
    pub(super) fn count(&self) -> Result<u64, StoreError> {
        let mut count = 0;
        for key in self.keys()? {
            key?;
            count += 1;
        }
        Ok(count)
    }

    /// The keys of all records, dead or alive.
    pub(super) fn keys(
        &self,
    ) -> Result<impl Iterator<Item = Result<SessionKey, StoreError>>, StoreError> {
        Ok(self.entries()?.filter_map(|entry| match entry {
            Ok(entry) => key_of(&entry).map(Ok),
            Err(error) => Some(Err(failed("cannot list the directory", error))),
        }))
    }

    pub(super) fn entries(&self) -> Result<ReadDir, StoreError> {
        fs::read_dir(&self.root).map_err(|error| failed("cannot list the directory", error))
    }

    /// Looks at one entry, removes it if a crash left it, and says whether it may be a record that
    /// expired by `now`. What vanishes while it is looked at is fine.
    pub(super) fn sweep(&self, entry: &fs::DirEntry, now: i64) -> Result<Swept, StoreError> {
        let Some(key) = key_of(entry) else {
            let is_temp = entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(TEMP.as_bytes());
            if is_temp && is_older(entry, STALE_TEMP) {
                let _ = fs::remove_file(entry.path());
            }
            return Ok(Swept::Kept);
        };
        Ok(match self.find(&key)? {
            Found::Record(head, _) if head.expiry <= now => Swept::Candidate(key),
            Found::Unreadable(Unreadable::Garbage) if is_older(entry, STALE_GARBAGE) => {
                Swept::Candidate(key)
            }
            Found::Record(..) | Found::Absent | Found::Unreadable(_) => Swept::Kept,
        })
    }

    /// Under the key's lock: removes what `sweep` named, unless it was renewed since. Answers whether
    /// an expired record went.
    pub(super) fn purge(&self, key: &SessionKey, now: i64) -> Result<Purged, StoreError> {
        match self.find(key)? {
            Found::Record(head, _) if head.expiry <= now => self.remove(key, false).map(|went| {
                if went {
                    Purged::Record
                } else {
                    Purged::Nothing
                }
            }),
            Found::Unreadable(Unreadable::Garbage) => {
                let old = fs::symlink_metadata(self.path(key))
                    .is_ok_and(|meta| meta.is_file() && older(&meta, STALE_GARBAGE));
                if old && self.remove(key, false)? {
                    return Ok(Purged::Garbage);
                }
                Ok(Purged::Nothing)
            }
            Found::Record(..) | Found::Absent | Found::Unreadable(Unreadable::Foreign) => {
                Ok(Purged::Nothing)
            }
        }
    }

    /// A directory that was removed or unmounted holds no record either, and must not read as empty.
    fn still_there(&self) -> Result<(), StoreError> {
        match fs::symlink_metadata(self.root.join(LOCKS)) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(gone()),
            Err(error) => Err(gone().with_source(error)),
        }
    }

    fn temp(&self) -> PathBuf {
        let random = u128::from_le_bytes(*Revision::generate().as_bytes());
        self.root.join(format!("{TEMP}{random:032x}"))
    }

    fn sync(&self) -> Result<(), StoreError> {
        sync_directory(&self.root).map_err(|error| failed("cannot flush the directory", error))
    }
}

/// What a purge has done.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Purged {
    Garbage,
    Nothing,
    Record,
}

/// The lock of a stripe; dropping it lets the next one in.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // A process that is just being forked holds a copy of the descriptor: closing ours would not
        // be enough.
        let _ = self.0.unlock();
    }
}

fn key_of(entry: &fs::DirEntry) -> Option<SessionKey> {
    SessionKey::parse_bytes(entry.file_name().as_encoded_bytes())
}

fn is_older(entry: &fs::DirEntry, age: Duration) -> bool {
    entry
        .metadata()
        .is_ok_and(|meta| meta.is_file() && older(&meta, age))
}

fn older(meta: &fs::Metadata, age: Duration) -> bool {
    meta.modified()
        .is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age))
}

/// Fills `buffer`, or says `false` where the file ends too early.
fn read_whole(mut file: &File, buffer: &mut [u8]) -> Result<bool, StoreError> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(failed("cannot read a record", error)),
    }
}

fn create(path: &Path) -> io::Result<File> {
    guarded().write(true).create_new(true).open(path)
}

fn make_private(path: &Path) -> Result<(), StoreError> {
    match private_directory().create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(failed("cannot create the directory", error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn check_private(path: &Path) -> Result<(), StoreError> {
    let meta = fs::symlink_metadata(path)
        .map_err(|error| failed("cannot look at the directory", error))?;
    let path = path.display();
    if meta.is_symlink() {
        return Err(config(format!(
            "{path} is a symbolic link: name the directory itself"
        )));
    }
    if !meta.is_dir() {
        return Err(config(format!(
            "{path} is not a directory: name one, or a path that is free"
        )));
    }
    if is_open_to_others(&meta) {
        return Err(config(format!(
            "{path} is open to other users: chmod 700 {path}"
        )));
    }
    Ok(())
}

fn config(message: String) -> StoreError {
    StoreError::new(StoreErrorKind::Config, message)
}

fn gone() -> StoreError {
    StoreError::new(
        StoreErrorKind::Unavailable,
        "the directory was removed or is not mounted",
    )
}

/// What the operating system's refusal means. Its errors carry no path.
fn failed(doing: &'static str, error: io::Error) -> StoreError {
    let (kind, message) = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            (StoreErrorKind::Unavailable, "the disk is full")
        }
        ErrorKind::NotFound => return gone().with_source(error),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            (StoreErrorKind::Config, doing)
        }
        ErrorKind::Unsupported => (StoreErrorKind::Unsupported, doing),
        _ => (StoreErrorKind::Unavailable, doing),
    };
    StoreError::new(kind, message).with_source(error)
}

/// Options that follow no link, wait for nobody at a pipe, and make files private.
#[cfg(unix)]
fn guarded() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
    options
}

#[cfg(not(unix))]
fn guarded() -> OpenOptions {
    OpenOptions::new()
}

/// Whether opening failed because there is a link, a socket, or something else that is not a file.
#[cfg(unix)]
fn is_special(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ELOOP | libc::EMLINK | libc::ENXIO)
    )
}

#[cfg(not(unix))]
fn is_special(_: &io::Error) -> bool {
    false
}

#[cfg(unix)]
fn private_directory() -> fs::DirBuilder {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

#[cfg(not(unix))]
fn private_directory() -> fs::DirBuilder {
    fs::DirBuilder::new()
}

#[cfg(unix)]
fn is_open_to_others(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    meta.permissions().mode() & 0o077 != 0
}

#[cfg(not(unix))]
fn is_open_to_others(_: &fs::Metadata) -> bool {
    false
}

#[cfg(unix)]
fn same_owner(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    a.uid() == b.uid()
}

#[cfg(not(unix))]
fn same_owner(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

#[cfg(unix)]
fn is_linked(file: &File) -> Result<bool, StoreError> {
    use std::os::unix::fs::MetadataExt;
    file.metadata()
        .map(|meta| meta.nlink() > 0)
        .map_err(|error| failed("cannot look at a lock file", error))
}

#[cfg(not(unix))]
fn is_linked(_: &File) -> Result<bool, StoreError> {
    Ok(true)
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::Draft;
    use super::*;

    fn key() -> SessionKey {
        "k".repeat(SessionKey::LEN).parse().unwrap()
    }

    fn opened() -> (Dir, tempfile::TempDir) {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Dir::open(&scratch.path().join("sessions"), 1000).unwrap();
        (dir, scratch)
    }

    fn put(dir: &Dir, expiry: i64) {
        let contents = Draft::new(Revision::generate(), b"payload").seal(&key(), expiry);
        dir.write(&key(), &contents, false).unwrap();
    }

    #[test]
    fn a_record_renewed_since_it_was_listed_is_not_purged() {
        let (dir, _scratch) = opened();
        put(&dir, 50);
        let entry = dir
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .find(|entry| key_of(entry).is_some())
            .unwrap();
        assert!(matches!(dir.sweep(&entry, 50), Ok(Swept::Candidate(_))));
        put(&dir, 51);
        assert_eq!(dir.purge(&key(), 50).unwrap(), Purged::Nothing);
        assert!(matches!(dir.find(&key()), Ok(Found::Record(..))));
        assert_eq!(dir.purge(&key(), 51).unwrap(), Purged::Record);
        assert_eq!(dir.purge(&key(), 51).unwrap(), Purged::Nothing);
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_on_a_removed_file_is_told_from_one_that_counts() {
        let (dir, _scratch) = opened();
        let lock = dir.lock(7, Instant::now()).unwrap();
        assert!(is_linked(&lock.0).unwrap());
        fs::remove_file(dir.root.join(LOCKS).join("07")).unwrap();
        assert!(!is_linked(&lock.0).unwrap());
    }

    #[test]
    fn a_lock_that_was_dropped_can_be_taken_at_once() {
        let (dir, _scratch) = opened();
        let lock = dir.lock(7, Instant::now()).unwrap();
        let refused = dir.lock(7, Instant::now()).map(drop).unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Timeout);
        drop(lock);
        assert!(dir.lock(7, Instant::now()).is_ok());
    }
}
