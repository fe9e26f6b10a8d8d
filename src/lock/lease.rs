//! The lease of one held lock: the instant until which it is certain, and the callbacks for its
//! loss.
//!
//! It never counts as held for longer than on the server. Callbacks are called once, and outside
//! every mutex.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::commit::lock_check::LockProbe;
use crate::error::lock::LostReason;
use crate::lock::callbacks::{Callback, run_callbacks};
use crate::protocol::lock::acquire::LockRequest;
use crate::protocol::lock::hold_token::HoldToken;
use crate::protocol::lock::keys::LockKeys;
use crate::protocol::lock::lease::{LeaseTimes, Timing, renew};
use crate::protocol::lock::script::ScriptCall;
use crate::status::locks::LockCounters;
use crate::sync::caught::{wake, waking};
use crate::sync::lock;

/// The lease of one held lock.
pub(crate) struct LockLease {
    pub(crate) names: Arc<LockKeys>,
    pub(crate) owner_token: String,
    pub(crate) fencing: u64,
    /// A request for the lock may still be in flight.
    pub(crate) maybe_in_flight: bool,
    pub(crate) lease: Duration,
    /// Whether renewals extend the lease while the lock is held.
    pub(crate) renewed: bool,
    /// Whether the server has a label of the holder.
    pub(crate) labelled: bool,
    counters: Arc<LockCounters>,
    /// Number of guards that share the lease.
    handles: AtomicUsize,
    /// Number of transactions that watch the lock, and that a renewal would disturb.
    renewal_pauses: AtomicUsize,
    /// Number of failed renewals since the last success.
    failures: AtomicU32,
    state: Mutex<LeaseState>,
}

struct LeaseState {
    times: LeaseTimes,
    lost: Option<LostReason>,
    released: bool,
    callbacks: Vec<Callback>,
    /// Tasks that are woken by the loss, each with its number.
    watchers: Vec<(u64, Waker)>,
}

impl LeaseState {
    fn is_held(&self) -> bool {
        self.lost.is_none() && !self.released
    }
}

impl LockLease {
    /// Creates a lease of this length, which was requested with this timing.
    pub(crate) fn new(
        request: &LockRequest,
        lease: Duration,
        owner_token: String,
        fencing: u64,
        maybe_in_flight: bool,
        timing: Timing,
        counters: Arc<LockCounters>,
    ) -> Self {
        counters.acquired.add();
        counters.held.increment();
        let times = LeaseTimes::new(lease, timing);
        Self {
            names: Arc::clone(&request.names),
            owner_token,
            fencing,
            maybe_in_flight,
            lease,
            renewed: request.renewed,
            labelled: request.label.as_deref().is_some_and(|label| !label.is_empty()),
            counters,
            handles: AtomicUsize::new(1),
            renewal_pauses: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            state: Mutex::new(LeaseState {
                times,
                lost: None,
                released: false,
                callbacks: Vec::new(),
                watchers: Vec::new(),
            }),
        }
    }

    pub(crate) fn share(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// Removes one guard, and returns whether it was the last one.
    pub(crate) fn drop_handle(&self) -> bool {
        self.handles.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Removes the guard if it is the only one.
    pub(crate) fn drop_only_handle(&self) -> bool {
        self.handles.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns the token by which another process adopts the hold.
    pub(crate) fn hold_token(&self) -> HoldToken {
        HoldToken::new(&self.names, &self.owner_token, self.fencing, self.maybe_in_flight)
    }

    /// Returns the instant until which the lease is certain.
    pub(crate) fn valid_until(&self) -> Instant {
        lock(&self.state).times.valid_until
    }

    /// Returns whether and how the lock is lost. This reads the clock and sends nothing.
    pub(crate) fn lost(&self) -> Option<LostReason> {
        let state = lock(&self.state);
        if !state.is_held() || Instant::now() < state.times.valid_until {
            return state.lost;
        }
        drop(state);
        self.lose(LostReason::Expired);
        Some(LostReason::Expired)
    }

    /// Records a renewal.
    pub(crate) fn extended(&self, timing: Timing) {
        let mut state = lock(&self.state);
        let is_held = state.is_held();
        state.times.extend(timing, is_held);
        self.failures.store(0, Ordering::Relaxed);
        self.counters.renewals.add();
    }

    /// Returns the number of failed renewals since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Counts the renewal as failed until its reply arrives, and schedules the next one soon.
    pub(crate) fn postpone(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        lock(&self.state).times.postpone(Instant::now(), fastrand::f64());
    }

    /// The renewal was postponed, but not sent.
    pub(crate) fn not_sent(&self) {
        self.failures.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns when the renewal has to check the lease again; `extends`: leases are still
    /// extended. `None` while the lock is being released.
    pub(crate) fn next_step(&self, extends: bool) -> Option<Instant> {
        let state = lock(&self.state);
        let valid_until = state.times.valid_until;
        match state.lost {
            _ if state.released => None,
            Some(_) => Some(state.times.ends_by),
            None if self.renewed && extends => Some(self.due(&state).min(valid_until)),
            None => Some(valid_until),
        }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let state = lock(&self.state);
        self.renewed && state.is_held() && self.due(&state) <= now
    }

    /// Returns whether the lock is neither released nor known to be lost.
    pub(crate) fn is_held(&self) -> bool {
        lock(&self.state).is_held()
    }

    /// Returns whether the lock is lost and the lease has ended on the server, too.
    pub(crate) fn is_gone(&self, now: Instant) -> bool {
        let state = lock(&self.state);
        state.lost.is_some() && !state.released && state.times.ends_by <= now
    }

    fn due(&self, state: &LeaseState) -> Instant {
        state.times.renewal_due(self.renewal_pauses.load(Ordering::Relaxed) > 0)
    }

    /// Marks the lock as lost; the callbacks are called, once.
    pub(crate) fn lose(&self, why: LostReason) {
        let mut state = lock(&self.state);
        if !state.is_held() {
            return;
        }
        state.lost = Some(why);
        let callbacks = std::mem::take(&mut state.callbacks);
        let watchers = std::mem::take(&mut state.watchers);
        drop(state);
        self.counters.held.decrement();
        self.counters.on_lost();
        watchers.into_iter().for_each(|(_, task)| wake(task));
        // The callbacks run first, because a log belongs to the user and may panic.
        run_callbacks(callbacks);
        tracing::warn!(%why, lease = ?self.lease, "lock lost");
    }

    /// Marks the lock as being released: no callback is called from now on. Returns an earlier
    /// loss.
    pub(crate) fn end(&self) -> Option<LostReason> {
        let mut state = lock(&self.state);
        if state.is_held() {
            self.counters.held.decrement();
        }
        state.released = true;
        let (lost, callbacks) = (state.lost, std::mem::take(&mut state.callbacks));
        let watchers = std::mem::take(&mut state.watchers);
        drop(state);
        // The callbacks are the user's, and dropping them may run the user's code. Its panic must not keep the lock.
        for callback in callbacks {
            drop(catch_unwind(AssertUnwindSafe(|| drop(callback))));
        }
        for (_, task) in watchers {
            let _: Option<()> = waking(|| drop(task));
        }
        lost
    }

    pub(crate) fn on_lost(&self, callback: Callback) {
        let mut state = lock(&self.state);
        if state.is_held() {
            state.callbacks.push(callback);
        } else {
            drop(state);
            run_callbacks(vec![callback]);
        }
    }

    /// Has the loss wake a task, and returns the instant until which the lease is certain. `None`: the
    /// lock is lost or being released. `watcher`: the task's number, once it has one.
    #[cfg(feature = "tokio")]
    pub(crate) fn watch_loss(&self, watcher: &mut Option<u64>, task: &Waker) -> Option<Instant> {
        let mut state = lock(&self.state);
        if !state.is_held() {
            return None;
        }
        let known = state.watchers.iter_mut().find(|(number, _)| Some(*number) == *watcher);
        let former = match known {
            Some((_, known)) if known.will_wake(task) => None,
            Some((_, known)) => Some(std::mem::replace(known, task.clone())),
            None => {
                let last = state.watchers.iter().map(|(number, _)| *number).max();
                let number = last.map_or(0, |last| last + 1);
                *watcher = Some(number);
                state.watchers.push((number, task.clone()));
                None
            }
        };
        let valid_until = state.times.valid_until;
        drop(state);
        drop(former);
        Some(valid_until)
    }

    /// The loss does not wake the task any more.
    #[cfg(feature = "tokio")]
    pub(crate) fn unwatch(&self, watcher: u64) {
        let mut state = lock(&self.state);
        let at = state.watchers.iter().position(|(number, _)| *number == watcher);
        let former = at.map(|at| state.watchers.swap_remove(at));
        drop(state);
        drop(former);
    }

    pub(crate) fn renewal(&self) -> ScriptCall {
        renew(&self.names, &self.owner_token, self.lease, self.labelled)
    }

    /// Returns the call that checks whether the lock is held, and extends nothing.
    pub(crate) fn ownership_query(&self) -> ScriptCall {
        renew(&self.names, &self.owner_token, Duration::ZERO, self.labelled)
    }
}

impl LockProbe for LockLease {
    fn is_lost(&self) -> bool {
        self.lost().is_some()
    }

    fn mark_lost(&self) {
        Self::lose(self, LostReason::Gone);
    }

    fn pause_renewal(&self) {
        self.renewal_pauses.fetch_add(1, Ordering::Relaxed);
    }

    fn resume_renewal(&self) {
        self.renewal_pauses.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Shows neither name nor token.
impl fmt::Debug for LockLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockLease").field("lease", &self.lease).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::lock::acquire::LockMode;

    const LEASE: Duration = Duration::from_secs(10);

    fn lock_lease(sent: Instant) -> LockLease {
        let request = LockRequest {
            names: Arc::new(LockKeys::new("t", "lock", "n", false)),
            mode: LockMode::Exclusive,
            permits: 1,
            lease: LEASE,
            renewed: true,
            fair: false,
            label: None,
            replicas: None,
        };
        let timing = Timing { sent, took: Duration::ZERO };
        LockLease::new(&request, LEASE, "x".to_owned(), 1, false, timing, Arc::default())
    }

    #[test]
    fn a_lock_reported_as_lost_is_not_held_again() {
        let now = Instant::now();
        let lock_lease = lock_lease(now - LEASE);
        assert_eq!(lock_lease.lost(), Some(LostReason::Expired));
        lock_lease.extended(Timing { sent: now, took: Duration::ZERO });
        assert_eq!(lock_lease.lost(), Some(LostReason::Expired));
        assert_eq!(lock_lease.end(), Some(LostReason::Expired));
    }

    #[test]
    fn a_renewal_waits_for_a_transaction_but_not_for_ever() {
        let now = Instant::now();
        let lock_lease = lock_lease(now);
        assert_eq!(lock_lease.next_step(true), Some(now + LEASE / 3));
        LockProbe::pause_renewal(&lock_lease);
        assert_eq!(lock_lease.next_step(true), Some(now + LEASE / 3 * 2));
        // One that failed is repeated soon.
        lock(&lock_lease.state).times.postpone(now + LEASE / 3 * 2, 0.5);
        let soon = Duration::from_millis(100);
        assert_eq!(lock_lease.next_step(true), Some(now + LEASE / 3 * 2 + soon));
        lock_lease.extended(Timing { sent: now, took: Duration::ZERO });
        LockProbe::resume_renewal(&lock_lease);
        assert_eq!(lock_lease.next_step(true), Some(now + LEASE / 3));
        assert_eq!(lock_lease.next_step(false), Some(lock_lease.valid_until()));
    }
}
