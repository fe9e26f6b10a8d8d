//! A cluster in motion under load: slots move, with old keys and new ones, masters are killed, nodes
//! come and go. What was acknowledged is there, once and whole.
//!
//! One round here; `make soak-topologies` runs ten (`TOPOLOGY_ROUNDS`).
#![cfg(feature = "cluster")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod topologies {
    mod books;
    mod rounds;
}
