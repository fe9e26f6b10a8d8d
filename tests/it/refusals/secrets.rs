//! No error, and no `Debug` or `Display` of any public type, holds a key, a value or a password.
//!
//! Guarantee: reports

use crate::fixture::{Fixture, LONG, SOON};
use crate::side::BuildSide as _;
use std::fmt::Debug;
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::error::CheckoutError;
use rediscope::prelude::*;
use rediscope::{CommitError, Condition, Error, Outcome, TransactionOptions, redis};

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};
use rediscope_testing::server::Server;

const KEY: &str = "key:S3CRET-key";
const VALUE: &str = "value S3CRET, with 'S3CRET' and \"S3CRET\" quoted";
const PASSWORD: &str = "S3CRETpassword";

/// A key that ends the server's quotation early.
const QUOTES: &str = "it's `a` \"key\" 'S3CRET-key";

#[track_caller]
fn clean(text: &str) {
    assert!(!text.contains("S3CRET"), "{text}");
    // What a careless writer makes of bytes.
    assert!(!text.contains("83, 51, 67, 82"), "{text}");
}

#[track_caller]
fn debug(what: impl Debug) {
    clean(&format!("{what:?}"));
    clean(&format!("{what:#?}"));
}

/// An error, and everything behind it.
#[track_caller]
fn shown(error: impl std::error::Error) {
    clean(&error.to_string());
    clean(&format!("{error:#}"));
    debug(&error);
    let mut source = error.source();
    while let Some(behind) = source {
        clean(&format!("{behind} {behind:?} {behind:#?}"));
        source = behind.source();
    }
}

/// The whole family an error of a commit belongs to.
#[track_caller]
fn shown_commit(error: Error) {
    if let Some(replies) = error.replies() {
        debug(replies);
        replies.errors().for_each(shown);
    }
    // On its way through redis-rs, where our own errors travel as well.
    let redis = redis::RedisError::from(error.clone());
    clean(&format!("{redis} {redis:?}"));
    shown(error);
}

/// A user with a password, through a proxy.
fn start() -> Fixture {
    let server = Server::start();
    let rule = format!(">{PASSWORD}");
    server.acl(&["SETUSER", "app", "on", &rule, "~*", "&*", "+@all"]);
    let fixture = Fixture::as_user(server, PASSWORD, |builder| {
        let builder = builder
            .trust_window(LONG)
            .connect_timeout(Duration::from_millis(500))
            .response_timeout(Duration::from_millis(500))
            .checkout_timeout(Duration::from_millis(1500));
        debug(&builder);
        builder
    });
    fixture.sessions.transactional().begin().unwrap().discard().unwrap();
    fixture
}

impl Fixture {
    /// A transaction of one command.
    fn commit(&self, words: &[&str]) -> Result<rediscope::Replies, Error> {
        let mut tx = self.accounts().begin().unwrap();
        tx.queue::<()>(redis::cmd(words[0]).arg(&words[1..]).take());
        debug(&tx);
        tx.commit()
    }
}

#[test]
fn handles_scopes_and_values_show_none() {
    let fixture = start();
    let (sessions, accounts) = (&fixture.sessions, fixture.accounts());
    let mut db = sessions.pooled();
    debug((sessions, &accounts, &db));
    db.set::<_, _, ()>(KEY, VALUE).unwrap();
    let watch = accounts.watch([KEY]);
    debug(&watch);
    let mut declaring = accounts.watch([KEY]).require(Condition::equals(KEY, VALUE));
    let declared = declaring.declare::<String>(redis::Cmd::get(KEY)).unwrap();
    debug((&declaring, &declared));
    let reads = declaring.begin().unwrap();
    debug(&reads);
    assert_eq!(reads.declared(declared).unwrap(), VALUE);
    reads.abandon().unwrap();
    let mut watching = watch.begin().unwrap();
    debug(&watching);
    assert_eq!(watching.get::<_, String>(KEY).unwrap(), VALUE);
    debug(&watching);
    let mut tx = watching.multi();
    let set = tx.set(KEY, VALUE);
    debug((&tx, &set));
    let mut part = tx.savepoint();
    part.append(KEY, VALUE);
    debug(&part);
    drop(part);
    let get = tx.get::<_, String>(KEY);
    let status = sessions.status();
    debug(&status);
    clean(&status.to_string());
    assert_eq!(status.transactional.scopes.len(), 1);
    let outcome = tx.commit().unwrap();
    debug(&outcome);
    let Outcome::Committed(replies) = outcome else { panic!("a conflict") };
    debug(&replies);
    assert_eq!(replies.get(get).unwrap(), VALUE);
    accounts
        .run(|block| {
            block.set(KEY, VALUE);
            debug(&block);
            Ok(())
        })
        .unwrap();
    debug(accounts.with(TransactionOptions::new().name("a name")));
    clean(&sessions.status().to_string());
}

#[test]
fn values_of_another_type_are_described_and_not_shown() {
    let fixture = start();
    let accounts = fixture.accounts();
    let mut db = fixture.sessions.pooled();
    db.set::<_, _, ()>(KEY, VALUE).unwrap();
    shown(accounts.run(|tx| Ok(tx.get::<_, i64>(KEY))).unwrap_err());
    shown(accounts.watch([KEY]).begin().unwrap().get::<_, i64>(KEY).unwrap_err());
    shown(Error::from(db.get::<_, i64>(KEY).unwrap_err()));
    shown(Error::from(db.get::<_, Vec<(i64, i64)>>(KEY).unwrap_err()));
    shown(Error::from(redis::pipe().get(KEY).query::<(i64,)>(&mut db).unwrap_err()));
}

#[test]
fn values_that_contain_an_error_are_described_and_do_not_show_it() {
    let fixture = start();
    let accounts = fixture.accounts();
    let script = "return {1, {err = 'ERR ' .. ARGV[1]}}";
    let read = || redis::cmd("EVAL_RO").arg(script).arg(0).arg(VALUE).take();
    shown(accounts.run(|tx| Ok(tx.queue::<(i64, ())>(read()))).unwrap_err());
    shown(accounts.run(|tx| Ok(tx.queue::<Vec<()>>(read()))).unwrap_err());
    let mut watching = accounts.watch([KEY]).begin().unwrap();
    shown(watching.query_as_read::<(i64, ())>(read()).unwrap_err());
    drop(watching);
    let mut declaring = accounts.reading();
    let declared = declaring.declare::<Vec<()>>(read()).unwrap();
    shown(declaring.begin().unwrap().declared(declared).unwrap_err());
    shown(Error::from(read().query::<Vec<()>>(&mut fixture.sessions.pooled()).unwrap_err()));
}

#[test]
fn refused_commands_show_none() {
    let fixture = start();
    for words in [
        &["NOSUCH", KEY, VALUE][..],
        &["nosuch", VALUE, VALUE, VALUE],
        &["SET", KEY],
        &["CONFIG", VALUE, KEY],
        &["OBJECT", VALUE, KEY],
        &["XGROUP", VALUE, KEY],
    ] {
        let error = fixture.commit(words).unwrap_err();
        assert!(matches!(error, Error::Commit(CommitError::Rejected { .. })), "{error:?}");
        shown_commit(error);
    }
    fixture.server.acl(&["SETUSER", "app", "resetkeys", "~mine", "-incrby", "-@admin"]);
    for words in [&["SET", KEY, VALUE][..], &["INCRBY", "mine", VALUE], &["CONFIG", "GET", VALUE]] {
        let error = fixture.commit(words).unwrap_err();
        assert!(
            matches!(&error, Error::Commit(CommitError::Rejected { code, .. }) if code == "NOPERM")
        );
        shown_commit(error);
    }
    shown(fixture.accounts().watch([KEY]).begin().map(drop).unwrap_err());
    let by_name = fixture.commit(&["SELECT", VALUE]).unwrap_err();
    shown_commit(by_name);
    let query = redis::cmd("SET").arg(KEY).arg(VALUE).take();
    let mut reading = fixture.accounts().reading().begin().unwrap();
    shown(reading.query::<()>(query).unwrap_err());
    shown(reading.get::<_, String>(KEY).unwrap_err());
}

#[test]
fn failed_commands_show_none_whatever_the_server_quotes() {
    let fixture = start();
    fixture.server.ask::<()>(&["SET", KEY, VALUE]);
    fixture.server.ask::<()>(&["XADD", "stream", "1-1", "f", "v"]);
    let failing: &[&[&str]] = &[
        &["INCR", KEY],
        &["LPUSH", KEY, VALUE],
        &["HINCRBY", KEY, VALUE, VALUE],
        &["EXPIRE", KEY, VALUE],
        &["SETEX", KEY, VALUE, VALUE],
        &["SET", KEY, VALUE, VALUE],
        &["ZADD", "z", VALUE, VALUE],
        &["LSET", "none", "0", VALUE],
        &["RENAME", "S3CRET-none", KEY],
        &["XADD", "stream", VALUE, "f", "v"],
        &["XGROUP", "CREATE", "S3CRET-none", "g", "$"],
        &["XREADGROUP", "GROUP", VALUE, "c", "STREAMS", "stream", ">"],
        &["XREADGROUP", "GROUP", "g", "c", "STREAMS", QUOTES, ">"],
        &["XREADGROUP", "GROUP", QUOTES, "c", "STREAMS", QUOTES, ">"],
        &["XINFO", "GROUPS", "S3CRET-none"],
        &["XINFO", "CONSUMERS", "stream", QUOTES],
        &["SORT", KEY, VALUE],
        &["RESTORE", "other", "0", VALUE],
        &["GEOADD", "geo", VALUE, VALUE, VALUE],
        &["BITFIELD", KEY, "GET", VALUE, VALUE],
        &["CONFIG", "SET", VALUE, VALUE],
        &["CONFIG", "SET", "maxmemory", VALUE],
        &["ACL", "SETUSER", "x", "S3CRETrule"],
        &["ACL", "SETUSER", "x", QUOTES],
        &["ACL", "DELUSER", "default", VALUE],
        &["ACL", "DRYRUN", "S3CRETuser", "GET", KEY],
        &["ACL", "DRYRUN", "app", "S3CRETcommand", KEY],
        &["ACL", "GENPASS", VALUE],
        &["COMMAND", "GETKEYS", VALUE, VALUE],
        &["SCRIPT", "LOAD", "return S3CRET S3CRET"],
        &["SCRIPT", "FLUSH", VALUE],
        &["FUNCTION", "LOAD", VALUE],
        &["FUNCTION", "LOAD", "#!S3CRETengine name=lib\n return 1"],
        &["FUNCTION", "LOAD", "#!lua name=lib S3CRET=x\n return 1"],
        &["FUNCTION", "LOAD", "#!lua name=lib\n S3CRET S3CRET"],
        &["FUNCTION", "LOAD", "#!lua name=lib\n error('S3CRET')"],
        &["FUNCTION", "LOAD", "#!lua name=lib\n error({err='MINE S3CRET'})"],
        &["FUNCTION", "DELETE", QUOTES],
        &["FUNCTION", "RESTORE", VALUE],
        &["FCALL", VALUE, "0"],
        &["EVALSHA", VALUE, "0"],
        &["EVAL", "return S3CRET S3CRET", "0"],
        &["EVAL", "error(ARGV[1])", "0", VALUE],
        &["EVAL", "error('S3CRET')", "0"],
        &["EVAL", "error({err='MINE S3CRET'})", "0"],
        &["EVAL", "return redis.error_reply(ARGV[1])", "0", VALUE],
        &["eval", "return redis.error_reply('MINE ' .. ARGV[1])", "0", VALUE],
        &["EVAL", "return redis.error_reply('ERR ' .. ARGV[1])", "0", VALUE],
        &["EVAL_RO", "return {err = ARGV[1]}", "0", VALUE],
        &["EVAL", "return redis.call('INCR', KEYS[1])", "1", KEY],
        &["EVAL", "return redis.call(ARGV[1], KEYS[1])", "1", KEY, VALUE],
    ];
    for words in failing {
        match fixture.commit(words) {
            Err(
                error @ (Error::Commit(CommitError::PartlyApplied { .. })
                | Error::Commit(CommitError::Rejected { .. })),
            ) => {
                shown_commit(error);
            }
            other => panic!("{words:?}: {other:?}"),
        }
    }
}

#[test]
fn failed_commands_of_the_pooled_handle_show_none_once_they_are_ours() {
    let fixture = start();
    fixture.server.ask::<()>(&["SET", KEY, VALUE]);
    let mut db = fixture.sessions.pooled();
    for words in [
        &["NOSUCH", KEY, VALUE][..],
        &["INCR", KEY],
        &["LPUSH", KEY, VALUE],
        &["XREADGROUP", "GROUP", QUOTES, "c", "STREAMS", QUOTES, ">"],
        &["CONFIG", "SET", VALUE, VALUE],
        &["FUNCTION", "LOAD", "#!lua name=lib\n error('S3CRET')"],
        &["EVAL", "return S3CRET S3CRET", "0"],
        &["EVAL", "error(ARGV[1])", "0", VALUE],
        &["EVAL", "return redis.error_reply('MINE ' .. ARGV[1])", "0", VALUE],
        &["EVAL", "return redis.error_reply(ARGV[1])", "0", VALUE],
        &["EVAL", "return redis.call(ARGV[1], KEYS[1])", "1", KEY, VALUE],
        &["SELECT", VALUE],
        &["BLPOP", KEY, VALUE],
    ] {
        let cmd = redis::cmd(words[0]).arg(&words[1..]).take();
        let error = cmd.exec(&mut db).unwrap_err();
        shown(Error::from(error));
        let mut pipe = redis::pipe();
        pipe.ping().add_command(cmd.clone()).add_command(cmd);
        shown(Error::from(pipe.exec(&mut db).unwrap_err()));
    }
}

#[test]
fn handles_of_locks_and_conditions_show_none() {
    let fixture = start();
    let (sessions, accounts) = (&fixture.sessions, fixture.accounts());
    debug((Condition::equals(KEY, VALUE), Condition::set_contains(KEY, VALUE)));
    let conditional = accounts.require(Condition::not_equals(KEY, VALUE).named("free"));
    debug(&conditional);
    conditional.run(|tx| Ok(tx.set(KEY, VALUE))).unwrap();
    debug(conditional.begin().unwrap_err());
    let mut declaring = accounts.reading();
    debug(declaring.declare::<String>(redis::cmd("GET").arg(KEY).take()).unwrap());
    let reads = declaring.begin().unwrap();
    debug(&reads);
    drop(reads);
    let keyed = TransactionOptions::new().exactly_once_as(KEY, Duration::from_secs(5));
    debug((&keyed, accounts.with(keyed.clone())));
    let (lock, semaphore, rw_lock) =
        (sessions.lock(KEY), sessions.semaphore(KEY, 2), sessions.rw_lock(KEY));
    debug((&lock, &semaphore, &rw_lock));
    let all = sessions.lock_all([KEY, VALUE]);
    debug((&all, all.acquire(SOON).unwrap()));
    let token = lock.acquire(SOON).unwrap().into_token().unwrap();
    assert!(!token.to_string().contains("S3CRET"));
    shown(sessions.lock(VALUE).adopt(&token).map(drop).unwrap_err());
    let guard = lock.adopt(&token).unwrap();
    shown(lock.adopt(&token).map(drop).unwrap_err());
    shown(semaphore.clone().permits(3).acquire(SOON).map(drop).unwrap_err());
    shown(lock.available().unwrap_err());
    debug((&guard, lock.holder().unwrap()));
    debug(lock.try_acquire().map(drop));
    debug(accounts.fenced_by(&guard));
    shown(lock.acquire(Duration::from_millis(1)).map(drop).unwrap_err());
    assert!(lock.force_release().unwrap());
    shown(guard.release().unwrap_err());
    debug(sessions.status());
}

#[test]
fn lost_connections_show_none() {
    let fixture = start();
    let accounts = fixture.accounts();
    let fail = |trigger, fault| {
        fixture.proxy.arm(Script::from((trigger, fault)).once());
        let mut tx = accounts.begin().unwrap();
        tx.set(KEY, VALUE);
        let error = tx.commit().unwrap_err();
        fixture.proxy.disarm();
        fixture.proxy.cut_all();
        eventually(SOON, "it connects again", || accounts.run(|tx| Ok(tx.ping())).is_ok());
        error
    };
    let in_doubt = fail(Trigger::BeforeReplyTo("EXEC"), Fault::Cut);
    let Error::Commit(CommitError::InDoubt(doubt)) = &in_doubt else { panic!("{in_doubt:?}") };
    shown(doubt.clone());
    shown(doubt.cause().clone());
    shown_commit(in_doubt);
    shown_commit(fail(Trigger::BeforeReplyTo("EXEC"), Fault::SwallowReply));
    // A connection that watches nothing would be replaced.
    let watching = accounts.watch([KEY]).begin().unwrap();
    fixture.proxy.reset_all();
    let mut tx = watching.multi();
    tx.set(KEY, VALUE);
    let not_sent = tx.commit().unwrap_err();
    assert!(matches!(not_sent, Error::Commit(CommitError::NotSent { .. })), "{not_sent:?}");
    shown_commit(not_sent);

    let mut db = fixture.sessions.pooled();
    let incr = |db: &mut crate::side::Pooled| db.append::<_, _, i64>(KEY, VALUE);
    incr(&mut db).unwrap();
    fixture.proxy.arm((Trigger::BeforeReplyTo("APPEND"), Fault::Cut));
    let lost = Error::from(incr(&mut db).unwrap_err());
    assert!(matches!(lost, Error::Lost { .. }), "{lost:?}");
    shown(lost);
}

#[test]
fn commands_that_ran_bare_show_none() {
    let fixture = start();
    fixture.server.acl(&["SETUSER", "app", "-multi", "-incrby"]);
    let mut tx = fixture.accounts().begin().unwrap();
    tx.set(KEY, VALUE);
    tx.incr(KEY, VALUE);
    let error = tx.commit().unwrap_err();
    assert!(matches!(error, Error::Commit(CommitError::NotIsolated { .. })), "{error:?}");
    shown_commit(error);
}

#[test]
fn checkouts_that_fail_show_none() {
    let fixture = start();
    let accounts = fixture.accounts();
    let named = accounts.with(TransactionOptions::new().name("a name"));
    let mut held = named.begin().unwrap();
    held.set(KEY, VALUE);
    let timeout = accounts.begin().map(drop).unwrap_err();
    let Error::Checkout(CheckoutError::Timeout(reported)) = &timeout else { panic!("{timeout:?}") };
    clean(&reported.to_string());
    debug(reported);
    shown(timeout);
    drop(held);
    let deadlock = accounts.watch([KEY]).run(|_, tx| {
        tx.set(KEY, VALUE);
        accounts.begin().map(drop)
    });
    shown(deadlock.unwrap_err());
    fixture.server.sigkill();
    shown(accounts.run(|tx| Ok(tx.set(KEY, VALUE))).unwrap_err());
    clean(&fixture.sessions.status().to_string());
    fixture.server.restart_on_same_port();
    // The restarted server has no such user.
    let refused = accounts.run(|tx| Ok(tx.set(KEY, VALUE))).unwrap_err();
    assert!(format!("{refused:#}").contains("WRONGPASS"), "{refused}");
    shown(refused);
    let status = fixture.sessions.status();
    clean(&status.to_string());
    debug(&status);
    fixture.sessions.close(Duration::ZERO);
    shown(accounts.begin().map(drop).unwrap_err());
}

#[test]
fn scopes_reclaimed_limits_and_conflicts_show_none() {
    let server = Server::start();
    let sessions = SessionManager::builder(server.url())
        .max_pin_time(Duration::from_millis(700))
        .max_commands(2)
        .build_side()
        .unwrap();
    let accounts = sessions.transactional();
    let mut tx = accounts.begin().unwrap();
    tx.set(KEY, VALUE);
    eventually(SOON, "it is taken back", || sessions.status().transactional.in_use == 0);
    shown_commit(tx.commit().unwrap_err());
    let large = accounts.run(|tx| Ok([KEY; 3].map(|key| tx.set(key, VALUE))));
    shown(large.unwrap_err());
    let conflicts = accounts.watch([KEY]).retry(rediscope::RetryPolicy::never()).run(|_, tx| {
        server.ask::<()>(&["SET", KEY, VALUE]);
        Ok(tx.set(KEY, VALUE))
    });
    shown(conflicts.unwrap_err());
}
