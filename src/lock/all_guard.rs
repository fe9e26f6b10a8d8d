//! The guard of several locks that were acquired together.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::any::Error;
use crate::lock::all::{HeldAll, all_released, ensure_all, release_all};
use crate::lock::guard::LockGuard;
use crate::lock::io::LockIo;
use crate::lock::manager::LockManager;
use crate::sync::cancel;
use crate::sync::lock;
use crate::sync::now::now;

/// Several held locks, each with its name. The drop releases them.
///
/// [`LockAll::acquire`](crate::lock::LockAll::acquire) returns it. Each of the locks is held as by a
/// [`LockGuard`] of its own, which [`get`](Self::get) returns: it has a lease and a fencing token of its
/// own, and can be lost alone. This guard counts as lost as soon as one of them is.
///
/// The drop releases the last name first, each as the drop of a [`LockGuard`] does, for `cleanup_timeout` at
/// most for all of them. [`release`](Self::release) returns a failure.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::SessionManager;
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let both = sessions.lock_all(["account:7", "account:9"]).acquire(Duration::from_secs(2))?;
/// for (name, token) in both.fencing_tokens() {
///     println!("{name} as number {token}");
/// }
/// both.ensure_held()?;
/// both.release()?;
/// # Ok(()) }
/// ```
#[must_use = "dropped, the locks are released"]
pub struct LockAllGuard {
    /// The last name is first, because it is dropped first.
    guards: Vec<(Arc<str>, LockGuard)>,
    manager: Arc<LockManager>,
}

impl UnwindSafe for LockAllGuard {}
impl RefUnwindSafe for LockAllGuard {}

impl LockAllGuard {
    pub(crate) fn new(held: HeldAll<LockManager>, manager: Arc<LockManager>) -> Self {
        let guards = held.into_iter().rev().map(|(name, held)| (name, LockGuard::new(held)));
        Self { guards: guards.collect(), manager }
    }

    /// The guards, in the order of the names.
    fn guards(&self) -> impl Iterator<Item = &LockGuard> {
        self.guards.iter().rev().map(|(_, guard)| guard)
    }

    /// Returns the guard of one of the locks, for [`fenced_by`](crate::Transactional::fenced_by) or
    /// [`share`](LockGuard::share). `None`: the lock is none of these.
    pub fn get(&self, name: impl AsRef<str>) -> Option<&LockGuard> {
        let name = name.as_ref();
        self.guards.iter().find_map(|(of, guard)| (&**of == name).then_some(guard))
    }

    /// Returns the [fencing token](LockGuard::fencing_token) of each lock with its name, in the order of
    /// the names.
    pub fn fencing_tokens(&self) -> impl Iterator<Item = (&str, u64)> {
        self.guards.iter().rev().map(|(name, guard)| (&**name, guard.fencing_token()))
    }

    /// Returns the time for which all locks are surely held without a renewal. This call sends nothing.
    pub fn remaining(&self) -> Duration {
        self.guards().map(LockGuard::remaining).min().unwrap_or_default()
    }

    /// Returns whether one of the locks is lost, or may be. This call reads the clock and sends nothing.
    pub fn is_lost(&self) -> bool {
        self.guards().any(LockGuard::is_lost)
    }

    /// Registers `callback`, which is called once when the first of the locks is lost: see
    /// [`LockGuard::on_lost`].
    pub fn on_lost(&self, callback: impl FnOnce() + Send + 'static) {
        let callback = Arc::new(Mutex::new(Some(callback)));
        for guard in self.guards() {
            let callback = Arc::clone(&callback);
            guard.on_lost(move || {
                let callback = lock(&callback).take();
                callback.into_iter().for_each(|callback| callback());
            });
        }
    }

    /// Checks on the server that all locks are still held, and extends their leases, as
    /// [`LockGuard::ensure_held`] does: one round trip for each name, in the time that one call has.
    ///
    /// # Errors
    /// [`LockError::Lost`](crate::error::LockError::Lost) if any of them is lost. With any other error the
    /// server could not be reached or refused, and the locks are held for [`remaining`](Self::remaining).
    pub fn ensure_held(&self) -> Result<(), Error> {
        now(ensure_all(self.guards().map(LockGuard::held)))
    }

    /// Releases all locks, and returns whether that succeeded.
    ///
    /// # Errors
    /// [`LockError::Lost`](crate::error::LockError::Lost) if one of the locks was no longer held; otherwise
    /// the first failure, in the order of the names, as [`LockGuard::release`] returns it. The other locks
    /// are released all the same. [`release_each`](Self::release_each) returns what became of each.
    pub fn release(self) -> Result<(), Error> {
        all_released(self.release_each())
    }

    /// Releases all locks, and returns the result for each name, in the order of the names: see
    /// [`LockGuard::release`].
    #[must_use = "each result has the failure of a release"]
    pub fn release_each(mut self) -> Vec<(Arc<str>, Result<(), Error>)> {
        let limit = self.manager.call_deadline();
        let guards = std::mem::take(&mut self.guards).into_iter().rev();
        let held = guards.map(|(name, guard)| (name, guard.into_held()));
        cancel::suspended(|| now(release_all(held.collect(), limit)))
    }
}

impl Drop for LockAllGuard {
    fn drop(&mut self) {
        let limit = Instant::now() + self.manager.settings.cleanup_timeout;
        self.guards.iter_mut().for_each(|(_, guard)| guard.drop_by(limit));
    }
}

/// Shows no name and no token.
impl fmt::Debug for LockAllGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockAllGuard")
            .field("locks", &self.guards.len())
            .field("is_lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
