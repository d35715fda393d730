//! The stores that keep something, each with a place of its own.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::path::{Path, PathBuf};

use session_layer::AnyStore;
use session_layer::store::{FileStore, MemoryStore, SqliteStore};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Memory,
    File,
    Sqlite,
}

pub const ALL: [Backend; 3] = [Backend::Memory, Backend::File, Backend::Sqlite];

/// A store, and the folder that goes with it.
pub struct Place {
    pub store: AnyStore,
    folder: tempfile::TempDir,
}

impl Place {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Backend {
    pub async fn new_place(self) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store = self.open(folder.path()).await;
        Place { store, folder }
    }

    pub async fn open(self, folder: &Path) -> AnyStore {
        let path = |name: &str| -> PathBuf { folder.join(name) };
        match self {
            Self::Memory => AnyStore::new(MemoryStore::new()),
            Self::File => AnyStore::new(FileStore::open(path("sessions")).await.unwrap()),
            Self::Sqlite => AnyStore::new(SqliteStore::open(path("sessions.db")).await.unwrap()),
        }
    }
}
