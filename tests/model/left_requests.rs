//! The requests of waiting callers under a model checker: taken, returned, granted and given up, in
//! thousands of interleavings. `scripts/model` runs this.
//!
//! Each holder takes a request, if there is one, and then either grants its permit with what it has put
//! into the request, or returns the request. Or it sends the request when it returns its permit, which may
//! fail. A lost caller ends in a deadlock, which shuttle reports.
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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::thread;

use super::model::nothing_is_lost;
use super::*;
use crate::pool::model::{
    Held, assert_found, assert_found_at_random, check, every_caller, patient,
};

/// A request, with the connection that is passed on in it.
struct Sent {
    connection: Log<Option<usize>>,
    /// It was sent when a permit was returned.
    ahead: AtomicBool,
}

type Semaphore = FairSemaphore<usize, (), Sent>;

/// What a holder does with a request that it has taken.
#[derive(Clone, Copy)]
struct Steps {
    /// Passes the connection on. Returns false if it stays with the holder.
    grant: fn(&Semaphore, &TakenRequest<Sent>, usize) -> bool,
    give_back: fn(&Semaphore, TakenRequest<Sent>),
    /// Sends a request when the permit is returned, and passes the permit on. Returns false if the permit
    /// stays with the holder.
    send_ahead: fn(&Semaphore, usize, &dyn Fn(&Sent) -> bool) -> bool,
    /// Takes what is in the request of a caller that was granted a permit.
    receive: fn(&Sent, bool) -> Option<usize>,
}

const RIGHT: Steps = Steps {
    grant: |_, taken, permit| taken.grant(permit),
    give_back: |semaphore, taken| semaphore.return_request(taken),
    send_ahead: |semaphore, permit, send| match semaphore.pass_on(permit, |_| true, send) {
        Returned::PassedOn => true,
        Returned::Unsent(request) => {
            semaphore.return_request(request);
            false
        }
        Returned::Kept => false,
    },
    receive: |request, passed_on| {
        if passed_on { request.connection.lock().unwrap().take() } else { None }
    },
};

/// A semaphore whose permits are connections, and what the test knows of them.
struct Watched {
    semaphore: Semaphore,
    steps: Steps,
    held: Held,
    passed_on: AtomicUsize,
    served: Log<Vec<usize>>,
    joined: Log<Vec<usize>>,
}

impl Watched {
    fn new(permits: usize, steps: Steps) -> Plain<Self> {
        Plain::new(Self {
            semaphore: FairSemaphore::new(permits),
            steps,
            held: Held::new(permits),
            passed_on: AtomicUsize::new(0),
            served: Log::default(),
            joined: Log::default(),
        })
    }

    /// Returns the permit, or `None` if the caller gave up or the semaphore is closed.
    fn take(&self, caller: usize, deadline: Instant) -> Option<usize> {
        let request = Arc::new(Sent { connection: Log::default(), ahead: AtomicBool::new(false) });
        let queue = |_: &IsWaiting<'_>| {
            self.joined.lock().unwrap().push(caller);
            Ok::<_, ()>(())
        };
        let left = LeftRequest { request: Arc::clone(&request), patience: Duration::MAX };
        let acquired = self.semaphore.acquire_with(deadline, Some(left), queue);
        let was_sent = request.ahead.load(Ordering::SeqCst);
        let Ok(Granted { permit, passed_on }) = acquired else {
            assert!(!was_sent, "the request of a caller that gave up was sent");
            return None;
        };
        assert!(passed_on || !was_sent, "the permit is another than the request's");
        let received = (self.steps.receive)(&request, passed_on);
        assert_eq!(received, passed_on.then_some(permit), "a connection that is not its own");
        self.passed_on.fetch_add(usize::from(passed_on), Ordering::Relaxed);
        self.held.take(permit);
        self.served.lock().unwrap().push(caller);
        Some(permit)
    }

    /// Ends a holder's use, with the request of a waiting caller or without one.
    fn end(&self, permit: usize, passes_on: bool) {
        let taken = self.semaphore.take_request(permit, |_| true);
        thread::yield_now();
        self.held.give_back(permit);
        match taken {
            Some(taken) if passes_on => {
                *taken.request().unwrap().connection.lock().unwrap() = Some(permit);
                if (self.steps.grant)(&self.semaphore, &taken, permit) {
                    return;
                }
                taken.request().unwrap().connection.lock().unwrap().take();
            }
            Some(taken) => (self.steps.give_back)(&self.semaphore, taken),
            None => {}
        }
        self.semaphore.release(permit);
    }

    /// Ends a holder's use, and sends the request of a waiting caller, if that does not fail.
    fn end_ahead(&self, permit: usize, fails: bool) {
        self.held.give_back(permit);
        let send = |request: &Sent| {
            if !fails {
                *request.connection.lock().unwrap() = Some(permit);
                assert!(!request.ahead.swap(true, Ordering::SeqCst), "sent twice");
            }
            !fails
        };
        if !(self.steps.send_ahead)(&self.semaphore, permit, &send) {
            self.semaphore.release(permit);
        }
    }

    #[track_caller]
    fn nothing_is_lost(&self) {
        nothing_is_lost(&self.semaphore, self.held.permits());
    }
}

fn taken_granted_returned_and_given_up(steps: Steps) {
    let watched = Watched::new(2, steps);
    let shared = Plain::clone(&watched);
    every_caller(4, move |caller| {
        let deadline = if caller == 3 { Instant::now() } else { patient() };
        for round in 0..2 {
            match shared.take(caller, deadline) {
                Some(permit) => shared.end(permit, (caller + round) % 3 != 0),
                None => assert_eq!(caller, 3, "a patient caller gave up"),
            }
        }
    });
    watched.nothing_is_lost();
}

#[test]
fn model_of_requests_that_are_taken_granted_returned_and_given_up() {
    check(|| taken_granted_returned_and_given_up(RIGHT));
}

#[test]
fn model_of_requests_that_some_schedules_take() {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    check(|| {
        let watched = Watched::new(1, RIGHT);
        let shared = Plain::clone(&watched);
        every_caller(3, move |caller| {
            let permit = shared.take(caller, patient()).unwrap();
            shared.end(permit, true);
        });
        TAKEN.fetch_add(watched.passed_on.load(Ordering::Relaxed), Ordering::Relaxed);
        watched.nothing_is_lost();
    });
    assert!(TAKEN.load(Ordering::Relaxed) > 1000, "no request was taken, so nothing was checked");
}

fn sent_ahead_and_given_up(steps: Steps) {
    let watched = Watched::new(2, steps);
    let shared = Plain::clone(&watched);
    every_caller(4, move |caller| {
        let deadline = if caller == 3 { Instant::now() } else { patient() };
        for round in 0..2 {
            match shared.take(caller, deadline) {
                Some(permit) if (caller + round) % 4 == 0 => shared.end(permit, true),
                Some(permit) => shared.end_ahead(permit, (caller + round) % 4 == 1),
                None => assert_eq!(caller, 3, "a patient caller gave up"),
            }
        }
    });
    watched.nothing_is_lost();
}

#[test]
fn model_of_requests_that_are_sent_when_a_permit_is_returned() {
    check(|| sent_ahead_and_given_up(RIGHT));
}

#[test]
fn model_of_a_semaphore_that_closes_while_requests_are_sent() {
    check(|| {
        let watched = Watched::new(1, RIGHT);
        let shared = Plain::clone(&watched);
        let closer = thread::spawn(move || shared.semaphore.close());
        let shared = Plain::clone(&watched);
        every_caller(3, move |caller| {
            if let Some(permit) = shared.take(caller, patient()) {
                shared.end_ahead(permit, caller == 1);
            }
        });
        closer.join().unwrap();
        watched.nothing_is_lost();
    });
}

/// With one permit, its holder is alone: so this is the order of being served.
fn served_in_turn(steps: Steps) {
    let watched = Watched::new(1, steps);
    let permit = watched.take(99, patient()).unwrap();
    let shared = Plain::clone(&watched);
    let holder = thread::spawn(move || shared.end(permit, false));
    let shared = Plain::clone(&watched);
    every_caller(4, move |caller| {
        let permit = shared.take(caller, patient()).unwrap();
        match caller {
            2 | 3 => shared.end_ahead(permit, caller == 3),
            _ => shared.end(permit, caller == 0),
        }
    });
    holder.join().unwrap();
    watched.nothing_is_lost();
    let (joined, served) = (watched.joined.lock().unwrap(), watched.served.lock().unwrap());
    let in_turn: Vec<_> = served.iter().filter(|caller| joined.contains(caller)).collect();
    assert_eq!(in_turn, joined.iter().collect::<Vec<_>>(), "served out of turn");
}

#[test]
fn model_of_requests_that_keep_the_order_of_the_queue() {
    check(|| served_in_turn(RIGHT));
}

#[test]
fn model_of_a_semaphore_that_closes_while_requests_are_taken() {
    check(|| {
        let watched = Watched::new(1, RIGHT);
        let shared = Plain::clone(&watched);
        let closer = thread::spawn(move || shared.semaphore.close());
        let shared = Plain::clone(&watched);
        every_caller(3, move |caller| {
            if let Some(permit) = shared.take(caller, patient()) {
                shared.end(permit, caller != 1);
            }
        });
        closer.join().unwrap();
        watched.nothing_is_lost();
    });
}

/// The first planted mistake: the permit is granted although the caller has given up.
#[test]
fn model_finds_a_grant_to_a_caller_that_gave_up() {
    const MISTAKE: Steps = Steps {
        grant: |_, taken, permit| {
            taken.waiter.settle(Grant::PassedOn(permit));
            true
        },
        ..RIGHT
    };
    let planted = || taken_granted_returned_and_given_up(MISTAKE);
    assert_found(planted, &["permits were lost or doubled", "deadlock"]);
}

/// The second: a returned request goes to the end of the queue.
#[test]
fn model_finds_a_request_that_is_returned_to_the_end() {
    const MISTAKE: Steps = Steps {
        give_back: |semaphore, TakenRequest { thread, waiter }| {
            let mut state = lock(&semaphore.state);
            waiter.grant(Grant::Waiting);
            state.queue.push_back(QueueEntry::Caller { thread, waiter });
        },
        ..RIGHT
    };
    assert_found(|| served_in_turn(MISTAKE), &["served out of turn"]);
}

/// The third: a request is returned although its caller has given up, so that the next permit is
/// granted to no caller.
#[test]
fn model_finds_a_request_that_is_returned_for_a_caller_that_gave_up() {
    const MISTAKE: Steps = Steps {
        give_back: |semaphore, TakenRequest { thread, waiter }| {
            let mut state = lock(&semaphore.state);
            waiter.grant(Grant::Waiting);
            state.queue.push_front(QueueEntry::Caller { thread, waiter });
        },
        ..RIGHT
    };
    let planted = || taken_granted_returned_and_given_up(MISTAKE);
    let as_what = ["permits were lost or doubled", "deadlock", "a caller still waits"];
    assert_found(planted, &as_what);
}

/// The fourth: a request is sent although its caller may give up meanwhile.
#[test]
fn model_finds_a_request_that_is_sent_for_a_caller_that_gave_up() {
    const MISTAKE: Steps = Steps {
        send_ahead: |semaphore, permit, send| match semaphore.take_request(permit, |_| true) {
            Some(taken) if send(taken.request().unwrap()) => taken.grant(permit),
            Some(taken) => {
                semaphore.return_request(taken);
                false
            }
            None => false,
        },
        ..RIGHT
    };
    let planted = || sent_ahead_and_given_up(MISTAKE);
    assert_found_at_random(planted, &["the request of a caller that gave up was sent"]);
}

/// The fifth: a request that could not be sent is forgotten.
#[test]
fn model_finds_a_request_that_is_forgotten_because_it_was_not_sent() {
    const MISTAKE: Steps = Steps {
        send_ahead: |semaphore, permit, send| {
            matches!(semaphore.pass_on(permit, |_| true, send), Returned::PassedOn)
        },
        ..RIGHT
    };
    assert_found(|| sent_ahead_and_given_up(MISTAKE), &["deadlock"]);
}
