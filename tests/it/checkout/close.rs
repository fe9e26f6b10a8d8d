//! How a session ends: closed by hand, or with its last handle.
//!
//! Guarantee: ends

use crate::fixture::{LARGE_SLACK, SOON, immediate};
use std::collections::BTreeSet;
use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::error::{Applied, CheckoutError};
use rediscope::{Builder, Error, SessionManager, prelude::*, redis};

use super::{open_connections, patient};
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;

#[test]
fn close_waits_for_open_scopes_and_refuses_new_ones() {
    let server = Server::start();
    let sessions = patient(&server).max_size(1).build().unwrap();
    let accounts = sessions.transactional();
    let mut tx = accounts.begin().unwrap();
    tx.incr("a", 1);
    let waiter = thread::spawn({
        let accounts = accounts.clone();
        move || accounts.begin().map(drop)
    });
    eventually(SOON, "it waits", || sessions.status().transactional.waiting == 1);
    let closer = thread::spawn({
        let sessions = sessions.clone();
        move || sessions.close(SOON)
    });
    assert!(is_closed(&waiter.join().unwrap().unwrap_err()), "a waiting caller fails at once");
    every_call_fails(&sessions);
    assert!(!closer.is_finished(), "it waits for the open scope");
    tx.commit().unwrap();
    assert_eq!(closer.join().unwrap().scopes, 0, "nothing had to be taken back");
    assert_eq!(server.ask::<i64>(&["GET", "a"]), 1);
    eventually(SOON, "no connection is left", || server.clients() == 0);
}

#[test]
fn close_takes_back_what_does_not_end() {
    let server = Server::start();
    let sessions = patient(&server).max_size(3).build().unwrap();
    let accounts = sessions.transactional();
    let mut tx = accounts.begin_with(immediate()).unwrap();
    tx.incr("a", 1);
    std::mem::forget(accounts.watch(["a"]).begin().unwrap());
    let (let_go, held) = mpsc::channel::<()>();
    let db = sessions.pooled();
    let stuck = thread::spawn(move || db.with_raw(|_| held.recv().unwrap_err()).map(drop));
    eventually(SOON, "it is held", || sessions.status().pooled.in_use == 1);
    let third = accounts.begin().unwrap();
    let waiter = thread::spawn({
        let accounts = accounts.clone();
        move || accounts.begin().map(drop)
    });
    eventually(SOON, "it waits", || sessions.status().transactional.waiting == 1);

    let begun = Instant::now();
    let limit = Duration::from_millis(200);
    assert_eq!(sessions.close(limit).scopes, 4);
    assert!(begun.elapsed() >= limit && begun.elapsed() < 2 * limit + LARGE_SLACK);
    let late = tx.commit().unwrap_err();
    assert!(matches!(late, Error::PinExpired(_)), "{late}");
    assert!(is_closed(&waiter.join().unwrap().unwrap_err()));
    every_call_fails(&sessions);
    drop((third, let_go));
    stuck.join().unwrap().unwrap();
    eventually(SOON, "no connection is left", || server.clients() == 0);
    assert_eq!(server.ask::<Option<i64>>(&["GET", "a"]), None, "nothing was applied");
    assert_eq!(sessions.close(limit).scopes, 0, "closed is closed");
}

#[test]
fn a_call_that_hangs_delays_no_report_no_reaper_and_no_close() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).max_size(2);
    let builder = builder.max_pin_time(Duration::from_millis(200)).checkout_timeout(SOON);
    let sessions = builder.response_timeout(SOON / 4).build().unwrap();
    let accounts = sessions.transactional();
    let (mut hanging, line) = (accounts.watch(["a"]).begin().unwrap(), line!());
    proxy.arm((Trigger::BeforeReplyTo("GET"), Fault::HoldReplies));
    let call = thread::spawn(move || (hanging.get::<_, Option<i64>>("a"), hanging));
    eventually(SOON, "the call hangs", || proxy.fired() == 1);

    // The reaper passes the entry of the call, whichever entry is the first.
    std::mem::forget(accounts.watch(["b"]).begin().unwrap());
    let status = || sessions.status().transactional;
    eventually(SOON, "the forgotten scope is reclaimed", || status().in_use == 1);
    let open = sessions.open_scopes();
    assert!(matches!(&open[..], [scope] if scope.begun_at.line() == line), "{open:?}");
    assert!(!call.is_finished(), "its own deadline ends a call, and not the reaper");

    let begun = Instant::now();
    assert_eq!(sessions.close(Duration::ZERO).scopes, 1);
    let (result, mut hanging) = call.join().unwrap();
    assert!(begun.elapsed() < SOON / 4, "{:?}", begun.elapsed());
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Lost { applied: Applied::No, .. }), "{error}");
    // The mark was obeyed when the call ended, before the scope's own end.
    assert_eq!((status().in_use, sessions.open_scopes().len()), (0, 0));
    let late = hanging.get::<_, Option<i64>>("a").unwrap_err();
    assert!(matches!(late, Error::PinExpired(_)), "{late}");
}

/// The call that ends a scope is in the report until it ends, and `close` ends it.
#[test]
fn the_last_call_of_a_scope_that_hangs_is_reported_and_ended_by_close() {
    type End = fn(rediscope::Transaction) -> Option<Error>;
    let ends: [(&str, End); 3] = [
        ("EXEC", |tx| tx.commit().err()),
        ("DISCARD", |tx| tx.discard().err()),
        ("DISCARD", |tx| {
            drop(tx);
            None
        }),
    ];
    for (held, end) in ends {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let builder = SessionManager::builder(proxy.url()).max_size(1);
        let builder = builder.max_pin_time(Duration::from_millis(50)).cleanup_timeout(SOON / 4);
        let sessions = builder.response_timeout(SOON / 4).checkout_timeout(SOON).build().unwrap();
        let accounts = sessions.transactional();
        let (mut tx, line) = (accounts.begin_with(immediate()).unwrap(), line!());
        tx.incr("a", 1);
        proxy.arm((Trigger::BeforeReplyTo(held), Fault::HoldReplies));
        let ending = thread::spawn(move || end(tx));
        eventually(SOON, "the call hangs", || proxy.fired() == 1);
        // Several times the reaper's limit: it marks the scope, and does not wait for it.
        let looked_at = Duration::from_millis(300);
        eventually(SOON, "the reaper has looked", || {
            sessions.open_scopes().iter().all(|scope| scope.age > looked_at)
        });
        let open = sessions.open_scopes();
        assert!(matches!(&open[..], [scope] if scope.begun_at.line() == line), "{held} {open:?}");
        assert!(!ending.is_finished());
        let begun = Instant::now();
        assert_eq!(sessions.close(Duration::ZERO).scopes, 1, "{held}");
        let error = ending.join().unwrap();
        assert!(begun.elapsed() < SOON / 4, "{:?}", begun.elapsed());
        match held {
            "EXEC" => assert_eq!(error.unwrap().applied(), Applied::Unknown),
            _ => assert!(error.is_none_or(|error| error.applied() == Applied::No)),
        }
        assert_eq!(sessions.status().transactional.in_use, 0, "{held}");
        assert!(sessions.open_scopes().is_empty());
        assert_eq!(sessions.close(Duration::ZERO).scopes, 0);
    }
}

#[test]
fn close_ends_a_call_whose_connection_was_replaced_meanwhile() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).max_size(1);
    let sessions = builder.response_timeout(SOON / 4).checkout_timeout(SOON).build().unwrap();
    let accounts = sessions.transactional();
    drop(accounts.watch(["a"]).begin().unwrap());
    proxy.cut_all();
    eventually(SOON, "the connection is closed", || server.clients() == 0);
    let accepted = proxy.accepted();
    proxy.arm((Trigger::BeforeReplyTo("WATCH"), Fault::HoldReplies));
    let call = thread::spawn(move || accounts.watch(["a"]).begin().map(drop));
    eventually(SOON, "the call hangs", || proxy.fired() == 1);
    assert_eq!(proxy.accepted(), accepted + 1, "the scope has a second connection");
    let begun = Instant::now();
    assert_eq!(sessions.close(Duration::ZERO).scopes, 1);
    let error = call.join().unwrap().unwrap_err();
    assert!(begun.elapsed() < SOON / 4, "{:?} {error}", begun.elapsed());
    assert_eq!(sessions.status().transactional.in_use, 0);
}

#[test]
fn a_closed_session_leaves_no_connection_behind_and_opens_none() {
    let server = Server::start();
    let sessions = patient(&server).max_size(4).min_idle(2).build().unwrap();
    open_connections(&sessions.transactional(), 3);
    eventually(SOON, "both pools are warm", || server.clients() >= 5);
    sessions.close(SOON);
    eventually(SOON, "no connection is left", || server.clients() == 0);
    let received = server.connections_received();
    // `min_idle` would have opened them again by now.
    let seen = Instant::now();
    eventually(SOON, "some time", || seen.elapsed() > Duration::from_millis(700));
    assert_eq!((server.clients(), server.connections_received()), (0, received));
}

#[test]
fn reads_of_replicas_fail_after_the_close_also_if_their_pool_is_made_then() {
    let server = Server::start();
    let is_closed = |read: redis::RedisResult<Option<i64>>| {
        let error = Error::from(read.unwrap_err());
        assert!(matches!(error, Error::Checkout(CheckoutError::Closed)), "{error:?}");
    };
    let sessions = patient(&server).build().unwrap();
    sessions.close(Duration::ZERO);
    is_closed(sessions.replica_reads().get("n"));
    #[cfg(feature = "tokio")]
    rediscope_testing::tasks::single().block_on(async {
        let sessions = patient(&server).build_async().unwrap();
        sessions.close(Duration::ZERO).await;
        is_closed(sessions.replica_reads().get("n").await);
    });
    assert_eq!(server.clients(), 0);
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "/proc lists the threads")]
fn the_last_handle_closes_every_connection_and_ends_every_thread() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let before = threads();
    let ours = || threads().difference(&before).count();
    let sessions = patient(&server).max_size(8).min_idle(2).build().unwrap();
    let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
    let _: () = db.set("a", 1).unwrap();
    open_connections(&accounts, 5);
    assert!(server.clients() >= 6);
    eventually(SOON, "the three threads are there, by this name", || ours() == 3);
    let mut tx = accounts.begin().unwrap();
    tx.incr("a", 1);
    drop((sessions, db, accounts));
    tx.commit().expect("a guard goes on without the handles");
    eventually(SOON, "no connection is left", || server.clients() == 0);
    eventually(SOON, "no thread is left", || ours() == 0);
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "/proc lists the threads")]
fn a_forgotten_guard_keeps_neither_connections_nor_threads() {
    rediscope_testing::own_process!();
    let server = Server::start();
    forgets_a_guard(patient(&server), &|| server.clients());
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "/proc lists the threads")]
fn a_forgotten_guard_in_a_cluster_keeps_neither_connections_nor_threads() {
    rediscope_testing::own_process!();
    let cluster = Cluster::start(3, 0);
    // The nodes have connections to each other, which are no clients of this kind.
    let clients = || cluster.nodes().iter().map(|node| node.server.clients()).sum();
    forgets_a_guard(SessionManager::builder(cluster.url()), &clients);
}

fn forgets_a_guard(builder: Builder, clients: &dyn Fn() -> usize) {
    let before = threads();
    let ours = || threads().difference(&before).count();
    let sessions = builder.max_pin_time(Duration::from_millis(500)).build().unwrap();
    let accounts = sessions.transactional().with(immediate());
    std::mem::forget(accounts.begin_at("a").unwrap());
    assert!(clients() > 0 && ours() > 0);
    drop((sessions, accounts));
    eventually(SOON, "no connection is left", || clients() == 0);
    eventually(SOON, "no thread is left", || ours() == 0);
}

/// The threads of all sessions of this process.
fn threads() -> BTreeSet<std::ffi::OsString> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    let ours = |task: &fs::DirEntry| name(task).is_ok_and(|n| n.starts_with("rediscope-"));
    tasks.filter(ours).map(|task| task.file_name()).collect()
}

/// Every call on a closed manager fails with that error, which is not retryable.
#[track_caller]
fn every_call_fails(sessions: &SessionManager) {
    let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
    let calls = [
        accounts.begin().map(drop).unwrap_err(),
        accounts.watch(["a"]).run(|_, tx| Ok(tx.set("a", 2))).unwrap_err(),
        db.get::<_, i64>("a").unwrap_err().into(),
    ];
    assert!(calls.iter().all(is_closed), "{calls:?}");
    let by_run = accounts.run(|tx| Ok(tx.set("a", 3))).unwrap_err();
    for error in calls.iter().chain([&by_run]) {
        assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false), "{error}");
    }
}

fn is_closed(error: &Error) -> bool {
    matches!(error, Error::Checkout(CheckoutError::Closed))
}
