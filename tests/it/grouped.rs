//! Grouped commits: blocks that wait travel in one write, each as isolated as alone and each told
//! its own outcome.
//!
//! The one connection is held by a guard until everybody waits; then the guard is dropped, and what
//! happens next is one group.

mod bounds;
mod faults;
pub(crate) mod fixture;
mod outcomes;
