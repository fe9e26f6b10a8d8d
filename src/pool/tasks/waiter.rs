//! A task that waits for a permit of a [pool](crate::pool::tasks::permits), and the WATCH that it has left
//! with its place.
//!
//! A holder of a permit may take the WATCH and send it. The task then gets the holder's permit with the
//! connection, unless its future was dropped or has given up before: one of both happens, under the
//! waiter's mutex.

use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id as RuntimeId};

use crate::pool::early_watch::EarlyWatch;
use crate::pool::tasks::right::Right;
use crate::sync::shim::{Arc, Mutex, MutexGuard, lock};

/// A task that waits for a permit.
pub(super) struct Waiter<C> {
    /// Its place: the queue is in the order of the numbers.
    pub(super) number: i64,
    pub(super) left: Option<LeftWatch>,
    /// Locked after the permits' state, if both are locked.
    state: Mutex<WaiterState<C>>,
}

/// A WATCH that a holder of a permit may send.
pub(in crate::pool) struct LeftWatch {
    pub(super) watch: std::sync::Arc<EarlyWatch>,
    /// The buckets in which a caller that waits for its turn on hot keys needs it.
    pub(super) buckets: Box<[u16]>,
    /// Time after which the task waits for any permit again, if the WATCH was taken. The holder's
    /// connection may have gone silent, or its future is polled no more.
    pub(super) patience: Duration,
}

pub(super) struct WaiterState<C> {
    pub(super) grant: Grant<C>,
    pub(super) waker: Option<Waker>,
    /// The runtime that has polled the task last. Connections of another one do not serve it.
    runtime: Option<RuntimeId>,
}

pub(super) enum Grant<C> {
    Waiting,
    /// A holder has taken the WATCH, at that time.
    Taken(Instant),
    /// A permit; with the connection, if the WATCH was sent on it.
    Granted(std::sync::Arc<Right>, Option<C>),
    Closed,
    /// The task has the right, or does not wait any more.
    Left,
}

impl LeftWatch {
    pub(in crate::pool) fn new(watch: EarlyWatch, patience: Duration, buckets: &[u16]) -> Self {
        Self { watch: std::sync::Arc::new(watch), buckets: buckets.into(), patience }
    }
}

impl<C> Grant<C> {
    pub(super) fn is_taken(&self) -> bool {
        matches!(self, Self::Taken(_))
    }
}

impl<C> WaiterState<C> {
    /// Ends the wait, and returns the waker of the task, to be dropped or woken without a lock: its drop may
    /// run any code.
    pub(super) fn settle(&mut self, grant: Grant<C>) -> Option<Waker> {
        self.grant = grant;
        self.waker.take()
    }

    /// Has the task woken by `waker`. Returns the former waker, to be dropped without a lock.
    pub(super) fn polled_by(&mut self, waker: &Waker) -> Option<Waker> {
        if self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            return None;
        }
        // A future that has moved has another waker.
        self.runtime = Handle::try_current().ok().map(|runtime| runtime.id());
        self.waker.replace(waker.clone())
    }
}

impl<C> Waiter<C> {
    pub(super) fn new(number: i64, left: Option<LeftWatch>) -> Arc<Self> {
        let state = WaiterState { grant: Grant::Waiting, waker: None, runtime: None };
        Arc::new(Self { number, left, state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, WaiterState<C>> {
        lock(&self.state)
    }

    /// Returns whether the task has what it was granted, or waits no more.
    pub(super) fn has_left(&self) -> bool {
        matches!(self.lock().grant, Grant::Left)
    }
}

/// A WATCH that a holder of a permit has taken. Its task waits until the holder
/// [passes its permit on](crate::pool::tasks::permits::Permits::pass_on) or
/// [returns](crate::pool::tasks::permits::Permits::return_watch) the WATCH.
pub(crate) struct TakenWatch<C>(pub(super) Arc<Waiter<C>>);

impl<C> TakenWatch<C> {
    /// Takes the WATCH of a task in the queue, if it has left one that `fits` a connection of its runtime.
    pub(super) fn take(
        waiter: &Arc<Waiter<C>>,
        fits: impl FnOnce(&LeftWatch, Option<RuntimeId>) -> bool,
    ) -> Option<Self> {
        let left = waiter.left.as_ref()?;
        let mut state = waiter.lock();
        if !fits(left, state.runtime) {
            return None;
        }
        state.grant = Grant::Taken(Instant::now());
        drop(state);
        Some(Self(Arc::clone(waiter)))
    }

    pub(in crate::pool) fn watch(&self) -> Option<std::sync::Arc<EarlyWatch>> {
        self.0.left.as_ref().map(|left| std::sync::Arc::clone(&left.watch))
    }

    /// Returns whether the task still waits.
    pub(in crate::pool) fn is_awaited(&self) -> bool {
        self.0.lock().grant.is_taken()
    }
}
