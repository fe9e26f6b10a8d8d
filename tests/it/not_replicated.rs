//! Commits that wait for replicas: what is counted, which error is returned if too few have them, and that the
//! wait is never taken for a doubt.
//!
//! Guarantee: not-replicated

use crate::fixture::{Fixture, SOON};
use std::time::Duration;

use rediscope::error::{Applied, ReplicaAcks, ReplyError};
use rediscope::prelude::*;
use rediscope::{Begin, Builder, CommitError, Error, Outcome, TransactionOptions, Transactional};

use crate::exactly_once::fixture::{Fate, commit_error, doubt, start, start_on, start_with};
use rediscope_testing::proxy::{Fault, Trigger};
use rediscope_testing::server::{Server, valkey};
use rediscope_testing::{eventually, not_run};

/// Timeout of a wait for a replica that does not exist.
const SHORT_WAIT: Duration = Duration::from_millis(50);
/// Timeout of a wait for two replicas, of which one exists and takes a moment.
const LONG_WAIT: Duration = Duration::from_millis(1500);

fn waiting(fixture: &Fixture, options: TransactionOptions) -> Transactional {
    fixture.sessions.transactional().with(options)
}

fn replicas(replicas: u32, timeout: Duration) -> TransactionOptions {
    TransactionOptions::new().wait_replicas(replicas, timeout)
}

fn acks(local: u32, replicas: u32) -> ReplicaAcks {
    let mut acks = ReplicaAcks::default();
    (acks.local, acks.replicas) = (local, replicas);
    acks
}

/// Applied, on the number of replicas that the error reports.
#[track_caller]
fn too_few(error: &Error, expected: (ReplicaAcks, ReplicaAcks)) {
    let Error::Commit(CommitError::NotReplicated { wanted, got, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!((*wanted, *got), expected);
    assert_eq!((error.applied(), error.is_retryable()), (Applied::Yes, false));
}

#[test]
fn a_commit_that_waits_for_its_replica_finds_it_there() {
    let fixture = start();
    let replica = Server::replica_of(&fixture.server);
    let mut tx = waiting(&fixture, replicas(1, SOON)).begin().unwrap();
    let n = tx.incr("n", 1);
    let committed = tx.commit().unwrap();
    assert_eq!(replica.ask::<Option<i64>>(&["GET", "n"]), Some(1), "before it was returned");
    assert_eq!(committed.acknowledged(), Some(acks(0, 1)));
    assert_eq!((committed.len(), committed.get(n).unwrap()), (1, 1));
    // A transaction that does not wait returns no such error.
    let mut tx = fixture.sessions.transactional().begin().unwrap();
    tx.incr("n", 1);
    assert_eq!(tx.commit().unwrap().acknowledged(), None);
}

#[test]
fn every_form_of_a_transaction_waits() {
    let fixture = start_with(&[], |builder| builder.flush_bytes(64));
    let _replica = Server::replica_of(&fixture.server);
    let handle = waiting(&fixture, replicas(1, SOON));
    let immediate = handle.with(TransactionOptions::new().begin(Begin::Immediate));
    let fenced = handle.with(TransactionOptions::new().exactly_once());
    let hour = Duration::from_secs(3600);
    let keyed = handle.with(TransactionOptions::new().exactly_once_as("k", hour));
    let asked = Some(acks(0, 1));
    for handle in [&handle, &immediate, &fenced, &keyed] {
        let mut tx = handle.begin().unwrap();
        for _ in 0..20 {
            tx.incr("n", 1);
        }
        let replies = tx.commit().unwrap();
        assert_eq!((replies.len(), replies.acknowledged()), (20, asked));
    }
    let mut tx = fenced.watch(["w"]).begin().unwrap().multi();
    tx.incr("n", 1);
    let Outcome::Committed(replies) = tx.commit().unwrap() else { panic!("a conflict") };
    assert_eq!((replies.len(), replies.acknowledged()), (1, asked));
    assert_eq!(fenced.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 82);
    assert_eq!(fixture.server.calls("wait"), 6);
    assert_eq!(fixture.proxy.accepted(), 1, "on one connection");
}

#[test]
fn too_few_replicas_undo_nothing_and_are_counted() {
    let fixture = start();
    let replica = Server::replica_of(&fixture.server);
    let handle = waiting(&fixture, replicas(2, LONG_WAIT));
    let error = commit_error(handle.run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(replica.ask::<Option<i64>>(&["GET", "n"]), Some(1));
    too_few(&error, (acks(0, 2), acks(0, 1)));
    drop(replica);
    eventually(SOON, "the replica is gone", || {
        fixture.server.info("connected_slaves").as_deref() == Some("0")
    });
    let mut tx = handle.begin().unwrap();
    let n = tx.incr("n", 1);
    let error = tx.commit().unwrap_err();
    too_few(&error, (acks(0, 2), acks(0, 0)));
    let Error::Commit(CommitError::NotReplicated { replies, refused, .. }) = error else {
        unreachable!()
    };
    assert_eq!((replies.get(n).unwrap(), replies.acknowledged()), (2, Some(acks(0, 0))));
    assert_eq!(refused, None);
    assert_eq!(fixture.number("n"), 2);
    assert_eq!(fixture.proxy.accepted(), 1, "the connection is as good as before");
}

#[test]
fn a_wait_adds_its_timeout_to_the_response_timeout() {
    let fixture = start();
    for options in [TransactionOptions::new(), TransactionOptions::new().exactly_once()] {
        let before = fixture.number("n");
        // More than twice the response timeout.
        let wait = replicas(1, Duration::from_millis(1200));
        let handle = waiting(&fixture, wait).with(options);
        let error = commit_error(handle.run(|tx| Ok(tx.incr("n", 1))));
        too_few(&error, (acks(0, 1), acks(0, 0)));
        assert_eq!(fixture.number("n"), before + 1);
    }
    assert_eq!(fixture.proxy.accepted(), 1, "its connection waited as well");
}

/// Another command's reply, or one too many before WAIT's own.
#[test]
fn a_reply_that_may_not_be_that_of_wait_counts_no_replica() {
    for answer in ["*2\r\n:5\r\n:7\r\n", ":7\r\n:0\r\n", "$1\r\n7\r\n"] {
        for once in [false, true] {
            let fixture = start();
            let handle = if once { fixture.armed() } else { fixture.sessions.transactional() };
            let handle = handle.with(replicas(2, SHORT_WAIT));
            fixture.arm(Trigger::BeforeReplyTo("WAIT"), Fault::Answer(answer));
            let error = commit_error(handle.run(|tx| Ok(tx.incr("n", 1))));
            too_few(&error, (acks(0, 2), acks(0, 0)));
            assert_eq!(fixture.number("n"), 1, "{answer:?}");
        }
    }
}

#[test]
fn a_wait_whose_reply_is_lost_is_no_doubt() {
    for fault in [Fault::Cut, Fault::HoldReplies] {
        for fenced in [false, true] {
            let fixture = start();
            let handle = match fenced {
                true => fixture.armed(),
                false => fixture.sessions.transactional(),
            };
            let handle = handle.with(replicas(1, SHORT_WAIT));
            let mut tx = handle.begin().unwrap();
            let n = tx.incr("n", 1);
            fixture.arm(Trigger::BeforeReplyTo("WAIT"), fault);
            let error = tx.commit().unwrap_err();
            too_few(&error, (acks(0, 1), acks(0, 0)));
            let Error::Commit(CommitError::NotReplicated { replies, .. }) = error else {
                unreachable!()
            };
            assert_eq!(replies.get(n).unwrap(), 1);
            assert_eq!(fixture.number("n"), 1);
            let counts = fixture.sessions.status().transactional.counts;
            assert_eq!((counts.in_doubt, counts.commits), (0, 1 + u64::from(fenced)));
            fixture.proxy.release();
            let n = fixture.sessions.transactional().run(|tx| Ok(tx.incr("n", 1)));
            assert_eq!(n.unwrap(), 2, "on another connection");
            assert_eq!(fixture.proxy.accepted(), 2);
        }
    }
}

#[test]
fn a_guard_that_waits_may_be_in_doubt_and_resolves() {
    for fate in Fate::BOTH {
        let fixture = start();
        let _replica = Server::replica_of(&fixture.server);
        let handle = fixture.armed().with(replicas(1, SOON));
        let mut tx = handle.begin().unwrap();
        tx.incr("n", 1);
        fixture.lose(fate);
        let doubt = doubt(tx.commit());
        assert_eq!(doubt.resolve(), fate.truth());
        assert_eq!(fixture.number("n"), fate.count());
    }
}

#[test]
fn a_block_that_waits_and_was_in_doubt_is_applied_once_and_reports_which_replicas_have_it() {
    let fixture = start();
    let replica = Server::replica_of(&fixture.server);
    let handle = fixture.armed().with(replicas(1, SOON));
    fixture.lose(Fate::NotApplied);
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1, "sent again");
    handle.run(|_| Ok(())).unwrap();
    fixture.lose(Fate::Applied);
    let error = commit_error(handle.run(|tx| Ok(tx.incr("n", 1))));
    too_few(&error, (acks(0, 1), acks(0, 0)));
    let Error::Commit(CommitError::NotReplicated { replies, .. }) = &error else { unreachable!() };
    assert!(replies.is_empty(), "they are lost");
    assert_eq!(fixture.number("n"), 2);
    eventually(SOON, "it spreads all the same", || {
        replica.ask::<Option<i64>>(&["GET", "n"]) == Some(2)
    });
}

#[test]
fn a_partly_applied_transaction_waits_and_stays_partly_applied() {
    for fenced in [false, true] {
        let fixture = start();
        let _replica = Server::replica_of(&fixture.server);
        fixture.server.ask::<()>(&["SET", "text", "no number"]);
        let base = if fenced { fixture.exactly_once() } else { fixture.sessions.transactional() };
        for (wanted, got) in [(1, SOON), (2, LONG_WAIT)].map(|(n, time)| (replicas(n, time), 1)) {
            let before = fixture.number("n");
            let mut tx = base.with(wanted).begin().unwrap();
            let failed = tx.incr("text", 1);
            let n = tx.incr("n", 1);
            let error = tx.commit().unwrap_err();
            assert_eq!((error.applied(), error.is_retryable()), (Applied::Partly, false));
            let Error::Commit(CommitError::PartlyApplied { replies, .. }) = error else {
                panic!("{error:?}")
            };
            assert_eq!(replies.acknowledged(), Some(acks(0, got)));
            assert_eq!(replies.get(n).unwrap(), before + 1);
            assert!(matches!(replies.get(failed), Err(Error::Reply(ReplyError::Failed { .. }))));
            assert_eq!((replies.len(), fixture.number("n")), (2, before + 1));
        }
    }
}

#[test]
fn a_block_that_was_not_applied_is_reported_as_that_and_not_as_too_few_replicas() {
    let fixture = start();
    for options in [TransactionOptions::new(), TransactionOptions::new().exactly_once()] {
        let handle = waiting(&fixture, replicas(1, SHORT_WAIT)).with(options);
        let mut tx = handle.begin().unwrap();
        tx.incr("n", 1);
        tx.queue::<()>(redis::cmd("GET"));
        let refused = tx.commit().unwrap_err();
        assert!(
            matches!(refused, Error::Commit(CommitError::Rejected { index: Some(1), .. })),
            "{refused:?}"
        );
        let watching = handle.watch(["w"]).begin().unwrap();
        fixture.server.ask::<()>(&["SET", "w", "1"]);
        let mut tx = watching.multi();
        tx.incr("n", 1);
        assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
        assert_eq!(fixture.number("n"), 0);
    }
    assert_eq!(fixture.proxy.accepted(), 1);
}

#[test]
fn a_refused_wait_is_reported_for_a_transaction_that_was_applied() {
    let fixture = start();
    fixture.server.acl(&["SETUSER", "default", "-wait"]);
    let handle = waiting(&fixture, replicas(1, SOON));
    let mut tx = handle.begin().unwrap();
    tx.incr("n", 1);
    let error = tx.commit().unwrap_err();
    too_few(&error, (acks(0, 1), acks(0, 0)));
    let Error::Commit(CommitError::NotReplicated { refused: Some(refused), .. }) = error else {
        panic!("it does not say why")
    };
    assert_eq!(refused.code(), "NOPERM");
    assert_eq!(fixture.number("n"), 1);
}

/// A server that does not know WAITAOF: an old one, or one that forgot it.
fn without_waitaof() -> Server {
    let server = Server::start();
    match server.knows("WAITAOF") {
        true => Server::with(&["--rename-command", "WAITAOF", ""]),
        false => server,
    }
}

/// Everything may take as long as a busy disk does.
fn patient(builder: Builder) -> Builder {
    builder.response_timeout(SOON).checkout_timeout(SOON * 3)
}

/// A server that does, where there is one.
fn with_waitaof(arguments: &[&str]) -> Option<Server> {
    let server = Server::with(arguments);
    if server.knows("WAITAOF") {
        return Some(server);
    }
    let valkey = valkey();
    if valkey.is_none() {
        not_run("no server here knows WAITAOF; set VALKEY_SERVER to one");
    }
    Some(Server::of(valkey?, arguments))
}

#[test]
fn a_server_without_waitaof_is_reported_before_anything_of_the_callers_is_sent() {
    let server = without_waitaof();
    let fixture = start_on(server, |builder| builder.flush_bytes(64));
    let handle = waiting(&fixture, TransactionOptions::new().wait_aof(true, 0, SOON));
    let fenced = handle.with(TransactionOptions::new().exactly_once());
    let immediate = handle.with(TransactionOptions::new().begin(Begin::Immediate));
    let unsupported = |error: &Error| {
        assert!(matches!(error, Error::Unsupported { command: "WAITAOF", .. }), "{error:?}");
        assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
    };
    let not_sent = |error: Error| {
        assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
        let Error::Commit(CommitError::NotSent { source, .. }) = error else { panic!("{error:?}") };
        unsupported(&source);
    };
    for handle in [&handle, &fenced] {
        let mut tx = handle.begin().unwrap();
        tx.incr("n", 1);
        not_sent(tx.commit().unwrap_err());
        let mut tx = handle.begin().unwrap();
        for _ in 0..20 {
            tx.incr("n", 1);
        }
        not_sent(tx.commit().unwrap_err());
        not_sent(commit_error(handle.run(|tx| Ok(tx.incr("n", 1)))));
        not_sent(commit_error(handle.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 1)))));
    }
    unsupported(&immediate.begin().map(drop).unwrap_err());
    assert!(!fixture.sent().contains(&"INCRBY".to_owned()));
    assert_eq!(fixture.number("n"), 0);
    assert_eq!(fixture.sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    assert_eq!(fixture.proxy.accepted(), 1, "and its connection is none the worse");
}

#[test]
fn a_commit_that_waits_for_the_disk_is_on_the_disk() {
    let Some(server) = with_waitaof(&["--appendonly", "yes"]) else { return };
    let fixture = start_on(server, patient);
    for options in [TransactionOptions::new(), TransactionOptions::new().exactly_once()] {
        let before = fixture.number("n");
        let handle = waiting(&fixture, options.wait_aof(true, 0, SOON));
        for nth in 1..=2 {
            let mut tx = handle.begin().unwrap();
            let n = tx.incr("n", 1);
            let replies = tx.commit().unwrap();
            assert_eq!(replies.acknowledged(), Some(acks(1, 0)));
            assert_eq!(replies.get(n).unwrap(), before + nth);
        }
        assert_eq!(fixture.number("n"), before + 2);
    }
    // In the handshake, and before the first of these commits.
    assert_eq!(fixture.sent().iter().filter(|word| *word == "COMMAND").count(), 2, "sent once");
    fixture.server.sigkill();
    fixture.server.restart_on_same_port();
    eventually(SOON, "the server has read its file", || {
        fixture.server.info("loading").as_deref() == Some("0")
    });
    assert_eq!(fixture.number("n"), 4, "as reported");
}

#[test]
fn disks_that_do_not_reply_are_not_counted_and_a_missing_one_is_reported() {
    let Some(server) = with_waitaof(&[]) else { return };
    let fixture = start_on(server, |builder| builder);
    let handle = waiting(&fixture, TransactionOptions::new().wait_aof(false, 1, SHORT_WAIT));
    let error = commit_error(handle.run(|tx| Ok(tx.incr("n", 1))));
    too_few(&error, (acks(0, 1), acks(0, 0)));
    let handle = waiting(&fixture, TransactionOptions::new().wait_aof(true, 0, SOON));
    let error = commit_error(handle.run(|tx| Ok(tx.incr("n", 1))));
    too_few(&error, (acks(1, 0), acks(0, 0)));
    let Error::Commit(CommitError::NotReplicated { refused, .. }) = error else { unreachable!() };
    assert!(refused.unwrap().to_string().contains("appendonly is disabled"));
    assert_eq!(fixture.number("n"), 2);
}

#[test]
fn a_commit_that_waits_for_the_disks_of_replicas_counts_them() {
    let Some(server) = with_waitaof(&["--appendonly", "yes"]) else { return };
    let replica = Server::replica_of(&server);
    let fixture = start_on(server, patient);
    let both = TransactionOptions::new().wait_aof(true, 1, LONG_WAIT);
    let error = commit_error(waiting(&fixture, both).run(|tx| Ok(tx.incr("n", 1))));
    too_few(&error, (acks(1, 1), acks(1, 0)));
    replica.config_set("appendonly", "yes");
    let both = TransactionOptions::new().wait_aof(true, 1, SOON);
    let mut tx = waiting(&fixture, both).begin().unwrap();
    tx.incr("n", 1);
    assert_eq!(tx.commit().unwrap().acknowledged(), Some(acks(1, 1)));
    assert_eq!(replica.ask::<Option<i64>>(&["GET", "n"]), Some(2));
}
