//! The fault matrix: connections that break at every point of a scope's life, and what the call then
//! returns, checked against what the server holds.
//!
//! Nothing here trusts the crate's word: outcomes are compared with the server's counters, and
//! every pool must serve its next caller.

mod busy;
mod cuts;
mod forms;
mod killed;
mod long;
mod model;
mod pooled;
mod replaced;
mod stale;
mod stalls;
mod stopped;
mod surplus;
