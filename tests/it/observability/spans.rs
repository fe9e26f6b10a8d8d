//! Spans and events: one span a transaction, one event a step.
//!
//! Guarantee: reports

use crate::fixture::SOON;
use std::collections::BTreeMap;
use std::time::Duration;

use rediscope::error::CheckoutError;
use rediscope::{
    Begin, CommitError, Condition, Error, RetryPolicy, SessionManager, TransactionOptions,
    prelude::*, redis,
};
use tracing::Level;

use super::listen::Seen;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;

#[test]
fn a_transaction_is_one_span_however_many_commands_it_has() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::connect(server.url_db(3)).unwrap();
    let accounts = sessions.transactional().with(TransactionOptions::new().name("transfer"));
    let seen = Seen::from_here();

    let mut tx = accounts.begin().unwrap();
    for nth in 0..10 {
        tx.incr(format!("key:{nth}"), 1);
    }
    tx.commit().unwrap();

    let span = seen.only_span();
    assert_eq!(span.name, "redis.transaction");
    let expected = [
        ("db.namespace", "3"),
        ("db.operation.batch.size", "10"),
        ("db.operation.name", "MULTI"),
        ("db.system.name", "redis"),
        ("otel.kind", "client"),
        ("rediscope.outcome", "committed"),
        ("rediscope.scope", "transfer"),
        ("server.address", "127.0.0.1"),
    ];
    let port = server.port().to_string();
    let mut expected: BTreeMap<_, _> = expected.into_iter().collect();
    expected.insert("server.port", &port);
    assert_eq!(span.fields(), expected);
}

#[test]
fn a_block_and_all_attempts_of_a_watching_block_are_one_span_each() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let accounts = sessions.transactional();
    let mut other = server.connection();

    let seen = Seen::from_here();
    accounts.run(|tx| Ok((tx.incr("a", 1), tx.incr("a", 1), tx.incr("a", 1)))).unwrap();
    assert_eq!(seen.only_span().field("db.operation.batch.size"), Some("3"));

    let seen = Seen::from_here();
    let mut disturb = 2;
    accounts
        .watch(["a"])
        .run(|read, tx| {
            for _ in 0..5 {
                read.get::<_, i64>("a")?;
            }
            if disturb > 0 {
                disturb -= 1;
                redis::cmd("INCR").arg("a").exec(&mut other).unwrap();
            }
            Ok(tx.incr("a", 1))
        })
        .unwrap();
    let span = seen.only_span();
    assert_eq!(span.field("rediscope.outcome"), Some("committed"));
    assert_eq!(span.field("db.operation.batch.size"), Some("1"));
    assert_eq!(span.field("error.type"), None, "an attempt that was repeated is no failure");
}

#[test]
fn single_commands_open_no_span() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let mut db = SessionManager::connect(server.url()).unwrap().pooled();
    let seen = Seen::from_here();
    let _: () = db.set("a", 1).unwrap();
    let _: i64 = db.get("a").unwrap();
    assert_eq!(seen.spans().len(), 0);
    assert_eq!(seen.events(), ["checkout", "check in", "checkout", "check in"]);
}

#[test]
fn a_failure_has_its_kind_and_the_servers_code() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = SessionManager::builder(proxy.url()).max_size(1).build().unwrap();
    let accounts = sessions.transactional();
    let recorded = |seen: &Seen| {
        let span = seen.only_span();
        let own = |name| span.field(name).map(str::to_owned);
        (own("rediscope.outcome"), own("error.type"), own("db.response.status_code"))
    };
    let all = |outcome: &str, error: &str, code: Option<&str>| {
        (Some(outcome.to_owned()), Some(error.to_owned()), code.map(str::to_owned))
    };

    let seen = Seen::from_here();
    let failed = accounts.run(|tx| {
        tx.set("text", "t");
        tx.incr("text", 1);
        Ok(tx.lpush("text", 1))
    });
    assert!(matches!(failed.unwrap_err().as_commit(), Some(CommitError::PartlyApplied { .. })));
    let (outcome, error, code) = recorded(&seen);
    assert_eq!(outcome.as_deref(), Some("partly applied"));
    assert_eq!(error.as_deref(), Some("partly applied"));
    assert_eq!(code.as_deref(), Some("ERR"), "the first failure's");

    let seen = Seen::from_here();
    let failed = accounts.run(|tx| Ok(tx.queue::<()>(redis::cmd("NOSUCHCOMMAND"))));
    assert!(matches!(failed.unwrap_err().as_commit(), Some(CommitError::Rejected { .. })));
    assert_eq!(recorded(&seen), all("rejected", "rejected", Some("ERR")));

    let seen = Seen::from_here();
    proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::Cut));
    let failed = accounts.run(|tx| Ok(tx.incr("a", 1)));
    proxy.disarm();
    assert!(matches!(failed.unwrap_err().as_commit(), Some(CommitError::InDoubt(_))));
    assert_eq!(recorded(&seen), all("in doubt", "in doubt", None));

    let seen = Seen::from_here();
    let failed = accounts.run(|tx| Ok(tx.queue::<()>(redis::cmd("SELECT").arg(1).take())));
    assert!(matches!(failed.unwrap_err().as_commit(), Some(CommitError::NotSent { .. })));
    assert_eq!(recorded(&seen), all("not sent", "not sent", None));

    let seen = Seen::from_here();
    let mut other = server.connection();
    let exhausted = accounts.watch(["a"]).retry(RetryPolicy::never()).run(|_, tx| {
        redis::cmd("INCR").arg("a").exec(&mut other).unwrap();
        Ok(tx.incr("a", 1))
    });
    assert!(matches!(exhausted, Err(Error::RetriesExhausted { attempts: 1, .. })));
    assert_eq!(recorded(&seen), (Some("conflict".to_owned()), None, None));

    let seen = Seen::from_here();
    drop(accounts.begin().unwrap());
    assert_eq!(recorded(&seen), (Some("discarded".to_owned()), None, None));

    let seen = Seen::from_here();
    let required = accounts.require(Condition::exists("a")).require(Condition::equals("a", "x"));
    let failed = required.run(|tx| Ok(tx.incr("a", 1)));
    assert!(matches!(failed, Err(Error::ConditionFailed { .. })));
    assert_eq!(recorded(&seen), all("condition failed", "condition failed", None));
    let event = seen.event("condition failed");
    assert_eq!((event.level, event.within), (Level::DEBUG, Some("redis.transaction")));
    assert_eq!((event.field("which"), event.field("attempt")), (Some("#1 equals"), Some("1")));

    server.acl(&["SETUSER", "default", "-watch"]);
    let seen = Seen::from_here();
    assert!(matches!(accounts.watch(["a"]).begin(), Err(Error::Command { .. })));
    let span = seen.only_span();
    assert_eq!(span.field("error.type"), Some("rejected"));
    assert_eq!(span.field("db.response.status_code"), Some("NOPERM"));

    sessions.close(SOON);
    let seen = Seen::from_here();
    assert!(matches!(accounts.begin(), Err(Error::Checkout(CheckoutError::Closed))));
    assert_eq!(seen.only_span().field("error.type"), Some("checkout"));
}

#[test]
fn every_step_of_a_transaction_is_an_event_inside_its_span() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let accounts = sessions.transactional();
    accounts.run(|tx| Ok(tx.set("a", 1))).unwrap();
    let mut other = server.connection();

    let seen = Seen::from_here();
    let mut tx = accounts.begin().unwrap();
    tx.incr("a", 1);
    tx.commit().unwrap();
    assert_eq!(seen.events(), ["checkout", "begin", "check in", "commit"]);
    assert!(seen.all_in("redis.transaction"), "{seen:?}");
    assert_eq!(seen.event("commit").field("outcome"), Some("committed"));
    assert_eq!(seen.event("checkout").level, Level::TRACE);
    assert_eq!(seen.event("check in").level, Level::TRACE);
    assert_eq!(seen.event("commit").level, Level::DEBUG);

    for end in ["drop", "discard"] {
        let seen = Seen::from_here();
        let immediate = TransactionOptions::new().begin(Begin::Immediate);
        let tx = accounts.begin_with(immediate).unwrap();
        if end == "drop" {
            drop(tx);
        } else {
            tx.discard().unwrap();
        }
        assert_eq!(seen.events(), ["checkout", "begin", "discard", "check in"], "{end}");
        assert!(seen.all_in("redis.transaction"), "{end}: {seen:?}");
    }

    let seen = Seen::from_here();
    drop(accounts.watch(["a"]).begin().unwrap());
    assert_eq!(seen.events(), ["checkout", "begin", "discard", "check in"]);
    assert!(seen.all_in("redis.transaction"), "{seen:?}");

    let seen = Seen::from_here();
    let mut disturb = true;
    accounts
        .watch(["a"])
        .run(|_, tx| {
            if std::mem::take(&mut disturb) {
                redis::cmd("INCR").arg("a").exec(&mut other).unwrap();
            }
            Ok(tx.incr("a", 1))
        })
        .unwrap();
    let attempt = ["checkout", "begin", "check in", "commit"];
    assert_eq!(seen.events(), [&attempt[..], &["retry"], &attempt].concat());
    assert!(seen.all_in("redis.transaction"), "{seen:?}");
    assert_eq!(seen.event("commit").field("outcome"), Some("conflict"));
    assert_eq!(seen.event("retry").field("why"), Some("conflict"));
    assert_eq!(seen.event("retry").field("attempt"), Some("2"));
}

#[test]
fn a_connection_that_is_opened_refused_or_replaced_is_an_event_with_the_reason() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let address = server.address().to_string();
    let everywhere = Seen::everywhere();
    let sessions = SessionManager::builder(server.url()).max_size(1).build().unwrap();
    let accounts = sessions.transactional();
    accounts.run(|tx| Ok(tx.set("a", 1))).unwrap();
    let about_us = |name: &str| {
        let events = everywhere.named(name);
        events.into_iter().filter(|e| e.field("server.address") == Some(&address)).count()
    };
    eventually(SOON, "it is logged", || about_us("connected") == 1);

    server.kill_all_clients_except_me();
    let seen = Seen::from_here();
    let immediate = TransactionOptions::new().begin(Begin::Immediate);
    accounts.begin_with(immediate).unwrap().discard().unwrap();
    assert_eq!(seen.event("connection replaced").field("reason"), Some("closed"));
    assert!(seen.events().contains(&"dead connection replaced before use".to_owned()), "{seen:?}");
    eventually(SOON, "it is logged", || about_us("connected") == 2);

    let seen = Seen::from_here();
    server.sigterm_and_wait();
    let quick = SessionManager::builder(server.url())
        .connect_timeout(Duration::from_millis(100))
        .response_timeout(Duration::from_millis(100))
        .checkout_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    assert!(quick.transactional().begin().is_err());
    let refused = seen.event("checkout refused");
    assert!(refused.field("error").unwrap().starts_with("no connection to 127.0.0.1:"));
    assert_eq!(refused.level, Level::WARN);
    eventually(SOON, "it is logged", || about_us("connect failed") >= 1);
}
