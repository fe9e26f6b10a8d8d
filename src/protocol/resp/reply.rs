//! One reply of the server's.
//!
//! Never: memory for `QUEUED`, which is most of what a transaction is answered.

use redis::Value;

/// One reply of the server's, or several of which each said QUEUED.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// So many in a row.
    Queued(u32),
    Value(Value),
    /// An array of so many elements that could not be read to its end. The connection ends with it.
    Truncated(usize),
}

impl Reply {
    /// How many replies it stands for.
    pub(crate) fn count(&self) -> u32 {
        match self {
            Self::Queued(count) => *count,
            Self::Value(_) | Self::Truncated(_) => 1,
        }
    }

    /// As redis-rs has it.
    pub(crate) fn into_value(self) -> Value {
        match self {
            Self::Queued(_) => Value::SimpleString("QUEUED".to_owned()),
            Self::Value(value) => value,
            Self::Truncated(_) => Value::Nil,
        }
    }

    pub(crate) fn is_okay(&self) -> bool {
        matches!(self, Self::Value(Value::Okay))
    }

    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Value(Value::ServerError(_)))
    }
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        match value {
            Value::SimpleString(text) if text == "QUEUED" => Self::Queued(1),
            value => Self::Value(value),
        }
    }
}
