//! Watching blocks that run on each other's results, under a model checker: a caller that gives up, one whose
//! closure fails, one that panics, and a foreign writer. `scripts/model` runs this.
//!
//! Planted mistakes show that the checks can fail.
//!
//! Guarantee: turns

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::sync::Arc as Plain;
use std::sync::Mutex as Log;
use std::time::Duration;

use shuttle::thread;

use super::*;
use crate::pool::model::{assert_found_at_random, check};

const WATCH: &[u8] = b"WATCH k";
const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";

/// The key's value on the server, and how often it was written.
#[derive(Default)]
struct Key {
    value: i64,
    writes: u32,
}

#[derive(Default)]
struct Server {
    key: Log<Key>,
    /// Number of callers whose block was applied, and of those that were told so.
    applied: Log<(i64, i64)>,
}

/// The caller that gives up at whatever point the schedule has come to.
const HASTY: usize = 1;
/// The caller whose closure fails.
const FAILING: usize = 2;
/// The caller whose closure panics, when it runs on predicted values.
const PANICKING: usize = 3;

/// What a leader does.
#[derive(Clone, Copy)]
struct Leader {
    /// Runs its closure again if it finds other values.
    compares: bool,
    /// Has the next block led.
    hands_over: bool,
}

const RIGHT: Leader = Leader { compares: true, hands_over: true };

fn values(value: i64) -> ReadValues {
    ReadValues::of(GET, &[Value::BulkString(value.to_string().into_bytes())]).unwrap()
}

fn number(values: &ReadValues) -> i64 {
    match &*values.replies(GET) {
        [Value::BulkString(text)] => std::str::from_utf8(text).unwrap().parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What the closure of a caller does on this value.
fn run(caller: usize, seen: &ReadValues) -> (Commands, Option<ReadValues>) {
    if caller == FAILING {
        return (Commands::default(), Some(seen.clone()));
    }
    let sum = (number(seen) + 1).to_string();
    let bytes = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{sum}\r\n", sum.len()).into_bytes();
    let mut after = seen.clone();
    let changing = after.apply(&bytes).unwrap();
    (Commands { bytes, count: 1, changing }, Some(after))
}

/// EXEC: each block ran on what the one before it leaves.
fn exec(server: &Server, writes: u32, own: &Commands, followers: &Followers) -> bool {
    let mut key = server.key.lock().unwrap();
    if key.writes != writes {
        return false;
    }
    for block in std::iter::once(own).chain(followers.commands()).filter(|block| block.count > 0) {
        let mut left = values(key.value);
        left.apply(&block.bytes).unwrap();
        assert_eq!(number(&left), key.value + 1, "it ran on another value");
        key.value += 1;
        key.writes += 1;
        server.applied.lock().unwrap().0 += 1;
    }
    true
}

fn call(table: &MergeTable, server: &Server, caller: usize, leader: Leader) {
    let hour = Instant::now() + Duration::from_secs(3600);
    let until = if caller == HASTY { Instant::now() } else { hour };
    let mut place = table.arrive(WATCH, GET, 3).unwrap();
    let mut ran = false;
    loop {
        let piece = match place.wait(until, || hour) {
            Step::Alone => return,
            Step::Again => {
                ran = false;
                place.rejoin();
                continue;
            }
            Step::Run(_, _) if caller == PANICKING => return,
            Step::Run(seen, _) => {
                let (commands, after) = run(caller, &seen);
                thread::yield_now();
                ran = place.append(commands, after);
                if !ran {
                    place.rejoin();
                }
                continue;
            }
            Step::Lead => {
                let (found, writes) = {
                    let key = server.key.lock().unwrap();
                    (values(key.value), key.writes)
                };
                thread::yield_now();
                let is_valid = ran && (!leader.compares || place.has_run_on(Some(&found)));
                if !is_valid {
                    if !ran {
                        assert!(!place.has_run_on(Some(&found)), "it has not run");
                    }
                }
                if caller == FAILING {
                    return;
                }
                if !is_valid {
                    let (commands, after) = run(caller, &found);
                    place.append_first(commands, after);
                }
                let (own, mut followers) = place.take();
                followers.sent();
                thread::yield_now();
                let applied = exec(server, writes, &own, &followers);
                let pieces = || if applied { Piece::Applied(Vec::new()) } else { Piece::Conflict };
                if leader.hands_over {
                    place.end_lead(applied, !applied);
                }
                let count = followers.len();
                followers.end((0..count).map(|_| pieces()));
                if !leader.hands_over {
                    std::mem::forget(place);
                    return;
                }
                pieces()
            }
            Step::Ended(piece) => piece,
        };
        match piece {
            Piece::Applied(_) => {
                server.applied.lock().unwrap().1 += i64::from(caller != FAILING);
                return;
            }
            Piece::Conflict => {
                ran = false;
                place.rejoin();
            }
            other => panic!("{other:?}"),
        }
    }
}

fn callers(leader: Leader) {
    let (table, server) = (Plain::new(MergeTable::new()), Plain::new(Server::default()));
    let callers = (0..5).map(|caller| {
        let (table, server) = (Plain::clone(&table), Plain::clone(&server));
        thread::spawn(move || call(&table, &server, caller, leader))
    });
    let mut threads: Vec<_> = callers.collect();
    let writer = Plain::clone(&server);
    threads.push(thread::spawn(move || {
        let mut key = writer.key.lock().unwrap();
        key.value += 100;
        key.writes += 1;
    }));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let (applied, told) = *server.applied.lock().unwrap();
    assert_eq!(applied, told, "applied, and told so");
    assert!(applied >= 2, "callers that do not give up");
    assert_eq!(server.key.lock().unwrap().value, 100 + applied);
    assert!(table.shards.iter().all(|shard| lock(shard).is_empty()), "a watch was left");
}

#[test]
fn model_of_blocks_that_run_on_each_others_results() {
    check(|| callers(RIGHT));
}

#[test]
fn model_finds_a_leader_that_does_not_compare_what_it_finds() {
    let leader = Leader { compares: false, ..RIGHT };
    assert_found_at_random(move || callers(leader), &["it ran on another value"]);
}

#[test]
fn model_finds_a_leader_that_hands_over_to_no_other() {
    let leader = Leader { hands_over: false, ..RIGHT };
    assert_found_at_random(move || callers(leader), &["deadlock"]);
}
