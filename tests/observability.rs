//! What the library tells of itself: spans and events, `status()`, warnings with a code place.
//!
//! Never: a key, a value or a password in any of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod observability {
    pub(crate) mod listen;
    mod locks;
    mod secrets;
    mod spans;
    mod status;
}

use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
