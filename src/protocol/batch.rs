//! Requests that are sent with others in one write: blocks, reads, and calls of scripts.

use crate::protocol::command::table;
#[cfg(test)]
use crate::protocol::connection_state::Expect;

/// The kind of a batched request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// MULTI, this many commands, EXEC.
    Block { commands: u32 },
    /// One command that changes nothing.
    Read,
    /// Commands that may all be sent again.
    Calls { count: u32 },
}

impl RequestKind {
    /// Whether it is a block.
    pub(crate) fn is_block(self) -> bool {
        matches!(self, Self::Block { .. })
    }

    /// Number of commands, without MULTI and EXEC.
    pub(crate) fn commands(self) -> u32 {
        match self {
            Self::Block { commands } => commands,
            Self::Read => 1,
            Self::Calls { count } => count,
        }
    }

    /// The expected replies.
    #[cfg(test)]
    pub(crate) fn expected(self) -> [(Expect, u32); 3] {
        match self {
            Self::Block { commands } => {
                [(Expect::Multi, 1), (Expect::Queued, commands), (Expect::Exec, 1)]
            }
            Self::Read => [(Expect::Plain, 1), (Expect::Queued, 0), (Expect::Exec, 0)],
            Self::Calls { count } => {
                [(Expect::Plain, count), (Expect::Queued, 0), (Expect::Exec, 0)]
            }
        }
    }
}

/// Maximum commands and bytes of a batched block: the others in the batch wait for it.
const MAX_IN_BATCH: (u32, usize) = (64, 8 * 1024);

/// Whether a block is small enough for a batch.
pub(crate) fn fits_in_batch(commands: u32, bytes: usize) -> bool {
    commands <= MAX_IN_BATCH.0 && bytes <= MAX_IN_BATCH.1
}

/// Whether a command of the table may be batched: its work is constant or logarithmic in the size
/// of its key, and its reply is at most one value.
pub(crate) const fn is_batchable(words: &[&str]) -> bool {
    match words {
        [name] => match table::find_upper(name) {
            Some(command) => command.has(table::BATCH),
            None => false,
        },
        _ => false,
    }
}
