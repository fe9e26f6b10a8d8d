//! The fault soak: 64 threads on two pools of 8, and a server and a network that break in every
//! way. What each call returned is compared with the server's ledger.
//!
//! ```text
//! cargo test --test soak -- --nocapture fault_soak::
//! REDISCOPE_SOAK_SECONDS=600 REDISCOPE_SOAK_SEED=7 cargo test --release --test soak -- --nocapture fault_soak::
//! ```
//!
//! The seed decides which faults come in which order and what each transaction is. Which of them run at
//! the same time depends on the threads.
//!
//! Guarantee: pools

mod barrier;
mod calls;
mod expectations;
mod faults;
mod fixture;
mod injector;
mod ledger;
mod load;
mod operations;
mod report;
mod soak;

use std::time::Duration;

use rediscope_testing::soak::{number, seed};
use soak::Plan;

const SECONDS: u64 = 15;

#[test]
fn whatever_breaks_every_outcome_is_what_the_server_did() {
    rediscope_testing::own_process!(alone);
    let seconds = number("REDISCOPE_SOAK_SECONDS").unwrap_or(SECONDS);
    let seed = seed();
    println!("REDISCOPE_SOAK_SECONDS={seconds}");
    let report = soak::run(Plan { seed, lasts: Duration::from_secs(seconds) });
    println!("\n{report}");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
}
