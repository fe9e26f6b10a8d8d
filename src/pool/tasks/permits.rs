//! The permits of a pool of tasks, which callers get in the order of their waiting.
//!
//! A permit is granted as a right at once, not when its caller is polled next. So the pool can take it
//! back from a caller that was forgotten while it waited. (A semaphore of tokio would lose it.)

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::pool::tasks::holder::HolderTask;
use crate::pool::tasks::right::Right;
use crate::sync::lock;
use crate::sync::own_mutex::OwnMutex;
use crate::sync::timer::until;

/// The permits of a pool.
pub(in crate::pool) struct Permits {
    state: OwnMutex<PermitState>,
    max_size: usize,
}

struct PermitState {
    closed: bool,
    /// The numbers of the free permits. While a caller waits, there is none.
    free: Vec<usize>,
    /// The lent permits by their numbers.
    rights: Vec<Option<Arc<Right>>>,
    /// In the order of their numbers.
    waiters: VecDeque<Arc<Waiter>>,
    last_number: u64,
}

/// A caller that waits.
struct Waiter {
    number: u64,
    holder: HolderTask,
    /// Locked after the permits' state, if both are locked.
    state: Mutex<WaiterState>,
}

enum WaiterState {
    Waiting(Option<Waker>),
    Granted(Arc<Right>),
    Closed,
    /// The caller has the right, or does not wait any more.
    Left,
}

/// The result of a wait for a permit.
pub(in crate::pool) enum Acquired {
    Right(Arc<Right>),
    TimedOut {
        /// Number of callers that waited, this one included.
        waiters: usize,
    },
    Closed,
}

impl PermitState {
    fn lend(&mut self, number: usize) -> Arc<Right> {
        let right = Arc::new(Right::new(number));
        if let Some(place) = self.rights.get_mut(number) {
            *place = Some(Arc::clone(&right));
        }
        right
    }

    /// Lends the permit to the caller that has waited longest, or keeps it.
    fn pass_on(&mut self, number: usize) -> Option<Waker> {
        if let Some(place) = self.rights.get_mut(number) {
            *place = None;
        }
        let Some(waiter) = self.waiters.pop_front() else {
            self.free.push(number);
            return None;
        };
        let right = self.lend(number);
        let before = std::mem::replace(&mut *lock(&waiter.state), WaiterState::Granted(right));
        if let WaiterState::Waiting(waker) = before { waker } else { None }
    }
}

impl Permits {
    pub(in crate::pool) fn new(max_size: u32) -> Self {
        let max_size = max_size as usize;
        let (free, rights) = ((0..max_size).rev().collect(), vec![None; max_size]);
        let waiters = VecDeque::new();
        let state = PermitState { closed: false, free, rights, waiters, last_number: 0 };
        Self { state: OwnMutex::new(state), max_size }
    }

    /// Takes a permit that is free; `None`: there is none.
    pub(in crate::pool) fn try_acquire(&self) -> Option<Acquired> {
        let mut state = self.state.lock();
        if state.closed {
            return Some(Acquired::Closed);
        }
        let number = state.free.pop()?;
        Some(Acquired::Right(state.lend(number)))
    }

    /// Waits for a permit. Dropped before its end, the future passes on what it was granted, by
    /// `give_back`.
    pub(in crate::pool) async fn acquire(
        &self,
        deadline: Instant,
        give_back: impl Fn(&Right) + Send,
    ) -> Acquired {
        let waiter = {
            let mut state = self.state.lock();
            if state.closed {
                return Acquired::Closed;
            }
            if let Some(number) = state.free.pop() {
                return Acquired::Right(state.lend(number));
            }
            let holder = HolderTask::here();
            state.last_number += 1;
            let (number, waiting) = (state.last_number, Mutex::new(WaiterState::Waiting(None)));
            let waiter = Arc::new(Waiter { number, holder, state: waiting });
            state.waiters.push_back(Arc::clone(&waiter));
            waiter
        };
        let waiting = Waiting { permits: self, waiter, give_back };
        match until(deadline, poll_fn(|context| waiting.poll(context))).await {
            Some(acquired) => acquired,
            None => match self.leave(&waiting.waiter) {
                Some(waiters) => Acquired::TimedOut { waiters },
                // A permit that came late wins over the timeout.
                None => match waiting.poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(acquired) => acquired,
                    Poll::Pending => Acquired::Closed,
                },
            },
        }
    }

    /// Removes a waiting caller, and returns how many waited, this one included: in one step, so that
    /// callers that give up at the same time count each other once. `None`: it waits no more.
    fn leave(&self, waiter: &Arc<Waiter>) -> Option<usize> {
        let mut state = self.state.lock();
        let waiters = state.waiters.len();
        // Callers that give up together do so in any order on a busy machine.
        let at = state.waiters.binary_search_by_key(&waiter.number, |waiting| waiting.number);
        let at = at.ok()?;
        let left = state.waiters.remove(at);
        let before = std::mem::replace(&mut *lock(&waiter.state), WaiterState::Left);
        drop(state);
        drop(before);
        left.map(|_| waiters)
    }

    /// Takes a permit back, and passes it on.
    pub(in crate::pool) fn give_back(&self, number: usize) {
        let waker = self.state.lock().pass_on(number);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// No caller gets a permit from now on.
    pub(in crate::pool) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        for waiter in waiters {
            let mut waiting = lock(&waiter.state);
            let before = match &*waiting {
                WaiterState::Waiting(_) => std::mem::replace(&mut *waiting, WaiterState::Closed),
                _ => continue,
            };
            drop(waiting);
            if let WaiterState::Waiting(Some(waker)) = before {
                waker.wake();
            }
        }
    }

    /// The lent permits.
    pub(in crate::pool) fn rights(&self) -> Vec<Arc<Right>> {
        self.state.lock().rights.iter().flatten().cloned().collect()
    }

    /// Returns whether the task or thread waits for a permit.
    pub(in crate::pool) fn is_waiting(&self, holder: &HolderTask) -> bool {
        self.state.lock().waiters.iter().any(|waiter| waiter.holder == *holder)
    }

    /// Number of callers that wait for a permit.
    pub(in crate::pool) fn waiting(&self) -> usize {
        self.state.lock().waiters.len()
    }

    /// Number of permits that callers hold.
    pub(in crate::pool) fn in_use(&self) -> usize {
        self.max_size.saturating_sub(self.state.lock().free.len())
    }
}

/// A caller that waits for a permit, until this is dropped.
struct Waiting<'p, G: Fn(&Right)> {
    permits: &'p Permits,
    waiter: Arc<Waiter>,
    give_back: G,
}

impl<G: Fn(&Right)> Waiting<'_, G> {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Acquired> {
        let mut state = lock(&self.waiter.state);
        let former = match &mut *state {
            WaiterState::Waiting(waker) => {
                let known = waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
                if known { None } else { waker.replace(context.waker().clone()) }
            }
            _ => {
                let ended = std::mem::replace(&mut *state, WaiterState::Left);
                return Poll::Ready(match ended {
                    WaiterState::Granted(right) => Acquired::Right(right),
                    _ => Acquired::Closed,
                });
            }
        };
        drop(state);
        drop(former);
        Poll::Pending
    }
}

impl<G: Fn(&Right)> Drop for Waiting<'_, G> {
    fn drop(&mut self) {
        if self.permits.state.is_of_parent() {
            return;
        }
        let before = std::mem::replace(&mut *lock(&self.waiter.state), WaiterState::Left);
        match before {
            WaiterState::Granted(right) => (self.give_back)(&right),
            WaiterState::Waiting(_) => {
                if self.permits.leave(&self.waiter).is_some() {
                    return;
                }
                // It may have been granted between the two locks.
                let late = std::mem::replace(&mut *lock(&self.waiter.state), WaiterState::Left);
                if let WaiterState::Granted(right) = late {
                    (self.give_back)(&right);
                }
            }
            WaiterState::Closed | WaiterState::Left => {}
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/permits.rs"]
mod tests;
