//! Connections, doubts and locks when the master changes.
//!
//! Guarantee: sentinels

use super::{CLOSED_WITHIN, FAILOVER};
use crate::side::{BuildSide as _, SessionManager};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::TransactionOptions;
use rediscope::error::Applied;
use rediscope::prelude::*;

use rediscope_testing::sentinel::{Group, clients, listeners};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, in_time};

fn knows(sessions: &SessionManager, master: &Server) -> bool {
    sessions.status().server.ends_with(&format!(":{}", master.port()))
}

#[test]
fn no_connection_to_a_former_master_outlives_the_switch() {
    let group = Group::start();
    let sessions = SessionManager::connect(group.url()).unwrap();
    let accounts = sessions.transactional();
    let mut db = sessions.pooled();
    let _: () = db.set("a", 1).unwrap();
    // In a scope, in MULTI, watching, blocking, idle.
    let mut queued =
        accounts.begin_with(TransactionOptions::new().begin(rediscope::Begin::Immediate)).unwrap();
    queued.incr("reported", 1);
    let watching = accounts.watch(["a"]).begin().unwrap();
    let blocked = thread::spawn({
        let mut db = sessions.pooled();
        move || {
            let begun = Instant::now();
            let popped: rediscope::redis::RedisResult<Option<(String, String)>> =
                db.blpop("list", 20.0);
            (popped, begun.elapsed())
        }
    });
    let former = &group.servers[0];
    eventually(FAILOVER, "all of them are connected", || clients(former) >= 3);
    group.fail_over();
    eventually(FAILOVER, "the switch is known", || !knows(&sessions, former));
    eventually(CLOSED_WITHIN, "no client is connected to the former master", || {
        clients(former) == 0
    });
    let (popped, waited) = blocked.join().unwrap();
    assert!(popped.is_err() && waited < Duration::from_secs(20), "{popped:?} after {waited:?}");
    // What was watched there is not watched here; what only waited to be sent is sent here.
    let mut lost = watching.multi();
    lost.set("lost", 1);
    let reported = lost.commit().unwrap_err();
    assert_eq!(reported.applied(), Applied::No, "{reported}");
    queued.commit().unwrap();
    let successor = group.successor_of(former.port());
    assert_eq!(accounts.run(|tx| Ok(tx.incr("after", 1))).unwrap(), 1);
    assert_eq!(successor.ask::<i64>(&["GET", "after"]), 1);
    assert_eq!(successor.ask::<Option<i64>>(&["GET", "reported"]), Some(1));
    assert_eq!(successor.ask::<Option<i64>>(&["GET", "lost"]), None);
    assert_eq!(sessions.status().transactional.in_use, 0);
}

#[test]
fn a_former_master_that_comes_back_is_not_written_to() {
    let group = Group::start();
    let sessions = SessionManager::connect(group.url()).unwrap();
    let accounts = sessions.transactional();
    let former = &group.servers[0];
    accounts.run(|tx| Ok(tx.incr("a", 1))).unwrap();
    former.sigkill();
    let successor = group.successor_of(former.port());
    group.end_failovers();
    former.restart_on_same_port();
    // It counts itself as a master until the sentinels make it a replica, some seconds later.
    assert_eq!(former.info("role").as_deref(), Some("master"));
    let mut applied = 0;
    eventually(FAILOVER, "it has become a replica", || {
        applied = accounts.run(|tx| Ok(tx.incr("b", 1))).unwrap();
        // What it gets as a replica counts too.
        let written = former.calls("incr");
        let is_replica = former.info("role").as_deref() == Some("slave");
        assert!(is_replica || written == 0, "it was written to");
        is_replica
    });
    assert_eq!(successor.ask::<i64>(&["GET", "b"]), applied);
    assert!(!knows(&sessions, former));
}

#[test]
fn a_doubt_is_resolved_by_the_present_master() {
    let group = Group::start();
    let sessions = SessionManager::builder(group.url())
        .response_timeout(Duration::from_millis(300))
        .build_side()
        .unwrap();
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    assert_eq!(once.run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    let former = &group.servers[0];
    former.ask::<i64>(&["WAIT", "2", "5000"]);
    former.sigstop();
    // Whether it is written, proven or in doubt: in the end it was applied once, on the successor.
    let reported = in_time(FAILOVER, "the transaction returns", move || {
        let mut last = None;
        for _ in 0..20 {
            match once.run(|tx| Ok(tx.incr("a", 1))) {
                Ok(value) => return Ok(value),
                Err(error) if error.applied() == Applied::No => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap())
    });
    let successor = group.successor_of(former.port());
    assert_eq!(reported.unwrap(), 2);
    assert_eq!(successor.ask::<i64>(&["GET", "a"]), 2);
}

#[test]
fn locks_and_their_wakeups_follow_the_master() {
    let group = Group::start();
    let sessions = SessionManager::connect(group.url()).unwrap();
    let former = &group.servers[0];
    let held = sessions.lock("order").acquire(Duration::from_secs(5)).unwrap();
    former.ask::<i64>(&["WAIT", "2", "5000"]);
    let waiter = thread::spawn({
        let lock = sessions.lock("order");
        move || lock.acquire(Duration::from_secs(40)).map(drop)
    });
    eventually(FAILOVER, "the waiter listens", || listeners(former) == 1);
    group.fail_over();
    let successor = group.successor_of(former.port());
    eventually(FAILOVER, "the waiter listens to the successor", || listeners(successor) >= 1);
    eventually(FAILOVER, "and not to the former", || listeners(former) == 0);
    drop(held);
    waiter.join().unwrap().unwrap();
}

// On tasks the watch for failovers ends with `close()`.
crate::side::threads_only! {
#[test]
fn a_lock_of_a_closed_manager_is_released_on_the_successor() {
    let group = Group::start();
    let sessions = SessionManager::connect(group.url()).unwrap();
    let former = &group.servers[0];
    let lock = sessions.lock("order").lease(Duration::from_secs(60));
    let held = lock.acquire(Duration::from_secs(5)).unwrap();
    former.ask::<i64>(&["WAIT", "2", "5000"]);
    assert_eq!(sessions.close(Duration::ZERO).locks, 1);
    group.fail_over();
    let successor = group.successor_of(former.port());
    eventually(FAILOVER, "the switch is heard of", || knows(&sessions, successor));
    held.ensure_held().unwrap();
    assert_eq!(successor.ask::<i64>(&["EXISTS", "rediscope:lock:{order}"]), 1);
    held.release().unwrap();
    assert_eq!(successor.ask::<i64>(&["EXISTS", "rediscope:lock:{order}"]), 0);
    eventually(FAILOVER, "no connection is left", || clients(former) + clients(successor) == 0);
}
}
