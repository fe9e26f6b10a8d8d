//! The gate in front of a pool: as many permits as connections, first come first served.
//!
//! A returning permit goes straight to the caller who has waited longest; nobody who comes later
//! can take it on the way. A permit is the number of a slot in the [registry](super::registry).
//!
//! Never: a connection. Never: a permit that two callers hold, or that nobody holds.

use std::collections::VecDeque;
use std::thread::ThreadId;
use std::time::Instant;

use scopeguard::{ScopeGuard, guard};

use super::sync::{Arc, Condvar, Mutex, lock};

/// As many permits as connections, first come first served.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Empty whenever somebody waits.
    free: Vec<usize>,
    queue: VecDeque<Arc<Waiter>>,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    thread: ThreadId,
    grant: Mutex<Grant>,
    ready: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Grant {
    Waiting,
    Permit(usize),
    Closed,
}

/// Why no permit was given.
#[derive(Debug, PartialEq)]
pub(crate) enum Refused<E> {
    TimedOut {
        waiters: usize,
    },
    Closed,
    /// The caller's own check said that waiting makes no sense.
    Hopeless(E),
}

impl Gate {
    pub(crate) fn new(permits: usize) -> Self {
        Self {
            state: Mutex::new(State {
                free: (0..permits).rev().collect(),
                queue: VecDeque::new(),
                closed: false,
            }),
        }
    }

    /// Takes a permit that nobody holds.
    pub(crate) fn try_acquire(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        if state.closed { None } else { state.free.pop() }
    }

    /// Takes a permit, waiting for one until `deadline`. Before it waits it asks `may_wait`, with
    /// the threads that wait already; that is under the gate's lock, so nothing of the user's
    /// (a log, say) may run in it.
    pub(crate) fn acquire<E>(
        &self,
        deadline: Instant,
        may_wait: impl FnOnce(&[ThreadId]) -> Result<(), E>,
    ) -> Result<usize, Refused<E>> {
        let waiter = {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(Refused::Closed);
            }
            if let Some(slot) = state.free.pop() {
                return Ok(slot);
            }
            may_wait(&state.waiting_threads()).map_err(Refused::Hopeless)?;
            let waiter = Arc::new(Waiter {
                thread: current_thread(),
                grant: Mutex::new(Grant::Waiting),
                ready: Condvar::new(),
            });
            state.queue.push_back(Arc::clone(&waiter));
            waiter
        };
        let ticket = guard(waiter, |waiter| self.withdraw(&waiter));
        let grant = ticket.wait(deadline);
        let waiter = ScopeGuard::into_inner(ticket);
        match grant {
            Grant::Permit(slot) => Ok(slot),
            Grant::Closed => Err(Refused::Closed),
            Grant::Waiting => self.give_up(&waiter),
        }
    }

    /// The wait was left by a panic: its place in the queue, or what was granted to it, is free.
    fn withdraw(&self, waiter: &Arc<Waiter>) {
        if let Ok(slot) = self.give_up::<()>(waiter) {
            self.release(slot);
        }
    }

    /// The time is over; but a permit that was granted meanwhile is taken, or it would be lost.
    fn give_up<E>(&self, waiter: &Arc<Waiter>) -> Result<usize, Refused<E>> {
        let mut state = lock(&self.state);
        let waiters = state.queue.len();
        let at = state.queue.iter().position(|queued| Arc::ptr_eq(queued, waiter));
        if let Some(at) = at {
            state.queue.remove(at);
        }
        drop(state);
        match *lock(&waiter.grant) {
            Grant::Permit(slot) => Ok(slot),
            Grant::Closed => Err(Refused::Closed),
            Grant::Waiting => Err(Refused::TimedOut { waiters }),
        }
    }

    /// Gives a permit back: to the first in the queue, or to whoever comes.
    pub(crate) fn release(&self, slot: usize) {
        let mut state = lock(&self.state);
        match state.queue.pop_front() {
            Some(waiter) => {
                // Under the gate's lock, so that a caller giving up finds itself either queued
                // or granted.
                waiter.settle(Grant::Permit(slot));
            }
            None => state.free.push(slot),
        }
    }

    /// Whoever waits, or comes from now on, is told that it is over. Permits can still come back.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for waiter in state.queue.drain(..) {
            waiter.settle(Grant::Closed);
        }
    }

    pub(crate) fn waiting_threads(&self) -> Vec<ThreadId> {
        lock(&self.state).waiting_threads()
    }

    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).queue.len()
    }

    /// Permits that nobody holds.
    pub(crate) fn free(&self) -> usize {
        lock(&self.state).free.len()
    }
}

impl State {
    fn waiting_threads(&self) -> Vec<ThreadId> {
        self.queue.iter().map(|waiter| waiter.thread).collect()
    }
}

impl Waiter {
    fn settle(&self, grant: Grant) {
        *lock(&self.grant) = grant;
        self.ready.notify_one();
    }

    fn wait(&self, deadline: Instant) -> Grant {
        let mut grant = lock(&self.grant);
        while *grant == Grant::Waiting {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            grant = self
                .ready
                .wait_timeout(grant, left)
                .unwrap_or_else(super::sync::PoisonError::into_inner)
                .0;
        }
        *grant
    }
}

/// Threads of the model checker are not the system's, and only the system's are told apart here.
fn current_thread() -> ThreadId {
    std::thread::current().id()
}

#[cfg(all(test, rediscope_shuttle))]
mod model;

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use super::*;

    fn take(gate: &Gate, wait: Duration) -> Result<usize, Refused<Infallible>> {
        gate.acquire(Instant::now() + wait, |_| Ok(()))
    }

    #[test]
    fn permits_are_handed_over_in_the_order_of_waiting() {
        let gate = std::sync::Arc::new(Gate::new(1));
        let slot = take(&gate, Duration::ZERO).unwrap();
        let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..8)
            .map(|nth| {
                let (gate_, order) = (gate.clone(), order.clone());
                let thread = std::thread::spawn(move || {
                    let slot = take(&gate_, Duration::from_secs(20)).unwrap();
                    order.lock().unwrap().push(nth);
                    gate_.release(slot);
                });
                while gate.waiting() <= nth {
                    std::thread::yield_now();
                }
                thread
            })
            .collect();
        gate.release(slot);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
        assert_eq!((gate.free(), gate.waiting()), (1, 0));
    }

    #[test]
    fn giving_up_leaves_the_queue_and_takes_a_late_grant() {
        let gate = Gate::new(1);
        let slot = take(&gate, Duration::ZERO).unwrap();
        assert_eq!(take(&gate, Duration::from_millis(5)), Err(Refused::TimedOut { waiters: 1 }));
        assert_eq!(gate.waiting(), 0);
        let late = Arc::new(Waiter {
            thread: current_thread(),
            grant: Mutex::new(Grant::Waiting),
            ready: Condvar::new(),
        });
        lock(&gate.state).queue.push_back(Arc::clone(&late));
        gate.release(slot);
        assert_eq!(gate.give_up::<Infallible>(&late), Ok(slot));
    }

    #[test]
    fn closing_tells_everybody() {
        let gate = std::sync::Arc::new(Gate::new(1));
        let slot = take(&gate, Duration::ZERO).unwrap();
        let waiting = {
            let gate = gate.clone();
            std::thread::spawn(move || take(&gate, Duration::from_secs(20)))
        };
        while gate.waiting() == 0 {
            std::thread::yield_now();
        }
        gate.close();
        assert_eq!(waiting.join().unwrap(), Err(Refused::Closed));
        gate.release(slot);
        assert_eq!(take(&gate, Duration::ZERO), Err(Refused::Closed));
    }
}
