//! Warnings for the operator, at most one a second of each kind, or one for each place in the code.
//!
//! So a log does not grow with the load of an incident.

use std::collections::HashSet;
use std::panic::Location;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Minimum delay between two warnings of one kind.
const PAUSE: Duration = Duration::from_secs(1);

/// The kinds of warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitedEvent {
    InDoubt,
    NotIsolated,
    PartlyApplied,
    UnresolvedDoubt,
    CheckoutRefused,
}

/// The time of the last warning of each kind, and the number of those suppressed since.
#[derive(Debug, Default)]
pub(crate) struct RateLimits {
    kinds: [Kind; 5],
    /// Places in the code about which a warning was written.
    places: Mutex<HashSet<&'static Location<'static>>>,
}

#[derive(Debug, Default)]
struct Kind {
    last: Mutex<Option<Instant>>,
    suppressed: AtomicU64,
}

impl RateLimits {
    /// Returns whether the warning is written now: `Some` with the number of suppressed ones.
    pub(crate) fn allow(&self, event: LimitedEvent) -> Option<u64> {
        let kind = self.kinds.get(event as usize)?;
        let mut last = lock(&kind.last);
        let now = Instant::now();
        if last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            kind.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *last = Some(now);
        Some(kind.suppressed.swap(0, Ordering::Relaxed))
    }

    /// Returns whether this is the first warning about a place.
    pub(crate) fn allow_once(&self, place: &'static Location<'static>) -> bool {
        lock(&self.places).insert(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second_a_kind_is_written_with_a_count_of_the_others() {
        let rate_limits = RateLimits::default();
        assert_eq!(rate_limits.allow(LimitedEvent::InDoubt), Some(0));
        assert_eq!(
            rate_limits.allow(LimitedEvent::CheckoutRefused),
            Some(0),
            "each kind for itself"
        );
        assert_eq!((0..5).filter_map(|_| rate_limits.allow(LimitedEvent::InDoubt)).count(), 0);
        let second = rate_limits.kinds[LimitedEvent::InDoubt as usize].last.lock().unwrap().take();
        assert!(second.is_some());
        assert_eq!(rate_limits.allow(LimitedEvent::InDoubt), Some(5));
    }
}
