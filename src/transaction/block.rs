//! What a `run` closure queues on.
//!
//! Never: a read. Nothing that is queued here has an answer before the commit.

use crate::protocol::queue::CommandQueue;
use crate::transaction::commands::sealed::Queue;
use crate::transaction::pending::Body;

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
    body: Body,
}

impl Block {
    pub(crate) fn new(body: Body) -> Self {
        Self { body }
    }

    pub(crate) fn into_body(self) -> Body {
        self.body
    }
}

impl Queue for Block {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (self.body.queue(), 0)
    }

    fn queued(&mut self) {
        self.body.queued();
    }
}
