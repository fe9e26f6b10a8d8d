//! The handle of several locks that are acquired together. It holds no lock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::error::lock::LockError;
use crate::lock::all::AllTarget;
use crate::lock::all_guard::LockAllGuard;
use crate::lock::held::after_release;
use crate::lock::manager::LockManager;
use crate::sync::now::now;

/// Several locks by name, which are acquired together: all of them or none.
///
/// [`SessionManager::lock_all`](crate::SessionManager::lock_all) returns it. Each name is the lock that
/// [`lock`](crate::SessionManager::lock) has, so both exclude each other. A handle is cheap to clone, and
/// threads can share it. It holds no lock, and dropping it does nothing.
///
/// The names are acquired one after another, in the order of their bytes, whatever the order in the call:
/// two callers of `lock_all` never wait for each other in a circle. (A caller that holds one lock and waits
/// for another by itself has to keep to that order.) A name that is repeated counts once. Each name costs a
/// round trip, and in a cluster the names may be in any slots.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::SessionManager;
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let accounts = sessions.lock_all(["account:7", "account:9"]).lease(Duration::from_secs(10));
/// let both = accounts.acquire(Duration::from_secs(2))?;
/// // … the transfer …
/// both.release()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "nothing is acquired before acquire()"]
pub struct LockAll {
    target: AllTarget<LockManager>,
}

impl UnwindSafe for LockAll {}
impl RefUnwindSafe for LockAll {}

impl LockAll {
    pub(crate) fn new(
        manager: &Arc<LockManager>,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Self {
        Self { target: AllTarget::new(manager, names) }
    }

    /// Sets the lease of each lock: see [`Lock::lease`](crate::lock::Lock::lease). Default 30 s, 10 ms to a
    /// day.
    pub fn lease(self, lease: Duration) -> Self {
        Self { target: self.target.set(|lock| lock.set_lease(lease)) }
    }

    /// Sets the label of each lock: see [`Lock::label`](crate::lock::Lock::label). Default none, at most 256
    /// bytes.
    pub fn label(self, label: impl Into<Arc<str>>) -> Self {
        let label = label.into();
        Self { target: self.target.set(|lock| lock.set_label(Arc::clone(&label))) }
    }

    /// Serves callers of each name in the order of arrival: see [`Lock::fair`](crate::lock::Lock::fair).
    pub fn fair(self) -> Self {
        Self { target: self.target.set(|lock| lock.request.fair = true) }
    }

    /// Leaves the leases unextended: see [`Lock::fixed_lease`](crate::lock::Lock::fixed_lease). The lease of
    /// the first name begins before that of the last one, which may be waited for meanwhile.
    pub fn fixed_lease(self) -> Self {
        Self { target: self.target.set(|lock| lock.request.renewed = false) }
    }

    /// Makes each lock count as acquired only if `replicas` replicas have it too: see
    /// [`Lock::wait_replicas`](crate::lock::Lock::wait_replicas). Default: no replicas.
    ///
    /// Behind it: [`WAIT`](https://redis.io/docs/latest/commands/wait/).
    pub fn wait_replicas(self, replicas: u32, timeout: Duration) -> Self {
        Self { target: self.target.set(|lock| lock.set_replicas(replicas, timeout)) }
    }

    /// Acquires all locks, and waits up to `wait` for all of them together. While the call waits for a
    /// name, it holds those before it, and their leases are extended.
    ///
    /// The call returns at most one `response_timeout` for each name after `wait`, and, if it fails, at most
    /// one `cleanup_timeout` later, in which it releases what it has acquired; what is left is released in
    /// the background.
    ///
    /// # Errors
    /// [`LockError::Refused`] if there is no name, or an empty one: nothing was sent. The errors of
    /// [`Lock::acquire`](crate::lock::Lock::acquire): none of the locks is held, or one may be if
    /// [`applied`](Error::applied) is `Unknown`. [`LockError::Lost`] if a lock was lost while the call
    /// waited for another one.
    pub fn acquire(&self, wait: Duration) -> Result<LockAllGuard, Error> {
        let held = now(self.target.acquire(wait))?;
        Ok(LockAllGuard::new(held, Arc::clone(&self.target.manager)))
    }

    /// Acquires all locks if they are free, and returns `None` if another caller holds one of them.
    ///
    /// # Errors
    /// The server could not be reached within `response_timeout` for a name, or refused.
    pub fn try_acquire(&self) -> Result<Option<LockAllGuard>, Error> {
        match self.acquire(Duration::ZERO) {
            Ok(guard) => Ok(Some(guard)),
            Err(Error::Lock(LockError::Timeout { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Acquires all locks, runs `closure` and releases the locks, even if `closure` panics.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let accounts = sessions.lock_all(["account:7", "account:9"]);
    /// let moved = accounts.run(Duration::from_secs(2), |both| {
    ///     both.ensure_held()?;
    ///     Ok(30)
    /// })?;
    /// # let _: i32 = moved; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The errors of [`acquire`](Self::acquire): the closure was not run. The closure's own error.
    /// The errors of [`LockAllGuard::release`]: the closure was run, and `Lost` means that another
    /// caller may have run at the same time.
    pub fn run<R: WithError<E>, E>(
        &self,
        wait: Duration,
        closure: impl FnOnce(&LockAllGuard) -> Result<R, E>,
    ) -> Result<R, Error> {
        self.run_with(wait, |guard| closure(guard).map_err(R::own))
    }

    /// Like [`run`](Self::run), for a closure with an error type of its own.
    ///
    /// # Errors
    /// The closure's own error, or this crate's, converted.
    pub fn run_with<R, E: From<Error>>(
        &self,
        wait: Duration,
        closure: impl FnOnce(&LockAllGuard) -> Result<R, E>,
    ) -> Result<R, E> {
        let guard = self.acquire(wait)?;
        let result = closure(&guard);
        let released = guard.release();
        after_release(&*self.target.manager, result, released)
    }
}

/// Shows no name.
impl fmt::Debug for LockAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockAll").field("locks", &self.target.count()).finish_non_exhaustive()
    }
}
