//! The loop of a lane, which its connection's task runs: take the waiting requests, send them in one
//! write, hand out the replies.
//!
//! Requests of which nothing was sent go to the next connection. No byte is sent on a connection that
//! is known to be dead.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use tokio::runtime::Handle;

use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline;
use crate::connection::tasks::connect;
use crate::connection::tasks::wire::TaskWire;
use crate::error::connection::ConnectionError;
use crate::pool::group::Group;
use crate::pool::group_prepare;
use crate::pool::line::Line;
use crate::pool::reauthentication::reauthenticate;
use crate::pool::rejected_shapes::RejectedShapes;
use crate::pool::shared::CountedConnection;
use crate::pool::tasks::lane::{Lane, LaneJob};
use crate::pool::tasks::lane_line::LaneLine;
use crate::protocol::batch::RequestKind;
use crate::protocol::connection_state::CloseReason;
use crate::sync::boxed::boxed;
use crate::sync::timer::DeadlineTimer;

/// Serves the lane's requests until its connection is closed.
pub(crate) fn serve(
    lane: Arc<Lane>,
    connection: Connection<TaskWire>,
    counted: CountedConnection,
) -> Box<dyn Future<Output = ()> + Send> {
    Box::new(run(lane, connection, counted))
}

async fn run(lane: Arc<Lane>, connection: Connection<TaskWire>, counted: CountedConnection) {
    let line = LaneLine::new(Arc::clone(&lane.context), connection);
    let mut lane_loop = LaneLoop {
        line,
        waiting: VecDeque::new(),
        average: 1,
        idle: DeadlineTimer::default(),
        last_used: Instant::now(),
        shapes: RejectedShapes::default(),
        lane,
        _counted: counted,
    };
    while lane_loop.round().await {}
    let lane = Arc::clone(&lane_loop.lane);
    drop(lane_loop);
    if !lane.queue.is_empty()
        && let Ok(runtime) = Handle::try_current()
    {
        lane.open(&runtime);
    }
}

/// The loop of a lane on one connection.
struct LaneLoop {
    /// The first field: the connection is closed before it is no longer counted.
    line: LaneLine,
    /// Requests that were at the head of the queue and are not taken yet.
    waiting: VecDeque<Arc<LaneJob>>,
    /// Moving average of the requests in a write, in sixteenths.
    average: usize,
    idle: DeadlineTimer,
    last_used: Instant,
    shapes: RejectedShapes,
    lane: Arc<Lane>,
    _counted: CountedConnection,
}

/// The connection was closed, or the task's runtime was shut down.
impl Drop for LaneLoop {
    fn drop(&mut self) {
        self.line.close();
        self.lane.queue.put_back(std::mem::take(&mut self.waiting));
        self.lane.connection_ended();
    }
}

/// Above this average, in sixteenths, other tasks run before a write, which they may join.
const BUSY: usize = 17;

impl LaneLoop {
    /// Waits for requests and serves them once. Returns false if the connection is to be closed.
    async fn round(&mut self) -> bool {
        if !self.wait().await {
            return false;
        }
        if self.average > BUSY {
            yield_once().await;
        }
        self.lane.queue.drain_into(&mut self.waiting);
        if !self.is_usable() {
            return false;
        }
        let mut trusted = self.line.is_trusted_with_multi();
        if self.must_prepare(trusted) {
            let (lane, waiting) = (Arc::clone(&self.lane), self.waiting.clone());
            if !boxed(ending_late(&lane, &waiting, self.prepare())).await {
                return false;
            }
            trusted = true;
            // Requests that came meanwhile.
            self.lane.queue.drain_into(&mut self.waiting);
        }
        self.serve(trusted).await
    }

    /// Returns whether something must be sent before the requests. Reads need no proof that the connection
    /// is alive: they can be sent again.
    fn must_prepare(&mut self, trusted: bool) -> bool {
        let provider = self.lane.context.endpoint.provider();
        let may_need_reauth = provider.is_some_and(|provider| {
            provider.version_at_once().is_none_or(|version| {
                self.line.current().is_some_and(|connection| connection.needs_reauth(version))
            })
        });
        may_need_reauth
            || (!trusted && !self.waiting.iter().all(is_read))
            || (self.lane.awaits_register.load(Ordering::Acquire)
                && group_prepare::must_arm(&mut self.line, &self.waiting).is_some())
    }

    /// Waits until there are requests. Returns false if there will be none for long.
    async fn wait(&mut self) -> bool {
        if !self.waiting.is_empty() {
            return true;
        }
        let (queue, idle) = (&self.lane.queue, &mut self.idle);
        let limit = self.lane.context.settings().idle_timeout;
        let until = limit.map(|limit| deadline::later(self.last_used, limit));
        poll_fn(|context| match (queue.poll_waiting(context), until) {
            (Poll::Ready(waiting), _) => Poll::Ready(waiting),
            (Poll::Pending, Some(until)) => idle.poll(context, until).map(|()| false),
            (Poll::Pending, None) => Poll::Pending,
        })
        .await
    }

    /// Returns whether the connection may be used, without waiting. It is closed if not.
    fn is_usable(&mut self) -> bool {
        let (now, generation) = (Instant::now(), self.lane.context.generation());
        let Some(connection) = self.line.current() else { return false };
        if self.lane.context.is_silent_since(connection.last_alive()) {
            connection.taint(CloseReason::TimedOut);
        } else if connection.close_reason(now, generation).is_none() {
            connection.mark_taken();
            return self.line.has_connection();
        }
        false
    }

    /// Makes sure that the connection is alive, and arms its register if an exactly-once block waits.
    /// Returns false if the connection was lost.
    async fn prepare(&mut self) -> bool {
        let was_trusted = self.line.is_trusted_with_multi();
        let by = deadline::after(self.lane.context.settings().response_timeout);
        let (endpoint, settings) =
            (self.lane.context.endpoint.clone(), Arc::clone(self.lane.context.settings()));
        if let Some(version) = connect::login_version(&endpoint, &settings, by).await {
            let login = || async move { connect::login(&endpoint, &settings, Some(by)).await };
            if !reauthenticate(&mut self.line, version, by, login).await {
                return false;
            }
        }
        // The provider may have taken its time. Its reply to a login proves no rights.
        let was_trusted = was_trusted && self.line.is_trusted();
        if self.lane.awaits_register.swap(false, Ordering::AcqRel)
            && let Some(tag) = group_prepare::must_arm(&mut self.line, &self.waiting)
            && !self.arm(tag).await
        {
            return false;
        }
        if was_trusted {
            return true;
        }
        let is_block =
            |job: &Arc<LaneJob>| job.look(|request| request.batch.kind.is_block()) == Some(true);
        if self.waiting.iter().any(is_block) {
            return self.open_multi().await;
        }
        if self.line.is_trusted() {
            return true;
        }
        let deadline = self.line.response_deadline();
        let Some(connection) = self.line.current() else { return false };
        match connection.ping(deadline).await {
            Ok(_) => true,
            Err(cause) => {
                self.lost(&cause);
                false
            }
        }
    }

    /// Sends MULTI alone and reads its reply. Returns false if the connection was lost.
    async fn open_multi(&mut self) -> bool {
        let keeps_watch = group_prepare::awaits_register(&self.waiting);
        let deadline = self.line.response_deadline();
        match group_prepare::open_multi(&mut self.line, keeps_watch, deadline).await {
            Ok(None) => true,
            Ok(Some(error)) => {
                self.lane.queue.drain_into(&mut self.waiting);
                let count = || self.lane.context.config.counters.checkouts.add();
                group_prepare::reject_blocks(&mut self.waiting, error, count);
                self.is_untainted()
            }
            Err(cause) => {
                self.lost(&cause);
                false
            }
        }
    }

    /// Writes the connection's register and watches it. Returns false if the connection was lost.
    async fn arm(&mut self, tag: Option<u32>) -> bool {
        let deadline = self.line.response_deadline();
        match group_prepare::arm(&mut self.line, tag, deadline).await {
            Ok(None) => true,
            Ok(Some(refusal)) => {
                self.lane.queue.drain_into(&mut self.waiting);
                let count = || self.lane.context.config.counters.checkouts.add();
                group_prepare::reject_exactly_once(&mut self.waiting, tag, &refusal, count);
                self.is_untainted()
            }
            Err(cause) => {
                self.lost(&cause);
                false
            }
        }
    }

    fn is_untainted(&mut self) -> bool {
        self.line.current().is_some_and(|connection| connection.state().tainted().is_none())
    }

    /// Sends the requests that fit into one write, and hands out the replies. Returns false if the
    /// connection is to be closed. `trusted`: it has replied a moment before.
    async fn serve(&mut self, trusted: bool) -> bool {
        let is_armed = group_prepare::is_armed(&mut self.line);
        let (lane, shapes) = (&self.lane, &self.shapes);
        let Some(connection) = self.line.current() else { return false };
        let settle_late = |job: &LaneJob, request| lane.settle_late(job, request);
        let taken = Group::take(
            &mut self.waiting,
            connection,
            &lane.context,
            is_armed,
            shapes,
            settle_late,
        );
        let Some(mut group) = taken else {
            // The register cannot be made.
            return false;
        };
        if group.has_left_exactly_once() {
            self.lane.awaits_register.store(true, Ordering::Release);
        }
        // In MULTI, what it was sent for was withdrawn: the write is DISCARD.
        if group.is_empty()
            && !self.line.current().is_some_and(|connection| connection.state().is_in_multi())
        {
            return true;
        }
        self.average = (self.average * 15).div_ceil(16) + group.len();
        let deadline = self.line.response_deadline();
        let Some(connection) = self.line.current() else { return false };
        let exchange = group.exchange(connection, trusted, deadline);
        let lost = match self.waiting.is_empty() {
            true => exchange.await,
            // They wait for another write.
            false => boxed(ending_late(&self.lane, &self.waiting, exchange)).await,
        };
        if let Some(lost) = &lost {
            // Before a caller sends its request again on another lane.
            self.lane.context.distrust_idle(&lost.cause);
        }
        let again = group.settle(&mut self.line, lost.as_ref(), &self.shapes);
        for job in again.into_iter().rev() {
            if job.look(|request| request.batch.exactly_once) == Some(true) {
                self.lane.awaits_register.store(true, Ordering::Release);
            }
            self.waiting.push_front(job);
        }
        self.last_used = Instant::now();
        match lost {
            Some(Interruption { cause, .. }) => {
                self.lost(&cause);
                false
            }
            // A tainted connection is closed at once.
            None => self.is_untainted(),
        }
    }

    /// Closes the connection, which was found dead.
    fn lost(&mut self, cause: &ConnectionError) {
        self.line.on_lost(cause);
        self.line.log_replaced(cause);
    }
}

/// Awaits replies on the lane's connection, and meanwhile ends the requests whose time is over: those that
/// wait, and those in the queue.
async fn ending_late<T>(
    lane: &Lane,
    waiting: &VecDeque<Arc<LaneJob>>,
    replies: impl Future<Output = T>,
) -> T {
    let (mut replies, mut timer) = (pin!(replies), DeadlineTimer::default());
    // Mostly the replies are there before.
    let mut look = deadline::after(lane.context.settings().response_timeout / 8);
    poll_fn(|context| {
        let replied = replies.as_mut().poll(context);
        while replied.is_pending() && timer.poll(context, look).is_ready() {
            look = lane.end_late(waiting);
        }
        replied
    })
    .await
}

/// Returns whether the job is a read, or was withdrawn.
fn is_read(job: &Arc<LaneJob>) -> bool {
    job.look(|request| matches!(request.batch.kind, RequestKind::Read)) != Some(false)
}

/// Lets the other tasks of the runtime run once.
async fn yield_once() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if has_yielded {
            return Poll::Ready(());
        }
        has_yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
