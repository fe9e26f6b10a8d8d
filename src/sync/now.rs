//! Runs a decision on the caller's thread: each future of the side of threads is ready when it is
//! first polled.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tracing::Span;

/// Polls `future` once and returns its output. A large future is pinned by the caller, so that it is
/// not moved.
///
/// # Panics
/// The future waits for a task. No future of the side of threads does.
#[inline(always)]
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        #[expect(clippy::unreachable, reason = "each of its waits blocks the thread instead")]
        Poll::Pending => unreachable!("a future of the side of threads waits for a task"),
    }
}

/// Polls a decision once, inside a span.
#[inline(always)]
pub(crate) fn now_in<T>(span: &Span, future: impl Future<Output = T>) -> T {
    let _in = span.enter();
    now(future)
}
