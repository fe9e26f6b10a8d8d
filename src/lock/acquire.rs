//! One acquisition: from the first question to a guard, or to nothing left behind.
//!
//! Never: a wait past the caller's time and one exchange. Never: a token left on the server, or in
//! line there, that no guard has.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::Value;

use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::lock::{LockError, LockHolder, LostReason};
use crate::lock::client::{Answers, Over, refused};
use crate::lock::guard::LockGuard;
use crate::lock::lease::{Hold, release, valid_until};
use crate::lock::manager::{Hub, strange};
use crate::lock::renewal::NotReady;
use crate::protocol::lock::keys::Names;
use crate::protocol::lock::script::{ACQUIRE, Call};
use crate::protocol::replication::{Durability, ReplicaAcks};
use crate::sync::lock;

/// Who is in line in fair mode says so at least this often, and is passed over when he has not
/// for three times as long.
const HEARTBEAT: Duration = Duration::from_secs(1);
const DEAD_AFTER: Duration = Duration::from_secs(3);
/// So often who waits asks by himself, whatever he hears: a message can be lost.
const AT_LEAST: Duration = Duration::from_secs(30);
/// The pauses of who does not hear of releases.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// Who may hold a lock together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One.
    Exclusive,
    /// As many as [`Spec::permits`] has.
    Semaphore,
    Read,
    Write,
}

impl Mode {
    fn letter(self) -> &'static str {
        match self {
            Self::Exclusive | Self::Semaphore => "x",
            Self::Read => "r",
            Self::Write => "w",
        }
    }

    /// Whether there may be room for another one beside it.
    fn is_shared(self) -> bool {
        matches!(self, Self::Semaphore | Self::Read)
    }

    /// Who can use what this one could not: readers get in beside the readers that a writer has to
    /// wait for.
    fn hands_on(self) -> Option<fn(&str) -> bool> {
        match self {
            Self::Write => Some(|member| member.starts_with('r')),
            _ => None,
        }
    }
}

/// How many may hold a semaphore at a time.
#[derive(Debug)]
pub(crate) struct Permits {
    pub(crate) number: AtomicU32,
    /// Held while the number is being changed, here and on the server.
    pub(crate) changing: Mutex<()>,
}

impl Permits {
    pub(crate) fn new(number: u32) -> Self {
        Self { number: AtomicU32::new(number), changing: Mutex::default() }
    }

    fn get(&self) -> u32 {
        self.number.load(Ordering::Relaxed)
    }

    /// The number, once no call is changing it.
    fn settled(&self) -> u32 {
        let _settled = lock(&self.changing);
        self.get()
    }
}

/// What is to be acquired, and how.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) names: Arc<Names>,
    pub(crate) mode: Mode,
    /// How many may hold it at a time. All clones of a handle have the same number.
    pub(crate) permits: Arc<Permits>,
    pub(crate) lease: Duration,
    pub(crate) renewed: bool,
    pub(crate) fair: bool,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) replicas: Option<Durability>,
}

impl Spec {
    /// Whether a caller that waits is known to the server: in line, or so that the number of permits
    /// is kept for it.
    fn is_known_to_wait(&self) -> bool {
        self.fair || self.mode == Mode::Semaphore
    }
}

/// Acquires the lock, waiting for it for so long.
pub(crate) fn acquire(hub: &Arc<Hub>, spec: &Spec, wait: Duration) -> Result<LockGuard, LockError> {
    hub.settings.here().map_err(LockError::Checkout)?;
    let started = Instant::now();
    // Past the end of the clock there is no deadline; a day is as good.
    let deadline = started + wait.min(Duration::from_secs(24 * 60 * 60));
    let _begun = hub.keeper.begin(&hub.courier).map_err(|why| match why {
        NotReady::Closed => LockError::Checkout(CheckoutError::Closed),
        NotReady::NoThread => LockError::Refused {
            setting: "thread",
            reason: "the system started no thread to extend the lease",
        },
    })?;
    let mut attempt = Attempt::new(hub, spec, deadline)?;
    // Where others wait already, one question before the wait is enough.
    let mut ticket = hub.waiters.join_live(&spec.names.wake, &attempt.member);
    if let Some(ticket) = &ticket {
        ticket.has_looked();
    }
    let mut pauses = backoff();
    let mut holder: Option<LockHolder> = None;
    loop {
        let failure = match attempt.once(!wait.is_zero()) {
            Ok(Tried::Held(guard)) => {
                if let Some(ticket) = ticket {
                    ticket.acquired(spec.mode.is_shared());
                }
                tracing::debug!(waited = ?started.elapsed(), "lock acquired");
                return Ok(guard);
            }
            // No wait in between: a wake-up that it may have had is still its own to act on.
            Ok(Tried::Again) => continue,
            Ok(Tried::Busy(by)) => {
                holder = by;
                None
            }
            Err(error) if error.is_retryable() && !wait.is_zero() => Some(error),
            Err(error) => return Err(error),
        };
        let waited = |failure: Option<LockError>, holder: Option<LockHolder>| {
            let waited = started.elapsed();
            if !wait.is_zero() {
                hub.counters.timeouts.add();
                tracing::debug!(?waited, "lock not acquired");
            }
            failure.unwrap_or(LockError::Timeout { waited, holder })
        };
        if Instant::now() >= deadline {
            return Err(waited(failure, holder));
        }
        let join = || hub.waiters.join(&spec.names.wake, &attempt.member);
        let ticket = ticket.get_or_insert_with(join);
        let live = ticket.is_live();
        if !live {
            hub.subscriber.listen(&hub.courier, deadline);
        }
        let bound = match (&failure, &holder) {
            (None, by) if live && (by.is_some() || spec.fair) => {
                pauses = backoff();
                let longest = if spec.fair { HEARTBEAT } else { AT_LEAST };
                // Not all at once, when a lease ends that was not given back.
                let ends =
                    |by: &LockHolder| by.remaining + Duration::from_millis(1 + fastrand::u64(..8));
                by.as_ref().map_or(longest, |by| ends(by).min(longest))
            }
            _ => pauses.next().unwrap_or(PAUSES.1).mul_f64(0.5 + fastrand::f64() / 2.0),
        };
        tracing::trace!(?bound, live, "lock wait");
        ticket.wait(deadline.min(Instant::now() + bound), spec.mode.hands_on());
        if Instant::now() >= deadline {
            return Err(waited(failure, holder));
        }
    }
}

fn backoff() -> backon::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(PAUSES.0)
        .with_max_delay(PAUSES.1)
        .with_factor(2.0)
        .without_max_times()
        .build()
}

enum Tried {
    Held(LockGuard),
    /// And by whom it is held, where it is.
    Busy(Option<LockHolder>),
    /// The handle's own number of permits has just been changed: it is to be asked again at once.
    Again,
}

/// The token of one acquisition, and what it may have left on the server. Dropped, that is given
/// back.
struct Attempt<'a> {
    hub: &'a Arc<Hub>,
    spec: &'a Spec,
    member: String,
    deadline: Instant,
    /// By when the last exchange is over.
    over: Instant,
    /// It may hold the lock, or come to hold it.
    may_hold: bool,
    in_line: bool,
    /// The script was stopped half way.
    half_done: bool,
}

impl<'a> Attempt<'a> {
    fn new(hub: &'a Arc<Hub>, spec: &'a Spec, deadline: Instant) -> Result<Self, LockError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| LockError::Refused {
            setting: "token",
            reason: "the system has no random bits to give",
        })?;
        let member = format!("{}{:032x}", spec.mode.letter(), u128::from_ne_bytes(random));
        let over = deadline + hub.settings.response_timeout;
        let (may_hold, in_line, half_done) = (false, false, false);
        Ok(Self { hub, spec, member, deadline, over, may_hold, in_line, half_done })
    }

    fn call(&self, enqueue: bool, permits: u32) -> Call {
        let Spec { names, mode, lease, fair, label, .. } = self.spec;
        let done = names.done(&self.member);
        let keys = [&names.holders, &names.info, &names.queue, &names.alive, &done, &names.fence];
        let heartbeat = if *fair { DEAD_AFTER } else { Duration::ZERO };
        // It asks again by then, or has left.
        let waits =
            self.deadline.saturating_duration_since(Instant::now()).min(AT_LEAST + DEAD_AFTER);
        let waits = match mode {
            Mode::Semaphore => waits.as_millis().to_string(),
            _ => String::new(),
        };
        let arguments = [
            self.member.clone(),
            lease.as_millis().to_string(),
            mode.letter().to_owned(),
            permits.to_string(),
            label.as_deref().unwrap_or_default().to_owned(),
            heartbeat.as_millis().to_string(),
            u8::from(enqueue).to_string(),
            names.wake.to_string(),
            waits,
        ];
        Call::new(&ACQUIRE, keys, arguments)
    }

    fn once(&mut self, enqueue: bool) -> Result<Tried, LockError> {
        let permits = self.spec.permits.get();
        let call = self.call(enqueue, permits);
        let calls = std::slice::from_ref(&call);
        // Before the bytes leave: what follows may end anywhere, also in a panic of the user's log.
        let (doubtful, in_line) = (self.may_hold, self.in_line);
        (self.may_hold, self.in_line) = (true, in_line || self.spec.is_known_to_wait());
        let courier = &self.hub.courier;
        let asked = match &self.spec.replicas {
            None => courier.ask(calls, Over::Any, self.over),
            Some(replicas) => courier.ask_replicated(calls, replicas, self.over),
        };
        let answers = asked.map_err(|failed| {
            if !failed.may_arrive() {
                (self.may_hold, self.in_line) = (doubtful, in_line);
            }
            failed.told("acquire")
        })?;
        // One that was sent on a lost connection may still arrive.
        let doubtful = doubtful || answers.repeated;
        let answer = answers.values.first();
        if let Some(fence @ Value::BulkString(_)) = answer {
            return self.held(fence, &answers, doubtful);
        }
        let (tried, waits) = match answer {
            Some(Value::ServerError(error)) => {
                let error = refused("acquire", error);
                self.half_done |= error.applied() != Applied::No;
                (Err(error), false)
            }
            Some(Value::Array(values)) => match values.as_slice() {
                [Value::Int(0), Value::Int(-1), _] => (Ok(Tried::Busy(None)), enqueue),
                [Value::Int(0), remaining, label] => match holder(remaining, label) {
                    Some(by) => (Ok(Tried::Busy(Some(by))), enqueue),
                    None => return Err(strange("acquire")),
                },
                [Value::Int(-2), Value::Int(kept)] => {
                    let kept = u32::try_from(*kept).unwrap_or(u32::MAX);
                    let other = LockError::OtherPermits { asked: permits, kept };
                    // Where this handle's number was just changed it asks again, with the new one.
                    let is_other = self.spec.permits.settled() == permits;
                    (if is_other { Err(other) } else { Ok(Tried::Again) }, false)
                }
                [Value::Int(-3)] => (Err(LockError::NoFencingToken), false),
                // Only this attempt gives its token back.
                _ => return Err(LockError::Lost { why: LostReason::Gone }),
            },
            _ => return Err(strange("acquire")),
        };
        // The server does not have it, or what it has is known: see `half_done`.
        self.may_hold = doubtful;
        self.in_line = in_line || (waits && self.spec.is_known_to_wait());
        tried
    }

    /// `doubtful`: another copy of the request may still arrive.
    fn held(
        &mut self,
        fence: &Value,
        answers: &Answers,
        doubtful: bool,
    ) -> Result<Tried, LockError> {
        // It was answered: no copy of the request is under way, unless another one is.
        (self.may_hold, self.half_done) = (doubtful, true);
        let Some(fence) = number(fence) else { return Err(strange("acquire")) };
        if let Some(wanted) = &self.spec.replicas {
            let got = match answers.values.get(1).map(|answer| wanted.acks(answer)) {
                Some(Err(error)) => return Err(LockError::Command { during: "acquire", error }),
                Some(Ok(got)) => got,
                None => ReplicaAcks::default(),
            };
            if !wanted.is_met_by(got) {
                return Err(LockError::NotReplicated { wanted: wanted.wanted(), got });
            }
        }
        let Spec { names, lease, renewed, .. } = self.spec;
        if valid_until(*lease, answers.sent, answers.took) <= Instant::now() {
            // Asked again with the same token it is extended, if it is free by then.
            let late = ConnectionError::timed_out("the answer came when the lease was nearly over");
            return Err(LockError::Connection { during: "acquire", source: late });
        }
        let hold = Arc::new(Hold::new(
            Arc::clone(names),
            self.member.clone(),
            fence,
            (*lease, *renewed),
            (answers.sent, answers.took),
            Arc::clone(&self.hub.counters),
        ));
        let guard = LockGuard::new(Arc::clone(self.hub), hold, doubtful);
        // From here on it is the guard's to give back.
        (self.may_hold, self.in_line, self.half_done) = (false, false, false);
        guard.is_kept();
        Ok(Tried::Held(guard))
    }

    /// Gives back what is left, here where the server answers: others then need not wait. True: it
    /// was given back.
    fn gives_back(&self, call: &Call, now: Instant) -> bool {
        let (hub, calls) = (self.hub, std::slice::from_ref(call));
        let limit = self.over.min(now + hub.settings.cleanup_timeout);
        if limit <= now {
            return false;
        }
        let done = hub.courier.ask(calls, Over::Own, limit);
        done.is_ok_and(|answers| matches!(answers.values.first(), Some(Value::Int(_))))
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.may_hold && !self.in_line && !self.half_done {
            return;
        }
        let Spec { names, lease, .. } = self.spec;
        // A copy of the request may still arrive. What was answered is not under way any more, and
        // lasts no longer than its lease, or its place in line.
        let late = self.may_hold;
        let remember = self.hub.remember(*lease, late);
        let call = release(names, &self.member, remember, Vec::new());
        let (keeper, now) = (&self.hub.keeper, Instant::now());
        // A log is the user's, and may panic.
        let given_back = catch_unwind(AssertUnwindSafe(|| self.gives_back(&call, now)));
        if !given_back.unwrap_or(false) {
            let lasts = if late { remember } else { (*lease).max(DEAD_AFTER) };
            keeper.chore(call, now + lasts, &self.hub.courier);
        } else if !late {
            keeper.answered(names.done(&self.member), &self.hub.courier);
        }
    }
}

/// A number that the server gives as text, because it may be larger than its scripts' integers.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse().ok(),
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// Who holds it, as a script says it.
pub(crate) fn holder(remaining: &Value, label: &Value) -> Option<LockHolder> {
    let (Value::Int(remaining), Value::BulkString(label)) = (remaining, label) else { return None };
    let label = String::from_utf8_lossy(label);
    Some(LockHolder {
        label: (!label.is_empty()).then(|| label.as_ref().into()),
        remaining: Duration::from_millis(u64::try_from(*remaining).unwrap_or_default()),
    })
}
