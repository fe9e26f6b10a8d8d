//! `Rejected` because of the server's state: nothing was applied, and it may pass.
//!
//! Guarantee: rejected

use crate::fixture::{LONG, SOON, immediate};
use crate::side::{BuildSide as _, SessionManager};
use std::collections::BTreeSet;
use std::path::PathBuf;

use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::status::CloseReason;

use super::rejected::rejected;
use crate::fixture::proxied::{
    Proxied, assert_outcome, commit_error, exists, no_connection_is_in_multi, pool_is_whole, warm,
};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, not_run};

/// One open connection straight to the server, trusted.
fn sessions(server: &Server) -> SessionManager {
    let builder = SessionManager::builder(server.url()).max_size(1).trust_window(LONG);
    let sessions = builder.build_side().unwrap();
    warm(&sessions);
    sessions
}

/// While the server is in the state, a block with this write is rejected with `code`, which is
/// worth another try; behind it nothing is applied.
#[track_caller]
fn refuses_writes(sessions: &SessionManager, server: &Server, code: &str) {
    let mut runs = 0;
    let by_run = commit_error(sessions.transactional().run(|tx| {
        runs += 1;
        Ok((tx.set("key", "a value"), tx.ping()))
    }));
    let mut tx = sessions.transactional().begin().unwrap();
    tx.set("key", "a value");
    tx.ping();
    for error in [by_run, tx.commit().unwrap_err()] {
        assert_eq!(rejected(&error), (Some(0), "SET", code));
        assert_outcome(&error, Applied::No, true);
    }
    assert_eq!((runs, exists(server, "key")), (1, false));
    assert_eq!(sessions.status().transactional.in_use, 0);
    no_connection_is_in_multi(server);
}

#[test]
fn a_server_out_of_memory_keeps_its_code_oom() {
    let server = Server::start();
    let sessions = sessions(&server);
    server.config_set("maxmemory-policy", "noeviction");
    server.config_set("maxmemory", "1");
    refuses_writes(&sessions, &server, "OOM");
    server.config_set("maxmemory", "0");
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_replica_keeps_its_code_readonly_and_is_left_for_good_when_it_is_promoted() {
    let primary = Server::start();
    let replica = Server::replica_of(&primary);
    let builder = SessionManager::builder(replica.url()).max_size(3).trust_window(LONG);
    let sessions = builder.build_side().unwrap();
    let all_three = || {
        let scopes = [(); 3].map(|()| sessions.transactional().begin_with(immediate()).unwrap());
        drop(scopes);
        crate::side::settled(&sessions);
    };
    all_three();
    let before = users(&replica);
    assert_eq!(before.len(), 3);
    refuses_writes(&sessions, &replica, "READONLY");
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    pool_is_whole(&sessions, &replica);
    // Each is met once more, and not kept.
    all_three();
    let status = sessions.status().transactional;
    assert_eq!(status.counts.replaced, [(CloseReason::Outdated, 3)], "{status}");
    eventually(SOON, "every older one is closed", || users(&replica).is_disjoint(&before));
}

/// Which connections the server has, the one to its master aside.
fn users(server: &Server) -> BTreeSet<String> {
    let clients = server.client_list().into_iter();
    clients.filter(|client| client["flags"] == "N").map(|client| client["id"].clone()).collect()
}

#[test]
fn a_primary_without_enough_replicas_keeps_its_code_noreplicas() {
    let server = Server::start();
    let sessions = sessions(&server);
    server.config_set("min-replicas-to-write", "1");
    refuses_writes(&sessions, &server, "NOREPLICAS");
    server.config_set("min-replicas-to-write", "0");
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_server_that_cannot_save_keeps_its_code_misconf() {
    let server = Server::start();
    let sessions = sessions(&server);
    let home = server.ask::<Vec<String>>(&["CONFIG", "GET", "dir"]).remove(1);
    // A file cannot be renamed onto a directory by any user; permissions would not stop root.
    let in_the_way = PathBuf::from(home).join("dump.rdb");
    std::fs::create_dir(&in_the_way).unwrap();
    server.config_set("save", "3600 1");
    let save = |wanted: &str| {
        eventually(SOON, "the last save ended so", || {
            let running = server.info("rdb_bgsave_in_progress").as_deref() == Some("1");
            let ended = server.info("rdb_last_bgsave_status").as_deref() == Some(wanted);
            if !running && !ended {
                let _: redis::Value = server.ask(&["BGSAVE", "SCHEDULE"]);
            }
            !running && ended
        });
    };
    save("err");
    refuses_writes(&sessions, &server, "MISCONF");
    std::fs::remove_dir(&in_the_way).unwrap();
    save("ok");
    pool_is_whole(&sessions, &server);
    server.config_set("save", "");
}

#[test]
fn a_loading_server_keeps_its_code_loading() {
    let (primary, replica) = (Server::start(), Server::start());
    if !replica.knows("CONFIG|GET") {
        return not_run("Redis 6 has no setting that makes it slow to load");
    }
    primary.config_set("repl-diskless-sync-delay", "0");
    primary.config_set("rdbcompression", "no");
    let value = "x".repeat(4096);
    for key in 0..1000 {
        primary.ask::<()>(&["SET", &format!("load:{key}"), &value]);
    }
    // One key each 50 ms, and the clients are served in between.
    replica.config_set("key-load-delay", "50000");
    replica.config_set("loading-process-events-interval-bytes", "1024");
    let sessions = sessions(&replica);
    replica.ask::<()>(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
    eventually(SOON, "the replica loads", || replica.info("loading").as_deref() == Some("1"));
    let error = commit_error(sessions.transactional().run(|tx| Ok(tx.get::<_, String>("key"))));
    assert_eq!(rejected(&error), (Some(0), "GET", "LOADING"));
    assert_outcome(&error, Applied::No, true);
    assert_eq!(replica.info("loading").as_deref(), Some("1"), "it still loads");
    replica.config_set("key-load-delay", "0");
    eventually(SOON, "it is through", || replica.info("loading").as_deref() == Some("0"));
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    pool_is_whole(&sessions, &replica);
}

// The server changes its mind between queueing and EXEC.

/// Has a command queued on the server, lets `change` happen, and commits.
#[track_caller]
fn exec_is_refused(fixture: &Proxied, change: impl FnOnce(), code: &str, retryable: bool) {
    let sessions = fixture.warm(fixture.builder().trust_window(LONG).flush_bytes(1));
    let mut tx = sessions.transactional().begin().unwrap();
    tx.set("key", "a value");
    crate::side::send_ahead(&mut tx);
    assert_eq!(fixture.journal(), ["MULTI", "SET"], "it was sent ahead");
    change();
    tx.check().unwrap();
    let error = tx.commit().unwrap_err();
    assert_eq!(rejected(&error), (None, "EXEC", code));
    assert_outcome(&error, Applied::No, retryable);
    assert!(!exists(&fixture.server, "key"));
    assert_eq!(sessions.status().transactional.in_use, 0);
    no_connection_is_in_multi(&fixture.server);
}

#[test]
fn exec_refused_by_a_server_that_became_a_replica_keeps_readonly() {
    let (fixture, other) = (Proxied::start(), Server::start());
    let port = other.port().to_string();
    let change = || fixture.server.ask::<()>(&["REPLICAOF", "127.0.0.1", &port]);
    exec_is_refused(&fixture, change, "READONLY", true);
    fixture.server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    pool_is_whole(&fixture.trusting(), &fixture.server);
}

#[test]
fn exec_refused_for_want_of_memory_or_replicas_keeps_the_code() {
    let fixture = Proxied::start();
    exec_is_refused(&fixture, || fixture.server.config_set("maxmemory", "1"), "OOM", true);
    fixture.server.config_set("maxmemory", "0");
    let replicas = |count| fixture.server.config_set("min-replicas-to-write", count);
    exec_is_refused(&fixture, || replicas("1"), "NOREPLICAS", true);
    replicas("0");
    pool_is_whole(&fixture.trusting(), &fixture.server);
}

#[test]
fn a_chunk_that_is_refused_fails_check_and_commit() {
    let fixture = Proxied::start();
    let sessions = fixture.warm(fixture.builder().trust_window(LONG).flush_bytes(1));
    let mut tx = sessions.transactional().begin().unwrap();
    tx.set("key", "a value");
    crate::side::send_ahead(&mut tx);
    tx.check().unwrap();
    tx.queue::<()>(redis::cmd("NOSUCH").arg("x").take());
    crate::side::send_ahead(&mut tx);
    tx.set("key", "another");
    let checked = tx.check().unwrap_err();
    let committed = tx.commit().unwrap_err();
    for error in [&checked, &committed] {
        assert_eq!(rejected(error), (Some(1), "NOSUCH", "ERR"));
        assert_outcome(error, Applied::No, false);
    }
    assert_eq!(fixture.journal(), ["MULTI", "SET", "NOSUCH", "DISCARD"]);
    assert!(!exists(&fixture.server, "key"));
    pool_is_whole(&sessions, &fixture.server);
}
