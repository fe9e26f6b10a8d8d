//! One acquisition: from the first question to a guard, or to nothing left behind.
//!
//! Never: a wait past the caller's time and one exchange. Never: a token left on the server, or in
//! line there, that no guard has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::Value;

use super::courier::{Answers, refused};
use super::guard::LockGuard;
use super::hold::{Hold, release, valid_until};
use super::hub::{Hub, LATE, strange};
use super::names::Names;
use super::script::{ACQUIRE, Call};
use crate::error::{Applied, Holder, LinkError, LockError, LostBecause};
use crate::wire::durability::{Acks, Durability};

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
    /// So many, whoever they are.
    Exclusive(u32),
    Read,
    Write,
}

impl Mode {
    fn letter(self) -> &'static str {
        match self {
            Self::Exclusive(_) => "x",
            Self::Read => "r",
            Self::Write => "w",
        }
    }

    /// Whether there may be room for another one beside it.
    fn is_shared(self) -> bool {
        !matches!(self, Self::Exclusive(1) | Self::Write)
    }

    fn capacity(self) -> u32 {
        match self {
            Self::Exclusive(capacity) => capacity,
            Self::Read | Self::Write => 1,
        }
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

/// What is to be acquired, and how.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) names: Arc<Names>,
    pub(crate) mode: Mode,
    pub(crate) lease: Duration,
    pub(crate) renewed: bool,
    pub(crate) fair: bool,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) replicas: Option<Durability>,
}

/// Acquires the lock, waiting for it for so long.
pub(crate) fn acquire(hub: &Arc<Hub>, spec: &Spec, wait: Duration) -> Result<LockGuard, LockError> {
    hub.settings.here().map_err(LockError::Checkout)?;
    let started = Instant::now();
    // Past the end of the clock there is no deadline; a day is as good.
    let deadline = started + wait.min(Duration::from_secs(24 * 60 * 60));
    let mut attempt = Attempt::new(hub, spec, deadline)?;
    // Where others wait already, one question before the wait is enough.
    let mut ticket = hub.waiters.join_live(&spec.names.wake, &attempt.member);
    if let Some(ticket) = &ticket {
        ticket.has_looked();
    }
    let mut pauses = backoff();
    let mut holder = None;
    loop {
        let failure = match attempt.once(!wait.is_zero()) {
            Ok(Tried::Held(guard)) => {
                if let Some(ticket) = ticket {
                    ticket.acquired(spec.mode.is_shared());
                }
                tracing::debug!(waited = ?started.elapsed(), "lock acquired");
                return Ok(guard);
            }
            Ok(Tried::Busy(by)) => {
                holder = Some(by);
                None
            }
            Err(error) if error.is_retryable() && !wait.is_zero() => Some(error),
            Err(error) => return Err(error),
        };
        let waited = |failure: Option<LockError>, holder: Option<Holder>| {
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
            (None, Some(by)) if live => {
                pauses = backoff();
                // Not all at once, when a lease ends that nobody gave back.
                let ends = by.remaining + Duration::from_millis(1 + fastrand::u64(..8));
                ends.min(if spec.fair { HEARTBEAT } else { AT_LEAST })
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
    Busy(Holder),
}

/// The token of one acquisition, and what it may have left on the server. Dropped, that is given
/// back.
struct Attempt<'a> {
    hub: &'a Arc<Hub>,
    spec: &'a Spec,
    member: String,
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
        Ok(Self { hub, spec, member, over, may_hold, in_line, half_done })
    }

    fn call(&self, enqueue: bool) -> Call {
        let Spec { names, mode, lease, fair, label, .. } = self.spec;
        let done = names.done(&self.member);
        let keys = [&names.holders, &names.info, &names.queue, &names.alive, &done, &names.fence];
        let heartbeat = if *fair { DEAD_AFTER } else { Duration::ZERO };
        let arguments = [
            self.member.clone(),
            lease.as_millis().to_string(),
            mode.letter().to_owned(),
            mode.capacity().to_string(),
            label.as_deref().unwrap_or_default().to_owned(),
            heartbeat.as_millis().to_string(),
            u8::from(enqueue).to_string(),
            names.wake.to_string(),
        ];
        Call::new(&ACQUIRE, keys, arguments)
    }

    fn once(&mut self, enqueue: bool) -> Result<Tried, LockError> {
        let call = self.call(enqueue);
        let replicas = self.spec.replicas.as_ref();
        let asked = self.hub.courier.ask(std::slice::from_ref(&call), replicas, self.over);
        let answers = asked.map_err(|failed| {
            self.may_hold |= failed.may_arrive();
            self.in_line |= failed.may_arrive() && self.spec.fair;
            failed.told("acquire")
        })?;
        // One that was sent on a lost connection may still arrive.
        self.may_hold |= answers.repeated;
        match answers.values.first() {
            Some(Value::ServerError(error)) => {
                let error = refused("acquire", error);
                self.half_done |= error.applied() != Applied::No;
                Err(error)
            }
            Some(fence @ Value::BulkString(_)) => self.held(fence, &answers),
            Some(Value::Array(values)) => match values.as_slice() {
                [Value::Int(0), remaining, label] => {
                    self.in_line |= enqueue && self.spec.fair;
                    holder(remaining, label).map(Tried::Busy).ok_or_else(|| strange("acquire"))
                }
                // Nobody but this attempt gives its token back.
                _ => Err(LockError::Lost { why: LostBecause::Gone }),
            },
            _ => Err(strange("acquire")),
        }
    }

    fn held(&mut self, fence: &Value, answers: &Answers) -> Result<Tried, LockError> {
        let doubtful = std::mem::replace(&mut self.may_hold, true);
        let Some(fence) = number(fence) else { return Err(strange("acquire")) };
        if let Some(wanted) = &self.spec.replicas {
            let got = match answers.values.get(1).map(|answer| wanted.acks(answer)) {
                Some(Err(error)) => return Err(LockError::Command { during: "acquire", error }),
                Some(Ok(got)) => got,
                None => Acks::default(),
            };
            if !wanted.is_met_by(got) {
                return Err(LockError::NotReplicated { wanted: wanted.wanted(), got });
            }
        }
        let Spec { names, lease, renewed, .. } = self.spec;
        if valid_until(*lease, answers.sent, answers.took) <= Instant::now() {
            // Asked again with the same token it is extended, if nobody else has it by then.
            let late = LinkError::timed_out("the answer came when the lease was nearly over");
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
        // From here on it is the guard's to give back.
        (self.may_hold, self.in_line) = (false, false);
        Ok(Tried::Held(LockGuard::new(Arc::clone(self.hub), hold, doubtful)))
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.may_hold && !self.in_line && !self.half_done {
            return;
        }
        let remember = self.spec.lease.max(LATE);
        let call = release(&self.spec.names, &self.member, remember);
        let (hub, now) = (self.hub, Instant::now());
        // Where the server answers, others need not wait until it is noticed.
        let limit = self.over.min(now + hub.settings.cleanup_timeout);
        let done = hub.courier.ask(std::slice::from_ref(&call), None, limit);
        if !done.is_ok_and(|answers| matches!(answers.values.first(), Some(Value::Int(_)))) {
            // What was answered is not on its way any more, and lasts no longer than its lease.
            let late = self.may_hold || self.in_line;
            let lasts = if late { remember } else { self.spec.lease };
            hub.keeper.chore(call, now + lasts, &hub.courier);
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
pub(crate) fn holder(remaining: &Value, label: &Value) -> Option<Holder> {
    let (Value::Int(remaining), Value::BulkString(label)) = (remaining, label) else { return None };
    let label = String::from_utf8_lossy(label);
    Some(Holder {
        label: (!label.is_empty()).then(|| label.as_ref().into()),
        remaining: Duration::from_millis(u64::try_from(*remaining).unwrap_or_default()),
    })
}
