//! The protocol core: bytes out, replies in.
//!
//! Everything here is a pure function or a small state machine, so that a synchronous and an
//! asynchronous driver can share it and cannot drift apart.
//!
//! Never: sockets, pools, threads, clocks.

pub(crate) mod batch;
pub(crate) mod cluster;
pub(crate) mod command;
pub(crate) mod connection_state;
pub(crate) mod exec;
pub(crate) mod handshake;
pub(crate) mod idempotency_key;
pub(crate) mod known_errors;
pub(crate) mod lock;
pub(crate) mod marker;
#[cfg(test)]
#[path = "../../tests/unit/queue_properties.rs"]
mod properties;
pub(crate) mod queue;
pub(crate) mod replication;
pub(crate) mod resp;
pub(crate) mod retry;
#[cfg(feature = "sentinel")]
pub(crate) mod sentinel;
pub(crate) mod server_error;
