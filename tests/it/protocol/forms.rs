//! The forms of a commit: what is sent, in how many round trips, and what waits for what.
//!
//! Guarantee: dead-connections, large

use crate::fixture::{SOON, immediate};
use crate::side::{BuildSide as _, SessionManager};
use std::thread;
use std::time::Duration;

use rediscope::prelude::*;
use rediscope::{Error, TransactionOptions};

use crate::fixture::proxied::{Proxied, exists, get, pool_is_whole};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

/// The commands that `work` sent, and its round trips.
pub(crate) fn sent<R>(fixture: &Proxied, work: impl FnOnce() -> R) -> (Vec<String>, u64) {
    fixture.journal();
    let before = fixture.proxy.turns();
    work();
    (fixture.journal(), fixture.proxy.turns() - before)
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn on_a_trusted_connection_everything_leaves_in_one_write() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let whole = words(&["MULTI", "SET", "INCRBY", "EXEC"]);
    let by_run = sent(&fixture, || {
        accounts
            .run(|tx| {
                tx.set("key", 1);
                Ok(tx.incr("n", 1))
            })
            .unwrap();
    });
    assert_eq!(by_run, (whole.clone(), 1));
    let by_guard = sent(&fixture, || {
        let mut tx = accounts.begin().unwrap();
        tx.set("key", 1);
        tx.incr("n", 1);
        tx.commit().unwrap();
    });
    assert_eq!(by_guard, (whole, 1));
    assert_eq!(get(&fixture.server, "n").unwrap(), "2");

    // The same seen from the server: it has EXEC while MULTI's reply is still on its way.
    fixture.proxy.arm((Trigger::AfterCommandNamed("MULTI"), Fault::HoldReplies));
    thread::scope(|scope| {
        let commit = scope.spawn(|| accounts.run(|tx| Ok(tx.set("held", 1))));
        eventually(SOON, "it is applied", || exists(&fixture.server, "held"));
        assert!(!commit.is_finished());
        fixture.proxy.release();
        commit.join().unwrap().unwrap();
    });
    fixture.proxy.disarm();
    pool_is_whole(&sessions, &fixture.server);
}

/// While MULTI's reply is held back, no command of the block is sent.
fn multi_is_awaited(fixture: &Proxied, sessions: &SessionManager, options: &TransactionOptions) {
    let accounts = sessions.transactional().with(options.clone());
    let (names, turns) = sent(fixture, || accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap());
    assert_eq!((names, turns), (words(&["MULTI", "INCRBY", "EXEC"]), 2));
    fixture.proxy.arm((Trigger::AfterCommandNamed("MULTI"), Fault::HoldReplies));
    let multis = fixture.server.calls("multi");
    thread::scope(|scope| {
        let commit = scope.spawn(|| accounts.run(|tx| Ok(tx.set("held", 1))));
        eventually(SOON, "the server has MULTI", || fixture.server.calls("multi") > multis);
        assert_eq!(fixture.journal(), ["MULTI"]);
        assert!(!commit.is_finished());
        fixture.proxy.release();
        commit.join().unwrap().unwrap();
    });
    fixture.proxy.disarm();
    assert_eq!(fixture.journal(), ["SET", "EXEC"]);
    fixture.server.ask::<()>(&["DEL", "held"]);
    pool_is_whole(sessions, &fixture.server);
}

#[test]
fn on_an_older_connection_multi_is_awaited_before_any_command_leaves() {
    let fixture = Proxied::start();
    multi_is_awaited(&fixture, &fixture.doubting(), &TransactionOptions::new());
}

#[test]
fn immediate_awaits_multi_on_a_trusted_connection_too() {
    let fixture = Proxied::start();
    multi_is_awaited(&fixture, &fixture.trusting(), &immediate());
}

#[test]
fn an_immediate_guard_has_sent_multi_when_it_is_begun_and_proves_it_again_when_it_waited() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional().with(immediate());
    let mut tx = accounts.begin().unwrap();
    assert_eq!(fixture.journal(), ["MULTI"]);
    assert!(fixture.server.client_list().iter().any(|client| client["multi"] == "0"));
    tx.incr("n", 1);
    assert_eq!(fixture.journal(), [""; 0]);
    tx.commit().unwrap();
    assert_eq!(fixture.journal(), ["INCRBY", "EXEC"]);

    let (names, turns) = sent(&fixture, || accounts.begin().unwrap().commit().unwrap());
    assert_eq!((names, turns), (words(&["MULTI", "EXEC"]), 2));
    let (names, _) = sent(&fixture, || {
        drop(accounts.begin().unwrap());
        crate::side::settled(&sessions);
    });
    assert_eq!(names, ["MULTI", "DISCARD"]);
    pool_is_whole(&sessions, &fixture.server);

    let sessions = fixture.doubting();
    let accounts = sessions.transactional().with(immediate());
    let mut tx = accounts.begin().unwrap();
    tx.incr("n", 1);
    tx.commit().unwrap();
    assert_eq!(fixture.journal(), ["MULTI", "DISCARD", "MULTI", "INCRBY", "EXEC"]);
    let mut tx = accounts.begin().unwrap();
    tx.incr("n", 1);
    fixture.proxy.cut_all();
    tx.commit().unwrap();
    assert_eq!(get(&fixture.server, "n").unwrap(), "3");
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_connection_is_trusted_for_the_trust_window_and_no_longer() {
    let fixture = Proxied::start();
    let window = Duration::from_millis(400);
    let sessions = fixture.warm(fixture.builder().trust_window(window));
    let accounts = sessions.transactional();
    let trips = || sent(&fixture, || accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap()).1;
    eventually(SOON, "two in a row, quickly enough", || {
        trips();
        trips() == 1
    });
    let begun = std::time::Instant::now();
    eventually(SOON, "the window passes", || begun.elapsed() > window);
    assert_eq!(trips(), 2);
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn the_reply_to_watch_is_read_before_begin_returns_and_before_a_closure_runs() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let watch = accounts.watch(["a", "b"]);
    let (names, turns) = sent(&fixture, || {
        let left = watch.run(|read, tx| {
            let a: Option<i64> = read.get("a")?;
            let b: Option<i64> = read.get("b")?;
            Ok(tx.set("sum", a.unwrap_or(1) + b.unwrap_or(2)))
        });
        left.unwrap();
    });
    // One for WATCH, one a read, one for the rest.
    assert_eq!((names, turns), (words(&["WATCH", "GET", "GET", "MULTI", "SET", "EXEC"]), 4));
    assert_eq!(get(&fixture.server, "sum").unwrap(), "3");

    fixture.proxy.arm((Trigger::AfterCommandNamed("WATCH"), Fault::HoldReplies));
    let watches = fixture.server.calls("watch");
    thread::scope(|scope| {
        let begin = scope.spawn(|| watch.begin().map(drop));
        eventually(SOON, "the server has WATCH", || fixture.server.calls("watch") > watches);
        assert!(!begin.is_finished());
        fixture.proxy.release();
        begin.join().unwrap().unwrap();
    });
    fixture.proxy.disarm();
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_watching_commit_on_an_older_connection_awaits_multi_and_stays_on_it() {
    let fixture = Proxied::start();
    let sessions = fixture.doubting();
    let mut tx = sessions.transactional().watch(["key"]).begin().unwrap().multi();
    tx.set("key", 1);
    assert!(!tx.commit().unwrap().is_conflict());
    assert_eq!(fixture.journal(), ["WATCH", "MULTI", "SET", "EXEC"]);
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn nothing_queued_is_no_traffic_at_all() {
    let fixture = Proxied::start();
    let sessions = fixture.builder().build_side().unwrap();
    let accounts = sessions.transactional();
    assert_eq!(accounts.run(|_| Ok((Ready(7), ()))).unwrap(), (7, ()));
    let failed = accounts.run::<(), _>(|tx| {
        tx.set("key", 1);
        Err(Error::NoKeys)
    });
    assert!(matches!(failed, Err(Error::NoKeys)));
    accounts
        .run(|tx| {
            tx.savepoint().set("key", 1);
            Ok(())
        })
        .unwrap();
    assert_eq!(fixture.proxy.accepted(), 0, "not even a connection");

    let sessions = fixture.doubting();
    let accounts = sessions.transactional();
    let commands = fixture.proxy.commands();
    assert!(accounts.begin().unwrap().commit().unwrap().is_empty());
    accounts.run::<(), _>(|_| Ok(())).unwrap();
    assert_eq!(fixture.proxy.commands(), commands);
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn commands_that_were_not_sent_are_dropped_without_a_write() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let (stats, commands) = (fixture.server.commandstats(), fixture.proxy.commands());
    let mut dropped = accounts.begin().unwrap();
    dropped.set("key", 1);
    drop(dropped);
    let mut discarded = accounts.begin().unwrap();
    discarded.set("key", 1);
    discarded.discard().unwrap();
    assert_eq!(fixture.proxy.commands(), commands);
    for name in ["multi", "discard", "unwatch", "set"] {
        assert_eq!(fixture.server.calls(name), stats.get(name).copied().unwrap_or(0), "{name}");
    }
    assert!(!exists(&fixture.server, "key"));
    pool_is_whole(&sessions, &fixture.server);
}
