//! The state and the counters of the locks.

use std::fmt;
use std::sync::Arc;

use crate::status::counters::{Counter, Gauge};
use crate::status::metrics::{LockMetrics, PoolMetrics};

/// The locks of a session manager: their current state, and their counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockStatus {
    /// Locks that are held.
    pub held: u64,
    /// Calls that wait for a lock.
    pub waiting: usize,
    /// Lock channels that are subscribed.
    pub subscriptions: usize,
    /// Wakeups that a waiting call has received and not acted on.
    pub permits: usize,
    /// Releases that have no reply yet, and for which no call waits: of dropped guards and calls, and
    /// of calls that failed.
    pub releasing: usize,
    /// Locks that were acquired.
    pub acquired: u64,
    /// Calls that waited for their whole time without the lock.
    pub timeouts: u64,
    /// Leases that were extended.
    pub renewals: u64,
    /// Locks that were lost.
    pub lost: u64,
}

impl LockStatus {
    /// Number of locks that are held, and of calls that wait.
    pub(crate) fn levels(&self) -> [u64; 2] {
        [self.held, self.waiting as u64]
    }
}

impl fmt::Display for LockStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "locks: {} held, {} waiting, {} subscriptions, {} permits out\n  {} acquired, \
             {} timeouts, {} renewals, {} lost",
            self.held,
            self.waiting,
            self.subscriptions,
            self.permits,
            self.acquired,
            self.timeouts,
            self.renewals,
            self.lost
        )?;
        match self.releasing {
            0 => Ok(()),
            releasing => write!(f, ", {releasing} being released"),
        }
    }
}

/// The counters of the locks.
#[derive(Debug, Default)]
pub(crate) struct LockCounters {
    pub(crate) held: Gauge,
    pub(crate) acquired: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) renewals: Counter,
    pub(crate) lost: Counter,
    pub(crate) metrics: LockMetrics,
}

impl LockCounters {
    /// The counters of locks whose metrics have the name of their pool.
    pub(crate) fn named_after(pool: &PoolMetrics) -> Arc<Self> {
        let counters = Self::default();
        counters.metrics.name_after(pool);
        Arc::new(counters)
    }

    /// Counts a lock that was lost.
    pub(crate) fn on_lost(&self) {
        self.lost.add();
        self.metrics.lost();
    }

    /// The numbers that are counted here.
    pub(crate) fn status(&self) -> LockStatus {
        LockStatus {
            held: self.held.get(),
            acquired: self.acquired.get(),
            timeouts: self.timeouts.get(),
            renewals: self.renewals.get(),
            lost: self.lost.get(),
            ..LockStatus::default()
        }
    }
}
