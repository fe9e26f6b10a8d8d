//! Every way in which a transactional scope can end, and the next caller on its connection.
//!
//! The pool has one connection. The next caller gets its own replies, database, user, protocol and
//! timeouts, is in no MULTI but its own, and gets no nil EXEC.
//!
//! Guarantee: clean-connections

use crate::fixture::LONG;
use crate::side::BuildSide as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::side::{self, SessionManager, Transaction, Transactional, Watching};
use redis::{Cmd, RedisWrite, ToRedisArgs, ToSingleRedisArg, Value, cmd};
use rediscope::prelude::*;
use rediscope::{Begin, CommitError, Error, Outcome, RetryPolicy, TransactionOptions};

use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;
use rediscope_testing::unique;

/// Far below [`PACE`], the delay of the next caller's replies: a socket timeout that was left at this
/// would be noticed.
const CLEANUP: Duration = Duration::from_millis(60);
const PACE: Duration = Duration::from_millis(150);
const MAX_PIN: Duration = Duration::from_millis(800);
const FLUSH: usize = 1000;
const MOST: u32 = 50;
const DB: &str = "3";

/// A pool of one connection to a database of its own, and a connection outside of the pool.
struct ScopeUser {
    proxy: Proxy,
    sessions: SessionManager,
    watched: String,
    outside: redis::Connection,
}

impl ScopeUser {
    fn new(server: &Server, trust: Duration) -> Self {
        let proxy = Proxy::to(server);
        let url = format!("redis://app:secret@{}/{DB}", proxy.address());
        let sessions = SessionManager::builder(url)
            .max_size(1)
            .trust_window(trust)
            .cleanup_timeout(CLEANUP)
            .max_pin_time(MAX_PIN)
            .flush_bytes(FLUSH)
            .max_commands(MOST)
            .build_side()
            .unwrap();
        let mut outside = server.connection();
        cmd("SELECT").arg(DB).exec(&mut outside).unwrap();
        Self { proxy, sessions, watched: unique("watched"), outside }
    }

    fn accounts(&self) -> Transactional {
        self.sessions.transactional()
    }

    fn immediate(&self) -> Transactional {
        self.accounts().with(TransactionOptions::new().begin(Begin::Immediate))
    }

    /// A guard that has sent nothing.
    fn guard(&self) -> Transaction {
        let mut tx = self.accounts().begin().unwrap();
        tx.set("mine", 1);
        tx
    }

    /// A guard that has sent MULTI.
    fn begun(&self) -> Transaction {
        let mut tx = self.immediate().begin().unwrap();
        tx.set("mine", 1);
        tx
    }

    /// A guard that has sent MULTI and a command.
    fn chunked(&self) -> Transaction {
        let mut tx = self.guard();
        tx.set("big", "x".repeat(FLUSH));
        side::send_ahead(&mut tx);
        tx.check().unwrap();
        tx
    }

    fn watching(&self) -> Watching {
        let mut watching = self.accounts().watch([&self.watched]).begin().unwrap();
        let _: Option<String> = watching.get(&self.watched).unwrap();
        watching
    }

    fn change_watched(&mut self) {
        cmd("SET").arg(&self.watched).arg(unique("value")).exec(&mut self.outside).unwrap();
    }

    /// What the next one to use the connection must find.
    fn next_caller(&mut self, end: &str) {
        self.change_watched();
        self.proxy.set_delays(Duration::ZERO, PACE);
        let word = unique("word");
        // Not repeated: a nil EXEC would be hidden by that.
        let once = TransactionOptions::new().retry(RetryPolicy::never());
        let (echo, info, reply) = self
            .accounts()
            .with(once)
            .run(|tx| {
                let echo = tx.queue::<String>(cmd("ECHO").arg(&word).to_owned());
                let info = tx.queue::<String>(cmd("CLIENT").arg("INFO").to_owned());
                Ok((echo, info, tx.queue::<Value>(cmd("SET").arg("next").arg(1).to_owned())))
            })
            .unwrap_or_else(|error| panic!("{end}: {error}"));
        self.proxy.set_delays(Duration::ZERO, Duration::ZERO);
        assert_eq!((echo, reply), (word, Value::Okay), "{end}");
        for fact in [&format!("db={DB}"), "user=app", "resp=2", "multi=3", "flags=x"] {
            assert!(info.split_whitespace().any(|found| found == fact), "{end}: {fact}: {info}");
        }
        crate::side::settled(&self.sessions);
        let status = self.sessions.status().transactional;
        assert_eq!((status.in_use, status.waiting, status.size), (0, 0, 1), "{end}: {status}");
        assert!(status.scopes.is_empty(), "{end}: {status}");
    }
}

/// Unwinds without a word on the terminal.
fn panics(body: impl FnOnce()) {
    let unwound = catch_unwind(AssertUnwindSafe(body));
    assert!(unwound.is_err());
}

fn unwind<T>() -> T {
    resume_unwind(Box::new("one of the ways to end"))
}

/// An argument that panics while it is encoded.
struct Explosive;

impl ToRedisArgs for Explosive {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, _: &mut W) {
        unwind()
    }
}

impl ToSingleRedisArg for Explosive {}

fn never(command: &[&str]) -> Cmd {
    let mut built = cmd(command[0]);
    built.arg(&command[1..]);
    built
}

/// What would leave something behind, and is refused by name.
const REFUSED: &[&[&str]] = &[
    &["MULTI"],
    &["WATCH", "key"],
    &["SELECT", "5"],
    &["AUTH", "other", "secret"],
    &["HELLO", "3"],
    &["CLIENT", "REPLY", "OFF"],
    &["client", "reply", "skip"],
    &["READONLY"],
    &["RESET"],
    &["Subscribe", "channel"],
];

/// A name, and how the scope ends.
type End = (&'static str, fn(&mut ScopeUser));

const ENDS: &[End] = &[
    ("committed", |fixture| assert!(fixture.guard().commit().is_ok())),
    ("committed empty", |fixture| {
        assert!(fixture.accounts().begin().unwrap().commit().is_ok());
        assert!(fixture.immediate().begin().unwrap().commit().is_ok());
    }),
    ("committed in chunks", |fixture| assert!(fixture.chunked().commit().is_ok())),
    ("dropped before anything was sent", |fixture| drop(fixture.guard())),
    ("dropped behind MULTI", |fixture| drop(fixture.begun())),
    ("dropped behind a chunk", |fixture| drop(fixture.chunked())),
    ("dropped on another thread", |fixture| {
        let tx = fixture.begun();
        thread::spawn(move || drop(tx)).join().unwrap();
    }),
    ("discarded", |fixture| {
        fixture.guard().discard().unwrap();
        fixture.begun().discard().unwrap();
        fixture.chunked().discard().unwrap();
    }),
    ("a command refused while it was queued", |fixture| {
        for begin in [ScopeUser::guard, ScopeUser::begun, ScopeUser::chunked] {
            let mut tx = begin(fixture);
            let _: Queued<Value> = tx.queue(cmd("GET"));
            assert!(matches!(tx.commit(), Err(Error::Commit(CommitError::Rejected { .. }))));
        }
    }),
    ("a command refused in a chunk", |fixture| {
        let mut tx = fixture.guard();
        let _: Queued<Value> = tx.queue(cmd("GET"));
        tx.set("big", "x".repeat(FLUSH));
        assert!(matches!(tx.commit(), Err(Error::Commit(CommitError::Rejected { .. }))));
    }),
    ("commands refused by name", |fixture| {
        for command in REFUSED {
            for begin in [ScopeUser::guard, ScopeUser::begun, ScopeUser::chunked] {
                let mut tx = begin(fixture);
                let _: Queued<Value> = tx.queue(never(command));
                assert!(
                    matches!(tx.commit(), Err(Error::Commit(CommitError::NotSent { .. }))),
                    "{command:?}"
                );
            }
            let refused = fixture.watching().query::<Value>(never(command));
            assert!(matches!(refused, Err(Error::Refused { .. })), "{command:?}");
        }
    }),
    ("too large", |fixture| {
        let mut tx = fixture.begun();
        (0..=MOST).for_each(|n| _ = tx.incr("n", n));
        assert!(tx.commit().is_err());
    }),
    ("partly applied", |fixture| {
        let mut tx = fixture.guard();
        tx.set("text", "no number");
        tx.incr("text", 1);
        assert!(matches!(tx.commit(), Err(Error::Commit(CommitError::PartlyApplied { .. }))));
    }),
    ("a reply of another type", |fixture| {
        let ran = fixture.accounts().run(|tx| {
            tx.set("text", "no number");
            Ok(tx.get::<_, i64>("text"))
        });
        assert!(matches!(ran, Err(Error::Reply(_))));
    }),
    ("a read of another type", |fixture| {
        fixture.change_watched();
        let read = fixture.accounts().watch([&fixture.watched]).run(|read, tx| {
            let _: i64 = read.get(&fixture.watched)?;
            Ok(tx.incr("n", 1))
        });
        assert!(matches!(read, Err(Error::Decode { .. })));
    }),
    ("a savepoint left open", |fixture| {
        let mut tx = fixture.begun();
        let mut part = tx.savepoint();
        part.set("never", 1);
        std::mem::forget(part);
        assert!(tx.commit().is_ok());
    }),
    ("watching, dropped", |fixture| drop(fixture.watching())),
    ("watching, abandoned", |fixture| fixture.watching().abandon().unwrap()),
    ("watching, then dropped as a transaction", |fixture| drop(fixture.watching().multi())),
    ("watching, then discarded as a transaction", |fixture| {
        fixture.watching().multi().discard().unwrap();
    }),
    ("watching, committed empty", |fixture| {
        assert!(fixture.watching().multi().commit().unwrap().committed().is_some());
    }),
    ("watching, committed", |fixture| {
        let mut tx = fixture.watching().multi();
        tx.incr("n", 1);
        assert!(tx.commit().unwrap().committed().is_some());
    }),
    ("watching, in conflict", |fixture| {
        let mut tx = fixture.watching().multi();
        tx.incr("n", 1);
        fixture.change_watched();
        assert!(matches!(tx.commit(), Ok(Outcome::Conflict)));
    }),
    ("watching, in chunks, dropped", |fixture| {
        let mut tx = fixture.watching().multi();
        tx.set("big", "x".repeat(FLUSH));
        tx.check().unwrap();
    }),
    ("reading, dropped and committed", |fixture| {
        let mut reading = fixture.accounts().reading().begin().unwrap();
        let _: Option<i64> = reading.get("n").unwrap();
        drop(reading);
        let reading = fixture.accounts().reading().begin().unwrap();
        assert!(reading.multi().commit().is_ok());
    }),
    ("a block that fails", |fixture| {
        let failed = fixture.accounts().run(|tx| {
            tx.set("big", "x".repeat(FLUSH));
            Err::<(), _>(Error::NoKeys)
        });
        assert!(matches!(failed, Err(Error::NoKeys)));
    }),
    ("a watching block that fails", |fixture| {
        let failed = fixture.accounts().watch([&fixture.watched]).run(|read, tx| {
            let _: Option<String> = read.get(&fixture.watched)?;
            tx.incr("n", 1);
            Err::<(), _>(Error::NoKeys)
        });
        assert!(matches!(failed, Err(Error::NoKeys)));
    }),
    ("a watching block that never gets through", |fixture| {
        let once = fixture.accounts().watch(["contended"]).retry(RetryPolicy::never());
        let outside = &mut fixture.outside;
        let lost = once.run(|_, tx| {
            cmd("INCR").arg("contended").exec(outside).unwrap();
            Ok(tx.incr("n", 1))
        });
        assert!(matches!(lost, Err(Error::RetriesExhausted { .. })));
    }),
    ("panics in closures", |fixture| {
        let accounts = fixture.accounts();
        panics(|| drop(accounts.run(|_| unwind::<Result<(), _>>())));
        panics(|| {
            drop(accounts.run(|tx| {
                tx.set("big", "x".repeat(FLUSH));
                unwind::<Result<(), _>>()
            }));
        });
        panics(|| drop(accounts.watch([&fixture.watched]).run(|_, _| unwind::<Result<(), _>>())));
    }),
    ("panics over guards", |fixture| {
        for begin in [ScopeUser::guard, ScopeUser::begun, ScopeUser::chunked] {
            panics(|| {
                let _tx = begin(fixture);
                unwind()
            });
        }
        panics(|| {
            let _watching = fixture.watching();
            unwind()
        });
        panics(|| {
            let _tx = fixture.watching().multi();
            unwind()
        });
    }),
    ("an argument that panics", |fixture| {
        let mut tx = fixture.begun();
        panics(|| _ = tx.set("key", Explosive));
        assert!(tx.commit().is_ok());
        let mut watching = fixture.watching();
        panics(|| _ = watching.get::<_, Value>(Explosive));
    }),
    ("a forgotten guard", |fixture| std::mem::forget(fixture.guard())),
    ("a forgotten guard behind MULTI", |fixture| std::mem::forget(fixture.begun())),
    ("a forgotten guard behind a chunk", |fixture| std::mem::forget(fixture.chunked())),
    ("a forgotten watching guard", |fixture| std::mem::forget(fixture.watching())),
];

#[test]
fn however_a_scope_ends_the_next_caller_finds_a_connection_like_a_fresh_one() {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    let cells = || {
        [LONG, Duration::ZERO].iter().flat_map(|trust| ENDS.iter().map(move |end| (*trust, end)))
    };
    let (next, ended) = (Mutex::new(cells()), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let Some((trust, (name, end))) = next.lock().unwrap().next() else { break };
                    let mut fixture = ScopeUser::new(&server, trust);
                    // A connection that has been used before, as most are.
                    fixture.next_caller("at first");
                    end(&mut fixture);
                    fixture.next_caller(name);
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let ended = ended.into_inner();
    assert!(ended == cells().count() && ended >= 70, "{ended} scopes");
}
