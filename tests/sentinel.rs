//! Sentinel: the master by its name, switches of masters, reads from replicas; on real servers and
//! sentinels.
//!
//! `REDISCOPE_FAILOVERS=10 cargo test --release --features sentinel --test sentinel -- --nocapture`
//! is the soak of the failovers under load.
#![cfg(feature = "sentinel")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod sentinel {
    mod failover;
    mod found;
    mod switch;
}
