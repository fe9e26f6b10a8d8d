//! Why a lock was not acquired, or is no longer held.
//!
//! Never: a lock's name or its owner's token. Never: "held", once the lease may be over.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::server_error::ServerError;
use crate::text::{brief, display};

/// Who holds a lock, as the server had it when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockHolder {
    /// What the holder called itself ([`Lock::label`](crate::Lock::label)).
    pub label: Option<Arc<str>>,
    /// What was left of its lease. It may have been extended since.
    pub remaining: Duration,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Some(label) => write!(f, "{label:?} for {} more", brief(self.remaining)),
            None => write!(f, "another caller for {} more", brief(self.remaining)),
        }
    }
}

/// How a lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The lease was not extended in time: the server was out of reach, or this process was
    /// stopped, or the lease is fixed. By this process's clock, less a margin.
    Expired,
    /// The server said that somebody else may have it: the lease ended there, the lock was
    /// [forced](crate::Lock::force_release), or its data is gone.
    Gone,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its lease was not extended in time",
            Self::Gone => "the server no longer has it as ours",
        })
    }
}

/// Why a lock was not acquired, or is no longer held.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else had it for as long as the caller was ready to wait.
    #[non_exhaustive]
    Timeout {
        /// How long the call waited.
        waited: Duration,
        /// Who held it when the server was last asked.
        holder: Option<LockHolder>,
    },
    /// The lock was held and is not any more. What it was to protect may be in others' hands.
    #[non_exhaustive]
    Lost {
        /// How.
        why: LostReason,
    },
    /// No connection was given.
    Checkout(CheckoutError),
    /// The server refused. Where it stopped one of this crate's scripts half way, for want of a right,
    /// [`applied`](Self::applied) is `Unknown`; an acquisition is given back then.
    #[non_exhaustive]
    Command {
        /// What was being done: `acquire`, `release`, …
        during: &'static str,
        /// What the server said.
        error: ServerError,
    },
    /// The connection failed and so did every other one. What may have been acquired is given back
    /// in the background, by its token; what may not have been released ends with its lease.
    #[non_exhaustive]
    Connection {
        /// What was being done: `acquire`, `release`, …
        during: &'static str,
        /// How the connection failed.
        source: ConnectionError,
    },
    /// It was acquired, too few replicas had it in time, and it was given back.
    #[non_exhaustive]
    NotReplicated {
        /// What [`wait_replicas`](crate::Lock::wait_replicas) asked for.
        wanted: ReplicaAcks,
        /// What the server counted.
        got: ReplicaAcks,
    },
    /// The semaphore has another number of permits than the caller asked with, and holders or
    /// waiters that count on it. Nothing was acquired.
    #[non_exhaustive]
    OtherPermits {
        /// The number that the caller asked with.
        asked: u32,
        /// The number that the server keeps.
        kept: u32,
    },
    /// The server's counter of fencing tokens has reached 2^53, or is no number: the next token
    /// might be one that was given before. Nothing was acquired. Only a foreign client sets the
    /// counter so high; an operator has to set it back (the key `<prefix>:fence`, in a cluster one
    /// for each slot).
    NoFencingToken,
    /// It cannot work as it was asked for; nothing was sent.
    #[non_exhaustive]
    Refused {
        /// Which setting: `name`, `lease`, `permits`, `label`; `thread`, where the system started none.
        setting: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

display!(LockError);

impl LockError {
    pub(crate) fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { waited, holder } => {
                write!(f, "the lock was not acquired within {}", brief(*waited))?;
                holder.as_ref().map_or(Ok(()), |holder| write!(f, "; held by {holder}"))
            }
            Self::Lost { why } => write!(f, "the lock was lost: {why}"),
            Self::Checkout(error) => error.text(f),
            Self::Command { during, error } => {
                write!(f, "{during} was refused by the server: {error}")
            }
            Self::Connection { during, .. } => write!(f, "{during} failed"),
            Self::NotReplicated { wanted, got } => {
                write!(f, "the lock is on {got}, not on {wanted}, and was given back")
            }
            Self::OtherPermits { asked, kept } => {
                let ending = if *kept == 1 { "" } else { "s" };
                write!(
                    f,
                    "the semaphore has {kept} permit{ending} now, and was asked for with {asked}: use \
                     one number, or change it with set_permits"
                )
            }
            Self::NoFencingToken => f.write_str(
                "there is no fencing token left: the counter is beyond 2^53 or is no number",
            ),
            Self::Refused { setting, reason } => write!(f, "{setting}: {reason}"),
        }
    }
}

impl Error for LockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Checkout(error) => error.source(),
            Self::Connection { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<CheckoutError> for LockError {
    fn from(error: CheckoutError) -> Self {
        Self::Checkout(error)
    }
}

impl LockError {
    /// What the server did: for an `acquire`, whether the lock is left taken.
    pub fn applied(&self) -> Applied {
        match self {
            Self::Timeout { .. }
            | Self::Lost { .. }
            | Self::Checkout(_)
            | Self::NotReplicated { .. }
            | Self::OtherPermits { .. }
            | Self::NoFencingToken
            | Self::Refused { .. } => Applied::No,
            // It only asks.
            Self::Command { during: "holder", .. } | Self::Connection { during: "holder", .. } => {
                Applied::No
            }
            Self::Command { error, .. } if error.is_from_script() => Applied::Unknown,
            Self::Command { .. } => Applied::No,
            Self::Connection { .. } => Applied::Unknown,
        }
    }

    /// Whether the same call may succeed later as it is. Trying again is always safe: each try has
    /// a token of its own, and what an earlier one left behind is given back.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Connection { .. } | Self::NotReplicated { .. } => true,
            Self::Lost { .. }
            | Self::OtherPermits { .. }
            | Self::NoFencingToken
            | Self::Refused { .. } => false,
            Self::Checkout(error) => error.is_retryable(),
            Self::Command { error, .. } => error.is_transient(),
        }
    }
}
