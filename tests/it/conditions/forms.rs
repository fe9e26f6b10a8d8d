//! What is sent for conditions, and the result of a lost race.
//!
//! Guarantee: conditions

use crate::fixture::SOON;
use std::time::Duration;

use rediscope::prelude::*;
use rediscope::redis::cmd;
use rediscope::{Condition, Error, Outcome, RetryPolicy, TransactionOptions};

use super::fixture::{failed, start, start_with};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};

#[test]
fn watch_and_all_questions_travel_in_one_packet() {
    let fixture = start();
    fixture.set("SET k v");
    fixture.set("HSET h f 1");
    let required = fixture
        .accounts()
        .require(Condition::exists("k"))
        .require(Condition::equals("k", "v"))
        .require(Condition::hash_len_at_most("h", 5))
        .require(Condition::set_not_contains("s", "m"))
        .require(Condition::sorted_set_score_at_least("none", "m", 0.0));
    let turns = fixture.proxy.turns();
    failed(required.run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(fixture.proxy.turns() - turns, 2, "all questions, then UNWATCH");
    let asked = ["WATCH", "EXISTS", "GET", "HLEN", "SISMEMBER", "ZSCORE"];
    assert_eq!(fixture.sent()[..6], asked);
    fixture.set("ZADD none 1 m");
    let turns = fixture.proxy.turns();
    assert_eq!(required.run(|tx| Ok((tx.incr("n", 1), tx.incr("n", 1)))).unwrap(), (1, 2));
    assert_eq!(fixture.proxy.turns() - turns, 2, "all questions, then the block");
    let journal = fixture.sent();
    assert_eq!(journal[..6], asked);
    assert_eq!(journal[6..], ["MULTI", "INCRBY", "INCRBY", "EXEC"]);
    fixture.is_as_it_was(&["k", "h", "s", "none"]);
}

#[test]
fn after_a_lost_race_the_conditions_are_read_again_and_committed() {
    let fixture = start();
    fixture.set("SET stock 9");
    let required = fixture.accounts().require(Condition::at_least("stock", 1));
    let mut runs = 0;
    let turns = fixture.proxy.turns();
    let commits = fixture.sessions.status().transactional.counts.commits;
    let left = required.run(|tx| {
        runs += 1;
        if runs <= 2 {
            fixture.set("DECR stock");
        }
        Ok(tx.decr("stock", 1))
    });
    assert_eq!((left.unwrap(), runs), (6, 3));
    assert_eq!(fixture.proxy.turns() - turns, 6, "two round trips an attempt");
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!((counts.conflicts, counts.retries, counts.commits), (2, 2, commits + 1));
    fixture.is_as_it_was(&["stock"]);
}

#[test]
fn a_race_that_is_lost_for_good_is_reported_as_the_condition_that_failed() {
    let fixture = start();
    fixture.set("SET stock 1");
    let required = fixture
        .accounts()
        .require(Condition::exists("stock"))
        .require(Condition::at_least("stock", 1));
    let mut runs = 0;
    let execs = fixture.server.calls("exec");
    let reported = required.run(|tx| {
        runs += 1;
        fixture.set("DECR stock");
        Ok(tx.decr("stock", 1))
    });
    assert_eq!((failed(reported).0, runs), (1, 1), "the block is not run again");
    assert_eq!(fixture.get("stock").unwrap(), "0");
    assert_eq!(fixture.server.calls("exec"), execs + 1, "and it was the race that undid it");
    fixture.is_as_it_was(&["stock"]);
}

#[test]
fn a_race_that_is_lost_every_time_ends_with_the_policy() {
    let fixture = start();
    let handle = fixture
        .accounts()
        .with(TransactionOptions::new().retry(RetryPolicy::default().attempts(3)));
    let mut runs = 0;
    let mut reported = |required: &crate::side::Conditional| {
        runs = 0;
        let reported = required.run(|tx| {
            runs += 1;
            fixture.set("INCR stock");
            Ok(tx.incr("n", 1))
        });
        match reported {
            Err(error @ Error::RetriesExhausted { attempts, .. }) => {
                assert!(error.is_retryable());
                assert_eq!(attempts, runs);
            }
            other => panic!("{other:?}"),
        }
        runs
    };
    let required = handle.require(Condition::at_least("stock", 0));
    assert_eq!(reported(&required), 3, "the handle's policy");
    assert_eq!(reported(&required.retry(RetryPolicy::never())), 1, "its own");
    assert_eq!(fixture.get("n"), None);
}

#[test]
fn a_key_that_expires_before_exec_is_a_lost_race() {
    let fixture = start();
    fixture.set("SET held by-me PX 300");
    let mut runs = 0;
    let reported = fixture.accounts().require(Condition::equals("held", "by-me")).run(|tx| {
        runs += 1;
        eventually(SOON, "the key is gone", || fixture.get("held").is_none());
        Ok(tx.incr("n", 1))
    });
    assert_eq!(failed(reported).1, "equals");
    assert!(runs <= 1, "on a slow machine it was gone before");
    assert_eq!(fixture.get("n"), None);
    fixture.is_as_it_was(&["held"]);
}

#[test]
fn keys_without_a_condition_may_change() {
    let fixture = start();
    fixture.set("SET k 1");
    let reported = fixture.accounts().require(Condition::exists("k")).run(|tx| {
        fixture.set("SET other 1");
        Ok(tx.incr("n", 1))
    });
    assert_eq!(reported.unwrap(), 1);
    assert_eq!(fixture.sessions.status().transactional.counts.retries, 0);
}

#[test]
fn a_guard_is_returned_if_they_hold_and_its_commit_reports_a_lost_race() {
    let fixture = start();
    fixture.set("SET stock 2");
    let required = fixture.accounts().require(Condition::at_least("stock", 1));
    for changed in [false, true] {
        let mut tx = required.begin().unwrap();
        let left = tx.decr("stock", 1);
        if changed {
            fixture.set("SET stock 5");
        }
        match tx.commit().unwrap() {
            Outcome::Committed(replies) => {
                assert_eq!((replies.get(left).unwrap(), changed), (1, false))
            }
            Outcome::Conflict => assert!(changed),
        }
    }
    assert_eq!(fixture.get("stock").unwrap(), "5");
    let mut tx = required.begin().unwrap();
    tx.decr("stock", 1);
    tx.discard().unwrap();
    fixture.is_as_it_was(&["stock"]);
}

#[test]
fn a_watch_and_a_reading_scope_require_too() {
    let fixture = start();
    fixture.set("MSET price 3 stock 2");
    let handle = fixture.accounts();
    let mut watch = handle.watch(["price"]).require(Condition::at_least("stock", 1));
    let price = watch.declare::<i64>(cmd("GET").arg("price").take()).unwrap();
    let watch = watch.require(Condition::exists("price"));
    let mut disturbed = 0;
    let turns = fixture.proxy.turns();
    let till = watch.run(|read, tx| {
        if disturbed < 2 {
            fixture.set(if disturbed == 0 { "SET price 4" } else { "SET stock 1" });
            disturbed += 1;
        }
        let price = read.declared(price)?;
        tx.decr("stock", 1);
        Ok(tx.incr("till", price))
    });
    assert_eq!(till.unwrap(), 4, "both keys were watched");
    assert_eq!((disturbed, fixture.proxy.turns() - turns), (2, 6));
    let failing = failed(watch.run(|_, tx| Ok(tx.incr("till", 1))));
    assert_eq!(failing.0, 0, "what was declared is not counted");
    fixture.set("DEL price");
    fixture.set("SET stock 1");
    assert_eq!(failed(watch.begin().map(drop)), (1, "exists", None));
    // The keys of conditions are watched, even if no other key is.
    let reading = handle.reading().require(Condition::equals("stock", 1));
    fixture.sent();
    let reported = reading.run(|read, tx| {
        let _: Option<i64> = read.get("price")?;
        fixture.set("SET price 9");
        Ok(tx.decr("stock", 1))
    });
    assert_eq!(reported.unwrap(), 0);
    assert_eq!(fixture.sent(), ["WATCH", "GET", "GET", "MULTI", "DECRBY", "EXEC"]);
    fixture.is_as_it_was(&["price", "stock"]);
}

#[test]
fn a_connection_that_died_while_idle_is_replaced_and_the_conditions_are_read_again() {
    let fixture = start_with(|builder| builder.trust_window(Duration::ZERO));
    fixture.set("SET k 1");
    let required = fixture.accounts().require(Condition::exists("k"));
    fixture.server.kill_all_clients_except_me();
    assert_eq!(required.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    // And one that dies with the questions, or before EXEC has left.
    for (trigger, n) in [
        (Trigger::BeforeReplyTo("EXISTS"), 2),
        (Trigger::InsideReplyTo("WATCH", 2), 3),
        (Trigger::AfterReplyTo("EXISTS"), 4),
    ] {
        fixture.proxy.arm(Script::from((trigger, Fault::Reset)).once());
        assert_eq!(required.run(|tx| Ok(tx.incr("n", 1))).unwrap(), n, "{trigger:?}");
        fixture.proxy.disarm();
    }
    let failing = fixture.accounts().require(Condition::not_exists("k"));
    fixture.proxy.arm(Script::from((Trigger::BeforeReplyTo("UNWATCH"), Fault::Reset)).once());
    failed(failing.run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(fixture.get("n").unwrap(), "4");
    crate::side::settled(&fixture.sessions);
    assert_eq!(fixture.sessions.status().transactional.in_use, 0);
    assert_eq!(required.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 5);
}

#[test]
fn many_conditions_and_large_values_are_read_in_one_round_trip() {
    let fixture = start();
    let large = "x".repeat(300_000);
    fixture.set(&format!("SET large {large}"));
    let mut required = fixture.accounts().require(Condition::equals("large", &large));
    for nth in 0..100 {
        required = required.require(Condition::not_exists(format!("none:{nth}")));
    }
    let turns = fixture.proxy.turns();
    assert_eq!(required.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    assert_eq!(fixture.proxy.turns() - turns, 2);
    // A block beyond `flush_bytes` is kept until its commit.
    let reported = required.run(|tx| {
        tx.set("copy", &large);
        Ok(tx.incr("n", 1))
    });
    assert_eq!(reported.unwrap(), 2);
    assert_eq!(fixture.get("copy").unwrap().len(), large.len());
    fixture.set("SET none:99 1");
    assert_eq!(failed(required.begin().map(drop)).0, 100);
    fixture.is_as_it_was(&["large", "none:0"]);
}
