//! The protocol core: bytes out, replies in.
//!
//! Everything here is a pure function or a small state machine, so that a synchronous and an
//! asynchronous driver can share it and cannot drift apart.
//!
//! Never: sockets, pools, threads, clocks.

pub(crate) mod buffer;
pub(crate) mod command;
pub(crate) mod durability;
pub(crate) mod encode;
pub(crate) mod exec;
pub(crate) mod fence;
pub(crate) mod group;
pub(crate) mod head;
pub(crate) mod held;
pub(crate) mod hello;
pub(crate) mod keys;
pub(crate) mod once;
pub(crate) mod parse;
#[cfg(test)]
mod properties;
pub(crate) mod redirect;
pub(crate) mod refusal;
pub(crate) mod reply;
pub(crate) mod slot;
pub(crate) mod spread;
pub(crate) mod state;
