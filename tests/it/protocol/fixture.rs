//! What the protocol tests share: a server, a proxy before it, and the questions every row asks.

use crate::fixture::{LONG, SOON};
use std::collections::BTreeSet;
use std::time::Duration;

use rediscope::prelude::*;
use rediscope::{Applied, Builder, CommitError, Error, SessionManager};

use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, unique};

/// A response timeout for tests that wait for it to pass.
pub(crate) const BRIEF: Duration = Duration::from_millis(800);

/// A server and a proxy before it.
pub(crate) struct Proxied {
    pub(crate) proxy: Proxy,
    pub(crate) server: Server,
}

impl Proxied {
    pub(crate) fn start() -> Self {
        let server = Server::start();
        Self { proxy: Proxy::to(&server), server }
    }

    /// One connection, through the proxy.
    pub(crate) fn builder(&self) -> Builder {
        SessionManager::builder(self.proxy.url()).max_size(1)
    }

    /// One connection that is trusted once it is open, and is open: the hand-shake is over.
    pub(crate) fn trusting(&self) -> SessionManager {
        self.warm(self.builder().trust_window(LONG))
    }

    /// One open connection that is never trusted.
    pub(crate) fn doubting(&self) -> SessionManager {
        self.warm(self.builder().trust_window(Duration::ZERO))
    }

    pub(crate) fn warm(&self, builder: Builder) -> SessionManager {
        let sessions = builder.build().unwrap();
        warm(&sessions);
        self.proxy.take_journal();
        sessions
    }

    /// Names of the commands that passed since this was last asked.
    pub(crate) fn journal(&self) -> Vec<String> {
        self.proxy.take_journal().into_iter().map(|(_, name)| name).collect()
    }
}

/// Opens the transactional pool's first connection.
pub(crate) fn warm(sessions: &SessionManager) {
    sessions.transactional().begin().unwrap().discard().unwrap();
}

/// `applied()` and `is_retryable()` of an error, alone and inside the crate's own.
#[track_caller]
pub(crate) fn assert_outcome(error: &CommitError, applied: Applied, retryable: bool) {
    let outer = Error::from(error.clone());
    assert_eq!((error.applied(), error.is_retryable()), (applied, retryable), "{error}");
    assert_eq!((outer.applied(), outer.is_retryable()), (applied, retryable), "{error}");
    assert!(outer.as_commit().is_some());
}

/// The commit's own error out of what `run` answers.
#[track_caller]
pub(crate) fn commit_error<T: std::fmt::Debug>(result: Result<T, Error>) -> CommitError {
    let error = result.expect_err("the transaction cannot have been committed");
    error.as_commit().unwrap_or_else(|| panic!("not the commit's: {error}")).clone()
}

/// No caller holds a connection, and the next caller's transaction is applied, once, alone.
#[track_caller]
pub(crate) fn pool_is_whole(sessions: &SessionManager, server: &Server) {
    let (key, pool) = (unique("next"), sessions.status().transactional);
    assert_eq!((pool.in_use, pool.waiting, pool.scopes.len()), (0, 0, 0), "{pool}");
    let next = sessions.transactional().run(|tx| Ok((tx.incr(&key, 1), tx.incr(&key, 1))));
    assert_eq!(next.unwrap(), (1, 2));
    assert_eq!(server.ask::<i64>(&["GET", &key]), 2);
    server.ask::<()>(&["DEL", &key]);
    assert_eq!(sessions.status().transactional.in_use, 0);
    no_connection_is_in_multi(server);
}

/// A closed connection leaves the server's list a moment later.
#[track_caller]
pub(crate) fn no_connection_is_in_multi(server: &Server) {
    eventually(SOON, "no connection is in MULTI or watches", || {
        server.client_list().iter().all(|client| client["multi"] == "-1")
    });
}

/// Which connections the server has.
pub(crate) fn client_ids(server: &Server) -> BTreeSet<String> {
    server.client_list().iter().map(|client| client["id"].clone()).collect()
}

#[track_caller]
pub(crate) fn exists(server: &Server, key: &str) -> bool {
    server.ask(&["EXISTS", key])
}

#[track_caller]
pub(crate) fn get(server: &Server, key: &str) -> Option<String> {
    server.ask(&["GET", key])
}
