//! One connection: how it is opened, and the state that its replies prove.
//!
//! A [`Connection`](connection::Connection) owns the socket and its parser, and knows whether the
//! next caller may use it.

pub(crate) mod connect;
#[expect(clippy::module_inception, reason = "the folder is named after this type")]
pub(crate) mod connection;
pub(crate) mod deadline;
pub(crate) mod endpoint;
pub(crate) mod handshake;
pub(crate) mod io;
pub(crate) mod login;
pub(crate) mod polling;
pub(crate) mod sentinel;
#[cfg(feature = "tokio")]
pub(crate) mod tasks;
pub(crate) mod threads;
#[cfg(feature = "tls-rustls")]
pub(crate) mod tls;
pub(crate) mod transport;
pub(crate) mod url;
pub(crate) mod wire;
