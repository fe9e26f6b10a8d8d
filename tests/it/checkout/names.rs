//! Host names: a name server that does not reply, and a name of two hosts of which one is silent.
//!
//! Guarantee: deadlines

use crate::fixture::{LARGE_SLACK, SOON};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::error::CheckoutError;
use rediscope::{Builder, Condition, Error, SessionManager, TransactionOptions, prelude::*};

use rediscope_testing::server::Server;
use rediscope_testing::unresponsive_port::UnresponsivePort;
use rediscope_testing::{eventually, not_run};

/// Shorter than what the system's own look-up takes to give up.
const LIMIT: Duration = Duration::from_millis(800);

fn within_limit(builder: Builder) -> Builder {
    let part = LIMIT / 4;
    builder.connect_timeout(part).response_timeout(part).checkout_timeout(LIMIT)
}

/// A name server that does not reply until this is dropped.
struct Silence<'l> {
    lock: Arc<RwLock<()>>,
    _held: RwLockWriteGuard<'l, ()>,
    asked: Arc<AtomicUsize>,
}

impl<'l> Silence<'l> {
    fn of(lock: &'l Arc<RwLock<()>>) -> Self {
        Self { lock: Arc::clone(lock), _held: lock.write().unwrap(), asked: Arc::default() }
    }

    fn look_up(&self) -> impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static {
        let (lock, asked) = (Arc::clone(&self.lock), Arc::clone(&self.asked));
        move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            drop(lock.read());
            Err(io::Error::other("no such host"))
        }
    }
}

fn by_name() -> BTreeMap<&'static str, Builder> {
    let mut all = BTreeMap::from([("one server", SessionManager::builder("redis://silent.test/"))]);
    if cfg!(feature = "tls-rustls") {
        all.insert("TLS", SessionManager::builder("rediss://silent.test/"));
    }
    let seeds = ["redis://one.test:7000", "redis://two.test:7000", "redis://three.test:7000"];
    all.insert("a cluster", SessionManager::cluster(seeds));
    let sentinels = ["redis://one.test:26379", "redis://two.test:26379"];
    all.insert("sentinels", SessionManager::sentinel("mymaster", sentinels));
    all
}

type Call = (&'static str, Box<dyn Fn(&SessionManager) -> Error + Send>);

fn run_with(sessions: &SessionManager, options: TransactionOptions) -> Error {
    sessions.transactional().with(options).run(|tx| Ok(tx.incr("a", 1))).unwrap_err()
}

fn calls() -> Vec<Call> {
    fn call(name: &'static str, call: impl Fn(&SessionManager) -> Error + Send + 'static) -> Call {
        (name, Box::new(call))
    }
    vec![
        call("run", |s| s.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap_err()),
        call("watch run", |s| {
            s.transactional().watch(["a"]).run(|_, tx| Ok(tx.incr("a", 1))).unwrap_err()
        }),
        call("watch begin", |s| s.transactional().watch(["a"]).begin().map(drop).unwrap_err()),
        call("require run", |s| {
            let missing = Condition::not_exists("a");
            s.transactional().require(missing).run(|tx| Ok(tx.incr("a", 1))).unwrap_err()
        }),
        call("exactly once", |s| run_with(s, TransactionOptions::new().exactly_once())),
        call("grouped", |s| run_with(s, TransactionOptions::new().grouped())),
        call("commit", |s| {
            let mut tx = match s.transactional().begin() {
                Ok(tx) => tx,
                Err(error) => return error,
            };
            tx.incr("a", 1);
            tx.commit().unwrap_err()
        }),
        call("begin_at", |s| s.transactional().begin_at("a").map(drop).unwrap_err()),
        call("a single command", |s| s.pooled().get::<_, Option<i64>>("a").unwrap_err().into()),
        call("with_raw", |s| s.pooled().with_raw(|_| ()).unwrap_err()),
        call("try_acquire", |s| s.lock("l").try_acquire().map(drop).unwrap_err()),
        call("acquire", |s| s.lock("l").acquire(LIMIT / 4).map(drop).unwrap_err()),
        call("holder", |s| s.lock("l").holder().unwrap_err()),
        call("force_release", |s| s.lock("l").force_release().map(drop).unwrap_err()),
        call("set_permits", |s| s.semaphore("l", 2).set_permits(4).unwrap_err()),
    ]
}

/// Tries every call at a server that cannot be reached; none takes more than one limit.
fn keeps_no_call_past_its_limit(what: &str, sessions: impl Fn() -> SessionManager) {
    thread::scope(|scope| {
        for (name, call) in calls() {
            let sessions = sessions();
            scope.spawn(move || {
                let begun = Instant::now();
                let error = call(&sessions);
                let took = begun.elapsed();
                // The machine may add half of it.
                assert!(took < LIMIT + LIMIT / 2, "{what}, {name}: {took:?}");
                assert!(
                    error.applied() == rediscope::error::Applied::No,
                    "{what}, {name}: {error}"
                );
            });
        }
    });
}

#[test]
fn a_silent_name_server_keeps_no_call_past_its_limit() {
    let lock = Arc::default();
    let silence = Silence::of(&lock);
    thread::scope(|scope| {
        for (topology, builder) in by_name() {
            let silence = &silence;
            scope.spawn(move || {
                keeps_no_call_past_its_limit(topology, || {
                    let builder = within_limit(builder.clone());
                    builder.look_up_names_with(silence.look_up()).build().unwrap()
                });
            });
        }
    });
}

#[test]
fn unreachable_nodes_keep_no_call_in_a_cluster_past_its_limit() {
    let deaf = UnresponsivePort::open();
    let refusing = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("redis://{}/", listener.local_addr().unwrap())
    };
    thread::scope(|scope| {
        for (what, seed) in [("a deaf node", deaf.url()), ("a refusing node", refusing)] {
            scope.spawn(move || {
                keeps_no_call_past_its_limit(what, || {
                    within_limit(SessionManager::cluster([seed.as_str()])).build().unwrap()
                });
            });
        }
    });
}

#[test]
fn a_thousand_callers_and_a_silent_name_server_take_four_threads_more() {
    rediscope_testing::own_process!();
    let few = ["one server", "a cluster"];
    for (topology, builder) in by_name().into_iter().filter(|(name, _)| few.contains(name)) {
        let lock = Arc::default();
        let silence = Silence::of(&lock);
        let asked = || silence.asked.load(Ordering::SeqCst);
        let sessions = within_limit(builder).look_up_names_with(silence.look_up()).build().unwrap();
        let calls: Vec<_> = (0..1000)
            .map(|_| {
                let accounts = sessions.transactional();
                let call = move || accounts.run(|tx| Ok(tx.incr("a", 1))).map(drop).unwrap_err();
                thread::Builder::new().stack_size(128 * 1024).spawn(call).unwrap()
            })
            .collect();
        eventually(SOON, "names are looked up", || asked() > 0);
        eventually(SOON, "every call ends", || {
            let names = looking_up();
            assert!(names <= 4, "{topology}: {names} threads look names up");
            calls.iter().all(|call| call.is_finished())
        });
        calls.into_iter().for_each(|call| drop(call.join().unwrap()));
        // One a name, however many callers and tries there were.
        let asked = asked();
        assert!((1..=3).contains(&asked), "{topology}: {asked} look-ups");
        drop((sessions, silence));
        eventually(SOON, "none of them is left", || looking_up() == 0);
    }
}

/// Number of threads of this process that look names up.
fn looking_up() -> usize {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        not_run("/proc does not list the threads");
        return 0;
    };
    let tasks = tasks.flatten();
    let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    tasks.filter(|task| name(task).is_ok_and(|name| name.trim_end() == "rediscope-names")).count()
}

/// What stands at the first address of a name.
enum Silent {
    /// Takes no connection.
    Deaf(#[expect(dead_code, reason = "held")] UnresponsivePort),
    /// Accepts connections, and does not reply.
    Mute(#[expect(dead_code, reason = "held")] TcpListener),
}

const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn two_addresses(name: &str) -> io::Result<Vec<SocketAddr>> {
    assert_eq!(name, "two.test");
    let address = |ip| SocketAddr::new(IpAddr::V4(ip), 0);
    Ok(vec![address(ELSEWHERE), address(Ipv4Addr::LOCALHOST)])
}

#[test]
fn a_name_whose_first_address_is_silent_is_reached_at_the_second() {
    for deaf in [true, false] {
        let server = Server::start();
        let there = SocketAddr::from((ELSEWHERE, server.port()));
        let silent = match deaf {
            true => Silent::Deaf(UnresponsivePort::at(there)),
            false => Silent::Mute(TcpListener::bind(there).unwrap()),
        };
        let sessions = SessionManager::builder(format!("redis://two.test:{}/", server.port()))
            .connect_timeout(Duration::from_millis(400))
            .look_up_names_with(two_addresses)
            .build()
            .unwrap();
        let begun = Instant::now();
        assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
        assert_eq!(sessions.pooled().get::<_, i64>("a").unwrap(), 1);
        let raw: i64 = sessions.pooled().with_raw(|raw| raw.get("a").unwrap()).unwrap();
        assert_eq!(raw, 1);
        drop(sessions.lock("l").acquire(SOON).unwrap());
        assert!(begun.elapsed() < LARGE_SLACK, "deaf {deaf}: {:?}", begun.elapsed());
        drop(silent);
    }
}

#[test]
fn an_unknown_host_name_fails_with_the_systems_message() {
    let builder = SessionManager::builder("redis://none.test/");
    let sessions = within_limit(builder)
        .look_up_names_with(|_| Err(io::Error::other("no such host is known here")))
        .build()
        .unwrap();
    let error = sessions.transactional().begin().map(drop).unwrap_err();
    let Error::Checkout(CheckoutError::Connect { source, .. }) = error else {
        panic!("{error}");
    };
    assert!(source.to_string().contains("no such host is known here"), "{source}");
}
