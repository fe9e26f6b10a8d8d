//! The request for a lock, and the server's reply to it.

use std::sync::Arc;
use std::time::Duration;

use redis::{ServerError, Value};

use crate::protocol::lock::keys::LockKeys;
use crate::protocol::lock::script::{ACQUIRE, Call};

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

    /// Returns which waiters can use a wakeup that this one could not: readers can join the readers
    /// that a writer has to wait for.
    pub(crate) fn wake_compatible(self) -> Option<fn(&str) -> bool> {
        match self {
            Self::Write => Some(|owner_token| owner_token.starts_with('r')),
            _ => None,
        }
    }
}

/// One request for a lock.
pub(crate) struct AcquireCall<'a> {
    pub(crate) names: &'a LockKeys,
    pub(crate) owner_token: &'a str,
    pub(crate) mode: LockMode,
    pub(crate) lease: Duration,
    /// Maximum number of holders.
    pub(crate) permits: u32,
    /// Shown to other callers as the holder.
    pub(crate) label: &'a str,
    /// Time without a heartbeat after which a waiter loses its place; zero if it has none.
    pub(crate) heartbeat_timeout: Duration,
    /// The caller waits if the lock is held.
    pub(crate) enqueue: bool,
    /// Time for which the caller will wait. A semaphore keeps its number of permits for it.
    pub(crate) waits: Duration,
}

impl AcquireCall<'_> {
    /// The call as it is sent.
    pub(crate) fn call(&self) -> Call {
        let done = self.names.done(self.owner_token);
        let LockKeys { holders, info, queue, alive, fencing, wake, .. } = self.names;
        let waits = match self.mode {
            LockMode::Semaphore => self.waits.as_millis().to_string(),
            _ => String::new(),
        };
        let arguments = [
            self.owner_token,
            &self.lease.as_millis().to_string(),
            self.mode.letter(),
            &self.permits.to_string(),
            self.label,
            &self.heartbeat_timeout.as_millis().to_string(),
            &u8::from(self.enqueue).to_string(),
            wake,
            &waits,
        ];
        Call::new(&ACQUIRE, [holders, info, queue, alive, &done, fencing], arguments)
    }
}

/// The server's reply to a request.
#[derive(Debug)]
pub(crate) enum AcquireReply<'a> {
    /// The token holds the lock, with this fencing token. `None`: the number cannot be read.
    Held(Option<u64>),
    /// The lock is held; the holder, if the server returned one.
    Busy(Option<Holder>),
    /// The server keeps another number of permits.
    OtherPermits(u32),
    /// The counter of fencing tokens is exhausted.
    NoFencingToken,
    /// The token was released before.
    Released,
    Error(&'a ServerError),
    Unexpected,
}

/// The holder's label, if it has one, and the time left of its lease.
pub(crate) type Holder = (Option<Arc<str>>, Duration);

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
pub(crate) fn peeked(reply: &Value) -> Option<Option<Holder>> {
    let Value::Array(values) = reply else { return None };
    match values.as_slice() {
        [Value::Int(0), ..] => Some(None),
        [_, remaining, label] => holder(remaining, label).map(Some),
        _ => None,
    }
}

/// Parses the holder in a script's reply.
fn holder(remaining: &Value, label: &Value) -> Option<Holder> {
    let (Value::Int(remaining), Value::BulkString(label)) = (remaining, label) else { return None };
    let label = String::from_utf8_lossy(label);
    let label = (!label.is_empty()).then(|| label.as_ref().into());
    Some((label, Duration::from_millis(u64::try_from(*remaining).unwrap_or_default())))
}
