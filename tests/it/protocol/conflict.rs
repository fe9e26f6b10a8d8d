//! `Conflict`: nothing was applied, because a watched key changed.
//!
//! Guarantee: conflict

use crate::fixture::SOON;
use crate::side::{SessionManager, Watching};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rediscope::error::{Applied, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, Outcome, RetryPolicy};

use crate::fixture::proxied::{Proxied, client_ids, exists, get, one_is_gone, pool_is_whole};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

/// Watches `key`, lets `meanwhile` happen, and returns whether a commit of `SET done` conflicted.
#[track_caller]
fn conflicts(sessions: &SessionManager, server: &Server, meanwhile: impl FnOnce()) -> bool {
    let before = client_ids(server);
    let watching = sessions.transactional().watch(["key", "none"]).begin().unwrap();
    meanwhile();
    let mut tx = watching.multi();
    tx.set("done", "yes");
    let conflicted = tx.commit().unwrap().is_conflict();
    assert_eq!(exists(server, "done"), !conflicted, "returned {conflicted}");
    server.ask::<()>(&["DEL", "done"]);
    assert_eq!(client_ids(server), before, "a conflict is no reason to replace a connection");
    pool_is_whole(sessions, server);
    conflicted
}

#[test]
fn any_change_of_a_watched_key_is_a_conflict_and_nothing_else_is() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let outside = |command: &[&str]| {
        server.ask::<()>(&["SET", "key", "value"]);
        conflicts(&sessions, server, || server.ask(command))
    };
    assert!(outside(&["SET", "key", "other"]));
    assert!(outside(&["SET", "key", "value"]), "rewritten with the value it had");
    assert!(outside(&["DEL", "key"]));
    assert!(outside(&["SET", "none", "created"]));
    assert!(outside(&["EXPIRE", "key", "1000"]), "its time to live belongs to it");
    assert!(outside(&["FLUSHALL"]));
    assert!(!outside(&["GET", "key"]));
    assert!(!outside(&["SET", "unwatched", "value"]));
    assert!(!outside(&["DEL", "none"]), "it was missing and is missing");
    let counts = sessions.status().transactional.counts;
    assert_eq!(counts.conflicts, 6);
}

#[test]
fn a_watched_key_that_expires_is_a_conflict() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let mut ttl = 100;
    // On a slow machine the key may be gone before it is watched.
    let watching = loop {
        server.ask::<()>(&["SET", "key", "value", "PX", &ttl.to_string()]);
        let mut watching = sessions.transactional().watch(["key"]).begin().unwrap();
        if watching.exists::<_>("key").unwrap() > 0 {
            break watching;
        }
        ttl *= 4;
    };
    eventually(SOON, "the key expires", || !exists(server, "key"));
    let mut tx = watching.multi();
    tx.set("done", "yes");
    assert!(matches!(tx.commit(), Ok(Outcome::Conflict)));
    assert!(!exists(server, "done"));
    pool_is_whole(&sessions, server);
}

#[test]
fn a_block_without_commands_still_returns_a_conflict() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let accounts = sessions.transactional();
    let watching = accounts.watch(["key"]).begin().unwrap();
    assert!(!watching.multi().commit().unwrap().is_conflict());
    let watching = accounts.watch(["key"]).begin().unwrap();
    server.ask::<()>(&["SET", "key", "changed"]);
    assert!(watching.multi().commit().unwrap().is_conflict());
    pool_is_whole(&sessions, server);
}

#[test]
fn a_block_without_commands_is_not_committed_when_its_watch_was_lost() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let mut watching = sessions.transactional().watch(["key"]).begin().unwrap();
    fixture.proxy.cut_all();
    let lost = watching.get::<_, Option<String>>("key").unwrap_err();
    assert!(matches!(lost, Error::Lost { applied: Applied::No, .. }), "{lost:?}");
    server.ask::<()>(&["SET", "key", "changed"]);
    let error = watching.multi().commit().expect_err("the key was not watched any more");
    assert!(matches!(error, Error::Commit(CommitError::NotSent { .. })), "{error:?}");
    pool_is_whole(&sessions, server);
}

#[test]
fn a_block_is_run_again_with_new_reads_until_it_commits() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    server.ask::<()>(&["SET", "stock", "100"]);
    let mut seen = Vec::new();
    let commits = sessions.status().transactional.counts.commits;
    let left = sessions.transactional().watch(["stock"]).run(|read, tx| {
        let stock: i64 = read.get("stock")?;
        seen.push((read.attempt(), stock));
        if read.attempt() < 3 {
            server.ask::<()>(&["DECR", "stock"]);
        }
        Ok(tx.decr("stock", 10))
    });
    assert_eq!(left.unwrap(), 88);
    assert_eq!(seen, [(1, 100), (2, 99), (3, 98)]);
    assert_eq!(get(server, "stock").unwrap(), "88");
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.conflicts, counts.retries, counts.commits), (2, 2, commits + 1));
    pool_is_whole(&sessions, server);
}

#[test]
fn a_closure_that_asks_for_another_attempt_is_counted_like_a_conflict_and_never_commits() {
    #[derive(Debug)]
    struct Own(Error);
    impl From<Error> for Own {
        fn from(error: Error) -> Self {
            Self(error)
        }
    }
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let accounts = sessions.transactional();
    let commits = sessions.status().transactional.counts.commits;
    let mut attempts = 0;
    let done = accounts.watch(["key"]).run(|read, tx| {
        attempts += 1;
        assert_eq!(read.attempt(), attempts);
        let done = tx.incr("done", 1);
        match attempts {
            1 => Err(read.run_again()),
            2 => {
                drop(read.run_again());
                Ok(done)
            }
            _ => Ok(done),
        }
    });
    assert_eq!((done.unwrap(), attempts), (1, 3));
    assert_eq!(get(server, "done").unwrap(), "1");
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.conflicts, counts.retries, counts.commits), (0, 2, commits + 1));
    let policy = RetryPolicy::default().attempts(4);
    let mut asked = 0;
    let never = accounts.watch(["key"]).retry(policy).run_with(|read, tx| -> Result<_, Own> {
        asked += 1;
        tx.set("never", 1);
        match asked % 2 {
            0 => Err(read.run_again().into()),
            _ => {
                drop(read.run_again());
                Ok(tx.set("never", 2))
            }
        }
    });
    let Own(error) = never.unwrap_err();
    assert!(matches!(error, Error::RetriesExhausted { attempts: 4, .. }), "{error:?}");
    assert_eq!((asked, error.applied(), error.is_retryable()), (4, Applied::No, true));
    assert!(!exists(server, "never"));
    pool_is_whole(&sessions, server);
}

#[test]
fn attempts_and_deadline_bound_the_retries_and_the_error_reports_how_many_there_were() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let always = |policy: RetryPolicy| {
        let mut attempts = 0;
        let result = sessions.transactional().watch(["key"]).retry(policy).run(|_, tx| {
            attempts += 1;
            server.ask::<()>(&["INCR", "key"]);
            Ok(tx.set("done", "yes"))
        });
        let error = result.expect_err("the key changed each time");
        assert_eq!((error.applied(), error.is_retryable()), (Applied::No, true));
        assert!(!exists(server, "done"));
        match error {
            Error::RetriesExhausted { attempts: reported, .. } => assert_eq!(reported, attempts),
            error => panic!("{error:?}"),
        }
        pool_is_whole(&sessions, server);
        attempts
    };
    assert_eq!(always(RetryPolicy::default().attempts(4)), 4);
    assert_eq!(always(RetryPolicy::never()), 1);
    assert_eq!(always(RetryPolicy::default().deadline(Duration::ZERO)), 1);
}

#[derive(Debug)]
enum Shop {
    SoldOut,
    Redis(Error),
}

impl From<Error> for Shop {
    fn from(error: Error) -> Self {
        Self::Redis(error)
    }
}

#[test]
fn a_closure_that_errs_is_not_run_again_and_leaves_nothing_watched() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    server.ask::<()>(&["SET", "stock", "0"]);
    let (before, multis) = (client_ids(server), server.calls("multi"));
    let mut runs = 0;
    let result = sessions.transactional().watch(["stock"]).run_with(|read, tx| {
        runs += 1;
        let sold = tx.decr("stock", 1);
        if read.get::<_, i64>("stock")? == 0 { Err(Shop::SoldOut) } else { Ok(sold) }
    });
    match result {
        Err(Shop::SoldOut) => {}
        Err(Shop::Redis(error)) => panic!("{error}"),
        Ok(_) => panic!("sold what was not there"),
    }
    assert_eq!((runs, get(server, "stock").as_deref()), (1, Some("0")));
    assert_eq!((server.calls("unwatch"), server.calls("multi")), (1, multis));
    // Were the key still watched, the next caller would conflict.
    server.ask::<()>(&["SET", "stock", "5"]);
    assert_eq!(client_ids(server), before);
    pool_is_whole(&sessions, server);
}

#[test]
fn a_closure_that_panics_applies_nothing_and_its_connection_is_replaced() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let before = client_ids(server);
    let accounts = sessions.transactional();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        accounts.watch(["key"]).run(|_, tx| -> Result<(), Error> {
            tx.set("done", "yes");
            panic!("a mistake in the closure")
        })
    }));
    assert!(panicked.is_err());
    assert!(!exists(server, "done"));
    assert_eq!(server.calls("unwatch"), 0, "no cleaning while a panic unwinds");
    pool_is_whole(&sessions, server);
    one_is_gone(server, &before);
}

#[test]
fn a_scope_that_is_abandoned_or_dropped_watches_no_longer() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let before = client_ids(server);
    let ends: [fn(Watching); 4] = [
        |watching| watching.abandon().unwrap(),
        drop,
        |watching| watching.multi().discard().unwrap(),
        |watching| drop(watching.multi()),
    ];
    for end in ends {
        end(sessions.transactional().watch(["key"]).begin().unwrap());
        server.ask::<()>(&["INCR", "key"]);
        pool_is_whole(&sessions, server);
    }
    assert_eq!((server.calls("unwatch"), client_ids(server)), (4, before));
}

#[test]
fn a_connection_lost_while_watching_is_an_attempt_like_any_other() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let mut attempts = Vec::new();
    let watch = sessions.transactional().watch(["key"]);
    let result = watch.run(|read, tx| {
        attempts.push(read.attempt());
        if attempts.len() == 1 {
            fixture.proxy.cut_all();
        }
        let value: Option<i64> = read.get("key")?;
        Ok(tx.set("key", value.unwrap_or(0) + 1))
    });
    result.unwrap();
    assert_eq!((attempts, get(server, "key").unwrap()), (vec![1, 2], "1".to_owned()));

    let once = watch.clone().retry(RetryPolicy::never());
    let result: Result<(), Error> = once.run(|read, tx| {
        fixture.proxy.cut_all();
        // Whatever the closure makes of the loss, nothing can be committed.
        let _ = read.get::<_, Option<i64>>("key");
        tx.set("key", "not watched");
        Ok(())
    });
    match crate::fixture::proxied::commit_error(result) {
        Error::Commit(CommitError::NotSent { source, .. }) => match *source {
            Error::Lost { source, .. } => assert_eq!(source.kind(), ConnectionErrorKind::Closed),
            error => panic!("{error:?}"),
        },
        error => panic!("{error:?}"),
    }
    assert_eq!(get(server, "key").unwrap(), "1");
    pool_is_whole(&sessions, server);
}
