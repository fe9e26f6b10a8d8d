//! A session manager is closed while locks are held.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::Error;
use rediscope::error::CheckoutError;

use super::fixture::{all_ways, every_kind, is_lost, start};
use rediscope_testing::{eventually, in_time};

/// Longer than a busy machine keeps a thread from extending it, each third of it.
const LEASE: Duration = Duration::from_millis(1500);
/// Tries until a callback came in time: a busy machine may keep a thread from running.
const TRIES: u32 = 5;

#[test]
fn a_lock_that_is_held_when_the_manager_is_closed_is_released_as_before() {
    for (way, fixture) in all_ways() {
        let kinds = every_kind(&fixture.sessions);
        let mut guards: Vec<_> =
            kinds.iter().map(|(_, lock)| lock.clone().lease(LONG).acquire(SOON).unwrap()).collect();
        let closed = fixture.sessions.close(Duration::ZERO);
        assert_eq!((closed.scopes, closed.locks), (0, guards.len()), "{way}");
        assert_eq!(closed.to_string(), "0 scopes, 6 locks");
        let refused = kinds[0].1.try_acquire();
        assert!(matches!(refused, Err(Error::Checkout(CheckoutError::Closed))), "{refused:?}");
        assert!(matches!(kinds[0].1.holder(), Err(Error::Checkout(CheckoutError::Closed))));
        let begun = Instant::now();
        // By release, by a second guard, by a drop, in a panic, on another thread.
        guards.iter().for_each(|guard| guard.ensure_held().unwrap());
        guards.pop().unwrap().release().unwrap();
        let second = guards.last().unwrap().share();
        guards.pop().unwrap().release().unwrap();
        second.release().unwrap();
        drop(guards.pop());
        let dropped = guards.pop().unwrap();
        let _: Result<(), _> = std::panic::catch_unwind(move || {
            let _dropped = dropped;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        thread::spawn(move || guards.into_iter().for_each(|guard| guard.release().unwrap()))
            .join()
            .unwrap();
        assert!(fixture.held_keys().is_empty(), "{way}: {:?}", fixture.held_keys());
        assert!(begun.elapsed() < SOON);
        assert_eq!((fixture.locks().held, fixture.locks().lost), (0, 0), "{way}");
        eventually(SOON, "the connection went with the last of them", || {
            fixture.server.clients() == 0
        });
    }
}

#[test]
fn closing_waits_for_locks_that_are_released_in_time_and_extends_them_meanwhile() {
    let fixture = start();
    let guard = fixture.sessions.lock("l").lease(LEASE).acquire(SOON).unwrap();
    let sessions = fixture.sessions.clone();
    let closing = thread::spawn(move || sessions.close(SOON));
    let begun = Instant::now();
    eventually(SOON, "it is extended past its end", || {
        assert!(!guard.is_lost());
        begun.elapsed() > 2 * LEASE && fixture.locks().renewals >= 3
    });
    assert!(!closing.is_finished(), "it waits for the lock");
    guard.release().unwrap();
    let closed = in_time(SOON, "it ends with the lock", move || closing.join().unwrap());
    assert_eq!(closed, rediscope::status::Closed::default());
    eventually(SOON, "no connection is left", || fixture.server.clients() == 0);
}

#[test]
fn a_lock_is_never_taken_from_a_living_guard_and_is_lost_before_its_lease_ends() {
    let fixture = start();
    for fixed in [false, true] {
        let late: Vec<_> =
            (0..TRIES).map_while(|_| loss_reported_late_by(&fixture, fixed)).collect();
        assert!(late.len() < TRIES as usize, "fixed: {fixed}, reported {late:?} too late");
    }
}

/// By how much.
fn loss_reported_late_by(fixture: &Fixture, fixed: bool) -> Option<Duration> {
    let sessions = fixture.other();
    let lock = sessions.lock("l").lease(LEASE);
    let lock = if fixed { lock.fixed_lease() } else { lock };
    let guard = lock.acquire(SOON).unwrap();
    let (lost, when) = mpsc::channel();
    guard.on_lost(move || lost.send(Instant::now()).unwrap());
    assert_eq!(sessions.close(Duration::from_millis(10)).locks, 1);
    assert!(!guard.is_lost(), "its lease runs");
    guard.ensure_held().unwrap();
    let renewals = sessions.status().locks.renewals;
    let ended = fixture.held_until();
    let reported = when.recv_timeout(SOON).unwrap();
    assert!(guard.is_lost());
    is_lost(guard.ensure_held());
    assert_eq!(sessions.status().locks.renewals, renewals, "it was extended");
    is_lost(guard.release());
    assert_eq!(sessions.close(Duration::ZERO), rediscope::status::Closed::default());
    reported.checked_duration_since(ended).filter(|late| !late.is_zero())
}

#[test]
fn the_connection_for_releases_ends_with_the_lease_of_a_guard_that_was_forgotten() {
    let fixture = start();
    let sessions = fixture.other();
    std::mem::forget(sessions.lock("l").lease(LEASE).acquire(SOON).unwrap());
    assert_eq!(sessions.close(Duration::ZERO).locks, 1);
    eventually(SOON, "only the one for releases is left", || fixture.server.clients() == 1);
    eventually(SOON, "it is closed", || fixture.server.clients() == 0);
    // The guard's own lease ends before the one on the server.
    eventually(SOON, "the lease ends on the server", || fixture.holders() == 0);
}

#[test]
fn releases_that_are_pending_when_the_manager_is_closed_are_sent() {
    let fixture = start();
    let guard = fixture.sessions.lock("l").lease(LONG).acquire(SOON).unwrap();
    let second = fixture.sessions.lock("m").lease(LONG).acquire(SOON).unwrap();
    fixture.proxy.close_listener();
    fixture.proxy.cut_all();
    drop(second);
    assert_eq!(fixture.sessions.close(Duration::ZERO).locks, 1);
    drop(guard);
    assert_eq!(fixture.held_keys().len(), 2);
    fixture.proxy.reopen_listener();
    eventually(SOON, "both are given back in the background", || fixture.held_keys().is_empty());
    eventually(SOON, "no connection is left", || fixture.server.clients() == 0);
}

#[test]
fn an_acquisition_that_waits_when_the_manager_is_closed_ends_and_leaves_nothing() {
    let fixture = start();
    let other = fixture.other();
    let guard = other.lock("fair").fair().lease(LONG).acquire(SOON).unwrap();
    let lock = fixture.sessions.lock("fair").fair();
    let waiter = thread::spawn(move || lock.acquire(LONG).map(drop));
    fixture.wait_for_waiters(&fixture.sessions, 1);
    let sessions = fixture.sessions.clone();
    let closed = in_time(SOON, "it closes", move || sessions.close(SOON));
    assert_eq!(closed, rediscope::status::Closed::default());
    let ended = in_time(SOON, "the wait is over", move || waiter.join().unwrap());
    assert!(matches!(ended, Err(Error::Checkout(CheckoutError::Closed))), "{ended:?}");
    eventually(SOON, "it is not in line any more", || {
        fixture.server.ask::<i64>(&["EXISTS", "rediscope:lock:{fair}:queue"]) == 0
    });
    guard.release().unwrap();
}

#[test]
fn a_release_after_the_close_began_gives_the_lock_to_no_waiting_call() {
    for _ in 0..TRIES {
        let fixture = start();
        let lock = fixture.sessions.lock("l").lease(LONG);
        let guard = lock.acquire(SOON).unwrap();
        let waiter = thread::spawn(move || lock.acquire(LONG).map(drop));
        fixture.wait_for_waiters(&fixture.sessions, 1);
        let sessions = fixture.sessions.clone();
        let closing = thread::spawn(move || sessions.close(SOON));
        let begun = Instant::now();
        while fixture.sessions.lock("m").holder().is_ok() {
            assert!(begun.elapsed() < SOON, "the close begins");
        }
        guard.release().unwrap();
        let ended = in_time(SOON, "the wait is over", move || waiter.join().unwrap());
        assert!(matches!(ended, Err(Error::Checkout(CheckoutError::Closed))), "{ended:?}");
        assert_eq!(closing.join().unwrap(), rediscope::status::Closed::default());
        assert_eq!(fixture.holders(), 0);
    }
}
