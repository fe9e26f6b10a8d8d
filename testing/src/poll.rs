//! Waiting for an event by asking again, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// Delay between two checks of a poll, for the first ones and later.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(5)];

/// Polls until `f` is true: what a test does instead of sleeping for a fixed time.
///
/// ```
/// # use std::{sync::atomic::{AtomicBool, Ordering}, thread, time::Duration};
/// let done = AtomicBool::new(false);
/// thread::scope(|scope| {
///     scope.spawn(|| done.store(true, Ordering::SeqCst));
///     rediscope_testing::eventually(Duration::from_secs(10), "the worker is done", || done.load(Ordering::SeqCst));
/// });
/// ```
///
/// # Panics
/// With `what`, if that takes longer than `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut f: impl FnMut() -> bool) {
    if try_for(deadline, || f().then_some(())).is_none() {
        panic!("not within {deadline:?}: {what}");
    }
}

/// Polls until `f` gives a value; `None` if that takes longer than `deadline`. `f` is called at least once, and once
/// more after the deadline.
pub fn try_for<T>(deadline: Duration, mut f: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let late = begun.elapsed() >= deadline;
        let value = f();
        if value.is_some() || late {
            return value;
        }
        thread::sleep(PAUSES[usize::from(begun.elapsed() > Duration::from_millis(20))]);
    }
}
