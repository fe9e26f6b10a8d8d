//! Counters and gauges of a session manager.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::checkout::CheckoutError;
use crate::protocol::connection_state::CloseReason;
use crate::status::metrics::PoolMetrics;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $label:literal,)+) => {
        /// Counts since the session manager was built.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
            pub(crate) withdrawn: Counter,
            pub(crate) abandoned: Counter,
            replaced: [Counter; CloseReason::ALL.len()],
            pub(crate) metrics: PoolMetrics,
        }

        /// Counts since the session manager was built.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct PoolCounters {
            $($(#[$doc])* pub $name: u64,)+
            /// Requests whose future was dropped before any byte was sent. Only tasks have them.
            pub withdrawn: u64,
            /// Requests whose future was dropped after they may have been sent. Only tasks have them.
            pub abandoned: u64,
            /// Connections that were closed and replaced, by reason.
            pub replaced: Vec<(CloseReason, u64)>,
        }

        impl Counters {
            pub(crate) fn counts(&self) -> PoolCounters {
                PoolCounters {
                    $($name: self.$name.get(),)+
                    withdrawn: self.withdrawn.get(),
                    abandoned: self.abandoned.get(),
                    replaced: CloseReason::ALL
                        .into_iter()
                        .zip(self.replaced.iter().map(Counter::get))
                        .filter(|(_, count)| *count > 0)
                        .collect(),
                }
            }
        }

        impl fmt::Display for PoolCounters {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(write!(f, "{} {}, ", self.$name, $label)?;)+
                write!(f, "{} replaced", self.all_replaced())?;
                for (nth, (reason, count)) in self.replaced.iter().enumerate() {
                    let before = if nth == 0 { " (" } else { ", " };
                    write!(f, "{before}{count} {reason}")?;
                }
                if !self.replaced.is_empty() {
                    f.write_str(")")?;
                }
                // Threads drop no future, so their report does not mention it.
                for (count, label) in [(self.withdrawn, "withdrawn"), (self.abandoned, "abandoned")] {
                    if count > 0 {
                        write!(f, ", {count} {label}")?;
                    }
                }
                Ok(())
            }
        }
    };
}

counters! {
    /// Checkouts, for scopes and for single commands.
    checkouts: "checkouts",
    /// Transactions that were committed, including those with a failed command. One that was in doubt, and
    /// then found to be applied, counts in `resolved_committed` only.
    commits: "commits",
    /// Transactions that were not applied because a watched key changed.
    conflicts: "conflicts",
    /// Scopes that were dropped, discarded or abandoned, or whose condition did not hold, also those of a
    /// run that then began anew. One that was already committed does not count.
    discards: "discards",
    /// Blocks that were sent or run again.
    retries: "retries",
    /// Transactions whose reply was lost.
    in_doubt: "in doubt",
    /// Commits in doubt that were resolved: the transaction was applied.
    resolved_committed: "resolved as committed",
    /// Commits in doubt that were resolved: the transaction was not applied, and never will be.
    resolved_not_committed: "resolved as not committed",
    /// Attempts to resolve a commit in doubt that failed.
    unresolved: "unresolved",
    /// Checkouts that failed.
    refused: "checkouts refused",
    /// Connections that were opened.
    connects: "connects",
    /// Attempts to connect that failed.
    connect_failures: "failed connects",
    /// Connections that re-authenticated because the credentials had changed.
    reauthentications: "re-authentications",
}

impl PoolCounters {
    /// Number of all connections that were closed and replaced.
    pub fn all_replaced(&self) -> u64 {
        self.replaced.iter().map(|(_, count)| count).sum()
    }
}

impl Counters {
    /// Counts a checkout that failed.
    pub(crate) fn on_refused(&self, error: &CheckoutError) {
        self.refused.add();
        self.metrics.refused(error);
    }

    pub(crate) fn replaced(&self, reason: CloseReason) {
        let at = CloseReason::ALL.iter().position(|known| *known == reason);
        if let Some(counter) = at.and_then(|at| self.replaced.get(at)) {
            counter.add();
        }
    }
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_all(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A current number of things.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
