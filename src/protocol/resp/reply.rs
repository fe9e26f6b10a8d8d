//! One reply of the server.

use redis::{PushKind, Value};

/// One reply of the server, or several QUEUED in a row, which need no memory that way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// This many QUEUED.
    Queued(u32),
    Value(Value),
    /// An array of this length that could not be read completely. The connection is closed.
    Truncated(usize),
}

impl Reply {
    /// Number of replies that it stands for.
    pub(crate) fn count(&self) -> u32 {
        match self {
            Self::Queued(count) => *count,
            Self::Value(_) | Self::Truncated(_) => 1,
        }
    }

    /// As a value of redis-rs.
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

    pub(crate) fn may_be_of_watch(&self) -> bool {
        self.is_okay() || self.is_refused()
    }
}

/// Stands for a value that was read and dropped, because it is larger than `max_reply_bytes`. No other
/// value is a push.
pub(crate) fn too_large() -> Value {
    Value::Push { kind: PushKind::Other(String::new()), data: Vec::new() }
}

/// Whether a value was dropped because it is too large.
pub(crate) fn is_too_large(value: &Value) -> bool {
    matches!(value, Value::Push { .. })
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        match value {
            Value::SimpleString(text) if text == "QUEUED" => Self::Queued(1),
            value => Self::Value(value),
        }
    }
}
