//! What BITFIELD does with the integers of a string.

use redis::{RedisWrite, ToRedisArgs};

/// Operations on integers of any width in one string, in order.
///
/// An encoding is `"u8"` for an unsigned integer of 8 bits (up to 63), `"i8"` for a signed one (up
/// to 64). An offset counts bits, and with a `#` before it integers: `"#2"` is the third one.
///
/// ```no_run
/// use rediscope::prelude::*;
///
/// fn vote(tx: &mut impl QueueCommands) {
///     let votes = Bitfield::new().overflow(BitfieldOverflow::Saturate).incr("u4", "#7", 1);
///     let now: Queued<Vec<Option<i64>>> = tx.bitfield("votes", &votes);
///     # let _ = now;
/// }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "operations do nothing until `bitfield` queues them"]
pub struct Bitfield {
    words: Vec<Vec<u8>>,
}

/// What an increment beyond the ends of its integer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BitfieldOverflow {
    /// It begins again at the other end. The default of the server.
    Wrap,
    /// It stays at the end.
    Saturate,
    /// It changes nothing, and its reply is nil.
    Fail,
}

impl Bitfield {
    /// Makes a list without operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an integer (`GET`).
    pub fn get<O: ToRedisArgs>(self, encoding: &str, offset: O) -> Self {
        self.arg("GET").arg(encoding).arg(offset)
    }

    /// Sets an integer; its reply is the old one (`SET`).
    pub fn set<O: ToRedisArgs>(self, encoding: &str, offset: O, value: i64) -> Self {
        self.arg("SET").arg(encoding).arg(offset).arg(value)
    }

    /// Adds `by` to an integer; its reply is the new one (`INCRBY`).
    pub fn incr<O: ToRedisArgs>(self, encoding: &str, offset: O, by: i64) -> Self {
        self.arg("INCRBY").arg(encoding).arg(offset).arg(by)
    }

    /// Sets what the increments after it do at the ends of their integers (`OVERFLOW`).
    pub fn overflow(self, overflow: BitfieldOverflow) -> Self {
        self.arg("OVERFLOW").arg(match overflow {
            BitfieldOverflow::Wrap => "WRAP",
            BitfieldOverflow::Saturate => "SAT",
            BitfieldOverflow::Fail => "FAIL",
        })
    }

    fn arg<A: ToRedisArgs>(mut self, arg: A) -> Self {
        self.words.extend(arg.to_redis_args());
        self
    }
}

impl ToRedisArgs for Bitfield {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        self.words.iter().for_each(|word| out.write_arg(word));
    }

    fn num_of_args(&self) -> usize {
        self.words.len()
    }
}
