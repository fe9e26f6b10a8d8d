//! The fixture of the tests of the pooled handle.

use crate::fixture::{LONG, OF_ONE, add_on_each_pooled, unhurried};
use crate::side::{BuildSide as _, Pooled, SessionManager, open_pooled_lanes};
use std::collections::BTreeSet;

use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{Builder, Error};

use rediscope_testing::server::Server;
use rediscope_testing::unique;

pub(crate) fn sized(url: &str, max_size: u32) -> Builder {
    SessionManager::builder(url).max_size(max_size)
}

/// Trusted once it is open. One connection is open, and so are the lanes.
pub(crate) fn trusting(url: &str) -> SessionManager {
    let sessions = unhurried(sized(url, 1)).trust_window(LONG).build_side().unwrap();
    id(&mut sessions.pooled());
    open_pooled_lanes(&sessions, "nothing");
    sessions
}

/// No caller holds a connection, and the next command's effect is seen by another one.
#[track_caller]
pub(crate) fn pool_is_whole(sessions: &SessionManager, server: &Server) {
    let (key, pool) = (unique("next"), sessions.status().pooled);
    assert_eq!((pool.in_use, pool.waiting, pool.scopes.len()), (0, 0, 0), "{pool}");
    let mut db = sessions.pooled();
    assert_eq!(db.incr::<_, _, i64>(&key, 1).unwrap(), 1);
    assert_eq!(server.ask::<i64>(&["GET", &key]), 1);
    assert_eq!(db.get_del::<_, i64>(&key).unwrap(), 1);
    open_pooled_lanes(sessions, &key);
    add_on_each_pooled(&mut db, &key);
    assert_eq!(db.get_del::<_, usize>(&key).unwrap(), OF_ONE);
    assert_eq!(sessions.status().pooled.in_use, 0);
}

/// What became of a command, typed again after its way through redis-rs.
#[track_caller]
pub(crate) fn typed<T: std::fmt::Debug>(result: redis::RedisResult<T>) -> Error {
    result.expect_err("this cannot succeed").into()
}

/// The error of a lost command.
#[track_caller]
pub(crate) fn lost(error: &Error) -> (&str, Applied) {
    match error {
        Error::Lost { during, applied, .. } => {
            assert_eq!(
                (error.applied(), error.is_retryable()),
                (*applied, *applied == Applied::No)
            );
            (during, *applied)
        }
        error => panic!("not lost: {error:?}"),
    }
}

/// The connection that replies, by the server's number for it.
pub(crate) fn id(db: &mut Pooled) -> i64 {
    redis::cmd("CLIENT").arg("ID").query(db).unwrap()
}

/// Which connections the server has.
pub(crate) fn client_ids(server: &Server) -> BTreeSet<String> {
    server.client_list().iter().map(|client| client["id"].clone()).collect()
}
