//! The outcome of a request that another caller sent.

use std::sync::Arc;

use redis::Value;

use crate::error::connection::ConnectionError;
use crate::error::in_doubt::SharedToken;
use crate::protocol::exec::{Unproven, Verdict};

/// The outcome of a request that another caller sent.
#[derive(Debug, PartialEq)]
pub(crate) enum BatchResponse {
    Block(Verdict),
    Read(Value),
    Calls(Vec<Value>),
    /// Some replies did not arrive, and those that did prove nothing.
    Interrupted(Interrupted),
    /// An exactly-once block was sent, and the replies prove nothing.
    InDoubt(Box<BatchDoubt>),
}

/// An exactly-once block in doubt. All blocks of its group have the same token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchDoubt {
    pub(crate) doubt: Unproven,
    /// `None`: all replies arrived.
    pub(crate) lost: Option<ConnectionError>,
    pub(crate) token: Arc<SharedToken>,
}

/// The connection failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interrupted {
    /// Whether all bytes of the request may have been sent.
    pub(crate) left: bool,
    /// Whether the connection had replied a moment before.
    pub(crate) trusted: bool,
    pub(crate) cause: ConnectionError,
}
