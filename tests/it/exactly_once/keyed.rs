//! An idempotency key: the first caller commits, and all others return `AlreadyCommitted`.
//!
//! Guarantee: exactly-once

use crate::fixture::{Fixture, SOON, unhurried};
use crate::side::{BuildSide as _, ResolveDoubt as _};
use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use crate::side::{SessionManager, Transactional};
use rediscope::error::{Applied, Resolution};
use rediscope::prelude::*;
use rediscope::{Begin, CommitError, Error, Outcome, TransactionOptions};

use super::fixture::{Fate, start, start_with};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};

const HOUR: Duration = Duration::from_secs(3600);
const SECRET: &str = "iban-DE4711-secret";

fn once(key: &str, ttl: Duration) -> TransactionOptions {
    TransactionOptions::new().exactly_once_as(key, ttl)
}

fn keyed(fixture: &Fixture, key: &str) -> Transactional {
    fixture.sessions.transactional().with(once(key, HOUR))
}

#[track_caller]
fn already<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.unwrap_err();
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false), "{error:?}");
    assert!(matches!(error.as_commit(), Some(CommitError::AlreadyCommitted)), "{error:?}");
}

#[test]
fn an_empty_key_and_a_time_to_live_under_a_millisecond_are_refused_before_anything_is_sent() {
    let fixture = start();
    let all = fixture.sessions.transactional();
    let sent = fixture.proxy.commands();
    let calls = fixture.server.calls("multi");
    for options in
        [once("", HOUR), once("k", Duration::ZERO), once("k", Duration::from_micros(999))]
    {
        let handle = all.with(options.clone());
        let refused = [
            handle.begin().map(drop).unwrap_err(),
            all.begin_with(options).map(drop).unwrap_err(),
            handle.watch(["w"]).begin().map(drop).unwrap_err(),
            handle
                .watch(["w"])
                .run(|_, _| -> Result<(), Error> { panic!("it ran") })
                .map(drop)
                .unwrap_err(),
            handle.run(|tx| Ok(tx.incr("n", 1))).unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error, Error::Config(_)), "{error:?}");
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
        }
    }
    assert_eq!((fixture.proxy.commands(), fixture.server.calls("multi")), (sent, calls));
    assert_eq!(fixture.number("n"), 0);
}

#[test]
fn a_key_that_expired_may_be_committed_once_more() {
    let fixture = start();
    let handle = fixture.sessions.transactional().with(once("k", Duration::from_millis(300)));
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    already(handle.run(|tx| Ok(tx.incr("n", 1))));
    let keys = || fixture.server.ask::<Vec<String>>(&["KEYS", "rediscope:once:*"]);
    eventually(SOON, "the key has expired", || keys().is_empty());
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 2);
    assert_eq!(fixture.number("n"), 2);
}

#[test]
fn the_longest_time_to_live_is_a_hundred_years_and_the_key_is_kept() {
    let fixture = start();
    let years = |years: u64| Duration::from_secs(years * 365 * 24 * 60 * 60);
    for (nth, ttl) in
        [Duration::MAX, years(1_000_000_000), years(101), years(100), HOUR].into_iter().enumerate()
    {
        let key = format!("order:{nth}");
        let handle = fixture.sessions.transactional().with(once(&key, ttl));
        assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), nth as i64 + 1);
        already(handle.run(|tx| Ok(tx.incr("n", 1))));
        let mut tx = match handle.begin() {
            Ok(tx) => tx,
            Err(error) => panic!("{error}"),
        };
        tx.incr("n", 1);
        already(tx.commit());
        already(handle.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 1))));
        let left: u64 = fixture.server.ask(&["PTTL", &format!("rediscope:once:{key}")]);
        assert!(Duration::from_millis(left) <= ttl.min(years(100)));
        assert!(Duration::from_millis(left) > ttl.min(years(99)) / 2);
    }
    assert_eq!(fixture.number("n"), 5);
}

/// The block itself takes away the right to the key, or to the register: EXEC judges each command
/// by the rights of that moment.
#[test]
fn a_key_that_could_not_be_kept_is_reported_and_the_transaction_was_applied() {
    let fixture = start();
    let rules = ["on", ">secret", "+@all", "~*"];
    fixture.server.acl(&[&["SETUSER", "app"], &rules[..]].concat());
    let url = format!("redis://app:secret@{}/", fixture.proxy.address());
    let sessions =
        SessionManager::builder(url).max_size(1).trust_window(SOON).build_side().unwrap();
    // What may be written at the end: neither, the register alone, the key alone.
    for (left, keyed) in
        [("~n", true), ("~rediscope:reg:*", true), ("~rediscope:once:*", true), ("~n", false)]
    {
        for form in ["run", "guard", "watch run", "watch guard"] {
            fixture.server.acl(&["SETUSER", "app", "resetkeys", "~*"]);
            let key = rediscope_testing::unique("order");
            let handle = match keyed {
                true => sessions.transactional().with(once(&key, HOUR)),
                false => sessions.transactional().with(TransactionOptions::new().exactly_once()),
            };
            let before = fixture.number("n");
            let lock_out = || {
                let mut cmd = redis::cmd("ACL");
                cmd.arg("SETUSER").arg("app").arg("resetkeys").arg("~n").arg(left);
                cmd
            };
            let reported = match form {
                "run" => handle.run(|tx| {
                    let n = tx.incr("n", 1);
                    tx.queue::<()>(lock_out());
                    Ok(n)
                }),
                "watch run" => handle.watch(["w"]).run(|_, tx| {
                    let n = tx.incr("n", 1);
                    tx.queue::<()>(lock_out());
                    Ok(n)
                }),
                "guard" => handle.begin().and_then(|mut tx| {
                    let n = tx.incr("n", 1);
                    tx.queue::<()>(lock_out());
                    tx.commit()?.get(n)
                }),
                "watch guard" => handle.watch(["w"]).begin().and_then(|watching| {
                    let mut tx = watching.multi();
                    let n = tx.incr("n", 1);
                    tx.queue::<()>(lock_out());
                    tx.commit()?.committed().unwrap().get(n)
                }),
                form => panic!("{form}"),
            };
            let what = format!("{form}, {left}");
            let error = reported.expect_err(&what);
            assert_eq!((error.applied(), error.is_retryable()), (Applied::Yes, false), "{what}");
            match error.as_commit() {
                Some(CommitError::KeyNotKept { error, replies, .. }) => {
                    assert_eq!(error.code(), "NOPERM", "{what}");
                    assert_eq!((replies.len(), replies.failures()), (2, 0), "{what}");
                }
                _ => panic!("{what}: {error:?}"),
            }
            assert_eq!(fixture.number("n"), before + 1, "{what}");
        }
    }
    let counts = sessions.status().transactional.counts;
    assert_eq!(counts.all_replaced(), 16, "each connection is closed: {counts:?}");
}

#[test]
fn the_key_of_a_block_whose_commands_all_failed_is_kept_and_its_error_says_so() {
    let fixture = start();
    fixture.server.ask::<()>(&["SET", "text", "hello"]);
    for form in ["run", "guard", "watch run", "watch guard"] {
        let handle = keyed(&fixture, form);
        let reported = match form {
            "run" => handle.run(|tx| Ok(tx.incr("text", 1))),
            "watch run" => handle.watch(["w"]).run(|_, tx| Ok(tx.incr("text", 1))),
            "guard" => handle.begin().and_then(|mut tx| {
                let n = tx.incr("text", 1);
                tx.commit()?.get(n)
            }),
            _ => handle.watch(["w"]).begin().and_then(|watching| {
                let mut tx = watching.multi();
                let n = tx.incr("text", 1);
                tx.commit()?.committed().unwrap().get(n)
            }),
        };
        let error = reported.expect_err(form);
        let outcome = (error.applied(), error.is_retryable());
        assert_eq!(outcome, (Applied::Partly, false), "{form}: {error:?}");
        let Some(CommitError::PartlyApplied { replies, .. }) = error.as_commit() else {
            panic!("{form}: {error:?}")
        };
        assert_eq!((replies.len(), replies.failures()), (1, 1), "{form}");
        let text = "only the key of exactly_once_as was written: 1 of 1 command failed, INCRBY at index 0 with ERR";
        assert_eq!(error.to_string(), text, "{form}");
        already(handle.run(|tx| Ok(tx.incr("n", 1))));
    }
    assert_eq!(fixture.number("n"), 0);
}

/// The block's command fails, and the rights are taken away before EXEC.
#[test]
fn a_key_that_was_kept_without_the_register_counts_for_the_outcome() {
    let fixture = start();
    fixture.server.ask::<()>(&["SET", "text", "hello"]);
    fixture.server.acl(&["SETUSER", "app", "on", ">secret", "+@all"]);
    let url = format!("redis://app:secret@{}/", fixture.proxy.address());
    let builder = SessionManager::builder(url).max_size(1).trust_window(SOON);
    let sessions = unhurried(builder).build_side().unwrap();
    let mut applied_later = 0;
    for (left, applied) in [
        ("~rediscope:once:*", Applied::Partly),
        ("~rediscope:reg:*", Applied::No),
        ("~text", Applied::No),
    ] {
        fixture.server.acl(&["SETUSER", "app", "resetkeys", "~*"]);
        let handle = sessions.transactional().with(once(left, HOUR));
        let fired = fixture.proxy.fired();
        let before_exec = (Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests);
        fixture.proxy.arm(Script::from(before_exec).once());
        let error = thread::scope(|scope| {
            let run = scope.spawn(|| handle.run(|tx| Ok(tx.incr("text", 1))));
            // With the two writes of the library's own.
            let is_queued = |client: &HashMap<String, String>| client["multi"] == "3";
            eventually(SOON, "all is queued, and EXEC is held", || {
                fixture.proxy.fired() > fired && fixture.server.client_list().iter().any(is_queued)
            });
            fixture.server.acl(&["SETUSER", "app", "resetkeys", "~text", left]);
            fixture.proxy.disarm();
            fixture.proxy.release();
            run.join().unwrap().unwrap_err()
        });
        assert!(matches!(error.as_commit(), Some(CommitError::KeyNotKept { .. })), "{error:?}");
        assert_eq!((error.applied(), error.is_retryable()), (applied, false), "{left}: {error:?}");
        fixture.server.acl(&["SETUSER", "app", "resetkeys", "~*"]);
        let again = handle.run(|tx| Ok(tx.incr("n", 1)));
        if applied == Applied::Partly {
            already(again);
        } else {
            applied_later += 1;
            assert_eq!(again.unwrap(), applied_later, "{left}");
        }
    }
}

#[test]
fn a_block_that_was_not_applied_does_not_use_up_its_key() {
    let fixture = start();
    let handle = keyed(&fixture, "k");
    let mut tx = handle.begin().unwrap();
    tx.incr("n", 100);
    drop(tx);
    let mut tx = handle.begin().unwrap();
    tx.queue::<()>(redis::cmd("GET"));
    assert!(matches!(tx.commit(), Err(Error::Commit(CommitError::Rejected { .. }))));
    let watching = handle.watch(["w"]).begin().unwrap();
    fixture.server.ask::<()>(&["SET", "w", "1"]);
    let mut tx = watching.multi();
    tx.incr("n", 100);
    assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    already(handle.run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(fixture.number("n"), 1);
}

#[test]
fn a_block_in_doubt_is_applied_once_whatever_was_lost() {
    for fate in Fate::BOTH {
        let fixture = start();
        fixture.armed();
        let handle = keyed(&fixture, "k");
        fixture.lose(fate);
        let reported = handle.run(|tx| Ok(tx.incr("n", 1)));
        match fate {
            Fate::Applied => assert_eq!(reported.unwrap_err().applied(), Applied::Yes),
            Fate::NotApplied => assert_eq!(reported.unwrap(), 1),
        }
        assert_eq!(fixture.number("n"), 1);
        already(handle.run(|tx| Ok(tx.incr("n", 1))));
    }
}

#[test]
fn a_guard_in_doubt_resolves_and_its_key_agrees() {
    for fate in Fate::BOTH {
        for begin in [Begin::Deferred, Begin::Immediate] {
            let fixture = start();
            fixture.armed();
            let handle = keyed(&fixture, "k").with(TransactionOptions::new().begin(begin));
            let doubt = fixture.doubted(&handle, fate);
            assert_eq!(doubt.resolved(), fate.truth());
            let again = handle.run(|tx| Ok(tx.incr("n", 1)));
            match fate {
                Fate::Applied => already(again),
                Fate::NotApplied => assert_eq!(again.unwrap(), 1),
            }
            assert_eq!(fixture.number("n"), 1, "{begin:?}");
        }
    }
}

#[test]
fn a_commit_between_the_question_and_exec_is_noticed() {
    let fixture = start();
    let rival = SessionManager::connect(fixture.server.url()).unwrap();
    let rival = rival.transactional().with(once("k", HOUR));
    let begun = keyed(&fixture, "k").with(TransactionOptions::new().begin(Begin::Immediate));
    let mut tx = begun.begin().unwrap();
    tx.incr("n", 100);
    assert_eq!(rival.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    already(tx.commit());
    // In a watching transaction that is a conflict; and then there is nothing left to decide.
    let (handle, rival) = (keyed(&fixture, "l"), rival.with(once("l", HOUR)));
    let mut runs = 0;
    let watched = handle.watch(["w"]).run(|_, tx| {
        runs += 1;
        rival.run(|tx| Ok(tx.incr("n", 1)))?;
        Ok(tx.incr("n", 100))
    });
    already(watched);
    assert_eq!((runs, fixture.number("n")), (1, 2));
}

#[test]
fn every_form_of_a_transaction_honours_the_key() {
    let fixture = start_with(&[], |builder| builder.flush_bytes(64));
    let handle = keyed(&fixture, "k");
    let mut tx = handle.begin().unwrap();
    let mut kept = tx.savepoint();
    let n = kept.incr("n", 1);
    kept.release();
    let mut forgotten = tx.savepoint();
    forgotten.incr("n", 100);
    drop(forgotten);
    assert_eq!(tx.commit().unwrap().get(n).unwrap(), 1);

    let mut parted = handle.begin().unwrap();
    let mut part = parted.savepoint();
    part.incr("n", 100);
    part.release();
    already(parted.commit());
    let mut chunked = handle.begin().unwrap();
    for _ in 0..20 {
        chunked.incr("n", 100);
    }
    crate::side::send_ahead(&mut chunked);
    already(chunked.check());
    already(chunked.commit());
    already(handle.watch(["w"]).begin().map(drop));
    already(handle.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 100))));
    already(handle.reading().run(|_, tx| Ok(tx.incr("n", 100))));
    already(handle.run(|_| Ok(())));
    let immediate = TransactionOptions::new().begin(Begin::Immediate);
    already(handle.with(immediate.clone()).begin().map(drop));
    already(handle.with(immediate).run(|tx| Ok(tx.incr("n", 100))));
    already(fixture.sessions.transactional().begin_with(once("k", HOUR)).and_then(|mut tx| {
        tx.incr("n", 100);
        tx.commit().map(drop)
    }));
    assert_eq!(fixture.number("n"), 1);
    assert_eq!(fixture.proxy.accepted(), 1, "and none of them cost the connection");
    fixture.sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
    assert_eq!(fixture.number("n"), 2);
}

#[test]
fn an_empty_block_with_a_key_is_committed_once_too() {
    let fixture = start();
    let handle = keyed(&fixture, "k");
    handle.run(|_| Ok(())).unwrap();
    already(handle.run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(fixture.number("n"), 0);
}

#[test]
fn a_flush_inside_the_transaction_does_not_forget_its_key_and_a_later_one_does() {
    let fixture = start();
    let handle = keyed(&fixture, "k");
    handle.run(|tx| Ok((tx.queue::<()>(redis::cmd("FLUSHALL")), tx.incr("n", 1)))).unwrap();
    already(handle.run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(fixture.number("n"), 1);
    // It is remembered on the server and nowhere else.
    fixture.server.ask::<()>(&["FLUSHALL"]);
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
}

#[test]
fn keys_are_distinguished_byte_by_byte_and_by_prefix() {
    let fixture = start();
    let all = fixture.sessions.transactional();
    let names: [&[u8]; 5] = [b"k", b"K", b"k ", b"\0\xff", b"\0\xfe"];
    for name in names {
        let options = TransactionOptions::new().exactly_once_as(name, HOUR);
        all.with(options).run(|tx| Ok(tx.incr("n", 1))).unwrap();
    }
    let apart = SessionManager::builder(fixture.server.url()).prefix("apart");
    let apart = apart.build_side().unwrap().transactional();
    apart.with(once("k", HOUR)).run(|tx| Ok(tx.incr("n", 1))).unwrap();
    already(apart.with(once("k", HOUR)).run(|tx| Ok(tx.incr("n", 1))));
    assert_eq!(fixture.number("n"), 6);
}

#[test]
fn the_key_is_in_no_report() {
    let fixture = start();
    let handle = keyed(&fixture, SECRET);
    let mut shown = vec![format!("{:?}{handle:?}", once(SECRET, HOUR))];
    let mut show = |error: &Error| shown.push(format!("{error}{error:?}{error:#?}"));
    fixture.server.acl(&["SETUSER", "app", "on", ">secret", "~rediscope:*", "~w", "+@all"]);
    let app = SessionManager::connect(fixture.server.url_as("app", "secret")).unwrap();
    let refused = app.transactional().with(once(SECRET, HOUR)).run(|tx| Ok(tx.incr("n", 1)));
    show(&refused.unwrap_err());
    fixture.server.acl(&["SETUSER", "app", "resetkeys", "~rediscope:reg:*", "~n"]);
    let refused = app.transactional().with(once(SECRET, HOUR)).run(|tx| Ok(tx.incr("n", 1)));
    let refused = refused.unwrap_err();
    assert_eq!(refused.applied(), Applied::No);
    show(&refused);
    fixture.armed();
    let in_doubt = fixture.doubted(&handle, Fate::Applied);
    assert_eq!(in_doubt.resolved(), Resolution::Committed);
    show(&Error::Commit(CommitError::InDoubt(in_doubt.clone())));
    show(&handle.run(|tx| Ok(tx.incr("n", 1))).unwrap_err());
    let mut tx = handle.begin().unwrap();
    tx.incr("n", 1);
    let more = format!(
        "{tx:?}{:?}{}{:?}",
        in_doubt.token(),
        fixture.sessions.status(),
        handle.watch(["w"])
    );
    drop(tx);
    shown.push(more);
    shown.push(format!("{:?}{:?}", fixture.sessions, fixture.sessions.open_scopes()));
    for text in shown {
        assert!(!text.contains("iban") && !text.contains("4711"), "{text}");
    }
}
