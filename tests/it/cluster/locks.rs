//! Locks in a cluster: each in the slot of its name, with the transactions that it fences.
//!
//! Guarantee: clusters, locks

use crate::fixture::{LONG, SOON};
use crate::side::{BuildSide as _, LockGuard};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::error::LockError;
use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use super::fixture::{ClusterFixture, builder};
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use scopeguard::defer;

/// Bound on the wait of a waiter that receives the wakeup, or that looks at once because its
/// subscription was lost. A waiter without either looks every 30 seconds.
const WOKEN: Duration = Duration::from_secs(10);

#[test]
fn locks_of_every_slot_are_acquired_waited_for_and_released() {
    let fixture = ClusterFixture::start();
    let other = builder(&fixture.cluster).build_side().unwrap();
    for nth in 0..12 {
        let name = format!("lock:{nth}");
        let held = fixture.sessions.lock(&name).acquire(SOON).unwrap();
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
        .map(|node| {
            fixture.cluster.ask::<Vec<String>>(node, &["KEYS", "rediscope:fence:{*}"]).len()
        })
        .iter()
        .sum();
    assert_eq!(counters, 12, "one a slot");
}

#[test]
fn leases_are_extended_while_their_slot_moves_and_several_at_once() {
    let fixture = ClusterFixture::start();
    let lease = Duration::from_secs(3);
    let names: Vec<_> = (0..6).map(|nth| format!("l:{nth}")).collect();
    let guards: Vec<_> = names
        .iter()
        .map(|name| fixture.sessions.lock(name).lease(lease).acquire(SOON).unwrap())
        .collect();
    let slot = fixture.cluster.slot("rediscope:lock:{l:0}");
    let from = fixture.cluster.owner(slot).unwrap();
    fixture.cluster.migrate(slot, (from + 1) % 3);
    let renewals = fixture.sessions.status().locks.renewals;
    eventually(SOON, "all were extended, twice", || {
        fixture.sessions.status().locks.renewals >= renewals + 12
    });
    for (name, guard) in names.iter().zip(guards) {
        assert!(fixture.sessions.lock(name).is_locked().unwrap());
        guard.release().unwrap();
    }
}

/// Neither its lease nor its release waits behind those of the other locks.
#[test]
fn a_master_that_does_not_answer_costs_no_lock_of_another_one() {
    let cluster = Cluster::with(3, 0, &["--cluster-require-full-coverage", "no"]);
    let fixture = ClusterFixture::of(cluster);
    let (cluster, sessions) = (&fixture.cluster, &fixture.sessions);
    let [_, second, third] = fixture.keys("l");
    let lease = Duration::from_secs(4);
    let acquire = |name: &str, lease| sessions.lock(name).lease(lease).acquire(SOON).unwrap();
    let slots = cluster.slots_of(0);
    let is_on_first = |name: &String| slots.contains(&cluster.slot(name));
    let names = (0..).map(|nth| format!("{{{nth}}}:l")).filter(is_on_first).take(12);
    let names: Vec<_> = names.collect();
    let _on_first: Vec<_> = names.iter().map(|name| acquire(name, lease)).collect();
    let on_others = [&second, &third].map(|name| acquire(name, lease));
    let late = cluster.key_in(cluster.slot_of(1).unwrap(), "late");
    // Longer than this test takes.
    let [kept, released] = [&names[0], &second].map(|name| acquire(&format!("{name}:long"), LONG));

    cluster.nodes()[0].server.sigstop();
    defer! { cluster.nodes()[0].server.sigcont() }
    let begun = Instant::now();
    let late = acquire(&late, lease / 3);
    eventually(SOON, "the others are extended past their ends", || {
        let lost = on_others.iter().chain([&late]).position(LockGuard::is_lost);
        assert_eq!(lost, None, "after {:?}", begun.elapsed());
        begun.elapsed() > lease * 3 / 2
    });

    // The release of `kept` gets no reply, and the other one none at first.
    cluster.nodes()[1].server.sigstop();
    drop((kept, released));
    thread::sleep(Duration::from_secs(1));
    cluster.nodes()[1].server.sigcont();
    eventually(SOON, "it is released", || {
        !sessions.lock(format!("{second}:long")).is_locked().unwrap()
    });
}

#[test]
fn locks_on_every_master_survive_busy_pools_and_are_released_after_the_manager_is_closed() {
    let fixture = ClusterFixture::start();
    let sessions = builder(&fixture.cluster).max_size(1).build_side().unwrap();
    let lease = Duration::from_secs(3);
    let names = fixture.keys("l");
    let guards: Vec<_> =
        names.iter().map(|name| sessions.lock(name).lease(lease).acquire(SOON).unwrap()).collect();
    thread::scope(|scope| {
        for key in fixture.keys("jobs") {
            let mut db = sessions.pooled();
            scope.spawn(move || db.blpop::<_, Option<Vec<String>>>(key, 60.0));
        }
        eventually(SOON, "every pooled connection waits for a job", || {
            sessions.status().pooled.in_use == 3
        });
        let begun = Instant::now();
        eventually(SOON, "all are extended past their ends", || {
            assert!(guards.iter().all(|guard| !guard.is_lost()));
            begun.elapsed() > lease * 3 / 2 && sessions.status().locks.renewals >= 6
        });
        // The jobs end with it.
        assert_eq!(sessions.close(Duration::ZERO).locks, 3);
    });
    for (nth, guard) in guards.into_iter().enumerate() {
        guard.ensure_held().unwrap();
        if nth == 0 { drop(guard) } else { guard.release().unwrap() }
    }
    let keys = |node| {
        let keys: Vec<String> = fixture.cluster.ask(node, &["KEYS", "rediscope:lock:*"]);
        keys.into_iter().filter(|key| !key.contains(":done:")).count()
    };
    assert_eq!([0, 1, 2].map(keys), [0, 0, 0]);
    assert_eq!(sessions.status().locks.lost, 0);
    eventually(SOON, "no connection is left", || {
        fixture.cluster.sum(|server| server.clients() as u64) == 0
    });
}

#[test]
fn releases_in_a_cluster_are_not_remembered_after_their_reply() {
    let fixture = ClusterFixture::start();
    let remembered =
        |node| fixture.cluster.ask::<Vec<String>>(node, &["KEYS", "rediscope:*:done:*"]).len();
    // A deletion that takes a busy machine too long is left to the time to live.
    let in_time = (0..3).any(|_| {
        for nth in 0..60 {
            let lock = fixture.sessions.lock(format!("l:{nth}"));
            lock.acquire(SOON).unwrap().release().unwrap();
        }
        let begun = Instant::now();
        eventually(SOON, "none is remembered", || [0, 1, 2].map(remembered) == [0, 0, 0]);
        begun.elapsed() < Duration::from_secs(5)
    });
    assert!(in_time, "by their time to live");
}

#[test]
fn several_names_in_any_slots_are_held_together_or_not_at_all() {
    let fixture = ClusterFixture::start();
    let other = builder(&fixture.cluster).build_side().unwrap();
    let names = fixture.keys("l");
    assert_eq!(names.len(), 3, "one on each master");
    let free = || names.iter().all(|name| !other.lock(name).is_locked().unwrap());
    let (all, reversed) = (fixture.sessions.lock_all(&names), names.iter().rev());
    let guard = all.acquire(SOON).unwrap();
    assert!(names.iter().all(|name| other.lock(name).try_acquire().unwrap().is_none()));
    assert!(other.lock_all(reversed.clone()).try_acquire().unwrap().is_none());
    thread::scope(|scope| {
        let waits = scope.spawn(|| other.lock_all(reversed).acquire(SOON).unwrap());
        eventually(SOON, "it is waited for", || other.status().locks.waiting == 1);
        guard.release().unwrap();
        let next = waits.join().unwrap();
        next.ensure_held().unwrap();
        next.release().unwrap();
    });
    assert!(free());
    // The last one in order is held: what was acquired on the other masters is released.
    let mut sorted = names.clone();
    sorted.sort();
    let held = other.lock(&sorted[2]).acquire(SOON).unwrap();
    assert!(all.try_acquire().unwrap().is_none());
    held.release().unwrap();
    assert!(free());
}

#[test]
fn a_hold_is_handed_over_and_several_permits_are_taken_while_their_slot_moves() {
    let fixture = ClusterFixture::start();
    let other = builder(&fixture.cluster).build_side().unwrap();
    let slot = fixture.cluster.slot("{l}");
    for round in 0..2 {
        let from = fixture.cluster.owner(slot).unwrap();
        let held = fixture.sessions.lock("l").lease(LONG).acquire(SOON).unwrap();
        let semaphore = |sessions: &crate::side::SessionManager| {
            sessions.semaphore("l", 5).lease(LONG).permits(3)
        };
        let three = semaphore(&fixture.sessions).acquire(SOON).unwrap();
        let (fencing, token) = (held.fencing_token(), held.into_token().unwrap());
        fixture.cluster.migrate(slot, (from + 1) % 3);
        let held = other.lock("l").lease(LONG).adopt(&token).unwrap();
        assert_eq!(held.fencing_token(), fencing, "round {round}");
        assert!(fixture.sessions.lock("l").adopt(&token).is_err());
        assert_eq!(semaphore(&other).available().unwrap(), 2);
        assert!(semaphore(&other).try_acquire().unwrap().is_none());
        three.release().unwrap();
        semaphore(&other).acquire(SOON).unwrap().release().unwrap();
        held.release().unwrap();
    }
}

#[test]
fn a_transaction_that_is_fenced_by_a_lock_is_in_the_locks_slot() {
    let fixture = ClusterFixture::start();
    let guard = fixture.sessions.lock("report").acquire(SOON).unwrap();
    let fenced = fixture.sessions.transactional().fenced_by(&guard);
    assert_eq!(fenced.run(|tx| Ok(tx.incr("{report}:n", 1))).unwrap(), 1);
    let n: i64 = fenced
        .watch(["{report}:n"])
        .run(|read, tx| {
            let n: i64 = read.get("{report}:n")?;
            Ok(tx.incr("{report}:n", n))
        })
        .unwrap();
    assert_eq!(n, 2);
    let key = fixture
        .keys("k")
        .into_iter()
        .find(|key| fixture.cluster.slot(key) != fixture.cluster.slot("report"));
    let error = fenced.run(|tx| Ok(tx.incr(key.unwrap(), 1))).unwrap_err();
    let slots = |source: &Error| matches!(source, Error::CrossSlot { .. });
    assert!(
        matches!(error.as_commit(), Some(CommitError::NotSent { source, .. }) if slots(source)),
        "{error}"
    );
    assert!(fixture.sessions.lock("report").force_release().unwrap());
    let error = fenced.run(|tx| Ok(tx.incr("{report}:n", 1))).unwrap_err();
    assert!(matches!(error.as_commit(), Some(CommitError::LockLost)), "{error}");
    assert_eq!(fixture.cluster.read::<i64>(&["GET", "{report}:n"]), 2);
}

#[test]
fn a_lock_is_held_and_waited_for_wherever_its_slot_goes_and_its_tokens_grow() {
    let fixture = ClusterFixture::start();
    let other = builder(&fixture.cluster).build_side().unwrap();
    let (ours, theirs) = (fixture.sessions.lock("l").lease(LONG), other.lock("l").lease(LONG));
    let slot = fixture.cluster.slot("{l}");
    let mut held = ours.acquire(SOON).unwrap();
    for round in 0..4 {
        let from = fixture.cluster.owner(slot).unwrap();
        let to = (from + 1) % 3;
        let last = held.fencing_token();
        held = thread::scope(|scope| {
            let next = if round % 2 == 0 { &theirs } else { &ours };
            let waits = scope.spawn(|| next.acquire(SOON).unwrap());
            let status = || [&fixture.sessions, &other].map(|one| one.status().locks.waiting);
            eventually(SOON, "it is waited for", || status().iter().sum::<usize>() == 1);
            fixture.cluster.begin_migration(slot, to);
            if round > 1 {
                fixture.cluster.move_keys(slot, from, to, 1);
            }
            fixture.cluster.end_migration(slot, from, to);
            held.ensure_held().unwrap();
            for lock in [&ours, &theirs] {
                assert!(lock.try_acquire().unwrap().is_none(), "it is held");
            }
            let released = Instant::now();
            held.release().unwrap();
            let next = waits.join().unwrap();
            assert!(released.elapsed() < WOKEN, "woken after {:?}", released.elapsed());
            next
        });
        assert!(held.fencing_token() > last);
    }
    held.release().unwrap();
}

/// A master with a lock dies, and its replica, which had heard nothing since it stopped, takes over.
fn dies(fixture: &ClusterFixture, replica_stops: impl FnOnce(&dyn Fn()) -> LockGuard) -> LockGuard {
    let master = fixture.cluster.owner(fixture.cluster.slot("{l}")).unwrap();
    fixture.cluster.let_replica_take_over(master);
    let held = replica_stops(&|| {
        fixture.cluster.nodes()[master + 3].server.sigstop();
        // Or what the master still sends would be read before the promotion.
        fixture.cluster.ask::<i64>(master, &["CLIENT", "KILL", "TYPE", "replica"]);
    });
    let nodes = fixture.cluster.nodes();
    nodes[master].server.sigkill();
    nodes[master + 3].server.sigcont();
    drop(nodes);
    fixture.cluster.await_owner(fixture.cluster.slot("{l}"));
    held
}

#[test]
fn a_lock_that_no_replica_was_waited_for_is_given_away_after_its_master_has_died() {
    let fixture = ClusterFixture::of(Cluster::start(3, 1));
    let held = dies(&fixture, |stop| {
        stop();
        fixture.sessions.lock("l").lease(LONG).acquire(SOON).unwrap()
    });
    let theirs = fixture.sessions.lock("l").try_acquire().unwrap().expect("it is lost");
    assert!(!held.is_lost(), "its holder does not know yet");
    assert!(matches!(held.ensure_held(), Err(Error::Lock(LockError::Lost { .. }))));
    assert!(theirs.fencing_token() > held.fencing_token());
}

#[test]
fn a_lock_that_a_replica_was_waited_for_is_held_after_its_master_has_died() {
    let fixture = ClusterFixture::of(Cluster::start(3, 1));
    let other = builder(&fixture.cluster).build_side().unwrap();
    let replicated = fixture.sessions.lock("l").lease(LONG).wait_replicas(1, SOON);
    let held = dies(&fixture, |stop| {
        let held = replicated.acquire(SOON).unwrap();
        stop();
        held
    });
    let theirs = other.lock("l").lease(LONG);
    thread::scope(|scope| {
        let waits = scope.spawn(|| theirs.acquire(2 * SOON).unwrap());
        eventually(SOON, "it is waited for", || other.status().locks.waiting == 1);
        assert!(fixture.sessions.lock("l").try_acquire().unwrap().is_none(), "it is held");
        held.ensure_held().unwrap();
        assert!(!waits.is_finished());
        let (first, released) = (held.fencing_token(), Instant::now());
        held.release().unwrap();
        let next = waits.join().unwrap();
        assert!(released.elapsed() < WOKEN, "woken after {:?}", released.elapsed());
        assert!(next.fencing_token() > first);
    });
}
