//! A slot that moves: `run` follows it, a guard fails, and nothing is applied twice.
//!
//! Guarantee: clusters

use crate::fixture::SOON;
use crate::side::{BuildSide as _, SessionManager, Transactional};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{CommitError, Error, Outcome, RetryPolicy, TransactionOptions, redis};

use super::fixture::{ClusterFixture, applied_by_writers, beside, builder};
use rediscope_testing::eventually;

/// A key of a slot, its master, and another master.
struct Route {
    key: String,
    slot: u16,
    from: usize,
    to: usize,
}

fn route(fixture: &ClusterFixture) -> Route {
    let [key, ..] = fixture.keys("k");
    let slot = fixture.cluster.slot(&key);
    let from = fixture.cluster.owner(slot).unwrap();
    Route { key, slot, from, to: (from + 1) % 3 }
}

/// The handle, its map known and its connections open.
fn warm(fixture: &ClusterFixture, key: &str) -> Transactional {
    let accounts = fixture.sessions.transactional();
    assert_eq!(accounts.run(|tx| Ok(tx.incr(key, 1))).unwrap(), 1);
    accounts
}

/// Errors of a transaction of which some keys are still on the source of its slot: of Redis, of Valkey.
const PARTLY: &[&str] = &["ASK", "TRYAGAIN"];

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, Error>, expected: &[&str]) {
    let error = result.expect_err("refused");
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, true), "{error}");
    match error {
        Error::Commit(CommitError::Rejected { code, .. }) => {
            assert!(expected.contains(&&*code), "{code}")
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_block_follows_a_slot_that_has_moved() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, from, to } = route(&fixture);
    let accounts = warm(&fixture, &key);
    fixture.cluster.migrate(slot, to);
    assert_eq!(accounts.run(|tx| Ok(tx.incr(&key, 1))).unwrap(), 2);
    fixture.cluster.migrate(slot, from);
    let mut runs = 0;
    let watched = accounts.watch([&key]).run(|read, tx| {
        runs += 1;
        let n: i64 = read.get(&key)?;
        Ok(tx.set(&key, n + 1))
    });
    watched.unwrap();
    fixture.cluster.migrate(slot, to);
    let read = accounts.reading().run(|read, tx| {
        let n: i64 = read.get(&key)?;
        Ok(tx.set(&key, n + 1))
    });
    read.unwrap();
    assert_eq!((runs, fixture.cluster.read::<i64>(&["GET", &key])), (1, 4));
    let pool = fixture.sessions.status().transactional;
    assert!(pool.redirections >= 3, "{pool}");
    assert_eq!(pool.counts.retries, 0, "{pool}");
}

#[test]
fn a_large_block_follows_with_its_first_chunk() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, to, .. } = route(&fixture);
    let accounts = warm(&fixture, &key);
    fixture.cluster.migrate(slot, to);
    let big = "x".repeat(20_000);
    let done = accounts.run(|tx| {
        for nth in 0..20 {
            tx.append(beside(&key, &format!("big{nth}")), &big);
        }
        Ok(tx.incr(&key, 1))
    });
    assert_eq!(done.unwrap(), 2);
    assert_eq!(fixture.cluster.read::<i64>(&["STRLEN", &beside(&key, "big19")]), 20_000);
}

#[test]
fn a_guard_fails_if_its_slot_has_moved_and_the_next_one_goes_there() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, to, .. } = route(&fixture);
    let accounts = warm(&fixture, &key);
    let mut by_hand = accounts.begin_at(&key).unwrap();
    by_hand.incr(&key, 1);
    let mut watching = accounts.watch([&key]).begin().unwrap();
    let n: i64 = watching.get(&key).unwrap();
    let mut watched = watching.multi();
    watched.set(&key, n + 1);
    fixture.cluster.migrate(slot, to);
    refused(by_hand.commit(), &["MOVED"]);
    // The key is gone from where it was watched.
    match watched.commit() {
        Ok(Outcome::Conflict) => {}
        other => refused(other, &["MOVED"]),
    }
    let mut again = accounts.begin_at(&key).unwrap();
    let two = again.incr(&key, 1);
    assert_eq!(again.commit().unwrap().get(two).unwrap(), 2);
    assert_eq!(fixture.cluster.read::<i64>(&["GET", &key]), 2);
}

#[test]
fn while_a_slot_moves_old_keys_are_found_on_the_source_and_new_ones_created_on_the_target() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, from, to } = route(&fixture);
    let accounts = warm(&fixture, &key);
    fixture.cluster.begin_migration(slot, to);
    assert_eq!(accounts.run(|tx| Ok(tx.incr(&key, 1))).unwrap(), 2);
    assert_eq!(fixture.cluster.ask::<i64>(from, &["GET", &key]), 2, "it has not moved");
    let fresh = beside(&key, "fresh");
    assert_eq!(accounts.run(|tx| Ok(tx.incr(&fresh, 1))).unwrap(), 1);
    let asked = accounts.watch([&fresh]).run(|read, tx| {
        let n: i64 = read.get(&fresh)?;
        Ok(tx.incr(&fresh, n))
    });
    assert_eq!(asked.unwrap(), 2);
    let once = accounts.with(TransactionOptions::new().exactly_once());
    let newer = beside(&key, "newer");
    fixture.cluster.move_keys(slot, from, to, 100);
    assert_eq!(accounts.run(|tx| Ok(tx.incr(&key, 1))).unwrap(), 3);
    // Its register and the key are where the slot will be: two keys there, and both exist.
    assert_eq!(once.run(|tx| Ok(tx.incr(&key, 1))).unwrap(), 4);
    let mut single = fixture.sessions.pooled();
    assert_eq!(single.incr::<_, _, i64>(&newer, 7).unwrap(), 7);
    fixture.cluster.end_migration(slot, from, to);
    for (key, value) in [(&key, 4), (&fresh, 2), (&newer, 7)] {
        assert_eq!(fixture.cluster.read::<i64>(&["GET", key]), value);
        assert_eq!(single.get::<_, i64>(key).unwrap(), value);
    }
}

#[test]
fn keys_of_which_some_have_moved_are_waited_for_and_a_guard_fails() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, from, to } = route(&fixture);
    let accounts = warm(&fixture, &key);
    let other = beside(&key, "other");
    fixture.cluster.begin_migration(slot, to);
    // The one is here, the other one will be made there.
    let mut by_hand = accounts.begin_at(&key).unwrap();
    by_hand.incr(&key, 1);
    by_hand.incr(&other, 1);
    refused(by_hand.commit(), PARTLY);
    thread::scope(|scope| {
        let both = scope.spawn(|| accounts.run(|tx| Ok((tx.incr(&key, 1), tx.incr(&other, 1)))));
        eventually(SOON, "it was sent on", || {
            fixture.sessions.status().transactional.redirections > 3
        });
        assert!(!both.is_finished());
        fixture.cluster.end_migration(slot, from, to);
        assert_eq!(both.join().unwrap().unwrap(), (2, 1));
    });
}

#[test]
fn a_watched_key_that_is_created_on_the_slots_target_is_a_conflict() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, from, to } = route(&fixture);
    let accounts = warm(&fixture, &key);
    let ghost = beside(&key, "ghost");
    let mut watching = accounts.watch([&ghost]).begin().unwrap();
    assert_eq!(watching.exists(&ghost).unwrap(), 0);
    let mut tx = watching.multi();
    tx.incr(&key, 1);
    fixture.cluster.begin_migration(slot, to);
    // Another client makes it, as the protocol wants: on the future master. The old master, which
    // has the watch, does not hear of it, and still has the key that is written.
    let mut there = fixture.cluster.nodes()[to].server.connection();
    redis::pipe().cmd("ASKING").cmd("SET").arg(&ghost).arg(1).exec(&mut there).unwrap();
    refused(tx.commit(), PARTLY);
    fixture.cluster.end_migration(slot, from, to);
    assert_eq!(fixture.cluster.read::<i64>(&["GET", &key]), 1, "nothing was applied");
}

#[test]
fn slots_move_under_load_and_every_sum_is_right() {
    let fixture = ClusterFixture::start();
    let accounts = fixture.sessions.transactional();
    let keys = fixture.keys("sum");
    let slots = [0, 1, 2].map(|nth| fixture.cluster.slot(&keys[nth]));
    let write = |writer: usize, made: usize| {
        let key = &keys[(writer + made) % 3];
        let (left, right) = (beside(key, "left"), beside(key, "right"));
        // What exists, what is new, and both under a watch.
        let done = match made % 3 {
            0 => accounts.run(|tx| Ok((tx.incr(&left, 1), tx.decr(&right, 1)))),
            1 => accounts.watch([&left]).run(|read, tx| {
                let n: Option<i64> = read.get(&left)?;
                tx.set(&left, n.unwrap_or(0) + 1);
                Ok((tx.get(&left), tx.decr(&right, 1)))
            }),
            _ => accounts.run(|tx| {
                tx.set(beside(key, &format!("new:{writer}:{made}")), 1);
                Ok((tx.incr(&left, 1), tx.decr(&right, 1)))
            }),
        };
        let _: (i64, i64) = done.expect("run sees nothing of it");
        true
    };
    let applied = applied_by_writers(6, write, |enough| {
        enough(100);
        for round in 0..9_usize {
            let slot = slots[round % 3];
            let from = fixture.cluster.owner(slot).unwrap();
            fixture.cluster.migrate(slot, (from + 1 + round / 3 % 2) % 3);
            enough(20);
        }
    });
    let sum = |word| -> i64 {
        keys.iter().map(|key| fixture.cluster.read::<i64>(&["GET", &beside(key, word)])).sum()
    };
    assert_eq!((sum("left"), sum("right")), (applied, -applied));
    let pool = fixture.sessions.status().transactional;
    assert!(pool.redirections > 0, "{pool}");
    eprintln!("{applied} applied, {} redirections", pool.redirections);
}

#[test]
fn a_master_dies_and_its_replica_takes_over() {
    let fixture = ClusterFixture::of(rediscope_testing::cluster::Cluster::start(3, 1));
    let Route { key, from, .. } = route(&fixture);
    let accounts = warm(&fixture, &key).with(TransactionOptions::new().name("counter"));
    let mut single = fixture.sessions.pooled();
    assert_eq!(single.get::<_, i64>(&key).unwrap(), 1);
    fixture.cluster.ask::<i64>(from, &["WAIT", "1", "5000"]);
    fixture.cluster.let_replica_take_over(from);
    fixture.cluster.nodes()[from].server.sigkill();
    // Each waits until a master serves the slot again.
    assert_eq!(single.get::<_, i64>(&key).unwrap(), 1);
    assert_eq!(accounts.run(|tx| Ok(tx.incr(&key, 1))).unwrap(), 2);
    let watched = accounts.watch([&key]).run(|read, tx| {
        let n: i64 = read.get(&key)?;
        Ok(tx.incr(&key, n))
    });
    assert_eq!(watched.unwrap(), 4);
    let status = fixture.sessions.status();
    let dead = fixture.cluster.nodes()[from].server.address().to_string();
    assert!(status.transactional.nodes.iter().all(|node| node.address != dead), "{status}");
    assert_eq!(status.transactional.in_use, 0, "{status}");
    let slots: usize = status.transactional.nodes.iter().map(|node| node.slots).sum();
    assert!(slots > 0, "{status}");
}

#[test]
fn an_unserved_slot_is_an_error_when_no_time_is_left() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, from, .. } = route(&fixture);
    let sessions = builder(&fixture.cluster)
        .response_timeout(Duration::from_millis(300))
        .connect_timeout(Duration::from_millis(300))
        .checkout_timeout(Duration::from_secs(1))
        .build_side()
        .unwrap();
    fixture.cluster.ask::<()>(from, &["CLUSTER", "DELSLOTS", &slot.to_string()]);
    let error = sessions.transactional().run(|tx| Ok(tx.incr(&key, 1))).unwrap_err();
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, true), "{error}");
    assert!(error.to_string().contains("CLUSTERDOWN"), "{error}");
    let error = Error::from(sessions.pooled().get::<_, Option<i64>>(&key).unwrap_err());
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, true), "{error}");
    fixture.cluster.ask::<()>(from, &["CLUSTER", "ADDSLOTS", &slot.to_string()]);
}

// A dropped future of a task waits no more.
crate::side::threads_only! {
    #[test]
    fn a_call_that_waits_for_a_slots_master_ends_when_it_is_cancelled() {
        use rediscope::Cancel;
        use rediscope::error::CheckoutError;

        let fixture = ClusterFixture::start();
        let Route { key, slot, from, .. } = route(&fixture);
        let sessions = builder(&fixture.cluster).checkout_timeout(2 * SOON).build_side().unwrap();
        // No node knows a master of it.
        for node in 0..fixture.cluster.nodes().len() {
            fixture.cluster.ask::<()>(node, &["CLUSTER", "DELSLOTS", &slot.to_string()]);
        }
        let (accounts, token) = (sessions.transactional(), Cancel::new());
        thread::scope(|scope| {
            let call = scope.spawn(|| token.run(|| accounts.run(|tx| Ok(tx.incr(&key, 1)))));
            // It has asked for the slot's master by then, or ends before its first question.
            thread::sleep(Duration::from_millis(200));
            token.cancel();
            let cancelled = Instant::now();
            let error = call.join().unwrap().unwrap_err();
            assert!(cancelled.elapsed() < SOON, "it waited for its time");
            assert!(matches!(error, Error::Checkout(CheckoutError::Cancelled)), "{error:?}");
        });
        fixture.cluster.ask::<()>(from, &["CLUSTER", "ADDSLOTS", &slot.to_string()]);
    }
}

#[test]
fn a_key_that_has_not_arrived_yet_is_not_read_as_missing() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, from, to } = route(&fixture);
    let accounts = warm(&fixture, &key);
    let (ghost, copy) = (beside(&key, "ghost"), beside(&key, "copy"));
    fixture.cluster.begin_migration(slot, to);
    // What is watched is not where the slot comes from, so the block goes where it will be; what
    // it reads besides is still there.
    let watching = || {
        accounts.watch([&ghost]).run(|read, tx| {
            let found: Option<i64> = read.get(&key)?;
            Ok(tx.set(&ghost, found.unwrap_or(-1)))
        })
    };
    let reading = accounts.reading().run(|read, tx| {
        let none: Option<i64> = read.get(&copy)?;
        let found: Option<i64> = read.get(&key)?;
        Ok(tx.set(&key, none.unwrap_or(0) + found.unwrap_or(-1)))
    });
    reading.unwrap();
    thread::scope(|scope| {
        let watched = scope.spawn(watching);
        let before = fixture.sessions.status().transactional.redirections;
        eventually(SOON, "it was sent on", || {
            fixture.sessions.status().transactional.redirections > before + 3
        });
        assert!(!watched.is_finished());
        fixture.cluster.end_migration(slot, from, to);
        watched.join().unwrap().unwrap();
    });
    assert_eq!(fixture.cluster.read::<i64>(&["GET", &ghost]), 1);
    assert_eq!(fixture.cluster.read::<i64>(&["GET", &key]), 1);
}

/// The next attempt begins on the route of the redirect.
#[test]
fn a_key_that_has_not_arrived_is_not_missing_after_the_new_node_was_unreachable() {
    let fixture = ClusterFixture::start();
    let Route { key, slot, to, .. } = route(&fixture);
    let copy = beside(&key, "copy");
    let sessions = SessionManager::builder(fixture.cluster.url())
        .connect_timeout(Duration::from_millis(300))
        .response_timeout(Duration::from_millis(400))
        .build_side()
        .unwrap();
    sessions.pooled().set::<_, _, ()>(&key, 7).unwrap();
    fixture.cluster.begin_migration(slot, to);
    let ghost = beside(&key, "ghost");
    let accounts = sessions.transactional();
    let target = &fixture.cluster.nodes()[to].server;
    let mut declaring = accounts.reading();
    let declared = declaring.declare::<Option<i64>>(redis::Cmd::get(&key)).unwrap();
    let forms = [
        ("read", accounts.reading()),
        ("declared", declaring),
        ("watched", accounts.watch([&ghost])),
    ];
    for (form, watch) in forms {
        let (mut runs, mut found) = (0, Vec::new());
        let ended = watch
            .retry(RetryPolicy::default().attempts(3).deadline(Duration::from_secs(5)))
            .run(|read, _| {
                runs += 1;
                found.push(match form {
                    "declared" => read.declared(declared)?,
                    _ => read.get(&key)?,
                });
                // Sent to the new node, which is away in the first attempt.
                if runs == 1 {
                    target.sigstop();
                }
                let none: Result<Option<i64>, _> = read.get(&copy);
                target.sigcont();
                none.map(drop)
            });
        // A watching scope stays with the node of its keys, and its closure's error is returned.
        assert!(runs > 1 || ended.is_err(), "{form}: the new node was reached at once");
        // A read keeps its redirect until the new node is reached, so the closure runs again.
        assert!(form != "read" || (runs > 1 && ended.is_ok()), "{runs} runs, {ended:?}");
        assert!(found.iter().all(|found| *found == Some(7)), "{form}: {found:?}, {ended:?}");
        eventually(SOON, "the new node replies", || target.ask::<String>(&["PING"]) == "PONG");
    }
}
