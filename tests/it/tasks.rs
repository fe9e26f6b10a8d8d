//! The suites of `tests/it` that every side runs, on tasks.
//!
//! `cargo test --features tokio --test tasks faults::` runs the tests of one module.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]
#![allow(dead_code, unused_imports, reason = "parts of the suites are of threads only")]

mod acl;
mod cluster;
mod conditions;
mod contract;
mod credentials;
mod early_watches;
mod exactly_once;
mod failover;
mod faults;
mod fixture;
#[cfg(target_os = "linux")]
mod hot_keys;
mod leaks;
mod lock_fencing;
mod locks;
#[cfg(feature = "metrics")]
mod measured;
mod merged_watches;
mod pooled;
mod protocol;
mod ready;
mod refusals;
mod scope_exit;
mod sentinel;
#[path = "side/tasks.rs"]
mod side;
mod timeouts;
#[cfg(feature = "tls-rustls")]
mod tls;
mod typed_commands;
