//! One server, a proxy in front of it, and a session through the proxy.

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::time::Duration;

use crate::side::{SessionManager, Transactional};
use rediscope::{Builder, CommitError, Error, InDoubt, Resolution, TransactionOptions, prelude::*};

use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger, Which};
use rediscope_testing::server::Server;

/// What a lost answer hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Applied,
    NotApplied,
}

impl Fate {
    pub(crate) const BOTH: [Self; 2] = [Self::Applied, Self::NotApplied];

    pub(crate) fn truth(self) -> Resolution {
        match self {
            Self::Applied => Resolution::Committed,
            Self::NotApplied => Resolution::NotCommitted,
        }
    }

    /// How often it was applied.
    pub(crate) fn count(self) -> i64 {
        i64::from(self == Self::Applied)
    }
}

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) sessions: SessionManager,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(&[], |builder| builder)
    }

    pub(crate) fn with(arguments: &[&str], change: impl FnOnce(Builder) -> Builder) -> Self {
        Self::on(Server::with(arguments), change)
    }

    pub(crate) fn on(server: Server, change: impl FnOnce(Builder) -> Builder) -> Self {
        let proxy = Proxy::to(&server);
        let builder = SessionManager::builder(proxy.url())
            .max_size(1)
            .connect_timeout(Duration::from_millis(500))
            .response_timeout(Duration::from_millis(500))
            .checkout_timeout(Duration::from_secs(3))
            // However slow the machine, a link that was just used is one that was just used.
            .trust_window(SOON);
        let sessions = change(builder).build_side().unwrap();
        Self { server, proxy, sessions }
    }

    /// The handle, its one link armed.
    pub(crate) fn armed(&self) -> Transactional {
        let handle = self.exactly_once();
        handle.run(|tx| Ok(tx_noop(tx))).unwrap();
        handle
    }

    pub(crate) fn exactly_once(&self) -> Transactional {
        self.sessions.transactional().with(TransactionOptions::new().exactly_once())
    }

    /// A fault, once.
    pub(crate) fn arm(&self, trigger: Trigger, fault: Fault) {
        self.proxy.arm(Script::from((trigger, fault)).once());
    }

    pub(crate) fn next(&self, script: impl Into<Script>) {
        self.proxy.script(Which::Next, script);
    }

    /// What becomes of the next EXEC and its answer.
    pub(crate) fn lose(&self, fate: Fate) {
        let trigger = match fate {
            Fate::Applied => Trigger::BeforeReplyTo("EXEC"),
            Fate::NotApplied => Trigger::BeforeCommandNamed("EXEC"),
        };
        self.arm(trigger, Fault::Cut);
    }

    /// A guard of the handle's that counts `n` up and is in doubt.
    #[track_caller]
    pub(crate) fn doubted(&self, handle: &Transactional, fate: Fate) -> InDoubt {
        let mut tx = handle.begin().unwrap();
        tx.incr("n", 1);
        self.lose(fate);
        doubt(tx.commit())
    }

    /// Names of the commands that passed since this was last asked.
    pub(crate) fn words(&self) -> Vec<String> {
        self.proxy.take_journal().into_iter().map(|(_, word)| word.to_uppercase()).collect()
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
