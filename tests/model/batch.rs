//! Requests that wait at the semaphore, under a model checker: a leader sends them with its own, and a
//! caller that gives up cancels its own. `scripts/model` runs this.
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
use std::sync::Mutex as Log;
use std::time::Duration;

use shuttle::thread;

use super::*;
use crate::pool::model::{assert_found_at_random, check};

/// The caller that did a job, or unknown.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Done {
    By(usize),
    Unknown,
}

impl Batchable for usize {
    fn yields_before_wait(&self) -> bool {
        *self == 1
    }
}

impl OutcomeUnknown for Done {
    fn outcome_unknown() -> Self {
        Self::Unknown
    }
}

type FairSemaphore = crate::pool::semaphore::FairSemaphore<usize, Done>;
type Members = Vec<BatchMember<usize, Done>>;
type Take = fn(&FairSemaphore) -> Members;

fn as_the_pool_does(gate: &FairSemaphore) -> Members {
    let mut taken = 0;
    gate.take_batch(|_| {
        taken += 1;
        taken <= 2
    })
}

/// The first mistake: a job is marked as taken when the gate's lock was let go.
fn take_behind_the_lock(gate: &FairSemaphore) -> Members {
    let mut state = lock(&gate.state);
    let Some(QueueEntry { waiter, .. }) = state.queue.front() else { return Vec::new() };
    let waiter = Arc::clone(waiter);
    if lock(&waiter.request).is_none() {
        return Vec::new();
    }
    state.queue.pop_front();
    drop(state);
    waiter.grant(Grant::Taken);
    vec![BatchMember { waiter }]
}

/// The second: a caller that wants a permit for itself is passed over.
fn take_past_a_scope(gate: &FairSemaphore) -> Members {
    let mut state = lock(&gate.state);
    let mut members = Vec::new();
    let queue = std::mem::take(&mut state.queue);
    for queued in queue {
        let wants_a_permit = lock(&queued.waiter.request).is_none();
        if wants_a_permit {
            state.queue.push_back(queued);
        } else {
            queued.waiter.grant(Grant::Taken);
            members.push(BatchMember { waiter: queued.waiter });
        }
    }
    members
}

#[derive(Default)]
struct Ledger {
    /// Jobs in the order in which they were done.
    done: Vec<usize>,
    /// What each call returned.
    reported: Vec<(usize, Option<Done>)>,
    queued: Vec<usize>,
}

const SCOPE: usize = 100;

fn callers_with_jobs(take: Take, panics: bool) {
    let gate = Plain::new(FairSemaphore::new(1));
    let ledger = Plain::new(Log::new(Ledger::default()));
    let slot = gate.try_acquire().unwrap();
    let threads: Vec<_> = (0..5)
        .map(|caller| {
            let (gate, ledger) = (Plain::clone(&gate), Plain::clone(&ledger));
            thread::spawn(move || call(&gate, &ledger, caller, take, panics))
        })
        .collect();
    gate.release(slot);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((gate.free(), gate.waiting()), (1, 0), "permits were lost or doubled");
    let ledger = ledger.lock().unwrap();
    for (caller, reported) in &ledger.reported {
        let times = ledger.done.iter().filter(|done| *done == caller).count();
        let allowed = match reported {
            None => times == 0,
            Some(Done::By(_)) => times == 1,
            Some(Done::Unknown) => panics,
        };
        assert!(allowed, "{caller} returned {reported:?}, and it was done {times} times");
    }
    // A scope is served in its turn: no later caller was served before.
    if let Some(at) = ledger.queued.iter().position(|caller| *caller == SCOPE + 2) {
        let turn = ledger.done.iter().position(|done| *done == SCOPE + 2).unwrap();
        let later = &ledger.queued[at + 1..];
        let passed = ledger.done[..turn].iter().any(|done| later.contains(done));
        assert!(!passed, "passed over: {:?} of {:?}", ledger.done, ledger.queued);
    }
}

fn call(gate: &FairSemaphore, ledger: &Log<Ledger>, caller: usize, take: Take, panics: bool) {
    // The last one gives up at whatever point the schedule has come to.
    let patience = if caller == 4 { Duration::ZERO } else { Duration::from_secs(3600) };
    let deadline = Instant::now() + patience;
    let queued = |caller| {
        move |_: &IsWaiting<'_>| {
            ledger.lock().unwrap().queued.push(caller);
            Ok::<(), ()>(())
        }
    };
    if caller == 2 {
        let slot = gate.acquire(deadline, queued(SCOPE + 2)).unwrap();
        ledger.lock().unwrap().done.push(SCOPE + 2);
        gate.release(slot);
        return;
    }
    let reported =
        match gate.acquire_batched(caller, deadline, Duration::from_secs(3600), queued(caller)) {
            Ok(Acquired::Response(done)) => Some(done),
            Ok(Acquired::Permit(slot, own)) => {
                assert_eq!(own, caller);
                let members = take(gate);
                ledger.lock().unwrap().done.push(own);
                for (nth, member) in members.into_iter().enumerate() {
                    if panics && nth == 1 {
                        // A leader that panics lets go of the rest.
                        drop(member);
                        continue;
                    }
                    let job = member.with_request(|request| *request).unwrap();
                    ledger.lock().unwrap().done.push(job);
                    thread::yield_now();
                    member.settle(Done::By(caller));
                }
                gate.release(slot);
                Some(Done::By(caller))
            }
            Err(AcquireError::TimedOut { .. }) => None,
            Err(other) => panic!("{other:?}"),
        };
    ledger.lock().unwrap().reported.push((caller, reported));
}

#[test]
fn model_of_batched_requests_and_callers_that_give_up() {
    check(|| callers_with_jobs(as_the_pool_does, false));
}

#[test]
fn model_of_a_leader_that_drops_requests() {
    check(|| callers_with_jobs(as_the_pool_does, true));
}

#[test]
fn model_finds_a_job_that_is_done_although_its_caller_gave_up() {
    assert_found_at_random(
        || callers_with_jobs(take_behind_the_lock, false),
        &["it was done 1 times"],
    );
}

#[test]
fn model_finds_a_scope_that_is_passed_over() {
    assert_found_at_random(|| callers_with_jobs(take_past_a_scope, false), &["passed over"]);
}
