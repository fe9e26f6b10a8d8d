//! The guard of a held lock, for tasks.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crate::error::any::Error;
use crate::lock::fencing::{FencingGuard, FencingLock};
use crate::lock::held::AcquiredLock;
use crate::lock::io::LockIo;
use crate::lock::tasks::lost::LockLost;
use crate::lock::tasks::manager::TaskLockManager;
use crate::protocol::lock::hold_token::HoldToken;

/// A held lock, for tasks. The drop releases it.
///
/// It is the guard of [threads](crate::lock::LockGuard) with futures: ownership is a random token in the
/// guard, which can be sent to another task, and to another runtime. While the guard lives, a task of the
/// session manager extends its lease every third of the lease, unless the lock has a
/// [`fixed_lease`](crate::aio::Lock::fixed_lease). A lock with a lease can be lost; [`lost`](Self::lost)
/// is a future for `select!`, and [`Lock::hold`](crate::aio::Lock::hold) ends by itself then.
///
/// The drop waits for nothing, sends nothing and spawns nothing: the task that extends leases sends the
/// release, and retries it for as long as the lease. [`release`](Self::release) waits for it and returns
/// a failure. If that task's runtime stands still, that of another runtime sends it after two seconds. If no
/// runtime of the session manager runs any more, the lock ends with its lease.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::aio::SessionManager;
///
/// # async fn example() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let guard = sessions.lock("report").acquire(Duration::from_secs(2)).await?;
/// // … one step …
/// guard.ensure_held().await?;
/// // … the next …
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[must_use = "dropped, the lock is released"]
pub struct LockGuard {
    held: AcquiredLock<TaskLockManager>,
}

impl UnwindSafe for LockGuard {}
impl RefUnwindSafe for LockGuard {}

impl LockGuard {
    pub(crate) fn new(held: AcquiredLock<TaskLockManager>) -> Self {
        Self { held }
    }

    pub(crate) fn held(&self) -> &AcquiredLock<TaskLockManager> {
        &self.held
    }

    pub(crate) fn into_held(self) -> AcquiredLock<TaskLockManager> {
        self.held
    }

    /// Returns a number that grows with every acquisition of any lock of this prefix, in the order
    /// of holding: see [that of threads](crate::lock::LockGuard::fencing_token).
    pub fn fencing_token(&self) -> u64 {
        self.held.lock_lease().fencing
    }

    /// Returns the time for which the lock is surely held without a renewal: the rest of the lease,
    /// less a margin for the round trip and for clocks. This call sends nothing.
    pub fn remaining(&self) -> Duration {
        self.held.remaining()
    }

    /// Returns whether the lock is lost, or may be. This call reads the clock and sends nothing.
    /// Once it has returned true, it always does. False means that the lock was held a moment ago.
    pub fn is_lost(&self) -> bool {
        self.held.is_lost()
    }

    /// Returns the loss of the lock as a future, which does not borrow the guard. It can be cloned. It is
    /// ready by the clock before the lease ends on the server, or as soon as the server reports the loss.
    /// After a release it is never ready.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::aio::SessionManager;
    /// # async fn work() {}
    /// # async fn example(sessions: SessionManager) -> Result<(), rediscope::Error> {
    /// let guard = sessions.lock("report").acquire(Duration::from_secs(2)).await?;
    /// tokio::select! {
    ///     why = guard.lost() => eprintln!("stopped: {why}"),
    ///     () = work() => {}
    /// }
    /// # Ok(()) }
    /// ```
    pub fn lost(&self) -> LockLost {
        let process = &self.held.manager().settings().process;
        LockLost::new([Arc::clone(self.held.lock_lease())], process)
    }

    /// Registers `callback`, which is called once when the lock is lost, on a thread of its own: see
    /// [that of threads](crate::lock::LockGuard::on_lost). It is not called after a release.
    pub fn on_lost(&self, callback: impl FnOnce() + Send + 'static) {
        self.held.on_lost(Box::new(callback));
    }

    /// Checks on the server that this guard still holds the lock, and extends the lease, as
    /// [that of threads](crate::lock::LockGuard::ensure_held) does.
    ///
    /// If the future is dropped, the lease may be extended on the server, and counts as unextended here.
    ///
    /// # Errors
    /// [`LockError::Lost`](crate::error::LockError::Lost). With any other error the server could not be
    /// reached or refused, and the lock is held for [`remaining`](Self::remaining).
    pub fn ensure_held(&self) -> impl Future<Output = Result<(), Error>> + Send {
        self.held.ensure_held()
    }

    /// Returns a second guard of the same lock. The lock is released when the last guard is gone.
    /// This is the only form of re-entrance: acquiring the lock a second time waits for the first
    /// guard.
    pub fn share(&self) -> Self {
        Self::new(self.held.share())
    }

    /// Ends this guard, leaves the lock held and returns the token by which another process
    /// [adopts](crate::aio::Lock::adopt) it. This call sends nothing.
    ///
    /// The lease is not extended any more: the lock must be adopted within [`remaining`](Self::remaining).
    /// Call [`ensure_held`](Self::ensure_held) before, and the whole lease is left, unless it is
    /// [fixed](crate::aio::Lock::fixed_lease). A renewal that is in flight may extend it once more.
    ///
    /// # Errors
    /// [`LockError::Lost`](crate::error::LockError::Lost). [`LockError::Refused`](crate::error::LockError::Refused)
    /// if other guards [share](Self::share) the hold: they keep it, and this guard is dropped.
    pub fn into_token(self) -> Result<HoldToken, Error> {
        self.held.into_token()
    }

    /// Releases the lock, and returns whether that succeeded. If other guards [of the same
    /// lock](Self::share) are alive, this call ends only this guard.
    ///
    /// If the future is dropped, the lock is released as the drop of the guard does, also if the future
    /// was never polled.
    ///
    /// # Errors
    /// [`LockError::Lost`](crate::error::LockError::Lost) if this guard no longer held the lock. Another
    /// caller may have held it meanwhile; no other caller's lock was released. With any other error the
    /// server could not be reached within `checkout_timeout`; the release continues in the background.
    pub fn release(self) -> impl Future<Output = Result<(), Error>> + Send {
        let held = self.held;
        async move {
            let limit = held.manager().call_deadline();
            held.release(limit).await
        }
    }
}

impl FencingGuard for LockGuard {
    fn fencing_lock(&self) -> FencingLock {
        self.held.fencing_lock()
    }
}

/// Shows neither name nor token.
impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("lease", &self.held.lock_lease().lease)
            .field("is_lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
