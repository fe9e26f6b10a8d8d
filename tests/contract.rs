//! What the caller is told, row by row, and the same on every topology: one server, TLS, a
//! master behind sentinels, a cluster.
//!
//! The faults here are the server's own (CLIENT PAUSE, CLIENT KILL, ACL), so that they work whatever
//! lies in between; the finer ones, byte by byte, are in `tests/protocol.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod contract {
    mod grounds;
    mod rows;
}
