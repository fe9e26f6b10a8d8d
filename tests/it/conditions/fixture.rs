//! One server, a proxy before it, a pool of one connection through it, and what every test reads in the end.

use crate::fixture::proxied::warm;
use crate::fixture::{Fixture, LONG, OF_ONE, SOON, add_on_each};

use rediscope::error::Applied;
use rediscope::{Builder, Error};

use rediscope_testing::eventually;

/// The one connection is open and trusted.
pub(crate) fn start() -> Fixture {
    start_with(|builder| builder.trust_window(LONG))
}

/// The one connection is open, and so are the lanes.
pub(crate) fn start_with(change: impl FnOnce(Builder) -> Builder) -> Fixture {
    let fixture = Fixture::new(change);
    warm(&fixture.sessions);
    fixture.proxy.take_journal();
    fixture
}

impl Fixture {
    pub(crate) fn set(&self, words: &str) {
        self.server.ask::<()>(&words.split(' ').collect::<Vec<_>>());
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.server.ask(&["GET", key])
    }

    /// The one connection is the one of the beginning, free and clean: whatever was watched before,
    /// the next transaction on it is no conflict.
    #[track_caller]
    pub(crate) fn is_as_it_was(&self, watched: &[&str]) {
        assert_eq!(self.proxy.connections(), OF_ONE, "the connection was replaced");
        assert_eq!(self.proxy.accepted(), OF_ONE as u64, "the connection was replaced");
        for key in watched {
            self.set(&format!("COPY {key} {key}:copy REPLACE"));
            self.set(&format!("DEL {key}"));
            self.set(&format!("RPUSH {key} changed"));
        }
        let conflicts = self.sessions.status().transactional.counts.conflicts;
        add_on_each(&self.accounts(), "next");
        assert_eq!(self.get("next"), Some(OF_ONE.to_string()));
        crate::side::settled(&self.sessions);
        let status = self.sessions.status().transactional;
        assert_eq!((status.in_use, status.waiting, status.counts.conflicts), (0, 0, conflicts));
        eventually(SOON, "no connection is in MULTI", || {
            self.server.client_list().iter().all(|client| client["multi"] == "-1")
        });
    }
}

/// The condition that failed, by its index, its kind and its name.
pub(crate) type Failed = (usize, &'static str, Option<&'static str>);

/// The condition that failed, and what its error reports.
#[track_caller]
pub(crate) fn failed<T: std::fmt::Debug>(reported: Result<T, Error>) -> Failed {
    match reported {
        Err(error @ Error::ConditionFailed { index, kind, name, .. }) => {
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
            (index, kind, name)
        }
        other => panic!("no condition failed: {other:?}"),
    }
}
