//! The state of a session manager as one readable report.
//!
//! It shows no key, value or password, and it does not wait for a lock that a command holds.

use std::fmt;

use crate::error::open_scope::OpenScope;
use crate::status::counters::PoolCounters;
use crate::status::lanes::LaneStatus;
use crate::status::locks::LockStatus;
use crate::status::node::NodeStatus;
use crate::text::count;

/// One pool: its connections, its open scopes, its counters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Which pool: `pooled`, `transactional` or `replicas`.
    pub name: &'static str,
    /// Connections that are open, without those of the lanes.
    pub size: u32,
    /// Maximum number of connections.
    pub max_size: u32,
    /// Permits for a connection that callers have: connections that are checked out or being opened.
    pub in_use: u32,
    /// Connections that are open and idle.
    pub idle: u32,
    /// Calls that wait for a connection, also those whose WATCH was sent for them.
    pub waiting: usize,
    /// On tokio: the lanes, their requests, and the calls that wait for a place in one.
    pub lanes: LaneStatus,
    /// Counts since the session manager was built.
    pub counts: PoolCounters,
    /// The open scopes, oldest first.
    pub scopes: Vec<OpenScope>,
    /// The last failure to connect, until a connect succeeds.
    pub last_connect_error: Option<crate::error::connection::ConnectionError>,
    /// In a cluster: the part of each node. The other fields are their sum.
    pub nodes: Vec<NodeStatus>,
    /// In a cluster: number of redirects of calls and transactions, including `TRYAGAIN`.
    pub redirections: u64,
}

impl PoolStatus {
    /// The status of a pool that belongs to another process.
    pub(crate) fn none(name: &'static str) -> Self {
        Self {
            name,
            size: 0,
            max_size: 0,
            in_use: 0,
            idle: 0,
            waiting: 0,
            lanes: LaneStatus::default(),
            counts: PoolCounters::default(),
            scopes: Vec::new(),
            last_connect_error: None,
            nodes: Vec::new(),
            redirections: 0,
        }
    }
}

/// The state of a session manager. Its `Display` is one report for an incident.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The server's address, without user and password.
    pub server: String,
    /// The pool behind the pooled handles.
    pub pooled: PoolStatus,
    /// The pool behind the transactional handles.
    pub transactional: PoolStatus,
    /// The pool behind the handles that read from replicas, after its first use.
    pub replicas: Option<PoolStatus>,
    /// The locks.
    pub locks: LockStatus,
}

/// What was still open when [`SessionManager::close`](crate::SessionManager::close) returned.
///
/// ```
/// use rediscope::status::Closed;
///
/// assert_eq!(Closed::default().to_string(), "0 scopes, 0 locks");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Closed {
    /// Scopes that were open when the timeout was over. Their connections were reclaimed.
    pub scopes: usize,
    /// Locks whose guards were alive when the timeout was over. None of them was released, because
    /// the holder may be at work. Their leases are not extended any more, and their guards are lost
    /// ([`on_lost`](crate::lock::LockGuard::on_lost)) before the leases end. Until then a guard that is
    /// dropped or released releases its lock as before.
    pub locks: usize,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", count(self.scopes, "scope"), count(self.locks, "lock"))
    }
}

impl fmt::Display for PoolStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} of {} open, {} in use, {} idle, {} waiting",
            self.name, self.size, self.max_size, self.in_use, self.idle, self.waiting
        )?;
        if self.lanes.lanes > 0 {
            writeln!(f, "  {}", self.lanes)?;
        }
        write!(f, "  {}", self.counts)?;
        if let Some(error) = &self.last_connect_error {
            write!(f, "\n  last failure to connect: {error}")?;
        }
        if !self.nodes.is_empty() {
            write!(f, "\n  {} redirections", self.redirections)?;
        }
        for node in &self.nodes {
            write!(f, "\n  {node}")?;
        }
        for scope in &self.scopes {
            write!(f, "\n  held by {scope}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis {}\n{}\n{}", self.server, self.pooled, self.transactional)?;
        if let Some(replicas) = &self.replicas {
            write!(f, "\n{replicas}")?;
        }
        match self.locks == LockStatus::default() {
            true => Ok(()),
            false => write!(f, "\n{}", self.locks),
        }
    }
}
