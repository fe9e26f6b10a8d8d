//! How many connections are being opened, and for how many callers.
//!
//! A try to connect goes on, with pauses, until it succeeds, also when its caller has given up. So
//! a caller begins one only where fewer are under way than there are callers, himself included.
//!
//! A try is under way until somebody has its connection in hand: between being open and lying in
//! the pool it is to be seen nowhere, and a caller who began another one then would have begun
//! none (r2d2 has no room for it) and still have it counted, for ever.
//!
//! Never: more tries than callers. A server that is down is not stormed.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock;

/// How long a caller waits before he looks into the pool again: a connection lies there a moment
/// after it is known to be open.
const PAUSE: Duration = Duration::from_millis(1);

/// Twice the longest pause between two tries.
const STILL: Duration = Duration::from_millis(500);

/// How many connections are being opened, and for how many callers.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    count: Mutex<Count>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    callers: u32,
    under_way: u32,
    /// Tries that are connecting right now, and when one last began or ended to.
    connecting: u32,
    since: Option<Instant>,
}

impl Openings {
    /// One caller more who needs a connection, until the value is dropped.
    pub(crate) fn caller(&self) -> Caller<'_> {
        lock(&self.count).callers += 1;
        Caller { openings: self }
    }

    /// A connection was opened, and is on its way to a caller.
    pub(crate) fn opened(self: &Arc<Self>) -> Arrival {
        self.changed.notify_all();
        Arrival { openings: Arc::clone(self) }
    }

    /// A try connects, until the value is dropped.
    pub(crate) fn connecting(&self) -> Connecting<'_> {
        let mut count = lock(&self.count);
        count.connecting += 1;
        count.since = Some(Instant::now());
        Connecting { openings: self }
    }

    fn ended(&self) {
        let mut count = lock(&self.count);
        count.under_way = count.under_way.saturating_sub(1);
    }
}

/// An open connection that nobody has had yet. Its try ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Arrival {
    openings: Arc<Openings>,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.openings.ended();
    }
}

/// A try that is connecting.
#[derive(Debug)]
pub(crate) struct Connecting<'o> {
    openings: &'o Openings,
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        let mut count = lock(&self.openings.count);
        count.connecting -= 1;
        count.since = Some(Instant::now());
    }
}

/// A caller who needs a connection.
#[derive(Debug)]
pub(crate) struct Caller<'o> {
    openings: &'o Openings,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        lock(&self.openings.count).callers -= 1;
    }
}

impl Caller<'_> {
    /// Whether he is to begin a try to connect. It counts as begun.
    ///
    /// A try that is under way shows: it connects, or pauses for less than [`STILL`]. Where nothing
    /// shows for longer the count is too high, and would be for ever: it begins anew.
    pub(crate) fn begins(&self) -> bool {
        let mut count = lock(&self.openings.count);
        let still = count.connecting == 0 && count.since.is_none_or(|at| at.elapsed() > STILL);
        if still {
            count.under_way = 0;
            count.since = Some(Instant::now());
        }
        let begins = count.under_way < count.callers;
        count.under_way += u32::from(begins);
        begins
    }

    /// What he was about to begin is not needed: a connection lay there.
    pub(crate) fn needs_none(&self) {
        self.openings.ended();
    }

    /// Waits a little, or until a connection was opened.
    pub(crate) fn pause(&self) {
        let count = lock(&self.openings.count);
        let waited = self.openings.changed.wait_timeout(count, PAUSE);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_tries_than_callers() {
        let openings = Arc::new(Openings::default());
        let (one, two) = (openings.caller(), openings.caller());
        assert!(one.begins() && two.begins() && !one.begins());
        drop(openings.opened());
        drop(two);
        // One try is still under way, for the one caller who is left.
        assert!(!one.begins());
        let arrival = openings.opened();
        // It is open, but it may not lie in the pool yet.
        assert!(!one.begins());
        drop(arrival);
        assert!(one.begins());
        one.needs_none();
        assert!(one.begins());
    }

    #[test]
    fn a_count_that_is_too_high_is_found_out_when_nothing_happens() {
        let openings = Openings::default();
        let one = openings.caller();
        assert!(one.begins() && !one.begins());
        let connecting = openings.connecting();
        lock(&openings.count).since = Instant::now().checked_sub(2 * STILL);
        assert!(!one.begins(), "a try that takes long is one");
        drop(connecting);
        assert!(!one.begins(), "it has only just ended");
        lock(&openings.count).since = Instant::now().checked_sub(2 * STILL);
        assert!(one.begins());
        assert!(!one.begins(), "and is given time to show");
    }
}
