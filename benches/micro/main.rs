//! Micro benches of the crate alone, through its public API: the encoder, the classifier of
//! replies, checkout, hand-off. `scripts/bench micro`
//!
//! What needs a server has one in this process that answers from a table, so that Redis's own
//! work is not in the figures.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a bench that fails says so and ends"
)]

mod canned;

use std::sync::LazyLock;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use rediscope::{Error, SessionManager, TransactionOptions, Transactional, prelude::*};

fn main() {
    divan::main();
}

/// What a closure ends with that is to be encoded and not sent.
#[derive(Debug)]
struct NotSent;

impl From<Error> for NotSent {
    fn from(_: Error) -> Self {
        Self
    }
}

fn sessions(max_size: u32) -> SessionManager {
    SessionManager::builder(canned::url())
        .max_size(max_size)
        .flush_bytes(64 * 1024 * 1024)
        // The form of a busy pool: no MULTI is asked for first, however slow the machine is.
        .trust_window(std::time::Duration::from_secs(60))
        .build()
        .unwrap()
}

fn transactional(max_size: u32) -> Transactional {
    let transactional = sessions(max_size).transactional();
    transactional.run(|tx| Ok(tx.incr("key", 1))).unwrap();
    transactional
}

/// Blocks that are encoded and given up: nothing is checked out or sent.
#[divan::bench(args = [1, 2, 10, 100, 10_000])]
fn encoder(bencher: Bencher<'_, '_>, commands: usize) {
    let transactional = transactional(1);
    bencher.counter(ItemsCount::new(commands)).bench_local(|| {
        transactional.run_with(|tx| {
            for _ in 0..commands {
                black_box(tx.incr("a key of some length", 1));
            }
            Err::<(), _>(NotSent)
        })
    });
}

/// Whole transactions: beyond the round trip (see one command) it is QUEUED, EXEC's array, and
/// the values.
#[divan::bench(args = [1, 2, 10, 100, 10_000])]
fn classifier(bencher: Bencher<'_, '_>, commands: usize) {
    let transactional = transactional(1);
    bencher.counter(ItemsCount::new(commands)).bench_local(|| {
        let queue = |tx: &mut rediscope::Block| {
            Ok((0..commands).map(|_| tx.incr("key", 1)).collect::<Vec<_>>())
        };
        transactional.run(queue).unwrap()
    });
}

/// A connection taken and given back, nothing sent, no caller waiting.
#[divan::bench(sample_size = 100)]
fn checkout(bencher: Bencher<'_, '_>) {
    let transactional = transactional(8);
    bencher.bench_local(|| drop(black_box(transactional.begin().unwrap())));
}

static ONE: LazyLock<Transactional> = LazyLock::new(|| transactional(1));

/// The same, where each thread but one waits for the only connection: the permit goes from the
/// thread that returns it to the first in line.
#[divan::bench(threads = [2, 8, 64], sample_size = 200)]
fn hand_off(bencher: Bencher<'_, '_>) {
    bencher.bench(|| drop(black_box(ONE.begin().unwrap())));
}

static GROUPED: LazyLock<Transactional> =
    LazyLock::new(|| transactional(1).with(TransactionOptions::new().grouped()));

/// Blocks that wait for the only connection and are sent together.
#[divan::bench(threads = [1, 2, 8, 64], sample_size = 50)]
fn grouped(bencher: Bencher<'_, '_>) {
    bencher.bench(|| GROUPED.run(|tx| Ok(tx.incr("key", 1))).unwrap());
}
