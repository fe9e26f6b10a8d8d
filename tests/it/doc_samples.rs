//! The logs, reports and refusals that the documents show, from real runs.
//!
//! Never: a sample that no run gives.

mod sample;
mod standalone;
#[cfg(feature = "tls-rustls")]
mod tls;
