//! Long runs under faults, each with a ledger that is compared with what the server holds.
//!
//! The suite runs a short version of each. `make soak`, `make soak-exactly-once`, `make soak-locks`,
//! `make soak-queues`, `make soak-tasks` and `make soak-topologies` run the long ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]
#![allow(
    clippy::duplicate_mod,
    reason = "both sides run the soaks of locks, queues and topologies from one text"
)]

use std::time::Duration;

mod contenders;
mod exactly_once_soak;
mod fault_soak;
mod lock_soak;
mod queue_soak;
mod side;
mod stress;
#[cfg(feature = "tokio")]
mod tasks_soak;
mod topology_soak;

/// Time within which an awaited event must happen, far more than it needs on a busy machine.
const SOON: Duration = Duration::from_secs(30);
