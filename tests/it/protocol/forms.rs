//! The forms of a commit: what goes over the wire, in how many round trips, and what waits for
//! what.

use std::thread;
use std::time::Duration;

use rediscope::prelude::*;
use rediscope::{Begin, Error, SessionManager, TransactionOptions};

use super::stage::{ALWAYS, SOON, Stage, exists, get, pool_is_whole};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

fn immediate() -> TransactionOptions {
    TransactionOptions::new().begin(Begin::Immediate)
}

/// The commands that `work` sent, and its round trips.
fn sent<R>(stage: &Stage, work: impl FnOnce() -> R) -> (Vec<String>, u64) {
    stage.journal();
    let before = stage.proxy.turns();
    work();
    (stage.journal(), stage.proxy.turns() - before)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn on_a_trusted_link_everything_leaves_in_one_write() {
    let stage = Stage::start();
    let sessions = stage.trusting();
    let accounts = sessions.transactional();
    let whole = words(&["MULTI", "SET", "INCRBY", "EXEC"]);
    let by_run = sent(&stage, || {
        accounts
            .run(|tx| {
                tx.set("key", 1);
                Ok(tx.incr("n", 1))
            })
            .unwrap();
    });
    assert_eq!(by_run, (whole.clone(), 1));
    let by_guard = sent(&stage, || {
        let mut tx = accounts.begin().unwrap();
        tx.set("key", 1);
        tx.incr("n", 1);
        tx.commit().unwrap();
    });
    assert_eq!(by_guard, (whole, 1));
    assert_eq!(get(&stage.server, "n").unwrap(), "2");

    // The same seen from the server: it has EXEC while MULTI's answer is still on its way.
    stage.proxy.arm((Trigger::AfterCommandNamed("MULTI"), Fault::HoldReplies));
    thread::scope(|scope| {
        let commit = scope.spawn(|| accounts.run(|tx| Ok(tx.set("held", 1))));
        eventually(SOON, "it is applied", || exists(&stage.server, "held"));
        assert!(!commit.is_finished());
        stage.proxy.release();
        commit.join().unwrap().unwrap();
    });
    stage.proxy.disarm();
    pool_is_whole(&sessions, &stage.server);
}

/// While MULTI's answer is held back, no command of the block has left.
fn multi_is_awaited(stage: &Stage, sessions: &SessionManager, options: &TransactionOptions) {
    let accounts = sessions.transactional().with(options.clone());
    let (names, turns) = sent(stage, || accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap());
    assert_eq!((names, turns), (words(&["MULTI", "INCRBY", "EXEC"]), 2));
    stage.proxy.arm((Trigger::AfterCommandNamed("MULTI"), Fault::HoldReplies));
    let multis = stage.server.calls("multi");
    thread::scope(|scope| {
        let commit = scope.spawn(|| accounts.run(|tx| Ok(tx.set("held", 1))));
        eventually(SOON, "the server has MULTI", || stage.server.calls("multi") > multis);
        assert_eq!(stage.journal(), ["MULTI"]);
        assert!(!commit.is_finished());
        stage.proxy.release();
        commit.join().unwrap().unwrap();
    });
    stage.proxy.disarm();
    assert_eq!(stage.journal(), ["SET", "EXEC"]);
    stage.server.ask::<()>(&["DEL", "held"]);
    pool_is_whole(sessions, &stage.server);
}

#[test]
fn on_an_older_link_multi_is_awaited_before_any_command_leaves() {
    let stage = Stage::start();
    multi_is_awaited(&stage, &stage.doubting(), &TransactionOptions::new());
}

#[test]
fn immediate_awaits_multi_on_a_trusted_link_too() {
    let stage = Stage::start();
    multi_is_awaited(&stage, &stage.trusting(), &immediate());
}

#[test]
fn an_immediate_guard_has_sent_multi_when_it_is_begun_and_proves_it_anew_when_it_waited() {
    let stage = Stage::start();
    let sessions = stage.trusting();
    let accounts = sessions.transactional().with(immediate());
    let mut tx = accounts.begin().unwrap();
    assert_eq!(stage.journal(), ["MULTI"]);
    assert!(stage.server.client_list().iter().any(|client| client["multi"] == "0"));
    tx.incr("n", 1);
    assert_eq!(stage.journal(), [""; 0]);
    tx.commit().unwrap();
    assert_eq!(stage.journal(), ["INCRBY", "EXEC"]);

    let (names, turns) = sent(&stage, || accounts.begin().unwrap().commit().unwrap());
    assert_eq!((names, turns), (words(&["MULTI", "EXEC"]), 2));
    let (names, _) = sent(&stage, || drop(accounts.begin().unwrap()));
    assert_eq!(names, ["MULTI", "DISCARD"]);
    pool_is_whole(&sessions, &stage.server);

    let sessions = stage.doubting();
    let accounts = sessions.transactional().with(immediate());
    let mut tx = accounts.begin().unwrap();
    tx.incr("n", 1);
    tx.commit().unwrap();
    assert_eq!(stage.journal(), ["MULTI", "DISCARD", "MULTI", "INCRBY", "EXEC"]);
    let mut tx = accounts.begin().unwrap();
    tx.incr("n", 1);
    stage.proxy.cut_all();
    tx.commit().unwrap();
    assert_eq!(get(&stage.server, "n").unwrap(), "3");
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_link_is_trusted_for_the_trust_window_and_no_longer() {
    let stage = Stage::start();
    let window = Duration::from_millis(400);
    let sessions = stage.warm(stage.builder().trust_window(window));
    let accounts = sessions.transactional();
    let trips = || sent(&stage, || accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap()).1;
    eventually(SOON, "two in a row, quickly enough", || {
        trips();
        trips() == 1
    });
    let begun = std::time::Instant::now();
    eventually(SOON, "the window passes", || begun.elapsed() > window);
    assert_eq!(trips(), 2);
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn watch_is_answered_before_begin_returns_and_before_a_closure_runs() {
    let stage = Stage::start();
    let sessions = stage.trusting();
    let accounts = sessions.transactional();
    let watch = accounts.watch(["a", "b"]);
    let (names, turns) = sent(&stage, || {
        let left = watch.run(|read, tx| {
            let a: Option<i64> = read.get("a")?;
            let b: Option<i64> = read.get("b")?;
            Ok(tx.set("sum", a.unwrap_or(1) + b.unwrap_or(2)))
        });
        left.unwrap();
    });
    // One for WATCH, one a read, one for the rest.
    assert_eq!((names, turns), (words(&["WATCH", "GET", "GET", "MULTI", "SET", "EXEC"]), 4));
    assert_eq!(get(&stage.server, "sum").unwrap(), "3");

    stage.proxy.arm((Trigger::AfterCommandNamed("WATCH"), Fault::HoldReplies));
    let watches = stage.server.calls("watch");
    thread::scope(|scope| {
        let begin = scope.spawn(|| watch.begin().map(drop));
        eventually(SOON, "the server has WATCH", || stage.server.calls("watch") > watches);
        assert!(!begin.is_finished());
        stage.proxy.release();
        begin.join().unwrap().unwrap();
    });
    stage.proxy.disarm();
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_watching_commit_on_an_older_link_awaits_multi_and_stays_on_its_link() {
    let stage = Stage::start();
    let sessions = stage.doubting();
    let mut tx = sessions.transactional().watch(["key"]).begin().unwrap().multi();
    tx.set("key", 1);
    assert!(!tx.commit().unwrap().is_conflict());
    assert_eq!(stage.journal(), ["WATCH", "MULTI", "SET", "EXEC"]);
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn nothing_queued_is_no_traffic_at_all() {
    let stage = Stage::start();
    let sessions = stage.builder().build().unwrap();
    let accounts = sessions.transactional();
    assert_eq!(accounts.run(|_| Ok((Ready(7), ()))).unwrap(), (7, ()));
    let failed = accounts.run::<()>(|tx| {
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
    assert_eq!(stage.proxy.accepted(), 0, "not even a connection");

    let sessions = stage.doubting();
    let accounts = sessions.transactional();
    let commands = stage.proxy.commands();
    assert!(accounts.begin().unwrap().commit().unwrap().is_empty());
    accounts.run::<()>(|_| Ok(())).unwrap();
    assert_eq!(stage.proxy.commands(), commands);
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn what_was_not_sent_is_dropped_without_a_word() {
    let stage = Stage::start();
    let sessions = stage.trusting();
    let accounts = sessions.transactional();
    let (stats, commands) = (stage.server.commandstats(), stage.proxy.commands());
    let mut dropped = accounts.begin().unwrap();
    dropped.set("key", 1);
    drop(dropped);
    let mut discarded = accounts.begin().unwrap();
    discarded.set("key", 1);
    discarded.discard().unwrap();
    assert_eq!(stage.proxy.commands(), commands);
    for name in ["multi", "discard", "unwatch", "set"] {
        assert_eq!(stage.server.calls(name), stats.get(name).copied().unwrap_or(0), "{name}");
    }
    assert!(!exists(&stage.server, "key"));
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_part_that_is_forgotten_never_leaves() {
    let stage = Stage::start();
    let sessions = stage.warm(stage.builder().trust_window(ALWAYS));
    let (names, turns) = sent(&stage, || {
        let mut tx = sessions.transactional().begin().unwrap();
        tx.set("kept", 1);
        let mut part = tx.savepoint();
        part.append("forgotten", 1);
        let mut inner = part.savepoint();
        inner.append("forgotten", 2);
        inner.release();
        drop(part);
        let mut leaked = tx.savepoint();
        leaked.append("forgotten", 3);
        std::mem::forget(leaked);
        tx.commit().unwrap();
    });
    assert_eq!((names, turns), (words(&["MULTI", "SET", "EXEC"]), 1));
    assert!(exists(&stage.server, "kept") && !exists(&stage.server, "forgotten"));
    pool_is_whole(&sessions, &stage.server);
}
