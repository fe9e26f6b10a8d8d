//! The targets of the command traits.

use redis::Cmd;

use crate::protocol::queue::CommandQueue;
use crate::protocol::resp::encode::{Args, EncodedCommand};
use crate::reply::queued::Queued;

/// A target of commands: a block, a transaction, a savepoint, or a mutable reference to one.
// For method calls; at a bound the compiler uses the message of `QueueCommands`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot queue commands",
    label = "not a block, a transaction or a savepoint",
    note = "the pooled handle runs each command at once, through `redis::Commands`"
)]
pub trait Queue {
    /// Returns the queue, and the depth of this target in its parts.
    fn target(&mut self) -> (&mut CommandQueue, usize);

    /// Called after each command; a large transaction sends a chunk here.
    fn queued(&mut self) {}

    /// Queues one command of the table.
    fn put<T>(&mut self, head: &EncodedCommand, args: impl FnOnce(&mut Args<'_>)) -> Queued<T>
    where
        Self: Sized,
    {
        let (queue, depth) = self.target();
        let handle = Queued::new(queue.transaction(), queue.push(depth, head, args));
        self.queued();
        handle
    }

    /// Queues one command that the caller built.
    fn put_cmd<T>(&mut self, cmd: &Cmd) -> Queued<T>
    where
        Self: Sized,
    {
        let (queue, depth) = self.target();
        let handle = Queued::new(queue.transaction(), queue.push_cmd(depth, cmd));
        self.queued();
        handle
    }
}

impl<Q: Queue> Queue for &mut Q {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (**self).target()
    }

    fn queued(&mut self) {
        (**self).queued();
    }
}
