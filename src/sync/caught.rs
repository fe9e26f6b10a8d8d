//! The panics of the user's code, caught: of a log in a future, and of an executor's waker.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Poll, Waker};

/// Runs `future` to its end. `None`: it panicked.
pub(crate) async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// Wakes a task, of which others know nothing: a panic of its executor is not theirs.
pub(crate) fn wake(waker: Waker) {
    let _: Result<(), _> = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}
