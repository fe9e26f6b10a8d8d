//! The lanes of a pool: connections that carry the small requests of many tasks.

use std::fmt;
use std::ops::AddAssign;

/// The lanes of a pool: connections that carry the small requests of many tasks. A pool of threads has
/// none, and all numbers are 0.
///
/// Each runtime has lanes of its own, and so has each node of a cluster; this is their sum. A call is in
/// one of these places: it waits for a place in a lane (`waiting`), is queued there (`queued`), or was
/// sent (`sent`).
///
/// ```no_run
/// # use rediscope::aio::SessionManager;
/// # fn example(sessions: &SessionManager) {
/// let lanes = sessions.status().transactional.lanes;
/// if lanes.queued > 0 && lanes.open == 0 {
///     println!("no connection yet: {lanes}");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LaneStatus {
    /// Number of lanes: [`lanes`](crate::Builder::lanes) for each runtime that has used them.
    pub lanes: usize,
    /// Lanes with a connection. The pool's `size` does not count them.
    pub open: usize,
    /// Requests that were sent, or are being sent, and have no response yet.
    pub sent: usize,
    /// Requests in a lane that are not sent yet.
    pub queued: usize,
    /// Calls that wait for a place, because [`max_in_flight`](crate::Builder::max_in_flight) requests are in
    /// each lane.
    pub waiting: usize,
}

impl AddAssign for LaneStatus {
    fn add_assign(&mut self, other: Self) {
        self.lanes += other.lanes;
        self.open += other.open;
        self.sent += other.sent;
        self.queued += other.queued;
        self.waiting += other.waiting;
    }
}

impl fmt::Display for LaneStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lanes: {} of {} open, {} sent, {} queued, {} waiting",
            self.open, self.lanes, self.sent, self.queued, self.waiting
        )
    }
}
