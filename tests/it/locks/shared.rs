//! Read/write locks and semaphores: which callers may hold one together.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use crate::side::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::fixture::{is_lost, start};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

fn lock(fixture: &Fixture) -> RwLock {
    fixture.sessions.rw_lock("l")
}

#[test]
fn many_read_or_one_writes() {
    let fixture = start();
    let (here, there) = (lock(&fixture), fixture.other().rw_lock("l"));
    let first = here.read().try_acquire().unwrap().unwrap();
    let second = there.read().try_acquire().unwrap().unwrap();
    assert!(second.fencing_token() > first.fencing_token());
    assert!(here.write().try_acquire().unwrap().is_none());
    first.release().unwrap();
    assert!(there.write().try_acquire().unwrap().is_none(), "one reads still");
    second.release().unwrap();
    let writer = here.write().try_acquire().unwrap().unwrap();
    assert!(there.write().try_acquire().unwrap().is_none());
    assert!(there.read().try_acquire().unwrap().is_none());
    writer.release().unwrap();
    drop(there.read().try_acquire().unwrap().unwrap());
    assert!(fixture.sessions.lock("l").try_acquire().unwrap().is_some(), "another family of names");
}

#[test]
fn a_writer_that_leaves_lets_all_readers_in() {
    let fixture = start();
    let lock = lock(&fixture);
    let writer = lock.write().lease(LONG).try_acquire().unwrap().unwrap();
    let (guards, acquired) = mpsc::channel();
    for _ in 0..5 {
        let (read, guards) = (lock.read().lease(LONG), guards.clone());
        thread::spawn(move || guards.send(read.acquire(LONG).unwrap()));
    }
    fixture.wait_for_waiters(&fixture.sessions, 5);
    writer.release().unwrap();
    let readers: Vec<_> = (0..5).map(|_| acquired.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(fixture.server.ask::<usize>(&["ZCARD", "rediscope:rw:{l}"]), 5);
    drop(readers);
    drop(lock.write().try_acquire().unwrap().unwrap());
    assert_eq!((fixture.locks().waiting, fixture.locks().permits, fixture.locks().held), (0, 0, 0));
}

#[test]
fn a_writer_that_is_woken_in_vain_wakes_the_readers_that_can_use_it() {
    let fixture = start();
    let other = fixture.other();
    let lock = lock(&fixture);
    let writing = other.rw_lock("l").write().lease(LONG).try_acquire().unwrap().unwrap();
    let (guards, acquired) = mpsc::channel();
    let sides = [lock.write(), lock.read(), lock.read()];
    for (nth, side) in sides.into_iter().enumerate() {
        let (side, guards) = (side.lease(LONG), guards.clone());
        thread::spawn(move || guards.send((nth, side.acquire(LONG).unwrap())));
        eventually(SOON, "it waits", || fixture.locks().waiting == nth + 1);
    }
    fixture.wait_for_waiters(&fixture.sessions, 3);
    // A reader elsewhere is in before any caller here has looked.
    fixture.server.ask::<()>(&[
        "EVAL",
        "redis.call('DEL', KEYS[1]) \
         redis.call('ZADD', KEYS[1], 99999999999999, 'r-elsewhere') \
         redis.call('PUBLISH', KEYS[1] .. ':wake', '') return 'OK'",
        "1",
        "rediscope:rw:{l}",
    ]);
    let readers = [acquired.recv_timeout(SOON).unwrap(), acquired.recv_timeout(SOON).unwrap()];
    assert!(readers.iter().all(|(nth, _)| *nth > 0), "the writer waits on");
    is_lost(writing.release());
    drop(readers);
    fixture.server.ask::<i64>(&["DEL", "rediscope:rw:{l}"]);
    fixture.server.ask::<i64>(&["PUBLISH", "rediscope:rw:{l}:wake", ""]);
    acquired.recv_timeout(SOON).unwrap().1.release().unwrap();
}

#[test]
fn no_more_hold_a_semaphore_than_it_has_permits() {
    const PERMITS: usize = 3;
    let fixture = start();
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let others = [fixture.other(), fixture.other()];
    thread::scope(|scope| {
        for nth in 0..9 {
            let (sessions, inside, most) = (&others[nth % 2], &inside, &most);
            scope.spawn(move || {
                for _ in 0..15 {
                    let guard = sessions.semaphore("s", PERMITS as u32).acquire(SOON).unwrap();
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(guard);
                }
            });
        }
    });
    let most = most.into_inner();
    assert!((2..=PERMITS).contains(&most), "{most} at once");
    assert_eq!(fixture.server.ask::<usize>(&["ZCARD", "rediscope:sem:{s}"]), 0);
}

#[test]
fn releasing_twice_never_makes_a_surplus_permit() {
    let fixture = start();
    let lock = fixture.sessions.semaphore("s", 2).lease(LONG);
    let acquire = || lock.try_acquire().unwrap();
    let (first, second) = (acquire().unwrap(), acquire().unwrap());
    assert!(acquire().is_none());
    // The reply is lost and it is sent again.
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    first.release().unwrap();
    assert_eq!(fixture.proxy.fired(), 1);
    let third = acquire().unwrap();
    assert!(acquire().is_none(), "one was given back, one is to be had");
    // All are taken away, and given to others; then the old ones are released.
    lock.force_release().unwrap();
    let new = [acquire().unwrap(), acquire().unwrap()];
    is_lost(second.release());
    is_lost(third.release());
    assert!(acquire().is_none());
    drop(new);
    // Of one permit there are two guards.
    let guard = acquire().unwrap();
    let again = guard.share();
    guard.release().unwrap();
    let other = acquire().unwrap();
    assert!(acquire().is_none());
    drop((again, other));
    assert_eq!(fixture.server.ask::<usize>(&["ZCARD", "rediscope:sem:{s}"]), 0);
    assert_eq!(fixture.locks().held, 0);
}

#[test]
fn a_permit_whose_lease_is_over_is_anothers() {
    let fixture = start();
    let lock = fixture.sessions.semaphore("s", 2);
    let short = lock.clone().lease(Duration::from_millis(50)).fixed_lease();
    let (kept, over) = (lock.try_acquire().unwrap().unwrap(), short.acquire(SOON).unwrap());
    let next = lock.acquire(SOON).unwrap();
    is_lost(over.release());
    assert!(lock.try_acquire().unwrap().is_none());
    kept.ensure_held().unwrap();
    next.ensure_held().unwrap();
}
