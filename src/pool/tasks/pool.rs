//! The pool of one server, for callers that are tasks.

use std::any::Any;
use std::convert::Infallible;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use scheduled_thread_pool::ScheduledThreadPool;
use tokio::runtime::Handle;
use tracing::Level;

use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::tasks::io::Tasks;
use crate::connection::tasks::io::no_runtime;
use crate::connection::tasks::wire::ConnectionTask;
use crate::error::any::Error;
use crate::error::checkout::{CheckoutError, CheckoutTimeout};
use crate::error::open_scope::OpenScope;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::config::PoolConfig;
use crate::pool::context::PoolContext;
use crate::pool::early_watch::{self, WatchOffer};
use crate::pool::line::Line;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::scopes::{OpenScopes, ReaperState, WouldDeadlock};
use crate::pool::semaphore::QueuePlace;
use crate::pool::server_pool::{BatchCheckout, ServerPool};
use crate::pool::tasks::core::{LinesSeen, TaskCore};
use crate::pool::tasks::holder::HolderTask;
use crate::pool::tasks::lane::LaneCall;
use crate::pool::tasks::lanes::KnownLanes;
use crate::pool::tasks::line::{TaskKeyQueue, TaskKeyTurn, TaskLine, TaskPin};
use crate::pool::tasks::permits::Acquired;
use crate::pool::tasks::waiter::LeftWatch;
use crate::status::metrics::PoolLevels;
use crate::status::node::NodeStatus;
use crate::sync::timer::until;

/// Maximum time that a closing pool waits for the end of its connections' tasks.
const CLOSE_GRACE: Duration = Duration::from_millis(100);

/// Delay between two looks at a pool that is being closed.
const CLOSE_PAUSE: Duration = Duration::from_millis(1);

/// The pool of one server, for callers that are tasks. Clones are the same pool.
#[derive(Clone)]
pub(crate) struct TaskPool {
    pub(in crate::pool) scopes: Arc<OpenScopes<TaskLine>>,
}

impl Deref for TaskPool {
    type Target = Arc<TaskCore>;

    fn deref(&self) -> &Arc<TaskCore> {
        self.scopes.core()
    }
}

impl TaskPool {
    /// Takes a connection for the permit, and counts and logs the outcome.
    async fn connect(
        &self,
        acquired: Acquired,
        started: Instant,
        deadline: Instant,
    ) -> Result<TaskLine, CheckoutError> {
        let mut checkout = match acquired {
            Acquired::Right(right, passed_on) => {
                let mut line = TaskLine::new(self, right, passed_on);
                match line.has_passed_on() {
                    true => Ok(line),
                    false => line.take_or_wait(started, deadline).await.map(|()| line),
                }
            }
            Acquired::Closed => Err(CheckoutError::Closed),
            Acquired::TimedOut { waiters } => Err(self.timed_out(started, waiters)),
        };
        match &mut checkout {
            Ok(line) => self.begin_use(line, started),
            Err(error) => self.on_refused(error),
        }
        checkout
    }

    /// Counts and logs a checkout.
    fn begin_use(&self, line: &mut TaskLine, started: Instant) {
        let name = self.config.name;
        line.begin_use(started);
        self.config.counters.checkouts.add();
        line.log_later(Level::TRACE, move || tracing::trace!(pool = name, "checkout"));
    }

    /// Takes the connection that came with the caller's turn. `None`: none came, or it is to another server, or
    /// the pool has taken it back or is being closed.
    fn take_with_turn(&self, offer: Option<WatchOffer<'_, TaskKeyTurn>>) -> Option<TaskLine> {
        let mut line = offer?.turn?.take_connection()?;
        let is_usable = line.is_of(self) && !self.permits.is_closed() && line.has_passed_on();
        is_usable.then(|| {
            self.begin_use(&mut line, Instant::now());
            line
        })
    }

    /// Whether this task has an open scope. That of a closure may be another future's of the task; it counts
    /// `with_closures`.
    pub(in crate::pool) fn is_held_by_this_task(&self, with_closures: bool) -> bool {
        let this = HolderTask::here();
        let counts = |origin: &ScopeOrigin| with_closures || !origin.is_closure;
        self.scopes.is_held_by(|holder, origin| *holder == this && counts(origin))
    }

    /// See [`Lanes::try_submit`](crate::pool::tasks::lanes::Lanes::try_submit).
    pub(crate) fn try_submit(
        &self,
        known: Option<&mut KnownLanes>,
        context: &Context<'_>,
        request: impl FnOnce() -> BatchRequest,
    ) -> Option<LaneCall> {
        self.lanes.try_submit(known, context, request)
    }

    /// Takes a connection. If the caller has to wait, a holder may send WATCH and the reads of `offer`.
    async fn take(
        &self,
        deadline: Instant,
        offer: Option<WatchOffer<'_, TaskKeyTurn>>,
    ) -> Result<TaskLine, CheckoutError> {
        let started = Instant::now();
        let acquired = match self.permits.try_acquire() {
            Some(acquired) => acquired,
            None if Handle::try_current().is_err() => {
                let source = no_runtime();
                return Err(CheckoutError::Connect { waited: Duration::ZERO, source });
            }
            None => {
                self.warn_if_all_wait();
                let patience = early_watch::patience(self.settings().response_timeout);
                let watch = offer.and_then(|offer| offer.early_watch());
                let left = watch.map(|watch| LeftWatch::new(watch, patience, &[]));
                // A connection on which WATCH was sent is cleaned by its own task.
                let give_back = |right, passed_on| drop(TaskLine::new(self, right, passed_on));
                self.permits.acquire(QueuePlace::Last, deadline, left, give_back).await
            }
        };
        self.connect(acquired, started, deadline).await
    }

    /// Warns if each holder of a connection waits for another one. One task may legally wait for
    /// itself, in two branches of a `join!`, so this is no proof of a deadlock.
    fn warn_if_all_wait(&self) {
        let checked = self.scopes.check_wait(|holder| self.permits.is_waiting(holder));
        let Err(WouldDeadlock { holders, .. }) = checked else { return };
        for scope in holders {
            let OpenScope { name, begun_at: place, thread, age, .. } = scope;
            let name = name.as_deref();
            tracing::warn!(
                name, %place, %thread, ?age,
                "every task that began a scope waits for a connection"
            );
        }
    }

    fn timed_out(&self, started: Instant, waiters: usize) -> CheckoutError {
        let [_, idle] = self.idle.sizes();
        CheckoutError::Timeout(Box::new(CheckoutTimeout {
            waited: started.elapsed(),
            max_size: self.settings().max_size,
            in_use: self.in_use() as u32,
            idle,
            waiters,
            holders: ServerPool::open_scopes(self),
            last_connect_error: self.shared.connect_error(),
        }))
    }

    /// Waits until no connection is in use, reclaims the scopes that are open at `deadline`, and
    /// closes all connections. Returns the number of scopes that were reclaimed.
    pub(crate) async fn drain(&self, deadline: Instant) -> usize {
        while (self.in_use() > 0 || self.lanes.in_flight() > 0) && Instant::now() < deadline {
            // A closed lane without a connection has no other one opened.
            self.lanes.fail_late();
            pause(deadline).await;
        }
        // A connection that is returned from here on is closed, and none is opened in its place.
        self.shared.close();
        self.idle.close();
        let reclaimed = self.scopes.reclaim_all();
        // Running calls fail now.
        let lanes = self.lanes.shut_down();
        self.idle.shut_down();
        // No longer: the runtime of a task may not be run.
        let by = Instant::now() + CLOSE_GRACE;
        let has_ended = || self.idle.has_ended() && lanes.iter().all(ConnectionTask::has_ended);
        while !has_ended() && Instant::now() < by {
            pause(by).await;
        }
        reclaimed
    }

    /// Runs the reaper often enough for the shortest limit.
    fn start_reaper(&self, threads: &ScheduledThreadPool) {
        let settings = self.settings();
        let (limit, warning) = (settings.max_pin_time, settings.pin_warning);
        let limits = [Some(limit), warning, settings.idle_timeout].into_iter().flatten();
        let shortest = limits.min().unwrap_or(limit);
        let period = (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let pool = ServerPool::weak(self);
        let (mut scopes, mut lines) = (ReaperState::default(), LinesSeen::default());
        let sizes = [settings.max_size, settings.min_idle];
        let mut levels = PoolLevels::new(&self.config.counters.metrics, sizes);
        threads.execute_at_dynamic_rate(period, move || {
            let pool = Self::upgrade(&pool)?;
            let log_thread = &pool.config.logging.log_thread;
            pool.scopes.reclaim_unused(&mut scopes, limit, warning, log_thread);
            pool.revoke_unused(&mut lines, limit);
            pool.tend_idle();
            levels.report(|| {
                let [size, idle] = pool.idle.sizes().map(|size| size as usize);
                let waiting = pool.permits.waiting() + pool.lanes.status().waiting;
                [idle, size - idle, pool.lanes.open(), waiting]
            });
            Some(period)
        });
    }

    /// Opens a connection if there are fewer than `least`, without waiting for it. Outside of a
    /// runtime this does nothing.
    fn open_below(&self, least: usize) {
        let Ok(runtime) = Handle::try_current() else { return };
        self.idle.set_runtime(&runtime);
        if let Some(number) = self.idle.open_below(least, runtime.id()) {
            self.open(number, &runtime);
        }
    }
}

/// Waits a little.
async fn pause(deadline: Instant) {
    let by = deadline.min(Instant::now() + CLOSE_PAUSE);
    until(by, std::future::pending::<()>()).await;
}

impl ServerPool for TaskPool {
    type Io = Tasks;
    type Line = TaskLine;
    type Pin = TaskPin;
    type Turns = TaskKeyQueue;
    /// Lanes send all batches.
    type Group = Infallible;
    /// A forgotten scope does not keep the pool alive. (The line in the scope's entry does, until the
    /// scope ends or is reclaimed.)
    type Weak = Weak<OpenScopes<TaskLine>>;

    const HAS_LANES: bool = true;

    fn new(config: PoolConfig, endpoint: Endpoint) -> Self {
        let threads = Arc::clone(&config.threads);
        let core = Arc::new(TaskCore::new(config, endpoint));
        let pool = Self { scopes: Arc::new(OpenScopes::new(core)) };
        pool.start_reaper(&threads);
        if let Ok(runtime) = Handle::try_current() {
            pool.idle.set_runtime(&runtime);
            pool.tend_idle();
        }
        pool
    }

    fn weak(&self) -> Self::Weak {
        Arc::downgrade(&self.scopes)
    }

    fn upgrade(weak: &Self::Weak) -> Option<Self> {
        weak.upgrade().map(|scopes| Self { scopes })
    }

    fn context(&self) -> &PoolContext {
        self
    }

    async fn checkout(&self, deadline: Instant) -> Result<TaskLine, CheckoutError> {
        self.take(deadline, None).await
    }

    async fn try_checkout(&self, deadline: Instant) -> Result<Option<TaskLine>, CheckoutError> {
        match self.permits.try_acquire() {
            Some(acquired) => self.connect(acquired, Instant::now(), deadline).await.map(Some),
            None => Ok(None),
        }
    }

    async fn checkout_batched(
        &self,
        deadline: Instant,
        response_wait: Duration,
        request: &(impl Fn() -> BatchRequest + Sync),
    ) -> Result<BatchCheckout<Self>, CheckoutError> {
        if self.settings().lanes == 0 {
            return self.take(deadline, None).await.map(BatchCheckout::Alone);
        }
        let submitted = self.lanes.submit(deadline, response_wait, request).await;
        submitted.map(BatchCheckout::Response)
    }

    async fn prepare_batch(
        _line: &mut TaskLine,
        group: &mut Infallible,
        _deadline: Instant,
    ) -> Result<(), Error> {
        match *group {}
    }

    async fn send_batch(
        _line: TaskLine,
        group: Infallible,
        _deadline: Deadline,
    ) -> Result<BatchResponse, CheckoutError> {
        match group {}
    }

    fn pin(
        &self,
        origin: ScopeOrigin,
        deadline: Instant,
        needs_asking: bool,
        router: Arc<dyn Any + Send + Sync>,
    ) -> impl Future<Output = Result<TaskPin, CheckoutError>> + Send {
        self.pin_watching(origin, deadline, needs_asking, router, None)
    }

    async fn pin_watching(
        &self,
        origin: ScopeOrigin,
        deadline: Instant,
        needs_asking: bool,
        router: Arc<dyn Any + Send + Sync>,
        offer: Option<WatchOffer<'_, TaskKeyTurn>>,
    ) -> Result<TaskPin, CheckoutError> {
        let line = match self.take_with_turn(offer) {
            Some(line) => line,
            None => self.take(deadline, offer).await?,
        };
        let mut line = line.with_ask(needs_asking);
        line.set_scoped();
        if let Some(turn) = offer.and_then(|offer| offer.turn) {
            line.set_turn(turn);
        }
        Ok(self.scopes.open(line, origin, router))
    }

    fn with_ask(line: TaskLine, needs_asking: bool) -> TaskLine {
        line.with_ask(needs_asking)
    }

    fn warm(&self) {
        match self.settings().lanes {
            0 => self.open_below(1),
            _ => self.lanes.warm(),
        }
    }

    fn close(&self) {
        self.permits.close();
        self.idle.keep_none();
        self.lanes.close();
        self.blocking.close();
    }

    fn retire(&self) {
        self.permits.close();
        self.lanes.retire();
        self.shared.close();
        self.idle.close();
    }

    fn open_scopes(&self) -> Vec<OpenScope> {
        let mut scopes = self.scopes.list();
        scopes.extend(self.blocking.list());
        scopes.sort_by_key(|scope| std::cmp::Reverse(scope.age));
        scopes
    }

    fn status(&self, address: String, slots: usize) -> NodeStatus {
        let [size, idle] = self.idle.sizes();
        NodeStatus {
            address,
            slots,
            size,
            in_use: self.in_use() as u32,
            idle,
            waiting: self.permits.waiting(),
            lanes: self.lanes.status(),
            last_connect_error: self.shared.connect_error(),
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/task_pool.rs"]
mod tests;
