//! Tasks of tokio under load: calls that are dropped at any poll, calls with a timeout, a server that is stopped, groups whose
//! connection is cut, random blocks that are compared with a model, locks, and a cluster in motion.
//!
//! `make soak-tasks` runs the long version. `REDISCOPE_TASK_SCOPES` is the number of scopes, and
//! `REDISCOPE_TASK_TIMEOUTS` that of calls with a timeout.

mod blocks;
mod contenders;
mod doubts;
mod dropped;
mod group_controls;
mod groups;
#[path = "lock_soak/mod.rs"]
mod lock_soak;
mod moving;
#[path = "queue_soak/mod.rs"]
mod queue_soak;
mod resolver;
mod scopes;
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the soaks that both sides run need a part of it"
)]
#[path = "../it/side/tasks.rs"]
mod side;
mod stopped;
mod topology;

/// What the side needs.
mod fixture {
    pub(super) use crate::SOON;
}

use rediscope_testing::tasks::several as runtime;

/// Number of connections for scopes, of each pool.
const MAX_SIZE: u32 = 8;
/// Number of connections for blocks of many callers, of each pool.
const LANES: u32 = 2;

fn number(name: &str, default: u64) -> u64 {
    rediscope_testing::soak::number(name).unwrap_or(default)
}
