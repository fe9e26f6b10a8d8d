//! One server, a proxy in front of it, and sessions through it and past it.

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::time::{Duration, Instant};

use crate::side::{Lock, SessionManager};
use rediscope::{Builder, LockError, LockStatus};

use rediscope_testing::eventually;
use rediscope_testing::front::Front;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) sessions: SessionManager,
    _front: Option<Front>,
}

impl Fixture {
    /// One for each way to a server, with its name.
    pub(crate) fn all_ways() -> Vec<(&'static str, Self)> {
        vec![
            ("TCP", Self::new()),
            (
                "unix",
                Self::behind(|proxy, builder| {
                    let front = Front::unix(proxy.address());
                    (builder(front.url()), front)
                }),
            ),
            #[cfg(feature = "tls-rustls")]
            (
                "TLS",
                Self::behind(|proxy, builder| {
                    let authority = rediscope_testing::tls::Authority::new();
                    let front = Front::tls(proxy.address(), &authority.server(&["localhost"]));
                    let tls = rediscope::Tls::new().root_certificates(authority.pem());
                    (builder(front.url()).tls(tls), front)
                }),
            ),
        ]
    }

    fn behind(front: impl FnOnce(&Proxy, fn(&str) -> Builder) -> (Builder, Front)) -> Self {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let (builder, front) = front(&proxy, quick);
        Self { sessions: builder.build_side().unwrap(), server, proxy, _front: Some(front) }
    }

    pub(crate) fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(change: impl FnOnce(Builder) -> Builder) -> Self {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let sessions = change(quick(&proxy.url())).build_side().unwrap();
        Self { server, proxy, sessions, _front: None }
    }

    /// Another process, for all that the server knows; past the proxy.
    pub(crate) fn other(&self) -> SessionManager {
        quick(&self.server.url()).build_side().unwrap()
    }

    /// A fault, once.
    pub(crate) fn arm(&self, trigger: Trigger, fault: Fault) {
        self.proxy.arm(Script::from((trigger, fault)).once());
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
    SessionManager::builder(url)
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
pub(crate) fn is_lost<T: std::fmt::Debug>(result: Result<T, LockError>) {
    assert!(matches!(result, Err(LockError::Lost { .. })), "not lost: {result:?}");
}

#[track_caller]
pub(crate) fn timed_out<T: std::fmt::Debug>(result: Result<T, LockError>) {
    assert!(matches!(result, Err(LockError::Timeout { .. })), "no timeout: {result:?}");
}
