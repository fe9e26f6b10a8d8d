//! Several callers resolve one doubt: the result is the same, and no connection of the pool is needed.
//!
//! Guarantee: exactly-once

use crate::fixture::{Fixture, SOON};
use crate::side::{BuildSide, ResolveDoubt as _};
use std::sync::Barrier;

use crate::side::SessionManager;
use rediscope::error::{InDoubt, Resolution};
use rediscope::prelude::*;

use super::fixture::{Fate, doubt, start, start_with};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

const ASKERS: usize = 8;

/// In doubt, its EXEC held by the proxy.
fn held(fixture: &Fixture) -> InDoubt {
    let mut tx = fixture.armed().begin().unwrap();
    tx.incr("n", 1);
    fixture.arm(Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests);
    doubt(tx.commit())
}

/// Asked by eight at once, in two sessions; `meanwhile` is done while they ask.
fn asked_by_many(fixture: &Fixture, doubt: &InDoubt, meanwhile: impl FnOnce()) -> Vec<Resolution> {
    let another = SessionManager::connect(fixture.server.url()).unwrap();
    let begin = Barrier::new(ASKERS + 1);
    let ask = |nth: usize| {
        begin.wait();
        match nth % 2 {
            0 => doubt.clone().resolved(),
            _ => another.resolve(doubt.token().unwrap(), None),
        }
    };
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..ASKERS).map(|nth| scope.spawn(move || ask(nth))).collect();
        begin.wait();
        meanwhile();
        askers.into_iter().map(|asker| asker.join().unwrap()).collect()
    })
}

#[test]
fn concurrent_resolvers_agree_while_exec_is_on_its_way() {
    let fixture = start();
    let doubt = held(&fixture);
    let executed = fixture.server.calls("exec");
    let reported = asked_by_many(&fixture, &doubt, || {});
    assert_eq!(reported, vec![Resolution::NotCommitted; ASKERS]);
    fixture.proxy.release();
    eventually(SOON, "the late EXEC has arrived", || fixture.server.calls("exec") > executed);
    assert_eq!(fixture.number("n"), 0);
}

#[test]
fn concurrent_resolvers_return_what_is_true_after_exec_arrives() {
    let fixture = start();
    for _ in 0..10 {
        let before = fixture.number("n");
        let doubt = held(&fixture);
        let executed = fixture.server.calls("exec");
        let reported = asked_by_many(&fixture, &doubt, || fixture.proxy.release());
        eventually(SOON, "the late EXEC has arrived", || fixture.server.calls("exec") > executed);
        let truth = match fixture.number("n") - before {
            0 => Resolution::NotCommitted,
            1 => Resolution::Committed,
            other => panic!("applied {other} times"),
        };
        assert_eq!(reported, vec![truth; ASKERS]);
    }
}

#[test]
fn a_doubt_is_resolved_while_another_scope_has_the_only_connection() {
    for fate in Fate::BOTH {
        let fixture = start();
        let handle = fixture.armed();
        let doubt = fixture.doubted(&handle, fate);
        let mut busy = handle.begin().unwrap();
        busy.incr("busy", 1);
        let status = fixture.sessions.status().transactional;
        assert_eq!((status.in_use, status.idle), (1, 0));
        assert_eq!(doubt.resolved(), fate.truth());
        busy.commit().unwrap();
        assert_eq!((fixture.number("n"), fixture.number("busy")), (fate.count(), 1));
    }
}

#[test]
fn a_doubt_outlives_the_session_it_came_from() {
    for fate in Fate::BOTH {
        // A doubt keeps the pool, and the open connections. Here the only one was lost.
        let fixture = start_with(&[], BuildSide::without_lanes);
        let doubt = fixture.doubted(&fixture.armed(), fate);
        let Fixture { server, proxy, sessions, .. } = fixture;
        drop(sessions);
        eventually(SOON, "its connections are closed", || server.clients() == 0);
        assert_eq!(doubt.resolved(), fate.truth());
        assert_eq!(doubt.resolved(), fate.truth(), "and again");
        eventually(SOON, "the resolving connections are closed", || server.clients() == 0);
        drop((doubt, proxy));
    }
}

#[test]
fn asking_leaves_no_connection_behind_and_takes_one_at_a_time() {
    let fixture = start();
    let doubt = fixture.doubted(&fixture.armed(), Fate::Applied);
    fixture.sessions.close(std::time::Duration::ZERO);
    let another = SessionManager::builder(fixture.proxy.url()).build_side().unwrap();
    let before = fixture.proxy.accepted();
    std::thread::scope(|scope| {
        for _ in 0..ASKERS {
            let ask = || another.resolve(doubt.token().unwrap(), None);
            scope.spawn(move || assert_eq!(ask(), Resolution::Committed));
        }
    });
    assert!(fixture.proxy.accepted() - before <= ASKERS as u64);
    eventually(SOON, "no client is connected", || fixture.server.clients() == 0);
}
