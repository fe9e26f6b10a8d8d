//! The waiters under a model checker. `scripts/model` runs this.
//!
//! The server is a flag here, and its messages arrive at once. Time stands still. A patient waiter
//! waits until it is woken: a lost wakeup ends in a deadlock, which shuttle reports. A fail-fast waiter
//! gives up at a point that the schedule decides.
//!
//! Two planted mistakes show that the checks can fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::sync::Arc as Plain;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::thread;

use super::*;
use crate::pool::model::{assert_found, check};
use crate::sync::now::now;
use crate::sync::shim::Condvar;

type Waiters = super::Waiters<Condvar>;
type Registration = super::Registration<Condvar>;

const CHANNEL: &str = "wake";

/// A lock of so many permits, the waiters of one process, and how one of them leaves.
struct Fixture {
    free: Mutex<usize>,
    holders: AtomicUsize,
    permits: usize,
    waiters: Arc<Waiters>,
    leave: fn(Registration, Option<bool>),
}

impl Fixture {
    fn new(permits: usize, leave: fn(Registration, Option<bool>)) -> Plain<Self> {
        Plain::new(Self {
            free: Mutex::new(permits),
            holders: AtomicUsize::new(0),
            permits,
            waiters: Arc::default(),
            leave,
        })
    }

    fn try_once(&self) -> bool {
        let mut free = lock(&self.free);
        if *free == 0 {
            return false;
        }
        *free -= 1;
        drop(free);
        let holders = self.holders.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(holders <= self.permits, "a permit too many");
        true
    }

    fn release(&self) {
        self.holders.fetch_sub(1, Ordering::SeqCst);
        *lock(&self.free) += 1;
        self.waiters.released(CHANNEL, "");
    }

    /// As `acquire` does it.
    fn acquire(&self, until: Instant) -> bool {
        if self.try_once() {
            return true;
        }
        let registration = Waiters::join(&self.waiters, CHANNEL, "x");
        loop {
            if self.try_once() {
                (self.leave)(registration, Some(self.permits > 1));
                return true;
            }
            if !now(registration.wait(until, None)) {
                (self.leave)(registration, None);
                return false;
            }
        }
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(*lock(&self.free), self.permits, "permits were lost or doubled");
        assert_eq!((self.waiters.waiting(), self.waiters.wakeups()), (0, 0), "a waiter is left");
    }
}

fn leave(registration: Registration, acquired: Option<bool>) {
    match acquired {
        Some(shared) => registration.acquired(shared),
        None => drop(registration),
    }
}

fn patient() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn play(permits: usize, leave: fn(Registration, Option<bool>)) {
    let fixture = Fixture::new(permits, leave);
    let threads: Vec<_> = (0..4)
        .map(|nth| {
            let fixture = Plain::clone(&fixture);
            thread::spawn(move || {
                let until = if nth == 1 { Instant::now() } else { patient() };
                if fixture.acquire(until) {
                    thread::yield_now();
                    fixture.release();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    fixture.nothing_is_left();
}

#[test]
fn model_of_waiters_for_a_lock_one_of_which_gives_up() {
    check(|| play(1, leave));
}

#[test]
fn model_of_waiters_for_a_semaphore_one_of_which_gives_up() {
    check(|| play(2, leave));
}

/// The first planted mistake: a waiter that leaves does not hand on its wakeup.
fn leave_with_the_wake_up(registration: Registration, acquired: Option<bool>) {
    *lock(&registration.waiter.flags) = Flags::default();
    leave(registration, acquired);
}

#[test]
fn model_finds_a_wake_up_that_is_taken_along() {
    assert_found(|| play(1, leave_with_the_wake_up), &["deadlock"]);
}

/// The second: a waiter that has just left is still in line, and is woken instead of another.
fn leave_too_late(registration: Registration, acquired: Option<bool>) {
    let channel = registration.channel.clone();
    let (waiters, waiter) = (Arc::clone(&registration.waiters), Arc::clone(&registration.waiter));
    leave(registration, acquired);
    if let Some(channel) = lock(&waiters.channels).get_mut(&channel) {
        channel.queue.push_front(Arc::clone(&waiter));
    }
    thread::yield_now();
    if let Some(channel) = lock(&waiters.channels).get_mut(&channel) {
        channel.queue.retain(|queued| !Arc::ptr_eq(queued, &waiter));
    }
}

#[test]
fn model_finds_a_wakeup_for_a_waiter_that_has_left() {
    assert_found(|| play(1, leave_too_late), &["deadlock"]);
}
