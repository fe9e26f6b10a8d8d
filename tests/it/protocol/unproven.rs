//! `InDoubt`: EXEC's reply was not a proof. A proxy that loses the reply of a transaction that ran
//! sends an error of its own; a proxy refuses by itself what the server never saw. The same bytes
//! give the same outcome in every form of a transaction, over every transport.
//!
//! Guarantee: which-reply-proves-what

use crate::fixture::{LONG, SOON};
use crate::side::{BuildSide as _, LockGuard, ResolveDoubt as _, SessionManager, Transactional};
use std::time::Duration;

use rediscope::error::{Applied, ReplyError, Resolution};
use rediscope::prelude::*;
use rediscope::{Begin, Builder, CommitError, Condition, Error, TransactionOptions};

use crate::fixture::proxied::{Proxied, assert_outcome, exists, get, one_is_gone, pool_is_whole};
use rediscope_testing::front::Front;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

/// Errors that a proxy gives for its upstream, and codes that a server gives to commands: as EXEC's
/// own reply none of them proves anything.
const UNPROVEN: [&str; 19] = [
    "-upstream failure\r\n",
    "-ERR Connection timed out\r\n",
    "-ERR Server closed the connection\r\n",
    "-ERR upstream timed out\r\n",
    "-ERR\r\n",
    "-UNAVAILABLE no upstream\r\n",
    "-UNAVAILABLE\r\n",
    "-READONLY You can't write against a read only replica.\r\n",
    "-LOADING Redis is loading the dataset in memory\r\n",
    "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n",
    "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "-NOAUTH Authentication required.\r\n",
    "-NOPERM this user has no permissions to run the 'exec' command\r\n",
    "-MISCONF Errors writing to the AOF file: No space left on device\r\n",
    "-NOREPLICAS Not enough good replicas to write.\r\n",
    "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
    "-ERR unknown command 'EXEC', with args beginning with: \r\n",
    "-ERR EXEC without MULTI\r\n",
];

/// The errors that prove it.
const PROVEN: [(&str, &str); 7] = [
    ("-EXECABORT Transaction discarded because of previous errors.\r\n", "EXECABORT"),
    ("-EXECABORT Transaction discarded because of: NOPERM no\r\n", "NOPERM"),
    ("-MOVED 3999 127.0.0.1:1\r\n", "MOVED"),
    ("-ASK 3999 127.0.0.1:1\r\n", "ASK"),
    ("-TRYAGAIN Multiple keys request during rehashing of slot\r\n", "TRYAGAIN"),
    ("-CROSSSLOT Keys in request don't hash to the same slot\r\n", "CROSSSLOT"),
    ("-CLUSTERDOWN Hash slot not served\r\n", "CLUSTERDOWN"),
];

/// How a transaction is made. The last ones find out for themselves.
const FORMS: [&str; 14] = [
    "run",
    "guard",
    "immediate",
    "flushed",
    "watch run",
    "watch guard",
    "reading",
    "conditions",
    "conditions guard",
    "grouped",
    "fenced",
    "exactly once guard",
    "exactly once",
    "exactly once as",
];

/// One server, a proxy, and a session through it.
struct Way {
    sessions: SessionManager,
    lock: LockGuard,
    proxy: Proxy,
    server: Server,
    front: Option<Front>,
}

impl Way {
    fn tcp() -> Self {
        Self::through(|proxy| (None, SessionManager::builder(proxy.url())))
    }

    fn through(front: impl FnOnce(&Proxy) -> (Option<Front>, Builder)) -> Self {
        let server = Server::start();
        server.ask::<()>(&["SET", "required", "1"]);
        let proxy = Proxy::to(&server);
        let (front, builder) = front(&proxy);
        let sessions = builder.max_size(2).trust_window(LONG).build_side().unwrap();
        let lock = sessions.lock("fence").acquire(SOON).unwrap();
        Self { sessions, lock, proxy, server, front }
    }

    fn all() -> Vec<(&'static str, Self)> {
        let resp3 = |proxy: &Proxy| {
            let url = format!("{}?protocol=resp3", proxy.url());
            (None, SessionManager::builder(url))
        };
        let unix = |proxy: &Proxy| {
            let front = Front::unix(proxy.address());
            let builder = SessionManager::builder(front.url());
            (Some(front), builder)
        };
        #[cfg_attr(not(feature = "tls-rustls"), expect(unused_mut, reason = "TLS is added"))]
        let mut all = vec![
            ("TCP", Self::tcp()),
            ("RESP3", Self::through(resp3)),
            ("unix", Self::through(unix)),
        ];
        #[cfg(feature = "tls-rustls")]
        all.push(("TLS", Self::through(tls)));
        all
    }

    fn with(&self, options: TransactionOptions) -> Transactional {
        self.sessions.transactional().with(options)
    }

    /// Counts `n` up in a transaction of this form.
    fn count_up(&self, form: &str) -> Result<i64, Error> {
        let all = self.sessions.transactional();
        let options = TransactionOptions::new;
        let run = |handle: Transactional| handle.run(|tx| Ok(tx.incr("n", 1)));
        let guard = |handle: Transactional| {
            let mut tx = handle.begin()?;
            let n = tx.incr("n", 1);
            tx.commit()?.get(n)
        };
        match form {
            "run" => run(all),
            "guard" => guard(all),
            "immediate" => guard(self.with(options().begin(Begin::Immediate))),
            "flushed" => all.run(|tx| {
                tx.set("large", "x".repeat(100_000));
                Ok(tx.incr("n", 1))
            }),
            "watch run" => all.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 1))),
            "watch guard" => {
                let mut tx = all.watch(["w"]).begin()?.multi();
                let n = tx.incr("n", 1);
                Ok(tx.commit()?.committed().unwrap().get(n)?)
            }
            "reading" => all.reading().run(|read, tx| {
                let _: Option<i64> = read.get("w")?;
                Ok(tx.incr("n", 1))
            }),
            "conditions" => {
                all.require(Condition::exists("required")).run(|tx| Ok(tx.incr("n", 1)))
            }
            "conditions guard" => {
                let mut tx = all.require(Condition::exists("required")).begin()?;
                let n = tx.incr("n", 1);
                Ok(tx.commit()?.committed().unwrap().get(n)?)
            }
            "grouped" => run(self.with(options().grouped())),
            "fenced" => run(all.fenced_by(&self.lock)),
            "exactly once guard" => guard(self.with(options().exactly_once())),
            "exactly once" => run(self.with(options().exactly_once())),
            "exactly once as" => {
                let key = rediscope_testing::unique("order");
                run(self.with(options().exactly_once_as(key, Duration::from_secs(60))))
            }
            form => panic!("{form}"),
        }
    }

    fn number(&self) -> i64 {
        get(&self.server, "n").map_or(0, |n| n.parse().unwrap())
    }

    /// A connection is open, and trusted because of its last reply.
    fn is_warm(&self) {
        self.with(TransactionOptions::new().begin(Begin::Immediate))
            .begin()
            .unwrap()
            .discard()
            .unwrap();
        crate::side::open_lanes(&self.sessions, "nothing");
    }

    /// One transaction under a rule: what it returned, and how often it was applied.
    fn under(&self, form: &str, trigger: Trigger, fault: Fault) -> (Result<i64, Error>, i64) {
        let _: i64 = self.server.ask(&["DEL", "n"]);
        self.is_warm();
        let fired = self.proxy.fired();
        self.proxy.arm(Script::from((trigger, fault)).once());
        let reported = self.count_up(form);
        assert_eq!(self.proxy.fired() - fired, 1, "{form}: {reported:?}");
        self.proxy.disarm();
        (reported, self.number())
    }
}

#[cfg(feature = "tls-rustls")]
fn tls(proxy: &Proxy) -> (Option<Front>, Builder) {
    let authority = rediscope_testing::tls::Authority::new();
    let front = Front::tls(proxy.address(), &authority.server(&["localhost"]));
    let trusted = rediscope::Tls::new().root_certificates(authority.pem());
    let builder = SessionManager::builder(front.url()).tls(trusted);
    (Some(front), builder)
}

#[track_caller]
fn doubt<T: std::fmt::Debug>(reported: Result<T, Error>, what: &str) -> rediscope::error::InDoubt {
    let error = reported.expect_err(what);
    let Some(doubt) = error.as_in_doubt() else { panic!("{what}: {error:?}") };
    assert_outcome(&error, Applied::Unknown, false);
    doubt.clone()
}

/// The reply to EXEC was lost: it is in doubt, or it is resolved.
fn exec_is_answered_with(way: &Way, form: &str, answer: &'static str, what: &str) {
    // It ran.
    let (reported, n) = way.under(form, Trigger::BeforeReplyTo("EXEC"), Fault::Answer(answer));
    assert_eq!(n, 1, "{what}");
    match form {
        "exactly once" | "exactly once as" => {
            let error = reported.expect_err(what);
            assert_eq!(error.applied(), Applied::Yes, "{what}: {error:?}");
            assert!(matches!(error, Error::Reply(ReplyError::Lost)), "{what}: {error:?}");
        }
        "exactly once guard" => {
            let doubt = doubt(reported, what);
            assert!(doubt.token().is_some(), "{what}");
            assert_eq!(doubt.resolved(), Resolution::Committed, "{what}");
        }
        _ => {
            let doubt = doubt(reported, what);
            assert!(doubt.cause().server_error().is_some(), "{what}: {doubt:?}");
        }
    }
    // It never came to the server.
    let (reported, n) = way.under(form, Trigger::BeforeCommandNamed("EXEC"), Fault::Refuse(answer));
    match form {
        "exactly once" | "exactly once as" => {
            assert_eq!((reported.expect(what), n), (1, 1), "{what}")
        }
        "exactly once guard" => {
            assert_eq!(
                (doubt(reported, what).resolved(), n),
                (Resolution::NotCommitted, 0),
                "{what}"
            );
        }
        _ => assert_eq!((drop(doubt(reported, what)), n), ((), 0), "{what}"),
    }
}

#[test]
fn an_error_that_does_not_prove_anything_leaves_a_doubt_in_every_form() {
    let way = Way::tcp();
    for answer in UNPROVEN {
        for form in FORMS {
            exec_is_answered_with(&way, form, answer, &format!("{form}: {answer:?}"));
        }
    }
    let counts = way.sessions.status().transactional.counts;
    assert!(
        counts.in_doubt > 0 && counts.resolved_committed > 0 && counts.resolved_not_committed > 0
    );
    pool_is_whole(&way.sessions, &way.server);
}

#[test]
fn a_doubt_is_a_doubt_over_every_transport() {
    for (transport, way) in Way::all() {
        assert_eq!(way.front.is_some(), matches!(transport, "unix" | "TLS"));
        // Each over TCP: above.
        for answer in UNPROVEN.into_iter().take(1) {
            for form in FORMS {
                let what = format!("{transport}, {form}: {answer:?}");
                exec_is_answered_with(&way, form, answer, &what);
            }
        }
    }
}

#[test]
fn an_error_that_proves_that_nothing_was_applied_is_a_refusal_in_every_form() {
    for (transport, way) in Way::all() {
        let all = if transport == "TCP" { &PROVEN[..] } else { &PROVEN[1..3] };
        for &(answer, expected) in all {
            for form in FORMS {
                let what = format!("{transport}, {form}: {answer:?}");
                let (reported, n) =
                    way.under(form, Trigger::BeforeCommandNamed("EXEC"), Fault::Refuse(answer));
                assert_eq!(n, 0, "{what}");
                let error = reported.expect_err(&what);
                match error.as_commit() {
                    Some(CommitError::Rejected { index: None, command, code, .. }) => {
                        assert_eq!((command.as_str(), code.as_str()), ("EXEC", expected), "{what}");
                    }
                    _ => panic!("{what}: {error:?}"),
                }
                assert_eq!(error.applied(), Applied::No, "{what}");
                // The server, which never saw EXEC, is still in MULTI.
                way.proxy.cut_all();
            }
        }
    }
}

/// Behind a reply too many each one may be another command's, so none proves that nothing was applied.
#[test]
fn a_refusal_or_a_conflict_proves_nothing_with_a_reply_too_many_behind_it() {
    let way = Way::tcp();
    for answer in PROVEN.map(|(answer, _)| answer).into_iter().chain(["*-1\r\n"]) {
        let answer = String::leak(format!("{answer}*1\r\n:1\r\n"));
        for form in FORMS {
            let what = format!("{form}: {answer:?}");
            let (reported, n) =
                way.under(form, Trigger::BeforeReplyTo("EXEC"), Fault::Answer(answer));
            assert_eq!(n, 1, "{what}: {reported:?}");
            match form {
                "exactly once" | "exactly once as" => {
                    let error = reported.expect_err(&what);
                    assert!(matches!(error, Error::Reply(ReplyError::Lost)), "{what}: {error:?}");
                }
                "exactly once guard" => {
                    assert_eq!(doubt(reported, &what).resolved(), Resolution::Committed, "{what}");
                }
                _ => drop(doubt(reported, &what)),
            }
        }
    }
    pool_is_whole(&way.sessions, &way.server);
}

#[test]
fn a_connection_with_a_doubt_is_closed_and_never_used_again() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    for fault in
        [Fault::Answer("-ERR lost\r\n"), Fault::Answer("*5\r\n:1\r\n:2\r\n:3\r\n:4\r\n:5\r\n")]
    {
        let before = crate::fixture::proxied::client_ids(&fixture.server);
        fixture.proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), fault)).once());
        doubt(sessions.transactional().run(|tx| Ok(tx.incr("n", 1))), "run");
        fixture.proxy.disarm();
        pool_is_whole(&sessions, &fixture.server);
        one_is_gone(&fixture.server, &before);
    }
    assert_eq!(get(&fixture.server, "n").unwrap(), "2");
}

/// The server replied +OK, and the proxy an error: the server is in MULTI, or watches.
#[test]
fn a_connection_whose_multi_or_watch_was_refused_by_a_proxy_is_closed() {
    for (transport, way) in Way::all() {
        let lost = Fault::Answer("-ERR upstream timed out\r\n");
        let form = |form: &'static str, word| (form, Trigger::BeforeReplyTo(word), word);
        for (form, trigger, word) in [
            form("immediate", "MULTI"),
            form("flushed", "MULTI"),
            form("watch run", "WATCH"),
            form("watch guard", "WATCH"),
            form("fenced", "WATCH"),
            form("exactly once", "WATCH"),
            form("exactly once as", "WATCH"),
        ] {
            if form == "flushed" && !crate::side::SENDS_CHUNKS {
                continue;
            }
            let what = format!("{transport}, {form}");
            let before = way.sessions.status().transactional.counts.all_replaced();
            let (reported, n) = way.under(form, trigger, lost);
            let error = reported.expect_err(&what);
            assert_eq!((error.applied(), n), (Applied::No, 0), "{what}: {error:?}");
            assert!(error.to_string().contains(word), "{what}: {error}");
            pool_is_whole(&way.sessions, &way.server);
            let after = way.sessions.status().transactional.counts.all_replaced();
            assert_eq!(after - before, 1, "{what}");
        }
    }
}

/// The refusal may be another command's, so another connection takes the place of this one.
#[test]
fn a_refusal_of_multi_or_watch_with_a_reply_too_many_behind_it_is_not_believed() {
    let way = Way::tcp();
    for (form, command) in
        [("immediate", "MULTI"), ("watch run", "WATCH"), ("watch guard", "WATCH")]
    {
        let fault = Fault::Answer("-ERR of another command\r\n+OK\r\n");
        let (reported, n) = way.under(form, Trigger::BeforeReplyTo(command), fault);
        assert_eq!((reported.expect(form), n), (1, 1), "{form}");
    }
    pool_is_whole(&way.sessions, &way.server);
}

/// A block of three commands; the proxy replies to the second one.
fn three(handle: &Transactional, form: &str) -> Result<(), Error> {
    fn block(tx: &mut impl QueueCommands) -> Result<(), Error> {
        tx.rpush("list", "first");
        tx.append("text", "second");
        tx.rpush("list", "third");
        Ok(())
    }
    match form {
        "run" => handle.run(block),
        "guard" => {
            let mut tx = handle.begin()?;
            block(crate::side::queue(&mut tx))?;
            Ok(tx.commit().map(drop)?)
        }
        "watch run" => handle.watch(["w"]).run(|_, tx| block(tx)),
        "watch guard" => {
            let mut tx = handle.watch(["w"]).begin()?.multi();
            block(crate::side::queue(&mut tx))?;
            Ok(tx.commit().map(drop)?)
        }
        "conditions" => handle.require(Condition::exists("required")).run(block),
        form => panic!("{form}"),
    }
}

/// The outcome of a refused command, by the reply to EXEC.
#[test]
fn a_refusal_while_queueing_proves_nothing_until_exec_returns_execabort() {
    let refusals =
        ["-ERR upstream timed out\r\n", "-OOM no\r\n", "-NOPERM no\r\n", "-upstream\r\n"];
    let execs = [
        None,
        Some(Fault::Cut),
        Some(Fault::Answer("-ERR upstream timed out\r\n")),
        Some(Fault::Answer("*-1\r\n")),
        Some(Fault::Answer("*4\r\n:1\r\n:2\r\n:3\r\n+OK\r\n")),
        Some(Fault::Answer("*3\r\n:1\r\n:2\r\n:3\r\n")),
        Some(Fault::Answer("+OK\r\n")),
    ];
    let mut turns = (0..).map(|turn| (refusals[turn % refusals.len()], execs[turn % execs.len()]));
    for (transport, way) in Way::all() {
        let none = TransactionOptions::new;
        let handles = [
            ("plain", way.with(none())),
            ("grouped", way.with(none().grouped())),
            ("fenced", way.sessions.transactional().fenced_by(&way.lock)),
            ("exactly once", way.with(none().exactly_once())),
        ];
        for (kind, handle) in &handles {
            for form in ["run", "guard", "watch run", "watch guard", "conditions"] {
                // Different ones for each form, all of them over all forms.
                for _ in 0..3 {
                    let (refusal, exec) = turns.next().unwrap();
                    let what = format!("{transport}, {kind} {form}: {refusal:?}, {exec:?}");
                    let _: i64 = way.server.ask(&["DEL", "list", "text"]);
                    way.is_warm();
                    let refused = (Trigger::BeforeCommandNamed("APPEND"), Fault::Refuse(refusal));
                    let mut script = Script::from(refused);
                    if let Some(fault) = exec {
                        script = script.on(Trigger::BeforeReplyTo("EXEC"), fault);
                    }
                    way.proxy.arm(script.once());
                    let doubt = doubt(three(handle, form), &what);
                    way.proxy.disarm();
                    // The server never saw it, and ran the others.
                    let list: Vec<String> = way.server.ask(&["LRANGE", "list", "0", "-1"]);
                    assert_eq!(list, ["first", "third"], "{what}");
                    assert!(!exists(&way.server, "text"), "{what}");
                    assert_eq!(doubt.token().is_some(), *kind == "exactly once", "{what}");
                }
            }
        }
        pool_is_whole(&way.sessions, &way.server);
    }
}

#[test]
fn a_refusal_of_the_servers_whose_execabort_was_lost_is_resolved_and_reported() {
    let way = Way::tcp();
    let once = way.with(TransactionOptions::new().exactly_once());
    for fault in [Fault::Cut, Fault::Answer("-ERR upstream timed out\r\n")] {
        let nosuch = |tx: &mut rediscope::Block| {
            tx.incr("n", 1);
            tx.queue::<()>(redis::cmd("NOSUCH").arg("x").take())
        };
        way.is_warm();
        way.proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), fault)).once());
        let error = once
            .run(|tx| {
                nosuch(tx);
                Ok(())
            })
            .unwrap_err();
        // Asked for: it was not applied. Sent again: refused again.
        match error.as_commit() {
            Some(CommitError::Rejected { index: Some(1), command, code, .. }) => {
                assert_eq!((command.as_str(), code.as_str()), ("NOSUCH", "ERR"));
            }
            _ => panic!("{error:?}"),
        }
        way.proxy.disarm();
        assert_eq!(way.number(), 0);
    }
}
