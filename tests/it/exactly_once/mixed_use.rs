//! A connection's register as it ages: plain transactions do not notice it, and exactly-once ones renew it in
//! time.
//!
//! Guarantee: exactly-once

use super::fixture::start_with;
use crate::fixture::{Fixture, OF_ONE, SOON, add_on, add_on_each};
use std::time::Duration;

use crate::side::Transactional;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{Begin, CommitError, Error, Outcome, Ready, RetryPolicy, TransactionOptions};

use rediscope_testing::eventually;

const TTL: Duration = Duration::from_secs(1);

/// How old the register is that the connection watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Young,
    PastHalf,
    Expired,
}

impl Age {
    const ALL: [Self; 3] = [Self::Young, Self::PastHalf, Self::Expired];
}

/// Waits until the registers are as old; nothing else writes them meanwhile.
fn ripen(fixture: &Fixture, age: Age) {
    let left = || -> Vec<i64> {
        fixture.registers().iter().map(|register| fixture.server.ask(&["PTTL", register])).collect()
    };
    match age {
        Age::Young => {}
        Age::PastHalf => eventually(SOON, "half of its life is over", || {
            left().iter().all(|&left| left < TTL.as_millis() as i64 / 2)
        }),
        Age::Expired => eventually(SOON, "it has expired", || fixture.registers().is_empty()),
    }
}

fn short(trust: Duration) -> Fixture {
    start_with(&[], |builder| builder.register_ttl(TTL).trust_window(trust))
}

/// One try, and no hiding behind another.
fn plain(fixture: &Fixture) -> Transactional {
    let once = TransactionOptions::new().retry(RetryPolicy::never());
    fixture.sessions.transactional().with(once)
}

#[test]
fn a_plain_block_never_meets_the_register_of_its_connection() {
    for trust in [Duration::ZERO, SOON] {
        for age in Age::ALL {
            let fixture = short(trust);
            fixture.armed();
            ripen(&fixture, age);
            for nth in (0..3).flat_map(|_| 0..OF_ONE) {
                add_on(nth, &plain(&fixture), "n");
            }
            assert_eq!(fixture.number("n"), 3 * OF_ONE as i64, "{age:?}");
            assert_eq!(fixture.proxy.accepted(), OF_ONE as u64, "on that very connection");
        }
    }
}

#[test]
fn a_plain_guard_never_meets_a_register_that_ages_while_it_is_open() {
    let begins = [Begin::Deferred, Begin::Immediate];
    for (begin, age) in begins.into_iter().flat_map(|begin| Age::ALL.map(|age| (begin, age))) {
        let fixture = short(SOON);
        fixture.armed();
        let plain = plain(&fixture).with(TransactionOptions::new().begin(begin));
        let mut tx = plain.begin().unwrap();
        let n = tx.incr("n", 1);
        ripen(&fixture, age);
        assert_eq!(tx.commit().unwrap().get(n).unwrap(), 1, "{begin:?} {age:?}");
        assert_eq!(fixture.number("n"), 1);
    }
}

#[test]
fn a_plain_transaction_sent_in_chunks_never_meets_a_register_that_ages_meanwhile() {
    for age in [Age::PastHalf, Age::Expired] {
        let fixture = start_with(&[], |builder| builder.register_ttl(TTL).flush_bytes(64));
        fixture.armed();
        let mut tx = plain(&fixture).begin().unwrap();
        for _ in 0..5 {
            tx.incr("n", 1);
        }
        crate::side::send_ahead(&mut tx);
        ripen(&fixture, age);
        for _ in 0..5 {
            tx.incr("n", 1);
        }
        assert_eq!(tx.commit().unwrap().len(), 10, "{age:?}");
        assert_eq!(fixture.number("n"), 10);
    }
}

#[test]
fn a_plain_watching_block_has_no_conflict_if_only_the_register_expires() {
    for age in Age::ALL {
        let fixture = short(SOON);
        fixture.armed();
        let mut runs = 0;
        let n = plain(&fixture).watch(["n"]).run(|read, tx| {
            runs += 1;
            let n: Option<i64> = read.get("n")?;
            ripen(&fixture, age);
            tx.set("n", n.unwrap_or_default() + 1);
            Ok(())
        });
        n.unwrap();
        assert_eq!((runs, fixture.number("n")), (1, 1), "{age:?}");
        let watching = plain(&fixture).watch(["n"]).begin().unwrap();
        fixture.server.ask::<()>(&["SET", "n", "7"]);
        let mut tx = watching.multi();
        tx.incr("n", 1);
        assert!(matches!(tx.commit().unwrap(), Outcome::Conflict), "a real one is still returned");
    }
}

#[test]
fn plain_reads_on_one_connection_commit_whatever_the_register_does() {
    for age in Age::ALL {
        let fixture = short(SOON);
        fixture.armed();
        let read = plain(&fixture).reading().run(|read, tx| {
            let n: Option<i64> = read.get("n")?;
            ripen(&fixture, age);
            Ok((Ready(n), tx.incr("n", 1)))
        });
        assert_eq!(read.unwrap(), (None, 1), "{age:?}");
    }
}

#[test]
fn an_exactly_once_block_whose_register_expires_runs_again_and_is_applied_once() {
    let fixture = short(SOON);
    let handle = fixture.armed();
    ripen(&fixture, Age::Expired);
    add_on_each(&handle, "n");
    let mut runs = 0;
    let n = handle.watch(["n"]).run(|read, tx| {
        runs += 1;
        let n: Option<i64> = read.get("n")?;
        if runs == 1 {
            ripen(&fixture, Age::Expired);
        }
        tx.set("n", n.unwrap_or_default() + 1);
        Ok(())
    });
    n.unwrap();
    assert_eq!((runs, fixture.number("n")), (2, 1 + OF_ONE as i64));
}

#[test]
fn a_register_past_half_its_life_is_written_again_before_anything_of_the_callers_leaves() {
    for age in [Age::PastHalf, Age::Expired] {
        let fixture = short(SOON);
        let handle = fixture.armed();
        ripen(&fixture, age);
        fixture.sent();
        let anew = ["UNWATCH", "SET", "WATCH", "MULTI", "INCRBY", "SET", "EXEC", "WATCH"];
        for nth in 0..OF_ONE {
            add_on(nth, &handle, "n");
            assert_eq!(fixture.sent(), anew, "{age:?}");
        }
        ripen(&fixture, age);
        fixture.sent();
        handle.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 1))).unwrap();
        let anew = ["UNWATCH", "SET", "WATCH", "WATCH", "MULTI", "INCRBY", "SET", "EXEC", "WATCH"];
        assert_eq!(fixture.sent(), anew, "{age:?}");
        assert_eq!(fixture.number("n"), 1 + OF_ONE as i64);
    }
}

#[test]
fn an_exactly_once_guard_whose_register_expires_is_applied_once() {
    for begin in [Begin::Deferred, Begin::Immediate] {
        let fixture = short(SOON);
        let handle = fixture.armed().with(TransactionOptions::new().begin(begin));
        let mut tx = handle.begin().unwrap();
        let n = tx.incr("n", 1);
        ripen(&fixture, Age::Expired);
        assert_eq!(tx.commit().unwrap().get(n).unwrap(), 1, "{begin:?}");
        assert_eq!(fixture.number("n"), 1);
    }
}

#[test]
fn if_nothing_can_be_sent_again_an_expired_register_is_an_error_and_nothing_is_applied() {
    let fixture = start_with(&[], |builder| builder.register_ttl(TTL).flush_bytes(64));
    let mut tx = fixture.armed().begin().unwrap();
    for _ in 0..10 {
        tx.incr("n", 1);
    }
    crate::side::send_ahead(&mut tx);
    ripen(&fixture, Age::Expired);
    let lost = tx.commit().unwrap_err();
    assert!(matches!(lost, Error::Commit(CommitError::NotSent { .. })), "{lost:?}");
    assert_eq!((lost.applied(), lost.is_retryable()), (Applied::No, true));
    // A guard that watches cannot know which key it was.
    let watching = fixture.armed().watch(["w"]).begin().unwrap();
    ripen(&fixture, Age::Expired);
    let mut tx = watching.multi();
    tx.incr("n", 1);
    assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
    assert_eq!(fixture.number("n"), 0);
    assert_eq!(fixture.exactly_once().run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
}
