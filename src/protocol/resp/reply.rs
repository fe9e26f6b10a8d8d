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

/// Whether a value is an error of the server, or contains one.
pub(crate) fn holds_error(value: &Value) -> bool {
    match value {
        Value::ServerError(_) => true,
        Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => {
            values.iter().any(holds_error)
        }
        Value::Map(pairs) => {
            pairs.iter().any(|(key, value)| holds_error(key) || holds_error(value))
        }
        Value::Attribute { data, .. } => holds_error(data),
        _ => false,
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
