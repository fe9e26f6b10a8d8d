//! The marker proves the outcome whatever happened on the connection before the transaction or inside it.
//!
//! Guarantee: exactly-once

use crate::fixture::{Fixture, OF_ONE, SOON, add_on, add_on_each};
use crate::side::{ResolveDoubt as _, Transactional, settled};
use rediscope::error::{Applied, InDoubt, Resolution};
use rediscope::prelude::*;
use rediscope::{Begin, CommitError, Error, Outcome, TransactionOptions};

use super::fixture::{Fate, commit_error, doubt, start, start_with};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};
use rediscope_testing::server::Server;

fn immediate(handle: &Transactional) -> Transactional {
    handle.with(TransactionOptions::new().begin(Begin::Immediate))
}

/// What a doubt may be preceded by on its connection.
type Earlier = fn(&Fixture, &Transactional);

fn unwatched(_: &Fixture, handle: &Transactional) {
    handle.watch(["w"]).begin().unwrap().abandon().unwrap();
}

fn discarded(_: &Fixture, handle: &Transactional) {
    let mut tx = immediate(handle).begin().unwrap();
    tx.incr("n", 100);
    tx.discard().unwrap();
}

fn aborted(_: &Fixture, handle: &Transactional) {
    let mut tx = handle.begin().unwrap();
    tx.incr("n", 100);
    tx.queue::<()>(redis::cmd("GET"));
    let refused = tx.commit().unwrap_err();
    assert!(
        matches!(refused, Error::Commit(CommitError::Rejected { index: Some(1), .. })),
        "{refused:?}"
    );
}

fn partly_applied(fixture: &Fixture, handle: &Transactional) {
    fixture.server.ask::<()>(&["SET", "text", "no number"]);
    let mut tx = handle.begin().unwrap();
    tx.incr("text", 1);
    let partly = tx.commit().unwrap_err();
    assert!(matches!(partly, Error::Commit(CommitError::PartlyApplied { .. })), "{partly:?}");
}

fn in_conflict(fixture: &Fixture, handle: &Transactional) {
    let watching = handle.watch(["w"]).begin().unwrap();
    fixture.server.ask::<()>(&["SET", "w", "1"]);
    let mut tx = watching.multi();
    tx.incr("n", 100);
    assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
}

fn flushed_in_a_dropped_watch(fixture: &Fixture, handle: &Transactional) {
    let watching = handle.watch(["w"]).begin().unwrap();
    fixture.server.ask::<()>(&["FLUSHALL"]);
    drop(watching);
    settled(&fixture.sessions);
}

fn flushed_in_a_discarded_multi(fixture: &Fixture, handle: &Transactional) {
    let tx = immediate(handle).begin().unwrap();
    fixture.server.ask::<()>(&["FLUSHALL"]);
    tx.discard().unwrap();
}

fn disarmed(fixture: &Fixture, _: &Transactional) {
    add_on_each(&fixture.sessions.transactional(), "plain");
}

fn out_of_memory(fixture: &Fixture, handle: &Transactional) {
    fixture.server.config_set("maxmemory", "1");
    let by_guard = || {
        let mut tx = handle.begin()?;
        let n = tx.incr("n", 100);
        tx.commit()?.get(n)
    };
    for refused in [by_guard(), handle.run(|tx| Ok(tx.incr("n", 100)))] {
        let refused = commit_error(refused);
        assert!(
            matches!(&refused, Error::Commit(CommitError::Rejected { code, .. }) if code == "OOM"),
            "{refused:?}"
        );
    }
    fixture.server.config_set("maxmemory", "0");
}

#[test]
fn whatever_happened_earlier_on_the_connection_a_doubt_is_resolved_as_what_is_true() {
    let operations: [(&str, Earlier); 9] = [
        ("UNWATCH", unwatched),
        ("DISCARD", discarded),
        ("EXECABORT", aborted),
        ("a failed command", partly_applied),
        ("a conflict", in_conflict),
        ("a flush and the drop of a watch", flushed_in_a_dropped_watch),
        ("a flush and DISCARD", flushed_in_a_discarded_multi),
        ("a plain transaction", disarmed),
        ("OOM", out_of_memory),
    ];
    for (name, operation) in operations {
        for fate in Fate::BOTH {
            let fixture = start();
            let handle = fixture.armed();
            operation(&fixture, &handle);
            let doubt = fixture.doubted(&handle, fate);
            assert_eq!(doubt.resolved(), fate.truth(), "after {name}");
            assert_eq!(fixture.number("n"), fate.count(), "after {name}");
        }
    }
}

#[test]
fn a_resolver_is_not_refused_if_the_server_is_out_of_memory() {
    for fate in Fate::BOTH {
        let fixture = start();
        let doubt = fixture.doubted(&fixture.armed(), fate);
        fixture.server.config_set("maxmemory", "1");
        assert_eq!(doubt.resolved(), fate.truth());
    }
}

#[test]
fn a_flush_inside_the_transaction_removes_everything_but_its_outcome() {
    for flush in ["FLUSHDB", "FLUSHALL"] {
        for fate in Fate::BOTH {
            let fixture = start();
            let handle = fixture.armed();
            fixture.server.ask::<()>(&["SET", "old", "1"]);
            let mut tx = handle.begin().unwrap();
            tx.queue::<()>(redis::cmd(flush));
            tx.incr("n", 1);
            fixture.lose(fate);
            let doubt = doubt(tx.commit());
            assert_eq!(doubt.resolved(), fate.truth(), "{flush}");
            let kept = (fixture.number("n"), fixture.number("old"));
            assert_eq!(kept, (fate.count(), 1 - fate.count()), "{flush}");
            // And the next one on a new connection, and on the connection of a flush that returned.
            handle.run(|tx| Ok(tx.queue::<()>(redis::cmd(flush)))).unwrap();
            assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
        }
    }
}

#[test]
fn a_doubt_behind_multi_that_was_awaited_is_resolved_as_what_is_true() {
    for fate in Fate::BOTH {
        let fixture = start();
        let handle = immediate(&fixture.exactly_once());
        let doubt = fixture.doubted(&handle, fate);
        assert_eq!(doubt.resolved(), fate.truth());
        assert_eq!(fixture.number("n"), fate.count());
    }
}

fn chunked(fixture: &Fixture, fate: Fate) -> InDoubt {
    let mut tx = fixture.exactly_once().begin().unwrap();
    for _ in 0..20 {
        tx.incr("n", 1);
    }
    crate::side::send_ahead(&mut tx);
    assert!(fixture.sent().contains(&"INCRBY".to_owned()), "some were sent ahead");
    fixture.lose(fate);
    doubt(tx.commit())
}

#[test]
fn a_doubt_about_a_transaction_sent_in_chunks_is_resolved_as_what_is_true() {
    for fate in Fate::BOTH {
        let fixture = start_with(&[], |builder| builder.flush_bytes(64));
        assert_eq!(chunked(&fixture, fate).resolved(), fate.truth());
        assert_eq!(fixture.number("n"), 20 * fate.count());
    }
}

crate::side::threads_only! {
    #[test]
    fn a_block_sent_in_chunks_that_was_not_applied_is_reported_as_not_sent() {
        let fixture = start_with(&[], |builder| builder.flush_bytes(64));
        let handle = fixture.armed();
        fixture.lose(Fate::NotApplied);
        let lost = handle.run(|tx| Ok((0..20).map(|_| tx.incr("n", 1)).collect::<Vec<_>>()));
        let lost = commit_error(lost);
        assert!(matches!(lost, Error::Commit(CommitError::NotSent { .. })), "{lost:?}");
        assert_eq!((lost.applied(), lost.is_retryable()), (Applied::No, true));
        assert_eq!(fixture.number("n"), 0);
        fixture.lose(Fate::Applied);
        let lost = handle.run(|tx| Ok((0..20).map(|_| tx.incr("n", 1)).collect::<Vec<_>>()));
        assert!(matches!(lost, Err(Error::Reply(rediscope::error::ReplyError::Lost))), "{lost:?}");
        assert_eq!(fixture.number("n"), 20);
    }
}

#[test]
fn an_outcome_stands_if_only_the_watch_after_it_was_lost_and_its_connection_is_closed() {
    let fixture = start();
    for nth in 0..OF_ONE {
        let (handle, before) = (fixture.armed(), fixture.number("n"));
        let connections = fixture.proxy.accepted();
        fixture.arm(Trigger::AfterReplyTo("EXEC"), Fault::Cut);
        assert_eq!(add_on(nth, &handle, "n"), before + 1);
        assert_eq!(fixture.number("n"), before + 1);
        add_on_each(&handle, "n");
        eventually(SOON, "another connection", || fixture.proxy.accepted() == connections + 1);
    }
    // A conflict stands as well.
    let (handle, before) = (fixture.armed(), fixture.number("n"));
    let watching = handle.watch(["w"]).begin().unwrap();
    fixture.server.ask::<()>(&["SET", "w", "1"]);
    let mut tx = watching.multi();
    tx.incr("n", 1);
    fixture.arm(Trigger::AfterReplyTo("EXEC"), Fault::Cut);
    assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
    assert_eq!(add_on(0, &handle, "n"), before + 1);
    assert_eq!(fixture.number("n"), before + 1);
    assert_eq!(fixture.sessions.status().transactional.counts.in_doubt, 0);
}

#[test]
fn a_watch_after_exec_without_a_reply_changes_no_outcome() {
    let fixture = start();
    for nth in 0..OF_ONE {
        let (handle, before) = (fixture.armed(), fixture.number("n"));
        fixture.arm(Trigger::AfterReplyTo("EXEC"), Fault::HoldReplies);
        assert_eq!(add_on(nth, &handle, "n"), before + 1);
        fixture.proxy.release();
        add_on_each(&handle, "n");
        eventually(SOON, "no further connection is left", || fixture.server.clients() == OF_ONE);
        assert_eq!(fixture.number("n"), before + 1 + OF_ONE as i64);
    }
}

#[test]
fn each_doubt_of_a_session_has_a_token_of_its_own() {
    let fixture = start();
    let handle = fixture.exactly_once();
    let fates = [Fate::Applied, Fate::NotApplied, Fate::Applied];
    let doubts: Vec<InDoubt> = fates
        .iter()
        .map(|&fate| {
            handle.run(|tx| Ok(tx.exists("n"))).unwrap();
            fixture.doubted(&handle, fate)
        })
        .collect();
    let resolved: Vec<Resolution> = doubts.iter().rev().map(InDoubt::resolved).collect();
    let truth: Vec<Resolution> = fates.iter().rev().map(|fate| fate.truth()).collect();
    assert_eq!(resolved, truth);
    assert_eq!(fixture.number("n"), 2);
}

#[test]
fn a_server_that_became_a_replica_is_left_whichever_command_of_ours_finds_out() {
    type Form = fn(&Transactional) -> Result<i64, Error>;
    let forms: [(&str, Form); 4] = [
        ("a block", |handle| handle.run(|tx| Ok(tx.incr("n", 1)))),
        ("at once", |handle| immediate(handle).run(|tx| Ok(tx.incr("n", 1)))),
        ("watching", |handle| handle.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 1)))),
        ("a guard", |handle| {
            let mut tx = handle.begin()?;
            let n = tx.incr("n", 1);
            tx.commit()?.get(n)
        }),
    ];
    for (name, run) in forms {
        for operation in [|_: &Fixture, _: &Transactional| {}, disarmed as Earlier] {
            let fixture = start();
            let handle = fixture.armed();
            operation(&fixture, &handle);
            let promoted = Server::start();
            fixture.server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
            fixture.proxy.set_upstream(promoted.address());
            let refused = run(&handle).unwrap_err();
            assert_eq!(refused.applied(), Applied::No);
            assert!(refused.to_string().contains("READONLY"), "{name}: {refused}");
            assert_eq!(
                run(&handle).unwrap_or_else(|error| panic!("{name}: {error} after {refused}")),
                1
            );
            assert_eq!(promoted.ask::<i64>(&["GET", "n"]), 1);
        }
    }
}
