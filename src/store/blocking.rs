//! Work that blocks, off the async threads.

use super::{StoreError, StoreErrorKind};

/// Runs `work` on tokio's pool for blocking work. It runs to its end even if nobody waits any more.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => Err(StoreError::new(
            StoreErrorKind::Other,
            "the store's work panicked",
        )
        .with_source(error)),
        Err(error) => Err(StoreError::new(
            StoreErrorKind::Unavailable,
            "the runtime is shutting down",
        )
        .with_source(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_not_a_panic_of_the_caller() {
        let answer = blocking::<()>(|| panic!("broken")).await;
        assert_eq!(answer.unwrap_err().kind(), StoreErrorKind::Other);
    }
}
