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

/// Each step costs the same, however many callers wait.
#[derive(Debug)]
struct PlacesState {
    free: usize,
    closed: bool,
    /// In the order of their arrival. `None`: the caller has left. The first one is there.
    waiters: VecDeque<Option<PlaceWaiter>>,
    /// The number of the first one.
    first: u64,
    /// The number of the first one that may have been offered no place.
    next_offer: u64,
    /// Number of callers that wait.
    waiting: usize,
    /// Number of those that may take a place: one for each free place, while there are as many.
    offered: usize,
}

#[derive(Debug)]
struct PlaceWaiter {
    deadline: Instant,
    /// `None`: it was woken, and has not been polled since.
    waker: Option<Waker>,
    /// Whether it may take a place.
    offered: bool,
}

/// Why a caller has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    Closed,
    TimedOut,
}

impl Places {
    pub(crate) fn new(free: usize) -> Self {
        let state = PlacesState {
            free,
            closed: false,
            waiters: VecDeque::new(),
            first: 0,
            next_offer: 0,
            waiting: 0,
            offered: 0,
        };
        Self { state: Mutex::new(state) }
    }

    /// Takes a place that is free and for which no caller waits. Returns false if there is none.
    pub(crate) fn try_take(&self) -> Result<bool, NoPlace> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(NoPlace::Closed);
        }
        Ok(state.take_spare())
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
        self.add_all(1);
    }

    /// Returns several places in one step.
    pub(crate) fn add_all(&self, places: usize) {
        let mut state = lock(&self.state);
        state.free += places;
        let woken = state.offer();
        drop(state);
        wake(woken);
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
        (state.waiting, state.offered) = (0, 0);
        drop(state);
        waiters.into_iter().flatten().filter_map(|waiter| waiter.waker).for_each(Waker::wake);
    }
}

/// The callers that a step woke. Mostly there is one at most.
type Woken = (Option<Waker>, Vec<Waker>);

fn wake((first, others): Woken) {
    first.into_iter().chain(others).for_each(Waker::wake);
}

impl PlacesState {
    /// Takes a place that no waiting caller may take.
    fn take_spare(&mut self) -> bool {
        let is_spare = self.free > self.waiting;
        self.free -= usize::from(is_spare);
        is_spare
    }

    fn waiter(&mut self, number: u64) -> Option<&mut PlaceWaiter> {
        let at = number.checked_sub(self.first)?;
        self.waiters.get_mut(usize::try_from(at).ok()?)?.as_mut()
    }

    fn enter(&mut self, deadline: Instant) -> u64 {
        let number = self.first + self.waiters.len() as u64;
        self.waiters.push_back(Some(PlaceWaiter { deadline, waker: None, offered: false }));
        self.waiting += 1;
        number
    }

    /// Removes a caller. It is returned, to be dropped without the lock.
    fn leave(&mut self, number: u64) -> Option<PlaceWaiter> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let left = self.waiters.get_mut(at)?.take()?;
        self.waiting -= 1;
        self.offered -= usize::from(left.offered);
        while let Some(None) = self.waiters.front() {
            self.waiters.pop_front();
            self.first += 1;
        }
        Some(left)
    }

    /// Offers the free places to the callers that have waited longest.
    fn offer(&mut self) -> Woken {
        let mut woken = (None, Vec::new());
        self.next_offer = self.next_offer.max(self.first);
        while self.offered < self.free.min(self.waiting) {
            let number = self.next_offer;
            self.next_offer += 1;
            let Some(waiter) = self.waiter(number) else { continue };
            waiter.offered = true;
            let waker = waiter.waker.take();
            self.offered += 1;
            match &woken.0 {
                None => woken.0 = waker,
                Some(_) => woken.1.extend(waker),
            }
        }
        woken
    }

    /// Removes the callers directly before this one whose time is over: those that are polled leave
    /// by themselves. Returns the deadline of the one before which is left.
    fn before(&mut self, number: u64, now: Instant) -> (Option<Instant>, Vec<PlaceWaiter>) {
        let mut left = Vec::new();
        for before in (self.first..number).rev() {
            match self.waiter(before).map(|waiter| waiter.deadline) {
                None => {}
                Some(deadline) if deadline > now => return (Some(deadline), left),
                Some(_) => left.extend(self.leave(before)),
            }
        }
        (None, left)
    }
}

/// What a waiting caller found.
enum Looked {
    Ended(Result<(), NoPlace>),
    /// `next_look`: when the time of the caller before this one is over.
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
    /// Takes a place if this caller may. Otherwise the task is woken when it may.
    fn poll(&mut self, context: &Context<'_>) -> Looked {
        let mut state = lock(&self.places.state);
        if state.closed {
            return Looked::Ended(Err(NoPlace::Closed));
        }
        if self.number.is_none() && state.take_spare() {
            return Looked::Ended(Ok(()));
        }
        let number = *self.number.get_or_insert_with(|| state.enter(self.deadline));
        let (before, expired) = state.before(number, Instant::now());
        let woken = state.offer();
        let (mut former, mut may_take) = (None, false);
        match state.waiter(number) {
            Some(waiter) if waiter.offered => may_take = true,
            Some(PlaceWaiter { waker: Some(known), .. }) if known.will_wake(context.waker()) => {}
            Some(waiter) => former = waiter.waker.replace(context.waker().clone()),
            // Its time is over, and the caller behind it has removed it.
            None => {}
        }
        if may_take {
            state.free -= 1;
            drop(state.leave(number));
            self.number = None;
        }
        drop(state);
        wake(woken);
        drop((former, expired));
        match may_take {
            true => Looked::Ended(Ok(())),
            false => Looked::Waits { next_look: before.unwrap_or(self.deadline) },
        }
    }
}

/// It no longer stands before others.
impl Drop for WaitingCaller<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut state = lock(&self.places.state);
        let left = state.leave(number);
        let woken = state.offer();
        drop(state);
        wake(woken);
        drop(left);
    }
}

#[cfg(test)]
#[path = "../../tests/unit/places.rs"]
mod tests;
