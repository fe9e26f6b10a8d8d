//! A session manager is closed while locks are held.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{CheckoutError, LockError};

use super::stage::{LONG, SOON, Stage, every_kind, is_lost};
use rediscope_testing::{eventually, in_time};

/// Longer than a busy machine keeps a thread from extending it, each third of it.
const LEASE: Duration = Duration::from_millis(1500);
/// Tries until a callback came in time: a busy machine may keep a thread from running.
const TRIES: u32 = 5;

#[test]
fn a_lock_that_is_held_when_the_manager_is_closed_is_released_as_before() {
    for (way, stage) in Stage::all_ways() {
        let kinds = every_kind(&stage.sessions);
        let mut guards: Vec<_> =
            kinds.iter().map(|(_, lock)| lock.clone().lease(LONG).acquire(SOON).unwrap()).collect();
        let closed = stage.sessions.close(Duration::ZERO);
        assert_eq!((closed.scopes, closed.locks), (0, guards.len()), "{way}");
        assert_eq!(closed.to_string(), "0 scopes, 6 locks");
        let refused = kinds[0].1.try_acquire();
        assert!(matches!(refused, Err(LockError::Checkout(CheckoutError::Closed))), "{refused:?}");
        assert!(matches!(kinds[0].1.holder(), Err(LockError::Checkout(CheckoutError::Closed))));
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
        assert!(stage.held_keys().is_empty(), "{way}: {:?}", stage.held_keys());
        assert!(begun.elapsed() < SOON);
        assert_eq!((stage.locks().held, stage.locks().lost), (0, 0), "{way}");
        eventually(SOON, "the connection went with the last of them", || {
            stage.server.clients() == 0
        });
    }
}

#[test]
fn closing_waits_for_locks_that_are_released_in_time_and_extends_them_meanwhile() {
    let stage = Stage::new();
    let guard = stage.sessions.lock("l").lease(LEASE).acquire(SOON).unwrap();
    let sessions = stage.sessions.clone();
    let closing = thread::spawn(move || sessions.close(SOON));
    let begun = Instant::now();
    eventually(SOON, "it is extended past its end", || {
        assert!(!guard.is_lost());
        begun.elapsed() > 2 * LEASE && stage.locks().renewals >= 3
    });
    assert!(!closing.is_finished(), "it waits for the lock");
    guard.release().unwrap();
    let closed = in_time(SOON, "it ends with the lock", move || closing.join().unwrap());
    assert_eq!(closed, rediscope::Closed::default());
    eventually(SOON, "no connection is left", || stage.server.clients() == 0);
}

#[test]
fn a_lock_is_never_taken_from_a_living_guard_and_is_lost_before_its_lease_ends() {
    let stage = Stage::new();
    for fixed in [false, true] {
        let late: Vec<_> = (0..TRIES).map_while(|_| told_too_late(&stage, fixed)).collect();
        assert!(late.len() < TRIES as usize, "fixed: {fixed}, told {late:?} too late");
    }
}

/// By how much.
fn told_too_late(stage: &Stage, fixed: bool) -> Option<Duration> {
    let sessions = stage.other();
    let lock = sessions.lock("l").lease(LEASE);
    let lock = if fixed { lock.fixed_lease() } else { lock };
    let guard = lock.acquire(SOON).unwrap();
    let (lost, when) = mpsc::channel();
    guard.on_lost(move || lost.send(Instant::now()).unwrap());
    assert_eq!(sessions.close(Duration::from_millis(10)).locks, 1);
    assert!(!guard.is_lost(), "its lease runs");
    guard.ensure_held().unwrap();
    let renewals = sessions.status().locks.renewals;
    let ended = stage.held_until();
    let told = when.recv_timeout(SOON).unwrap();
    assert!(guard.is_lost());
    is_lost(guard.ensure_held());
    assert_eq!(sessions.status().locks.renewals, renewals, "it was extended");
    is_lost(guard.release());
    assert_eq!(sessions.close(Duration::ZERO), rediscope::Closed::default());
    told.checked_duration_since(ended).filter(|late| !late.is_zero())
}

#[test]
fn the_connection_for_releases_ends_with_the_lease_of_a_guard_that_was_forgotten() {
    let stage = Stage::new();
    let sessions = stage.other();
    std::mem::forget(sessions.lock("l").lease(LEASE).acquire(SOON).unwrap());
    assert_eq!(sessions.close(Duration::ZERO).locks, 1);
    eventually(SOON, "only the one for releases is left", || stage.server.clients() == 1);
    eventually(SOON, "it is closed", || stage.server.clients() == 0);
    assert_eq!(stage.holders(), 0);
}

#[test]
fn what_is_to_be_given_back_when_the_manager_is_closed_is_given_back() {
    let stage = Stage::new();
    let guard = stage.sessions.lock("l").lease(LONG).acquire(SOON).unwrap();
    let second = stage.sessions.lock("m").lease(LONG).acquire(SOON).unwrap();
    stage.proxy.close_listener();
    stage.proxy.cut_all();
    drop(second);
    assert_eq!(stage.sessions.close(Duration::ZERO).locks, 1);
    drop(guard);
    assert_eq!(stage.held_keys().len(), 2);
    stage.proxy.reopen_listener();
    eventually(SOON, "both are given back in the background", || stage.held_keys().is_empty());
    eventually(SOON, "no connection is left", || stage.server.clients() == 0);
}

#[test]
fn an_acquisition_that_waits_when_the_manager_is_closed_ends_and_leaves_nothing() {
    let stage = Stage::new();
    let other = stage.other();
    let guard = other.lock("fair").fair().lease(LONG).acquire(SOON).unwrap();
    let lock = stage.sessions.lock("fair").fair();
    let waiter = thread::spawn(move || lock.acquire(LONG).map(drop));
    stage.somebody_waits(&stage.sessions, 1);
    let sessions = stage.sessions.clone();
    let closed = in_time(SOON, "it closes", move || sessions.close(SOON));
    assert_eq!(closed, rediscope::Closed::default());
    let ended = in_time(SOON, "the wait is over", move || waiter.join().unwrap());
    assert!(matches!(ended, Err(LockError::Checkout(CheckoutError::Closed))), "{ended:?}");
    eventually(SOON, "it is not in line any more", || {
        stage.server.ask::<i64>(&["EXISTS", "rediscope:lock:{fair}:queue"]) == 0
    });
    guard.release().unwrap();
}
