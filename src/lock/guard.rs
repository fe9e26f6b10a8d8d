//! The guard of a held lock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

use crate::error::any::Error;
use crate::lock::fencing::{FencingGuard, FencingLock};
use crate::lock::held::AcquiredLock;
use crate::lock::io::LockIo;
use crate::lock::manager::LockManager;
use crate::protocol::lock::hold_token::HoldToken;
use crate::sync::cancel;
use crate::sync::now::now;

/// A held lock. The drop releases it.
///
/// Ownership is a random token in the guard, not a thread. The guard can be sent to another thread
/// and released there, and another holder's release does not affect it. While the guard lives, its
/// lease is extended in the background every third of the lease, unless the lock has a
/// [`fixed_lease`](crate::lock::Lock::fixed_lease).
///
/// A lock with a lease can be lost: the process is stopped for longer than the lease, the server is
/// unreachable, or an operator [forces](crate::lock::Lock::force_release) it. Another caller may then
/// hold the lock while this guard still lives. [`is_lost`](Self::is_lost) and
/// [`on_lost`](Self::on_lost) report the loss before the lease ends on the server, and
/// [`ensure_held`](Self::ensure_held) checks it there. With the
/// [`fencing_token`](Self::fencing_token) a protected resource can distinguish an old holder from
/// the new one. For data in the same Redis, [`fenced_by`](crate::Transactional::fenced_by) does
/// that.
///
/// The drop sends the release to the server, for `cleanup_timeout` at most. If that fails, the
/// release is retried in the background. The retries last as long as the lease, and as the session
/// manager or another guard lives. A failure is logged; [`release`](Self::release) returns it. The
/// lease of a forgotten guard (`mem::forget`) is extended until the process ends or the session
/// manager is closed.
///
/// Renewals and releases have a connection of their own, one to each master, so that a busy pool
/// does not delay them. A lock can be released after [`close`](crate::SessionManager::close), which
/// never releases it by itself. After the timeout of `close` the lease is not extended any more,
/// and the guard is lost before the lease ends.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::SessionManager;
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let guard = sessions.lock("report").acquire(Duration::from_secs(2))?;
/// // … one step …
/// guard.ensure_held()?;
/// // … the next …
/// guard.release()?;
/// # Ok(()) }
/// ```
#[must_use = "dropped, the lock is released"]
pub struct LockGuard {
    held: AcquiredLock<LockManager>,
}

impl UnwindSafe for LockGuard {}
impl RefUnwindSafe for LockGuard {}

impl LockGuard {
    pub(crate) fn new(held: AcquiredLock<LockManager>) -> Self {
        Self { held }
    }

    pub(crate) fn held(&self) -> &AcquiredLock<LockManager> {
        &self.held
    }

    /// Releases the lock as the drop does, by `limit` at the latest.
    pub(crate) fn drop_by(&mut self, limit: Instant) {
        self.held.drop_by(Some(limit));
    }

    pub(crate) fn into_held(self) -> AcquiredLock<LockManager> {
        self.held
    }

    /// Returns a number that grows with every acquisition of any lock of this prefix, in the order
    /// of holding. Pass it to the resource that the lock protects. The resource refuses a number
    /// smaller than the largest it has seen. This stops a holder that was paused and does not know
    /// yet that it lost the lock.
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

    /// Checks on the server that this guard still holds the lock, and extends the lease.
    ///
    /// A [fixed](crate::lock::Lock::fixed_lease) lease is not extended. Nor is any lease after the
    /// session manager was [closed](crate::SessionManager::close) and the timeout of `close` is
    /// over.
    ///
    /// The local clock is checked first. In a process that was stopped for longer than the lease,
    /// the call fails with `Lost` and sends nothing.
    ///
    /// # Errors
    /// [`LockError::Lost`](crate::error::LockError::Lost). With any other error the server could not be reached or refused, and
    /// the lock is held for [`remaining`](Self::remaining).
    pub fn ensure_held(&self) -> Result<(), Error> {
        now(self.held.ensure_held())
    }

    /// Registers `callback`, which is called once when the lock is lost: by the clock before its
    /// lease ends on the server, or as soon as the server reports the loss. If the lock is already
    /// lost, the callback is called at once. It is not called after a release.
    ///
    /// The callback runs on a thread of its own; a panic in it is caught and logged. While renewals
    /// of other locks wait for an unresponsive server, the callback may be delayed until one of
    /// those leases ends. If the loss must be known at once, check [`is_lost`](Self::is_lost).
    pub fn on_lost(&self, callback: impl FnOnce() + Send + 'static) {
        self.held.on_lost(Box::new(callback));
    }

    /// Returns a second guard of the same lock. The lock is released when the last guard is gone.
    /// This is the only form of re-entrance: acquiring the lock a second time waits for the first
    /// guard.
    pub fn share(&self) -> Self {
        Self::new(self.held.share())
    }

    /// Ends this guard, leaves the lock held and returns the token by which another process
    /// [adopts](crate::lock::Lock::adopt) it. This call sends nothing.
    ///
    /// The lease is not extended any more: the lock must be adopted within [`remaining`](Self::remaining).
    /// Call [`ensure_held`](Self::ensure_held) before, and the whole lease is left, unless it is
    /// [fixed](crate::lock::Lock::fixed_lease). A renewal that is in flight may extend it once more.
    ///
    /// # Errors
    /// [`LockError::Lost`](crate::error::LockError::Lost). [`LockError::Refused`](crate::error::LockError::Refused)
    /// if other guards [share](Self::share) the hold: they keep it, and this guard is dropped.
    pub fn into_token(self) -> Result<HoldToken, Error> {
        self.held.into_token()
    }

    /// Releases the lock as the drop does, and returns whether that succeeded. If other guards [of
    /// the same lock](Self::share) are alive, this call ends only this guard.
    ///
    /// If the reply to a release is lost, the release is sent again and returns the result of the
    /// first one.
    ///
    /// # Errors
    /// [`LockError::Lost`](crate::error::LockError::Lost) if this guard no longer held the lock. Another caller may have held it
    /// meanwhile; no other caller's lock was released. With any other error the server could not be
    /// reached within `checkout_timeout`; the release continues in the background.
    pub fn release(self) -> Result<(), Error> {
        let limit = self.held.manager().call_deadline();
        cancel::suspended(|| now(self.held.release(limit)))
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
