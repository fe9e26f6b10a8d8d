//! What the modules share: the times of a test, and a server with a session manager through a proxy.

pub(crate) mod proxied;
pub(crate) mod short_timeouts;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::side::{BuildSide as _, LANES, Pooled, SessionManager, Transactional};
use rediscope::prelude::*;
use rediscope::{Begin, Builder, TransactionOptions};

use rediscope_testing::front::Front;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

/// Time within which an awaited event must happen, far more than it needs on a busy machine. A test
/// that waits for longer fails.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Duration longer than any test: of a trust window, a lease or a scope that must not end.
pub(crate) const LONG: Duration = Duration::from_secs(60 * 60);

/// Time that a busy machine may add to a call with a short timeout.
pub(crate) const SLACK: Duration = Duration::from_millis(1500);

/// The same for a call without a bound that is close to its timeout.
pub(crate) const LARGE_SLACK: Duration = Duration::from_secs(4);

/// Number of connections of a pool whose `max_size` is 1.
pub(crate) const OF_ONE: usize = 1 + LANES;

/// Time in which two blocks that take no turns are in their closures at once.
pub(crate) const MEET: Duration = Duration::from_millis(100);

/// Of three blocks, how many are in their closures at once. Each calls the argument of `run` there, which waits for
/// a second one, for this time.
pub(crate) fn inside_at_once(
    time: Duration,
    run: impl Fn(&(dyn Fn() + Send + Sync)) + Sync,
) -> usize {
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wait = || {
        most.fetch_max(1 + inside.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
        let until = Instant::now() + time;
        while most.load(Ordering::SeqCst) < 2 && Instant::now() < until {
            thread::yield_now();
        }
        inside.fetch_sub(1, Ordering::SeqCst);
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| run(&wait));
        }
    });
    most.into_inner()
}

/// Adds 1 to `key` on one of the connections of such a pool: a guard, the first, has the pinned connection, and
/// blocks use the lanes in turn, if they are open.
#[track_caller]
pub(crate) fn add_on(nth: usize, accounts: &Transactional, key: &str) -> i64 {
    if nth > 0 {
        return accounts.run(|tx| Ok(tx.incr(key, 1))).unwrap();
    }
    let mut tx = accounts.begin_at(key).unwrap();
    let added = tx.incr(key, 1);
    tx.commit().unwrap().get(added).unwrap()
}

/// Adds 1 to `key` on each of them.
#[track_caller]
pub(crate) fn add_on_each(accounts: &Transactional, key: &str) {
    (0..OF_ONE).for_each(|nth| _ = add_on(nth, accounts, key));
}

/// The same for the pooled handle: a pipeline has a connection alone.
#[track_caller]
pub(crate) fn add_on_each_pooled(db: &mut Pooled, key: &str) {
    redis::pipe().incr(key, 1).exists(key).exec(db).unwrap();
    (0..LANES).for_each(|_| db.incr::<_, _, ()>(key, 1).unwrap());
}

/// Has the blocks on `key` take turns: one that writes it meets a conflict.
pub(crate) fn heat(handle: &Transactional, server: &Server, key: &str) {
    let value: Option<String> = server.ask(&["GET", key]);
    let heated = handle.watch([key]).run(|read, tx| {
        if read.attempt() == 1 {
            server.ask::<()>(&["SET", key, "0"]);
        }
        Ok(tx.set(key, 0))
    });
    heated.unwrap();
    match value {
        Some(value) => server.ask::<()>(&["SET", key, &value]),
        None => server.ask::<()>(&["DEL", key]),
    }
}

/// For a test in which no call is to run out of time, however busy the machine is.
pub(crate) fn unhurried(builder: Builder) -> Builder {
    builder.connect_timeout(SOON).response_timeout(SOON).checkout_timeout(4 * SOON)
}

/// MULTI is sent when the transaction begins.
pub(crate) fn immediate() -> TransactionOptions {
    TransactionOptions::new().begin(Begin::Immediate)
}

/// The transport between the client and the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Tcp,
    Unix,
    #[cfg(feature = "tls-rustls")]
    Tls,
}

impl Way {
    /// All that this build has.
    #[cfg(feature = "tls-rustls")]
    pub(crate) const ALL: &[Self] = &[Self::Tcp, Self::Unix, Self::Tls];
    #[cfg(not(feature = "tls-rustls"))]
    pub(crate) const ALL: &[Self] = &[Self::Tcp, Self::Unix];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Unix => "a unix socket",
            #[cfg(feature = "tls-rustls")]
            Self::Tls => "TLS",
        })
    }
}

/// A server, a proxy before it, and a session manager that connects through the proxy.
///
/// A module adds its constructors and methods in its own `fixture` file.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    /// Between the client and the proxy, if the way is not TCP.
    pub(crate) front: Option<Front>,
    pub(crate) sessions: SessionManager,
}

impl Fixture {
    /// Pools of one connection over TCP, unless `change` sets something else.
    pub(crate) fn new(change: impl FnOnce(Builder) -> Builder) -> Self {
        Self::on(Server::start(), change)
    }

    pub(crate) fn on(server: Server, change: impl FnOnce(Builder) -> Builder) -> Self {
        Self::over(Way::Tcp, server, "", change)
    }

    /// As the user `app` with this password.
    pub(crate) fn as_user(
        server: Server,
        password: &str,
        change: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let proxy = Proxy::to(&server);
        let url = format!("redis://app:{password}@{}/", proxy.address());
        let sessions = change(SessionManager::builder(url).max_size(1)).build_side().unwrap();
        Self { server, proxy, front: None, sessions }
    }

    /// With these parameters in the URL.
    pub(crate) fn over(
        way: Way,
        server: Server,
        parameters: &str,
        change: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let proxy = Proxy::to(&server);
        #[cfg(feature = "tls-rustls")]
        let authority = rediscope_testing::tls::Authority::new();
        let front = match way {
            Way::Tcp => None,
            Way::Unix => Some(Front::unix(proxy.address())),
            #[cfg(feature = "tls-rustls")]
            Way::Tls => Some(Front::tls(proxy.address(), &authority.server(&["localhost"]))),
        };
        let url = front.as_ref().map_or(proxy.url(), |front| front.url().to_owned());
        let builder = SessionManager::builder(format!("{url}{parameters}")).max_size(1);
        #[cfg(feature = "tls-rustls")]
        let builder = match way {
            Way::Tls => builder.tls(rediscope::Tls::new().root_certificates(authority.pem())),
            _ => builder,
        };
        let sessions = change(builder).build_side().unwrap();
        Self { server, proxy, front, sessions }
    }

    pub(crate) fn accounts(&self) -> Transactional {
        self.sessions.transactional()
    }

    /// A fault, once.
    pub(crate) fn arm(&self, trigger: Trigger, fault: Fault) {
        self.proxy.arm(Script::from((trigger, fault)).once());
    }

    /// Names of the commands that passed the proxy since the last call.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.proxy.take_journal().into_iter().map(|(_, name)| name.to_uppercase()).collect()
    }

    /// The number at a key, 0 if there is none.
    pub(crate) fn number(&self, key: &str) -> i64 {
        self.server.ask::<Option<i64>>(&["GET", key]).unwrap_or_default()
    }
}
