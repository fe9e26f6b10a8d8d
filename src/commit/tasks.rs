//! The ends of doubts and scopes for callers that are tasks.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::commit::resolve::{DoubtResolver, NoTurn};
use crate::commit::side::Side;
use crate::connection::io::Io as _;
use crate::connection::tasks::io::Tasks;
use crate::connection::tasks::wire::ConnectionTask;
use crate::error::any::Error;
use crate::error::in_doubt::{CommitToken, InDoubt, Resolution, ResolveCommit, UnresolvedReason};
use crate::pool::router::Router;
use crate::pool::tasks::line::TaskPin;
use crate::pool::tasks::pool::TaskPool;
use crate::sync::lock;
use crate::sync::timer::until;

/// Maximum wait for the end of the connections' tasks.
const CLOSE_GRACE: Duration = Duration::from_millis(100);

/// Delay between two looks at the tasks.
const CLOSE_PAUSE: Duration = Duration::from_millis(1);

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
    turn: Mutex<Turn>,
    /// Notified when the turn has changed.
    changed: Notify,
}

/// The turn to query. A future that is polled no more loses it at its deadline.
#[derive(Default)]
struct Turn {
    closed: bool,
    /// The number of the call that has the turn, and the call's deadline.
    taken: Option<(u64, Instant)>,
    last: u64,
    /// Number of calls that wait for the turn or have it.
    calls: usize,
}

impl TaskResolver {
    pub(crate) fn new(router: Router<TaskPool>) -> Self {
        let resolver = DoubtResolver::new(router);
        Self { resolver, turn: Mutex::default(), changed: Notify::new() }
    }

    /// Makes later calls fail: the session manager is closed. The future is ready when the tasks of the
    /// connections have ended, or were not polled for a while.
    pub(crate) fn close(&self) -> impl Future<Output = ()> + Send + use<> {
        lock(&self.turn).closed = true;
        self.changed.notify_waiters();
        let connections = self.resolver.close();
        let tasks: Vec<_> = connections.iter().map(|own| own.wire().task().clone()).collect();
        drop(connections);
        async move {
            let by = Instant::now() + CLOSE_GRACE;
            while !tasks.iter().all(ConnectionTask::has_ended) && Instant::now() < by {
                Tasks::pause(CLOSE_PAUSE).await;
            }
        }
    }

    /// See [`DoubtResolver::ready`].
    pub(crate) async fn ready(&self, within: Duration) -> Result<(), Error> {
        self.resolver.ready(within, |deadline| self.turn(deadline)).await
    }

    /// Asks the server whether the transaction was applied. Dropped before its end, it closes the
    /// connection.
    pub(crate) async fn resolve(
        &self,
        token: &CommitToken,
        within: Option<Duration>,
    ) -> Resolution {
        self.resolver.resolve(token, within, |deadline| self.turn(deadline)).await
    }

    /// Waits for the turn to query. Dropped before its end, the future has taken none.
    async fn turn(&self, deadline: Instant) -> Result<QueryTurn<'_>, NoTurn> {
        lock(&self.turn).calls += 1;
        let mut query = QueryTurn { resolver: self, number: None };
        loop {
            let changed = self.changed.notified();
            let free_at = match lock(&self.turn).take(deadline)? {
                Ok(number) => {
                    query.number = Some(number);
                    return Ok(query);
                }
                Err(free_at) => free_at,
            };
            if Instant::now() >= deadline {
                return Err(NoTurn::Occupied);
            }
            until(deadline.min(free_at), changed).await;
        }
    }
}

impl Turn {
    /// Takes the turn, or returns the time at which it is free at the latest.
    fn take(&mut self, deadline: Instant) -> Result<Result<u64, Instant>, NoTurn> {
        if self.closed {
            return Err(NoTurn::Closed);
        }
        match self.taken {
            Some((_, until)) if until > Instant::now() => Ok(Err(until)),
            _ => {
                self.last += 1;
                self.taken = Some((self.last, deadline));
                Ok(Ok(self.last))
            }
        }
    }
}

impl ResolveCommit for TaskResolver {
    fn default_wait(&self) -> Duration {
        self.resolver.router.settings().checkout_timeout
    }

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

/// A call that waits for the turn to query, or has it.
struct QueryTurn<'r> {
    resolver: &'r TaskResolver,
    number: Option<u64>,
}

impl Drop for QueryTurn<'_> {
    fn drop(&mut self) {
        let TaskResolver { resolver, turn, changed } = self.resolver;
        let mut turn = lock(turn);
        turn.calls -= 1;
        let is_last = turn.calls == 0;
        if self.number.is_some() && turn.taken.map(|(number, _)| number) == self.number {
            turn.taken = None;
        }
        drop(turn);
        changed.notify_waiters();
        if is_last {
            resolver.rest();
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
