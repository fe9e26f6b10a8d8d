//! Numbers and times at their ends: zero, one and the largest, for every argument of every public function.
//! Each is accepted or has a typed error, in time. None panics, and none ends the process.
//!
//! The arguments are read from the source, so that a new function without a row fails here.
//!
//! Guarantee: settings

use crate::fixture::add_on;
use crate::side::BuildSide as _;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::side::{Lock, LockAll, SessionManager};
use rediscope::error::InDoubt;
use rediscope::{Builder, CommitError, Error, RetryPolicy, TransactionOptions, prelude::*, redis};

use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;

/// Longer than any call here takes by itself.
const IN_TIME: Duration = Duration::from_secs(10);

/// One end of a type, for whatever type the argument has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Zero,
    One,
    Max,
}

const ENDS: [End; 3] = [End::Zero, End::One, End::Max];

impl End {
    fn time(self) -> Duration {
        match self {
            Self::Zero => Duration::ZERO,
            Self::One => Duration::from_nanos(1),
            Self::Max => Duration::MAX,
        }
    }

    fn u32(self) -> u32 {
        [0, 1, u32::MAX][self as usize]
    }

    fn u64(self) -> u64 {
        [0, 1, u64::MAX][self as usize]
    }

    fn usize(self) -> usize {
        [0, 1, usize::MAX][self as usize]
    }
}

/// What came of it: the error's text, if there was one.
type Came = Result<(), String>;

/// A server and a session manager, which take the arguments.
struct Target {
    server: Server,
    sessions: SessionManager,
}

impl Target {
    fn built(&self, builder: Builder) -> Came {
        let sessions = builder.build_side().map_err(|error| error.to_string())?;
        let accounts = sessions.transactional();
        accounts.run(|tx| Ok(tx.incr("a", 1))).map(drop).map_err(|error| error.to_string())?;
        let read = sessions.pooled().get::<_, i64>("a");
        sessions.close(Duration::ZERO);
        read.map(drop).map_err(|error| error.to_string())
    }

    fn setting(&self, set: impl FnOnce(Builder) -> Builder) -> Came {
        self.built(set(SessionManager::builder(self.server.url())))
    }

    fn policy(&self, policy: RetryPolicy) -> Came {
        let mut disturbed = false;
        let accounts = self.sessions.transactional();
        let watched = accounts.watch(["p"]).retry(policy).run(|_, tx| {
            if !std::mem::replace(&mut disturbed, true) {
                self.server.ask::<()>(&["SET", "p", "1"]);
            }
            Ok(tx.incr("p", 1))
        });
        watched.map(drop).map_err(|error| error.to_string())
    }

    fn block(&self, options: TransactionOptions) -> Came {
        let accounts = self.sessions.transactional().with(options);
        accounts.run(|tx| Ok(tx.incr("a", 1))).map(drop).map_err(|error| error.to_string())
    }

    fn queued(&self, queue: impl FnOnce(&mut rediscope::Block) + Send) -> Came {
        let run = self.sessions.transactional().run(|tx| {
            queue(tx);
            Ok(())
        });
        run.map_err(|error| error.to_string())
    }

    fn lock(&self, name: &str, change: impl FnOnce(Lock) -> Lock) -> Came {
        let guard = change(self.sessions.lock(name)).acquire(IN_TIME / 20);
        guard.map(drop).map_err(|error| error.to_string())
    }

    fn lock_all(&self, name: &str, change: impl FnOnce(LockAll) -> LockAll) -> Came {
        let guard = change(self.sessions.lock_all([name])).acquire(IN_TIME / 20);
        guard.map(drop).map_err(|error| error.to_string())
    }

    /// A doubt, and what it takes to resolve it.
    fn doubt(&self) -> (InDoubt, SessionManager, Proxy) {
        let proxy = Proxy::to(&self.server);
        let sessions = SessionManager::connect(proxy.url()).unwrap();
        let once = TransactionOptions::new().exactly_once();
        let accounts = sessions.transactional().with(once);
        add_on(0, &accounts, "d");
        proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::Cut));
        proxy.refuse_new(true);
        let mut tx = accounts.begin().unwrap();
        tx.incr("d", 1);
        let error = tx.commit().unwrap_err();
        proxy.disarm();
        proxy.refuse_new(false);
        match error {
            Error::Commit(CommitError::InDoubt(doubt)) => (doubt, sessions, proxy),
            other => panic!("{other}"),
        }
    }
}

type Row = (&'static str, Box<dyn Fn(&Target, End) -> Came + Sync>);

fn row(name: &'static str, call: impl Fn(&Target, End) -> Came + Sync + 'static) -> Row {
    (name, Box::new(call))
}

fn rows() -> Vec<Row> {
    let mut rows = vec![
        row("settings/table.rs max_size", |s, e| s.setting(|b| b.max_size(e.u32()))),
        row("settings/table.rs min_idle", |s, e| s.setting(|b| b.min_idle(e.u32()))),
        row("settings/table.rs idle_timeout", |s, e| s.setting(|b| b.idle_timeout(Some(e.time())))),
        row("settings/table.rs max_lifetime", |s, e| s.setting(|b| b.max_lifetime(Some(e.time())))),
        row("settings/table.rs tcp_keepalive", |s, e| {
            s.setting(|b| b.tcp_keepalive(Some(e.time())))
        }),
        row("settings/table.rs tcp_user_timeout", |s, e| {
            s.setting(|b| b.tcp_user_timeout(Some(e.time())))
        }),
        row("settings/table.rs pin_warning", |s, e| s.setting(|b| b.pin_warning(Some(e.time())))),
        row("settings/table.rs connect_timeout", |s, e| s.setting(|b| b.connect_timeout(e.time()))),
        row("settings/table.rs checkout_timeout", |s, e| {
            s.setting(|b| b.checkout_timeout(e.time()))
        }),
        row("settings/table.rs response_timeout", |s, e| {
            s.setting(|b| b.response_timeout(e.time()))
        }),
        row("settings/table.rs cleanup_timeout", |s, e| s.setting(|b| b.cleanup_timeout(e.time()))),
        row("settings/table.rs trust_window", |s, e| s.setting(|b| b.trust_window(e.time()))),
        row("settings/table.rs poll", |s, e| s.setting(|b| b.poll(e.time()))),
        row("settings/table.rs max_pin_time", |s, e| s.setting(|b| b.max_pin_time(e.time()))),
        row("settings/table.rs flush_bytes", |s, e| s.setting(|b| b.flush_bytes(e.usize()))),
        row("settings/table.rs max_commands", |s, e| s.setting(|b| b.max_commands(e.u32()))),
        row("settings/table.rs max_bytes", |s, e| s.setting(|b| b.max_bytes(e.usize()))),
        row("settings/table.rs max_reply_bytes", |s, e| {
            // The handshake's own replies are too long for one byte.
            let limit = Duration::from_millis(100);
            let soon = |b: Builder| b.connect_timeout(limit).response_timeout(limit);
            s.setting(|b| soon(b).checkout_timeout(4 * limit).max_reply_bytes(e.usize()))
        }),
        row("settings/table.rs max_watched_keys", |s, e| {
            s.setting(|b| b.max_watched_keys(e.u32()))
        }),
        row("settings/table.rs max_group", |s, e| s.setting(|b| b.max_group(e.u32()))),
        row("settings/table.rs max_leaders", |s, e| s.setting(|b| b.max_leaders(e.u32()))),
        row("settings/table.rs max_merged", |s, e| s.setting(|b| b.max_merged(e.u32()))),
        row("settings/table.rs lanes", |s, e| s.setting(|b| b.lanes(e.u32()))),
        row("settings/table.rs max_in_flight", |s, e| s.setting(|b| b.max_in_flight(e.u32()))),
        row("settings/table.rs register_ttl", |s, e| s.setting(|b| b.register_ttl(e.time()))),
        row("transaction/resolve.rs at.index", |s, e| {
            let mut tx = s.sessions.transactional().begin().unwrap();
            tx.incr("a", 1);
            let replies = tx.commit().unwrap();
            replies.at::<i64>(e.usize()).map(drop).map_err(|error| error.to_string())
        }),
        row("protocol/retry.rs attempts.attempts", |s, e| {
            s.policy(RetryPolicy::default().attempts(e.u32()))
        }),
        row("pooled/handle.rs within.wait", |s, e| {
            let read = s.sessions.pooled().within(e.time()).get::<_, Option<i64>>("a");
            read.map(drop).map_err(|error| error.to_string())
        }),
        row("protocol/retry.rs deadline.deadline", |s, e| {
            s.policy(RetryPolicy::default().deadline(e.time()))
        }),
        row("protocol/retry.rs first_backoff.step", |s, e| {
            s.policy(RetryPolicy::default().first_backoff(e.time()))
        }),
        row("protocol/retry.rs max_backoff.step", |s, e| {
            s.policy(RetryPolicy::default().max_backoff(e.time()))
        }),
        row("lock/handle.rs set_permits.permits", |s, e| {
            let semaphore = s.sessions.semaphore(format!("p{}", e.u32()), 2);
            let _held = semaphore.acquire(IN_TIME).map_err(|error| error.to_string())?;
            semaphore.set_permits(e.u32()).map_err(|error| error.to_string())
        }),
        row("lock/handle.rs permits.permits", |s, e| {
            let semaphore = s.sessions.semaphore(format!("a{e:?}"), e.u32().max(1));
            let guard = semaphore.permits(e.u32()).acquire(IN_TIME);
            guard.map(drop).map_err(|error| error.to_string())
        }),
        row("session/manager.rs semaphore.permits", |s, e| {
            let name = format!("s{}", e.u32());
            let guard = s.sessions.semaphore(name, e.u32()).acquire(IN_TIME);
            guard.map(drop).map_err(|error| error.to_string())
        }),
        row("session/manager.rs resolve.within", |s, e| {
            let (doubt, _sessions, _proxy) = s.doubt();
            let token = doubt.token().unwrap();
            drop(s.sessions.resolve(token, e.time()));
            Ok(())
        }),
        row("session/manager.rs ready.within", |s, e| {
            s.sessions.ready(e.time()).map(drop).map_err(|error| error.to_string())
        }),
        row("session/manager.rs close.timeout", |s, e| {
            let sessions = SessionManager::connect(s.server.url()).unwrap();
            let run = sessions.transactional().run(|tx| Ok(tx.incr("a", 1)));
            assert_eq!(sessions.close(e.time()).scopes, 0);
            run.map(drop).map_err(|error| error.to_string())
        }),
        row("transaction/resolve.rs at.index", |s, e| {
            let mut tx = s.sessions.transactional().begin().unwrap();
            tx.incr("a", 1);
            tx.incr("a", 1);
            let replies = tx.commit().unwrap();
            let read = replies.at::<i64>(e.usize());
            assert_eq!(read.is_ok(), e != End::Max);
            read.map(drop).map_err(|error| error.to_string())
        }),
        row("lock/handle.rs lease.lease", |s, e| {
            s.lock(&format!("l{e:?}"), |lock| lock.lease(e.time()))
        }),
        row("lock/handle.rs wait_replicas.replicas", |s, e| {
            s.lock(&format!("r{e:?}"), |lock| lock.wait_replicas(e.u32(), Duration::from_millis(1)))
        }),
        row("lock/handle.rs wait_replicas.timeout", |s, e| {
            s.lock(&format!("t{e:?}"), |lock| lock.wait_replicas(0, e.time()))
        }),
        row("lock/handle.rs acquire.wait", |s, e| {
            let guard = s.sessions.lock(format!("w{e:?}")).acquire(e.time());
            guard.map(drop).map_err(|error| error.to_string())
        }),
        row("lock/handle.rs run.wait", |s, e| {
            let run = s.sessions.lock(format!("n{e:?}")).run(e.time(), |_| Ok(()));
            run.map_err(|error| error.to_string())
        }),
        row("lock/handle.rs run_with.wait", |s, e| {
            let run =
                s.sessions.lock(format!("y{e:?}")).run_with(e.time(), |_| Ok::<(), Error>(()));
            run.map_err(|error| error.to_string())
        }),
        row("lock/all_handle.rs lease.lease", |s, e| {
            s.lock_all(&format!("al{e:?}"), |all| all.lease(e.time()))
        }),
        row("lock/all_handle.rs wait_replicas.replicas", |s, e| {
            let limit = Duration::from_millis(1);
            s.lock_all(&format!("ar{e:?}"), |all| all.wait_replicas(e.u32(), limit))
        }),
        row("lock/all_handle.rs wait_replicas.timeout", |s, e| {
            s.lock_all(&format!("at{e:?}"), |all| all.wait_replicas(0, e.time()))
        }),
        row("lock/all_handle.rs acquire.wait", |s, e| {
            let name = format!("aw{e:?}");
            let guard = s.sessions.lock_all([&*name, "all"]).acquire(e.time());
            guard.map(drop).map_err(|error| error.to_string())
        }),
        row("lock/all_handle.rs run.wait", |s, e| {
            let run = s.sessions.lock_all([format!("an{e:?}")]).run(e.time(), |_| Ok(()));
            run.map_err(|error| error.to_string())
        }),
        row("lock/all_handle.rs run_with.wait", |s, e| {
            let all = s.sessions.lock_all([format!("ay{e:?}")]);
            let run = all.run_with(e.time(), |_| Ok::<(), Error>(()));
            run.map_err(|error| error.to_string())
        }),
        row("transaction/options.rs exactly_once_as.ttl", |s, e| {
            s.block(TransactionOptions::new().exactly_once_as(format!("{e:?}"), e.time()))
        }),
        row("transaction/options.rs within.wait", |s, e| {
            s.block(TransactionOptions::new().within(e.time()))
        }),
        row("transaction/options.rs wait_replicas.replicas", |s, e| {
            s.block(TransactionOptions::new().wait_replicas(e.u32(), Duration::from_millis(1)))
        }),
        row("transaction/options.rs wait_replicas.timeout", |s, e| {
            s.block(TransactionOptions::new().wait_replicas(0, e.time()))
        }),
        row("transaction/options.rs wait_aof.replicas", |s, e| {
            s.block(TransactionOptions::new().wait_aof(false, e.u32(), Duration::from_millis(1)))
        }),
        row("transaction/options.rs wait_aof.timeout", |s, e| {
            s.block(TransactionOptions::new().wait_aof(false, 0, e.time()))
        }),
        row("transaction/commands/bitmaps.rs getbit.offset", |s, e| {
            s.queued(|tx| {
                let _ = tx.getbit("bits", e.usize());
            })
        }),
        row("transaction/commands/bitmaps.rs bitcount_range.start", |s, e| {
            s.queued(|tx| {
                let _ = tx.bitcount_range("bits", e.usize(), 1);
            })
        }),
        row("transaction/commands/bitmaps.rs bitcount_range.end", |s, e| {
            s.queued(|tx| {
                let _ = tx.bitcount_range("bits", 0, e.usize());
            })
        }),
        row("transaction/commands/bitmaps.rs setbit.offset", |s, e| {
            s.queued(|tx| {
                let _ = tx.setbit("bits", e.usize(), true);
            })
        }),
        row("transaction/commands/lists.rs lmpop.count", |s, e| {
            s.queued(|tx| {
                let _ = tx.lmpop::<_, Option<()>>("list", redis::Direction::Left, e.usize());
            })
        }),
        row("transaction/commands/strings.rs set_ex.seconds", |s, e| {
            s.queued(|tx| {
                let _ = tx.set_ex("short", 1, e.u64());
            })
        }),
        row("transaction/commands/strings.rs pset_ex.milliseconds", |s, e| {
            s.queued(|tx| {
                let _ = tx.pset_ex("short", 1, e.u64());
            })
        }),
    ];
    rows.sort_by_key(|(name, _)| *name);
    rows
}

#[test]
fn every_number_and_every_time_is_taken_at_its_ends_or_refused_with_a_reason() {
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let fixture = Target { server, sessions };
    let rows = rows();
    let (fixture, mut refused) = (&fixture, BTreeSet::new());
    thread::scope(|scope| {
        for (name, call) in &rows {
            let ends = ENDS.map(|end| {
                scope.spawn(move || {
                    let begun = Instant::now();
                    let came = call(fixture, end);
                    assert!(begun.elapsed() < IN_TIME, "{name}, {end:?}: {:?}", begun.elapsed());
                    (end, came)
                })
            });
            for came in ends {
                let (end, came) = came.join().unwrap_or_else(|_| panic!("{name} panicked"));
                if let Err(reason) = came {
                    assert!(!reason.is_empty());
                    refused.insert(format!("{name} {end:?}"));
                }
            }
        }
    });
    for must in [
        "settings/table.rs max_size Zero",
        "settings/table.rs max_size Max",
        "settings/table.rs connect_timeout One",
        "settings/table.rs max_pin_time Max",
        "lock/all_handle.rs lease.lease Max",
        "lock/handle.rs lease.lease Max",
        "lock/handle.rs permits.permits Zero",
        "lock/handle.rs set_permits.permits Zero",
        "session/manager.rs semaphore.permits Zero",
        "transaction/options.rs exactly_once_as.ttl Zero",
    ] {
        assert!(refused.contains(must), "{must} was taken; refused: {refused:#?}");
    }
    for may in [
        "session/manager.rs close.timeout Max",
        "protocol/retry.rs first_backoff.step Max",
        "protocol/retry.rs max_backoff.step Max",
        "protocol/retry.rs deadline.deadline Max",
        "lock/all_handle.rs acquire.wait Max",
        "lock/handle.rs acquire.wait Max",
        "lock/handle.rs permits.permits Max",
        "pooled/handle.rs within.wait Max",
        "settings/table.rs max_group Max",
        "settings/table.rs trust_window Max",
    ] {
        assert!(!refused.contains(may), "{may} was refused");
    }
}

#[test]
#[cfg(feature = "serde")]
fn a_file_cannot_set_more_connections_than_there_are_ports() {
    for most in ["4294967295", "65536", "'4294967295'"] {
        let file = format!("url = 'redis://127.0.0.1/'\nmax_size = {most}");
        let config: rediscope::Config = toml::from_str(&file).unwrap();
        let refused = config.builder().build_side().map(drop).unwrap_err();
        assert_eq!(refused.setting_name(), Some("max_size"), "{refused}");
    }
}

#[test]
fn every_such_argument_of_a_public_function_has_its_row() {
    let rows: BTreeSet<String> = rows().iter().map(|(name, _)| (*name).to_owned()).collect();
    let found = arguments();
    assert!(found.len() > 30, "{found:#?}");
    let without: Vec<_> = found.difference(&rows).collect();
    let gone: Vec<_> = rows.difference(&found).collect();
    assert!(without.is_empty() && gone.is_empty(), "no row: {without:#?}, no argument: {gone:#?}");
}

const TYPES: [&str; 6] =
    ["Duration", "Option<Duration>", "impl Into<Option<Duration>>", "usize", "u32", "u64"];

/// File, function and argument, as far as they can be seen from outside.
fn arguments() -> BTreeSet<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeSet::new();
    for path in files(&src) {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        // The handles of tasks have the same methods, and their rows run on tasks.
        if file.starts_with("aio/") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let code: Vec<&str> = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        if file == "settings/table.rs" {
            for line in code.lines() {
                if let Some((name, rest)) = line.trim().split_once(": ")
                    && let Some((of, _)) = rest.split_once(" = ")
                    && TYPES.contains(&of)
                {
                    found.insert(format!("{file} {name}"));
                }
            }
        }
        // What a table of commands makes is public.
        let table = code.contains("command_table! {") || code.contains("conditions! {");
        let begins = if table { "fn " } else { "pub fn " };
        for (at, _) in code.match_indices(begins) {
            let signature = &code[at + begins.len()..];
            let name = signature.split(['(', '<']).next().unwrap();
            for (argument, of) in parameters(signature) {
                if TYPES.contains(&of.as_str()) {
                    found.insert(format!("{file} {name}.{argument}"));
                }
            }
        }
    }
    found
}

/// What stands between the first parentheses, each as name and type.
fn parameters(signature: &str) -> Vec<(String, String)> {
    let (mut depth, mut angle, mut part, mut parts) = (0, 0, String::new(), Vec::new());
    let mut before = ' ';
    for c in signature.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '<' => angle += 1,
            '>' if before != '-' => angle -= 1,
            _ => {}
        }
        before = c;
        match c {
            // Not those of a bound such as `impl Fn(&str)`.
            '(' if depth == 1 && angle == 0 => part.clear(),
            ')' if depth == 0 && angle == 0 => break,
            ',' if depth == 1 && angle == 0 => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    let split = |part: &String| {
        let (name, of) = part.split_once(':')?;
        Some((name.trim().trim_start_matches("mut ").to_owned(), of.trim().to_owned()))
    };
    parts.iter().filter_map(split).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}
