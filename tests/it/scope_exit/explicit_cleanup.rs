//! Every drop has a counterpart that returns the error which a drop cannot: `discard()` and `abandon()`.
//! (`release()` of a part sends nothing, so it has nothing to return.)
//!
//! Guarantee: clean-connections

use crate::fixture::{OF_ONE, SOON, add_on_each};
use crate::side::BuildSide as _;
use std::time::{Duration, Instant};

use crate::side::{SessionManager, Transactional};
use redis::Commands;
use rediscope::error::{Applied, ConnectionErrorKind};
use rediscope::status::CloseReason;
use rediscope::{Begin, CommitError, Error, TransactionOptions, prelude::*};

use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, in_time, unique};

/// Far from each other, so that which one ended a call is seen without a stopwatch.
const CLEANUP: Duration = Duration::from_millis(150);
const RESPONSE: Duration = Duration::from_secs(10);

/// One connection, as a user whose rights can be taken away.
fn pool_of_one(server: &Server) -> SessionManager {
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    SessionManager::builder(server.url_as("app", "secret"))
        .max_size(1)
        .response_timeout(RESPONSE)
        .cleanup_timeout(CLEANUP)
        .checkout_timeout(3 * RESPONSE)
        .flush_bytes(64)
        .build_side()
        .unwrap()
}

fn immediate(sessions: &SessionManager) -> Transactional {
    sessions.transactional().with(TransactionOptions::new().begin(Begin::Immediate))
}

/// The command that cleans up, and the way to give up that sends it.
type Pair = (&'static str, Box<dyn FnOnce() -> Result<(), Error>>);

/// Every scope that has something to clean up, given up by its pair.
fn pairs(sessions: &SessionManager) -> Vec<Pair> {
    let key = unique("watched");
    let (deferred, immediate) = (sessions.transactional(), immediate(sessions));
    let watch = deferred.watch([&key]);
    let watched = watch.clone();
    vec![
        ("DISCARD", Box::new(move || immediate.begin()?.discard())),
        ("DISCARD", {
            Box::new(move || {
                let mut tx = deferred.begin()?;
                tx.set("chunk", vec![b'x'; 100]);
                crate::side::send_ahead(&mut tx);
                tx.discard()
            })
        }),
        ("UNWATCH", Box::new(move || watch.begin()?.abandon())),
        ("UNWATCH", Box::new(move || watched.begin()?.multi().discard())),
    ]
}

fn no_connection_is_in_multi(server: &Server) {
    eventually(SOON, "no client is in MULTI", || {
        server.client_list().iter().all(|client| client["multi"] == "-1")
    });
}

fn works_again(sessions: &SessionManager, server: &Server) {
    let key = unique("again");
    crate::side::open_lanes(sessions, &key);
    add_on_each(&sessions.transactional(), &key);
    assert_eq!(server.connection().get::<_, usize>(&key).unwrap(), OF_ONE);
}

#[test]
fn discarding_reports_that_the_server_refused_to_clean_and_replaces_the_connection() {
    let server = Server::start();
    let sessions = pool_of_one(&server);
    let pairs = pairs(&sessions);
    for (nth, (command, pair)) in pairs.into_iter().enumerate() {
        works_again(&sessions, &server);
        // The connection is there already; a new one would be refused for want of DISCARD.
        server.acl(&["SETUSER", "app", "-discard", "-unwatch"]);
        let error = pair().unwrap_err();
        server.acl(&["SETUSER", "app", "+discard", "+unwatch"]);
        let Error::Command { command: refused, error: refusal, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((refused.as_str(), refusal.code()), (command, "NOPERM"));
        assert_eq!(error.applied(), Applied::No);
        let status = sessions.status().transactional;
        assert_eq!(status.in_use, 0, "{status}");
        assert_eq!(status.counts.replaced, [(CloseReason::LeftDirty, nth as u64 + 1)], "{status}");
        no_connection_is_in_multi(&server);
        let chunk: bool = server.connection().exists("chunk").unwrap();
        assert!(!chunk);
    }
    works_again(&sessions, &server);
}

#[test]
fn dropping_swallows_the_same_refusal_and_replaces_the_connection_too() {
    let server = Server::start();
    let sessions = pool_of_one(&server);
    works_again(&sessions, &server);
    let drops: [&dyn Fn(); 2] = [&|| drop(immediate(&sessions).begin().unwrap()), &|| {
        drop(sessions.transactional().watch(["k"]).begin().unwrap())
    }];
    for (nth, drop) in drops.iter().enumerate() {
        works_again(&sessions, &server);
        server.acl(&["SETUSER", "app", "-discard", "-unwatch"]);
        drop();
        crate::side::settled(&sessions);
        server.acl(&["SETUSER", "app", "+discard", "+unwatch"]);
        let status = sessions.status().transactional;
        assert_eq!(status.in_use, 0, "{status}");
        assert_eq!(status.counts.replaced, [(CloseReason::LeftDirty, nth as u64 + 1)], "{status}");
        no_connection_is_in_multi(&server);
    }
    works_again(&sessions, &server);
}

#[test]
fn a_failed_cleaning_does_not_hide_why_the_commit_failed() {
    let server = Server::start();
    let sessions = pool_of_one(&server);
    let mut tx = sessions.transactional().begin().unwrap();
    tx.queue::<()>(redis::cmd("NOSUCHCOMMAND"));
    tx.set("chunk", vec![b'x'; 100]);
    crate::side::send_ahead(&mut tx);
    server.acl(&["SETUSER", "app", "-discard"]);
    let error = tx.commit().unwrap_err();
    server.acl(&["SETUSER", "app", "+discard"]);
    assert!(
        matches!(&error, Error::Commit(CommitError::Rejected { index: Some(0), command, .. })
            if command == "NOSUCHCOMMAND"),
        "{error:?}"
    );
    let status = sessions.status().transactional;
    assert_eq!((status.in_use, status.counts.all_replaced()), (0, 1), "{status}");
    no_connection_is_in_multi(&server);
    works_again(&sessions, &server);
}

#[test]
fn giving_up_on_a_frozen_server_ends_with_the_cleanup_timeout_and_fails() {
    let server = Server::start();
    let sessions = pool_of_one(&server);
    let immediate = immediate(&sessions);
    let watch = sessions.transactional().watch(["k"]);
    for nth in 0..4 {
        works_again(&sessions, &server);
        let frozen_since;
        let reported = match nth {
            0 => {
                let tx = immediate.begin().unwrap();
                server.sigstop();
                frozen_since = Instant::now();
                Some(tx.discard())
            }
            1 => {
                let watching = watch.begin().unwrap();
                server.sigstop();
                frozen_since = Instant::now();
                Some(watching.abandon())
            }
            2 => {
                let tx = immediate.begin().unwrap();
                server.sigstop();
                frozen_since = Instant::now();
                drop(tx);
                None
            }
            _ => {
                let watching = watch.begin().unwrap();
                server.sigstop();
                frozen_since = Instant::now();
                drop(watching);
                None
            }
        };
        let took = frozen_since.elapsed();
        if reported.is_none() {
            crate::side::settled(&sessions);
        }
        let status = sessions.status().transactional;
        server.sigcont();
        assert!(took < RESPONSE / 2, "it took {took:?}");
        assert_eq!(status.in_use, 0, "{status}");
        assert_eq!(status.counts.replaced, [(CloseReason::TimedOut, nth + 1)], "{status}");
        if let Some(reported) = reported {
            let Err(Error::Lost { applied, source, .. }) = &reported else {
                panic!("{reported:?}")
            };
            assert_eq!((*applied, source.kind()), (Applied::No, ConnectionErrorKind::TimedOut));
        }
    }
    works_again(&sessions, &server);
}

#[test]
fn giving_up_after_the_server_died_fails_with_the_loss() {
    let server = Server::start();
    let sessions = pool_of_one(&server);
    let tx = immediate(&sessions).begin().unwrap();
    server.sigkill();
    let reported = tx.discard();
    let Err(Error::Lost { applied, source, .. }) = &reported else { panic!("{reported:?}") };
    assert_eq!((*applied, source.kind()), (Applied::No, ConnectionErrorKind::Closed));
    assert_eq!(sessions.status().transactional.in_use, 0);
    server.restart_on_same_port();
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    works_again(&sessions, &server);
}

#[test]
fn after_a_cleaning_the_next_caller_has_its_own_timeout_again() {
    const RESPONSE: Duration = Duration::from_millis(900);
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = SessionManager::builder(proxy.url())
        .max_size(1)
        .connect_timeout(RESPONSE)
        .response_timeout(RESPONSE)
        .cleanup_timeout(CLEANUP)
        .checkout_timeout(SOON)
        // Only EXEC is to be left unanswered.
        .trust_window(SOON)
        .build_side()
        .unwrap();
    let accounts = sessions.transactional();
    let conflict = || {
        let tx = accounts.watch(["k"]).begin().unwrap().multi();
        let _: i64 = server.connection().incr("k", 1).unwrap();
        assert!(tx.commit().unwrap().is_conflict());
    };
    let exits: [&dyn Fn(); 3] = [
        &|| drop(immediate(&sessions).begin().unwrap()),
        &|| drop(accounts.watch(["k"]).begin().unwrap()),
        &conflict,
    ];
    for (nth, exit) in exits.iter().enumerate() {
        proxy.disarm();
        exit();
        let accepted = proxy.accepted();
        proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies));
        let mut tx = accounts.begin().unwrap();
        tx.incr("hits", 1);
        let begun = Instant::now();
        let reported = in_time(SOON, "the commit ends", || tx.commit());
        let took = begun.elapsed();
        assert_eq!(proxy.accepted(), accepted, "it was the same connection");
        assert!(matches!(reported, Err(Error::Commit(CommitError::InDoubt(_)))), "{reported:?}");
        assert!(took >= RESPONSE - CLEANUP && took < SOON / 2, "it took {took:?}");
        let hits: usize = server.connection().get("hits").unwrap();
        assert_eq!(hits, nth + 1, "the server had executed it: in doubt was right");
    }
}
