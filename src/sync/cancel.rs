//! Ends the waits of threads from another thread. A call of the server that is under way is not a wait.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Maximum time of one sleep, if the thread's waits may be cancelled.
const TICK: Duration = Duration::from_millis(10);

thread_local! {
    /// Whether the thread's waits may be cancelled now.
    static MAY_BE: Cell<bool> = const { Cell::new(false) };
    /// The tokens of the calls that run on this thread, each inside the one before.
    static TOKENS: RefCell<Vec<Cancel>> = const { RefCell::new(Vec::new()) };
}

/// Ends waits for a connection or a lock, and [`ready`](crate::SessionManager::ready) and
/// [`resolve`](crate::SessionManager::resolve), from another thread.
///
/// Calls inside [`run`](Self::run) that wait when [`cancel`](Self::cancel) is called, or begin to wait
/// later, fail within some milliseconds: with
/// [`CheckoutError::Cancelled`](crate::error::CheckoutError::Cancelled), or
/// [`LockError::Cancelled`](crate::error::LockError::Cancelled). Nothing was applied. Bytes that were sent
/// are not interrupted: a commit ends with its outcome, and so does the release of a lock. `ready` and
/// `resolve` end after the attempt to connect or the query that is under way; `resolve` returns
/// [`UnresolvedReason::Cancelled`](crate::error::UnresolvedReason::Cancelled).
///
/// A clone is the same token. Dropping it does nothing. Tasks need none: a dropped future waits no more.
///
/// ```no_run
/// use std::thread;
/// use rediscope::{Cancel, SessionManager, prelude::*};
///
/// # fn main() -> Result<(), rediscope::Error> {
/// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let (shutdown, accounts) = (Cancel::new(), sessions.transactional());
/// let token = shutdown.clone();
/// let worker = thread::spawn(move || token.run(|| accounts.run(|tx| Ok(tx.incr("hits", 1)))));
/// shutdown.cancel();
/// # let _ = worker.join(); Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    cancelled: Arc<AtomicBool>,
}

impl Cancel {
    /// Creates a token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the waits of all calls inside [`run`](Self::run) of this token and its clones, now and
    /// later. It waits for nothing.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Calls `calls` on this thread, whose waits the token ends. It may be nested: each token around a
    /// call ends its waits.
    pub fn run<T>(&self, calls: impl FnOnce() -> T) -> T {
        /// Restores the former state, also after a panic.
        struct Running(bool);

        impl Drop for Running {
            fn drop(&mut self) {
                let _: Result<_, _> = TOKENS.try_with(|tokens| tokens.borrow_mut().pop());
                set(self.0);
            }
        }

        if TOKENS.try_with(|tokens| tokens.borrow_mut().push(self.clone())).is_err() {
            return calls();
        }
        let _running = Running(set(true));
        calls()
    }
}

/// Calls `calls`, whose waits are not cancelled: they clean up.
pub(crate) fn suspended<T>(calls: impl FnOnce() -> T) -> T {
    /// Restores the former state, also after a panic.
    struct Suspended(bool);

    impl Drop for Suspended {
        fn drop(&mut self) {
            set(self.0);
        }
    }

    let _suspended = Suspended(set(false));
    calls()
}

/// Whether the waits of this thread are cancelled.
#[inline]
pub(crate) fn is_cancelled() -> bool {
    may_be() && any_token_is()
}

/// The time of one sleep of at most `left`, after which [`is_cancelled`] is asked again.
#[inline]
pub(crate) fn tick(left: Duration) -> Duration {
    if may_be() { left.min(TICK) } else { left }
}

#[inline]
fn may_be() -> bool {
    MAY_BE.try_with(Cell::get).unwrap_or(false)
}

/// Returns the former value.
fn set(may_be: bool) -> bool {
    MAY_BE.try_with(|cell| cell.replace(may_be)).unwrap_or(false)
}

#[cold]
fn any_token_is() -> bool {
    TOKENS.try_with(|tokens| tokens.borrow().iter().any(Cancel::is_cancelled)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_counts_inside_its_calls_only_and_not_while_they_clean_up() {
        let (outer, inner) = (Cancel::new(), Cancel::new());
        let long = Duration::from_secs(9);
        assert_eq!((is_cancelled(), tick(long)), (false, long));
        outer.run(|| {
            assert_eq!((is_cancelled(), tick(long)), (false, TICK));
            inner.run(|| {
                outer.clone().cancel();
                assert!(is_cancelled());
                suspended(|| assert_eq!((is_cancelled(), tick(long)), (false, long)));
                assert!(is_cancelled() && !inner.is_cancelled());
            });
            assert!(is_cancelled());
        });
        inner.run(|| assert!(!is_cancelled()));
        let caught = std::panic::catch_unwind(|| outer.run(|| -> () { panic!("a call") }));
        assert!(caught.is_err() && outer.is_cancelled() && !is_cancelled());
    }
}
