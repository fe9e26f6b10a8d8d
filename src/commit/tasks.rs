//! The ends of doubts and scopes for callers that are tasks.

use std::fmt;
use std::future::poll_fn;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, watch};

use crate::commit::resolve::{DoubtResolver, NoTurn, may_pass};
use crate::commit::side::Side;
use crate::connection::deadline;
use crate::connection::io::Io as _;
use crate::connection::tasks::io::{QUERY_GRACE, QueryCaller, Tasks, spawn_query};
use crate::connection::tasks::wire::ConnectionTask;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::in_doubt::{
    CommitToken, InDoubt, MIN_QUERY_TIME, Resolution, ResolveCommit, UnresolvedReason,
};
use crate::pool::router::Router;
use crate::pool::tasks::line::TaskPin;
use crate::pool::tasks::pool::TaskPool;
use crate::sync::caught::woken_apart;
use crate::sync::lock;
use crate::sync::own_mutex::OwnMutex;
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

/// Resolves transactions in doubt, and asks whether the servers are ready. Each query is a task of its
/// own, so it ends also if its caller is polled no more.
pub(crate) struct TaskResolver {
    queries: Arc<Queries>,
}

/// The queries, one at a time in each runtime.
struct Queries {
    resolver: DoubtResolver<TaskPool>,
    turns: OwnMutex<Turns>,
    /// Notified when a turn has changed.
    changed: Notify,
    /// The resolutions under way.
    resolutions: Mutex<Vec<UnderWay>>,
}

/// A resolution under way. It ends when no caller waits for it.
struct UnderWay {
    token: CommitToken,
    begun: Instant,
    runtime: runtime::Id,
    result: Weak<watch::Sender<Option<Resolution>>>,
}

/// The turns to query.
#[derive(Default)]
struct Turns {
    closed: bool,
    taken: Vec<Turn>,
    last: u64,
    /// Number of calls that wait for a turn or have one.
    calls: usize,
}

/// The turn of a call. In a runtime that is not run it lasts until the call's deadline.
struct Turn {
    number: u64,
    /// The connections of one runtime serve no other one.
    runtime: Option<runtime::Id>,
    until: Instant,
}

impl TaskResolver {
    pub(crate) fn new(router: Router<TaskPool>) -> Self {
        let queries = Queries {
            resolver: DoubtResolver::new(router),
            turns: OwnMutex::default(),
            changed: Notify::new(),
            resolutions: Mutex::default(),
        };
        Self { queries: Arc::new(queries) }
    }

    /// Makes later calls fail: the session manager is closed. The future is ready when the tasks of the
    /// connections have ended, or were not polled for a while.
    pub(crate) fn close(&self) -> impl Future<Output = ()> + Send + use<> {
        self.queries.turns.lock().closed = true;
        self.queries.changed.notify_waiters();
        let connections = self.queries.resolver.close();
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
        let router = &self.queries.resolver.router;
        router.here()?;
        let (queries, begun) = (Arc::clone(&self.queries), Instant::now());
        let deadline = deadline::later(begun, within);
        let probe =
            async move { queries.resolver.ready(within, |deadline| queries.turn(deadline)).await };
        match Tasks::apart(router.settings(), deadline, Box::pin(probe)).await {
            Some(ready) => ready,
            None => {
                let source = no_result(deadline);
                Err(CheckoutError::Connect { waited: begun.elapsed(), source }.into())
            }
        }
    }

    /// Asks the server whether the transaction was applied, unless another caller does. If all of them are
    /// dropped before the end, the connection is closed.
    pub(crate) async fn resolve(
        &self,
        token: &CommitToken,
        within: Option<Duration>,
    ) -> Resolution {
        let Queries { resolver, .. } = &*self.queries;
        let within = within.unwrap_or(resolver.router.settings().checkout_timeout);
        let asked = Instant::now();
        let deadline = deadline::later(asked, within);
        loop {
            let runtime = Handle::try_current();
            let (Ok(()), Ok(runtime)) = (resolver.router.here(), runtime) else {
                // Nothing is sent.
                let turn = |deadline| self.queries.turn(deadline);
                return Box::pin(resolver.resolve(token, Some(within), turn)).await;
            };
            let (result, begun) = self.queries.result(token, deadline, &runtime);
            let is_own = begun.is_none();
            let mut result = QueryCaller::new(resolver.router.settings(), result);
            let ended_by = deadline::later(deadline, QUERY_GRACE);
            let ended = match result.receiver() {
                Some(result) => {
                    until(ended_by, woken_apart(result.wait_for(Option::is_some))).await
                }
                None => None,
            };
            let resolution = ended.and_then(|ended| ended.ok()?.clone());
            let has_moved = || Handle::try_current().is_ok_and(|here| here.id() != runtime.id());
            let asks_again = match &resolution {
                // What the server said before this call may have passed.
                Some(Resolution::StillUnknown { .. })
                    if begun.is_some_and(|begun| begun < asked) =>
                {
                    true
                }
                Some(Resolution::StillUnknown { why }) => !is_own && may_pass(why),
                Some(_) => false,
                None => !is_own || has_moved(),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !asks_again || left < MIN_QUERY_TIME {
                let why = || UnresolvedReason::Unreachable(no_result(deadline));
                return resolution.unwrap_or_else(|| Resolution::StillUnknown { why: why() });
            }
        }
    }
}

/// The failure of a query whose task has ended before it, or has no result by the caller's deadline.
fn no_result(deadline: Instant) -> ConnectionError {
    match Instant::now() < deadline {
        true => {
            let text = "the session manager is closed, or the runtime of the query has ended";
            ConnectionError::new(ConnectionErrorKind::Closed, text)
        }
        false => ConnectionError::timed_out("no result of the query in time"),
    }
}

impl Queries {
    /// The result of a resolution under way in this runtime, and when it began, or of a new one.
    fn result(
        self: &Arc<Self>,
        token: &CommitToken,
        deadline: Instant,
        runtime: &Handle,
    ) -> (watch::Receiver<Option<Resolution>>, Option<Instant>) {
        let mut resolutions = lock(&self.resolutions);
        // One that has its result is over.
        let is_under_way = |result: &Weak<watch::Sender<Option<Resolution>>>| {
            result.upgrade().is_some_and(|sender| sender.borrow().is_none())
        };
        resolutions.retain(|other| is_under_way(&other.result));
        let same = |other: &&UnderWay| other.token == *token && other.runtime == runtime.id();
        if let Some(same) = resolutions.iter().find(same)
            && let Some(sender) = same.result.upgrade()
        {
            return (sender.subscribe(), Some(same.begun));
        }
        let (sender, result) = watch::channel(None);
        let sender = Arc::new(sender);
        let (token, weak) = (token.clone(), Arc::downgrade(&sender));
        let (runtime_id, begun) = (runtime.id(), Instant::now());
        let under_way = UnderWay { token: token.clone(), begun, runtime: runtime_id, result: weak };
        resolutions.push(under_way);
        drop(resolutions);
        let queries = Arc::clone(self);
        let within = deadline.saturating_duration_since(Instant::now());
        let query = async move {
            let turn = |deadline| queries.turn(deadline);
            let mut resolution = pin!(queries.resolver.resolve(&token, Some(within), turn));
            let mut has_no_caller = pin!(sender.closed());
            let resolution = poll_fn(|context| match has_no_caller.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => resolution.as_mut().poll(context).map(Some),
            });
            if let Some(resolution) = resolution.await {
                sender.send_replace(Some(resolution));
            }
        };
        spawn_query(self.resolver.router.settings(), runtime, query);
        (result, None)
    }

    /// Waits for the turn to query. Dropped before its end, the future has taken none.
    async fn turn(&self, deadline: Instant) -> Result<QueryTurn<'_>, NoTurn> {
        self.turns.lock().calls += 1;
        let mut query = QueryTurn { queries: self, number: None };
        loop {
            let changed = self.changed.notified();
            let free_at = match self.turns.lock().take(deadline)? {
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

impl Turns {
    /// Takes the turn of this runtime, or returns the time at which it is free at the latest.
    fn take(&mut self, deadline: Instant) -> Result<Result<u64, Instant>, NoTurn> {
        if self.closed {
            return Err(NoTurn::Closed);
        }
        let (now, runtime) = (Instant::now(), Handle::try_current().ok().map(|here| here.id()));
        self.taken.retain(|turn| turn.until > now);
        if let Some(turn) = self.taken.iter().find(|turn| turn.runtime == runtime) {
            return Ok(Err(turn.until));
        }
        self.last += 1;
        self.taken.push(Turn { number: self.last, runtime, until: deadline });
        Ok(Ok(self.last))
    }
}

impl ResolveCommit for TaskResolver {
    fn default_wait(&self) -> Duration {
        self.queries.resolver.router.settings().checkout_timeout
    }

    /// Waits for nothing.
    fn resolve(&self, _: &CommitToken, _: Option<Duration>) -> Resolution {
        Resolution::StillUnknown { why: UnresolvedReason::MustBeAwaited }
    }

    fn resolve_async<'r>(
        &'r self,
        token: &'r CommitToken,
    ) -> Option<Pin<Box<dyn Future<Output = Resolution> + Send + 'r>>> {
        Some(Box::pin(self.resolve(token, None)))
    }
}

/// A call that waits for the turn to query, or has it.
struct QueryTurn<'r> {
    queries: &'r Queries,
    number: Option<u64>,
}

impl Drop for QueryTurn<'_> {
    fn drop(&mut self) {
        let Queries { resolver, turns, changed, .. } = self.queries;
        let Some(mut turns) = turns.lock_in_drop() else { return };
        turns.calls -= 1;
        let is_last = turns.calls == 0;
        turns.taken.retain(|turn| Some(turn.number) != self.number);
        drop(turns);
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
