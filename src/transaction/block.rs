//! The queue of a `run` closure. A block does not read: no reply exists before the commit.

use crate::commit::plan::CommitPlan;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::protocol::queue::CommandQueue;
use crate::transaction::commands::sealed::Queue;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::scope_calls;

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
    pub(crate) pending: Pending,
    /// The scope that sends a chunk ahead; `None`: everything is queued until the commit.
    pub(crate) pinned: Option<Pinned>,
}

impl Block {
    /// Creates a block with a scope of its own.
    #[inline]
    pub(crate) fn new(router: &Router, owner: ScopeOrigin, plan: CommitPlan) -> Self {
        Self {
            pending: Pending::new(router.settings(), plan.binding(router)),
            pinned: Some(Pinned::new(router, owner, plan)),
        }
    }
}

impl Queue for Block {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (self.pending.queue(), 0)
    }

    fn queued(&mut self) {
        if let Some(pinned) = &mut self.pinned {
            scope_calls::queued(&mut self.pending, pinned);
        }
    }
}
