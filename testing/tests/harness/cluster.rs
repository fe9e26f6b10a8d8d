//! The test cluster: its slots move, its masters fail over, and its nodes come and go.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use redis::Value;
use rediscope_testing::cluster::Cluster;
use rediscope_testing::server::{PORT_TRIES, Server, redis_server};

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

    // As after a master's death: all but the owner know whose the slot is.
    cluster.ask::<()>(to, &["CLUSTER", "DELSLOTS", &slot.to_string()]);
    assert_eq!(cluster.owner(slot), None);
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
