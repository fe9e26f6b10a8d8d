//! The test cluster: its slots move, its masters fail over, and its nodes come and go.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use redis::Value;
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::server::{PORT_TRIES, Server, redis_server};

use super::SOON;

#[test]
fn a_cluster_of_three_masters_and_three_replicas_starts_moves_slots_fails_over_and_grows() {
    let begun = Instant::now();
    let cluster = Cluster::start(3, 1);
    eprintln!("started in {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20));
    let slot = cluster.slot("a");
    let from = cluster.owner(slot).unwrap();
    cluster.ask::<()>(from, &["SET", "a", "1"]);
    let to = (from + 1) % 3;
    cluster.begin_migration(slot, to);
    assert_eq!(cluster.ask::<i64>(from, &["GET", "a"]), 1, "it is still there");
    assert_eq!(cluster.move_keys(slot, from, to, 10), 1);
    let sent_on =
        redis::cmd("GET").arg("a").query::<Value>(&mut cluster.nodes()[from].server.connection());
    assert_eq!(sent_on.unwrap_err().code(), Some("ASK"));
    cluster.end_migration(slot, from, to);
    assert_eq!(cluster.owner(slot), Some(to));
    assert_eq!(cluster.read::<i64>(&["GET", "a"]), 1);

    let fourth = cluster.add_master();
    cluster.migrate(slot, fourth);
    assert_eq!(cluster.read::<i64>(&["GET", "a"]), 1);
    cluster.migrate(slot, from);
    cluster.remove(fourth);
    assert_eq!(cluster.owner(slot), Some(from));

    cluster.ask::<()>(from, &["SET", "a", "2"]);
    cluster.ask::<i64>(from, &["WAIT", "1", "5000"]);
    let promoted = cluster.fail_over(from);
    assert_ne!(promoted, from);
    assert_eq!(cluster.read::<i64>(&["GET", "a"]), 2);
    cluster.revive(from);
    assert_eq!(cluster.owner(slot), Some(promoted));
}

/// The ids of the nodes that count this slot as theirs or another one's, as each node sees it.
fn owners(cluster: &Cluster, slot: u16) -> Vec<String> {
    let nodes = cluster.nodes();
    let serves = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
    };
    let owner = |view: String| {
        let lines = view.lines().filter(|line| line.split(' ').skip(8).any(serves));
        lines.map(|line| line[..40].to_owned()).collect::<Vec<_>>().join(" and ")
    };
    nodes.iter().map(|node| owner(node.server.ask(&["CLUSTER", "NODES"]))).collect()
}

/// A replica that takes over before it knows of a slot does not serve it.
#[test]
fn every_node_knows_the_new_master_of_a_slot_when_its_migration_ends() {
    let cluster = Cluster::start(3, 1);
    for (nth, slot) in (0..40).enumerate() {
        let to = 1 + nth % 2;
        cluster.migrate(slot, to);
        let id = cluster.nodes()[to].id.clone();
        assert_eq!(owners(&cluster, slot), [(); 6].map(|()| id.clone()), "slot {slot}");
    }
    let key = cluster.key_in(cluster.slots_of(0)[0], "k");
    cluster.ask::<()>(0, &["SET", &key, "1"]);
    cluster.migrate(cluster.slot(&key), 1);
    let promoted = cluster.fail_over(1);
    assert_eq!(cluster.owner(cluster.slot(&key)), Some(promoted));
    assert_eq!(cluster.read::<i64>(&["GET", &key]), 1);
}

/// A busy machine makes a master look dead.
#[test]
fn a_master_that_is_only_slow_keeps_its_slots() {
    let cluster = Cluster::start(3, 1);
    let slow = cluster.nodes()[0].id.clone();
    let has_failed = |node| {
        let view: String = cluster.ask(node, &["CLUSTER", "NODES"]);
        let line = view.lines().find(|line| line.starts_with(&slow)).unwrap();
        line.split([' ', ',']).any(|flag| flag == "fail")
    };
    cluster.nodes()[0].server.sigstop();
    eventually(SOON, "its replica counts it as failed", || has_failed(3));
    cluster.nodes()[0].server.sigcont();
    eventually(SOON, "it is back", || (1..6).all(|node| !has_failed(node)));
    assert_eq!(cluster.slots_of(0).len(), 5461);
}

/// Else a node whose second port was taken would be tried with that port again and again.
#[test]
fn a_server_whose_second_port_is_taken_is_none_and_with_a_free_one_it_starts() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let arguments = ["--cluster-enabled", "yes", "--cluster-port", &port];
    assert!(Server::attempt(redis_server(), &arguments).is_none());
    drop(taken);
    assert!((0..PORT_TRIES).any(|_| Server::attempt(redis_server(), &arguments).is_some()));
}
