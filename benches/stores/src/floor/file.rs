//! Files, as a careful handler would keep them with `std::fs`: each call does all its work in one visit
//! to a blocking thread, as tokio advises; a lock file makes comparing and writing one step for other
//! processes too; a record is written beside its place and moved there. Nothing is flushed to the disk,
//! as the store flushes no ordinary write, and there is no checksum.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{Floor, MONTH, millis, now, revision, subject};
use crate::Place;
use crate::subject::Subject;

/// Revision and expiry.
const HEAD: usize = 24;
/// As many as the store has.
const LOCKS: u32 = 256;

pub async fn open() -> Place {
    let folder = tempfile::tempdir().expect("a folder");
    let bare = Bare {
        folder: folder.path().join("floor").into(),
    };
    fs::create_dir_all(bare.folder.join("locks")).expect("a folder");
    let url = format!("file://{}", folder.path().join("sessions").display());
    Place {
        name: "file",
        note: "The file system of the folder for temporary files.",
        subjects: vec![subject(bare).await, Subject::session_layer(&url).await],
        empty: None,
        _keeps: Box::new(folder),
    }
}

#[derive(Clone)]
struct Bare {
    folder: Arc<Path>,
}

struct Seen {
    revision: [u8; 16],
    payload: Vec<u8>,
}

impl Floor for Bare {
    type Seen = Seen;

    async fn load(&self, key: &str) -> Option<Seen> {
        let path = self.folder.join(key);
        let read = spawn_blocking(move || {
            let (mut file, head) = find(&path)?;
            let mut payload = Vec::new();
            file.read_to_end(&mut payload).expect("a payload");
            let revision = *head.first_chunk().expect("a revision");
            Some(Seen { revision, payload })
        });
        read.await.expect("no panic")
    }

    async fn update(&self, key: &str, seen: Seen) -> bool {
        let (folder, path) = (Arc::clone(&self.folder), self.folder.join(key));
        let lock = self.lock_of(key);
        let write = spawn_blocking(move || {
            let _lock = wait_for(&lock);
            // Open until the end: to be rid of it may take a wait for the disk, which is not to happen
            // during the rename, with the directory locked.
            let old = find(&path);
            let is_seen = old
                .as_ref()
                .is_some_and(|(_, head)| head[..16] == seen.revision);
            if is_seen {
                write(&folder, &path, &seen.payload);
            }
            is_seen
        });
        write.await.expect("no panic")
    }

    async fn create(&self, key: &str, payload: usize) -> bool {
        let (folder, path) = (Arc::clone(&self.folder), self.folder.join(key));
        let lock = self.lock_of(key);
        let write = spawn_blocking(move || {
            let _lock = wait_for(&lock);
            let is_free = find(&path).is_none();
            if is_free {
                write(&folder, &path, &vec![b'x'; payload]);
            }
            is_free
        });
        write.await.expect("no panic")
    }
}

impl Bare {
    fn lock_of(&self, key: &str) -> PathBuf {
        let sum = key
            .bytes()
            .fold(0_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
        self.folder
            .join("locks")
            .join(format!("{:02x}", sum % LOCKS))
    }
}

/// Closing the file lets the next one in.
fn wait_for(path: &Path) -> File {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).mode(0o600);
    let file = options.open(path).expect("a lock file");
    file.lock().expect("a lock");
    file
}

/// The record, if it is there and alive.
fn find(path: &Path) -> Option<(File, [u8; HEAD])> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => panic!("{error}"),
    };
    let mut head = [0; HEAD];
    file.read_exact(&mut head).expect("a head");
    let expiry = i64::from_le_bytes(*head.last_chunk().expect("an expiry"));
    (expiry > millis(now())).then_some((file, head))
}

fn write(folder: &Path, path: &Path, payload: &[u8]) {
    let mut contents = Vec::with_capacity(HEAD + payload.len());
    contents.extend_from_slice(&revision());
    contents.extend_from_slice(&millis(now() + MONTH).to_le_bytes());
    contents.extend_from_slice(payload);
    let temporary = folder.join(format!("tmp.{:032x}", rand::random::<u128>()));
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(&temporary).expect("a file");
    file.write_all(&contents).expect("to write");
    drop(file);
    fs::rename(&temporary, path).expect("to rename");
}
