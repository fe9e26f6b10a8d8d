//! Turns on hot keys under a model checker: taken, passed on with a connection, kept, returned and given
//! up, in thousands of interleavings. `scripts/model` runs this.
//!
//! A caller takes its turn, and a connection if none came with the turn. Its block is then committed, with the
//! WATCH of the next caller behind it or without, or undone, or given up. A lost caller ends in a deadlock,
//! which shuttle reports.
//!
//! Four planted mistakes show that the checks can fail.
//!
//! Guarantee: turns

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::sync::Arc as Plain;
use std::sync::Mutex as Log;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use shuttle::thread;

use super::*;
use crate::pool::model::{Held, assert_found, check, early_watch, every_caller, patient};
use crate::pool::semaphore::model::nothing_is_lost;

const WATCH: &[u8] = b"*2\r\n$5\r\nWATCH\r\n$1\r\nk\r\n";

type Turn = KeyTurn<KeyQueue<usize>>;

/// What a caller does at the end of its block.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// EXEC's reply proves that the next caller may go on.
    Commits,
    /// It proves nothing: the connection is closed.
    Loses,
    /// Its closure fails before EXEC.
    GivesUp,
}

/// What holders do, with a planted mistake or without.
#[derive(Clone, Copy)]
struct Steps {
    /// Whether a holder whose turn may have been passed on returns it.
    returns: fn(&Turn) -> bool,
    pass_on: fn(&Turn, usize) -> Option<usize>,
    leave_next: fn(&Turn),
    place: QueuePlace,
}

const RIGHT: Steps = Steps {
    returns: |turn| turn.end(),
    pass_on: |turn, connection| turn.pass_on(connection),
    leave_next: |turn| turn.leave_next(),
    place: QueuePlace::First,
};

/// One key, and the connections for it.
struct Watched {
    queue: Arc<KeyQueue<usize>>,
    permits: FairSemaphore<(), ()>,
    steps: Steps,
    in_turn: AtomicBool,
    held: Held,
    passed_on: AtomicUsize,
    /// The callers that wait, in the order of arrival.
    joined: Log<Vec<usize>>,
}

impl Watched {
    fn new(connections: usize, steps: Steps) -> Plain<Self> {
        Plain::new(Self {
            queue: Arc::new(KeyQueue::new(1)),
            permits: FairSemaphore::new(connections),
            steps,
            in_turn: AtomicBool::new(false),
            held: Held::new(connections),
            passed_on: AtomicUsize::new(0),
            joined: Log::default(),
        })
    }

    /// Waits for the turn. `None`: the caller attempts without one.
    fn enter(&self, caller: usize, place: QueuePlace, deadline: Instant) -> Option<Turn> {
        let left = KeyRequest::left(early_watch(WATCH), &[7], Duration::MAX);
        let may_wait = |_: &IsWaiting<'_>| {
            self.joined.lock().unwrap().push(caller);
            Ok::<_, ()>(())
        };
        let granted = self.queue.acquire_at(place, deadline, Some(left.clone()), may_wait);
        let waited = self.joined.lock().unwrap().iter().position(|joined| *joined == caller);
        let Ok(Granted { passed_on, .. }) = granted else {
            if let Some(at) = waited {
                self.joined.lock().unwrap().remove(at);
            }
            return None;
        };
        assert!(!self.in_turn.swap(true, Ordering::SeqCst), "two callers have the turn");
        if let Some(at) = waited {
            self.joined.lock().unwrap().remove(at);
            assert!(at == 0 || self.steps.place == QueuePlace::First, "served out of turn");
        }
        let passed = if passed_on { left.request.take() } else { None };
        assert_eq!(passed.is_some(), passed_on, "a turn without its connection");
        self.passed_on.fetch_add(usize::from(passed_on), Ordering::Relaxed);
        Some(Turn::new(Box::new([Arc::clone(&self.queue)]), WATCH, &[(7, ())], passed))
    }

    fn take_permit(&self) -> usize {
        let permit = self.permits.acquire(patient(), |_| Ok::<(), ()>(())).unwrap();
        self.held.take(permit);
        permit
    }

    fn release(&self, permit: usize) {
        self.held.give_back(permit);
        self.permits.release(permit);
    }

    /// One attempt in a turn. Returns whether the turn was passed on.
    fn attempt(&self, turn: Turn, end: End) -> bool {
        let connection = turn.take_connection().unwrap_or_else(|| self.take_permit());
        let is_kept_long = turn.is_kept_long() && self.permits.queued() > 0;
        let taken = match end {
            End::GivesUp => None,
            End::Commits | End::Loses if is_kept_long => None,
            End::Commits | End::Loses => turn.take_next((), None),
        };
        thread::yield_now();
        self.in_turn.store(false, Ordering::SeqCst);
        let left = match (taken, end) {
            (Some(_), End::Commits) => (self.steps.pass_on)(&turn, connection),
            (Some(_), _) => {
                (self.steps.leave_next)(&turn);
                Some(connection)
            }
            (None, _) => Some(connection),
        };
        left.into_iter().for_each(|connection| self.release(connection));
        let is_passed_on = turn.is_over();
        if (self.steps.returns)(&turn) {
            self.queue.release(TURN);
        }
        is_passed_on
    }

    #[track_caller]
    fn nothing_is_lost(&self) {
        nothing_is_lost(&self.queue, 1);
        nothing_is_lost(&self.permits, self.held.permits());
    }
}

fn chained(steps: Steps) {
    chained_with(steps, true);
}

/// `one_gives_up`: one caller does not wait for its turn.
fn chained_with(steps: Steps, one_gives_up: bool) {
    let watched = Watched::new(1, steps);
    let shared = Plain::clone(&watched);
    every_caller(4, move |caller| {
        let (mut place, deadline) = (
            QueuePlace::Last,
            if one_gives_up && caller == 3 { Instant::now() } else { patient() },
        );
        for round in 0..2 {
            let end = match (caller + round) % 4 {
                0 => End::Loses,
                1 => End::GivesUp,
                _ => End::Commits,
            };
            match shared.enter(caller, place, deadline) {
                Some(turn) => {
                    let is_passed_on = shared.attempt(turn, end);
                    // As if it was undone: it is first in the queue again.
                    place = if is_passed_on { shared.steps.place } else { QueuePlace::Last };
                }
                None => assert_eq!(caller, 3, "a patient caller gave up"),
            }
        }
    });
    watched.nothing_is_lost();
}

#[test]
fn model_of_turns_that_are_passed_on_kept_returned_and_given_up() {
    check(|| chained(RIGHT));
}

#[test]
fn model_of_turns_in_the_order_of_arrival() {
    check(|| chained_with(Steps { place: QueuePlace::Last, ..RIGHT }, false));
}

#[test]
fn model_of_turns_that_some_schedules_pass_on() {
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    check(|| {
        let watched = Watched::new(1, RIGHT);
        let shared = Plain::clone(&watched);
        every_caller(3, move |caller| {
            let turn = shared.enter(caller, QueuePlace::Last, patient()).unwrap();
            shared.attempt(turn, End::Commits);
        });
        PASSED.fetch_add(watched.passed_on.load(Ordering::Relaxed), Ordering::Relaxed);
        watched.nothing_is_lost();
    });
    assert!(PASSED.load(Ordering::Relaxed) > 1000, "no turn was passed on");
}

#[test]
fn model_of_turns_beside_callers_without_one() {
    check(|| {
        let watched = Watched::new(1, RIGHT);
        let shared = Plain::clone(&watched);
        every_caller(4, move |caller| match caller {
            0 => {
                let permit = shared.take_permit();
                thread::yield_now();
                shared.release(permit);
            }
            _ => {
                let turn = shared.enter(caller, QueuePlace::Last, patient()).unwrap();
                shared.attempt(turn, if caller == 1 { End::Loses } else { End::Commits });
            }
        });
        watched.nothing_is_lost();
    });
}

#[test]
fn model_of_turns_that_end_while_their_scopes_are_reclaimed() {
    check(|| {
        let watched = Watched::new(1, RIGHT);
        let shared = Plain::clone(&watched);
        every_caller(3, move |caller| {
            let turn = Plain::new(shared.enter(caller, QueuePlace::Last, patient()).unwrap());
            shared.in_turn.store(false, Ordering::SeqCst);
            let reaper = Plain::clone(&turn);
            let reaper = thread::spawn(move || reaper.give_back());
            if turn.end() {
                shared.queue.release(TURN);
            }
            reaper.join().unwrap();
        });
        watched.nothing_is_lost();
    });
}

/// The first planted mistake: a turn that was passed on is returned too.
#[test]
fn model_finds_a_turn_that_is_returned_after_it_was_passed_on() {
    const MISTAKE: Steps = Steps { returns: |_| true, ..RIGHT };
    let as_what = ["two callers have the turn", "permits were lost or doubled", "deadlock"];
    assert_found(|| chained(MISTAKE), &as_what);
}

/// The second: the connection of a caller that gave up is lost.
#[test]
fn model_finds_a_connection_that_is_passed_to_a_caller_that_gave_up() {
    const MISTAKE: Steps = Steps {
        pass_on: |turn, connection| {
            turn.pass_on(connection);
            None
        },
        ..RIGHT
    };
    assert_found(|| chained(MISTAKE), &["permits were lost or doubled", "deadlock"]);
}

/// The third: the caller behind a lost connection waits for ever.
#[test]
fn model_finds_a_caller_that_is_left_behind_a_lost_connection() {
    const MISTAKE: Steps = Steps { leave_next: |_| {}, ..RIGHT };
    assert_found(|| chained(MISTAKE), &["deadlock"]);
}

/// The fourth: the holder keeps a turn that no caller was passed.
#[test]
fn model_finds_a_turn_that_is_not_returned() {
    const MISTAKE: Steps = Steps { returns: |_| false, ..RIGHT };
    assert_found(|| chained(MISTAKE), &["deadlock", "permits were lost or doubled"]);
}
