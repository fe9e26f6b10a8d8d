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
    /// Its replies did not all come, and those that came prove nothing.
    Interrupted(Interrupted),
}

/// The link failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interrupted {
    /// All of its bytes may have left.
    pub(crate) left: bool,
    pub(crate) cause: ConnectionError,
}
