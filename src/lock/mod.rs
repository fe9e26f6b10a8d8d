//! Locks that several processes share: acquired, extended, waited for, released, lost.
//!
//! The server decides who holds a lock, in [scripts](script) that can be sent twice; the
//! [keeper] extends leases; [waiters] and the [subscriber] wake who waits.
//!
//! Never: the inside of a pool. Never: a lock that outlives its lease because of us.

pub(crate) mod acquire;
pub(crate) mod courier;
pub(crate) mod guard;
pub(crate) mod handle;
pub(crate) mod hold;
pub(crate) mod hub;
pub(crate) mod keeper;
pub(crate) mod names;
pub(crate) mod script;
pub(crate) mod subscriber;
pub(crate) mod waiters;
