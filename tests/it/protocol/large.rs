//! The large form: past `flush_bytes` a transaction is sent ahead in chunks.
//!
//! Guarantee: large

use crate::fixture::LONG;
use crate::side::SessionManager;
use rediscope::Error;
use rediscope::error::Applied;
use rediscope::prelude::*;

use crate::fixture::proxied::{Proxied, client_ids, exists, get, pool_is_whole};
use rediscope_testing::proxy::{Fault, Trigger};

/// One command of [`fill`] is 100 bytes and a bit, so a chunk is ten of them.
const CHUNK: usize = 1024;

pub(crate) fn chunked(fixture: &Proxied) -> SessionManager {
    fixture.warm(fixture.builder().trust_window(LONG).flush_bytes(CHUNK))
}

pub(crate) fn fill(tx: &mut impl QueueCommands, commands: usize) {
    for _ in 0..commands {
        tx.rpush("list", "x".repeat(70));
    }
}

pub(crate) fn length(fixture: &Proxied) -> i64 {
    fixture.server.ask(&["LLEN", "list"])
}

/// Commands queued on the server in open transactions; -1 if no client is in MULTI.
pub(crate) fn queued(fixture: &Proxied) -> i64 {
    let all = fixture.server.client_list();
    all.iter().map(|client| client["multi"].parse().unwrap()).max().unwrap_or(-1)
}

crate::side::threads_only! {
    #[test]
    fn chunks_are_sent_ahead_and_read_in_between_and_nothing_is_applied_before_the_commit() {
        let fixture = Proxied::start();
        let sessions = chunked(&fixture);
        let mut tx = sessions.transactional().begin().unwrap();
        let mut ahead = Vec::new();
        let mut last = None;
        for _ in 0..100 {
            last = Some(tx.rpush("list", "x".repeat(70)));
            ahead.push(queued(&fixture));
        }
        assert_eq!(length(&fixture), 0);
        // A handful waits here, the rest there; the last word is the commit's.
        assert!(ahead.is_sorted() && *ahead.last().unwrap() > 80, "{ahead:?}");
        ahead.dedup();
        assert!(ahead.len() > 8, "{ahead:?}");
        let turns = fixture.proxy.turns();
        let replies = tx.commit().unwrap();
        assert_eq!((replies.len(), replies.get(last).unwrap()), (100, Some(100)));
        assert_eq!((length(&fixture), fixture.proxy.turns() - turns), (100, 1));
        let sent = fixture.journal();
        assert_eq!((sent.len(), sent[0].as_str(), sent[101].as_str()), (102, "MULTI", "EXEC"));
        pool_is_whole(&sessions, &fixture.server);
    }
}

#[test]
fn multi_is_awaited_before_the_first_chunk_even_on_a_trusted_connection() {
    let fixture = Proxied::start();
    let sessions = chunked(&fixture);
    let before = fixture.proxy.turns();
    let mut tx = sessions.transactional().begin().unwrap();
    fill(crate::side::queue(&mut tx), 11);
    crate::side::send_ahead(&mut tx);
    assert_eq!(fixture.proxy.turns() - before, 2);
    tx.commit().unwrap();
    assert_eq!((fixture.proxy.turns() - before, length(&fixture)), (3, 11));
    pool_is_whole(&sessions, &fixture.server);
}

crate::side::threads_only! {
    #[test]
    fn a_run_block_is_sent_ahead_too_and_a_value_comes_back_for_every_handle() {
        let fixture = Proxied::start();
        let sessions = chunked(&fixture);
        let mut runs = 0;
        let lengths = sessions.transactional().run(|tx| {
            runs += 1;
            assert_eq!(sessions.status().transactional.in_use, 0, "no connection before it is large");
            let handles: Vec<_> = (0..50).map(|_| tx.rpush("list", "x".repeat(70))).collect();
            assert_eq!(sessions.status().transactional.in_use, 1);
            assert!(queued(&fixture) > 0 && length(&fixture) == 0);
            Ok(handles)
        });
        assert_eq!((lengths.unwrap(), runs), ((1..=50).collect::<Vec<_>>(), 1));
        pool_is_whole(&sessions, &fixture.server);
    }
}

crate::side::threads_only! {
    #[test]
    fn a_run_block_that_errs_after_a_chunk_applies_nothing() {
        let fixture = Proxied::start();
        let sessions = chunked(&fixture);
        let before = client_ids(&fixture.server);
        let failed = sessions.transactional().run::<(), _>(|tx| {
            fill(tx, 50);
            Err(Error::NoKeys)
        });
        assert!(matches!(failed, Err(Error::NoKeys)));
        assert_eq!(fixture.journal().last().unwrap(), "DISCARD");
        assert_eq!((length(&fixture), client_ids(&fixture.server)), (0, before));
        pool_is_whole(&sessions, &fixture.server);
    }
}

#[test]
fn a_watching_closure_is_buffered_whole() {
    let fixture = Proxied::start();
    let sessions = chunked(&fixture);
    let done = sessions.transactional().watch(["key"]).run(|read, tx| {
        fill(tx, 50);
        assert_eq!(read.get::<_, Option<String>>("key")?, None);
        assert_eq!(queued(&fixture), -1);
        Ok(())
    });
    done.unwrap();
    assert_eq!(length(&fixture), 50);
    let sent = fixture.journal();
    assert_eq!((sent.len(), &sent[..3]), (54, &["WATCH", "GET", "MULTI"].map(String::from)[..]));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_watching_guard_is_sent_ahead_and_still_conflicts() {
    let fixture = Proxied::start();
    let sessions = chunked(&fixture);
    for changed in [false, true] {
        let mut tx = sessions.transactional().watch(["key"]).begin().unwrap().multi();
        fill(crate::side::queue(&mut tx), 25);
        crate::side::send_ahead(&mut tx);
        assert!(queued(&fixture) > 0);
        if changed {
            fixture.server.ask::<()>(&["SET", "key", "changed"]);
        }
        assert_eq!(tx.commit().unwrap().is_conflict(), changed);
        assert_eq!(length(&fixture), 25);
    }
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn dropped_after_a_chunk_it_is_discarded_and_the_connection_stays() {
    let fixture = Proxied::start();
    let sessions = chunked(&fixture);
    let before = client_ids(&fixture.server);
    for end in [drop, |tx: crate::side::Transaction| tx.discard().unwrap()] {
        let discards = fixture.server.calls("discard");
        let mut tx = sessions.transactional().begin().unwrap();
        fill(crate::side::queue(&mut tx), 50);
        crate::side::send_ahead(&mut tx);
        assert!(queued(&fixture) > 0);
        end(tx);
        crate::side::settled(&sessions);
        assert_eq!((fixture.server.calls("discard"), queued(&fixture)), (discards + 1, -1));
    }
    assert_eq!((length(&fixture), client_ids(&fixture.server)), (0, before));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_failed_discard_is_an_error_of_discard_and_hidden_by_drop_and_applies_nothing() {
    let fixture = Proxied::start();
    let sessions = chunked(&fixture);
    let accounts = sessions.transactional();
    let mut tx = accounts.begin().unwrap();
    fill(crate::side::queue(&mut tx), 50);
    crate::side::send_ahead(&mut tx);
    fixture.proxy.arm((Trigger::BeforeReplyTo("DISCARD"), Fault::Cut));
    match tx.discard().unwrap_err() {
        Error::Lost { during, applied: Applied::No, .. } => assert_eq!(during, "DISCARD"),
        error => panic!("{error:?}"),
    }
    fixture.proxy.disarm();
    pool_is_whole(&sessions, &fixture.server);
    let mut tx = accounts.begin().unwrap();
    fill(crate::side::queue(&mut tx), 50);
    crate::side::send_ahead(&mut tx);
    fixture.proxy.arm((Trigger::BeforeCommandNamed("DISCARD"), Fault::Cut));
    drop(tx);
    crate::side::settled(&sessions);
    fixture.proxy.disarm();
    assert!(!exists(&fixture.server, "list"));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_chunk_that_arrives_in_crumbs_is_a_chunk_like_any_other() {
    let fixture = Proxied::start();
    let sessions = chunked(&fixture);
    fixture.proxy.arm((Trigger::Now, Fault::OneByteAtATime));
    let sum = sessions.transactional().run(|tx| {
        fill(tx, 30);
        Ok(tx.incr("n", 1))
    });
    assert_eq!(
        (sum.unwrap(), length(&fixture), get(&fixture.server, "n").unwrap()),
        (1, 30, "1".into())
    );
    pool_is_whole(&sessions, &fixture.server);
}
