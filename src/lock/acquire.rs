//! One acquisition: from the first request to a guard.
//!
//! A call ends at most one exchange after the caller's time. A token without a guard is released,
//! also that of a waiter in the queue. The drop of the call's future releases it too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use scopeguard::{ScopeGuard, guard};

use crate::connection::io::Io as _;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::lock::{LockError, LostReason};
use crate::lock::client::{ScriptReplies, Via, refused, unexpected_reply};
use crate::lock::given::{Given, GivenLock};
use crate::lock::held::AcquiredLock;
use crate::lock::io::{LockIo, Renewals, Waiter};
use crate::lock::lease::LockLease;
use crate::pool::server_pool::ServerPool;
use crate::protocol::lock::acquire::{
    AcquireReply, HEARTBEAT_TIMEOUT, LockHolder, LockRequest, MAX_QUIET_WAIT, owner_token,
};
use crate::protocol::lock::adopt::{AdoptReply, adopt as adopt_call};
use crate::protocol::lock::hold_token::HoldToken;
use crate::protocol::lock::lease::{release, valid_until};
use crate::protocol::lock::script::ScriptCall;
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::retry::Backoff;
use crate::sync::boxed::boxed;
use crate::sync::caught::caught;

/// Interval of a waiter's heartbeat in fair mode. A waiter without a heartbeat for three intervals
/// loses its place.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Maximum wait: an instant that is further ahead may not exist, and a day has the same effect.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);
/// Minimum and maximum delay between requests of a waiter that receives no messages.
const POLL_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// The number of permits of a semaphore.
pub(crate) struct Permits<M: LockIo> {
    number: AtomicU32,
    /// Taken while the number is being changed, here and on the server.
    changes: M::Changes,
}

impl<M: LockIo> Permits<M> {
    pub(crate) fn new(number: u32) -> Self {
        Self { number: AtomicU32::new(number), changes: M::Changes::default() }
    }

    pub(crate) fn get(&self) -> u32 {
        self.number.load(Ordering::Relaxed)
    }

    /// Returns the number, after any call that changes it has ended, at `by` at the latest.
    async fn settled(&self, by: Instant) -> u32 {
        let _settled = M::settle(&self.changes, by).await;
        self.get()
    }

    /// Changes the number if `change` succeeds, which changes it on the server. If another change is under way
    /// until `by`, nothing is sent; tasks go on after ten seconds, because its caller may be polled no more.
    pub(crate) async fn change(
        &self,
        number: u32,
        by: Option<Instant>,
        change: impl Future<Output = Result<(), Error>> + Send,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        let settled = M::settle(&self.changes, by.unwrap_or(begun + MAX_WAIT)).await;
        let Some(_changing) = settled else {
            return Err(match <M::Pool as ServerPool>::Io::is_cancelled() {
                true => LockError::Cancelled.into(),
                false => LockError::Timeout { waited: begun.elapsed(), holder: None }.into(),
            });
        };
        change.await?;
        self.number.store(number, Ordering::Relaxed);
        Ok(())
    }
}

/// Acquires the lock, and waits up to `wait` for it.
pub(crate) async fn acquire<M: LockIo>(
    manager: &Arc<M>,
    (request, permits): (&LockRequest, &Permits<M>),
    wait: Duration,
) -> Result<AcquiredLock<M>, Error> {
    manager.settings().here()?;
    if <M::Pool as ServerPool>::Io::is_cancelled() {
        return Err(LockError::Cancelled.into());
    }
    let started = Instant::now();
    let deadline = started + wait.min(MAX_WAIT);
    let _begun = manager.renewals().begin_acquisition()?;
    let mut attempt = Acquisition::new(manager, request, permits, deadline)?;
    let error = match acquire_by(&mut attempt, wait, started).await {
        Ok(held) => return Ok(held),
        Err(error) => error,
    };
    let waited_out = attempt.waited_out;
    let error = boxed(attempt.failed(error, "acquire")).await;
    // A call that is dropped before this has not timed out.
    if let Some(waited) = waited_out {
        manager.counters().timeouts.add();
        tracing::debug!(?waited, "lock not acquired");
    }
    Err(error)
}

async fn acquire_by<M: LockIo>(
    attempt: &mut Acquisition<'_, M>,
    wait: Duration,
    started: Instant,
) -> Result<AcquiredLock<M>, Error> {
    let (manager, request, deadline) = (attempt.manager, attempt.request, attempt.deadline);
    // If other callers already wait, one request before the wait is enough.
    attempt.waiter = manager.join_live(request, &attempt.owner_token);
    if let Some(waiter) = &attempt.waiter {
        waiter.checked();
    }
    let mut given = None;
    let mut pauses = backoff();
    let mut holder: Option<LockHolder> = None;
    loop {
        let tried = match given.take() {
            Some(given) => attempt.given(given),
            None => attempt.try_once(!wait.is_zero()).await,
        };
        let failure = match tried {
            Ok(AttemptResult::Held(held)) => {
                manager.counters().metrics.acquired(started);
                tracing::debug!(waited = ?started.elapsed(), "lock acquired");
                return Ok(held);
            }
            Ok(AttemptResult::Busy(by)) => {
                holder = by;
                None
            }
            Err(error) if error.is_retryable() && !wait.is_zero() => Some(error),
            Err(error) => return Err(error),
        };
        if Instant::now() < deadline && !<M::Pool as ServerPool>::Io::is_cancelled() {
            let waiter = attempt.join();
            let live = waiter.is_live();
            if !live {
                manager.listen(deadline).await;
            }
            let bound = match (&failure, &holder) {
                (None, by) if live && (by.is_some() || request.fair) => {
                    pauses = backoff();
                    quiet_wait(request, by.as_ref())
                }
                _ => pauses.wait(),
            };
            tracing::trace!(?bound, live, "lock wait");
            let until = deadline.min(Instant::now() + bound);
            waiter.wait(until).await;
            match waiter.take_given() {
                Given::No => {}
                Given::Maybe => attempt.may_hold = true,
                Given::Yes(lock) => {
                    given = Some(lock);
                    continue;
                }
            }
        }
        if <M::Pool as ServerPool>::Io::is_cancelled() {
            tracing::debug!(waited = ?started.elapsed(), "lock wait cancelled");
            return Err(LockError::Cancelled.into());
        }
        if Instant::now() >= deadline {
            let waited = started.elapsed();
            attempt.waited_out = (!wait.is_zero()).then_some(waited);
            return Err(failure.unwrap_or_else(|| LockError::Timeout { waited, holder }.into()));
        }
    }
}

/// Adopts a hold that another process has handed over. If the future is dropped, the hold is released if
/// it was adopted.
pub(crate) async fn adopt<M: LockIo>(
    manager: &Arc<M>,
    (request, permits): (&LockRequest, &Permits<M>),
    token: &HoldToken,
    wait: Duration,
) -> Result<AcquiredLock<M>, Error> {
    manager.settings().here()?;
    if !token.is_of(&request.names, request.mode) {
        return Err(Error::lock_refused("token", "it is the token of another lock"));
    }
    let _begun = manager.renewals().begin_acquisition()?;
    let request = LockRequest { permits: token.permits(), replicas: None, ..request.clone() };
    let deadline = Instant::now() + wait;
    let mut attempt = Acquisition::new(manager, &request, permits, deadline)?;
    match attempt.adopt(token).await {
        Ok(held) => {
            tracing::debug!("lock adopted");
            Ok(held)
        }
        Err(error) => Err(boxed(attempt.failed(error, "adopt")).await),
    }
}

/// Returns how long a waiter that receives messages waits without one.
fn quiet_wait(request: &LockRequest, holder: Option<&LockHolder>) -> Duration {
    let longest = if request.fair { HEARTBEAT } else { MAX_QUIET_WAIT };
    // A random part, so that not all waiters send a request when an unreleased lease ends.
    let ends = |by: &LockHolder| by.remaining + Duration::from_millis(1 + fastrand::u64(..8));
    holder.map_or(longest, |by| ends(by).min(longest))
}

/// The error of a call that may keep a lock, because `cause` kept it from being released.
pub(crate) fn maybe_kept(cause: Error, during: &'static str) -> Error {
    let source = match cause {
        Error::Checkout(CheckoutError::Connect { source, .. })
        | Error::Lock(LockError::Connection { source, .. }) => source,
        _ => ConnectionError::timed_out("it may have run, and its release has no reply"),
    };
    LockError::Connection { during, source }.into()
}

/// The random part of a token.
pub(crate) fn random() -> Result<u128, Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|_| Error::lock_refused("token", "the system has no random bits to give"))?;
    Ok(u128::from_ne_bytes(random))
}

fn backoff() -> Backoff {
    Backoff::new(POLL_PAUSES.0, POLL_PAUSES.1)
}

enum AttemptResult<M: LockIo> {
    Held(AcquiredLock<M>),
    /// The lock is held; the holder, if the server returned one.
    Busy(Option<LockHolder>),
}

/// The token of one acquisition, and the traces it may have left on the server. The drop releases
/// them.
struct Acquisition<'a, M: LockIo> {
    manager: &'a Arc<M>,
    request: &'a LockRequest,
    permits: &'a Permits<M>,
    owner_token: String,
    deadline: Instant,
    /// Deadline of the last exchange.
    over: Instant,
    /// The token may hold the lock, or come to hold it.
    may_hold: bool,
    queued: bool,
    /// The script was stopped halfway.
    maybe_partial: bool,
    /// The last failure of an adoption that may have run.
    unknown: Option<Error>,
    waiter: Option<M::Waiter>,
    /// The hold that was adopted has a label.
    labelled: bool,
    /// The call waited to its end without the lock, for so long.
    waited_out: Option<Duration>,
}

impl<'a, M: LockIo> Acquisition<'a, M> {
    fn new(
        manager: &'a Arc<M>,
        request: &'a LockRequest,
        permits: &'a Permits<M>,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let owner_token = owner_token(request.mode, request.permits, random()?);
        Ok(Self {
            manager,
            request,
            permits,
            owner_token,
            deadline,
            over: deadline + manager.settings().response_timeout,
            may_hold: false,
            queued: false,
            maybe_partial: false,
            unknown: None,
            waiter: None,
            labelled: false,
            waited_out: None,
        })
    }

    /// Queues the caller for messages about releases, once.
    fn join(&mut self) -> &M::Waiter {
        let Self { manager, request, owner_token, .. } = self;
        self.waiter.get_or_insert_with(|| manager.join(request, owner_token))
    }

    /// Returns the error of a failed adoption. If nothing was sent for it, that of a former request which may
    /// have run comes first.
    fn or_unknown(&mut self, error: Error) -> Error {
        match &self.unknown {
            Some(unknown) if matches!(error, Error::Checkout(_)) => return unknown.clone(),
            _ if error.applied() == Applied::Unknown => self.unknown = Some(error.clone()),
            _ => {}
        }
        error
    }

    /// Takes over the lock that a release has given to this caller.
    fn given(&mut self, given: GivenLock) -> Result<AttemptResult<M>, Error> {
        let GivenLock { fencing, timing, repeated } = given;
        let maybe_in_flight = self.may_hold || repeated;
        self.may_hold = true;
        if valid_until(self.request.lease, timing) <= Instant::now() {
            // The caller's task was not run for long: the server knows whether it holds the lock.
            return Ok(AttemptResult::Busy(None));
        }
        let replies = ScriptReplies { values: Vec::new(), timing, repeated };
        self.held(Ok(fencing), self.request.lease, &replies, maybe_in_flight)
    }

    async fn try_once(&mut self, enqueue: bool) -> Result<AttemptResult<M>, Error> {
        loop {
            let permits = self.permits.get();
            if self.request.permits > permits {
                let asked = self.request.permits;
                return Err(LockError::TooManyPermits { asked, permits }.into());
            }
            let waits = enqueue.then(|| self.deadline.saturating_duration_since(Instant::now()));
            let call = self.request.call(&self.owner_token, permits, waits);
            // Set before the bytes are sent: any later step may end early, also by a panic of the
            // user's log.
            let (maybe_in_flight, queued) = (self.may_hold, self.queued);
            (self.may_hold, self.queued) = (true, queued || self.request.is_known_to_wait());
            let via = self.request.replicas.as_ref().map_or(Via::PooledFirst, Via::Replicated);
            let asked = self.manager.client().ask(&[&call], via, self.over).await;
            let replies = asked.map_err(|failed| {
                if !failed.may_arrive() {
                    (self.may_hold, self.queued) = (maybe_in_flight, queued);
                }
                failed.into_error("acquire")
            })?;
            // A copy that was sent on a lost connection may still arrive.
            let maybe_in_flight = maybe_in_flight || replies.repeated;
            let reply = AcquireReply::of(replies.values.first());
            let waits = enqueue && matches!(reply, AcquireReply::Busy(_));
            let outcome = match reply {
                AcquireReply::Held(fencing) => {
                    let fencing = fencing.ok_or_else(|| unexpected_reply("acquire"));
                    return self.held(fencing, self.request.lease, &replies, maybe_in_flight);
                }
                // Only this attempt releases its token.
                AcquireReply::Released => return Err(Error::lock_lost(LostReason::Gone)),
                AcquireReply::Unexpected => return Err(unexpected_reply("acquire")),
                AcquireReply::Busy(holder) => {
                    if let Some(waiter) = &self.waiter {
                        waiter.busy(self.request.wake_filter());
                    }
                    Ok(AttemptResult::Busy(holder))
                }
                AcquireReply::OtherPermits(kept) => {
                    // If this handle's number has just changed, the call is repeated with the new
                    // one.
                    if self.permits.settled(self.over).await != permits {
                        (self.may_hold, self.queued) = (maybe_in_flight, queued);
                        continue;
                    }
                    match <M::Pool as ServerPool>::Io::is_cancelled() {
                        true => Err(LockError::Cancelled.into()),
                        false => Err(LockError::OtherPermits { asked: permits, kept }.into()),
                    }
                }
                AcquireReply::NoFencingToken => Err(LockError::NoFencingToken.into()),
                AcquireReply::Error(error) => {
                    let error = refused("acquire", error, maybe_in_flight || self.maybe_partial);
                    self.maybe_partial |= error.applied() != Applied::No;
                    Err(error)
                }
            };
            // The server does not have the token, or its state is known: see `maybe_partial`.
            self.may_hold = maybe_in_flight;
            self.queued = queued || (waits && self.request.is_known_to_wait());
            return outcome;
        }
    }

    /// Adopts the hold of `token`. A request without a reply is sent again until the deadline: the server
    /// knows whether the first one has adopted it.
    async fn adopt(&mut self, token: &HoldToken) -> Result<AcquiredLock<M>, Error> {
        let mut pauses = backoff();
        loop {
            let error = match self.adopt_once(token).await {
                Ok(adopted) => return Ok(adopted),
                Err(error) => error,
            };
            let (pause, is_retryable) = (pauses.wait(), error.is_retryable());
            let error = self.or_unknown(error);
            if !is_retryable || Instant::now() + pause >= self.deadline {
                return Err(error);
            }
            <M::Pool as ServerPool>::Io::pause(pause).await;
        }
    }

    async fn adopt_once(&mut self, token: &HoldToken) -> Result<AcquiredLock<M>, Error> {
        let manager = self.manager;
        let remember = manager.remember(self.request.lease, true);
        let call = adopt_call(self.request, token, &self.owner_token, remember);
        // Set before the bytes are sent, as for an acquisition.
        let maybe_in_flight = std::mem::replace(&mut self.may_hold, true);
        let asked = manager.client().ask(&[&call], Via::PooledFirst, self.over).await;
        let replies = asked.map_err(|failed| {
            self.may_hold = maybe_in_flight || failed.may_arrive();
            failed.into_error("adopt")
        })?;
        let maybe_in_flight = maybe_in_flight || replies.repeated;
        let failure = match AdoptReply::of(replies.values.first()) {
            AdoptReply::Held(fencing, left, labelled) => {
                let lease = if self.request.renewed { self.request.lease } else { left };
                self.labelled = labelled;
                if valid_until(lease, replies.timing) <= Instant::now() {
                    (self.may_hold, self.maybe_partial) = (maybe_in_flight, true);
                    return Err(Error::lock_lost(LostReason::Expired));
                }
                return match self.held(Ok(fencing), lease, &replies, maybe_in_flight)? {
                    AttemptResult::Held(held) => Ok(held),
                    AttemptResult::Busy(_) => Err(unexpected_reply("adopt")),
                };
            }
            AdoptReply::Lost | AdoptReply::Released => Error::lock_lost(LostReason::Gone),
            AdoptReply::Unexpected => return Err(unexpected_reply("adopt")),
            AdoptReply::Error(error) => {
                let error = refused("adopt", error, maybe_in_flight || self.maybe_partial);
                self.maybe_partial |= error.applied() != Applied::No;
                error
            }
        };
        self.may_hold = maybe_in_flight;
        Err(failure)
    }

    /// Makes the guard. `maybe_in_flight`: another copy of the request may still arrive.
    fn held(
        &mut self,
        fencing: Result<u64, Error>,
        lease: Duration,
        replies: &ScriptReplies,
        maybe_in_flight: bool,
    ) -> Result<AttemptResult<M>, Error> {
        // The reply has arrived: no copy of the request is in flight, unless there is another one.
        (self.may_hold, self.maybe_partial) = (maybe_in_flight, true);
        let fencing = fencing?;
        if let Some(wanted) = &self.request.replicas {
            let got = match replies.values.get(1).map(|answer| wanted.acks(answer)) {
                Some(Err(error)) => {
                    return Err(LockError::Command { during: "acquire", error }.into());
                }
                Some(Ok(got)) => got,
                None => ReplicaAcks::default(),
            };
            if !wanted.is_met_by(got) {
                return Err(LockError::NotReplicated { wanted: wanted.wanted(), got }.into());
            }
        }
        if valid_until(lease, replies.timing) <= Instant::now() {
            // A repeated request with the same token extends the lease, if the lock is free by
            // then.
            let late =
                ConnectionError::timed_out("the reply arrived when the lease had nearly ended");
            return Err(LockError::Connection { during: "acquire", source: late }.into());
        }
        let counters = Arc::clone(self.manager.counters());
        let token = self.owner_token.clone();
        let mut lock_lease = LockLease::new(
            self.request,
            lease,
            token,
            fencing,
            maybe_in_flight,
            replies.timing,
            counters,
        );
        lock_lease.labelled |= self.labelled;
        let held = AcquiredLock::new(Arc::clone(self.manager), Arc::new(lock_lease));
        if let Some(waiter) = self.waiter.take() {
            waiter.acquired(self.request.mode.is_shared());
        }
        // From here on the guard has to release the lock.
        (self.may_hold, self.queued, self.maybe_partial) = (false, false, false);
        held.start_renewal();
        Ok(AttemptResult::Held(held))
    }
}

impl<M: LockIo> Acquisition<'_, M> {
    /// Returns the error of a call that ended without the lock. It proves that none is held only if a release
    /// of what the call may have acquired, or may still acquire, has a reply.
    async fn failed(mut self, error: Error, during: &'static str) -> Error {
        self.leave();
        if error.applied() != Applied::No || !(self.may_hold || self.maybe_partial) {
            return error;
        }
        let Some(traces) = self.take_traces() else { return error };
        if M::finish(traces.release()).await { error } else { maybe_kept(error, during) }
    }

    fn leave(&mut self) {
        self.may_hold |= self.waiter.take().is_some_and(Waiter::leave);
    }

    /// Takes what the call may have left on the server.
    fn take_traces(&mut self) -> Option<AcquisitionTraces<M>> {
        let late = std::mem::take(&mut self.may_hold);
        let left = late || self.queued || self.maybe_partial;
        (self.queued, self.maybe_partial) = (false, false);
        left.then(|| AcquisitionTraces {
            manager: Arc::clone(self.manager),
            request: self.request.clone(),
            owner_token: std::mem::take(&mut self.owner_token),
            over: self.over,
            late,
        })
    }
}

impl<M: LockIo> Drop for Acquisition<'_, M> {
    fn drop(&mut self) {
        // In a forked child the traces belong to the parent, and so does the waiter.
        if self.manager.settings().is_forked_child() {
            return;
        }
        self.leave();
        if let Some(traces) = self.take_traces() {
            let released = traces.release();
            self.manager.clean_up(async {
                let _: bool = released.await;
            });
        }
    }
}

/// The traces that an acquisition without a guard may have left on the server.
struct AcquisitionTraces<M: LockIo> {
    manager: Arc<M>,
    request: LockRequest,
    owner_token: String,
    /// Deadline of the acquisition's last exchange.
    over: Instant,
    /// A copy of the request may still arrive. A copy whose reply has arrived is not in flight any
    /// more.
    late: bool,
}

impl<M: LockIo> AcquisitionTraces<M> {
    /// Releases the traces at once if the server replies, so that other callers need not wait, and
    /// in the background otherwise; returns whether it did. If the future is dropped, they are released in
    /// the background.
    fn release(self) -> impl Future<Output = bool> + Send {
        let begun = Instant::now();
        // Made before the first poll, which may never come.
        let traces = guard(self, move |traces| {
            if traces.manager.settings().is_forked_child() {
                return;
            }
            traces.manager.renewals().pending_release(traces.call(), begun + traces.lasts());
        });
        async move {
            // A log belongs to the user and may panic.
            let released = caught(traces.release_now(&traces.call(), begun)).await;
            let released = released.unwrap_or(false);
            if released {
                let traces = ScopeGuard::into_inner(traces);
                if !traces.late {
                    let key = traces.request.names.done(&traces.owner_token);
                    traces.manager.renewals().answered(key);
                }
            }
            released
        }
    }

    fn call(&self) -> ScriptCall {
        release(&self.request.names, &self.owner_token, self.remember(), Vec::new(), None)
    }

    /// The effect of a late copy lasts no longer than its lease, or its place in the queue.
    fn remember(&self) -> Duration {
        self.manager.remember(self.request.lease, self.late)
    }

    /// Returns how long the release makes a difference.
    fn lasts(&self) -> Duration {
        if self.late { self.remember() } else { self.request.lease.max(HEARTBEAT_TIMEOUT) }
    }

    /// Returns whether the traces were released.
    async fn release_now(&self, call: &ScriptCall, begun: Instant) -> bool {
        let limit = self.over.min(begun + self.manager.settings().cleanup_timeout);
        let client = self.manager.client();
        limit > begun
            && client
                .ask_one("release", call, Via::OwnConnection, limit)
                .await
                .is_ok_and(|reply| reply.was_held("release").is_ok())
    }
}
