//! The process that a session manager belongs to, the sockets that its forked children close, and
//! its background threads.
//!
//! A fork copies sockets and locks, but only the thread that called it. Two processes would read each
//! other's replies, and a lock that another thread held is never released in the child.

pub(crate) mod current;
pub(crate) mod descriptors;
pub(crate) mod sockets;
#[cfg(feature = "tokio")]
pub(crate) mod tasks;
pub(crate) mod worker;
