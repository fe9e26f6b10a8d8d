//! Texts and properties of a commit's error. The enum itself is in `any.rs`.

use std::error::Error as StdError;
use std::fmt;

use crate::error::any::{CommitError, Error};
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::pin_expired::PinExpired;
use crate::protocol::server_error::ServerError;
use crate::reply::error::ReplyError;
use crate::reply::replies::Replies;
use crate::text::{count, display};

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
                "the commands ran, but not isolated: MULTI was refused, or a merged block before them \
                 failed: look at the user's ACL rules",
            ),
            Self::NotReplicated { wanted, got, .. } => {
                write!(f, "applied here, but on {got} instead of {wanted}, as far as is known")
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

/// Writes the number of failed commands, and the first with its code.
fn partly(replies: &Replies, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (failed, all) = (replies.failures(), replies.len());
    let state = match failed < all {
        true => "partly applied",
        false if replies.changed_nothing() => "nothing was changed",
        false if replies.changed_only_key() => "only the key of exactly_once_as was written",
        false => "a failed command may have written",
    };
    write!(f, "{state}: {failed} of {} failed", count(all, "command"))?;
    match replies.first_error() {
        Some(ReplyError::Failed { index, command, error }) => {
            let first = if failed == 1 { "" } else { "first " };
            write!(f, ", {first}{command} at index {index} with {}", error.code())
        }
        _ => Ok(()),
    }
}

/// Of a reclaimed scope nothing is left to send.
impl From<PinExpired> for CommitError {
    fn from(error: PinExpired) -> Self {
        Self::not_sent(error)
    }
}

/// Without a connection nothing was sent.
impl From<CheckoutError> for CommitError {
    fn from(error: CheckoutError) -> Self {
        Self::not_sent(error)
    }
}

impl CommitError {
    /// Returns what the server did with the transaction's commands.
    pub fn applied(&self) -> Applied {
        match self {
            Self::Rejected { .. }
            | Self::NotSent { .. }
            | Self::AlreadyCommitted
            | Self::LockLost => Applied::No,
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
            // A failed command may have had an effect before it failed.
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
            | Self::LockLost => false,
        }
    }

    /// The server's code if the server caused the error: the first one of several.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Rejected { code, .. } => Some(code),
            Self::PartlyApplied { replies } | Self::NotIsolated { replies } => {
                replies.first_failure().map(ServerError::code)
            }
            Self::NotReplicated { refused, .. } => refused.as_ref().map(ServerError::code),
            Self::KeyNotKept { error, .. } => Some(error.code()),
            Self::NotSent { .. } | Self::InDoubt(_) | Self::AlreadyCommitted | Self::LockLost => {
                None
            }
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

    /// The connection failed before EXEC's last byte was sent.
    pub(crate) fn lost_before_exec(source: ConnectionError) -> Self {
        Self::not_sent(Error::Lost {
            during: "the transaction".to_owned(),
            applied: Applied::No,
            source,
        })
    }
}

impl CommitError {
    /// Returns one word for a report.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Rejected { .. } => "rejected",
            Self::PartlyApplied { .. } => "partly applied",
            Self::NotSent { source } if matches!(**source, Error::PinExpired(_)) => "pin expired",
            Self::NotSent { .. } => "not sent",
            Self::InDoubt(_) => "in doubt",
            Self::NotIsolated { .. } => "not isolated",
            Self::NotReplicated { .. } => "not replicated",
            Self::KeyNotKept { .. } => "key not kept",
            Self::AlreadyCommitted => "already committed",
            Self::LockLost => "lock lost",
        }
    }
}
