//! What the models share: how schedules are explored, and how a planted mistake is found.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::panic::{UnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shuttle::thread;

use crate::pool::early_watch::{EarlyWatch, WatchOffer};

/// Schedules that each way of looking explores of a right model.
const ITERATIONS: usize = 10_000;

/// Most schedules that each way of looking explores of a planted mistake. It ends at the first that
/// finds the mistake; one mistake was missed by 10,000 schedules in one run of five.
const PLANTED_ITERATIONS: usize = 20 * ITERATIONS;

/// How deep in rare orders the second way of looking looks.
const DEPTH: usize = 3;

/// The permits that callers hold, as the test knows it.
pub(crate) struct Held(Vec<AtomicBool>);

impl Held {
    pub(crate) fn new(permits: usize) -> Self {
        Self((0..permits).map(|_| AtomicBool::new(false)).collect())
    }

    pub(crate) fn permits(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn take(&self, permit: usize) {
        assert!(!self.0[permit].swap(true, Ordering::SeqCst), "permit {permit} is held twice");
    }

    pub(crate) fn give_back(&self, permit: usize) {
        assert!(self.0[permit].swap(false, Ordering::SeqCst), "permit {permit} was not held");
    }
}

/// What a caller that waits leaves with its place.
pub(crate) fn early_watch(watch: &[u8]) -> EarlyWatch {
    let offer = WatchOffer::<()> { watch, travels: true, reads: (b"", 0), needs: None, turn: None };
    offer.early_watch().unwrap()
}

/// The deadline of a caller that never gives up.
pub(crate) fn patient() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Runs `call` on a thread for each caller, and returns when all have ended.
pub(crate) fn every_caller(callers: usize, call: impl Fn(usize) + Send + Sync + 'static) {
    let call = Arc::new(call);
    let threads: Vec<_> = (0..callers)
        .map(|caller| {
            let call = Arc::clone(&call);
            thread::spawn(move || call(caller))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Both ways of looking find nothing wrong.
pub(crate) fn check(model: fn()) {
    shuttle::check_random(model, ITERATIONS);
    shuttle::check_pct(model, ITERATIONS, DEPTH);
}

/// The same with more schedules, for a small model of a rare order.
pub(crate) fn check_for_long(model: fn()) {
    shuttle::check_random(model, PLANTED_ITERATIONS);
    shuttle::check_pct(model, PLANTED_ITERATIONS, DEPTH);
}

/// Either way of looking finds the mistake, and for what it is: which of its symptoms shows first
/// is up to the schedule.
#[track_caller]
pub(crate) fn assert_found(
    planted: impl Fn() + Copy + Send + Sync + UnwindSafe + 'static,
    as_what: &[&str],
) {
    assert_found_at_random(planted, as_what);
    found(move || shuttle::check_pct(planted, PLANTED_ITERATIONS, DEPTH), as_what);
}

/// Random schedules find it.
#[track_caller]
pub(crate) fn assert_found_at_random(
    planted: impl Fn() + Copy + Send + Sync + UnwindSafe + 'static,
    as_what: &[&str],
) {
    found(move || shuttle::check_random(planted, PLANTED_ITERATIONS), as_what);
}

#[track_caller]
fn found(look: impl FnOnce() + UnwindSafe, as_what: &[&str]) {
    let found = catch_unwind(look).expect_err("the planted mistake was not found");
    let text = found.downcast_ref::<String>().cloned();
    let text = text.or_else(|| found.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let text = text.unwrap_or_default();
    let known = as_what.iter().any(|what| text.contains(what));
    assert!(known, "found something else: {text}");
}
