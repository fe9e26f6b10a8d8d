//! Batched commits: blocks that wait are sent as one MULTI … EXEC. Each is as isolated as alone and has its own
//! outcome.
//!
//! The one connection is held by a guard until all callers wait; then the guard is dropped, and what
//! happens next is one group.

mod bounds;
mod faults;
pub(crate) mod fixture;
mod leaders;
mod once;
mod outcomes;
mod random;
