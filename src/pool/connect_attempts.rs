//! The number of connections that are being opened, and of the callers that need them.
//!
//! An attempt to connect continues, with backoffs, until it succeeds, even if its caller has given
//! up. So a caller begins one only if fewer attempts are in progress than there are callers, itself
//! included.
//!
//! The count is exact because taking a connection and leaving the callers are one step. A caller
//! with a connection occupies a place in the pool: an attempt begun for it would never run, and
//! would be counted forever. There are never more attempts than callers, which protects a server
//! that is down.

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/connect_attempts.rs"]
mod model;

use std::sync::Arc;
use std::time::Duration;

use crate::sync::shim::{Condvar, Mutex, PoisonError, lock};

/// Delay before a caller checks the pool again: a connection is in the pool a moment after it is
/// known to be open.
const PAUSE: Duration = Duration::from_millis(1);

/// The number of connections that are being opened, and of the callers that need them.
#[derive(Debug, Default)]
pub(crate) struct ConnectAttempts {
    count: Mutex<AttemptCount>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct AttemptCount {
    requesters: u32,
    /// Number of attempts in progress, each until a caller has its connection.
    under_way: u32,
}

impl ConnectAttempts {
    /// Registers the caller as waiting once the pool turns out to be empty.
    pub(crate) fn requester(&self) -> Requester<'_> {
        Requester { attempts: self, waits: false }
    }

    /// Records that a connection was opened, which a caller will take.
    pub(crate) fn connection_opened(self: &Arc<Self>) -> NewConnection {
        self.changed.notify_all();
        NewConnection { attempts: Arc::clone(self) }
    }
}

/// An open connection before its first use. Its attempt ends when this is dropped.
#[derive(Debug)]
pub(crate) struct NewConnection {
    attempts: Arc<ConnectAttempts>,
}

impl Drop for NewConnection {
    fn drop(&mut self) {
        let mut count = lock(&self.attempts.count);
        // The pool begins attempts of its own, for `min_idle`, which are not counted here.
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
    /// Takes the connection that `idle` returns. If there is none, and a further attempt is needed,
    /// calls `begin` to start one, unless `begin` returns a connection after all.
    pub(crate) fn take<C>(
        &mut self,
        idle: impl Fn() -> Option<C>,
        begin: impl FnOnce() -> Option<C>,
    ) -> Option<C> {
        // Nearly always a connection is idle. A caller that is not counted yet takes it uncounted.
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

    /// Returns whether the caller, which got no connection, begins an attempt.
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
        // One attempt is still in progress, for the one caller that is left.
        assert!(!begins(&mut one));
        let arrival = attempts.connection_opened();
        // The connection is open, but it may not be in the pool yet.
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
        // Its attempt is still in progress, and now belongs to the other caller.
        assert!(!begins(&mut two));
        // The connection that `begin` returned was not opened by this attempt.
        assert!(begins(&mut one));
        assert_eq!(two.take(|| None, || unreachable!("two are under way")), None::<()>);
    }
}
