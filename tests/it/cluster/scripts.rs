//! Scripts on the pooled handle: they follow their slot, and run once whatever error they return.
//!
//! Guarantee: clusters, the-pooled-handle

use crate::fixture::SOON;
use crate::side::Pooled;
use std::thread;

use rediscope::error::Applied;
use rediscope::{Error, redis};

use super::fixture::{ClusterFixture, beside};
use rediscope_testing::eventually;

const LIBRARY: &str = "#!lua name=mine\nredis.register_function('run', function(keys, args) \
    for _, key in ipairs(keys) do redis.call('INCR', key) end; \
    if args[1] then return redis.error_reply(args[1]) end; return #keys end)";
const SOURCE: &str = "for _, key in ipairs(KEYS) do redis.call('INCR', key) end; \
    if ARGV[1] then return redis.error_reply(ARGV[1]) end; return #KEYS";

/// The calls that increment these keys and return an error of this text, or the number of keys.
fn calls(fixture: &ClusterFixture, keys: &[&str], error: Option<&str>) -> Vec<redis::Cmd> {
    let mut db = fixture.sessions.pooled();
    let load =
        |of: &[&str]| of.iter().fold(redis::Cmd::new(), |cmd, word| cmd.clone().arg(word).take());
    let sha: String = load(&["SCRIPT", "LOAD", SOURCE]).query(&mut db).unwrap();
    load(&["FUNCTION", "LOAD", "REPLACE", LIBRARY]).exec(&mut db).unwrap();
    let calls = [("EVAL", SOURCE), ("EVALSHA", &sha), ("FCALL", "run")];
    let call = |(name, what): (&str, &str)| {
        redis::cmd(name).arg(what).arg(keys.len()).arg(keys).arg(error).take()
    };
    calls.into_iter().map(call).collect()
}

fn count(fixture: &ClusterFixture, key: &str) -> Option<i64> {
    fixture.cluster.read(&["GETDEL", key])
}

#[test]
fn a_script_that_returns_an_error_of_a_cluster_itself_runs_once() {
    let fixture = ClusterFixture::start();
    let [key, ..] = fixture.keys("k");
    let (slot, nodes) = (fixture.cluster.slot(&key), fixture.cluster.nodes());
    let other = nodes[(fixture.cluster.owner(slot).unwrap() + 1) % 3].server.address();
    let mut db = fixture.sessions.pooled().within(SOON / 20);
    for text in [
        "TRYAGAIN later",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "LOADING Redis is loading the dataset in memory",
        "CLUSTERDOWN Hash slot not served",
        "CLUSTERDOWN The cluster is down",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        &format!("MOVED {slot} {other}"),
        &format!("ASK {slot} {other}"),
        "MOVED 1 127.0.0.1:1",
        "MOVED",
    ] {
        for call in calls(&fixture, &[&key], Some(text)) {
            let error = Error::from(call.query::<()>(&mut db).unwrap_err());
            assert_eq!(
                (error.applied(), error.is_retryable()),
                (Applied::Unknown, false),
                "{error}"
            );
            assert_eq!(count(&fixture, &key), Some(1), "{text}");

            let mut pipeline = redis::pipe();
            pipeline.add_command(call.clone()).cmd("GET").arg(&key).add_command(call);
            let error = Error::from(pipeline.exec(&mut db).unwrap_err());
            assert_eq!(error.applied(), Applied::Unknown, "{error}");
            assert!(matches!(&error, Error::Pipeline { failures: 2, index: 0, .. }), "{error:?}");
            assert_eq!(count(&fixture, &key), Some(2), "{text}");
        }
    }
}

#[test]
fn a_script_follows_its_slot_and_runs_once() {
    let fixture = ClusterFixture::start();
    let [key, ..] = fixture.keys("k");
    let (slot, other) = (fixture.cluster.slot(&key), beside(&key, "other"));
    let from = fixture.cluster.owner(slot).unwrap();
    let mut db = fixture.sessions.pooled();
    let run = |db: &mut Pooled, call: &redis::Cmd, keys| {
        let reply = call.query::<i64>(db).map_err(Error::from);
        assert_eq!(reply.unwrap(), keys);
    };
    for (nth, call) in (0..).zip(calls(&fixture, &[&key, &other], None)) {
        let to = (from + 1 + nth % 2) % 3;
        fixture.cluster.migrate(slot, to);
        run(&mut db, &call, 2);
        let mut pipeline = redis::pipe();
        fixture.cluster.migrate(slot, from);
        pipeline.add_command(call.clone()).cmd("GET").arg(&key).add_command(call);
        assert_eq!(pipeline.query::<[i64; 3]>(&mut db).unwrap(), [2, 2, 2]);
        assert_eq!((count(&fixture, &key), count(&fixture, &other)), (Some(3), Some(3)));
    }
    // New keys of a slot on its way are created on the target.
    let to = (from + 1) % 3;
    fixture.cluster.begin_migration(slot, to);
    for call in calls(&fixture, &[&key], None) {
        run(&mut db, &call, 1);
    }
    assert_eq!(fixture.cluster.nodes()[from].server.ask::<i64>(&["DBSIZE"]), 0);
    fixture.cluster.end_migration(slot, from, to);
    assert_eq!(count(&fixture, &key), Some(3));
    // While one of its keys is still on the source, a script waits.
    fixture.cluster.read::<i64>(&["INCR", &key]);
    fixture.cluster.begin_migration(slot, from);
    for call in calls(&fixture, &[&key, &other], None) {
        let redirections = || fixture.sessions.status().pooled.redirections;
        let before = redirections();
        thread::scope(|scope| {
            let mut db = db.within(2 * SOON);
            let waiting = scope.spawn(move || call.query::<i64>(&mut db).unwrap());
            eventually(SOON, "it was sent again", || redirections() > before + 3);
            assert!(!waiting.is_finished());
            fixture.cluster.end_migration(slot, to, from);
            assert_eq!(waiting.join().unwrap(), 2);
        });
        assert_eq!((count(&fixture, &key), count(&fixture, &other)), (Some(2), Some(1)));
        fixture.cluster.migrate(slot, to);
        fixture.cluster.read::<i64>(&["INCR", &key]);
        fixture.cluster.begin_migration(slot, from);
    }
}

#[test]
fn a_script_waits_until_its_slot_is_served() {
    let fixture = ClusterFixture::start();
    let [key, ..] = fixture.keys("k");
    let (slot, mut db) = (fixture.cluster.slot(&key), fixture.sessions.pooled());
    let from = fixture.cluster.owner(slot).unwrap();
    for call in calls(&fixture, &[&key], None) {
        fixture.cluster.ask::<()>(from, &["CLUSTER", "DELSLOTS", &slot.to_string()]);
        let redirections = || fixture.sessions.status().pooled.redirections;
        let before = redirections();
        thread::scope(|scope| {
            let mut db = db.within(2 * SOON);
            let waiting = scope.spawn(move || call.query::<i64>(&mut db).unwrap());
            eventually(SOON, "it was sent again", || redirections() > before);
            fixture.cluster.ask::<()>(from, &["CLUSTER", "ADDSLOTS", &slot.to_string()]);
            assert_eq!(waiting.join().unwrap(), 1);
        });
        assert_eq!(count(&fixture, &key), Some(1));
    }
    let _: i64 = redis::cmd("INCR").arg(&key).query(&mut db).unwrap();
}
