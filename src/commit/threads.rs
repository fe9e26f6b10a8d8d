//! The ends of doubts and scopes for callers that are threads.

use std::fmt;
use std::future::ready;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

use crate::commit::cleanup;
use crate::commit::resolve::{DoubtResolver, NoTurn};
use crate::commit::side::Side;
use crate::error::any::Error;
use crate::error::in_doubt::{CommitToken, InDoubt, Resolution, ResolveCommit};
use crate::pool::checkout::Checkout;
use crate::pool::pool::Pool;
use crate::pool::router::Router;
use crate::pool::scopes::PinnedConnection;
use crate::pool::semaphore::{AcquireError, FairSemaphore};
use crate::sync::cancel;
use crate::sync::now::now;

impl Side for Pool {
    fn resolve(doubt: &InDoubt) -> impl Future<Output = Resolution> + Send {
        // A cancelled wait must not leave a doubt.
        ready(cancel::suspended(|| doubt.resolve()))
    }

    /// Waits for `cleanup_timeout` at most.
    fn return_dropped(pin: PinnedConnection<Checkout>) -> Result<(), Error> {
        now(cleanup::end_scope::<Self>(pin))
    }
}

/// Resolves transactions in doubt, one query at a time.
pub(crate) struct CommitResolver {
    resolver: DoubtResolver<Pool>,
    permits: FairSemaphore<(), ()>,
}

impl CommitResolver {
    pub(crate) fn new(router: Router) -> Self {
        Self { resolver: DoubtResolver::new(router), permits: FairSemaphore::new(1) }
    }

    /// Makes later calls fail: the session manager is closed.
    pub(crate) fn close(&self) {
        self.permits.close();
        drop(self.resolver.close());
    }

    /// See [`DoubtResolver::ready`].
    pub(crate) fn ready(&self, within: Duration) -> Result<(), Error> {
        now(self.resolver.ready(within, |deadline| ready(self.permit(deadline))))
    }

    /// Waits for the permit to query.
    fn permit(&self, deadline: Instant) -> Result<QueryPermit<'_>, NoTurn> {
        if cancel::is_cancelled() {
            return Err(NoTurn::Cancelled);
        }
        match self.permits.acquire(deadline, |_| Ok::<(), ()>(())) {
            Ok(permit) => Ok(QueryPermit { resolver: self, permit }),
            Err(AcquireError::Closed) => Err(NoTurn::Closed),
            Err(_) if cancel::is_cancelled() => Err(NoTurn::Cancelled),
            Err(_) => Err(NoTurn::Occupied),
        }
    }
}

impl ResolveCommit for CommitResolver {
    fn default_wait(&self) -> Duration {
        self.resolver.router.settings().checkout_timeout
    }

    fn resolve(&self, token: &CommitToken, within: Option<Duration>) -> Resolution {
        now(self.resolver.resolve(token, within, |deadline| ready(self.permit(deadline))))
    }
}

/// The permit to query.
struct QueryPermit<'r> {
    resolver: &'r CommitResolver,
    permit: usize,
}

impl Drop for QueryPermit<'_> {
    fn drop(&mut self) {
        let CommitResolver { resolver, permits } = self.resolver;
        if permits.waiting() == 0 {
            resolver.rest();
        }
        permits.release(self.permit);
    }
}

// After a panic each part is checked by its own state, whichever mutexes it is built with.
impl UnwindSafe for CommitResolver {}
impl RefUnwindSafe for CommitResolver {}

impl fmt::Debug for CommitResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitResolver").finish_non_exhaustive()
    }
}
