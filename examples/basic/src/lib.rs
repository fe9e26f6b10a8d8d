//! What the example programs share: arguments, keys of one run, a private server.

pub mod args;
pub mod keys;
pub mod server;
