//! Several calls of the store at once.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// How many, at most, so that one request does not take all of a pool's connections.
pub(crate) const AT_ONCE: usize = 8;

enum Job<F: Future> {
    Running(Pin<Box<F>>),
    Done(F::Output),
}

/// The answers, in the order of the `jobs`. Few of them: whenever one can go on, all are asked.
pub(crate) async fn all<F: Future>(jobs: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F::Output: Unpin,
{
    let running = jobs.into_iter().map(|job| Job::Running(Box::pin(job)));
    let mut jobs: Vec<_> = running.collect();
    poll_fn(|cx| {
        let mut all_done = true;
        for job in &mut jobs {
            if let Job::Running(running) = job {
                match running.as_mut().poll(cx) {
                    Poll::Ready(done) => *job = Job::Done(done),
                    Poll::Pending => all_done = false,
                }
            }
        }
        if all_done {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    let done = jobs.into_iter().filter_map(|job| match job {
        Job::Done(done) => Some(done),
        Job::Running(_) => None,
    });
    done.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn they_run_at_once_and_answer_in_their_order() {
        let begun = tokio::time::Instant::now();
        let jobs = [30, 10, 20].map(|ms| async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            ms
        });
        assert_eq!(all(jobs).await, [30, 10, 20]);
        assert_eq!(begun.elapsed(), Duration::from_millis(30));
        assert!(all(Vec::<std::future::Ready<()>>::new()).await.is_empty());
    }
}
