//! Why one value of an applied transaction cannot be handed out.
//!
//! Never: a reason to run the transaction again. It was applied.

use super::ServerError;

/// Why one value of an **applied** transaction cannot be handed out. Do not run the block again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// The handle was given out by another transaction.
    #[error("the handle belongs to another transaction")]
    Foreign,
    /// The command was part of a savepoint that was dropped without release.
    #[error("the command was in a part that was forgotten, so it has no reply")]
    Forgotten,
    /// The command itself failed while the others were applied.
    #[error("{command} (command {index}) failed: {error}")]
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
    #[error("the transaction was applied, but its replies are lost")]
    Lost,
    /// The reply is not of the type that was asked for.
    #[error("command {index} answered {found}, which is not a {expected}; ask with cast()")]
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
