//! The logs, reports and refusals that the documents show, from real runs.
//!
//! Never: a sample that no run gives.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod pages {
    mod sample;
    mod standalone;
    #[cfg(feature = "tls-rustls")]
    mod tls;
}
