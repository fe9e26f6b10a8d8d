//! Promise: blocks of tasks that watch the same key take turns, and no turn outlives the block that had it.
//!
//! Guarantee: turns, tasks

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rediscope::aio::{SessionManager, Transactional};
use rediscope::error::CheckoutError;
use rediscope::prelude::*;
use rediscope::{Error, Outcome, RetryPolicy};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::{poll_once, several as runtime};
use tokio::sync::{Barrier, Notify};
use tokio::task::JoinHandle;

use crate::fixture::SOON;

/// Number of blocks that have the turn on a key.
const ADMITTED: usize = 1;
const MAX_PIN_TIME: Duration = Duration::from_millis(300);

fn builder(server: &Server) -> rediscope::Builder {
    SessionManager::builder(server.url()).max_size(16)
}

/// Waits for the future, much longer than it needs.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// Runs that wait for their turn for much longer than `soon` does.
fn patient(accounts: &Transactional) -> rediscope::aio::Watch {
    accounts.watch(["hot"]).retry(RetryPolicy::default().deadline(SOON * 20).attempts(1_000))
}

async fn increment(accounts: &Transactional) -> Result<i64, Error> {
    patient(accounts).run(async |_, tx| Ok(tx.incr("hot", 1))).await
}

/// Has the blocks on the key take turns: one that writes it meets a conflict.
async fn heat(server: &Server, accounts: &Transactional) {
    let watch = patient(accounts);
    let heated = watch.run(async |read, tx| {
        if read.attempt() == 1 {
            server.ask::<()>(&["SET", "hot", "1"]);
        }
        Ok(tx.del("hot"))
    });
    heated.await.unwrap();
}

type Run = Pin<Box<dyn Future<Output = Result<i64, Error>>>>;

/// Runs that are polled until they are in their closures, and then no more.
async fn unpolled(accounts: &Transactional) -> Vec<Run> {
    let entered = Arc::new(tokio::sync::Semaphore::new(0));
    let mut runs = Vec::new();
    for _ in 0..ADMITTED {
        let (accounts, inside) = (accounts.clone(), Arc::clone(&entered));
        let mut run: Run = Box::pin(async move {
            let watch = patient(&accounts);
            watch
                .run(async |_, tx| {
                    inside.add_permits(1);
                    std::future::pending::<()>().await;
                    Ok(tx.incr("hot", 1))
                })
                .await
        });
        let until_inside = async {
            tokio::select! {
                _ = run.as_mut() => panic!("it ended"),
                permit = entered.acquire() => permit.unwrap().forget(),
            }
        };
        soon("the closure begins", until_inside).await;
        runs.push(run);
    }
    runs
}

#[test]
fn a_run_that_is_polled_no_more_gives_its_turn_on_after_max_pin_time() {
    let (server, runtime) = (Server::start(), runtime());
    runtime.block_on(async {
        let sessions = builder(&server).max_pin_time(MAX_PIN_TIME).build_async().unwrap();
        let accounts = sessions.transactional();
        heat(&server, &accounts).await;
        let kept = unpolled(&accounts).await;
        let n = soon("a run beside futures that are kept", increment(&accounts)).await;
        assert_eq!(n.unwrap(), 1);
        unpolled(&accounts).await.into_iter().for_each(std::mem::forget);
        let n = soon("a run beside forgotten futures", increment(&accounts)).await;
        assert_eq!(n.unwrap(), 2);
        // Those that were kept end without a second share in the turns.
        drop(kept);
        let again = unpolled(&accounts).await;
        assert_eq!(again.len(), ADMITTED);
    });
}

#[test]
fn a_loop_without_an_attempt_keeps_no_turn() {
    let (server, runtime) = (Server::start(), runtime());
    runtime.block_on(async {
        let sessions = SessionManager::builder(server.url()).max_size(1).lanes(0);
        let accounts = sessions.build_async().unwrap().transactional();
        heat(&server, &accounts).await;
        let mut tries = patient(&accounts).tries();
        drop(soon("an attempt", tries.next()).await.unwrap());
        let n = soon("a run beside a loop whose attempt was dropped", increment(&accounts)).await;
        assert_eq!(n.unwrap(), 1);
        // With its turn, the loop waits for the connection.
        let other = accounts.watch(["other"]).begin().await.unwrap();
        let mut waiting = Box::pin(tries.next());
        for _ in 0..100 {
            assert!(poll_once(waiting.as_mut()).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop((waiting, other));
        let n = soon("a run beside a loop whose wait was dropped", increment(&accounts)).await;
        assert_eq!(n.unwrap(), 2);
        let mut at = soon("the next attempt", tries.next()).await.unwrap();
        at.incr("hot", 1);
        assert!(matches!(at.commit().await.unwrap(), Outcome::Committed(_)));
    });
}

#[test]
fn a_manager_that_closes_ends_the_waits_for_a_turn() {
    let (server, runtime) = (Server::start(), runtime());
    runtime.block_on(async {
        let sessions = builder(&server).build_async().unwrap();
        let accounts = sessions.transactional();
        heat(&server, &accounts).await;
        let kept = unpolled(&accounts).await;
        let mut waiting = Box::pin(increment(&accounts));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        // From this call on, polled or not.
        let closing = sessions.close(SOON * 6);
        for run in [waiting, Box::pin(increment(&accounts))] {
            let ended = soon("a run of a closed manager", run).await;
            assert!(matches!(ended, Err(Error::Checkout(CheckoutError::Closed))), "{ended:?}");
        }
        drop((closing, kept));
    });
}

#[test]
fn a_run_that_is_polled_again_after_its_turn_has_ended_goes_on() {
    let (server, runtime) = (Server::start(), runtime());
    runtime.block_on(async {
        let sessions = builder(&server).max_pin_time(MAX_PIN_TIME).build_async().unwrap();
        let accounts = sessions.transactional();
        heat(&server, &accounts).await;
        let mut tries = patient(&accounts).tries();
        drop(soon("an attempt", tries.next()).await.unwrap());
        tokio::time::sleep(MAX_PIN_TIME * 2).await;
        let mut at = soon("the next attempt", tries.next()).await.unwrap();
        at.incr("hot", 1);
        assert!(matches!(at.commit().await.unwrap(), Outcome::Committed(_)));
        let all = (0..8).map(|_| {
            let accounts = accounts.clone();
            tokio::spawn(async move { increment(&accounts).await })
        });
        for run in all.collect::<Vec<_>>() {
            soon("a run", run).await.unwrap().unwrap();
        }
    });
    assert_eq!(server.ask::<usize>(&["GET", "hot"]), 9);
}

#[test]
fn a_loop_that_has_committed_keeps_no_turn() {
    let (server, runtime) = (Server::start(), runtime());
    runtime.block_on(async {
        let accounts = builder(&server).build_async().unwrap().transactional();
        heat(&server, &accounts).await;
        let mut kept = Vec::new();
        for _ in 0..ADMITTED {
            let mut tries = patient(&accounts).tries();
            let mut at = soon("an attempt", tries.next()).await.unwrap();
            at.incr("hot", 1);
            assert!(matches!(at.commit().await.unwrap(), Outcome::Committed(_)));
            kept.push(tries);
        }
        soon("a run beside loops that have ended", increment(&accounts)).await.unwrap();
    });
}

#[test]
fn a_block_inside_an_attempt_of_a_loop_does_not_wait_for_its_turn() {
    let (server, runtime) = (Server::start(), runtime());
    runtime.block_on(async {
        let accounts = builder(&server).build_async().unwrap().transactional();
        heat(&server, &accounts).await;
        let barrier = Arc::new(Barrier::new(ADMITTED));
        let outer = (0..ADMITTED).map(|nth| {
            let (accounts, barrier) = (accounts.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                let mut tries = patient(&accounts).tries();
                let mut at = tries.next().await.unwrap();
                // All turns are taken.
                barrier.wait().await;
                let inner = patient(&accounts);
                inner.run(async |_, tx| Ok(tx.incr(format!("inner:{nth}"), 1))).await.unwrap();
                at.incr(format!("outer:{nth}"), 1);
                assert!(matches!(at.commit().await.unwrap(), Outcome::Committed(_)));
            })
        });
        for outer in outer.collect::<Vec<_>>() {
            soon("a loop with a block inside", outer).await.unwrap();
        }
    });
    assert_eq!(server.ask::<u64>(&["DBSIZE"]), 2 * ADMITTED as u64);
}

#[test]
fn a_turn_that_comes_late_leaves_time_for_the_attempt() {
    let (server, runtime) = (Server::start(), runtime());
    let short = Duration::from_millis(200);
    runtime.block_on(async {
        let builder = builder(&server).connect_timeout(short).response_timeout(short);
        let sessions = builder.checkout_timeout(short * 4).build_async().unwrap();
        let accounts = sessions.transactional();
        heat(&server, &accounts).await;
        let runs = (0..4 * ADMITTED).map(|_| {
            let accounts = accounts.clone();
            tokio::spawn(async move {
                let watch = patient(&accounts);
                // The third turn comes after `checkout_timeout`.
                let run = watch.run(async |_, tx| {
                    tokio::time::sleep(short * 3).await;
                    Ok(tx.incr("other", 1))
                });
                run.await
            })
        });
        for run in runs.collect::<Vec<_>>() {
            soon("a run", run).await.unwrap().unwrap();
        }
    });
    assert_eq!(server.ask::<usize>(&["GET", "other"]), 4 * ADMITTED);
}

/// A turn that is kept for ever costs the others a part of their policy's time, and no failure.
#[test]
fn a_block_without_a_turn_attempts_within_its_policy() {
    let (server, runtime) = (Server::start(), runtime());
    runtime.block_on(async {
        let accounts = builder(&server).build_async().unwrap().transactional();
        heat(&server, &accounts).await;
        let mut kept = unpolled(&accounts).await;
        let policy = RetryPolicy::default().deadline(Duration::from_millis(400));
        let watch = accounts.watch(["hot"]).retry(policy);
        let run = watch.run(async |_, tx| Ok(tx.incr("hot", 1)));
        assert_eq!(soon("a run without a turn", run).await.unwrap(), 1);
        let mut context = Context::from_waker(Waker::noop());
        assert!(
            kept.iter_mut().all(|run| matches!(run.as_mut().poll(&mut context), Poll::Pending))
        );
    });
}

/// Has a block with the turn wait in its first attempt, until the returned value is notified.
async fn hold(accounts: &Transactional) -> (Arc<Notify>, JoinHandle<Result<i64, Error>>) {
    let (inside, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (accounts, doors) = (accounts.clone(), (Arc::clone(&inside), Arc::clone(&go)));
    let held = tokio::spawn(async move {
        let watch = patient(&accounts);
        let run = watch.run(async |read, tx| {
            if read.attempt() == 1 {
                doors.0.notify_one();
                doors.1.notified().await;
            }
            Ok(tx.incr("hot", 1))
        });
        run.await
    });
    soon("the closure", inside.notified()).await;
    (go, held)
}

/// It might wait for a block that waits for its connection. With merges it waits for no other block's EXEC
/// either.
#[test]
fn a_task_with_a_connection_does_not_wait_for_a_turn() {
    for most in [1, 16] {
        let (server, runtime) = (Server::start(), runtime());
        runtime.block_on(async {
            let accounts =
                &builder(&server).max_merged(most).build_async().unwrap().transactional();
            heat(&server, accounts).await;
            let (go, held) = hold(accounts).await;
            let reading = accounts.reading();
            let in_closure = reading.run(async |read, tx| {
                let _: Option<i64> = read.get("hot").await?;
                assert_eq!(increment(accounts).await?, 1);
                Ok(tx.incr("other", 1))
            });
            soon("a block in a closure", in_closure).await.unwrap();
            let mut tries = accounts.reading().tries();
            let mut at = soon("an attempt", tries.next()).await.unwrap();
            let read: i64 = at.get("hot").await.unwrap();
            assert_eq!(read, 1);
            assert_eq!(soon("a block in a loop", increment(accounts)).await.unwrap(), 2);
            drop(at);
            let guard = accounts.watch(["other"]).begin().await.unwrap();
            assert_eq!(soon("a block beside a guard", increment(accounts)).await.unwrap(), 3);
            drop(guard);
            go.notify_one();
            assert_eq!(soon("the block with the turn", held).await.unwrap().unwrap(), 4);
        });
    }
}

/// A connection of one of them is none of the others.
#[test]
fn futures_of_one_task_take_turns() {
    let (server, runtime) = (Server::start(), runtime());
    runtime.block_on(async {
        let sessions = builder(&server).build_async().unwrap();
        let accounts = &sessions.transactional();
        heat(&server, accounts).await;
        let conflicts = || sessions.status().transactional.counts.conflicts;
        let before = conflicts();
        let ended = Notify::new();
        let reading = accounts.reading();
        let reading = reading.run(async |read, tx| {
            let _: Option<i64> = read.get("hot").await?;
            ended.notified().await;
            Ok(tx.incr("other", 1))
        });
        let increments = async {
            let increments = || async { (increment(accounts).await, increment(accounts).await) };
            let all = tokio::join!(increments(), increments(), increments(), increments());
            ended.notify_one();
            all
        };
        _ = soon("the blocks", async { tokio::join!(reading, increments) }).await;
        assert_eq!(server.ask::<i64>(&["GET", "hot"]), 8);
        assert_eq!(conflicts() - before, 0);
    });
}
