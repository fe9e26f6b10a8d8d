//! Rounds of slot moves, failovers, and nodes that come and go.
//!
//! Guarantee: clusters, sentinels

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{RetryPolicy, TransactionOptions};
use scopeguard::defer;

use super::ledger::{Group, Ledger, MANNERS};
use super::side::{BuildSide as _, SessionManager};
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::soak::number;

/// Time within which writes succeed again after a failover.
const FAILOVER: Duration = Duration::from_secs(40);

fn rounds() -> usize {
    number("TOPOLOGY_ROUNDS").map_or(1, |rounds| rounds as usize)
}

fn sessions(cluster: &Cluster) -> SessionManager {
    SessionManager::builder(cluster.url())
        .max_size(4)
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(Duration::from_secs(2))
        .checkout_timeout(Duration::from_secs(15))
        .build_side()
        .unwrap()
}

#[test]
fn nothing_is_torn_lost_or_doubled_while_slots_move_masters_die_and_nodes_come_and_go() {
    rediscope_testing::own_process!();
    for round in 0..rounds() {
        let begun = Instant::now();
        let cluster = Cluster::start(3, 1);
        let sessions = sessions(&cluster);
        let groups: Vec<_> = (0..3)
            .flat_map(|node| cluster.slots_of(node).into_iter().step_by(1000).take(3))
            .map(|slot| Group::new(&cluster, slot))
            .collect();
        let ledger = Ledger::default();
        // It runs on while a failover is waited for.
        let patient = RetryPolicy::default().attempts(1_000).deadline(FAILOVER);
        let quick = TransactionOptions::new().retry(patient);
        let waits = quick.clone().wait_replicas(1, Duration::from_secs(2));
        let handle = |options| sessions.transactional().with(options);
        let handles = [
            (handle(waits.clone()), true),
            (handle(waits.exactly_once()), true),
            // On tasks these blocks share connections.
            (handle(quick.exactly_once()), false),
        ];
        thread::scope(|scope| {
            // Also where this panics: the others would go on for ever.
            defer! { ledger.over.store(true, Ordering::Relaxed) }
            for (handle, waits) in &handles {
                for manner in MANNERS {
                    let (ledger, groups) = (&ledger, &groups);
                    scope.spawn(move || ledger.write((handle, *waits), groups, manner));
                }
            }
            let goes_on = |what: &str| {
                let before = ledger.acknowledged.load(Ordering::Relaxed);
                eventually(FAILOVER, what, || {
                    ledger.acknowledged.load(Ordering::Relaxed) >= before + 30
                });
            };
            goes_on("it begins");
            // Slots with their keys, one key at a time and all at once.
            for (nth, group) in groups.iter().enumerate().take(4) {
                let to = (cluster.owner(group.slot).unwrap() + 1) % 3;
                if let Some(from) = cluster.begin_migration(group.slot, to) {
                    for _ in 0..nth {
                        cluster.move_keys(group.slot, from, to, 1);
                    }
                    cluster.end_migration(group.slot, from, to);
                }
            }
            goes_on("after slots have moved");
            // A node joins, is given slots and a replica, and gives them back.
            let joined = cluster.add_master();
            cluster.add_replica_of(joined);
            for group in groups.iter().skip(4).take(3) {
                cluster.migrate(group.slot, joined);
            }
            goes_on("with another node");
            for slot in cluster.slots_of(joined) {
                cluster.migrate(slot, 0);
            }
            goes_on("without it");
            cluster.remove_with_replicas(joined);
            goes_on("when it has left");
            // A master dies.
            let victim = cluster.owner(groups[round % 3].slot).unwrap();
            let successor = cluster.fail_over(victim);
            goes_on("after the failover");
            cluster.revive(victim);
            let back = cluster.owner(groups[0].slot).unwrap();
            cluster.migrate(groups[0].slot, if back == successor { 2 } else { successor });
            goes_on("at the end");
        });
        let counts = ledger.balance(&cluster, &groups);
        let status = sessions.status().transactional;
        assert_eq!(status.in_use, 0, "{status}");
        assert!(status.redirections > 0, "{status}");
        eprintln!("round {round}: {counts}; {status}; {:?}", begun.elapsed());
    }
}
