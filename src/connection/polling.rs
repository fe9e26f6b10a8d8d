//! Polls a socket for a reply before its thread sleeps.
//!
//! A thread that sleeps loses some ten microseconds until it runs again, which is as much as a reply
//! of a near server takes. Polling takes a processor from other threads, so only a call that is the
//! only one under way in the process polls. After a reply that did not come in time, some replies are
//! awaited without polling.

use std::time::{Duration, Instant};

use crate::sync::under_way::{CountCalls, is_alone};

/// Maximum number of replies that are awaited without polling after one that came too late.
const MAX_SKIPPED: u32 = 1024;

/// Whether and how long one connection polls.
#[derive(Debug, Default)]
pub(crate) struct Polling {
    /// Maximum time for one reply; zero: it does not poll.
    limit: Duration,
    /// Number of waits that the next late reply costs.
    penalty: u32,
    /// Number of waits without polling that are left.
    skipped: u32,
    _counts: Option<CountCalls>,
}

impl Polling {
    pub(crate) fn new(limit: Duration) -> Self {
        let counts = (!limit.is_zero()).then(CountCalls::begin);
        Self { limit, _counts: counts, ..Self::default() }
    }

    /// Calls `has_come` until it returns true, the limit has passed, or another call is under way. Returns
    /// whether time has passed in vain.
    #[inline]
    pub(crate) fn poll(&mut self, timeout: Duration, has_come: impl FnMut() -> bool) -> bool {
        !self.limit.is_zero() && self.poll_until(Instant::now() + self.limit.min(timeout), has_come)
    }

    #[cold]
    fn poll_until(&mut self, until: Instant, mut has_come: impl FnMut() -> bool) -> bool {
        if let Some(left) = self.skipped.checked_sub(1) {
            self.skipped = left;
            return false;
        }
        while is_alone() {
            if has_come() {
                self.penalty = 0;
                return false;
            }
            if Instant::now() >= until {
                self.penalty = (2 * self.penalty).clamp(1, MAX_SKIPPED);
                self.skipped = self.penalty;
                return true;
            }
            // The server may need this processor.
            std::thread::yield_now();
        }
        true
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Number of calls of `has_come` during one wait.
    fn polls(polling: &mut Polling, comes: bool) -> u32 {
        let mut polls = 0;
        let in_vain = polling.poll(LONG, || {
            polls += 1;
            comes
        });
        assert_eq!(in_vain, polls > 0 && !comes);
        polls
    }

    #[test]
    fn late_replies_are_polled_for_ever_more_rarely_and_one_in_time_ends_that() {
        let mut off = Polling::default();
        assert_eq!(polls(&mut off, true), 0);
        let mut polling = Polling { limit: Duration::from_nanos(1), ..Polling::default() };
        let polled = |polling: &mut Polling, comes| polls(polling, comes) > 0;
        assert!(polled(&mut polling, true) && polled(&mut polling, false));
        for skipped in [1, 2, 4] {
            assert_eq!((0..skipped).filter(|_| polled(&mut polling, true)).count(), 0);
            assert!(polled(&mut polling, false));
        }
        (0..100_000).for_each(|_| _ = polls(&mut polling, false));
        let next = (0..).position(|_| polled(&mut polling, true)).unwrap_or_default();
        assert!(next <= MAX_SKIPPED as usize, "{next}");
        assert!((0..10).all(|_| polled(&mut polling, true)), "replies come in time again");
    }
}
