//! The index by which MongoDB removes expired documents.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::error::ErrorKind;
use mongodb::options::IndexOptions;
use mongodb::{Collection, IndexModel};
use tokio::sync::Mutex;

use super::failure::failed;
use crate::store::{StoreError, StoreErrorKind};

/// Makes the index. One that somebody else has made, under another name or to remove documents somewhat
/// later, does as well.
pub(super) async fn make(collection: &Collection<Document>) -> Result<(), StoreError> {
    let options = IndexOptions::builder().expire_after(Duration::ZERO).build();
    let index = IndexModel::builder()
        .keys(doc! { "expires_at": 1 })
        .options(options)
        .build();
    match collection.create_index(index).await {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) && has_another(collection).await => Ok(()),
        Err(error) => Err(failed("cannot make the index on `expires_at`", &error)),
    }
}

/// IndexOptionsConflict or IndexKeySpecsConflict.
fn is_conflict(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(found) if matches!(found.code, 85 | 86))
}

/// Whether there is an index that removes every expired document, sooner or later.
async fn has_another(collection: &Collection<Document>) -> bool {
    let Ok(mut indexes) = collection.list_indexes().await else {
        return false;
    };
    while let Ok(true) = indexes.advance().await {
        let found = indexes.deserialize_current();
        let removes = found.is_ok_and(|index| {
            let options = index.options.unwrap_or_default();
            index.keys.keys().eq(["expires_at"])
                && options.expire_after.is_some()
                && options.partial_filter_expression.is_none()
        });
        if removes {
            return true;
        }
    }
    false
}

/// Whether this store has made the index.
#[derive(Debug)]
pub(super) struct Index {
    made: Arc<AtomicBool>,
    turn: Arc<Mutex<()>>,
}

impl Index {
    /// `wanted`: whether it is this store's to make.
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            made: Arc::new(AtomicBool::new(!wanted)),
            turn: Arc::default(),
        }
    }

    /// Makes the index before the first record of this store. Whoever comes while it is being made
    /// goes on without it: nothing expires so soon. So does, after `patience`, who began it: on a large
    /// collection the server goes on building it while sessions come and go.
    pub(super) async fn ready(
        &self,
        collection: &Collection<Document>,
        patience: Duration,
    ) -> Result<(), StoreError> {
        if self.made.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() else {
            return Ok(());
        };
        let (made, collection) = (Arc::clone(&self.made), collection.clone());
        let making = tokio::spawn(async move {
            let answer = make(&collection).await;
            match &answer {
                Ok(()) => made.store(true, Ordering::Relaxed),
                Err(error) => tracing::warn!(%error, "no index on expires_at"),
            }
            drop(turn);
            answer
        });
        match tokio::time::timeout(patience, making).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(StoreError::new(
                StoreErrorKind::Other,
                "the runtime is shutting down",
            )
            .with_source(error)),
            Err(_) => Ok(()),
        }
    }
}
