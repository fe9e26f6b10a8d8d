//! The report as data, by serde: the fields of each type under their own names.
//!
//! A time is a number of seconds. A place in the source, a reason and an error are text. No key, value or
//! password is in it, as none is in the report.

use serde::Serialize;
use serde::ser::{SerializeMap as _, SerializeStruct as _, Serializer};

use crate::error::open_scope::OpenScope;
use crate::protocol::connection_state::CloseReason;
use crate::status::counters::PoolCounters;
use crate::status::lanes::LaneStatus;
use crate::status::locks::LockStatus;
use crate::status::node::NodeStatus;
use crate::status::report::{Closed, PoolStatus, Status};

/// Writes the fields of a struct, each as it is or as the expression after its name.
macro_rules! serialize {
    ($type:ident |$it:ident| { $($field:ident $(: $as:expr)?,)+ }) => {
        /// Needs the feature `serde`. Its field names are those of the type.
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let $it = self;
                let fields = [$(stringify!($field)),+].len();
                let mut to = to.serialize_struct(stringify!($type), fields)?;
                $(to.serialize_field(stringify!($field), serialize!(@ $it.$field $(, $as)?))?;)+
                to.end()
            }
        }
    };
    (@ $it:ident.$field:ident) => { &$it.$field };
    (@ $it:ident.$field:ident, $as:expr) => { &$as };
}

serialize! { Status |status| { server, pooled, transactional, replicas, locks, } }

serialize! { PoolStatus |pool| {
    name, size, max_size, in_use, idle, waiting, lanes, counts, scopes,
    last_connect_error: pool.last_connect_error.as_ref().map(|error| format!("{error:#}")),
    nodes, redirections,
} }

serialize! { NodeStatus |node| {
    address, slots, size, in_use, idle, waiting, lanes,
    last_connect_error: node.last_connect_error.as_ref().map(|error| format!("{error:#}")),
} }

serialize! { LaneStatus |status| { lanes, open, sent, queued, waiting, } }

serialize! { LockStatus |locks| {
    held, waiting, subscriptions, permits, releasing, acquired, timeouts, renewals, lost,
} }

serialize! { Closed |closed| { scopes, locks, } }

serialize! { OpenScope |scope| {
    name: scope.name.as_deref(),
    blocking: scope.blocking.as_deref(),
    begun_at: scope.begun_at.to_string(),
    thread: &*scope.thread,
    age: scope.age.as_secs_f64(),
    is_closure,
} }

serialize! { PoolCounters |counts| {
    checkouts, commits, conflicts, discards, retries, in_doubt, resolved_committed,
    resolved_not_committed, unresolved, refused, connects, connect_failures, reauthentications,
    withdrawn, abandoned,
    replaced: ByReason(&counts.replaced),
} }

/// Counts by their reasons.
struct ByReason<'c>(&'c [(CloseReason, u64)]);

impl Serialize for ByReason<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut to = to.serialize_map(Some(self.0.len()))?;
        for (reason, count) in self.0 {
            to.serialize_entry(reason.as_str(), count)?;
        }
        to.end()
    }
}

/// Needs the feature `serde`. The text of its `Display`.
impl Serialize for CloseReason {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}
