//! One query at a time: the other callers wait for its result.
//!
//! A query that is not over by its own deadline belongs to a task that is polled no more. Then
//! another one may begin.

use std::time::Instant;

#[cfg(feature = "tokio")]
use crate::sync::caught::woken_apart;
use crate::sync::own_mutex::OwnMutex;
use crate::sync::shim::{Condvar, PoisonError};

/// The state of the query that all callers share.
#[derive(Debug, Default)]
pub(crate) struct SingleFlight {
    running: OwnMutex<Running>,
    ended: Condvar,
    #[cfg(feature = "tokio")]
    task_ended: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Running {
    /// The number of the query that runs, and its deadline.
    current: Option<(u64, Instant)>,
    last: u64,
}

impl Running {
    /// The deadline of the query that runs.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        self.current.map(|(_, deadline)| deadline).filter(|deadline| *deadline > now)
    }
}

/// The query that runs. Its drop ends the query, also while a panic unwinds.
#[derive(Debug)]
pub(crate) struct Flight<'f> {
    queries: &'f SingleFlight,
    number: u64,
}

impl Flight<'_> {
    /// Returns whether no other query has begun since. One whose task was not polled for long is overtaken.
    pub(crate) fn is_current(&self) -> bool {
        let running = self.queries.running.lock();
        running.current.is_some_and(|(number, _)| number == self.number)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let Some(mut running) = self.queries.running.lock_in_drop() else { return };
        if running.current.is_some_and(|(number, _)| number == self.number) {
            running.current = None;
        }
        drop(running);
        self.queries.ended.notify_all();
        #[cfg(feature = "tokio")]
        self.queries.task_ended.notify_waiters();
    }
}

impl SingleFlight {
    /// Begins a query, which is over by `deadline`. `None`: another caller's query runs.
    pub(crate) fn begin(&self, deadline: Instant) -> Option<Flight<'_>> {
        let mut running = self.running.lock();
        if running.deadline(Instant::now()).is_some() {
            return None;
        }
        running.last += 1;
        let number = running.last;
        running.current = Some((number, deadline));
        Some(Flight { queries: self, number })
    }

    /// Returns whether another query may begin.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.running.lock().deadline(Instant::now()).is_none()
    }

    /// Blocks the thread until no query runs, until `until` at most.
    pub(crate) fn wait(&self, until: Instant) {
        let mut running = self.running.lock();
        loop {
            let now = Instant::now();
            let Some(deadline) = running.deadline(now).filter(|_| now < until) else { return };
            let left = deadline.min(until) - now;
            let waited = self.ended.wait_timeout(running, left);
            running = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The same for a task.
    #[cfg(feature = "tokio")]
    pub(crate) async fn wait_in_task(&self, until: Instant) {
        loop {
            let ended = self.task_ended.notified();
            let now = Instant::now();
            let deadline = self.running.lock().deadline(now).filter(|_| now < until);
            let Some(deadline) = deadline else { return };
            crate::sync::timer::until(deadline.min(until), woken_apart(ended)).await;
        }
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn one_query_runs_at_a_time_and_each_end_lets_the_next_begin() {
        let queries = SingleFlight::default();
        let first = queries.begin(later()).unwrap();
        assert!(queries.begin(later()).is_none() && queries.begin(later()).is_none());
        drop(first);
        assert!(queries.begin(later()).is_some(), "the drop ends it");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _flight = queries.begin(later()).unwrap();
            panic!("planted");
        }));
        assert!(panicked.is_err());
        assert!(queries.begin(later()).is_some(), "a panic ends it");
    }

    #[test]
    fn a_query_that_is_polled_no_more_holds_up_others_until_its_deadline_only() {
        let queries = SingleFlight::default();
        let left = queries.begin(Instant::now() + Duration::from_millis(1)).unwrap();
        queries.wait(later());
        let next = queries.begin(later()).unwrap();
        assert!(next.is_current() && !left.is_current());
        drop(left);
        assert!(queries.begin(later()).is_none(), "the former query ends no other one");
        drop(next);
    }

    #[test]
    fn a_wait_ends_with_the_query_or_with_its_time() {
        let queries = SingleFlight::default();
        queries.wait(later());
        let flight = queries.begin(later()).unwrap();
        let soon = Instant::now() + Duration::from_millis(1);
        queries.wait(soon);
        assert!(Instant::now() >= soon);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queries.wait(later()));
            drop(flight);
            waiter.join().unwrap();
        });
        assert!(Instant::now() < soon + Duration::from_secs(30), "the end of the query was missed");
    }
}
