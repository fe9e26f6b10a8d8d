//! One server, a proxy before it, and sessions through it and past it.

use crate::fixture::{Fixture, SOON, Way};
use crate::side::BuildSide as _;
use std::time::{Duration, Instant};

use crate::side::{Lock, SessionManager};
use rediscope::error::LockError;
use rediscope::status::LockStatus;
use rediscope::{Builder, Error};

use rediscope_testing::eventually;
use rediscope_testing::server::Server;

pub(crate) fn start() -> Fixture {
    start_with(|builder| builder)
}

pub(crate) fn start_with(change: impl FnOnce(Builder) -> Builder) -> Fixture {
    Fixture::new(|builder| change(timeouts(builder)))
}

/// One for each way to a server.
pub(crate) fn all_ways() -> Vec<(Way, Fixture)> {
    let over = |way| (way, Fixture::over(way, Server::start(), "", timeouts));
    Way::ALL.iter().copied().map(over).collect()
}

impl Fixture {
    /// Another process, for all that the server knows; past the proxy.
    pub(crate) fn other(&self) -> SessionManager {
        quick(&self.server.url()).build_side().unwrap()
    }

    pub(crate) fn locks(&self) -> LockStatus {
        self.sessions.status().locks
    }

    /// When the server was last seen to have the lock `l`, once it has it no more.
    pub(crate) fn held_until(&self) -> Instant {
        let mut ended = Instant::now();
        eventually(SOON, "its lease ends", || {
            let before = Instant::now();
            let held = self.server.ask::<i64>(&["PTTL", "rediscope:lock:{l}"]) > 0;
            if held {
                ended = before;
            }
            !held
        });
        ended
    }

    /// Number of holders of the lock `l`, as the server has it.
    pub(crate) fn holders(&self) -> usize {
        self.server.ask(&["ZCARD", "rediscope:lock:{l}"])
    }

    /// Keys of all held locks, semaphores and read/write locks.
    pub(crate) fn held_keys(&self) -> Vec<String> {
        let keys: Vec<String> = self.server.ask(&["KEYS", "rediscope:*{*}"]);
        keys.into_iter().filter(|key| !key.contains("fence")).collect()
    }

    pub(crate) fn subscribers_of(&self, channel: &str) -> u64 {
        let counts: Vec<redis::Value> = self.server.ask(&["PUBSUB", "NUMSUB", channel]);
        redis::from_redis_value(counts[1].clone()).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for_waiters(&self, sessions: &SessionManager, how_many: usize) {
        eventually(SOON, "the callers wait and listen", || {
            let locks = sessions.status().locks;
            locks.waiting == how_many && locks.subscriptions > 0
        });
    }
}

pub(crate) fn quick(url: &str) -> Builder {
    timeouts(SessionManager::builder(url))
}

/// The settings of these tests. The pools have their default size.
fn timeouts(builder: Builder) -> Builder {
    builder
        .max_size(8)
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(Duration::from_secs(1))
        .checkout_timeout(Duration::from_secs(4))
        .trust_window(SOON)
}

/// One lock of every kind, with its name.
pub(crate) fn every_kind(sessions: &SessionManager) -> Vec<(&'static str, Lock)> {
    vec![
        ("lock", sessions.lock("l")),
        ("fair lock", sessions.lock("fair").fair()),
        ("reader", sessions.rw_lock("r").read()),
        ("writer", sessions.rw_lock("w").write().fair()),
        ("semaphore", sessions.semaphore("s", 2)),
        ("labelled", sessions.lock("labelled").label("host 7")),
    ]
}

#[track_caller]
pub(crate) fn is_lost<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::Lock(LockError::Lost { .. }))), "not lost: {result:?}");
}

#[track_caller]
pub(crate) fn timed_out<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(
        matches!(result, Err(Error::Lock(LockError::Timeout { .. }))),
        "no timeout: {result:?}"
    );
}
