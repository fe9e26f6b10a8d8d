//! Locks on the wire: their keys, their scripts, and what a transaction asks about the lock that fences it.

pub(crate) mod keys;
pub(crate) mod ownership;
pub(crate) mod script;
