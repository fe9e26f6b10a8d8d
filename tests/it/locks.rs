//! Locks: held, lost, waited for and passed on, and what is left on the server. Each outcome is compared with the
//! server's state, read on another connection.

mod all;
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
mod several;
mod shared;
mod tokens;
mod unproven;
mod waiting;
