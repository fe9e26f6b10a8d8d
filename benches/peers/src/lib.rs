//! rediscope against its peers: what the programs of this member share.
//!
//! Never: published, and never: a dependency of the crate itself.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a benchmark that fails says so and ends"
)]

pub mod lockers;
pub mod machine;
pub mod measure;
pub mod peers;
pub mod report;
pub mod scenario;
pub mod section;
pub mod server;
pub mod soak;
pub mod targets;
pub mod tens;

/// The page whose code needs all these clients, compiled with the doctests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/migration-tokio.md")]
mod migration {}
