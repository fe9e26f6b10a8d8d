//! A server that is stopped under many queued blocks: each call ends within its deadline, with nothing applied if nothing was
//! sent, and the memory is bounded.
//!
//! Guarantee: tasks

use std::sync::Arc;
use std::time::{Duration, Instant};

use rediscope::error::Applied;
use rediscope::prelude::*;

use super::dropped::join_all;
use super::{LANES, MAX_SIZE, number, runtime};
use crate::SOON;
use rediscope_testing::rss_bytes;
use rediscope_testing::server::Server;

const TASKS: u64 = 2_000;
const CHECKOUT: Duration = Duration::from_secs(2);
const RESPONSE: Duration = Duration::from_millis(700);
/// Time that a busy machine may add to 100,000 calls that end at the same time.
const SLACK: Duration = Duration::from_secs(15);
/// Memory of a queued block, with its future.
const BLOCK: u64 = 16 << 10;

#[test]
fn blocks_that_wait_for_a_stopped_server_end_in_time_and_only_what_was_sent_may_be_applied() {
    rediscope_testing::own_process!(alone);
    let blocks = number("REDISCOPE_TASK_BLOCKS", 10_000);
    let (runtime, server) = (runtime(), Server::start());
    let sessions = {
        let _runtime = runtime.enter();
        let builder = rediscope::SessionManager::builder(server.url()).max_size(MAX_SIZE);
        let builder = builder.lanes(LANES).checkout_timeout(CHECKOUT).response_timeout(RESPONSE);
        let builder = builder.connect_timeout(RESPONSE / 2);
        builder.build_async().unwrap()
    };
    let accounts = sessions.transactional();
    runtime.block_on(async { accounts.run(|tx| Ok(tx.incr("n", 1))).await }).unwrap();
    let before = rss_bytes().unwrap();
    server.sigstop();
    let accounts = Arc::new(accounts);
    let call = |accounts: Arc<rediscope::aio::Transactional>| async move {
        let begun = Instant::now();
        let ended = accounts.run(|tx| Ok(tx.incr("n", 1))).await;
        (begun.elapsed(), ended.map_err(|error| error.applied()))
    };
    let spawn = |_| {
        let accounts = Arc::clone(&accounts);
        runtime.spawn(async move {
            join_all((0..blocks / TASKS).map(|_| call(Arc::clone(&accounts)))).await
        })
    };
    let tasks: Vec<_> = (0..TASKS).map(spawn).collect();
    std::thread::sleep(CHECKOUT / 2);
    let queued = rss_bytes().unwrap();
    let ends: Vec<_> = tasks.into_iter().flat_map(|task| runtime.block_on(task).unwrap()).collect();
    server.sigcont();
    let count = |wanted: Result<(), Applied>| {
        ends.iter().filter(|(_, end)| end.as_ref().map(drop).map_err(|e| *e) == wanted).count()
            as u64
    };
    let (committed, nothing) = (count(Ok(())), count(Err(Applied::No)));
    let unknown = count(Err(Applied::Unknown));
    let slowest = ends.iter().map(|(took, _)| *took).max().unwrap();
    println!("{committed} committed, {nothing} not, {unknown} in doubt, the slowest {slowest:?}");
    println!("memory {before} then {queued}");
    assert_eq!(committed + nothing + unknown, blocks);
    assert!(slowest < CHECKOUT + RESPONSE + SLACK, "{slowest:?}");
    assert!(queued < before + blocks * BLOCK + (32 << 20), "{before} then {queued}");
    // As many as one write of each lane may hold.
    assert!(unknown <= u64::from(LANES) * 256, "{unknown} in doubt");
    runtime.block_on(sessions.close(SOON));
    rediscope_testing::eventually(SOON, "no connection is left", || server.clients() == 0);
    let applied: u64 = server.ask(&["GET", "n"]);
    assert!((1 + committed..=1 + committed + unknown).contains(&applied), "{applied}");
}
