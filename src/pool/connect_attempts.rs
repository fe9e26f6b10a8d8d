//! How many connections are being opened, and for how many callers.
//!
//! A try to connect goes on, with pauses, until it succeeds, also when its caller has given up. So
//! a caller begins one only if fewer are under way than there are callers, itself included.
//!
//! The count is exact because taking a connection and ceasing to be a caller are one step. A caller
//! with a connection takes up room in the pool: a try begun for it would never be made, and would
//! count for ever. There are never more tries than callers, so a server that is down is not stormed.

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/connect_attempts.rs"]
mod model;

use std::sync::Arc;
use std::time::Duration;

use crate::sync::shim::{Condvar, Mutex, PoisonError, lock};

/// Pause before a caller looks into the pool again: a connection lies there a moment
/// after it is known to be open.
const PAUSE: Duration = Duration::from_millis(1);

/// How many connections are being opened, and for how many callers.
#[derive(Debug, Default)]
pub(crate) struct ConnectAttempts {
    count: Mutex<Count>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    requesters: u32,
    /// Tries under way, until their connection is in a caller's hands.
    under_way: u32,
}

impl ConnectAttempts {
    /// Registers the caller as waiting once the pool turns out to be empty.
    pub(crate) fn requester(&self) -> Requester<'_> {
        Requester { attempts: self, waits: false }
    }

    /// A connection was opened, and is on its way to a caller.
    pub(crate) fn connection_opened(self: &Arc<Self>) -> NewConnection {
        self.changed.notify_all();
        NewConnection { attempts: Arc::clone(self) }
    }
}

/// An open connection before its first use. Its try ends when this is dropped.
#[derive(Debug)]
pub(crate) struct NewConnection {
    attempts: Arc<ConnectAttempts>,
}

impl Drop for NewConnection {
    fn drop(&mut self) {
        let mut count = lock(&self.attempts.count);
        // The pool begins tries of its own, for `min_idle`, which are not counted here.
        count.under_way = count.under_way.saturating_sub(1);
    }
}

/// A caller that needs a connection, until this is dropped.
#[derive(Debug)]
pub(crate) struct Requester<'o> {
    attempts: &'o ConnectAttempts,
    waits: bool,
}

impl Drop for Requester<'_> {
    fn drop(&mut self) {
        if self.waits {
            lock(&self.attempts.count).requesters -= 1;
        }
    }
}

impl Requester<'_> {
    /// Takes what `idle` finds in the pool. Where that is nothing, and a try more is in order, has
    /// `begin` begin one, unless it finds something after all.
    pub(crate) fn take<C>(
        &mut self,
        idle: impl Fn() -> Option<C>,
        begin: impl FnOnce() -> Option<C>,
    ) -> Option<C> {
        // Nearly always there is one, and a caller that does not count yet may take it
        // without counting.
        if !self.waits
            && let Some(found) = idle()
        {
            return Some(found);
        }
        let mut count = lock(&self.attempts.count);
        if !self.waits {
            self.waits = true;
            count.requesters += 1;
        }
        let found = idle().or_else(|| {
            if count.under_way >= count.requesters {
                return None;
            }
            let found = begin();
            count.under_way += u32::from(found.is_none());
            found
        });
        if found.is_some() {
            self.waits = false;
            count.requesters -= 1;
        }
        found
    }

    /// Waits a little, or until a connection was opened.
    pub(crate) fn pause(&self) {
        let count = lock(&self.attempts.count);
        let waited = self.attempts.changed.wait_timeout(count, PAUSE);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use super::*;

    /// Whether the caller, which finds nothing, begins a try.
    fn begins(caller: &mut Requester<'_>) -> bool {
        let mut begun = false;
        let found: Option<()> = caller.take(
            || None,
            || {
                begun = true;
                None
            },
        );
        assert!(found.is_none());
        begun
    }

    #[test]
    fn there_are_never_more_tries_than_callers() {
        let attempts = Arc::new(ConnectAttempts::default());
        let (mut one, mut two) = (attempts.requester(), attempts.requester());
        assert!(begins(&mut one) && begins(&mut two) && !begins(&mut one));
        drop(attempts.connection_opened());
        drop(two);
        // One try is still under way, for the one caller that is left.
        assert!(!begins(&mut one));
        let arrival = attempts.connection_opened();
        // It is open, but it may not lie in the pool yet.
        assert!(!begins(&mut one));
        drop(arrival);
        assert!(begins(&mut one));
    }

    #[test]
    fn a_caller_that_has_found_a_connection_no_longer_counts() {
        let attempts = ConnectAttempts::default();
        let (mut one, mut two) = (attempts.requester(), attempts.requester());
        assert!(begins(&mut one));
        assert_eq!(one.take(|| Some(7), || None), Some(7));
        // Its try is still under way, and now it is the other caller's.
        assert!(!begins(&mut two));
        // What was found while a try was about to begin was not opened by it.
        assert!(begins(&mut one));
        assert_eq!(two.take(|| None, || unreachable!("two are under way")), None::<()>);
    }
}
