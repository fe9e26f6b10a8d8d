//! Counters, open scopes and one readable report: [`SessionManager::status`](crate::SessionManager::status).

pub(crate) mod counters;
pub(crate) mod lanes;
pub(crate) mod locks;
pub(crate) mod metrics;
pub(crate) mod node;
pub(crate) mod report;
#[cfg(feature = "serde")]
mod serialized;

pub use crate::error::open_scope::OpenScope;
pub use crate::protocol::connection_state::CloseReason;
pub use crate::status::counters::PoolCounters;
pub use crate::status::lanes::LaneStatus;
pub use crate::status::locks::LockStatus;
pub use crate::status::node::NodeStatus;
pub use crate::status::report::{Closed, PoolStatus, Status};
