//! What is sent: the same round trips as for a plain transaction, and one more to arm the connection.
//!
//! Guarantee: exactly-once

use super::fixture::{start, start_with};
use crate::fixture::proxied::warm;
use crate::fixture::{Fixture, OF_ONE, add_on, add_on_each};
use rediscope::prelude::*;
use rediscope::{Begin, Outcome, TransactionOptions};

fn words(fixture: &Fixture) -> Vec<String> {
    fixture.proxy.take_journal().into_iter().map(|(_, word)| word.to_uppercase()).collect()
}

#[test]
fn the_first_transaction_arms_its_connection_and_the_next_ones_take_one_round_trip() {
    let fixture = start();
    warm(&fixture.sessions);
    let handle = fixture.exactly_once();
    words(&fixture);
    for nth in 0..OF_ONE {
        add_on(nth, &handle, "n");
        assert_eq!(
            words(&fixture),
            ["SET", "WATCH", "MULTI", "INCRBY", "SET", "EXEC", "WATCH"],
            "armed, acknowledged, then committed and armed again"
        );
    }
    let before = fixture.proxy.turns();
    for nth in (0..4).flat_map(|_| 0..OF_ONE) {
        add_on(nth, &handle, "n");
        assert_eq!(words(&fixture), ["MULTI", "INCRBY", "SET", "EXEC", "WATCH"]);
    }
    assert_eq!(fixture.proxy.turns() - before, 4 * OF_ONE as u64, "one round trip each");
    assert_eq!(fixture.number("n"), 5 * OF_ONE as i64);
    assert_eq!(fixture.registers().len(), OF_ONE, "one register a connection");
    for register in fixture.registers() {
        let ttl: i64 = fixture.server.ask(&["PTTL", &register]);
        assert!((3_500_000..=3_600_000).contains(&ttl), "{ttl}");
    }
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
    let sent: [(_, &[&str]); 3] = [
        (&plain, &["UNWATCH", "MULTI", "INCRBY", "EXEC"]),
        (&plain, &["MULTI", "INCRBY", "EXEC"]),
        (&fenced, &["SET", "WATCH", "MULTI", "INCRBY", "SET", "EXEC", "WATCH"]),
    ];
    for (handle, expected) in sent {
        add_on(0, handle, "n");
        assert_eq!(words(&fixture), expected);
    }
    // A lane is armed again in the same write.
    for nth in (1..).take(OF_ONE.saturating_sub(1)) {
        add_on(nth, &plain, "n");
        assert_eq!(words(&fixture), ["UNWATCH", "MULTI", "INCRBY", "EXEC", "WATCH"]);
    }
    for nth in (1..).take(OF_ONE.saturating_sub(1)) {
        add_on(nth, &fenced, "n");
        assert_eq!(words(&fixture), ["MULTI", "INCRBY", "SET", "EXEC", "WATCH"]);
    }
}

#[test]
fn commands_that_end_a_watch_arm_the_connection_again_in_the_same_write() {
    let fixture = start();
    let handle = fixture.armed();
    let immediate = handle.with(TransactionOptions::new().begin(Begin::Immediate));
    words(&fixture);
    drop(immediate.begin().unwrap());
    crate::side::settled(&fixture.sessions);
    assert_eq!(words(&fixture), ["MULTI", "DISCARD", "SET", "WATCH"]);
    drop(handle.watch(["w"]).begin().unwrap());
    crate::side::settled(&fixture.sessions);
    assert_eq!(words(&fixture), ["WATCH", "UNWATCH", "SET", "WATCH"]);
    add_on(0, &handle, "n");
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
    add_on(0, &handle, "n");
    assert_eq!(words(&fixture), ["MULTI", "INCRBY", "SET", "EXEC", "WATCH"]);
    assert_eq!(fixture.number("n"), 1);
}

#[test]
fn a_register_that_is_deleted_from_outside_is_no_conflict_and_no_error() {
    let fixture = start();
    let handle = fixture.armed();
    fixture.server.ask::<()>(&["FLUSHALL"]);
    add_on_each(&handle, "n");
    let mut tx = handle.begin().unwrap();
    tx.incr("n", 1);
    for register in fixture.registers() {
        fixture.server.ask::<i64>(&["DEL", &register]);
    }
    tx.commit().unwrap();
    assert_eq!(fixture.number("n"), 1 + OF_ONE as i64);
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
