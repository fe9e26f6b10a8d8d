//! Why one value of an applied transaction cannot be handed out.
//!
//! Never: a reason to run the transaction again. It was applied.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::protocol::server_error::ServerError;
use crate::text::{count, display};

/// Why one value of an **applied** transaction cannot be handed out. Do not run the block again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyError {
    /// The handle was given out by another transaction.
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
        /// What the server said.
        error: ServerError,
    },
    /// The replies were lost or could not be read. Either the connection failed under an exactly-once
    /// transaction, which was then resolved as applied; or EXEC's array began with the right length and
    /// is larger than [`max_reply_bytes`](crate::session::builder::Builder::max_reply_bytes), nested deeper than 512
    /// levels, or not the Redis protocol further on.
    Lost,
    /// The transaction had no command at this place: see
    /// [`Replies::at`](crate::Replies::at).
    #[non_exhaustive]
    OutOfRange {
        /// Which one was asked for, from 0.
        index: usize,
        /// How many commands the transaction had.
        commands: usize,
    },
    /// The reply is not of the type that was asked for.
    #[non_exhaustive]
    Unexpected {
        /// Which of the queued commands, from 0.
        index: usize,
        /// The command's name.
        command: String,
        /// The Rust type that was asked for.
        expected: &'static str,
        /// The kind of reply that came.
        found: &'static str,
        /// What the type's own decoding said.
        source: Option<DecodeError>,
    },
}

/// What a `FromRedisValue` said of a reply that it could not decode: a type of the user's, in the
/// words of the user. redis-rs's own types repeat the reply in theirs, and are not shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(Arc<str>);

impl DecodeError {
    /// `None` for words of redis-rs's that repeat the reply.
    pub(crate) fn of(error: &str) -> Option<Self> {
        let words = error.strip_prefix("Incompatible type - ").unwrap_or(error);
        let repeats = ["(value was ", "(response was "].iter().any(|mark| words.contains(mark));
        (!repeats).then(|| Self(words.into()))
    }
}

display!(ReplyError);

impl ReplyError {
    /// With the command's name, where its reply could not be decoded.
    pub(crate) fn naming(mut self, name: impl FnOnce(u32) -> Option<String>) -> Self {
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
                f.write_str("the command was in a part that was forgotten, so it has no reply")
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
            Self::Unexpected { index, command, expected, found, .. } => write!(
                f,
                "{command} (command {index}) answered {found}, which could not be read as {expected}"
            ),
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
