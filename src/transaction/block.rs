//! What a `run` closure queues on.
//!
//! Never: a read. Nothing that is queued here has an answer before the commit.

use crate::protocol::queue::CommandQueue;
use crate::transaction::commands::sealed::Queue;
use crate::transaction::pending::Pending;

/// What a [`run`](crate::Transactional::run) closure queues on.
///
/// It cannot read: what it queues is sent when the closure has returned `Ok`, in one write, and
/// until then it needs no connection. (A block that passes `flush_bytes` takes one then and sends
/// what it has; a block inside `watch(..).run` never does.)
///
/// When the closure returns `Err` or panics, nothing is applied.
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
