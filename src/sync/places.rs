//! A limited number of places, first come first served.
//!
//! A place is taken by its caller when that is polled, and never given to it before. So a caller that
//! is polled no more takes no place, and after a short time it is passed over.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::sync::caught;
use crate::sync::own_mutex::OwnMutex;
use crate::sync::shim::MutexGuard;
use crate::sync::timer::DeadlineTimer;

/// Time in which a caller that was woken is polled. Then the next one may take the place.
const GRACE: Duration = Duration::from_millis(50);

/// Minimum time after which a waiting caller looks for others that are polled no more, and the time
/// for each caller that waits.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_micros(10));

/// A limited number of places.
#[derive(Debug)]
pub(crate) struct Places {
    state: OwnMutex<PlacesState>,
}

/// The cost of a step hardly grows with the number of callers that wait.
#[derive(Debug)]
struct PlacesState {
    free: usize,
    closed: bool,
    /// The callers that wait, by the numbers of their arrival.
    queue: BTreeMap<u64, PlaceWaiter>,
    /// Those that were woken and not polled in time. A caller that is polled again is back in the queue.
    passed: BTreeMap<u64, PlaceWaiter>,
    last_number: u64,
    /// All callers before this number were woken.
    next_to_wake: u64,
    /// Number of callers in the queue that were woken, and may take a place.
    woken: usize,
    /// When the first of them was woken, or earlier.
    woken_since: Option<Instant>,
}

#[derive(Debug)]
struct PlaceWaiter {
    deadline: Instant,
    state: WaiterState,
}

#[derive(Debug)]
enum WaiterState {
    Waits(Waker),
    /// It was woken then, and has not been polled since.
    Woken(Instant),
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
            queue: BTreeMap::new(),
            passed: BTreeMap::new(),
            last_number: 0,
            next_to_wake: 0,
            woken: 0,
            woken_since: None,
        };
        Self { state: OwnMutex::new(state) }
    }

    /// Takes a place that is free and for which no caller waits. Returns false if there is none.
    pub(crate) fn try_take(&self) -> Result<bool, NoPlace> {
        let mut state = self.state.lock();
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
                let now = Instant::now();
                let look = match waiting.poll(context, now) {
                    Looked::Ended(ended) => return Poll::Ready(ended),
                    Looked::Waits { look } => look,
                };
                if now >= deadline {
                    return Poll::Ready(Err(NoPlace::TimedOut));
                }
                if timer.poll(context, deadline.min(now + look)).is_pending() {
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

    /// Returns several places in one step. In a forked child they are the parent's.
    pub(crate) fn add_all(&self, places: usize) {
        let Some(mut state) = self.state.lock_in_drop() else { return };
        state.free += places;
        let woken = state.wake_next();
        drop(state);
        wake(woken);
    }

    /// Number of places that are free.
    pub(crate) fn free(&self) -> usize {
        self.state.lock().free
    }

    /// Number of callers that wait for a place.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.state.lock();
        state.queue.len() + state.passed.len()
    }

    /// No caller gets a place from now on.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let queue = std::mem::take(&mut state.queue);
        state.woken = 0;
        drop(state);
        for waiter in queue.into_values() {
            if let WaiterState::Waits(waker) = waiter.state {
                caught::wake(waker);
            }
        }
    }
}

/// The callers that a step wakes. Mostly there is one at most.
type Woken = (Option<Waker>, Vec<Waker>);

fn wake((first, others): Woken) {
    first.into_iter().chain(others).for_each(caught::wake);
}

impl PlacesState {
    /// Takes a place that no waiting caller may take.
    fn take_spare(&mut self) -> bool {
        let is_spare = self.free > self.queue.len();
        self.free -= usize::from(is_spare);
        is_spare
    }

    /// Puts a caller into the queue, which waits for a place or has been passed over. Returns its former
    /// waker, to be dropped without the lock.
    fn enter(&mut self, number: u64, deadline: Instant, waker: Waker) -> Option<PlaceWaiter> {
        let former = self.leave(number);
        self.next_to_wake = self.next_to_wake.min(number);
        self.queue.insert(number, PlaceWaiter { deadline, state: WaiterState::Waits(waker) });
        former
    }

    /// Removes a caller. It is returned, to be dropped without the lock.
    fn leave(&mut self, number: u64) -> Option<PlaceWaiter> {
        let Some(left) = self.queue.remove(&number) else { return self.passed.remove(&number) };
        self.woken -= usize::from(matches!(left.state, WaiterState::Woken(_)));
        Some(left)
    }

    /// Wakes the callers that have waited longest: as many as there are free places, and more if some
    /// were passed over, because those behind them may be like them.
    fn wake_next(&mut self) -> Woken {
        let mut woken = (None, Vec::new());
        let most = match self.free {
            0 => 0,
            free => (free + self.passed.len()).min(self.queue.len()),
        };
        if self.woken >= most {
            return woken;
        }
        let now = Instant::now();
        let mut next = self.next_to_wake;
        for (number, waiter) in self.queue.range_mut(self.next_to_wake..) {
            if self.woken >= most {
                break;
            }
            next = number + 1;
            if matches!(waiter.state, WaiterState::Woken(_)) {
                continue;
            }
            if let WaiterState::Waits(waker) =
                std::mem::replace(&mut waiter.state, WaiterState::Woken(now))
            {
                self.woken += 1;
                match &woken.0 {
                    None => woken.0 = Some(waker),
                    Some(_) => woken.1.push(waker),
                }
            }
        }
        self.next_to_wake = next;
        self.woken_since.get_or_insert(now);
        woken
    }

    /// Passes over the callers that were woken and were not polled in time. Those whose time is over
    /// are removed: callers that are polled leave by themselves.
    fn pass_over(&mut self, now: Instant) -> Vec<PlaceWaiter> {
        let mut expired = Vec::new();
        if self.woken == 0 || self.woken_since.is_some_and(|since| now < since + GRACE) {
            return expired;
        }
        self.woken_since = None;
        let mut late = Vec::new();
        for (number, waiter) in self.queue.range(..self.next_to_wake) {
            match waiter.state {
                WaiterState::Woken(since) if now >= since + GRACE => late.push(*number),
                WaiterState::Woken(since) => {
                    let first = self.woken_since.map_or(since, |first| first.min(since));
                    self.woken_since = Some(first);
                }
                WaiterState::Waits(_) => {}
            }
        }
        for number in late {
            if let Some(waiter) = self.queue.remove(&number) {
                self.woken -= 1;
                self.passed.insert(number, waiter);
            }
        }
        let (rest, over) = std::mem::take(&mut self.passed)
            .into_iter()
            .partition(|(_, waiter)| waiter.deadline >= now);
        self.passed = rest;
        expired.extend(BTreeMap::into_values(over));
        expired
    }
}

/// What a waiting caller found.
enum Looked {
    Ended(Result<(), NoPlace>),
    /// `look`: the time until it is to look again.
    Waits {
        look: Duration,
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
    fn poll(&mut self, context: &Context<'_>, now: Instant) -> Looked {
        let mut state = self.places.state.lock();
        if state.closed {
            return Looked::Ended(Err(NoPlace::Closed));
        }
        let Some(number) = self.number else {
            if state.take_spare() {
                return Looked::Ended(Ok(()));
            }
            state.last_number += 1;
            let number = state.last_number;
            self.number = Some(number);
            state.enter(number, self.deadline, context.waker().clone());
            return self.looked(state, now);
        };
        let may_take = match state.queue.get(&number).map(|waiter| &waiter.state) {
            Some(WaiterState::Waits(known)) if known.will_wake(context.waker()) => {
                return self.looked(state, now);
            }
            Some(WaiterState::Waits(_)) => false,
            // Woken, or passed over.
            Some(WaiterState::Woken(_)) | None => true,
        };
        let former = if may_take && state.free > 0 {
            state.free -= 1;
            self.number = None;
            let left = state.leave(number);
            drop(state);
            drop(left);
            return Looked::Ended(Ok(()));
        } else {
            let waker = context.waker().clone();
            state.enter(number, self.deadline, waker)
        };
        let looked = self.looked(state, now);
        drop(former);
        looked
    }

    /// Looks for callers that are polled no more.
    fn looked(&self, mut state: MutexGuard<'_, PlacesState>, now: Instant) -> Looked {
        let expired = state.pass_over(now);
        let woken = state.wake_next();
        let waiting = u32::try_from(state.queue.len()).unwrap_or(u32::MAX);
        let look = match state.woken {
            0 => LOOK.0.max(LOOK.1.saturating_mul(waiting)),
            _ => GRACE.max(LOOK.1.saturating_mul(waiting)),
        };
        drop(state);
        wake(woken);
        drop(expired);
        Looked::Waits { look }
    }
}

/// It no longer stands before others.
impl Drop for WaitingCaller<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let Some(mut state) = self.places.state.lock_in_drop() else { return };
        let left = state.leave(number);
        let woken = state.wake_next();
        drop(state);
        wake(woken);
        drop(left);
    }
}

#[cfg(test)]
#[path = "../../tests/unit/places.rs"]
mod tests;
