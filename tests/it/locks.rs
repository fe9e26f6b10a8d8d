//! Locks: how they are held, lost, waited for and handed on, and what is left behind. Each outcome is
//! compared with the server's state, read on another connection.

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
