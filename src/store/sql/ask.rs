//! A statement under way.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

/// How long an answer is waited for that nobody waits for any more. After that its connection is
/// closed.
const LINGER: Duration = Duration::from_secs(10);

/// A future that goes on in a task of its own when it is dropped before it is done, for a while.
///
/// A connection on which an answer is outstanding can neither be lent out (MySQL's protocol does not
/// say which question an answer is to) nor simply be closed: the server goes on with the statement,
/// behind a lock perhaps, and an application whose users try again would pile up such statements
/// until the server takes no more connections, from anybody. So it keeps its place in the pool.
pub(super) struct Ask<T: Send + 'static> {
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
}

impl<T: Send + 'static> Ask<T> {
    pub(super) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            future: Some(Box::pin(future)),
        }
    }
}

impl<T: Send + 'static> Future for Ask<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out while it runs: one that panics is not put back, and so not polled again.
        let Some(mut future) = self.future.take() else {
            return Poll::Pending;
        };
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Ask<T> {
    fn drop(&mut self) {
        // Without a runtime nothing can go on: the connection is closed.
        if let Some(future) = self.future.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move { drop(timeout(LINGER, future).await) });
        }
    }
}
