//! Leases are extended while their holder lives, and a lost lease is reported in time.
//!
//! Guarantee: locks

use crate::fixture::{LONG, SOON};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::Error;
use rediscope::error::LockError;

use super::fixture::{is_lost, start, start_with};
use rediscope_testing::eventually;

/// Longer than a busy machine keeps a thread from extending it, each third of it.
const LEASE: Duration = Duration::from_millis(1500);
/// Not extended.
const SHORT: Duration = Duration::from_millis(300);
/// Tries until a callback came in time: a busy machine may keep a thread from running.
const TRIES: u32 = 5;

#[test]
fn a_lease_is_extended_for_as_long_as_the_guard_lives() {
    let fixture = start();
    let lock = fixture.sessions.lock("l").lease(LEASE);
    let guard = lock.try_acquire().unwrap().unwrap();
    let begun = Instant::now();
    eventually(SOON, "it was extended past its first end", || {
        assert!(!guard.is_lost());
        assert_eq!(fixture.holders(), 1);
        begun.elapsed() > 2 * LEASE && fixture.locks().renewals >= 5
    });
    guard.release().unwrap();
    let extended = fixture.locks().renewals;
    assert_eq!(fixture.holders(), 0);
    let next = lock.lease(SHORT).fixed_lease().acquire(SOON).unwrap();
    eventually(SOON, "a fixed lease is over", || next.is_lost());
    assert_eq!(fixture.locks().renewals, extended, "a released or fixed lease is not extended");
    is_lost(next.release());
}

#[test]
fn leases_of_many_locks_are_extended_in_one_write() {
    let fixture = start();
    let guards: Vec<_> = (0..20)
        .map(|nth| fixture.sessions.lock(format!("many {nth}")).lease(LEASE))
        .map(|lock| lock.try_acquire().unwrap().unwrap())
        .collect();
    let turns = fixture.proxy.turns();
    eventually(SOON, "all were extended", || fixture.locks().renewals >= 20);
    assert!(fixture.proxy.turns() - turns <= 10, "{} round trips", fixture.proxy.turns() - turns);
    assert!(guards.iter().all(|guard| !guard.is_lost()));
    assert_eq!(fixture.locks().held, 20);
}

#[test]
fn a_lease_that_cannot_be_extended_is_lost_before_it_ends_on_the_server() {
    for paused in [false, true] {
        let late: Vec<_> = (0..TRIES).map_while(|_| loss_reported_late_by(paused)).collect();
        assert!(late.len() < TRIES as usize, "paused: {paused}, reported {late:?} too late");
    }
}

/// By how much.
fn loss_reported_late_by(paused: bool) -> Option<Duration> {
    let fixture = start();
    let guard = fixture.sessions.lock("l").lease(LEASE).try_acquire().unwrap().unwrap();
    let (reported, when) = mpsc::channel();
    guard.on_lost(move || reported.send(Instant::now()).unwrap());
    if paused {
        fixture.server.pause_writes(5_000);
    } else {
        fixture.proxy.silence();
    }
    let ended = fixture.held_until();
    let reported = when.recv_timeout(SOON).unwrap();
    assert!(guard.is_lost());
    is_lost(guard.ensure_held());
    fixture.proxy.mute_new(false);
    fixture.proxy.cut_all();
    fixture.server.unpause();
    is_lost(guard.release());
    assert_eq!(fixture.locks().lost, 1);
    reported.checked_duration_since(ended).filter(|late| !late.is_zero())
}

#[test]
fn a_pool_that_is_busy_keeps_neither_renewals_nor_releases_nor_acquisitions_waiting() {
    let fixture = start_with(|builder| builder.max_size(8));
    let guard = fixture.sessions.lock("l").lease(LEASE).try_acquire().unwrap().unwrap();
    let lost = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&lost);
    guard.on_lost(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let consumers: Vec<_> = (0..8)
        .map(|_| {
            let mut db = fixture.sessions.pooled();
            thread::spawn(move || redis::Commands::blpop::<_, Vec<String>>(&mut db, "jobs", 60.0))
        })
        .collect();
    eventually(SOON, "every connection waits for a job", || {
        fixture.sessions.status().pooled.in_use == 8
            && fixture.server.info("blocked_clients").as_deref() == Some("8")
    });
    // Nothing is free: this one goes over the connection for renewals.
    let late = fixture.sessions.lock("late").lease(LEASE).acquire(SOON).unwrap();
    let begun = Instant::now();
    eventually(SOON, "both are extended past their ends", || {
        assert!(!guard.is_lost() && !late.is_lost());
        begun.elapsed() > 2 * LEASE && fixture.locks().renewals >= 5
    });
    guard.ensure_held().unwrap();
    late.release().unwrap();
    guard.release().unwrap();
    assert_eq!((lost.load(Ordering::SeqCst), fixture.holders(), fixture.locks().lost), (0, 0, 0));
    let jobs: Vec<String> = (0..8).map(|nth| nth.to_string()).collect();
    let jobs: Vec<&str> = ["RPUSH", "jobs"].into_iter().chain(jobs.iter().map(|j| &**j)).collect();
    fixture.server.ask::<i64>(&jobs);
    consumers.into_iter().for_each(|consumer| drop(consumer.join().unwrap().unwrap()));
}

#[test]
fn a_silent_connection_for_renewals_is_replaced_before_a_lock_is_lost() {
    let fixture = start();
    let lease = 2 * LEASE;
    let guards: Vec<_> = (0..4)
        .map(|nth| {
            fixture.sessions.lock(format!("silent {nth}")).lease(lease).acquire(SOON).unwrap()
        })
        .collect();
    eventually(SOON, "they are extended once", || fixture.locks().renewals >= 4);
    let silent = fixture.proxy.connections();
    fixture.proxy.black_hole_all();
    let (before, begun) = (fixture.locks().renewals, Instant::now());
    eventually(SOON, "they are extended on another one", || {
        fixture.locks().renewals >= before + 8 && begun.elapsed() > lease
    });
    assert!(silent > 0 && guards.iter().all(|guard| !guard.is_lost()));
    assert_eq!(fixture.locks().lost, 0);
    guards.into_iter().for_each(|guard| guard.release().unwrap());
    fixture.proxy.release();
}

#[test]
fn a_process_stopped_past_its_lease_sees_the_loss_first_and_sends_nothing() {
    let fixture = start();
    let lock = fixture.sessions.lock("l").lease(SHORT).fixed_lease();
    let guard = lock.acquire(SOON).unwrap();
    // As after SIGSTOP: nothing of this process's has run meanwhile that could have noticed.
    thread::sleep(SHORT * 3 / 2);
    let commands = fixture.proxy.commands();
    is_lost(guard.ensure_held());
    assert_eq!(fixture.proxy.commands(), commands);
    is_lost(guard.release());
}

#[test]
fn a_fixed_lease_ends_whatever_its_holder_does() {
    let fixture = start();
    let begun = Instant::now();
    let guard = fixture.sessions.lock("l").lease(LEASE).fixed_lease().acquire(SOON).unwrap();
    let ends = || -> Vec<String> {
        fixture.server.ask(&["ZRANGE", "rediscope:lock:{l}", "0", "0", "WITHSCORES"])
    };
    let before = ends();
    let mut asked = 0;
    eventually(SOON, "it ends", || {
        asked += 1;
        guard.ensure_held().is_err()
    });
    assert!(asked > 5, "{asked} times, {:?}", begun.elapsed());
    assert!(guard.is_lost() && begun.elapsed() > LEASE / 2);
    let after = ends();
    assert!(after.is_empty() || after == before, "it was extended");
    is_lost(guard.release());
}

#[test]
fn another_guard_of_a_fixed_lease_extends_it_no_more_than_the_first() {
    let fixture = start();
    let semaphore = fixture.sessions.semaphore("s", 2).lease(SHORT).fixed_lease();
    let reading = fixture.sessions.rw_lock("s").read().lease(SHORT).fixed_lease();
    for lock in [semaphore, reading] {
        let guard = lock.acquire(SOON).unwrap();
        let second = guard.share();
        eventually(SOON, "it ends", || {
            guard.ensure_held().is_err() && second.ensure_held().is_err()
        });
        assert!(second.is_lost());
    }
}

#[test]
fn a_callback_is_called_once_and_never_after_a_release_and_its_panic_is_contained() {
    let fixture = start();
    let lock = fixture.sessions.lock("l").lease(LEASE);
    let calls = Arc::new(AtomicU32::new(0));
    let count = |by: u32| {
        let calls = Arc::clone(&calls);
        move || {
            calls.fetch_add(by, Ordering::SeqCst);
        }
    };
    let released = lock.try_acquire().unwrap().unwrap();
    released.on_lost(count(1000));
    released.release().unwrap();

    let guard = lock.try_acquire().unwrap().unwrap();
    guard.on_lost(|| std::panic::resume_unwind(Box::new("on purpose")));
    guard.on_lost(count(1));
    lock.force_release().unwrap();
    eventually(SOON, "the renewal finds out", || calls.load(Ordering::SeqCst) == 1);
    assert!(guard.is_lost());
    guard.on_lost(count(10));
    eventually(SOON, "called at once", || calls.load(Ordering::SeqCst) == 11);
    let again = lock.acquire(SOON).unwrap();
    again.ensure_held().unwrap();
    again.release().unwrap();
    let fixed = lock.clone().lease(SHORT).fixed_lease().acquire(SOON).unwrap();
    fixed.on_lost(count(100));
    eventually(SOON, "a fixed lease ends", || calls.load(Ordering::SeqCst) == 111);
    drop(guard);
    assert_eq!(calls.load(Ordering::SeqCst), 111);
}

#[test]
fn a_renewal_survives_a_lost_connection() {
    let fixture = start();
    let guard = fixture.sessions.lock("l").lease(LEASE).try_acquire().unwrap().unwrap();
    for _ in 0..3 {
        let extended = fixture.locks().renewals;
        fixture.server.kill_all_clients_except_me();
        eventually(SOON, "it is extended again", || fixture.locks().renewals > extended);
    }
    guard.ensure_held().unwrap();
    guard.release().unwrap();
    assert_eq!(fixture.locks().lost, 0);
}

#[test]
fn a_lock_whose_data_is_gone_is_lost() {
    let fixture = start();
    let guard = fixture.sessions.lock("l").lease(LONG).try_acquire().unwrap().unwrap();
    fixture.server.ask::<()>(&["FLUSHALL"]);
    is_lost(guard.ensure_held());
    assert!(matches!(guard.release(), Err(Error::Lock(LockError::Lost { .. }))));
}
