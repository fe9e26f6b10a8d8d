//! `NotIsolated`: MULTI was refused on a trusted connection, so the commands ran one by one.
//!
//! Guarantee: not-isolated, which-reply-proves-what

use crate::fixture::{LONG, OF_ONE, SOON};
use crate::side::{BuildSide as _, SessionManager, Transactional};
use rediscope::error::{Applied, CheckoutError, ConnectionErrorKind, ReplyError};
use rediscope::prelude::*;
use rediscope::{Begin, CommitError, Condition, Error, TransactionOptions};

use super::rejected::rejected;
use crate::fixture::proxied::{assert_outcome, commit_error, exists, get, pool_is_whole, warm};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use std::time::Duration;

/// A server whose user `app` may do everything, until an operator changes that.
struct Operated {
    proxy: Proxy,
    server: Server,
}

impl Operated {
    fn start() -> Self {
        let server = Server::start();
        server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
        Self { proxy: Proxy::to(&server), server }
    }

    fn sessions(&self, trust_window: Duration) -> SessionManager {
        let url = format!("redis://app:secret@{}/", self.proxy.address());
        let builder = SessionManager::builder(url).max_size(1).trust_window(trust_window);
        let sessions = builder.build_side().unwrap();
        warm(&sessions);
        sessions
    }

    fn operator(&self, rules: &[&str]) {
        self.server.acl(&[&["SETUSER", "app"], rules].concat());
    }

    /// The connection on which it happened is closed, and no other is opened while MULTI is forbidden;
    /// when it is allowed again all is well.
    #[track_caller]
    fn recovers(&self, sessions: &SessionManager) {
        eventually(SOON, "the connection is closed", || self.server.clients() == OF_ONE - 1);
        self.proxy.cut_all();
        eventually(SOON, "the others are closed", || self.server.clients() == 0);
        // The client's kernel may learn of it a moment later.
        eventually(SOON, "begin fails", || sessions.transactional().begin().is_err());
        match sessions.transactional().begin().map(drop) {
            Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
                assert_eq!(source.kind(), ConnectionErrorKind::Refused);
                assert_eq!(source.server_error().unwrap().code(), "NOPERM");
            }
            other => panic!("{other:?}"),
        }
        self.operator(&["+@all"]);
        eventually(SOON, "connecting works again", || sessions.transactional().begin().is_ok());
        pool_is_whole(sessions, &self.server);
    }
}

#[track_caller]
fn bare(error: &Error) -> &rediscope::Replies {
    match error {
        Error::Commit(CommitError::NotIsolated { replies, .. }) => replies,
        error => panic!("{error:?}"),
    }
}

#[test]
fn commands_that_ran_without_multi_are_reported_with_their_replies() {
    let fixture = Operated::start();
    let sessions = fixture.sessions(LONG);
    fixture.operator(&["-multi"]);
    let mut tx = sessions.transactional().begin().unwrap();
    let (set, sum) = (tx.set("key", "value"), tx.incr("n", 3));
    let error = tx.commit().unwrap_err();
    assert_outcome(&error, Applied::Yes, false);
    let replies = bare(&error);
    assert_eq!((replies.len(), replies.failures()), (2, 0));
    assert_eq!(replies.get((set, sum)).unwrap(), ((), 3));
    assert_eq!(get(&fixture.server, "key").as_deref(), Some("value"));
    fixture.recovers(&sessions);
}

#[test]
fn of_commands_that_ran_bare_the_refused_ones_are_named() {
    let fixture = Operated::start();
    let sessions = fixture.sessions(LONG);
    fixture.operator(&["-multi", "-incrby"]);
    let error = commit_error(sessions.transactional().run(|tx| {
        tx.set("key", "value");
        Ok(tx.incr("n", 3))
    }));
    assert_outcome(&error, Applied::Partly, false);
    match bare(&error).errors().collect::<Vec<_>>().as_slice() {
        [ReplyError::Failed { index: 1, command, error, .. }] => {
            assert_eq!((command.as_str(), error.code()), ("INCRBY", "NOPERM"));
        }
        errors => panic!("{errors:?}"),
    }
    assert_eq!(
        (get(&fixture.server, "key").as_deref(), exists(&fixture.server, "n")),
        (Some("value"), false)
    );
    fixture.recovers(&sessions);
}

#[test]
fn nothing_was_applied_if_every_command_was_refused_with_multi() {
    let fixture = Operated::start();
    let sessions = fixture.sessions(LONG);
    fixture.operator(&["-multi", "-set", "-incrby"]);
    let error = commit_error(sessions.transactional().run(|tx| {
        tx.set("key", "value");
        Ok(tx.incr("n", 3))
    }));
    assert_eq!(rejected(&error), (None, "MULTI", "NOPERM"));
    assert_outcome(&error, Applied::No, false);
    assert!(!exists(&fixture.server, "key") && !exists(&fixture.server, "n"));
    fixture.recovers(&sessions);
}

/// Each form in which MULTI may leave with the commands.
const FORMS: [&str; 5] = ["run", "guard", "watch run", "watch guard", "conditions"];

fn block(handle: &Transactional, form: &str, commands: &[redis::Cmd]) -> Error {
    fn queue(tx: &mut impl QueueCommands, commands: &[redis::Cmd]) -> Result<(), Error> {
        for command in commands {
            tx.queue::<()>(command.clone());
        }
        Ok(())
    }
    let reported = match form {
        "run" => handle.run(|tx| queue(tx, commands)),
        "watch run" => handle.watch(["w"]).run(|_, tx| queue(tx, commands)),
        "conditions" => {
            let required = handle.require(Condition::not_exists("never"));
            required.run(|tx| queue(tx, commands))
        }
        "guard" => handle.begin().and_then(|mut tx| {
            queue(crate::side::queue(&mut tx), commands)?;
            tx.commit().map(drop)
        }),
        "watch guard" => handle.watch(["w"]).begin().and_then(|watching| {
            let mut tx = watching.multi();
            queue(crate::side::queue(&mut tx), commands)?;
            tx.commit().map(drop)
        }),
        form => panic!("{form}"),
    };
    commit_error(reported)
}

/// The script wrote before its reply, whose text is the server's own.
#[test]
fn an_error_of_a_script_that_ran_bare_proves_nothing_whatever_its_words_are() {
    let fixture = Operated::start();
    let function = "#!lua name=lib\nredis.register_function('f', function(keys, args) \
        redis.call('INCR', keys[1]) return redis.error_reply(args[1]) end)";
    // They came with Redis 7.0.
    let has_functions = fixture.server.knows("FUNCTION");
    if has_functions {
        fixture.server.ask::<()>(&["FUNCTION", "LOAD", function]);
    }
    let script = "redis.call('INCR', KEYS[1]) return redis.error_reply(ARGV[1])";
    let sha: String = fixture.server.ask(&["SCRIPT", "LOAD", script]);
    let errors = [
        "OOM no",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "READONLY You can't write against a read only replica.",
        "NOPERM this user has no permissions to run the 'eval' command",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "MOVED 1 127.0.0.1:1",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
    ];
    let sessions = fixture.sessions(LONG);
    let all = sessions.transactional();
    let once = all.with(TransactionOptions::new().exactly_once());
    let grouped = all.with(TransactionOptions::new().grouped());
    let mut errors = errors.iter().cycle();
    let mut written = 0;
    for handle in [&all, &grouped, &once] {
        for form in FORMS {
            for (name, what) in [("EVAL", script), ("EVALSHA", &*sha), ("FCALL", "f")] {
                if name == "FCALL" && !has_functions {
                    continue;
                }
                let error = errors.next().unwrap();
                fixture.operator(&["+@all"]);
                // The connection is open, trusted, and armed if it has to be.
                eventually(SOON, "MULTI is allowed again", || {
                    handle.run(|tx| Ok(tx.ping())).is_ok()
                });
                fixture.operator(&["-multi"]);
                let cmd = redis::cmd(name).arg(what).arg(1).arg("n").arg(error).to_owned();
                let reported = block(handle, form, &[cmd]);
                written += 1;
                let what = format!("{form}, {name}: {error}: {reported:?}");
                assert_eq!(get(&fixture.server, "n").unwrap(), written.to_string(), "{what}");
                assert!(
                    matches!(reported, Error::Commit(CommitError::NotIsolated { .. })),
                    "{what}"
                );
                assert_outcome(&reported, Applied::Unknown, false);
            }
        }
    }
}

/// A command that is refused with the server's own text changed nothing. A reply with the same code and
/// another text may be that of a proxy, after the command ran.
#[test]
fn of_commands_that_ran_bare_only_the_servers_own_words_prove_that_nothing_ran() {
    let fixture = Operated::start();
    let sessions = fixture.sessions(LONG);
    let handle = sessions.transactional();
    for (form, words, ran) in [
        ("run", "-OOM no\r\n", true),
        ("guard", "-READONLY no\r\n", true),
        ("watch run", "-NOPERM no\r\n", true),
        ("watch guard", "-ERR upstream timed out\r\n", true),
        ("conditions", "-LOADING upstream\r\n", true),
        ("run", "-OOM command not allowed when used memory > 'maxmemory'.\r\n", false),
        ("guard", "-READONLY You can't write against a read only replica.\r\n", false),
        ("watch run", "-NOAUTH Authentication required.\r\n", false),
    ] {
        fixture.operator(&["+@all"]);
        eventually(SOON, "MULTI is allowed again", || handle.run(|tx| Ok(tx.ping())).is_ok());
        fixture.operator(&["-multi"]);
        let fault = if ran { Fault::Answer(words) } else { Fault::Refuse(words) };
        let trigger = match ran {
            true => Trigger::BeforeReplyTo("INCR"),
            false => Trigger::BeforeCommandNamed("INCR"),
        };
        fixture.server.ask::<()>(&["SET", "n", "0"]);
        fixture.proxy.arm((trigger, fault));
        let reported = block(&handle, form, &[redis::cmd("INCR").arg("n").to_owned()]);
        fixture.proxy.disarm();
        assert_eq!(get(&fixture.server, "n").unwrap(), if ran { "1" } else { "0" });
        if ran {
            assert!(
                matches!(reported, Error::Commit(CommitError::NotIsolated { .. })),
                "{words}: {reported:?}"
            );
            assert_outcome(&reported, Applied::Unknown, false);
        } else {
            assert_eq!(rejected(&reported), (None, "MULTI", "NOPERM"), "{words}");
            assert_eq!(reported.applied(), Applied::No);
        }
    }
}

/// The proxy refuses MULTI by itself: the server never received it, or did and replied +OK.
#[test]
fn a_multi_that_was_refused_by_a_proxy_is_never_reported_as_not_applied() {
    let fixture = Operated::start();
    let sessions = fixture.sessions(LONG);
    let handle = sessions.transactional();
    let words = "-ERR upstream timed out\r\n";
    for form in FORMS {
        for (trigger, fault) in [
            (Trigger::BeforeCommandNamed("MULTI"), Fault::Refuse(words)),
            (Trigger::BeforeReplyTo("MULTI"), Fault::Answer(words)),
        ] {
            eventually(SOON, "a connection is there", || {
                handle.begin().unwrap().discard().is_ok() && handle.run(|tx| Ok(tx.ping())).is_ok()
            });
            fixture.server.ask::<()>(&["SET", "n", "0"]);
            fixture.proxy.arm(Script::from((trigger, fault)).once());
            let reported = block(&handle, form, &[redis::cmd("INCR").arg("n").to_owned()]);
            fixture.proxy.disarm();
            assert_eq!(get(&fixture.server, "n").unwrap(), "1");
            match trigger {
                Trigger::BeforeReplyTo(_) => {
                    assert!(
                        matches!(reported, Error::Commit(CommitError::InDoubt(_))),
                        "{reported:?}"
                    );
                }
                _ => assert!(
                    matches!(reported, Error::Commit(CommitError::NotIsolated { .. })),
                    "{reported:?}"
                ),
            }
            assert_ne!(reported.applied(), Applied::No);
        }
    }
}

#[test]
fn on_a_connection_that_is_not_trusted_multi_is_refused_before_any_command_leaves() {
    let fixture = Operated::start();
    let sessions = fixture.sessions(Duration::ZERO);
    fixture.operator(&["-multi"]);
    let error = commit_error(sessions.transactional().run(|tx| Ok(tx.set("key", "value"))));
    assert_eq!(rejected(&error), (None, "MULTI", "NOPERM"));
    assert_outcome(&error, Applied::No, false);
    assert_eq!((exists(&fixture.server, "key"), fixture.server.calls("set")), (false, 0));
}

#[test]
fn immediate_closes_the_window_in_which_commands_can_run_bare() {
    let fixture = Operated::start();
    let sessions = fixture.sessions(LONG);
    let accounts = sessions.transactional().with(TransactionOptions::new().begin(Begin::Immediate));
    fixture.operator(&["-multi"]);
    let by_run = commit_error(accounts.run(|tx| Ok(tx.set("key", "value"))));
    let by_guard = commit_error(accounts.begin());
    for error in [by_run, by_guard] {
        assert_eq!(rejected(&error), (None, "MULTI", "NOPERM"));
        assert_outcome(&error, Applied::No, false);
    }
    assert_eq!((exists(&fixture.server, "key"), fixture.server.calls("set")), (false, 0));
    assert_eq!(sessions.status().transactional.in_use, 0);
    // Also for the blocks that the connection serves after it.
    let mut tx = sessions.transactional().begin().unwrap();
    tx.set("key", "value");
    let error = tx.commit().unwrap_err();
    assert_eq!(rejected(&error), (None, "MULTI", "NOPERM"));
    assert_outcome(&error, Applied::No, false);
    assert_eq!((exists(&fixture.server, "key"), fixture.server.calls("set")), (false, 0));
    fixture.operator(&["+@all"]);
    pool_is_whole(&sessions, &fixture.server);
}

crate::side::threads_only! {
    #[test]
    fn no_block_that_waits_is_sent_ahead_behind_a_refused_multi() {
        let fixture = Operated::start();
        let sessions = fixture.sessions(LONG);
        let accounts = sessions.transactional();
        let immediate = accounts.with(TransactionOptions::new().begin(Begin::Immediate));
        fixture.operator(&["-multi"]);
        fixture.proxy.arm((Trigger::BeforeReplyTo("MULTI"), Fault::HoldReplies));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| commit_error(immediate.run(|tx| Ok(tx.set("key", "first")))));
            eventually(SOON, "it has the connection", || sessions.status().transactional.in_use == 1);
            let second = scope.spawn(|| commit_error(accounts.run(|tx| Ok(tx.set("key", "value")))));
            eventually(SOON, "it waits", || sessions.status().transactional.waiting == 1);
            fixture.proxy.disarm();
            fixture.proxy.release();
            for error in [first.join().unwrap(), second.join().unwrap()] {
                assert_eq!(rejected(&error), (None, "MULTI", "NOPERM"));
                assert_outcome(&error, Applied::No, false);
            }
        });
        assert_eq!((exists(&fixture.server, "key"), fixture.server.calls("set")), (false, 0));
    }
}

#[test]
fn it_is_in_doubt_if_the_replies_of_commands_that_ran_bare_were_lost() {
    let fixture = Operated::start();
    let sessions = fixture.sessions(LONG);
    fixture.operator(&["-multi"]);
    fixture.proxy.arm((Trigger::BeforeReplyTo("SET"), Fault::Cut));
    let error = commit_error(sessions.transactional().run(|tx| Ok(tx.set("key", "value"))));
    assert!(matches!(error, Error::Commit(CommitError::InDoubt(_))), "{error:?}");
    assert_outcome(&error, Applied::Unknown, false);
    assert!(exists(&fixture.server, "key"));
    fixture.proxy.disarm();
    fixture.recovers(&sessions);
}
