//! Many threads at once: each condition was true at the commit.
//!
//! Guarantee: conditions

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::side::{SessionManager, Transactional};
use rediscope::prelude::*;
use rediscope::{Condition, Error, RetryPolicy, TransactionOptions};

use rediscope_testing::server::Server;

const THREADS: usize = 16;

/// Two processes, for all that the server knows; one of them in a free-for-all.
fn handles(server: &Server) -> [Transactional; 2] {
    let patient = RetryPolicy::default().attempts(100_000).deadline(Duration::from_secs(60));
    let options = TransactionOptions::new().retry(patient);
    [options.clone().take_turns(false), options].map(|options| {
        let builder = SessionManager::builder(server.url()).max_size(4).checkout_timeout(SOON);
        builder.build_side().unwrap().transactional().with(options)
    })
}

/// Runs `attempt` on many threads until each returned a failed condition; counts the others.
fn contended(server: &Server, attempt: impl Fn(&Transactional) -> Result<(), Error> + Sync) -> u64 {
    let (handles, done) = (handles(server), AtomicU64::new(0));
    thread::scope(|scope| {
        for nth in 0..THREADS {
            let (handle, done, attempt) = (&handles[nth % 2], &done, &attempt);
            scope.spawn(move || {
                loop {
                    match attempt(handle) {
                        Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                        Err(Error::ConditionFailed { .. }) => break,
                        Err(error) => panic!("{error}"),
                    };
                }
            });
        }
    });
    done.into_inner()
}

#[test]
fn a_stock_is_sold_to_the_last_piece_and_never_oversold() {
    const STOCK: u64 = 400;
    let server = Server::start();
    server.ask::<()>(&["SET", "stock", &STOCK.to_string()]);
    let sold = contended(&server, |shop| {
        let left = shop.require(Condition::at_least("stock", 1)).run(|tx| {
            tx.incr("sold", 1);
            Ok(tx.decr("stock", 1))
        })?;
        assert!(left >= 0, "oversold: {left}");
        Ok(())
    });
    assert_eq!(sold, STOCK);
    assert_eq!(server.ask::<Vec<u64>>(&["MGET", "stock", "sold"]), [0, STOCK]);
}

#[test]
fn a_collection_of_limited_length_is_filled_and_never_overfilled() {
    const SEATS: i64 = 200;
    let server = Server::start();
    let number = AtomicU64::new(0);
    let booked = contended(&server, |seats| {
        let guest = number.fetch_add(1, Ordering::Relaxed);
        let booked = seats
            .require(Condition::hash_len_at_most("seats", SEATS - 1))
            .require(Condition::list_len_at_most("order", SEATS - 1))
            .run(|tx| {
                tx.rpush("order", guest);
                Ok((tx.hset("seats", guest, 1), tx.hlen("seats")))
            })?;
        assert!(booked.1 <= SEATS, "overfilled: {booked:?}");
        Ok(())
    });
    assert_eq!(booked, SEATS as u64);
    assert_eq!(server.ask::<i64>(&["HLEN", "seats"]), SEATS);
    assert_eq!(server.ask::<i64>(&["LLEN", "order"]), SEATS);
}

#[test]
fn a_key_that_must_not_exist_is_created_once_and_blocks_take_turns() {
    const ROUNDS: i64 = 300;
    let server = Server::start();
    server.ask::<()>(&["SET", "turn", "0"]);
    // A thread that finds the turn at n makes it n + 1: all try the same n, one succeeds.
    let made = contended(&server, |turns| {
        let turn: i64 = server_turn(turns)?;
        let next = format!("made:{}", turn + 1);
        let reported = turns
            .require(Condition::at_most("turn", ROUNDS - 1))
            .require(Condition::not_exists(&next))
            .require(Condition::equals("turn", turn))
            .run(|tx| {
                tx.incr("made", 1);
                tx.set(&next, 1);
                Ok(tx.incr("turn", 1))
            });
        match reported {
            Ok(made) => assert_eq!(made, turn + 1),
            // Another thread was faster: the loop goes on.
            Err(Error::ConditionFailed { index: 1.., .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    });
    assert!(made >= ROUNDS as u64);
    assert_eq!(server.ask::<Vec<i64>>(&["MGET", "turn", "made"]), [ROUNDS, ROUNDS]);
}

fn server_turn(turns: &Transactional) -> Result<i64, Error> {
    turns.run(|tx| Ok(tx.get("turn")))
}
