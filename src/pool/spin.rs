//! Whether a thread that has to wait yields to other threads before it sleeps.
//!
//! Often the response has arrived by the time the thread runs again: then it need not sleep or be
//! woken. But other programs may want the processors. A thread that yielded then runs again only
//! after their time slices, while a thread that slept is preferred when it is woken. So this
//! measures the time that a yield takes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sync::shim::yield_now;

/// Minimum time of a late yield; it has probably waited for other programs' time slices.
const LATE: Duration = Duration::from_millis(2);
/// Weight of a late yield, in timely ones.
const WEIGHT: u32 = 32;
/// Weight at which yields pause. It is more than can be late at once when the whole machine stops.
const MOST: u32 = 64 * WEIGHT;
/// Duration of a pause.
const PAUSE: Duration = Duration::from_millis(500);
/// Weight after a pause: a few more late yields begin the next pause.
const LEFT: u32 = MOST - 4 * WEIGHT;

/// The results of recent yields. Threads that count at once may lose a count: these are tendencies.
#[derive(Debug)]
pub(crate) struct SpinPolicy {
    created: Instant,
    late: AtomicU32,
    /// Nanoseconds since `created`.
    paused_until: AtomicU64,
}

impl SpinPolicy {
    pub(crate) fn new() -> Self {
        Self { created: Instant::now(), late: AtomicU32::new(0), paused_until: AtomicU64::new(0) }
    }

    /// Yields to other threads, unless that has recently taken long or `deadline` is over.
    pub(crate) fn yield_once(&self, deadline: Instant) {
        let begun = Instant::now();
        if begun < deadline && self.is_worthwhile(begun) {
            yield_now();
            self.record(begun, Instant::now());
        }
    }

    fn is_worthwhile(&self, now: Instant) -> bool {
        self.stamp(now) >= self.paused_until.load(Ordering::Relaxed)
    }

    fn record(&self, begun: Instant, back: Instant) {
        let before = self.late.load(Ordering::Relaxed);
        let mut late = before.saturating_sub(1);
        if back.saturating_duration_since(begun) >= LATE {
            late = before + WEIGHT;
        }
        if late >= MOST {
            self.paused_until.store(self.stamp(back + PAUSE), Ordering::Relaxed);
            late = LEFT;
        }
        if late != before {
            self.late.store(late, Ordering::Relaxed);
        }
    }

    fn stamp(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.created).as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(300);

    /// Yields `count` times, each for `each`, and returns the time after it.
    fn times(spin: &SpinPolicy, count: u32, each: Duration, mut now: Instant) -> Instant {
        for _ in 0..count {
            spin.record(now, now + each);
            now += each;
        }
        now
    }

    #[test]
    fn a_thread_that_resumes_soon_keeps_yielding() {
        let spin = SpinPolicy::new();
        let now = times(&spin, 10_000, SOON, Instant::now());
        assert!(spin.is_worthwhile(now));
    }

    #[test]
    fn if_threads_resume_late_no_caller_yields_for_a_while() {
        let spin = SpinPolicy::new();
        let too_many = MOST / WEIGHT;
        let now = times(&spin, too_many - 1, LATE, Instant::now());
        assert!(spin.is_worthwhile(now), "a short stop of the whole machine is no proof");
        let now = times(&spin, 1, LATE, now);
        assert!(!spin.is_worthwhile(now));
        assert!(!spin.is_worthwhile(now + PAUSE - Duration::from_nanos(1)));
        // Then yields are tried again, with a lower limit.
        let now = times(&spin, 3, LATE, now + PAUSE);
        assert!(spin.is_worthwhile(now));
        let now = times(&spin, 1, LATE, now);
        assert!(!spin.is_worthwhile(now));
        // Many timely yields restore it.
        let now = times(&spin, MOST, SOON, now + PAUSE);
        let now = times(&spin, too_many - 1, LATE, now);
        assert!(spin.is_worthwhile(now));
    }

    #[test]
    fn one_late_in_twenty_five_is_too_many_and_one_in_forty_is_not() {
        for (others, is_worthwhile) in [(24, false), (39, true)] {
            let spin = SpinPolicy::new();
            let mut now = Instant::now();
            let always = (0..500).all(|_| {
                now = times(&spin, others, SOON, times(&spin, 1, LATE, now));
                spin.is_worthwhile(now)
            });
            assert_eq!(always, is_worthwhile, "one late of {}", others + 1);
        }
    }

    #[test]
    fn giving_way_is_counted() {
        let spin = SpinPolicy::new();
        spin.late.store(5, Ordering::Relaxed);
        let soon = Instant::now() + Duration::from_secs(3600);
        spin.yield_once(soon);
        let late = spin.late.load(Ordering::Relaxed);
        assert!(late == 4 || late == 5 + WEIGHT, "{late}");
        // It does not yield without time left, nor while yields do not pay.
        spin.yield_once(Instant::now());
        spin.paused_until.store(u64::MAX, Ordering::Relaxed);
        spin.yield_once(soon);
        assert_eq!(spin.late.load(Ordering::Relaxed), late);
    }
}
