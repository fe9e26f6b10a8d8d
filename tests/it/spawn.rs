//! Promise: every call of the side of tasks can be spawned with what it borrows, boxed, dropped at any poll and
//! moved between tasks, on each kind of runtime and on several.
//!
//! Guarantee: tasks

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use rediscope::aio::{SessionManager, Transaction, Transactional};
use rediscope::error::{Applied, ReplyError, Resolution};
use rediscope::prelude::*;
use rediscope::redis;
use rediscope::{
    Begin, Block, CommitError, Condition, Error, Outcome, Plain, RetryPolicy, TransactionOptions,
    Watched,
};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::{several, single};
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::fixture::SOON;

type Boxed = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// An error of a program, with which a closure ends.
#[derive(Debug, thiserror::Error)]
enum ShopError {
    #[error("sold out")]
    SoldOut,
    #[error(transparent)]
    Redis(#[from] Error),
}

/// Each public call that waits, with captures that it borrows.
fn calls(sessions: &SessionManager) -> Vec<(&'static str, Boxed)> {
    let mut calls = Vec::new();
    let mut add = |name, call: Boxed| calls.push((name, call));
    let accounts = || sessions.transactional();
    let once = || accounts().with(TransactionOptions::new().exactly_once());

    let tx = accounts();
    add(
        "run",
        Box::pin(async move {
            let (key, values) = (String::from("run"), vec![1_i64, 2]);
            let (sum, read) = tx
                .run(|tx| {
                    for value in &values {
                        tx.rpush(&key, *value);
                    }
                    Ok((tx.incr("sum", 1), tx.lrange(&key, 0, -1)))
                })
                .await?;
            let (_, _): (i64, Vec<i64>) = (sum, read);
            Ok(())
        }),
    );
    let tx = accounts();
    add(
        "run_with",
        Box::pin(async move {
            let key = String::from("with");
            let result: Result<i64, ShopError> = tx
                .run_with(|tx| {
                    if key.is_empty() {
                        return Err(ShopError::SoldOut);
                    }
                    Ok(tx.incr(&key, 1))
                })
                .await;
            match result {
                Ok(_) => Ok(()),
                Err(ShopError::Redis(error)) => Err(error),
                Err(ShopError::SoldOut) => unreachable!(),
            }
        }),
    );
    let tx = once();
    add(
        "run, exactly once",
        Box::pin(async move {
            let key = String::from("once");
            tx.run(|tx| Ok(tx.incr(&key, 1))).await.map(drop)
        }),
    );
    let tx = accounts().with(TransactionOptions::new().begin(Begin::Immediate).name("named"));
    add(
        "run, at once",
        Box::pin(async move { tx.run(|tx| Ok(tx.incr("immediate", 1))).await.map(drop) }),
    );
    let tx = accounts();
    add(
        "begin, commit",
        Box::pin(async move {
            let mut tx = tx.begin().await?;
            let hits = tx.incr("guard", 1);
            let mut part = tx.savepoint();
            part.set("part", 1);
            part.release();
            tx.flush().await?;
            tx.check()?;
            tx.commit().await?.get(hits).map(drop)
        }),
    );
    let tx = accounts();
    add(
        "begin_with, discard",
        Box::pin(async move {
            let options = TransactionOptions::new().begin(Begin::Immediate);
            tx.begin_with(options).await?.discard().await
        }),
    );
    let tx = accounts();
    add(
        "begin_at, dropped",
        Box::pin(async move {
            let key = String::from("at");
            let mut tx = tx.begin_at(&key).await?;
            tx.set(&key, 1);
            Ok(())
        }),
    );
    let tx = accounts();
    add(
        "watch, run",
        Box::pin(async move {
            let (key, step) = (String::from("watched"), vec![1_i64]);
            let left: i64 = tx
                .watch([&key])
                .retry(RetryPolicy::default().attempts(50))
                .run(async |read, tx| {
                    let seen: Option<i64> = read.get(&key).await?;
                    let at = tx.savepoint();
                    at.release();
                    Ok(tx.incr(&key, seen.map_or(step[0], |_| 1)))
                })
                .await?;
            assert!(left > 0);
            Ok(())
        }),
    );
    let tx = accounts();
    let owned = String::from("owned");
    add(
        "watch, run, owned captures",
        Box::pin(async move {
            tx.watch(["owned"])
                .run(async move |read, tx| {
                    let _: Option<i64> = read.get(&owned).await?;
                    Ok(tx.set(&owned, 1))
                })
                .await
        }),
    );
    let tx = accounts();
    add(
        "watch, run_with",
        Box::pin(async move {
            let key = String::from("shop");
            let bought = tx
                .watch([&key])
                .run_with(async |read, tx| {
                    let stock: Option<i64> = read.get(&key).await?;
                    if stock.is_none() {
                        return Err(ShopError::SoldOut);
                    }
                    Ok(tx.decr(&key, 1))
                })
                .await;
            assert!(matches!(bought, Err(ShopError::SoldOut)), "{bought:?}");
            Ok(())
        }),
    );
    let tx = accounts();
    add(
        "watch, declared, no await",
        Box::pin(async move {
            let mut watch = tx.watch(["declared"]);
            let declared =
                watch.declare::<Option<i64>>(redis::cmd("GET").arg("declared").take())?;
            watch
                .run(async |read, tx| {
                    let seen = read.declared(declared)?;
                    Ok(tx.set("declared", seen.unwrap_or(0) + 1))
                })
                .await
        }),
    );
    let tx = accounts();
    add(
        "watch, begin, multi",
        Box::pin(async move {
            let mut watching = tx.watch(["loop"]).begin().await?;
            let seen: Option<i64> = watching.query(redis::cmd("GET").arg("loop").take()).await?;
            let mut tx: Transaction<Watched> = watching.multi();
            tx.set("loop", seen.unwrap_or(0) + 1);
            tx.commit().await.map(drop)
        }),
    );
    let tx = accounts();
    add(
        "watch, begin, abandon",
        Box::pin(async move { tx.watch(["loop"]).begin().await?.abandon().await }),
    );
    let tx = accounts();
    add(
        "reading",
        Box::pin(async move {
            let fields: HashMap<String, i64> = tx
                .reading()
                .begin()
                .await?
                .query_as_read(redis::cmd("HGETALL").arg("hash").take())
                .await?;
            assert!(fields.is_empty());
            tx.reading()
                .run(async |read, tx| {
                    let length: i64 = read.llen("list").await?;
                    Ok(tx.set("length", length))
                })
                .await
        }),
    );
    let tx = accounts();
    add(
        "tries",
        Box::pin(async move {
            let key = String::from("tried");
            let mut count = 0;
            let mut tries = tx.watch([&key]).tries();
            let left: i64 = loop {
                let mut at = tries.next().await?;
                count += 1;
                let seen: Option<i64> = at.get(&key).await?;
                let left = at.incr(&key, 1 + seen.unwrap_or(0).min(0));
                if let Outcome::Committed(replies) = at.commit().await? {
                    break replies.get(left)?;
                }
            };
            assert!(left > 0 && count > 0);
            Ok(())
        }),
    );
    let tx = accounts();
    add(
        "require",
        Box::pin(async move {
            let seat = String::from("12A");
            let free = tx
                .require(Condition::set_not_contains("seats", &seat))
                .retry(RetryPolicy::default());
            let taken = free.run(|tx| Ok(tx.sadd("seats", &seat))).await;
            match taken {
                Ok(_) | Err(Error::ConditionFailed { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        }),
    );
    let tx = accounts();
    add(
        "require, begin",
        Box::pin(async move {
            let mut tx = tx.require(Condition::not_exists("none")).begin().await?;
            tx.set("required", 1);
            tx.commit().await.map(drop)
        }),
    );
    let (tx, manager) = (once(), sessions.clone());
    add(
        "submit, resolve",
        Box::pin(async move {
            let sent = tx.submit(|tx| Ok(tx.incr("submitted", 1)))?;
            let token = sent.token();
            assert!(token.get().is_none());
            let _: i64 = sent.await?;
            let resolution = manager.resolve(&token, SOON).await;
            assert_eq!(resolution, Resolution::Committed);
            let written = token.get().unwrap();
            assert_eq!(manager.resolve(&written, None).await, Resolution::Committed);
            Ok(())
        }),
    );
    let mut db = sessions.pooled();
    add(
        "pooled",
        Box::pin(async move {
            let key = String::from("pooled");
            let () = db.set(&key, 1).await?;
            let read: i64 = db.get(&key).await?;
            assert_eq!(read, 1);
            let mut pipe = redis::pipe();
            pipe.incr(&key, 0).ignore().get(&key);
            let (read,): (i64,) = pipe.query_async(&mut db).await?;
            assert_eq!(read, 1);
            let mut other = db.clone();
            let blocked: Option<(String, i64)> = other.blpop("nothing", 0.01).await?;
            assert!(blocked.is_none());
            Ok(())
        }),
    );
    calls
}

fn connect(server: &Server, lanes: u32) -> SessionManager {
    SessionManager::builder(server.url()).max_size(2).lanes(lanes).build_async().unwrap()
}

/// Runs a test with a lane, and without one.
fn on_each_pool(test: impl Fn(&Server, SessionManager)) {
    let server = Server::start();
    for lanes in [0, 1] {
        println!("{lanes} lanes");
        let () = server.ask(&["FLUSHALL"]);
        test(&server, connect(&server, lanes));
    }
}

/// Spawns each call.
async fn spawn_all(sessions: &SessionManager) {
    for (name, call) in calls(sessions) {
        let done = tokio::time::timeout(SOON, tokio::spawn(call)).await;
        done.unwrap_or_else(|_| panic!("{name}: not within {SOON:?}"))
            .unwrap()
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

#[test]
fn every_call_is_spawned_on_a_runtime_of_one_thread() {
    on_each_pool(|_, sessions| {
        single().block_on(async {
            spawn_all(&sessions).await;
            sessions.close(SOON).await;
        });
    });
}

#[test]
fn every_call_is_spawned_on_a_runtime_of_several_threads() {
    on_each_pool(|_, sessions| {
        several().block_on(async {
            spawn_all(&sessions).await;
            sessions.close(SOON).await;
        });
    });
}

#[test]
fn every_call_runs_in_a_local_set() {
    on_each_pool(|_, sessions| {
        let runtime = single();
        LocalSet::new().block_on(&runtime, async {
            for (name, call) in calls(&sessions) {
                // Beside a value that cannot move to another thread.
                let local = std::rc::Rc::new(name);
                let done = tokio::task::spawn_local(async move {
                    let done = call.await;
                    drop(local);
                    done
                });
                done.await.unwrap().unwrap_or_else(|error| panic!("{name}: {error:?}"));
            }
        });
    });
}

/// Polls the future so many times. `true`: it has ended.
async fn poll_times(call: &mut Boxed, times: usize) -> bool {
    for _ in 0..times {
        let ready = poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await;
        if ready {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

#[test]
fn a_call_that_is_dropped_at_any_poll_leaves_the_next_one_a_clean_connection() {
    on_each_pool(|_, sessions| {
        several().block_on(async {
            let names: Vec<_> = calls(&sessions).into_iter().map(|(name, _)| name).collect();
            for (at, name) in names.iter().enumerate() {
                for times in 0..40 {
                    let (_, mut call) = calls(&sessions).swap_remove(at);
                    let ended = poll_times(&mut call, times).await;
                    drop(call);
                    // Two connections: both are in use at once.
                    let accounts = sessions.transactional();
                    let next = async {
                        let mut one = accounts.watch(["clean"]).begin().await?;
                        let mut two = accounts.begin().await?;
                        two.set("clean:other", 1);
                        let _: Option<i64> = one.get("clean").await?;
                        two.commit().await?;
                        let mut one = one.multi();
                        let n = one.incr("clean", 1);
                        let Outcome::Committed(replies) = one.commit().await? else {
                            panic!("a conflict")
                        };
                        replies.get(n)
                    };
                    let next = tokio::time::timeout(SOON, next).await.expect("in time");
                    next.unwrap_or_else(|error| panic!("after {name}, {times} polls: {error:?}"));
                    if ended {
                        break;
                    }
                }
            }
        });
    });
}

#[test]
fn a_call_ends_with_its_timeout_and_beside_others_in_a_select() {
    on_each_pool(|_, sessions| {
        several().block_on(async {
            for (name, call) in calls(&sessions) {
                let _ = tokio::time::timeout(Duration::from_micros(200), call).await;
                let accounts = sessions.transactional();
                let sum: i64 = accounts
                    .run(|tx| Ok(tx.incr("after", 1)))
                    .await
                    .unwrap_or_else(|error| panic!("{name}: {error:?}"));
                assert!(sum > 0);
            }
            for (name, call) in calls(&sessions) {
                tokio::select! {
                    done = call => done.unwrap_or_else(|error| panic!("{name}: {error:?}")),
                    () = tokio::task::yield_now() => {}
                }
            }
            let accounts = sessions.transactional();
            assert!(accounts.run(|tx| Ok(tx.incr("after", 1))).await.is_ok());
        });
    });
}

#[test]
fn a_guard_moves_between_tasks_and_runtimes_threads() {
    on_each_pool(|server, sessions| {
        several().block_on(async {
            let accounts = sessions.transactional();
            let mut tx: Transaction<Plain> = accounts.begin().await.unwrap();
            for _ in 0..10 {
                tx = tokio::spawn(async move {
                    tx.incr("moved", 1);
                    tokio::task::yield_now().await;
                    tx
                })
                .await
                .unwrap();
            }
            tokio::spawn(tx.commit()).await.unwrap().unwrap();
            assert_eq!(server.ask::<i64>(&["GET", "moved"]), 10);
        });
    });
}

#[test]
fn two_runtimes_use_one_manager_at_the_same_time_and_one_after_another() {
    on_each_pool(|_, sessions| {
        let (one, two) = (several(), single());
        std::thread::scope(|threads| {
            for runtime in [&one, &two] {
                threads.spawn(|| runtime.block_on(spawn_all(&sessions)));
            }
        });
        one.shutdown_timeout(SOON);
        two.block_on(spawn_all(&sessions));
        drop(two);
        single().block_on(async {
            spawn_all(&sessions).await;
            assert_eq!(sessions.close(SOON).await.scopes, 0);
        });
    });
}

/// Its id is the same in both, and the connections of the one are not served while the other is run.
#[test]
fn a_local_task_that_two_runtimes_poll_has_the_connections_of_each() {
    let (server, local) = (Server::start(), LocalSet::new());
    let sessions = connect(&server, 2);
    let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
    let (done, mut is_done) = tokio::sync::mpsc::unbounded_channel();
    local.spawn_local(async move {
        let mut db = sessions.pooled();
        while let Some(n) = receive.recv().await {
            let set = timeout(SOON, db.set::<_, _, ()>("n", n)).await;
            done.send(set.expect("a call in time")).unwrap();
        }
    });
    let runtimes = [single(), single()];
    for n in 0..8 {
        send.send(n).unwrap();
        let set = runtimes[n / 2 % 2].block_on(local.run_until(is_done.recv()));
        set.expect("the task lives").unwrap();
        assert_eq!(server.ask::<usize>(&["GET", "n"]), n);
    }
}

/// What a block has returned that another runtime than its sender's waits for, and how often it was applied.
/// `ends`: the sender's runtime is shut down before the wait; else it is not run any more.
fn sent_elsewhere(
    exactly_once: bool,
    (trigger, fault): (Trigger, Fault),
    ends: bool,
) -> (Result<i64, Error>, i64) {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let short = Duration::from_millis(300);
    let builder = rediscope::SessionManager::builder(proxy.url()).connect_timeout(short);
    let builder = builder.response_timeout(short).checkout_timeout(3 * short);
    let sessions = builder.build_async().unwrap();
    let options = TransactionOptions::new();
    let options = if exactly_once { options.exactly_once() } else { options };
    let accounts = sessions.transactional().with(options);
    let (one, two) = (single(), single());
    let block = || accounts.run(|tx| Ok(tx.incr("n", 1)));
    one.block_on(async { block().await.unwrap() });
    let fired = proxy.fired();
    proxy.arm(Script::from((trigger, fault)).once());
    let mut call = Box::pin(block());
    one.block_on(async {
        let sent = async {
            while proxy.fired() == fired {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            early = &mut call => panic!("{early:?}"),
            () = sent => {}
        }
    });
    let one = if ends { None } else { Some(one) };
    let ended = two.block_on(async { timeout(SOON, &mut call).await });
    let ended = ended.expect("a call in time");
    proxy.release();
    let execs = 2 + usize::from(ended.is_ok());
    let ran = format!("cmdstat_exec:calls={execs},");
    let stats = || server.ask::<String>(&["INFO", "commandstats"]);
    eventually(SOON, "EXEC has arrived", || stats().contains(&ran));
    drop((one, two));
    (ended, server.ask::<i64>(&["GET", "n"]) - 1)
}

#[test]
fn a_block_whose_sender_is_not_run_any_more_is_in_doubt_unless_its_token_shows_the_outcome() {
    let replied = (Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
    let held = (Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests);
    for ends in [false, true] {
        let (ended, applied) = sent_elsewhere(false, replied, ends);
        assert!(matches!(ended, Err(Error::Commit(CommitError::InDoubt(_)))), "{ended:?}");
        assert_eq!(applied, 1);
        let (ended, applied) = sent_elsewhere(true, replied, ends);
        assert!(matches!(ended, Err(Error::Reply(ReplyError::Lost))), "{ended:?}");
        assert_eq!(applied, 1);
        // It is sent again, if its bytes are not with its sender.
        match sent_elsewhere(true, held, ends) {
            (Ok(2), 1) => {}
            (Err(error), 0) if error.applied() == Applied::No && error.is_retryable() => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_static_manager_serves_the_runtimes_of_two_tests() {
    static SESSIONS: OnceLock<SessionManager> = OnceLock::new();
    let server = Server::start();
    SESSIONS.set(connect(&server, 2)).unwrap();
    // As `#[tokio::test]` does it: each test has a runtime, on a thread of its own.
    for _ in 0..2 {
        let test = || single().block_on(spawn_all(SESSIONS.get().unwrap()));
        std::thread::spawn(test).join().unwrap();
    }
}

#[test]
fn a_guard_outlives_its_runtime_and_is_dropped_outside_of_any() {
    on_each_pool(|_, sessions| {
        let accounts = sessions.transactional();
        let runtime = several();
        let immediate = accounts.with(TransactionOptions::new().begin(Begin::Immediate));
        let tx = runtime.block_on(immediate.begin()).unwrap();
        let watching = runtime.block_on(accounts.watch(["kept"]).begin()).unwrap();
        runtime.shutdown_timeout(SOON);
        drop(tx);
        drop(watching);
        // Nothing of the old runtime stays in use.
        single().block_on(async {
            spawn_all(&sessions).await;
            assert_eq!(sessions.close(SOON).await.scopes, 0);
        });
    });
}

#[test]
fn a_runtime_that_ends_during_calls_frees_their_places() {
    on_each_pool(|_, sessions| {
        for _ in 0..5 {
            let runtime = several();
            let accounts = Arc::new(sessions.transactional());
            for _ in 0..20 {
                let accounts = Arc::<Transactional>::clone(&accounts);
                runtime.spawn(async move {
                    loop {
                        let watching = accounts.watch(["busy"]).begin().await.unwrap();
                        tokio::task::yield_now().await;
                        let mut tx = watching.multi();
                        tx.incr("busy", 1);
                        let _ = tx.commit().await;
                        let _ = accounts.run(|tx| Ok(tx.incr("sum", 1))).await;
                    }
                });
            }
            runtime.block_on(async { spawn_all(&sessions).await });
            runtime.shutdown_background();
        }
        single().block_on(spawn_all(&sessions));
    });
}

#[test]
fn a_future_that_was_never_polled_is_dropped_outside_of_a_runtime() {
    on_each_pool(|server, sessions| {
        for (_, call) in calls(&sessions) {
            drop(call);
        }
        let accounts = sessions.transactional();
        drop(accounts.begin());
        drop(accounts.run(|tx: &mut Block| Ok(tx.incr("never", 1))));
        let sent = accounts.submit(|tx| Ok(tx.incr("never", 1))).unwrap();
        let token = sent.token();
        drop(sent);
        assert!(token.get().is_none());
        assert_eq!(server.ask::<Option<i64>>(&["GET", "never"]), None);
        let once = accounts.with(TransactionOptions::new().exactly_once());
        let sent = once.submit(|tx| Ok(tx.incr("never", 1))).unwrap();
        let token = sent.token();
        single().block_on(async {
            let early = sessions.resolve(&token, None).await;
            assert!(matches!(early, Resolution::StillUnknown { .. }), "{early:?}");
            drop(sent);
            assert_eq!(sessions.resolve(&token, None).await, Resolution::NotCommitted);
        });
    });
}

/// The size of the future that a call returns, which is not run.
fn size<F: Future>(call: F) -> usize {
    size_of_val(&call)
}

#[test]
fn a_calls_future_is_small_enough_to_be_moved() {
    let server = Server::start();
    let sessions = connect(&server, 2);
    let accounts = sessions.transactional();
    let once = accounts.with(TransactionOptions::new().exactly_once());
    let mut db = sessions.pooled();
    let queue = |tx: &mut Block| Ok((tx.incr("a", 1), tx.incr("b", 1)));
    let (runtime, lock) = (several(), sessions.lock("l"));
    let guard = runtime.block_on(accounts.begin()).unwrap();
    let guards_commit = size(guard.commit());
    let watching = runtime.block_on(accounts.watch(["a"]).begin()).unwrap();
    let watched_commit = size(watching.multi().commit());
    let watch = accounts.watch(["a"]);
    let mut tries = accounts.watch(["a"]).tries();
    let condition = accounts.require(Condition::exists("a"));
    // A closure is part of its future, and so is the future that an async one returns.
    let sizes = [
        ("run", size(accounts.run(queue)), 1024),
        ("run, exactly once", size(once.run(queue)), 1024),
        ("submit", size(once.submit(queue).unwrap()), 1024),
        ("pooled", size(db.get::<_, i64>("a")), 256),
        ("begin", size(accounts.begin()), 4096),
        ("commit", guards_commit, 4096),
        ("commit, watched", watched_commit, 4096),
        ("watch, begin", size(watch.begin()), 4096),
        (
            "watch, run",
            size(watch.run(async |read, tx| {
                let a: i64 = read.get("a").await?;
                Ok(tx.set("a", a))
            })),
            8192,
        ),
        ("tries", size(tries.next()), 4096),
        ("require", size(condition.run(queue)), 8192),
        ("acquire", size(lock.acquire(SOON)), 4096),
        ("try_acquire", size(lock.try_acquire()), 4096),
        ("hold", size(lock.hold(SOON, async |_| Ok::<_, Error>(()))), 4096),
        ("close", size(sessions.close(SOON)), 4096),
        ("ready", size(sessions.ready(SOON)), 4096),
    ];
    for (call, size, most) in sizes {
        assert!(size <= most, "{call}: {size} bytes");
    }
}
