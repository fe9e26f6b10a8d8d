//! One query at a time: the other callers wait for its result.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::sync::lock;

/// The state of the query that all callers share.
#[derive(Debug, Default)]
pub(crate) struct SingleFlight {
    running: Mutex<bool>,
    ended: Condvar,
}

/// The query that runs. Its drop ends the query, also while a panic unwinds.
#[derive(Debug)]
pub(crate) struct Flight<'f>(&'f SingleFlight);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) = false;
        self.0.ended.notify_all();
    }
}

impl SingleFlight {
    /// Begins a query. `None`: another caller's query runs.
    pub(crate) fn begin(&self) -> Option<Flight<'_>> {
        let mut running = lock(&self.running);
        let begins = !*running;
        *running = true;
        begins.then(|| Flight(self))
    }

    /// Blocks the thread until no query runs, until `until` at most.
    pub(crate) fn wait(&self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let running = lock(&self.running);
        let waited = self.ended.wait_timeout_while(running, left, |running| *running);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_query_runs_at_a_time_and_each_end_lets_the_next_begin() {
        let queries = SingleFlight::default();
        let first = queries.begin().unwrap();
        assert!(queries.begin().is_none() && queries.begin().is_none());
        drop(first);
        assert!(queries.begin().is_some(), "the drop ends it");
        let panicked = std::panic::catch_unwind(|| {
            let _flight = queries.begin().unwrap();
            panic!("planted");
        });
        assert!(panicked.is_err());
        assert!(queries.begin().is_some(), "a panic ends it");
    }

    #[test]
    fn a_wait_ends_with_the_query_or_with_its_time() {
        let queries = SingleFlight::default();
        queries.wait(Instant::now() + Duration::from_secs(60));
        let flight = queries.begin().unwrap();
        let soon = Instant::now() + Duration::from_millis(1);
        queries.wait(soon);
        assert!(Instant::now() >= soon);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queries.wait(Instant::now() + Duration::from_secs(60)));
            drop(flight);
            waiter.join().unwrap();
        });
        assert!(Instant::now() < soon + Duration::from_secs(30), "the end of the query was missed");
    }
}
