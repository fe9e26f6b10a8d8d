//! The fair semaphore in front of a pool: as many permits as connections, first come first served.
//!
//! A returned permit goes directly to the caller that has waited longest; a later caller cannot
//! take it before. A permit is the number of an entry in the [open scopes](crate::pool::scopes). No
//! two callers hold one permit.
//!
//! A caller may wait with a request that another caller can send. A caller with a permit takes the
//! requests at the head of the queue into its batch. The batch ends before the first caller that
//! needs a permit of its own. Each of the callers gets a response.

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/batch.rs"]
mod group_model;
#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/semaphore.rs"]
mod model;
#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../tests/unit/semaphore.rs"]
mod tests;

use std::collections::VecDeque;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use scopeguard::{ScopeGuard, guard};

use crate::pool::spin::SpinPolicy;
use crate::sync::shim::{Arc, Condvar, Mutex, MutexGuard, PoisonError, lock};
use crate::sync::this_thread;

/// As many permits as connections, first come first served.
#[derive(Debug)]
pub(crate) struct FairSemaphore<J, R> {
    state: Mutex<SemaphoreState<J, R>>,
    spin: SpinPolicy,
}

#[derive(Debug)]
struct SemaphoreState<J, R> {
    /// The free permits; empty whenever a caller waits.
    free: Vec<usize>,
    queue: VecDeque<QueueEntry<J, R>>,
    closed: bool,
}

#[derive(Debug)]
struct QueueEntry<J, R> {
    /// The thread, stored here so that a search for a thread need not visit every waiter.
    thread: ThreadId,
    waiter: Arc<Waiter<J, R>>,
}

#[derive(Debug)]
struct Waiter<J, R> {
    /// The batched request, if any. The leader borrows it, so it is freed on the thread
    /// that allocated it.
    request: Mutex<Option<J>>,
    state: Mutex<WaitState<R>>,
    ready: Condvar,
}

#[derive(Debug)]
struct WaitState<R> {
    grant: Grant<R>,
    /// The waiter sleeps and has to be woken.
    asleep: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Grant<R> {
    Waiting,
    Permit(usize),
    /// A leader is about to send its request.
    Taken,
    Response(R),
    Closed,
}

/// The reason why no permit was granted.
#[derive(Debug, PartialEq)]
pub(crate) enum AcquireError<E> {
    TimedOut {
        waiters: usize,
    },
    Closed,
    /// The caller's own check rejected the wait.
    Rejected(E),
}

/// Whether a thread already waits.
pub(crate) type IsWaiting<'w> = dyn Fn(ThreadId) -> bool + 'w;

/// The result of a wait with a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Acquired<J, R> {
    /// A permit, and the caller's own request.
    Permit(usize, J),
    /// A leader has sent the request.
    Response(R),
}

/// A request that another caller may send.
pub(crate) trait Batchable {
    /// Returns whether the request takes so long that its caller should yield before it sleeps.
    fn yields_before_wait(&self) -> bool;
}

/// The response to a request that was taken and never settled.
pub(crate) trait OutcomeUnknown {
    fn outcome_unknown() -> Self;
}

impl<J: Batchable, R: OutcomeUnknown> FairSemaphore<J, R> {
    pub(crate) fn new(permits: usize) -> Self {
        Self {
            state: Mutex::new(SemaphoreState {
                free: (0..permits).rev().collect(),
                queue: VecDeque::new(),
                closed: false,
            }),
            spin: SpinPolicy::new(),
        }
    }

    /// Takes a free permit.
    pub(crate) fn try_acquire(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        if state.closed { None } else { state.free.pop() }
    }

    /// Takes a permit, and waits for it until `deadline`. Before the wait it calls `may_wait`,
    /// which can check whether a thread already waits. `may_wait` runs under the semaphore's mutex,
    /// so no code of the user's (such as a log) may run in it.
    pub(crate) fn acquire<E>(
        &self,
        deadline: Instant,
        may_wait: impl FnOnce(&IsWaiting<'_>) -> Result<(), E>,
    ) -> Result<usize, AcquireError<E>> {
        match self.wait(None, deadline, Duration::ZERO, may_wait)? {
            Acquired::Permit(permit, _) => Ok(permit),
            // Without a request there is no response.
            Acquired::Response(_) => Err(AcquireError::Closed),
        }
    }

    /// Takes a permit as [`acquire`](Self::acquire) does, unless a leader sends the request first.
    /// The response to a request that was taken by `deadline` is awaited until `response_wait` later;
    /// then its outcome is unknown. A caller with a long request yields to other threads before it
    /// sleeps. It counts as late if it does not run again in time.
    pub(crate) fn acquire_batched<E>(
        &self,
        request: J,
        deadline: Instant,
        response_wait: Duration,
        may_wait: impl FnOnce(&IsWaiting<'_>) -> Result<(), E>,
    ) -> Result<Acquired<J, R>, AcquireError<E>> {
        match self.wait(Some(request), deadline, response_wait, may_wait)? {
            Acquired::Permit(permit, Some(request)) => Ok(Acquired::Permit(permit, request)),
            Acquired::Response(response) => Ok(Acquired::Response(response)),
            // A leader always keeps its own request.
            Acquired::Permit(permit, None) => {
                self.release(permit);
                Ok(Acquired::Response(R::outcome_unknown()))
            }
        }
    }

    fn wait<E>(
        &self,
        request: Option<J>,
        deadline: Instant,
        response_wait: Duration,
        may_wait: impl FnOnce(&IsWaiting<'_>) -> Result<(), E>,
    ) -> Result<Acquired<Option<J>, R>, AcquireError<E>> {
        let yields_before_wait = request.as_ref().is_some_and(Batchable::yields_before_wait);
        let waiter = {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(AcquireError::Closed);
            }
            if let Some(permit) = state.free.pop() {
                return Ok(Acquired::Permit(permit, request));
            }
            let waits = |thread| state.queue.iter().any(|queued| queued.thread == thread);
            may_wait(&waits).map_err(AcquireError::Rejected)?;
            let waiter = Arc::new(Waiter::new(request));
            state.queue.push_back(QueueEntry::here(&waiter));
            waiter
        };
        let registration = guard(waiter, |waiter| self.cancel(&waiter));
        if yields_before_wait {
            self.spin.yield_once(deadline);
        }
        let mut grant = registration.wait(deadline);
        let waiter = ScopeGuard::into_inner(registration);
        if let Grant::Waiting = grant {
            let waiters = self.leave_queue(&waiter);
            grant = waiter.take();
            if let Grant::Waiting = grant {
                return Err(AcquireError::TimedOut { waiters });
            }
        }
        match grant {
            Grant::Permit(permit) => Ok(Acquired::Permit(permit, lock(&waiter.request).take())),
            Grant::Response(response) => Ok(Acquired::Response(response)),
            Grant::Taken | Grant::Waiting => {
                Ok(Acquired::Response(waiter.response(Instant::now() + response_wait)))
            }
            Grant::Closed => Err(AcquireError::Closed),
        }
    }

    /// Cleans up after a panic during the wait: leaves the queue, or frees the granted permit.
    fn cancel(&self, waiter: &Arc<Waiter<J, R>>) {
        self.leave_queue(waiter);
        if let Grant::Permit(permit) = waiter.take() {
            self.release(permit);
        }
    }

    /// Leaves the queue after the deadline, and returns its former length. A grant that arrived
    /// meanwhile stays valid, because it would otherwise be lost.
    fn leave_queue(&self, waiter: &Arc<Waiter<J, R>>) -> usize {
        let mut state = lock(&self.state);
        let waiters = state.queue.len();
        let at = state.queue.iter().position(|queued| Arc::ptr_eq(&queued.waiter, waiter));
        if let Some(at) = at {
            state.queue.remove(at);
        }
        waiters
    }

    /// Takes the requests at the head of the queue, as long as they `fit`. It stops at the first
    /// caller that needs a permit of its own.
    pub(crate) fn take_batch(&self, mut fits: impl FnMut(&J) -> bool) -> Vec<BatchMember<J, R>> {
        let mut state = lock(&self.state);
        let mut members = Vec::new();
        while let Some(first) = state.queue.front() {
            if !lock(&first.waiter.request).as_ref().is_some_and(&mut fits) {
                break;
            }
            // Granted under the semaphore's mutex, so that a caller that gives up finds itself
            // either queued or taken.
            first.waiter.grant(Grant::Taken);
            members.extend(
                state.queue.pop_front().map(|QueueEntry { waiter, .. }| BatchMember { waiter }),
            );
        }
        members
    }

    /// Returns a permit: to the first caller in the queue, or to the free permits.
    pub(crate) fn release(&self, permit: usize) {
        let mut state = lock(&self.state);
        let Some(QueueEntry { waiter, .. }) = state.queue.pop_front() else {
            return state.free.push(permit);
        };
        // Under the semaphore's mutex, so that a caller that gives up finds itself either queued or
        // granted.
        let asleep = waiter.grant(Grant::Permit(permit));
        drop(state);
        // Waking a thread takes longer than all the rest, so the mutex is released first.
        if asleep {
            waiter.ready.notify_one();
        }
    }

    /// Closes the semaphore: waiting and later callers fail. Permits can still be returned.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for QueueEntry { waiter, .. } in state.queue.drain(..) {
            waiter.settle(Grant::Closed);
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).queue.len()
    }

    /// Number of free permits.
    pub(crate) fn free(&self) -> usize {
        lock(&self.state).free.len()
    }
}

impl<J, R> QueueEntry<J, R> {
    fn here(waiter: &Arc<Waiter<J, R>>) -> Self {
        Self { thread: this_thread(), waiter: Arc::clone(waiter) }
    }
}

impl<J, R: OutcomeUnknown> Waiter<J, R> {
    fn new(request: Option<J>) -> Self {
        let state = WaitState { grant: Grant::Waiting, asleep: false };
        Self { request: Mutex::new(request), state: Mutex::new(state), ready: Condvar::new() }
    }

    /// Returns whether the waiter is to be woken.
    fn grant(&self, grant: Grant<R>) -> bool {
        let mut state = lock(&self.state);
        state.grant = grant;
        state.asleep
    }

    fn settle(&self, grant: Grant<R>) {
        if self.grant(grant) {
            self.ready.notify_one();
        }
    }

    /// Takes the grant. A request that was taken stays so until it is settled.
    fn take(&self) -> Grant<R> {
        let mut state = lock(&self.state);
        match state.grant {
            Grant::Waiting => Grant::Waiting,
            Grant::Taken => Grant::Taken,
            _ => std::mem::replace(&mut state.grant, Grant::Closed),
        }
    }

    fn wait(&self, deadline: Instant) -> Grant<R> {
        drop(self.sleep_while(|grant| matches!(grant, Grant::Waiting), deadline));
        self.take()
    }

    /// Waits for the leader that has taken the request.
    fn response(&self, until: Instant) -> R {
        let mut state = self.sleep_while(|grant| matches!(grant, Grant::Taken), until);
        match std::mem::replace(&mut state.grant, Grant::Closed) {
            Grant::Response(response) => response,
            _ => R::outcome_unknown(),
        }
    }

    fn sleep_while(
        &self,
        waits: impl Fn(&Grant<R>) -> bool,
        until: Instant,
    ) -> MutexGuard<'_, WaitState<R>> {
        let mut state = lock(&self.state);
        while waits(&state.grant) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.asleep = true;
            let woken = self.ready.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            state.asleep = false;
        }
        state
    }
}

/// A caller whose request was taken, until it is settled. If this is dropped, the outcome is
/// unknown.
#[derive(Debug)]
pub(crate) struct BatchMember<J, R: OutcomeUnknown> {
    waiter: Arc<Waiter<J, R>>,
}

impl<J, R: OutcomeUnknown> BatchMember<J, R> {
    /// Passes the request to `read`.
    pub(crate) fn with_request<T>(&self, read: impl FnOnce(&J) -> T) -> Option<T> {
        lock(&self.waiter.request).as_ref().map(read)
    }

    /// Passes the response to the caller.
    pub(crate) fn settle(self, response: R) {
        self.waiter.settle(Grant::Response(response));
    }
}

impl<J, R: OutcomeUnknown> Drop for BatchMember<J, R> {
    fn drop(&mut self) {
        let unsettled = matches!(lock(&self.waiter.state).grant, Grant::Taken);
        if unsettled {
            self.waiter.settle(Grant::Response(R::outcome_unknown()));
        }
    }
}

impl Batchable for () {
    fn yields_before_wait(&self) -> bool {
        false
    }
}

impl OutcomeUnknown for () {
    fn outcome_unknown() -> Self {}
}
