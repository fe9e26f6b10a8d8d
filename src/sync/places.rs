//! A limited number of places, first come first served.
//!
//! A place is taken by its caller when that is polled, and never given to it before. So a caller that
//! is polled no more takes no place. Its turn passes to the next caller at its deadline.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::sync::lock;
use crate::sync::timer::DeadlineTimer;

/// A limited number of places.
#[derive(Debug)]
pub(crate) struct Places {
    state: Mutex<PlacesState>,
}

#[derive(Debug)]
struct PlacesState {
    free: usize,
    closed: bool,
    /// In the order of their arrival. As many as there are free places may take one.
    waiters: VecDeque<PlaceWaiter>,
    next_number: u64,
}

#[derive(Debug)]
struct PlaceWaiter {
    number: u64,
    deadline: Instant,
    /// `None`: it was woken, and has not been polled since.
    waker: Option<Waker>,
}

/// Why a caller has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    Closed,
    TimedOut,
}

impl Places {
    pub(crate) fn new(free: usize) -> Self {
        let waiters = VecDeque::new();
        let state = PlacesState { free, closed: false, waiters, next_number: 0 };
        Self { state: Mutex::new(state) }
    }

    /// Takes a place that is free and for which no caller waits. Returns false if there is none.
    pub(crate) fn try_take(&self) -> Result<bool, NoPlace> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(NoPlace::Closed);
        }
        let is_free = state.free > state.waiters.len();
        state.free -= usize::from(is_free);
        Ok(is_free)
    }

    /// Waits for a place until `deadline`. Dropped before its end, the future has taken none.
    pub(crate) async fn take(&self, deadline: Instant) -> Result<(), NoPlace> {
        let mut waiting = WaitingCaller { places: self, number: None, deadline };
        let mut timer = DeadlineTimer::default();
        poll_fn(|context| {
            loop {
                let next_look = match waiting.poll(context) {
                    Looked::Ended(ended) => return Poll::Ready(ended),
                    Looked::Waits { next_look } => next_look,
                };
                if Instant::now() >= deadline {
                    return Poll::Ready(Err(NoPlace::TimedOut));
                }
                if timer.poll(context, next_look.min(deadline)).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Returns a place, or adds one.
    pub(crate) fn add(&self) {
        let mut state = lock(&self.state);
        state.free += 1;
        let woken = state.next_takers();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Number of places that are free.
    pub(crate) fn free(&self) -> usize {
        lock(&self.state).free
    }

    /// No caller gets a place from now on.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        waiters.into_iter().filter_map(|waiter| waiter.waker).for_each(Waker::wake);
    }
}

impl PlacesState {
    /// The wakers of the callers that may take a place now.
    fn next_takers(&mut self) -> Vec<Waker> {
        self.waiters.iter_mut().take(self.free).filter_map(|waiter| waiter.waker.take()).collect()
    }
}

/// What a waiting caller found.
enum Looked {
    Ended(Result<(), NoPlace>),
    /// `next_look`: when the time of a caller before this one is over, or its own.
    Waits {
        next_look: Instant,
    },
}

/// A caller that waits for a place, until this is dropped.
struct WaitingCaller<'p> {
    places: &'p Places,
    /// `None`: it does not wait.
    number: Option<u64>,
    deadline: Instant,
}

impl WaitingCaller<'_> {
    /// Takes a place if it is this caller's turn. Otherwise the task is woken when it is.
    fn poll(&mut self, context: &Context<'_>) -> Looked {
        let now = Instant::now();
        let mut state = lock(&self.places.state);
        if state.closed {
            return Looked::Ended(Err(NoPlace::Closed));
        }
        let number = *self.number.get_or_insert_with(|| {
            state.next_number += 1;
            let (number, deadline) = (state.next_number, self.deadline);
            state.waiters.push_back(PlaceWaiter { number, deadline, waker: None });
            number
        });
        // Callers that are polled leave by themselves; these are not.
        state.waiters.retain(|waiter| waiter.number == number || waiter.deadline > now);
        let before = state.waiters.iter().take_while(|waiter| waiter.number != number);
        let (at, next_look) = before
            .fold((0, self.deadline), |(at, next), waiter| (at + 1, next.min(waiter.deadline)));
        if at < state.free {
            state.free -= 1;
            let left = state.waiters.remove(at);
            self.number = None;
            let woken = state.next_takers();
            drop(state);
            drop(left);
            woken.into_iter().for_each(Waker::wake);
            return Looked::Ended(Ok(()));
        }
        let former = match state.waiters.get_mut(at) {
            Some(PlaceWaiter { waker: Some(known), .. }) if known.will_wake(context.waker()) => {
                None
            }
            Some(waiter) => waiter.waker.replace(context.waker().clone()),
            None => None,
        };
        let woken = state.next_takers();
        drop(state);
        drop(former);
        woken.into_iter().for_each(Waker::wake);
        Looked::Waits { next_look }
    }
}

/// It no longer stands before others.
impl Drop for WaitingCaller<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut state = lock(&self.places.state);
        let at = state.waiters.iter().position(|waiter| waiter.number == number);
        let left = at.and_then(|at| state.waiters.remove(at));
        let woken = state.next_takers();
        drop(state);
        drop(left);
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
#[path = "../../tests/unit/places.rs"]
mod tests;
