//! A marker that is gone: no call returns an outcome without a proof.
//!
//! Guarantee: exactly-once

use crate::fixture::{Fixture, OF_ONE, SOON, add_on_each};
use std::time::Duration;

use crate::side::{ResolveDoubt as _, SessionManager};
use rediscope::error::{ConnectionErrorKind, InDoubt, Resolution, UnresolvedReason};
use rediscope::prelude::*;

use super::fixture::{Fate, doubt, start, start_with};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};
use rediscope_testing::server::Server;

/// Not unlike [`Fixture::doubted`]; what was not applied can still arrive.
#[track_caller]
fn late(fixture: &Fixture) -> InDoubt {
    let mut tx = fixture.armed().begin().unwrap();
    tx.incr("n", 1);
    fixture.arm(Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests);
    doubt(tx.commit())
}

fn gone() -> Resolution {
    Resolution::StillUnknown { why: UnresolvedReason::RegisterGone }
}

#[track_caller]
fn refused_with(code: &str, resolution: &Resolution) {
    let Resolution::StillUnknown { why: UnresolvedReason::Refused(error) } = resolution else {
        panic!("not refused: {resolution:?}");
    };
    assert_eq!(error.code(), code, "{error}");
}

/// How a register is lost.
type Loss = fn(&Fixture);

/// The least recently used go, until there is room for nothing.
fn evict_everything(fixture: &Fixture) {
    fixture.server.config_set("maxmemory-policy", "allkeys-lru");
    fixture.server.config_set("maxmemory", "1");
    eventually(SOON, "the registers are evicted", || fixture.registers().is_empty());
    fixture.server.config_set("maxmemory", "0");
    fixture.server.config_set("maxmemory-policy", "noeviction");
}

fn delete(fixture: &Fixture) {
    for register in fixture.registers() {
        fixture.server.ask::<i64>(&["DEL", &register]);
    }
}

#[test]
fn a_register_that_was_deleted_flushed_or_evicted_proves_nothing() {
    let losses: [(&str, Loss); 4] = [
        ("deleted", delete),
        ("flushed", |fixture| fixture.server.ask(&["FLUSHDB"])),
        ("flushed with all others", |fixture| fixture.server.ask(&["FLUSHALL", "ASYNC"])),
        ("evicted", evict_everything),
    ];
    for (how, lose) in losses {
        for fate in Fate::BOTH {
            let fixture = start();
            let doubt = fixture.doubted(&fixture.armed(), fate);
            lose(&fixture);
            assert_eq!(doubt.resolved(), gone(), "{how}, {fate:?}");
            assert_eq!(doubt.resolved(), gone(), "asking makes no register");
            assert!(fixture.registers().is_empty());
        }
        let fixture = start();
        let doubt = late(&fixture);
        lose(&fixture);
        assert_eq!(doubt.resolved(), gone(), "{how}, on its way");
        let executed = fixture.server.calls("exec");
        fixture.proxy.release();
        eventually(SOON, "the late EXEC has arrived", || fixture.server.calls("exec") > executed);
        assert_eq!(doubt.resolved(), gone(), "{how}, arrived");
        assert_eq!(fixture.number("n"), 0, "a watched key was {how}");
    }
}

#[test]
fn a_register_that_is_lost_while_the_connection_lives_is_created_again_and_proves_again() {
    for lose in [delete as Loss, evict_everything] {
        for fate in Fate::BOTH {
            let fixture = start();
            let handle = fixture.armed();
            lose(&fixture);
            add_on_each(&handle, "n");
            assert_eq!(fixture.doubted(&handle, fate).resolved(), fate.truth());
            assert_eq!(fixture.number("n"), OF_ONE as i64 + fate.count());
        }
    }
}

#[test]
fn a_register_that_expired_proves_nothing() {
    for fate in Fate::BOTH {
        let fixture = start_with(&[], |builder| builder.register_ttl(Duration::from_secs(1)));
        let doubt = fixture.doubted(&fixture.armed(), fate);
        eventually(SOON, "the register has expired", || fixture.registers().is_empty());
        assert_eq!(doubt.resolved(), gone());
        assert_eq!(fixture.number("n"), fate.count());
    }
}

#[test]
fn asking_keeps_a_register_alive() {
    let fixture = start_with(&[], |builder| builder.register_ttl(Duration::from_secs(2)));
    let doubt = fixture.doubted(&fixture.armed(), Fate::NotApplied);
    let register = &doubt.token().unwrap().register;
    let left = || fixture.server.ask::<i64>(&["PTTL", register]);
    eventually(SOON, "half of its life is over", || left() < 1000);
    assert_eq!(doubt.resolved(), Resolution::NotCommitted);
    assert!(left() > 1000);
}

#[test]
fn a_register_that_holds_something_else_proves_nothing() {
    let fixture = start();
    let doubt = fixture.doubted(&fixture.armed(), Fate::Applied);
    let token = doubt.token().unwrap();
    let later = (token.number + 1).to_string();
    let foreign = Resolution::StillUnknown { why: UnresolvedReason::RegisterForeign };
    for value in [&later, "-1", "", "one", "1 ", "99999999999999999999"] {
        fixture.server.ask::<()>(&["SET", &token.register, value]);
        assert_eq!(doubt.resolved(), foreign, "{value:?}");
    }
    fixture.server.ask::<i64>(&["DEL", &token.register]);
    fixture.server.ask::<i64>(&["RPUSH", &token.register, &token.number.to_string()]);
    refused_with("WRONGTYPE", &doubt.resolved());
    assert_eq!(fixture.number("n"), 1);
}

#[test]
fn a_server_without_enough_replicas_leaves_the_doubt_and_resolves_it_when_it_has_them() {
    for fate in Fate::BOTH {
        let fixture = start();
        let doubt = fixture.doubted(&fixture.armed(), fate);
        fixture.server.config_set("min-replicas-to-write", "1");
        refused_with("NOREPLICAS", &doubt.resolved());
        fixture.server.config_set("min-replicas-to-write", "0");
        assert_eq!(doubt.resolved(), fate.truth());
        assert_eq!(fixture.number("n"), fate.count());
    }
}

#[test]
fn a_server_that_became_a_replica_leaves_the_doubt_and_resolves_it_as_a_master() {
    for fate in Fate::BOTH {
        let fixture = start();
        let doubt = fixture.doubted(&fixture.armed(), fate);
        // Of no server: what it has, it keeps.
        fixture.server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
        refused_with("READONLY", &doubt.resolved());
        fixture.server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        assert_eq!(doubt.resolved(), fate.truth());
        assert_eq!(fixture.number("n"), fate.count());
    }
}

#[test]
fn a_user_without_the_right_to_touch_registers_keeps_the_doubt() {
    let fixture = start();
    let doubt = fixture.doubted(&fixture.armed(), Fate::NotApplied);
    fixture.server.acl(&["SETUSER", "guest", "on", ">secret", "~n", "+@all"]);
    let guest = SessionManager::connect(fixture.server.url_as("guest", "secret")).unwrap();
    refused_with("NOPERM", &guest.resolve(doubt.token().unwrap(), None));
    fixture.server.acl(&["SETUSER", "guest", "allkeys", "-pexpire"]);
    refused_with("NOPERM", &guest.resolve(doubt.token().unwrap(), None));
    assert_eq!(doubt.resolved(), Resolution::NotCommitted);
}

#[test]
fn after_a_failover_the_promoted_replica_resolves_what_it_has() {
    let fixture = start();
    let replica = Server::replica_of(&fixture.server);
    let has = |key: &str| replica.ask::<Option<i64>>(&["GET", key]);
    let handle = fixture.armed();
    eventually(SOON, "the replica has the registers", || {
        fixture.registers().iter().all(|register| has(register) == Some(2))
    });
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    let doubt = fixture.doubted(&handle, Fate::Applied);
    assert_eq!(fixture.number("n"), 1, "and lost with the master");
    fixture.server.sigkill();
    fixture.proxy.set_upstream(replica.address());
    assert_eq!(doubt.resolved(), Resolution::NotCommitted);
    let there = SessionManager::connect(replica.url()).unwrap();
    assert_eq!(there.resolve(doubt.token().unwrap(), None), Resolution::NotCommitted);
    assert_eq!(has("n"), None);
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1, "so it may be done again");
    assert_eq!(has("n"), Some(1));
}

#[test]
fn a_promoted_replica_without_the_register_leaves_the_doubt() {
    let fixture = start();
    let replica = Server::replica_of(&fixture.server);
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    let doubt = fixture.doubted(&fixture.armed(), Fate::Applied);
    fixture.server.sigkill();
    fixture.proxy.set_upstream(replica.address());
    assert_eq!(doubt.resolved(), gone());
}

#[test]
fn a_promoted_replica_that_has_the_write_resolves_as_committed() {
    let fixture = start();
    let replica = Server::replica_of(&fixture.server);
    let doubt = fixture.doubted(&fixture.armed(), Fate::Applied);
    let has = || replica.ask::<Option<i64>>(&["GET", "n"]);
    eventually(SOON, "the replica has the write", || has() == Some(1));
    fixture.server.sigkill();
    fixture.proxy.set_upstream(replica.address());
    refused_with("READONLY", &doubt.resolved());
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(doubt.resolved(), Resolution::Committed);
    assert_eq!(has(), Some(1));
}

#[test]
fn a_server_that_forgot_everything_leaves_the_doubt() {
    for fate in Fate::BOTH {
        let fixture = start();
        let doubt = fixture.doubted(&fixture.armed(), fate);
        fixture.server.sigkill();
        fixture.server.restart_on_same_port();
        assert_eq!(doubt.resolved(), gone());
        assert_eq!(fixture.number("n"), 0);
    }
}

#[test]
fn a_server_that_kept_its_data_resolves_the_doubt_after_it_was_killed() {
    for fate in Fate::BOTH {
        let fixture = start_with(&["--appendonly", "yes", "--appendfsync", "always"], |builder| {
            // Everything may take as long as a busy disk does.
            builder.response_timeout(SOON).checkout_timeout(SOON * 3)
        });
        let doubt = fixture.doubted(&fixture.armed(), fate);
        fixture.server.sigkill();
        fixture.server.restart_on_same_port();
        assert_eq!(doubt.resolved(), fate.truth());
        assert_eq!(fixture.number("n"), fate.count());
    }
}

#[test]
fn a_closed_session_sends_no_query() {
    let fixture = start();
    let doubt = fixture.doubted(&fixture.armed(), Fate::Applied);
    fixture.sessions.close(Duration::ZERO);
    let connections = fixture.proxy.accepted();
    let Resolution::StillUnknown { why: UnresolvedReason::Unreachable(error) } = doubt.resolved()
    else {
        panic!("it asked");
    };
    assert_eq!(error.kind(), ConnectionErrorKind::Closed);
    assert_eq!(fixture.proxy.accepted(), connections);
    let another = SessionManager::connect(fixture.server.url()).unwrap();
    assert_eq!(another.resolve(doubt.token().unwrap(), None), Resolution::Committed);
}

#[test]
fn a_block_that_run_cannot_resolve_stays_in_doubt() {
    let fixture = start();
    let handle = fixture.armed();
    fixture.server.acl(&["SETUSER", "default", "-pexpire"]);
    fixture.lose(Fate::Applied);
    let mut runs = 0;
    let lost = handle.watch(["w"]).run(|_, tx| {
        runs += 1;
        Ok(tx.incr("n", 1))
    });
    let lost = super::fixture::commit_error(lost);
    let doubt = doubt(Err::<(), _>(lost));
    assert_eq!((fixture.number("n"), runs), (1, 1), "and it was not run again");
    fixture.server.acl(&["SETUSER", "default", "+pexpire"]);
    assert_eq!(doubt.resolved(), Resolution::Committed);
}
