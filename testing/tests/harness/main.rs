//! The harness itself: servers, clusters and each fault of the proxy do what their names say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod cluster;
mod proxy;
mod server;
