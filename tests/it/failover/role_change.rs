//! A server that becomes a replica: older connections are replaced once, and no lost write goes unnoticed.

use crate::fixture::SOON;
use rediscope::status::CloseReason;
use rediscope::{CommitError, Error, prelude::*};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

use crate::checkout::server::ids;
use crate::checkout::{open_connections, patient};

#[test]
fn a_server_that_became_a_replica_has_its_older_connections_replaced_once() {
    let (server, master) = (Server::start(), Server::start());
    let sessions = patient(&server).max_size(4).build().unwrap();
    let accounts = sessions.transactional();
    open_connections(&accounts, 4);
    let before = ids(&server);
    assert_eq!(before.len(), 4);

    server.ask::<()>(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    let refused = || match accounts.run(|tx| Ok(tx.incr("a", 1))).unwrap_err() {
        Error::Commit(CommitError::Rejected { code, .. }) => assert_eq!(code, "READONLY"),
        other => panic!("{other}"),
    };
    refused();
    // Older connections go as they are met; none of them is handed out again.
    open_connections(&accounts, 4);
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
