//! A doubt that a test makes, and its resolution.
//!
//! Guarantee: exactly-once

use crate::fixture::SOON;
use crate::side::{BuildSide as _, ResolveDoubt as _};
use std::net::TcpListener;
use std::time::Duration;
use std::time::Instant;

use crate::side::SessionManager;
use rediscope::error::{Applied, ReplyError, Resolution, UnresolvedReason};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, TransactionOptions};

use super::fixture::{Fate, commit_error, doubt, start};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};
use rediscope_testing::unresponsive_port::UnresponsivePort;

#[test]
fn a_lost_reply_to_an_applied_transaction_is_resolved_as_committed() {
    let fixture = start();
    let handle = fixture.armed();
    let doubt = fixture.doubted(&handle, Fate::Applied);
    assert_eq!(doubt.resolved(), Resolution::Committed);
    assert_eq!(doubt.resolved(), Resolution::Committed, "and again");
    assert_eq!(fixture.number("n"), 1);
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!((counts.in_doubt, counts.resolved_committed), (1, 1), "the server is asked once");
}

#[test]
fn a_transaction_that_never_arrived_is_resolved_as_not_committed() {
    let fixture = start();
    let handle = fixture.armed();
    let doubt = fixture.doubted(&handle, Fate::NotApplied);
    assert_eq!(doubt.resolved(), Resolution::NotCommitted);
    assert_eq!(fixture.number("n"), 0);
}

#[test]
fn an_exec_that_arrives_after_the_resolution_applies_nothing() {
    let fixture = start();
    let handle = fixture.armed();
    let mut tx = handle.begin().unwrap();
    tx.incr("n", 1);
    fixture.arm(Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests);
    let doubt = doubt(tx.commit());
    let executed = fixture.server.calls("exec");
    assert_eq!(doubt.resolved(), Resolution::NotCommitted);
    fixture.proxy.release();
    eventually(SOON, "the late EXEC has arrived", || fixture.server.calls("exec") > executed);
    assert_eq!(fixture.number("n"), 0, "it was refused");
    assert_eq!(doubt.resolved(), Resolution::NotCommitted, "and still");
}

#[test]
fn a_block_that_was_not_applied_is_sent_again_and_applied_once() {
    let fixture = start();
    let handle = fixture.armed();
    fixture.lose(Fate::NotApplied);
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    assert_eq!(fixture.number("n"), 1);
}

#[test]
fn a_block_that_was_applied_is_not_sent_again_and_reports_its_replies_as_lost() {
    let fixture = start();
    let handle = fixture.armed();
    fixture.lose(Fate::Applied);
    let lost = handle.run(|tx| Ok(tx.incr("n", 1))).unwrap_err();
    assert!(matches!(lost, Error::Reply(ReplyError::Lost)), "{lost:?}");
    assert_eq!((lost.applied(), lost.is_retryable()), (Applied::Yes, false));
    assert_eq!(fixture.number("n"), 1);
    // A block without replies returns no error.
    handle.run(|_| Ok(())).unwrap();
    fixture.armed();
    fixture.lose(Fate::Applied);
    let ready = handle.run(|tx| {
        tx.incr("n", 1);
        Ok(rediscope::Ready(7))
    });
    assert_eq!(ready.unwrap(), 7);
    assert_eq!(fixture.number("n"), 2);
}

#[test]
fn a_watching_block_runs_again_if_nothing_was_applied() {
    let fixture = start();
    let handle = fixture.armed();
    fixture.lose(Fate::NotApplied);
    let mut runs = 0;
    let n = handle.watch(["n"]).run(|read, tx| {
        runs += 1;
        let n: Option<i64> = read.get("n")?;
        Ok(tx.incr("n", n.unwrap_or_default() + 1))
    });
    assert_eq!((n.unwrap(), runs), (1, 2));
}

#[test]
fn a_doubt_without_a_marker_fails_to_resolve() {
    let fixture = start();
    let mut tx = fixture.sessions.transactional().begin().unwrap();
    tx.incr("n", 1);
    fixture.next((Trigger::BeforeReplyTo("EXEC"), Fault::Cut));
    fixture.proxy.cut_all();
    let doubt = doubt(tx.commit());
    assert!(doubt.token().is_none());
    let unknown = Resolution::StillUnknown { why: UnresolvedReason::NotExactlyOnce };
    assert_eq!(doubt.resolved(), unknown);
}

#[test]
fn a_token_is_resolved_by_another_session_and_by_no_other_database() {
    let fixture = start();
    let handle = fixture.armed();
    let token = fixture.doubted(&handle, Fate::Applied).token().unwrap().clone();
    let other = SessionManager::connect(fixture.server.url()).unwrap();
    assert_eq!(other.resolve(&token, None), Resolution::Committed);
    let elsewhere = SessionManager::connect(fixture.server.url_db(3)).unwrap();
    let Resolution::StillUnknown { why: UnresolvedReason::OtherDatabase { token, here, .. } } =
        elsewhere.resolve(&token, None)
    else {
        panic!("a token of another database was resolved");
    };
    assert_eq!((token, here), (0, 3));
}

#[test]
fn a_doubt_waits_for_an_absent_server_and_no_longer_than_its_timeout() {
    let fixture = start();
    let handle = fixture.armed();
    let doubt = fixture.doubted(&handle, Fate::Applied);
    fixture.proxy.close_listener();
    let token = doubt.token().unwrap();
    let unreachable = fixture.sessions.resolve(token, Duration::from_millis(50));
    assert!(
        matches!(unreachable, Resolution::StillUnknown { why: UnresolvedReason::Unreachable(_) }),
        "{unreachable:?}"
    );
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| fixture.sessions.resolve(token, SOON));
        fixture.proxy.reopen_listener();
        assert_eq!(asking.join().unwrap(), Resolution::Committed);
    });
}

#[test]
fn a_query_refused_on_a_kept_connection_is_sent_again_after_a_pause() {
    const REFUSALS: usize = 10;
    let fixture = start();
    let handle = fixture.armed();
    fixture.sessions.ready(SOON).unwrap();
    for reply in ["-LOADING wait\r\n", "-BUSY wait\r\n", "-MASTERDOWN wait\r\n"] {
        let doubt = fixture.doubted(&handle, Fate::Applied);
        let refusal = (Trigger::BeforeReplyTo("PEXPIRE"), Fault::Answer(reply));
        fixture.proxy.arm(Script::from([refusal; REFUSALS]).in_turn());
        let (asked, begun) = (fixture.server.calls("pexpire"), Instant::now());
        assert_eq!(fixture.sessions.resolve(doubt.token().unwrap(), SOON), Resolution::Committed);
        let took = begun.elapsed();
        assert_eq!(fixture.server.calls("pexpire") - asked, REFUSALS as u64 + 1, "{reply}");
        // Half of each pause, from 6 ms to 100 ms, is not random.
        assert!(took > Duration::from_millis(300), "{reply} {REFUSALS} times within {took:?}");
    }
}

#[test]
fn a_silent_sentinel_keeps_no_resolution_past_its_limit() {
    let fixture = start();
    let token = fixture.doubted(&fixture.armed(), Fate::Applied).token().unwrap().clone();
    for (kind, deaf) in [("deaf", true), ("mute", false)] {
        let port = UnresponsivePort::open();
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = match deaf {
            true => port.url(),
            false => format!("redis://{}/", mute.local_addr().unwrap()),
        };
        for count in [1, 3] {
            let sentinels = vec![silent.as_str(); count];
            let sessions = SessionManager::sentinel("mymaster", sentinels)
                .connect_timeout(Duration::from_secs(16))
                .checkout_timeout(Duration::from_secs(20))
                .build_side()
                .unwrap();
            let begun = Instant::now();
            let resolution = sessions.resolve(&token, Duration::from_millis(10));
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(4), "{count} {kind} sentinels: {took:?}");
            let unreachable = matches!(
                resolution,
                Resolution::StillUnknown { why: UnresolvedReason::Unreachable(_) }
            );
            assert!(unreachable, "{count} {kind} sentinels: {resolution:?}");
        }
    }
}

#[test]
fn a_key_of_the_callers_is_committed_once_by_the_first_caller() {
    let fixture = start();
    let hour = Duration::from_secs(3600);
    let once = TransactionOptions::new().exactly_once_as("payment:4711", hour);
    let paying = fixture.sessions.transactional().with(once.clone());
    assert_eq!(paying.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    let again = commit_error(paying.run(|tx| Ok(tx.incr("n", 1))));
    assert!(matches!(again, Error::Commit(CommitError::AlreadyCommitted)), "{again:?}");
    let other = SessionManager::connect(fixture.server.url()).unwrap().transactional().with(once);
    let mut tx = other.begin().unwrap();
    tx.incr("n", 1);
    assert!(matches!(tx.commit(), Err(Error::Commit(CommitError::AlreadyCommitted))));
    let mut ran = false;
    let watched = other.watch(["w"]).run(|_, tx| {
        ran = true;
        Ok(tx.incr("n", 1))
    });
    assert!(matches!(commit_error(watched), Error::Commit(CommitError::AlreadyCommitted)));
    assert!(!ran, "its closure had nothing to decide");
    assert_eq!(fixture.number("n"), 1);
}
