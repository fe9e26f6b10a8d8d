//! The thread that extends leases: one for all locks of a session manager, while there are any.
//!
//! No lease is extended after its guard released it. The thread also retries failed releases, and
//! deletes the server's records of releases whose replies have arrived. After the session manager
//! was closed, it continues until the last guard or its lease has ended. Then it closes the
//! connections for renewals and releases.
//!
//! A guard's loss is reported in time, even while the thread waits. A panic in the user's log ends
//! no work.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use redis::Value;
use scopeguard::guard;
use tracing::Level;

use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::error::lock::LostReason;
use crate::lock::client::{ScriptClient, Via};
use crate::lock::lease::LockLease;
use crate::process::worker::{BackgroundWorker, Locked, Next, Shared, Work};
use crate::protocol::cluster::slot;
use crate::protocol::lock::lease::was_held;
use crate::protocol::lock::script::ScriptCall;
use crate::protocol::retry::Backoff;
use crate::sync::now::now;

/// Time that the thread waits for another lock before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// Maximum delay before a failed release is retried.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Minimum time of one exchange for renewals: a busy machine may need as long.
const MIN_EXCHANGE: Duration = Duration::from_millis(100);
/// Maximum time that the server remembers a release whose reply has arrived, if no other release is
/// sent.
const CLEANUP_DELAY: Duration = Duration::from_millis(100);
/// Maximum number of keys of answered releases that the next release deletes.
const MAX_PIGGYBACKED: usize = 16;

/// The thread that extends leases, if it runs.
pub(crate) struct LeaseRenewer {
    client: ScriptClient,
    worker: BackgroundWorker<RenewalState>,
}

#[derive(Default)]
struct RenewalState {
    /// The leases of all living guards, and of guards whose release is in flight, until the lease
    /// ends.
    leases: HashMap<usize, Arc<LockLease>>,
    pending_releases: Vec<PendingRelease>,
    /// Number of pending releases that are being sent.
    attempted: usize,
    /// Number of acquisitions in progress.
    attempts: usize,
    /// Keys by which the server remembers releases whose replies have arrived.
    answered: Vec<String>,
    /// Time at which these keys are deleted, unless a release deletes them before.
    forget_at: Option<Instant>,
    /// No lease is extended any more: the timeout of the session manager's close is over.
    renewals_ended: bool,
    /// The connections are closed: see [`ScriptClient::finish`].
    finished: bool,
}

/// A release to be retried, as long as it makes a difference.
struct PendingRelease {
    call: ScriptCall,
    next: Instant,
    pauses: Backoff,
    until: Instant,
}

/// The work that is due now.
#[derive(Default)]
struct Due {
    lost: Vec<Arc<LockLease>>,
    renewals: Vec<Arc<LockLease>>,
    pending_releases: Vec<PendingRelease>,
    answered: Vec<String>,
    /// End of the first lease to end.
    bound: Option<Instant>,
    finishes: bool,
}

impl LeaseRenewer {
    pub(crate) fn new(client: ScriptClient) -> Self {
        Self { client, worker: BackgroundWorker::new("rediscope-leases", RenewalState::default()) }
    }

    /// Starts the thread before there is a lease that needs it. The drop of the result ends the
    /// acquisition.
    pub(crate) fn begin_acquisition(&self) -> Result<impl Drop, Error> {
        let mut state = self.worker.lock();
        if state.renewals_ended {
            return Err(CheckoutError::Closed.into());
        }
        let no_thread = "the system started no thread to extend the lease";
        self.start(&mut state).map_err(|_| Error::lock_refused("thread", no_thread))?;
        state.attempts += 1;
        Ok(guard((), |()| {
            let mut state = self.worker.lock();
            state.attempts -= 1;
            self.wake_if_closing(&state);
        }))
    }

    /// Watches `lock_lease` until [`forget`](Self::forget).
    pub(crate) fn watch(&self, lock_lease: &Arc<LockLease>) {
        let mut state = self.worker.lock();
        state.leases.insert(key(lock_lease), Arc::clone(lock_lease));
        let next = lock_lease.next_step(!state.renewals_ended);
        self.wake_by(state, next.unwrap_or_else(Instant::now));
    }

    /// Stops watching `lock_lease`: nothing of it is left on the server.
    pub(crate) fn forget(&self, lock_lease: &Arc<LockLease>) {
        let mut state = self.worker.lock();
        let forgotten = state.leases.remove(&key(lock_lease));
        self.wake_if_closing(&state);
        drop(state);
        drop(forgotten);
    }

    /// Sends `call` in the background until a reply arrives, or until the call makes no difference.
    pub(crate) fn pending_release(&self, call: ScriptCall, until: Instant) {
        let next = Instant::now();
        let mut state = self.worker.lock();
        if state.finished {
            return;
        }
        let pauses = Backoff::new(MAX_PAUSE / 50, MAX_PAUSE);
        state.pending_releases.push(PendingRelease { call, next, pauses, until });
        self.wake_by(state, next);
    }

    /// Records that the reply to a release has arrived; the server remembers that release by `key`.
    pub(crate) fn answered(&self, key: String) {
        let mut state = self.worker.lock();
        state.answered.push(key);
        if state.forget_at.is_none() {
            let at = Instant::now() + CLEANUP_DELAY;
            state.forget_at = Some(at);
            self.wake_by(state, at);
        }
    }

    /// Returns keys of answered releases that a release of `holders` deletes too; in a cluster only
    /// keys of its slot.
    pub(crate) fn take_answered(&self, holders: &str) -> Vec<String> {
        let mut state = self.worker.lock();
        if !self.client.is_in_cluster() {
            let kept = state.answered.len().saturating_sub(MAX_PIGGYBACKED);
            return state.answered.split_off(kept);
        }
        let slot = slot::of_key(holders.as_bytes());
        state.answered.extract_if(.., |key| slot::of_key(key.as_bytes()) == slot).collect()
    }

    /// Waits until no guard lives and no release is pending, or until `deadline`. From then on no
    /// lease is extended. Returns the number of held locks; their guards can still release them.
    pub(crate) fn end_renewals(&self, deadline: Instant) -> usize {
        let mut state = self.worker.lock();
        while !state.is_idle() && Instant::now() < deadline {
            // Releases by other threads send no notification here.
            let pause = Instant::now() + Duration::from_millis(1);
            state = self.worker.wait(state, deadline.min(pause));
        }
        state.renewals_ended = true;
        let held = state.leases.values().filter(|lock_lease| lock_lease.is_held()).count();
        let answered = std::mem::take(&mut state.answered);
        let finishes = state.finishes();
        self.worker.wake();
        if finishes {
            drop(state);
        } else {
            // The thread notices when the last lease is gone.
            self.wake_by(state, Instant::now());
        }
        forget(answered, None, &self.client);
        if finishes {
            self.client.finish();
        }
        held
    }

    /// Returns whether leases are extended.
    pub(crate) fn extends(&self) -> bool {
        !self.worker.lock().renewals_ended
    }

    /// Has the thread look for work by `next`.
    fn wake_by(&self, mut state: MutexGuard<'_, Locked<RenewalState>>, next: Instant) {
        let started = self.start(&mut state);
        self.worker.wake_by(&state, next);
        drop(state);
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to extend leases; they end unextended");
        }
    }

    /// After the close, the thread ends the connections when the last lock is gone.
    fn wake_if_closing(&self, state: &RenewalState) {
        if state.renewals_ended {
            self.worker.wake();
        }
    }

    fn start(&self, state: &mut Locked<RenewalState>) -> std::io::Result<()> {
        self.worker.start(state, || Renewal { client: self.client.clone() })
    }
}

fn key(lock_lease: &Arc<LockLease>) -> usize {
    Arc::as_ptr(lock_lease) as usize
}

/// The thread's work.
struct Renewal {
    client: ScriptClient,
}

impl Work for Renewal {
    type State = RenewalState;
    type Job = Due;
    const IDLE: Duration = IDLE;

    fn next(&mut self, state: &mut RenewalState, now: Instant) -> Next<Due> {
        state.next(now)
    }

    fn run(&mut self, shared: &Shared<RenewalState>, due: Due) {
        let (client, bound) = (&self.client, due.bound);
        // A log belongs to the user and may panic; the next step runs all the same.
        let step = |step: &mut dyn FnMut()| drop(catch_unwind(AssertUnwindSafe(step)));
        for lock_lease in &due.lost {
            step(&mut || lock_lease.lose(LostReason::Expired));
        }
        step(&mut || renew(&due.renewals, bound, client));
        if !due.pending_releases.is_empty() {
            let mut releases = due.pending_releases;
            step(&mut || send_pending_releases(&mut releases, bound, client));
            // Also after a panic.
            let mut state = shared.lock();
            state.attempted = 0;
            state.pending_releases.append(&mut releases);
            drop(state);
            shared.wake();
        }
        let mut answered = due.answered;
        step(&mut || forget(std::mem::take(&mut answered), bound, client));
        if due.finishes {
            client.finish();
        }
    }
}

impl RenewalState {
    /// Returns whether no guard lives and no release is pending.
    fn is_idle(&self) -> bool {
        self.leases.is_empty()
            && self.pending_releases.is_empty()
            && self.attempted + self.attempts == 0
    }

    /// Records and returns whether the connections are to be closed now.
    fn finishes(&mut self) -> bool {
        let finishes = self.renewals_ended && !self.finished && self.is_idle();
        self.finished |= finishes;
        finishes
    }

    fn next(&mut self, now: Instant) -> Next<Due> {
        if self.finished {
            return Next::End;
        }
        if let Some(due) = self.due(now) {
            return Next::Run(due);
        }
        let extends = !self.renewals_ended;
        let looks = self.leases.values().filter_map(|lock_lease| lock_lease.next_step(extends));
        let releases = self.pending_releases.iter().map(|release| release.next);
        match looks.chain(releases).chain(self.forget_at).min() {
            Some(next) => Next::WaitUntil(next),
            None if self.is_idle() => Next::Idle,
            // A call is in progress, which will wake the thread.
            None => Next::WaitUntil(now + IDLE),
        }
    }

    /// Takes the work that is due, if there is any.
    fn due(&mut self, now: Instant) -> Option<Due> {
        let mut due = Due::default();
        let extends = !self.renewals_ended;
        self.leases.retain(|_, lock_lease| !lock_lease.is_gone(now));
        let any_due = extends && self.leases.values().any(|lock_lease| lock_lease.is_due(now));
        for lock_lease in self.leases.values().filter(|lock_lease| lock_lease.is_held()) {
            let valid_until = lock_lease.valid_until();
            if valid_until <= now {
                due.lost.push(Arc::clone(lock_lease));
                continue;
            }
            due.bound = Some(due.bound.map_or(valid_until, |bound| bound.min(valid_until)));
            // A lease that is due soon is extended in the same write.
            if any_due && lock_lease.is_due(now + lock_lease.lease / 6) {
                due.renewals.push(Arc::clone(lock_lease));
            }
        }
        due.pending_releases =
            self.pending_releases.extract_if(.., |release| release.next <= now).collect();
        self.attempted = due.pending_releases.len();
        due.finishes = self.finishes();
        if due.finishes || self.forget_at.is_some_and(|at| at <= now) {
            self.forget_at = None;
            due.answered = std::mem::take(&mut self.answered);
        }
        let nothing = due.lost.is_empty()
            && due.renewals.is_empty()
            && due.pending_releases.is_empty()
            && due.answered.is_empty()
            && !due.finishes;
        (!nothing).then_some(due)
    }
}

/// Returns the deadline of one exchange: half of the time is left for another exchange, on a new
/// connection if this one is silent.
fn share(bound: Option<Instant>, now: Instant) -> Instant {
    let Some(bound) = bound else { return now + MAX_PAUSE };
    let half = bound.saturating_duration_since(now) / 2;
    bound.min(now + half.max(MIN_EXCHANGE))
}

/// Extends the leases in one write; in a cluster, in one write for each slot.
fn renew(due: &[Arc<LockLease>], bound: Option<Instant>, client: &ScriptClient) {
    let mut due: Vec<_> = due.iter().map(|lock_lease| (lock_lease, lock_lease.renewal())).collect();
    // If a master is unreachable, the locks on the others come first the next time.
    due.sort_by_key(|(lock_lease, call)| (lock_lease.failures(), client.slot_of(call)));
    // Before the bytes are sent: a renewal counts as failed until its reply has arrived.
    due.iter().for_each(|(lock_lease, _)| lock_lease.postpone());
    let log = client.log_thread();
    for together in
        due.chunk_by(|(_, one), (_, other)| client.slot_of(one) == client.slot_of(other))
    {
        let locks = together.len();
        let calls: Vec<_> = together.iter().map(|(_, call)| call).collect();
        let limit = share(bound, Instant::now());
        let replies = match now(client.ask(&calls, Via::OwnStrictly, limit)) {
            Ok(replies) => replies,
            Err(failed) => {
                let error = failed.into_error("renew");
                log.log(Level::DEBUG, move || {
                    tracing::debug!(error = %format_args!("{error:#}"), locks, "leases not extended");
                });
                continue;
            }
        };
        let mut refused = None;
        for ((lock_lease, _), value) in together.iter().zip(&replies.values) {
            match value {
                Value::ServerError(error) => refused = Some(error.code().to_owned()),
                value => match was_held(value) {
                    Some(true) => lock_lease.extended(replies.timing),
                    Some(false) => lock_lease.lose(LostReason::Gone),
                    None => {}
                },
            }
        }
        match refused {
            Some(code) => {
                log.log(Level::DEBUG, move || tracing::debug!(code, "lease not extended"));
            }
            None => log.log(Level::TRACE, move || tracing::trace!(locks, "leases extended")),
        }
    }
}

/// Sends the releases in one write, and keeps those that are to be sent again.
fn send_pending_releases(
    releases: &mut Vec<PendingRelease>,
    bound: Option<Instant>,
    client: &ScriptClient,
) {
    let begun = Instant::now();
    for release in &mut *releases {
        release.next = begun + release.pauses.wait();
    }
    let slot = |release: &PendingRelease| client.slot_of(&release.call);
    releases.sort_by_key(slot);
    let limit = share(bound, begun).min(begun + MAX_PAUSE);
    let mut settled = Vec::with_capacity(releases.len());
    for together in releases.chunk_by(|one, other| slot(one) == slot(other)) {
        let calls: Vec<_> = together.iter().map(|release| &release.call).collect();
        let replies = now(client.ask(&calls, Via::OwnStrictly, limit)).ok();
        let is_settled = |nth| {
            let value = replies.as_ref().and_then(|replies| replies.values.get(nth));
            value.is_some_and(|value| !matches!(value, Value::ServerError(_)))
        };
        settled.extend((0..calls.len()).map(is_settled));
    }
    let (ended, mut settled) = (Instant::now(), settled.into_iter());
    releases.retain(|release| !settled.next().unwrap_or(false) && ended < release.until);
}

/// Deletes keys by which the server remembers releases. The keys have a time to live, so a failure
/// does no harm.
fn forget(mut keys: Vec<String>, bound: Option<Instant>, client: &ScriptClient) {
    let slot = |key: &String| client.is_in_cluster().then(|| slot::of_key(key.as_bytes()));
    keys.sort_by_key(slot);
    let begun = Instant::now();
    let limit = share(bound, begun).min(begun + MAX_PAUSE);
    for together in keys.chunk_by(|one, other| slot(one) == slot(other)) {
        let call = ScriptCall::delete(together.iter().cloned());
        if now(client.ask(&[&call], Via::OwnStrictly, limit)).is_err() {
            client.log_thread().log(Level::TRACE, || {
                tracing::trace!("answered releases stay on the server for a while");
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_sleeps_while_a_call_waits_for_a_lock_however_long() {
        let mut state = RenewalState { attempts: 1, ..RenewalState::default() };
        let now = Instant::now();
        for later in [now, now + IDLE, now + 10 * IDLE] {
            assert!(matches!(state.next(later), Next::WaitUntil(until) if until > later));
        }
        state.attempts = 0;
        assert!(matches!(state.next(now), Next::Idle));
    }
}
