//! Lanes: connections that carry the requests of many tasks, each as isolated as alone.
//!
//! A lane belongs to the runtime that opened its connection, so each runtime has lanes of its own.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::runtime::{self, Handle};

use crate::connection::tasks::io::no_runtime;
use crate::connection::tasks::wire::ConnectionTask;
use crate::error::checkout::CheckoutError;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::context::PoolContext;
use crate::pool::tasks::lane::{Lane, LaneCall, LanePlace};
use crate::pool::tasks::lane_loop;
use crate::protocol::batch::RequestKind;
use crate::status::lanes::LaneStatus;
use crate::sync::lock;

/// The lanes of one pool, a set for each runtime that uses them. They are opened when first used. Its
/// drop closes them, and does not wait.
pub(crate) struct Lanes {
    context: Arc<PoolContext>,
    sets: Mutex<Vec<(runtime::Id, Arc<LaneSet>)>>,
    closed: AtomicBool,
}

/// The lanes of one runtime.
struct LaneSet {
    lanes: Vec<Arc<Lane>>,
    next: AtomicUsize,
}

/// The lanes that a handle has used last, so that its next call in the same runtime need not look for
/// them. The task's id would not do: a `LocalSet` may be run by several runtimes.
#[derive(Clone, Default)]
pub(crate) struct KnownLanes(Option<(runtime::Id, Arc<LaneSet>)>);

impl Lanes {
    pub(crate) fn new(context: Arc<PoolContext>) -> Self {
        Self { context, sets: Mutex::default(), closed: AtomicBool::new(false) }
    }

    /// Sends a request on a lane, with the requests of other tasks. The response to calls that were
    /// taken by `deadline` is awaited until `response_wait` later, and no longer: they can be sent again.
    ///
    /// Dropped before its end, the future withdraws a request that was not sent. The replies to one
    /// that was sent are read and dropped.
    pub(crate) async fn submit(
        &self,
        deadline: Instant,
        response_wait: Duration,
        request: &(impl Fn() -> BatchRequest + Sync),
    ) -> Result<BatchResponse, CheckoutError> {
        let since = Instant::now();
        let counters = &self.context.config.counters;
        let Ok(runtime) = Handle::try_current() else {
            return Err(CheckoutError::Connect { waited: since.elapsed(), source: no_runtime() });
        };
        let set = self.set(runtime.id());
        let free = match set.served_place() {
            Some(served) => Some(served),
            None => set.place()?,
        };
        let (lane, place) = match free {
            Some(free) => free,
            None => {
                let lane = set.lane()?;
                let place = lane.place(since, deadline).await.inspect_err(|error| {
                    counters.on_refused(error);
                })?;
                (lane, place)
            }
        };
        let request = request();
        let are_calls = matches!(request.kind, RequestKind::Calls { .. });
        let mut call = lane.submit(request, [since, Instant::now(), deadline], place, None);
        if are_calls {
            call.give_up_at(deadline + response_wait);
        }
        poll_fn(|context| call.poll(context)).await.0
    }

    /// Submits a request without a wait; `None`: no lane of this task's runtime has both a connection
    /// and a free place. The task is woken when it is to be polled next. `known`: the lanes that the
    /// caller has used last.
    pub(crate) fn try_submit(
        &self,
        known: Option<&mut KnownLanes>,
        context: &Context<'_>,
        request: impl FnOnce() -> BatchRequest,
    ) -> Option<LaneCall> {
        let mut looked_up = KnownLanes::default();
        let set = self.known_set(known.unwrap_or(&mut looked_up))?;
        let (lane, place) = set.served_place()?;
        let now = Instant::now();
        let deadline = now + self.context.settings().checkout_timeout;
        let submitter = Some(context.waker().clone());
        let call = lane.submit(request(), [now, now, deadline], place, submitter);
        if call.is_alone() {
            // The call sets its timer, or has another connection opened.
            context.waker().wake_by_ref();
        }
        Some(call)
    }

    /// Begins to open a connection for the next request. Outside of a runtime this does nothing.
    pub(crate) fn warm(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if let Ok(lane) = self.set(runtime.id()).lane() {
            lane.open(&runtime);
        }
    }

    /// The lanes of the runtime that runs this call.
    fn known_set<'k>(&self, known: &'k mut KnownLanes) -> Option<&'k LaneSet> {
        let here = Handle::try_current().ok()?.id();
        if known.0.as_ref().is_none_or(|(runtime, _)| *runtime != here) {
            known.0 = Some((here, self.set(here)));
        }
        known.0.as_ref().map(|(_, set)| &**set)
    }

    /// The lanes of this runtime.
    fn set(&self, runtime: runtime::Id) -> Arc<LaneSet> {
        let mut sets = lock(&self.sets);
        if let Some((_, set)) = sets.iter().find(|(id, _)| *id == runtime) {
            return Arc::clone(set);
        }
        // Runtimes come and go. A caller that has a set may be about to use it.
        sets.retain(|(_, set)| {
            Arc::strong_count(set) > 1
                || set.lanes.iter().any(|lane| lane.is_open() || lane.in_flight() > 0)
        });
        let lanes = (0..self.context.settings().lanes)
            .map(|_| Lane::new(&self.context, lane_loop::serve, runtime))
            .collect();
        let set = Arc::new(LaneSet { lanes, next: AtomicUsize::new(0) });
        set.lanes.iter().for_each(|lane| lane.set_siblings(&set.lanes));
        if self.closed.load(Ordering::SeqCst) {
            set.lanes.iter().for_each(|lane| lane.close());
        }
        sets.push((runtime, Arc::clone(&set)));
        set
    }

    fn each(&self, visit: impl FnMut(&Arc<Lane>)) {
        let sets: Vec<_> = lock(&self.sets).iter().map(|(_, set)| Arc::clone(set)).collect();
        sets.iter().flat_map(|set| &set.lanes).for_each(visit);
    }

    /// Refuses new requests. Those that wait or were sent are served.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.each(|lane| lane.close());
    }

    /// The same for the lanes of a former master: requests that were not sent fail.
    pub(crate) fn retire(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.each(|lane| lane.retire());
    }

    /// Number of lanes with a connection.
    pub(crate) fn open(&self) -> usize {
        let mut open = 0;
        self.each(|lane| open += usize::from(lane.is_open()));
        open
    }

    /// The lanes of all runtimes.
    pub(crate) fn status(&self) -> LaneStatus {
        let mut status = LaneStatus::default();
        self.each(|lane| lane.add_to(&mut status));
        status
    }

    /// Number of requests that wait or were sent.
    pub(crate) fn in_flight(&self) -> usize {
        let mut requests = 0;
        self.each(|lane| requests += lane.in_flight());
        requests
    }

    /// Fails the requests that wait past their deadlines.
    pub(crate) fn fail_late(&self) {
        self.each(|lane| lane.fail_late());
    }

    /// Closes the lanes at once, and returns the tasks of their connections. Requests that were not
    /// sent fail with [`CheckoutError::Closed`].
    pub(crate) fn shut_down(&self) -> Vec<ConnectionTask> {
        self.closed.store(true, Ordering::SeqCst);
        let mut tasks = Vec::new();
        self.each(|lane| tasks.extend(lane.shut_down()));
        tasks
    }
}

impl LaneSet {
    fn lane(&self) -> Result<&Arc<Lane>, CheckoutError> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.lanes.get(next % self.lanes.len().max(1)).ok_or(CheckoutError::Closed)
    }

    /// Takes a free place in the next lane that has one.
    fn place(&self) -> Result<Option<(&Arc<Lane>, LanePlace)>, CheckoutError> {
        for _ in &self.lanes {
            let lane = self.lane()?;
            if let Some(place) = lane.try_place()? {
                return Ok(Some((lane, place)));
            }
        }
        Ok(None)
    }
}

impl LaneSet {
    /// Takes a free place in a lane that a connection serves. A lane without a connection gets one for
    /// later requests.
    fn served_place(&self) -> Option<(&Arc<Lane>, LanePlace)> {
        for _ in &self.lanes {
            let lane = self.lane().ok()?;
            if !lane.is_served() {
                if self.lanes.iter().any(|lane| lane.is_served()) {
                    lane.open_here();
                }
                continue;
            }
            if let Some(place) = lane.try_place().ok()? {
                return Some((lane, place));
            }
        }
        None
    }
}

/// In a forked child the lanes belong to the parent, and their mutexes may stay locked.
impl Drop for Lanes {
    fn drop(&mut self) {
        if !self.context.settings().is_forked_child() {
            self.close();
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/lanes.rs"]
mod tests;
