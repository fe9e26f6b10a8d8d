//! Promise: a resolution or a probe of readiness that is polled no more keeps no connection, and holds up no other one.
//!
//! Guarantee: readiness, tasks

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use rediscope::aio::SessionManager;
use rediscope::error::{CommitToken, Resolution};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, TransactionOptions};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use tokio::runtime::{Builder, Runtime};

use crate::fixture::{LONG, SOON};

struct Fixture {
    runtime: Runtime,
    server: Server,
    proxy: Proxy,
    sessions: SessionManager,
    /// Of a block that was applied.
    token: CommitToken,
}

fn fixture() -> Fixture {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1);
    let sessions = builder.max_pin_time(Duration::from_millis(300)).build_async().unwrap();
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    let token = runtime.block_on(async {
        let sent = once.submit(|tx| Ok(tx.incr("n", 1))).unwrap();
        let token = sent.token();
        sent.await.unwrap();
        token.get().unwrap()
    });
    Fixture { runtime, server, proxy, sessions, token }
}

/// Polls a call until its query was sent, and returns it. The reply comes then.
fn sent<F: Future + Send>(fixture: &Fixture, call: F) -> Pin<Box<F>> {
    let Fixture { runtime, proxy, .. } = fixture;
    let (fired, mut call) = (proxy.fired(), Box::pin(call));
    proxy.arm(Script::from((Trigger::BeforeReplyTo("PEXPIRE"), Fault::HoldReplies)).once());
    eventually(SOON, "the query was sent", || {
        let polled = poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_pending()));
        assert!(runtime.block_on(polled), "it has no reply");
        proxy.fired() > fired
    });
    proxy.disarm();
    proxy.release();
    call
}

#[test]
fn a_forgotten_resolution_keeps_no_connection() {
    let fixture = fixture();
    let Fixture { server, sessions, token, .. } = &fixture;
    let before = server.clients();
    for _ in 0..3 {
        mem::forget(sent(&fixture, sessions.resolve(token, None)));
        eventually(SOON, "the connection is closed", || server.clients() == before);
    }
}

#[test]
fn a_query_that_is_polled_no_more_holds_up_no_other_one() {
    let fixture = fixture();
    let Fixture { runtime, sessions, token, .. } = &fixture;
    let within = Duration::from_secs(1);
    let resolution = sent(&fixture, sessions.resolve(token, LONG));
    runtime.block_on(sessions.ready(within)).unwrap();
    let ready = sent(&fixture, sessions.ready(LONG));
    runtime.block_on(sessions.ready(within)).unwrap();
    assert_eq!(runtime.block_on(sessions.resolve(token, within)), Resolution::Committed);
    runtime.block_on(ready).unwrap();
    assert_eq!(runtime.block_on(resolution), Resolution::Committed);
}

#[test]
fn what_the_server_said_before_a_call_is_not_its_result() {
    let fixture = fixture();
    let Fixture { runtime, server, proxy, sessions, token } = &fixture;
    server.config_set("min-replicas-to-write", "1");
    let fired = proxy.fired();
    proxy.arm(Script::from((Trigger::BeforeReplyTo("PEXPIRE"), Fault::HoldReplies)).once());
    let resolve = |token: CommitToken| {
        let sessions = sessions.clone();
        runtime.spawn(async move { sessions.resolve(&token, LONG).await })
    };
    let first = resolve(token.clone());
    eventually(SOON, "the server has answered", || proxy.fired() > fired);
    server.config_set("min-replicas-to-write", "0");
    let mut second = pin!(sessions.resolve(token, LONG));
    let polled = poll_fn(|context| Poll::Ready(second.as_mut().poll(context).is_pending()));
    assert!(runtime.block_on(polled), "it waits for the query under way");
    proxy.release();
    assert_eq!(runtime.block_on(second), Resolution::Committed);
    let first = runtime.block_on(first).unwrap();
    assert!(matches!(first, Resolution::StillUnknown { .. }), "{first:?}");
}

/// A block too large for a lane ends its register and begins another one.
#[test]
fn a_block_after_a_refused_register_is_proven_not_applied_and_sent_again() {
    const COMMANDS: u64 = 100;
    let Fixture { runtime, server, proxy, sessions, .. } = fixture();
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    let submit = || {
        let sent = once.submit(|tx| {
            let values: Vec<_> = (0..COMMANDS).map(|_| tx.incr("large", 1)).collect();
            Ok(values)
        });
        let values: Vec<i64> = runtime.block_on(sent.unwrap()).unwrap();
        values.last().copied()
    };
    assert_eq!(submit(), Some(100));
    // MULTI, the commands, the register, EXEC, the next register.
    let next_register = Trigger::BeforeCommand(COMMANDS + 4);
    let fired = proxy.fired();
    let refusal = Fault::Refuse("-OOM command not allowed when used memory > 'maxmemory'.\r\n");
    proxy.arm(Script::from((next_register, refusal)).once());
    assert_eq!(submit(), Some(200));
    assert_eq!(proxy.fired(), fired + 1);
    proxy.arm(Script::from((Trigger::BeforeCommandNamed("EXEC"), Fault::Cut)).once());
    assert_eq!(submit(), Some(300));
    assert_eq!(server.ask::<i64>(&["GET", "large"]), 300);
}

/// The next register of a refused block is refused too.
#[test]
fn a_block_after_a_refused_block_is_proven_not_applied_and_sent_again() {
    let Fixture { runtime, server, proxy, sessions, .. } = fixture();
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    let submit = || {
        let sent = once.submit(|tx| {
            let values: Vec<_> = (0..100).map(|_| tx.incr("large", 1)).collect();
            Ok(values)
        });
        let values: Vec<i64> = runtime.block_on(sent.unwrap())?;
        Ok::<_, Error>(values.last().copied())
    };
    assert_eq!(submit().unwrap(), Some(100));
    server.config_set("maxmemory", "1");
    let refused = submit().unwrap_err();
    assert!(
        matches!(&refused, Error::Commit(CommitError::Rejected { code, .. }) if code == "OOM"),
        "{refused:?}"
    );
    server.config_set("maxmemory", "0");
    proxy.arm(Script::from((Trigger::BeforeCommandNamed("EXEC"), Fault::Cut)).once());
    assert_eq!(submit().unwrap(), Some(200));
    assert_eq!(server.ask::<i64>(&["GET", "large"]), 200);
}
