//! A link's register as it ages: to plain transactions on the link it is nothing, to exactly-once
//! ones it is made anew in time.

use std::time::Duration;

use rediscope::prelude::*;
use rediscope::{
    Applied, Begin, CommitError, Outcome, Ready, RetryPolicy, TransactionOptions, Transactional,
};

use super::stage::{SOON, Stage};
use rediscope_testing::eventually;

const TTL: Duration = Duration::from_secs(1);

/// How old the register is that the link watches.
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
fn ripen(stage: &Stage, age: Age) {
    let left = || -> Vec<i64> {
        stage.registers().iter().map(|register| stage.server.ask(&["PTTL", register])).collect()
    };
    match age {
        Age::Young => {}
        Age::PastHalf => eventually(SOON, "half of its life is over", || {
            left().iter().all(|&left| left < TTL.as_millis() as i64 / 2)
        }),
        Age::Expired => eventually(SOON, "it has expired", || stage.registers().is_empty()),
    }
}

fn short(trust: Duration) -> Stage {
    Stage::with(&[], |builder| builder.register_ttl(TTL).trust_window(trust))
}

/// One try, and no hiding behind another.
fn plain(stage: &Stage) -> Transactional {
    let once = TransactionOptions::new().retry(RetryPolicy::never());
    stage.sessions.transactional().with(once)
}

#[test]
fn a_plain_block_never_meets_the_register_of_its_link() {
    for trust in [Duration::ZERO, SOON] {
        for age in Age::ALL {
            let stage = short(trust);
            stage.armed();
            ripen(&stage, age);
            for nth in 1..=3 {
                let n = plain(&stage).run(|tx| Ok(tx.incr("n", 1)));
                assert_eq!(n.unwrap(), nth, "{age:?}");
            }
            assert_eq!(stage.number("n"), 3);
            assert_eq!(stage.proxy.accepted(), 1, "on that very link");
        }
    }
}

#[test]
fn a_plain_guard_never_meets_a_register_that_ages_while_it_is_open() {
    let begins = [Begin::Deferred, Begin::Immediate];
    for (begin, age) in begins.into_iter().flat_map(|begin| Age::ALL.map(|age| (begin, age))) {
        let stage = short(SOON);
        stage.armed();
        let plain = plain(&stage).with(TransactionOptions::new().begin(begin));
        let mut tx = plain.begin().unwrap();
        let n = tx.incr("n", 1);
        ripen(&stage, age);
        assert_eq!(tx.commit().unwrap().get(n).unwrap(), 1, "{begin:?} {age:?}");
        assert_eq!(stage.number("n"), 1);
    }
}

#[test]
fn a_plain_transaction_sent_in_chunks_never_meets_a_register_that_ages_meanwhile() {
    for age in [Age::PastHalf, Age::Expired] {
        let stage = Stage::with(&[], |builder| builder.register_ttl(TTL).flush_bytes(64));
        stage.armed();
        let mut tx = plain(&stage).begin().unwrap();
        for _ in 0..5 {
            tx.incr("n", 1);
        }
        ripen(&stage, age);
        for _ in 0..5 {
            tx.incr("n", 1);
        }
        assert_eq!(tx.commit().unwrap().len(), 10, "{age:?}");
        assert_eq!(stage.number("n"), 10);
    }
}

#[test]
fn a_plain_watching_block_has_no_conflict_where_only_the_register_expires() {
    for age in Age::ALL {
        let stage = short(SOON);
        stage.armed();
        let mut runs = 0;
        let n = plain(&stage).watch(["n"]).run(|read, tx| {
            runs += 1;
            let n: Option<i64> = read.get("n")?;
            ripen(&stage, age);
            tx.set("n", n.unwrap_or_default() + 1);
            Ok(())
        });
        n.unwrap();
        assert_eq!((runs, stage.number("n")), (1, 1), "{age:?}");
        let watching = plain(&stage).watch(["n"]).begin().unwrap();
        stage.server.ask::<()>(&["SET", "n", "7"]);
        let mut tx = watching.multi();
        tx.incr("n", 1);
        assert!(matches!(tx.commit().unwrap(), Outcome::Conflict), "a real one is still told");
    }
}

#[test]
fn plain_reads_on_one_connection_commit_whatever_the_register_does() {
    for age in Age::ALL {
        let stage = short(SOON);
        stage.armed();
        let read = plain(&stage).reading().run(|read, tx| {
            let n: Option<i64> = read.get("n")?;
            ripen(&stage, age);
            Ok((Ready(n), tx.incr("n", 1)))
        });
        assert_eq!(read.unwrap(), (None, 1), "{age:?}");
    }
}

#[test]
fn an_exactly_once_block_whose_register_expires_runs_again_and_is_applied_once() {
    let stage = short(SOON);
    let handle = stage.armed();
    ripen(&stage, Age::Expired);
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    let mut runs = 0;
    let n = handle.watch(["n"]).run(|read, tx| {
        runs += 1;
        let n: Option<i64> = read.get("n")?;
        if runs == 1 {
            ripen(&stage, Age::Expired);
        }
        tx.set("n", n.unwrap_or_default() + 1);
        Ok(())
    });
    n.unwrap();
    assert_eq!((runs, stage.number("n")), (2, 2));
}

#[test]
fn a_register_past_half_its_life_is_written_anew_before_anything_of_the_callers_leaves() {
    for age in [Age::PastHalf, Age::Expired] {
        let stage = short(SOON);
        let handle = stage.armed();
        ripen(&stage, age);
        stage.words();
        assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
        let anew = ["UNWATCH", "SET", "WATCH", "MULTI", "INCRBY", "SET", "EXEC", "WATCH"];
        assert_eq!(stage.words(), anew, "{age:?}");
        ripen(&stage, age);
        stage.words();
        handle.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 1))).unwrap();
        let anew = ["UNWATCH", "SET", "WATCH", "WATCH", "MULTI", "INCRBY", "SET", "EXEC", "WATCH"];
        assert_eq!(stage.words(), anew, "{age:?}");
        assert_eq!(stage.number("n"), 2);
    }
}

#[test]
fn an_exactly_once_guard_whose_register_expires_is_applied_once() {
    for begin in [Begin::Deferred, Begin::Immediate] {
        let stage = short(SOON);
        let handle = stage.armed().with(TransactionOptions::new().begin(begin));
        let mut tx = handle.begin().unwrap();
        let n = tx.incr("n", 1);
        ripen(&stage, Age::Expired);
        assert_eq!(tx.commit().unwrap().get(n).unwrap(), 1, "{begin:?}");
        assert_eq!(stage.number("n"), 1);
    }
}

#[test]
fn where_nothing_can_be_sent_again_an_expired_register_is_told_and_nothing_is_applied() {
    let stage = Stage::with(&[], |builder| builder.register_ttl(TTL).flush_bytes(64));
    let mut tx = stage.armed().begin().unwrap();
    for _ in 0..10 {
        tx.incr("n", 1);
    }
    ripen(&stage, Age::Expired);
    let lost = tx.commit().unwrap_err();
    assert!(matches!(lost, CommitError::NotSent { .. }), "{lost:?}");
    assert_eq!((lost.applied(), lost.is_retryable()), (Applied::No, true));
    // A guard that watches cannot tell whose key it was.
    let watching = stage.armed().watch(["w"]).begin().unwrap();
    ripen(&stage, Age::Expired);
    let mut tx = watching.multi();
    tx.incr("n", 1);
    assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
    assert_eq!(stage.number("n"), 0);
    assert_eq!(stage.exactly_once().run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
}
