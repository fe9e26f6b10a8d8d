//! The check of the lock that fences a transaction: the commands, and what their replies prove.
//!
//! The key of the lock's holders is watched before it is read. So a reply that proves the lock held
//! stays true until EXEC, or EXEC returns nil. A lease that has ended by the server's own clock is
//! not held.
//!
//! The value of a [`LockOwnership`] is never shown: `Debug` prints the type's name only.

use redis::Value;

use crate::protocol::cluster::slot;
use crate::protocol::resp::encode::{self, words};
use crate::text::opaque_debug;

/// The lock that fences a transaction: the key of its holders, and the owner token.
#[derive(Clone)]
pub(crate) struct LockOwnership {
    holders: Box<str>,
    owner_token: Box<str>,
}

impl LockOwnership {
    pub(crate) fn new(holders: &str, owner_token: &str) -> Self {
        Self { holders: holders.into(), owner_token: owner_token.into() }
    }

    /// The hash slot of the key.
    pub(crate) fn slot(&self) -> u16 {
        slot::of_key(self.holders.as_bytes())
    }

    /// Watches the key of the lock's holders.
    pub(crate) fn watch(&self, bytes: &mut Vec<u8>) {
        encode::command_with(bytes, words!("WATCH"), &*self.holders);
    }

    /// Reads the end of the token's lease.
    pub(crate) fn score(&self, bytes: &mut Vec<u8>) {
        encode::command_with(bytes, words!("ZSCORE"), (&*self.holders, &*self.owner_token));
    }
}

/// The command for the server's clock.
pub(crate) const TIME: &[u8] = b"*1\r\n$4\r\nTIME\r\n";

/// Parses the server's clock, in milliseconds.
pub(crate) fn millis(time: &Value) -> Option<f64> {
    let Value::Array(parts) = time else { return None };
    let [seconds, micros] = parts.as_slice() else { return None };
    Some(number(seconds)? * 1e3 + (number(micros)? / 1e3).floor())
}

/// Returns whether the lock is held at `now`.
pub(crate) fn is_held(score: &Value, now: Option<f64>) -> bool {
    now.zip(number(score)).is_some_and(|(now, ends)| ends > now)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse().ok(),
        Value::Int(number) => Some(*number as f64),
        Value::Double(number) => Some(*number),
        _ => None,
    }
}

opaque_debug!(LockOwnership);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lease_that_is_not_over_is_held() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let now = millis(&Value::Array(vec![bulk("1700000000"), bulk("123999")]));
        assert_eq!(now, Some(1_700_000_000_123.0));
        assert!(is_held(&bulk("1700000000124"), now));
        assert!(is_held(&Value::Double(1_700_000_000_124.0), now), "as RESP3 says it");
        for over in [bulk("1700000000123"), bulk("1"), Value::Nil, bulk("x"), Value::Okay] {
            assert!(!is_held(&over, now), "{over:?}");
        }
        assert!(
            !is_held(&bulk("1700000000124"), None),
            "without the server's clock nothing is known"
        );
    }
}
