//! One server, a proxy in front of it, and a session through the proxy.

use crate::fixture::proxied::warm;
use crate::fixture::{Fixture, SOON};
use std::time::Duration;

use crate::side::{LANES, Transactional};
use rediscope::error::{InDoubt, Resolution};
use rediscope::{Builder, CommitError, Error, TransactionOptions, prelude::*};

use rediscope_testing::proxy::{Fault, Script, Trigger, Which};
use rediscope_testing::server::Server;

/// What a lost reply hides.
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

pub(crate) fn start() -> Fixture {
    start_with(&[], |builder| builder)
}

pub(crate) fn start_with(arguments: &[&str], change: impl FnOnce(Builder) -> Builder) -> Fixture {
    start_on(Server::with(arguments), change)
}

pub(crate) fn start_on(server: Server, change: impl FnOnce(Builder) -> Builder) -> Fixture {
    Fixture::on(server, |builder| {
        change(
            builder
                .connect_timeout(Duration::from_millis(500))
                .response_timeout(Duration::from_millis(500))
                .checkout_timeout(Duration::from_secs(3))
                // However slow the machine, a connection that was just used is trusted.
                .trust_window(SOON),
        )
    })
}

impl Fixture {
    /// The handle. Its one connection is armed, and so are the lanes.
    pub(crate) fn armed(&self) -> Transactional {
        warm(&self.sessions);
        let handle = self.exactly_once();
        let mut tx = handle.begin().unwrap();
        tx.exists("nothing");
        tx.commit().unwrap();
        (0..LANES).for_each(|_| _ = handle.run(|tx| Ok(tx.exists("nothing"))).unwrap());
        handle
    }

    pub(crate) fn exactly_once(&self) -> Transactional {
        self.sessions.transactional().with(TransactionOptions::new().exactly_once())
    }

    pub(crate) fn next(&self, script: impl Into<Script>) {
        self.proxy.script(Which::Next, script);
    }

    /// What happens to the next EXEC and its reply.
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

    /// The registers on the server.
    pub(crate) fn registers(&self) -> Vec<String> {
        self.server.ask(&["KEYS", "rediscope:reg:*"])
    }
}

#[track_caller]
pub(crate) fn doubt<T: std::fmt::Debug>(committed: Result<T, Error>) -> InDoubt {
    match committed {
        Err(Error::Commit(CommitError::InDoubt(doubt))) => doubt,
        other => panic!("not in doubt: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn commit_error<T: std::fmt::Debug>(result: Result<T, Error>) -> Error {
    match result {
        Err(error @ Error::Commit(_)) => error,
        other => panic!("no commit error: {other:?}"),
    }
}
