//! Locks in a cluster: each in a slot of its own name's, and transactions fenced by one beside it.

use std::thread;
use std::time::Duration;

use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use super::stage::{SOON, Stage, builder};
use crate::support::eventually;

#[test]
fn locks_of_every_slot_are_acquired_waited_for_and_released() {
    let stage = Stage::start();
    let other = builder(&stage.cluster).build().unwrap();
    for nth in 0..12 {
        let name = format!("lock:{nth}");
        let held = stage.sessions.lock(&name).acquire(SOON).unwrap();
        assert!(other.lock(&name).try_acquire().unwrap().is_none());
        let first = held.fencing_token();
        thread::scope(|scope| {
            let waits = scope.spawn(|| other.lock(&name).acquire(SOON).unwrap());
            eventually(SOON, "it is waited for", || other.status().locks.waiting == 1);
            held.release().unwrap();
            let next = waits.join().unwrap();
            assert!(next.fencing_token() > first);
            next.release().unwrap();
        });
    }
    let counters: usize = [0, 1, 2]
        .map(|node| stage.cluster.ask::<Vec<String>>(node, &["KEYS", "rediscope:fence:{*}"]).len())
        .iter()
        .sum();
    assert_eq!(counters, 12, "one a slot");
}

#[test]
fn leases_are_extended_while_their_slot_moves_and_several_at_once() {
    let stage = Stage::start();
    let lease = Duration::from_millis(1500);
    let names: Vec<_> = (0..6).map(|nth| format!("l:{nth}")).collect();
    let guards: Vec<_> = names
        .iter()
        .map(|name| stage.sessions.lock(name).lease(lease).acquire(SOON).unwrap())
        .collect();
    let slot = stage.cluster.slot("rediscope:lock:{l:0}");
    let from = stage.cluster.owner(slot).unwrap();
    stage.cluster.migrate(slot, (from + 1) % 3);
    let renewals = stage.sessions.status().locks.renewals;
    eventually(SOON, "all were extended, twice", || {
        stage.sessions.status().locks.renewals >= renewals + 12
    });
    for (name, guard) in names.iter().zip(guards) {
        assert!(stage.sessions.lock(name).is_locked().unwrap());
        guard.release().unwrap();
    }
}

#[test]
fn a_transaction_that_is_fenced_by_a_lock_is_in_the_locks_slot() {
    let stage = Stage::start();
    let guard = stage.sessions.lock("report").acquire(SOON).unwrap();
    let fenced = stage.sessions.transactional().fenced_by(&guard);
    assert_eq!(fenced.run(|tx| Ok(tx.incr("{report}:n", 1))).unwrap(), 1);
    let n: i64 = fenced
        .watch(["{report}:n"])
        .run(|read, tx| {
            let n: i64 = read.get("{report}:n")?;
            Ok(tx.incr("{report}:n", n))
        })
        .unwrap();
    assert_eq!(n, 2);
    let key = stage
        .keys("k")
        .into_iter()
        .find(|key| stage.cluster.slot(key) != stage.cluster.slot("report"));
    let error = fenced.run(|tx| Ok(tx.incr(key.unwrap(), 1))).unwrap_err();
    let slots = |source: &Error| matches!(source, Error::CrossSlot { .. });
    assert!(
        matches!(error.as_commit(), Some(CommitError::NotSent { source, .. }) if slots(source)),
        "{error}"
    );
    assert!(stage.sessions.lock("report").force_release().unwrap());
    let error = fenced.run(|tx| Ok(tx.incr("{report}:n", 1))).unwrap_err();
    assert!(matches!(error.as_commit(), Some(CommitError::LockLost)), "{error}");
    assert_eq!(stage.cluster.read::<i64>(&["GET", "{report}:n"]), 2);
}
