//! Why one value of an applied transaction cannot be handed out.
//!
//! Never: a reason to run the transaction again. It was applied.

use std::error::Error;
use std::fmt;

use super::ServerError;
use super::text::{count, display};

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
    /// is larger than [`max_reply_bytes`](crate::session::Builder::max_reply_bytes), nested deeper than 512
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
        /// The Rust type that was asked for.
        expected: &'static str,
        /// The kind of reply that came.
        found: &'static str,
    },
}

display!(ReplyError);

impl ReplyError {
    pub(super) fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
            Self::Unexpected { index, expected, found } => write!(
                f,
                "command {index} answered {found}, which is not a {expected}; ask with cast()"
            ),
        }
    }
}

impl Error for ReplyError {}
