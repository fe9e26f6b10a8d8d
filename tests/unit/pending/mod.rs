//! The decisions with futures that are really pending, against a real server.
//!
//! A thread polls each future once. So tests of threads find no future that is not `Send`, and none
//! that leaves a dirty connection when it is dropped.
//!
//! Guarantee: tasks

mod are_send;
mod cluster;
mod conversations;
mod dropped;
mod locks;
mod stub;
#[cfg(feature = "tokio")]
mod tasks;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::sync::now::now;

/// Number of times that a task was woken.
#[derive(Default)]
struct WakeCount(AtomicUsize);

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Polls the future at most `most` times, then drops it. `None`: it was still pending.
///
/// # Panics
/// The future was pending and did not wake its task.
#[track_caller]
fn poll_at_most<T>(most: usize, future: impl Future<Output = T>) -> Option<(T, usize)> {
    let wakes = Arc::new(WakeCount::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut future = pin!(future);
    for pending in 0..most {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return Some((output, pending)),
            Poll::Pending => assert!(wakes.0.load(Ordering::Relaxed) > pending, "not woken"),
        }
    }
    None
}

/// Polls the future to its end.
///
/// # Panics
/// The future was never pending.
#[track_caller]
fn run<T>(future: impl Future<Output = T>) -> T {
    let (output, pending) = poll_at_most(usize::MAX, future).unwrap();
    assert!(pending > 0, "the future was never pending");
    output
}

/// A future that wakes its task and is pending once.
async fn pending_once() {
    let mut polled = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[test]
#[should_panic(expected = "waits for a task")]
fn a_thread_does_not_wait_for_a_task() {
    now(pending_once());
}
