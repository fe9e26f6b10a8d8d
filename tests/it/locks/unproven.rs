//! A script ran, and a proxy replies with an error of its own: the outcome is unknown, and what was acquired is
//! released by its owner token.
//!
//! Guarantee: locks

use std::thread;
use std::time::Duration;

use crate::fixture::{Fixture, LONG, SOON};
use rediscope::Error;
use rediscope::error::{Applied, LockError};

use super::fixture::{all_ways, every_kind, start, start_with, timed_out};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};

const ANSWERS: [&str; 14] = [
    "-upstream failure\r\n",
    "-ERR Connection timed out\r\n",
    "-ERR Server closed the connection\r\n",
    "-UNAVAILABLE upstream failure\r\n",
    "-ERR\r\n",
    "-OOM no\r\n",
    "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "-READONLY You can't write against a read only replica.\r\n",
    "-LOADING Redis is loading the dataset in memory\r\n",
    "-BUSY no\r\n",
    "-NOAUTH Authentication required.\r\n",
    "-NOPERM no\r\n",
    "-MOVED elsewhere\r\n",
    "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
];

#[test]
fn an_acquisition_with_the_reply_of_a_proxy_is_unknown_and_released() {
    for (way, fixture) in all_ways() {
        let kinds = every_kind(&fixture.sessions);
        kinds.iter().for_each(|(_, lock)| lock.acquire(SOON).unwrap().release().unwrap());
        for (nth, answer) in ANSWERS.into_iter().enumerate() {
            let (kind, lock) = &kinds[nth % kinds.len()];
            let what = format!("{way}, {kind}, {answer}");
            let fired = fixture.proxy.fired();
            fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Answer(answer));
            let error = lock.clone().lease(LONG).try_acquire().expect_err(&what);
            assert!(fixture.proxy.fired() > fired, "{what}");
            fixture.proxy.disarm();
            assert_eq!(error.applied(), Applied::Unknown, "{what}: {error:?}");
            assert!(
                matches!(error, Error::Lock(LockError::Command { during: "acquire", .. })),
                "{what}"
            );
            assert_eq!(error.applied(), Applied::Unknown, "{what}");
            eventually(SOON, "it is given back", || fixture.held_keys().is_empty());
        }
        // Each connection has a copy of the rule: where the pooled one met it, the other did not.
        for (kind, lock) in &kinds {
            lock.try_acquire().unwrap().expect(kind).release().unwrap();
        }
        assert_eq!((fixture.locks().held, fixture.locks().lost), (0, 0), "{way}");
    }
}

#[test]
fn a_waiting_acquisition_with_the_reply_of_a_proxy_continues_if_that_may_pass() {
    let fixture = start();
    let lock = fixture.sessions.lock("l").lease(LONG);
    drop(lock.acquire(SOON).unwrap());
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Answer("-LOADING wait\r\n"));
    let guard = lock.acquire(SOON).unwrap();
    assert!(fixture.proxy.fired() > 0);
    assert_eq!(fixture.holders(), 1);
    guard.ensure_held().unwrap();
    guard.release().unwrap();
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn a_release_with_the_reply_of_a_proxy_is_unknown_and_sent_again() {
    for (way, fixture) in all_ways() {
        let kinds = every_kind(&fixture.sessions);
        kinds.iter().for_each(|(_, lock)| lock.acquire(SOON).unwrap().release().unwrap());
        for (nth, answer) in ANSWERS.into_iter().enumerate() {
            let (kind, lock) = &kinds[nth % kinds.len()];
            let what = format!("{way}, {kind}, {answer}");
            // Ran, and did not.
            for before in
                [Trigger::BeforeReplyTo("EVALSHA"), Trigger::BeforeCommandNamed("EVALSHA")]
            {
                let ran = matches!(before, Trigger::BeforeReplyTo(_));
                let fault = if ran { Fault::Answer(answer) } else { Fault::Refuse(answer) };
                // The error may meet a deletion in the background, but not again and again.
                let (error, calls) = (0..5)
                    .find_map(|_| {
                        let guard = lock.clone().lease(LONG).acquire(SOON).unwrap();
                        let (fired, calls) =
                            (fixture.proxy.fired(), fixture.server.calls("evalsha"));
                        fixture.arm(before, fault);
                        let released = guard.release();
                        assert!(fixture.proxy.fired() > fired, "{what}");
                        fixture.proxy.disarm();
                        released.err().map(|error| (error, calls))
                    })
                    .expect(&what);
                assert_eq!(error.applied(), Applied::Unknown, "{what}: {error:?}");
                eventually(SOON, "it is sent again", || {
                    fixture.server.calls("evalsha") > calls + u64::from(ran)
                });
                eventually(SOON, "it is given back", || fixture.held_keys().is_empty());
            }
        }
        assert_eq!((fixture.locks().held, fixture.locks().lost), (0, 0), "{way}");
    }
}

/// Refusals that come before a script starts.
const REFUSALS: [&str; 3] = [
    "-CLUSTERDOWN The cluster is down\r\n",
    "-NOPERM this user has no permissions to run the 'evalsha' command\r\n",
    "-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
];

/// The next script runs, `first` happens to its reply, and `refusals` copies behind it are refused.
fn refuse_after(fixture: &Fixture, first: Fault, refusal: &'static str, refusals: usize) {
    let script = Script::from((Trigger::BeforeReplyTo("EVALSHA"), first));
    let refused = (Trigger::BeforeCommandNamed("EVALSHA"), Fault::Refuse(refusal));
    let script = (0..refusals).fold(script, |script, _| script.on(refused.0, refused.1));
    fixture.proxy.arm(script.in_turn());
}

/// What was acquired is released, and no call of the background meets the next fault.
#[track_caller]
fn is_given_back(fixture: &Fixture, what: &str) {
    fixture.proxy.disarm();
    eventually(SOON, what, || fixture.holders() == 0 && fixture.locks().releasing == 0);
}

#[track_caller]
fn is_unknown<T: std::fmt::Debug>(what: &str, ended: Result<T, Error>) {
    let error = ended.expect_err(what);
    // On a busy machine the call's time may be over before the last copy is refused.
    let of_lock =
        matches!(error, Error::Lock(LockError::Command { .. } | LockError::Connection { .. }));
    assert!(of_lock, "{what}: {error:?}");
    assert_eq!(error.applied(), Applied::Unknown, "{what}: {error:?}");
}

#[test]
fn a_refusal_behind_a_copy_that_ran_is_unknown() {
    for (way, fixture) in all_ways() {
        let other = fixture.other();
        let lock = fixture.sessions.lock("l").lease(LONG);
        let semaphore = fixture.sessions.semaphore("s", 2).lease(LONG);
        // The server knows the scripts.
        lock.acquire(SOON).unwrap().release().unwrap();
        assert!(!lock.force_release().unwrap());
        semaphore.set_permits(2).unwrap();
        let kept = semaphore.acquire(SOON).unwrap();
        let mut permits = 2;
        for refusal in REFUSALS {
            let what = format!("{way}, {refusal}");
            let arm = || refuse_after(&fixture, Fault::Cut, refusal, 1);
            arm();
            is_unknown(&what, lock.try_acquire());
            is_given_back(&fixture, &what);
            let guard = lock.acquire(SOON).unwrap();
            arm();
            is_unknown(&what, guard.release());
            is_given_back(&fixture, &what);
            let guard = other.lock("l").lease(LONG).acquire(SOON).unwrap();
            arm();
            is_unknown(&what, lock.force_release());
            fixture.proxy.disarm();
            assert_eq!(fixture.holders(), 0, "{what}");
            drop(guard);
            permits += 1;
            arm();
            is_unknown(&what, semaphore.set_permits(permits));
            fixture.proxy.disarm();
            let on_server: u32 = fixture.server.ask(&["HGET", "rediscope:sem:{s}:info", "permits"]);
            assert_eq!(on_server, permits, "{what}");
        }
        kept.release().unwrap();
    }
}

/// A proxy's NOSCRIPT has the call sent again with the script's source.
#[test]
fn a_refusal_behind_a_copy_with_a_proxys_reply_is_unknown() {
    const NOSCRIPT: &str = "-NOSCRIPT upstream timed out\r\n";
    for (way, fixture) in all_ways() {
        let semaphore = fixture.sessions.semaphore("s", 1).lease(LONG);
        let kept = semaphore.acquire(SOON).unwrap();
        // The server knows the script.
        semaphore.set_permits(2).unwrap();
        for (permits, refusal) in (3..).zip(REFUSALS) {
            let what = format!("{way}, {refusal}");
            let ran = Script::from((Trigger::BeforeReplyTo("EVALSHA"), Fault::Answer(NOSCRIPT)));
            let refused = (Trigger::BeforeCommandNamed("EVAL"), Fault::Refuse(refusal));
            fixture.proxy.arm(ran.on(refused.0, refused.1).in_turn());
            is_unknown(&what, semaphore.set_permits(permits));
            fixture.proxy.disarm();
            let on_server: u32 = fixture.server.ask(&["HGET", "rediscope:sem:{s}:info", "permits"]);
            assert_eq!(on_server, permits, "{what}");
        }
        kept.release().unwrap();
        // A server that does not know the script has not run it.
        fixture.server.ask::<()>(&["SCRIPT", "FLUSH"]);
        let refused = (Trigger::BeforeCommandNamed("EVAL"), Fault::Refuse(REFUSALS[0]));
        fixture.proxy.arm(refused);
        let error = semaphore.set_permits(9).unwrap_err();
        assert_eq!(error.applied(), Applied::No, "{way}: {error:?}");
        fixture.proxy.disarm();
    }
}

#[test]
fn an_adoption_refused_behind_a_copy_that_ran_is_unknown_and_released() {
    let short = Duration::from_millis(400);
    let fixture = start_with(|builder| {
        builder.connect_timeout(short).response_timeout(short).checkout_timeout(3 * short)
    });
    let lock = fixture.sessions.lock("l").lease(LONG);
    let token = || fixture.other().lock("l").lease(LONG).acquire(SOON).unwrap().into_token();
    lock.adopt(&token().unwrap()).unwrap().release().unwrap();
    // A reply that is lost is asked for again within the same attempt, one of a proxy in another attempt.
    for first in [Fault::Cut, Fault::Answer("-LOADING wait\r\n")] {
        for refusal in REFUSALS {
            let what = format!("{first:?}, {refusal}");
            let token = token().unwrap();
            // More than there are attempts in this time.
            refuse_after(&fixture, first, refusal, 200);
            is_unknown(&what, lock.adopt(&token));
            is_given_back(&fixture, &what);
            assert!(
                matches!(lock.adopt(&token), Err(Error::Lock(LockError::Lost { .. }))),
                "{what}"
            );
        }
    }
}

#[test]
fn an_adoption_whose_lease_is_over_here_is_unknown_until_it_is_released() {
    let fixture = start_with(|builder| {
        builder.response_timeout(Duration::from_secs(3)).checkout_timeout(Duration::from_secs(7))
    });
    let lock = fixture.sessions.lock("l").lease(Duration::from_millis(400));
    let token = || fixture.other().lock("l").lease(LONG).acquire(SOON).unwrap().into_token();
    lock.clone().lease(LONG).adopt(&token().unwrap()).unwrap().release().unwrap();
    // The lease counts from the call here, and from the late request on the server.
    let late =
        || (Trigger::BeforeCommandNamed("EVALSHA"), Fault::Delay(Duration::from_millis(500)));
    let former = token().unwrap();
    fixture.proxy.arm(Script::from(late()).once());
    let error = lock.adopt(&former).unwrap_err();
    fixture.proxy.disarm();
    assert!(matches!(error, Error::Lock(LockError::Lost { .. })), "{error:?}");
    assert_eq!((error.applied(), fixture.holders()), (Applied::No, 0), "{error:?}");
    let former = token().unwrap();
    cut_after(&fixture, late().into(), 1);
    let error = lock.adopt(&former).unwrap_err();
    assert!(
        matches!(error, Error::Lock(LockError::Connection { during: "adopt", .. })),
        "{error:?}"
    );
    assert_eq!(error.applied(), Applied::Unknown, "{error:?}");
    is_given_back(&fixture, "it is released in the background");
}

#[test]
fn a_waiting_acquisition_refused_behind_a_request_that_ran_is_unknown() {
    let fixture = start();
    let lock = fixture.sessions.lock("l").lease(LONG);
    lock.acquire(SOON).unwrap().release().unwrap();
    refuse_after(&fixture, Fault::Answer("-LOADING wait\r\n"), REFUSALS[1], 1);
    is_unknown("another attempt is refused", lock.acquire(SOON));
    is_given_back(&fixture, "it is given back");
}

/// Calls that soon have no connection.
fn fails_soon() -> Fixture {
    let short = Duration::from_millis(200);
    start_with(|builder| {
        builder.connect_timeout(short).response_timeout(short).checkout_timeout(3 * short)
    })
}

/// The next `replies` scripts are run and replied to, and no script after them arrives.
fn cut_after(fixture: &Fixture, script: Script, replies: usize) {
    let passes = (Trigger::AfterReplyTo("EVALSHA"), Fault::Delay(Duration::ZERO));
    let script = (0..replies).fold(script, |script, _| script.on(passes.0, passes.1));
    let cut = (Trigger::BeforeCommandNamed("EVALSHA"), Fault::Cut);
    let script = (0..100).fold(script, |script, _| script.on(cut.0, cut.1));
    fixture.proxy.arm(script.in_turn());
}

#[track_caller]
fn has_no_reply<T: std::fmt::Debug>(ended: Result<T, Error>) {
    let error = ended.expect_err("it may hold the lock");
    assert!(
        matches!(error, Error::Lock(LockError::Connection { during: "acquire", .. })),
        "{error:?}"
    );
    assert_eq!((error.applied(), error.is_retryable()), (Applied::Unknown, true), "{error:?}");
}

#[test]
fn an_acquisition_without_a_connection_behind_a_request_that_ran_is_unknown() {
    let fixture = fails_soon();
    let lock = fixture.sessions.lock("l").lease(LONG);
    // It ends by its time, or by the close of its session manager.
    for closes in [false, true] {
        lock.acquire(SOON).unwrap().release().unwrap();
        fixture.proxy.refuse_new(true);
        // On each connection that is open.
        fixture.proxy.arm((Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut));
        let wait = if closes { LONG } else { Duration::from_millis(1500) };
        let waiting = lock.clone();
        let waiting = thread::spawn(move || waiting.acquire(wait));
        eventually(SOON, "the request has run", || fixture.holders() == 1);
        if closes {
            fixture.sessions.close(Duration::ZERO);
        }
        has_no_reply(waiting.join().unwrap());
        fixture.proxy.refuse_new(false);
        is_given_back(&fixture, "it is released in the background");
    }
}

#[test]
fn an_acquisition_without_the_lock_is_unknown_until_a_copy_of_it_is_released() {
    let fixture = fails_soon();
    let lock = fixture.sessions.lock("l").lease(LONG);
    lock.acquire(SOON).unwrap().release().unwrap();
    let guard = fixture.other().lock("l").lease(LONG).acquire(SOON).unwrap();
    let lost = (Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    for wait in [Duration::ZERO, Duration::from_millis(100)] {
        cut_after(&fixture, lost.into(), 1);
        has_no_reply(lock.acquire(wait));
        fixture.proxy.disarm();
    }
    eventually(SOON, "both are released", || fixture.locks().releasing == 0);
    // A copy that is held back is released before the call returns.
    let remembered =
        || fixture.server.ask::<Vec<String>>(&["KEYS", "rediscope:lock:{l}:done:*"]).len();
    let before = (fixture.proxy.fired(), remembered());
    fixture.arm(Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    timed_out(lock.acquire(Duration::from_millis(700)));
    assert_eq!((fixture.proxy.fired(), remembered()), (before.0 + 1, before.1 + 1));
    guard.release().unwrap();
    let before = fixture.server.calls("evalsha");
    fixture.proxy.release();
    eventually(SOON, "the copy arrives", || fixture.server.calls("evalsha") > before);
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn a_lock_that_too_few_replicas_have_and_that_is_not_released_is_unknown() {
    let fixture = fails_soon();
    let lock = fixture.sessions.lock("l").lease(LONG);
    lock.acquire(SOON).unwrap().release().unwrap();
    cut_after(&fixture, Script::new(), 1);
    has_no_reply(lock.wait_replicas(1, Duration::from_millis(20)).try_acquire());
    is_given_back(&fixture, "it is released in the background");
}

#[test]
fn a_call_for_several_locks_that_keeps_one_of_them_is_unknown() {
    let fixture = fails_soon();
    let all = fixture.sessions.lock_all(["l", "m"]).lease(LONG);
    all.acquire(SOON).unwrap().release().unwrap();
    let guard = fixture.other().lock("m").lease(LONG).acquire(SOON).unwrap();
    cut_after(&fixture, Script::new(), 2);
    let error = all.try_acquire().unwrap_err();
    assert_eq!((error.applied(), fixture.holders()), (Applied::Unknown, 1), "{error:?}");
    is_given_back(&fixture, "it is released in the background");
    guard.release().unwrap();
}

// Tasks send other numbers of requests while they wait.
crate::side::threads_only! {
#[test]
fn a_call_for_several_locks_is_unknown_if_one_expired_here_and_not_on_the_server() {
    let fixture = fails_soon();
    let all = fixture.sessions.lock_all(["l", "m"]).lease(Duration::from_millis(900));
    all.acquire(SOON).unwrap().release().unwrap();
    let guard = fixture.other().lock("m").lease(LONG).acquire(SOON).unwrap();
    // The lease of the first lock counts from the call here, and from the late request on the server.
    let late = (Trigger::BeforeCommandNamed("EVALSHA"), Fault::Delay(Duration::from_millis(150)));
    cut_after(&fixture, late.into(), 3);
    let error = all.fixed_lease().acquire(Duration::from_millis(1000)).unwrap_err();
    assert_eq!((error.applied(), fixture.holders()), (Applied::Unknown, 1), "{error:?}");
    guard.release().unwrap();
}
}
