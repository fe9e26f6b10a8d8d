//! Where the fence is gone: nobody is told anything that is not proven.

use std::time::Duration;

use rediscope::prelude::*;
use rediscope::{ConnectionErrorKind, InDoubt, Resolution, SessionManager, UnresolvedReason};

use super::stage::{Fate, SOON, Stage, doubt};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};
use rediscope_testing::server::Server;

/// Not unlike [`Stage::doubted`]; what was not applied can still arrive.
#[track_caller]
fn late(stage: &Stage) -> InDoubt {
    let mut tx = stage.armed().begin().unwrap();
    tx.incr("n", 1);
    stage.arm(Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests);
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
type Loss = fn(&Stage);

/// The least recently used go, until there is room for nothing.
fn evict_everything(stage: &Stage) {
    stage.server.config_set("maxmemory-policy", "allkeys-lru");
    stage.server.config_set("maxmemory", "1");
    eventually(SOON, "the registers are evicted", || stage.registers().is_empty());
    stage.server.config_set("maxmemory", "0");
    stage.server.config_set("maxmemory-policy", "noeviction");
}

fn delete(stage: &Stage) {
    for register in stage.registers() {
        stage.server.ask::<i64>(&["DEL", &register]);
    }
}

#[test]
fn a_register_that_was_deleted_flushed_or_evicted_proves_nothing() {
    let losses: [(&str, Loss); 4] = [
        ("deleted", delete),
        ("flushed", |stage| stage.server.ask(&["FLUSHDB"])),
        ("flushed with all others", |stage| stage.server.ask(&["FLUSHALL", "ASYNC"])),
        ("evicted", evict_everything),
    ];
    for (how, lose) in losses {
        for fate in Fate::BOTH {
            let stage = Stage::new();
            let doubt = stage.doubted(&stage.armed(), fate);
            lose(&stage);
            assert_eq!(doubt.resolve(), gone(), "{how}, {fate:?}");
            assert_eq!(doubt.resolve(), gone(), "asking makes no register");
            assert!(stage.registers().is_empty());
        }
        let stage = Stage::new();
        let doubt = late(&stage);
        lose(&stage);
        assert_eq!(doubt.resolve(), gone(), "{how}, on its way");
        let executed = stage.server.calls("exec");
        stage.proxy.release();
        eventually(SOON, "the late EXEC has arrived", || stage.server.calls("exec") > executed);
        assert_eq!(doubt.resolve(), gone(), "{how}, arrived");
        assert_eq!(stage.number("n"), 0, "a watched key was {how}");
    }
}

#[test]
fn a_register_that_is_lost_while_the_link_lives_is_made_anew_and_proves_again() {
    for lose in [delete as Loss, evict_everything] {
        for fate in Fate::BOTH {
            let stage = Stage::new();
            let handle = stage.armed();
            lose(&stage);
            assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
            assert_eq!(stage.doubted(&handle, fate).resolve(), fate.truth());
            assert_eq!(stage.number("n"), 1 + fate.count());
        }
    }
}

#[test]
fn a_register_that_expired_proves_nothing() {
    for fate in Fate::BOTH {
        let stage = Stage::with(&[], |builder| builder.register_ttl(Duration::from_secs(1)));
        let doubt = stage.doubted(&stage.armed(), fate);
        eventually(SOON, "the register has expired", || stage.registers().is_empty());
        assert_eq!(doubt.resolve(), gone());
        assert_eq!(stage.number("n"), fate.count());
    }
}

#[test]
fn asking_keeps_a_register_alive() {
    let stage = Stage::with(&[], |builder| builder.register_ttl(Duration::from_secs(2)));
    let doubt = stage.doubted(&stage.armed(), Fate::NotApplied);
    let register = &doubt.token().unwrap().register;
    let left = || stage.server.ask::<i64>(&["PTTL", register]);
    eventually(SOON, "half of its life is over", || left() < 1000);
    assert_eq!(doubt.resolve(), Resolution::NotCommitted);
    assert!(left() > 1000);
}

#[test]
fn a_register_that_holds_something_else_proves_nothing() {
    let stage = Stage::new();
    let doubt = stage.doubted(&stage.armed(), Fate::Applied);
    let token = doubt.token().unwrap();
    let later = (token.number + 1).to_string();
    let foreign = Resolution::StillUnknown { why: UnresolvedReason::RegisterForeign };
    for value in [&later, "-1", "", "one", "1 ", "99999999999999999999"] {
        stage.server.ask::<()>(&["SET", &token.register, value]);
        assert_eq!(doubt.resolve(), foreign, "{value:?}");
    }
    stage.server.ask::<i64>(&["DEL", &token.register]);
    stage.server.ask::<i64>(&["RPUSH", &token.register, &token.number.to_string()]);
    refused_with("WRONGTYPE", &doubt.resolve());
    assert_eq!(stage.number("n"), 1);
}

#[test]
fn a_server_without_the_replicas_it_wants_refuses_to_tell_and_tells_when_it_has_them() {
    for fate in Fate::BOTH {
        let stage = Stage::new();
        let doubt = stage.doubted(&stage.armed(), fate);
        stage.server.config_set("min-replicas-to-write", "1");
        refused_with("NOREPLICAS", &doubt.resolve());
        stage.server.config_set("min-replicas-to-write", "0");
        assert_eq!(doubt.resolve(), fate.truth());
        assert_eq!(stage.number("n"), fate.count());
    }
}

#[test]
fn a_server_that_became_a_replica_refuses_to_tell_and_tells_as_a_master() {
    for fate in Fate::BOTH {
        let stage = Stage::new();
        let doubt = stage.doubted(&stage.armed(), fate);
        // Of nobody: what it has, it keeps.
        stage.server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
        refused_with("READONLY", &doubt.resolve());
        stage.server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        assert_eq!(doubt.resolve(), fate.truth());
        assert_eq!(stage.number("n"), fate.count());
    }
}

#[test]
fn a_user_without_the_right_to_touch_registers_is_told_nothing() {
    let stage = Stage::new();
    let doubt = stage.doubted(&stage.armed(), Fate::NotApplied);
    stage.server.acl(&["SETUSER", "guest", "on", ">secret", "~n", "+@all"]);
    let guest = SessionManager::connect(stage.server.url_as("guest", "secret")).unwrap();
    refused_with("NOPERM", &guest.resolve(doubt.token().unwrap()));
    stage.server.acl(&["SETUSER", "guest", "allkeys", "-pexpire"]);
    refused_with("NOPERM", &guest.resolve(doubt.token().unwrap()));
    assert_eq!(doubt.resolve(), Resolution::NotCommitted);
}

#[test]
fn after_a_failover_the_promoted_replica_answers_for_what_it_has() {
    let stage = Stage::new();
    let replica = Server::replica_of(&stage.server);
    let has = |key: &str| replica.ask::<Option<i64>>(&["GET", key]);
    let handle = stage.armed();
    let register = stage.registers().remove(0);
    eventually(SOON, "the replica has the register", || has(&register) == Some(2));
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    let doubt = stage.doubted(&handle, Fate::Applied);
    assert_eq!(stage.number("n"), 1, "and lost with the master");
    stage.server.sigkill();
    stage.proxy.set_upstream(replica.address());
    assert_eq!(doubt.resolve(), Resolution::NotCommitted);
    let there = SessionManager::connect(replica.url()).unwrap();
    assert_eq!(there.resolve(doubt.token().unwrap()), Resolution::NotCommitted);
    assert_eq!(has("n"), None);
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1, "so it may be done again");
    assert_eq!(has("n"), Some(1));
}

#[test]
fn a_promoted_replica_that_never_had_the_register_tells_nothing() {
    let stage = Stage::new();
    let replica = Server::replica_of(&stage.server);
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    let doubt = stage.doubted(&stage.armed(), Fate::Applied);
    stage.server.sigkill();
    stage.proxy.set_upstream(replica.address());
    assert_eq!(doubt.resolve(), gone());
}

#[test]
fn a_promoted_replica_that_has_the_write_says_so() {
    let stage = Stage::new();
    let replica = Server::replica_of(&stage.server);
    let doubt = stage.doubted(&stage.armed(), Fate::Applied);
    let has = || replica.ask::<Option<i64>>(&["GET", "n"]);
    eventually(SOON, "the replica has the write", || has() == Some(1));
    stage.server.sigkill();
    stage.proxy.set_upstream(replica.address());
    refused_with("READONLY", &doubt.resolve());
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(doubt.resolve(), Resolution::Committed);
    assert_eq!(has(), Some(1));
}

#[test]
fn a_server_that_forgot_everything_tells_nothing() {
    for fate in Fate::BOTH {
        let stage = Stage::new();
        let doubt = stage.doubted(&stage.armed(), fate);
        stage.server.sigkill();
        stage.server.restart_on_same_port();
        assert_eq!(doubt.resolve(), gone());
        assert_eq!(stage.number("n"), 0);
    }
}

#[test]
fn a_server_that_remembers_tells_after_it_was_killed() {
    for fate in Fate::BOTH {
        let stage = Stage::with(&["--appendonly", "yes", "--appendfsync", "always"], |builder| {
            // Everything may take as long as a busy disk does.
            builder.response_timeout(SOON).checkout_timeout(SOON * 3)
        });
        let doubt = stage.doubted(&stage.armed(), fate);
        stage.server.sigkill();
        stage.server.restart_on_same_port();
        assert_eq!(doubt.resolve(), fate.truth());
        assert_eq!(stage.number("n"), fate.count());
    }
}

#[test]
fn a_closed_session_asks_nobody() {
    let stage = Stage::new();
    let doubt = stage.doubted(&stage.armed(), Fate::Applied);
    stage.sessions.close(Duration::ZERO);
    let connections = stage.proxy.accepted();
    let Resolution::StillUnknown { why: UnresolvedReason::Unreachable(error) } = doubt.resolve()
    else {
        panic!("it asked");
    };
    assert_eq!(error.kind(), ConnectionErrorKind::Closed);
    assert_eq!(stage.proxy.accepted(), connections);
    let another = SessionManager::connect(stage.server.url()).unwrap();
    assert_eq!(another.resolve(doubt.token().unwrap()), Resolution::Committed);
}

#[test]
fn what_run_cannot_find_out_stays_in_doubt() {
    let stage = Stage::new();
    let handle = stage.armed();
    stage.server.acl(&["SETUSER", "default", "-pexpire"]);
    stage.lose(Fate::Applied);
    let mut runs = 0;
    let lost = handle.watch(["w"]).run(|_, tx| {
        runs += 1;
        Ok(tx.incr("n", 1))
    });
    let lost = super::stage::commit_error(lost);
    let doubt = doubt(Err::<(), _>(lost));
    assert_eq!((stage.number("n"), runs), (1, 1), "and it was not run again");
    stage.server.acl(&["SETUSER", "default", "+pexpire"]);
    assert_eq!(doubt.resolve(), Resolution::Committed);
}
