//! Watching blocks on the same keys: which may run, in which order, and which are sent together.
//!
//! Guarantee: turns

use crate::fixture::{SOON, heat};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use redis::cmd;
use rediscope::error::Applied;
use rediscope::redis;
use rediscope::{Condition, Error, RetryPolicy, SessionManager, TransactionOptions, prelude::*};

use rediscope_testing::eventually;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

fn sessions(url: String) -> SessionManager {
    // Trusted for longer than a busy machine keeps it idle: no round trip is spent on asking.
    let builder = SessionManager::builder(url).max_size(8).trust_window(SOON);
    builder.checkout_timeout(SOON).build().unwrap()
}

fn patient() -> TransactionOptions {
    TransactionOptions::new()
        .retry(RetryPolicy::default().attempts(10_000).deadline(Duration::from_secs(60)))
}

#[test]
fn a_hot_key_is_counted_right_and_wastes_few_tries() {
    let server = Server::start();
    let sessions = sessions(server.url());
    let tries = |options: TransactionOptions| {
        let handle = sessions.transactional().with(options);
        let tries = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| {
                    for _ in 0..30 {
                        let watch = handle.watch(["hot"]);
                        let counted = watch.run(|read, tx| {
                            tries.fetch_add(1, Ordering::Relaxed);
                            let n: Option<u64> = read.get("hot")?;
                            Ok(tx.set("hot", n.unwrap_or_default() + 1))
                        });
                        counted.unwrap();
                    }
                });
            }
        });
        tries.into_inner()
    };
    let in_turn = tries(patient());
    assert_eq!(server.ask::<u64>(&["GET", "hot"]), 32 * 30);
    let at_once = tries(patient().take_turns(false));
    assert_eq!(server.ask::<u64>(&["GET", "hot"]), 2 * 32 * 30);
    // One commit takes a try, once the key is known to be hot.
    assert!(in_turn < 32 * 30 + 200, "{in_turn} tries");
    println!("{in_turn} tries in turn, {at_once} tries at once");
}

#[test]
fn a_block_that_waits_for_a_key_holds_no_connection() {
    let server = Server::start();
    let sessions = sessions(server.url());
    let handle = sessions.transactional().with(patient());
    heat(&handle, &server, "hot");
    let gate = Mutex::new(());
    let held = gate.lock().unwrap();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let _: () = handle
                    .watch(["hot"])
                    .run(|_, tx| {
                        drop(gate.lock().unwrap());
                        Ok(tx.set("hot", 1))
                    })
                    .unwrap();
            });
        }
        // The others wait in front of the pool.
        eventually(SOON, "the first one is in", || sessions.open_scopes().len() == 1);
        let status = sessions.status().transactional;
        assert_eq!((status.in_use, status.waiting), (1, 0));
        // Another key is not concerned.
        let other = handle.watch(["another"]).run(|_, tx| Ok(tx.incr("another", 1)));
        assert_eq!(other.unwrap(), 1);
        drop(held);
    });
}

#[test]
fn blocks_on_crossed_keys_and_blocks_inside_blocks_do_not_wait_for_each_other() {
    let server = Server::start();
    let sessions = sessions(server.url());
    let handle = sessions.transactional().with(patient());
    let begun = Instant::now();
    thread::scope(|scope| {
        for nth in 0..16 {
            let handle = &handle;
            scope.spawn(move || {
                let keys = if nth % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
                for _ in 0..20 {
                    handle
                        .watch(keys)
                        .run(|read, tx| {
                            let a: Option<i64> = read.get("a")?;
                            tx.set("b", a.unwrap_or_default());
                            Ok(tx.incr("a", 1))
                        })
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(server.ask::<i64>(&["GET", "a"]), 16 * 20);
    let nested = handle.watch(["a"]).run(|_, tx| {
        handle.watch(["a"]).run(|_, inner| Ok(inner.exists("a")))?;
        Ok(tx.incr("a", 1))
    });
    assert_eq!(nested.unwrap(), 16 * 20 + 1);
    assert!(begun.elapsed() < Duration::from_secs(50), "a caller waited for a deadline");
}

#[test]
fn a_block_that_is_not_admitted_by_its_deadline_tries_all_the_same() {
    let server = Server::start();
    let sessions = sessions(server.url());
    let handle = sessions.transactional();
    heat(&handle, &server, "hot");
    let gate = Mutex::new(());
    let held = gate.lock().unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let blocked = handle.with(patient()).watch(["hot"]).run(|_, tx| {
                    drop(gate.lock().unwrap());
                    Ok(tx.exists("hot"))
                });
                blocked.unwrap();
            });
        }
        eventually(SOON, "one is in", || sessions.open_scopes().len() == 1);
        let short = RetryPolicy::default().deadline(Duration::from_millis(50));
        let late = handle.watch(["hot"]).retry(short).run(|_, tx| Ok(tx.incr("n", 1)));
        assert_eq!(late.unwrap(), 1);
        drop(held);
    });
}

#[test]
fn a_turn_that_comes_late_leaves_time_for_the_attempt() {
    let server = Server::start();
    let short = Duration::from_millis(200);
    let builder = SessionManager::builder(server.url()).max_size(16).connect_timeout(short);
    let sessions = builder.response_timeout(short).checkout_timeout(short * 4).build().unwrap();
    let handle = sessions.transactional().with(patient());
    heat(&handle, &server, "hot");
    thread::scope(|scope| {
        for _ in 0..4 {
            // The third turn comes after `checkout_timeout`.
            scope.spawn(|| {
                let slow = handle.watch(["hot"]).run(|_, tx| {
                    thread::sleep(short * 3);
                    Ok(tx.incr("other", 1))
                });
                slow.unwrap();
            });
        }
    });
    assert_eq!(server.ask::<u64>(&["GET", "other"]), 4);
}

#[test]
fn conditions_that_do_not_hold_keep_no_other_block_waiting() {
    let server = Server::start();
    let sessions = sessions(server.url());
    let handle = sessions.transactional().with(patient());
    for _ in 0..200 {
        let failed = handle.require(Condition::exists("hot")).run(|tx| Ok(tx.incr("n", 1)));
        assert!(matches!(failed, Err(Error::ConditionFailed { .. })));
    }
    let required = handle.require(Condition::not_exists("hot"));
    for _ in 0..32 {
        required.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    }
    // No attempt met a conflict, so none waits for its turn.
    let gate = Mutex::new(());
    let held = gate.lock().unwrap();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let blocked = required.run(|tx| {
                    drop(gate.lock().unwrap());
                    Ok(tx.incr("n", 1))
                });
                blocked.unwrap();
            });
        }
        eventually(SOON, "all are in, or wait for a connection", || {
            sessions.open_scopes().len() == 8 && sessions.status().transactional.waiting == 12
        });
        drop(held);
    });
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 32 + 20);
}

#[test]
fn declared_reads_travel_with_watch_and_are_read_again_by_each_attempt() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = sessions(proxy.url());
    let handle = sessions.transactional();
    server.ask::<()>(&["MSET", "stock", "7", "name", "chair"]);
    let mut watch = handle.watch(["stock"]);
    let stock = watch.declare::<i64>(cmd("GET").arg("stock").take()).unwrap();
    let name = watch.declare::<String>(cmd("GET").arg("name").take()).unwrap();
    handle.run(|tx| Ok(tx.exists("nothing"))).unwrap();
    let turns = proxy.turns();
    let mut seen = Vec::new();
    let left = watch.run(|read, tx| {
        let found = read.declared(stock)?;
        seen.push((found, read.declared(name)?));
        if seen.len() == 1 {
            server.ask::<()>(&["SET", "stock", "5"]);
        }
        Ok(tx.decr("stock", 1))
    });
    assert_eq!(left.unwrap(), 4);
    assert_eq!(seen, [(7, "chair".to_owned()), (5, "chair".to_owned())]);
    assert_eq!(proxy.turns() - turns, 4, "two round trips an attempt");
}

#[test]
fn reads_that_cannot_be_declared_are_refused_and_an_undecodable_reply_is_an_error() {
    let server = Server::start();
    let sessions = sessions(server.url());
    let handle = sessions.transactional();
    let mut watch = handle.watch(["k"]);
    let refused = watch.declare::<i64>(cmd("INCR").arg("k").take()).unwrap_err();
    assert!(matches!(refused, Error::Refused { ref command, .. } if command == "INCR"));
    let blocking = cmd("XREAD").arg("BLOCK").arg(0).arg("STREAMS").arg("s").arg("$").take();
    assert!(watch.declare::<()>(blocking).is_err());
    server.ask::<()>(&["SET", "k", "text"]);
    let number = watch.declare::<i64>(cmd("GET").arg("k").take()).unwrap();
    let list = watch.declare::<i64>(cmd("LLEN").arg("k").take()).unwrap();
    let mut other = handle.watch(["k"]);
    let foreign = other.declare::<i64>(cmd("STRLEN").arg("k").take()).unwrap();
    let watching = watch.begin().unwrap();
    assert!(matches!(watching.declared(number), Err(Error::Decode { .. })));
    assert!(matches!(watching.declared(list), Err(Error::Command { .. })));
    let foreign = watching.declared(foreign).unwrap_err();
    assert_eq!((foreign.applied(), foreign.is_retryable()), (Applied::No, false));
    drop(watching);
    // A clone that declares more does not disturb what was declared before.
    let mut clone = other.clone();
    let length = clone.declare::<i64>(cmd("STRLEN").arg("k").take()).unwrap();
    let mut reading = handle.reading();
    let plain = reading.declare::<String>(cmd("GET").arg("k").take()).unwrap();
    assert_eq!(clone.begin().unwrap().declared(length).unwrap(), 4);
    assert_eq!(reading.begin().unwrap().declared(plain).unwrap(), "text");
}
