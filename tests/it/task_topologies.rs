//! Promise: behind sentinels and in a cluster, tasks have at most `max_size + lanes` connections to each master for each handle, and
//! no task is left after the end. Each runtime of a manager follows a failover.

use std::time::Duration;

use rediscope::TransactionOptions;
use rediscope::aio::SessionManager;
use rediscope::prelude::*;
use rediscope::redis::AsyncCommands as _;
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::sentinel::{Group, clients};
use rediscope_testing::server::Server;
use tokio::runtime::{Builder, Runtime};

use crate::fixture::SOON;

/// Time within which sentinels have replaced the master, also on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
const MAX_SIZE: u32 = 3;
const LANES: u32 = 2;
const CALLERS: usize = 48;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

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
