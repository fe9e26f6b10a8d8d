//! Replies of every legal kind, and very large replies: what is known afterwards, and their cost.
//!
//! Guarantee: replies-of-every-size

use crate::side::{BuildSide as _, SessionManager};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rediscope::error::{Applied, ConnectionErrorKind, ReplyError};
use rediscope::prelude::*;
use rediscope::redis::{Cmd, Value, cmd};
use rediscope::{Builder, CommitError, Error, TransactionOptions};

use crate::fixture::proxied::pool_is_whole;
use rediscope_testing::front::Front;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

/// The ways to commit a command beside an INCR of `w`, and the reply to INCR.
const FORMS: [&str; 8] =
    ["run", "guard", "immediate", "watch run", "watch guard", "grouped", "exactly once", "chunks"];

fn commit(form: &str, sessions: &SessionManager, command: &Cmd) -> Result<i64, Error> {
    let accounts = sessions.transactional();
    let options = TransactionOptions::new();
    let by_run = |options: TransactionOptions| {
        accounts.with(options).run(|tx| {
            tx.queue::<Value>(command.clone());
            Ok(tx.incr("w", 1))
        })
    };
    match form {
        "run" => by_run(options),
        "immediate" => by_run(options.begin(rediscope::Begin::Immediate)),
        "grouped" => by_run(options.grouped()),
        "exactly once" => by_run(options.exactly_once()),
        "guard" => {
            let mut tx = accounts.begin()?;
            tx.queue::<Value>(command.clone());
            let w = tx.incr("w", 1);
            Ok(tx.commit()?.get(w)?)
        }
        "watch run" => accounts.watch(["other"]).run(|_, tx| {
            tx.queue::<Value>(command.clone());
            Ok(tx.incr("w", 1))
        }),
        "watch guard" => {
            let mut tx = accounts.watch(["other"]).begin()?.multi();
            tx.queue::<Value>(command.clone());
            let w = tx.incr("w", 1);
            match tx.commit()? {
                rediscope::Outcome::Committed(replies) => Ok(replies.get(w)?),
                rediscope::Outcome::Conflict => panic!("no other client is here"),
            }
        }
        _ => {
            let mut tx = accounts.begin()?;
            tx.queue::<Value>(command.clone());
            tx.append("padding", "x".repeat(70_000));
            let w = tx.incr("w", 1);
            Ok(tx.commit()?.get(w)?)
        }
    }
}

fn script(text: &str) -> Cmd {
    cmd("EVAL").arg(text).arg(0).take()
}

fn nested(levels: u32) -> Cmd {
    script(&format!("local t = 1; for i = 1, {levels} do t = {{t}} end; return t"))
}

/// What becomes of the block, and of the connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reported {
    Committed,
    Rejected,
    Partly,
    RepliesLost,
}

fn table() -> Vec<(&'static str, Cmd, Reported)> {
    let bytes = &b"\xff\xfe\r\n\xc3"[..];
    vec![
        ("an unknown command's", cmd("NOSUCH").arg(bytes).arg(bytes).take(), Reported::Rejected),
        (
            "a script's error",
            script("return redis.error_reply('MINE \\255\\254')"),
            Reported::Partly,
        ),
        (
            "a script's error with a key",
            cmd("EVAL")
                .arg("return redis.error_reply('MINE ' .. KEYS[1])")
                .arg(1)
                .arg(bytes)
                .take(),
            Reported::Partly,
        ),
        ("a status", script("return redis.status_reply('\\255\\254')"), Reported::Committed),
        ("a deep array", nested(100), Reported::Committed),
        ("a deeper array", nested(500), Reported::Committed),
        ("the deepest array", nested(7_000), Reported::RepliesLost),
        (
            "a long status",
            script("return redis.status_reply(string.rep('x', 300000))"),
            Reported::Committed,
        ),
        (
            "a long error",
            script("return redis.error_reply('X ' .. string.rep('x', 300000))"),
            Reported::Partly,
        ),
        (
            "a big number",
            script(
                "redis.setresp(3); return {big_number='-1234567999999999999999999999999999999'}",
            ),
            Reported::Committed,
        ),
        (
            "a verbatim string",
            script("redis.setresp(3); return {verbatim_string={format='txt', string='\\255'}}"),
            Reported::Committed,
        ),
        (
            "an infinite double",
            script("redis.setresp(3); return {double=-1/0}"),
            Reported::Committed,
        ),
        (
            "a double that is none",
            script("redis.setresp(3); return {double=0/0}"),
            Reported::Committed,
        ),
        (
            "a map and a set",
            script("redis.setresp(3); return {map={a={set={b=true}}, c=false}}"),
            Reported::Committed,
        ),
        ("booleans", script("redis.setresp(3); return {true, false, {}}"), Reported::Committed),
    ]
}

type Builders = Box<dyn Fn() -> Builder>;

/// A server, and one way to it.
struct Way {
    name: &'static str,
    server: Server,
    builder: Builders,
    _front: Option<Front>,
}

impl Way {
    fn of(name: &'static str) -> Self {
        let server = Server::start();
        let plain =
            |url: String| -> Builders { Box::new(move || SessionManager::builder(url.clone())) };
        let (builder, front) = match name {
            "TCP" => (plain(server.url()), None),
            "RESP3" => (plain(format!("{}?protocol=resp3", server.url())), None),
            "unix" => (plain(server.unix_url()), None),
            #[cfg(feature = "tls-rustls")]
            "TLS" => {
                let authority = rediscope_testing::tls::Authority::new();
                let identity = authority.server(&["localhost"]);
                let tls = Front::tls(server.address(), &identity);
                let (url, pem) = (tls.url().to_owned(), authority.pem());
                let trusting: Builders = Box::new(move || {
                    let trusted = rediscope::Tls::new().root_certificates(pem.as_str());
                    SessionManager::builder(url.clone()).tls(trusted)
                });
                (trusting, Some(tls))
            }
            other => panic!("{other}"),
        };
        Self { name, server, builder, _front: front }
    }
}

#[test]
fn every_legal_reply_is_read_and_what_it_proves_is_reported_in_every_form() {
    every_legal_reply(&Way::of("TCP"));
}

#[test]
fn every_legal_reply_is_read_in_resp3() {
    every_legal_reply(&Way::of("RESP3"));
}

#[test]
fn every_legal_reply_is_read_over_a_unix_socket() {
    every_legal_reply(&Way::of("unix"));
}

#[test]
#[cfg(feature = "tls-rustls")]
fn every_legal_reply_is_read_over_tls() {
    every_legal_reply(&Way::of("TLS"));
}

fn every_legal_reply(way: &Way) {
    let (server, transport) = (&way.server, way.name);
    let sessions = (way.builder)().max_size(1).flush_bytes(65_536).build_side().unwrap();
    pool_is_whole(&sessions, server);
    for (text, command, expected) in table() {
        for form in FORMS {
            let what = format!("{text} by {form} over {transport}");
            server.ask::<()>(&["FLUSHALL"]);
            let before = connections(server);
            let reported = commit(form, &sessions, &command);
            let is_applied = server.ask::<Option<i64>>(&["GET", "w"]) == Some(1);
            let seen = match &reported {
                Ok(w) => {
                    assert_eq!(*w, 1, "{what}");
                    Reported::Committed
                }
                Err(Error::Reply(ReplyError::Lost)) => Reported::RepliesLost,
                Err(error) => match (error.as_commit(), error.applied()) {
                    (Some(CommitError::Rejected { .. }), Applied::No) => Reported::Rejected,
                    (Some(CommitError::PartlyApplied { .. }), Applied::Partly) => Reported::Partly,
                    _ => panic!("{what}: {error:?}"),
                },
            };
            assert_eq!(seen, expected, "{what}: {reported:?}");
            assert_eq!(is_applied, expected != Reported::Rejected, "{what}");
            pool_is_whole(&sessions, server);
            let replaced = u64::from(expected == Reported::RepliesLost);
            assert_eq!(connections(server) - before, replaced, "{what}: connections");
        }
    }
}

fn ways() -> Vec<&'static str> {
    let mut ways = vec!["TCP", "RESP3", "unix"];
    if cfg!(feature = "tls-rustls") {
        ways.push("TLS");
    }
    ways
}

/// How many connections the server has accepted.
fn connections(server: &Server) -> u64 {
    let info: String = server.ask(&["INFO", "stats"]);
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn the_same_replies_are_read_by_the_pooled_handle_on_one_connection() {
    for name in ways() {
        let way = Way::of(name);
        let sessions = (way.builder)().max_size(1).build_side().unwrap();
        let transport = way.name;
        let mut db = sessions.pooled();
        let id: i64 = cmd("CLIENT").arg("ID").query(&mut db).unwrap();
        for (text, command, expected) in table() {
            if expected == Reported::RepliesLost {
                continue;
            }
            let reported = command.query::<Value>(&mut db).map_err(Error::from);
            match expected {
                Reported::Committed => {
                    drop(reported.unwrap_or_else(|error| panic!("{text}: {error}")))
                }
                Reported::Rejected | Reported::Partly => {
                    assert!(matches!(reported, Err(Error::Command { .. })), "{text}: {reported:?}");
                }
                Reported::RepliesLost => unreachable!("left out"),
            }
            let now: i64 = cmd("CLIENT").arg("ID").query(&mut db).unwrap();
            assert_eq!(now, id, "{text} over {transport} costs a connection");
        }
        let reported = nested(7_000).query::<Value>(&mut db).map_err(Error::from);
        let Err(Error::Lost { applied: Applied::Unknown, source, .. }) = reported else {
            panic!("{reported:?}")
        };
        assert_eq!(source.kind(), ConnectionErrorKind::TooLarge);
        let now: i64 = cmd("CLIENT").arg("ID").query(&mut db).unwrap();
        assert_ne!(now, id, "it was closed");
    }
}

#[test]
fn a_reply_beyond_the_bound_is_applied_with_its_replies_lost_in_every_form() {
    for name in ways() {
        let way = Way::of(name);
        let (server, transport) = (&way.server, way.name);
        let bounded =
            |bytes| (way.builder)().max_size(1).max_reply_bytes(bytes).build_side().unwrap();
        let sessions = bounded(300_000);
        let refused = [
            ("a string", script("return string.rep('x', 300001)")),
            ("a status", script("return redis.status_reply(string.rep('x', 300001))")),
            ("elements", script("local t = {}; for i = 1, 7000 do t[i] = 0 end; return t")),
        ];
        for (text, command) in &refused {
            for form in FORMS {
                let what = format!("{text} by {form} over {transport}");
                server.ask::<()>(&["FLUSHALL"]);
                let reported = commit(form, &sessions, command);
                assert!(
                    matches!(reported, Err(Error::Reply(ReplyError::Lost))),
                    "{what}: {reported:?}"
                );
                assert_eq!(reported.unwrap_err().applied(), Applied::Yes, "{what}");
                assert_eq!(server.ask::<i64>(&["GET", "w"]), 1, "{what}");
                pool_is_whole(&sessions, server);
            }
            let reported = command.query::<Value>(&mut sessions.pooled()).map_err(Error::from);
            let Err(Error::Lost { applied, source, .. }) = reported else { panic!("{reported:?}") };
            assert_eq!((applied, source.kind()), (Applied::Unknown, ConnectionErrorKind::TooLarge));
        }
        // A read is not sent again: the reply would be as large.
        server.ask::<()>(&["SET", "large", &"x".repeat(300_001)]);
        let gets = server.calls("get");
        let reported = sessions.pooled().get::<_, Value>("large").map_err(Error::from);
        let Err(Error::Lost { applied, source, .. }) = reported else { panic!("{reported:?}") };
        assert_eq!((applied, source.kind()), (Applied::No, ConnectionErrorKind::TooLarge));
        assert_eq!(server.calls("get"), gets + 1);
        // Nor in a watching scope, where a lost connection is otherwise a reason to try again.
        let mut watch = sessions.transactional().watch(["large"]);
        let reported = watch.run(|read, _| {
            let _: Value = read.get("large")?;
            Ok(())
        });
        let read = watch.declare::<Value>(cmd("GET").arg("large").take()).unwrap();
        let declared = watch.run(|watching, _| {
            let _: Value = watching.declared(read)?;
            Ok(())
        });
        for reported in [reported, declared] {
            let error = reported.unwrap_err();
            let Error::Lost { source, .. } = &error else { panic!("{error:?}") };
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
            assert_eq!(source.kind(), ConnectionErrorKind::TooLarge);
        }
        assert_eq!(server.calls("get"), gets + 3);
        // At the bound it passes.
        server.ask::<()>(&["SETRANGE", "large", "0", ""]);
        server.ask::<()>(&["SET", "large", &"x".repeat(300_000)]);
        let read: String = sessions.pooled().get("large").unwrap();
        assert_eq!(read.len(), 300_000);
    }
}

/// Answers every command that is not of the handshake with `hostile`, over and over.
fn hostile_peer(first: &'static [u8], endless: &'static [u8], times: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move |mut socket: TcpStream| {
        let mut room = [0; 4096];
        let greeted = b"+PONG\r\n";
        while let Ok(read @ 1..) = socket.read(&mut room) {
            let asked = String::from_utf8_lossy(&room[..read]).into_owned();
            if asked.contains("PING") {
                // One reply to each command of the handshake.
                let commands = asked.matches("\r\n*").count() + 1;
                (0..commands).for_each(|_| socket.write_all(greeted).unwrap());
                continue;
            }
            let mut send = |bytes: &[u8]| socket.write_all(bytes).is_ok();
            let whole = send(first) && (0..times).all(|_| send(endless));
            if whole && !send(b"$-1\r\n") {
                break;
            }
        }
    };
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|socket| drop(thread::spawn(move || serve(socket))))
    });
    port
}

/// The most memory that this process ever had.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() * 1024
}

const CHILD: &str = "REDISCOPE_HOSTILE_REPLY";

/// In a process of its own: the others of this one need memory too.
#[test]
#[cfg(target_os = "linux")]
fn a_hostile_reply_takes_no_more_memory_than_the_bound_and_what_is_thrown_away_none() {
    const CHUNK: &[u8] = &[b'a'; 1 << 20];
    static NILS: [u8; 3 << 18] = {
        let mut nils = [b'_'; 3 << 18];
        let mut at = 0;
        while at < nils.len() {
            nils[at + 1] = b'\r';
            nils[at + 2] = b'\n';
            at += 3;
        }
        nils
    };
    let nils: &'static [u8] = &NILS;
    // What comes first, what comes again and again and how often; and whether it is thrown away.
    type Case = (&'static str, &'static [u8], &'static [u8], usize, bool);
    let cases: [Case; 8] = [
        ("a pushed string", b">1\r\n$314572802\r\n", CHUNK, 300, true),
        ("pushed elements", b">1000000000\r\n", nils, 30, true),
        ("an attribute's line", b"|1\r\n+a\r\n+", CHUNK, 300, true),
        ("a string", b"$1000000000\r\n", CHUNK, 300, false),
        ("a line", b"+", CHUNK, 300, false),
        ("an error", b"-", CHUNK, 300, false),
        ("elements", b"*1000000000\r\n", nils, 300, false),
        ("arrays", b"*500000\r\n", b"*1\r\n*1\r\n*1\r\n*1\r\n_\r\n", 500_000, false),
    ];
    if let Ok(child) = std::env::var(CHILD) {
        let (_, first, endless, times, _) = cases.iter().find(|case| case.0 == child).unwrap();
        let url = format!("redis://127.0.0.1:{}/", hostile_peer(first, endless, *times));
        let sessions = SessionManager::builder(url)
            .max_size(1)
            .max_reply_bytes(32 << 20)
            .response_timeout(Duration::from_secs(2))
            .build_side()
            .unwrap();
        let reported = cmd("INCR").arg("a").query::<Value>(&mut sessions.pooled());
        assert!(reported.is_err(), "{reported:?}");
        println!("peak={} {:?}", peak(), Error::from(reported.unwrap_err()));
        return;
    }
    let here = "protocol::replies::a_hostile_reply_takes_no_more_memory_than_the_bound_and_what_is_thrown_away_none";
    let run = |case: &str| {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([here, "--exact", "--nocapture"])
            .env(CHILD, case)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(
            child.status.success(),
            "{case}: {output}{}",
            String::from_utf8_lossy(&child.stderr)
        );
        let peak = output.split("peak=").nth(1).unwrap().split(' ').next().unwrap();
        (peak.parse::<usize>().unwrap(), output)
    };
    for (case, .., thrown_away) in &cases {
        let (peak, output) = run(case);
        let most = if *thrown_away { 64 << 20 } else { 128 << 20 };
        println!("{case}: {} MB", peak >> 20);
        assert!(peak < most, "{case}: {peak} bytes\n{output}");
    }
}

/// What a peer that speaks RESP3 may send around the reply to a command that it has executed.
#[test]
fn pushes_and_attributes_around_a_reply_cost_no_connection() {
    const AROUND: [&str; 6] = [
        "*1\r\n:1\r\n>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n",
        "*1\r\n:1\r\n>1\r\n_\r\n>2\r\n+message\r\n%1\r\n+a\r\n(12\r\n",
        ">2\r\n$10\r\ninvalidate\r\n*-1\r\n*1\r\n:1\r\n",
        "|1\r\n+ttl\r\n:3600\r\n*1\r\n:1\r\n",
        "*1\r\n|1\r\n$3\r\nttl\r\n|1\r\n+a\r\n+b\r\n#t\r\n:1\r\n",
        "*1\r\n:1\r\n|1\r\n+ttl\r\n:3600\r\n",
    ];
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let unix = Front::unix(proxy.address());
    let to = |url: &str| SessionManager::builder(format!("{url}?protocol=resp3"));
    #[cfg(feature = "tls-rustls")]
    let authority = rediscope_testing::tls::Authority::new();
    #[cfg(feature = "tls-rustls")]
    let tls = Front::tls(proxy.address(), &authority.server(&["localhost"]));
    #[cfg(feature = "tls-rustls")]
    let trusted = rediscope::Tls::new().root_certificates(authority.pem());
    let ways = [
        ("TCP", to(&proxy.url())),
        ("unix", to(unix.url())),
        #[cfg(feature = "tls-rustls")]
        ("TLS", to(tls.url()).tls(trusted)),
    ];
    for (transport, builder) in ways {
        let sessions = builder.max_size(1).build_side().unwrap();
        pool_is_whole(&sessions, &server);
        let opened = proxy.accepted();
        for around in AROUND {
            for form in ["run", "guard", "immediate", "watch run", "watch guard", "grouped"] {
                let what = format!("{around:?} by {form} over {transport}");
                server.ask::<()>(&["DEL", "w"]);
                proxy.arm(
                    Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Answer(around))).once(),
                );
                let accounts = sessions.transactional();
                let add =
                    |accounts: crate::side::Transactional| accounts.run(|tx| Ok(tx.incr("w", 1)));
                let reported =
                    match form {
                        "run" => add(accounts),
                        "immediate" => add(accounts
                            .with(TransactionOptions::new().begin(rediscope::Begin::Immediate))),
                        "grouped" => add(accounts.with(TransactionOptions::new().grouped())),
                        "watch run" => accounts.watch(["other"]).run(|_, tx| Ok(tx.incr("w", 1))),
                        "watch guard" => {
                            let mut tx = accounts.watch(["other"]).begin().unwrap().multi();
                            let w = tx.incr("w", 1);
                            Ok(tx.commit().unwrap().committed().unwrap().get(w).unwrap())
                        }
                        _ => {
                            let mut tx = accounts.begin().unwrap();
                            let w = tx.incr("w", 1);
                            Ok(tx.commit().unwrap().get(w).unwrap())
                        }
                    };
                assert_eq!(
                    reported.unwrap_or_else(|error| panic!("{what}: {error:#}")),
                    1,
                    "{what}"
                );
                proxy.disarm();
                pool_is_whole(&sessions, &server);
                assert_eq!(proxy.accepted(), opened, "{what}: connections");
            }
        }
        sessions.close(Duration::from_secs(1));
    }
}
