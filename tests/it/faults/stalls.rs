//! Writes that stop or crawl, and replies that never come: calls end in time, and no write is applied in part.
//!
//! Guarantee: deadlines

use crate::fixture::proxied::warm;
use crate::fixture::{OF_ONE, SOON, add_on_each};
use crate::side::BuildSide as _;
use std::time::{Duration, Instant};

use crate::side::SessionManager;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger, Which};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, in_time};

const RESPONSE: Duration = Duration::from_millis(2000);
/// The system's own timeout may begin again when a stuck write could place a few bytes more; whatever it
/// has placed is counted and the clock looked at. Less than the whole write would take.
const BOUND: Duration = Duration::from_secs(10);
/// More than the kernels' buffers hold.
const BIG: usize = 10 << 20;

/// A pool of one trusted connection with the smallest buffers on the way, and a server.
fn narrow() -> (Server, Proxy, SessionManager) {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.shrink_buffers();
    let sessions = SessionManager::builder(proxy.url())
        .max_size(1)
        .response_timeout(RESPONSE)
        .checkout_timeout(4 * RESPONSE)
        .trust_window(Duration::from_secs(3600))
        .flush_bytes(2 * BIG)
        .build_side()
        .unwrap();
    warm(&sessions);
    (server, proxy, sessions)
}

/// The same, if a connect may take as long as a reply: what is set on the socket
/// when it is opened is then never set again.
fn even() -> (Server, Proxy, SessionManager) {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.shrink_buffers();
    let sessions = SessionManager::builder(proxy.url())
        .max_size(1)
        .connect_timeout(RESPONSE)
        .response_timeout(RESPONSE)
        .checkout_timeout(4 * RESPONSE)
        .trust_window(Duration::from_secs(3600))
        .flush_bytes(2 * BIG)
        .build_side()
        .unwrap();
    (server, proxy, sessions)
}

fn stops() -> Script {
    Script::from((Trigger::InsideCommandNamed("SET", 100), Fault::HoldRequests)).once()
}

#[test]
fn a_write_that_stops_in_the_middle_was_not_sent_and_is_never_applied() {
    let (server, proxy, sessions) = narrow();
    let mut tx = sessions.transactional().begin().unwrap();
    tx.incr("n", 1);
    tx.set("big", vec![b'x'; BIG]);
    proxy.arm(stops());
    let begun = Instant::now();
    let error = tx.commit().unwrap_err();
    assert!(matches!(error, Error::Commit(CommitError::NotSent { .. })), "{error}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    crate::side::settled(&sessions);
    assert_eq!(sessions.status().transactional.in_use, 0);
    // What came half-way arrives after all, and so does its end.
    proxy.disarm();
    proxy.release();
    add_on_each(&sessions.transactional(), "after");
    eventually(SOON, "the old connection is gone", || server.clients() == OF_ONE);
    assert!(!server.ask::<bool>(&["EXISTS", "n", "big"]));
}

#[test]
fn a_block_whose_write_stopped_in_the_middle_is_sent_again_and_applied_once() {
    let (server, proxy, sessions) = narrow();
    proxy.arm(stops());
    // The buffers of its next connection are wide, so that its time is for the write that stops alone.
    proxy.widen_buffers();
    let n = sessions.transactional().run(|tx| {
        tx.set("big", vec![b'x'; BIG]);
        Ok(tx.incr("n", 1))
    });
    assert_eq!(n.unwrap(), 1);
    proxy.release();
    eventually(SOON, "the old connection is gone", || server.clients() == OF_ONE);
    assert_eq!(server.ask::<u32>(&["GET", "n"]), 1);
    assert_eq!(server.ask::<usize>(&["STRLEN", "big"]), BIG);
}

#[test]
fn a_write_that_crawls_ends_at_its_deadline() {
    let (server, proxy, sessions) = narrow();
    let mut tx = sessions.transactional().begin().unwrap();
    tx.set("big", vec![b'x'; BIG]);
    tx.incr("n", 1);
    // 16 KiB every 25 ms at the most: a quarter of a minute for the whole.
    proxy.set_delays(Duration::from_millis(25), Duration::ZERO);
    let begun = Instant::now();
    let error = tx.commit().unwrap_err();
    assert!(matches!(error, Error::Commit(CommitError::NotSent { .. })), "{error}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    proxy.set_delays(Duration::ZERO, Duration::ZERO);
    add_on_each(&sessions.transactional(), "after");
    eventually(SOON, "the old connection is gone", || server.clients() == OF_ONE);
    assert!(!server.ask::<bool>(&["EXISTS", "n"]));
}

#[test]
fn the_first_write_of_a_new_connection_ends_in_time_too() {
    let (server, proxy, sessions) = even();
    proxy.arm(stops());
    let mut tx = sessions.transactional().begin().unwrap();
    tx.incr("n", 1);
    tx.set("big", vec![b'x'; BIG]);
    let begun = Instant::now();
    let error = in_time(SOON, "the write ends", || tx.commit().unwrap_err());
    assert!(matches!(error, Error::Commit(CommitError::NotSent { .. })), "{error}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    proxy.disarm();
    proxy.release();
    add_on_each(&sessions.transactional(), "after");
    eventually(SOON, "the old connection is gone", || server.clients() == OF_ONE);
    assert!(!server.ask::<bool>(&["EXISTS", "n", "big"]));
}

#[test]
fn a_missing_reply_on_a_new_connection_is_awaited_within_the_timeout_too() {
    let (server, proxy, sessions) = even();
    let (accounts, mut db) = (sessions.transactional(), sessions.pooled());
    let never = |name| Script::from((Trigger::BeforeReplyTo(name), Fault::SwallowReply)).once();
    proxy.arm(never("EXEC"));
    let error =
        in_time(SOON, "a block ends", move || accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap_err());
    assert_eq!(error.applied(), Applied::Unknown, "{error}");
    proxy.arm(never("INCRBY"));
    let error = in_time(SOON, "a command ends", move || {
        Error::from(db.incr::<_, _, i64>("n", 1).unwrap_err())
    });
    assert_eq!(error.applied(), Applied::Unknown, "{error}");
    proxy.disarm();
    // The handshake waits for a reply as well; it is given up, and another one is tried.
    proxy.script(Which::Next, (Trigger::BeforeReplyTo("DISCARD"), Fault::SwallowReply));
    let accounts = sessions.transactional();
    let n = in_time(SOON, "a connection is had", move || accounts.run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(n.unwrap(), 3);
    assert_eq!(server.ask::<u32>(&["GET", "n"]), 3);
}
