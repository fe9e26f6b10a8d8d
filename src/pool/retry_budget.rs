//! Maximum number of retries of a read after its connection was lost.

use std::time::Instant;

use crate::error::connection::{ConnectionError, ConnectionErrorKind};

/// Maximum number of retries of a read after its connection was lost.
///
/// Every idle connection may have died. A connection that had just replied was most likely lost
/// because of the read itself: its reply takes too long, or is larger than the server's limit. A
/// read whose reply takes too long is not retried, a read whose reply exceeds the server's limit
/// once. A read whose reply is too large for this side is not retried either.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    left: u32,
    idle: u32,
    pub(crate) deadline: Instant,
}

impl RetryBudget {
    /// `idle`: maximum number of idle connections.
    pub(crate) fn new(idle: u32, deadline: Instant) -> Self {
        Self { left: idle + 1, idle, deadline }
    }

    /// A budget without a retry.
    pub(crate) fn never(deadline: Instant) -> Self {
        Self { left: 0, idle: 0, deadline }
    }

    pub(crate) fn allow(&mut self, trusted: bool, cause: &ConnectionError) -> bool {
        match cause.kind() {
            ConnectionErrorKind::TooLarge => return false,
            ConnectionErrorKind::TimedOut if trusted => return false,
            _ => {}
        }
        self.left = self.left.saturating_sub(if trusted { self.idle } else { 1 });
        self.left > 0 && Instant::now() < self.deadline
    }
}
