//! Commands without a key that Redis documents as ones for every master of a cluster, and how their
//! answers become one.
//!
//! Never: a command whose tips leave that open. Those go to one node, or are refused.

#![cfg_attr(not(feature = "cluster"), allow(dead_code, reason = "one server is all there is"))]

use redis::Value;

use crate::protocol::command::Folded;

/// How the answers of all masters become one: Redis' `response_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The first one; one error is the answer of all.
    AllSucceeded,
    /// The first that is no error.
    OneSucceeded,
    Sum,
    Least,
    /// Element by element: whether it holds everywhere.
    And,
    /// The default for commands without a key: the lists, one behind the other.
    Joined,
}

/// Where a command without a key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Any node will do.
    One,
    /// Every master.
    All(Policy),
    /// Each node has an answer of its own, and nobody says how they become one.
    Refused,
}

/// Where a command without a key goes, by its `request_policy` and `response_policy`.
pub(crate) fn of(args: &[&[u8]]) -> Spread {
    let Some(name) = args.first().copied().and_then(Folded::new) else { return Spread::One };
    let sub = args.get(1).copied().and_then(Folded::new);
    let sub = sub.as_ref().map_or("", Folded::as_str);
    Spread::All(match (name.as_str(), sub) {
        ("PING" | "FLUSHALL" | "FLUSHDB", _) => Policy::AllSucceeded,
        ("SCRIPT", "LOAD" | "FLUSH") => Policy::AllSucceeded,
        ("FUNCTION", "LOAD" | "DELETE" | "FLUSH" | "RESTORE") => Policy::AllSucceeded,
        ("SCRIPT" | "FUNCTION", "KILL") => Policy::OneSucceeded,
        ("SCRIPT", "EXISTS") => Policy::And,
        ("DBSIZE", _) => Policy::Sum,
        ("WAIT", _) => Policy::Least,
        ("KEYS", _) => Policy::Joined,
        ("SCAN" | "RANDOMKEY" | "WAITAOF", _) => return Spread::Refused,
        ("CONFIG", "SET" | "REWRITE" | "RESETSTAT") => return Spread::Refused,
        ("FUNCTION", "STATS") => return Spread::Refused,
        _ => return Spread::One,
    })
}

/// Whether it is about the data of every node, so that it cannot stand in a transaction on one.
pub(crate) fn is_everywhere(args: &[&[u8]]) -> bool {
    args.first().copied().and_then(Folded::new).is_some_and(|name| {
        matches!(name.as_str(), "FLUSHALL" | "FLUSHDB" | "DBSIZE" | "KEYS" | "SCAN" | "RANDOMKEY")
    })
}

/// One answer out of those of all masters.
pub(crate) fn joined(policy: Policy, answers: Vec<Value>) -> Value {
    let is_error = |answer: &Value| matches!(answer, Value::ServerError(_));
    if policy == Policy::OneSucceeded {
        let best = answers.iter().position(|answer| !is_error(answer)).unwrap_or(0);
        return answers.into_iter().nth(best).unwrap_or(Value::Nil);
    }
    if let Some(error) = answers.iter().position(is_error) {
        return answers.into_iter().nth(error).unwrap_or(Value::Nil);
    }
    let numbers = || answers.iter().filter_map(int);
    match policy {
        Policy::Sum => Value::Int(numbers().sum()),
        Policy::Least => Value::Int(numbers().min().unwrap_or(0)),
        Policy::Joined => Value::Array(answers.into_iter().flat_map(elements).collect()),
        Policy::And => {
            let mut all: Vec<i64> = Vec::new();
            for answer in answers {
                let each: Vec<_> = elements(answer).iter().filter_map(int).collect();
                all.resize(each.len(), 1);
                all.iter_mut().zip(each).for_each(|(all, one)| *all = (*all).min(one));
            }
            Value::Array(all.into_iter().map(Value::Int).collect())
        }
        Policy::AllSucceeded | Policy::OneSucceeded => {
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
    fn answers_become_one_as_redis_documents_it() {
        let of = |line: &str| of(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        assert_eq!(of("dbsize"), Spread::All(Policy::Sum));
        assert_eq!(of("script exists a"), Spread::All(Policy::And));
        assert_eq!(of("SCAN 0"), Spread::Refused);
        assert_eq!(of("TIME"), Spread::One);
        assert_eq!(of("PUBLISH c m"), Spread::One);

        assert_eq!(joined(Policy::Sum, vec![Value::Int(1), Value::Int(2)]), Value::Int(3));
        assert_eq!(joined(Policy::Least, vec![Value::Int(1), Value::Int(2)]), Value::Int(1));
        assert_eq!(joined(Policy::And, vec![ints(&[1, 1]), ints(&[0, 1])]), ints(&[0, 1]));
        assert_eq!(joined(Policy::Joined, vec![ints(&[1]), ints(&[]), ints(&[2])]), ints(&[1, 2]));
        assert_eq!(joined(Policy::AllSucceeded, vec![Value::Okay, error()]), error());
        assert_eq!(joined(Policy::OneSucceeded, vec![error(), Value::Okay]), Value::Okay);
        assert_eq!(joined(Policy::OneSucceeded, vec![error(), error()]), error());
        assert_eq!(joined(Policy::Sum, vec![Value::Int(1), error()]), error());
    }
}
