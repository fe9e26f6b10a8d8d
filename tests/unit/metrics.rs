//! Unit tests of `src/status/metrics/reported.rs`: what a recorder that panics has not taken is reported later.
//!
//! Guarantee: reports

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{CounterFn, GaugeFn};

use super::*;
use crate::sync::lock;

/// A series whose next change panics, if it is to.
#[derive(Default)]
struct Series {
    panics: AtomicBool,
    value: Mutex<f64>,
}

impl Series {
    fn change(&self, by: f64) {
        if self.panics.swap(false, Ordering::Relaxed) {
            std::panic::resume_unwind(Box::new("of the recorder"));
        }
        *lock(&self.value) += by;
    }

    fn panics_next(&self) {
        self.panics.store(true, Ordering::Relaxed);
    }

    fn value(&self) -> f64 {
        *lock(&self.value)
    }
}

impl GaugeFn for Series {
    fn increment(&self, value: f64) {
        self.change(value);
    }

    fn decrement(&self, value: f64) {
        self.change(-value);
    }

    fn set(&self, _: f64) {}
}

impl CounterFn for Series {
    fn increment(&self, value: u64) {
        self.change(value as f64);
    }

    fn absolute(&self, _: u64) {}
}

#[test]
fn a_level_that_a_recorder_has_not_taken_is_in_the_next_report() {
    let series = Arc::new(Series::default());
    let (gauge, mut level) = (Gauge::from_arc(Arc::clone(&series)), Level::default());
    for (panics, level_now, reported) in
        [(true, 3, 0.0), (false, 3, 3.0), (false, 5, 5.0), (true, 1, 5.0), (false, 2, 2.0)]
    {
        if panics {
            series.panics_next();
        }
        level.report(&gauge, level_now);
        assert!((series.value() - reported).abs() < 0.5, "{} at {level_now}", series.value());
    }
}

#[test]
fn an_event_that_a_recorder_has_not_taken_is_counted_with_the_next_one() {
    let series = Arc::new(Series::default());
    let count = Count::new(Counter::from_arc(Arc::clone(&series)));
    for (panics, reported) in [(true, 0.0), (true, 0.0), (false, 3.0), (false, 4.0)] {
        if panics {
            series.panics_next();
        }
        count.add_one();
        assert!((series.value() - reported).abs() < 0.5, "{}", series.value());
    }
}
