//! The side of the callers that are tasks of tokio. Each connection is a task, which owns the socket
//! and the parser of its replies.
//!
//! A caller's future gives bytes to the task and waits for replies. So a future that is dropped
//! leaves no half a message and no half a reply.

pub(crate) mod connect;
mod exchange;
pub(crate) mod io;
pub(crate) mod master;
mod raw;
#[cfg(feature = "tls-rustls")]
mod secured;
mod socket;
mod socket_loop;
pub(crate) mod stream;
pub(crate) mod wire;
