//! The ends of doubts and scopes for callers that are tasks.

use crate::commit::side::Side;
use crate::error::any::Error;
use crate::error::in_doubt::{InDoubt, Resolution};
use crate::pool::tasks::pin::TaskPin;
use crate::pool::tasks::pool::TaskPool;

impl Side for TaskPool {
    async fn resolve(_doubt: &InDoubt) -> Resolution {
        todo!()
    }

    /// Waits for nothing: the connection's own task cleans it.
    fn return_dropped(_pin: TaskPin) -> Result<(), Error> {
        todo!()
    }
}
