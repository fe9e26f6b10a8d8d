//! Why a lock was not acquired, or is no longer held.
//!
//! No error contains a lock's name or its owner's token.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::error::applied::Applied;
use crate::error::connection::ConnectionError;
use crate::protocol::lock::acquire::LockHolder;
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::server_error::ServerError;
use crate::text::{brief, display};

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Some(label) => write!(f, "{label:?} for {} more", brief(self.remaining)),
            None => write!(f, "another caller for {} more", brief(self.remaining)),
        }
    }
}

/// The reason why a lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The lease was not extended in time, by this process's clock less a margin: the server was
    /// unreachable, this process was stopped, or the lease is fixed.
    Expired,
    /// The server reported that another caller may hold it: the lease ended there, the lock was
    /// [forced](crate::lock::Lock::force_release), or its data is gone.
    Gone,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its lease was not extended in time",
            Self::Gone => "it ended on the server, or another caller holds it",
        })
    }
}

/// Why a lock was not acquired, or is no longer held.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LockError {
    /// Another caller held it for as long as the call could wait.
    #[non_exhaustive]
    Timeout {
        /// Time that the call waited.
        waited: Duration,
        /// The holder, as of the last request to the server.
        holder: Option<LockHolder>,
    },
    /// The wait was [cancelled](crate::Cancel). The lock is not acquired.
    Cancelled,
    /// The lock was held and no longer is. Another caller may use the data that it protects.
    #[non_exhaustive]
    Lost {
        /// The reason.
        why: LostReason,
    },
    /// The server refused. If it stopped one of the library's scripts in between, because of a
    /// missing permission, or if a copy of the call that was sent before may have run,
    /// [`applied`](crate::Error::applied) is `Unknown`; an acquisition is then released.
    #[non_exhaustive]
    Command {
        /// The failed operation: `acquire`, `release`, …
        during: &'static str,
        /// The server's error.
        error: ServerError,
    },
    /// The connection failed, and so did every other one. A possible acquisition is released in the
    /// background, by its token. A lock that may not have been released ends with its lease.
    #[non_exhaustive]
    Connection {
        /// The failed operation: `acquire`, `release`, …
        during: &'static str,
        /// The failure of the connection.
        source: ConnectionError,
    },
    /// The lock was acquired, too few replicas had it in time, and it was released.
    #[non_exhaustive]
    NotReplicated {
        /// The number requested by [`wait_replicas`](crate::lock::Lock::wait_replicas).
        wanted: ReplicaAcks,
        /// The number that the server counted.
        got: ReplicaAcks,
    },
    /// The semaphore has another number of permits than the caller's, and holders or waiters that
    /// rely on it. Nothing was acquired.
    #[non_exhaustive]
    OtherPermits {
        /// The caller's number.
        asked: u32,
        /// The number on the server.
        kept: u32,
    },
    /// The call asked for more permits at once than the semaphore has. Nothing was acquired, and no
    /// request for so many was sent.
    #[non_exhaustive]
    TooManyPermits {
        /// The number of the call: [`permits`](crate::lock::Lock::permits).
        asked: u32,
        /// The number of permits of the semaphore, as the handle has it.
        permits: u32,
    },
    /// The server's counter of fencing tokens has reached 2^53, or is not a number, so that the
    /// next token might repeat one. Nothing was acquired. Only a foreign client sets the counter so
    /// high; an operator must set it back (the key `<prefix>:fence`, in a cluster one for each
    /// slot).
    NoFencingToken,
    /// The request cannot work; nothing was sent.
    #[non_exhaustive]
    Refused {
        /// Which setting: `name`, `names`, `lease`, `permits`, `label`; the `token` or `guard` that was passed;
        /// `thread` if the system started none.
        setting: &'static str,
        /// The reason why its value cannot work.
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
            Self::Cancelled => f.write_str("the wait for the lock was cancelled"),
            Self::Lost { why } => write!(f, "the lock was lost: {why}"),
            Self::Command { during, error } => {
                write!(f, "{during} was refused by the server: {error}")
            }
            Self::Connection { during, .. } => write!(f, "{during} failed"),
            Self::NotReplicated { wanted, got } => {
                write!(f, "the lock is on {got}, not on {wanted}, and was released")
            }
            Self::OtherPermits { asked, kept } => {
                let ending = if *kept == 1 { "" } else { "s" };
                write!(
                    f,
                    "the semaphore has {kept} permit{ending} now, and was asked for with {asked}: use \
                     one number, or change it with set_permits"
                )
            }
            Self::TooManyPermits { asked, permits } => {
                let ending = if *permits == 1 { "" } else { "s" };
                write!(
                    f,
                    "the semaphore has {permits} permit{ending}, and {asked} were asked for at once: ask \
                     for fewer, or make the semaphore larger"
                )
            }
            Self::NoFencingToken => {
                f.write_str("no fencing token is left: the counter is beyond 2^53 or not a number")
            }
            Self::Refused { setting, reason } => write!(f, "{setting}: {reason}"),
        }
    }
}

impl Error for LockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connection { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl LockError {
    /// Returns what the server did: for an `acquire`, whether the lock stays acquired.
    pub(crate) fn applied(&self) -> Applied {
        match self {
            Self::Timeout { .. }
            | Self::Cancelled
            | Self::Lost { .. }
            | Self::NotReplicated { .. }
            | Self::OtherPermits { .. }
            | Self::TooManyPermits { .. }
            | Self::NoFencingToken
            | Self::Refused { .. } => Applied::No,
            // Both only read.
            Self::Command { during: "holder" | "available", .. }
            | Self::Connection { during: "holder" | "available", .. } => Applied::No,
            Self::Command { error, .. } if error.is_from_script() => Applied::Unknown,
            Self::Command { .. } => Applied::No,
            Self::Connection { .. } => Applied::Unknown,
        }
    }

    /// Whether the same call may succeed later. Another attempt is always safe: each has a token of
    /// its own, and what an earlier one acquired is released.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Connection { .. } | Self::NotReplicated { .. } => true,
            Self::Cancelled
            | Self::Lost { .. }
            | Self::OtherPermits { .. }
            | Self::TooManyPermits { .. }
            | Self::NoFencingToken
            | Self::Refused { .. } => false,
            Self::Command { error, .. } => error.is_transient(),
        }
    }
}
