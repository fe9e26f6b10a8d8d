//! What a call returns, row by row, and the same on every topology: one server, TLS, a master behind
//! sentinels, a cluster.
//!
//! The faults here are the server's own (CLIENT PAUSE, CLIENT KILL, ACL), so that they work whatever
//! lies in between; the finer ones, byte by byte, are in `tests/it/protocol.rs`.

mod rows;
mod topologies;
