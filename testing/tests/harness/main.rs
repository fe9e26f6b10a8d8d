//! Tests of the harness itself: servers, clusters and each fault of the proxy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod cluster;
mod proxy;
mod public;
mod server;

use std::time::Duration;

/// Time within which an awaited event must happen.
const SOON: Duration = Duration::from_secs(10);
/// Duration of a delay or pause that a test measures.
const SHORT: Duration = Duration::from_millis(60);
