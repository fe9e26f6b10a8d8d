//! `NotSent`: the failure came before EXEC's last byte left, so nothing was applied.
//!
//! Guarantee: not-sent

use crate::fixture::{LONG, SOON};
use crate::side::{BuildSide as _, SessionManager};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rediscope::TransactionOptions;
use rediscope::error::{Applied, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::status::CloseReason;
use rediscope::{CommitError, Error, RetryPolicy};

use crate::fixture::proxied::{
    Proxied, RESPONSE, assert_outcome, client_ids, commit_error, exists, get, pool_is_whole, warm,
};
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, packed};

/// How the connection failed.
#[track_caller]
fn not_sent(error: &Error) -> ConnectionErrorKind {
    assert_outcome(error, Applied::No, true);
    match error {
        Error::Commit(CommitError::NotSent { source, .. }) => match &**source {
            Error::Lost { source, applied: Applied::No, .. } => source.kind(),
            error => panic!("{error:?}"),
        },
        error => panic!("{error:?}"),
    }
}

fn never() -> TransactionOptions {
    TransactionOptions::new().retry(RetryPolicy::never())
}

#[test]
fn a_write_to_a_dead_connection_is_not_sent() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let watching = accounts.watch(["other"]).begin().unwrap();
    fixture.proxy.reset_all();
    let mut tx = watching.multi();
    tx.set("key", 1);
    assert_eq!(not_sent(&tx.commit().unwrap_err()), ConnectionErrorKind::Closed);
    assert!(!exists(&fixture.server, "key"));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_dead_connection_that_holds_nothing_of_the_scope_is_replaced_before_the_write() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional().with(never());
    let mut tx = accounts.begin().unwrap();
    tx.set("key", 1);
    fixture.proxy.reset_all();
    tx.commit().unwrap();
    for cut in [Proxy::reset_all, Proxy::cut_all] {
        cut(&fixture.proxy);
        accounts.run(|tx| Ok(tx.incr("key", 1))).unwrap();
        cut(&fixture.proxy);
        sessions.pooled().incr::<_, _, ()>("key", 1).unwrap();
    }
    assert_eq!(get(&fixture.server, "key").unwrap(), "5");
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn run_sends_the_same_block_again_when_it_was_not_sent() {
    let fixture = Proxied::start();
    fixture.proxy.shrink_buffers();
    // The second try goes through small buffers.
    let builder = fixture.builder().response_timeout(SOON).checkout_timeout(4 * SOON);
    let sessions = fixture.warm(builder.trust_window(LONG).flush_bytes(4 * LARGE));
    fixture
        .proxy
        .arm(Script::from((Trigger::AfterCommandNamed("MULTI"), Fault::HoldRequests)).once());
    let mut runs = 0;
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            sessions.transactional().run(|tx| {
                runs += 1;
                tx.set("key", vec![b'x'; LARGE / 2]);
                Ok(tx.incr("n", 1))
            })
        });
        eventually(SOON, "the write is under way", || fixture.proxy.fired() > 0);
        fixture.proxy.reset_all();
        assert_eq!(run.join().unwrap().unwrap(), 1);
    });
    assert_eq!(runs, 1);
    assert_eq!(get(&fixture.server, "n").unwrap(), "1");
    assert_eq!(sessions.status().transactional.counts.retries, 1);
    pool_is_whole(&sessions, &fixture.server);
}

/// Larger than all buffers on the way, so that the write is still under way when it is broken.
const LARGE: usize = 16 << 20;

/// A trusting manager over small buffers, with a rule that stops everything behind MULTI.
fn stuck(fixture: &Proxied) -> SessionManager {
    fixture.proxy.shrink_buffers();
    let builder = fixture.builder().trust_window(LONG).flush_bytes(4 * LARGE);
    let sessions = fixture.warm(builder.response_timeout(RESPONSE));
    fixture.proxy.arm((Trigger::AfterCommandNamed("MULTI"), Fault::HoldRequests));
    sessions
}

#[test]
fn a_write_that_breaks_off_in_the_middle_is_not_sent() {
    let fixture = Proxied::start();
    fixture.proxy.shrink_buffers();
    let sessions = fixture.warm(fixture.builder().trust_window(LONG).flush_bytes(4 * LARGE));
    fixture.proxy.arm((Trigger::AfterCommandNamed("MULTI"), Fault::HoldRequests));
    let error = thread::scope(|scope| {
        let commit = scope.spawn(|| {
            let mut tx = sessions.transactional().begin().unwrap();
            tx.set("key", vec![b'x'; LARGE]);
            tx.commit().unwrap_err()
        });
        eventually(SOON, "the write is under way", || fixture.proxy.fired() > 0);
        // A FIN would leave it waiting for room.
        fixture.proxy.reset_all();
        commit.join().unwrap()
    });
    assert_eq!(not_sent(&error), ConnectionErrorKind::Closed);
    fixture.proxy.disarm();
    assert!(!exists(&fixture.server, "key"));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_write_that_is_not_read_is_not_sent_and_ends_in_time() {
    let fixture = Proxied::start();
    let sessions = stuck(&fixture);
    let mut tx = sessions.transactional().begin().unwrap();
    tx.set("key", vec![b'x'; LARGE]);
    assert_eq!(not_sent(&tx.commit().unwrap_err()), ConnectionErrorKind::TimedOut);
    fixture.proxy.disarm();
    fixture.proxy.release();
    pool_is_whole(&sessions, &fixture.server);
    assert!(!exists(&fixture.server, "key"), "half a command is no command");
}

#[test]
fn a_chunk_that_is_lost_is_not_sent_wherever_it_is_cut() {
    let fixture = Proxied::start();
    let cut = |trigger| {
        let sessions = fixture.warm(fixture.builder().trust_window(LONG).flush_bytes(1));
        let mut tx = sessions.transactional().begin().unwrap();
        tx.set("key", 1);
        crate::side::send_ahead(&mut tx);
        fixture.proxy.arm(Script::from((trigger, Fault::Cut)).once());
        tx.set("key", 2);
        crate::side::send_ahead(&mut tx);
        tx.set("key", 3);
        let checked = tx.check().expect_err("the chunk was lost");
        assert_eq!(not_sent(&checked), ConnectionErrorKind::Closed);
        assert_eq!(not_sent(&tx.commit().unwrap_err()), ConnectionErrorKind::Closed);
        fixture.proxy.disarm();
        assert!(!exists(&fixture.server, "key"));
        assert!(!fixture.journal().contains(&"EXEC".to_owned()));
        pool_is_whole(&sessions, &fixture.server);
    };
    cut(Trigger::BeforeCommandNamed("SET"));
    cut(Trigger::InsideCommandNamed("SET", 20));
    cut(Trigger::BeforeReplyTo("SET"));
    cut(Trigger::InsideReplyTo("SET", 3));
}

crate::side::threads_only! {
    #[test]
    fn a_run_block_that_was_partly_sent_ahead_is_not_sent_again() {
        let fixture = Proxied::start();
        let sessions = fixture.warm(fixture.builder().trust_window(LONG).flush_bytes(1));
        let mut runs = 0;
        let error = commit_error(sessions.transactional().run(|tx| {
            runs += 1;
            tx.incr("n", 1);
            fixture.proxy.reset_all();
            Ok(tx.incr("n", 1))
        }));
        assert_eq!(not_sent(&error), ConnectionErrorKind::Closed);
        assert_eq!((runs, exists(&fixture.server, "n")), (1, false));
        assert_eq!(sessions.status().transactional.counts.retries, 0);
        pool_is_whole(&sessions, &fixture.server);
    }
}

#[test]
fn a_watch_that_was_lost_before_the_commit_is_not_sent() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let mut watching = sessions.transactional().watch(["key"]).begin().unwrap();
    fixture.proxy.reset_all();
    assert!(watching.get::<_, Option<String>>("key").is_err());
    let mut tx = watching.multi();
    tx.set("key", 1);
    assert_eq!(not_sent(&tx.commit().unwrap_err()), ConnectionErrorKind::Closed);
    assert!(!exists(&fixture.server, "key"));
    assert!(!fixture.journal().contains(&"EXEC".to_owned()));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_connection_that_died_while_idle_is_replaced_without_an_error() {
    let fixture = Proxied::start();
    let sessions = fixture.doubting();
    let accounts = sessions.transactional().with(never());
    for nth in 1..=3 {
        fixture.proxy.cut_all();
        assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap(), nth);
        fixture.proxy.cut_all();
        let mut tx = accounts.begin().unwrap();
        fixture.proxy.cut_all();
        tx.set("guard", nth);
        tx.commit().unwrap();
        fixture.proxy.reset_all();
        let watched = accounts.watch(["n"]).run(|read, tx| {
            let n: i64 = read.get("n")?;
            Ok(tx.set("watched", n))
        });
        watched.unwrap();
    }
    assert_eq!(get(&fixture.server, "watched").unwrap(), "3");
    pool_is_whole(&sessions, &fixture.server);
}

/// A way to the server, for so many connections, on which the test can slip a command in between the
/// client's own.
struct Smuggler {
    url: String,
    ways: Receiver<Way>,
}

struct Way {
    server: TcpStream,
    /// Number of the server's bytes that the client does not get.
    swallow: Arc<AtomicUsize>,
}

impl Smuggler {
    fn to(server: &Server, connections: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}/", listener.local_addr().unwrap());
        let (opened, ways) = channel();
        let address = server.address();
        thread::spawn(move || {
            for client in listener.incoming().take(connections) {
                let (client, server) = (client.unwrap(), TcpStream::connect(address).unwrap());
                let swallow = Arc::new(AtomicUsize::new(0));
                let way = Way { server: server.try_clone().unwrap(), swallow: swallow.clone() };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || pass(client, server, &AtomicUsize::new(0)));
                thread::spawn(move || pass(back.0, back.1, &swallow));
                // The test may have dropped the receiver.
                let _ = opened.send(way);
            }
        });
        Self { url, ways }
    }
}

impl Way {
    /// Returns once the server has replied.
    fn slip_in(&mut self, command: &[&str], answer: &str) {
        self.swallow.store(answer.len(), Ordering::SeqCst);
        self.server.write_all(&packed(command)).unwrap();
        eventually(SOON, "the reply is there", || self.swallow.load(Ordering::SeqCst) == 0);
    }
}

/// Until one of them ends; then both do.
fn pass(mut from: TcpStream, mut to: TcpStream, swallow: &AtomicUsize) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        let skipped = swallow.load(Ordering::SeqCst).min(length);
        swallow.fetch_sub(skipped, Ordering::SeqCst);
        if to.write_all(&bytes[skipped..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_nil_without_a_watch_is_no_conflict_and_its_connection_is_replaced() {
    type End = fn(&SessionManager) -> Option<Error>;
    let ends: [End; 3] = [
        |sessions| {
            let once = sessions.transactional().with(never());
            Some(commit_error(once.run(|tx| Ok(tx.incr("n", 1)))))
        },
        |sessions| {
            let mut tx = sessions.transactional().begin().unwrap();
            tx.incr("n", 1);
            Some(tx.commit().unwrap_err())
        },
        // Sent again, on another connection.
        |sessions| {
            assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
            None
        },
    ];
    for end in ends {
        let server = Server::start();
        let smuggler = Smuggler::to(&server, 2);
        // A lane repeats by itself what such a nil shows to be not applied.
        let builder = SessionManager::builder(&*smuggler.url).max_size(1).trust_window(LONG);
        let sessions = builder.without_lanes().build_side().unwrap();
        warm(&sessions);
        let before = client_ids(&server);
        smuggler.ways.recv().unwrap().slip_in(&["WATCH", "stray"], "+OK\r\n");
        server.ask::<()>(&["SET", "stray", "1"]);
        let reported = end(&sessions);
        if let Some(error) = &reported {
            assert_eq!(not_sent(error), ConnectionErrorKind::Unexpected);
        }
        assert_eq!(exists(&server, "n"), reported.is_none());
        pool_is_whole(&sessions, &server);
        let status = sessions.status().transactional;
        assert_eq!(status.counts.replaced, [(CloseReason::LeftDirty, 1)], "{status}");
        assert_eq!(status.counts.conflicts, 0, "{status}");
        eventually(SOON, "its connection is gone", || client_ids(&server).is_disjoint(&before));
    }
}
