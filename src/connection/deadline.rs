//! An instant by which a call must end. It spares system calls that would change a timeout only
//! slightly.

use std::time::{Duration, Instant};

/// Upper bound of a timeout, a hundred years, so that `Instant + timeout` cannot overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Returns the instant `limit` after `from`, with [`MAX_TIMEOUT`] as the maximum.
pub(crate) fn later(from: Instant, limit: Duration) -> Instant {
    from.checked_add(limit.min(MAX_TIMEOUT)).unwrap_or(from)
}

/// Returns the instant `limit` after now, with [`MAX_TIMEOUT`] as the maximum.
pub(crate) fn after(limit: Duration) -> Instant {
    later(Instant::now(), limit)
}

/// An instant by which a call must end, and the time that the call was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
    is_cut: bool,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { at: after(limit), limit, is_cut: false }
    }

    /// The same, but `other` at the latest.
    pub(crate) fn capped(self, other: Instant) -> Self {
        Self { at: self.at.min(other), limit: self.limit, is_cut: self.is_cut || other < self.at }
    }

    /// Whether it leaves less time than the call was given: a reply that has not come by then may be
    /// on its way.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The instant itself.
    #[cfg(feature = "tokio")]
    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// Returns the timeout for one wait of the socket, if there is time left. If more
    /// than 7/8 of the limit is left, this is the whole limit, so that the socket's timeout need not
    /// be changed by a system call, unless another instant cuts it. Otherwise it is the time left, at
    /// least 1 ms.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let whole = !self.is_cut && left > self.limit - self.limit / 8;
        Some(if whole { self.limit } else { left.max(Duration::from_millis(1)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_of_the_socket_ends_with_the_instant_that_cuts_it() {
        let limit = Duration::from_secs(80);
        assert_eq!(Deadline::after(limit).timeout(), Some(limit));
        let cut = limit - limit / 16;
        let timeout = Deadline::after(limit).capped(after(cut)).timeout();
        assert!(timeout.is_some_and(|timeout| timeout <= cut), "{timeout:?}");
    }
}
