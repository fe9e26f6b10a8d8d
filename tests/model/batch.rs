//! Requests that wait in groups, under a model checker: a leader sends them with its own, one wake-up tells all, a
//! caller that gives up withdraws its own, and a leader that cannot send passes the lead on. `scripts/model` runs this.
//!
//! Planted mistakes show that the checks can fail.
//!
//! Guarantee: grouped

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
use crate::pool::model::{assert_found_at_random, check, check_for_long};

impl Batchable for usize {
    fn bytes(&self) -> usize {
        1
    }
}

/// A response is the number of the caller that did the job.
type FairSemaphore = crate::pool::semaphore::FairSemaphore<usize, usize>;
type Jobs = VecDeque<Arc<Job<usize, usize>>>;

/// How a leader works.
#[derive(Clone, Copy)]
struct Leader {
    jobs: fn(&FairSemaphore, usize, &Membership<usize, usize>) -> Jobs,
    take: fn(&Job<usize, usize>) -> Option<usize>,
    abandon: fn(&FairSemaphore, &Membership<usize, usize>),
    wakes_first: bool,
    /// Whether it puts back the jobs of others and passes the lead on, and nobody awaits a response for long.
    puts_back: bool,
}

/// As the pool does it.
const RIGHT: Leader = Leader {
    jobs: FairSemaphore::take_group,
    take: Job::take,
    abandon: FairSemaphore::abandon_group,
    wakes_first: false,
    puts_back: false,
};

/// The first mistake: the leader looks at a job, and marks it as taken in another step.
fn take_in_two_steps(job: &Job<usize, usize>) -> Option<usize> {
    let copy = job.look(|request| *request)?;
    thread::yield_now();
    Some(job.take().unwrap_or(copy))
}

/// The second: a caller that needs a permit of its own is passed over.
fn jobs_past_a_scope(
    gate: &FairSemaphore,
    permit: usize,
    place: &Membership<usize, usize>,
) -> Jobs {
    let mut jobs = gate.take_group(permit, place);
    let mut state = lock(&gate.state);
    state.open = None;
    let queue = std::mem::take(&mut state.queue);
    for entry in queue {
        match entry {
            QueueEntry::Group { group, .. } => jobs.extend(group.jobs()),
            caller => state.queue.push_back(caller),
        }
    }
    jobs
}

/// The third: no other member leads after a leader that cannot send.
fn abandon_alone(_: &FairSemaphore, place: &Membership<usize, usize>) {
    assert!(place.job.take().is_some(), "the leader's own job");
}

#[derive(Default)]
struct Ledger {
    /// Jobs in the order in which they were done.
    done: Vec<usize>,
    /// The caller that did each call's job, if one did.
    reported: Vec<(usize, Option<usize>)>,
    queued: Vec<usize>,
}

/// The caller that takes a permit for itself.
const SCOPE: usize = 2;
/// The caller that gives up at whatever point the schedule has come to.
const HASTY: usize = 4;
/// The caller that cannot send when it leads.
const UNABLE: usize = 1;

/// `patience`: of a group for which one permit leads already.
fn callers_with_jobs(permits: usize, patience: Option<Duration>, leader: Leader) {
    some_callers(0..5, permits, patience, leader);
}

fn some_callers(
    callers: impl IntoIterator<Item = usize>,
    permits: usize,
    patience: Option<Duration>,
    leader: Leader,
) {
    let limits = GroupLimits { requests: 3, bytes: 100 };
    let gate =
        Plain::new(FairSemaphore::with_groups(permits, LeaderLimits { most: 1, patience }, limits));
    let ledger = Plain::new(Log::new(Ledger::default()));
    let slots: Vec<_> = (0..permits).map(|_| gate.try_acquire().unwrap()).collect();
    let threads: Vec<_> = callers
        .into_iter()
        .map(|caller| {
            let (gate, ledger) = (Plain::clone(&gate), Plain::clone(&ledger));
            thread::spawn(move || call(&gate, &ledger, caller, leader))
        })
        .collect();
    slots.into_iter().for_each(|slot| gate.release(slot));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((gate.free(), gate.waiting()), (permits, 0), "permits were lost or doubled");
    assert!(lock(&gate.state).leading.is_empty(), "a lead was lost");
    let ledger = ledger.lock().unwrap();
    for (caller, reported) in &ledger.reported {
        let times = ledger.done.iter().filter(|done| *done == caller).count();
        assert_eq!(times, usize::from(reported.is_some()), "{caller} returned {reported:?}");
    }
    if permits > 1 {
        return;
    }
    // A scope is served in its turn: no later caller was served before.
    if let Some(at) = ledger.queued.iter().position(|caller| *caller == SCOPE) {
        let turn = ledger.done.iter().position(|done| *done == SCOPE).unwrap();
        let later = &ledger.queued[at + 1..];
        let passed = ledger.done[..turn].iter().any(|done| later.contains(done));
        assert!(!passed, "passed over: {:?} of {:?}", ledger.done, ledger.queued);
    }
}

fn call(gate: &FairSemaphore, ledger: &Log<Ledger>, caller: usize, leader: Leader) {
    let hour = Duration::from_secs(3600);
    let patience = if caller == HASTY { Duration::ZERO } else { hour };
    let deadline = Instant::now() + patience;
    let queued = |_: &IsWaiting<'_>| {
        ledger.lock().unwrap().queued.push(caller);
        Ok::<(), ()>(())
    };
    if caller == SCOPE {
        let slot = gate.acquire(deadline, queued).unwrap();
        ledger.lock().unwrap().done.push(caller);
        gate.release(slot);
        return;
    }
    let response_wait = if leader.puts_back { Duration::ZERO } else { hour };
    let reported = match gate.acquire_batched(|| caller, deadline, response_wait, queued) {
        Ok(Acquired::Response(by)) => Some(by),
        Ok(Acquired::Alone(slot)) => {
            ledger.lock().unwrap().done.push(caller);
            gate.release(slot);
            Some(caller)
        }
        Ok(Acquired::Leads(slot, place)) if caller == UNABLE => {
            // The connection fails before its permit is returned.
            gate.release(slot);
            (leader.abandon)(gate, &place);
            None
        }
        Ok(Acquired::Leads(slot, place)) => {
            let jobs = (leader.jobs)(gate, slot, &place);
            if leader.wakes_first {
                place.group.wake_members();
            }
            for job in jobs {
                let Some(request) = (leader.take)(&job) else { continue };
                if leader.puts_back && request != caller {
                    thread::yield_now();
                    job.requeue(request);
                    continue;
                }
                ledger.lock().unwrap().done.push(request);
                thread::yield_now();
                job.settle(caller);
            }
            if leader.puts_back {
                gate.abandon_group(&place);
            } else if !leader.wakes_first {
                place.group.wake_members();
            }
            let own = place.job.response();
            gate.release(slot);
            own
        }
        Err(AcquireError::TimedOut { .. }) => None,
        // A leader has its job, which is done or put back.
        Ok(Acquired::Unknown(_)) if leader.puts_back && caller == HASTY => return,
        Ok(Acquired::Unknown(_)) => panic!("no leader is late"),
        Err(other) => panic!("{other:?}"),
    };
    ledger.lock().unwrap().reported.push((caller, reported));
}

#[test]
fn model_of_groups_and_callers_that_give_up() {
    check(|| callers_with_jobs(1, None, RIGHT));
}

#[test]
fn model_of_groups_that_wait_for_a_leader_although_a_permit_is_free() {
    check(|| callers_with_jobs(2, None, RIGHT));
}

#[test]
fn model_of_groups_that_lead_beyond_the_limit() {
    check(|| callers_with_jobs(2, Some(Duration::ZERO), RIGHT));
}

#[test]
fn model_of_groups_whose_leaders_put_back_the_jobs_of_late_members() {
    const LEADER: Leader = Leader { puts_back: true, ..RIGHT };
    check_for_long(|| some_callers([0, HASTY], 1, None, LEADER));
    check(|| callers_with_jobs(1, None, LEADER));
}

#[test]
fn model_finds_a_job_that_is_done_although_its_caller_gave_up() {
    let leader = Leader { take: take_in_two_steps, ..RIGHT };
    assert_found_at_random(move || callers_with_jobs(1, None, leader), &["returned None"]);
}

#[test]
fn model_finds_a_scope_that_is_passed_over() {
    let leader = Leader { jobs: jobs_past_a_scope, ..RIGHT };
    // Its group is stolen before the scope runs, and its members may never be woken.
    assert_found_at_random(
        move || callers_with_jobs(1, None, leader),
        &["passed over", "deadlock"],
    );
}

#[test]
fn model_finds_a_group_without_a_leader() {
    let leader = Leader { abandon: abandon_alone, ..RIGHT };
    assert_found_at_random(move || callers_with_jobs(1, None, leader), &["deadlock"]);
}

#[test]
fn model_finds_members_that_are_woken_before_their_responses() {
    let leader = Leader { wakes_first: true, ..RIGHT };
    assert_found_at_random(move || callers_with_jobs(1, None, leader), &["deadlock"]);
}
