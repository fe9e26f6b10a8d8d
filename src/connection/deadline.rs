//! An instant by which a call must be over.
//!
//! Never: a system call that only moves a timeout a little.

use std::time::{Duration, Instant};

/// Upper bound of every wait, a hundred years: a caller's `Duration::MAX` is past the end of the clock.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// So long after `from`, by [`LONGEST`] at most.
pub(crate) fn later(from: Instant, limit: Duration) -> Instant {
    from.checked_add(limit.min(LONGEST)).unwrap_or(from)
}

/// So long after now, by [`LONGEST`] at most.
pub(crate) fn after(limit: Duration) -> Instant {
    later(Instant::now(), limit)
}

/// An instant by which a call must be over, and how long it had been given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { at: after(limit), limit }
    }

    /// The same, but over by `other` at the latest.
    pub(crate) fn capped(self, other: Instant) -> Self {
        Self { at: self.at.min(other), limit: self.limit }
    }

    /// The timeout for one wait of the socket's, if there is time left: the call's whole limit,
    /// which stays set from call to call, unless a good part of it is gone.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let whole = left > self.limit - self.limit / 8;
        Some(if whole { self.limit } else { left.max(Duration::from_millis(1)) })
    }
}
