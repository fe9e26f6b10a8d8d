//! The semaphore with real threads, for cases in which one order of events is enough.
//!
//! Orders that depend on the scheduler are the subject of the models.
//!
//! Guarantee: pools, grouped

use std::convert::Infallible;
use std::time::Duration;

use super::*;
use crate::pool::job::Submitter;

type FairSemaphore = crate::pool::semaphore::FairSemaphore<u32, ()>;

impl Batchable for u32 {
    fn bytes(&self) -> usize {
        1
    }
}

/// Groups of at most three requests, of which one is led at a time.
fn with_groups(permits: usize) -> std::sync::Arc<FairSemaphore> {
    with_leaders(permits, LeaderLimits { most: 1, patience: None })
}

fn with_leaders(permits: usize, leaders: LeaderLimits) -> std::sync::Arc<FairSemaphore> {
    let limits = GroupLimits { requests: 3, bytes: 100 };
    std::sync::Arc::new(FairSemaphore::with_groups(permits, leaders, limits))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn wait_with(
    gate: &FairSemaphore,
    request: u32,
    deadline: Instant,
    response_wait: Duration,
) -> Result<Acquired<u32, ()>, AcquireError<Infallible>> {
    gate.acquire_batched(|| request, deadline, response_wait, |_| Ok(()))
}

/// Takes a permit for a request that need not wait.
fn try_lead(gate: &FairSemaphore) -> Option<usize> {
    lock(&gate.state).lead(gate.leaders)
}

/// Begins a call that waits with a request.
fn waiting_with(
    gate: &std::sync::Arc<FairSemaphore>,
    request: u32,
) -> std::thread::JoinHandle<Result<Acquired<u32, ()>, AcquireError<Infallible>>> {
    let before = gate.waiting();
    let waiting = {
        let gate = gate.clone();
        std::thread::spawn(move || wait_with(&gate, request, soon(), Duration::from_secs(20)))
    };
    while gate.waiting() == before {
        std::thread::yield_now();
    }
    waiting
}

/// Takes the requests of a group, and returns them.
fn taken(gate: &FairSemaphore, permit: usize, place: &Membership<u32, ()>) -> Vec<u32> {
    gate.take_group(permit, place).iter().filter_map(|job| job.take()).collect()
}

fn take(gate: &FairSemaphore, wait: Duration) -> Result<usize, AcquireError<Infallible>> {
    gate.acquire(Instant::now() + wait, |_| Ok(()))
}

#[test]
fn permits_are_handed_over_in_the_order_of_waiting() {
    let gate = std::sync::Arc::new(FairSemaphore::new(1));
    let slot = take(&gate, Duration::ZERO).unwrap();
    let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..8)
        .map(|nth| {
            let (gate_, order) = (gate.clone(), order.clone());
            let thread = std::thread::spawn(move || {
                let slot = take(&gate_, Duration::from_secs(20)).unwrap();
                order.lock().unwrap().push(nth);
                gate_.release(slot);
            });
            while gate.waiting() <= nth {
                std::thread::yield_now();
            }
            thread
        })
        .collect();
    gate.release(slot);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
    assert_eq!((gate.free(), gate.waiting()), (1, 0));
}

#[test]
fn giving_up_leaves_the_queue_and_takes_a_late_grant() {
    let gate = FairSemaphore::new(1);
    let slot = take(&gate, Duration::ZERO).unwrap();
    assert_eq!(take(&gate, Duration::from_millis(5)), Err(AcquireError::TimedOut { waiters: 1 }));
    assert_eq!(gate.waiting(), 0);
    let late = Arc::new(Waiter::new(None));
    lock(&gate.state).queue.push_back(QueueEntry::here(&late));
    gate.release(slot);
    gate.leave_queue(&late);
    assert_eq!(late.take(), Grant::Permit(slot));
}

#[test]
fn no_caller_waits_for_ever_for_the_leader_that_took_its_request() {
    let gate = with_groups(1);
    let slot = take(&gate, Duration::ZERO).unwrap();
    let leader = waiting_with(&gate, 6);
    let patience = Duration::from_millis(50);
    let waiting = {
        let gate = gate.clone();
        let deadline = Instant::now() + Duration::from_secs(1);
        std::thread::spawn(move || wait_with(&gate, 7, deadline, patience))
    };
    while gate.waiting() < 2 {
        std::thread::yield_now();
    }
    gate.release(slot);
    let Acquired::Leads(slot, place) = leader.join().unwrap().unwrap() else { panic!("no lead") };
    assert_eq!(taken(&gate, slot, &place), [6, 7]);
    // It is delayed, and settles no job.
    assert!(matches!(waiting.join().unwrap(), Ok(Acquired::Unknown(None))));
    gate.release(slot);
    assert_eq!((gate.free(), gate.waiting()), (1, 0));
}

#[test]
fn requests_gather_in_groups_of_a_limited_size_and_wait_for_a_leader_although_a_permit_is_free() {
    let gate = with_groups(2);
    let slot = try_lead(&gate).unwrap();
    let waiting: Vec<_> = (1..6).map(|request| waiting_with(&gate, request)).collect();
    assert_eq!((gate.free(), gate.waiting()), (1, 5), "one group is led at a time");
    // A caller for itself passes them: they wait for no connection.
    gate.release(take(&gate, Duration::ZERO).unwrap());
    gate.release(slot);
    let mut waiting = waiting.into_iter();
    for expected in [vec![1, 2, 3], vec![4, 5]] {
        let leader = waiting.next().unwrap().join().unwrap();
        let Ok(Acquired::Leads(slot, place)) = leader else { panic!("{leader:?}") };
        let jobs = gate.take_group(slot, &place);
        let requests: Vec<_> = jobs.iter().filter_map(|job| job.take()).collect();
        assert_eq!(requests, expected);
        jobs.iter().for_each(|job| assert_eq!(job.settle(()), Submitter::Waits));
        place.group.wake_members();
        for _ in 1..expected.len() {
            let member = waiting.next().unwrap().join().unwrap();
            assert!(matches!(member, Ok(Acquired::Response(()))), "{member:?}");
        }
        gate.release(slot);
    }
    assert_eq!((gate.free(), gate.waiting()), (2, 0));
}

/// Takes and settles the requests of a group.
fn serve(gate: &FairSemaphore, permit: usize, place: &Membership<u32, ()>) -> Vec<u32> {
    let jobs = gate.take_group(permit, place);
    let requests = jobs.iter().filter_map(|job| job.take()).collect();
    jobs.iter().for_each(|job| assert_eq!(job.settle(()), Submitter::Waits));
    place.group.wake_members();
    requests
}

/// Has three requests be sent with one permit, and returns it.
#[expect(clippy::unwrap_used, clippy::panic, reason = "test code outside of a test's function")]
fn three_requests_sent(gate: &std::sync::Arc<FairSemaphore>) -> usize {
    let permits: Vec<_> = std::iter::from_fn(|| gate.try_acquire()).collect();
    let callers: Vec<_> = (0..3).map(|request| waiting_with(gate, request)).collect();
    permits.into_iter().for_each(|permit| gate.release(permit));
    let mut callers = callers.into_iter().map(|caller| caller.join().unwrap());
    let Ok(Acquired::Leads(permit, place)) = callers.next().unwrap() else { panic!("no lead") };
    assert_eq!(serve(gate, permit, &place), [0, 1, 2]);
    callers.for_each(|other| assert!(matches!(other, Ok(Acquired::Response(())))));
    permit
}

#[test]
fn with_no_more_requests_than_permits_each_leads_at_once() {
    let hour = Duration::from_secs(3_600);
    let gate = with_leaders(3, LeaderLimits { most: 1, patience: Some(hour) });
    let permits: Vec<_> = (0..3).map(|_| try_lead(&gate).expect("a permit")).collect();
    permits.into_iter().for_each(|permit| gate.release(permit));
    // Three requests share one write, so the next one waits, although two permits are free.
    let slot = three_requests_sent(&gate);
    assert_eq!((gate.free(), try_lead(&gate)), (2, None));
    let next = waiting_with(&gate, 3);
    gate.release(slot);
    let Ok(Acquired::Leads(slot, place)) = next.join().unwrap() else { panic!("no lead") };
    assert_eq!(serve(&gate, slot, &place), [3]);
    gate.release(slot);
    assert_eq!((gate.free(), gate.waiting()), (3, 0));
}

/// Members that withdraw leave fewer requests than permits, but the group that waits comes first.
#[test]
fn no_later_request_passes_a_group_that_waits() {
    let hour = Duration::from_secs(3_600);
    let gate = with_leaders(3, LeaderLimits { most: 1, patience: Some(hour) });
    let slot = three_requests_sent(&gate);
    let first = waiting_with(&gate, 3);
    let soon_over = Instant::now() + Duration::from_millis(500);
    let late = || wait_with(&gate, 9, soon_over, Duration::ZERO);
    std::thread::scope(|scope| {
        let late = [scope.spawn(late), scope.spawn(late)];
        while gate.waiting() < 3 && Instant::now() < soon_over {
            std::thread::yield_now();
        }
        // Its place is in another group.
        let next = waiting_with(&gate, 4);
        for late in late {
            assert!(matches!(late.join().unwrap(), Err(AcquireError::TimedOut { .. })));
        }
        gate.release(slot);
        let Ok(Acquired::Leads(slot, place)) = first.join().unwrap() else { panic!("no lead") };
        assert_eq!(serve(&gate, slot, &place), [3]);
        assert_eq!((gate.free(), try_lead(&gate)), (2, None), "the other group waits");
        gate.release(slot);
        let Ok(Acquired::Leads(slot, place)) = next.join().unwrap() else { panic!("no lead") };
        assert_eq!(serve(&gate, slot, &place), [4]);
        gate.release(slot);
    });
    assert_eq!((gate.free(), gate.waiting()), (3, 0));
}

#[test]
fn a_group_that_has_waited_for_too_long_leads_beyond_the_limit() {
    let patience = Some(Duration::from_millis(50));
    let gate = with_leaders(2, LeaderLimits { most: 1, patience });
    let slot = three_requests_sent(&gate);
    let first = waiting_with(&gate, 3);
    let Ok(Acquired::Leads(beyond, place)) = first.join().unwrap() else { panic!("no lead") };
    assert_eq!(serve(&gate, beyond, &place), [3]);
    // One that waits for a permit that is not free is granted the first one that is returned.
    assert_eq!(gate.free(), 0);
    let second = waiting_with(&gate, 4);
    let has_waited = |entry: &QueueEntry<u32, (), ()>| {
        matches!(entry, QueueEntry::Group { is_impatient: true, .. })
    };
    while !lock(&gate.state).queue.iter().any(has_waited) {
        std::thread::yield_now();
    }
    // The other one leads still.
    gate.release(slot);
    let Ok(Acquired::Leads(slot, place)) = second.join().unwrap() else { panic!("no lead") };
    assert_eq!(serve(&gate, slot, &place), [4]);
    [slot, beyond].into_iter().for_each(|permit| gate.release(permit));
    assert_eq!((gate.free(), gate.waiting()), (2, 0));
}

#[test]
fn a_group_is_patient_while_leads_are_short() {
    let after_a_lead = |patience: Duration| {
        let gate = with_leaders(1, LeaderLimits { most: 1, patience: Some(patience) });
        let permit = try_lead(&gate).expect("a permit");
        gate.release(permit);
        let state = lock(&gate.state);
        state.patience(gate.leaders)
    };
    let (hour, shortest) = (Duration::from_secs(3_600), Duration::ZERO);
    assert_eq!(after_a_lead(hour), Some(8 * hour));
    assert_eq!(after_a_lead(shortest), Some(shortest));
}

/// Its lead has not ended, so its length is not known yet.
#[test]
fn a_group_is_not_patient_while_a_leader_is_silent() {
    let patience = Duration::from_millis(50);
    let gate = with_leaders(2, LeaderLimits { most: 1, patience: Some(patience) });
    let silent = try_lead(&gate).expect("a permit");
    let until = soon();
    while lock(&gate.state).patience(gate.leaders) != Some(patience) {
        assert!(Instant::now() < until, "it is patient for as long as the leader is silent");
        std::thread::yield_now();
    }
    gate.release(silent);
}

#[test]
fn a_leader_that_cannot_send_passes_the_lead_on() {
    let gate = with_groups(1);
    let slot = take(&gate, Duration::ZERO).unwrap();
    let (first, second) = (waiting_with(&gate, 1), waiting_with(&gate, 2));
    gate.release(slot);
    let Acquired::Leads(slot, place) = first.join().unwrap().unwrap() else { panic!("no lead") };
    gate.abandon_group(&place);
    gate.release(slot);
    let Acquired::Leads(slot, place) = second.join().unwrap().unwrap() else { panic!("no lead") };
    assert_eq!(taken(&gate, slot, &place), [2]);
    gate.release(slot);
    assert_eq!((gate.free(), gate.waiting()), (1, 0));
}

#[test]
fn a_leader_that_has_its_response_passes_on_what_is_left() {
    let gate = with_groups(1);
    let slot = take(&gate, Duration::ZERO).unwrap();
    let (first, others) = (waiting_with(&gate, 1), [2, 3].map(|nth| waiting_with(&gate, nth)));
    gate.release(slot);
    let Acquired::Leads(slot, place) = first.join().unwrap().unwrap() else { panic!("no lead") };
    let jobs = gate.take_group(slot, &place);
    for (nth, job) in jobs.iter().enumerate() {
        let request = job.take().unwrap();
        let submitter = if nth == 0 { job.settle(()) } else { job.requeue(request) };
        assert_eq!(submitter, Submitter::Waits);
    }
    assert_eq!(place.job.response(), Some(()));
    gate.abandon_group(&place);
    assert_eq!(gate.waiting(), 2);
    let [second, third] = others;
    gate.release(slot);
    let Acquired::Leads(slot, place) = second.join().unwrap().unwrap() else { panic!("no lead") };
    let jobs = gate.take_group(slot, &place);
    let requests: Vec<_> = jobs.iter().filter_map(|job| job.take()).collect();
    assert_eq!(requests, [2, 3]);
    jobs.iter().for_each(|job| assert_eq!(job.settle(()), Submitter::Waits));
    place.group.wake_members();
    assert!(matches!(third.join().unwrap(), Ok(Acquired::Response(()))));
    gate.release(slot);
    assert_eq!((gate.free(), gate.waiting()), (1, 0));
}

#[test]
fn closing_fails_every_waiting_call() {
    let gate = std::sync::Arc::new(FairSemaphore::new(1));
    let slot = take(&gate, Duration::ZERO).unwrap();
    let waiting = {
        let gate = gate.clone();
        std::thread::spawn(move || take(&gate, Duration::from_secs(20)))
    };
    while gate.waiting() == 0 {
        std::thread::yield_now();
    }
    gate.close();
    assert_eq!(waiting.join().unwrap(), Err(AcquireError::Closed));
    gate.release(slot);
    assert_eq!(take(&gate, Duration::ZERO), Err(AcquireError::Closed));
}
