//! The ends of doubts and scopes for callers that are tasks.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

use crate::commit::resolve::DoubtResolver;
use crate::commit::side::Side;
use crate::error::any::Error;
use crate::error::in_doubt::{CommitToken, InDoubt, Resolution, ResolveCommit};
use crate::pool::router::Router;
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

/// Resolves transactions in doubt for tasks, one query at a time.
pub(crate) struct TaskResolver {
    resolver: DoubtResolver<TaskPool>,
}

impl TaskResolver {
    pub(crate) fn new(router: Router<TaskPool>) -> Self {
        Self { resolver: DoubtResolver::new(router) }
    }

    /// Makes later calls fail: the session manager is closed.
    pub(crate) fn close(&self) {
        todo!()
    }

    /// Asks the server whether the transaction was applied. Dropped before its end, it closes the
    /// connection.
    pub(crate) async fn resolve(
        &self,
        _token: &CommitToken,
        _within: Option<Duration>,
    ) -> Resolution {
        todo!()
    }
}

impl ResolveCommit for TaskResolver {
    fn resolve(&self, _token: &CommitToken, _within: Option<Duration>) -> Resolution {
        todo!()
    }
}

impl UnwindSafe for TaskResolver {}
impl RefUnwindSafe for TaskResolver {}

impl fmt::Debug for TaskResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskResolver").finish_non_exhaustive()
    }
}
