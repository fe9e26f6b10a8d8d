//! What a transaction needs of its side besides a pool: the end of a doubt, and of a dropped scope.

use crate::error::any::Error;
use crate::error::in_doubt::{InDoubt, Resolution};
use crate::pool::server_pool::ServerPool;

/// The pool that one side's callers, threads or tasks, use for their transactions.
pub(crate) trait Side: ServerPool {
    /// Asks the server whether the transaction was applied. If the future is dropped, the query may
    /// have been sent.
    fn resolve(doubt: &InDoubt) -> impl Future<Output = Resolution> + Send;

    /// Returns the connection of a dropped scope with nothing of the scope left on it.
    ///
    /// # Errors
    /// The error of the cleanup, if it is known when this returns; the connection is then replaced.
    fn return_dropped(pin: Self::Pin) -> Result<(), Error>;
}
