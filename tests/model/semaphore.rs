//! The semaphore under a model checker: shuttle runs it through thousands of interleavings that no
//! stress test would meet. `scripts/model` runs this.
//!
//! Time stands still here. The deadline of a fail-fast caller is over, so it gives up at a point that
//! the schedule decides. A patient caller waits until it is granted: a lost permit ends in a deadlock,
//! which shuttle reports.
//!
//! Five planted mistakes show that the checks can fail.
//!
//! Guarantee: pools

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::sync::Arc as Plain;
use std::sync::Mutex as Log;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::thread;

use super::*;
use crate::pool::model::{Held, assert_found, check, every_caller, patient};

type FairSemaphore = crate::pool::semaphore::FairSemaphore<usize, ()>;

/// A semaphore, and what the test knows of its holders.
struct Watched {
    gate: FairSemaphore,
    release: fn(&FairSemaphore, usize),
    held: Held,
    served: Log<Vec<usize>>,
    joined: Log<Vec<usize>>,
}

impl Watched {
    fn new(permits: usize) -> Plain<Self> {
        Self::releasing(permits, FairSemaphore::release)
    }

    fn releasing(permits: usize, release: fn(&FairSemaphore, usize)) -> Plain<Self> {
        Plain::new(Self {
            gate: FairSemaphore::new(permits),
            release,
            held: Held::new(permits),
            served: Log::default(),
            joined: Log::default(),
        })
    }

    fn take(&self, caller: usize, deadline: Instant) -> Result<usize, AcquireError<()>> {
        let queue = |_: &IsWaiting<'_>| {
            // Under the gate's lock: this is the order of the queue.
            self.joined.lock().unwrap().push(caller);
            Ok(())
        };
        // As the pool does it.
        let slot = match self.gate.try_acquire() {
            Some(slot) => slot,
            None => self.gate.acquire(deadline, queue)?,
        };
        self.held.take(slot);
        self.served.lock().unwrap().push(caller);
        Ok(slot)
    }

    fn give_back(&self, slot: usize) {
        self.held.give_back(slot);
        (self.release)(&self.gate, slot);
    }

    #[track_caller]
    fn nothing_is_lost(&self) {
        nothing_is_lost(&self.gate, self.held.permits());
    }
}

#[track_caller]
pub(in crate::pool) fn nothing_is_lost<T: Batchable, R, K>(
    semaphore: &crate::pool::semaphore::FairSemaphore<T, R, K>,
    permits: usize,
) {
    let mut free = lock(&semaphore.state).free.clone();
    free.sort_unstable();
    assert_eq!(free, (0..permits).collect::<Vec<_>>(), "permits were lost or doubled");
    assert_eq!(semaphore.waiting(), 0, "a caller still waits");
}

fn fail_fast() -> Instant {
    Instant::now()
}

#[test]
fn model_of_callers_that_wait_and_callers_that_give_up() {
    check(|| some_wait_and_some_give_up(FairSemaphore::release));
}

fn some_wait_and_some_give_up(release: fn(&FairSemaphore, usize)) {
    let watched = Watched::releasing(2, release);
    let shared = Plain::clone(&watched);
    every_caller(5, move |caller| {
        let deadline = if caller % 2 == 0 { patient() } else { fail_fast() };
        for _ in 0..2 {
            match shared.take(caller, deadline) {
                Ok(slot) => {
                    thread::yield_now();
                    shared.give_back(slot);
                }
                Err(AcquireError::TimedOut { waiters }) => {
                    assert!(caller % 2 == 1, "a patient caller gave up");
                    assert!(waiters <= 5);
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    watched.nothing_is_lost();
}

#[test]
fn model_of_one_permit_served_in_the_order_of_the_queue() {
    check(|| served_in_turn(FairSemaphore::release));
}

fn served_in_turn(release: fn(&FairSemaphore, usize)) {
    let watched = Watched::releasing(1, release);
    let slot = watched.take(99, patient()).unwrap();
    let shared = Plain::clone(&watched);
    let holder = thread::spawn(move || shared.give_back(slot));
    let shared = Plain::clone(&watched);
    let gave_up = Plain::new(Log::new(Vec::new()));
    let gone = Plain::clone(&gave_up);
    every_caller(4, move |caller| {
        match shared.take(caller, if caller == 1 { fail_fast() } else { patient() }) {
            Ok(slot) => shared.give_back(slot),
            Err(_) => gone.lock().unwrap().push(caller),
        }
    });
    holder.join().unwrap();
    watched.nothing_is_lost();
    // With one permit, its holder is alone: so this is the order of being served.
    let served = watched.served.lock().unwrap();
    let (joined, gone) = (watched.joined.lock().unwrap(), gave_up.lock().unwrap());
    let queued: Vec<_> = joined.iter().filter(|caller| !gone.contains(caller)).collect();
    let in_turn: Vec<_> = served.iter().filter(|caller| joined.contains(caller)).collect();
    assert_eq!(in_turn, queued, "served out of turn");
}

#[test]
fn model_of_a_gate_that_closes_while_callers_come_wait_and_give_up() {
    check(|| {
        let watched = Watched::new(1);
        let shared = Plain::clone(&watched);
        let closer = thread::spawn(move || shared.gate.close());
        let shared = Plain::clone(&watched);
        every_caller(3, move |caller| {
            match shared.take(caller, if caller == 2 { fail_fast() } else { patient() }) {
                Ok(slot) => shared.give_back(slot),
                Err(AcquireError::Closed) => {}
                Err(other) => {
                    assert_eq!(caller, 2, "a patient caller gave up");
                    assert!(matches!(other, AcquireError::TimedOut { .. }), "{other:?}");
                }
            }
        });
        closer.join().unwrap();
        watched.nothing_is_lost();
        assert_eq!(watched.take(3, patient()), Err(AcquireError::Closed));
    });
}

#[test]
fn model_of_callers_that_decide_not_to_wait() {
    check(|| {
        let watched = Watched::new(1);
        let shared = Plain::clone(&watched);
        every_caller(3, move |caller| {
            let hopeless = caller == 0;
            let got = shared.gate.acquire(patient(), |_| if hopeless { Err(()) } else { Ok(()) });
            match got {
                Ok(slot) => {
                    shared.held.take(slot);
                    shared.give_back(slot);
                }
                Err(refused) => assert_eq!((caller, refused), (0, AcquireError::Rejected(()))),
            }
        });
        watched.nothing_is_lost();
    });
}

/// One holder gives back while one caller gives up, through every interleaving there is.
#[test]
fn model_of_a_release_and_a_caller_that_gives_up_in_every_order() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    shuttle::check_dfs(
        || {
            RUNS.fetch_add(1, Ordering::Relaxed);
            release_meets_give_up(FairSemaphore::release, |watched| {
                watched.take(0, fail_fast()).ok()
            });
        },
        None,
    );
    assert!(RUNS.load(Ordering::Relaxed) > 10, "there is only one order, so nothing was checked");
}

fn release_meets_give_up(release: fn(&FairSemaphore, usize), take: fn(&Watched) -> Option<usize>) {
    let watched = Watched::new(1);
    let slot = watched.gate.acquire::<()>(patient(), |_| Ok(())).unwrap();
    let shared = Plain::clone(&watched);
    let holder = thread::spawn(move || release(&shared.gate, slot));
    if let Some(slot) = take(&watched) {
        watched.give_back(slot);
    }
    holder.join().unwrap();
    watched.nothing_is_lost();
}

/// The first planted mistake: a caller that gives up leaves the queue and does not look whether the
/// permit came after all.
fn take_without_a_second_look(watched: &Watched) -> Option<usize> {
    let waiter = Arc::new(Waiter::new(None));
    let mut state = lock(&watched.gate.state);
    let free = state.free.pop();
    if free.is_none() {
        state.queue.push_back(QueueEntry::here(&waiter));
    }
    drop(state);
    let slot = match (free, waiter.wait(fail_fast())) {
        (Some(slot), _) | (None, Grant::Permit(slot)) => slot,
        _ => {
            lock(&watched.gate.state).queue.retain(
                |queued| !matches!(queued, QueueEntry::Caller { waiter: one, .. } if Arc::ptr_eq(one, &waiter)),
            );
            return None;
        }
    };
    watched.held.take(slot);
    Some(slot)
}

/// The second: the permit is handed over after the semaphore's lock was released, so that a caller
/// that gives up in between is neither queued nor granted.
fn release_behind_the_lock(gate: &FairSemaphore, slot: usize) {
    let mut state = lock(&gate.state);
    match state.queue.pop_front() {
        Some(QueueEntry::Caller { waiter, .. }) => {
            drop(state);
            waiter.settle(Grant::Permit(slot));
        }
        _ => state.free.push(slot),
    }
}

/// The third: the last caller is served first.
fn release_to_the_last(gate: &FairSemaphore, slot: usize) {
    let mut state = lock(&gate.state);
    match state.queue.pop_back() {
        Some(QueueEntry::Caller { waiter, .. }) => waiter.settle(Grant::Permit(slot)),
        _ => state.free.push(slot),
    }
}

/// The fourth: the permit is handed over and is free for another caller as well.
fn release_twice(gate: &FairSemaphore, slot: usize) {
    let mut state = lock(&gate.state);
    if let Some(QueueEntry::Caller { waiter, .. }) = state.queue.pop_front() {
        waiter.settle(Grant::Permit(slot));
    }
    state.free.push(slot);
}

/// The fifth: whether a caller sleeps is looked up before it is granted, so that a caller that falls
/// asleep in between sleeps on.
fn release_with_an_old_look(gate: &FairSemaphore, slot: usize) {
    let mut state = lock(&gate.state);
    match state.queue.pop_front() {
        Some(QueueEntry::Caller { waiter, .. }) => {
            let asleep = lock(&waiter.state).asleep;
            waiter.grant(Grant::Permit(slot));
            if asleep {
                waiter.ready.notify_one();
            }
        }
        _ => state.free.push(slot),
    }
}

#[test]
fn model_finds_a_grant_that_came_too_late_to_be_seen() {
    let planted = || release_meets_give_up(FairSemaphore::release, take_without_a_second_look);
    assert_found(planted, &["permits were lost or doubled"]);
}

#[test]
fn model_finds_a_grant_that_is_not_made_under_the_lock() {
    let planted = || {
        release_meets_give_up(release_behind_the_lock, |watched| watched.take(0, fail_fast()).ok());
    };
    assert_found(planted, &["permits were lost or doubled"]);
}

#[test]
fn model_finds_a_queue_that_is_served_from_behind() {
    assert_found(|| served_in_turn(release_to_the_last), &["served out of turn"]);
}

#[test]
fn model_finds_a_permit_that_two_callers_hold() {
    // Which of them shows first is up to the schedule.
    let as_what = ["is held twice", "was not held", "permits were lost or doubled"];
    assert_found(|| some_wait_and_some_give_up(release_twice), &as_what);
}

#[test]
fn model_finds_a_caller_that_is_never_woken() {
    assert_found(|| some_wait_and_some_give_up(release_with_an_old_look), &["deadlock"]);
}
