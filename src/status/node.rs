//! One node's part of a pool, in a cluster.
//!
//! Open scopes are reported for the pool as a whole.

use std::fmt;

use crate::status::lanes::LaneStatus;

/// One node's part of a pool, in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node's address.
    pub address: String,
    /// Number of slots that the node serves, as far as is known. 0: none, or the node has left the
    /// slot map.
    pub slots: usize,
    /// Connections that are open, without those of the lanes.
    pub size: u32,
    /// As that of [`PoolStatus`](crate::status::PoolStatus).
    pub in_use: u32,
    /// Connections that are open and idle.
    pub idle: u32,
    /// Calls that wait for a connection.
    pub waiting: usize,
    /// On tokio: the lanes to the node, their requests, and the calls that wait for a place in one.
    pub lanes: LaneStatus,
    /// The last failure to connect, until a connect succeeds.
    pub last_connect_error: Option<crate::error::connection::ConnectionError>,
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} slots): {} open, {} in use, {} idle, {} waiting",
            self.address, self.slots, self.size, self.in_use, self.idle, self.waiting
        )?;
        if self.lanes.lanes > 0 {
            write!(f, "; {}", self.lanes)?;
        }
        match &self.last_connect_error {
            Some(error) => write!(f, "; last failure to connect: {error}"),
            None => Ok(()),
        }
    }
}
