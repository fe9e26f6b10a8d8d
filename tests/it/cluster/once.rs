//! Exactly once in a cluster: registers are in the slot of their transaction, and a doubt is resolved on the
//! node that serves the slot then.
//!
//! Guarantee: clusters, exactly-once

use crate::fixture::{OF_ONE, SOON, add_on_each};
use crate::side::{BuildSide as _, ResolveDoubt as _, SessionManager, Transactional, open_lanes};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rediscope::error::{InDoubt, Resolution, UnresolvedReason};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, TransactionOptions};

use super::fixture::{ClusterFixture, applied_by_writers, beside, builder};
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};

fn exactly_once(sessions: &SessionManager) -> Transactional {
    sessions.transactional().with(TransactionOptions::new().exactly_once())
}

/// The register keys of a node.
fn registers(cluster: &Cluster, node: usize) -> Vec<String> {
    cluster.ask(node, &["KEYS", "rediscope:{*}:reg:*"])
}

#[test]
fn registers_lie_in_the_slot_of_their_transaction_one_a_connection_and_slot() {
    let fixture = ClusterFixture::of(Cluster::start(3, 0));
    let sessions = builder(&fixture.cluster).max_size(1).build_side().unwrap();
    let (once, keys) = (exactly_once(&sessions), fixture.keys("k"));
    let near = fixture.cluster.key_in(fixture.cluster.slot(&keys[0]) + 1, "near");
    keys.iter().for_each(|key| open_lanes(&sessions, key));
    for round in 1..=5 {
        for (node, key) in keys.iter().enumerate().chain([(0, &near)]) {
            add_on_each(&once, key);
            let added: usize = fixture.cluster.ask(node, &["GET", key]);
            assert_eq!(added, round * OF_ONE);
        }
    }
    let counts = [0, 1, 2].map(|node| registers(&fixture.cluster, node).len());
    assert_eq!(counts, [2 * OF_ONE, OF_ONE, OF_ONE]);
    for (node, key) in keys.iter().enumerate() {
        let slots: Vec<_> =
            registers(&fixture.cluster, node).iter().map(|key| fixture.cluster.slot(key)).collect();
        assert!(slots.contains(&fixture.cluster.slot(key)), "{slots:?}");
    }
    let keyed = TransactionOptions::new().exactly_once_as("order", Duration::from_secs(60));
    let keyed = sessions.transactional().with(keyed);
    assert_eq!(keyed.run(|tx| Ok(tx.incr(&keys[0], 1))).unwrap(), 5 * OF_ONE as i64 + 1);
    let again = keyed.run(|tx| Ok(tx.incr(&keys[0], 1))).unwrap_err();
    assert!(matches!(again.as_commit(), Some(CommitError::AlreadyCommitted)), "{again}");
}

#[test]
fn a_block_without_a_key_is_applied_once_on_any_master() {
    let cluster = Cluster::start(3, 0);
    let hour = Duration::from_secs(3600);
    let named = |name: &str| TransactionOptions::new().exactly_once_as(name, hour);
    for nth in 0..6 {
        let sessions = builder(&cluster).max_size(1).build_side().unwrap();
        let once = exactly_once(&sessions);
        for _ in 0..3 {
            assert_eq!(once.run(|tx| Ok(tx.ping())).unwrap(), "PONG");
        }
        let mut tx = once.begin().unwrap();
        tx.ping();
        tx.commit().unwrap();
        let name = format!("ping:{nth}");
        let keyed = sessions.transactional().with(named(&name));
        assert_eq!(keyed.run(|tx| Ok(tx.ping())).unwrap(), "PONG");
        let other = builder(&cluster).build_side().unwrap();
        let again = other.transactional().with(named(&name)).run(|tx| Ok(tx.ping())).unwrap_err();
        assert!(matches!(again.as_commit(), Some(CommitError::AlreadyCommitted)), "{again}");
    }
}

fn is_refused(resolution: &Resolution) -> bool {
    let Resolution::StillUnknown { why } = resolution else { return false };
    matches!(why, UnresolvedReason::NotARegister { .. })
}

#[test]
fn a_token_of_another_slot_or_tag_is_refused_before_anything_is_sent() {
    let proxied = ProxiedCluster::start();
    let fixture = &proxied.fixture;
    let doubt = proxied.doubted(&exactly_once(&fixture.sessions), &fixture.keys("k")[0], true);
    let token = doubt.token().unwrap();
    let sessions = builder(&fixture.cluster).build_side().unwrap();
    let asked = || [0, 1, 2].map(|node| fixture.cluster.nodes()[node].server.calls("pexpire"));
    let before = asked();
    let reg = token.register.split_once(":reg:").unwrap().1;
    let changes: [&dyn Fn(&mut rediscope::error::CommitToken); 6] = [
        &|token| token.slot = token.slot.map(|slot| (slot + 1) % 16384),
        &|token| token.slot = None,
        &|token| token.register = format!("rediscope:reg:{reg}"),
        &|token| token.register = token.register.replace('{', "{0"),
        &|token| token.register = "balance:alice".into(),
        &|token| token.register = "rediscope:{alice}:reg".into(),
    ];
    for (nth, change) in changes.iter().enumerate() {
        let mut token = token.clone();
        change(&mut token);
        let resolution = sessions.resolve(&token, None);
        assert!(is_refused(&resolution), "change {nth}: {resolution:?}");
    }
    let one = SessionManager::connect(fixture.cluster.nodes()[0].server.url()).unwrap();
    assert!(is_refused(&one.resolve(token, None)), "by a manager of one server");
    assert_eq!(asked(), before);
}

/// Proxies before all masters, which the nodes announce as their own addresses.
struct ProxiedCluster {
    fixture: ClusterFixture,
    proxies: Vec<Proxy>,
}

impl ProxiedCluster {
    fn start() -> Self {
        let cluster = Cluster::start(3, 0);
        let proxies: Vec<_> = cluster.nodes().iter().map(|node| Proxy::to(&node.server)).collect();
        for (node, proxy) in cluster.nodes().iter().zip(&proxies) {
            node.server.config_set("cluster-announce-port", &proxy.port().to_string());
        }
        let reported = |node: usize| -> bool {
            let slots: redis::Value = cluster.ask(node, &["CLUSTER", "SLOTS"]);
            let text = format!("{slots:?}");
            proxies.iter().all(|proxy| text.contains(&format!("int({})", proxy.port())))
        };
        eventually(SOON, "every node announces the proxies", || (0..3).all(reported));
        let sessions = builder(&cluster).max_size(1).build_side().unwrap();
        Self { fixture: ClusterFixture { cluster, sessions }, proxies }
    }

    /// A guard's commit whose reply is lost.
    fn doubted(&self, handle: &Transactional, key: &str, applied: bool) -> InDoubt {
        let trigger = match applied {
            true => Trigger::BeforeReplyTo("EXEC"),
            false => Trigger::BeforeCommandNamed("EXEC"),
        };
        let mut tx = handle.begin_at(key).unwrap();
        tx.incr(key, 1);
        let owner = self.fixture.cluster.owner(self.fixture.cluster.slot(key)).unwrap();
        self.proxies[owner].arm(Script::from((trigger, Fault::Cut)).once());
        match tx.commit() {
            Err(Error::Commit(CommitError::InDoubt(doubt))) => doubt,
            other => panic!("not in doubt: {other:?}"),
        }
    }
}

#[test]
fn a_register_that_a_node_refused_to_write_is_written_again_before_the_next_exec() {
    let proxied = ProxiedCluster::start();
    let cluster = &proxied.fixture.cluster;
    let (once, [key, ..]) = (exactly_once(&proxied.fixture.sessions), proxied.fixture.keys("k"));
    let near = cluster.key_in(cluster.slot(&key) + 1, "near");
    let add = |key: &str| {
        let mut tx = once.begin_at(key).unwrap();
        let added = tx.incr(key, 1);
        tx.commit()?.get(added)
    };
    assert_eq!(add(&key).unwrap(), 1);
    let server = &cluster.nodes()[cluster.owner(cluster.slot(&key)).unwrap()].server;
    server.config_set("maxmemory", "1");
    let refused = add(&near).unwrap_err();
    assert!(
        matches!(refused.as_commit(), Some(CommitError::Rejected { code, .. }) if code == "OOM"),
        "{refused:?}"
    );
    server.config_set("maxmemory", "0");
    assert_eq!(proxied.doubted(&once, &near, false).resolved(), Resolution::NotCommitted);
    assert_eq!(add(&near).unwrap(), 1);
}

#[test]
fn a_doubt_is_resolved_wherever_its_register_has_gone() {
    let proxied = ProxiedCluster::start();
    let cluster = &proxied.fixture.cluster;
    let (once, [key, ..]) = (exactly_once(&proxied.fixture.sessions), proxied.fixture.keys("k"));
    let slot = cluster.slot(&key);
    let mut expected = once.run(|tx| Ok(tx.incr(&key, 1))).unwrap();
    for applied in [true, false] {
        let truth = if applied { Resolution::Committed } else { Resolution::NotCommitted };
        let from = cluster.owner(slot).unwrap();
        let to = (from + 1) % 3;
        let doubt = || proxied.doubted(&once, &key, applied);
        let doubts = [doubt(), doubt(), doubt(), doubt()];
        expected += if applied { 4 } else { 0 };
        let token = doubts[0].token().unwrap();
        assert_eq!((token.slot, cluster.slot(&token.register)), (Some(slot), slot));
        assert_eq!(doubts[0].resolved(), truth, "where it was");
        cluster.begin_migration(slot, to);
        assert_eq!(doubts[1].resolved(), truth, "the slot is on its way, the register is not");
        while cluster.move_keys(slot, from, to, 10) > 0 {}
        assert_eq!(doubts[1].resolved(), truth, "the register has gone ahead");
        assert_eq!(doubts[2].resolved(), truth);
        cluster.end_migration(slot, from, to);
        assert_eq!(doubts[3].resolved(), truth, "the slot has gone");
        // Another process knows no better.
        let other = SessionManager::connect(cluster.url()).unwrap();
        assert_eq!(other.resolve(doubts[3].token().unwrap(), None), truth);
        assert_eq!(cluster.read::<i64>(&["GET", &key]), expected);
    }
}

#[test]
fn exactly_once_blocks_are_applied_once_while_slots_move_and_replies_are_lost() {
    let proxied = ProxiedCluster::start();
    let cluster = &proxied.fixture.cluster;
    let keys = proxied.fixture.keys("sum");
    let slots = [0, 1, 2].map(|nth| cluster.slot(&keys[nth]));
    let sessions = builder(cluster).max_size(4).build_side().unwrap();
    let once = exactly_once(&sessions);
    let unknown = AtomicU64::new(0);
    let write = |writer: usize, made: usize| {
        let key = &keys[(writer + made) % 3];
        let done = once.run(|tx| {
            tx.decr(beside(key, "other"), 1);
            Ok(tx.incr(key, 1))
        });
        match done {
            // Also if it was applied, and its reply is lost.
            Ok(_) | Err(rediscope::Error::Reply(_)) => true,
            Err(error) => {
                eprintln!("{error}");
                unknown.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    };
    let applied = applied_by_writers(4, write, |enough| {
        enough(40);
        let fates = [Trigger::BeforeReplyTo("EXEC"), Trigger::BeforeCommandNamed("EXEC")];
        for round in 0..12_usize {
            let slot = slots[round % 3];
            let from = cluster.owner(slot).unwrap();
            let to = (from + 1 + round / 3 % 2) % 3;
            let cut = |nth: usize| {
                let script = Script::from((fates[nth % 2], Fault::Cut)).once();
                proxied.proxies[nth % 3].arm(script);
            };
            cut(round);
            cluster.begin_migration(slot, to);
            cut(round + 1);
            cluster.move_keys(slot, from, to, 1);
            cut(round + 3);
            cluster.end_migration(slot, from, to);
            enough(10);
        }
    });
    let sum = |key: &dyn Fn(&String) -> String| -> i64 {
        keys.iter().map(|name| cluster.read::<i64>(&["GET", &key(name)])).sum()
    };
    let counts = sessions.status().transactional.counts;
    eprintln!("{applied} applied, {counts}");
    assert_eq!(unknown.load(Ordering::Relaxed), 0);
    assert!(counts.in_doubt > 0, "{counts}");
    assert_eq!(sum(&String::clone), applied);
    assert_eq!(sum(&|key| beside(key, "other")), -applied);
}

/// Plain and exactly-once blocks of several slots of each master, in groups.
#[test]
fn grouped_blocks_of_several_slots_are_applied_once_while_slots_move() {
    let fixture = ClusterFixture::of(Cluster::start(3, 0));
    let cluster = &fixture.cluster;
    let first = fixture.keys("sum");
    let slots = [0, 1, 2].map(|nth| cluster.slot(&first[nth]));
    let others = slots.map(|slot| cluster.key_in(slot + 1, "sum"));
    let keys = [first, others].concat();
    let sessions = builder(cluster).max_size(1).build_side().unwrap();
    let grouped = sessions.transactional().with(TransactionOptions::new().grouped());
    let once = grouped.with(TransactionOptions::new().exactly_once());
    let write = |writer: usize, made: usize| {
        let key = &keys[(writer + made) % keys.len()];
        let handle = if writer.is_multiple_of(2) { &once } else { &grouped };
        let done = handle.run(|tx| {
            tx.decr(beside(key, "other"), 1);
            Ok(tx.incr(key, 1))
        });
        let _: i64 = done.expect("run sees nothing of it");
        true
    };
    let applied = applied_by_writers(12, write, |enough| {
        enough(100);
        for round in 0..12_usize {
            let slot = slots[round % 3];
            let from = cluster.owner(slot).unwrap();
            let to = (from + 1 + round / 3 % 2) % 3;
            cluster.begin_migration(slot, to);
            enough(5);
            cluster.move_keys(slot, from, to, 1);
            enough(5);
            cluster.end_migration(slot, from, to);
            enough(20);
        }
    });
    let sum = |key: &dyn Fn(&String) -> String| -> i64 {
        let of_key = |name| cluster.read::<Option<i64>>(&["GET", &key(name)]).unwrap_or_default();
        keys.iter().map(of_key).sum()
    };
    assert_eq!((sum(&String::clone), sum(&|key| beside(key, "other"))), (applied, -applied));
}
