//! What each call returns, row by row, the same on every topology: one server, TLS, a master behind
//! sentinels, a cluster.
//!
//! The faults here are the server's own (CLIENT PAUSE, CLIENT KILL, ACL), so that they work on every
//! topology. Faults byte by byte are in `tests/it/protocol.rs`.

mod rows;
mod topologies;
