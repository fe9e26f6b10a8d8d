//! The permits of tasks under a model checker, with the WATCH that a waiting caller leaves: taken, passed on,
//! returned, given up and dropped, in thousands of interleavings. `scripts/model` runs this.
//!
//! Each holder takes the WATCH of the next caller, if there is one, and then either passes its permit on or
//! returns the WATCH. A lost caller ends in a deadlock, which shuttle reports. Timers are not part of it: a
//! caller whose time is over notices it when it is polled.
//!
//! Four planted mistakes show that the checks can fail.
//!
//! Guarantee: tasks

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

use shuttle::future::block_on;
use shuttle::thread;

use super::*;
use crate::pool::model::{Held, assert_found, check, early_watch, every_caller};

/// The connection is the number of its permit.
type Numbers = Permits<usize>;

/// What a caller does that is not granted a permit at once.
#[derive(Clone, Copy, PartialEq)]
enum Caller {
    Patient,
    /// It waits for any permit once its WATCH was taken.
    Impatient,
    Late,
    Dropped,
}

/// What a holder does with a WATCH that it has taken, and a dropped caller with its permit.
#[derive(Clone, Copy)]
struct Steps {
    pass_on: fn(&Numbers, &TakenWatch<usize>, &Right, usize) -> Result<(), usize>,
    return_watch: fn(&Numbers, TakenWatch<usize>),
    give_back: fn(&Numbers, &Right),
}

const RIGHT: Steps = Steps {
    pass_on: Permits::pass_on,
    return_watch: Permits::return_watch,
    give_back: |permits, right| {
        if right.end().is_some() {
            permits.give_back(right.number());
        }
    },
};

struct Watched {
    permits: Numbers,
    steps: Steps,
    held: Held,
    passed_on: AtomicUsize,
    served: Log<Vec<i64>>,
}

impl Watched {
    fn new(permits: usize, steps: Steps) -> Plain<Self> {
        Plain::new(Self {
            permits: Permits::new(permits as u32),
            steps,
            held: Held::new(permits),
            passed_on: AtomicUsize::new(0),
            served: Log::default(),
        })
    }

    fn take(&self, caller: Caller) -> Option<Arc<Right>> {
        if let Some(acquired) = self.permits.try_acquire() {
            return self.took(acquired);
        }
        let left = LeftWatch::new(early_watch(b"WATCH k"), Duration::ZERO, &[]);
        let waiter = match self.permits.queue(QueuePlace::Last, Some(left)) {
            Ok(waiter) => waiter,
            Err(acquired) => return self.took(acquired),
        };
        let number = waiter.number;
        let give_back = |right: Arc<Right>, _| (self.steps.give_back)(&self.permits, &right);
        let mut waiting = Waiting { permits: &self.permits, waiter, give_back };
        let (now, mut looks) = (Instant::now(), 3);
        let acquired = block_on(poll_fn(|context| {
            if let Ok(acquired) = waiting.poll(context) {
                return Poll::Ready(Some(acquired));
            }
            let deadline = match caller {
                Caller::Late => now,
                Caller::Impatient if looks > 0 => now + Duration::from_secs(3600),
                Caller::Dropped if looks == 0 => return Poll::Ready(None),
                Caller::Dropped => return again(&mut looks, context),
                Caller::Impatient | Caller::Patient => return Poll::Pending,
            };
            match waiting.give_up(Instant::now(), deadline) {
                Some(acquired) => Poll::Ready(Some(acquired)),
                None => again(&mut looks, context),
            }
        }));
        let taken = acquired.and_then(|acquired| self.took(acquired));
        if taken.is_some() {
            self.served.lock().unwrap().push(number);
        }
        taken
    }

    fn took(&self, acquired: Acquired<usize>) -> Option<Arc<Right>> {
        let Acquired::Right(right, connection) = acquired else { return None };
        if let Some(connection) = connection {
            assert_eq!(connection, right.number(), "a connection that is not its own");
            self.passed_on.fetch_add(1, Ordering::Relaxed);
        }
        self.held.take(right.number());
        Some(right)
    }

    /// Ends a holder's use, with the WATCH of a waiting caller or without one.
    fn end(&self, right: &Right, passes_on: bool) {
        let taken = self.permits.take_watch(|_, _| true);
        thread::yield_now();
        let number = right.number();
        self.held.give_back(number);
        if let Some(taken) = taken {
            if passes_on && (self.steps.pass_on)(&self.permits, &taken, right, number).is_ok() {
                return;
            }
            (self.steps.return_watch)(&self.permits, taken);
        }
        (RIGHT.give_back)(&self.permits, right);
    }

    #[track_caller]
    fn nothing_is_lost(&self) {
        let state = self.permits.state.lock();
        let mut free = state.free.clone();
        free.sort_unstable();
        let all: Vec<_> = (0..self.held.permits()).collect();
        assert_eq!(free, all, "permits were lost or doubled");
        assert_eq!(state.waiters.len(), 0, "a caller still waits");
    }
}

/// Polls the caller once more, `looks` times.
fn again<T>(looks: &mut usize, context: &Context<'_>) -> Poll<T> {
    *looks = looks.saturating_sub(1);
    context.waker().wake_by_ref();
    Poll::Pending
}

fn taken_passed_on_returned_and_given_up(steps: Steps) {
    let watched = Watched::new(2, steps);
    let shared = Plain::clone(&watched);
    every_caller(5, move |caller| {
        let kind = [Caller::Patient, Caller::Impatient, Caller::Late, Caller::Dropped];
        let kind = kind[caller % 4];
        for round in 0..2 {
            match shared.take(kind) {
                Some(right) => shared.end(&right, (caller + round) % 3 != 0),
                None => assert!(matches!(kind, Caller::Late | Caller::Dropped), "it gave up"),
            }
        }
    });
    watched.nothing_is_lost();
}

#[test]
fn model_of_permits_whose_watches_are_taken_passed_on_returned_and_given_up() {
    check(|| taken_passed_on_returned_and_given_up(RIGHT));
}

#[test]
fn model_of_permits_whose_watches_some_schedules_take() {
    static PASSED_ON: AtomicUsize = AtomicUsize::new(0);
    check(|| {
        let watched = Watched::new(1, RIGHT);
        let shared = Plain::clone(&watched);
        every_caller(3, move |_| {
            let right = shared.take(Caller::Patient).unwrap();
            shared.end(&right, true);
        });
        PASSED_ON.fetch_add(watched.passed_on.load(Ordering::Relaxed), Ordering::Relaxed);
        watched.nothing_is_lost();
    });
    assert!(PASSED_ON.load(Ordering::Relaxed) > 1000, "no watch was taken: nothing was checked");
}

/// With one permit, its holder is alone: so this is the order of being served.
fn served_in_turn(steps: Steps) {
    let watched = Watched::new(1, steps);
    let right = watched.take(Caller::Patient).unwrap();
    let shared = Plain::clone(&watched);
    let holder = thread::spawn(move || shared.end(&right, false));
    let shared = Plain::clone(&watched);
    every_caller(3, move |caller| {
        let kind = if caller == 1 { Caller::Impatient } else { Caller::Patient };
        let right = shared.take(kind).unwrap();
        shared.end(&right, caller % 2 == 0);
    });
    holder.join().unwrap();
    watched.nothing_is_lost();
    assert!(watched.served.lock().unwrap().is_sorted(), "served out of turn");
}

#[test]
fn model_of_permits_that_keep_the_order_of_the_queue() {
    check(|| served_in_turn(RIGHT));
}

#[test]
fn model_of_permits_that_close_or_are_taken_back_while_watches_are_taken() {
    check(|| {
        let watched = Watched::new(2, RIGHT);
        let shared = Plain::clone(&watched);
        let closer = thread::spawn(move || {
            // As the pool takes permits back from callers that are polled no more.
            for right in shared.permits.rights() {
                if right.end().is_some() {
                    shared.permits.give_back(right.number());
                }
            }
            shared.permits.close();
        });
        let shared = Plain::clone(&watched);
        every_caller(3, move |caller| {
            // A permit that was taken back is another one's: so this does not look at `held`.
            let Some(right) = shared.permits_only() else { return };
            let taken = shared.permits.take_watch(|_, _| true);
            thread::yield_now();
            if let Some(taken) = taken {
                let number = right.number();
                if caller != 1 && shared.permits.pass_on(&taken, &right, number).is_ok() {
                    return;
                }
                shared.permits.return_watch(taken);
            }
            (RIGHT.give_back)(&shared.permits, &right);
        });
        closer.join().unwrap();
        watched.nothing_is_lost();
    });
}

impl Watched {
    fn permits_only(&self) -> Option<Arc<Right>> {
        let left = LeftWatch::new(early_watch(b"WATCH k"), Duration::MAX, &[]);
        let acquired = match self.permits.queue(QueuePlace::Last, Some(left)) {
            Err(acquired) => acquired,
            Ok(waiter) => {
                let give_back = |right: Arc<Right>, _| (RIGHT.give_back)(&self.permits, &right);
                let waiting = Waiting { permits: &self.permits, waiter, give_back };
                block_on(poll_fn(|context| match waiting.poll(context) {
                    Ok(acquired) => Poll::Ready(acquired),
                    Err(_) => Poll::Pending,
                }))
            }
        };
        match acquired {
            Acquired::Right(right, _) => Some(right),
            _ => None,
        }
    }
}

const AS_WHAT: [&str; 4] =
    ["permits were lost or doubled", "deadlock", "a caller still waits", "held twice"];

/// The first planted mistake: the permit is passed to a caller that has given up.
#[test]
fn model_finds_a_permit_that_is_passed_to_a_caller_that_gave_up() {
    const MISTAKE: Steps = Steps {
        pass_on: |permits, taken, from, connection| {
            let right = permits.state.lock().lend(from.number());
            let waker = taken.0.lock().settle(Grant::Granted(right, Some(connection)));
            wake(waker);
            Ok(())
        },
        ..RIGHT
    };
    assert_found(|| taken_passed_on_returned_and_given_up(MISTAKE), &AS_WHAT);
}

/// The second: a returned WATCH has its caller wait behind all others.
#[test]
fn model_finds_a_watch_that_is_returned_to_the_end() {
    const MISTAKE: Steps = Steps {
        return_watch: |permits, TakenWatch(waiter)| {
            let mut state = permits.state.lock();
            if waiter.lock().grant.is_taken() {
                waiter.lock().grant = Grant::Waiting;
                state.waiters.push_back(InQueue { holder: HolderTask::here(), waiter });
            }
        },
        ..RIGHT
    };
    assert_found(|| served_in_turn(MISTAKE), &["served out of turn"]);
}

/// The third: a WATCH is returned although its caller has given up, so that the next permit is granted to no
/// caller.
#[test]
fn model_finds_a_watch_that_is_returned_for_a_caller_that_gave_up() {
    const MISTAKE: Steps = Steps {
        return_watch: |permits, TakenWatch(waiter)| {
            let mut state = permits.state.lock();
            waiter.lock().grant = Grant::Waiting;
            state.waiters.push_front(InQueue { holder: HolderTask::here(), waiter });
        },
        ..RIGHT
    };
    assert_found(|| taken_passed_on_returned_and_given_up(MISTAKE), &AS_WHAT);
}

/// The fourth: a dropped caller keeps what it was granted.
#[test]
fn model_finds_a_dropped_caller_that_keeps_its_permit() {
    const MISTAKE: Steps = Steps { give_back: |_, _| {}, ..RIGHT };
    assert_found(|| taken_passed_on_returned_and_given_up(MISTAKE), &AS_WHAT);
}
