//! One server, a proxy in front of it, and sessions through it and past it.

use std::time::Duration;

use rediscope::{Builder, LockError, LockStatus, SessionManager};

use crate::support::eventually;
use crate::support::proxy::{Fault, Proxy, Script, Trigger};
use crate::support::server::Server;

/// Bounds every wait of a test; far more than any of them needs.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// No test lives so long: what ends meanwhile was ended.
pub(crate) const LONG: Duration = Duration::from_secs(600);

pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) sessions: SessionManager,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(change: impl FnOnce(Builder) -> Builder) -> Self {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let sessions = change(quick(&proxy.url())).build().unwrap();
        Self { server, proxy, sessions }
    }

    /// Another process, for all that the server knows; past the proxy.
    pub(crate) fn other(&self) -> SessionManager {
        quick(&self.server.url()).build().unwrap()
    }

    /// A fault, once.
    pub(crate) fn arm(&self, trigger: Trigger, fault: Fault) {
        self.proxy.arm(Script::from((trigger, fault)).once());
    }

    pub(crate) fn locks(&self) -> LockStatus {
        self.sessions.status().locks
    }

    /// Who holds the lock `l`, as the server has it.
    pub(crate) fn holders(&self) -> usize {
        self.server.ask(&["ZCARD", "rediscope:lock:{l}"])
    }

    pub(crate) fn subscribers_of(&self, channel: &str) -> u64 {
        let counts: Vec<redis::Value> = self.server.ask(&["PUBSUB", "NUMSUB", channel]);
        redis::from_redis_value(counts[1].clone()).unwrap()
    }

    #[track_caller]
    pub(crate) fn somebody_waits(&self, sessions: &SessionManager, how_many: usize) {
        eventually(SOON, "somebody waits and listens", || {
            let locks = sessions.status().locks;
            locks.waiting == how_many && locks.subscriptions > 0
        });
    }
}

pub(crate) fn quick(url: &str) -> Builder {
    SessionManager::builder(url)
        .connect_timeout(Duration::from_millis(500))
        .response_timeout(Duration::from_millis(500))
        .checkout_timeout(Duration::from_secs(3))
        .trust_window(SOON)
}

#[track_caller]
pub(crate) fn is_lost<T: std::fmt::Debug>(result: Result<T, LockError>) {
    assert!(matches!(result, Err(LockError::Lost { .. })), "not lost: {result:?}");
}

#[track_caller]
pub(crate) fn timed_out<T: std::fmt::Debug>(result: Result<T, LockError>) {
    assert!(matches!(result, Err(LockError::Timeout { .. })), "no timeout: {result:?}");
}
