//! How many connections are being opened, and for how many callers.
//!
//! A try to connect goes on, with pauses, until it succeeds, also when its caller has given up. So
//! a caller begins one only where fewer are under way than there are callers, himself included.
//!
//! Never: more tries than callers. A server that is down is not stormed.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::lock;

/// How long a caller waits before he looks into the pool again: a connection lies there a moment
/// after it is known to be open.
const PAUSE: Duration = Duration::from_millis(1);

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
}

impl Openings {
    /// One caller more who needs a connection, until the value is dropped.
    pub(crate) fn caller(&self) -> Caller<'_> {
        lock(&self.count).callers += 1;
        Caller { openings: self }
    }

    /// A connection was opened.
    pub(crate) fn opened(&self) {
        let mut count = lock(&self.count);
        count.under_way = count.under_way.saturating_sub(1);
        self.changed.notify_all();
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
    pub(crate) fn begins(&self) -> bool {
        let mut count = lock(&self.openings.count);
        let begins = count.under_way < count.callers;
        count.under_way += u32::from(begins);
        begins
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
        let openings = Openings::default();
        let (one, two) = (openings.caller(), openings.caller());
        assert!(one.begins() && two.begins() && !one.begins());
        openings.opened();
        drop(two);
        // One try is still under way, for the one caller who is left.
        assert!(!one.begins());
        openings.opened();
        assert!(one.begins());
    }
}
