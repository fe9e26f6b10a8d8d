//! A server whose user `app` has all rights until a test changes that, and the errors of its callers.

use crate::fixture::{SOON, unhurried};
use crate::side::{BuildSide, SessionManager};
use std::time::Duration;

use rediscope::error::{CheckoutError, LockError};
use rediscope::status::PoolStatus;
use rediscope::{CommitError, Error};

use rediscope_testing::eventually;
use rediscope_testing::server::Server;

/// Wait for an effect that never comes if a right is missing. Longer than the effect takes.
pub(crate) const EFFECT_WAIT: Duration = Duration::from_secs(3);

/// A server whose user `app` may do everything until a test changes that.
pub(crate) struct RestrictedServer {
    pub(crate) server: Server,
}

impl RestrictedServer {
    pub(crate) fn start() -> Self {
        let fixture = Self { server: Server::start() };
        fixture.may_do_all();
        fixture
    }

    pub(crate) fn may_do_all(&self) {
        self.operator("reset on >secret ~* &* +@all");
    }

    /// Changes what the user may do.
    pub(crate) fn operator(&self, rules: &str) {
        let words: Vec<_> = ["SETUSER", "app"].into_iter().chain(rules.split(' ')).collect();
        self.server.acl(&words);
    }

    /// One connection for each handle.
    pub(crate) fn sessions(&self, trust_window: Duration) -> SessionManager {
        self.sessions_at("", trust_window)
    }

    pub(crate) fn sessions_at(&self, rest: &str, trust_window: Duration) -> SessionManager {
        // Four callers and their servers share the machine, and no outcome here is that of a timeout.
        unhurried(SessionManager::builder(format!("{}{rest}", self.server.url_as("app", "secret"))))
            .max_size(1)
            .trust_window(trust_window)
            .flush_bytes(256)
            .build_side()
            .unwrap()
    }

    pub(crate) fn number(&self, key: &str) -> i64 {
        self.server.ask::<Option<i64>>(&["GET", key]).unwrap_or_default()
    }

    pub(crate) fn keys(&self, pattern: &str) -> Vec<String> {
        self.server.ask(&["KEYS", pattern])
    }
}

/// No caller holds a connection or waits for one. A lock that could not be released is released again
/// in the background, on a pooled connection.
#[track_caller]
pub(crate) fn nothing_is_held(sessions: &SessionManager) {
    let held = |pool: &PoolStatus| (pool.in_use as usize) + pool.waiting + pool.scopes.len();
    let status = sessions.status();
    assert_eq!(held(&status.transactional), 0, "{status}");
    eventually(SOON, "no pooled connection is held", || held(&sessions.status().pooled) == 0);
}

/// An error in one line: its variant, the server's code, what was applied, whether to try again.
pub(crate) fn summary(error: &Error) -> String {
    let kind = match error {
        Error::Command { command, error, .. } => format!("Command {command} {}", error.code()),
        Error::Pipeline { failures, index, error, .. } => {
            format!("Pipeline {failures} from {index} {}", error.code())
        }
        Error::Checkout(CheckoutError::Connect { source, .. }) => {
            let code = source.server_error().map_or("-", |error| error.code());
            format!("Connect {:?} {code}", source.kind())
        }
        Error::Commit(CommitError::Rejected { index: Some(index), command, code, .. }) => {
            format!("Rejected {index} {command} {code}")
        }
        Error::Commit(CommitError::Rejected { command, code, .. }) => {
            format!("Rejected {command} {code}")
        }
        Error::Commit(CommitError::NotIsolated { replies, .. }) => {
            format!("NotIsolated {} failed", replies.failures())
        }
        Error::Commit(CommitError::PartlyApplied { replies, .. }) => {
            let codes = replies.errors().map(|error| match error {
                rediscope::error::ReplyError::Failed { index, error, .. } => {
                    format!("{index} {}", error.code())
                }
                error => error.to_string(),
            });
            format!("PartlyApplied {}", codes.collect::<Vec<_>>().join(", "))
        }
        Error::Commit(CommitError::NotReplicated { refused, .. }) => {
            format!("NotReplicated {}", refused.as_ref().map_or("-", |error| error.code()))
        }
        Error::Commit(CommitError::KeyNotKept { error, .. }) => {
            format!("KeyNotKept {}", error.code())
        }
        Error::Lock(LockError::Command { during, error, .. }) => {
            format!("Lock {during} {}", error.code())
        }
        error => format!("{error:?}"),
    };
    let again = if error.is_retryable() { ", retryable" } else { "" };
    format!("{kind}, applied {:?}{again}", error.applied())
}
