//! Redis Cluster: where transactions, single commands and locks go, and what their callers are told
//! when slots move and masters die. Each test has a cluster of its own.
#![cfg(feature = "cluster")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod cluster {
    mod stage;

    mod binding;
    mod locks;
    mod once;
    mod redirections;
    mod rights;
    mod singles;
}
