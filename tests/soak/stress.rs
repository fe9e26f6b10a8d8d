//! Many transactions that end in every way, and single commands that open no scope at all.
//!
//! Guarantee: pools, clean-connections

#[path = "../../examples/basic/src/bin/soak/load/mod.rs"]
mod load;

use crate::SOON;
use std::thread;

use redis::Commands;
use rediscope::error::{ConnectionErrorKind, ReplyError};
use rediscope::{CommitError, Error, SessionManager, prelude::*};

use load::Plan;
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

const TRANSACTIONS: u64 = 20_000;
const THREADS: u64 = 64;
/// The promise is 5 MB over a million transactions in a release build (`make soak`). Here other
/// builds and allocators have a say, and a leak of 200 bytes a transaction still shows.
const GROWTH: i64 = 10_000_000;

#[test]
fn after_transactions_of_every_ending_the_pool_is_as_it_was() {
    rediscope_testing::own_process!(alone);
    let server = Server::start();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let plan = Plan { transactions: TRANSACTIONS, threads: THREADS, seed };
    let figures = load::run(&server.url(), plan, |_| {}).unwrap();
    println!("{figures}");
    assert!(figures.broken.is_empty(), "{figures}");
    assert!(figures.discards >= 400 && figures.unwatches >= 400, "too few to mean anything");
    assert!(figures.growth().is_none_or(|growth| growth < GROWTH), "memory grew: {figures}");
    let sessions_left = || server.clients() == 0;
    eventually(SOON, "the pool's connections went with its manager", sessions_left);
}

#[test]
fn plain_reads_never_open_a_scope_and_never_drain_the_pool() {
    rediscope_testing::own_process!(alone);
    const READERS: usize = 8;
    const READS: usize = 2500;
    let server = Server::start();
    let sessions = SessionManager::builder(server.url())
        .max_size(READERS as u32)
        .checkout_timeout(SOON)
        .build()
        .unwrap();
    let _: () = server.connection().set("k", 7).unwrap();
    server.reset_stats();
    thread::scope(|scope| {
        for _ in 0..READERS {
            let mut db = sessions.pooled();
            scope.spawn(move || {
                for _ in 0..READS {
                    assert_eq!(db.get::<_, i64>("k").unwrap(), 7);
                }
            });
        }
    });
    let stats = server.commandstats();
    let calls = |command: &str| stats.get(command).copied().unwrap_or(0);
    assert_eq!(calls("get"), (READERS * READS) as u64);
    for command in ["multi", "exec", "discard", "watch", "unwatch"] {
        assert_eq!(calls(command), 0, "{command}");
    }
    let status = sessions.status();
    assert_eq!((status.pooled.in_use, status.pooled.waiting), (0, 0), "{status}");
    assert_eq!((status.transactional.size, status.transactional.counts.checkouts), (0, 0));
    assert!(server.clients() <= READERS, "{} clients", server.clients());
}

/// A connection that was handed out raw is closed behind it, so each use opens one: while others
/// wait for the same, and while connections come and go around every look into the pool.
#[test]
fn a_pool_whose_connections_live_for_one_use_each_serves_every_caller() {
    rediscope_testing::own_process!(alone);
    const USERS: usize = 16;
    const USES: usize = 100;
    let server = Server::start();
    for size in [1, 2, 8] {
        let sessions = SessionManager::builder(server.url())
            .max_size(size)
            .checkout_timeout(SOON)
            .build()
            .unwrap();
        thread::scope(|scope| {
            for _ in 0..USERS {
                let db = sessions.pooled();
                scope.spawn(move || {
                    for _ in 0..USES {
                        db.with_raw(|raw| raw.incr::<_, _, ()>("uses", 1)).unwrap().unwrap();
                    }
                });
            }
        });
        let uses: usize = server.connection().get_del("uses").unwrap();
        assert_eq!(uses, USERS * USES);
        let status = sessions.status().pooled;
        assert_eq!((status.in_use, status.waiting), (0, 0), "{status}");
        drop(sessions);
        eventually(SOON, "every connection was closed", || server.clients() == 0);
    }
}

/// Each failure is reported with its command's name; looked up one by one these would take minutes.
#[test]
fn tens_of_thousands_of_failures_in_one_block_are_all_reported() {
    rediscope_testing::own_process!(alone);
    const COMMANDS: usize = 40_000;
    let server = Server::start();
    let _: () = server.connection().set("text", "a text").unwrap();
    for flush_bytes in [64 * 1024, 1 << 30] {
        let sessions = SessionManager::builder(server.url())
            .flush_bytes(flush_bytes)
            .response_timeout(SOON / 3)
            .checkout_timeout(SOON)
            .build()
            .unwrap();
        let mut tx = sessions.transactional().begin().unwrap();
        for nth in 0..COMMANDS {
            let key = if nth % 4 == 0 { "numbers" } else { "text" };
            tx.rpush(key, nth);
        }
        let reported = tx.commit();
        let Err(Error::Commit(CommitError::PartlyApplied { replies, .. })) = reported else {
            panic!("{reported:?}")
        };
        assert_eq!((replies.len(), replies.failures()), (COMMANDS, COMMANDS / 4 * 3));
        let failed = (0..COMMANDS).filter(|nth| nth % 4 != 0);
        for (nth, error) in failed.zip(replies.errors()) {
            let ReplyError::Failed { index, command, error, .. } = error else { panic!() };
            assert_eq!((index, command.as_str(), error.code()), (nth, "RPUSH", "WRONGTYPE"));
        }
        let applied: usize = server.connection().llen("numbers").unwrap();
        let _: () = server.connection().del("numbers").unwrap();
        assert_eq!(applied, COMMANDS / 4);
    }
}

/// A reply over `client-output-buffer-limit` ends the connection, every time it is requested.
#[test]
fn a_read_that_kills_every_connection_it_is_sent_on_is_not_retried_forever() {
    rediscope_testing::own_process!(alone);
    let server = Server::start();
    let mut elsewhere = server.connection();
    let _: () = elsewhere.set("big", vec![b'x'; 1 << 20]).unwrap();
    let _: () = elsewhere.rpush("list", vec!["x"; 1000]).unwrap();
    server.config_set("client-output-buffer-limit", "normal 100kb 0 0");
    // As many idle connections may have died as there are, and a fresh one may be tried.
    let sessions = SessionManager::builder(server.url()).max_size(2).build().unwrap();
    let big = |reported: Result<(), Error>| {
        let Err(Error::Lost { source, .. }) = &reported else { panic!("{reported:?}") };
        assert_eq!(source.kind(), ConnectionErrorKind::Closed, "{reported:?}");
    };
    // A connection that has been used before may have died while it was idle.
    let _: i64 = sessions.pooled().llen("list").unwrap();
    server.reset_stats();
    let many: Vec<&str> = vec!["big"; 20];
    big(sessions.pooled().mget::<_, ()>(&many).map_err(Error::from));
    let asked = server.calls("mget");
    assert!((1..=3).contains(&asked), "the server received {asked} reads");
    server.reset_stats();
    let mut reading = sessions.transactional().reading().begin().unwrap();
    big(reading.mget::<_, ()>(&many));
    let asked = server.calls("mget");
    assert!((1..=3).contains(&asked), "the server received {asked} reads");
    drop(reading);
    let status = sessions.status();
    assert_eq!((status.pooled.in_use, status.transactional.in_use), (0, 0), "{status}");
    assert_eq!(sessions.pooled().llen::<_, i64>("list").unwrap(), 1000);
}
