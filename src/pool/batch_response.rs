//! The outcome of a request that another caller sent.

use redis::Value;

use crate::error::connection::ConnectionError;
use crate::protocol::exec::Verdict;

/// The outcome of a request that another caller sent.
#[derive(Debug, PartialEq)]
pub(crate) enum BatchResponse {
    Block(Verdict),
    Read(Value),
    Calls(Vec<Value>),
    /// Some replies did not arrive, and those that did prove nothing.
    Interrupted(Interrupted),
}

/// The connection failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interrupted {
    /// Whether all bytes of the request may have been sent.
    pub(crate) left: bool,
    pub(crate) cause: ConnectionError,
}
