//! Single commands: sent to the master of their key, redirected, or sent to all masters.
//!
//! Guarantee: clusters

use crate::fixture::SOON;
use std::collections::BTreeSet;

use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{Error, redis};

use super::fixture::{ClusterFixture, beside};
use rediscope_testing::eventually;

fn error<T: std::fmt::Debug>(result: redis::RedisResult<T>) -> Error {
    Error::from(result.expect_err("refused"))
}

#[test]
fn single_commands_find_their_master_also_after_their_slot_has_moved() {
    let fixture = ClusterFixture::start();
    let (mut db, keys) = (fixture.sessions.pooled(), fixture.keys("k"));
    for (value, key) in (1..).zip(&keys) {
        let _: () = db.set(key, value).unwrap();
        assert_eq!(db.get::<_, i64>(key).unwrap(), value);
        assert_eq!(fixture.cluster.read::<i64>(&["GET", key]), value);
    }
    let slot = fixture.cluster.slot(&keys[0]);
    fixture.cluster.migrate(slot, 1);
    assert_eq!(db.incr::<_, _, i64>(&keys[0], 1).unwrap(), 2);
    assert_eq!(db.mget::<_, Vec<i64>>(&[&keys[0], &keys[0]]).unwrap(), [2, 2]);
    // A command with a key that is in no table: the first node redirects it.
    let unknown = redis::cmd("RESTORE-ASKING").arg(&keys[2]).arg(0).arg("x").exec(&mut db);
    assert!(error(unknown).to_string().contains("BUSYKEY"));
    let redirections = fixture.sessions.status().pooled.redirections;
    assert!(redirections >= 1, "{redirections}");
}

#[test]
fn keys_of_two_slots_in_one_command_are_refused_unsent_by_their_slots() {
    let fixture = ClusterFixture::start();
    let (mut db, [a, b, _]) = (fixture.sessions.pooled(), fixture.keys("secret"));
    let refused = error(db.mset::<_, _, ()>(&[(&a, 1), (&b, 2)]));
    let expected = (fixture.cluster.slot(&a), fixture.cluster.slot(&b));
    match &refused {
        Error::CrossSlot { command, bound, other, .. } => {
            assert_eq!((command.as_str(), (*bound, *other)), ("MSET", expected));
        }
        other => panic!("{other}"),
    }
    assert_eq!((refused.applied(), refused.is_retryable()), (Applied::No, false));
    assert!(!refused.to_string().contains("secret"), "{refused}");
    assert_eq!(fixture.cluster.sum(|server| server.calls("mset")), 0);
}

#[test]
fn a_pipeline_is_parted_by_slot_and_its_replies_come_in_their_order() {
    let fixture = ClusterFixture::start();
    let (mut db, keys) = (fixture.sessions.pooled(), fixture.keys("n"));
    let slot = fixture.cluster.slot(&keys[1]);
    let _: () = db.set(&keys[1], 10).unwrap();
    for round in 0..3 {
        let mut pipe = redis::pipe();
        for _ in 0..4 {
            for key in &keys {
                pipe.incr(key, 1);
            }
        }
        pipe.cmd("DBSIZE").cmd("PING").cmd("TIME").ignore();
        let replies: Vec<redis::Value> = pipe.query(&mut db).unwrap();
        let first: Vec<i64> = (1..=4).flat_map(|n| [n, 10 + n, n].map(|n| n + 4 * round)).collect();
        let found: Vec<i64> =
            replies[..12].iter().map(|v| redis::from_redis_value_ref(v).unwrap()).collect();
        assert_eq!((found, replies.len()), (first, 14));
        assert_eq!(replies[12], redis::Value::Int(3), "of all nodes");
        // While the slot is on its way, and when it has arrived.
        match round {
            0 => drop(fixture.cluster.begin_migration(slot, 2)),
            _ => fixture.cluster.migrate(slot, 2),
        }
    }
}

#[test]
fn commands_without_a_key_that_redis_documents_so_go_to_every_master() {
    let fixture = ClusterFixture::start();
    let (mut db, keys) = (fixture.sessions.pooled(), fixture.keys("k"));
    for key in &keys {
        let _: () = db.set(key, 1).unwrap();
        let _: () = db.set(beside(key, "other"), 1).unwrap();
    }
    assert_eq!(redis::cmd("DBSIZE").query::<i64>(&mut db).unwrap(), 6);
    let found: BTreeSet<String> = db.keys("*:k").unwrap();
    assert_eq!(found, keys.iter().cloned().collect());
    assert_eq!(redis::cmd("PING").query::<String>(&mut db).unwrap(), "PONG");
    const SOURCE: &str = "return redis.call('INCRBY', KEYS[1], ARGV[1])";
    let script = redis::Script::new(SOURCE);
    let hash: String = redis::cmd("SCRIPT").arg("LOAD").arg(SOURCE).query(&mut db).unwrap();
    let exists: Vec<bool> =
        redis::cmd("SCRIPT").arg("EXISTS").arg(&hash).arg("none").query(&mut db).unwrap();
    assert_eq!(exists, [true, false]);
    for key in &keys {
        assert_eq!(script.key(key).arg(2).invoke::<i64>(&mut db).unwrap(), 3);
    }
    for refused in [redis::cmd("SCAN").arg(0), redis::cmd("CONFIG").arg("SET").arg("hz").arg("10")]
    {
        let refused = error(refused.exec(&mut db));
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    }
    let () = redis::cmd("FLUSHALL").query(&mut db).unwrap();
    assert_eq!(fixture.cluster.sum(|server| server.ask(&["DBSIZE"])), 0);
}

/// The effect of the failed call, and whether it may be made again.
fn outcome<T: std::fmt::Debug>(result: redis::RedisResult<T>) -> (Applied, bool) {
    let error = error(result);
    (error.applied(), error.is_retryable())
}

#[test]
fn a_refusal_of_one_master_does_not_prove_that_no_other_applied_the_call() {
    let fixture = ClusterFixture::start();
    let (mut db, keys) = (fixture.sessions.pooled(), fixture.keys("k"));
    let nodes = fixture.cluster.nodes();
    let refuse = |node: usize, refuses: bool| {
        nodes[node].server.config_set("min-replicas-to-write", if refuses { "1" } else { "0" });
    };
    for node in 0..3 {
        refuse(node, true);
        let failed = error(redis::cmd("FLUSHALL").exec(&mut db));
        assert!(matches!(&failed, Error::Command { command, .. } if command == "FLUSHALL"));
        assert_eq!(failed.code(), Some("NOREPLICAS"), "{failed}");
        assert_eq!((failed.applied(), failed.is_retryable()), (Applied::Unknown, false));
        let failed = error(redis::pipe().get(&keys[0]).cmd("FLUSHDB").exec(&mut db));
        let Error::Pipeline { failures: 1, index: 1, applied, .. } = failed else {
            panic!("{failed}")
        };
        assert_eq!(applied, Applied::Unknown);
        refuse(node, false);
    }
    (0..3).for_each(|node| refuse(node, true));
    assert_eq!(outcome(redis::cmd("FLUSHALL").exec(&mut db)), (Applied::No, true));
    let failed = error(redis::pipe().get(&keys[0]).cmd("FLUSHDB").exec(&mut db));
    assert_eq!(failed.applied(), Applied::No);
    // A read has no effect on any master.
    nodes[1].server.acl(&["SETUSER", "default", "-dbsize"]);
    assert_eq!(outcome(redis::cmd("DBSIZE").exec(&mut db)), (Applied::No, false));
}

#[test]
fn a_master_out_of_reach_does_not_prove_that_no_other_applied_the_call() {
    let fixture = ClusterFixture::start();
    let mut db = fixture.sessions.pooled();
    let _: String = redis::cmd("PING").query(&mut db).unwrap();
    let mut late = db.within(SOON / 20);
    let nodes = fixture.cluster.nodes();
    let mut in_part = 0;
    // The masters are asked one after the other, in an order that is not known here.
    for node in nodes.iter() {
        node.server.sigkill();
        for is_pipeline in [false, true] {
            let flushes = || fixture.cluster.sum(|server| server.calls("flushall"));
            let before = flushes();
            let failed = match is_pipeline {
                false => redis::cmd("FLUSHALL").exec(&mut late),
                true => redis::pipe().cmd("FLUSHALL").cmd("PING").exec(&mut late),
            };
            let was_applied = flushes() > before;
            let expected =
                if was_applied { (Applied::Unknown, false) } else { (Applied::No, true) };
            assert_eq!(outcome(failed), expected, "applied by some: {was_applied}");
            in_part += u32::from(was_applied);
        }
        assert_eq!(outcome(redis::cmd("DBSIZE").exec(&mut late)), (Applied::No, true));
        let exists = redis::cmd("SCRIPT").arg("EXISTS").arg("none").exec(&mut late);
        assert_eq!(outcome(exists), (Applied::No, true));
        node.server.restart_on_same_port();
    }
    assert!(in_part > 0, "each time the first master was the one out of reach");
}

#[test]
fn status_and_close_cover_every_node() {
    let fixture = ClusterFixture::start();
    let (mut db, keys) = (fixture.sessions.pooled(), fixture.keys("k"));
    keys.iter().for_each(|key| db.set(key, 1).unwrap());
    let held = fixture.sessions.transactional().begin_at(&keys[1]).unwrap();
    let status = fixture.sessions.status();
    assert_eq!(status.pooled.nodes.len(), 3, "{status}");
    assert_eq!(status.pooled.nodes.iter().map(|node| node.slots).sum::<usize>(), 16384);
    assert_eq!((status.transactional.in_use, status.transactional.scopes.len()), (1, 1));
    assert_eq!(fixture.sessions.open_scopes().len(), 1);
    let report = status.to_string();
    assert!(status.pooled.nodes.iter().all(|node| report.contains(&node.address)), "{report}");
    assert_eq!(fixture.sessions.close(std::time::Duration::ZERO).scopes, 1);
    assert_eq!(
        db.get::<_, i64>(&keys[0]).map_err(Error::from).unwrap_err().to_string(),
        "the session manager is closed"
    );
    let late = held.commit().unwrap_err();
    assert_eq!(late.applied(), Applied::No);
    eventually(SOON, "no connection is left", || {
        fixture.cluster.sum(|server| server.clients() as u64) == 0
    });
}
