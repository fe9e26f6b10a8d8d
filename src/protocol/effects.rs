//! What the queued commands of a block do to the values that a watch has read.
//!
//! Either the effect is known exactly, or it is unknown. A command that may fail, or whose effect
//! depends on the server's version, is unknown.

#[cfg(test)]
#[path = "../../tests/unit/effects.rs"]
mod tests;

use std::sync::Arc;

use redis::Value;

use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::table::is_read_only;
use crate::text::opaque_debug;

/// Maximum bytes of the values. Each block gets a copy of them.
const MAX_BYTES: usize = 16 * 1024;

/// Longest lifetime in seconds that every version accepts.
const MAX_SECONDS: i64 = 1_000_000_000;

/// The values of the keys that a watch reads.
#[derive(Clone, PartialEq)]
pub(crate) struct ReadValues {
    values: Vec<(Arc<[u8]>, Held)>,
}

#[derive(Clone, PartialEq)]
enum Held {
    Absent,
    Text(Arc<[u8]>),
    /// MGET replied nil: the key is absent, or holds no string.
    NoText,
}

opaque_debug!(ReadValues);

/// Whether the reads are of a kind whose values can be predicted.
pub(crate) fn are_predictable(reads: &[u8]) -> bool {
    let mut reads = CommandReader::new(reads).peekable();
    let is_known = |read: Result<Vec<&[u8]>, _>| match read.as_deref() {
        Ok([name, _]) if name.eq_ignore_ascii_case(b"GET") => true,
        Ok([name, _, ..]) => name.eq_ignore_ascii_case(b"MGET"),
        _ => false,
    };
    reads.peek().is_some() && reads.all(is_known)
}

impl ReadValues {
    /// The values in the replies to these reads; `None`: they are not known exactly, or too large.
    pub(crate) fn of(reads: &[u8], replies: &[Value]) -> Option<Self> {
        let (mut found, mut bytes) = (Self { values: Vec::new() }, 0);
        let mut replies = replies.iter();
        for read in CommandReader::new(reads) {
            let (args, reply) = (read.ok()?, replies.next()?);
            match (args.get(1..)?, reply) {
                ([key], reply) if !matches!(reply, Value::Array(_)) => {
                    bytes += found.add(key, reply, Held::Absent)?;
                }
                (keys, Value::Array(values)) if keys.len() == values.len() => {
                    for (key, value) in keys.iter().zip(values) {
                        bytes += found.add(key, value, Held::NoText)?;
                    }
                }
                _ => return None,
            }
        }
        (bytes <= MAX_BYTES).then_some(found)
    }

    fn add(&mut self, key: &[u8], reply: &Value, nil: Held) -> Option<usize> {
        let held = match reply {
            Value::BulkString(text) => Held::Text(text.as_slice().into()),
            Value::Nil => nil,
            _ => return None,
        };
        let bytes = key.len() + held.len();
        match self.get_mut(key) {
            None => self.values.push((key.into(), held)),
            // Two reads of one key in one write are two commands: it may have changed in between.
            Some(other) if *other != held => return None,
            Some(_) => {}
        }
        Some(bytes)
    }

    fn get(&self, key: &[u8]) -> Option<&Held> {
        self.values.iter().find(|(name, _)| **name == *key).map(|(_, held)| held)
    }

    fn get_mut(&mut self, key: &[u8]) -> Option<&mut Held> {
        self.values.iter_mut().find(|(name, _)| **name == *key).map(|(_, held)| held)
    }

    /// The replies that the reads would have.
    pub(crate) fn replies(&self, reads: &[u8]) -> Vec<Value> {
        let reply = |key: &[u8]| match self.get(key) {
            Some(Held::Text(text)) => Value::BulkString(text.to_vec()),
            _ => Value::Nil,
        };
        let replies = CommandReader::new(reads).map(|read| {
            let args = read.unwrap_or_default();
            match args.as_slice() {
                [name, key] if name.eq_ignore_ascii_case(b"GET") => reply(key),
                [_, keys @ ..] => Value::Array(keys.iter().map(|key| reply(key)).collect()),
                [] => Value::Nil,
            }
        });
        replies.collect()
    }

    /// Applies encoded commands. Each of them acts on nothing but keys among its arguments. Returns
    /// the indices of those that change the values; `None`: the effect is unknown.
    pub(crate) fn apply(&mut self, commands: &[u8]) -> Option<Vec<u32>> {
        let mut changing = Vec::new();
        for (index, command) in (0..).zip(CommandReader::new(commands)) {
            let args = command.ok()?;
            let (name, args) = args.split_first()?;
            let touches = args.iter().any(|arg| self.get(arg).is_some());
            if touches && !is_read_only(name, None) {
                self.change(name, args)?;
                changing.push(index);
            }
        }
        let bytes: usize = self.values.iter().map(|(key, held)| key.len() + held.len()).sum();
        (bytes <= MAX_BYTES).then_some(changing)
    }

    /// Applies one command that has one of the keys among its arguments.
    fn change(&mut self, name: &[u8], args: &[&[u8]]) -> Option<()> {
        match (name, args) {
            (b"SET", [key, value, options @ ..]) => self.set(key, value, options),
            (b"SETEX", [key, seconds, value]) | (b"PSETEX", [key, seconds, value]) => {
                is_lifetime(seconds).then(|| self.put(key, Held::Text((*value).into())))
            }
            (b"DEL" | b"UNLINK", keys) => {
                keys.iter().for_each(|key| self.put(key, Held::Absent));
                Some(())
            }
            (b"INCR", [key]) => self.add_to(key, Some(1)),
            (b"DECR", [key]) => self.add_to(key, Some(-1)),
            (b"INCRBY", [key, by]) => self.add_to(key, integer(by)),
            (b"DECRBY", [key, by]) => self.add_to(key, integer(by)?.checked_neg()),
            _ => None,
        }
    }

    fn put(&mut self, key: &[u8], held: Held) {
        if let Some(value) = self.get_mut(key) {
            *value = held;
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8], options: &[&[u8]]) -> Option<()> {
        let held = self.get(key);
        let is = |option: &[u8], name: &str| option.eq_ignore_ascii_case(name.as_bytes());
        let is_set = match options {
            [] => true,
            [unit, time] if is(unit, "EX") || is(unit, "PX") => {
                is_lifetime(time).then_some(true)?
            }
            [only] if is(only, "NX") || is(only, "XX") => match held? {
                Held::NoText => return None,
                held => (*held == Held::Absent) == is(only, "NX"),
            },
            _ => return None,
        };
        if is_set {
            self.put(key, Held::Text(value.into()));
        }
        Some(())
    }

    fn add_to(&mut self, key: &[u8], by: Option<i64>) -> Option<()> {
        let held = match self.get(key)? {
            Held::Absent => 0,
            Held::Text(text) => integer(text)?,
            Held::NoText => return None,
        };
        let sum = held.checked_add(by?)?;
        self.put(key, Held::Text(sum.to_string().into_bytes().into()));
        Some(())
    }
}

impl Held {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Absent | Self::NoText => 0,
        }
    }
}

/// An integer as the server writes it; other spellings are errors in some versions.
fn integer(text: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == text).then_some(number)
}

/// Whether this is a lifetime that every version accepts, in seconds or milliseconds.
fn is_lifetime(text: &[u8]) -> bool {
    integer(text).is_some_and(|time| (1..=MAX_SECONDS).contains(&time))
}
