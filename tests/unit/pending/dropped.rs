//! Each conversation is dropped after each of its polls. The connection is then closed, or has no
//! unread reply and no state of the conversation. No transaction is applied in part.
//!
//! Guarantee: tasks

use std::sync::Arc;
use std::time::Instant;

use redis::Value;

use crate::commit::commit::{commit, flush};
use crate::commit::plan::CommitPlan;
use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::error::any::{CommitError, Error};
use crate::pool::ask::{Question, ask};
use crate::pool::key_turn::KeyQueue;
use crate::pool::pending::conversations::{self, READ_BOTH, on_server, soon, tasks};
use crate::pool::pending::stub::{StubLine, StubWire};
use crate::pool::pending::{poll_at_most, run};
use crate::pool::retry_budget::RetryBudget;
use crate::pool::tests::{SOON, Server, eventually};
use crate::protocol::cluster::route::Route;
use crate::protocol::connection_state::CloseReason;
use crate::protocol::retry::RetryPolicy;
use crate::sync::lock;
use crate::transaction::keys::Keys;
use crate::transaction::pending::Pending;
use crate::transaction::reading::WatchTarget;
use crate::transaction::retry_loop::{WatchAttempts, WatchRun};

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

/// Drops the first read of a scope after each of its polls; then the scope goes on.
#[test]
fn a_scope_never_reads_the_reply_of_its_dropped_call() {
    let server = Server::start();
    on_server(&server, &["SET a first", "SET b second"]);
    let mut lost = 0;
    for polls in 0.. {
        let (router, _) = tasks(&server);
        let line = &mut run(router.checkout(&Route::default(), soon())).unwrap();
        let ended = poll_at_most(polls, read_of(line, "a", RetryBudget::never(soon()))).is_some();
        let reply = poll_at_most(usize::MAX, read_of(line, "b", RetryBudget::never(soon())));
        match reply.unwrap().0 {
            Ok(values) => assert_eq!(values, [Value::BulkString(b"second".into())], "{polls}"),
            Err(error) => {
                assert!(!ended, "{error:?}");
                lost += 1;
            }
        }
        if ended {
            break;
        }
    }
    assert_eq!(lost, 3, "the write, its second half and the read");
}

async fn read_of(line: &mut StubLine, key: &str, budget: RetryBudget) -> Result<Vec<Value>, Error> {
    let bytes = redis::cmd("GET").arg(key).get_packed_command();
    let (name, read_only, single) = ("GET", true, true);
    let question = Question { name, bytes: &bytes, replies: 1, read_only, single, blocking: None };
    let mut values = Vec::new();
    ask(line, &question, budget, &mut |_, value| values.push(value)).await.map(|()| values)
}

/// Drops the flush of a large block, or its commit, after each of its polls; then it is committed.
#[test]
fn a_block_whose_flush_was_dropped_is_applied_once_or_not_at_all() {
    let server = Server::start();
    for polls in 0.. {
        on_server(&server, &["FLUSHALL"]);
        let (router, _) = tasks(&server);
        let line = &mut run(router.checkout(&Route::default(), soon())).unwrap();
        let (plan, mut queue) = (CommitPlan::default(), conversations::queue(conversations::BOTH));
        let flushed = poll_at_most(polls, flush(line, &mut queue, &plan, soon())).is_some();
        let committed = poll_at_most(usize::MAX, commit(line, &mut queue, &plan, soon()));
        let one = on_server(&server, READ_BOTH);
        match committed.unwrap().0 {
            Ok(_) => assert_eq!(one, ["Ok(bulk-string('\"1\"'))"; 2], "{polls}"),
            Err(error) => {
                assert!(matches!(error, CommitError::NotSent { .. }), "{polls}: {error:?}");
                assert_eq!(one, ["Ok(nil)"; 2], "{polls}");
                assert!(!flushed);
            }
        }
        if flushed {
            break;
        }
    }
}

/// Drops a read of a watching closure after each of its polls; then the closure reads on and commits.
#[test]
fn a_closure_that_goes_on_after_a_dropped_read_commits_nothing_or_reads_right() {
    let server = Server::start();
    on_server(&server, &["SET a first", "SET b second"]);
    let mut keys = Keys::default();
    keys.add(b"a");
    let reads = Arc::default();
    let mut lost = 0;
    for polls in 0.. {
        let (router, _) = tasks(&server);
        let target = WatchTarget { keys: Some(&keys), binding: router.binding(), reads: &reads };
        let plan = CommitPlan { watched: true, ..CommitPlan::default() };
        let (owner, policy) = (conversations::origin(), RetryPolicy::default());
        let binding = router.binding();
        let watch_run = WatchRun { owner, plan: plan.clone(), policy, binding };
        let mut attempts: WatchAttempts<KeyQueue<StubLine>> =
            WatchAttempts::new(&router, watch_run);
        let mut reading = run(attempts.next(&router, target)).unwrap();
        let get = |key| conversations::packed(&["GET", key]);
        let ended = poll_at_most(polls, reading.reply_to("GET", &get("a"))).is_some();
        let second = poll_at_most(usize::MAX, reading.reply_to("GET", &get("b"))).unwrap().0;
        match second {
            Ok(value) => assert_eq!(value, Value::BulkString(b"second".into()), "{polls}"),
            Err(error) => {
                assert!(!ended && matches!(error, Error::Lost { .. }), "{polls}: {error:?}");
                assert!(run(attempts.failed(&router, &mut reading)), "{polls}");
                lost += 1;
                continue;
            }
        }
        let mut pending = Pending::new(router.settings(), router.binding());
        pending.queue().push_cmd(0, redis::cmd("GET").arg("b"));
        let replies = run(attempts.commit(&router, None, &mut reading, &mut pending)).unwrap();
        assert!(replies.is_some(), "{polls}");
        if ended {
            break;
        }
    }
    assert_eq!(lost, 3, "the write, its second half and the read");
}
