//! The logs, reports and refusals that the documents show, from real runs.

mod operations;
mod sample;
mod standalone;
#[cfg(feature = "tls-rustls")]
mod tls;
