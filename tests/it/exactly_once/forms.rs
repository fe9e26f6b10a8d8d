//! What is sent: the same round trips as for a plain transaction, and one more to arm the connection.
//!
//! Guarantee: exactly-once

use super::fixture::{start, start_with};
use crate::fixture::Fixture;
use rediscope::prelude::*;
use rediscope::{Begin, Outcome, TransactionOptions};

fn words(fixture: &Fixture) -> Vec<String> {
    fixture.proxy.take_journal().into_iter().map(|(_, word)| word.to_uppercase()).collect()
}

#[test]
fn the_first_transaction_arms_its_connection_and_the_next_ones_take_one_round_trip() {
    let fixture = start();
    let handle = fixture.exactly_once();
    handle.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let before = fixture.proxy.turns();
    let sent = words(&fixture);
    let at = sent.iter().position(|word| word == "SET").unwrap();
    assert_eq!(
        sent[at..],
        ["SET", "WATCH", "MULTI", "INCRBY", "SET", "EXEC", "WATCH"],
        "armed, acknowledged, then committed and armed again"
    );
    for nth in 2..=5 {
        assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), nth);
        assert_eq!(words(&fixture), ["MULTI", "INCRBY", "SET", "EXEC", "WATCH"]);
    }
    assert_eq!(fixture.proxy.turns() - before, 4, "one round trip each");
    assert_eq!(fixture.number("n"), 5);
    assert_eq!(fixture.registers().len(), 1, "one register for the one connection");
    let ttl: i64 = fixture.server.ask(&["PTTL", &fixture.registers()[0]]);
    assert!((3_500_000..=3_600_000).contains(&ttl), "{ttl}");
}

#[test]
fn a_register_is_no_part_of_the_replies() {
    let fixture = start();
    let handle = fixture.exactly_once();
    let mut tx = handle.begin().unwrap();
    let n = tx.incr("n", 7);
    let replies = tx.commit().unwrap();
    assert_eq!((replies.len(), replies.failures()), (1, 0));
    assert_eq!(replies.get(n).unwrap(), 7);
}

#[test]
fn a_plain_transaction_disarms_the_connection_and_the_next_one_arms_it_again() {
    let fixture = start();
    let (fenced, plain) = (fixture.armed(), fixture.sessions.transactional());
    words(&fixture);
    plain.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    assert_eq!(words(&fixture), ["UNWATCH", "MULTI", "INCRBY", "EXEC"]);
    plain.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    assert_eq!(words(&fixture), ["MULTI", "INCRBY", "EXEC"]);
    fenced.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let armed_again = ["SET", "WATCH", "MULTI", "INCRBY", "SET", "EXEC", "WATCH"];
    assert_eq!(words(&fixture), armed_again);
}

#[test]
fn commands_that_end_a_watch_arm_the_connection_again_in_the_same_write() {
    let fixture = start();
    let handle = fixture.armed();
    let immediate = handle.with(TransactionOptions::new().begin(Begin::Immediate));
    words(&fixture);
    drop(immediate.begin().unwrap());
    crate::side::settled(&fixture.sessions);
    assert_eq!(words(&fixture), ["MULTI", "DISCARD", "WATCH"]);
    drop(handle.watch(["w"]).begin().unwrap());
    crate::side::settled(&fixture.sessions);
    assert_eq!(words(&fixture), ["WATCH", "UNWATCH", "WATCH"]);
    handle.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    assert_eq!(words(&fixture), ["MULTI", "INCRBY", "SET", "EXEC", "WATCH"]);
}

#[test]
fn a_conflict_is_the_users_own_and_leaves_the_connection_armed() {
    let fixture = start();
    let handle = fixture.armed();
    let mut watching = handle.watch(["w"]).begin().unwrap();
    let _: Option<i64> = watching.get("w").unwrap();
    fixture.server.ask::<()>(&["SET", "w", "1"]);
    let mut tx = watching.multi();
    tx.incr("n", 1);
    assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
    words(&fixture);
    handle.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    assert_eq!(words(&fixture), ["MULTI", "INCRBY", "SET", "EXEC", "WATCH"]);
    assert_eq!(fixture.number("n"), 1);
}

#[test]
fn a_register_that_is_deleted_from_outside_is_no_conflict_and_no_error() {
    let fixture = start();
    let handle = fixture.armed();
    fixture.server.ask::<()>(&["FLUSHALL"]);
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    let mut tx = handle.begin().unwrap();
    tx.incr("n", 1);
    fixture.server.ask::<i64>(&["DEL", &fixture.registers()[0]]);
    tx.commit().unwrap();
    assert_eq!(fixture.number("n"), 2);
}

#[test]
fn a_transaction_sent_in_chunks_is_armed_before_its_first_one() {
    let fixture = start_with(&[], |builder| builder.flush_bytes(64));
    let handle = fixture.exactly_once();
    let mut tx = handle.begin().unwrap();
    for _ in 0..10 {
        tx.incr("n", 1);
    }
    crate::side::send_ahead(&mut tx);
    assert_eq!(tx.commit().unwrap().len(), 10);
    let sent = words(&fixture);
    let at = sent.iter().position(|word| word == "SET").unwrap();
    assert_eq!(sent[at..at + 3], ["SET", "WATCH", "MULTI"]);
    assert!(sent.ends_with(&["SET".to_owned(), "EXEC".to_owned(), "WATCH".to_owned()]));
    assert_eq!(fixture.number("n"), 10);
}
