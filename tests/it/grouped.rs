//! Batched commits: blocks that wait are sent in one write, each as isolated as alone and each with its own
//! outcome.
//!
//! The one connection is held by a guard until all callers wait; then the guard is dropped, and what
//! happens next is one batch.

mod bounds;
mod faults;
pub(crate) mod fixture;
mod outcomes;
