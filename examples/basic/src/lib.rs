//! What the example programs share: arguments, connections, keys of one run, a private server.

pub mod args;
pub mod connections;
pub mod keys;
pub mod server;
