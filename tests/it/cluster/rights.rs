//! The rights that the documents name are enough, and none of them can be left out.
//!
//! Guarantee: clusters, rights

use crate::fixture::SOON;
use crate::side::{BuildSide as _, SessionManager};
use std::time::Duration;

use rediscope::prelude::*;
use rediscope::{TransactionOptions, redis};

use rediscope_testing::cluster::Cluster;

const RULES: &[&str] =
    &["SETUSER", "app", "on", ">secret", "~{app*", "~rediscope:*", "&rediscope:*", "-@all"];
const COMMANDS: &[&str] = &[
    "+@transaction",
    "+ping",
    "+@read",
    "+@write",
    "+@scripting",
    "+time",
    "+publish",
    "+subscribe",
    "+unsubscribe",
];

fn url(cluster: &Cluster) -> String {
    cluster.url().replace("redis+cluster://", "redis+cluster://app:secret@")
}

/// All kinds of calls, before their slot moves, meanwhile, and after it has.
fn all_of_it(cluster: &Cluster, more: &[&str]) -> SessionManager {
    for node in cluster.nodes().iter() {
        node.server.acl(&[RULES, COMMANDS, more].concat());
    }
    let sessions = SessionManager::builder(url(cluster))
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(Duration::from_secs(2))
        .checkout_timeout(SOON)
        .build_side()
        .unwrap();
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    let (key, fresh) = ("{app:1}:k", "{app:1}:fresh");
    assert_eq!(once.run(|tx| Ok(tx.incr(key, 1))).unwrap(), 1);
    let slot = cluster.slot(key);
    let from = cluster.owner(slot).unwrap();
    let to = (from + 1) % 3;
    cluster.begin_migration(slot, to);
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr(fresh, 1))).unwrap(), 1);
    cluster.end_migration(slot, from, to);
    assert_eq!(once.run(|tx| Ok(tx.incr(key, 1))).unwrap(), 2);
    let guard = sessions.lock("l").acquire(SOON).unwrap();
    guard.release().unwrap();
    assert_eq!(sessions.pooled().get::<_, i64>(key).unwrap(), 2);
    sessions
}

#[test]
fn a_user_with_the_documented_rights_can_do_all_of_it_also_while_slots_move() {
    let cluster = Cluster::start(3, 0);
    all_of_it(&cluster, &["+cluster|shards", "+cluster|slots", "+asking"]);
    assert!(cluster.sum(|server| server.calls("cluster|shards")) > 0);
}

#[test]
fn without_cluster_shards_the_map_is_read_by_cluster_slots() {
    for hosts in ["ip", "unknown-endpoint"] {
        let cluster = Cluster::with(3, 1, &["--cluster-preferred-endpoint-type", hosts]);
        let sessions = all_of_it(&cluster, &["+cluster|slots", "+asking"]);
        let asked = |what: &str| cluster.sum(|server| server.calls(what));
        assert_eq!(asked("cluster|shards"), 0);
        assert!(asked("cluster|slots") > 0);
        let master = cluster.owner(cluster.slot("{app:1}:k")).unwrap();
        cluster.ask::<i64>(master, &["WAIT", "1", "5000"]);
        cluster.let_replica_take_over(master);
        cluster.nodes()[master].server.sigkill();
        assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("{app:1}:k", 1))).unwrap(), 3);
    }
}

#[test]
fn a_user_without_the_right_to_read_the_map_fails_at_once() {
    let cluster = Cluster::start(3, 0);
    for node in cluster.nodes().iter() {
        node.server.acl(&[RULES, COMMANDS].concat());
    }
    let sessions = SessionManager::builder(url(&cluster))
        .checkout_timeout(Duration::from_secs(30))
        .build_side()
        .unwrap();
    let begun = std::time::Instant::now();
    let refused = sessions.transactional().run(|tx| Ok(tx.incr("{app:1}", 1))).unwrap_err();
    assert!(format!("{refused:#}").contains("NOPERM"), "{refused:#}");
    assert!(!refused.is_retryable(), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let single = sessions.pooled().get::<_, Option<i64>>("{app:1}");
    let single: redis::RedisError = single.unwrap_err();
    assert!(format!("{:#}", rediscope::Error::from(single)).contains("NOPERM"));
}
