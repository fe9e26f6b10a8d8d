//! The request for a lock, and the server's reply to it.

use std::sync::Arc;
use std::time::Duration;

use redis::{ServerError, Value};

use crate::protocol::lock::keys::LockKeys;
use crate::protocol::lock::lease::NextHolder;
use crate::protocol::lock::script::{ACQUIRE, ScriptCall};
use crate::protocol::replication::Durability;

/// Time without a heartbeat after which a waiter in fair mode loses its place.
pub(crate) const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum time between two requests of a waiter that receives messages about releases: a message
/// can be lost.
pub(crate) const MAX_QUIET_WAIT: Duration = Duration::from_secs(30);

/// Which callers may hold a lock together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockMode {
    /// One caller.
    Exclusive,
    /// As many callers as the request has permits.
    Semaphore,
    Read,
    Write,
}

impl LockMode {
    /// The first letter of the tokens of this mode.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Exclusive | Self::Semaphore => "x",
            Self::Read => "r",
            Self::Write => "w",
        }
    }

    /// Returns whether another caller may hold the lock at the same time.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Self::Semaphore | Self::Read)
    }
}

/// The waiters that may be able to use a wakeup which another waiter could not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WakeFilter {
    /// Readers: other readers block a writer.
    Readers,
    /// Waiters for fewer permits than this.
    Fewer(u32),
}

impl WakeFilter {
    /// Returns whether the waiter with this token is one of them.
    pub(crate) fn fits(self, owner_token: &str) -> bool {
        match self {
            Self::Readers => owner_token.starts_with('r'),
            Self::Fewer(permits) => permits_of(owner_token) < permits,
        }
    }
}

/// Returns the token of a new holder: `random` makes it unique. It contains the number of permits, if
/// the holder takes several.
pub(crate) fn owner_token(mode: LockMode, permits: u32, random: u128) -> String {
    let letter = mode.letter();
    match permits {
        1 => format!("{letter}{random:032x}"),
        _ => format!("{letter}{random:032x}:{permits}"),
    }
}

/// Returns the number of permits that the holder of a token takes.
pub(crate) fn permits_of(owner_token: &str) -> u32 {
    let permits = owner_token.split_once(':').and_then(|(_, permits)| permits.parse().ok());
    permits.unwrap_or(1)
}

/// The lock to acquire, and how.
#[derive(Clone)]
pub(crate) struct LockRequest {
    pub(crate) names: Arc<LockKeys>,
    pub(crate) mode: LockMode,
    /// Number of permits to acquire together.
    pub(crate) permits: u32,
    pub(crate) lease: Duration,
    /// Whether renewals extend the lease while the lock is held.
    pub(crate) renewed: bool,
    pub(crate) fair: bool,
    /// Shown to other callers as the holder.
    pub(crate) label: Option<Arc<str>>,
    pub(crate) replicas: Option<Durability>,
}

impl LockRequest {
    /// Returns whether the server knows a waiting caller: by its place in the queue, or because it
    /// keeps the number of permits for it.
    pub(crate) fn is_known_to_wait(&self) -> bool {
        self.fair || self.mode == LockMode::Semaphore
    }

    /// Returns this request's caller as the next holder, if a release in this process may give it the lock.
    /// In fair mode callers of other processes may come first, and a replicated lock needs a WAIT.
    pub(crate) fn next_holder(&self, owner_token: &str) -> Option<NextHolder> {
        let may_be_given =
            self.mode == LockMode::Exclusive && !self.fair && self.replicas.is_none();
        may_be_given.then(|| NextHolder {
            owner_token: owner_token.to_owned(),
            lease: self.lease,
            label: self.label.clone(),
        })
    }

    /// Selects the waiters that get a wakeup which this one cannot use.
    pub(crate) fn wake_filter(&self) -> Option<WakeFilter> {
        match self.mode {
            LockMode::Write => Some(WakeFilter::Readers),
            LockMode::Semaphore if self.permits > 1 => Some(WakeFilter::Fewer(self.permits)),
            _ => None,
        }
    }

    /// Returns the call that acquires the lock for `owner_token`, with `permits` as the maximum
    /// number of holders. If the lock is held, the caller waits for `waits`, or not at all.
    pub(crate) fn call(
        &self,
        owner_token: &str,
        permits: u32,
        waits: Option<Duration>,
    ) -> ScriptCall {
        let LockKeys { holders, info, queue, alive, fencing, wake, .. } = &*self.names;
        let heartbeat_timeout = if self.fair { HEARTBEAT_TIMEOUT } else { Duration::ZERO };
        // The server keeps the number of permits while a caller waits. Before the maximum time ends,
        // the caller sends another request or leaves.
        let kept = waits.unwrap_or_default().min(MAX_QUIET_WAIT + HEARTBEAT_TIMEOUT);
        let is_semaphore = self.mode == LockMode::Semaphore;
        let arguments = [
            owner_token,
            &self.lease.as_millis().to_string(),
            self.mode.letter(),
            &permits.to_string(),
            self.label.as_deref().unwrap_or_default(),
            &heartbeat_timeout.as_millis().to_string(),
            &u8::from(waits.is_some()).to_string(),
            wake,
            &if is_semaphore { kept.as_millis().to_string() } else { String::new() },
        ];
        let done = self.names.done(owner_token);
        ScriptCall::new(&ACQUIRE, [holders, info, queue, alive, &done, fencing], arguments)
    }
}

/// The server's reply to a request.
#[derive(Debug)]
pub(crate) enum AcquireReply<'a> {
    /// The token holds the lock, with this fencing token. `None`: the number cannot be read.
    Held(Option<u64>),
    /// The lock is held; the holder, if the server returned one.
    Busy(Option<LockHolder>),
    /// The server keeps another number of permits.
    OtherPermits(u32),
    /// The counter of fencing tokens is exhausted.
    NoFencingToken,
    /// The token was released before.
    Released,
    Error(&'a ServerError),
    Unexpected,
}

/// The holder of a lock, as of the last request to the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LockHolder {
    /// The holder's label ([`Lock::label`](crate::lock::Lock::label)).
    pub label: Option<Arc<str>>,
    /// Time left of the lease. The lease may have been extended since.
    pub remaining: Duration,
}

impl<'a> AcquireReply<'a> {
    pub(crate) fn of(reply: Option<&'a Value>) -> Self {
        match reply {
            // A number as text: it may exceed the integers of scripts.
            Some(Value::BulkString(digits)) => {
                Self::Held(std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()))
            }
            Some(Value::ServerError(error)) => Self::Error(error),
            Some(Value::Array(values)) => match values.as_slice() {
                [Value::Int(0), Value::Int(-1), _] => Self::Busy(None),
                [Value::Int(0), remaining, label] => {
                    holder(remaining, label).map_or(Self::Unexpected, |by| Self::Busy(Some(by)))
                }
                [Value::Int(-2), Value::Int(kept)] => {
                    Self::OtherPermits(u32::try_from(*kept).unwrap_or(u32::MAX))
                }
                [Value::Int(-3)] => Self::NoFencingToken,
                _ => Self::Released,
            },
            _ => Self::Unexpected,
        }
    }
}

/// Parses the reply to PEEK: the holder, if the lock is held. `None`: the reply is of another type.
pub(crate) fn peeked(reply: &Value) -> Option<Option<LockHolder>> {
    let Value::Array(values) = reply else { return None };
    match values.as_slice() {
        [Value::Int(0), ..] => Some(None),
        [_, remaining, label] => holder(remaining, label).map(Some),
        _ => None,
    }
}

/// Parses the reply to AVAILABLE: the number of held permits, and the number of permits that the server
/// keeps. `None`: the reply is of another type.
pub(crate) fn held_permits(reply: &Value) -> Option<(u32, Option<u32>)> {
    let Value::Array(values) = reply else { return None };
    let [Value::Int(used), Value::Int(kept)] = values.as_slice() else { return None };
    let used = u32::try_from((*used).max(0)).unwrap_or(u32::MAX);
    Some((used, u32::try_from(*kept).ok()))
}

/// Parses the holder in a script's reply.
fn holder(remaining: &Value, label: &Value) -> Option<LockHolder> {
    let (Value::Int(remaining), Value::BulkString(label)) = (remaining, label) else { return None };
    let label = String::from_utf8_lossy(label);
    let label = (!label.is_empty()).then(|| label.as_ref().into());
    let remaining = Duration::from_millis(u64::try_from(*remaining).unwrap_or_default());
    Some(LockHolder { label, remaining })
}
