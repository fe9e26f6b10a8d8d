//! Conditions together with the other options of a transaction.
//!
//! Guarantee: conditions, condition-failed

use crate::fixture::{Fixture, LONG, MEET, SOON, inside_at_once};
use std::time::Duration;

use crate::side::{LockGuard, SessionManager};
use rediscope::error::ReplyError;
use rediscope::prelude::*;
use rediscope::{Begin, CommitError, Condition, Error, TransactionOptions};

use super::fixture::{failed, start, start_with};
use rediscope_testing::proxy::{Fault, Script, Trigger};
use rediscope_testing::server::Server;

const HOUR: Duration = Duration::from_secs(3600);

fn lost_answer(fixture: &Fixture) {
    fixture.proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Reset)).once());
}

#[test]
fn exactly_once_finds_out_although_the_condition_holds_no_more() {
    let fixture = start();
    let handle = fixture.accounts().with(TransactionOptions::new().exactly_once());
    let required = handle.require(Condition::not_exists("seat"));
    lost_answer(&fixture);
    let mut runs = 0;
    let reported = required.run(|tx| {
        runs += 1;
        tx.set("seat", "mine");
        Ok(tx.incr("n", 1))
    });
    // Applied, its replies lost: it is neither read nor run a second time.
    assert!(matches!(reported, Err(Error::Reply(ReplyError::Lost))), "{reported:?}");
    assert_eq!((fixture.get("n").unwrap().as_str(), runs), ("1", 1));
    failed(required.run(|tx| Ok(tx.incr("n", 1))));
    // One that never arrived is resolved and sent again.
    fixture.set("DEL seat");
    fixture.proxy.arm(Script::from((Trigger::InsideCommandNamed("EXEC", 3), Fault::Reset)).once());
    assert_eq!(required.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 2);
    crate::side::settled(&fixture.sessions);
    assert_eq!(fixture.sessions.status().transactional.in_use, 0);
}

#[test]
fn an_applied_block_is_reported_as_applied_and_not_as_a_failed_condition() {
    let fixture = start();
    let once = TransactionOptions::new().exactly_once_as("booking:1", HOUR);
    let handle = fixture.accounts().with(once);
    let required = handle.require(Condition::not_exists("seat"));
    required.run(|tx| Ok(tx.set("seat", "mine"))).unwrap();
    let reported = required.run(|tx| Ok(tx.set("seat", "mine again")));
    match reported {
        Err(Error::Commit(error)) => assert!(matches!(error, CommitError::AlreadyCommitted)),
        other => panic!("{other:?}"),
    }
    let other =
        fixture.accounts().with(TransactionOptions::new().exactly_once_as("booking:2", HOUR));
    failed(other.require(Condition::not_exists("seat")).run(|tx| Ok(tx.set("seat", "other"))));
    assert_eq!(fixture.get("seat").unwrap(), "mine");
    // What failed was not done, and may be.
    let reported = other.require(Condition::exists("seat")).run(|tx| Ok(tx.set("seat", "other")));
    reported.unwrap();
    assert_eq!(fixture.get("seat").unwrap(), "other");
}

#[test]
fn a_block_that_is_already_committed_is_no_discard_in_any_form() {
    let fixture = start();
    let once = fixture.accounts().with(TransactionOptions::new().exactly_once_as("paid:1", HOUR));
    once.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let guard = || {
        let mut tx = once.begin()?;
        tx.incr("n", 1);
        tx.commit().map(|_| 0)
    };
    let discards = || fixture.sessions.status().transactional.counts.discards;
    let before = discards();
    let again: [Result<i64, Error>; 5] = [
        once.run(|tx| Ok(tx.incr("n", 1))),
        guard(),
        once.watch(["n"]).run(|_, tx| Ok(tx.incr("n", 1))),
        once.require(Condition::exists("n")).run(|tx| Ok(tx.incr("n", 1))),
        once.require(Condition::exists("n")).begin().map(|_| 0),
    ];
    for again in again {
        assert!(matches!(again, Err(Error::Commit(CommitError::AlreadyCommitted))), "{again:?}");
    }
    assert_eq!(discards() - before, 0);
    fixture.is_as_it_was(&["n"]);
}

#[test]
fn blocks_that_change_a_conditions_key_take_turns() {
    let fixture = start_with(|builder| builder.max_size(4).trust_window(LONG));
    fixture.set("SET stock 1");
    let required = fixture.accounts().require(Condition::exists("stock"));
    let inside = |time| {
        inside_at_once(time, |wait| {
            let run = required.run(|tx| {
                wait();
                Ok(tx.incr("other", 1))
            });
            run.unwrap();
        })
    };
    assert_eq!(inside(SOON), 2);
    let mut runs = 0;
    let sold = required.run(|tx| {
        runs += 1;
        if runs == 1 {
            fixture.set("INCR stock");
        }
        Ok(tx.decr("stock", 1))
    });
    assert_eq!((sold.unwrap(), runs), (1, 2));
    assert_eq!(inside(MEET), 1);
}

#[test]
fn an_exactly_once_connection_stays_armed_across_a_failed_condition() {
    let fixture = start();
    let handle = fixture.accounts().with(TransactionOptions::new().exactly_once());
    let commit = || {
        let mut tx = handle.begin().unwrap();
        tx.incr("n", 1);
        tx.commit().unwrap();
    };
    commit();
    fixture.sent();
    failed(handle.require(Condition::exists("none")).begin().map(drop));
    assert_eq!(fixture.sent(), ["WATCH", "EXISTS", "UNWATCH", "SET", "WATCH"]);
    commit();
    assert_eq!(fixture.sent(), ["MULTI", "INCRBY", "SET", "EXEC", "WATCH"]);
}

#[test]
fn conditions_are_fenced_by_a_lock_like_any_block() {
    let fixture = start();
    let acquire = |sessions: &SessionManager| -> LockGuard {
        sessions.lock("l").lease(HOUR).acquire(SOON).unwrap()
    };
    let guard = acquire(&fixture.sessions);
    fixture.set("SET k 1");
    let required = fixture.accounts().fenced_by(&guard).require(Condition::exists("k"));
    // Renewals have a connection of their own, which is open once it was used.
    guard.ensure_held().unwrap();
    let turns = fixture.proxy.turns();
    assert_eq!(required.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    assert_eq!(fixture.proxy.turns() - turns, 2, "the lock is read in the same write");
    failed(
        fixture.accounts().fenced_by(&guard).require(Condition::not_exists("k")).begin().map(drop),
    );
    let other = SessionManager::connect(fixture.server.url()).unwrap();
    other.lock("l").force_release().unwrap();
    let theirs = acquire(&other);
    match required.run(|tx| Ok(tx.incr("n", 1))) {
        Err(Error::Commit(error)) => assert!(matches!(error, CommitError::LockLost), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.get("n").unwrap(), "1");
    drop(theirs);
}

#[test]
fn replicas_are_waited_for_if_the_conditions_hold() {
    let fixture = start();
    let replica = Server::replica_of(&fixture.server);
    fixture.set("SET k 1");
    let waits = |replicas| TransactionOptions::new().wait_replicas(replicas, SOON / 2);
    let required = fixture.accounts().with(waits(1)).require(Condition::exists("k"));
    assert_eq!(required.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    assert_eq!(replica.ask::<i64>(&["GET", "n"]), 1);
    let brief = TransactionOptions::new().wait_replicas(2, Duration::from_millis(20));
    let reported = fixture
        .accounts()
        .with(brief)
        .require(Condition::exists("k"))
        .run(|tx| Ok(tx.incr("n", 1)));
    match reported {
        Err(Error::Commit(error)) => {
            assert!(matches!(error, CommitError::NotReplicated { .. }), "{error}");
        }
        other => panic!("{other:?}"),
    }
    failed(fixture.accounts().with(waits(9)).require(Condition::not_exists("k")).begin().map(drop));
    assert_eq!(fixture.get("n").unwrap(), "2");
}

#[test]
fn every_other_option_leaves_conditions_as_they_are() {
    let fixture = start();
    fixture.set("SET k 1");
    for options in [
        TransactionOptions::new().begin(Begin::Immediate),
        TransactionOptions::new().grouped(),
        TransactionOptions::new().take_turns(false),
        TransactionOptions::new().name("named"),
    ] {
        let handle = fixture.accounts().with(options);
        let mut disturb = true;
        let reported = handle.require(Condition::exists("k")).run(|tx| {
            if std::mem::take(&mut disturb) {
                fixture.set("SET k 2");
            }
            Ok(tx.incr("n", 1))
        });
        assert!(reported.is_ok(), "{reported:?}");
        failed(handle.require(Condition::equals("k", 1)).run(|tx| Ok(tx.incr("n", 1))));
    }
    assert_eq!(fixture.get("n").unwrap(), "4");
    fixture.is_as_it_was(&["k"]);
}

#[test]
fn a_block_with_an_error_type_of_its_own_receives_both_errors() {
    #[derive(Debug)]
    enum Shop {
        Closed,
        SoldOut,
        Redis,
    }
    impl From<Error> for Shop {
        fn from(error: Error) -> Self {
            match error {
                Error::ConditionFailed { kind: "at_least", .. } => Self::SoldOut,
                _ => Self::Redis,
            }
        }
    }
    let fixture = start();
    fixture.set("SET stock 1");
    let required = fixture.accounts().require(Condition::at_least("stock", 1));
    let sell = |open: bool| {
        required.run_with(|tx| if open { Ok(tx.decr("stock", 1)) } else { Err(Shop::Closed) })
    };
    assert!(matches!(sell(false), Err(Shop::Closed)));
    assert!(matches!(sell(true), Ok(0)));
    assert!(matches!(sell(true), Err(Shop::SoldOut)));
    fixture.is_as_it_was(&["stock"]);
}
