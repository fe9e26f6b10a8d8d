//! A server that becomes a replica: older connections are replaced once, and no lost write goes unnoticed.
//!
//! Guarantee: sentinels

use crate::fixture::{SOON, immediate};
use crate::side::{BuildSide as _, SessionManager, Transactional};
use std::collections::BTreeSet;

use rediscope::status::CloseReason;
use rediscope::{CommitError, Error, prelude::*};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

const CONNECTIONS: usize = 4;

/// Opens all connections of the pool and leaves them idle, each of them used once.
fn open_connections(accounts: &Transactional) {
    let guards: Vec<_> = (0..CONNECTIONS)
        .map(|nth| {
            let mut tx = accounts.begin_with(immediate()).unwrap();
            tx.get::<_, ()>(format!("key:{nth}"));
            tx
        })
        .collect();
    guards.into_iter().for_each(|tx| drop(tx.commit().unwrap()));
}

fn ids(server: &Server) -> BTreeSet<String> {
    let clients = server.client_list().into_iter().filter(|client| client["flags"] == "N");
    clients.map(|client| client["id"].clone()).collect()
}

#[test]
fn a_server_that_became_a_replica_has_its_older_connections_replaced_once() {
    let (server, master) = (Server::start(), Server::start());
    let builder = SessionManager::builder(server.url()).max_size(CONNECTIONS as u32);
    let sessions = builder.checkout_timeout(SOON).without_lanes().build_side().unwrap();
    let accounts = sessions.transactional();
    open_connections(&accounts);
    let before = ids(&server);
    assert_eq!(before.len(), CONNECTIONS);

    server.ask::<()>(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    let refused = || match accounts.run(|tx| Ok(tx.incr("a", 1))).unwrap_err() {
        Error::Commit(CommitError::Rejected { code, .. }) => assert_eq!(code, "READONLY"),
        other => panic!("{other}"),
    };
    refused();
    // Older connections go as they are met; none of them is handed out again.
    open_connections(&accounts);
    eventually(SOON, "every older connection is closed", || ids(&server).is_disjoint(&before));
    let status = sessions.status().transactional;
    assert_eq!(status.counts.replaced, [(CloseReason::Outdated, 4)]);
    assert_eq!(status.counts.connects, 8);

    // A server that is still read-only has not changed again.
    for _ in 0..20 {
        refused();
    }
    assert_eq!(sessions.status().transactional.counts.connects, 8, "replaced over and over");

    server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    accounts.run(|tx| Ok(tx.incr("a", 1))).unwrap();
}
