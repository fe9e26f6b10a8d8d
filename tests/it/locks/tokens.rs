//! A hold that is handed to another process by a token: adopted once, with a reply, or ended with its lease.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use std::thread;
use std::time::Duration;

use crate::side::{Lock, SessionManager};
use rediscope::error::{Applied, InvalidHoldToken, LockError};
use rediscope::lock::{HoldToken, LostReason};
use rediscope::prelude::*;
use rediscope::{Builder, CommitError, Error};

use super::fixture::{is_lost, start, start_with, timed_out};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

fn lock(sessions: &SessionManager) -> Lock {
    sessions.lock("l").lease(LONG)
}

/// Has the server know the scripts, and the pool have a trusted connection.
fn warm(fixture: &Fixture) {
    let token = lock(&fixture.sessions).acquire(SOON).unwrap().into_token().unwrap();
    lock(&fixture.sessions).adopt(&token).unwrap().release().unwrap();
}

/// Calls that find no server are over soon.
fn with_short_timeouts(builder: Builder) -> Builder {
    let short = Duration::from_millis(400);
    builder.connect_timeout(short).response_timeout(short).checkout_timeout(3 * short)
}

impl Fixture {
    /// Time left of the longest lease of the lock `l`, as the server has it.
    fn left(&self) -> Duration {
        Duration::from_millis(self.server.ask::<i64>(&["PTTL", "rediscope:lock:{l}"]).max(0) as u64)
    }

    fn done(&self) -> usize {
        self.server.ask::<Vec<String>>(&["KEYS", "rediscope:lock:{l}:done:*"]).len()
    }
}

#[test]
fn a_hold_is_adopted_as_it_is_and_extended_at_once() {
    let fixture = start();
    let other = fixture.other();
    let guard = lock(&fixture.sessions).lease(Duration::from_secs(20)).label("here");
    let guard = guard.acquire(SOON).unwrap();
    let fencing = guard.fencing_token();
    let token = guard.into_token().unwrap();
    assert_eq!((token.fencing_token(), fixture.holders(), fixture.locks().held), (fencing, 1, 0));
    assert!(lock(&other).try_acquire().unwrap().is_none(), "it is held, by no guard");
    let word = token.to_string();
    assert!(!word.contains(char::is_whitespace), "{word}");
    let guard = lock(&other).lease(LONG).label("there").adopt(&word.parse().unwrap()).unwrap();
    assert_eq!((guard.fencing_token(), fixture.holders()), (fencing, 1));
    assert!(fixture.left() > Duration::from_secs(20), "the lease of the second handle");
    assert_eq!(lock(&other).holder().unwrap().unwrap().label.as_deref(), Some("there"));
    guard.ensure_held().unwrap();
    assert!(lock(&fixture.sessions).try_acquire().unwrap().is_none());
    // It wakes as any release does.
    let waiting = lock(&fixture.sessions);
    let waiter = thread::spawn(move || waiting.acquire(SOON).unwrap());
    fixture.wait_for_waiters(&fixture.sessions, 1);
    guard.release().unwrap();
    let next = waiter.join().unwrap();
    assert!(next.fencing_token() > fencing);
    next.release().unwrap();
    eventually(SOON, "nothing is left", || fixture.held_keys().is_empty());
}

#[test]
fn a_hold_of_every_kind_is_adopted_and_several_permits_stay_several() {
    let fixture = start();
    let other = fixture.other();
    let kinds = |sessions: &SessionManager| {
        [
            sessions.lock("l").fair(),
            sessions.rw_lock("r").read(),
            sessions.rw_lock("w").write(),
            sessions.semaphore("s", 1),
        ]
        .map(|lock| lock.lease(LONG))
    };
    for (from, to) in kinds(&fixture.sessions).iter().zip(kinds(&other)) {
        let token = from.acquire(SOON).unwrap().into_token().unwrap();
        let guard = to.adopt(&token).unwrap();
        guard.ensure_held().unwrap();
        guard.release().unwrap();
    }
    let semaphore = |sessions: &SessionManager| sessions.semaphore("s", 6).lease(LONG);
    let one = semaphore(&other).acquire(SOON).unwrap();
    let four = semaphore(&fixture.sessions).permits(4).acquire(SOON).unwrap();
    let four = semaphore(&other).adopt(&four.into_token().unwrap()).unwrap();
    assert_eq!(semaphore(&other).available().unwrap(), 1);
    one.release().unwrap();
    assert_eq!(semaphore(&other).available().unwrap(), 2);
    four.release().unwrap();
    assert_eq!(semaphore(&other).available().unwrap(), 6);
    eventually(SOON, "nothing is left", || fixture.held_keys().is_empty());
}

#[test]
fn of_several_adoptions_of_one_token_one_succeeds() {
    let fixture = start();
    let others = [fixture.other(), fixture.other()];
    for _ in 0..5 {
        let token = lock(&fixture.sessions).acquire(SOON).unwrap().into_token().unwrap();
        let adopted: Vec<_> = thread::scope(|scope| {
            let adopt = |nth: usize| {
                let (sessions, token) = (&others[nth % 2], &token);
                scope.spawn(move || lock(sessions).adopt(token))
            };
            let all: Vec<_> = (0..6).map(adopt).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (held, lost): (Vec<_>, Vec<_>) = adopted.into_iter().partition(Result::is_ok);
        assert_eq!((held.len(), lost.len(), fixture.holders()), (1, 5, 1));
        lost.into_iter().for_each(is_lost);
        is_lost(lock(&fixture.sessions).adopt(&token));
        held.into_iter().for_each(|guard| guard.unwrap().release().unwrap());
        is_lost(lock(&fixture.sessions).adopt(&token));
    }
    eventually(SOON, "nothing is left", || fixture.held_keys().is_empty());
}

#[test]
fn a_token_that_is_not_adopted_ends_with_its_lease() {
    let fixture = start();
    let short = fixture.sessions.lock("l").lease(Duration::from_millis(900));
    let token = short.acquire(SOON).unwrap().into_token().unwrap();
    let renewals = fixture.locks().renewals;
    let next = lock(&fixture.other()).acquire(SOON).unwrap();
    is_lost(lock(&fixture.sessions).adopt(&token));
    assert_eq!((fixture.locks().renewals, fixture.holders()), (renewals, 1));
    next.release().unwrap();
    // A forced one is not adopted either.
    let token = lock(&fixture.sessions).acquire(SOON).unwrap().into_token().unwrap();
    assert!(lock(&fixture.other()).force_release().unwrap());
    is_lost(lock(&fixture.sessions).adopt(&token));
    assert!(lock(&fixture.other()).try_acquire().unwrap().is_some());
}

#[test]
fn a_fixed_lease_ends_when_it_would_have_ended_and_an_adopted_one_is_extended() {
    let fixture = start();
    let fixed = lock(&fixture.sessions).fixed_lease();
    let token = fixed.acquire(SOON).unwrap().into_token().unwrap();
    let left = fixture.left();
    let guard = fixed.adopt(&token).unwrap();
    assert!(fixture.left() <= left && guard.remaining() <= left);
    guard.release().unwrap();
    let lease = Duration::from_millis(1500);
    let token = fixture.sessions.lock("l").lease(lease).acquire(SOON).unwrap();
    let guard = fixture.other().lock("l").lease(lease).adopt(&token.into_token().unwrap()).unwrap();
    let begun = std::time::Instant::now();
    eventually(SOON, "it is extended past its end", || {
        assert!(!guard.is_lost());
        begun.elapsed() > 2 * lease
    });
    guard.release().unwrap();
}

#[test]
fn a_waiter_learns_that_the_adopter_has_a_shorter_lease() {
    let fixture = start();
    let other = fixture.other();
    let token = lock(&other).acquire(SOON).unwrap().into_token().unwrap();
    let waiting = lock(&fixture.sessions);
    let waiter = thread::spawn(move || waiting.acquire(SOON));
    fixture.wait_for_waiters(&fixture.sessions, 1);
    let adopted = lock(&other).lease(Duration::from_secs(2)).adopt(&token).unwrap();
    // The adopter dies. Without a message the waiter would look after 30 seconds.
    std::mem::forget(adopted);
    other.close(Duration::ZERO);
    waiter.join().unwrap().unwrap().release().unwrap();
}

#[test]
fn a_lost_or_shared_hold_has_no_token_and_a_former_guards_transaction_is_fenced() {
    let fixture = start();
    let guard = lock(&fixture.sessions).acquire(SOON).unwrap();
    let second = guard.share();
    let error = guard.into_token().unwrap_err();
    assert!(matches!(error, Error::Lock(LockError::Refused { setting: "guard", .. })), "{error:?}");
    second.ensure_held().unwrap();
    let fenced = fixture.sessions.transactional().fenced_by(&second);
    fenced.run(|tx| Ok(tx.set("n", 1))).unwrap();
    let guard = lock(&fixture.other()).adopt(&second.into_token().unwrap()).unwrap();
    let late = fenced.run(|tx| Ok(tx.set("n", 2)));
    assert!(matches!(late, Err(Error::Commit(CommitError::LockLost))), "{late:?}");
    assert_eq!(fixture.server.ask::<i64>(&["GET", "n"]), 1);
    assert!(lock(&fixture.other()).force_release().unwrap());
    is_lost(guard.ensure_held());
    is_lost(guard.into_token());
}

#[test]
fn the_token_of_another_lock_is_refused_before_anything_is_sent() {
    let fixture = start();
    let token = lock(&fixture.sessions).acquire(SOON).unwrap().into_token().unwrap();
    let calls = fixture.server.calls("evalsha");
    let foreign = fixture.other();
    for other in [
        foreign.lock("m"),
        foreign.semaphore("l", 1),
        foreign.rw_lock("l").read(),
        foreign.rw_lock("l").write(),
    ] {
        let error = other.adopt(&token).unwrap_err();
        assert!(
            matches!(error, Error::Lock(LockError::Refused { setting: "token", .. })),
            "{error:?}"
        );
        assert_eq!(error.applied(), Applied::No);
    }
    assert_eq!(fixture.server.calls("evalsha"), calls);
    lock(&foreign).adopt(&token).unwrap().release().unwrap();
}

#[test]
fn a_token_is_a_word_and_its_debug_and_errors_show_no_secret() {
    let fixture = start();
    let token = lock(&fixture.sessions).acquire(SOON).unwrap().into_token().unwrap();
    let word = token.to_string();
    assert_eq!(format!("{token:?}"), "HoldToken { .. }");
    let owner = word.split('.').next().unwrap();
    let refused = fixture.sessions.lock("m").adopt(&token).unwrap_err();
    assert!(!format!("{refused} {refused:?}").contains(owner));
    assert_eq!(format!("\t{word}\n").parse().as_ref(), Ok(&token));
    for no in ["", "x", &word[1..], &word[..word.len() - 1], &word.replacen('.', "..", 1)] {
        let error: InvalidHoldToken = no.parse::<HoldToken>().unwrap_err();
        assert!(no.is_empty() || !error.to_string().contains(no) || no == "x");
    }
    drop(lock(&fixture.sessions).adopt(&token).unwrap());
    assert_eq!(fixture.holders(), 0);
}

#[test]
#[cfg(feature = "serde")]
fn a_token_is_written_and_read_by_serde_as_its_word() {
    let fixture = start();
    let token = lock(&fixture.sessions).acquire(SOON).unwrap().into_token().unwrap();
    let json = serde_json::to_string(&token).unwrap();
    assert_eq!(json, format!("\"{token}\""));
    let read = serde_json::from_str(&json).unwrap();
    assert_eq!(token, read);
    assert!(serde_json::from_str::<HoldToken>("\"x.1\"").is_err());
    lock(&fixture.other()).adopt(&read).unwrap().release().unwrap();
}

#[test]
fn an_adoption_whose_reply_is_lost_is_asked_for_again() {
    let fixture = start();
    warm(&fixture);
    let token = lock(&fixture.other()).acquire(SOON).unwrap().into_token().unwrap();
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    let guard = lock(&fixture.sessions).adopt(&token).unwrap();
    assert_eq!((fixture.proxy.fired(), fixture.holders()), (1, 1));
    assert_eq!(guard.fencing_token(), token.fencing_token());
    guard.ensure_held().unwrap();
    guard.release().unwrap();
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn an_adoption_without_a_reply_is_asked_for_again_and_else_unknown() {
    let fixture = start_with(with_short_timeouts);
    warm(&fixture);
    // The server is silent for one request: whether that has adopted the hold is asked on another connection.
    for (trigger, fault) in [
        (Trigger::BeforeReplyTo("EVALSHA"), Fault::HoldReplies),
        (Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests),
    ] {
        let token = lock(&fixture.other()).acquire(SOON).unwrap().into_token().unwrap();
        fixture.arm(trigger, fault);
        let guard = lock(&fixture.sessions).adopt(&token).unwrap();
        assert_eq!((guard.fencing_token(), fixture.holders()), (token.fencing_token(), 1));
        guard.release().unwrap();
        let before = fixture.server.calls("evalsha");
        fixture.proxy.release();
        if trigger == Trigger::BeforeCommandNamed("EVALSHA") {
            let came = || fixture.server.calls("evalsha") > before;
            eventually(SOON, "the late request arrives", came);
        }
        assert_eq!(fixture.holders(), 0);
    }
    let token = lock(&fixture.other()).acquire(SOON).unwrap().into_token().unwrap();
    // It arrived.
    fixture.proxy.mute_new(true);
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::HoldReplies);
    let error = lock(&fixture.sessions).adopt(&token).unwrap_err();
    assert!(matches!(error, Error::Lock(LockError::Connection { during: "adopt", .. })));
    assert_eq!((error.applied(), error.is_retryable()), (Applied::Unknown, true));
    fixture.proxy.mute_new(false);
    fixture.proxy.cut_all();
    let next = lock(&fixture.other()).acquire(SOON).unwrap();
    is_lost(lock(&fixture.sessions).adopt(&token));
    next.release().unwrap();
    // A proxy replied in the server's place.
    let token = lock(&fixture.other()).acquire(SOON).unwrap().into_token().unwrap();
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Answer("-ERR upstream timed out\r\n"));
    let error = lock(&fixture.sessions).adopt(&token).unwrap_err();
    assert!(matches!(error, Error::Lock(LockError::Command { during: "adopt", .. })), "{error:?}");
    assert_eq!(error.applied(), Applied::Unknown);
    lock(&fixture.other()).acquire(SOON).unwrap().release().unwrap();
}

#[test]
fn an_adoption_that_arrives_after_it_was_given_up_adopts_nothing() {
    let fixture = start_with(with_short_timeouts);
    warm(&fixture);
    let token = lock(&fixture.other()).acquire(SOON).unwrap().into_token().unwrap();
    fixture.arm(Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    // Or it would be sent again, and succeed.
    fixture.proxy.mute_new(true);
    let error = lock(&fixture.sessions).adopt(&token).unwrap_err();
    assert_eq!(error.applied(), Applied::Unknown, "{error:?}");
    fixture.proxy.mute_new(false);
    eventually(SOON, "it is given back by its own token", || fixture.done() == 1);
    let before = fixture.server.calls("evalsha");
    fixture.proxy.release();
    eventually(SOON, "the late request arrives", || fixture.server.calls("evalsha") > before);
    // The hold is as it was, and its token is good.
    assert_eq!(fixture.holders(), 1);
    let guard = lock(&fixture.other()).adopt(&token).unwrap();
    assert_eq!(guard.fencing_token(), token.fencing_token());
    guard.release().unwrap();
}

#[test]
fn a_request_of_the_former_token_that_arrives_late_acquires_nothing() {
    let fixture = start();
    let lock = lock(&fixture.sessions);
    drop(lock.acquire(SOON).unwrap());
    // The first copy is held up, and the second one acquires.
    fixture.arm(Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    let guard = lock.acquire(SOON).unwrap();
    let adopted = fixture.other().lock("l").lease(LONG).adopt(&guard.into_token().unwrap());
    adopted.unwrap().release().unwrap();
    assert_eq!(fixture.holders(), 0);
    let before = fixture.server.calls("evalsha");
    fixture.proxy.release();
    eventually(SOON, "the late request arrives", || fixture.server.calls("evalsha") > before);
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn nothing_is_adopted_by_a_manager_that_is_closed_or_from_a_server_that_is_away() {
    let fixture = start_with(|builder| builder.checkout_timeout(Duration::from_secs(3)));
    let other = fixture.other();
    let token = lock(&other).acquire(SOON).unwrap().into_token().unwrap();
    fixture.proxy.close_listener();
    fixture.proxy.cut_all();
    let error = lock(&fixture.sessions).adopt(&token).unwrap_err();
    assert_eq!(error.applied(), Applied::No, "{error:?}: nothing was sent");
    fixture.proxy.reopen_listener();
    assert_eq!(other.close(SOON).locks, 0, "no guard is left");
    assert_eq!(lock(&other).adopt(&token).unwrap_err().applied(), Applied::No);
    let guard = lock(&fixture.sessions).adopt(&token).unwrap();
    timed_out(lock(&fixture.other()).acquire(Duration::from_millis(20)));
    guard.release().unwrap();
}

#[test]
fn an_adopted_hold_is_lost_by_the_clock_as_any_other() {
    let fixture = start();
    let short = fixture.sessions.lock("l").lease(Duration::from_millis(700)).fixed_lease();
    let guard = short.adopt(&short.acquire(SOON).unwrap().into_token().unwrap()).unwrap();
    eventually(SOON, "it is lost", || guard.is_lost());
    let lost = guard.release();
    assert!(
        matches!(lost, Err(Error::Lock(LockError::Lost { why: LostReason::Expired, .. }))),
        "{lost:?}"
    );
}
