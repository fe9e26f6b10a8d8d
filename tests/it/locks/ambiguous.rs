//! A lost reply: what was acquired is adopted or released, and what was released is released once.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use crate::side::LockGuard;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rediscope::Error;
use rediscope::error::{Applied, LockError};

use super::fixture::{all_ways, is_lost, start, start_with};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

/// A fixture whose server knows the scripts, and whose pool has a trusted connection.
fn warm() -> Fixture {
    let fixture = start();
    drop(fixture.sessions.lock("warm").try_acquire().unwrap());
    fixture
}

#[test]
fn a_lock_that_was_acquired_without_a_reply_is_adopted() {
    let fixture = warm();
    let lock = fixture.sessions.lock("l").lease(LONG);
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    let guard = lock.try_acquire().unwrap().unwrap();
    assert_eq!(fixture.proxy.fired(), 1);
    assert_eq!(fixture.holders(), 1);
    let counter: u64 = fixture.server.ask(&["GET", "rediscope:fence"]);
    assert_eq!(guard.fencing_token(), counter, "sent twice and acquired once");
    guard.release().unwrap();
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn a_lock_that_was_acquired_without_a_reply_and_given_up_is_released() {
    let fixture = warm();
    let lock = fixture.sessions.lock("l").lease(LONG);
    let before: Option<u64> = fixture.server.ask(&["GET", "rediscope:fence"]);
    fixture.proxy.mute_new(true);
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::HoldReplies);
    let error = lock.try_acquire().unwrap_err();
    assert!(matches!(error, Error::Lock(LockError::Connection { .. })), "{error:?}");
    assert_eq!((error.applied(), error.is_retryable()), (Applied::Unknown, true));
    let counter: Option<u64> = fixture.server.ask(&["GET", "rediscope:fence"]);
    assert!(counter > before, "it was acquired");
    fixture.proxy.mute_new(false);
    fixture.proxy.cut_all();
    eventually(SOON, "it is given back in the background", || fixture.holders() == 0);
    drop(lock.try_acquire().unwrap().unwrap());
}

#[test]
fn a_request_that_arrives_after_it_was_given_up_acquires_nothing() {
    let fixture = warm();
    let lock = fixture.sessions.lock("l").lease(LONG);
    fixture.arm(Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    assert!(matches!(lock.try_acquire(), Err(Error::Lock(LockError::Connection { .. }))));
    eventually(SOON, "it is given back by its token", || {
        fixture.server.ask::<Vec<String>>(&["KEYS", "rediscope:lock:{l}:done:*"]).len() == 1
    });
    let before = fixture.server.calls("evalsha");
    fixture.proxy.release();
    eventually(SOON, "the late request arrives", || fixture.server.calls("evalsha") > before);
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn a_release_without_a_reply_is_repeated_and_returns_the_first_ones_result() {
    let fixture = warm();
    let lock = fixture.sessions.lock("l").lease(LONG);
    let guard = lock.try_acquire().unwrap().unwrap();
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    guard.release().unwrap();
    assert_eq!(fixture.proxy.fired(), 1);
    let guard = lock.try_acquire().unwrap().unwrap();
    lock.force_release().unwrap();
    let others = fixture.other().lock("l").lease(LONG).try_acquire().unwrap().unwrap();
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    is_lost(guard.release());
    assert_eq!((fixture.proxy.fired(), fixture.holders()), (2, 1));
    others.release().unwrap();
}

/// A caller that waits for the lock, and what it got.
fn waits(fixture: &Fixture, wait: Duration) -> JoinHandle<Result<LockGuard, Error>> {
    let lock = fixture.sessions.lock("l").lease(LONG);
    let waiting = thread::spawn(move || lock.acquire(wait));
    fixture.wait_for_waiters(&fixture.sessions, 1);
    // It has looked again since the subscription was made.
    let mut asked = 0;
    eventually(SOON, "it only waits", || {
        thread::sleep(Duration::from_millis(50));
        let before = std::mem::replace(&mut asked, fixture.server.calls("evalsha"));
        asked == before
    });
    waiting
}

#[test]
fn a_lock_that_a_release_gave_to_a_waiter_without_a_reply_is_the_waiters() {
    let fixture = warm();
    let guard = fixture.sessions.lock("l").lease(LONG).try_acquire().unwrap().unwrap();
    let former = guard.fencing_token();
    let waiting = waits(&fixture, LONG);
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    guard.release().unwrap();
    let guard = waiting.join().unwrap().unwrap();
    assert_eq!((fixture.proxy.fired(), fixture.holders()), (1, 1));
    let counter: u64 = fixture.server.ask(&["GET", "rediscope:fence"]);
    assert!(guard.fencing_token() == counter && counter > former, "sent twice and given once");
    guard.release().unwrap();
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn a_waiter_that_leaves_while_a_release_gives_it_the_lock_leaves_no_lock() {
    let fixture = warm();
    let lock = fixture.sessions.lock("l").lease(LONG);
    let guard = lock.try_acquire().unwrap().unwrap();
    let waiting = waits(&fixture, Duration::from_millis(700));
    fixture.proxy.mute_new(true);
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::HoldReplies);
    let releasing = thread::spawn(move || guard.release());
    eventually(SOON, "it is given", || fixture.proxy.fired() == 1);
    // It leaves, or has noticed that it holds the lock.
    drop(waiting.join().unwrap());
    fixture.proxy.mute_new(false);
    fixture.proxy.cut_all();
    // Repeated, it returns its first result, or continues in the background.
    drop(releasing.join().unwrap());
    eventually(SOON, "the lock is given back", || fixture.holders() == 0);
    drop(lock.acquire(SOON).unwrap());
    eventually(SOON, "nothing is left", || fixture.holders() == 0 && fixture.locks().held == 0);
}

#[test]
fn a_release_that_arrives_late_gives_the_lock_to_a_waiter_that_notices() {
    let fixture = warm();
    let guard = fixture.sessions.lock("l").lease(LONG).try_acquire().unwrap().unwrap();
    let waiting = waits(&fixture, LONG);
    let asked = fixture.server.calls("evalsha");
    fixture.proxy.mute_new(true);
    fixture.arm(Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    guard.release().unwrap_err();
    eventually(SOON, "the waiter has asked", || fixture.server.calls("evalsha") > asked);
    let given: u64 = fixture.server.ask(&["GET", "rediscope:fence"]);
    fixture.proxy.release();
    eventually(SOON, "the late release gives the lock", || {
        fixture.server.ask::<u64>(&["GET", "rediscope:fence"]) > given
    });
    fixture.proxy.mute_new(false);
    eventually(SOON, "the waiter has noticed", || waiting.is_finished());
    waiting.join().unwrap().unwrap().release().unwrap();
    eventually(SOON, "nothing is left", || fixture.holders() == 0);
}

#[test]
fn a_release_that_arrives_again_gives_the_lock_to_no_waiter() {
    let fixture = warm();
    let guard = fixture.sessions.lock("l").lease(LONG).try_acquire().unwrap().unwrap();
    let waiting = waits(&fixture, LONG);
    fixture.arm(Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    guard.release().unwrap();
    waiting.join().unwrap().unwrap().release().unwrap();
    // What the server remembers of both ends, or is deleted.
    let keys: Vec<String> = fixture.server.ask(&["KEYS", "rediscope:lock:{l}:done:*"]);
    keys.iter().for_each(|key| assert_eq!(fixture.server.ask::<u64>(&["DEL", key]), 1));
    let before = fixture.server.calls("evalsha");
    fixture.proxy.release();
    eventually(SOON, "the late request arrives", || fixture.server.calls("evalsha") > before);
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn a_guard_that_is_dropped_while_the_server_is_away_is_released_when_it_is_back() {
    let fixture = warm();
    let guard = fixture.sessions.lock("l").lease(LONG).try_acquire().unwrap().unwrap();
    fixture.proxy.close_listener();
    fixture.proxy.cut_all();
    drop(guard);
    assert_eq!((fixture.holders(), fixture.locks().held), (1, 0));
    fixture.proxy.reopen_listener();
    eventually(SOON, "it is given back in the background", || fixture.holders() == 0);
}

#[test]
fn a_lock_that_too_few_replicas_have_is_released() {
    let fixture = warm();
    let lock = fixture.sessions.lock("l").lease(LONG);
    let error = lock.clone().wait_replicas(1, Duration::from_millis(20)).try_acquire();
    assert!(matches!(error, Err(Error::Lock(LockError::NotReplicated { .. }))), "{error:?}");
    assert_eq!(fixture.holders(), 0);
    let _replica = rediscope_testing::server::Server::replica_of(&fixture.server);
    let guard = lock.wait_replicas(1, SOON).try_acquire().unwrap().unwrap();
    guard.release().unwrap();
}

#[test]
fn an_acquisition_whose_reply_comes_when_the_lease_is_nearly_over_is_repeated() {
    let fixture = warm();
    // Long enough for the second reply on a busy machine; the first one comes in time.
    let lock = fixture.sessions.lock("l").lease(Duration::from_millis(600)).fixed_lease();
    let late = Fault::Delay(Duration::from_millis(700));
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), late);
    let guard = lock.acquire(SOON).unwrap();
    assert_eq!(fixture.proxy.fired(), 1);
    assert!(!guard.is_lost());
    guard.release().unwrap();
}

#[test]
fn a_forced_release_without_a_reply_is_repeated_and_returns_the_first_ones_result() {
    for (way, fixture) in all_ways() {
        let (lock, other) = (fixture.sessions.lock("l"), fixture.other().lock("l").lease(LONG));
        // The server knows the script.
        assert!(!lock.force_release().unwrap());
        let guard = other.acquire(SOON).unwrap();
        for held in [true, false] {
            fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
            let fired = fixture.proxy.fired();
            assert_eq!(lock.force_release().unwrap(), held, "{way}");
            assert!(fixture.proxy.fired() > fired, "{way}");
            fixture.proxy.disarm();
        }
        is_lost(guard.release());
    }
}

#[test]
fn a_copy_of_a_call_that_arrives_late_takes_no_lock_and_changes_no_number() {
    // A silent connection is replaced, and the call sent again.
    let fixture = start_with(|builder| builder.trust_window(Duration::ZERO));
    let (lock, other) = (fixture.sessions.lock("l"), fixture.other());
    let permits = fixture.sessions.semaphore("s", 2);
    assert!(!lock.force_release().unwrap());
    permits.set_permits(2).unwrap();
    let kept = other.semaphore("s", 2).lease(LONG).acquire(SOON).unwrap();
    fixture.arm(Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    assert!(!lock.force_release().unwrap());
    fixture.arm(Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    permits.set_permits(3).unwrap();
    assert_eq!(fixture.proxy.fired(), 2);
    let guard = other.lock("l").lease(LONG).acquire(SOON).unwrap();
    other.semaphore("s", 3).set_permits(4).unwrap();
    let before = fixture.server.calls("evalsha");
    fixture.proxy.release();
    eventually(SOON, "the copies arrive", || fixture.server.calls("evalsha") >= before + 2);
    guard.release().unwrap();
    assert_eq!(other.semaphore("s", 2).available().unwrap(), 3);
    kept.release().unwrap();
}

#[test]
fn what_is_remembered_of_a_call_with_a_reply_is_deleted() {
    let fixture = warm();
    let permits = fixture.sessions.semaphore("s", 2);
    let guard = permits.acquire(SOON).unwrap();
    permits.set_permits(3).unwrap();
    assert!(permits.force_release().unwrap());
    is_lost(guard.release());
    eventually(SOON, "before its time to live", || fixture.held_keys().is_empty());
}
