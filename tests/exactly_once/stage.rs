//! One server, a proxy in front of it, and a session through the proxy.

use std::time::Duration;

use rediscope::{Builder, CommitError, Error, InDoubt, SessionManager, TransactionOptions};

use crate::support::proxy::{Fault, Proxy, Script, Trigger, Which};
use crate::support::server::Server;

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) sessions: SessionManager,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(&[], |builder| builder)
    }

    pub(crate) fn with(arguments: &[&str], change: impl FnOnce(Builder) -> Builder) -> Self {
        let server = Server::with(arguments);
        let proxy = Proxy::to(&server);
        let builder = SessionManager::builder(proxy.url())
            .max_size(1)
            .connect_timeout(Duration::from_millis(500))
            .response_timeout(Duration::from_millis(500))
            .checkout_timeout(Duration::from_secs(3))
            // However slow the machine, a link that was just used is one that was just used.
            .trust_window(SOON);
        let sessions = change(builder).build().unwrap();
        Self { server, proxy, sessions }
    }

    /// The handle, its one link armed.
    pub(crate) fn armed(&self) -> rediscope::Transactional {
        let handle = self.exactly_once();
        handle.run(|tx| Ok(tx_noop(tx))).unwrap();
        handle
    }

    pub(crate) fn exactly_once(&self) -> rediscope::Transactional {
        self.sessions.transactional().with(TransactionOptions::new().exactly_once())
    }

    /// A fault, once.
    pub(crate) fn arm(&self, trigger: Trigger, fault: Fault) {
        self.proxy.arm(Script::from((trigger, fault)).once());
    }

    pub(crate) fn next(&self, script: impl Into<Script>) {
        self.proxy.script(Which::Next, script);
    }

    pub(crate) fn number(&self, key: &str) -> i64 {
        self.server.ask::<Option<i64>>(&["GET", key]).unwrap_or_default()
    }

    /// The registers on the server.
    pub(crate) fn registers(&self) -> Vec<String> {
        self.server.ask(&["KEYS", "rediscope:reg:*"])
    }
}

fn tx_noop(tx: &mut rediscope::Block) -> rediscope::Queued<i64> {
    use rediscope::prelude::*;
    tx.exists("nothing")
}

#[track_caller]
pub(crate) fn doubt<T: std::fmt::Debug>(committed: Result<T, CommitError>) -> InDoubt {
    match committed {
        Err(CommitError::InDoubt(doubt)) => doubt,
        other => panic!("not in doubt: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn commit_error<T: std::fmt::Debug>(result: Result<T, Error>) -> CommitError {
    match result {
        Err(Error::Commit(error)) => *error,
        other => panic!("no commit error: {other:?}"),
    }
}
