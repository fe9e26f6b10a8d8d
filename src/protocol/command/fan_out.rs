//! Commands without a key that go to every master of a cluster, as Redis documents them, and how
//! their replies are combined.
//!
//! Commands whose documentation leaves that open go to one node or are refused.

use redis::Value;

use crate::protocol::command::table;
use crate::protocol::command::upper_name::UpperName;

/// The combination of all masters' replies: Redis' `response_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponsePolicy {
    /// The first reply; any error is the result.
    AllSucceeded,
    /// The first reply that is not an error.
    OneSucceeded,
    Sum,
    Min,
    /// Element by element: whether it is true for all.
    And,
    /// The default for commands without a key: concatenated lists.
    Concat,
}

impl ResponsePolicy {
    /// Whether a command with it has no effect on any master.
    pub(crate) fn is_of_reads(self) -> bool {
        !matches!(self, Self::AllSucceeded | Self::OneSucceeded)
    }
}

/// The destination of a command without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FanOut {
    /// To any node.
    OneNode,
    /// To every master.
    AllMasters(ResponsePolicy),
    /// Each node replies differently, and no way to combine the replies is documented.
    Refused,
}

/// Returns the destination of a command without a key, by its `request_policy` and
/// `response_policy`.
pub(crate) fn of(args: &[&[u8]]) -> FanOut {
    let Some(name) = args.first().copied().and_then(UpperName::new) else { return FanOut::OneNode };
    let sub = args.get(1).copied().and_then(UpperName::new);
    let sub = sub.as_ref().map_or("", UpperName::as_str);
    FanOut::AllMasters(match (name.as_str(), sub) {
        ("PING" | "FLUSHALL" | "FLUSHDB", _) => ResponsePolicy::AllSucceeded,
        ("SCRIPT", "LOAD" | "FLUSH") => ResponsePolicy::AllSucceeded,
        ("FUNCTION", "LOAD" | "DELETE" | "FLUSH" | "RESTORE") => ResponsePolicy::AllSucceeded,
        ("SCRIPT" | "FUNCTION", "KILL") => ResponsePolicy::OneSucceeded,
        ("SCRIPT", "EXISTS") => ResponsePolicy::And,
        ("DBSIZE", _) => ResponsePolicy::Sum,
        ("WAIT", _) => ResponsePolicy::Min,
        ("KEYS", _) => ResponsePolicy::Concat,
        ("SCAN" | "RANDOMKEY" | "WAITAOF", _) => return FanOut::Refused,
        ("CONFIG", "SET" | "REWRITE" | "RESETSTAT") => return FanOut::Refused,
        ("FUNCTION", "STATS") => return FanOut::Refused,
        _ => return FanOut::OneNode,
    })
}

/// Returns whether the command concerns the data of all nodes, so that it cannot be in a
/// transaction on one.
pub(crate) fn is_everywhere(args: &[&[u8]]) -> bool {
    let command = args.first().and_then(|name| table::find(name));
    command.is_some_and(|command| command.has(table::ALL_NODES))
}

/// Combines the replies of all masters.
pub(crate) fn combine(policy: ResponsePolicy, answers: Vec<Value>) -> Value {
    let is_error = |answer: &Value| matches!(answer, Value::ServerError(_));
    if policy == ResponsePolicy::OneSucceeded {
        let best = answers.iter().position(|answer| !is_error(answer)).unwrap_or(0);
        return answers.into_iter().nth(best).unwrap_or(Value::Nil);
    }
    if let Some(error) = answers.iter().position(is_error) {
        return answers.into_iter().nth(error).unwrap_or(Value::Nil);
    }
    let numbers = || answers.iter().filter_map(int);
    match policy {
        ResponsePolicy::Sum => Value::Int(numbers().sum()),
        ResponsePolicy::Min => Value::Int(numbers().min().unwrap_or(0)),
        ResponsePolicy::Concat => Value::Array(answers.into_iter().flat_map(elements).collect()),
        ResponsePolicy::And => {
            let mut all: Vec<i64> = Vec::new();
            for answer in answers {
                let each: Vec<_> = elements(answer).iter().filter_map(int).collect();
                all.resize(each.len(), 1);
                all.iter_mut().zip(each).for_each(|(all, one)| *all = (*all).min(one));
            }
            Value::Array(all.into_iter().map(Value::Int).collect())
        }
        ResponsePolicy::AllSucceeded | ResponsePolicy::OneSucceeded => {
            answers.into_iter().next().unwrap_or(Value::Nil)
        }
    }
}

fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Boolean(is) => Some(i64::from(*is)),
        _ => None,
    }
}

fn elements(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) | Value::Set(values) => values,
        value => vec![value],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Value {
        redis::parse_redis_value(b"-ERR no\r\n").unwrap()
    }

    fn ints(numbers: &[i64]) -> Value {
        Value::Array(numbers.iter().map(|number| Value::Int(*number)).collect())
    }

    #[test]
    fn replies_are_combined_as_redis_documents() {
        let of = |line: &str| of(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        assert_eq!(of("dbsize"), FanOut::AllMasters(ResponsePolicy::Sum));
        assert_eq!(of("script exists a"), FanOut::AllMasters(ResponsePolicy::And));
        assert_eq!(of("SCAN 0"), FanOut::Refused);
        assert_eq!(of("TIME"), FanOut::OneNode);
        assert_eq!(of("PUBLISH c m"), FanOut::OneNode);

        assert_eq!(combine(ResponsePolicy::Sum, vec![Value::Int(1), Value::Int(2)]), Value::Int(3));
        assert_eq!(combine(ResponsePolicy::Min, vec![Value::Int(1), Value::Int(2)]), Value::Int(1));
        assert_eq!(combine(ResponsePolicy::And, vec![ints(&[1, 1]), ints(&[0, 1])]), ints(&[0, 1]));
        assert_eq!(
            combine(ResponsePolicy::Concat, vec![ints(&[1]), ints(&[]), ints(&[2])]),
            ints(&[1, 2])
        );
        assert_eq!(combine(ResponsePolicy::AllSucceeded, vec![Value::Okay, error()]), error());
        assert_eq!(combine(ResponsePolicy::OneSucceeded, vec![error(), Value::Okay]), Value::Okay);
        assert_eq!(combine(ResponsePolicy::OneSucceeded, vec![error(), error()]), error());
        assert_eq!(combine(ResponsePolicy::Sum, vec![Value::Int(1), error()]), error());
    }
}
