//! What an error reply proves: a code alone proves nothing, an error text of the server's own does.
//!
//! Guarantee: the-pooled-handle, which-reply-proves-what

use crate::side::{BuildSide as _, Pooled, SessionManager};
use rediscope::Error;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::redis::{
    self, ConnectionLike, ErrorKind, FromRedisValue, ParsingError, RedisError, ServerErrorKind,
};

use super::fixture::{sized, typed};
use rediscope_testing::front::Front;
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;

/// The handle over each transport, with a proxy that can reply in place of the server.
struct Transports {
    ways: Vec<(&'static str, SessionManager)>,
    _fronts: Vec<Front>,
    proxy: Proxy,
    server: Server,
}

impl Transports {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(extra: &[&str]) -> Self {
        let server = Server::with(extra);
        let proxy = Proxy::to(&server);
        let unix = Front::unix(proxy.address());
        #[cfg_attr(not(feature = "tls-rustls"), expect(unused_mut, reason = "TLS is added"))]
        let mut ways = vec![
            ("TCP", sized(&proxy.url(), 1).build_side().unwrap()),
            ("a unix socket", sized(unix.url(), 1).build_side().unwrap()),
        ];
        #[cfg_attr(not(feature = "tls-rustls"), expect(unused_mut, reason = "TLS is added"))]
        let mut fronts = vec![unix];
        #[cfg(feature = "tls-rustls")]
        {
            let authority = rediscope_testing::tls::Authority::new();
            let tls = Front::tls(proxy.address(), &authority.server(&["localhost"]));
            let trusted = rediscope::Tls::new().root_certificates(authority.pem());
            let patient = sized(tls.url(), 1).tls(trusted);
            let patient = patient.connect_timeout(std::time::Duration::from_secs(1));
            ways.push(("TLS", patient.build_side().unwrap()));
            fronts.push(tls);
        }
        Self { ways, _fronts: fronts, proxy, server }
    }

    fn each(&self, mut test: impl FnMut(&'static str, Pooled)) {
        for (way, sessions) in &self.ways {
            test(way, sessions.pooled());
        }
    }

    /// The server runs the next command of that name, and the proxy replies.
    fn answer(&self, to: &'static str, line: &'static str) {
        self.proxy.arm((Trigger::BeforeReplyTo(to), Fault::Answer(line)));
    }

    fn get(&self, key: &str) -> Option<i64> {
        self.server.ask(&["GET", key])
    }
}

fn command(words: &[&str]) -> redis::Cmd {
    let mut cmd = redis::cmd(words[0]);
    for word in &words[1..] {
        cmd.arg(*word);
    }
    cmd
}

#[track_caller]
fn applied_and_retryable(error: &Error) -> (Applied, bool) {
    (error.applied(), error.is_retryable())
}

/// A script that wrote may give any error.
#[test]
fn an_error_of_a_script_proves_nothing_and_its_text_is_withheld() {
    let fixture = Transports::start();
    let codes = ["OOM", "READONLY", "TRYAGAIN", "BUSY", "ERR", "NOPERM", "MINE", "mine", "MOVED"];
    let library = "#!lua name=mine\nredis.register_function('fails', function(keys, args) \
        redis.call('INCR', keys[1]); return redis.error_reply(args[1]) end)";
    fixture.server.ask::<String>(&["FUNCTION", "LOAD", library]);
    let body = "redis.call('INCR', KEYS[1]); return redis.error_reply(ARGV[1])";
    let sha: String = fixture.server.ask(&["SCRIPT", "LOAD", body]);
    fixture.each(|way, mut db| {
        let mut runs = 0;
        for code in codes {
            for words in [
                format!("{code} hunter2"),
                format!("{code} command not allowed when used memory > 'maxmemory'."),
            ] {
                let mut tried = |form: &str, error: RedisError| {
                    runs += 1;
                    let place = format!("{form} {words} over {way}");
                    // What is no code as Redis has them may be anything.
                    let shown = if code == "mine" { "ERR" } else { code };
                    assert_eq!(error.code(), Some(shown), "{place}");
                    assert!(!error.to_string().contains("hunter2"), "{place}: {error}");
                    let error = Error::from(error);
                    assert_eq!(
                        applied_and_retryable(&error),
                        (Applied::Unknown, false),
                        "{place}: {error:?}"
                    );
                    assert!(
                        !format!("{error:#} {error:?}").contains("hunter2"),
                        "{place}: {error:?}"
                    );
                    assert!(error.to_string().contains(form), "{place}: {error}");
                };
                let arguments = |cmd: &mut redis::Cmd| cmd.arg(1).arg("w").arg(&words).take();
                let eval = arguments(redis::cmd("EVAL").arg(body)).query::<()>(&mut db);
                tried("EVAL", eval.unwrap_err());
                let evalsha = arguments(redis::cmd("EVALSHA").arg(&sha)).query::<()>(&mut db);
                tried("EVALSHA", evalsha.unwrap_err());
                let fcall = arguments(redis::cmd("FCALL").arg("fails")).query::<()>(&mut db);
                tried("FCALL", fcall.unwrap_err());
                let script = redis::Script::new(body);
                let invoked = script.key("w").arg(&words).invoke::<()>(&mut db);
                tried("EVALSHA", invoked.unwrap_err());
                let nested = "redis.call('INCR', KEYS[1]); return {1, redis.error_reply(ARGV[1])}";
                let nested = arguments(redis::cmd("EVAL").arg(nested)).query::<Vec<i64>>(&mut db);
                tried("EVAL", nested.unwrap_err());
            }
        }
        assert_eq!(fixture.server.ask::<i64>(&["GETDEL", "w"]), runs, "each one was applied");
        // One that only reads cannot have changed anything.
        let read = "return redis.error_reply('OOM hunter2')";
        let read = command(&["EVAL_RO", read, "0"]).query::<()>(&mut db);
        assert_eq!(applied_and_retryable(&typed(read)), (Applied::No, false));
    });
}

#[test]
fn a_script_that_the_server_does_not_know_is_loaded_and_run() {
    let fixture = Transports::start();
    fixture.each(|way, mut db| {
        fixture.server.ask::<()>(&["SCRIPT", "FLUSH"]);
        let script = redis::Script::new("return redis.call('INCR', KEYS[1])");
        let unknown = command(&["EVALSHA", script.get_hash(), "1", "n"]).query::<i64>(&mut db);
        let unknown = unknown.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Server(ServerErrorKind::NoScript), "{way}");
        assert_eq!(Error::from(unknown).applied(), Applied::Unknown);
        assert_eq!(script.key("n").invoke::<i64>(&mut db).unwrap(), 1, "{way}");
        fixture.server.ask::<()>(&["DEL", "n"]);
    });
}

/// The server ran it; the proxy sends another reply.
#[test]
fn a_proxys_own_error_proves_nothing() {
    let fixture = Transports::start();
    let lines = [
        "-ERR upstream timed out\r\n",
        "-ERR Connection timed out\r\n",
        "-ERR Server closed the connection\r\n",
        "-UNAVAILABLE upstream failure\r\n",
        "-upstream failure\r\n",
        "-READONLY upstream is read only\r\n",
        "-LOADING please wait\r\n",
        "-OOM proxy out of memory\r\n",
        "-BUSY try later\r\n",
        "-NOAUTH proxy\r\n",
        "-TRYAGAIN upstream\r\n",
        "-MOVED somewhere\r\n",
    ];
    fixture.each(|way, mut db| {
        for (nth, line) in lines.into_iter().enumerate() {
            db.exists::<_, bool>("warm").unwrap();
            fixture.answer("INCRBY", line);
            let alone = typed(db.incr::<_, _, i64>("n", 1));
            assert_eq!(
                applied_and_retryable(&alone),
                (Applied::Unknown, false),
                "{line:?} over {way}: {alone:?}"
            );
            assert_eq!(fixture.get("n"), Some(nth as i64 + 1));
            // All that failed was unproven.
            fixture.answer("INCRBY", line);
            let pipeline = redis::pipe().get("k").incr("p", 1).query::<(Option<i64>, i64)>(&mut db);
            let pipeline = typed(pipeline);
            assert_eq!(
                applied_and_retryable(&pipeline),
                (Applied::Unknown, false),
                "{line:?}: {pipeline:?}"
            );
            assert!(pipeline.to_string().contains("INCRBY (command 1)"), "{pipeline}");
            // Another one wrote.
            fixture.answer("INCRBY", line);
            let partly = redis::pipe().set("s", 1).incr("p", 1).query::<((), i64)>(&mut db);
            assert_eq!(applied_and_retryable(&typed(partly)), (Applied::Partly, false), "{line:?}");
            // A read changes nothing, whatever its reply.
            fixture.answer("GET", line);
            let read = typed(db.get::<_, Option<i64>>("k"));
            assert_eq!(read.applied(), Applied::No, "{line:?}: {read:?}");
        }
        assert_eq!(fixture.server.ask::<i64>(&["DEL", "n", "p", "s"]), 3);
    });
}

/// Errors of a real server before a command changes anything.
#[test]
fn a_refusal_of_the_servers_own_proves_that_nothing_was_changed() {
    let fixture = Transports::with(&["--enable-debug-command", "yes"]);
    let ask = |words: &[&str]| fixture.server.ask::<redis::Value>(words);
    ask(&["SET", "text", "words"]);
    ask(&["RPUSH", "list", "1"]);
    ask(&["XADD", "stream", "5-0", "a", "1"]);
    ask(&["XGROUP", "CREATE", "stream", "group", "0"]);
    let refused: &[&[&str]] = &[
        &["LPUSH", "text", "x"],
        &["INCR", "text"],
        &["INCRBYFLOAT", "text", "1"],
        &["SET", "text", "x", "EX", "never"],
        &["SET", "text", "x", "EX", "0"],
        &["SET", "text", "x", "NX", "XX"],
        &["SETRANGE", "text", "-1", "x"],
        &["LSET", "list", "7", "x"],
        &["LSET", "none", "7", "x"],
        &["RENAME", "none", "other"],
        &["ZADD", "z", "much", "m"],
        &["ZADD", "z", "NX", "XX", "1", "m"],
        &["GEOADD", "g", "200", "100", "m"],
        &["XADD", "stream", "1-0", "a", "1"],
        &["XGROUP", "CREATE", "stream", "group", "0"],
        &["XREADGROUP", "GROUP", "none", "me", "STREAMS", "stream", ">"],
        &["RESTORE", "text", "0", "x"],
        &["RESTORE", "new", "0", "x"],
        &["PFADD", "text", "x"],
        &["SETBIT", "text", "0", "2"],
        &["BITFIELD", "text", "GET", "z9", "0"],
        &["EXPIRE", "text", "soon"],
        &["COPY", "text", "text"],
        &["SINTERSTORE", "to", "text", "list"],
        &["DEL"],
        &["NOSUCHCOMMAND", "x"],
        &["OBJECT", "NOSUCH", "x"],
        &["CONFIG", "NOSUCH"],
    ];
    let digest = || fixture.server.ask::<String>(&["DEBUG", "DIGEST"]);
    let before = digest();
    fixture.each(|way, mut db| {
        for words in refused {
            let error = typed(command(words).query::<redis::Value>(&mut db));
            assert_eq!(error.applied(), Applied::No, "{words:?} over {way}: {error:?}");
            let Error::Command { command: name, error, .. } = &error else { panic!("{error:?}") };
            assert_eq!(name, words[0]);
            assert!(!error.message().is_empty(), "{words:?}: its sentence is in the table");
            let pipeline = redis::pipe().add_command(command(words)).get("text").exec(&mut db);
            assert_eq!(typed(pipeline).applied(), Applied::No, "{words:?} over {way}");
        }
        assert_eq!(digest(), before);
    });
    // Refused at the door, by the server's state or the user's rights.
    let doors: &[(&[&[&str]], &str, bool)] = &[
        (&[&["CONFIG", "SET", "maxmemory", "1"]], "OOM", true),
        (
            &[
                &["CONFIG", "SET", "maxmemory", "0"],
                &["CONFIG", "SET", "min-replicas-to-write", "3"],
            ],
            "NOREPLICAS",
            true,
        ),
        (
            &[&["CONFIG", "SET", "min-replicas-to-write", "0"], &["REPLICAOF", "127.0.0.1", "1"]],
            "READONLY",
            true,
        ),
        (&[&["REPLICAOF", "NO", "ONE"], &["ACL", "SETUSER", "default", "-set"]], "NOPERM", false),
    ];
    for (settings, code, retryable) in doors {
        settings.iter().for_each(|words| drop(ask(words)));
        fixture.each(|way, mut db| {
            let error = typed(db.set::<_, _, ()>("text", "other"));
            let Error::Command { error: server, .. } = &error else { panic!("{error:?}") };
            assert_eq!(
                (server.code(), applied_and_retryable(&error)),
                (*code, (Applied::No, *retryable)),
                "{way}"
            );
            assert!(!server.message().is_empty(), "{server}");
        });
        assert_eq!(fixture.server.ask::<String>(&["GET", "text"]), "words");
    }
}

crate::side::threads_only! {
    #[test]
    fn an_undecodable_reply_of_a_read_changed_nothing_and_one_of_a_write_did() {
        #[derive(Debug)]
        struct Money;
        impl FromRedisValue for Money {
            fn from_redis_value(_: redis::Value) -> Result<Self, ParsingError> {
                Err("no currency is given".to_owned().into())
            }
            fn from_redis_value_ref(_: &redis::Value) -> Result<Self, ParsingError> {
                Err("no currency is given".to_owned().into())
            }
        }
        let fixture = Transports::start();
        fixture.each(|way, mut db| {
            // No other reply has the value in it.
            db.set::<_, _, ()>("text", format!("hunter2 {way}")).unwrap();
            let decode = |error: Error, name: &str, applied: Applied| {
                assert_eq!(
                    applied_and_retryable(&error),
                    (applied, false),
                    "{name} over {way}: {error:?}"
                );
                let shown = format!("{error:#} {error:?}");
                assert!(!shown.contains("hunter2") && shown.contains(name), "{shown}");
                match error {
                    Error::Decode { command, .. } => assert_eq!(command, name),
                    other => panic!("{other:?}"),
                }
            };
            decode(typed(db.get::<_, i64>("none")), "GET", Applied::No);
            decode(typed(db.get::<_, i64>("text")), "GET", Applied::No);
            decode(typed(db.incr::<_, _, Vec<i64>>("n", 1)), "INCRBY", Applied::Yes);
            decode(typed(db.getset::<_, _, i64>("text", "hunter2")), "GETSET", Applied::Yes);
            // A later reply does not replace an earlier one that it does not fit.
            let kept = db.incr::<_, _, Vec<i64>>("n", 1).unwrap_err();
            db.get::<_, String>("text").unwrap();
            decode(kept.into(), "INCRBY", Applied::Yes);
            db.set::<_, _, ()>("pipes", "hunter2 too").unwrap();
            let reads = redis::pipe().get("pipes").get("none").query::<(i64, i64)>(&mut db);
            decode(typed(reads), "a pipeline", Applied::No);
            let writes = redis::pipe().get("pipes").incr("n", 1).query::<(i64, i64)>(&mut db);
            decode(typed(writes), "a pipeline", Applied::Yes);
            // In the words of the user's own type, which show no value.
            let own = typed(db.get::<_, Money>("text"));
            let source = std::error::Error::source(&own).expect("the user's words").to_string();
            assert_eq!(source, "no currency is given");
            assert!(!own.to_string().contains(&source), "{own}");
            decode(own, "GET", Applied::Unknown);
            decode(typed(db.set::<_, _, Money>("text", "hunter2")), "SET", Applied::Unknown);
        });
        // If a thread has only read, or only written, that is known of each of its commands.
        let db = fixture.ways[0].1.pooled();
        let only = |writes: bool| {
            let mut db = db.clone();
            let mut money = || match writes {
                true => db.set::<_, _, Money>("text", "hunter2"),
                false => db.get::<_, Money>("text"),
            };
            let error = std::thread::scope(|scope| scope.spawn(|| typed(money())).join().unwrap());
            applied_and_retryable(&error).0
        };
        assert_eq!((only(false), only(true)), (Applied::No, Applied::Yes));
        // Of a connection that is not the handle's nothing is known.
        let sessions = &fixture.ways[0].1;
        let raw = sessions.pooled().with_raw(|raw| raw.get::<_, i64>("text").unwrap_err()).unwrap();
        assert_eq!(Error::from(raw).applied(), Applied::Unknown);
        let forged = "return redis.error_reply('OOM [INCR: not applied, ref 00000000]')";
        let raw =
            sessions.pooled().with_raw(|raw| command(&["EVAL", forged, "0"]).exec(raw).unwrap_err());
        assert_eq!(applied_and_retryable(&Error::from(raw.unwrap())), (Applied::Unknown, false));
    }
}

/// Whose replies the caller asks for, or whether it ignores the errors, changes no effect.
#[test]
fn a_pipeline_is_reported_with_the_effects_of_all_its_commands() {
    let server = Server::start();
    let sessions = sized(&server.url(), 1).build_side().unwrap();
    let mut db = sessions.pooled();
    let incr = |key: &str| redis::Cmd::incr(key, 1);
    for (skipped, applied) in [
        (incr("n"), Applied::Partly),
        (redis::Cmd::get("n"), Applied::No),
        (incr("text"), Applied::No),
        (command(&["EVAL", "return redis.error_reply('MINE')", "0"]), Applied::Unknown),
    ] {
        server.ask::<()>(&["MSET", "text", "hunter2", "n", "7"]);
        let of = |cmds: &[&redis::Cmd]| {
            let mut pipeline = redis::pipe();
            for cmd in cmds {
                pipeline.add_command((*cmd).clone());
            }
            pipeline
        };
        let failing = incr("text");
        let bytes = of(&[&skipped, &failing]).get_packed_pipeline();
        let replies = ConnectionLike::req_packed_commands(&mut db, &bytes, 1, 1).unwrap();
        let [redis::Value::ServerError(error)] = &*replies else { panic!("{replies:?}") };
        // As redis-rs makes it of a pipeline's replies.
        let again = of(&[&skipped, &failing]).query::<redis::Value>(&mut db).unwrap_err();
        let reported = Error::from(again);
        assert_eq!(reported.applied(), applied, "{reported:?}");
        let tag = format!(
            "pipeline: {}",
            match applied {
                Applied::No => "not applied",
                Applied::Partly => "partly applied",
                _ => "unknown",
            }
        );
        assert!(error.details().unwrap().contains(&tag), "{error:?}");

        // The first reply does not decode, and the second one is an error.
        let read = redis::Cmd::get("text");
        let mut ignoring = of(&[&read, &skipped, &failing]);
        let ignoring = ignoring.ignore_errors().query::<(i64, redis::Value, redis::Value)>(&mut db);
        let reported = typed(ignoring);
        assert!(matches!(&reported, Error::Decode { .. }), "{reported:?}");
        assert_eq!(reported.applied(), applied, "{reported:?}");
    }
}

/// redis-rs's error names no command: it belongs only to the one whose reply it shows.
#[test]
fn an_undecodable_reply_of_an_unknown_command_is_unknown() {
    type Fails = fn(&mut Pooled, &Transports) -> RedisError;
    /// Its error, the name in it, and what it reports as applied.
    type Case = (&'static str, Fails, &'static str, Applied);
    fn read(db: &mut Pooled) {
        db.get::<_, String>("other").unwrap();
    }
    let unnamed = "the command";
    let cases: &[Case] = &[
        (
            "GETSET, then a read",
            |db, _| {
                let kept = db.getset::<_, _, i64>("text", "new").unwrap_err();
                read(db);
                kept
            },
            "GETSET",
            Applied::Yes,
        ),
        (
            "GETDEL, then a read that fails",
            |db, _| {
                let kept = command(&["GETDEL", "text"]).query::<i64>(db).unwrap_err();
                db.get::<_, i64>("other").unwrap_err();
                kept
            },
            "GETDEL",
            Applied::Yes,
        ),
        (
            "LPOP of several, then LRANGE",
            |db, _| {
                let kept = command(&["LPOP", "list", "2"]).query::<Vec<i64>>(db).unwrap_err();
                db.lrange::<_, Vec<String>>("list", 0, -1).unwrap();
                kept
            },
            "LPOP",
            Applied::Yes,
        ),
        (
            "a pipeline that writes, then a read",
            |db, _| {
                let mut pipeline = redis::pipe();
                pipeline.getset("text", "new").get("other");
                let kept = pipeline.query::<(i64, String)>(db).unwrap_err();
                db.lrange::<_, Vec<String>>("list", 0, -1).unwrap();
                kept
            },
            "a pipeline",
            Applied::Yes,
        ),
        (
            "a script, then a read",
            |db, _| {
                let script = redis::Script::new("return redis.call('GETDEL', KEYS[1])");
                let kept = script.key("text").invoke::<i64>(db).unwrap_err();
                read(db);
                kept
            },
            "EVALSHA",
            Applied::Yes,
        ),
        (
            "a read, then a write",
            |db, _| {
                let kept = db.get::<_, i64>("other").unwrap_err();
                db.set::<_, _, ()>("text", "new").unwrap();
                kept
            },
            "GET",
            Applied::No,
        ),
        (
            "GETSET, then a read of the same value",
            |db, _| {
                let kept = db.getset::<_, _, i64>("text", "new").unwrap_err();
                db.get::<_, String>("same").unwrap();
                kept
            },
            unnamed,
            Applied::Unknown,
        ),
        (
            "two reads of the same value",
            |db, _| {
                let kept = db.get::<_, i64>("same").unwrap_err();
                command(&["GETRANGE", "same", "0", "-1"]).query::<String>(db).unwrap();
                kept
            },
            unnamed,
            Applied::No,
        ),
        (
            "of another thread",
            |db, _| {
                let mut db = db.clone();
                let write = move || db.getset::<_, _, i64>("text", "new").unwrap_err();
                std::thread::spawn(write).join().unwrap()
            },
            unnamed,
            Applied::Unknown,
        ),
        (
            "of another connection",
            |db, fixture| {
                read(db);
                fixture.server.connection().getset::<_, _, i64>("text", "new").unwrap_err()
            },
            unnamed,
            Applied::Unknown,
        ),
        (
            "the user's own",
            |db, _| {
                read(db);
                (ErrorKind::UnexpectedReturnType, "mine").into()
            },
            unnamed,
            Applied::Unknown,
        ),
        (
            "the user's own, as a type's",
            |db, _| {
                read(db);
                ParsingError::from("mine").into()
            },
            "GET",
            Applied::No,
        ),
        (
            "no value is shown",
            |db, _| {
                let kept = db.getset::<_, _, String>("binary", "new").unwrap_err();
                read(db);
                kept
            },
            "GET",
            Applied::Unknown,
        ),
        (
            "a long value",
            |db, _| {
                let kept = db.getset::<_, _, i64>("long", "new").unwrap_err();
                read(db);
                kept
            },
            unnamed,
            Applied::Unknown,
        ),
    ];
    let fixture = Transports::start();
    fixture.each(|way, db| {
        for (case, fails, name, applied) in cases {
            let long = "hunter2".repeat(1000);
            let keys = [("text", "hunter2"), ("same", "hunter2"), ("other", "x"), ("long", &long)];
            keys.iter().for_each(|(key, value)| fixture.server.ask::<()>(&["SET", key, value]));
            fixture.server.ask::<()>(&["DEL", "list"]);
            fixture.server.ask::<i64>(&["RPUSH", "list", "a", "b", "c", "d"]);
            let binary = command(&["SET", "binary"]).arg(&[0xff_u8, 0xfe][..]).take();
            binary.exec(&mut fixture.server.connection()).unwrap();
            // The replies of each case are its own.
            let mut db = db.clone();
            let error = std::thread::scope(|scope| {
                scope.spawn(|| Error::from(fails(&mut db, &fixture))).join().unwrap()
            });
            assert_eq!(
                applied_and_retryable(&error),
                (*applied, false),
                "{case} over {way}: {error:?}"
            );
            assert!(!format!("{error:#} {error:?}").contains("hunter2"), "{case}: {error:?}");
            let Error::Decode { command, .. } = error else { panic!("{case}: {error:?}") };
            assert_eq!(command, *name, "{case} over {way}");
        }
    });
}

#[test]
fn a_read_inside_of_a_block_that_cannot_be_decoded_applies_nothing() {
    let fixture = Transports::start();
    fixture.server.ask::<()>(&["SET", "text", "hunter2"]);
    for (way, sessions) in &fixture.ways {
        let accounts = sessions.transactional();
        let decode = |form: &str, reported: Result<i64, Error>| {
            let error = reported.unwrap_err();
            assert!(matches!(&error, Error::Decode { .. }), "{form} over {way}: {error:?}");
            assert_eq!(error.applied(), Applied::No, "{form} over {way}");
            assert!(!format!("{error:#} {error:?}").contains("hunter2"), "{error:?}");
            assert_eq!(fixture.get("k"), None);
        };
        for key in ["none", "text"] {
            decode(
                "watch",
                accounts.watch([key]).run(|read, tx| {
                    let n: i64 = read.get(key)?;
                    Ok(tx.incr("k", n))
                }),
            );
            let mut declaring = accounts.watch([key]);
            let declared = declaring.declare::<i64>(command(&["GET", key])).unwrap();
            decode(
                "declared",
                declaring.run(|read, tx| {
                    let n = read.declared(declared)?;
                    Ok(tx.incr("k", n))
                }),
            );
            decode(
                "pooled",
                accounts.run(|tx| {
                    let n: i64 = sessions.pooled().get(key)?;
                    Ok(tx.incr("k", n))
                }),
            );
            let mut guard = accounts.watch([key]).begin().unwrap();
            decode("guard", guard.get(key));
        }
    }
}
