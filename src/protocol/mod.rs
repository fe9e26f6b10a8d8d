//! The protocol core: bytes out, replies in, and the decisions in between.
//!
//! Everything here is a pure function or a small state machine without sockets, pools, threads or a
//! clock. A synchronous and an asynchronous driver share it, so they cannot drift apart. No other
//! part of the crate is imported here.

pub(crate) mod batch;
pub(crate) mod checksum;
pub(crate) mod cluster;
pub(crate) mod command;
pub(crate) mod connection_state;
pub(crate) mod effects;
pub(crate) mod exec;
pub(crate) mod handshake;
pub(crate) mod idempotency_key;
pub(crate) mod known_errors;
pub(crate) mod lock;
pub(crate) mod marker;
pub(crate) mod merge;
#[cfg(test)]
#[path = "../../tests/unit/queue_properties.rs"]
mod properties;
pub(crate) mod queue;
pub(crate) mod replication;
pub(crate) mod resp;
pub(crate) mod retry;
pub(crate) mod sentinel;
pub(crate) mod server_error;
