//! What the models share: how schedules are explored, and how a planted mistake is found.

#![allow(
    clippy::expect_used,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::panic::catch_unwind;

const ITERATIONS: usize = 10_000;

/// How deep in rare orders the second way of looking looks.
const DEPTH: usize = 3;

/// Both ways of looking find nothing wrong.
pub(crate) fn check(model: fn()) {
    at_random(model);
    in_rare_orders(model);
}

fn at_random(model: fn()) {
    shuttle::check_random(model, ITERATIONS);
}

fn in_rare_orders(model: fn()) {
    shuttle::check_pct(model, ITERATIONS, DEPTH);
}

/// Either way of looking finds the mistake, and for what it is: which of its symptoms shows first
/// is up to the schedule.
#[track_caller]
pub(crate) fn assert_found(planted: fn(), as_what: &[&str]) {
    found(|| at_random(planted), as_what);
    found(|| in_rare_orders(planted), as_what);
}

/// Five times as many random schedules find it.
#[track_caller]
pub(crate) fn assert_found_at_random(planted: fn(), as_what: &[&str]) {
    found(|| shuttle::check_random(planted, 5 * ITERATIONS), as_what);
}

#[track_caller]
fn found(look: impl FnOnce() + std::panic::UnwindSafe, as_what: &[&str]) {
    let found = catch_unwind(look).expect_err("the planted mistake was not found");
    let text = found.downcast_ref::<String>().cloned();
    let text = text.or_else(|| found.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let text = text.unwrap_or_default();
    let known = as_what.iter().any(|what| text.contains(what));
    assert!(known, "found something else: {text}");
}
