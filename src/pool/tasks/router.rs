//! All pools, for callers that are tasks.

use std::time::Instant;

use crate::pool::router::Pools;
use crate::pool::tasks::pool::TaskPool;

impl Pools<TaskPool> {
    /// See [`TaskPool::is_held_by_this_task`].
    pub(crate) fn is_held_by_this_task(&self, with_closures: bool) -> bool {
        self.is_any(|pool| pool.is_held_by_this_task(with_closures))
    }

    /// See [`TaskPool::drain`].
    pub(crate) async fn drain(&self, deadline: Instant) -> usize {
        let mut scopes = 0;
        for (_, pool) in self.all() {
            scopes += pool.drain(deadline).await;
        }
        scopes
    }
}
