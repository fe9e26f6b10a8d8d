//! A lock in a cluster: its slot moves between masters, key by key; and its master is killed, while the
//! promoted replica was behind.
//!
//! The server with the history has no faults.

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::clients::{Asks, Orders, Other};
use super::history::{Verdict, check};
use super::scenarios::{BEHIND, Found, LONG_LEASE, PROCESSES, SCENARIO, acquired, end, entries};
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

const MASTERS: usize = 3;
/// Hash tag of the keys of the lock `l`.
const TAG: &str = "{l}";
/// Longer than it takes until the replica has taken over.
const LONGER_LEASE: Duration = Duration::from_secs(6);
/// Number of holds before a master is killed, and after.
const AROUND: usize = 2;

fn orders(cluster: &Cluster, recorder: &Server, seed: u64, lease: Duration, asks: Asks) -> Orders {
    Orders {
        server: cluster.url(),
        recorder: recorder.url(),
        seed,
        permits: 1,
        lease,
        step: lease / 25,
        slow: false,
        asks,
        renewed: true,
        replicas: false,
    }
}

fn people(orders: &Orders) -> Vec<Other> {
    (0..PROCESSES).map(|number| Other::start(number, orders)).collect()
}

fn found(what: String, seed: u64) -> Found {
    let verdict = Verdict::default();
    Found { what, seed, done: 0, must_lose: false, verdict, took: Duration::ZERO }
}

/// The slot moves under its holders.
pub(crate) fn run(seed: u64, holds: usize) -> Found {
    let begun = Instant::now();
    let mut random = Rng::with_seed(seed);
    let mut found = found("Cluster, slot moving".to_owned(), seed);
    let (cluster, recorder) = (Cluster::start(MASTERS, 0), Server::start());
    let others = people(&orders(&cluster, &recorder, random.u64(..), LONG_LEASE, Asks::Both));
    let slot = cluster.slot(TAG);
    eventually(SCENARIO, "the lock goes round while its slot moves", || {
        shift(&cluster, slot, &mut random);
        found.done += 1;
        acquired(&recorder) >= holds
    });
    end(others);
    found.verdict = check(&entries(&recorder), 1);
    found.took = begun.elapsed();
    found
}

fn shift(cluster: &Cluster, slot: u16, random: &mut Rng) {
    let mut pause = || thread::sleep(Duration::from_millis(random.u64(..20)));
    let from = cluster.owner(slot).expect("a node serves the slot");
    let to = (from + 1) % MASTERS;
    cluster.begin_migration(slot, to);
    for _ in 0..2 {
        pause();
        cluster.move_keys(slot, from, to, 1);
    }
    pause();
    cluster.end_migration(slot, from, to);
    pause();
}

/// The master is killed under its holders, and its replica, which was behind, takes over.
pub(crate) fn fail_over(seed: u64, rounds: u64, asks: Asks, replicas: bool) -> Found {
    let begun = Instant::now();
    let mut random = Rng::with_seed(seed);
    let waited = if replicas { "a replica waited for" } else { "no replica waited for" };
    let mut found = found(format!("Cluster, failover, {waited}, holders ask: {asks:?}"), seed);
    let cluster = Cluster::start(MASTERS, 1);
    let slot = cluster.slot(TAG);
    let mut replica = cluster.owner(slot).expect("a node serves the slot") + MASTERS;
    for _ in 0..rounds {
        let recorder = Server::start();
        let orders = Orders {
            step: LONGER_LEASE / 10,
            slow: true,
            // A renewal does not wait for replicas: a holder that goes by its clock has none.
            renewed: asks == Asks::Server,
            replicas,
            ..orders(&cluster, &recorder, random.u64(..), LONGER_LEASE, asks)
        };
        let others = people(&orders);
        eventually(SCENARIO, "the lock goes round", || acquired(&recorder) >= AROUND);
        let master = cluster.owner(slot).expect("a node serves the slot");
        cluster.let_replica_take_over(master);
        let nodes = cluster.nodes();
        nodes[replica].server.sigstop();
        // Or what the master still sends would be read before the promotion.
        nodes[master].server.ask::<i64>(&["CLIENT", "KILL", "TYPE", "replica"]);
        thread::sleep(if replicas { BEHIND } else { LONGER_LEASE });
        nodes[master].server.sigkill();
        nodes[replica].server.sigcont();
        drop(nodes);
        cluster.await_owner(slot);
        // Of what is to come there is one more to wait for.
        cluster.revive(master);
        replica = master;
        let more = acquired(&recorder) + AROUND;
        eventually(SCENARIO, "it goes round on the new master", || acquired(&recorder) >= more);
        end(others);
        found.verdict.add(check(&entries(&recorder), 1));
        found.done += 1;
        // A control has shown what it was to show.
        if !found.verdict.faults.is_empty() {
            break;
        }
    }
    found.took = begun.elapsed();
    found
}
