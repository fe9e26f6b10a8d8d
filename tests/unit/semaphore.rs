//! The semaphore with real threads, for cases in which one order of events is enough.
//!
//! Orders that depend on the scheduler are the subject of the models.

use std::convert::Infallible;
use std::time::Duration;

use super::*;

type FairSemaphore = crate::pool::semaphore::FairSemaphore<u32, ()>;

impl Batchable for u32 {
    fn yields_before_wait(&self) -> bool {
        true
    }
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
    let gate = std::sync::Arc::new(FairSemaphore::new(1));
    let slot = take(&gate, Duration::ZERO).unwrap();
    let patience = Duration::from_millis(50);
    let waiting = {
        let gate = gate.clone();
        // The caller may sleep until then before it sees that its job was taken.
        let soon = Instant::now() + Duration::from_secs(5);
        std::thread::spawn(move || gate.acquire_batched(7, soon, patience, |_| Ok::<(), ()>(())))
    };
    while gate.waiting() == 0 {
        std::thread::yield_now();
    }
    let taken = gate.take_batch(|_| true);
    assert_eq!(
        taken.iter().map(|member| member.with_request(|request| *request)).collect::<Vec<_>>(),
        [Some(7)]
    );
    // It is delayed, and settles the job after its caller has left.
    assert_eq!(waiting.join().unwrap(), Ok(Acquired::Response(())));
    drop(taken);
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
