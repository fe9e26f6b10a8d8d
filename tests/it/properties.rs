//! Random input, at least ten thousand sequences each, compared with what the server returns to
//! another connection. (Random conversations on one connection are in
//! `tests/unit/connection_state_walk.rs`, random programs on the queue in
//! `tests/unit/queue_properties.rs`: they need what is not public.)
//!
//! A seed that failed is kept in the `.proptest-regressions` file beside its module.

mod encoder;
pub(crate) mod fixture;
mod model;
mod program;
mod server_table;
mod steps;

use proptest::strategy::Strategy;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseResult, TestRunner,
};

/// Runs a property on random values; fails with the smallest value that breaks it.
fn check<S: Strategy>(
    source_file: &'static str,
    sequences: u32,
    values: &S,
    property: impl Fn(S::Value) -> TestCaseResult,
) {
    let kept_beside = FileFailurePersistence::WithSource("proptest-regressions");
    let config = Config {
        cases: sequences,
        max_shrink_iters: 2_000,
        source_file: Some(source_file),
        failure_persistence: Some(Box::new(kept_beside)),
        // The default one takes most of the time of a debug build.
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    };
    if let Err(failure) = TestRunner::new(config).run(values, property) {
        panic!("{failure}");
    }
    println!("{sequences} sequences");
}
