//! The locks' soak: a former fault with many waiters, the history of several processes that hold a lock in
//! turn, and writes that are fenced by lost locks.
//!
//! ```text
//! cargo test --test soak -- --nocapture lock_soak::
//! REDISCOPE_TRIES=1000000 REDISCOPE_WRITES=50000 REDISCOPE_HOLDS=5000 REDISCOPE_SOAK_SEED=7 \
//!     cargo test --release --test soak -- --nocapture lock_soak::
//! ```
//!
//! With `--features tokio` the same name runs those of tasks as well, from one text.
//!
//! The seed decides which client tries, holds and breaks what for how long. What runs at the same time
//! depends on the threads.
//!
//! Guarantee: locks

mod clients;
mod faults;
mod history;
pub(crate) mod listen;
mod moving;
pub(crate) mod regression;
mod scenarios;
mod writes;

use super::{contenders, side};
use clients::{Asks, be_one_of_them};
use rediscope_testing::soak::{number, seed};
use scenarios::Scenario;

const TRIES: u64 = 20_000;
const WRITES: u64 = 2_000;
const HOLDS: usize = 60;
const FAILOVERS: u64 = 1;
/// Number of holds in a cluster, while their slot moves.
const MOVING_HOLDS: usize = 40;
/// Number of holds within which a lock that is taken away is found out.
const CONTROL_HOLDS: usize = 80;
/// Number of failovers within which a lock without a wait for replicas is found out.
const CONTROL_FAILOVERS: u64 = 12;

fn holds() -> usize {
    number("REDISCOPE_HOLDS").map_or(HOLDS, |holds| holds as usize)
}

#[test]
fn of_contended_tries_under_faults_nothing_is_left() {
    rediscope_testing::own_process!(alone);
    let seed = seed();
    let report = regression::run(seed, number("REDISCOPE_TRIES").unwrap_or(TRIES));
    println!("\n{report}");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
}

/// Is itself one of the other processes if a variable has orders for it.
#[test]
fn a_caller_that_believes_to_hold_the_lock_holds_it_alone() {
    if be_one_of_them() {
        return;
    }
    rediscope_testing::own_process!();
    let seed = seed();
    for scenario in [Scenario::Expiry, Scenario::Stops, Scenario::Restarts, Scenario::Permits] {
        let found = scenarios::run(scenario, seed, holds());
        println!("{found}");
        assert!(found.broken().is_empty(), "{:#?}", found.broken());
    }
}

#[test]
fn a_lock_that_a_replica_was_waited_for_survives_the_failover_to_it() {
    rediscope_testing::own_process!();
    let seed = seed();
    let rounds = number("REDISCOPE_FAILOVERS").unwrap_or(FAILOVERS);
    for asks in [Asks::Clock, Asks::Server] {
        let found = scenarios::fail_over(seed, rounds, asks, true);
        println!("{found}");
        assert!(found.broken().is_empty(), "{:#?}", found.broken());
    }
}

mod in_a_cluster {
    use super::moving;
    use super::{Asks, CONTROL_FAILOVERS, FAILOVERS, MOVING_HOLDS, number, seed};

    #[test]
    fn a_lock_whose_slot_moves_is_held_by_one_at_a_time_and_its_tokens_grow() {
        rediscope_testing::own_process!();
        let seed = seed();
        let holds = number("REDISCOPE_HOLDS").map_or(MOVING_HOLDS, |holds| holds as usize / 5);
        let found = moving::run(seed, holds);
        println!("{found}");
        assert!(found.broken().is_empty(), "{:#?}", found.broken());
    }

    /// The suite has one failover, without a history, in `tests/it/cluster/locks.rs`.
    #[test]
    #[ignore = "minutes of failovers: make soak-locks"]
    fn a_lock_whose_master_dies_is_held_by_one_at_a_time_if_a_replica_was_waited_for() {
        rediscope_testing::own_process!();
        let seed = seed();
        let rounds = number("REDISCOPE_FAILOVERS").unwrap_or(FAILOVERS);
        for asks in [Asks::Clock, Asks::Server] {
            let found = moving::fail_over(seed, rounds.div_ceil(2), asks, true);
            println!("{found}");
            assert!(found.broken().is_empty(), "{:#?}", found.broken());
        }
        let found = moving::fail_over(seed, CONTROL_FAILOVERS, Asks::Clock, false);
        println!("{found}");
        assert!(!found.verdict.faults.is_empty(), "the history does not find a second holder");
    }
}

#[test]
fn a_lock_that_no_replica_was_waited_for_is_found_to_be_held_twice() {
    rediscope_testing::own_process!();
    let seed = seed();
    let found = scenarios::fail_over(seed, CONTROL_FAILOVERS, Asks::Clock, false);
    println!("{found}");
    assert!(!found.verdict.faults.is_empty(), "the history does not find a second holder");
}

#[test]
fn a_lock_that_is_forced_is_found_to_be_held_twice() {
    rediscope_testing::own_process!();
    let seed = seed();
    let found = scenarios::run(Scenario::Forced, seed, CONTROL_HOLDS);
    println!("{found}");
    assert!(!found.verdict.faults.is_empty(), "the history does not find a second holder");
}

#[test]
fn a_write_that_is_fenced_by_a_lost_lock_never_lands() {
    rediscope_testing::own_process!();
    let seed = seed();
    let found = writes::run(seed, number("REDISCOPE_WRITES").unwrap_or(WRITES));
    println!("\n{found}");
    assert!(found.broken().is_empty(), "{:#?}", found.broken());
}

#[test]
fn a_write_that_is_not_fenced_is_found_out() {
    rediscope_testing::own_process!();
    let seed = seed();
    let found = writes::run_unfenced(seed, 500);
    println!("\n{found}");
    assert!(found.landed > 0, "the ledger does not find a late write");
}
