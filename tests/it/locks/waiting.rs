//! A waiter is woken by a release, and at the latest by polling.
//!
//! The leases here are longer than any test: a waiter that acquires the lock was woken, or polled.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use crate::side::BuildSide as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::side::{LockGuard, SessionManager};
use rediscope::Error;
use rediscope::error::{CheckoutError, LockError};
use rediscope::prelude::*;

use super::fixture::{quick, start, timed_out};
use rediscope_testing::{eventually, in_time};

fn holds(sessions: &SessionManager) -> LockGuard {
    sessions.lock("l").lease(LONG).try_acquire().unwrap().unwrap()
}

/// Starts this number of waiters, each of which sends its guard.
fn waiters(sessions: &SessionManager, how_many: usize) -> mpsc::Receiver<LockGuard> {
    let (guards, acquired) = mpsc::channel();
    for _ in 0..how_many {
        let (lock, guards) = (sessions.lock("l").lease(LONG), guards.clone());
        thread::spawn(move || guards.send(lock.acquire(LONG).unwrap()));
    }
    acquired
}

#[test]
fn a_release_wakes_a_waiter_in_this_process_and_in_another() {
    let fixture = start();
    let other = fixture.other();
    for (holder, waiting) in [(&fixture.sessions, &fixture.sessions), (&other, &fixture.sessions)] {
        let guard = holds(holder);
        let acquired = waiters(waiting, 1);
        fixture.wait_for_waiters(waiting, 1);
        guard.release().unwrap();
        acquired.recv_timeout(SOON).unwrap().release().unwrap();
    }
    assert_eq!((fixture.locks().waiting, fixture.locks().permits, fixture.locks().held), (0, 0, 0));
}

#[test]
fn a_release_wakes_one_waiter_of_a_process_and_the_next_release_the_next() {
    let fixture = start();
    let guard = holds(&fixture.other());
    let acquired = waiters(&fixture.sessions, 6);
    fixture.wait_for_waiters(&fixture.sessions, 6);
    no_waiter_polls(&fixture);
    fixture.server.reset_stats();
    guard.release().unwrap();
    let mut guard = acquired.recv_timeout(SOON).unwrap();
    assert_eq!(fixture.server.calls("evalsha"), 2, "one releases and one asks");
    // In the same process the release gives the lock to the next waiter.
    for left in (0..5).rev() {
        eventually(SOON, "the others wait on", || fixture.locks().waiting == left + 1);
        fixture.server.reset_stats();
        let before = guard.fencing_token();
        guard.release().unwrap();
        guard = acquired.recv_timeout(SOON).unwrap();
        assert!(guard.fencing_token() > before && guard.ensure_held().is_ok());
        let [calls, messages] = ["evalsha", "publish"].map(|name| fixture.server.calls(name));
        assert_eq!((calls, messages), (2, 0), "one releases for both, and one checks it");
        assert_eq!(fixture.holders(), 1);
    }
    guard.release().unwrap();
    assert_eq!((fixture.holders(), fixture.locks().waiting, fixture.locks().held), (0, 0, 0));
}

/// Waits until every waiter has looked again since the subscription was made.
fn no_waiter_polls(fixture: &Fixture) {
    let mut asked = 0;
    eventually(SOON, "no waiter polls any more", || {
        thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut asked, fixture.server.calls("evalsha"));
        asked == before
    });
}

/// A server that is short of memory serves releases and no acquisitions.
#[test]
fn a_woken_waiter_that_leaves_after_its_request_failed_wakes_the_next_one() {
    let fixture = start();
    let guard = holds(&fixture.other());
    let lock = fixture.sessions.lock("l").lease(LONG);
    let first = thread::spawn(move || lock.acquire(Duration::from_secs(3)).map(drop));
    fixture.wait_for_waiters(&fixture.sessions, 1);
    let acquired = waiters(&fixture.sessions, 1);
    fixture.wait_for_waiters(&fixture.sessions, 2);
    no_waiter_polls(&fixture);
    fixture.server.config_set("maxmemory", "1");
    guard.release().unwrap();
    first.join().unwrap().unwrap_err();
    fixture.server.config_set("maxmemory", "0");
    acquired.recv_timeout(SOON).unwrap().release().unwrap();
}

#[test]
fn a_lock_given_with_a_shorter_lease_is_free_after_it() {
    let fixture = start();
    let other = fixture.other();
    let guard = holds(&fixture.sessions);
    let short = fixture.sessions.lock("l").lease(Duration::from_millis(600)).fixed_lease();
    let given = thread::spawn(move || std::mem::forget(short.acquire(LONG).unwrap()));
    fixture.wait_for_waiters(&fixture.sessions, 1);
    let lock = other.lock("l").lease(LONG);
    let waiter = thread::spawn(move || lock.acquire(Duration::from_secs(10)));
    fixture.wait_for_waiters(&other, 1);
    no_waiter_polls(&fixture);
    let published = fixture.server.calls("publish");
    guard.release().unwrap();
    given.join().unwrap();
    assert!(fixture.server.calls("publish") > published, "the new end was published");
    waiter.join().unwrap().unwrap().release().unwrap();
}

#[test]
fn a_lock_that_goes_round_in_one_process_comes_to_another_one() {
    let fixture = start();
    let ends = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..3)
        .map(|_| {
            let (lock, ends) = (fixture.sessions.lock("l").lease(LONG), Arc::clone(&ends));
            thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    lock.acquire(LONG).unwrap().release().unwrap();
                }
            })
        })
        .collect();
    eventually(SOON, "they wait for each other", || fixture.locks().waiting > 0);
    let other = fixture.other();
    for guard in waiters(&other, 2).iter() {
        guard.release().unwrap();
    }
    ends.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((fixture.holders(), fixture.locks().waiting), (0, 0));
}

#[test]
fn one_connection_listens_for_all_locks_and_closes_when_no_caller_waits() {
    let fixture = start();
    let names: Vec<_> = (0..10).map(|nth| format!("n{nth}")).collect();
    let lock = |name: &String| fixture.sessions.lock(name).lease(LONG);
    let guards: Vec<_> = names.iter().map(|n| lock(n).try_acquire().unwrap().unwrap()).collect();
    thread::scope(|scope| {
        for name in &names {
            let lock = lock(name);
            scope.spawn(move || drop(lock.acquire(LONG).unwrap()));
        }
        eventually(SOON, "all are subscribed to", || fixture.locks().subscriptions == 10);
        assert_eq!(fixture.server.subscribers(), 1);
        assert_eq!(fixture.subscribers_of("rediscope:lock:{n3}:wake"), 1);
        drop(guards);
    });
    eventually(SOON, "nothing is subscribed to", || {
        fixture.subscribers_of("rediscope:lock:{n3}:wake") == 0
            && fixture.locks().subscriptions == 0
    });
    assert_eq!((fixture.locks().waiting, fixture.locks().permits), (0, 0));
}

#[test]
fn waiting_survives_the_death_of_the_subscriber_connection() {
    let fixture = start();
    let guard = holds(&fixture.sessions);
    let acquired = waiters(&fixture.sessions, 3);
    fixture.wait_for_waiters(&fixture.sessions, 3);
    for _ in 0..3 {
        assert_eq!(fixture.server.ask::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]), 1);
        eventually(SOON, "it comes back by itself", || {
            fixture.subscribers_of("rediscope:lock:{l}:wake") == 1
        });
    }
    guard.release().unwrap();
    for _ in 0..3 {
        acquired.recv_timeout(SOON).unwrap().release().unwrap();
    }
    assert_eq!((fixture.locks().waiting, fixture.locks().permits), (0, 0));
}

#[test]
fn a_subscriber_connection_that_has_gone_silent_is_found_out() {
    let fixture = start();
    let guard = holds(&fixture.other());
    let acquired = waiters(&fixture.sessions, 1);
    fixture.wait_for_waiters(&fixture.sessions, 1);
    fixture.proxy.black_hole_all();
    guard.release().unwrap();
    acquired.recv_timeout(SOON).unwrap().release().unwrap();
}

#[test]
fn without_a_subscription_waiters_poll() {
    let fixture = start();
    fixture.server.acl(&["SETUSER", "default", "-subscribe"]);
    let guard = holds(&fixture.other());
    let acquired = waiters(&fixture.sessions, 2);
    eventually(SOON, "they wait", || fixture.locks().waiting == 2);
    guard.release().unwrap();
    for _ in 0..2 {
        acquired.recv_timeout(SOON).unwrap().release().unwrap();
    }
    assert_eq!(fixture.locks().subscriptions, 0);
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    let fixture = start();
    let guard = holds(&fixture.sessions);
    let acquired = waiters(&fixture.sessions, 2);
    fixture.wait_for_waiters(&fixture.sessions, 2);
    fixture.server.restart_on_same_port();
    // It came back empty.
    acquired.recv_timeout(SOON).unwrap().release().unwrap();
    acquired.recv_timeout(SOON).unwrap().release().unwrap();
    assert!(matches!(guard.release(), Err(Error::Lock(LockError::Lost { .. }))));
    assert_eq!((fixture.locks().waiting, fixture.locks().permits), (0, 0));
}

#[test]
fn the_other_protocol_and_a_unix_socket_wake_as_well() {
    let fixture = start();
    let resp3 = format!("{}?protocol=resp3", fixture.server.url());
    for url in [resp3, fixture.server.unix_url()] {
        let sessions = quick(&url).build_side().unwrap();
        let guard = holds(&fixture.sessions);
        let acquired = waiters(&sessions, 2);
        fixture.wait_for_waiters(&sessions, 2);
        let other = sessions.lock("m").lease(LONG);
        let held = other.try_acquire().unwrap().unwrap();
        let waiter = thread::spawn(move || other.acquire(LONG).map(drop));
        eventually(SOON, "both are subscribed to", || sessions.status().locks.subscriptions == 2);
        let fenced = sessions.transactional().fenced_by(&held);
        fenced.run(|tx| Ok(tx.incr("n", 1))).unwrap();
        held.release().unwrap();
        waiter.join().unwrap().unwrap();
        guard.release().unwrap();
        for _ in 0..2 {
            acquired.recv_timeout(SOON).unwrap().release().unwrap();
        }
        // A silent connection is checked, and stays.
        let guard = holds(&fixture.sessions);
        let acquired = waiters(&sessions, 1);
        fixture.wait_for_waiters(&sessions, 1);
        fixture.server.reset_stats();
        eventually(SOON, "it is checked", || fixture.server.calls("ping") > 0);
        guard.release().unwrap();
        acquired.recv_timeout(SOON).unwrap().release().unwrap();
        assert_eq!(fixture.server.calls("subscribe"), 0, "it was not replaced");
    }
}

#[test]
fn no_wait_is_longer_than_its_timeout_and_one_round_trip() {
    let fixture = start();
    let guard = holds(&fixture.sessions);
    let lock = fixture.sessions.lock("l");
    timed_out(lock.acquire(Duration::from_millis(30)));
    fixture.server.sigstop();
    let waiting = lock.clone();
    let waited = in_time(SOON, "it gives up", move || {
        let begun = Instant::now();
        assert!(waiting.acquire(Duration::from_millis(300)).is_err());
        begun.elapsed()
    });
    fixture.server.sigcont();
    // 300 ms, a response_timeout of 1 s, and a machine that is busy.
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    guard.release().unwrap();
    eventually(SOON, "nothing is left behind", || fixture.holders() == 0);
    drop(lock.acquire(SOON).unwrap());
}

#[test]
fn closing_the_manager_ends_every_wait() {
    let fixture = start();
    let other = fixture.other();
    let guard = holds(&other);
    let lock = fixture.sessions.lock("l");
    let waiter = thread::spawn(move || lock.acquire(LONG).map(drop));
    fixture.wait_for_waiters(&fixture.sessions, 1);
    fixture.sessions.close(Duration::ZERO);
    let ended = in_time(SOON, "the wait is over", move || waiter.join().unwrap());
    assert!(matches!(ended, Err(Error::Checkout(CheckoutError::Closed))), "{ended:?}");
    guard.release().unwrap();
}
