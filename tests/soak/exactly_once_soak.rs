//! The exactly-once soak: transactions cut at every point of the wire, their doubts resolved at
//! once, late, again and by several at a time; then everything that was returned is compared with the
//! server's data.
//!
//! ```text
//! cargo test --test soak -- --nocapture exactly_once_soak::
//! REDISCOPE_CUTS=100000 REDISCOPE_SOAK_SEED=7 cargo test --release --test soak -- --nocapture exactly_once_soak::
//! ```
//!
//! Two protocols that look as safe get the same cuts and must be found out, and a master is killed with its
//! replica promoted (`REDISCOPE_FAILOVERS` times). On Linux, where each worker can have an address of its
//! own, the same runs on a cluster whose slots move (`REDISCOPE_MOVING_CUTS`). The seed decides what is cut,
//! and when each doubt is resolved. What runs at the same time depends on the threads.
//!
//! Guarantee: exactly-once

mod controls;
mod failover;
mod faults;
mod fixture;
mod groups;
mod ledger;
#[cfg(target_os = "linux")]
mod moving;
mod operations;
mod raw;
mod report;
mod resolvers;
mod soak;
mod worker;

use controls::Rule;
use rediscope_testing::soak::{number, seed};

/// Time within which bytes that a proxy held arrive at the server.
const ARRIVAL: std::time::Duration = std::time::Duration::from_millis(500);
const CUTS: u64 = 2_500;
const FAILOVERS: u64 = 3;
#[cfg(target_os = "linux")]
const MOVING_CUTS: u64 = 500;
/// Number of cuts within which a wrong protocol is found out.
const CONTROL_CUTS: u64 = 1_000;

/// The same while slots move.
#[cfg(target_os = "linux")]
const MOVING_CONTROL_CUTS: u64 = 200;

#[test]
fn wherever_a_transaction_is_cut_its_outcome_is_true() {
    rediscope_testing::own_process!(alone);
    let seed = seed();
    let cuts = number("REDISCOPE_CUTS").unwrap_or(CUTS);
    let report = soak::run(seed, cuts);
    println!("\n{report}");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
}

#[test]
fn a_marker_inside_the_transaction_is_found_out() {
    rediscope_testing::own_process!(alone);
    let seed = seed();
    let found = controls::run(Rule::Marker, CONTROL_CUTS, seed);
    println!("\n{found}");
    assert!(found.wrong > 0, "the cuts do not find out an unsafe protocol");
}

#[test]
fn a_fence_whose_watch_was_not_acknowledged_is_found_out() {
    rediscope_testing::own_process!(alone);
    let seed = seed();
    let found = controls::run(Rule::Unacknowledged, CONTROL_CUTS, seed);
    println!("\n{found}");
    assert!(found.wrong > 0, "the cuts do not find out an unsafe protocol");
}

#[test]
fn the_fence_itself_withstands_the_cuts_that_find_the_others_out() {
    rediscope_testing::own_process!(alone);
    let seed = seed();
    let found = controls::run(Rule::WatchedRegister, CONTROL_CUTS, seed);
    println!("\n{found}");
    assert_eq!(found.wrong, 0, "{found}");
    assert!(found.late > 0, "no EXEC came late");
}

#[test]
fn after_a_failover_register_and_data_agree() {
    rediscope_testing::own_process!();
    let seed = seed();
    let rounds = number("REDISCOPE_FAILOVERS").unwrap_or(FAILOVERS);
    let found = failover::run(seed, rounds);
    println!("\n{found}");
    assert!(found.broken().is_empty(), "{:#?}", found.broken());
}

#[cfg(target_os = "linux")]
mod while_slots_move {
    use super::moving;
    use super::resolvers::Rule;
    use super::{MOVING_CONTROL_CUTS, MOVING_CUTS, number, seed};

    #[test]
    fn wherever_a_transaction_is_cut_while_its_slot_moves_its_outcome_is_true() {
        rediscope_testing::own_process!();
        let seed = seed();
        let cuts = number("REDISCOPE_MOVING_CUTS").unwrap_or(MOVING_CUTS);
        let report = moving::run(seed, cuts);
        println!("\n{report}");
        assert!(report.broken().is_empty(), "{:#?}", report.broken());
    }

    #[test]
    fn while_slots_move_a_marker_and_the_word_of_the_old_owner_are_found_out() {
        rediscope_testing::own_process!();
        let seed = seed();
        for rule in [Rule::Marker, Rule::OldOwner] {
            let found = moving::control(rule, seed, MOVING_CONTROL_CUTS);
            let (wrong, doubts) = (found.verdict.wrong, found.verdict.again);
            println!("{rule:?}: {wrong} wrong results, {doubts:?}, {:.1?}", found.took);
            assert!(wrong > 0, "{rule:?}: the cuts do not find out an unsafe answer");
        }
    }
}
