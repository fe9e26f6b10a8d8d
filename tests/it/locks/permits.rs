//! The number of permits of a semaphore: kept while it has holders or waiters.
//!
//! Guarantee: locks

use super::fixture::start;
use crate::fixture::{LONG, SOON};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::Error;
use rediscope::error::{Applied, LockError};

use rediscope_testing::eventually;

fn semaphore(sessions: &SessionManager, permits: u32) -> crate::side::Lock {
    sessions.semaphore("s", permits).lease(LONG)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, numbers: (u32, u32)) {
    match result {
        Err(error @ Error::Lock(LockError::OtherPermits { asked, kept, .. })) => {
            assert_eq!((asked, kept), numbers);
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
            let text = error.to_string();
            assert!(
                text.contains(&asked.to_string()) && text.contains(&kept.to_string()),
                "{text}"
            );
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn another_number_is_refused_while_a_permit_is_held_and_holds_when_none_is() {
    let fixture = start();
    let other = fixture.other();
    for fair in [false, true] {
        let of = |sessions: &SessionManager, permits| match fair {
            true => semaphore(sessions, permits).fair(),
            false => semaphore(sessions, permits),
        };
        let (three, five, one) = (of(&fixture.sessions, 3), of(&other, 5), of(&other, 1));
        let first = three.acquire(SOON).unwrap();
        for wait in [Duration::ZERO, LONG] {
            refused(five.acquire(wait), (5, 3));
            refused(one.acquire(wait), (1, 3));
        }
        let second = of(&other, 3).acquire(SOON).unwrap();
        first.release().unwrap();
        refused(five.try_acquire(), (5, 3));
        second.release().unwrap();
        let many: Vec<_> = (0..5).map(|_| five.acquire(Duration::ZERO).unwrap()).collect();
        assert!(five.try_acquire().unwrap().is_none());
        refused(three.try_acquire(), (3, 5));
        drop(many);
        one.acquire(SOON).unwrap().release().unwrap();
        assert!(fixture.held_keys().is_empty(), "{:?}", fixture.held_keys());
    }
}

#[test]
fn the_number_is_kept_while_a_caller_waits_though_no_permit_is_held() {
    let fixture = start();
    let other = fixture.other();
    for fair in [false, true] {
        let of = |sessions: &SessionManager, permits| match fair {
            true => semaphore(sessions, permits).fair(),
            false => semaphore(sessions, permits),
        };
        let held = of(&other, 1).acquire(SOON).unwrap();
        let waits = of(&fixture.sessions, 1);
        let (acquired, guards) = mpsc::channel();
        // What it hears of is held up, so that it is a waiter when no permit is held.
        let waiter = thread::spawn(move || acquired.send(waits.acquire(LONG).unwrap()));
        fixture.wait_for_waiters(&fixture.sessions, 1);
        eventually(SOON, "the server knows of it", || {
            fixture.server.ask::<i64>(&["EXISTS", "rediscope:sem:{s}:alive"]) == 1
        });
        fixture.proxy.silence();
        held.release().unwrap();
        refused(of(&other, 2).try_acquire(), (2, 1));
        fixture.proxy.mute_new(false);
        fixture.proxy.release();
        fixture.proxy.cut_all();
        let guard = guards.recv_timeout(SOON).unwrap();
        waiter.join().unwrap().unwrap();
        refused(of(&other, 2).try_acquire(), (2, 1));
        guard.release().unwrap();
        eventually(SOON, "the next number holds", || match of(&other, 2).try_acquire() {
            Ok(Some(guard)) => guard.release().is_ok(),
            Ok(None) => false,
            Err(error) => {
                refused(Err::<(), _>(error), (2, 1));
                false
            }
        });
    }
}

#[test]
fn the_number_is_kept_for_a_waiter_when_the_semaphore_is_forced() {
    let fixture = start();
    let other = fixture.other();
    let held = semaphore(&other, 1).label("former").acquire(SOON).unwrap();
    let waits = semaphore(&fixture.sessions, 1);
    let waiter = thread::spawn(move || waits.acquire(LONG).unwrap());
    fixture.wait_for_waiters(&fixture.sessions, 1);
    eventually(SOON, "the server knows of it", || {
        fixture.server.ask::<i64>(&["EXISTS", "rediscope:sem:{s}:alive"]) == 1
    });
    fixture.proxy.silence();
    assert!(semaphore(&other, 1).force_release().unwrap());
    refused(semaphore(&other, 2).try_acquire(), (2, 1));
    let kept: Vec<String> = fixture.server.ask(&["HKEYS", "rediscope:sem:{s}:info"]);
    assert_eq!(kept, ["permits"]);
    assert!(fixture.server.ask::<i64>(&["PTTL", "rediscope:sem:{s}:info"]) > 0);
    fixture.proxy.mute_new(false);
    fixture.proxy.release();
    fixture.proxy.cut_all();
    waiter.join().unwrap().release().unwrap();
    drop(held);
    // Without a waiter, nothing is kept.
    let _held = semaphore(&other, 1).acquire(SOON).unwrap();
    assert!(semaphore(&other, 1).force_release().unwrap());
    semaphore(&other, 2).acquire(SOON).unwrap().release().unwrap();
}

#[test]
fn a_caller_that_gives_up_waiting_does_not_count_any_more() {
    let fixture = start();
    let one = semaphore(&fixture.sessions, 1);
    let held = one.acquire(SOON).unwrap();
    assert!(one.acquire(Duration::from_millis(30)).is_err());
    held.release().unwrap();
    semaphore(&fixture.other(), 2).acquire(Duration::ZERO).unwrap().release().unwrap();
    assert!(fixture.held_keys().is_empty());
}

#[test]
fn the_number_can_be_changed_at_once_and_no_held_permit_is_taken_away() {
    let fixture = start();
    let other = fixture.other();
    for fair in [false, true] {
        let of = |sessions: &SessionManager, permits| match fair {
            true => semaphore(sessions, permits).fair(),
            false => semaphore(sessions, permits),
        };
        let three = of(&fixture.sessions, 3);
        let mut held: Vec<_> = (0..3).map(|_| three.acquire(SOON).unwrap()).collect();
        let (acquired, guards) = mpsc::channel();
        for _ in 0..2 {
            let (waits, acquired) = (three.clone(), acquired.clone());
            thread::spawn(move || acquired.send(waits.acquire(LONG).unwrap()).unwrap());
        }
        fixture.wait_for_waiters(&fixture.sessions, 2);
        three.set_permits(5).unwrap();
        // The clones that wait have the new number, too.
        held.extend((0..2).map(|_| guards.recv_timeout(SOON).unwrap()));
        refused(of(&other, 3).try_acquire(), (3, 5));
        assert!(of(&other, 5).try_acquire().unwrap().is_none());
        // Fewer: no holder loses its permit, and the next caller is served when there is room.
        of(&other, 5).set_permits(2).unwrap();
        held.iter().for_each(|guard| guard.ensure_held().unwrap());
        refused(three.try_acquire(), (5, 2));
        let two = of(&other, 2);
        for _ in 0..3 {
            assert!(two.try_acquire().unwrap().is_none());
            held.pop().unwrap().release().unwrap();
        }
        assert!(two.try_acquire().unwrap().is_none(), "two are held");
        held.pop().unwrap().release().unwrap();
        let guard = two.acquire(SOON).unwrap();
        guard.release().unwrap();
        drop(held);
        assert!(fixture.held_keys().is_empty());
    }
}

#[test]
fn without_holders_and_waiters_there_is_no_number_to_change() {
    let fixture = start();
    let three = semaphore(&fixture.sessions, 3);
    three.set_permits(4).unwrap();
    assert!(fixture.held_keys().is_empty());
    semaphore(&fixture.other(), 3).acquire(SOON).unwrap().release().unwrap();
    let four: Vec<_> = (0..4).map(|_| three.acquire(Duration::ZERO).unwrap()).collect();
    assert!(three.try_acquire().unwrap().is_none());
    drop(four);
    for (lock, permits) in [
        (fixture.sessions.lock("l"), 2),
        (three.clone(), 0),
        (fixture.sessions.rw_lock("l").read(), 2),
    ] {
        let error = lock.set_permits(permits).unwrap_err();
        assert!(
            matches!(error, Error::Lock(LockError::Refused { setting: "permits", .. })),
            "{error:?}"
        );
    }
}

#[test]
fn a_number_outlives_no_lease_of_a_holder_that_died() {
    let fixture = start();
    let short = fixture.sessions.semaphore("s", 3).lease(Duration::from_secs(2)).fixed_lease();
    std::mem::forget(short.acquire(SOON).unwrap());
    refused(semaphore(&fixture.other(), 5).try_acquire(), (5, 3));
    eventually(SOON, "its lease is over", || {
        semaphore(&fixture.other(), 5).try_acquire().is_ok_and(|guard| guard.is_some())
    });
}
