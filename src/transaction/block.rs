//! The queue of a `run` closure. A block does not read: no reply exists before the commit.

use crate::protocol::queue::CommandQueue;
use crate::transaction::commands::sealed::Queue;
use crate::transaction::pending::Pending;

/// The queue of a [`run`](crate::Transactional::run) closure.
///
/// A block does not read. Its commands are sent in one write after the closure has returned `Ok`;
/// until then it needs no connection. A block that passes `flush_bytes` is the exception: it takes
/// a connection then and sends the commands it has. A block inside `watch(..).run` never does this.
///
/// If the closure returns `Err` or panics, nothing is applied.
///
/// ```no_run
/// # use rediscope::{SessionManager, prelude::*};
/// # fn main() -> Result<(), rediscope::Error> {
/// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let (alice, bob) = accounts.run(|tx| {
///     Ok((tx.decr("balance:alice", 30), tx.incr("balance:bob", 30)))
/// })?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Block {
    pending: Pending,
}

impl Block {
    pub(crate) fn new(pending: Pending) -> Self {
        Self { pending }
    }

    pub(crate) fn into_pending(self) -> Pending {
        self.pending
    }
}

impl Queue for Block {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (self.pending.queue(), 0)
    }

    fn queued(&mut self) {
        self.pending.queued();
    }
}
