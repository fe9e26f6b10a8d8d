//! The count of attempts under a model checker, over a pool that counts as r2d2 does.
//! `scripts/model` runs this.
//!
//! A caller that waits for an attempt that no thread makes checks the pool again and again. The model
//! fails after more checks than a schedule can cause.
//!
//! A planted mistake shows that the checks can fail.
//!
//! Guarantee: pools

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use shuttle::thread;

use super::*;
use crate::pool::model::{assert_found_at_random, check};

const SIZE: u32 = 2;
const CALLERS: usize = 4;
const IN_VAIN: usize = 3_000;

/// A pool that opens connections as r2d2 does: never more than there is room for, counting those
/// that are still being opened; and a request for more is ignored.
#[derive(Default)]
struct Pool {
    inside: Mutex<Inside>,
    attempts: Arc<ConnectAttempts>,
    permits: Mutex<u32>,
    over: AtomicBool,
    leftover: AtomicUsize,
}

#[derive(Default)]
struct Inside {
    idle: Vec<Option<NewConnection>>,
    connections: u32,
    pending: u32,
}

type Take = fn(&Pool, &mut Requester<'_>) -> Option<Option<NewConnection>>;

impl Pool {
    fn try_get(&self) -> Option<Option<NewConnection>> {
        lock(&self.inside).idle.pop()
    }

    fn get_or_add(&self) -> Option<Option<NewConnection>> {
        let mut inside = lock(&self.inside);
        if let Some(found) = inside.idle.pop() {
            return Some(found);
        }
        if inside.connections + inside.pending < SIZE {
            inside.pending += 1;
        }
        None
    }

    /// What r2d2's threads do.
    fn opens(&self) {
        while !self.over.load(Ordering::SeqCst) {
            if lock(&self.inside).pending > 0 {
                let arrival = self.attempts.connection_opened();
                thread::yield_now();
                let mut inside = lock(&self.inside);
                inside.idle.push(Some(arrival));
                inside.pending -= 1;
                inside.connections += 1;
            }
            thread::yield_now();
        }
    }

    fn permit(&self) {
        loop {
            let mut free = lock(&self.permits);
            if *free > 0 {
                *free -= 1;
                return;
            }
            drop(free);
            thread::yield_now();
        }
    }

    /// One scope, whose connection comes back or is closed.
    fn scope(&self, breaks: bool, take: Take) {
        self.permit();
        let mut caller = self.attempts.requester();
        let mut looks = 0;
        let arrival = loop {
            if let Some(found) = take(self, &mut caller) {
                break found;
            }
            looks += 1;
            assert!(looks < IN_VAIN, "a caller waits for an attempt that no thread makes");
            thread::yield_now();
        };
        drop(arrival);
        drop(caller);
        thread::yield_now();
        let mut inside = lock(&self.inside);
        if breaks {
            inside.connections -= 1;
        } else {
            inside.idle.push(None);
        }
        drop(inside);
        *lock(&self.permits) += 1;
    }
}

fn every_caller_is_served(take: Take) {
    let pool = Arc::new(Pool::default());
    *lock(&pool.permits) = SIZE;
    let opener = {
        let pool = Arc::clone(&pool);
        thread::spawn(move || pool.opens())
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|nth| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                pool.scope(nth % 2 == 0, take);
                pool.leftover.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    pool.over.store(true, Ordering::SeqCst);
    opener.join().unwrap();
    assert_eq!(pool.leftover.load(Ordering::SeqCst), CALLERS);
    let inside = lock(&pool.inside);
    let arrived = inside.idle.iter().filter(|idle| idle.is_some()).count() as u32;
    let count = lock(&pool.attempts.count);
    assert_eq!(count.requesters, 0);
    assert!(
        count.under_way <= inside.pending + arrived,
        "an attempt is counted that no thread makes"
    );
    drop(count);
    drop(inside);
    // What is idle belongs to the pool: it must go before the lock that its drop takes is gone.
    lock(&pool.inside).idle.clear();
}

fn as_the_pool_does(pool: &Pool, caller: &mut Requester<'_>) -> Option<Option<NewConnection>> {
    caller.take(|| pool.try_get(), || pool.get_or_add())
}

/// The mistake: a caller that waits, and so counts, takes a connection and counts for a moment more.
fn still_a_caller(pool: &Pool, caller: &mut Requester<'_>) -> Option<Option<NewConnection>> {
    if let Some(found) = pool.try_get() {
        thread::yield_now();
        return Some(found);
    }
    caller.take(|| None, || pool.get_or_add())
}

#[test]
fn model_of_callers_that_open_connections_and_find_others() {
    check(|| every_caller_is_served(as_the_pool_does));
}

#[test]
fn model_finds_a_caller_that_counts_although_it_has_a_connection() {
    assert_found_at_random(|| every_caller_is_served(still_a_caller), &["that no thread makes"]);
}
