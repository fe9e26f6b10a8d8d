//! Promise: a task's loops, guards and spans follow the rules of threads, and what they wait for is given back when
//! their futures are dropped.
//!
//! Guarantee: tasks

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use rediscope::aio::{SessionManager, Transactional};
use rediscope::error::{Applied, ConfigError, Resolution, TokenCell, UnresolvedReason};
use rediscope::prelude::*;
use rediscope::redis;
use rediscope::{CommitError, Error, Mode, Outcome, RetryPolicy, TransactionOptions, Watched, aio};
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::{panicking_waker, several, single};
use rediscope_testing::{eventually, under_log};
use tokio::runtime::Runtime;
use tokio::sync::{Barrier, Notify};
use tracing::Subscriber;
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::fixture::{LONG, SOON, unhurried};

/// Number of blocks with another inside.
const BLOCKS: usize = 4;

fn connect(server: &Server) -> SessionManager {
    SessionManager::builder(server.url()).max_size(16).build_async().unwrap()
}

/// Waits for the future, much longer than it needs.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// Spans of this library: how many were made, and how many are entered now.
#[derive(Clone, Default)]
struct Spans {
    made: Arc<AtomicUsize>,
    entered: Arc<AtomicIsize>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if context.span(id).is_some_and(|span| span.name() == "redis.transaction") {
            self.made.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        self.entered.fetch_add(1, Ordering::SeqCst);
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        self.entered.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_transaction_has_one_span_which_is_entered_only_while_its_future_is_polled() {
    let server = Server::start();
    let sessions = connect(&server);
    let spans = Spans::default();
    let subscriber = tracing_subscriber::registry().with(spans.clone());
    // One thread, so that the tasks take turns on it.
    let calls = async {
        let accounts = sessions.transactional();
        let in_none = |at: &str| assert_eq!(spans.entered.load(Ordering::SeqCst), 0, "{at}");
        let entries = AtomicUsize::new(0);
        let calls = async {
            for round in 0..10 {
                accounts.run(|tx| Ok(tx.incr("a", 1))).await.unwrap();
                in_none("after run");
                let mut tx = accounts.begin().await.unwrap();
                in_none("after begin");
                tx.incr("a", 1);
                tx.flush().await.unwrap();
                in_none("after flush");
                tx.commit().await.unwrap();
                in_none("after commit");
                let conflicts = AtomicUsize::new(0);
                accounts
                    .watch(["a"])
                    .run(async |read, tx| {
                        in_none("in the closure");
                        let seen: i64 = read.get("a").await?;
                        in_none("after a read");
                        if conflicts.fetch_add(1, Ordering::SeqCst) == 0 {
                            let () = server.ask(&["SET", "a", &format!("{round}")]);
                        }
                        Ok(tx.set("b", seen))
                    })
                    .await
                    .unwrap();
                assert_eq!(conflicts.into_inner(), 2);
            }
        };
        let beside = async {
            loop {
                in_none("in another task's turn");
                entries.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = calls => {}
            () = beside => {}
        }
        assert!(entries.into_inner() > 10);
        assert_eq!(spans.made.load(Ordering::SeqCst), 30, "one for each transaction");
    };
    under_log(subscriber, || single().block_on(calls));
}

#[test]
fn blocks_inside_blocks_on_a_hot_key_do_not_wait_for_each_other() {
    let server = Server::start();
    let sessions = connect(&server);
    several().block_on(async {
        let accounts = sessions.transactional().with(
            // A block that waits for its turn would wait for as long.
            TransactionOptions::new().retry(RetryPolicy::default().deadline(LONG)),
        );
        let all_inside = Arc::new(Barrier::new(BLOCKS));
        let mut outer = Vec::new();
        for _ in 0..BLOCKS {
            let (accounts, all_inside) = (accounts.clone(), Arc::clone(&all_inside));
            outer.push(tokio::spawn(async move {
                accounts
                    .watch(["hot"])
                    .run(async |read, tx| {
                        all_inside.wait().await;
                        let hot = accounts.watch(["hot"]);
                        let inner = hot.run(async |read, tx| {
                            let _: Option<i64> = read.get("hot").await?;
                            Ok(tx.incr("inner", 1))
                        });
                        inner.await?;
                        let _: Option<i64> = read.get("hot").await?;
                        Ok(tx.incr("outer", 1))
                    })
                    .await
            }));
        }
        for outer in outer {
            soon("a block with another inside", outer).await.unwrap().unwrap();
        }
        assert_eq!(server.ask::<i64>(&["GET", "inner"]), BLOCKS as i64);
    });
}

#[test]
fn a_future_that_is_dropped_while_it_waits_for_its_turn_gives_the_turn_on() {
    let server = Server::start();
    let sessions = connect(&server);
    several().block_on(async {
        let accounts = sessions.transactional();
        heat(&server, &accounts).await;
        let (inside, leave) = (Arc::new(Barrier::new(2)), Arc::new(Notify::new()));
        let mut holders = Vec::new();
        {
            let (accounts, inside, leave) =
                (accounts.clone(), Arc::clone(&inside), Arc::clone(&leave));
            holders.push(tokio::spawn(async move {
                let hot = accounts.watch(["hot"]);
                let run = hot.run(async |_, tx| {
                    inside.wait().await;
                    leave.notified().await;
                    Ok(tx.incr("other", 1))
                });
                run.await
            }));
        }
        soon("the holders run", inside.wait()).await;
        for _ in 0..20 {
            let waits = increment(&accounts);
            assert!(tokio::time::timeout(Duration::from_millis(1), waits).await.is_err());
        }
        leave.notify_waiters();
        for holder in holders {
            soon("a holder", holder).await.unwrap().unwrap();
        }
        let mut tasks = Vec::new();
        for _ in 0..64 {
            let accounts = accounts.clone();
            tasks.push(tokio::spawn(async move {
                for _ in 0..10 {
                    increment(&accounts).await.unwrap();
                }
            }));
        }
        for task in tasks {
            soon("an increment", task).await.unwrap();
        }
        assert_eq!(server.ask::<i64>(&["GET", "hot"]), 640);
    });
}

/// Has the blocks on the key take turns: one that writes it meets a conflict.
async fn heat(server: &Server, accounts: &Transactional) {
    let hot = accounts.watch(["hot"]);
    let heated = hot.run(async |read, tx| {
        if read.attempt() == 1 {
            server.ask::<()>(&["SET", "hot", "1"]);
        }
        Ok(tx.del("hot"))
    });
    heated.await.unwrap();
}

async fn increment(accounts: &Transactional) -> Result<(), Error> {
    let policy = RetryPolicy::default().attempts(u32::MAX).deadline(SOON);
    let hot = accounts.watch(["hot"]).retry(policy);
    hot.run(async |read, tx| {
        let seen: Option<i64> = read.get("hot").await?;
        Ok(tx.set("hot", seen.unwrap_or(0) + 1))
    })
    .await
}

#[test]
fn an_attempt_of_a_loop_counts_whether_it_commits_or_not() {
    let server = Server::start();
    let sessions = connect(&server);
    single().block_on(async {
        let accounts = sessions.transactional();
        let policy = RetryPolicy::default().attempts(3).first_backoff(Duration::from_millis(1));
        let mut tries = accounts.watch(["k"]).retry(policy).tries();
        for number in 1..=3 {
            let at = tries.next().await.unwrap();
            assert_eq!(at.number(), number);
        }
        let exhausted = tries.next().await.unwrap_err();
        assert!(matches!(exhausted, Error::RetriesExhausted { attempts: 3, .. }), "{exhausted:?}");

        let mut tries = accounts.watch(["k"]).retry(policy).tries();
        let mut conflicts = 0;
        let ended = loop {
            let mut at = tries.next().await.unwrap();
            let () = server.ask(&["SET", "k", "changed"]);
            at.incr("never", 1);
            match at.commit().await {
                Ok(Outcome::Conflict) => conflicts += 1,
                Ok(Outcome::Committed(_)) => panic!("committed over a change"),
                Err(error) => break error,
            }
        };
        assert!(matches!(ended, Error::RetriesExhausted { attempts: 3, .. }), "{ended:?}");
        assert_eq!(conflicts, 2);
        assert_eq!(server.ask::<Option<i64>>(&["GET", "never"]), None);
    });
}

#[test]
fn a_flush_shows_a_refused_command_before_the_commit() {
    let server = Server::start();
    let sessions = connect(&server);
    single().block_on(async {
        let accounts = sessions.transactional();
        let mut tx = accounts.begin().await.unwrap();
        tx.set("a", 1);
        tx.flush().await.unwrap();
        let flags = |clients: Vec<std::collections::HashMap<String, String>>| {
            clients.iter().filter(|client| client["multi"] == "1").count()
        };
        assert_eq!(flags(server.client_list()), 1, "one command is queued on the server");
        tx.flush().await.unwrap();
        tx.queue::<()>(redis::cmd("GET"));
        let refused = tx.flush().await.unwrap_err();
        assert!(matches!(refused, Error::Commit(CommitError::Rejected { .. })), "{refused:?}");
        assert!(tx.check().is_err());
        tx.set("b", 1);
        tx.discard().await.unwrap();
        assert_eq!(server.ask::<i64>(&["EXISTS", "a", "b"]), 0);
    });
}

/// How a scope goes on whose flush was dropped.
#[derive(Clone, Copy, Debug)]
enum AfterFlush {
    Dropped,
    Discarded,
    Committed,
    FlushedAgain,
}

#[test]
fn a_dropped_flush_applies_nothing_and_costs_no_connection() {
    use AfterFlush::{Committed, Discarded, Dropped, FlushedAgain};
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(1).build_async().unwrap();
    single().block_on(async {
        let accounts = sessions.transactional();
        accounts.begin().await.unwrap().discard().await.unwrap();
        for (watched, after) in [false, true]
            .into_iter()
            .flat_map(|watched| [Dropped, Discarded, Committed, FlushedAgain].map(|e| (watched, e)))
        {
            for polls in 1.. {
                let at = format!("{after:?} after {polls} polls, watched: {watched}");
                let flushed = match watched {
                    false => flush_and(accounts.begin().await.unwrap(), polls, after).await,
                    true => {
                        let watching = accounts.watch(["w"]).begin().await.unwrap();
                        flush_and(watching.multi(), polls, after).await
                    }
                };
                assert_eq!(server.ask::<Option<i64>>(&["GET", "n"]), None, "{at}");
                let counts = sessions.status().transactional.counts;
                assert_eq!((counts.connects, counts.all_replaced()), (1, 0), "{at}");
                if flushed {
                    assert!(polls > 1, "{at}");
                    break;
                }
            }
        }
        let mut tx = accounts.begin().await.unwrap();
        tx.incr("n", 1);
        tx.commit().await.unwrap();
    });
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 1);
}

/// Polls a flush at most `polls` times, drops it, and ends the transaction. Returns whether the flush
/// ended.
async fn flush_and<M: Mode>(mut tx: aio::Transaction<M>, polls: usize, after: AfterFlush) -> bool
where
    aio::Transaction<M>: Commits,
{
    tx.incr("n", 1);
    let flushed = {
        let (mut flush, mut left) = (std::pin::pin!(tx.flush()), polls);
        std::future::poll_fn(|context| {
            left -= 1;
            match flush.as_mut().poll(context) {
                Poll::Ready(flushed) => Poll::Ready(Some(flushed)),
                Poll::Pending if left == 0 => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    };
    let Some(flushed) = flushed else {
        assert!(tx.check().is_err());
        match after {
            AfterFlush::Dropped => drop(tx),
            AfterFlush::Discarded => tx.discard().await.unwrap(),
            AfterFlush::FlushedAgain => {
                tx.incr("n", 1);
                let error = tx.flush().await.unwrap_err();
                assert_eq!(error.applied(), Applied::No, "{error:?}");
            }
            AfterFlush::Committed => {
                let error = tx.commits().await.unwrap_err();
                assert!(matches!(error, Error::Commit(CommitError::NotSent { .. })), "{error:?}");
            }
        }
        return false;
    };
    flushed.unwrap();
    tx.discard().await.unwrap();
    true
}

trait Commits {
    async fn commits(self) -> Result<(), Error>;
}

impl Commits for aio::Transaction {
    async fn commits(self) -> Result<(), Error> {
        self.commit().await.map(drop)
    }
}

impl Commits for aio::Transaction<Watched> {
    async fn commits(self) -> Result<(), Error> {
        self.commit().await.map(drop)
    }
}

#[test]
fn a_scope_names_the_place_that_made_its_future_and_its_task() {
    let server = Server::start();
    let sessions = connect(&server);
    several().block_on(async {
        let accounts = sessions.transactional();
        let (future, line) = (accounts.begin(), line!());
        let tx = std::pin::pin!(future).await.unwrap();
        let scopes = sessions.open_scopes();
        assert_eq!(scopes.len(), 1);
        assert!(scopes[0].begun_at.file().ends_with("task_scopes.rs"), "{}", scopes[0]);
        assert_eq!(scopes[0].begun_at.line(), line);
        drop(tx);
        eventually(SOON, "the scope is gone", || sessions.open_scopes().is_empty());
        let spawned = accounts.clone();
        let tx = tokio::spawn(async move { (spawned.begin().await.unwrap(), tokio::task::id()) });
        let (tx, id) = tx.await.unwrap();
        assert!(sessions.open_scopes()[0].thread.contains(&id.to_string()));
        tx.discard().await.unwrap();
    });
}

#[test]
fn the_cell_of_a_block_that_is_not_exactly_once_proves_nothing() {
    let server = Server::start();
    let sessions = connect(&server);
    single().block_on(async {
        let sent = sessions.transactional().submit(|tx| Ok(tx.incr("n", 1))).unwrap();
        let token = sent.token();
        assert_eq!(sent.await.unwrap(), 1);
        let resolution = sessions.resolve(&token, None).await;
        let Resolution::StillUnknown { why } = resolution else { panic!("{resolution:?}") };
        assert_eq!(why, UnresolvedReason::NotExactlyOnce);
    });
}

/// Polls a block until its number is drawn, and no further.
async fn until_drawn<F>(sent: Pin<&mut F>, token: &TokenCell)
where
    F: Future<Output: std::fmt::Debug>,
{
    let drawn = async {
        // `get` would read it.
        while format!("{token:?}") == "TokenCell(None)" {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = sent => panic!("{ended:?}"),
        () = soon("a number is drawn", drawn) => {}
    }
}

/// The number that was asked about is dead then, but the future draws another one.
#[test]
fn a_cell_whose_future_lives_does_not_prove_that_the_block_is_never_applied() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let elsewhere = connect(&server);
    // What is held up ends when it is released, and no block is sent again before. On a connection that
    // is not trusted, MULTI would be held up, before the number is drawn.
    let sessions = unhurried(rediscope::SessionManager::builder(proxy.url()).lanes(1));
    let sessions = sessions.trust_window(LONG).build_async().unwrap();
    single().block_on(async {
        let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
        once.run(|tx| Ok(tx.incr("warm", 1))).await.unwrap();
        proxy.arm((Trigger::Now, Fault::HoldRequests));
        let mut sent = Box::pin(once.submit(|tx| Ok(tx.incr("n", 1))).unwrap());
        let token = sent.token();
        until_drawn(sent.as_mut(), &token).await;
        let why = |resolution| match resolution {
            Resolution::StillUnknown { why } => why,
            other => panic!("{other:?}"),
        };
        let resolution = soon("the query", elsewhere.resolve(&token, None)).await;
        assert_eq!(why(resolution), UnresolvedReason::NotSentYet);
        proxy.disarm();
        proxy.release();
        assert_eq!(soon("the block", sent).await.unwrap(), 1);
        let resolution = soon("the query", elsewhere.resolve(&token, None)).await;
        assert_eq!(resolution, Resolution::Committed);
        // Of a future that is gone, the number is the last word.
        proxy.arm((Trigger::Now, Fault::HoldRequests));
        let mut sent = Box::pin(once.submit(|tx| Ok(tx.incr("n", 1))).unwrap());
        let token = sent.token();
        until_drawn(sent.as_mut(), &token).await;
        drop(sent);
        let resolution = soon("the query", elsewhere.resolve(&token, None)).await;
        assert_eq!(resolution, Resolution::NotCommitted);
        proxy.disarm();
        proxy.release();
        once.run(|tx| Ok(tx.incr("warm", 1))).await.unwrap();
    });
    assert_eq!(server.ask::<u64>(&["GET", "n"]), 1);
}

/// A token may be asked about by another process, which does the work again if it was not applied.
#[test]
fn a_block_whose_token_was_read_is_not_sent_again_with_another_one() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let elsewhere = connect(&server);
    for lanes in [0, 1] {
        let sessions = unhurried(rediscope::SessionManager::builder(proxy.url()).lanes(lanes));
        let sessions = sessions.trust_window(LONG).build_async().unwrap();
        let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
        single().block_on(async {
            for (is_read, is_cut) in [(false, false), (true, false), (false, true), (true, true)] {
                once.run(|tx| Ok(tx.incr("warm", 1))).await.unwrap();
                server.ask::<()>(&["DEL", "n"]);
                proxy.arm((Trigger::Now, Fault::HoldRequests));
                let mut sent = Box::pin(once.submit(|tx| Ok(tx.incr("n", 1))).unwrap());
                let cell = sent.token();
                until_drawn(sent.as_mut(), &cell).await;
                let what = format!("lanes {lanes}, read {is_read}, cut {is_cut}");
                if is_read {
                    let token = cell.get().unwrap();
                    let resolution = soon("the query", elsewhere.resolve(&token, None)).await;
                    assert_eq!(resolution, Resolution::NotCommitted, "{what}");
                } else {
                    let why = UnresolvedReason::NotSentYet;
                    let resolution = soon("the query", elsewhere.resolve(&cell, None)).await;
                    assert_eq!(resolution, Resolution::StillUnknown { why }, "{what}");
                }
                proxy.disarm();
                if is_cut {
                    proxy.cut_all();
                }
                proxy.release();
                let ended = soon("the block", sent).await;
                let applied: Option<i64> = server.ask(&["GET", "n"]);
                if is_read {
                    let error = ended.expect_err(&what);
                    assert_eq!(
                        (error.applied(), applied),
                        (Applied::No, None),
                        "{what}: {error:?}"
                    );
                    assert!(error.is_retryable(), "{what}: {error:?}");
                } else {
                    assert_eq!((ended.unwrap(), applied), (1, Some(1)), "{what}");
                }
                let resolution = soon("the query", elsewhere.resolve(&cell, None)).await;
                let last = if is_read { Resolution::NotCommitted } else { Resolution::Committed };
                assert_eq!(resolution, last, "{what}");
            }
        });
    }
}

#[test]
fn close_waits_for_open_scopes_outside_of_a_runtime_as_well() {
    let (server, runtime) = (Server::start(), several());
    let sessions = {
        let _runtime = runtime.enter();
        connect(&server)
    };
    let guard = runtime.block_on(sessions.transactional().begin()).unwrap();
    let mut closing = Box::pin(sessions.close(SOON));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..3 {
        assert!(closing.as_mut().poll(&mut context).is_pending(), "a scope is open");
    }
    drop(guard);
    eventually(SOON, "closed", || closing.as_mut().poll(&mut context).is_ready());
    eventually(SOON, "no connection is left", || server.clients() == 0);
}

/// A connection for queries is open, and its runtime is not run any more.
#[test]
fn close_after_a_query_ends_outside_of_a_runtime_as_well() {
    let (server, runtime) = (Server::start(), single());
    let sessions = connect(&server);
    runtime.block_on(sessions.ready(SOON)).unwrap();
    let mut closing = Box::pin(sessions.close(SOON));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    eventually(SOON, "closed", || closing.as_mut().poll(&mut context).is_ready());
    drop(runtime);
    eventually(SOON, "no connection is left", || server.clients() == 0);
}

#[test]
fn a_close_that_is_dropped_closes_each_connection_as_soon_as_its_scope_has_ended() {
    let (server, runtime) = (Server::start(), several());
    for is_polled in [true, false] {
        // The reaper looks often.
        let builder = SessionManager::builder(server.url())
            .min_idle(2)
            .pin_warning(Some(Duration::from_millis(20)))
            .trust_window(Duration::ZERO);
        let _runtime = runtime.enter();
        let sessions = builder.build_async().unwrap();
        runtime.block_on(async {
            let accounts = sessions.transactional();
            let dropped = accounts.begin().await.unwrap();
            let mut committed = accounts.begin().await.unwrap();
            eventually(SOON, "idle connections", || {
                let status = sessions.status();
                [status.transactional.idle, status.pooled.idle] == [2, 2]
            });
            let closing = sessions.close(Duration::MAX);
            if is_polled {
                let closing = tokio::time::timeout(Duration::from_millis(10), closing);
                assert!(closing.await.is_err(), "scopes are open");
            } else {
                drop(closing);
            }
            eventually(SOON, "what was idle is closed", || server.clients() == 2);
            assert!(matches!(accounts.begin().await, Err(Error::Checkout(_))));
            // A scope may still replace its connection.
            let _: i64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
            committed.incr("n", 1);
            committed.commit().await.unwrap();
            drop(dropped);
            eventually(SOON, "no connection is left", || server.clients() == 0);
            let connects = || {
                let status = sessions.status();
                status.transactional.counts.connects + status.pooled.counts.connects
            };
            let before = connects();
            tokio::time::sleep(Duration::from_millis(60)).await;
            assert_eq!((connects(), server.clients()), (before, 0));
        });
    }
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 2);
}

/// Nothing is connected yet.
#[test]
fn an_address_of_each_kind_makes_a_manager_for_tasks() {
    let urls = [
        "redis://127.0.0.1:1",
        "unix:///nowhere/redis.sock",
        "redis+cluster://127.0.0.1:1",
        "redis+sentinel://127.0.0.1:1/master",
        #[cfg(feature = "tls-rustls")]
        "rediss://127.0.0.1:1",
    ];
    for url in urls {
        SessionManager::connect(url).unwrap();
    }
    let refused = SessionManager::connect("http://127.0.0.1:1").unwrap_err();
    assert!(matches!(refused, ConfigError::Address { .. }), "{refused}");
}

#[test]
fn close_ends_every_task_and_later_calls_fail() {
    let server = Server::start();
    let sessions = connect(&server);
    let runtime = several();
    runtime.block_on(async {
        let accounts = sessions.transactional();
        let open = accounts.begin().await.unwrap();
        for _ in 0..10 {
            accounts.run(|tx| Ok(tx.incr("n", 1))).await.unwrap();
        }
        let begun = Instant::now();
        let closed = soon("close", sessions.close(Duration::from_millis(20))).await;
        assert_eq!(closed.scopes, 1);
        assert!(begun.elapsed() >= Duration::from_millis(20));
        assert!(matches!(open.commit().await, Err(Error::PinExpired(_) | Error::Commit(_))));
        assert!(matches!(accounts.begin().await, Err(Error::Checkout(_))));
        let late = accounts.run(|tx| Ok(tx.incr("n", 1))).await;
        assert!(late.is_err(), "{late:?}");
    });
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 10);
}

/// Polls the call at most `polls` times, and drops it.
async fn leave<T>(call: impl Future<Output = T>, polls: usize) {
    let (mut call, mut left) = (std::pin::pin!(call), polls);
    std::future::poll_fn(|context| {
        left = left.saturating_sub(1);
        match call.as_mut().poll(context) {
            Poll::Pending if left > 0 => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    })
    .await;
}

#[test]
fn no_task_is_alive_after_close_whatever_was_under_way() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let refusing = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("redis://{}/", listener.local_addr().unwrap())
    };
    for nth in 0..90 {
        // The server replies, is silent, or refuses connections.
        proxy.mute_new(nth % 3 == 1);
        let url = if nth % 3 == 2 { refusing.clone() } else { proxy.url() };
        let runtime = if nth % 2 == 0 { single() } else { several() };
        let builder = SessionManager::builder(url).max_size(4).min_idle(nth % 4).lanes(nth % 5 % 3);
        let alive = runtime.block_on(async {
            let sessions = builder.build_async().unwrap();
            let accounts = sessions.transactional();
            let once = accounts.with(TransactionOptions::new().exactly_once());
            let polls = nth as usize / 6 + 1;
            leave(accounts.run(|tx| Ok(tx.incr("n", 1))), polls).await;
            leave(once.run(|tx| Ok(tx.incr("n", 1))), polls).await;
            leave(accounts.begin(), polls).await;
            leave(async { sessions.pooled().get::<_, Option<i64>>("n").await }, polls).await;
            leave(sessions.ready(SOON), polls).await;
            if nth % 3 == 0 {
                let held = sessions.lock("l").acquire(SOON).await.unwrap();
                held.release().await.unwrap();
            }
            sessions.close(Duration::ZERO).await;
            tokio::runtime::Handle::current().metrics().num_alive_tasks()
        });
        assert_eq!(alive, 0, "{nth}");
    }
}

#[test]
fn a_manager_without_handles_leaves_no_task() {
    let server = Server::start();
    let runtime = several();
    runtime.block_on(async {
        let sessions = connect(&server);
        let accounts = sessions.transactional();
        let mut tx = accounts.begin().await.unwrap();
        tx.incr("n", 1);
        drop((sessions, accounts));
        tx.commit().await.unwrap();
    });
    eventually(SOON, "no task is alive", || runtime.metrics().num_alive_tasks() == 0);
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 1);
}

#[test]
fn a_closure_runs_once_when_the_future_is_first_polled() {
    let server = Server::start();
    let sessions = connect(&server);
    single().block_on(async {
        let accounts = sessions.transactional();
        let runs = AtomicUsize::new(0);
        let mut call = Box::pin(accounts.run(|tx| {
            runs.fetch_add(1, Ordering::SeqCst);
            Ok(tx.incr("n", 1))
        }));
        assert_eq!(runs.load(Ordering::SeqCst), 0);
        let polled =
            std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready()));
        assert!(!polled.await);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(call.await.unwrap(), 1);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    });
}

#[cfg(feature = "serde")]
#[test]
fn a_configuration_builds_a_manager_for_tasks() {
    let server = Server::start();
    let text = format!("url = '{}'\nmax_size = 3\nlanes = 1", server.url());
    let config: rediscope::Config = toml::from_str(&text).unwrap();
    let sessions = config.builder().build_async().unwrap();
    assert_eq!(sessions.status().transactional.max_size, 3);
    let added = single().block_on(sessions.transactional().run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(added.unwrap(), 1);
}

/// A future that another executor polls, whose waker panics, while the runtime is not run.
fn poll_badly<F: Future>(runtime: &Runtime, future: Pin<&mut F>) -> Poll<F::Output> {
    let _runtime = runtime.enter();
    future.poll(&mut std::task::Context::from_waker(&panicking_waker()))
}

#[test]
fn a_waker_that_panics_ends_no_connection() {
    let (server, runtime) = (Server::start(), single());
    let sessions = SessionManager::builder(server.url()).lanes(0).build_async().unwrap();
    let accounts = sessions.transactional();
    let mut watching = runtime.block_on(accounts.watch(["k"]).begin()).unwrap();
    server.ask::<()>(&["SET", "other", "7"]);
    let mut read = Box::pin(watching.get::<_, i64>("other"));
    let begun = Instant::now();
    let found = loop {
        if let Poll::Ready(found) = poll_badly(&runtime, read.as_mut()) {
            break found;
        }
        assert!(begun.elapsed() < SOON, "no reply");
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
    };
    assert_eq!(found.unwrap(), 7);
    drop(read);
    assert_eq!(runtime.block_on(watching.get::<_, i64>("other")).unwrap(), 7);
}

#[test]
fn a_waker_that_panics_takes_no_permit_of_another_caller() {
    let (server, runtime) = (Server::start(), single());
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).lanes(0).max_size(2).max_pin_time(8 * SOON);
    // No timer fires.
    let builder = builder.connect_timeout(2 * SOON).checkout_timeout(16 * SOON);
    let sessions = builder.build_async().unwrap();
    let accounts = sessions.transactional();
    let in_use = || sessions.status().transactional.in_use;
    let becomes = |permits: u32| {
        runtime.block_on(async {
            let begun = Instant::now();
            while in_use() != permits {
                assert!(begun.elapsed() < SOON, "{} permits are in use", in_use());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    };
    let guard = runtime.block_on(accounts.watch(["k"]).begin()).unwrap();
    proxy.mute_new(true);
    let watch = accounts.watch(["k"]);
    let mut waits = Box::pin(watch.begin());
    assert!(poll_badly(&runtime, waits.as_mut()).is_pending(), "its connection is not open yet");
    drop(guard);
    becomes(1);
    drop(waits);
    becomes(0);
}
