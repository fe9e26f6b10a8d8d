//! Replies longer than one read of a socket: whole in whatever pieces they arrive, and never taken for whole
//! after a cut.
//!
//! Guarantee: replies-of-every-size

use crate::fixture::{OF_ONE, SOON, add_on, unhurried};
use crate::side::{BuildSide as _, open_lanes, open_pooled_lanes};
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

/// More than one read takes, and no multiple of it.
const LONG: usize = 100_003;

/// A pool of one, on a server that has a long value.
fn fixture() -> (Server, Proxy, SessionManager, Vec<u8>) {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    // A hundred thousand bytes, each read for itself, may take a busy machine long.
    let sessions = unhurried(SessionManager::builder(proxy.url()))
        .max_size(1)
        .trust_window(Duration::from_secs(3600))
        .build_side()
        .unwrap();
    let value: Vec<u8> = (0..LONG).map(|n| (n % 251) as u8).collect();
    sessions.pooled().set::<_, _, ()>("long", &value).unwrap();
    sessions.transactional().begin().unwrap().commit().unwrap();
    open_lanes(&sessions, "before");
    open_pooled_lanes(&sessions, "before");
    (server, proxy, sessions, value)
}

fn inside(name: &'static str, bytes: u64, fault: Fault) -> Script {
    Script::from((Trigger::InsideReplyTo(name, bytes), fault)).once()
}

#[test]
fn a_read_whose_long_reply_was_cut_is_sent_again() {
    let (_server, proxy, sessions, value) = fixture();
    let mut db = sessions.pooled();
    for bytes in [1, 8, 16_384, 50_000, LONG as u64 + 8] {
        for fault in [Fault::Cut, Fault::Reset] {
            let before = sessions.status().pooled.counts.connects;
            proxy.arm(inside("GET", bytes, fault));
            assert_eq!(db.get::<_, Vec<u8>>("long").unwrap(), value, "{bytes} {fault:?}");
            open_pooled_lanes(&sessions, "before");
            assert_eq!(sessions.status().pooled.counts.connects, before + 1, "{bytes} {fault:?}");
        }
    }
}

#[test]
fn a_transaction_whose_long_reply_was_cut_is_in_doubt_and_applied_once() {
    let (server, proxy, sessions, _) = fixture();
    let accounts = sessions.transactional();
    let mut doubts = 0;
    for bytes in [1, 8, 16_384, 50_000, LONG as u64 + 8] {
        for fault in [Fault::Cut, Fault::Reset] {
            let mut tx = accounts.begin().unwrap();
            let _: Queued<Vec<u8>> = tx.get("long");
            tx.incr("n", 1);
            proxy.arm(inside("EXEC", bytes, fault));
            let error = tx.commit().unwrap_err();
            assert!(
                matches!(error, Error::Commit(CommitError::InDoubt(_))),
                "{bytes} {fault:?}: {error}"
            );
            assert_eq!(error.applied(), Applied::Unknown);
            doubts += 1;
            assert_eq!(server.ask::<u32>(&["GET", "n"]), doubts);
            add_on(0, &accounts, "after");
            open_lanes(&sessions, "before");
        }
    }
    proxy.disarm();
    assert_eq!(server.ask::<u32>(&["GET", "after"]), doubts);
    eventually(SOON, "the cut connections are gone", || server.clients() == 2 * OF_ONE);
}

#[test]
fn a_long_reply_that_comes_byte_by_byte_is_whole() {
    let (_server, proxy, sessions, value) = fixture();
    proxy.arm((Trigger::BeforeReplyTo("GET"), Fault::OneByteAtATime));
    assert_eq!(sessions.pooled().get::<_, Vec<u8>>("long").unwrap(), value);
    let accounts = sessions.transactional();
    proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::OneByteAtATime));
    let (long, n) = accounts.run(|tx| Ok((tx.get::<_, Vec<u8>>("long"), tx.incr("n", 1)))).unwrap();
    assert_eq!((long, n), (value, 1));
}
