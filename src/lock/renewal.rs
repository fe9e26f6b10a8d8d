//! The renewal of leases: which of them are due, what is sent for them, and what a reply means.
//!
//! No lease is extended after its guard released it. Failed releases are retried, and the server's
//! records of releases whose replies have arrived are deleted. A session manager that was closed
//! keeps its connections for this until the last guard or its lease has ended.
//!
//! If the future of a step is dropped, its calls may have been sent: a renewal counts as failed, a
//! release is retried, and the records are not deleted before they expire.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use scopeguard::guard;
use tracing::Level;

use crate::error::lock::LostReason;
use crate::lock::client::{CallError, ScriptClient, ScriptReplies, Via};
use crate::lock::lease::LockLease;
use crate::pool::server_pool::ServerPool;
use crate::process::worker::Next;
use crate::protocol::cluster::slot;
use crate::protocol::cluster::slot_map::NodeAddress;
use crate::protocol::lock::lease::was_held;
use crate::protocol::lock::script::ScriptCall;
use crate::protocol::retry::Backoff;
use crate::sync::caught::caught;

/// Time for which the renewal stays without a lock before it ends.
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// Maximum delay before a failed release is retried, and maximum time of its exchange.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// In a cluster, maximum time of a renewal's exchange with a master that has not answered before.
const MAX_PATIENCE: Duration = Duration::from_secs(2);
/// Time after which a release that a step or a task has taken is sent by another one: its runtime may stand
/// still.
pub(crate) const MAX_STEP: Duration = Duration::from_secs(2);
/// Minimum time of one exchange for renewals: a busy machine may need as long.
const MIN_EXCHANGE: Duration = Duration::from_millis(100);
/// Maximum time that the server remembers a release whose reply has arrived, if no other release is
/// sent.
const CLEANUP_DELAY: Duration = Duration::from_millis(100);
/// Maximum number of keys of answered releases that the next release deletes.
const MAX_PIGGYBACKED: usize = 16;

/// The leases of a session manager, and the releases and deletions that are still to be sent.
#[derive(Default)]
pub(crate) struct RenewalState {
    /// The leases of all living guards, and of guards whose release is in flight, until the lease
    /// ends.
    leases: HashMap<usize, Arc<LockLease>>,
    /// Releases without a reply, also while a step sends them.
    pending_releases: Vec<PendingRelease>,
    /// Number of the last one.
    last_release: u64,
    /// Number of acquisitions in progress.
    attempts: usize,
    /// Number of releases of dropped guards and calls that run in the background.
    #[cfg(feature = "tokio")]
    cleanups: usize,
    /// Keys by which the server remembers releases whose replies have arrived.
    answered: Vec<String>,
    /// Time at which these keys are deleted, unless a release deletes them before.
    forget_at: Option<Instant>,
    /// No lease is extended any more: the timeout of the session manager's close is over.
    renewals_ended: bool,
    /// The connections for renewals and releases are closed.
    finished: bool,
}

/// A release to be retried, as long as it makes a difference.
struct PendingRelease {
    number: u64,
    call: Arc<ScriptCall>,
    next: Instant,
    pauses: Backoff,
    until: Instant,
}

/// A pending release that a step sends.
pub(crate) struct SentRelease {
    number: u64,
    call: Arc<ScriptCall>,
    /// When it is sent again, if it has to be.
    next: Instant,
    until: Instant,
    /// It has a reply, or makes no difference any more.
    is_over: bool,
}

/// The work that is due now.
#[derive(Default)]
pub(crate) struct Due {
    lost: Vec<Arc<LockLease>>,
    renewals: Vec<Arc<LockLease>>,
    pending_releases: Vec<SentRelease>,
    answered: Vec<String>,
    /// End of the first lease to end.
    bound: Option<Instant>,
    /// Length of the shortest lease.
    shortest: Option<Duration>,
    /// The connections are to be closed afterwards.
    pub(crate) finishes: bool,
}

impl RenewalState {
    /// Returns whether leases are extended.
    pub(crate) fn extends(&self) -> bool {
        !self.renewals_ended
    }

    /// Counts an acquisition, during which the renewal does not end.
    pub(crate) fn begin_acquisition(&mut self) {
        self.attempts += 1;
    }

    pub(crate) fn end_acquisition(&mut self) {
        self.attempts -= 1;
    }

    /// Counts a release that runs in the background.
    #[cfg(feature = "tokio")]
    pub(crate) fn begin_cleanup(&mut self) {
        self.cleanups += 1;
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn end_cleanup(&mut self) {
        self.cleanups -= 1;
    }

    /// Returns the number of releases that have no reply yet, and for which no call waits.
    pub(crate) fn releasing(&self) -> usize {
        #[cfg(feature = "tokio")]
        let cleanups = self.cleanups;
        #[cfg(not(feature = "tokio"))]
        let cleanups = 0;
        self.pending_releases.len() + cleanups
    }

    /// Adds a lease, and returns when the next step of it is due.
    pub(crate) fn watch(&mut self, lock_lease: &Arc<LockLease>) -> Instant {
        self.leases.insert(key(lock_lease), Arc::clone(lock_lease));
        lock_lease.next_step(self.extends()).unwrap_or_else(Instant::now)
    }

    /// Removes a lease, and returns it.
    pub(crate) fn forget(&mut self, lock_lease: &Arc<LockLease>) -> Option<Arc<LockLease>> {
        self.leases.remove(&key(lock_lease))
    }

    /// Adds a release that makes a difference until `until`, and returns when it is due. `None`:
    /// nothing is sent any more.
    pub(crate) fn add_release(&mut self, call: ScriptCall, until: Instant) -> Option<Instant> {
        if self.finished {
            return None;
        }
        let next = Instant::now();
        let pauses = Backoff::new(MAX_PAUSE / 50, MAX_PAUSE);
        self.last_release += 1;
        let (number, call) = (self.last_release, Arc::new(call));
        self.pending_releases.push(PendingRelease { number, call, next, pauses, until });
        Some(next)
    }

    /// Records the end of a step that sent these releases. Another step may have sent them too.
    pub(crate) fn end_releases(&mut self, sent: &[SentRelease]) {
        self.pending_releases.retain_mut(|release| {
            let Some(sent) = sent.iter().find(|sent| sent.number == release.number) else {
                return true;
            };
            release.next = sent.next;
            !sent.is_over
        });
    }

    /// Adds the key of an answered release. If its deletion was not yet scheduled, returns when it is
    /// due.
    pub(crate) fn add_answered(&mut self, key: String) -> Option<Instant> {
        self.answered.push(key);
        if self.forget_at.is_some() {
            return None;
        }
        self.forget_at = Some(Instant::now() + CLEANUP_DELAY);
        self.forget_at
    }

    /// Removes and returns keys of answered releases that a release of `holders` deletes too; in a
    /// cluster only keys of its slot.
    pub(crate) fn take_answered(&mut self, holders: &str, in_cluster: bool) -> Vec<String> {
        if !in_cluster {
            let kept = self.answered.len().saturating_sub(MAX_PIGGYBACKED);
            return self.answered.split_off(kept);
        }
        let slot = slot::of_key(holders.as_bytes());
        self.answered.extract_if(.., |key| slot::of_key(key.as_bytes()) == slot).collect()
    }

    /// Ends all renewals. Returns the number of held locks, the keys that are left to delete, and
    /// whether the connections are to be closed now.
    pub(crate) fn end_renewals(&mut self) -> (usize, Vec<String>, bool) {
        self.renewals_ended = true;
        let held = self.leases.values().filter(|lock_lease| lock_lease.is_held()).count();
        (held, std::mem::take(&mut self.answered), self.finishes())
    }

    /// Returns whether the connections were to be closed.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_finished(&self) -> bool {
        self.finished
    }

    /// Returns whether no guard lives and no release is pending.
    pub(crate) fn is_idle(&self) -> bool {
        self.leases.is_empty() && self.attempts == 0 && self.releasing() == 0
    }

    /// Records and returns whether the connections are to be closed now.
    fn finishes(&mut self) -> bool {
        let finishes = self.renewals_ended && !self.finished && self.is_idle();
        self.finished |= finishes;
        finishes
    }

    pub(crate) fn next(&mut self, now: Instant) -> Next<Due> {
        if self.finished {
            return Next::End;
        }
        if let Some(due) = self.due(now) {
            return Next::Run(due);
        }
        let extends = self.extends();
        let looks = self.leases.values().filter_map(|lock_lease| lock_lease.next_step(extends));
        let releases = self.pending_releases.iter().map(|release| release.next);
        match looks.chain(releases).chain(self.forget_at).min() {
            Some(next) => Next::WaitUntil(next),
            None if self.is_idle() => Next::Idle,
            // A call is in progress, which will wake the renewal.
            None => Next::WaitUntil(now + IDLE),
        }
    }

    /// Takes the work that is due, if there is any.
    fn due(&mut self, now: Instant) -> Option<Due> {
        let mut due = Due::default();
        let extends = self.extends();
        self.leases.retain(|_, lock_lease| !lock_lease.is_gone(now));
        let any_due = extends && self.leases.values().any(|lock_lease| lock_lease.is_due(now));
        for lock_lease in self.leases.values().filter(|lock_lease| lock_lease.is_held()) {
            let valid_until = lock_lease.valid_until();
            if valid_until <= now {
                due.lost.push(Arc::clone(lock_lease));
                continue;
            }
            due.bound = Some(due.bound.map_or(valid_until, |bound| bound.min(valid_until)));
            let lease = lock_lease.lease;
            due.shortest = Some(due.shortest.map_or(lease, |shortest| shortest.min(lease)));
            // A lease that is due soon is extended in the same write.
            if any_due && lock_lease.is_due(now + lock_lease.lease / 6) {
                due.renewals.push(Arc::clone(lock_lease));
            }
        }
        for release in self.pending_releases.iter_mut().filter(|release| release.next <= now) {
            release.next = now + MAX_STEP;
            due.pending_releases.push(SentRelease {
                number: release.number,
                call: Arc::clone(&release.call),
                next: now + release.pauses.wait(),
                until: release.until,
                is_over: false,
            });
        }
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

fn key(lock_lease: &Arc<LockLease>) -> usize {
    Arc::as_ptr(lock_lease) as usize
}

impl Due {
    /// Sends what is due. `end` gets the releases that were sent.
    ///
    /// A log belongs to the user and may panic; the next step runs all the same.
    pub(crate) async fn run<P: ServerPool>(
        self,
        client: &ScriptClient<P>,
        end: impl FnOnce(Vec<SentRelease>) + Send,
    ) {
        let bound = self.bound;
        let mut exchanges =
            Exchanges { client, bound, shortest: self.shortest, silent: Vec::new() };
        for lock_lease in &self.lost {
            caught(async { lock_lease.lose(LostReason::Expired) }).await;
        }
        caught(renew(&self.renewals, &mut exchanges)).await;
        if !self.pending_releases.is_empty() {
            // Also after a panic, and if the future is dropped.
            let mut releases = guard(self.pending_releases, end);
            caught(send_pending_releases(&mut releases, &mut exchanges)).await;
        }
        caught(forget(self.answered, bound, client)).await;
    }
}

/// Returns the deadline of one exchange: half of the time is left for another exchange, on a new
/// connection if this one is silent.
fn share(bound: Option<Instant>, now: Instant) -> Instant {
    let Some(bound) = bound else { return now + MAX_PAUSE };
    let half = bound.saturating_duration_since(now) / 2;
    bound.min(now + half.max(MIN_EXCHANGE))
}

/// The exchanges of one step, one after the other. In a cluster a master that does not answer must cost no
/// lock of another one: it gets one exchange, which is short at first.
struct Exchanges<'c, P: ServerPool> {
    client: &'c ScriptClient<P>,
    /// End of the first lease to end.
    bound: Option<Instant>,
    /// Length of the shortest lease.
    shortest: Option<Duration>,
    /// The masters that have not answered; `None`: that of the slots whose master is not known.
    silent: Vec<Option<NodeAddress>>,
}

impl<P: ServerPool> Exchanges<'_, P> {
    /// Returns the maximum time of a renewal that has failed so often: a short lease that another master
    /// has must not end meanwhile.
    fn patience(&self, failures: u32) -> Option<Duration> {
        if !self.client.is_in_cluster() {
            return None;
        }
        let growing = MAX_PAUSE * (1 << failures.saturating_sub(1).min(8));
        let others = self.shortest.map_or(MAX_PATIENCE, |shortest| shortest / 4);
        Some(growing.min(others).clamp(MAX_PAUSE, MAX_PATIENCE))
    }

    /// Sends calls of one slot. `None`: they are not sent, because their master is silent.
    async fn ask(
        &mut self,
        calls: &[&ScriptCall],
        most: Option<Duration>,
    ) -> Option<Result<ScriptReplies, CallError>> {
        let (first, now) = (calls.first()?, Instant::now());
        let master = self.client.master_of(first);
        if self.silent.contains(&master) {
            return None;
        }
        let limit = share(self.bound, now);
        let limit = most.map_or(limit, |most| limit.min(now + most));
        let asked = self.client.ask(calls, Via::OwnStrictly, limit).await;
        if asked.is_err() && self.client.is_in_cluster() {
            self.silent.push(master);
        }
        Some(asked)
    }
}

/// Extends the leases in one write; in a cluster, in one write for each slot.
async fn renew<P: ServerPool>(due: &[Arc<LockLease>], exchanges: &mut Exchanges<'_, P>) {
    let client = exchanges.client;
    let mut due: Vec<_> = due.iter().map(|lock_lease| (lock_lease, lock_lease.renewal())).collect();
    // If a master is unreachable, the locks on the others come first the next time.
    due.sort_by_key(|(lock_lease, call)| (lock_lease.failures(), client.slot_of(call)));
    // Before the bytes are sent: a renewal counts as failed until its reply has arrived.
    due.iter().for_each(|(lock_lease, _)| lock_lease.postpone());
    let log = client.log_thread();
    let same_slot = |(_, one): &(_, ScriptCall), (_, other): &(_, ScriptCall)| {
        client.slot_of(one) == client.slot_of(other)
    };
    for together in due.chunk_by(same_slot) {
        let locks = together.len();
        let calls: Vec<_> = together.iter().map(|(_, call)| call).collect();
        let failures = together.first().map_or(0, |(lock_lease, _)| lock_lease.failures());
        let most = exchanges.patience(failures);
        let replies = match exchanges.ask(&calls, most).await {
            None => {
                // It comes before those that were sent.
                together.iter().for_each(|(lock_lease, _)| lock_lease.not_sent());
                continue;
            }
            Some(Ok(replies)) => replies,
            Some(Err(failed)) => {
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

/// Sends the releases in one write, and records which of them are over.
async fn send_pending_releases<P: ServerPool>(
    releases: &mut [SentRelease],
    exchanges: &mut Exchanges<'_, P>,
) {
    let client = exchanges.client;
    let slot = |release: &SentRelease| client.slot_of(&release.call);
    releases.sort_by_key(slot);
    let mut settled = Vec::with_capacity(releases.len());
    for together in releases.chunk_by(|one, other| slot(one) == slot(other)) {
        let calls: Vec<_> = together.iter().map(|release| &*release.call).collect();
        let replies = exchanges.ask(&calls, Some(MAX_PAUSE)).await.and_then(Result::ok);
        let is_settled = |nth| {
            let value = replies.as_ref().and_then(|replies| replies.values.get(nth));
            value.is_some_and(|value| !matches!(value, Value::ServerError(_)))
        };
        settled.extend((0..calls.len()).map(is_settled));
    }
    let ended = Instant::now();
    for (release, is_settled) in releases.iter_mut().zip(settled) {
        release.is_over = is_settled || ended >= release.until;
    }
}

/// Deletes keys by which the server remembers releases. The keys have a time to live, so a failure
/// does no harm.
pub(crate) async fn forget<P: ServerPool>(
    mut keys: Vec<String>,
    bound: Option<Instant>,
    client: &ScriptClient<P>,
) {
    let slot = |key: &String| client.is_in_cluster().then(|| slot::of_key(key.as_bytes()));
    keys.sort_by_key(slot);
    let begun = Instant::now();
    let limit = share(bound, begun).min(begun + MAX_PAUSE);
    for together in keys.chunk_by(|one, other| slot(one) == slot(other)) {
        let call = ScriptCall::delete(together.iter().cloned());
        if client.ask(&[&call], Via::OwnStrictly, limit).await.is_err() {
            client.log_thread().log(Level::TRACE, || {
                tracing::trace!("answered releases stay on the server for a while");
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_send<T: Send>(_: T) {}

    /// This compiles only if the futures can move between threads on every side.
    fn futures_are_send<P: ServerPool>(due: Due, client: &ScriptClient<P>) {
        assert_send(due.run(client, drop));
        assert_send(forget(Vec::new(), None, client));
    }

    #[test]
    fn a_renewals_futures_can_move_between_threads() {
        let _: fn(Due, &ScriptClient) = futures_are_send;
    }

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
