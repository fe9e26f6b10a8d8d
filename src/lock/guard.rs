//! The guard of a held lock.
//!
//! It counts as held only until its lease may be over, and releases its own token alone.

use std::fmt;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use crate::commit::lock_check::LockCheck;
use crate::error::lock::{LockError, LostReason};
use crate::lock::client::{Via, refused};
use crate::lock::lease::LockLease;
use crate::lock::manager::{LockManager, unexpected_reply};
use crate::protocol::cluster::slot;
use crate::protocol::lock::ownership::LockOwnership;

/// A held lock. Dropped, it is released.
///
/// Ownership is a random token in the guard, not a thread: the guard can be sent to another
/// thread and released there, and a release by another holder does not touch it. While the
/// guard lives, its lease is extended in the background every third of the lease, unless the
/// lock has a [`fixed_lease`](crate::Lock::fixed_lease).
/// A lock with a lease can be lost: the process is stopped for longer than the lease, the
/// server is out of reach, an operator [forces](crate::Lock::force_release) it. Then another
/// caller may hold it while this guard still lives. [`is_lost`](Self::is_lost) and
/// [`on_lost`](Self::on_lost) report it before the lease ends on the server,
/// [`ensure_held`](Self::ensure_held) asks, and [`fencing_token`](Self::fencing_token) lets a
/// protected resource distinguish an old holder from the new one. For data in the same Redis,
/// [`fenced_by`](crate::Transactional::fenced_by) does that.
///
/// Dropping it asks the server to release it, for `cleanup_timeout` at most; if that fails it is
/// tried again in the background, as long as the session manager or another guard lives and the
/// lease lasts. What goes wrong is logged; [`release`](Self::release) returns it. A guard that is
/// forgotten (`mem::forget`) is extended until the process ends or the session manager is closed.
///
/// Renewals and releases have a connection of their own, one to each master: no pool that is busy keeps
/// them waiting, and a lock can be released after [`close`](crate::SessionManager::close), which
/// never releases it by itself. When the time for `close` is over the lease is not extended any more,
/// and the guard is lost before it ends.
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
    manager: Arc<LockManager>,
    lock_lease: Arc<LockLease>,
    /// A request for it may still be under way.
    maybe_in_flight: bool,
    end: GuardState,
}

/// How far a guard's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GuardState {
    Held,
    /// The release may be under way: it is to be sent (again) until it is answered.
    Releasing,
    Released,
}

impl UnwindSafe for LockGuard {}
impl RefUnwindSafe for LockGuard {}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.manager.settings.is_forked_child() {
            // It is the parent's.
            return;
        }
        let limit = Instant::now() + self.manager.settings.cleanup_timeout;
        // A log is the user's, and may panic: that must neither leave a drop nor keep the lock.
        let released = catch_unwind(AssertUnwindSafe(|| self.release_within(limit)));
        if self.end != GuardState::Released {
            self.manager.release_in_background(&self.lock_lease, self.maybe_in_flight);
        }
        if let Ok(Err(error)) = released {
            let log = || tracing::warn!(error = %format_args!("{error:#}"), "a dropped lock was not released in order");
            drop(catch_unwind(AssertUnwindSafe(log)));
        }
    }
}

impl LockGuard {
    pub(crate) fn new(
        manager: Arc<LockManager>,
        lock_lease: Arc<LockLease>,
        maybe_in_flight: bool,
    ) -> Self {
        Self { manager, lock_lease, maybe_in_flight, end: GuardState::Held }
    }

    /// From here on its lease is looked after.
    pub(crate) fn start_renewal(&self) {
        self.manager.renewer.watch(&self.lock_lease, &self.manager.client);
        self.manager.client.warm(Some(slot::of_key(self.lock_lease.names.holders.as_bytes())));
    }

    /// A number that grows with every acquisition of any lock of this prefix, in the order of
    /// holding. Pass it to the resource that the lock protects, and have that refuse a
    /// number smaller than the largest it has seen. This stops a holder that was paused and
    /// does not yet know that it lost the lock.
    pub fn fencing_token(&self) -> u64 {
        self.lock_lease.fencing
    }

    /// For how long the lock is surely held without anything further being done: the lease less a
    /// margin for the round trip and for clocks. Nothing is asked.
    pub fn remaining(&self) -> Duration {
        if self.manager.settings.is_forked_child() {
            return Duration::ZERO;
        }
        match self.lock_lease.lost() {
            Some(_) => Duration::ZERO,
            None => self.lock_lease.valid_until().saturating_duration_since(Instant::now()),
        }
    }

    /// Whether the lock is known to be lost, or may be. Looks at the clock and sends
    /// nothing; once true it stays so. False means that it was not lost a moment ago.
    pub fn is_lost(&self) -> bool {
        self.manager.settings.is_forked_child() || self.lock_lease.lost().is_some()
    }

    /// Asks the server whether the lock is still this guard's, and extends its lease unless that is
    /// [fixed](crate::Lock::fixed_lease), or the session manager was
    /// [closed](crate::SessionManager::close) and the time for that is over.
    ///
    /// The local clock comes first: in a process that was stopped past the lease the call fails with
    /// `Lost` without a question.
    ///
    /// # Errors
    /// [`LockError::Lost`]; otherwise the server could not be asked, and the lock is held for
    /// [`remaining`](Self::remaining).
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.manager.settings.here().map_err(LockError::Checkout)?;
        let lost = |why| Err(LockError::Lost { why });
        if let Some(why) = self.lock_lease.lost() {
            return lost(why);
        }
        let settings = &self.manager.settings;
        let checkout = Instant::now() + settings.checkout_timeout;
        let limit = (checkout + settings.response_timeout).min(self.lock_lease.valid_until());
        let extends = self.lock_lease.renewed && self.manager.renewer.extends();
        let call =
            if extends { self.lock_lease.renewal() } else { self.lock_lease.ownership_query() };
        let calls = std::slice::from_ref(&call);
        let asked = self.manager.client.ask_by(calls, Via::OwnConnection, checkout, limit);
        let answer = match asked {
            Ok(answers) => match answers.values.first() {
                Some(Value::Int(1)) => {
                    if extends {
                        self.lock_lease.extended(answers.sent, answers.took);
                    }
                    Ok(())
                }
                Some(Value::Int(_)) => {
                    self.lock_lease.lose(LostReason::Gone);
                    Ok(())
                }
                Some(Value::ServerError(error)) => Err(refused("ensure_held", error)),
                _ => Err(unexpected_reply("ensure_held")),
            },
            Err(failed) => Err(failed.into_lock_error("ensure_held")),
        };
        // It may have been lost while the request was under way.
        match self.lock_lease.lost() {
            Some(why) => lost(why),
            None => answer,
        }
    }

    /// Registers `callback`, which is called once when the lock is lost: by the clock
    /// before its lease ends on the server, or as soon as the server reports it. If the
    /// lock is lost already it is called at once. It is not called after a release.
    ///
    /// It runs on a thread of its own; a panic in it is caught and logged. While the leases
    /// of other locks are being extended on a server that does not answer, it may be called
    /// as late as one of those ends: check [`is_lost`](Self::is_lost) where it must be
    /// known at once.
    pub fn on_lost(&self, callback: impl FnOnce() + Send + 'static) {
        if self.manager.settings.is_forked_child() {
            return;
        }
        self.lock_lease.on_lost(Box::new(callback));
    }

    /// A second guard of the same lock, which is released when the last of them is gone.
    /// This is all there is of re-entrance; acquiring the lock a second time waits for the
    /// first.
    pub fn share(&self) -> Self {
        self.lock_lease.share();
        Self {
            manager: Arc::clone(&self.manager),
            lock_lease: Arc::clone(&self.lock_lease),
            maybe_in_flight: self.maybe_in_flight,
            end: GuardState::Held,
        }
    }

    /// Releases the lock, as dropping the guard does, and returns how that went. With other
    /// guards [of the same lock](Self::share) alive, it only ends this one.
    ///
    /// A release whose answer was lost is sent again, and answers what the first one did.
    ///
    /// # Errors
    /// [`LockError::Lost`] if it was not this guard's to release any more: another caller
    /// may have held it meanwhile, and no other caller's lock was released. Otherwise the
    /// server could not be asked within `checkout_timeout`; that goes on in the background.
    pub fn release(mut self) -> Result<(), LockError> {
        let settings = &self.manager.settings;
        let limit = Instant::now() + settings.checkout_timeout + settings.response_timeout;
        self.release_within(limit)
    }

    fn release_within(&mut self, limit: Instant) -> Result<(), LockError> {
        self.manager.settings.here().map_err(LockError::Checkout)?;
        if self.end == GuardState::Held {
            self.end = if self.lock_lease.drop_handle() {
                GuardState::Releasing
            } else {
                GuardState::Released
            };
        }
        if self.end == GuardState::Released {
            return Ok(());
        }
        let released = self.manager.release(&self.lock_lease, self.maybe_in_flight, limit);
        // Not before: a panic on the way leaves it to the drop.
        self.end = GuardState::Released;
        released.log()
    }

    /// What a transaction needs to know to be fenced by it.
    pub(crate) fn lock_check(&self) -> LockCheck {
        let lock = LockOwnership::new(&self.lock_lease.names.holders, &self.lock_lease.owner_token);
        LockCheck::new(lock, Arc::<LockLease>::clone(&self.lock_lease))
    }
}

/// Shows neither name nor token.
impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("lease", &self.lock_lease.lease)
            .field("is_lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
