//! Why one value of an applied transaction cannot be returned.
//!
//! None of these errors is a reason to run the transaction again.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use redis::{ParsingError, Value};

use crate::protocol::resp::reply::holds_error;
use crate::protocol::server_error::ServerError;
use crate::text::{count, display, unreadable};

/// Why one value of an **applied** transaction cannot be returned. Do not run the block again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyError {
    /// The handle is another transaction's.
    Foreign,
    /// The command was part of a savepoint that was dropped without release.
    Forgotten,
    /// The command itself failed while the others were applied.
    #[non_exhaustive]
    Failed {
        /// Which of the queued commands, from 0.
        index: usize,
        /// The command's name.
        command: String,
        /// The server's error.
        error: ServerError,
    },
    /// The replies were lost or could not be read. Either the connection failed under an
    /// exactly-once transaction, which was then resolved as applied. Or EXEC's array has the right
    /// length and is larger than
    /// [`max_reply_bytes`](crate::Builder::max_reply_bytes), nested deeper than
    /// 512 levels, or malformed further on.
    Lost,
    /// The transaction had no command at this index: see [`Replies::at`](crate::Replies::at).
    #[non_exhaustive]
    OutOfRange {
        /// The requested index, from 0.
        index: usize,
        /// Number of commands of the transaction.
        commands: usize,
    },
    /// The reply is not of the requested type.
    #[non_exhaustive]
    Unexpected {
        /// Which of the queued commands, from 0.
        index: usize,
        /// The command's name.
        command: String,
        /// The requested Rust type.
        expected: &'static str,
        /// The kind of the reply.
        found: &'static str,
        /// The error of the type's own decoding.
        source: Option<DecodeError>,
    },
}

/// The error text of a `FromRedisValue` that could not decode a reply: only that of a user's type.
/// The texts of redis-rs's own types repeat the reply, and are not shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(Arc<str>);

impl DecodeError {
    /// The text of `value`'s decoding. `None` if `value` contains an error of the server, whose text
    /// redis-rs repeats.
    pub(crate) fn of_value(error: &ParsingError, value: &Value) -> Option<Self> {
        if holds_error(value) { None } else { Self::of(&error.to_string()) }
    }

    /// `None` for a text of redis-rs's that repeats the reply.
    pub(crate) fn of(error: &str) -> Option<Self> {
        let words = error.strip_prefix("Incompatible type - ").unwrap_or(error);
        let repeats = ["(value was ", "(response was "].iter().any(|mark| words.contains(mark));
        (!repeats).then(|| Self(words.into()))
    }
}

display!(ReplyError);

impl ReplyError {
    /// Adds the command's name to a reply that could not be decoded.
    pub(crate) fn with_command(mut self, name: impl FnOnce(u32) -> Option<String>) -> Self {
        if let Self::Unexpected { index, command, .. } = &mut self
            && let Some(name) = u32::try_from(*index).ok().and_then(name)
        {
            *command = name;
        }
        self
    }

    pub(crate) fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("the handle belongs to another transaction"),
            Self::Forgotten => {
                f.write_str("the command was rolled back with its savepoint, so it has no reply")
            }
            Self::Failed { index, command, error } => {
                write!(f, "{command} (command {index}) failed: {error}")
            }
            Self::Lost => f.write_str("the transaction was applied, but its replies are lost"),
            Self::OutOfRange { index, commands } => write!(
                f,
                "there is no command {index}: the transaction had {}",
                count(*commands, "command")
            ),
            Self::Unexpected { index, command, expected, found, .. } => {
                write!(f, "{command} (command {index}) returned {}", unreadable(found, expected))
            }
        }
    }
}

impl Error for ReplyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unexpected { source, .. } => source.as_ref().map(|source| source as _),
            _ => None,
        }
    }
}
