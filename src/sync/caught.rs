//! The panics of the user's code, caught: of a log in a future, and of an executor's waker.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
#[cfg(feature = "tokio")]
use std::sync::Arc;
#[cfg(feature = "tokio")]
use std::task::{Context, Wake};
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
    waking(|| waker.wake());
}

/// Calls what wakes one task. `None`: its executor panicked.
pub(crate) fn waking<T>(wake: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(wake)).ok()
}

/// Polls a future of tokio's, which is woken with others one after another, with a waker that does not panic.
#[cfg(feature = "tokio")]
pub(crate) async fn woken_apart<T>(future: impl Future<Output = T>) -> T {
    let (mut future, mut known) = (pin!(future), None::<(Arc<Apart>, Waker)>);
    poll_fn(|context| {
        let same = known.take().filter(|(of, _)| of.0.will_wake(context.waker()));
        let (of, waker) = same.unwrap_or_else(|| {
            let of = Arc::new(Apart(context.waker().clone()));
            (Arc::clone(&of), Waker::from(of))
        });
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        known = Some((of, waker));
        polled
    })
    .await
}

/// A waker whose panic stays here.
#[cfg(feature = "tokio")]
struct Apart(Waker);

#[cfg(feature = "tokio")]
impl Wake for Apart {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        waking(|| self.0.wake_by_ref());
    }
}
