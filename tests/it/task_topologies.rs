//! Promise: behind sentinels and in a cluster, tasks have at most `max_size + lanes` connections to each master for each handle, and
//! no task is left after the end. Each runtime of a manager follows a failover.
//!
//! Guarantee: sentinels, clusters, tasks

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use rediscope::aio::SessionManager;
use rediscope::error::{Applied, CheckoutError};
use rediscope::prelude::*;
use rediscope::status::Status;
use rediscope::{Error, TransactionOptions};
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::sentinel::{Group, clients};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::{poll_once, several as runtime};
use tokio::runtime::{Builder, Runtime};

use crate::fixture::SOON;

/// Time within which sentinels have replaced the master, also on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
const MAX_SIZE: u32 = 3;
const LANES: u32 = 2;
const CALLERS: usize = 48;

fn sessions(url: String) -> SessionManager {
    let builder = rediscope::SessionManager::builder(url).max_size(MAX_SIZE).lanes(LANES);
    builder.checkout_timeout(SOON).build_async().unwrap()
}

/// Blocks on lanes, exactly once and plain, scopes and single commands, all at the same time.
async fn load(sessions: &SessionManager, keys: &[String], rounds: usize) {
    let callers = (0..CALLERS).map(|nth| {
        let (sessions, keys) = (sessions.clone(), keys.to_vec());
        tokio::spawn(async move {
            let plain = sessions.transactional();
            let once = plain.with(TransactionOptions::new().exactly_once());
            for round in 0..rounds {
                let key = &keys[(nth + round) % keys.len()];
                match (nth + round) % 4 {
                    0 => _ = plain.run(|tx| Ok(tx.incr(key, 1))).await.unwrap(),
                    1 => _ = once.run(|tx| Ok(tx.incr(key, 1))).await.unwrap(),
                    2 => {
                        let watch = plain.watch([key]);
                        let _: i64 = watch
                            .run(async |read, tx| {
                                let _: Option<i64> = read.get(key).await?;
                                Ok(tx.incr(key, 1))
                            })
                            .await
                            .unwrap();
                    }
                    _ => _ = sessions.pooled().incr::<_, _, i64>(key, 1).await.unwrap(),
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
}

#[track_caller]
fn no_task_is_left(runtime: &Runtime) {
    eventually(SOON, "no task is left", || runtime.metrics().num_alive_tasks() == 0);
}

fn keys(cluster: &Cluster) -> Vec<String> {
    let of_node = |node| {
        let slots = cluster.slots_of(node).into_iter().step_by(300).take(4);
        slots.map(|slot| cluster.key_in(slot, "n")).collect::<Vec<_>>()
    };
    (0..3).flat_map(of_node).collect()
}

#[test]
fn a_cluster_has_bounded_connections_to_each_master_and_no_task_after_the_end() {
    let (runtime, cluster) = (runtime(), Cluster::start(3, 0));
    let (keys, rounds) = (keys(&cluster), 12);
    for closes in [true, false] {
        let sessions = sessions(cluster.url());
        runtime.block_on(load(&sessions, &keys, rounds));
        let status = sessions.status();
        for pool in [&status.transactional, &status.pooled] {
            assert_eq!(pool.nodes.len(), 3, "{status}");
            let slots: usize = pool.nodes.iter().map(|node| node.slots).sum();
            assert_eq!((slots, pool.in_use), (16_384, 0), "{status}");
        }
        let most = 2 * (MAX_SIZE + LANES) as usize;
        for node in cluster.nodes().iter() {
            let open = clients(&node.server);
            assert!((1..=most).contains(&open), "{open} connections");
        }
        let alive = runtime.metrics().num_alive_tasks();
        assert!(alive <= 3 * most, "{alive} tasks");
        match closes {
            true => assert_eq!(runtime.block_on(sessions.close(SOON)).scopes, 0),
            false => drop(sessions),
        }
        no_task_is_left(&runtime);
        for node in cluster.nodes().iter() {
            eventually(SOON, "no connection is left", || clients(&node.server) == 0);
        }
    }
    let sum: i64 = keys.iter().map(|key| cluster.read::<i64>(&["GET", key])).sum();
    assert_eq!(sum as usize, 2 * CALLERS * rounds);
}

#[test]
fn in_a_cluster_a_call_outside_of_a_runtime_fails_also_after_one_inside() {
    let (runtime, cluster) = (runtime(), Cluster::start(3, 0));
    let (sessions, key) = (sessions(cluster.url()), &keys(&cluster)[0]);
    let (accounts, mut db) = (sessions.transactional(), sessions.pooled());
    runtime.block_on(async {
        let _: i64 = accounts.run(|tx| Ok(tx.incr(key, 1))).await.unwrap();
        let _: i64 = db.incr(key, 1).await.unwrap();
    });
    let polled = poll_once(pin!(accounts.run(|tx| Ok(tx.incr(key, 1)))));
    assert!(
        matches!(polled, Poll::Ready(Err(Error::Checkout(CheckoutError::Connect { .. })))),
        "{polled:?}"
    );
    let polled = poll_once(pin!(db.incr::<_, _, i64>(key, 1)));
    assert!(matches!(polled, Poll::Ready(Err(_))), "{polled:?}");
    assert_eq!(cluster.read::<i64>(&["GET", key]), 2);
}

/// Merged blocks go to the slot's new master as a whole.
#[test]
fn blocks_that_share_lanes_follow_their_slots_and_each_is_applied_once() {
    let (runtime, cluster) = (runtime(), Cluster::start(3, 0));
    let (keys, rounds) = (keys(&cluster), 60);
    let sessions = sessions(cluster.url());
    runtime.block_on(async {
        let loaded = tokio::spawn({
            let (sessions, keys) = (sessions.clone(), keys.clone());
            async move { load(&sessions, &keys, rounds).await }
        });
        for (nth, key) in keys.iter().cycle().enumerate() {
            if loaded.is_finished() {
                break;
            }
            let slot = cluster.slot(key);
            let (from, to) = (cluster.owner(slot).unwrap(), nth % 3);
            if from != to {
                cluster.begin_migration(slot, to);
                tokio::time::sleep(Duration::from_millis(3)).await;
                cluster.end_migration(slot, from, to);
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        loaded.await.unwrap();
    });
    let sum: i64 = keys.iter().map(|key| cluster.read::<i64>(&["GET", key])).sum();
    assert_eq!(sum as usize, CALLERS * rounds);
    assert!(sessions.status().transactional.redirections > 0);
    drop(sessions);
    no_task_is_left(&runtime);
}

/// A group whose blocks have their keys on the source of the slot, on its target, and on both.
#[test]
fn blocks_of_a_group_are_sent_on_alone_while_their_slot_moves_and_each_is_applied_once() {
    let (runtime, cluster) = (runtime(), Cluster::start(3, 0));
    let plain = TransactionOptions::new();
    for (options, is_once) in [(plain.clone(), false), (plain.exactly_once(), true)] {
        let builder = rediscope::SessionManager::builder(cluster.url()).max_size(MAX_SIZE).lanes(1);
        let sessions = builder.checkout_timeout(SOON).build_async().unwrap();
        let accounts = sessions.transactional().with(options);
        let slot = cluster.slots_of(0)[0];
        let tag = cluster.key_in(slot, "n");
        let [old, new] = ["old", "new"].map(|word| format!("{tag}:{word}"));
        cluster.read::<()>(&["SET", &old, "0"]);
        runtime.block_on(accounts.run(|tx| Ok(tx.incr(&old, 0)))).unwrap();
        let (from, to) = (0, 1);
        cluster.begin_migration(slot, to);
        let block = |nth: usize| {
            let (accounts, old, new) = (accounts.clone(), old.clone(), new.clone());
            runtime.spawn(async move {
                let both = accounts.run(|tx| {
                    // One key is on the source, the other one is made on the target.
                    let old = (nth % 3 != 1).then(|| tx.incr(&old, 1));
                    let new = (!nth.is_multiple_of(3)).then(|| tx.incr(&new, 1));
                    Ok((old, new))
                });
                both.await.unwrap()
            })
        };
        let blocks: Vec<_> = (0..CALLERS).map(block).collect();
        let (both, one): (Vec<_>, Vec<_>) =
            blocks.into_iter().enumerate().partition(|(nth, _)| nth % 3 == 2);
        let mut values = (Vec::new(), Vec::new());
        let mut add = |(old, new): (Option<i64>, Option<i64>)| {
            values.0.extend(old);
            values.1.extend(new);
        };
        let (now, later): (Vec<_>, Vec<_>) = match is_once {
            // Each has a register too, which is on the source or will be made on the target.
            true => (Vec::new(), one.into_iter().chain(both).collect()),
            false => (one, both),
        };
        for (_, block) in now {
            add(runtime.block_on(block).unwrap());
        }
        eventually(SOON, "blocks are sent on", || {
            sessions.status().transactional.redirections > CALLERS as u64 / 3
        });
        assert!(later.iter().any(|(_, block)| !block.is_finished()), "half of it is not there yet");
        cluster.end_migration(slot, from, to);
        for (_, block) in later {
            add(runtime.block_on(block).unwrap());
        }
        let third = CALLERS as i64 / 3;
        values.0.sort_unstable();
        values.1.sort_unstable();
        // Each block has its own place in the order.
        assert_eq!(values.0, (1..=2 * third).collect::<Vec<_>>());
        assert_eq!(values.1, (1..=2 * third).collect::<Vec<_>>());
        for key in [&old, &new] {
            assert_eq!(cluster.read::<i64>(&["GET", key]), 2 * third);
            cluster.read::<i64>(&["DEL", key]);
        }
        cluster.migrate(slot, from);
        drop((accounts, sessions));
        no_task_is_left(&runtime);
    }
}

#[test]
fn a_master_that_leaves_the_cluster_leaves_no_lane_and_no_task_behind() {
    let (runtime, cluster) = (runtime(), Cluster::start(3, 0));
    let sessions = sessions(cluster.url());
    let mut keys = keys(&cluster);
    // An odd number of them: each key meets each kind of call.
    keys.pop();
    runtime.block_on(load(&sessions, &keys, 8));
    let joined = cluster.add_master();
    let moved: Vec<_> = keys.iter().step_by(4).map(|key| cluster.slot(key)).collect();
    let owners: Vec<_> = moved.iter().map(|slot| cluster.owner(*slot).unwrap()).collect();
    moved.iter().for_each(|slot| cluster.migrate(*slot, joined));
    runtime.block_on(load(&sessions, &keys, 8));
    let connected = || clients(&cluster.nodes()[joined].server);
    assert!(connected() >= LANES as usize, "{} connections", connected());
    assert_eq!(sessions.status().transactional.nodes.len(), 4);
    // A scope that is open there ends where its slot has gone.
    let mut scope = runtime.block_on(sessions.transactional().begin_at(&keys[0])).unwrap();
    scope.incr(&keys[0], 1);
    for (slot, owner) in moved.iter().zip(owners) {
        cluster.migrate(*slot, owner);
    }
    runtime.block_on(load(&sessions, &keys, 8));
    let ended = runtime.block_on(scope.commit()).unwrap_err();
    assert_eq!((ended.applied(), ended.is_retryable()), (Applied::No, true), "{ended}");
    cluster.remove(joined);
    // Without slots it was not asked for any more: that it has left is learned with the next move.
    let slot = cluster.slot(&keys[1]);
    cluster.migrate(slot, (cluster.owner(slot).unwrap() + 1) % 3);
    runtime.block_on(load(&sessions, &keys, 12));
    let nodes = |status: &Status| [status.transactional.nodes.len(), status.pooled.nodes.len()];
    assert_eq!(nodes(&sessions.status()), [3, 3], "{}", sessions.status());
    // None that connects to it again and again.
    eventually(SOON, "each task has a connection", || {
        let open = cluster.sum(|server| clients(server) as u64);
        runtime.metrics().num_alive_tasks() as u64 <= open
    });
    drop(sessions);
    no_task_is_left(&runtime);
}

#[test]
fn each_runtime_of_a_manager_follows_a_failover_and_leaves_no_task() {
    let (group, runtimes) = (Group::start(), [runtime(), runtime()]);
    // It is not run after its calls, and neither are its connections.
    let idle = Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = sessions(group.url());
    let keys = ["n".to_owned()];
    for runtime in runtimes.iter().chain([&idle]) {
        runtime.block_on(load(&sessions, &keys, 4));
    }
    let mut held = runtimes[0].block_on(sessions.transactional().begin()).unwrap();
    held.incr("held", 1);
    let former = &group.servers[0];
    former.ask::<i64>(&["WAIT", "2", "5000"]);
    group.fail_over();
    let is_known = || !sessions.status().server.ends_with(&format!(":{}", former.port()));
    eventually(FAILOVER, "the switch is known", is_known);
    eventually(SOON, "no client is connected to the former master", || clients(former) == 0);
    let successor: &Server = group.successor_of(former.port());
    for runtime in &runtimes {
        runtime.block_on(load(&sessions, &keys, 4));
    }
    runtimes[0].block_on(held.commit()).unwrap();
    assert_eq!(successor.ask::<usize>(&["GET", "n"]), 5 * 4 * CALLERS);
    runtimes[0].block_on(sessions.close(SOON));
    runtimes.iter().for_each(no_task_is_left);
    eventually(SOON, "no connection is left", || clients(successor) == 0);
}

#[test]
fn a_runtime_ends_with_scopes_open_behind_sentinels_and_another_one_goes_on() {
    let (group, first, second) = (Group::start(), runtime(), runtime());
    let sessions = sessions(group.url());
    let keys = ["n".to_owned()];
    first.block_on(load(&sessions, &keys, 2));
    let mut held = first.block_on(sessions.transactional().begin()).unwrap();
    held.incr("held", 1);
    first.shutdown_background();
    second.block_on(load(&sessions, &keys, 2));
    drop(held);
    assert_eq!(sessions.status().transactional.in_use, 0);
    drop(sessions);
    no_task_is_left(&second);
    assert_eq!(group.servers[0].ask::<usize>(&["GET", "n"]), 4 * CALLERS);
}
