//! The ends of doubts and scopes for callers that are tasks.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::commit::resolve::{DoubtResolver, closed, occupied};
use crate::commit::side::Side;
use crate::error::any::Error;
use crate::error::in_doubt::{CommitToken, InDoubt, Resolution, ResolveCommit, UnresolvedReason};
use crate::pool::router::Router;
use crate::pool::tasks::line::TaskPin;
use crate::pool::tasks::pool::TaskPool;
use crate::sync::timer::until;

impl Side for TaskPool {
    async fn resolve(doubt: &InDoubt) -> Resolution {
        doubt.resolve_async().await
    }

    /// Waits for nothing: the connection's own task cleans it.
    fn return_dropped(pin: TaskPin) -> Result<(), Error> {
        drop(pin);
        Ok(())
    }
}

/// Resolves transactions in doubt, one query at a time.
pub(crate) struct TaskResolver {
    resolver: DoubtResolver<TaskPool>,
    permits: Semaphore,
    /// Number of calls that wait for the permit or have it.
    calls: AtomicUsize,
}

impl TaskResolver {
    pub(crate) fn new(router: Router<TaskPool>) -> Self {
        let resolver = DoubtResolver::new(router);
        Self { resolver, permits: Semaphore::new(1), calls: AtomicUsize::new(0) }
    }

    /// Makes later calls fail: the session manager is closed.
    pub(crate) fn close(&self) {
        self.permits.close();
    }

    /// Asks the server whether the transaction was applied. Dropped before its end, it closes the
    /// connection.
    pub(crate) async fn resolve(
        &self,
        token: &CommitToken,
        within: Option<Duration>,
    ) -> Resolution {
        self.resolver.resolve(token, within, |deadline| self.permit(deadline)).await
    }

    /// Waits for the permit to query. Dropped before its end, the future has taken none.
    async fn permit(&self, deadline: Instant) -> Result<QueryPermit<'_>, UnresolvedReason> {
        self.calls.fetch_add(1, Ordering::AcqRel);
        let mut query = QueryPermit { resolver: self, permit: None };
        match until(deadline, self.permits.acquire()).await {
            Some(Ok(permit)) => query.permit = Some(permit),
            Some(Err(_)) => return Err(closed()),
            None => return Err(occupied()),
        }
        Ok(query)
    }
}

impl ResolveCommit for TaskResolver {
    /// Waits for nothing.
    fn resolve(&self, _: &CommitToken, _: Option<Duration>) -> Resolution {
        Resolution::StillUnknown { why: UnresolvedReason::MustBeAwaited }
    }

    fn resolve_async<'r>(
        &'r self,
        token: &'r CommitToken,
        within: Option<Duration>,
    ) -> Pin<Box<dyn Future<Output = Resolution> + Send + 'r>> {
        Box::pin(self.resolve(token, within))
    }
}

/// A call that waits for the permit to query, or has it.
struct QueryPermit<'r> {
    resolver: &'r TaskResolver,
    permit: Option<SemaphorePermit<'r>>,
}

impl Drop for QueryPermit<'_> {
    fn drop(&mut self) {
        let TaskResolver { resolver, calls, .. } = self.resolver;
        let others = calls.fetch_sub(1, Ordering::AcqRel) - 1;
        // No other call waits for the connection, so it is not kept.
        if self.permit.is_some() && others == 0 {
            resolver.disconnect();
        }
    }
}

// After a panic each part is checked by its own state, whichever mutexes it is built with.
impl UnwindSafe for TaskResolver {}
impl RefUnwindSafe for TaskResolver {}

impl fmt::Debug for TaskResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskResolver").finish_non_exhaustive()
    }
}
