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
use std::time::Duration;

use super::lock;

/// How long a caller waits before he looks into the pool again: a connection lies there a moment
/// after it is known to be open.
const PAUSE: Duration = Duration::from_millis(1);

/// So many pauses in vain are more than a try takes.
const OVERDUE: u32 = 1_000;

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
        Caller { openings: self, pauses: 0 }
    }

    /// A connection was opened, and is on its way to a caller.
    pub(crate) fn opened(self: &Arc<Self>) -> Arrival {
        self.changed.notify_all();
        Arrival { openings: Arc::clone(self) }
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

/// A caller who needs a connection.
#[derive(Debug)]
pub(crate) struct Caller<'o> {
    openings: &'o Openings,
    pauses: u32,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        lock(&self.openings.count).callers -= 1;
    }
}

impl Caller<'_> {
    /// Whether he is to begin a try to connect. It counts as begun.
    ///
    /// Once in a while he begins one whatever the count says: if it were ever too high, nobody
    /// would be served again.
    pub(crate) fn begins(&mut self) -> bool {
        let mut count = lock(&self.openings.count);
        let overdue = self.pauses >= OVERDUE;
        let begins = count.under_way < count.callers;
        count.under_way += u32::from(begins);
        if begins || overdue {
            self.pauses = 0;
        }
        begins || overdue
    }

    /// What he was about to begin is not needed: a connection lay there.
    pub(crate) fn needs_none(&self) {
        self.openings.ended();
    }

    /// Waits a little, or until a connection was opened.
    pub(crate) fn pause(&mut self) {
        self.pauses += 1;
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
        let (mut one, mut two) = (openings.caller(), openings.caller());
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
}
