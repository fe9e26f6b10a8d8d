//! One lane: its waiting requests, and the state of its connection.
//!
//! The connection is opened by the first request, on the runtime of its task, and again until no
//! request waits. While there is none, each request has a timer of its own; with one, the connection's
//! task answers in time. A request whose time is over is not sent: its caller may be polled no more.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::{self, Handle};
use tokio::task::AbortHandle;

use crate::connection::connection::Connection;
use crate::connection::deadline;
use crate::connection::tasks::io::spawn_connection;
use crate::connection::tasks::wire::{ConnectionTask, TaskWire};
use crate::error::checkout::{CheckoutError, CheckoutTimeout};
use crate::error::connection::ConnectionError;
use crate::pool::batch_request::BatchRequest;
use crate::pool::context::PoolContext;
use crate::pool::group;
use crate::pool::group_request::{GroupAnswer, GroupJob, GroupRequest, Stay, settle};
use crate::pool::job::{GivenUp, Job, JobQueue, Left, Taking};
use crate::pool::shared::CountedConnection;
use crate::protocol::retry::Backoff;
use crate::status::lanes::LaneStatus;
use crate::status::metrics::Started;
use crate::sync::lock;
use crate::sync::places::{NoPlace, Places};
use crate::sync::timer::DeadlineTimer;

/// Minimum and maximum delay before another attempt to open a connection.
const CONNECT_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(250));

/// The time and the place of a request in a lane.
#[derive(Debug)]
pub(crate) struct LaneStay {
    since: Instant,
    /// When it is not to be sent any more.
    deadline: Instant,
    place: LanePlace,
    /// The lane that has taken it over from another one, until its caller knows.
    moved: Option<Weak<Lane>>,
}

pub(crate) type LaneRequest = GroupRequest<LaneStay>;
pub(crate) type LaneJob = GroupJob<LaneStay>;

impl Stay for LaneStay {
    fn is_late(&self, now: Instant) -> bool {
        self.deadline <= now
    }

    fn give_back<'s>(all: impl Iterator<Item = &'s mut Self>) -> usize {
        let (mut count, mut of) = (0, None);
        for stay in all {
            if let Some(places) = stay.place.0.take() {
                of = Some(places);
                count += 1;
            }
        }
        if let Some(places) = of {
            places.add_all(count);
        }
        count
    }
}

/// A place in a lane, until it is dropped or given back.
#[derive(Debug)]
pub(crate) struct LanePlace(Option<Arc<Places>>);

impl LanePlace {
    fn new(places: &Arc<Places>) -> Self {
        Self(Some(Arc::clone(places)))
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        if let Some(places) = &self.0 {
            places.add();
        }
    }
}

/// Serves the requests of a lane on a new connection, in the connection's task.
pub(crate) type Serve =
    fn(Arc<Lane>, Connection<TaskWire>, CountedConnection) -> Box<dyn Future<Output = ()> + Send>;

/// One lane.
pub(crate) struct Lane {
    pub(crate) context: Arc<PoolContext>,
    pub(crate) queue: JobQueue<LaneRequest, GroupAnswer>,
    /// Whether an exactly-once block waits, so that the register must be armed.
    pub(crate) awaits_register: AtomicBool,
    serve: Serve,
    /// The runtime of its connections.
    runtime: runtime::Id,
    /// The lanes of its runtime, with this one.
    siblings: OnceLock<Vec<Weak<Lane>>>,
    places: Arc<Places>,
    /// Whether the connection's task takes requests.
    is_running: AtomicBool,
    connection: Mutex<LaneConnection>,
}

struct LaneConnection {
    state: LaneState,
    backoff: Backoff,
    closed: bool,
    /// Requests that were not sent are for another server.
    retired: bool,
}

enum LaneState {
    None,
    /// `None`: the attempt is about to begin.
    Connecting(Option<AbortHandle>),
    /// The last attempt failed, and this task makes another one. `None`: it is about to begin.
    Failed(Option<AbortHandle>),
    Open(ConnectionTask),
}

impl Lane {
    pub(crate) fn new(context: &Arc<PoolContext>, serve: Serve, runtime: runtime::Id) -> Arc<Self> {
        let (first, most) = CONNECT_BACKOFF;
        let state = LaneState::None;
        let connection = LaneConnection {
            state,
            backoff: Backoff::new(first, most),
            closed: false,
            retired: false,
        };
        Arc::new(Self {
            context: Arc::clone(context),
            queue: JobQueue::new(),
            awaits_register: AtomicBool::new(false),
            serve,
            runtime,
            siblings: OnceLock::new(),
            places: Arc::new(Places::new(context.settings().max_in_flight as usize)),
            is_running: AtomicBool::new(false),
            connection: Mutex::new(connection),
        })
    }

    /// Requests that it cannot send may go to another one of these.
    pub(crate) fn set_siblings(&self, lanes: &[Arc<Self>]) {
        let _: Result<(), _> = self.siblings.set(lanes.iter().map(Arc::downgrade).collect());
    }

    /// Takes a place if one is free.
    ///
    /// # Errors
    /// The lane is closed.
    pub(crate) fn try_place(&self) -> Result<Option<LanePlace>, CheckoutError> {
        let taken = self.places.try_take().map_err(|_| CheckoutError::Closed)?;
        Ok(taken.then(|| LanePlace::new(&self.places)))
    }

    /// Waits for a place, first come first served.
    pub(crate) async fn place(
        &self,
        since: Instant,
        deadline: Instant,
    ) -> Result<LanePlace, CheckoutError> {
        match self.places.take(deadline).await {
            Ok(()) => Ok(LanePlace::new(&self.places)),
            Err(NoPlace::Closed) => Err(CheckoutError::Closed),
            Err(NoPlace::TimedOut) => Err(self.timeout(since)),
        }
    }

    /// Whether a connection serves the requests.
    pub(crate) fn is_served(&self) -> bool {
        self.is_running.load(Ordering::Acquire)
    }

    /// Submits a request of a caller that has waited since then, and has its place `now`. If the lane was
    /// closed meanwhile, that is the response. `submitter`: the task to be woken by the response, if it is
    /// known.
    pub(crate) fn submit(
        self: &Arc<Self>,
        batch: BatchRequest,
        [since, now, deadline]: [Instant; 3],
        place: LanePlace,
        submitter: Option<Waker>,
    ) -> LaneCall {
        if batch.exactly_once {
            self.awaits_register.store(true, Ordering::Release);
        }
        let request = LaneRequest::new(batch, LaneStay { since, deadline, place, moved: None });
        let job = Job::new(request, submitter);
        if !self.queue.push(&job)
            && let Some(request) = job.take()
        {
            settle(&job, request, Err(CheckoutError::Closed));
        }
        // If a write hangs, the next requests wait until it fails.
        let limit = 2 * self.context.settings().response_timeout;
        let is_short = deadline.saturating_duration_since(now) < limit;
        let (timer, lane) = (DeadlineTimer::default(), Arc::clone(self));
        LaneCall {
            lane,
            job,
            deadline,
            timer,
            is_short,
            is_late: false,
            gives_up: None,
            is_over: false,
        }
    }

    /// Has a connection opened if there is none. Ready at the deadline.
    fn poll_open(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        timer: &mut DeadlineTimer,
        deadline: Instant,
    ) -> Poll<()> {
        self.open_here();
        // Outside of a runtime there is no timer.
        if Handle::try_current().is_err() {
            return Poll::Ready(());
        }
        timer.poll(context, deadline)
    }

    /// Begins to open a connection if a task of the lane's runtime calls it.
    #[cold]
    pub(crate) fn open_here(self: &Arc<Self>) {
        if let Ok(runtime) = Handle::try_current()
            && runtime.id() == self.runtime
        {
            self.open(&runtime);
        }
    }

    /// Begins to open a connection if there is none, and none is being opened.
    pub(crate) fn open(self: &Arc<Self>, runtime: &Handle) {
        let mut connection = lock(&self.connection);
        let is_idle = matches!(connection.state, LaneState::None);
        if !is_idle || connection.closed {
            return;
        }
        connection.state = LaneState::Connecting(None);
        drop(connection);
        let PoolContext { config, endpoint, shared, .. } = &*self.context;
        let options = shared.open_options(config.purpose, endpoint);
        let (lane, counted) = (Arc::clone(self), CountedConnection::new(shared));
        let begun = Started::now();
        let then = move |opened| lane.opened(opened, counted, begun);
        let settings = Arc::clone(&config.settings);
        let attempt = spawn_connection(runtime, endpoint.clone(), settings, options, then);
        let mut connection = lock(&self.connection);
        if let LaneState::Connecting(none) = &mut connection.state {
            *none = Some(attempt);
        }
    }

    /// Takes over a new connection, in its task.
    fn opened(
        self: Arc<Self>,
        opened: Result<Connection<TaskWire>, ConnectionError>,
        counted: CountedConnection,
        begun: Started,
    ) {
        let PoolContext { config, endpoint, shared, .. } = &*self.context;
        let (since, log_thread) = (counted.begun, &config.logging.log_thread);
        let opened = match shared.opened(opened, since, endpoint, log_thread, begun) {
            Ok(opened) => opened,
            Err(error) => {
                drop(counted);
                return self.not_opened(since, error);
            }
        };
        let task = opened.wire().task().clone();
        let mut connection = lock(&self.connection);
        if connection.closed && self.queue.is_empty() {
            connection.state = LaneState::None;
            drop(connection);
            return;
        }
        connection.state = LaneState::Open(task.clone());
        connection.backoff = Backoff::new(CONNECT_BACKOFF.0, CONNECT_BACKOFF.1);
        drop(connection);
        self.is_running.store(true, Ordering::Release);
        let serving = (self.serve)(self, opened, counted);
        // If the task has ended, the drop of its loop ends the lane's connection.
        drop(task.adopt(serving));
    }

    /// Ends an attempt that failed. If another one may succeed, it begins later, unless no request waits.
    fn not_opened(self: &Arc<Self>, begun: Instant, source: ConnectionError) {
        if !source.is_transient_failure() || self.context.config.fail_fast {
            return self.refused(begun, &source);
        }
        let runtime = Handle::try_current().ok();
        let mut connection = lock(&self.connection);
        let pause = connection.backoff.wait();
        connection.state = match &runtime {
            Some(_) if !connection.closed => LaneState::Failed(None),
            _ => LaneState::None,
        };
        drop(connection);
        let Some(runtime) = runtime else { return };
        self.pass_on();
        let lane = Arc::clone(self);
        let again = lane.open_again(Instant::now() + pause, runtime.clone());
        let again = self.context.settings().tasks.spawn(&runtime, again);
        if let LaneState::Failed(none) = &mut lock(&self.connection).state {
            *none = Some(again);
        }
    }

    /// Ends an attempt that the server refused for good. Requests that are younger than the attempt have
    /// another one, because the refusal may be out of date.
    fn refused(self: &Arc<Self>, begun: Instant, source: &ConnectionError) {
        let fails_all = lock(&self.connection).closed || source.is_transient_failure();
        // Before another attempt can begin, which would find the queue empty meanwhile.
        self.fail_if(
            |request| fails_all || request.stay.since <= begun,
            |since| CheckoutError::Connect { waited: since.elapsed(), source: source.clone() },
        );
        lock(&self.connection).state = LaneState::None;
        if !self.queue.is_empty() {
            self.open_here();
        }
    }

    /// Begins another attempt at this time, if requests wait.
    async fn open_again(self: Arc<Self>, at: Instant, runtime: Handle) {
        let mut timer = DeadlineTimer::default();
        poll_fn(|context| timer.poll(context, at)).await;
        self.fail_late();
        let mut connection = lock(&self.connection);
        if !matches!(connection.state, LaneState::Failed(_)) {
            return;
        }
        connection.state = LaneState::None;
        drop(connection);
        self.pass_on();
        if !self.queue.is_empty() {
            self.open(&runtime);
        }
    }

    /// Passes the waiting requests to a lane that a connection serves, if there is one.
    fn pass_on(&self) {
        let mut siblings = self.siblings.get().into_iter().flatten().filter_map(Weak::upgrade);
        let Some(served) = siblings.find(|lane| lane.is_served()) else { return };
        let mut jobs = VecDeque::new();
        self.queue.drain_into(&mut jobs);
        while let Some(job) = jobs.pop_front() {
            let moved = Arc::downgrade(&served);
            let exactly_once = job.look(|request| {
                request.stay.moved = Some(moved);
                request.batch.exactly_once
            });
            if exactly_once == Some(true) {
                served.awaits_register.store(true, Ordering::Release);
            }
            if !served.queue.push(&job) {
                jobs.push_front(job);
                self.queue.put_back(jobs);
                break;
            }
        }
        // If its connection has ended before, the requests came too late to be woken by that.
        if !served.is_served() {
            served.queue.wake_submitters();
        }
    }

    /// Fails the waiting requests whose time is over: their callers may be polled no more.
    pub(crate) fn fail_late(&self) {
        let now = Instant::now();
        self.fail_if(|request| request.stay.is_late(now), |since| self.late(since));
    }

    /// Fails the requests whose time is over, of those that wait and those in the queue. Returns when to
    /// look again: later ones have more time than the replies, which end the wait.
    pub(crate) fn end_late(&self, waiting: &VecDeque<Arc<LaneJob>>) -> Instant {
        self.fail_late();
        let now = Instant::now();
        let mut next = deadline::later(now, self.context.settings().response_timeout);
        for job in waiting {
            let late = job.take_if(|request| {
                let is_late = request.stay.is_late(now);
                if !is_late {
                    next = next.min(request.stay.deadline);
                }
                is_late
            });
            if let Taking::Taken(request) = late {
                self.settle_late(job, request);
            }
        }
        next
    }

    /// Fails the waiting requests for which `fails` returns true. `error`: of a request of that time.
    fn fail_if(
        &self,
        fails: impl Fn(&LaneRequest) -> bool,
        error: impl Fn(Instant) -> CheckoutError,
    ) {
        let mut failed = Vec::new();
        // The task that takes them finds the queue as it is: an empty one would end a closed lane.
        self.queue.remove_if(|job| match job.take_if(|request| fails(request)) {
            Taking::Taken(request) => {
                failed.push((Arc::clone(job), request));
                true
            }
            Taking::Left => false,
            Taking::Gone => true,
        });
        for (job, request) in failed {
            let error = error(request.stay.since);
            settle(&job, request, Err(error));
        }
    }

    /// Ends a request that was taken, and whose time is over.
    #[cold]
    pub(in crate::pool) fn settle_late(&self, job: &LaneJob, request: LaneRequest) {
        let late = self.late(request.stay.since);
        settle(job, request, Err(late));
    }

    /// Records that the connection's task takes no more requests, and returns those that it left.
    pub(crate) fn connection_ended(&self) {
        self.is_running.store(false, Ordering::Release);
        let mut connection = lock(&self.connection);
        connection.state = LaneState::None;
        let is_last = connection.retired || connection.closed;
        drop(connection);
        if is_last {
            return self.fail_if(|_| true, |_| CheckoutError::Closed);
        }
        // Their tasks set timers, and one of them has another connection opened.
        self.queue.wake_submitters();
    }

    /// The error of a request that was not sent by its deadline.
    #[cold]
    fn late(&self, since: Instant) -> CheckoutError {
        if self.is_running.load(Ordering::Acquire) {
            return self.timeout(since);
        }
        let failure = self.context.shared.connect_error();
        let source = failure.unwrap_or_else(|| self.context.not_connected_in_time());
        CheckoutError::Connect { waited: since.elapsed(), source }
    }

    #[cold]
    fn timeout(&self, since: Instant) -> CheckoutError {
        let max = self.context.settings().max_in_flight;
        CheckoutError::Timeout(Box::new(CheckoutTimeout {
            waited: since.elapsed(),
            max_size: max,
            in_use: self.in_flight() as u32,
            idle: 0,
            waiters: 1,
            holders: Vec::new(),
            last_connect_error: self.context.shared.connect_error(),
        }))
    }

    /// Adds its connection and its requests to the report.
    pub(crate) fn add_to(&self, status: &mut LaneStatus) {
        let (in_flight, queued) = (self.in_flight(), self.queue.len());
        status.lanes += 1;
        let is_open =
            matches!(&lock(&self.connection).state, LaneState::Open(task) if !task.is_closed());
        status.open += usize::from(is_open);
        // Between two looks a request may have been sent, and a place may be without a request yet.
        status.sent += in_flight.saturating_sub(queued);
        status.queued += queued.min(in_flight);
        status.waiting += self.places.waiting();
    }

    /// Number of requests that wait or were sent.
    pub(crate) fn in_flight(&self) -> usize {
        (self.context.settings().max_in_flight as usize).saturating_sub(self.places.free())
    }

    /// Whether there is a connection, or one is being opened.
    pub(crate) fn is_open(&self) -> bool {
        matches!(lock(&self.connection).state, LaneState::Connecting(_) | LaneState::Open(_))
    }

    /// Refuses new requests. Those in the lane are served, then the connection is closed.
    pub(crate) fn close(&self) {
        lock(&self.connection).closed = true;
        self.places.close();
        self.queue.close();
    }

    /// The same for the lane of a former master: requests that were not sent fail, so that their callers
    /// look for another server.
    pub(crate) fn retire(&self) {
        lock(&self.connection).retired = true;
        self.close();
        self.fail_if(|_| true, |_| CheckoutError::Closed);
    }

    /// Closes the connection at once, and returns its task. Waiting requests fail.
    pub(crate) fn shut_down(&self) -> Option<ConnectionTask> {
        self.close();
        let state = std::mem::replace(&mut lock(&self.connection).state, LaneState::None);
        let task = match state {
            LaneState::Connecting(Some(attempt)) | LaneState::Failed(Some(attempt)) => {
                attempt.abort();
                None
            }
            LaneState::Open(task) => {
                task.shut_down();
                Some(task)
            }
            LaneState::Connecting(None) | LaneState::Failed(None) | LaneState::None => None,
        };
        self.fail_if(|_| true, |_| CheckoutError::Closed);
        task
    }
}

/// A request in a lane, and its response. Its drop withdraws a request that was not taken.
///
/// While a connection serves the lane, it has no timer: the connection's task answers in time.
pub(crate) struct LaneCall {
    lane: Arc<Lane>,
    job: Arc<LaneJob>,
    deadline: Instant,
    timer: DeadlineTimer,
    /// Whether its deadline is shorter than that of the connection's task.
    is_short: bool,
    /// Whether its deadline has come while it was being sent.
    is_late: bool,
    /// When the response to calls that were sent is not awaited any more: they can be sent again. Other
    /// requests wait for their outcome.
    gives_up: Option<Instant>,
    /// Whether the response was taken.
    is_over: bool,
}

impl LaneCall {
    /// When it is withdrawn, unless it is being sent.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the call needs a poll soon although there is no response: for its timer, or because the lane
    /// has ended. The look comes after the request was submitted, so a lane that ends later wakes the task.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_short || !self.lane.is_served()
    }

    /// Whether another runtime than the caller's serves the lane, which may not be run.
    fn is_foreign(&self) -> bool {
        Handle::try_current().is_ok_and(|runtime| runtime.id() != self.lane.runtime)
    }

    /// Returns the response and the request's bytes. Wakes the task later if there is none yet.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<GroupAnswer> {
        let mut polled = self.job.poll(context);
        if polled.is_pending()
            && let Some(moved) = self.job.look(|request| request.stay.moved.take()).flatten()
            && let Some(lane) = moved.upgrade()
        {
            self.lane = lane;
        }
        if polled.is_pending() && (self.is_alone() || self.is_foreign()) {
            polled = self.poll_alone(context);
        }
        if let Poll::Ready((response, _)) = &polled {
            self.is_over = true;
            if let Err(error) = response {
                self.lane.context.config.counters.on_refused(error);
            }
        }
        polled
    }

    /// Has a connection opened if there is none, and withdraws the request at its deadline.
    #[cold]
    fn poll_alone(&mut self, context: &mut Context<'_>) -> Poll<GroupAnswer> {
        let is_foreign = self.is_foreign();
        let Self { lane, job, deadline, timer, is_late, gives_up, .. } = self;
        if !*is_late {
            if lane.poll_open(context, timer, *deadline).is_pending() {
                return Poll::Pending;
            }
            // Too late: unless it is being sent, it is withdrawn.
            if let Some(request) = job.take() {
                lane.queue.remove(job);
                lane.settle_late(job, request);
            }
            *is_late = true;
            if let Poll::Ready(response) = job.poll(context) {
                return Poll::Ready(response);
            }
        }
        if is_foreign {
            // The runtime that sends it may not be run. Else it has its reply by then.
            let within = 2 * lane.context.settings().response_timeout;
            gives_up.get_or_insert(*deadline + within);
        }
        match gives_up {
            Some(at) if timer.poll(context, *at).is_ready() => Poll::Ready(match job.give_up() {
                GivenUp::Withdrawn(request) => {
                    lane.queue.remove(job);
                    (Err(lane.late(request.stay.since)), request.batch.bytes)
                }
                GivenUp::Response(response) => response,
                // The bytes stay with the one that may have sent them, and are not sent again.
                GivenUp::Taken(token) => {
                    let cause = ConnectionError::timed_out("no reply in time");
                    (Ok(group::unanswered(cause, token.as_ref())), Vec::new())
                }
            }),
            _ => Poll::Pending,
        }
    }

    /// The response to calls that were sent is awaited until `at`.
    pub(crate) fn give_up_at(&mut self, at: Instant) {
        self.gives_up = Some(at);
    }
}

impl Drop for LaneCall {
    fn drop(&mut self) {
        if self.is_over || self.lane.context.settings().is_forked_child() {
            return;
        }
        let counters = &self.lane.context.config.counters;
        match self.job.leave() {
            Left::Over => {}
            Left::Withdrawn => {
                self.lane.queue.remove(&self.job);
                counters.withdrawn.add();
            }
            Left::Abandoned => counters.abandoned.add(),
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/lane_requests.rs"]
mod requests;

#[cfg(test)]
#[path = "../../../tests/unit/lane.rs"]
mod tests;
