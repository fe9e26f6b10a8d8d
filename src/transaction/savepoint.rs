//! A part of a transaction that can be forgotten alone.
//!
//! No command is sent while a part is open. Redis has no ROLLBACK: a forgotten part was never sent.

use crate::protocol::queue::CommandQueue;
use crate::transaction::commands::sealed::Queue;

/// A part of a transaction that can be forgotten alone.
///
/// [`release`](Self::release) keeps the part. If it is dropped, or leaked with `mem::forget`, its
/// commands are forgotten, and their handles fail with
/// [`ReplyError::Forgotten`](crate::error::ReplyError::Forgotten). None of its commands is sent before the
/// release, so forgetting costs no round trip. Parts nest.
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
    /// Keeps the part. Its commands are applied if the transaction commits.
    pub fn release(self) {
        // The drop that follows would forget a part that is no longer open, which does nothing.
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
