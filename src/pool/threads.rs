//! The end of all pools, for callers that are threads.

use std::time::Instant;

use crate::pool::router::Pools;

impl Pools {
    /// See [`Pool::drain`](crate::pool::pool::Pool::drain).
    pub(crate) fn drain(&self, deadline: Instant) -> usize {
        self.all().iter().map(|(_, pool)| pool.drain(deadline)).sum()
    }
}
