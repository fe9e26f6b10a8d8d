//! The last replies of this thread, for a reply that redis-rs cannot decode.
//!
//! An error of redis-rs names neither the command nor its effect. But it shows the value, and the
//! command is the one whose reply contained that value, by hash. Only hashes with a random key and
//! the kind of the reply are kept, no values.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::hash::{BuildHasher, RandomState};

use redis::Value;

use crate::error::applied::Applied;
use crate::reply::replies::reply_kind;

/// Number of replies kept.
const MAX_REPLIES: usize = 8;
const MAX_NAME: usize = 24;
const REPLIES: &str = "replies";
/// Maximum bytes of a value as redis-rs shows it; a longer one is not compared.
const MAX_SHOWN: usize = 512;
/// Maximum bytes of a value that is not UTF-8, which redis-rs shows slowly, each byte as a number.
const MAX_BINARY: usize = 64;
/// Maximum number of values hashed in one reply, and of their bytes.
const MAX_VALUES: usize = 64;
const MAX_BYTES: usize = 2048;

#[derive(Default)]
struct RecentReply {
    name: [u8; MAX_NAME],
    length: usize,
    applied: Option<Applied>,
    kind: &'static str,
    /// Hashes of the reply and of the values within it, any of which redis-rs may show.
    shown: Vec<u64>,
    /// The reply contains more values.
    is_partial: bool,
}

impl RecentReply {
    fn name(&self) -> &[u8] {
        self.name.get(..self.length).unwrap_or_default()
    }

    fn may_show(&self, shown: &[u8], hash: u64) -> bool {
        // redis-rs leaves out replies that the pipeline ignores.
        let is_rest = self.kind == REPLIES && shown.starts_with(b"array(");
        self.is_partial || is_rest || self.shown.contains(&hash)
    }
}

#[derive(Default)]
struct RecentReplies {
    key: HashKey,
    /// The oldest first.
    kept: VecDeque<RecentReply>,
    /// A value as redis-rs shows it, while it is hashed.
    shown: Shown,
}

/// A random key, so that the hash of a value tells nothing of it.
struct HashKey([u64; 4]);

impl Default for HashKey {
    fn default() -> Self {
        let random = RandomState::new();
        Self([0, 1, 2, 3].map(|nth: u64| random.hash_one(nth)))
    }
}

impl HashKey {
    /// Much shorter than the standard hash for the few bytes of most replies.
    fn hash(&self, bytes: &[u8]) -> u64 {
        let [first, odd, even, last] = self.0;
        let mut state = first ^ bytes.len() as u64;
        let (pairs, rest) = bytes.as_chunks::<16>();
        for pair in pairs {
            let [low, high] = halves(pair);
            state = folded(state ^ low ^ odd, high ^ even);
        }
        let mut end = [0; 16];
        if let Some(end) = end.get_mut(..rest.len()) {
            end.copy_from_slice(rest);
        }
        let [low, high] = halves(&end);
        folded(folded(state ^ low ^ odd, high ^ even), last)
    }
}

fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let number = u128::from_le_bytes(*bytes);
    [number as u64, (number >> 64) as u64]
}

/// Both halves of the product.
fn folded(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}

thread_local! {
    static RECENT: RefCell<RecentReplies> = RefCell::default();
}

/// Records a reply that is not an error; for a pipeline under its name in errors.
pub(crate) fn record(name: &str, applied: Applied, replies: &[Value], is_single: bool) {
    // A thread that is ending does not need it.
    let _: Result<(), _> = RECENT.try_with(|recent| {
        let RecentReplies { key, kept, shown } = &mut *recent.borrow_mut();
        match kept.len() {
            // The oldest one becomes the newest, which reuses its memory.
            MAX_REPLIES.. => kept.rotate_left(1),
            _ => kept.push_back(RecentReply::default()),
        }
        let Some(reply) = kept.back_mut() else { return };
        reply.length = name.len().min(MAX_NAME);
        for (to, from) in reply.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        reply.applied = Some(applied);
        reply.kind = match replies.first() {
            Some(reply) if is_single => reply_kind(reply),
            _ => REPLIES,
        };
        reply.shown.clear();
        let mut hashing =
            Hashing { key, shown, to: &mut reply.shown, bytes: MAX_BYTES, is_partial: false };
        replies.iter().for_each(|reply| hashing.add(reply));
        if !is_single {
            hashing.add_shown(|shown| write!(shown, "array({replies:?})"));
        }
        reply.is_partial = hashing.is_partial;
    });
}

/// Clears the replies, because the next reply that fails to decode may be of another connection.
pub(crate) fn clear() {
    let _: Result<(), _> = RECENT.try_with(|recent| recent.borrow_mut().kept.clear());
}

/// Finds the reply whose value the error shows, among the last replies of this thread. Returns the
/// command's name, the kind of the reply, and the effect.
///
/// Returns `None` if no reply has the value, or if replies with different effects have it. The name
/// is `None` if replies of different commands have it.
///
/// If the error has no value (a user's own decoding), the name is that of the last command. Its
/// effect is known if all kept replies have the same effect.
pub(crate) fn find(error: &str) -> Option<(Option<String>, &'static str, Applied)> {
    let words = error.strip_prefix("Incompatible type - ")?;
    let shown = words.split_once(" (value was ").or_else(|| words.split_once(" (response was "));
    let Some((_, shown)) = shown else { return last() };
    let shown = shown.strip_suffix(')')?.as_bytes();
    if shown.len() > MAX_SHOWN {
        return None;
    }
    RECENT
        .try_with(|recent| {
            let RecentReplies { key, kept, .. } = &mut *recent.borrow_mut();
            let hash = key.hash(shown);
            let newest = kept.iter().rposition(|reply| reply.shown.contains(&hash))?;
            let found = kept.get(newest)?;
            let fit = || kept.iter().filter(|reply| reply.may_show(shown, hash));
            if fit().any(|reply| reply.applied != found.applied) {
                return None;
            }
            let is_one = fit().all(|reply| reply.name() == found.name());
            let name = is_one.then(|| String::from_utf8_lossy(found.name()).into_owned());
            let result = (name, found.kind, found.applied?);
            // A reply fails to decode once.
            kept.remove(newest);
            Some(result)
        })
        .ok()?
}

/// The last command.
fn last() -> Option<(Option<String>, &'static str, Applied)> {
    RECENT
        .try_with(|recent| {
            let kept = &mut recent.borrow_mut().kept;
            let found = kept.back()?;
            let is_one = kept.iter().all(|reply| reply.applied == found.applied);
            let applied = found.applied.filter(|_| is_one).unwrap_or(Applied::Unknown);
            let name = String::from_utf8_lossy(found.name()).into_owned();
            let result = (Some(name), found.kind, applied);
            kept.pop_back();
            Some(result)
        })
        .ok()?
}

struct Hashing<'a> {
    key: &'a HashKey,
    shown: &'a mut Shown,
    to: &'a mut Vec<u64>,
    bytes: usize,
    is_partial: bool,
}

impl Hashing<'_> {
    /// Hashes the value and all within it.
    fn add(&mut self, value: &Value) {
        if self.is_partial {
            return;
        }
        match value {
            // redis-rs shows the value in more bytes than it has.
            Value::BulkString(bytes) if bytes.len() > MAX_SHOWN => return,
            Value::BulkString(bytes)
                if bytes.len() > MAX_BINARY && std::str::from_utf8(bytes).is_err() =>
            {
                return;
            }
            value => self.add_shown(|shown| show(value, shown)),
        }
        match value {
            Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => {
                values.iter().for_each(|value| self.add(value));
            }
            Value::Map(pairs) => pairs.iter().for_each(|(key, value)| {
                self.add(key);
                self.add(value);
            }),
            Value::Attribute { data, .. } => self.add(data),
            _ => {}
        }
    }

    fn add_shown(&mut self, write: impl FnOnce(&mut Shown) -> fmt::Result) {
        self.shown.bytes.clear();
        let fits = write(self.shown).is_ok();
        let left = self.bytes.checked_sub(self.shown.bytes.len());
        let Some(left) = left.filter(|_| self.to.len() < MAX_VALUES) else {
            self.is_partial = true;
            return;
        };
        self.bytes = left;
        if fits {
            self.to.push(self.key.hash(&self.shown.bytes));
        }
    }
}

/// Writes the value as redis-rs shows it. Its own way takes long for the text of a plain reply.
fn show(value: &Value, shown: &mut Shown) -> fmt::Result {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    match value {
        Value::BulkString(bytes) if bytes.iter().all(is_plain) => {
            shown.write_str("bulk-string('\"")?;
            shown.put(bytes)?;
            shown.write_str("\"')")
        }
        value => write!(shown, "{value:?}"),
    }
}

/// A text that ends with an error when it gets too long.
#[derive(Default)]
struct Shown {
    bytes: Vec<u8>,
}

impl Shown {
    fn put(&mut self, text: &[u8]) -> fmt::Result {
        if self.bytes.len() + text.len() > MAX_SHOWN {
            return Err(fmt::Error);
        }
        self.bytes.extend_from_slice(text);
        Ok(())
    }
}

impl Write for Shown {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(shown: &Value) -> String {
        format!("Incompatible type - \"Not a number.\" (value was {shown:?})")
    }

    #[test]
    fn a_value_is_shown_as_redis_rs_shows_it() {
        let every_byte = (0..=u8::MAX).map(|byte| vec![b'a', byte]);
        for bytes in every_byte.chain([b"".to_vec(), "é'€\n\"".as_bytes().to_vec()]) {
            let value = Value::BulkString(bytes);
            let mut shown = Shown::default();
            show(&value, &mut shown).unwrap();
            let shown = String::from_utf8_lossy(&shown.bytes).into_owned();
            assert_eq!(shown, format!("{value:?}"));
        }
    }

    #[test]
    fn an_answer_is_found_by_the_value_that_the_error_shows() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let found = |name: &str, kind, applied| Some((Some(name.to_owned()), kind, applied));
        record("GETDEL", Applied::Yes, &[text("a \"(value was) b")], true);
        record("GET", Applied::No, &[text("b")], true);
        record("LPOP", Applied::Yes, &[Value::Array(vec![text("c"), Value::Nil])], true);
        assert_eq!(find(&error(&text("none"))), None);
        let deleted = find(&error(&text("a \"(value was) b")));
        assert_eq!(deleted, found("GETDEL", "a bulk string", Applied::Yes));
        assert_eq!(find(&error(&text("a \"(value was) b"))), None, "found once");
        assert_eq!(find(&error(&Value::Nil)), found("LPOP", "an array", Applied::Yes));
        assert_eq!(find(&error(&text("b"))), found("GET", "a bulk string", Applied::No));
        assert_eq!(find("mine"), None);
        // Two reads and then a write.
        record("GET", Applied::No, &[Value::Nil], true);
        record("HGET", Applied::No, &[Value::Nil], true);
        assert_eq!(find(&error(&Value::Nil)), Some((None, "nil", Applied::No)));
        record("LPOP", Applied::Yes, &[Value::Nil], true);
        assert_eq!(find(&error(&Value::Nil)), None);
        clear();
        // A value that is too long is not compared; a reply with too many values may contain any.
        let long = text(&"x".repeat(MAX_SHOWN));
        record("GETSET", Applied::Yes, std::slice::from_ref(&long), true);
        record("GET", Applied::No, &[text("b")], true);
        assert_eq!(find(&error(&long)), None);
        assert_eq!(find(&error(&text("b"))), found("GET", "a bulk string", Applied::No));
        record("LPOP", Applied::Yes, &[Value::Array(vec![Value::Int(1); MAX_VALUES + 1])], true);
        record("GET", Applied::No, &[text("b")], true);
        assert_eq!(find(&error(&text("b"))), None);
        clear();
        // A user's own text shows no value.
        let mine = "Incompatible type - mine";
        assert_eq!(find(mine), None);
        record("GET", Applied::No, &[text("b")], true);
        assert_eq!(find(mine), found("GET", "a bulk string", Applied::No));
        record("SET", Applied::Yes, &[Value::Okay], true);
        record("GET", Applied::No, &[text("b")], true);
        assert_eq!(find(mine), found("GET", "a bulk string", Applied::Unknown));
        clear();
    }
}
