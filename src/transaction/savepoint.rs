//! A part of a transaction that can be forgotten alone.
//!
//! Never: a command sent while a part is open. Never: ROLLBACK, which Redis does not have: a
//! forgotten part was never sent.

use crate::protocol::queue::CommandQueue;
use crate::transaction::commands::sealed::Queue;

/// A part of a transaction that can be forgotten alone.
///
/// [`release`](Self::release) keeps it. Dropped, or leaked with `mem::forget`, it keeps nothing:
/// what it queued is forgotten here, and its handles answer
/// [`ReplyError::Forgotten`](crate::ReplyError::Forgotten). Nothing of it is sent before it is
/// released, so forgetting costs no round trip. Parts nest.
///
/// ```no_run
/// # use rediscope::{SessionManager, prelude::*};
/// # fn main() -> Result<(), rediscope::Error> {
/// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let mut tx = accounts.begin()?;
/// tx.set("order", "placed");
/// let mut gift = tx.savepoint();
/// gift.set("gift", "wrapped");
/// drop(gift);                                // forgotten
/// tx.commit()?;                              // applies the order alone
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropped without release() the part is forgotten"]
pub struct Savepoint<'q> {
    queue: &'q mut CommandQueue,
    depth: usize,
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        self.queue.rollback_local(self.depth);
    }
}

impl<'q> Savepoint<'q> {
    /// Keeps the part. Its commands go with the transaction, if that commits.
    pub fn release(self) {
        // Dropping it after this forgets a part that is no longer open, which is nothing.
        self.queue.release(self.depth);
    }

    pub(crate) fn new(queue: &'q mut CommandQueue, depth: usize) -> Self {
        let depth = queue.savepoint(depth);
        Self { queue, depth }
    }
}

impl Queue for Savepoint<'_> {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (self.queue, self.depth)
    }
}
