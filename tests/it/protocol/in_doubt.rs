//! `InDoubt`: EXEC was sent and its reply was lost; and what is known in spite of that.
//!
//! Guarantee: in-doubt

use crate::fixture::{LONG, SOON};
use crate::side::BuildSide as _;
use rediscope::error::{Applied, ConnectionErrorKind, ReplyError};
use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use crate::fixture::proxied::{
    Proxied, RESPONSE, assert_outcome, client_ids, commit_error, exists, get, pool_is_whole,
};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

/// How the connection failed.
#[track_caller]
fn in_doubt(error: &Error) -> ConnectionErrorKind {
    assert_outcome(error, Applied::Unknown, false);
    match error {
        Error::Commit(CommitError::InDoubt(in_doubt)) => in_doubt.cause().kind(),
        error => panic!("{error:?}"),
    }
}

/// One transaction under a rule: what kind of doubt it ends in, and whether it was applied.
#[track_caller]
fn doubt(trigger: Trigger, fault: Fault) -> (ConnectionErrorKind, bool) {
    let fixture = Proxied::start();
    let sessions = fixture.warm(fixture.builder().trust_window(LONG).response_timeout(RESPONSE));
    let before = client_ids(&fixture.server);
    fixture.proxy.arm((trigger, fault));
    let mut tx = sessions.transactional().begin().unwrap();
    tx.incr("n", 1);
    tx.set("key", "value");
    let error = tx.commit().unwrap_err();
    let kind = in_doubt(&error);
    assert_eq!(fixture.proxy.fired(), 1);
    let applied = exists(&fixture.server, "key");
    fixture.proxy.disarm();
    fixture.proxy.cut_all();
    pool_is_whole(&sessions, &fixture.server);
    eventually(SOON, "its connection is gone", || client_ids(&fixture.server).is_disjoint(&before));
    let n = get(&fixture.server, "n");
    assert_eq!(n.as_deref(), applied.then_some("1"), "at most once");
    assert_eq!(sessions.status().transactional.counts.in_doubt, 1);
    (kind, applied)
}

#[test]
fn it_was_applied_if_only_the_reply_was_cut() {
    use ConnectionErrorKind::Closed;
    assert_eq!(doubt(Trigger::BeforeReplyTo("EXEC"), Fault::Cut), (Closed, true));
    assert_eq!(doubt(Trigger::InsideReplyTo("EXEC", 7), Fault::Cut), (Closed, true));
    assert_eq!(doubt(Trigger::BeforeReplyTo("EXEC"), Fault::Reset), (Closed, true));
}

#[test]
fn it_was_applied_if_the_reply_never_came() {
    use ConnectionErrorKind::TimedOut;
    assert_eq!(doubt(Trigger::BeforeReplyTo("EXEC"), Fault::SwallowReply), (TimedOut, true));
    assert_eq!(doubt(Trigger::InsideReplyTo("EXEC", 7), Fault::BlackHole), (TimedOut, true));
}

#[test]
fn it_was_not_applied_if_exec_was_lost_on_the_way() {
    use ConnectionErrorKind::{Closed, TimedOut};
    assert_eq!(doubt(Trigger::BeforeCommandNamed("MULTI"), Fault::Cut), (Closed, false));
    assert_eq!(doubt(Trigger::BeforeCommandNamed("EXEC"), Fault::Cut), (Closed, false));
    assert_eq!(doubt(Trigger::InsideCommandNamed("EXEC", 11), Fault::Cut), (Closed, false));
    let tail = doubt(Trigger::AfterCommandNamed("SET"), Fault::DropRequestTail);
    assert_eq!(tail, (TimedOut, false));
}

#[test]
fn it_may_be_applied_after_the_doubt_was_returned() {
    let fixture = Proxied::start();
    let sessions = fixture.warm(fixture.builder().trust_window(LONG).response_timeout(RESPONSE));
    fixture.proxy.arm((Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests));
    let error = commit_error(sessions.transactional().run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(in_doubt(&error), ConnectionErrorKind::TimedOut);
    assert!(!exists(&fixture.server, "n"));
    fixture.proxy.disarm();
    fixture.proxy.release();
    eventually(SOON, "the late EXEC is applied", || exists(&fixture.server, "n"));
    assert_eq!(get(&fixture.server, "n").unwrap(), "1");
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_server_killed_between_exec_and_its_reply_leaves_a_doubt() {
    let fixture = Proxied::start();
    let sessions = fixture.warm(fixture.builder().trust_window(LONG));
    let mut tx = sessions.transactional().begin().unwrap();
    tx.set("key", 1);
    fixture.proxy.arm((Trigger::AfterCommandNamed("EXEC"), Fault::HoldReplies));
    let error = std::thread::scope(|scope| {
        let commit = scope.spawn(|| tx.commit().unwrap_err());
        eventually(SOON, "it is applied", || exists(&fixture.server, "key"));
        fixture.server.sigkill();
        fixture.proxy.cut_all();
        commit.join().unwrap()
    });
    assert_eq!(in_doubt(&error), ConnectionErrorKind::Closed);
    fixture.proxy.disarm();
    fixture.server.restart_on_same_port();
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn nothing_in_doubt_is_ever_sent_again() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let mut runs = 0;
    fixture.proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::Cut));
    let by_run = commit_error(accounts.run(|tx| {
        runs += 1;
        Ok(tx.incr("n", 1))
    }));
    in_doubt(&by_run);
    let by_watch = commit_error(accounts.watch(["other"]).run(|_, tx| {
        runs += 1;
        Ok(tx.incr("n", 1))
    }));
    in_doubt(&by_watch);
    fixture.proxy.disarm();
    assert_eq!((runs, get(&fixture.server, "n").unwrap()), (2, "2".to_owned()));
    let execs = fixture.journal().iter().filter(|name| *name == "EXEC").count();
    assert_eq!(execs, 2);
    assert_eq!(sessions.status().transactional.counts.retries, 0);
    pool_is_whole(&sessions, &fixture.server);
}

// What is known although the rest was lost.

#[test]
fn a_refusal_that_was_read_is_no_proof_if_execs_reply_was_lost() {
    for fault in [Fault::Cut, Fault::Reset, Fault::SwallowReply] {
        let fixture = Proxied::start();
        let sessions =
            fixture.warm(fixture.builder().trust_window(LONG).response_timeout(RESPONSE));
        fixture.proxy.arm((Trigger::BeforeReplyTo("EXEC"), fault));
        let error = commit_error(sessions.transactional().run(|tx| {
            tx.set("key", 1);
            tx.queue::<()>(redis::cmd("NOSUCH").arg("x").take());
            Ok(tx.set("key", 2))
        }));
        // The server's EXECABORT would have proven that the refusal is the server's own.
        in_doubt(&error);
        assert_eq!(fixture.proxy.fired(), 1);
        fixture.proxy.disarm();
        assert!(!exists(&fixture.server, "key"));
        pool_is_whole(&sessions, &fixture.server);
    }
}

#[test]
fn an_outcome_that_was_read_is_returned_though_the_connection_dies_right_after_it() {
    let fixture = Proxied::start();
    let sessions = fixture.doubting();
    let accounts = sessions.transactional();
    fixture.proxy.arm((Trigger::AfterReplyTo("EXEC"), Fault::Cut));
    assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    fixture.server.ask::<()>(&["SET", "text", "hello"]);
    fixture.proxy.disarm();
    pool_is_whole(&sessions, &fixture.server);
    fixture.proxy.arm((Trigger::AfterReplyTo("EXEC"), Fault::Cut));
    let partly = commit_error(accounts.run(|tx| Ok(tx.lpush("text", "x"))));
    match &partly {
        Error::Commit(CommitError::PartlyApplied { replies, .. }) => {
            assert!(matches!(replies.errors().next(), Some(ReplyError::Failed { index: 0, .. })));
        }
        error => panic!("{error:?}"),
    }
    fixture.proxy.disarm();
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_malformed_reply_leaves_a_doubt_and_closes_the_connection() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut client, _) = listener.accept().unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        let mut answer = |replies: &[u8], until: &str| {
            let mut seen = Vec::new();
            while !String::from_utf8_lossy(&seen).contains(until) {
                let mut bytes = [0; 1024];
                let length = client.read(&mut bytes).unwrap();
                assert!(length > 0);
                seen.extend_from_slice(&bytes[..length]);
            }
            client.write_all(replies).unwrap();
        };
        answer(b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n", "DISCARD");
        answer(b"+OK\r\n+QUEUED\r\n:42\r\n", "EXEC");
        // Nothing more is sent on this connection.
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    });
    let sessions = crate::side::SessionManager::builder(format!("redis://{address}/"))
        .trust_window(LONG)
        .build_side()
        .unwrap();
    let error = commit_error(sessions.transactional().run(|tx| Ok(tx.set("key", 1))));
    assert_eq!(in_doubt(&error), ConnectionErrorKind::Unexpected);
    impostor.join().unwrap();
}
