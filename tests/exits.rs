//! However a scope ends, its connection is back, and nothing of the scope is left on it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod exits {
    mod bench;
    mod cells;
    mod leftovers;
    mod matrix;
    mod play;
    mod twins;
}
