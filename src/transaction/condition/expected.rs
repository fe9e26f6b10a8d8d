//! The reply that a condition expects from the server.
//!
//! A reply that does not fit the condition's read decides nothing.

use redis::{FromRedisValue, ToSingleRedisArg, Value, ValueType};

/// The reply that a condition expects from the server.
#[derive(Clone)]
pub(crate) enum Expected {
    /// The value exists, or does not.
    There(bool),
    /// The value has these bytes.
    Value(Vec<u8>),
    /// The value has other bytes, or does not exist.
    OtherThan(Vec<u8>),
    Type(ValueType),
    /// Number of elements or bytes.
    Count(Bound<i64>),
    /// A counter as in INCR; a missing one is 0.
    Number(Bound<i64>),
    /// A score; a missing member has none.
    Score(Bound<f64>),
}

#[derive(Clone, Copy)]
pub(crate) enum Bound<N> {
    Exactly(N),
    AtLeast(N),
    AtMost(N),
}

impl Expected {
    pub(crate) fn value(value: &impl ToSingleRedisArg) -> Self {
        Self::Value(bytes_of(value))
    }

    pub(crate) fn other_than(value: &impl ToSingleRedisArg) -> Self {
        Self::OtherThan(bytes_of(value))
    }

    /// Returns whether the condition holds. `None`: the reply does not fit the read.
    pub(crate) fn holds(&self, answer: &Value) -> Option<bool> {
        Some(match self {
            Self::There(there) => is_there(answer)? == *there,
            Self::Value(value) => found(answer)? == Some(value),
            Self::OtherThan(value) => found(answer)? != Some(value),
            Self::Type(wanted) => match answer {
                Value::SimpleString(name) => ValueType::from(name) == *wanted,
                _ => return None,
            },
            Self::Count(bound) => match answer {
                Value::Int(count) => bound.admits(*count),
                _ => return None,
            },
            Self::Number(bound) => match found(answer)? {
                None => bound.admits(0),
                // A text that is not a number is neither large nor small.
                Some(text) => integer(text).is_some_and(|number| bound.admits(number)),
            },
            Self::Score(bound) => {
                Option::<f64>::from_redis_value_ref(answer).ok()?.is_some_and(|it| bound.admits(it))
            }
        })
    }
}

impl<N: PartialOrd> Bound<N> {
    fn admits(self, found: N) -> bool {
        match self {
            Self::Exactly(wanted) => found == wanted,
            Self::AtLeast(least) => found >= least,
            Self::AtMost(most) => found <= most,
        }
    }
}

fn bytes_of(value: &impl ToSingleRedisArg) -> Vec<u8> {
    value.to_redis_args().into_iter().next().unwrap_or_default()
}

fn found(answer: &Value) -> Option<Option<&Vec<u8>>> {
    match answer {
        Value::Nil => Some(None),
        Value::BulkString(bytes) => Some(Some(bytes)),
        _ => None,
    }
}

fn is_there(answer: &Value) -> Option<bool> {
    match answer {
        Value::Nil => Some(false),
        Value::Int(count) => Some(*count > 0),
        Value::Array(entries) => Some(!entries.is_empty()),
        Value::BulkString(_) | Value::Double(_) => Some(true),
        _ => None,
    }
}

/// Parses a number in the form that the server writes; it does not accept other forms as numbers.
fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn only_what_the_server_counts_with_is_a_number() {
        let positive = Expected::Number(Bound::AtLeast(1));
        for number in ["1", "12", "9223372036854775807"] {
            assert_eq!(positive.holds(&bulk(number)), Some(true), "{number}");
        }
        for other in ["0", "-1", "+1", "01", " 1", "1.0", "9223372036854775808", "", "one", "-0"] {
            assert_eq!(positive.holds(&bulk(other)), Some(false), "{other}");
            let negative = Expected::Number(Bound::AtMost(-2));
            assert_eq!(negative.holds(&bulk(other)), Some(false), "{other}");
        }
        assert_eq!(positive.holds(&Value::Nil), Some(false));
        assert_eq!(Expected::Number(Bound::AtLeast(0)).holds(&Value::Nil), Some(true));
    }

    #[test]
    fn scores_are_compared_as_both_protocols_have_them() {
        let score = |bound, answer: &Value| Expected::Score(bound).holds(answer);
        for (text, number) in
            [("1.5", 1.5), ("-inf", f64::NEG_INFINITY), ("17179869184", 17179869184.0)]
        {
            for answer in [bulk(text), Value::Double(number)] {
                assert_eq!(score(Bound::Exactly(number), &answer), Some(true), "{text}");
                assert_eq!(score(Bound::AtMost(number), &answer), Some(true), "{text}");
                assert_eq!(score(Bound::Exactly(f64::NAN), &answer), Some(false), "{text}");
            }
        }
        assert_eq!(score(Bound::AtLeast(f64::NEG_INFINITY), &Value::Nil), Some(false));
    }

    #[test]
    fn an_answer_that_does_not_fit_is_no_verdict() {
        let all = [
            Expected::There(true),
            Expected::value(&"a"),
            Expected::other_than(&"a"),
            Expected::Type(ValueType::Hash),
            Expected::Count(Bound::AtLeast(0)),
            Expected::Number(Bound::AtLeast(0)),
            Expected::Score(Bound::AtLeast(0.0)),
        ];
        for expected in all {
            for odd in [
                Value::Okay,
                Value::Map(Vec::new()),
                Value::Push { kind: redis::PushKind::Message, data: Vec::new() },
            ] {
                assert_eq!(expected.holds(&odd), None, "{odd:?}");
            }
        }
    }
}
