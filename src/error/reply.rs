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
    /// The connection was lost with the replies on it. The transaction was exactly once, so it was
    /// asked for afterwards, and it was applied.
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
