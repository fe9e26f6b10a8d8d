//! A cluster against one server with as many connections, and the same server by both kinds of
//! address: what the slot check and the way to the pool cost. Both as ratios of one run.
//!
//! `cargo bench --bench cluster`

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a bench: a panic with a clear message is how it reports"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::prelude::*;
use rediscope::{SessionManager, Transactional};

use rediscope_testing::cluster::Cluster;
use rediscope_testing::server::Server;

const LINKS: u32 = 12;
const ROUNDS: usize = 41;
const ROUND: Duration = Duration::from_millis(250);

fn handle(url: &str, links: u32) -> Transactional {
    SessionManager::builder(url).max_size(links).build().unwrap().transactional()
}

/// Transactions of two commands a second, by so many threads, on many slots.
fn throughput(accounts: &Transactional, threads: u32, time: Duration) -> f64 {
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    thread::scope(|scope| {
        for thread in 0..threads {
            let (over, done) = (&over, &done);
            scope.spawn(move || {
                let mut mine = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    let tag = (u64::from(thread) * 7919 + mine) % 4096;
                    let (a, b) = (format!("{{{tag}}}:a"), format!("{{{tag}}}:b"));
                    accounts.run(|tx| Ok((tx.incr(&a, 1), tx.decr(&b, 1)))).unwrap();
                    mine += 1;
                }
                done.fetch_add(mine, Ordering::Relaxed);
            });
        }
        thread::sleep(time);
        over.store(true, Ordering::Relaxed);
    });
    done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

/// The first throughput as a part of the second, round by round in turn: the median and the middle
/// half of all.
fn compare(what: &str, one: (&Transactional, u32), other: (&Transactional, u32)) {
    for (accounts, threads) in [one, other] {
        throughput(accounts, threads, Duration::from_millis(500));
    }
    let mut ratios = Vec::new();
    let mut sums = [0.0; 2];
    for _ in 0..ROUNDS {
        let rates = [one, other].map(|(accounts, threads)| throughput(accounts, threads, ROUND));
        ratios.push(rates[0] / rates[1]);
        sums = [sums[0] + rates[0], sums[1] + rates[1]];
    }
    ratios.sort_by(f64::total_cmp);
    let [rate, other_rate] = sums.map(|sum| sum / ROUNDS as f64);
    println!(
        "{what}: {:.2} ({:.2} to {:.2}); {rate:.0} and {other_rate:.0} transactions a second",
        ratios[ROUNDS / 2],
        ratios[ROUNDS / 4],
        ratios[3 * ROUNDS / 4],
    );
}

fn main() {
    let server = Server::start();
    let cluster = Cluster::start(3, 0);
    let single = handle(&server.url(), LINKS);
    let three = handle(&cluster.url(), LINKS / 3);
    compare(
        "three masters against one server, 12 links each, 12 threads",
        (&three, 12),
        (&single, 12),
    );

    let lone = Cluster::start(1, 0);
    let plainly = handle(&lone.nodes()[0].server.url(), 1);
    let by_slot = handle(&lone.url(), 1);
    compare("by slot against without, the same server, one link", (&by_slot, 1), (&plainly, 1));
}
