//! Locks: who holds one, who is told that he lost it, who waits and is woken, and what is left
//! behind. What is true is asked of the server, on another connection.

mod accident;
mod ambiguous;
mod closing;
mod fair;
mod fenced;
mod leases;
mod mutex;
mod panics;
mod permits;
mod remains;
mod shared;
mod stage;
mod unproven;
mod waiting;
