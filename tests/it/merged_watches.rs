//! Watching blocks on one key that run on each other's results and share one EXEC.
//!
//! Guarantee: turns

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::fixture::{MEET, SOON, inside_at_once, unhurried};
use crate::hot_keys::waits;
use crate::side::{BuildSide as _, SessionManager, Transactional, threads_only};
use redis::cmd;
use rediscope::error::{Applied, ReplyError};
use rediscope::redis;
use rediscope::{
    Block, CommitError, Condition, Error, RetryPolicy, TransactionOptions, prelude::*,
};
use serde_json::json;

use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::sentinel::{NAME, Sentinel};
use rediscope_testing::server::Server;

fn patient() -> TransactionOptions {
    TransactionOptions::new()
        .retry(RetryPolicy::default().attempts(10_000).deadline(Duration::from_secs(60)))
}

fn sessions(url: String, most: u32) -> SessionManager {
    let builder = SessionManager::builder(url).max_size(8).trust_window(SOON);
    builder.checkout_timeout(SOON).max_merged(most).build_side().unwrap()
}

/// Calls of the command so far.
fn calls(server: &Server, command: &str) -> u64 {
    let stats: String = server.ask(&["INFO", "commandstats"]);
    let prefix = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

fn get(key: &str) -> redis::Cmd {
    cmd("GET").arg(key).take()
}

/// Adds one to `hot`, with the value that the watch has read.
fn count(handle: &Transactional) -> i64 {
    let mut watch = handle.watch(["hot"]);
    let n = watch.declare::<Option<i64>>(get("hot")).unwrap();
    watch
        .run(|read, tx| {
            let n = read.declared(n)?.unwrap_or_default();
            tx.set("hot", n + 1);
            Ok(tx.incr("commits", 1))
        })
        .unwrap()
}

#[test]
fn blocks_on_one_key_share_an_exec_and_are_no_conflict_for_each_other() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(500));
    for (most, threads, blocks) in [(64, 64, 10), (1, 4, 3)] {
        server.ask::<()>(&["FLUSHALL"]);
        server.ask::<()>(&["CONFIG", "RESETSTAT"]);
        let sessions = sessions(proxy.url(), most);
        let handle = sessions.transactional().with(patient());
        let mut seen: Vec<i64> = thread::scope(|scope| {
            let run = || (0..blocks).map(|_| count(&handle)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        seen.sort_unstable();
        let commits = threads * blocks;
        assert!(seen.into_iter().eq(1..=commits), "each has a reply of its own");
        assert_eq!(server.ask::<i64>(&["GET", "hot"]), commits);
        let (execs, status) = (calls(&server, "exec"), sessions.status().transactional);
        assert_eq!(status.counts.commits, commits as u64);
        if most > 1 {
            assert!(execs < commits as u64 / 4, "{execs} EXECs for {commits} commits");
            assert!(
                status.counts.conflicts <= commits as u64 / 100,
                "{} conflicts",
                status.counts.conflicts
            );
        } else {
            assert!(execs >= commits as u64, "each has an EXEC of its own: {execs}");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Shop {
    #[error("sold out")]
    SoldOut,
    #[error(transparent)]
    Redis(#[from] Error),
}

#[test]
fn a_closures_own_error_is_returned_only_if_it_saw_what_was_committed() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(300));
    server.ask::<()>(&["SET", "stock", "50"]);
    let sessions = sessions(proxy.url(), 16);
    let handle = sessions.transactional().with(patient());
    let (sold, left) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let mut watch = handle.watch(["stock"]);
                    let stock = watch.declare::<i64>(get("stock")).unwrap();
                    let bought = watch.run_with(|read, tx| match read.declared(stock)? {
                        0 => Err(Shop::SoldOut),
                        _ => Ok(tx.decr("stock", 1)),
                    });
                    match bought {
                        Ok(_) => sold.fetch_add(1, Ordering::Relaxed),
                        Err(Shop::SoldOut) => left.fetch_add(1, Ordering::Relaxed),
                        Err(Shop::Redis(error)) => panic!("{error}"),
                    };
                    // Queues nothing, and is a block like the others.
                    let seen = watch.run(|read, _| {
                        assert!(read.declared(stock)? >= 0);
                        Ok(())
                    });
                    seen.unwrap();
                }
            });
        }
    });
    assert_eq!((sold.into_inner(), left.into_inner()), (50, 32 * 4 - 50));
    let commits = sessions.status().transactional.counts.commits;
    assert_eq!(commits, 50 + 32 * 4, "those that were sold out have committed nothing");
    assert_eq!(server.ask::<i64>(&["GET", "stock"]), 0);
}

/// What a block queues, by which key and with which value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Set,
    SetEx,
    Del,
    Incr,
    /// Its effect is not known here.
    Append,
    /// Goes to the closure's end without a command.
    Fails,
    Panics,
    /// Needs a connection.
    Reads,
    /// A command on another key, which fails at run time.
    Wrong,
}

const KEYS: [&str; 2] = ["a", "b"];

type Values = Vec<Option<String>>;

/// What the command leaves, as the server's documentation has it.
fn model(values: &mut Values, op: Op, key: usize, text: &str) {
    let held = &mut values[key];
    match op {
        Op::Set | Op::SetEx => *held = Some(text.to_owned()),
        Op::Del => *held = None,
        Op::Incr => {
            let text = held.as_deref().unwrap_or("0");
            let number = text.parse::<i64>().ok().filter(|number| number.to_string() == text);
            if let Some(sum) = number.and_then(|number| number.checked_add(3)) {
                *held = Some(sum.to_string());
            }
        }
        Op::Append => held.get_or_insert_default().push_str(text),
        Op::Fails | Op::Panics | Op::Reads | Op::Wrong => {}
    }
}

/// One block on both keys. Its log has what the closure saw, and what it queued.
fn random_block(handle: &Transactional, mget: bool) {
    let ops = [Op::Set, Op::Set, Op::SetEx, Op::Del, Op::Incr, Op::Incr, Op::Incr, Op::Incr];
    let odd = [Op::Append, Op::Fails, Op::Panics, Op::Reads, Op::Wrong];
    let choose =
        || if fastrand::u8(..12) == 0 { fastrand::choice(odd) } else { fastrand::choice(ops) };
    let ops: Vec<_> = (0..fastrand::usize(1..4))
        .map(|_| (choose().unwrap(), fastrand::usize(..2), fastrand::u8(..5).to_string()))
        .collect();
    let has = |wanted| ops.iter().any(|(op, ..)| *op == wanted);
    let mut watch = handle.watch(KEYS);
    let (mut both, mut each) = (None, None);
    if mget {
        both = Some(watch.declare::<Values>(cmd("MGET").arg(&KEYS).take()).unwrap());
    } else {
        each = Some(KEYS.map(|key| watch.declare::<Option<String>>(get(key)).unwrap()));
    }
    let run = || {
        watch.run_with(|read, tx| -> Result<_, Shop> {
            let seen: Values = match (both, each) {
                (Some(both), _) => read.declared(both)?,
                (None, each) => {
                    let [a, b] = each.unwrap();
                    vec![read.declared(a)?, read.declared(b)?]
                }
            };
            let mut log = Vec::new();
            for (op, key, text) in &ops {
                let name = KEYS[*key];
                match op {
                    Op::Set => _ = tx.set(name, text),
                    Op::SetEx => _ = tx.set_ex(name, text, 100),
                    Op::Del => _ = tx.del(name),
                    Op::Incr => _ = tx.incr(name, 3),
                    Op::Append => _ = tx.append(name, text),
                    Op::Fails => return Err(Shop::SoldOut),
                    Op::Panics => panic!("a closure that panics"),
                    // The commit finds out whether this is still what the watch has read.
                    Op::Reads => _ = read.get::<_, Option<String>>(name)?,
                    Op::Wrong => _ = tx.hset("log", "f", "v"),
                }
                log.push((*op as u8, *key, text));
            }
            tx.rpush("log", json!([seen, log]).to_string());
            Ok(())
        })
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => assert!(!has(Op::Fails) && !has(Op::Panics)),
        Ok(Err(Shop::SoldOut)) => assert!(has(Op::Fails)),
        // INCR of a text, HSET of a list.
        Ok(Err(Shop::Redis(Error::Commit(CommitError::PartlyApplied { .. })))) => {}
        Ok(Err(Shop::Redis(error))) => panic!("{error:?} of {ops:?}"),
        Err(_) => assert!(has(Op::Panics)),
    }
}

/// Takes turns with the blocks, as another process.
fn foreign_writer(server: &Server, writes: usize) {
    let mut connection = server.connection();
    for nth in 0..writes {
        let (key, text) = (fastrand::usize(..2), nth.to_string());
        let log = json!([null, [(Op::Set as u8, key, &text)]]).to_string();
        let mut pipe = redis::pipe();
        pipe.atomic().set(KEYS[key], &text).ignore().rpush("log", log).ignore();
        pipe.exec(&mut connection).unwrap();
        thread::sleep(Duration::from_millis(3));
    }
}

#[test]
fn every_closure_ran_on_what_the_blocks_before_it_left() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(200));
    let sessions = sessions(proxy.url(), 16);
    let handle = sessions.transactional().with(patient());
    thread::scope(|scope| {
        for nth in 0..12 {
            let handle = &handle;
            scope.spawn(move || {
                fastrand::seed(seed + nth);
                (0..25).for_each(|_| random_block(handle, nth % 3 == 0));
            });
        }
        scope.spawn(|| foreign_writer(&server, 30));
    });
    let mut values: Values = vec![None, None];
    let (log, mut foreign) = (server.ask::<Vec<String>>(&["LRANGE", "log", "0", "-1"]), 0);
    for (nth, entry) in log.iter().enumerate() {
        let [seen, ops]: [serde_json::Value; 2] = serde_json::from_str(entry).unwrap();
        if seen.is_null() {
            foreign += 1;
        } else {
            assert_eq!(seen, json!(values), "entry {nth} of {log:#?}");
        }
        for op in ops.as_array().unwrap() {
            let (code, key) = (op[0].as_u64().unwrap(), op[1].as_u64().unwrap() as usize);
            let all = [Op::Set, Op::SetEx, Op::Del, Op::Incr, Op::Append, Op::Reads, Op::Wrong];
            let op_of = all.into_iter().find(|op| *op as u64 == code).unwrap();
            model(&mut values, op_of, key, op[2].as_str().unwrap());
        }
    }
    assert_eq!(foreign, 30);
    assert!(log.len() > 150, "only {} blocks were applied", log.len());
    assert_eq!(server.ask::<Values>(&["MGET", "a", "b"]), values);
}

/// Counts and leaves a mark, so that the server shows whether the block was applied.
fn marked(handle: &Transactional, mark: &str) -> Result<(), Error> {
    let mut watch = handle.watch(["hot"]);
    let n = watch.declare::<Option<i64>>(get("hot"))?;
    watch.run(|read, tx| {
        let n = read.declared(n)?.unwrap_or_default();
        tx.set("hot", n + 1);
        tx.incr(mark, 1);
        Ok(())
    })
}

#[test]
fn a_connection_that_is_cut_at_any_byte_leaves_each_block_applied_as_its_outcome_says() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(100));
    let sessions = sessions(proxy.url(), 16);
    let handle = sessions.transactional().with(patient());
    let faults = [Fault::Cut, Fault::CutClientSide, Fault::Reset];
    let results: Vec<(String, Result<(), Error>)> = (0..60)
        .flat_map(|round| {
            let at = match round % 3 {
                0 => Trigger::InsideCommandNamed("EXEC", 1 + round / 3),
                1 => Trigger::InsideReplyTo("EXEC", 1 + round / 2),
                _ => Trigger::ClientBytes(1 + 11 * round),
            };
            let fault = faults[round as usize / 3 % 3];
            proxy.arm(Script::from((at, fault)).once());
            let results: Vec<_> = thread::scope(|scope| {
                let run = |nth| {
                    let mark = format!("mark:{round}:{nth}");
                    let result = marked(&handle, &mark);
                    (mark, result)
                };
                let threads: Vec<_> = (0..6).map(|nth| scope.spawn(move || run(nth))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            proxy.disarm();
            results
        })
        .collect();
    let (mut applied, mut in_doubt) = (0, 0);
    for (mark, result) in &results {
        let found = server.ask::<Option<i64>>(&["GET", mark]);
        assert!(found.is_none_or(|found| found == 1), "{mark} was applied {found:?} times");
        applied += found.unwrap_or(0);
        match result {
            Ok(()) => assert_eq!(found, Some(1), "{mark}"),
            Err(error) if error.as_in_doubt().is_some() => in_doubt += 1,
            Err(error) => {
                assert_eq!((error.applied(), found), (Applied::No, None), "{mark}: {error}");
            }
        }
    }
    // A closure that ran on other values than those which the block before it left would be seen here.
    assert_eq!(server.ask::<i64>(&["GET", "hot"]), applied);
    assert!(in_doubt > 0 && applied > 200, "{in_doubt} in doubt, {applied} applied");
}

/// Eight threads count the hot key up, five times each. Beside them a block on it fails as often.
fn beside_counts(
    server: &Server,
    handle: &Transactional,
    block: impl Fn(&mut Block) + Send + Sync,
    check: impl Fn(&CommitError) + Send + Sync,
) {
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..5).for_each(|_| _ = count(handle)));
        }
        scope.spawn(|| {
            for _ in 0..5 {
                let mut watch = handle.watch(["hot"]);
                watch.declare::<Option<i64>>(get("hot")).unwrap();
                let failed = watch.run(|_, tx| {
                    block(tx);
                    Ok(())
                });
                check(failed.unwrap_err().as_commit().unwrap());
            }
        });
    });
    assert_eq!(server.ask::<i64>(&["GET", "hot"]), 40);
}

#[test]
fn a_refused_command_concerns_its_own_block() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(300));
    server
        .ask::<()>(&["ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-append"]);
    let url = proxy.url().replace("redis://", "redis://limited:secret@");
    let sessions = sessions(url, 16);
    let handle = sessions.transactional().with(patient());
    beside_counts(
        &server,
        &handle,
        |tx| _ = tx.append("other", "x"),
        |refused| {
            let CommitError::Rejected { index, code, .. } = refused else { panic!("{refused}") };
            assert_eq!((*index, &**code), (Some(0), "NOPERM"));
        },
    );
    assert_eq!(server.ask::<Option<String>>(&["GET", "other"]), None);
}

#[test]
fn a_command_that_fails_in_the_exec_of_several_blocks_is_its_own_blocks() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(300));
    server.ask::<()>(&["SET", "text", "no list"]);
    let sessions = sessions(proxy.url(), 16);
    let handle = sessions.transactional().with(patient());
    beside_counts(
        &server,
        &handle,
        |tx| _ = tx.rpush("text", "x"),
        |failed| {
            let CommitError::PartlyApplied { replies, .. } = failed else { panic!("{failed}") };
            assert_eq!((replies.len(), failed.applied()), (1, Applied::No));
        },
    );
    assert!(calls(&server, "exec") < 45, "some had an EXEC together");
}

#[test]
fn a_reply_that_is_too_large_is_its_own_blocks_and_the_bound_holds_for_each() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(500));
    server.ask::<()>(&["MSET", "large", &"x".repeat(300_000), "small", &"x".repeat(60_000)]);
    let builder = SessionManager::builder(proxy.url()).max_size(8).trust_window(SOON);
    let builder = builder.checkout_timeout(SOON).max_merged(16).max_reply_bytes(100_000);
    let sessions = builder.build_side().unwrap();
    let handle = sessions.transactional().with(patient());
    let with = |key: &str| {
        let mut watch = handle.watch(["hot"]);
        let n = watch.declare::<Option<i64>>(get("hot")).unwrap();
        watch.run(|read, tx| {
            tx.set("hot", read.declared(n)?.unwrap_or_default() + 1);
            Ok(tx.get::<_, String>(key))
        })
    };
    let (mut small, mut large) = (0, 0);
    for _ in 0..5 {
        let results: Vec<_> = thread::scope(|scope| {
            let run = |nth| {
                if nth % 8 == 3 { ("large", with("large")) } else { ("small", with("small")) }
            };
            let threads: Vec<_> = (0..16).map(|nth| scope.spawn(move || run(nth))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (key, result) in results {
            match result {
                Ok(text) => {
                    assert_eq!((key, text.len()), ("small", 60_000));
                    small += 1;
                }
                Err(error) => {
                    assert!(matches!(error, Error::Reply(ReplyError::Lost)), "{error:?}");
                    assert_eq!((key, error.applied()), ("large", Applied::Yes));
                    large += 1;
                }
            }
        }
    }
    assert_eq!((small, large), (70, 10));
    assert_eq!(server.ask::<i64>(&["GET", "hot"]), 80, "each was applied");
    assert!(calls(&server, "exec") < 60, "some had an EXEC together");
}

/// Begins a block that adds `by` to `hot`, and returns once its closure runs. The closure ends with the
/// message.
fn begin_slow<'s>(
    scope: &'s Scope<'s, '_>,
    handle: &'s Transactional,
    by: i64,
) -> (mpsc::Sender<()>, ScopedJoinHandle<'s, Result<(), Error>>) {
    let (inside, is_inside) = mpsc::channel();
    let (end, ends) = mpsc::channel();
    let slow = scope.spawn(move || {
        let mut watch = handle.watch(["hot"]);
        let n = watch.declare::<Option<i64>>(get("hot")).unwrap();
        watch.run(move |read, tx| {
            let n = read.declared(n)?.unwrap_or_default();
            if read.attempt() == 1 {
                inside.send(()).unwrap();
                ends.recv_timeout(SOON).unwrap();
            }
            Ok(tx.set("hot", n + by))
        })
    });
    is_inside.recv_timeout(SOON).unwrap();
    (end, slow)
}

#[test]
fn a_block_does_not_wait_past_its_deadline_for_the_closure_of_another() {
    let server = Server::start();
    let sessions = sessions(server.url(), 16);
    let handle = sessions.transactional();
    thread::scope(|scope| {
        let (end, slow) = begin_slow(scope, &handle, 10);
        let soon = RetryPolicy::default().deadline(Duration::from_millis(100));
        count(&handle.with(TransactionOptions::new().retry(soon)));
        end.send(()).unwrap();
        slow.join().unwrap().unwrap();
    });
    assert_eq!(server.ask::<i64>(&["GET", "hot"]), 11, "its conflict ran it again");
}

threads_only! {
#[test]
fn a_block_that_waits_for_the_closure_of_another_can_be_cancelled() {
    let server = Server::start();
    let sessions = sessions(server.url(), 16);
    let handle = sessions.transactional();
    let cancel = rediscope::Cancel::new();
    thread::scope(|scope| {
        let (end, slow) = begin_slow(scope, &handle, 10);
        let (token, handle) = (cancel.clone(), &handle);
        let waits = scope.spawn(move || {
            let mut watch = handle.watch(["hot"]);
            watch.declare::<Option<i64>>(get("hot")).unwrap();
            token.run(|| watch.run(|_, tx| Ok(tx.set("hot", 9))))
        });
        // No count has it.
        thread::sleep(Duration::from_millis(30));
        cancel.cancel();
        let error = waits.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Checkout(rediscope::error::CheckoutError::Cancelled)), "{error:?}");
        // So it has not waited for the closure's end.
        end.send(()).unwrap();
        slow.join().unwrap().unwrap();
    });
    assert_eq!(server.ask::<i64>(&["GET", "hot"]), 10);
}
}

#[test]
fn a_closure_that_asks_to_run_again_is_counted_also_on_the_values_of_another_block() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = sessions(proxy.url(), 16);
    let handle = sessions.transactional();
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies)).once());
    thread::scope(|scope| {
        let (end, slow) = begin_slow(scope, &handle, 10);
        let handle = &handle;
        let again = scope.spawn(move || {
            let (policy, mut runs) = (RetryPolicy::default().attempts(1), 0);
            let mut watch = handle.watch(["hot"]).retry(policy);
            let n = watch.declare::<Option<i64>>(get("hot")).unwrap();
            let result = watch.run(|read, tx| {
                runs += 1;
                assert_eq!(read.declared(n)?, Some(10));
                tx.set("hot", 9);
                Err::<(), _>(read.run_again())
            });
            (result, runs)
        });
        // It waits for the other closure: no count has it.
        thread::sleep(Duration::from_millis(30));
        end.send(()).unwrap();
        let (result, runs) = again.join().unwrap();
        assert!(matches!(result, Err(Error::RetriesExhausted { .. })), "{result:?}");
        assert_eq!(runs, 1);
        proxy.disarm();
        proxy.release();
        slow.join().unwrap().unwrap();
    });
    assert_eq!(server.ask::<i64>(&["GET", "hot"]), 10);
}

/// A manager whose calls wait for a reply that is held back.
fn unhurried_sessions(proxy: &Proxy) -> SessionManager {
    unhurried(SessionManager::builder(proxy.url()).max_size(8).max_merged(16)).build_side().unwrap()
}

/// Waits for blocks that may have come too late to run on what another one leaves.
fn met(mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(1);
    while !is_so() && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
    is_so()
}

#[test]
fn a_panic_on_the_values_of_another_block_reaches_its_caller_at_once_and_no_other() {
    eventually(3 * SOON, "the closure ran on what was not known to be applied", || {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let sessions = unhurried_sessions(&proxy);
        let handle = sessions.transactional().with(patient());
        proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies)).once());
        let have_met = thread::scope(|scope| {
            let (end, slow) = begin_slow(scope, &handle, 10);
            let handle = &handle;
            let panics = scope.spawn(move || {
                let run = || {
                    let mut watch = handle.watch(["hot"]);
                    let n = watch.declare::<Option<i64>>(get("hot")).unwrap();
                    watch.run(|read, tx| -> Result<(), Error> {
                        tx.incr("mark", 1);
                        let n = read.declared(n)?;
                        resume_unwind(Box::new(n));
                    })
                };
                let panicked = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
                *panicked.downcast::<Option<i64>>().unwrap()
            });
            let third = scope.spawn(move || count(handle));
            // They wait for the other closure: no count has them.
            thread::sleep(Duration::from_millis(100));
            end.send(()).unwrap();
            let at_once = met(|| panics.is_finished()) && !slow.is_finished();
            // What is held later than this would be held for good.
            eventually(SOON, "the replies are held", || proxy.fired() > 0);
            proxy.disarm();
            proxy.release();
            slow.join().unwrap().unwrap();
            third.join().unwrap();
            at_once && panics.join().unwrap() == Some(10)
        });
        let mark = server.ask::<(i64, Option<i64>)>(&["MGET", "hot", "mark"]);
        assert_eq!(mark, (11, None));
        let status = sessions.status().transactional;
        assert_eq!((status.counts.commits, status.scopes.len()), (2, 0), "{status}");
        have_met
    });
}

/// WATCH does not find a change of such a key, so what was read for another block may be outdated.
#[test]
fn a_read_of_a_key_that_is_not_watched_is_not_another_blocks() {
    let server = Server::start();
    let handle = &sessions(server.url(), 16).transactional().with(patient());
    let block = move |key: &'static str, closure: &(dyn Fn(Option<i64>) + Send + Sync)| {
        let mut watch = handle.watch(["hot"]);
        watch.declare::<Option<i64>>(get("hot")).unwrap();
        let other = watch.declare::<Option<i64>>(get("other")).unwrap();
        let run = watch.run(|read, tx| {
            closure(read.declared(other)?);
            Ok(tx.set(key, 1))
        });
        run.unwrap();
    };
    let ((inside, is_inside), (end, ends)) = (mpsc::channel(), mpsc::channel::<()>());
    let (ends, found) = (Mutex::new(ends), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let (block, ends, found) = (&block, &ends, &found);
        scope.spawn(move || {
            block("hot", &|_| {
                inside.send(()).unwrap();
                ends.lock().unwrap().recv_timeout(SOON).unwrap();
            });
        });
        is_inside.recv_timeout(SOON).unwrap();
        server.ask::<()>(&["SET", "other", "1"]);
        let later = waits(scope, || block("seen", &|other| found.lock().unwrap().push(other)));
        end.send(()).unwrap();
        later.join().unwrap();
    });
    let found = found.into_inner().unwrap();
    assert!(found.iter().all(|other| *other == Some(1)), "{found:?}: it was set before the block");
}

/// A change that EXEC refuses, behind which others have run on its value.
#[test]
fn blocks_behind_a_change_that_failed_in_their_exec_are_not_isolated() {
    eventually(3 * SOON, "a closure ran on the value of one that failed", || {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        server.acl(&["SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all"]);
        let url = proxy.url().replace("redis://", "redis://limited:secret@");
        let builder = SessionManager::builder(url).max_size(8).max_merged(16);
        let sessions = unhurried(builder).build_side().unwrap();
        let handle = sessions.transactional().with(patient());
        let arm = |trigger, fault| proxy.arm(Script::from((trigger, fault)).once());
        arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
        let (changed, seen) = thread::scope(|scope| {
            let (end, slow) = begin_slow(scope, &handle, 10);
            let handle = &handle;
            let block = |key: &'static str| {
                move || {
                    let mut watch = handle.watch(["hot"]);
                    let n = watch.declare::<Option<i64>>(get("hot")).unwrap();
                    watch.run(|read, tx| {
                        let n = read.declared(n)?.unwrap_or_default();
                        Ok(tx.set(key, n + 1))
                    })
                }
            };
            let changes = scope.spawn(block("hot"));
            let behind = scope.spawn(block("seen"));
            // They wait for the other closure: no count has them.
            thread::sleep(Duration::from_millis(50));
            end.send(()).unwrap();
            eventually(SOON, "the replies are held", || proxy.fired() == 1);
            arm(Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests);
            proxy.release();
            if met(|| proxy.fired() == 2) {
                server.acl(&["SETUSER", "limited", "resetkeys", "~seen"]);
            }
            proxy.disarm();
            proxy.release();
            slow.join().unwrap().unwrap();
            (changes.join().unwrap(), behind.join().unwrap())
        });
        // Applied on 11, which no block has left: both had one EXEC.
        let left: (i64, Option<i64>) = server.ask(&["MGET", "hot", "seen"]);
        let have_met = left == (10, Some(12));
        if have_met {
            let is_partly =
                |error: &CommitError| matches!(error, CommitError::PartlyApplied { .. });
            let is_not_isolated =
                |error: &CommitError| matches!(error, CommitError::NotIsolated { .. });
            let changed = changed.unwrap_err();
            assert!(changed.as_commit().is_some_and(is_partly), "{changed:?}");
            let seen = seen.unwrap_err();
            assert!(seen.as_commit().is_some_and(is_not_isolated), "{seen:?}");
        }
        have_met
    });
}

/// A master that is a replica for a short time. No member may be sent again by its own policy.
#[test]
fn a_change_that_a_former_master_refuses_is_no_outcome_of_the_other_blocks() {
    const LIMIT: Duration = Duration::from_secs(2);
    eventually(3 * SOON, "a group was refused", || {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let sentinel = Sentinel::watching(&server, proxy.port(), None, "");
        let url = format!("redis+sentinel://127.0.0.1:{}/{NAME}", sentinel.port());
        let builder = SessionManager::builder(url).max_size(8).max_merged(16);
        let sessions = unhurried(builder).build_side().unwrap();
        let handle = sessions.transactional().with(patient());
        let brief = RetryPolicy::default().deadline(LIMIT);
        let brief = handle.with(TransactionOptions::new().retry(brief));
        let ran = AtomicUsize::new(0);
        let block = |handle: &Transactional, closure: fn(&mut Block) -> Result<(), Shop>| {
            let mut watch = handle.watch(["hot"]);
            watch.declare::<Option<i64>>(get("hot")).unwrap();
            watch.run_with(|_, tx| {
                ran.fetch_add(1, Ordering::SeqCst);
                closure(tx)
            })
        };
        let hold = |command| {
            proxy.arm(Script::from((Trigger::BeforeReplyTo(command), Fault::HoldReplies)).once());
        };
        hold("EXEC");
        thread::scope(|scope| {
            let (end, slow) = begin_slow(scope, &handle, 10);
            let begun = Instant::now();
            let leader = waits(scope, || {
                block(&handle, |tx| {
                    tx.incr("other", 1);
                    Ok(())
                })
            });
            let fails = waits(scope, || block(&brief, |_| Err(Shop::SoldOut)));
            let reads = waits(scope, || block(&brief, |_| Ok(())));
            let writes = waits(scope, || {
                block(&brief, |tx| {
                    tx.incr("mark", 1);
                    Ok(())
                })
            });
            end.send(()).unwrap();
            let mut have_met = met(|| ran.load(Ordering::SeqCst) == 4 && proxy.fired() == 1);
            // They have appended their commands: no count has that.
            thread::sleep(Duration::from_millis(20));
            if have_met {
                hold("GET");
                proxy.release();
                have_met = met(|| proxy.fired() == 2 && slow.is_finished());
            }
            if have_met {
                server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
                hold("EXEC");
                proxy.release();
                have_met = met(|| proxy.fired() == 3) && begun.elapsed() < LIMIT / 2;
                server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
            }
            if have_met {
                // Each of the policies has begun before.
                thread::sleep(LIMIT);
            }
            proxy.disarm();
            proxy.release();
            slow.join().unwrap().unwrap();
            leader.join().unwrap().unwrap();
            let (fails, reads) = (fails.join().unwrap(), reads.join().unwrap());
            let writes = writes.join().unwrap();
            if have_met {
                assert!(matches!(fails, Err(Shop::SoldOut)), "its own error: {fails:?}");
                assert!(reads.is_ok() && writes.is_ok(), "{reads:?}, {writes:?}");
                assert_eq!(server.ask::<(i64, i64)>(&["MGET", "other", "mark"]), (1, 1));
            }
            have_met
        })
    });
}

#[test]
fn a_condition_does_not_fail_by_what_another_block_may_leave() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = unhurried_sessions(&proxy);
    let handle = sessions.transactional().with(patient());
    for fired in 1..=3 {
        server.ask::<()>(&["SET", "hot", "10"]);
        proxy.arm(Script::from((Trigger::BeforeCommandNamed("SET"), Fault::HoldRequests)).once());
        thread::scope(|scope| {
            let ((inside, is_inside), (end, ends)) = (mpsc::channel(), mpsc::channel());
            let required = || handle.watch(["hot"]).require(Condition::equals("hot", "10"));
            let slow = scope.spawn(move || {
                required().run(move |_, tx| {
                    inside.send(()).unwrap();
                    ends.recv_timeout(SOON).unwrap();
                    Ok(tx.set("hot", 9))
                })
            });
            is_inside.recv_timeout(SOON).unwrap();
            let other = scope.spawn(move || required().run(|_, tx| Ok(tx.incr("mark", 1))));
            // It may wait for the other closure: no count has it.
            thread::sleep(Duration::from_millis(30));
            end.send(()).unwrap();
            eventually(SOON, "SET is held", || proxy.fired() == fired);
            assert_eq!(other.join().unwrap().unwrap(), i64::try_from(fired).unwrap());
            proxy.release();
            slow.join().unwrap().unwrap();
        });
        assert_eq!(server.ask::<i64>(&["GET", "hot"]), 9);
    }
}

#[test]
fn a_policy_counts_the_runs_that_were_sent_or_saw_what_is_true() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(500));
    let sessions = sessions(proxy.url(), 16);
    let handle = sessions.transactional();
    let ends = Instant::now() + Duration::from_secs(2);
    thread::scope(|scope| {
        for thread in 0..12 {
            let (handle, most) = (&handle, 1 + thread % 3);
            scope.spawn(move || {
                let policy = RetryPolicy::default().attempts(most).max_backoff(Duration::ZERO);
                while Instant::now() < ends {
                    let mut runs = 0;
                    let mut watch = handle.watch(["hot"]).retry(policy);
                    let n = watch.declare::<Option<i64>>(get("hot")).unwrap();
                    let result = watch.run(|read, tx| {
                        runs += 1;
                        assert!(read.attempt() >= runs, "a run that was not counted");
                        let n = read.declared(n)?.unwrap_or_default();
                        Ok(tx.set("hot", n + 1))
                    });
                    assert!(runs <= 1 || most > 1, "{runs} runs of 1: {result:?}");
                    if let Err(error) = result {
                        let Error::RetriesExhausted { attempts, .. } = error else {
                            panic!("{error:?}")
                        };
                        assert!(attempts <= most, "{attempts} attempts of {most}, {runs} runs");
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut other = server.connection();
            while Instant::now() < ends {
                cmd("INCR").arg("hot").exec(&mut other).unwrap();
                thread::sleep(Duration::from_millis(2));
            }
        });
    });
}

/// Blocks with the default policy beside a process that writes the key every few round trips.
#[test]
fn a_foreign_writer_costs_a_block_no_attempt_of_which_nothing_was_sent() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(Duration::from_micros(500));
    let sessions = sessions(proxy.url(), 64);
    let handle = sessions.transactional();
    let ends = Instant::now() + Duration::from_secs(2);
    let commits = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                while Instant::now() < ends {
                    count(&handle);
                    commits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let mut other = server.connection();
            while Instant::now() < ends {
                cmd("INCR").arg("hot").exec(&mut other).unwrap();
                thread::sleep(Duration::from_millis(4));
            }
        });
    });
    assert_eq!(server.ask::<u64>(&["GET", "commits"]), commits.into_inner());
}

#[test]
fn a_block_that_is_exactly_once_and_blocks_in_a_cluster_go_alone() {
    let server = Server::start();
    let sessions = sessions(server.url(), 16);
    let plain = sessions.transactional().with(patient());
    let once = sessions.transactional().with(patient().exactly_once());
    thread::scope(|scope| {
        for nth in 0..12 {
            let handle = if nth % 3 == 0 { &once } else { &plain };
            scope.spawn(|| (0..5).for_each(|_| _ = count(handle)));
        }
    });
    assert_eq!(server.ask::<(i64, i64)>(&["MGET", "hot", "commits"]), (60, 60));

    let cluster = Cluster::start(3, 0);
    let builder = SessionManager::builder(cluster.url()).checkout_timeout(SOON);
    let sessions = builder.max_merged(16).build_side().unwrap();
    let handle = sessions.transactional().with(patient());
    thread::scope(|scope| {
        for nth in 0..8 {
            let (handle, keys) = (&handle, ["{hot}", &format!("{{hot}}:{nth}")].map(str::to_owned));
            scope.spawn(move || {
                for _ in 0..5 {
                    let mut watch = handle.watch([&keys[0]]);
                    let n = watch.declare::<Option<i64>>(get(&keys[0])).unwrap();
                    let run = watch.run(|read, tx| {
                        tx.set(&keys[0], read.declared(n)?.unwrap_or_default() + 1);
                        Ok(tx.incr(&keys[1], 1))
                    });
                    run.unwrap();
                }
            });
        }
    });
    assert_eq!(cluster.read::<i64>(&["GET", "{hot}"]), 40);
}

/// A block that runs merged: its closure has read `hot`.
fn merged(handle: &Transactional, closure: impl Fn(u32, &mut Block) + Sync) {
    let mut watch = handle.watch(["hot"]);
    watch.declare::<Option<i64>>(get("hot")).unwrap();
    let run = watch.run(|read, tx| {
        closure(read.attempt(), tx);
        Ok(())
    });
    run.unwrap();
}

/// Of three blocks that watch `hot` without a declared read, how many are in their closures at once.
fn at_once(handle: &Transactional, time: Duration) -> usize {
    inside_at_once(time, |wait| {
        let run = handle.watch(["hot"]).run(|_, tx| {
            wait();
            Ok(tx.incr("other", 1))
        });
        run.unwrap();
    })
}

#[test]
fn a_conflict_of_a_merged_block_that_changes_the_key_begins_turns() {
    let server = Server::start();
    let sessions = sessions(server.url(), 16);
    let handle = sessions.transactional().with(patient());
    let conflicts = |writes: bool| {
        merged(&handle, |attempt, tx| {
            if attempt == 1 {
                server.ask::<()>(&["INCR", "hot"]);
            }
            tx.incr(if writes { "hot" } else { "other" }, 1);
        });
    };
    conflicts(false);
    assert_eq!(at_once(&handle, SOON), 2, "it does not change the key");
    conflicts(true);
    assert_eq!(at_once(&handle, MEET), 1);
    assert_eq!(sessions.status().transactional.counts.conflicts, 2);
}

#[test]
fn a_conflict_of_a_group_that_changes_the_key_begins_turns() {
    eventually(3 * SOON, "two blocks had one EXEC", || {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let sessions = unhurried_sessions(&proxy);
        let handle = sessions.transactional().with(patient());
        let hold = |command| {
            proxy.arm(Script::from((Trigger::BeforeReplyTo(command), Fault::HoldReplies)).once());
        };
        hold("exec");
        let ran = AtomicUsize::new(0);
        let have_met = thread::scope(|scope| {
            let (end, slow) = begin_slow(scope, &handle, 10);
            let members: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        merged(&handle, |_, tx| {
                            ran.fetch_add(1, Ordering::SeqCst);
                            tx.incr("hot", 1);
                        });
                    })
                })
                .collect();
            // They wait for the other closure, and have then appended their commands: no count has that.
            thread::sleep(Duration::from_millis(100));
            end.send(()).unwrap();
            let mut have_met = met(|| ran.load(Ordering::SeqCst) == 2);
            thread::sleep(Duration::from_millis(20));
            if have_met {
                hold("get");
                proxy.release();
                have_met = met(|| server.calls("get") == 2);
            }
            if have_met {
                server.ask::<()>(&["INCR", "hot"]);
            }
            proxy.disarm();
            proxy.release();
            slow.join().unwrap().unwrap();
            members.into_iter().for_each(|member| member.join().unwrap());
            have_met
        });
        assert_eq!(server.ask::<i64>(&["GET", "hot"]), 12 + i64::from(have_met));
        let is_one = have_met && sessions.status().transactional.counts.conflicts == 2;
        assert!(!is_one || at_once(&handle, MEET) == 1, "they take no turns");
        is_one
    });
}

#[test]
fn merged_blocks_that_do_not_change_the_key_end_turns() {
    let server = Server::start();
    let sessions = sessions(server.url(), 4);
    let handle = sessions.transactional().with(patient());
    for threads in [1, 8] {
        // A block that declares no read is not merged.
        let conflicts = handle.watch(["hot"]).run(|read, tx| {
            if read.attempt() == 1 {
                server.ask::<()>(&["INCR", "hot"]);
            }
            Ok(tx.incr("hot", 1))
        });
        conflicts.unwrap();
        assert_eq!(at_once(&handle, MEET), 1);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    (0..40).for_each(|_| merged(&handle, |_, tx| _ = tx.incr("other", 1)))
                });
            }
        });
        assert_eq!(at_once(&handle, SOON), 2, "after blocks of {threads} threads");
    }
}

threads_only! {
    /// A subscriber that panics at each end of a commit.
    struct Panics;

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Panics {
        fn on_event(
            &self,
            event: &tracing::Event<'_>,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            let is_commit = event.metadata().target().ends_with("transaction::pending");
            assert!(!is_commit, "of the subscriber");
        }
    }

    #[test]
    fn a_subscriber_that_panics_does_not_take_the_others_their_outcomes() {
        use tracing_subscriber::layer::SubscriberExt as _;

        let server = Server::start();
        let proxy = Proxy::to(&server);
        let sessions = sessions(proxy.url(), 16);
        let handle = sessions.transactional().with(patient());
        count(&handle);
        proxy.set_delay(Duration::from_millis(20));
        let (handle, panicked) = (&handle, &AtomicU64::new(0));
        thread::scope(|scope| {
            for nth in 0..12 {
                scope.spawn(move || {
                    if nth % 2 == 0 {
                        count(handle);
                        return;
                    }
                    let subscriber = tracing_subscriber::registry().with(Panics);
                    let run = AssertUnwindSafe(|| count(handle));
                    tracing::subscriber::with_default(subscriber, || {
                        catch_unwind(run).unwrap_err();
                    });
                    panicked.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(server.ask::<usize>(&["GET", "hot"]), 13, "each was applied");
        assert_eq!(panicked.load(Ordering::SeqCst), 6, "each logs the end of its own block");
    }
}
