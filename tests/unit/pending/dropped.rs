//! Each conversation is dropped after each of its polls. The connection is closed, or it has no unread
//! reply and no state of the conversation; and no transaction is applied in part.

use std::time::Instant;

use redis::Value;

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::pool::pending::conversations::{self, READ_BOTH, on_server, tasks};
use crate::pool::pending::stub::StubWire;
use crate::pool::pending::{poll_at_most, run};
use crate::pool::tests::{SOON, Server, eventually};
use crate::protocol::connection_state::CloseReason;
use crate::sync::lock;

/// Checks that a connection which the pool would reuse has nothing of an earlier caller.
fn check_reusable(server: &Server, mut connection: Connection<StubWire>) {
    assert_eq!(connection.close_reason(Instant::now(), 0), None);
    assert!(connection.state().is_clean());
    // A watch that was left behind would make EXEC return nil.
    on_server(server, &["SET seen touched"]);
    let mut pipe = redis::pipe();
    pipe.cmd("ECHO").arg("the first reply").cmd("MULTI").cmd("SET").arg("probe").arg(1).cmd("EXEC");
    let bytes = pipe.get_packed_pipeline();
    let replies = run(connection.ask_all(&bytes, 4, Deadline::after(SOON))).unwrap();
    assert_eq!(replies[0], Value::BulkString(b"the first reply".into()));
    assert_eq!(replies[3], Value::Array(vec![Value::Okay]));
}

/// Drops a conversation after no poll, after one, and so on, until it ends. `whole`: both counters are
/// changed together.
macro_rules! drop_after_each_poll {
    ($conversation:path) => {
        drop_after_each_poll!($conversation, true)
    };
    ($conversation:path, $whole:expr) => {{
        let server = Server::start();
        let mut dirty = 0;
        for polls in 0.. {
            on_server(&server, &["FLUSHALL"]);
            let (router, pool) = tasks(&server);
            let ended = poll_at_most(polls, $conversation(&router, &server)).is_some();
            let closed = std::mem::take(&mut *lock(&pool.closed));
            let left = closed.iter().filter(|reason| **reason == CloseReason::LeftDirty).count();
            assert!(left <= usize::from(!ended), "after {polls} polls: {closed:?}");
            dirty += left;
            while let Some(connection) = pool.take_idle() {
                check_reusable(&server, connection);
            }
            eventually(SOON, "the connections are closed", || server.clients().is_empty());
            let [one, two] = &*on_server(&server, READ_BOTH) else { panic!("two replies") };
            assert!(one == two || !$whole, "after {polls} polls: {one}, {two}");
            if ended {
                break;
            }
        }
        assert!(dirty > 0, "no drop met a connection that awaits replies");
    }};
}

#[test]
fn a_dropped_block_leaves_no_unread_reply() {
    drop_after_each_poll!(conversations::a_block);
    drop_after_each_poll!(conversations::a_block_for_a_batch);
    drop_after_each_poll!(conversations::a_refused_block);
    drop_after_each_poll!(conversations::a_pinned_block);
}

#[test]
fn a_dropped_block_that_is_exactly_once_leaves_no_unread_reply() {
    drop_after_each_poll!(conversations::exactly_once_blocks);
    drop_after_each_poll!(conversations::blocks_with_a_key);
}

#[test]
fn a_dropped_scope_leaves_no_watch_and_no_multi() {
    drop_after_each_poll!(conversations::watched_blocks);
    drop_after_each_poll!(conversations::cleaned_scopes);
    drop_after_each_poll!(conversations::a_block_in_chunks);
}

#[test]
fn a_dropped_run_leaves_no_unread_reply() {
    drop_after_each_poll!(conversations::runs);
    drop_after_each_poll!(conversations::a_watching_run);
}

#[test]
fn a_dropped_request_leaves_no_unread_reply() {
    drop_after_each_poll!(conversations::a_read, false);
    drop_after_each_poll!(conversations::requests, false);
}
