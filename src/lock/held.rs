//! A held lock: its check on the server, and its release.
//!
//! It counts as held only until its lease may have ended, and it releases only its own token.

use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scopeguard::guard;

use crate::commit::lock_check::LockCheck;
use crate::error::any::Error;
use crate::error::lock::LostReason;
use crate::lock::callbacks::Callback;
use crate::lock::client::Via;
use crate::lock::fencing::FencingLock;
use crate::lock::given::GivenLock;
use crate::lock::io::{LockIo, NextWaiter, Renewals};
use crate::lock::lease::LockLease;
use crate::protocol::cluster::slot;
use crate::protocol::lock::hold_token::HoldToken;
use crate::protocol::lock::lease::{NextHolder, given_token, release};
use crate::protocol::lock::ownership::LockOwnership;
use crate::protocol::lock::script::ScriptCall;
use crate::sync::caught::caught;

/// A held lock. The drop releases it, unless other guards share it.
pub(crate) struct AcquiredLock<M: LockIo> {
    release: LockRelease<M>,
}

/// The progress of a guard's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GuardState {
    Held,
    /// The release may be in flight. It is sent again until a reply arrives.
    Releasing,
    Released,
}

impl<M: LockIo> Drop for AcquiredLock<M> {
    fn drop(&mut self) {
        self.drop_by(None);
    }
}

impl<M: LockIo> AcquiredLock<M> {
    pub(crate) fn new(manager: Arc<M>, lock_lease: Arc<LockLease>) -> Self {
        Self { release: LockRelease { manager, lock_lease, end: GuardState::Held } }
    }

    pub(crate) fn manager(&self) -> &M {
        &self.release.manager
    }

    pub(crate) fn lock_lease(&self) -> &Arc<LockLease> {
        &self.release.lock_lease
    }

    /// Returns the data that a fenced transaction checks.
    pub(crate) fn fencing_lock(&self) -> FencingLock {
        let lock_lease = self.lock_lease();
        let lock = LockOwnership::new(&lock_lease.names.holders, &lock_lease.owner_token);
        FencingLock(LockCheck::new(lock, Arc::<LockLease>::clone(lock_lease)))
    }

    /// Returns the time for which the lock is surely held without a renewal.
    pub(crate) fn remaining(&self) -> Duration {
        match self.is_lost() {
            true => Duration::ZERO,
            false => self.lock_lease().valid_until().saturating_duration_since(Instant::now()),
        }
    }

    /// Returns whether the lock is lost, or may be.
    pub(crate) fn is_lost(&self) -> bool {
        self.manager().settings().is_forked_child() || self.lock_lease().lost().is_some()
    }

    /// Has `callback` called once when the lock is lost.
    pub(crate) fn on_lost(&self, callback: Callback) {
        if !self.manager().settings().is_forked_child() {
            self.lock_lease().on_lost(callback);
        }
    }

    /// Starts the renewal of the lease.
    pub(crate) fn start_renewal(&self) {
        let lock_lease = self.lock_lease();
        self.manager().renewals().watch(lock_lease);
        self.manager().client().warm(slot::of_key(lock_lease.names.holders.as_bytes()));
    }

    /// Returns another guard's share of the lock.
    pub(crate) fn share(&self) -> Self {
        self.lock_lease().share();
        Self::new(Arc::clone(&self.release.manager), Arc::clone(self.lock_lease()))
    }

    /// Ends the guard and leaves the lock held, for another process to adopt.
    pub(crate) fn into_token(mut self) -> Result<HoldToken, Error> {
        let LockRelease { manager, lock_lease, end } = &mut self.release;
        manager.settings().here()?;
        if let Some(why) = lock_lease.lost() {
            return Err(Error::lock_lost(why));
        }
        if !lock_lease.drop_only_handle() {
            let reason = "other guards share the hold: release them first";
            return Err(Error::lock_refused("guard", reason));
        }
        // From here on no renewal extends the lease; one that is in flight may, so that a hold that was
        // lost meanwhile is released.
        if let Some(why) = lock_lease.end() {
            *end = GuardState::Releasing;
            return Err(Error::lock_lost(why));
        }
        *end = GuardState::Released;
        manager.renewals().forget(lock_lease);
        Ok(lock_lease.hold_token())
    }

    /// Checks on the server that the lock is still held, and extends its lease. If the future is
    /// dropped, the lease may be extended on the server, and counts as unextended here.
    pub(crate) async fn ensure_held(&self) -> Result<(), Error> {
        self.ensure_held_by(self.manager().call_deadline()).await
    }

    /// The same, by `limit` at the latest.
    pub(crate) async fn ensure_held_by(&self, limit: Instant) -> Result<(), Error> {
        let (manager, lock_lease) = (self.manager(), self.lock_lease());
        manager.settings().here()?;
        if let Some(why) = lock_lease.lost() {
            return Err(Error::lock_lost(why));
        }
        let limit = limit.min(lock_lease.valid_until());
        let extends = lock_lease.renewed && manager.renewals().extends();
        let call = if extends { lock_lease.renewal() } else { lock_lease.ownership_query() };
        let client = manager.client();
        let asked = client.ask_one("ensure_held", &call, Via::OwnConnection, limit).await;
        let answer = asked.and_then(|reply| {
            match reply.was_held("ensure_held")? {
                true if extends => lock_lease.extended(reply.timing),
                true => {}
                false => lock_lease.lose(LostReason::Gone),
            }
            Ok(())
        });
        // The lock may have been lost while the request was in flight.
        match lock_lease.lost() {
            Some(why) => Err(Error::lock_lost(why)),
            None => answer,
        }
    }

    /// Ends the guard before its release: from here on no callback is called.
    pub(crate) fn begin_release(&mut self) {
        let release = &mut self.release;
        if !release.manager.settings().is_forked_child() && release.begin() {
            release.lock_lease.end();
        }
    }

    /// Does what the drop does, by `limit` at the latest. `None`: within `cleanup_timeout`.
    pub(crate) fn drop_by(&mut self, limit: Option<Instant>) {
        let release = &mut self.release;
        // In a forked child the lock belongs to the parent.
        if !release.manager.settings().is_forked_child() && release.begin() {
            let (manager, lock_lease) = (&release.manager, &release.lock_lease);
            // No renewal extends the lease until the release is sent.
            lock_lease.end();
            manager.clean_up(release_dropped(Arc::clone(manager), Arc::clone(lock_lease), limit));
            release.end = GuardState::Released;
        }
    }

    /// Releases the lock, by `limit` at the latest. If that fails, the release continues in the
    /// background. If the future is dropped, the release may have been sent, and is sent again.
    pub(crate) async fn release(self, limit: Instant) -> Result<(), Error> {
        Ok(self.release_known(limit).await?)
    }

    /// The same; the failure has what it proves.
    pub(crate) async fn release_known(mut self, limit: Instant) -> Result<(), Unreleased> {
        self.release.within(limit).await
    }
}

/// The failure of a release.
#[derive(Debug)]
pub(crate) struct Unreleased {
    pub(crate) error: Error,
    /// Whether the server may still have the lock as held: the release has no reply.
    pub(crate) may_be_held: bool,
}

impl From<Unreleased> for Error {
    fn from(failed: Unreleased) -> Self {
        failed.error
    }
}

/// Releases the lock of the last guard, which was dropped, by `limit` at the latest. `None`: within
/// `cleanup_timeout`. A failure is logged. A panic of the user's log neither leaves this call nor
/// keeps the lock. If the future is dropped, the release is recorded to be sent in the background.
pub(crate) fn release_dropped<M: LockIo>(
    manager: Arc<M>,
    lock_lease: Arc<LockLease>,
    limit: Option<Instant>,
) -> impl Future<Output = ()> + Send {
    let release = LockRelease { manager, lock_lease, end: GuardState::Releasing };
    // Made before the first poll, which may never come.
    let release = guard(release, |release| {
        let is_left = release.end != GuardState::Released;
        if is_left && !release.manager.settings().is_forked_child() {
            release_in_background(&*release.manager, &release.lock_lease);
        }
    });
    release_logged(release, limit)
}

async fn release_logged<M: LockIo>(
    mut release: impl DerefMut<Target = LockRelease<M>> + Send,
    limit: Option<Instant>,
) {
    let limit =
        limit.unwrap_or_else(|| Instant::now() + release.manager.settings().cleanup_timeout);
    let released = caught(release.within(limit)).await;
    drop(release);
    if let Some(Err(Unreleased { error, .. })) = released {
        let log = || tracing::warn!(error = %format_args!("{error:#}"), "a dropped lock was not released in order");
        drop(catch_unwind(AssertUnwindSafe(log)));
    }
}

/// Returns the result of a closure that ran under the lock, or the failure of the release.
pub(crate) fn after_release<R, E: From<Error>>(
    manager: &impl LockIo,
    result: Result<R, E>,
    released: Result<(), Error>,
) -> Result<R, E> {
    match (result, released) {
        (Ok(value), Ok(())) => Ok(value),
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(error), Ok(())) => Err(error),
        // A fork's copy of the log may be locked forever, and the lock belongs to the parent.
        (Err(error), Err(_)) if manager.settings().is_forked_child() => Err(error),
        (Err(error), Err(second)) => {
            tracing::warn!(error = %format_args!("{second:#}"), "a lock was not released in order");
            Err(error)
        }
    }
}

/// The release of a held lock.
struct LockRelease<M: LockIo> {
    manager: Arc<M>,
    lock_lease: Arc<LockLease>,
    end: GuardState,
}

impl<M: LockIo> LockRelease<M> {
    /// Ends this guard. Returns whether the lock has to be released: this was the last guard, and
    /// no release has ended.
    fn begin(&mut self) -> bool {
        if self.end == GuardState::Held {
            self.end = if self.lock_lease.drop_handle() {
                GuardState::Releasing
            } else {
                GuardState::Released
            };
        }
        self.end == GuardState::Releasing
    }

    async fn within(&mut self, limit: Instant) -> Result<(), Unreleased> {
        if let Err(error) = self.manager.settings().here() {
            // The lock is the parent's.
            return Err(Unreleased { error: error.into(), may_be_held: true });
        }
        if !self.begin() {
            return Ok(());
        }
        // From here on no renewal extends the lease.
        let lost = self.lock_lease.end();
        let was_held = release_held(&*self.manager, &self.lock_lease, limit).await;
        // Set only here: after a panic before this line the drop releases the lock.
        self.end = GuardState::Released;
        let may_be_held = was_held.is_err();
        // A log comes after all other work.
        let error = match (lost, was_held) {
            (Some(why), _) => Error::lock_lost(why),
            (None, Ok(true)) => {
                tracing::debug!("lock released");
                return Ok(());
            }
            (None, Ok(false)) => {
                self.manager.counters().on_lost();
                let why = LostReason::Gone;
                tracing::warn!(%why, "lock lost");
                Error::lock_lost(why)
            }
            (None, Err(error)) => error,
        };
        Err(Unreleased { error, may_be_held })
    }
}

/// Releases a lock whose lease has ended here, by `limit` at the latest. If that fails, the release
/// continues in the background. The call may be repeated if a log panicked during it. Returns
/// whether the lock was still held.
async fn release_held<M: LockIo>(
    manager: &M,
    lock_lease: &Arc<LockLease>,
    limit: Instant,
) -> Result<bool, Error> {
    let renewals = manager.renewals();
    let answered = renewals.take_answered(&lock_lease.names.holders);
    // Dropped without an outcome, it has the waiter send a request.
    let next = match manager.client().is_closed() {
        // A call that waits fails with `Closed`.
        true => None,
        false => manager.next_waiter(&lock_lease.names.wake),
    };
    let next_holder = next.as_ref().map(NextWaiter::next_holder);
    let call = release_call(manager, lock_lease, answered, next_holder);
    let reply = manager.client().ask_one("release", &call, Via::OwnConnection, limit).await;
    let repeated = reply.as_ref().is_ok_and(|reply| reply.repeated);
    let given =
        reply.as_ref().ok().map(|reply| (reply.values.first().and_then(given_token), reply.timing));
    let was_held = reply.and_then(|reply| reply.was_held("release"));
    match (next, given) {
        (Some(next), Some((Some(fencing), timing))) => {
            next.give(GivenLock { fencing, timing, repeated });
        }
        (Some(next), _) if was_held.is_ok() && !repeated => next.not_given(),
        // A copy of the release may give it the lock.
        (next, _) => drop(next),
    }
    if was_held.is_err() {
        release_in_background(manager, lock_lease);
    } else if !lock_lease.maybe_in_flight && !repeated {
        // No copy of a request is in flight that needs the same reply.
        renewals.answered(lock_lease.names.done(&lock_lease.owner_token));
    }
    // This comes last: a closed session manager ends its connections with the last lease.
    renewals.forget(lock_lease);
    was_held
}

/// Releases a lock in the background, and logs nothing.
fn release_in_background<M: LockIo>(manager: &M, lock_lease: &Arc<LockLease>) {
    lock_lease.end();
    let call = release_call(manager, lock_lease, Vec::new(), None);
    let renewals = manager.renewals();
    // The lease has ended by then.
    renewals.pending_release(call, Instant::now() + lock_lease.lease);
    renewals.forget(lock_lease);
}

fn release_call<M: LockIo>(
    manager: &M,
    lock_lease: &LockLease,
    answered: Vec<String>,
    next: Option<&NextHolder>,
) -> ScriptCall {
    let remember = manager.remember(lock_lease.lease, lock_lease.maybe_in_flight);
    release(&lock_lease.names, &lock_lease.owner_token, remember, answered, next)
}
