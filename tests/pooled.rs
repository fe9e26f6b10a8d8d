//! The pooled handle: the whole `redis::Commands` vocabulary, each command on a connection that is
//! borrowed for its own round trip, none of them sent twice.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod pooled {
    mod stage;

    mod along;
    mod blocking;
    mod lost;
    mod proven;
    mod raw;
    mod sharing;
    mod vocabulary;
}
