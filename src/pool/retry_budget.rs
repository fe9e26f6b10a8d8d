//! How often a read is retried after its connection was lost.

use crate::error::connection::{ConnectionError, ConnectionErrorKind};

/// How often a read is retried after its connection was lost.
///
/// Every idle connection may have died. One that had just replied was most likely lost because of
/// the read itself: its reply takes too long, or is larger than the server's limit. The first kind
/// of read is not retried, the second once. A read whose reply is too large for this side is not
/// retried either.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    left: u32,
    idle: u32,
}

impl RetryBudget {
    /// `idle`: maximum number of idle connections.
    pub(crate) fn new(idle: u32) -> Self {
        Self { left: idle + 1, idle }
    }

    pub(crate) fn allow(&mut self, trusted: bool, cause: &ConnectionError) -> bool {
        match cause.kind() {
            ConnectionErrorKind::TooLarge => return false,
            ConnectionErrorKind::TimedOut if trusted => return false,
            _ => {}
        }
        self.left = self.left.saturating_sub(if trusted { self.idle } else { 1 });
        self.left > 0
    }
}
