//! Runtimes for tests of tasks, and futures that are dropped at a chosen poll.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use tokio::runtime::{Builder, Runtime};

/// A runtime whose tasks run on the thread that blocks on it.
#[must_use]
pub fn single() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A runtime of two threads.
#[must_use]
pub fn several() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Polls the future once, and is not woken by it.
pub fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls the future at most `most` times, each time it was woken, then drops it. `None`: it was still pending.
pub async fn poll_at_most<T>(most: usize, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut polls) = (pin!(future), 0);
    poll_fn(|context| {
        if polls == most {
            return Poll::Ready(None);
        }
        polls += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == most => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The waker of an executor that panics.
#[must_use]
pub fn panicking_waker() -> Waker {
    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("of the executor");
        }
    }

    Waker::from(Arc::new(Panics))
}
