//! A right that is removed while a lock is held or waited for.
//!
//! Guarantee: rights, locks

use crate::fixture::{LONG, SOON};
use crate::side::{LockGuard, SessionManager};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rediscope::error::{Applied, LockError};
use rediscope::lock::LostReason;
use rediscope::{CommitError, Error, prelude::*};

use super::fixture::{RestrictedServer, nothing_is_held, summary};
use rediscope_testing::eventually;

const HOLDERS: &str = "rediscope:lock:{l}";

fn holders(fixture: &RestrictedServer) -> i64 {
    fixture.server.ask(&["ZCARD", HOLDERS])
}

fn holds(sessions: &SessionManager) -> LockGuard {
    sessions.lock("l").acquire(Duration::ZERO).unwrap()
}

/// Another user, for all that the server knows.
fn others(fixture: &RestrictedServer) -> SessionManager {
    fixture.sessions(LONG)
}

#[test]
fn a_holder_that_may_not_run_scripts_gets_an_error_and_the_lock_is_released_as_soon_as_it_may() {
    let fixture = RestrictedServer::start();
    let (sessions, other) = (fixture.sessions(LONG), others(&fixture));
    let guard = holds(&sessions);
    fixture.operator("-evalsha");
    let error = guard.ensure_held().unwrap_err();
    assert_eq!(summary(&error), "Lock ensure_held NOPERM, applied No");
    assert!(!guard.is_lost(), "its lease goes on");
    let lock = sessions.lock("l");
    assert_eq!(summary(&lock.holder().unwrap_err()), "Lock holder NOPERM, applied No");
    let forced = lock.force_release().unwrap_err();
    assert_eq!(summary(&forced), "Lock force_release NOPERM, applied No");
    let error = guard.release().unwrap_err();
    assert_eq!(summary(&error), "Lock release NOPERM, applied No");
    assert_eq!(holders(&fixture), 1);
    fixture.may_do_all();
    eventually(SOON, "it is given back in the background", || holders(&fixture) == 0);
    holds(&other).release().unwrap();
    // Dropped, the same.
    let guard = holds(&sessions);
    fixture.operator("-evalsha");
    drop(guard);
    assert_eq!(holders(&fixture), 1);
    fixture.may_do_all();
    eventually(SOON, "it is given back in the background", || holders(&fixture) == 0);
    nothing_is_held(&sessions);
    assert_eq!(sessions.status().pooled.counts.all_replaced(), 0);
}

#[test]
fn a_lease_that_may_not_be_extended_is_lost_and_reported() {
    let fixture = RestrictedServer::start();
    let sessions = fixture.sessions(LONG);
    let lock = sessions.lock("l").lease(Duration::from_millis(400));
    let guard = lock.acquire(Duration::ZERO).unwrap();
    let (lost, told_of) = mpsc::channel();
    guard.on_lost(move || lost.send(()).unwrap());
    fixture.operator("-zscore");
    told_of.recv_timeout(SOON).unwrap();
    assert!(guard.is_lost());
    fixture.may_do_all();
    let why = guard.release().unwrap_err();
    assert!(
        matches!(why, Error::Lock(LockError::Lost { why: LostReason::Expired, .. })),
        "{why:?}"
    );
    lock.acquire(SOON).unwrap().release().unwrap();
    nothing_is_held(&sessions);
}

#[test]
fn an_acquisition_that_was_stopped_in_the_middle_leaves_the_lock_free() {
    let fixture = RestrictedServer::start();
    let (sessions, other) = (fixture.sessions(LONG), others(&fixture));
    for right in ["-zadd", "-pexpireat", "-hset"] {
        fixture.operator(right);
        let error = sessions.lock("l").label("host 7").acquire(SOON).unwrap_err();
        assert_eq!((error.applied(), error.is_retryable()), (Applied::Unknown, false), "{error}");
        // Before this was returned.
        assert_eq!((holders(&fixture), fixture.keys("rediscope:lock:{l}:info").len()), (0, 0));
        fixture.may_do_all();
        holds(&other).release().unwrap();
    }
    nothing_is_held(&sessions);
    assert_eq!(sessions.status().locks.acquired, 0);
}

#[test]
fn an_acquisition_that_may_not_wait_for_replicas_fails_at_once_and_is_released() {
    let fixture = RestrictedServer::start();
    let (sessions, other) = (fixture.sessions(LONG), others(&fixture));
    fixture.operator("-wait");
    let lock = sessions.lock("l").wait_replicas(0, Duration::from_millis(10));
    // Reported as too few replicas, it would be retried until the wait is over.
    let error = rediscope_testing::in_time(SOON, "it fails", {
        let lock = lock.clone();
        move || lock.acquire(Duration::from_secs(600)).unwrap_err()
    });
    assert_eq!(summary(&error), "Lock acquire NOPERM, applied No");
    assert_eq!(holders(&fixture), 0);
    holds(&other).release().unwrap();
    fixture.may_do_all();
    lock.acquire(SOON).unwrap().release().unwrap();
    nothing_is_held(&sessions);
}

#[test]
fn without_channels_a_waiter_polls_and_a_release_is_a_release() {
    for rights in ["resetchannels", "-publish", "-subscribe", "-publish -subscribe -unsubscribe"] {
        for fair in [false, true] {
            let fixture = RestrictedServer::start();
            let (sessions, other) = (fixture.sessions(LONG), others(&fixture));
            fixture.operator(rights);
            let lock = |sessions: &SessionManager| match fair {
                true => sessions.lock("l").fair(),
                false => sessions.lock("l"),
            };
            let guard = lock(&sessions).acquire(Duration::ZERO).unwrap();
            let waiter = lock(&other);
            let waiting = thread::spawn(move || waiter.acquire(SOON));
            eventually(SOON, "it waits", || other.status().locks.waiting == 1);
            guard.release().unwrap();
            // A quarter of a second is the longest backoff; a waiter for a message waits for 30 s.
            let next = waiting.join().unwrap().unwrap();
            assert_eq!(other.status().locks.subscriptions, 0, "{rights}");
            next.release().unwrap();
            assert_eq!(holders(&fixture), 0);
            assert!(!lock(&sessions).force_release().unwrap());
        }
    }
}

#[test]
fn channels_taken_away_from_a_waiter_are_done_without_and_used_again_when_they_are_back() {
    let fixture = RestrictedServer::start();
    let (sessions, other) = (fixture.sessions(LONG), others(&fixture));
    let guard = holds(&sessions);
    let waiter = other.lock("l");
    let waiting = thread::spawn(move || waiter.acquire(SOON));
    eventually(SOON, "it listens", || fixture.server.subscribers() == 1);
    // The server ends subscriptions to what may not be subscribed to any more.
    fixture.operator("resetchannels");
    eventually(SOON, "no connection listens", || fixture.server.subscribers() == 0);
    fixture.operator("&*");
    eventually(SOON, "it listens again", || fixture.server.subscribers() == 1);
    fixture.operator("resetchannels");
    guard.release().unwrap();
    waiting.join().unwrap().unwrap().release().unwrap();
    nothing_is_held(&other);
}

#[test]
fn a_listener_that_may_not_ping_keeps_its_connection() {
    let fixture = RestrictedServer::start();
    let (sessions, other) = (fixture.sessions(LONG), others(&fixture));
    fixture.operator("-ping");
    let guard = holds(&sessions);
    let waiter = other.lock("l");
    let waiting = thread::spawn(move || waiter.acquire(SOON));
    let listener = || {
        let list = fixture.server.client_list();
        let listens =
            |client: &&std::collections::HashMap<String, String>| client["flags"].contains('P');
        list.iter().find(listens).map(|client| client["id"].clone())
    };
    eventually(SOON, "it listens", || listener().is_some());
    let first = listener();
    let refused = || fixture.server.info("cmdstat_ping").unwrap_or_default();
    let before = refused();
    eventually(SOON, "it was refused", || refused() != before);
    assert_eq!(listener(), first);
    guard.release().unwrap();
    waiting.join().unwrap().unwrap().release().unwrap();
    assert_eq!(listener(), first);
}

#[test]
fn a_fenced_transaction_without_a_right_writes_nothing_and_the_lock_stays_held() {
    let fixture = RestrictedServer::start();
    let sessions = fixture.sessions(LONG);
    let guard = holds(&sessions);
    let fenced = sessions.transactional().fenced_by(&guard);
    let rights = [
        ("-watch", "Rejected WATCH of the lock NOPERM, applied No"),
        ("-time", "Rejected TIME NOPERM, applied No"),
        ("-zscore", "Rejected ZSCORE of the lock NOPERM, applied No"),
        ("resetkeys ~app:*", "Rejected WATCH of the lock NOPERM, applied No"),
        ("-multi", "Rejected MULTI NOPERM, applied No"),
        ("-exec", "Rejected EXEC NOPERM, applied No"),
    ];
    fenced.run(|tx| Ok(tx.set("app:n", 1))).unwrap();
    for (right, expected) in rights {
        fixture.operator(right);
        let refused = fenced.run(|tx| Ok(tx.incr("app:n", 1))).unwrap_err();
        assert_eq!(summary(&refused), expected, "{right}");
        assert_eq!(fixture.number("app:n"), 1, "{right}");
        nothing_is_held(&sessions);
        fixture.may_do_all();
        guard.ensure_held().unwrap();
    }
    fenced.run(|tx| Ok(tx.incr("app:n", 1))).unwrap();
    assert_eq!(sessions.status().transactional.counts.all_replaced(), 0);
    // It is the lock that decides: another client takes it away, and nothing is written.
    assert!(sessions.lock("l").force_release().unwrap());
    let lost = fenced.run(|tx| Ok(tx.incr("app:n", 1))).unwrap_err();
    assert!(matches!(lost.as_commit(), Some(CommitError::LockLost)), "{lost:?}");
    assert_eq!(fixture.number("app:n"), 2);
}
