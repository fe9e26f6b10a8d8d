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
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::Value;
use scopeguard::{defer_on_unwind, guard};
use tracing::Level;

use crate::error::lock::LostReason;
use crate::lock::client::{ScriptClient, Via};
use crate::lock::lease::LockLease;
use crate::protocol::cluster::slot;
use crate::protocol::lock::script::Call;
use crate::sync::lock;

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
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The leases of all living guards, and of guards whose release is in flight, until the lease
    /// ends.
    leases: HashMap<usize, Arc<LockLease>>,
    pending_releases: Vec<PendingRelease>,
    /// Number of pending releases that are being sent.
    tried: usize,
    /// Number of acquisitions in progress.
    attempts: usize,
    /// Keys by which the server remembers releases whose replies have arrived.
    answered: Vec<String>,
    /// Time at which these keys are deleted, unless a release deletes them before.
    forget_at: Option<Instant>,
    /// A thread exists; it sleeps or is at work.
    running: bool,
    sleeps_until: Option<Instant>,
    /// No lease is extended any more: the timeout of the session manager's close is over.
    renewals_ended: bool,
    /// The connections are closed: see [`ScriptClient::finish`].
    finished: bool,
    over: bool,
}

/// A release to be retried, as long as it makes a difference.
struct PendingRelease {
    call: Call,
    next: Instant,
    pause: Duration,
    until: Instant,
}

/// The work that is due now.
#[derive(Default)]
struct Due {
    lost: Vec<Arc<LockLease>>,
    due: Vec<Arc<LockLease>>,
    pending_releases: Vec<PendingRelease>,
    answered: Vec<String>,
    /// End of the first lease to end.
    bound: Option<Instant>,
    finishes: bool,
}

/// The reason why no acquisition can begin.
pub(crate) enum CannotBegin {
    /// The system started no thread.
    NoThread,
    Closed,
}

/// An acquisition in progress; its result will need the thread.
pub(crate) struct PendingAcquisition<'k> {
    shared: &'k Shared,
}

impl Drop for PendingAcquisition<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.attempts -= 1;
        if state.renewals_ended {
            self.shared.changed.notify_all();
        }
    }
}

impl LeaseRenewer {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// Starts the thread before there is a lease that needs it.
    pub(crate) fn begin_acquisition(
        &self,
        client: &ScriptClient,
    ) -> Result<PendingAcquisition<'_>, CannotBegin> {
        let mut state = lock(&self.shared.state);
        if state.renewals_ended {
            return Err(CannotBegin::Closed);
        }
        self.start(&mut state, client).map_err(|_| CannotBegin::NoThread)?;
        state.attempts += 1;
        Ok(PendingAcquisition { shared: &self.shared })
    }

    /// Watches `lock_lease` until [`forget`](Self::forget).
    pub(crate) fn watch(&self, lock_lease: &Arc<LockLease>, client: &ScriptClient) {
        let mut state = lock(&self.shared.state);
        state.leases.insert(key(lock_lease), Arc::clone(lock_lease));
        let next = lock_lease.next_look(!state.renewals_ended);
        self.expect(state, next, client);
    }

    /// Stops watching `lock_lease`: nothing of it is left on the server.
    pub(crate) fn forget(&self, lock_lease: &Arc<LockLease>) {
        let mut state = lock(&self.shared.state);
        let forgotten = state.leases.remove(&key(lock_lease));
        if state.renewals_ended {
            self.shared.changed.notify_all();
        }
        drop(state);
        drop(forgotten);
    }

    /// Sends `call` in the background until a reply arrives, or until the call makes no difference.
    pub(crate) fn pending_release(&self, call: Call, until: Instant, client: &ScriptClient) {
        let next = Instant::now();
        let mut state = lock(&self.shared.state);
        if state.finished {
            return;
        }
        state.pending_releases.push(PendingRelease { call, next, pause: MAX_PAUSE / 50, until });
        self.expect(state, next, client);
    }

    /// Records that the reply to a release has arrived; the server remembers that release by `key`.
    pub(crate) fn answered(&self, key: String, client: &ScriptClient) {
        let mut state = lock(&self.shared.state);
        state.answered.push(key);
        if state.forget_at.is_none() {
            let at = Instant::now() + CLEANUP_DELAY;
            state.forget_at = Some(at);
            self.expect(state, at, client);
        }
    }

    /// Returns keys of answered releases that a release of `holders` deletes too; in a cluster only
    /// keys of its slot.
    pub(crate) fn take_answered(&self, holders: &str, in_cluster: bool) -> Vec<String> {
        let mut state = lock(&self.shared.state);
        if !in_cluster {
            let kept = state.answered.len().saturating_sub(MAX_PIGGYBACKED);
            return state.answered.split_off(kept);
        }
        let slot = slot::of_key(holders.as_bytes());
        let answered = std::mem::take(&mut state.answered);
        let (along, rest) =
            answered.into_iter().partition(|key| slot::of_key(key.as_bytes()) == slot);
        state.answered = rest;
        along
    }

    /// Waits until no guard lives and no release is pending, or until `deadline`. From then on no
    /// lease is extended. Returns the number of held locks.
    pub(crate) fn end_renewals(&self, deadline: Instant, client: &ScriptClient) -> usize {
        let mut state = lock(&self.shared.state);
        while !state.is_idle() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Releases by other threads send no notification here.
            let pause = left.min(Duration::from_millis(1));
            let waited = self.shared.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.renewals_ended = true;
        let held = state.leases.values().filter(|lock_lease| lock_lease.is_held()).count();
        let answered = std::mem::take(&mut state.answered);
        let finishes = state.finishes();
        self.shared.changed.notify_all();
        if finishes {
            drop(state);
        } else {
            // The thread notices when the last lease is gone.
            self.expect(state, Instant::now(), client);
        }
        forget(answered, None, client);
        if finishes {
            client.finish();
        }
        held
    }

    /// Returns whether leases are extended.
    pub(crate) fn extends(&self) -> bool {
        !lock(&self.shared.state).renewals_ended
    }

    fn expect(
        &self,
        mut state: std::sync::MutexGuard<'_, State>,
        next: Instant,
        client: &ScriptClient,
    ) {
        let failed = if !state.running {
            self.start(&mut state, client).err()
        } else {
            if state.sleeps_until.is_some_and(|until| next < until) {
                self.shared.changed.notify_all();
            }
            None
        };
        drop(state);
        if let Some(error) = failed {
            tracing::warn!(%error, "no thread to extend leases; they end unextended");
        }
    }

    fn start(&self, state: &mut State, client: &ScriptClient) -> std::io::Result<()> {
        if !state.running {
            let (shared, client) = (Arc::clone(&self.shared), client.clone());
            let thread = std::thread::Builder::new().name("rediscope-leases".to_owned());
            thread.spawn(move || shared.run(&client))?;
            state.running = true;
        }
        Ok(())
    }

    /// Ends the thread: there is no lock left, and no handle.
    pub(crate) fn close(&self) {
        lock(&self.shared.state).over = true;
        self.shared.changed.notify_all();
    }
}

fn key(lock_lease: &Arc<LockLease>) -> usize {
    Arc::as_ptr(lock_lease) as usize
}

impl Shared {
    fn run(self: Arc<Self>, client: &ScriptClient) {
        // Otherwise this was recorded under the mutex under which it was decided.
        defer_on_unwind! {
            lock(&self.state).running = false;
        }
        while let Some(work) = self.next() {
            // A log belongs to the user and may panic; the next step runs all the same.
            let step = |step: &mut dyn FnMut()| drop(catch_unwind(AssertUnwindSafe(step)));
            for lock_lease in &work.lost {
                step(&mut || lock_lease.lose(LostReason::Expired));
            }
            step(&mut || renew(&work.due, work.bound, client));
            let mut pending_releases = Some(work.pending_releases);
            step(&mut || {
                self.send_pending_releases(
                    pending_releases.take().unwrap_or_default(),
                    work.bound,
                    client,
                )
            });
            let mut answered = Some(work.answered);
            step(&mut || forget(answered.take().unwrap_or_default(), work.bound, client));
            if work.finishes {
                step(&mut || client.finish());
            }
        }
    }

    /// Waits until there is work. Returns `None` after a long time without work, or at the end.
    fn next(&self) -> Option<Due> {
        let mut state = lock(&self.state);
        let idle = Instant::now() + IDLE;
        loop {
            let now = Instant::now();
            if state.over || state.finished {
                state.running = false;
                return None;
            }
            let work = state.work(now);
            if work.is_some() {
                return work;
            }
            let nothing = state.is_idle() && state.answered.is_empty();
            if nothing && now >= idle {
                // Set under the mutex: a caller that comes now starts a new thread.
                state.running = false;
                return None;
            }
            let extends = !state.renewals_ended;
            let looks =
                state.leases.values().filter_map(|lock_lease| lock_lease.next_step(extends));
            let next = looks
                .chain(state.pending_releases.iter().map(|pending_release| pending_release.next));
            let until = next.chain(state.forget_at).min().unwrap_or(idle);
            state.sleeps_until = Some(until);
            let left = until.saturating_duration_since(now);
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.sleeps_until = None;
        }
    }

    /// Sends the pending releases in one write. A release without a reply is retried later.
    fn send_pending_releases(
        &self,
        pending_releases: Vec<PendingRelease>,
        bound: Option<Instant>,
        client: &ScriptClient,
    ) {
        if pending_releases.is_empty() {
            return;
        }
        // The releases stay pending even if this panics.
        let mut left = guard(pending_releases, |pending_releases| {
            let mut state = lock(&self.state);
            state.tried = 0;
            state.pending_releases.extend(pending_releases);
            drop(state);
            self.changed.notify_all();
        });
        let now = Instant::now();
        for pending_release in left.iter_mut() {
            pending_release.next = now + pending_release.pause;
            pending_release.pause = MAX_PAUSE.min(2 * pending_release.pause);
        }
        if client.is_in_cluster() {
            left.sort_by_key(|pending_release| pending_release.call.slot());
        }
        let limit = bound.map_or(now + MAX_PAUSE, |bound| share(bound, now).min(now + MAX_PAUSE));
        let parts = left
            .chunk_by(|one, other| !client.is_in_cluster() || one.call.slot() == other.call.slot());
        let mut settled = Vec::with_capacity(left.len());
        for pending_releases in parts {
            let calls: Vec<_> = pending_releases
                .iter()
                .map(|pending_release| pending_release.call.clone())
                .collect();
            let answers = client.ask(&calls, Via::OwnStrictly, limit);
            let is_settled = |nth: usize| {
                let value = answers.as_ref().ok().and_then(|answers| answers.values.get(nth));
                value.is_some_and(|value| !matches!(value, Value::ServerError(_)))
            };
            settled.extend((0..pending_releases.len()).map(is_settled));
        }
        let (now, mut settled) = (Instant::now(), settled.into_iter());
        left.retain(|pending_release| {
            !settled.next().unwrap_or(false) && now < pending_release.until
        });
        drop(left);
    }
}

impl State {
    /// Returns whether no guard lives and no release is pending.
    fn is_idle(&self) -> bool {
        self.leases.is_empty()
            && self.pending_releases.is_empty()
            && self.tried + self.attempts == 0
    }

    /// Records and returns whether the connections are to be closed now.
    fn finishes(&mut self) -> bool {
        let finishes = self.renewals_ended && !self.finished && self.is_idle();
        self.finished |= finishes;
        finishes
    }

    fn work(&mut self, now: Instant) -> Option<Due> {
        let mut work = Due::default();
        let extends = !self.renewals_ended;
        self.leases.retain(|_, lock_lease| !lock_lease.is_gone(now));
        let any_due = extends && self.leases.values().any(|lock_lease| lock_lease.is_due(now));
        for lock_lease in self.leases.values().filter(|lock_lease| lock_lease.is_held()) {
            let valid_until = lock_lease.valid_until();
            if valid_until <= now {
                work.lost.push(Arc::clone(lock_lease));
                continue;
            }
            work.bound = Some(work.bound.map_or(valid_until, |bound| bound.min(valid_until)));
            // A lease that is due soon is extended in the same write.
            if any_due && lock_lease.is_due(now + lock_lease.lease / 6) {
                work.due.push(Arc::clone(lock_lease));
            }
        }
        let pending_releases = std::mem::take(&mut self.pending_releases);
        (work.pending_releases, self.pending_releases) =
            pending_releases.into_iter().partition(|pending_release| pending_release.next <= now);
        self.tried = work.pending_releases.len();
        if self.forget_at.is_some_and(|at| at <= now) {
            self.forget_at = None;
            work.answered = std::mem::take(&mut self.answered);
        }
        work.finishes = self.finishes();
        if work.finishes {
            work.answered.append(&mut self.answered);
        }
        let nothing = work.lost.is_empty()
            && work.due.is_empty()
            && work.pending_releases.is_empty()
            && work.answered.is_empty()
            && !work.finishes;
        (!nothing).then_some(work)
    }
}

/// Returns the deadline of one exchange: half of the time is left for another exchange, on a new
/// connection if this one is silent.
fn share(bound: Instant, now: Instant) -> Instant {
    let half = bound.saturating_duration_since(now) / 2;
    bound.min(now + half.max(MIN_EXCHANGE))
}

/// Extends the leases in one write; in a cluster, in one write for each slot.
fn renew(due: &[Arc<LockLease>], bound: Option<Instant>, client: &ScriptClient) {
    let mut due: Vec<_> = due.iter().collect();
    // If a master is unreachable, the locks on the others come first the next time.
    due.sort_by_key(|lock_lease| {
        let slot =
            client.is_in_cluster().then(|| slot::of_key(lock_lease.names.holders.as_bytes()));
        (lock_lease.failures(), slot)
    });
    // Before the bytes are sent: a renewal counts as failed until its reply has arrived.
    due.iter().for_each(|lock_lease| lock_lease.postpone());
    let together = |one: &&Arc<LockLease>, other: &&Arc<LockLease>| {
        let slot = |lock_lease: &LockLease| slot::of_key(lock_lease.names.holders.as_bytes());
        !client.is_in_cluster() || slot(one) == slot(other)
    };
    for leases in due.chunk_by(together) {
        let calls: Vec<_> = leases.iter().map(|lock_lease| lock_lease.renewal()).collect();
        let now = Instant::now();
        let limit = bound.map_or(now + MAX_PAUSE, |bound| share(bound, now));
        let answers = match client.ask(&calls, Via::OwnStrictly, limit) {
            Ok(answers) => answers,
            Err(failed) => {
                let (error, locks) = (failed.into_lock_error("renew"), leases.len());
                client.log_thread().log(Level::DEBUG, move || {
                    tracing::debug!(error = %format_args!("{error:#}"), locks, "leases not extended");
                });
                continue;
            }
        };
        let mut refused = None;
        for (lock_lease, value) in leases.iter().zip(&answers.values) {
            match value {
                Value::Int(1) => lock_lease.extended(answers.sent, answers.took),
                Value::Int(_) => lock_lease.lose(LostReason::Gone),
                Value::ServerError(error) => refused = Some(error),
                _ => {}
            }
        }
        match refused {
            Some(error) => {
                let code = error.code().to_owned();
                let event = move || tracing::debug!(code, "lease not extended");
                client.log_thread().log(Level::DEBUG, event);
            }
            None => {
                let locks = leases.len();
                let event = move || tracing::trace!(locks, "leases extended");
                client.log_thread().log(Level::TRACE, event);
            }
        }
    }
}

/// Deletes keys by which the server remembers releases. The keys have a time to live, so a failure
/// does no harm.
fn forget(mut keys: Vec<String>, bound: Option<Instant>, client: &ScriptClient) {
    let slot = |key: &String| client.is_in_cluster().then(|| slot::of_key(key.as_bytes()));
    keys.sort_by_key(slot);
    let now = Instant::now();
    let limit = bound.map_or(now + MAX_PAUSE, |bound| share(bound, now).min(now + MAX_PAUSE));
    let calls: Vec<_> = keys
        .chunk_by(|one, other| slot(one) == slot(other))
        .map(|keys| Call::delete(keys.iter().cloned()))
        .collect();
    if !calls.is_empty() && client.ask(&calls, Via::OwnStrictly, limit).is_err() {
        client.log_thread().log(Level::TRACE, || {
            tracing::trace!("answered releases stay on the server for a while");
        });
    }
}

impl fmt::Debug for LeaseRenewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.shared.state);
        f.debug_struct("LeaseRenewer")
            .field("locks", &state.leases.len())
            .field("running", &state.running)
            .finish_non_exhaustive()
    }
}
