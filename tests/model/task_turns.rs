//! The turns of tasks on hot keys under a model checker: taken, passed on with a connection, taken back, returned,
//! dropped, in thousands of interleavings. `scripts/model` runs this.
//!
//! Each holder takes the WATCH of the next caller, if there is one, and then passes its turn on or has that
//! caller wait on, while another one takes turns back. A lost caller ends in a deadlock, which shuttle
//! reports. Timers do not fire: the runtime is not run.
//!
//! Two planted mistakes show that the checks can fail.
//!
//! Guarantee: turns, tasks

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use shuttle::future::block_on;
use shuttle::thread;
use tokio::runtime::{Builder, Handle};

use super::*;
use crate::pool::key_turn::KeyTurn;
use crate::pool::model::{assert_found, check, early_watch, every_caller, patient};

const WATCH: &[u8] = b"*2\r\n$5\r\nWATCH\r\n$1\r\nk\r\n";

/// A connection, which is counted until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Queue = KeyQueue<Counted>;
type Turn = KeyTurn<Queue>;
type Entered = (Arc<Right>, Option<PassedOn<Counted>>);

/// What holders do, with a planted mistake or without.
#[derive(Clone, Copy)]
struct Steps {
    release: fn(&Queue, &Arc<Right>),
    leave_next: fn(&Turn),
}

const RIGHT: Steps =
    Steps { release: |queue, turn| queue.release(turn), leave_next: |turn| turn.leave_next() };

/// One key, and the connections that are in use.
struct Watched {
    queue: Arc<Queue>,
    steps: Steps,
    in_use: Arc<AtomicUsize>,
    holder: Mutex<Option<Arc<Right>>>,
    passed_on: AtomicUsize,
}

impl Watched {
    fn new(steps: Steps) -> Arc<Self> {
        Arc::new(Self {
            queue: Arc::new(Queue::single()),
            steps,
            in_use: Arc::default(),
            holder: Mutex::default(),
            passed_on: AtomicUsize::new(0),
        })
    }

    /// Waits for the turn. `None`: the caller was dropped after so many polls.
    fn enter(&self, polls: usize) -> Option<Entered> {
        let watch = Some((early_watch(WATCH), &[7][..]));
        let (patience, term) = (Duration::MAX, Duration::MAX);
        let wait = TurnWait { deadline: patient(), place: QueuePlace::Last, patience, term };
        let entered = match self.queue.try_take() {
            Some(turn) => Some((turn, None)),
            None => {
                let (mut taking, mut left) = (pin!(self.queue.take(wait, watch, |_| {})), polls);
                block_on(poll_fn(|context| match taking.as_mut().poll(context) {
                    Poll::Ready(entered) => Poll::Ready(Some(entered.unwrap())),
                    Poll::Pending if left == 0 => Poll::Ready(None),
                    Poll::Pending if polls == usize::MAX => Poll::Pending,
                    Poll::Pending => {
                        left -= 1;
                        context.waker().wake_by_ref();
                        Poll::Pending
                    }
                }))
            }
        };
        let (turn, passed) = entered?;
        self.passed_on.fetch_add(usize::from(passed.is_some()), Ordering::Relaxed);
        // It may have been taken back meanwhile.
        if turn.is_held() {
            let former = lock(&self.holder).replace(Arc::clone(&turn));
            let is_over =
                former.is_none_or(|former| !former.is_held() || Arc::ptr_eq(&former, &turn));
            assert!(is_over || !turn.is_held(), "two callers have the turn");
        }
        Some((turn, passed))
    }

    /// One attempt in a turn, which ends with EXEC's reply or without.
    fn attempt(&self, (turn, passed): Entered, commits: bool) {
        let key = Turn::new(
            Box::new([Arc::clone(&self.queue)]),
            WATCH,
            &[(7, Arc::clone(&turn))],
            passed,
        );
        let connection = key.take_connection().unwrap_or_else(|| {
            self.in_use.fetch_add(1, Ordering::SeqCst);
            Counted(Arc::clone(&self.in_use))
        });
        self.queue.attempts(&turn);
        let taken = key.take_next(Handle::current().id(), None);
        thread::yield_now();
        match (taken, commits) {
            (Some(_), true) => drop(key.pass_on(connection)),
            (Some(_), false) => {
                (self.steps.leave_next)(&key);
                drop(connection);
            }
            (None, _) => drop(connection),
        }
        if key.end() {
            (self.steps.release)(&self.queue, &turn);
        }
    }

    #[track_caller]
    fn nothing_is_lost(&self) {
        assert_eq!(self.in_use.load(Ordering::SeqCst), 0, "a connection is lost");
        assert_eq!(self.queue.queued(), 0, "a caller still waits");
        assert!(self.queue.try_take().is_some(), "the turn is lost");
        assert!(self.queue.try_take().is_none(), "there are two turns");
    }
}

/// Three callers, of which one may be dropped, and one that takes turns back.
fn chained(steps: Steps, takes_back: bool) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let watched = Watched::new(steps);
    let shared = Arc::clone(&watched);
    every_caller(4, move |caller| {
        if caller == 3 {
            for _ in 0..2 {
                if takes_back {
                    shared.queue.take_back(Duration::ZERO);
                }
                thread::yield_now();
            }
            return;
        }
        for round in 0..2 {
            let polls = if caller == 1 { 2 } else { usize::MAX };
            match shared.enter(polls) {
                Some(entered) => shared.attempt(entered, (caller + round) % 3 != 0),
                None => assert_eq!(caller, 1, "a caller gave up"),
            }
        }
    });
    watched.nothing_is_lost();
    PASSED.fetch_add(watched.passed_on.load(Ordering::Relaxed), Ordering::Relaxed);
}

static PASSED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn model_of_tasks_turns_that_are_passed_on_returned_and_dropped() {
    check(|| chained(RIGHT, false));
    assert!(PASSED.load(Ordering::Relaxed) > 1000, "no turn was passed on");
}

#[test]
fn model_of_tasks_turns_that_are_taken_back() {
    check(|| chained(RIGHT, true));
}

/// The first planted mistake: a turn that was taken back is returned too.
#[test]
fn model_finds_a_tasks_turn_that_is_returned_after_it_was_taken_back() {
    const MISTAKE: Steps = Steps {
        release: |queue, turn| {
            turn.end();
            queue.turn.give_back(turn.number());
        },
        ..RIGHT
    };
    let as_what = ["two callers have the turn", "there are two turns", "deadlock"];
    assert_found(|| chained(MISTAKE, true), &as_what);
}

/// The second: a caller whose WATCH has no replies is not put back.
#[test]
fn model_finds_a_tasks_turn_whose_next_caller_is_forgotten() {
    const MISTAKE: Steps = Steps { leave_next: |_| {}, ..RIGHT };
    assert_found(|| chained(MISTAKE, false), &["deadlock"]);
}
