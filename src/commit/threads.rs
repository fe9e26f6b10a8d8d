//! The ends of doubts and scopes for callers that are threads.

use std::future::ready;

use crate::commit::cleanup;
use crate::commit::side::Side;
use crate::error::any::Error;
use crate::error::in_doubt::{InDoubt, Resolution};
use crate::pool::pool::Pool;
use crate::pool::scopes::PinnedConnection;
use crate::sync::now::now;

impl Side for Pool {
    fn resolve(doubt: &InDoubt) -> impl Future<Output = Resolution> + Send {
        ready(doubt.resolve())
    }

    /// Waits for `cleanup_timeout` at most.
    fn orphan(pin: PinnedConnection) -> Result<(), Error> {
        now(cleanup::end_scope::<Self>(pin))
    }
}
