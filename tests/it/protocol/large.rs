//! The large form: past `flush_bytes` a transaction is sent ahead in chunks.

use rediscope::prelude::*;
use rediscope::{Applied, Error, SessionManager};

use super::stage::{ALWAYS, Stage, client_ids, exists, get, pool_is_whole};
use rediscope_testing::proxy::{Fault, Trigger};

/// One command of [`fill`] is 100 bytes and a bit, so a chunk is ten of them.
const CHUNK: usize = 1024;

fn chunked(stage: &Stage) -> SessionManager {
    stage.warm(stage.builder().trust_window(ALWAYS).flush_bytes(CHUNK))
}

fn fill(tx: &mut impl QueueCommands, commands: usize) {
    for _ in 0..commands {
        tx.rpush("list", "x".repeat(70));
    }
}

fn length(stage: &Stage) -> i64 {
    stage.server.ask(&["LLEN", "list"])
}

/// Commands queued on the server in open transactions; -1 where nobody is in MULTI.
fn queued(stage: &Stage) -> i64 {
    let all = stage.server.client_list();
    all.iter().map(|client| client["multi"].parse().unwrap()).max().unwrap_or(-1)
}

#[test]
fn chunks_are_sent_ahead_and_read_in_between_and_nothing_is_applied_before_the_commit() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    let mut tx = sessions.transactional().begin().unwrap();
    let mut ahead = Vec::new();
    let mut last = None;
    for _ in 0..100 {
        last = Some(tx.rpush("list", "x".repeat(70)));
        ahead.push(queued(&stage));
    }
    assert_eq!(length(&stage), 0);
    // A handful waits here, the rest there; the last word is the commit's.
    assert!(ahead.is_sorted() && *ahead.last().unwrap() > 80, "{ahead:?}");
    ahead.dedup();
    assert!(ahead.len() > 8, "{ahead:?}");
    let turns = stage.proxy.turns();
    let replies = tx.commit().unwrap();
    assert_eq!((replies.len(), replies.get(last)), (100, Ok(Some(100))));
    assert_eq!((length(&stage), stage.proxy.turns() - turns), (100, 1));
    let sent = stage.journal();
    assert_eq!((sent.len(), sent[0].as_str(), sent[101].as_str()), (102, "MULTI", "EXEC"));
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn multi_is_awaited_before_the_first_chunk_even_on_a_trusted_link() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    let before = stage.proxy.turns();
    let mut tx = sessions.transactional().begin().unwrap();
    fill(&mut tx, 11);
    assert_eq!(stage.proxy.turns() - before, 2);
    tx.commit().unwrap();
    assert_eq!((stage.proxy.turns() - before, length(&stage)), (3, 11));
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_run_block_is_sent_ahead_too_and_a_value_comes_back_for_every_handle() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    let mut runs = 0;
    let lengths = sessions.transactional().run(|tx| {
        runs += 1;
        assert_eq!(sessions.status().transactional.in_use, 0, "no connection before it is large");
        let handles: Vec<_> = (0..50).map(|_| tx.rpush("list", "x".repeat(70))).collect();
        assert_eq!(sessions.status().transactional.in_use, 1);
        assert!(queued(&stage) > 0 && length(&stage) == 0);
        Ok(handles)
    });
    assert_eq!((lengths.unwrap(), runs), ((1..=50).collect::<Vec<_>>(), 1));
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_run_block_that_errs_after_a_chunk_applies_nothing() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    let before = client_ids(&stage.server);
    let failed = sessions.transactional().run::<()>(|tx| {
        fill(tx, 50);
        Err(Error::NoKeys)
    });
    assert!(matches!(failed, Err(Error::NoKeys)));
    assert_eq!(stage.journal().last().unwrap(), "DISCARD");
    assert_eq!((length(&stage), client_ids(&stage.server)), (0, before));
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_watching_closure_is_buffered_whole() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    let done = sessions.transactional().watch(["key"]).run(|read, tx| {
        fill(tx, 50);
        assert_eq!(read.get::<_, Option<String>>("key")?, None);
        assert_eq!(queued(&stage), -1);
        Ok(())
    });
    done.unwrap();
    assert_eq!(length(&stage), 50);
    let sent = stage.journal();
    assert_eq!((sent.len(), &sent[..3]), (54, &["WATCH", "GET", "MULTI"].map(String::from)[..]));
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_watching_guard_is_sent_ahead_and_still_conflicts() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    for changed in [false, true] {
        let mut tx = sessions.transactional().watch(["key"]).begin().unwrap().multi();
        fill(&mut tx, 25);
        assert!(queued(&stage) > 0);
        if changed {
            stage.server.ask::<()>(&["SET", "key", "changed"]);
        }
        assert_eq!(tx.commit().unwrap().is_conflict(), changed);
        assert_eq!(length(&stage), 25);
    }
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn nothing_is_sent_past_an_open_savepoint() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    let mut tx = sessions.transactional().begin().unwrap();
    fill(&mut tx, 2);
    let mut part = tx.savepoint();
    fill(&mut part, 50);
    let mut inner = part.savepoint();
    fill(&mut inner, 50);
    inner.release();
    assert_eq!((stage.journal(), queued(&stage)), (vec![], -1), "not even what stood before it");
    drop(part);
    fill(&mut tx, 2);
    assert_eq!(stage.journal(), [""; 0], "what was forgotten does not count");
    let mut part = tx.savepoint();
    fill(&mut part, 50);
    part.release();
    fill(&mut tx, 1);
    assert_eq!(queued(&stage), 55);
    assert_eq!(tx.commit().unwrap().len(), 55);
    assert_eq!(length(&stage), 55);
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn dropped_after_a_chunk_it_is_discarded_and_the_link_stays() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    let before = client_ids(&stage.server);
    for end in [drop, |tx: rediscope::Transaction| tx.discard().unwrap()] {
        let discards = stage.server.calls("discard");
        let mut tx = sessions.transactional().begin().unwrap();
        fill(&mut tx, 50);
        assert!(queued(&stage) > 0);
        end(tx);
        assert_eq!((stage.server.calls("discard"), queued(&stage)), (discards + 1, -1));
    }
    assert_eq!((length(&stage), client_ids(&stage.server)), (0, before));
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_discard_that_fails_is_told_by_discard_and_hidden_by_drop_and_applies_nothing() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    let accounts = sessions.transactional();
    let mut tx = accounts.begin().unwrap();
    fill(&mut tx, 50);
    stage.proxy.arm((Trigger::BeforeReplyTo("DISCARD"), Fault::Cut));
    match tx.discard().unwrap_err() {
        Error::Lost { during, applied: Applied::No, .. } => assert_eq!(during, "DISCARD"),
        error => panic!("{error:?}"),
    }
    stage.proxy.disarm();
    pool_is_whole(&sessions, &stage.server);
    let mut tx = accounts.begin().unwrap();
    fill(&mut tx, 50);
    stage.proxy.arm((Trigger::BeforeCommandNamed("DISCARD"), Fault::Cut));
    drop(tx);
    stage.proxy.disarm();
    assert!(!exists(&stage.server, "list"));
    pool_is_whole(&sessions, &stage.server);
}

#[test]
fn a_chunk_that_arrives_in_crumbs_is_a_chunk_like_any_other() {
    let stage = Stage::start();
    let sessions = chunked(&stage);
    stage.proxy.arm((Trigger::Now, Fault::OneByteAtATime));
    let sum = sessions.transactional().run(|tx| {
        fill(tx, 30);
        Ok(tx.incr("n", 1))
    });
    assert_eq!(
        (sum.unwrap(), length(&stage), get(&stage.server, "n").unwrap()),
        (1, 30, "1".into())
    );
    pool_is_whole(&sessions, &stage.server);
}
