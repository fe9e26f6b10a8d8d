//! The commit marker of an exactly-once transaction: a number in a register, and what the number
//! proves.
//!
//! Each connection has a register, a key on the server. The connection watches it while a
//! transaction is sent, and the transaction writes a number that was never used before. A query
//! touches the register first: after that, a late EXEC finds a watched key changed and applies
//! nothing. So a value read after the touch stays true.
//!
//! A number is never used twice, and a missing register proves nothing.

use std::fmt;
use std::time::Duration;

use redis::Value;

use crate::protocol::resp::encode::{self, ASKING, words};
use crate::protocol::server_error::ServerError;

/// One connection's register: its name, and the last number assigned to it.
pub(crate) struct CommitMarker {
    prefix: Box<str>,
    random: u128,
    register: String,
    tag: Option<u32>,
    number: u64,
}

impl CommitMarker {
    /// `random` makes the register unique to this connection, across processes and over time.
    pub(crate) fn new(prefix: &str, random: u128) -> Self {
        let register = name(prefix, None, random);
        Self { prefix: prefix.into(), random, register, tag: None, number: 0 }
    }

    /// In a cluster there is one register in each slot, with this hash tag. A number is used in at
    /// most one of them.
    pub(crate) fn set_tag(&mut self, tag: Option<u32>) {
        if self.tag != tag {
            let Self { prefix, random, .. } = self;
            self.register = name(prefix, tag, *random);
            self.tag = tag;
        }
    }

    pub(crate) fn tag(&self) -> Option<u32> {
        self.tag
    }

    pub(crate) fn register(&self) -> &str {
        &self.register
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Assigns a number that was not assigned before.
    pub(crate) fn advance(&mut self) {
        self.number += 1;
    }

    /// Appends SET of the number.
    pub(crate) fn set(&self, bytes: &mut Vec<u8>, ttl: Duration) {
        let args = (&self.register, self.number, "PX", millis(ttl));
        encode::command_with(bytes, words!("SET"), args);
    }

    pub(crate) fn watch(&self, bytes: &mut Vec<u8>) {
        encode::command_with(bytes, words!("WATCH"), &self.register);
    }
}

/// The name of a register.
fn name(prefix: &str, tag: Option<u32>, random: u128) -> String {
    match tag {
        Some(tag) => format!("{prefix}:{{{tag}}}:reg:{random:032x}"),
        None => format!("{prefix}:reg:{random:032x}"),
    }
}

/// Whether this is a name that a register can have, with this prefix and tag.
pub(crate) fn is_register(register: &str, prefix: &str, tag: Option<u32>) -> bool {
    let digits = register.len().checked_sub(32).and_then(|at| register.get(at..));
    // The name is built again from its parts, so that only `name` knows its form.
    digits
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .and_then(|digits| u128::from_str_radix(digits, 16).ok())
        .is_some_and(|random| register == name(prefix, tag, random))
}

/// Maximum time to live of a key: a hundred years. The server rejects times past the range of its
/// clock, and it would do so inside the transaction.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// In milliseconds: at least one, and a hundred years at most.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.min(LONGEST).as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Shows the last number only.
impl fmt::Debug for CommitMarker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitMarker").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Encodes the query of a register, in one write: first the touch, then GET.
///
/// If `asks`, ASKING precedes each of them and has its own reply.
pub(crate) fn question(register: &str, ttl: Duration, needs_asking: bool) -> Vec<u8> {
    let asking = if needs_asking { ASKING } else { b"" };
    let mut bytes = Vec::with_capacity(200);
    bytes.extend_from_slice(asking);
    encode::command_with(&mut bytes, words!("PEXPIRE"), (register, millis(ttl)));
    bytes.extend_from_slice(asking);
    encode::command_with(&mut bytes, words!("GET"), register);
    bytes
}

/// Encodes the query of a register that no connection has, with this tag. The touch changes nothing, and
/// a server that takes no writes refuses it.
pub(crate) fn probe(prefix: &str, tag: Option<u32>, ttl: Duration) -> Vec<u8> {
    question(&name(prefix, tag, 0), ttl, false)
}

/// Why a register proves nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NoProof {
    Refused(ServerError),
    RegisterGone,
    /// The register holds a value that the library does not write, or that of a later transaction.
    RegisterForeign,
}

/// Returns what the replies prove about the transaction that was to write `number`. True: it was
/// applied. False: it was not and never will be.
pub(crate) fn applied(number: u64, touched: &Value, found: &Value) -> Result<bool, NoProof> {
    for answer in [touched, found] {
        if let Value::ServerError(error) = answer {
            return Err(NoProof::Refused(ServerError::from_reply(error, false)));
        }
    }
    let found = match found {
        Value::Nil => return Err(NoProof::RegisterGone),
        // As the library writes numbers: no sign, no leading zero.
        Value::BulkString(digits) => std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse::<u64>().ok().filter(|n| n.to_string() == digits)),
        _ => None,
    };
    match (found, touched) {
        (Some(found), _) if found == number => Ok(true),
        // Without the touch, a late EXEC could still be applied.
        (Some(found), Value::Int(1)) if found < number => Ok(false),
        (Some(_), Value::Int(0)) => Err(NoProof::RegisterGone),
        _ => Err(NoProof::RegisterForeign),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn only_a_register_that_was_touched_proves_that_nothing_was_applied() {
        let (touched, untouched) = (Value::Int(1), Value::Int(0));
        assert_eq!(applied(7, &touched, &bulk("7")), Ok(true));
        assert_eq!(applied(7, &touched, &bulk("6")), Ok(false));
        assert_eq!(applied(7, &untouched, &bulk("7")), Ok(true));
        assert_eq!(applied(7, &untouched, &bulk("6")), Err(NoProof::RegisterGone));
        assert_eq!(applied(7, &untouched, &Value::Nil), Err(NoProof::RegisterGone));
        assert_eq!(applied(7, &touched, &Value::Nil), Err(NoProof::RegisterGone));
        let foreign = [bulk("8"), bulk("seven"), bulk("-1"), bulk("+7"), bulk("07"), bulk("+6")];
        for foreign in foreign.into_iter().chain([Value::Int(7), Value::Okay]) {
            assert_eq!(applied(7, &touched, &foreign), Err(NoProof::RegisterForeign));
        }
    }

    #[test]
    fn a_refusal_proves_nothing() {
        let error = redis::parse_redis_value(b"-READONLY no\r\n").unwrap();
        for (touched, found) in [(&error, &bulk("6")), (&Value::Int(1), &error)] {
            let refused = applied(7, touched, found);
            assert!(matches!(refused, Err(NoProof::Refused(e)) if e.code() == "READONLY"));
        }
    }

    #[test]
    fn only_names_that_a_register_can_have_are_accepted() {
        let mut marker = CommitMarker::new("app", u128::MAX - 5);
        assert!(is_register(marker.register(), "app", None));
        assert!(!is_register(marker.register(), "app", Some(7)));
        assert!(!is_register(marker.register(), "ap", None));
        marker.set_tag(Some(7));
        assert!(is_register(marker.register(), "app", Some(7)));
        assert!(!is_register(marker.register(), "app", Some(8)));
        assert!(!is_register(marker.register(), "app", None));
        let digits = "0123456789abcdef0123456789abcdef";
        assert!(is_register(&format!("app:reg:{digits}"), "app", None));
        for no in [
            String::new(),
            "balance:alice".into(),
            digits.into(),
            format!("app:{digits}"),
            format!("app:reg:{}", digits.to_uppercase()),
            format!("app:reg:+{}", &digits[1..]),
            format!("app:reg: {}", &digits[1..]),
            format!("app:reg:0{digits}"),
            format!("app:reg:{}", &digits[1..]),
            format!("app:reg:{digits} "),
            format!("app:once:{digits}"),
            format!("xapp:reg:{digits}"),
            format!("app:{{7}}:reg:{digits}"),
            format!("app:reg:é{}", &digits[2..]),
        ] {
            assert!(!is_register(&no, "app", None), "{no}");
        }
        for no in ["{07}", "{+7}", "{}", "{7", "7"] {
            assert!(!is_register(&format!("app:{no}:reg:{digits}"), "app", Some(7)), "{no}");
        }
    }

    #[test]
    fn no_two_connections_share_a_register() {
        let (one, two) = (CommitMarker::new("app", 1), CommitMarker::new("app", 2));
        assert_ne!(one.register(), two.register());
        assert_eq!(one.register(), "app:reg:00000000000000000000000000000001");
        let mut bytes = Vec::new();
        one.set(&mut bytes, Duration::from_micros(1));
        assert!(bytes.ends_with(b"$1\r\n0\r\n$2\r\nPX\r\n$1\r\n1\r\n"));
    }
}
