//! The promises of the library, a module each, against real servers.
//!
//! `cargo test --test it protocol::` runs the tests of one module.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod acl;
#[cfg(feature = "tokio")]
mod async_credentials;
mod checkout;
mod cluster;
mod conditions;
#[cfg(feature = "serde")]
mod configuration;
mod contention;
mod contract;
mod credentials;
mod doc_samples;
mod documents;
mod early_watches;
mod exactly_once;
mod failover;
mod faults;
mod first_programs;
mod fixture;
mod grouped;
#[cfg(target_os = "linux")]
mod hot_keys;
#[cfg(feature = "tokio")]
mod lanes;
mod large;
mod leaks;
mod lock_fencing;
mod locks;
#[cfg(feature = "metrics")]
mod measured;
mod merged_watches;
mod not_replicated;
mod observability;
#[cfg(target_os = "linux")]
mod polling;
mod pooled;
mod properties;
mod protocol;
mod public_api;
mod random_blocks;
mod ready;
mod refusals;
mod savepoints;
mod scope_exit;
mod sent_ahead;
mod sentinel;
mod side;
#[path = "../source/mod.rs"]
mod source;
#[cfg(feature = "tokio")]
mod spawn;
#[cfg(feature = "tokio")]
mod task_early_watches;
#[cfg(feature = "tokio")]
mod task_hot_keys;
#[cfg(feature = "tokio")]
mod task_locks;
#[cfg(feature = "tokio")]
mod task_merges;
#[cfg(feature = "tokio")]
mod task_queries;
#[cfg(feature = "tokio")]
mod task_scopes;
#[cfg(feature = "tokio")]
mod task_topologies;
#[cfg(feature = "tokio")]
mod task_turns;
mod timeouts;
#[cfg(feature = "tls-rustls")]
mod tls;
mod typed_commands;
mod words;
