//! Connections that are killed while idle, a moment before their use: the operating system knows, and so does
//! the next call.
//!
//! Guarantee: dead-connections

use crate::fixture::{SOON, Way};
use crate::side::{BuildSide as _, open_lanes, open_pooled_lanes};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::side::SessionManager;
use rediscope::prelude::*;
use rediscope::{Begin, Error, TransactionOptions};

use rediscope_testing::eventually;

const CONNECTIONS: u32 = 8;
/// Between the kill and the calls.
const PAUSES: [Duration; 3] =
    [Duration::from_micros(500), Duration::from_millis(1), Duration::from_millis(3)];

/// A server that is reached in this way, and how.
enum Topology {
    Plain(Box<rediscope_testing::server::Server>),
    #[cfg(feature = "tls-rustls")]
    Tls(Box<rediscope_testing::tls::TlsServer>),
}

impl Topology {
    fn new(way: Way) -> Self {
        match way {
            Way::Tcp | Way::Unix => {
                Self::Plain(Box::new(rediscope_testing::server::Server::start()))
            }
            #[cfg(feature = "tls-rustls")]
            Way::Tls => Self::Tls(Box::new(rediscope_testing::tls::TlsServer::start())),
        }
    }

    fn server(&self) -> &rediscope_testing::server::Server {
        match self {
            Self::Plain(server) => server,
            #[cfg(feature = "tls-rustls")]
            Self::Tls(tls) => &tls.server,
        }
    }

    /// Eight open connections in both pools, which are trusted for as long as the test lasts.
    fn sessions(&self, way: Way) -> SessionManager {
        let url = match (self, way) {
            (Self::Plain(server), Way::Unix) => server.unix_url(),
            (Self::Plain(server), _) => server.url(),
            #[cfg(feature = "tls-rustls")]
            (Self::Tls(tls), _) => tls.url(),
        };
        let mut builder = SessionManager::builder(url)
            .max_size(CONNECTIONS)
            .trust_window(Duration::from_secs(3600))
            .connect_timeout(Duration::from_secs(5))
            .checkout_timeout(SOON);
        #[cfg(feature = "tls-rustls")]
        if let Self::Tls(tls) = self {
            builder = builder.tls(rediscope::Tls::new().root_certificates(tls.authority.pem()));
        }
        builder = builder.max_lifetime(None::<Duration>);
        builder.build_side().unwrap()
    }
}

/// What each thread does once; its error if that is not true of an idle connection.
type Use = fn(&SessionManager) -> Result<(), Error>;

/// Its name, whether it is the pooled handle's pool that it uses, and what it does.
const USES: &[(&str, bool, Use)] = &[
    ("run", false, |sessions| sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).map(drop)),
    ("guard", false, |sessions| {
        let mut tx = sessions.transactional().begin()?;
        tx.incr("n", 1);
        tx.commit()?;
        Ok(())
    }),
    ("grouped", false, |sessions| {
        let grouped = sessions.transactional().with(TransactionOptions::new().grouped());
        grouped.run(|tx| Ok(tx.incr("n", 1))).map(drop)
    }),
    ("watch().run", false, |sessions| {
        let watch = sessions.transactional().watch(["w"]);
        watch.run(|_, tx| Ok(tx.incr("n", 1))).map(drop)
    }),
    ("a write", true, |sessions| {
        sessions.pooled().incr::<_, _, i64>("n", 1).map(drop).map_err(Error::from)
    }),
    ("a read", true, |sessions| {
        sessions.pooled().get::<_, Option<i64>>("none").map(drop).map_err(Error::from)
    }),
    ("a lock", true, |sessions| {
        let held = sessions.lock("l").try_acquire()?;
        drop(held);
        Ok(())
    }),
];

/// Uses every connection of the pool at the same time, so that none of them is dead.
fn warm(sessions: &SessionManager, pooled: bool) {
    open_lanes(sessions, "n");
    open_pooled_lanes(sessions, "n");
    if !pooled {
        let immediate = TransactionOptions::new().begin(Begin::Immediate);
        let accounts = sessions.transactional().with(immediate);
        let scopes: Vec<_> = (0..CONNECTIONS).map(|_| accounts.begin().unwrap()).collect();
        return drop(scopes);
    }
    let start = Barrier::new(CONNECTIONS as usize);
    eventually(SOON, "every pooled connection was used", || {
        thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                scope.spawn(|| {
                    start.wait();
                    let none: Option<(String, String)> =
                        sessions.pooled().blpop("none", 0.03).unwrap();
                    assert_eq!(none, None);
                });
            }
        });
        sessions.status().pooled.idle == CONNECTIONS
    });
}

fn killed(way: Way) {
    let topology = Topology::new(way);
    let (server, sessions) = (topology.server(), topology.sessions(way));
    for (name, pooled, each) in USES {
        let pooled = *pooled;
        let mut reported = Vec::new();
        for pause in PAUSES.repeat(if *name == "run" { 9 } else { 1 }) {
            warm(&sessions, pooled);
            let start = Barrier::new(CONNECTIONS as usize + 1);
            thread::scope(|scope| {
                let call = |_| {
                    scope.spawn(|| {
                        start.wait();
                        each(&sessions)
                    })
                };
                let calls: Vec<_> = (0..CONNECTIONS).map(call).collect();
                let count = server.kill_all_clients_except_me();
                let killed = Instant::now();
                while killed.elapsed() < pause {
                    std::hint::spin_loop();
                }
                start.wait();
                reported.extend(calls.into_iter().map(|call| call.join().unwrap()));
                assert!(count >= CONNECTIONS as usize, "{way:?}, {name}: {count} were killed");
            });
        }
        let failed: Vec<_> =
            reported.iter().filter_map(|reported| reported.as_ref().err()).collect();
        println!("{way:?}, {name}: {} of {} failed", failed.len(), reported.len());
        let allowed = if *name == "a read" { 0 } else { reported.len() / 200 };
        assert!(
            failed.len() <= allowed,
            "{way:?}, {name}: {} of {}: {failed:?}",
            failed.len(),
            reported.len()
        );
    }
}

#[test]
fn connections_that_were_killed_a_moment_ago_put_no_call_in_doubt() {
    killed(Way::Tcp);
}

#[test]
fn connections_that_were_killed_a_moment_ago_put_no_call_in_doubt_over_a_unix_socket() {
    killed(Way::Unix);
}

#[cfg(feature = "tls-rustls")]
#[test]
fn connections_that_were_killed_a_moment_ago_put_no_call_in_doubt_over_tls() {
    killed(Way::Tls);
}
