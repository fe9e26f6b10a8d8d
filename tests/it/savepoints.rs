//! Parts of a transaction that can be dropped alone: not sent while open, kept by `release`, forgotten by a
//! drop.
//!
//! Guarantee: large

use crate::fixture::LONG;
use rediscope::error::ReplyError;
use rediscope::prelude::*;

use crate::cluster;
use crate::exactly_once;
use crate::exactly_once::fixture::{Fate, doubt};
use crate::fixture::proxied::{Proxied, exists, get, pool_is_whole};
use crate::protocol::committed::applied_all_the_same;
use crate::protocol::forms::{sent, words};
use crate::protocol::large::{chunked, fill, length, queued};
use crate::refusals;

#[test]
fn a_part_that_is_forgotten_never_leaves() {
    let fixture = Proxied::start();
    let sessions = fixture.warm(fixture.builder().trust_window(LONG));
    let (names, turns) = sent(&fixture, || {
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
    assert!(exists(&fixture.server, "kept") && !exists(&fixture.server, "forgotten"));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn nothing_is_sent_past_an_open_savepoint() {
    let fixture = Proxied::start();
    let sessions = chunked(&fixture);
    let mut tx = sessions.transactional().begin().unwrap();
    let first = tx.incr("count", 1);
    fill(&mut tx, 2);
    let mut part = tx.savepoint();
    fill(&mut part, 50);
    let mut inner = part.savepoint();
    fill(&mut inner, 50);
    inner.release();
    let mut inner = part.savepoint();
    let forgotten = inner.incr("count", 100);
    fill(&mut inner, 50);
    drop(inner);
    assert_eq!(
        (fixture.journal(), queued(&fixture)),
        (vec![], -1),
        "not even what stood before it"
    );
    drop(part);
    fill(&mut tx, 2);
    assert_eq!(fixture.journal(), [""; 0], "what was forgotten does not count");
    let mut part = tx.savepoint();
    fill(&mut part, 50);
    part.release();
    let last = tx.incr("count", 1);
    assert_eq!(queued(&fixture), 56);
    std::mem::forget(tx.savepoint());
    let replies = tx.commit().unwrap();
    assert_eq!(replies.get((first, last)).unwrap(), (1, 2));
    assert_eq!(replies.get(forgotten).unwrap_err().as_reply(), Some(&ReplyError::Forgotten));
    assert_eq!(replies.len(), 56);
    assert_eq!(length(&fixture), 54);

    // What was sent ahead stays sent ahead, and what stands behind it waits for the part's end.
    let mut tx = sessions.transactional().begin().unwrap();
    fill(&mut tx, 20);
    let ahead = queued(&fixture);
    assert!(ahead >= 10, "{ahead}");
    let mut part = tx.savepoint();
    fill(&mut part, 50);
    assert_eq!(queued(&fixture), ahead, "sent while a part was open");
    part.release();
    fill(&mut tx, 1);
    assert_eq!((queued(&fixture), tx.commit().unwrap().len()), (71, 71));

    let last = sessions.transactional().run(|tx| {
        tx.incr("count", 1);
        let mut dropped = tx.savepoint();
        fill(&mut dropped, 50);
        dropped.set("dropped", 1);
        drop(dropped);
        assert_eq!(queued(&fixture), -1, "sent while a part was open");
        let mut kept = tx.savepoint();
        fill(&mut kept, 50);
        kept.set("kept", 1);
        assert_eq!(queued(&fixture), -1, "sent while a part was open");
        kept.release();
        let last = tx.incr("count", 1);
        assert_eq!(queued(&fixture), 53, "sent once it was kept");
        Ok(last)
    });
    assert_eq!(last.unwrap(), 4);
    assert!(exists(&fixture.server, "kept") && !exists(&fixture.server, "dropped"));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_handle_of_a_forgotten_part_has_no_reply_and_the_others_keep_theirs() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let result = accounts.run(|tx| {
        let forgotten = tx.savepoint().incr("n", 1);
        tx.set("key", "done");
        Ok(forgotten)
    });
    assert_eq!(applied_all_the_same(result, &fixture.server, "key"), ReplyError::Forgotten);
    let mut tx = accounts.begin().unwrap();
    let before = tx.incr("m", 1);
    let mut lost = None;
    let part: Result<(), &str> = tx.part(|part| {
        lost = Some(part.incr("n", 1));
        Err("no")
    });
    assert_eq!(part, Err("no"));
    let mut kept = tx.savepoint();
    let inside = kept.incr("m", 1);
    kept.release();
    let behind = tx.incr("m", 1);
    let replies = tx.commit().unwrap();
    assert_eq!(replies.get((before, inside, behind)).unwrap(), (1, 2, 3));
    assert_eq!(replies.get(lost).unwrap_err().as_reply(), Some(&ReplyError::Forgotten));
    assert_eq!(get(&fixture.server, "n"), None);
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_refused_command_is_forgotten_with_the_part_it_was_in() {
    let mut quiet = refusals::fixture::Quiet::start();
    let mut tx = quiet.sessions.transactional().begin().unwrap();
    let kept = tx.incr("n", 1);
    let mut part = tx.savepoint();
    part.queue::<()>(redis::cmd("RESET").take());
    drop(part);
    tx.check().unwrap();
    assert_eq!(tx.commit().unwrap().get(kept).unwrap(), 1);
    assert_eq!(quiet.server.ask::<i64>(&["GET", "n"]), 1);
    quiet.nothing_was_lost();
}

#[test]
fn a_part_past_a_limit_takes_its_failure_with_it_when_it_is_forgotten() {
    let mut quiet = refusals::fixture::Quiet::with(|builder| builder.max_commands(3));
    let mut tx = quiet.sessions.transactional().begin().unwrap();
    let kept = tx.incr("n", 1);
    let part = tx.part(|part| {
        for _ in 0..10 {
            part.incr("n", 1);
        }
        Err("too many")
    });
    assert_eq!(part, Err::<(), _>("too many"));
    let behind = tx.incr("n", 1);
    assert_eq!(tx.commit().unwrap().get((kept, behind)).unwrap(), (1, 2));
    assert_eq!(quiet.server.ask::<i64>(&["GET", "n"]), 2);
    quiet.nothing_was_lost();
}

#[test]
fn a_part_that_is_forgotten_binds_nothing() {
    let fixture = cluster::fixture::ClusterFixture::start();
    let [a, b, _] = fixture.keys("k");
    let replied = fixture.sessions.transactional().run(|tx| {
        let mut part = tx.savepoint();
        part.set(&a, 1);
        drop(part);
        Ok(tx.incr(&b, 1))
    });
    assert_eq!(replied.unwrap(), 1);
    assert_eq!(fixture.cluster.read::<Option<i64>>(&["GET", &a]), None);
}

#[test]
fn a_doubt_about_kept_and_forgotten_parts_is_resolved_as_what_is_true() {
    for fate in Fate::BOTH {
        let fixture = exactly_once::fixture::start();
        let handle = fixture.armed();
        let mut tx = handle.begin().unwrap();
        let mut kept = tx.savepoint();
        kept.incr("n", 1);
        kept.release();
        let mut forgotten = tx.savepoint();
        forgotten.incr("n", 100);
        drop(forgotten);
        fixture.lose(fate);
        assert_eq!(doubt(tx.commit()).resolve(), fate.truth());
        assert_eq!(fixture.number("n"), fate.count());
    }
}
