//! Told `NotIsolated`: MULTI was refused on a trusted link, so the commands ran one by one.

use rediscope::prelude::*;
use rediscope::{Applied, Begin, CheckoutError, CommitError, Error};
use rediscope::{LinkErrorKind, ReplyError, SessionManager, TransactionOptions};

use super::rejected::rejected;
use super::stage::{ALWAYS, SOON, commit_error, exists, get, pool_is_whole, says, warm};
use crate::support::eventually;
use crate::support::proxy::{Fault, Proxy, Trigger};
use crate::support::server::Server;
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
        let sessions = builder.build().unwrap();
        warm(&sessions);
        sessions
    }

    fn operator(&self, rules: &[&str]) {
        self.server.acl(&[&["SETUSER", "app"], rules].concat());
    }

    /// The link on which it happened is closed, and no other is opened while MULTI is forbidden;
    /// when it is allowed again all is well.
    #[track_caller]
    fn recovers(&self, sessions: &SessionManager) {
        eventually(SOON, "the connection is closed", || self.server.clients() == 0);
        match sessions.transactional().begin().map(drop) {
            Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
                assert_eq!(source.kind(), LinkErrorKind::Refused);
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
fn bare(error: &CommitError) -> &rediscope::Replies {
    match error {
        CommitError::NotIsolated { replies, .. } => replies,
        error => panic!("{error:?}"),
    }
}

#[test]
fn commands_that_ran_bare_are_told_with_their_replies() {
    let stage = Operated::start();
    let sessions = stage.sessions(ALWAYS);
    stage.operator(&["-multi"]);
    let mut tx = sessions.transactional().begin().unwrap();
    let (set, sum) = (tx.set("key", "value"), tx.incr("n", 3));
    let error = tx.commit().unwrap_err();
    says(&error, Applied::Yes, false);
    let replies = bare(&error);
    assert_eq!((replies.len(), replies.failures()), (2, 0));
    assert_eq!(replies.get((set, sum)), Ok(((), 3)));
    assert_eq!(get(&stage.server, "key").as_deref(), Some("value"));
    stage.recovers(&sessions);
}

#[test]
fn of_commands_that_ran_bare_the_refused_ones_are_named() {
    let stage = Operated::start();
    let sessions = stage.sessions(ALWAYS);
    stage.operator(&["-multi", "-incrby"]);
    let error = commit_error(sessions.transactional().run(|tx| {
        tx.set("key", "value");
        Ok(tx.incr("n", 3))
    }));
    says(&error, Applied::Partly, false);
    match bare(&error).errors().collect::<Vec<_>>().as_slice() {
        [ReplyError::Failed { index: 1, command, error, .. }] => {
            assert_eq!((command.as_str(), error.code()), ("INCRBY", "NOPERM"));
        }
        errors => panic!("{errors:?}"),
    }
    assert_eq!(
        (get(&stage.server, "key").as_deref(), exists(&stage.server, "n")),
        (Some("value"), false)
    );
    stage.recovers(&sessions);
}

#[test]
fn nothing_was_applied_where_every_command_was_refused_with_multi() {
    let stage = Operated::start();
    let sessions = stage.sessions(ALWAYS);
    stage.operator(&["-multi", "-set", "-incrby"]);
    let error = commit_error(sessions.transactional().run(|tx| {
        tx.set("key", "value");
        Ok(tx.incr("n", 3))
    }));
    assert_eq!(rejected(&error), (None, "MULTI", "NOPERM"));
    says(&error, Applied::No, false);
    assert!(!exists(&stage.server, "key") && !exists(&stage.server, "n"));
    stage.recovers(&sessions);
}

#[test]
fn on_a_link_that_is_not_trusted_multi_is_refused_before_any_command_leaves() {
    let stage = Operated::start();
    let sessions = stage.sessions(Duration::ZERO);
    stage.operator(&["-multi"]);
    let error = commit_error(sessions.transactional().run(|tx| Ok(tx.set("key", "value"))));
    assert_eq!(rejected(&error), (None, "MULTI", "NOPERM"));
    says(&error, Applied::No, false);
    assert_eq!((exists(&stage.server, "key"), stage.server.calls("set")), (false, 0));
}

#[test]
fn immediate_closes_the_window_in_which_commands_can_run_bare() {
    let stage = Operated::start();
    let sessions = stage.sessions(ALWAYS);
    let accounts = sessions.transactional().with(TransactionOptions::new().begin(Begin::Immediate));
    stage.operator(&["-multi"]);
    let by_run = commit_error(accounts.run(|tx| Ok(tx.set("key", "value"))));
    let by_guard = commit_error(accounts.begin());
    for error in [by_run, by_guard] {
        assert_eq!(rejected(&error), (None, "MULTI", "NOPERM"));
        says(&error, Applied::No, false);
    }
    assert_eq!((exists(&stage.server, "key"), stage.server.calls("set")), (false, 0));
    assert_eq!(sessions.status().transactional.in_use, 0);
    stage.operator(&["+@all"]);
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn it_is_in_doubt_where_the_answers_of_commands_that_ran_bare_were_lost() {
    let stage = Operated::start();
    let sessions = stage.sessions(ALWAYS);
    stage.operator(&["-multi"]);
    stage.proxy.arm((Trigger::BeforeReplyTo("SET"), Fault::Cut));
    let error = commit_error(sessions.transactional().run(|tx| Ok(tx.set("key", "value"))));
    assert!(matches!(error, CommitError::InDoubt(_)), "{error:?}");
    says(&error, Applied::Unknown, false);
    assert!(exists(&stage.server, "key"));
    stage.proxy.disarm();
    stage.recovers(&sessions);
}
