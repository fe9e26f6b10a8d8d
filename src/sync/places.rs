//! A limited number of places, first come first served.
//!
//! A place is taken by its caller when that is polled, and never given to it before. So a caller that
//! is polled no more takes no place, and after a short time it is passed over.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::sync::lock;
use crate::sync::timer::DeadlineTimer;

/// Time in which a caller that was woken is polled. Then the next one may take the place.
const GRACE: Duration = Duration::from_millis(50);

/// Minimum time after which a waiting caller looks for others that are polled no more, and the time
/// for each caller that waits.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_micros(10));

/// A limited number of places.
#[derive(Debug)]
pub(crate) struct Places {
    state: Mutex<PlacesState>,
}

/// The cost of a step does not depend on the number of callers that wait.
#[derive(Debug)]
struct PlacesState {
    free: usize,
    closed: bool,
    /// In the order of their arrival. `None`: the caller has left. The first one is there.
    waiters: VecDeque<Option<PlaceWaiter>>,
    /// The number of the first one.
    first: u64,
    /// None before this number is to be woken.
    next_to_wake: u64,
    waiting: usize,
    /// Number of waiters that were woken, and may take a place.
    woken: usize,
    /// Number of waiters that were passed over.
    passed: usize,
    /// When the first of those that were woken was woken.
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
    Woken(Instant),
    /// It was woken, and was not polled in time.
    Passed,
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
            next_to_wake: 0,
            waiting: 0,
            woken: 0,
            passed: 0,
            woken_since: None,
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

    /// Returns several places in one step.
    pub(crate) fn add_all(&self, places: usize) {
        let mut state = lock(&self.state);
        state.free += places;
        let woken = state.wake_next();
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
        (state.waiting, state.woken, state.passed) = (0, 0, 0);
        drop(state);
        for waiter in waiters.into_iter().flatten() {
            if let WaiterState::Waits(waker) = waiter.state {
                waker.wake();
            }
        }
    }
}

/// The callers that a step wakes. Mostly there is one at most.
type Woken = (Option<Waker>, Vec<Waker>);

fn wake((first, others): Woken) {
    first.into_iter().chain(others).for_each(Waker::wake);
}

impl PlacesState {
    /// Takes a place that no waiting caller may take.
    fn take_spare(&mut self) -> bool {
        let is_spare = self.free > self.waiting - self.passed;
        self.free -= usize::from(is_spare);
        is_spare
    }

    fn waiter(&mut self, number: u64) -> Option<&mut PlaceWaiter> {
        let at = number.checked_sub(self.first)?;
        self.waiters.get_mut(usize::try_from(at).ok()?)?.as_mut()
    }

    fn enter(&mut self, deadline: Instant, waker: Waker) -> u64 {
        let number = self.first + self.waiters.len() as u64;
        self.waiters.push_back(Some(PlaceWaiter { deadline, state: WaiterState::Waits(waker) }));
        self.waiting += 1;
        number
    }

    /// Counts a waiter that changes or leaves its state.
    fn uncount(&mut self, state: &WaiterState) {
        match state {
            WaiterState::Waits(_) => {}
            WaiterState::Woken(_) => self.woken -= 1,
            WaiterState::Passed => self.passed -= 1,
        }
    }

    /// Removes a caller. It is returned, to be dropped without the lock.
    fn leave(&mut self, number: u64) -> Option<PlaceWaiter> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let left = self.waiters.get_mut(at)?.take()?;
        self.waiting -= 1;
        self.uncount(&left.state);
        while let Some(None) = self.waiters.front() {
            self.waiters.pop_front();
            self.first += 1;
        }
        Some(left)
    }

    /// Wakes the callers that have waited longest: as many as there are free places, and more if some
    /// were passed over, because those behind them may be like them.
    fn wake_next(&mut self) -> Woken {
        let mut woken = (None, Vec::new());
        if self.free == 0 || self.waiting == 0 {
            return woken;
        }
        let most = (self.free + self.passed).min(self.waiting - self.passed);
        if self.woken >= most {
            return woken;
        }
        let now = Instant::now();
        let mut number = self.next_to_wake.max(self.first);
        while self.woken < most && number < self.first + self.waiters.len() as u64 {
            if let Some(waiter) = self.waiter(number)
                && matches!(waiter.state, WaiterState::Waits(_))
                && let WaiterState::Waits(waker) =
                    std::mem::replace(&mut waiter.state, WaiterState::Woken(now))
            {
                self.woken += 1;
                match &woken.0 {
                    None => woken.0 = Some(waker),
                    Some(_) => woken.1.push(waker),
                }
            }
            number += 1;
        }
        self.next_to_wake = number;
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
        for number in self.first..self.next_to_wake {
            let Some(waiter) = self.waiter(number) else { continue };
            match waiter.state {
                _ if waiter.deadline < now => expired.extend(self.leave(number)),
                WaiterState::Woken(since) if now >= since + GRACE => {
                    waiter.state = WaiterState::Passed;
                    (self.woken, self.passed) = (self.woken - 1, self.passed + 1);
                }
                WaiterState::Woken(since) => {
                    let first = self.woken_since.map_or(since, |first| first.min(since));
                    self.woken_since = Some(first);
                }
                WaiterState::Passed | WaiterState::Waits(_) => {}
            }
        }
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
        let mut state = lock(&self.places.state);
        if state.closed {
            return Looked::Ended(Err(NoPlace::Closed));
        }
        let Some(number) = self.number else {
            if state.take_spare() {
                return Looked::Ended(Ok(()));
            }
            self.number = Some(state.enter(self.deadline, context.waker().clone()));
            return self.looked(state, now);
        };
        let mut former = None;
        if let Some(waiter) = state.waiter(number) {
            match &mut waiter.state {
                WaiterState::Waits(known) if known.will_wake(context.waker()) => {}
                waits => {
                    let waiting = WaiterState::Waits(context.waker().clone());
                    let before = std::mem::replace(waits, waiting);
                    state.uncount(&before);
                    if !matches!(before, WaiterState::Waits(_)) && state.free > 0 {
                        state.free -= 1;
                        let left = state.leave(number);
                        self.number = None;
                        drop(state);
                        drop(left);
                        return Looked::Ended(Ok(()));
                    }
                    state.next_to_wake = state.next_to_wake.min(number);
                    former = Some(before);
                }
            }
        }
        let looked = self.looked(state, now);
        drop(former);
        looked
    }

    /// Looks for callers that are polled no more.
    fn looked(&self, mut state: MutexGuard<'_, PlacesState>, now: Instant) -> Looked {
        let expired = state.pass_over(now);
        let woken = state.wake_next();
        let waiting = u32::try_from(state.waiting).unwrap_or(u32::MAX);
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
        let mut state = lock(&self.places.state);
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
