//! The loss of a lock, as a future.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

use crate::error::lock::LostReason;
use crate::lock::lease::LockLease;
use crate::process::current::Process;
use crate::sync::timer::DeadlineTimer;

/// The loss of a lock, or of the first of several: ready when the lock is lost. It never is after a
/// release.
///
/// [`LockGuard::lost`](crate::aio::LockGuard::lost) and
/// [`LockAllGuard::lost`](crate::aio::LockAllGuard::lost) return it. It can be cloned and sent to other
/// tasks, does not borrow the guard, and does not keep the lock. Dropping it does nothing.
///
/// ```no_run
/// # use std::time::Duration;
/// # use rediscope::aio::SessionManager;
/// # async fn work() {}
/// # async fn example(sessions: SessionManager) -> Result<(), rediscope::Error> {
/// let guard = sessions.lock("report").acquire(Duration::from_secs(2)).await?;
/// let lost = guard.lost();
/// tokio::select! {
///     why = lost => eprintln!("stopped: {why}"),
///     () = work() => guard.release().await?,
/// }
/// # Ok(()) }
/// ```
#[must_use = "a future does nothing unless it is polled"]
pub struct LockLost {
    watched: Vec<WatchedLease>,
    timer: DeadlineTimer,
}

/// A lease whose loss wakes a task.
struct WatchedLease {
    lock_lease: Arc<LockLease>,
    /// Its number among the lease's watchers.
    watcher: Option<u64>,
    /// In a forked child the lease's mutex may stay locked.
    process: Process,
}

impl LockLost {
    pub(crate) fn new(
        lock_leases: impl IntoIterator<Item = Arc<LockLease>>,
        process: &Process,
    ) -> Self {
        let watched =
            |lock_lease| WatchedLease { lock_lease, watcher: None, process: process.clone() };
        Self {
            watched: lock_leases.into_iter().map(watched).collect(),
            timer: DeadlineTimer::default(),
        }
    }

    fn reason(&self) -> Option<LostReason> {
        self.watched.iter().find_map(|watched| watched.lock_lease.lost())
    }
}

impl Clone for LockLost {
    fn clone(&self) -> Self {
        let again = |watched: &WatchedLease| WatchedLease {
            lock_lease: Arc::clone(&watched.lock_lease),
            watcher: None,
            process: watched.process.clone(),
        };
        Self { watched: self.watched.iter().map(again).collect(), timer: DeadlineTimer::default() }
    }
}

impl Drop for WatchedLease {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher
            && !self.process.is_forked_child()
        {
            self.lock_lease.unwatch(watcher);
        }
    }
}

impl Future for LockLost {
    type Output = LostReason;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<LostReason> {
        let this = &mut *self;
        loop {
            // `None`: the lock is released or lost.
            let watch = |watched: &mut WatchedLease| {
                watched.lock_lease.watch_loss(&mut watched.watcher, context.waker())
            };
            let valid_until = this.watched.iter_mut().filter_map(watch).min();
            // By the clock too, so that a loss is seen while no task extends leases.
            if let Some(why) = this.reason() {
                return Poll::Ready(why);
            }
            let Some(valid_until) = valid_until else { return Poll::Pending };
            if Handle::try_current().is_err() || this.timer.poll(context, valid_until).is_pending()
            {
                return Poll::Pending;
            }
        }
    }
}

/// Shows neither name nor token.
impl fmt::Debug for LockLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockLost").field("lost", &self.reason()).finish()
    }
}
