//! A server and its count of received commands, shared by the tests of bad input.

use crate::fixture::LONG;
use crate::side::BuildSide as _;
use std::collections::BTreeMap;

use crate::side::SessionManager;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use rediscope_testing::server::Server;
use rediscope_testing::unique;

/// A server and one open connection of each kind, trusted, so that nothing is sent but what a test
/// sends.
pub(crate) struct Quiet {
    pub(crate) sessions: SessionManager,
    pub(crate) server: Server,
    stats: BTreeMap<String, u64>,
}

impl Quiet {
    pub(crate) fn start() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(settings: impl FnOnce(rediscope::Builder) -> rediscope::Builder) -> Self {
        let server = Server::start();
        let builder = SessionManager::builder(server.url()).max_size(1).trust_window(LONG);
        let sessions = settings(builder).build_side().unwrap();
        sessions.transactional().begin().unwrap().discard().unwrap();
        assert!(redis::ConnectionLike::check_connection(&mut sessions.pooled()));
        let stats = stats(&server);
        Self { sessions, server, stats }
    }

    /// Nothing reached the server since the last call, and nothing is held.
    #[track_caller]
    pub(crate) fn nothing_was_sent(&self) {
        assert_eq!(stats(&self.server), self.stats);
        crate::side::settled(&self.sessions);
        let status = self.sessions.status();
        for pool in [&status.pooled, &status.transactional] {
            assert_eq!((pool.in_use, pool.waiting, pool.scopes.len()), (0, 0, 0), "{pool}");
            assert_eq!((pool.size, pool.counts.all_replaced()), (1, 0), "{pool}");
        }
    }

    /// The next uses of both handles work, as another connection sees.
    #[track_caller]
    pub(crate) fn nothing_was_lost(&mut self) {
        let (key, mut db) = (unique("next"), self.sessions.pooled());
        let next = self.sessions.transactional().run(|tx| Ok(tx.incr(&key, 1)));
        assert_eq!(next.unwrap(), 1);
        assert_eq!(db.incr::<_, _, i64>(&key, 1).unwrap(), 2);
        assert_eq!(self.server.ask::<i64>(&["GET", &key]), 2);
        self.server.ask::<()>(&["DEL", &key]);
        let clients = self.server.client_list();
        assert!(clients.iter().all(|client| client["multi"] == "-1" && client["db"] == "0"));
        self.stats = stats(&self.server);
        self.nothing_was_sent();
    }
}

/// Calls by command, without those that asking costs.
fn stats(server: &Server) -> BTreeMap<String, u64> {
    let mut stats = server.commandstats();
    stats.retain(|name, _| !name.starts_with("info") && !name.starts_with("client|list"));
    stats
}

/// What lies behind an error of a commit that sent nothing.
#[track_caller]
pub(crate) fn unsent(error: &Error) -> Error {
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false), "{error:?}");
    match error.as_commit() {
        Some(CommitError::NotSent { source, .. }) => (**source).clone(),
        Some(error) => panic!("{error:?}"),
        None => error.clone(),
    }
}

/// The name of the command that was refused.
#[track_caller]
pub(crate) fn refused(error: &Error) -> String {
    match unsent(error) {
        Error::Refused { command, hint, .. } => {
            assert!(!hint.is_empty());
            assert!(format!("{error:#}").contains(&command));
            command
        }
        error => panic!("not refused: {error:?}"),
    }
}
