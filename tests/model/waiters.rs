//! The waiters under a model checker. `scripts/model` runs this.
//!
//! The server is a flag here, and its messages arrive at once. Time stands still. A patient waiter
//! waits until it is woken: a lost wakeup ends in a deadlock, which shuttle reports. A fail-fast waiter
//! gives up at a point that the schedule decides.
//!
//! Four planted mistakes show that the checks can fail.
//!
//! Guarantee: locks

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
use crate::pool::model::{assert_found, check, every_caller, patient};
use crate::protocol::lock::lease::Timing;
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
    filter: fn(usize) -> Option<WakeFilter>,
}

impl Fixture {
    fn new(permits: usize, leave: fn(Registration, Option<bool>)) -> Self {
        Self {
            free: Mutex::new(permits),
            holders: AtomicUsize::new(0),
            permits,
            waiters: Arc::default(),
            leave,
            filter,
        }
    }

    fn try_once(&self, wants: usize) -> bool {
        let mut free = lock(&self.free);
        if *free < wants {
            return false;
        }
        *free -= wants;
        drop(free);
        let held = self.holders.fetch_add(wants, Ordering::SeqCst) + wants;
        assert!(held <= self.permits, "a permit too many");
        true
    }

    fn release(&self, wants: usize) {
        self.holders.fetch_sub(wants, Ordering::SeqCst);
        *lock(&self.free) += wants;
        self.waiters.released(CHANNEL, "");
    }

    /// As `acquire` does it.
    fn acquire(&self, until: Instant, wants: usize) -> bool {
        if self.try_once(wants) {
            return true;
        }
        let registration = Waiters::join(&self.waiters, CHANNEL, &format!("x:{wants}"), None);
        loop {
            if self.try_once(wants) {
                (self.leave)(registration, Some(self.permits > 1));
                return true;
            }
            registration.busy((self.filter)(wants));
            if !now(registration.wait(until)) {
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

/// As a request for so many permits has it.
fn filter(wants: usize) -> Option<WakeFilter> {
    (wants > 1).then(|| WakeFilter::Fewer(u32::try_from(wants).unwrap()))
}

fn leave(registration: Registration, acquired: Option<bool>) {
    match acquired {
        Some(shared) => registration.acquired(shared),
        None => drop(registration),
    }
}

fn play(permits: usize, leave: fn(Registration, Option<bool>)) {
    play_for(Fixture::new(permits, leave), [1; 4]);
}

/// Each caller takes so many permits at once.
fn play_for(fixture: Fixture, wants: [usize; 4]) {
    let fixture = Plain::new(fixture);
    let shared = Plain::clone(&fixture);
    every_caller(4, move |nth| {
        let until = if nth == 1 { Instant::now() } else { patient() };
        if shared.acquire(until, wants[nth]) {
            thread::yield_now();
            shared.release(wants[nth]);
        }
    });
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

#[test]
fn model_of_waiters_for_several_permits_at_once() {
    check(|| play_for(Fixture::new(3, leave), [3, 2, 1, 1]));
}

/// A holder of all permits releases them at once. Of two waiters, the first one needs more permits than
/// another caller, which keeps one of them until both have been served, leaves.
fn all_come_free_at_once(filter: fn(usize) -> Option<WakeFilter>) {
    let fixture = Plain::new(Fixture { filter, ..Fixture::new(3, leave) });
    assert!(fixture.try_once(1) && fixture.try_once(2));
    let waiting = [3, 1, 1].map(|wants| {
        let waiting = fixture.waiters.waiting();
        let thread = thread::spawn({
            let fixture = Plain::clone(&fixture);
            move || assert!(fixture.acquire(patient(), wants))
        });
        while fixture.waiters.waiting() == waiting {
            thread::yield_now();
        }
        thread
    });
    fixture.release(2);
    let [large, small @ ..] = waiting;
    small.into_iter().for_each(|thread| thread.join().unwrap());
    fixture.release(1);
    fixture.release(1);
    fixture.release(1);
    large.join().unwrap();
    fixture.release(3);
    fixture.nothing_is_left();
}

#[test]
fn model_of_permits_that_come_free_at_once() {
    check(|| all_come_free_at_once(filter));
}

/// The third planted mistake: a waiter that needs more permits than are free keeps its wakeup.
#[test]
fn model_finds_permits_for_which_no_waiter_is_woken() {
    assert_found(|| all_come_free_at_once(|_| None), &["deadlock"]);
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

/// A lock whose release gives it to a waiter. The server is its holder here, and the tokens that were
/// released for good.
struct Given {
    state: Mutex<(Option<String>, Vec<String>)>,
    waiters: Arc<Waiters>,
    leave: fn(Registration) -> bool,
}

impl Given {
    fn new(leave: fn(Registration) -> bool) -> Self {
        Self { state: Mutex::new((None, Vec::new())), waiters: Arc::default(), leave }
    }

    fn try_once(&self, me: &str) -> bool {
        let mut state = lock(&self.state);
        let is_free = state.0.as_deref().is_none_or(|holder| holder == me);
        if is_free {
            state.0 = Some(me.to_owned());
        }
        is_free
    }

    /// As `release_held` does it. `replies`: the reply to it arrives.
    fn release(&self, me: &str, replies: bool) {
        let next = self.waiters.next_holder(CHANNEL);
        thread::yield_now();
        let mut state = lock(&self.state);
        let held = state.0.as_deref() == Some(me);
        state.1.push(me.to_owned());
        let to = next.as_ref().map(|next| next.next_holder().owner_token.clone());
        let to = to.filter(|to| held && !state.1.contains(to));
        let given = to.is_some();
        if held {
            state.0 = to;
        }
        drop(state);
        if held && !given {
            self.waiters.released(CHANNEL, "");
        }
        if let Some(next) = next.filter(|_| given && replies) {
            let timing = Timing { sent: Instant::now(), took: Duration::ZERO };
            next.give(GivenLock { fencing: 1, timing, repeated: false });
        }
    }

    /// As `acquire` does it. A caller that leaves and may hold the lock releases it.
    fn acquire(&self, me: &str, until: Instant) -> bool {
        if self.try_once(me) {
            return true;
        }
        let (owner_token, lease) = (me.to_owned(), Duration::from_secs(1));
        let next_holder = NextHolder { owner_token, lease, label: None };
        let registration = Waiters::join(&self.waiters, CHANNEL, me, Some(next_holder));
        let mut may_hold = false;
        loop {
            if self.try_once(me) {
                registration.acquired(false);
                return true;
            }
            registration.busy(None);
            let woken = now(registration.wait(until));
            // As a dropped future, it does not look at what it was given.
            if !woken {
                may_hold |= (self.leave)(registration);
                if may_hold {
                    self.release(me, true);
                }
                return false;
            }
            match registration.take_given() {
                super::Given::Yes(_) => {
                    registration.acquired(false);
                    return true;
                }
                super::Given::Maybe => may_hold = true,
                super::Given::No => {}
            }
        }
    }
}

fn play_given(leave: fn(Registration) -> bool) {
    let lock_of_one = Plain::new(Given::new(leave));
    let of = Plain::clone(&lock_of_one);
    every_caller(3, move |nth| {
        let (me, until) = (format!("x{nth}"), if nth == 1 { Instant::now() } else { patient() });
        if of.acquire(&me, until) {
            assert_eq!(lock(&of.state).0.as_ref(), Some(&me), "held by another");
            thread::yield_now();
            of.release(&me, nth != 0);
        }
    });
    let waiters = &lock_of_one.waiters;
    assert_eq!(lock(&lock_of_one.state).0, None, "the lock is left behind");
    assert_eq!((waiters.waiting(), waiters.wakeups()), (0, 0), "a waiter is left");
}

#[test]
fn model_of_a_lock_that_a_release_gives_to_a_waiter() {
    check(|| play_given(Registration::leave));
}

/// The fourth planted mistake: a waiter that leaves forgets that a release may have given it the lock.
#[test]
fn model_finds_a_lock_that_was_given_to_a_waiter_that_left() {
    let forgetful: fn(Registration) -> bool = |registration| {
        let _: bool = registration.leave();
        false
    };
    assert_found(move || play_given(forgetful), &["left behind", "deadlock"]);
}
