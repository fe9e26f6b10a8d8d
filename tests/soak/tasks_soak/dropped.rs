//! A future that is dropped after a number of polls, and futures that are polled side by side.

use std::pin::Pin;
use std::task::{Context, Poll};

/// Polls a future at most a number of times, then drops it.
pub(super) struct DropAfter<F> {
    future: Option<Pin<Box<F>>>,
    polls: u32,
    /// Whether it is polled again without being woken.
    eager: bool,
}

impl<F> DropAfter<F> {
    pub(super) fn new(polls: u32, future: F) -> Self {
        Self { future: Some(Box::pin(future)), polls, eager: false }
    }

    /// Polls the future whenever its task is run next, so that it is dropped at any step of what it waits for.
    pub(super) fn eager(polls: u32, future: F) -> Self {
        Self { eager: true, ..Self::new(polls, future) }
    }
}

impl<F: Future> Future for DropAfter<F> {
    /// `None`: dropped.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(left) = self.polls.checked_sub(1) else {
            self.future = None;
            return Poll::Ready(None);
        };
        self.polls = left;
        let future = self.future.as_mut().expect("a future is not polled after its end");
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => {
                self.future = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                if self.eager {
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

/// Polls all futures until each is ready.
pub(super) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut all_ready = true;
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            let Some(waiting) = future else { continue };
            match waiting.as_mut().poll(context) {
                Poll::Ready(ready) => (*future, *output) = (None, Some(ready)),
                Poll::Pending => all_ready = false,
            }
        }
        if all_ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().map(|output| output.expect("each future is ready")).collect()
}
