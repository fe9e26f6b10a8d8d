//! `Rejected` because of a command or its user: nothing was applied, and the server's own code has
//! the reason.
//!
//! Guarantee: rejected

use crate::fixture::LONG;
use crate::side::{BuildSide as _, SessionManager};
use rediscope::error::{Applied, CheckoutError, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::redis::Commands;
use rediscope::{CommitError, Error};

use crate::fixture::proxied::{
    Proxied, assert_outcome, client_ids, commit_error, exists, get, one_is_gone, pool_is_whole,
    warm,
};
use rediscope_testing::server::Server;

/// What a `Rejected` names: the command's index, its name, the server's code.
#[track_caller]
pub(crate) fn rejected(error: &Error) -> (Option<usize>, &str, &str) {
    match error {
        Error::Commit(CommitError::Rejected { index, command, code, message, .. }) => {
            assert!(!message.is_empty());
            (*index, command, code)
        }
        error => panic!("not rejected: {error:?}"),
    }
}

/// Queues good commands, the bad one and another good one, in each of the three ways.
#[track_caller]
fn refuses(sessions: &SessionManager, server: &Server, bad: &redis::Cmd, code: &str) {
    let name = bad.args_iter().next();
    let Some(redis::Arg::Simple(name)) = name else { panic!("a command without a name") };
    let name = String::from_utf8(name.to_vec()).unwrap();
    let good = |key: &str| redis::cmd("SET").arg(key).arg(1).take();
    // Two before it: their QUEUED come in a row and are counted.
    let block = [good("app:before"), good("app:before"), bad.clone(), good("app:behind")];
    let accounts = sessions.transactional();
    let before = client_ids(server);
    let mut tx = accounts.begin().unwrap();
    for cmd in block.clone() {
        tx.queue::<()>(cmd);
    }
    let by_guard = tx.commit().unwrap_err();
    let by_run = commit_error(accounts.run(|tx| {
        for cmd in block.clone() {
            tx.queue::<()>(cmd);
        }
        Ok(())
    }));
    let mut runs = 0;
    let by_watch = commit_error(accounts.watch(["app:watched"]).run(|_, tx| {
        runs += 1;
        for cmd in block.clone() {
            tx.queue::<()>(cmd);
        }
        Ok(())
    }));
    for error in [by_guard, by_run, by_watch] {
        assert_eq!(rejected(&error), (Some(2), name.to_ascii_uppercase().as_str(), code));
        assert_outcome(&error, Applied::No, false);
    }
    assert_eq!(runs, 1, "the same block would be refused again");
    assert!(!exists(server, "app:before") && !exists(server, "app:behind"));
    assert_eq!(client_ids(server), before, "a refusal is no reason to replace a connection");
}

#[test]
fn a_command_the_server_does_not_know_or_that_has_too_few_arguments_is_rejected() {
    let fixture = Proxied::start();
    let both = [fixture.trusting(), fixture.doubting()];
    for sessions in &both {
        refuses(sessions, &fixture.server, redis::cmd("nosuch").arg("x"), "ERR");
        refuses(sessions, &fixture.server, redis::cmd("SET").arg("key"), "ERR");
        // Redis 6 finds an unknown subcommand in EXEC only, which is `PartlyApplied`.
        if fixture.server.knows("CONFIG|GET") {
            refuses(sessions, &fixture.server, redis::cmd("CONFIG").arg("nosuch"), "ERR");
        }
        pool_is_whole(sessions, &fixture.server);
    }
}

#[test]
fn the_first_refusal_is_the_one_that_is_returned() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let error = commit_error(sessions.transactional().run(|tx| {
        tx.set("key", 1);
        tx.queue::<()>(redis::cmd("FIRST").arg("x").take());
        tx.queue::<()>(redis::cmd("SECOND").arg("x").take());
        Ok(())
    }));
    assert_eq!(rejected(&error), (Some(1), "FIRST", "ERR"));
    assert!(!exists(&fixture.server, "key"));
    pool_is_whole(&sessions, &fixture.server);
}

/// As a user that an ACL restricts, once the connections are open. The rules come behind everything being allowed.
fn restricted(server: &Server, rules: &[&str]) -> SessionManager {
    let all = ["SETUSER", "app", "reset", "on", ">secret", "~*", "&*", "+@all"];
    server.acl(&all);
    let sessions = SessionManager::builder(server.url_as("app", "secret"))
        .max_size(1)
        .trust_window(LONG)
        .build_side()
        .unwrap();
    warm(&sessions);
    server.acl(&[&["SETUSER", "app"], rules].concat());
    sessions
}

#[test]
fn a_command_or_a_key_that_an_acl_forbids_is_rejected_with_noperm() {
    let server = Server::start();
    let sessions = restricted(&server, &["-incrby", "resetkeys", "~app:*", "~next:*"]);
    refuses(&sessions, &server, redis::cmd("INCRBY").arg("app:n").arg(1), "NOPERM");
    refuses(&sessions, &server, redis::cmd("SET").arg("other").arg(1), "NOPERM");
    assert!(!exists(&server, "other"));
    let next = sessions.transactional().run(|tx| Ok(tx.append("app:next", "x")));
    assert_eq!((next.unwrap(), get(&server, "app:next").unwrap()), (1, "x".to_owned()));
}

#[test]
fn exec_that_an_acl_forbids_is_rejected_under_its_own_name() {
    let server = Server::start();
    let sessions = restricted(&server, &["-exec"]);
    let error = commit_error(sessions.transactional().run(|tx| Ok(tx.set("key", 1))));
    assert_eq!(rejected(&error), (None, "EXEC", "NOPERM"));
    assert_outcome(&error, Applied::No, false);
    assert!(!exists(&server, "key"));
    server.acl(&["SETUSER", "app", "+exec"]);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_server_that_knows_exec_by_another_name_is_found_when_a_connection_is_opened() {
    for (name, may_ask) in [("", true), ("MYEXEC", true), ("", false)] {
        let server = Server::with(&["--rename-command", "EXEC", name]);
        if !may_ask {
            server.acl(&["SETUSER", "default", "-command"]);
        }
        let sessions =
            SessionManager::builder(server.url()).trust_window(LONG).build_side().unwrap();
        let error = sessions.transactional().run(|tx| Ok(tx.set("key", 1))).unwrap_err();
        match error {
            Error::Checkout(CheckoutError::Connect { source, .. }) if may_ask => {
                assert_eq!(source.kind(), ConnectionErrorKind::Refused);
                assert!(source.to_string().contains("EXEC"), "{source}");
            }
            // An error of EXEC's own proves nothing, and this user may not ask.
            error if !may_ask => assert_eq!(error.applied(), Applied::Unknown, "{error:?}"),
            error => panic!("{error:?}"),
        }
        assert!(!exists(&server, "key"));
        // Single commands need no EXEC.
        let _: () = sessions.pooled().set("key", 1).unwrap();
    }
}

#[test]
fn a_watch_that_an_acl_forbids_fails_before_the_closure_runs() {
    let server = Server::start();
    let sessions = restricted(&server, &["-watch"]);
    let accounts = sessions.transactional();
    let mut runs = 0;
    let by_run = accounts.watch(["key"]).run(|_, tx| {
        runs += 1;
        Ok(tx.set("key", 1))
    });
    let by_hand = accounts.watch(["key"]).begin().map(drop);
    for error in [by_run.unwrap_err(), by_hand.unwrap_err()] {
        assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
        match error {
            Error::Command { command, error, .. } => {
                assert_eq!((command.as_str(), error.code()), ("WATCH", "NOPERM"));
            }
            error => panic!("{error:?}"),
        }
    }
    assert_eq!((runs, exists(&server, "key")), (0, false));
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_read_that_an_acl_forbids_leaves_the_scope_usable() {
    let server = Server::start();
    let sessions = restricted(&server, &["-get"]);
    let mut watching = sessions.transactional().watch(["key"]).begin().unwrap();
    match watching.get::<_, Option<String>>("key") {
        Err(Error::Command { command, error, .. }) => {
            assert_eq!((command.as_str(), error.code()), ("GET", "NOPERM"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(watching.strlen("key").unwrap(), 0);
    let mut tx = watching.multi();
    tx.set("key", "value");
    assert!(!tx.commit().unwrap().is_conflict());
    assert_eq!(get(&server, "key").unwrap(), "value");
    server.acl(&["SETUSER", "app", "+get"]);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_connection_that_may_not_be_cleaned_is_replaced() {
    let server = Server::start();
    let sessions = restricted(&server, &["-unwatch"]);
    let accounts = sessions.transactional();
    let ends: [fn(crate::side::Watching); 2] =
        [drop, |watching| match watching.abandon().unwrap_err() {
            Error::Command { command, error, .. } => {
                assert_eq!((command.as_str(), error.code()), ("UNWATCH", "NOPERM"));
            }
            error => panic!("{error:?}"),
        }];
    for end in ends {
        let before = client_ids(&server);
        end(accounts.watch(["key"]).begin().unwrap());
        // If the next caller still watched it, its commit would be a conflict.
        server.ask::<()>(&["INCR", "key"]);
        pool_is_whole(&sessions, &server);
        one_is_gone(&server, &before);
    }
}
