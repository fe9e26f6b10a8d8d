//! A caller that waits for a permit of a [semaphore](crate::pool::semaphore), and the request that it has
//! left with its place.
//!
//! A holder of a permit may take the request and send it. The caller then gets the holder's permit with
//! the replies, unless it has given up before: one of both happens, under the waiter's mutex.
//!
//! A holder that returns its permit sends the request under that mutex, and leaves no time between: a caller
//! whose deadline has passed is either still in the queue, and nothing was sent for it, or has the permit.

use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::sync::cancel;
use crate::sync::shim::{Arc, Condvar, Mutex, MutexGuard, PoisonError, lock};

#[derive(Debug)]
pub(super) struct Waiter<K> {
    pub(super) state: Mutex<WaitState>,
    pub(super) ready: Condvar,
    request: Option<LeftRequest<K>>,
}

/// A request that a holder of a permit may send.
#[derive(Debug)]
pub(crate) struct LeftRequest<K> {
    pub(crate) request: Arc<K>,
    /// Time after which the caller waits for any permit again, if the request was taken. The holder's
    /// connection may have gone silent, and others are free meanwhile.
    pub(crate) patience: Duration,
}

impl<K> Clone for LeftRequest<K> {
    fn clone(&self) -> Self {
        Self { request: Arc::clone(&self.request), patience: self.patience }
    }
}

#[derive(Debug)]
pub(super) struct WaitState {
    pub(super) grant: Grant,
    /// Since when the request is taken.
    taken: Option<Instant>,
    /// The waiter sleeps and has to be woken.
    pub(super) asleep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Grant {
    Waiting,
    /// A holder has taken the request.
    Taken,
    /// The waiter has given up after its request was taken.
    Abandoned,
    Permit(usize),
    /// The permit of the holder that has taken the request.
    PassedOn(usize),
    Closed,
}

impl WaitState {
    pub(super) fn set(&mut self, grant: Grant) {
        (self.grant, self.taken) = (grant, None);
    }

    pub(super) fn set_taken(&mut self) {
        (self.grant, self.taken) = (Grant::Taken, Some(Instant::now()));
    }
}

impl Grant {
    fn is_awaited(self) -> bool {
        matches!(self, Self::Waiting | Self::Taken)
    }
}

impl<K> Waiter<K> {
    pub(super) fn new(request: Option<LeftRequest<K>>) -> Self {
        let state = WaitState { grant: Grant::Waiting, taken: None, asleep: false };
        Self { state: Mutex::new(state), ready: Condvar::new(), request }
    }

    /// The request that it has left, if it has one that `fits`.
    pub(super) fn request(&self, fits: impl FnOnce(&K) -> bool) -> Option<&K> {
        self.request.as_ref().map(|left| &*left.request).filter(|request| fits(request))
    }

    /// Returns whether the waiter is to be woken.
    pub(super) fn grant(&self, grant: Grant) -> bool {
        let mut state = lock(&self.state);
        state.set(grant);
        state.asleep
    }

    pub(super) fn settle(&self, grant: Grant) {
        if self.grant(grant) {
            self.ready.notify_one();
        }
    }

    /// Takes the grant.
    pub(super) fn take(&self) -> Grant {
        let mut state = lock(&self.state);
        match state.grant {
            Grant::Permit(_) | Grant::PassedOn(_) | Grant::Closed => {
                std::mem::replace(&mut state.grant, Grant::Closed)
            }
            grant => grant,
        }
    }

    /// Returns whether it waits for the holder that has taken its request.
    pub(super) fn is_taken(&self) -> bool {
        lock(&self.state).grant == Grant::Taken
    }

    /// Ends the wait if the request was taken. The holder learns it when it has the replies.
    pub(super) fn end_taken(&self, grant: Grant) {
        let mut state = lock(&self.state);
        if state.grant == Grant::Taken {
            state.set(grant);
            drop(state);
            self.ready.notify_one();
        }
    }

    pub(super) fn wait(&self, deadline: Instant) -> Grant {
        drop(self.sleep(deadline));
        self.take()
    }

    /// Waits until `until`, or shorter if a holder keeps the request for too long.
    fn sleep(&self, until: Instant) -> MutexGuard<'_, WaitState> {
        let mut state = lock(&self.state);
        while state.grant.is_awaited() {
            let now = Instant::now();
            let mut left = until.saturating_duration_since(now);
            if left.is_zero() || cancel::is_cancelled() {
                break;
            }
            if let Some(LeftRequest { patience, .. }) = self.request {
                let taken_for = state
                    .taken
                    .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                if taken_for >= patience {
                    break;
                }
                left = left.min(patience - taken_for);
            }
            state.asleep = true;
            let woken = self.ready.wait_timeout(state, cancel::tick(left));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            state.asleep = false;
        }
        state
    }
}

/// A request that a holder of a permit has taken. Its caller waits until the holder
/// [grants](Self::grant) its permit or [returns](crate::pool::semaphore::FairSemaphore::return_request)
/// the request.
#[derive(Debug)]
pub(crate) struct TakenRequest<K> {
    pub(super) thread: ThreadId,
    pub(super) waiter: Arc<Waiter<K>>,
}

impl<K> TakenRequest<K> {
    /// Takes the request of a caller in the queue, if it has one that `fits`.
    pub(super) fn take(
        thread: ThreadId,
        waiter: &Arc<Waiter<K>>,
        fits: impl FnOnce(&K) -> bool,
    ) -> Option<Self> {
        waiter.request(fits)?;
        // It is not woken: it sees this when its patience has passed, or at its deadline.
        lock(&waiter.state).set_taken();
        Some(Self { thread, waiter: Arc::clone(waiter) })
    }

    pub(crate) fn request(&self) -> Option<&K> {
        self.waiter.request(|_| true)
    }

    /// Returns whether the caller still waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiter.is_taken()
    }

    /// Passes the holder's permit to the caller. Returns false if it has given up.
    pub(crate) fn grant(&self, permit: usize) -> bool {
        let mut state = lock(&self.waiter.state);
        if state.grant != Grant::Taken {
            return false;
        }
        state.set(Grant::PassedOn(permit));
        let asleep = state.asleep;
        drop(state);
        if asleep {
            self.waiter.ready.notify_one();
        }
        true
    }
}
