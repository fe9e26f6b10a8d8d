//! Locks: who holds one, who is told that he lost it, who waits and is woken, and what is left
//! behind. What is true is asked of the server, on another connection.

mod ambiguous;
mod closing;
mod fair;
pub(crate) mod fixture;
mod leases;
mod mutex;
mod panics;
mod permits;
mod regression;
mod remains;
mod shared;
mod unproven;
mod waiting;
