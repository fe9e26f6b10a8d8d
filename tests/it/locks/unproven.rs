//! A script ran, and a proxy replies with an error of its own: the outcome is unknown, and what was acquired is
//! released by its owner token.
//!
//! Guarantee: locks

use crate::fixture::{LONG, SOON};
use rediscope::Error;
use rediscope::error::{Applied, LockError};

use super::fixture::{all_ways, every_kind, start};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

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
