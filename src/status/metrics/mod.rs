//! What a session manager reports to the `metrics` facade. Without the feature the types are empty, their
//! methods do nothing, and no clock is read.

#[cfg(not(feature = "metrics"))]
mod absent;
#[cfg(feature = "metrics")]
mod reported;

#[cfg(not(feature = "metrics"))]
pub(crate) use absent::{InUse, LockMetrics, PoolLevels, PoolMetrics, Started};
#[cfg(feature = "metrics")]
pub(crate) use reported::{InUse, LockMetrics, PoolLevels, PoolMetrics, Started};
