//! Sentinel: the master by its name, switches of masters, reads from replicas; on real servers and
//! sentinels.
//!
//! `REDISCOPE_FAILOVERS=10 cargo test --release --features sentinel --test it -- --nocapture sentinel::`
//! is the soak of the failovers under load.

mod found;
