//! What is known of a transaction that did not simply commit.
//!
//! Never: an outcome that nobody knows, told as one that somebody does.

use std::error::Error as StdError;
use std::fmt;

use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::in_doubt::InDoubt;
use crate::error::server::ServerError;
use crate::error::text::{count, display};
use crate::error::{Applied, Error, PinExpired};
use crate::protocol::replication::ReplicaAcks;
use crate::reply::Replies;

/// What is known of a transaction that did not simply commit.
///
/// | variant | what the server did |
/// |---|---|
/// | `Rejected` | nothing: it refused a command, or EXEC |
/// | `PartlyApplied` | ran it; at least one command failed, **the others were applied** |
/// | `NotSent` | nothing: the failure came before EXEC's last byte left |
/// | `InDoubt` | unknown: EXEC was sent, and no answer that proves anything came |
/// | `NotIsolated` | ran the commands one by one, without MULTI |
/// | `NotReplicated` | ran it, **it was applied here**; too few others have it |
/// | `KeyNotKept` | ran it, **it was applied**; its key or register may not hold |
/// | `AlreadyCommitted` | nothing: an earlier transaction with this key was applied |
/// | `LockLost` | nothing: the lock that it was fenced by is no longer held |
/// | `PinExpired` | nothing: the scope was open for too long |
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CommitError {
    /// Nothing was applied: the server refused a command while it was queued, or refused EXEC.
    ///
    /// EXEC's own answer proves it: `EXECABORT`, or `MOVED`, `ASK`, `TRYAGAIN`, `CROSSSLOT`,
    /// `CLUSTERDOWN`; or EXEC never left. Any other error to EXEC is
    /// [`InDoubt`](Self::InDoubt): it may be a proxy's, sent after EXEC ran.
    #[non_exhaustive]
    Rejected {
        /// Which of the queued commands, from 0; `None` where MULTI or EXEC itself was refused.
        index: Option<usize>,
        /// The command's name.
        command: String,
        /// The server's own code: READONLY stays READONLY.
        code: String,
        /// The server's own words, without keys and values.
        message: String,
    },
    /// EXEC ran and at least one command failed at run time. **The others were applied**: Redis
    /// does not undo them. Read each reply.
    ///
    /// If every command failed and each is one of the server's own that changes nothing when it
    /// fails (no script, no function, no command of a module, not MIGRATE), then nothing was
    /// changed and [`applied`](Self::applied) is [`No`](Applied::No).
    #[non_exhaustive]
    PartlyApplied {
        /// Every reply, the failed ones as [`ReplyError::Failed`](crate::error::reply::ReplyError::Failed).
        replies: Replies,
    },
    /// Nothing was applied, and nothing will be: the failure came before EXEC's last byte left, or
    /// a doubt was resolved so.
    #[non_exhaustive]
    NotSent {
        /// What failed.
        source: Box<Error>,
    },
    /// EXEC was sent, and its answer was lost or proves nothing. The transaction may have been
    /// applied, or may be applied later.
    InDoubt(InDoubt),
    /// MULTI was refused and the commands ran one by one, with others in between. An operator
    /// must look: the user's right to MULTI was taken away while connections were open.
    ///
    /// If each command was refused too, in words that the server uses only before a command
    /// changes anything, it is [`Rejected`](Self::Rejected) instead. An error of a script, a
    /// function or a module's command is no such proof.
    #[non_exhaustive]
    NotIsolated {
        /// Every reply; a refused command as [`ReplyError::Failed`](crate::error::reply::ReplyError::Failed).
        replies: Replies,
    },
    /// The transaction **was applied here**, but fewer than were asked for had it in time:
    /// [`wait_replicas`](crate::TransactionOptions::wait_replicas),
    /// [`wait_aof`](crate::TransactionOptions::wait_aof). Nothing is undone by that, and it may
    /// still spread; it may also be lost with this server.
    #[non_exhaustive]
    NotReplicated {
        /// How many were asked for.
        wanted: ReplicaAcks,
        /// How many have it, as far as is known.
        got: ReplicaAcks,
        /// What the server said, where it refused to wait.
        refused: Option<ServerError>,
        /// The transaction's replies.
        replies: Replies,
    },
    /// The transaction **was applied**, but a command of this crate's behind the caller's failed:
    /// the one that keeps the key of
    /// [`exactly_once_as`](crate::TransactionOptions::exactly_once_as), or the one that writes the
    /// connection's register. A later transaction with the same key may be applied again. Do not
    /// run this one again.
    ///
    /// It happens, for example, if a command of the block takes away the user's right to the key.
    #[non_exhaustive]
    KeyNotKept {
        /// The server's answer to the command that failed.
        error: ServerError,
        /// The transaction's replies.
        replies: Replies,
    },
    /// Nothing was applied by this call: a transaction with the same key
    /// ([`exactly_once_as`](crate::TransactionOptions::exactly_once_as)) was applied before, by
    /// this process or another.
    AlreadyCommitted,
    /// Nothing was applied: the lock that the transaction was
    /// [fenced by](crate::Transactional::fenced_by) is not its guard's any more.
    LockLost,
    /// Nothing was applied: the scope was open for too long.
    PinExpired(PinExpired),
}

display!(CommitError);

impl CommitError {
    pub(crate) fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected { index, command, code, message } => {
                write!(f, "nothing was applied: {command}")?;
                if let Some(index) = index {
                    write!(f, " (command {index})")?;
                }
                let gap = if message.is_empty() { "" } else { " " };
                write!(f, " was refused: {code}{gap}{message}")
            }
            Self::PartlyApplied { replies } => partly(replies, f),
            Self::NotSent { .. } => f.write_str("nothing was applied: the transaction was not sent"),
            Self::InDoubt(doubt) => doubt.text(f),
            Self::NotIsolated { .. } => f.write_str(
                "MULTI was refused and the commands ran one by one: look at the user's ACL rules",
            ),
            Self::NotReplicated { wanted, got, .. } => {
                write!(f, "applied here, but {wanted} were to have it and only {got} are known to")
            }
            Self::KeyNotKept { error, .. } => write!(
                f,
                "applied, but the key or the register that remembers it was not written ({}); do \
                 not run it again",
                error.code()
            ),
            Self::AlreadyCommitted => f.write_str(
                "nothing was applied: a transaction with this key was committed before",
            ),
            Self::LockLost => f.write_str(
                "nothing was applied: the lock that the transaction was fenced by is no longer held",
            ),
            Self::PinExpired(expired) => expired.text(f),
        }
    }
}

impl StdError for CommitError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::NotSent { source } => Some(&**source),
            Self::InDoubt(doubt) => doubt.source(),
            Self::PartlyApplied { replies } | Self::NotIsolated { replies } => {
                replies.first_error().map(|error| error as _)
            }
            _ => None,
        }
    }
}

/// How many commands failed, and which one first.
fn partly(replies: &Replies, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (failed, all) = (replies.failures(), replies.len());
    if failed < all {
        write!(f, "partly applied: {failed} of {} failed and ", count(all, "command"))?;
        f.write_str(if all - failed == 1 {
            "the other one was applied"
        } else {
            "the others were applied"
        })?;
    } else {
        if replies.changed_nothing() {
            f.write_str("nothing was changed: ")?;
        }
        match all {
            1 => f.write_str("the only command failed")?,
            all => write!(f, "all {all} commands failed")?,
        }
        if !replies.changed_nothing() {
            f.write_str(" and may have written before")?;
        }
    }
    match replies.first_error() {
        Some(crate::error::reply::ReplyError::Failed { index, command, error }) => {
            let first = if failed == 1 { "it was" } else { "the first was" };
            write!(f, "; {first} {command} (command {index}): {}", error.code())
        }
        _ => Ok(()),
    }
}

impl From<PinExpired> for CommitError {
    fn from(error: PinExpired) -> Self {
        Self::PinExpired(error)
    }
}

/// No connection, so nothing was sent.
impl From<CheckoutError> for CommitError {
    fn from(error: CheckoutError) -> Self {
        Self::not_sent(error)
    }
}

impl CommitError {
    /// What the server did with the transaction's commands.
    pub fn applied(&self) -> Applied {
        match self {
            Self::Rejected { .. }
            | Self::NotSent { .. }
            | Self::AlreadyCommitted
            | Self::LockLost
            | Self::PinExpired(_) => Applied::No,
            Self::PartlyApplied { replies } | Self::KeyNotKept { replies, .. }
                if replies.changed_nothing() =>
            {
                Applied::No
            }
            Self::NotReplicated { replies, .. } | Self::KeyNotKept { replies, .. }
                if replies.failures() == 0 =>
            {
                Applied::Yes
            }
            Self::PartlyApplied { .. } | Self::NotReplicated { .. } | Self::KeyNotKept { .. } => {
                Applied::Partly
            }
            Self::InDoubt(_) => Applied::Unknown,
            Self::NotIsolated { replies } if replies.failures() == 0 => Applied::Yes,
            // A command that failed may have run, and changed something before it failed.
            Self::NotIsolated { replies } if replies.failures() == replies.len() => {
                Applied::Unknown
            }
            Self::NotIsolated { .. } => Applied::Partly,
        }
    }

    /// Whether the same block, run again, may succeed and cannot be applied twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected { code, .. } => ServerError::from_code(code).is_transient(),
            Self::NotSent { source } => source.is_retryable(),
            Self::PartlyApplied { .. }
            | Self::InDoubt(_)
            | Self::NotIsolated { .. }
            | Self::NotReplicated { .. }
            | Self::KeyNotKept { .. }
            | Self::AlreadyCommitted
            | Self::LockLost
            | Self::PinExpired(_) => false,
        }
    }

    /// The server's code, where the server said no: the first one, where it said so repeatedly.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Rejected { code, .. } => Some(code),
            Self::PartlyApplied { replies } | Self::NotIsolated { replies } => {
                replies.first_failure().map(ServerError::code)
            }
            Self::NotReplicated { refused, .. } => refused.as_ref().map(ServerError::code),
            Self::KeyNotKept { error, .. } => Some(error.code()),
            Self::NotSent { .. }
            | Self::InDoubt(_)
            | Self::AlreadyCommitted
            | Self::LockLost
            | Self::PinExpired(_) => None,
        }
    }

    pub(crate) fn rejected(index: Option<usize>, command: String, error: &ServerError) -> Self {
        Self::Rejected {
            index,
            command,
            code: error.code().to_owned(),
            message: error.message().to_owned(),
        }
    }

    pub(crate) fn not_sent(source: impl Into<Error>) -> Self {
        Self::NotSent { source: Box::new(source.into()) }
    }

    /// The link failed before EXEC's last byte left.
    pub(crate) fn lost_before_exec(source: ConnectionError) -> Self {
        Self::not_sent(Error::Lost {
            during: "the transaction".to_owned(),
            applied: Applied::No,
            source,
        })
    }
}
