//! A session manager belongs to the process that made it: a forked child gets an error at once and changes
//! nothing, and the parent continues as without a fork.
//!
//! Guarantee: ends
#![cfg(all(unix, feature = "serde"))]

use crate::fixture::{SOON, immediate};
use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::fs;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fork::Fork;
use rediscope::error::{Applied, CheckoutError, CommitToken, Resolution, UnresolvedReason};
use rediscope::prelude::*;
use rediscope::{Builder, CommitError, Error, SessionManager, TransactionOptions};
use scopeguard::defer;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, try_for, under_log};

/// What a call or a drop may take in the child.
const AT_ONCE: Duration = Duration::from_millis(10);
const ROUNDS: usize = 6;
const WORKERS: usize = 8;

/// Writes down how long each step took in the child, and how it ended. A pipe: a file may wait for the
/// disk for longer than the test does.
struct Report(PipeWriter);

impl Report {
    fn step<T>(&mut self, name: &str, step: impl FnOnce() -> T, shown: impl FnOnce(T) -> String) {
        let begun = Instant::now();
        let done = step();
        let took = begun.elapsed().as_micros();
        // At once: the next step may never end.
        self.line(&format!("{name}\t{took}\t{}\n", shown(done)));
    }

    fn line(&mut self, line: &str) {
        self.0.write_all(line.as_bytes()).unwrap();
    }

    fn refused<T, E: Into<Error>>(&mut self, name: &str, call: impl FnOnce() -> Result<T, E>) {
        self.step(name, call, |result| match result.map_err(Into::into) {
            Err(error @ Error::Checkout(CheckoutError::OtherProcess))
                if error.applied() == Applied::No && !error.is_retryable() =>
            {
                "refused".to_owned()
            }
            Err(error) => format!("another error: {error:?}"),
            Ok(_) => "no error".to_owned(),
        });
    }

    fn drops<T>(&mut self, name: &str, value: T) {
        self.step(&format!("drop {name}"), || drop(value), |()| "dropped".to_owned());
    }

    fn gives<T: Display>(&mut self, name: &str, call: impl FnOnce() -> T) {
        self.step(name, call, |value| value.to_string());
    }
}

/// Runs `child` in a fork of this process, and returns what it has written. A child whose new manager was
/// stopped by the table of parking_lot, which it has from this process, is forked again.
fn forked(child: impl FnOnce(&mut Report)) -> BTreeMap<String, (Duration, String)> {
    let mut tries = 1..=3;
    loop {
        let is_last = tries.next() == Some(3);
        let (mut reader, writer) = std::io::pipe().unwrap();
        match fork::fork().unwrap() {
            Fork::Child => {
                let mut report = Report(writer);
                let run = catch_unwind(AssertUnwindSafe(|| child(&mut report)));
                report.line(if run.is_ok() { "end\t0\treached\n" } else { "end\t0\ta panic\n" });
                // Nothing of the parent's is run at the end of it, and nothing dropped.
                let _: std::io::Error = Command::new("true").exec();
                std::process::abort();
            }
            Fork::Parent(child) => {
                drop(writer);
                let ended = try_for(SOON, || fork::waitpid_nohang(child).unwrap());
                if ended.is_none() {
                    Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
                    fork::waitpid(child).unwrap();
                }
                let mut text = String::new();
                reader.read_to_string(&mut text).unwrap();
                let is_over = text.contains("end\t0\treached");
                assert!(is_over || !is_last, "the child did not get to its end: {text}");
                if !is_over {
                    continue;
                }
                let line = |line: &str| {
                    let mut parts = line.splitn(3, '\t');
                    let mut part = || parts.next().unwrap().to_owned();
                    let (name, took, shown) = (part(), part(), part());
                    (name, (Duration::from_micros(took.parse().unwrap()), shown))
                };
                return text.lines().map(line).collect();
            }
        }
    }
}

/// Sockets that this process has open.
fn sockets() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    files.filter_map(Result::ok).filter(is_socket).count()
}

/// Everything that a caller can have open, and all that can be done with it, in a child of a process in
/// which other threads are at work.
fn play(server: &Server, builder: &dyn Fn() -> Builder, closes_sockets: bool) {
    let sessions = builder().max_size(WORKERS as u32 + 8).build().unwrap();
    let accounts = sessions.transactional();
    let (over, counted) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let mut best: BTreeMap<String, (Duration, String)> = BTreeMap::new();
    let token: CommitToken = serde_json::from_str(
        r#"{"register":"rediscope:reg:0123456789abcdef0123456789abcdef","number":1,"db":0,
            "slot":null,"address":"any"}"#,
    )
    .unwrap();
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (sessions, over, counted) = (sessions.clone(), &over, &counted);
            scope.spawn(move || {
                let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
                let (own, mut mine) = (format!("own:{worker}"), Vec::new());
                while !over.load(Ordering::Relaxed) {
                    mine.push(accounts.run(|tx| Ok(tx.incr("all", 1))).unwrap());
                    // A reply of another call would be another number.
                    let _: () = db.set(&own, mine.len()).unwrap();
                    assert_eq!(db.get::<_, usize>(&own).unwrap(), mine.len());
                    let lock = sessions.lock(&own).acquire(SOON).unwrap();
                    let seen: usize = accounts
                        .watch([&own])
                        .run(|read, _| Ok(rediscope::Ready(read.get::<_, usize>(&own)?)))
                        .unwrap();
                    assert_eq!(seen, mine.len());
                    lock.release().unwrap();
                }
                counted.lock().unwrap().extend(mine);
            });
        }
        // Also after a failure: otherwise the workers would go on for ever.
        defer! { over.store(true, Ordering::Relaxed) }
        eventually(SOON, "all are at work", || {
            server.ask::<Option<u64>>(&["GET", "all"]) > Some(50)
        });
        for round in 0..ROUNDS {
            let mut begun = accounts.begin_with(immediate()).unwrap();
            begun.incr("begun", 1);
            let key = format!("watched:{round}");
            let mut watching = accounts.watch([&key]).begin().unwrap();
            assert_eq!(watching.get::<_, Option<i64>>(&key).unwrap(), None);
            let second = accounts.watch([&key]).begin().unwrap();
            let lock = sessions.lock(format!("held:{round}")).acquire(SOON).unwrap();
            let once = lock.share();
            // Taken out by the child, in its copy, and by the parent.
            let held = Cell::new(Some((begun, watching, second, lock, once)));
            let before = sessions.status();
            let open = (before.pooled.size + before.transactional.size) as usize;
            let report = forked(|child| {
                let (mut begun, mut watching, second, lock, once) = held.take().unwrap();
                let there = sockets();
                child.refused("run", || accounts.run(|tx| Ok(tx.incr("all", 1))));
                let left = sockets();
                child.gives("sockets closed", || {
                    // Other threads open and close some at the time of the fork.
                    match closes_sockets && left + open > there + 3 {
                        true => format!("{open} connections, {there} sockets, then {left}"),
                        false => "yes".to_owned(),
                    }
                });
                let mut db = sessions.pooled();
                child.refused("pooled read", || db.get::<_, Option<i64>>("all"));
                child.refused("pooled write", || db.set::<_, _, ()>("all", 1));
                child.refused("pipeline", || redis_pipe(&mut db));
                child.refused("with_raw", || db.with_raw(|_| ()));
                child.refused("begin", || accounts.begin());
                child.refused("begin_at", || accounts.begin_at("all"));
                child.refused("watch begin", || accounts.watch(["all"]).begin());
                child.refused("watch run", || {
                    accounts.watch(["all"]).run(|_, tx| Ok(tx.incr("all", 1)))
                });
                child.refused("reading", || accounts.reading().begin());
                let options = TransactionOptions::new().exactly_once();
                child.refused("exactly once", || {
                    accounts.with(options.clone()).run(|tx| Ok(tx.incr("all", 1)))
                });
                let keyed = TransactionOptions::new().exactly_once_as("k", Duration::from_secs(9));
                child.refused("keyed", || accounts.with(keyed).run(|tx| Ok(tx.incr("all", 1))));
                child.refused("grouped", || {
                    let grouped = accounts.with(TransactionOptions::new().grouped());
                    grouped.run(|tx| Ok(tx.incr("all", 1)))
                });
                child.refused("fenced", || {
                    accounts.fenced_by(&lock).run(|tx| Ok(tx.incr("all", 1)))
                });
                child.refused("required", || {
                    let condition = rediscope::Condition::exists("all");
                    accounts.require(condition).run(|tx| Ok(tx.incr("all", 1)))
                });
                child.refused("acquire", || sessions.lock("own:0").acquire(SOON));
                child.refused("try_acquire", || sessions.lock("own:0").try_acquire());
                child.refused("semaphore", || sessions.semaphore("s", 2).acquire(SOON));
                child.refused("read lock", || sessions.rw_lock("s").read().acquire(SOON));
                child.refused("is_locked", || sessions.lock("own:0").is_locked());
                child.refused("force_release", || sessions.lock("own:0").force_release());
                child.refused("ensure_held", || lock.ensure_held());
                child.gives("is_lost", || lock.is_lost());
                child.gives("remaining", || lock.remaining().as_nanos());
                child.gives("on_lost", || {
                    lock.on_lost(|| std::process::abort());
                    "nothing"
                });
                child.gives("resolve", || match sessions.resolve(&token, None) {
                    Resolution::StillUnknown { why: UnresolvedReason::OtherProcess } => {
                        "refused".into()
                    }
                    other => format!("{other:?}"),
                });
                child.gives("pins", || sessions.open_scopes().len());
                child.gives("status", || sessions.status().transactional.in_use);
                child.gives("debug", || {
                    format!("{sessions:?}{accounts:?}{db:?}{begun:?}{lock:?}").is_empty()
                });
                child.refused("watching get", || watching.get::<_, Option<i64>>("all"));
                begun.incr("begun", 1);
                {
                    let mut part = begun.savepoint();
                    part.incr("begun", 1);
                    child.drops("savepoint", part);
                }
                child.refused("check", || begun.check());
                child.refused("commit", || begun.commit());
                child.drops("watching", watching);
                child.refused("abandon", || second.abandon());
                child.refused("release", || once.release());
                child.drops("lock", lock);
                child.drops("pooled", db);
                child.gives("close", || sessions.close(SOON).to_string());
                child.drops("transactional", accounts.clone());
                child.drops("manager", sessions.clone());
                let anew = builder().max_size(1).build().unwrap();
                let own = anew.transactional().run(|tx| Ok(tx.incr("children", 1)));
                child.step("anew", || (), |()| format!("{:?}", own.map(drop)));
            });
            for (name, (took, shown)) in report {
                let line = best.entry(name.clone()).or_insert((took, shown.clone()));
                assert_eq!(line.1, shown, "{name}");
                line.0 = line.0.min(took);
            }
            // The scopes that were open are the parent's still.
            let (begun, watching, second, lock, once) = held.take().unwrap();
            begun.commit().unwrap();
            let mut tx = watching.multi();
            tx.set(&key, 1);
            assert!(matches!(tx.commit().unwrap(), rediscope::Outcome::Committed(_)));
            second.abandon().unwrap();
            lock.ensure_held().unwrap();
            drop(once);
            lock.release().unwrap();
        }
    });
    for (name, (took, shown)) in &best {
        let expected = match &**name {
            "sockets closed" => "yes",
            "is_lost" => "true",
            "remaining" | "pins" | "status" => "0",
            "on_lost" => "nothing",
            "debug" => "false",
            "close" => "0 scopes, 0 locks",
            "anew" => "Ok(())",
            "end" => "reached",
            name if name.starts_with("drop ") => "dropped",
            _ => "refused",
        };
        assert_eq!(shown, expected, "{name}");
        if name != "sockets closed" {
            assert!(*took < AT_ONCE, "{name} took {took:?} in each of {ROUNDS} children");
        }
    }
    assert!(best.len() > 40, "{best:?}");
    let counted = counted.into_inner().unwrap();
    let values: HashSet<i64> = counted.iter().copied().collect();
    assert_eq!(values.len(), counted.len(), "no reply was handed out twice");
    assert_eq!(server.ask::<i64>(&["GET", "all"]), counted.len() as i64);
    assert_eq!(server.ask::<i64>(&["GET", "begun"]), ROUNDS as i64, "no child has sent any of it");
    assert_eq!(server.ask::<i64>(&["GET", "children"]), ROUNDS as i64);
    let after = sessions.status();
    for pool in [&after.pooled, &after.transactional] {
        let replaced = format!("{:?}", pool.counts.replaced);
        assert_eq!(pool.counts.in_doubt, 0);
        assert_eq!(pool.counts.connect_failures, 0, "{replaced}");
        assert!(pool.counts.connects <= u64::from(pool.max_size), "{}: {replaced}", pool.name);
    }
}

/// Descriptors that this process has open.
fn descriptors() -> Vec<RawFd> {
    let names = fs::read_dir("/proc/self/fd").unwrap();
    names.map(|name| name.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn a_child_keeps_its_own_files_that_have_the_numbers_of_inherited_sockets() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(8).build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for opens_sockets in [false, true] {
        let (tx, lock) = (sessions.transactional().begin().unwrap(), sessions.lock("l"));
        let held = Cell::new(Some((tx, lock.acquire(SOON).unwrap())));
        let report = forked(|child| {
            // As a daemon does.
            let (report, inherited) = (child.0.as_raw_fd(), descriptors());
            for descriptor in inherited.iter().filter(|&&number| number > 2 && number != report) {
                let _: nix::Result<()> = nix::unistd::close(*descriptor);
            }
            let (highest, mut own, mut pairs) = (*inherited.iter().max().unwrap(), vec![], vec![]);
            let mut last = 0;
            while last <= highest {
                if opens_sockets {
                    let pair = UnixStream::pair().unwrap();
                    last = pair.0.as_raw_fd().min(pair.1.as_raw_fd());
                    pairs.push(pair);
                } else {
                    let path = folder.path().join(own.len().to_string());
                    let file = fs::File::create(&path).unwrap();
                    last = file.as_raw_fd();
                    own.push((path, file));
                }
            }
            child.refused("run", || sessions.transactional().run(|tx| Ok(tx.incr("n", 1))));
            drop(held.take());
            drop(sessions.clone());
            let anew = SessionManager::builder(server.url()).max_size(1).build().unwrap();
            let done = anew.transactional().run(|tx| Ok(tx.incr("n", 1)));
            child.step("anew", || (), |()| format!("{:?}", done.map(drop)));
            let files = own.iter_mut().map(|(path, file)| {
                file.write_all(b"mine").is_ok() && fs::read(path).is_ok_and(|read| read == b"mine")
            });
            let sockets = pairs.iter_mut().map(|(one, other)| {
                let mut read = [0; 4];
                one.write_all(b"mine").is_ok() && other.read_exact(&mut read).is_ok()
            });
            let lost = files.chain(sockets).filter(|is_open| !is_open).count();
            child.gives("lost", || lost);
            // Those that are lost would be closed twice.
            std::mem::forget((own, pairs));
        });
        for (name, expected) in [("run", "refused"), ("anew", "Ok(())"), ("lost", "0")] {
            assert_eq!(report[name].1, expected, "{name}, sockets: {opens_sockets}");
        }
        let (tx, lock) = held.take().unwrap();
        tx.commit().unwrap();
        lock.release().unwrap();
    }
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 2);
}

fn redis_pipe(db: &mut rediscope::Pooled) -> rediscope::redis::RedisResult<()> {
    rediscope::redis::pipe().incr("all", 1).incr("all", 1).exec(db)
}

#[test]
fn a_forked_child_is_refused_at_once_and_the_parent_continues_over_tcp() {
    rediscope_testing::own_process!();
    let server = Server::start();
    play(&server, &|| SessionManager::builder(server.url()), true);
}

#[test]
fn a_forked_child_is_refused_at_once_and_the_parent_continues_over_a_unix_socket() {
    rediscope_testing::own_process!();
    let server = Server::start();
    play(&server, &|| SessionManager::builder(server.unix_url()), true);
}

#[cfg(feature = "tls-rustls")]
#[test]
fn a_forked_child_is_refused_at_once_and_the_parent_continues_over_tls() {
    rediscope_testing::own_process!();
    let server = rediscope_testing::tls::TlsServer::start();
    let tls = rediscope::Tls::new().root_certificates(server.authority.pem());
    let builder = || SessionManager::builder(server.url()).tls(tls.clone());
    play(&server.server, &builder, true);
}

/// Counts events.
struct Events(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> Layer<S> for Events {
    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_child_that_leaves_a_lock_with_an_error_writes_to_no_log() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let events = Arc::<AtomicUsize>::default();
    let subscriber = tracing_subscriber::registry().with(Events(Arc::clone(&events)));
    let mut child = None;
    let ended = under_log(subscriber, || {
        sessions.lock("l").run(SOON, |_| match fork::fork().unwrap() {
            Fork::Child => {
                events.store(0, Ordering::SeqCst);
                Err(Error::NoKeys)
            }
            Fork::Parent(pid) => {
                child = Some(pid);
                Ok(())
            }
        })
    });
    let Some(child) = child else {
        let reported = format!("{} events, {}", events.load(Ordering::SeqCst), ended.is_err());
        let _: Result<(), _> = fs::write(&report, reported);
        let _: std::io::Error = Command::new("true").exec();
        std::process::abort();
    };
    ended.unwrap();
    assert!(try_for(SOON, || fork::waitpid_nohang(child).unwrap()).is_some());
    assert_eq!(fs::read_to_string(&report).unwrap(), "0 events, true");
}

/// Counts what is written to a log: events, and spans that are entered, exited and closed.
struct Spans(Arc<[AtomicUsize; 4]>);

impl<S: tracing::Subscriber> Layer<S> for Spans {
    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        self.0[0].fetch_add(1, Ordering::SeqCst);
    }

    fn on_enter(&self, _: &tracing::span::Id, _: Context<'_, S>) {
        self.0[1].fetch_add(1, Ordering::SeqCst);
    }

    fn on_exit(&self, _: &tracing::span::Id, _: Context<'_, S>) {
        self.0[2].fetch_add(1, Ordering::SeqCst);
    }

    fn on_close(&self, _: tracing::span::Id, _: Context<'_, S>) {
        self.0[3].fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn in_a_child_the_calls_of_a_scope_touch_no_span() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(8).build().unwrap();
    let accounts = sessions.transactional();
    let counts = Arc::<[AtomicUsize; 4]>::default();
    let subscriber = tracing_subscriber::registry().with(Spans(Arc::clone(&counts)));
    let report = under_log(subscriber, || {
        let begin = || accounts.begin_with(immediate()).unwrap();
        let (committed, discarded, dropped) = (begin(), begin(), begin());
        let mut watching = accounts.watch(["a"]).begin().unwrap();
        let held = Cell::new(Some((committed, discarded)));
        forked(|child| {
            let (committed, discarded) = held.take().unwrap();
            let count = || {
                let all: Vec<_> = counts.iter().map(|n| n.swap(0, Ordering::SeqCst)).collect();
                format!("{all:?}")
            };
            count();
            drop(committed.commit());
            child.gives("commit", count);
            drop(discarded.discard());
            child.gives("discard", count);
            drop(watching.get::<_, Option<i64>>("a"));
            child.gives("get", count);
            drop(watching.abandon());
            child.gives("abandon", count);
            drop(dropped);
            child.gives("drop", count);
        })
    });
    for name in ["commit", "discard", "get", "abandon", "drop"] {
        assert_eq!(report[name].1, "[0, 0, 0, 0]", "{name}");
    }
}

#[test]
fn a_child_queues_a_command_whichever_mutex_was_locked_at_the_fork() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(1).build().unwrap();
    let accounts = sessions.transactional();
    let (over, mut begun) = (AtomicBool::new(false), accounts.begin_with(immediate()).unwrap());
    let mut hung = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                drop(sessions.open_scopes());
            }
        });
        for _ in 0..150 {
            match fork::fork().unwrap() {
                Fork::Child => {
                    begun.incr("begun", 1);
                    let _: std::io::Error = Command::new("true").exec();
                    std::process::abort();
                }
                Fork::Parent(child) => {
                    if try_for(SOON, || fork::waitpid_nohang(child).unwrap()).is_none() {
                        hung += 1;
                        Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
                        fork::waitpid(child).unwrap();
                        break;
                    }
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(hung, 0);
    begun.commit().map(drop).unwrap();
}

/// A thread of the parent has asked at the time of the fork, and has no reply.
#[test]
fn a_child_resolves_no_doubt_of_its_parent_and_waits_for_no_query_of_it() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = SessionManager::builder(proxy.url()).checkout_timeout(SOON).build().unwrap();
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    let mut tx = once.begin().unwrap();
    tx.incr("n", 1);
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
    let Err(Error::Commit(CommitError::InDoubt(doubt))) = tx.commit() else { panic!("no doubt") };
    proxy.mute_new(true);
    let accepted = proxy.accepted();
    let report = thread::scope(|scope| {
        let asks = scope.spawn(|| doubt.resolve());
        defer! {
            proxy.mute_new(false);
            proxy.cut_all();
        }
        eventually(SOON, "the parent asks", || proxy.accepted() > accepted);
        let shown = |resolution| match resolution {
            Resolution::StillUnknown { why: UnresolvedReason::OtherProcess } => "refused".into(),
            other => format!("{other:?}"),
        };
        let report = forked(|child| {
            child.gives("resolve", || shown(doubt.resolve()));
            #[cfg(feature = "tokio")]
            child.gives("resolve_async", || {
                let asked = std::pin::pin!(doubt.resolve_async());
                match rediscope_testing::tasks::poll_once(asked) {
                    std::task::Poll::Ready(resolution) => shown(resolution),
                    std::task::Poll::Pending => "it waits".into(),
                }
            });
        });
        assert!(!asks.is_finished(), "the parent has no reply yet");
        report
    });
    for (name, (_, shown)) in report.iter().filter(|(name, _)| *name != "end") {
        assert_eq!(shown, "refused", "{name}");
    }
    assert_eq!(doubt.resolve(), Resolution::Committed);
}

/// Polls each of them until it waits. Their runtime is not run afterwards.
#[cfg(feature = "tokio")]
#[test]
fn a_child_drops_the_calls_of_tasks_whichever_mutex_was_locked_at_the_fork() {
    use std::pin::Pin;
    use std::task::Poll;

    use rediscope::redis::AsyncCommands as _;

    type Waiting<'c> = Pin<Box<dyn Future<Output = bool> + 'c>>;

    rediscope_testing::own_process!();
    let server = Server::start();
    let builder = SessionManager::builder(server.url()).max_size(1).lanes(1).max_in_flight(1);
    let sessions = builder.build_async().unwrap();
    let other = SessionManager::connect(server.url()).unwrap();
    let _held = other.lock("l").acquire(SOON).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let accounts = sessions.transactional();
    runtime.block_on(async { accounts.run(|tx| Ok(tx.incr("n", 1))).await }).unwrap();
    let _begun = runtime.block_on(accounts.begin()).unwrap();
    let (lock, mut db) = (sessions.lock("l"), sessions.pooled());
    let run = || -> Waiting<'_> {
        Box::pin(async { accounts.run(|tx| Ok(tx.incr("never", 1))).await.is_ok() })
    };
    let calls: Vec<Waiting<'_>> = vec![
        Box::pin(async { lock.acquire(4 * SOON).await.is_ok() }),
        Box::pin(async { db.blpop::<_, Option<(String, i64)>>("none", 3600.0).await.is_ok() }),
        Box::pin(async { accounts.begin().await.is_ok() }),
        Box::pin(async { sessions.ready(4 * SOON).await.is_ok() }),
        Box::pin(async { sessions.ready(4 * SOON).await.is_ok() }),
        run(),
        run(),
    ];
    let mut calls = Some(calls);
    runtime.block_on(std::future::poll_fn(|context| {
        let [first, second, rest @ ..] = &mut **calls.as_mut().unwrap() else { unreachable!() };
        for call in [first, second] {
            assert!(call.as_mut().poll(context).is_pending());
        }
        let status = sessions.status();
        let clients = server.ask::<String>(&["CLIENT", "LIST"]);
        if status.locks.waiting < 1 || !clients.contains("cmd=blpop") {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // The last polls: what these wait for does not come meanwhile.
        for call in rest {
            assert!(call.as_mut().poll(context).is_pending());
        }
        Poll::Ready(())
    }));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                drop((sessions.status(), sessions.open_scopes()));
            }
        });
        defer! { over.store(true, Ordering::Relaxed) }
        for round in 0..100 {
            match fork::fork().unwrap() {
                Fork::Child => {
                    drop(calls.take());
                    let _: std::io::Error = Command::new("true").exec();
                    std::process::abort();
                }
                Fork::Parent(child) => {
                    if try_for(SOON, || fork::waitpid_nohang(child).unwrap()).is_none() {
                        Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
                        fork::waitpid(child).unwrap();
                        panic!("the child of round {round} hangs");
                    }
                }
            }
        }
    });
    drop(calls);
    assert_eq!(server.ask::<Option<i64>>(&["GET", "never"]), None);
}
