//! Locks that several processes share: acquired, extended, waited for, released, lost.
//!
//! The server decides which process holds a lock, in scripts that can be sent twice. [`renewal`]
//! extends the leases; [`wakeups`] receives the messages about releases and wakes the [`waiters`].

pub(crate) mod acquire;
pub(crate) mod client;
pub(crate) mod guard;
pub(crate) mod handle;
pub(crate) mod lease;
pub(crate) mod manager;
pub(crate) mod renewal;
pub(crate) mod waiters;
pub(crate) mod wakeups;
