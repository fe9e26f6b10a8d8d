//! What the pooled handle was last answered on this thread, for an answer that cannot be decoded:
//! redis-rs decodes it, and its error knows neither the command nor what that did. The error shows
//! the value; the command is the one whose answer has that value in it, as far as a hash of this
//! thread's tells.
//!
//! Never: a value. Hashes with a random key are kept, and the kind of the answer.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::hash::{BuildHasher, RandomState};

use redis::Value;

use crate::error::applied::Applied;
use crate::reply::replies::reply_kind;

/// How many answers back one is looked for.
const KEPT: usize = 8;
const LONGEST: usize = 24;
const REPLIES: &str = "replies";
/// A value that redis-rs shows in more bytes than these is compared with nothing.
const SHOWN: usize = 512;
/// Nor is a value of more bytes than these that are not UTF-8: redis-rs shows each as a number, which
/// takes a while.
const BINARY: usize = 64;
/// How many values are looked at in one answer, and how many bytes of theirs.
const VALUES: usize = 64;
const BYTES: usize = 2048;

#[derive(Default)]
struct RecentReply {
    name: [u8; LONGEST],
    length: usize,
    read_only: bool,
    kind: &'static str,
    /// Of the answer and of the values in it, of which redis-rs may show any.
    shown: Vec<u64>,
    /// There are more of them.
    is_partial: bool,
}

impl RecentReply {
    fn name(&self) -> &[u8] {
        self.name.get(..self.length).unwrap_or_default()
    }

    fn may_show(&self, shown: &[u8], hash: u64) -> bool {
        // redis-rs leaves out the replies that the pipeline ignores.
        let is_rest = self.kind == REPLIES && shown.starts_with(b"array(");
        self.is_partial || is_rest || self.shown.contains(&hash)
    }
}

#[derive(Default)]
struct RecentReplies {
    key: RandomState,
    /// From the oldest on.
    kept: Vec<RecentReply>,
}

thread_local! {
    static RECENT: RefCell<RecentReplies> = RefCell::default();
}

/// The command that was just answered without an error; of a pipeline, its name for errors.
pub(crate) fn note(name: &str, read_only: bool, replies: &[Value], is_single: bool) {
    // A thread that is ending has no use for it.
    let _: Result<(), _> = RECENT.try_with(|recent| {
        let RecentReplies { key, kept } = &mut *recent.borrow_mut();
        // The oldest one's memory is used again.
        let mut reply = match kept.len() >= KEPT {
            true => kept.remove(0),
            false => RecentReply::default(),
        };
        reply.length = name.len().min(LONGEST);
        for (to, from) in reply.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        reply.read_only = read_only;
        reply.kind = match replies.first() {
            Some(reply) if is_single => reply_kind(reply),
            _ => REPLIES,
        };
        reply.shown.clear();
        let mut hashing = Hashing { key, to: &mut reply.shown, bytes: BYTES, is_partial: false };
        replies.iter().for_each(|reply| hashing.add(reply));
        if !is_single {
            hashing.add_text(format_args!("array({replies:?})"));
        }
        reply.is_partial = hashing.is_partial;
        kept.push(reply);
    });
}

/// Whatever fails to be decoded next may be of another connection.
pub(crate) fn forget() {
    let _: Result<(), _> = RECENT.try_with(|recent| recent.borrow_mut().kept.clear());
}

/// The command whose answer this error of redis-rs's shows, the answer's kind, and what the command
/// did. `None` where the value is in no answer, and where it may be of a read and of a write. The name
/// is `None` where it may be of several commands.
///
/// Of an error that shows no value (a user's own decoding) the command is the one answered last, and
/// what it did is known where all that are remembered did the same.
pub(crate) fn find(error: &str) -> Option<(Option<String>, &'static str, Applied)> {
    let words = error.strip_prefix("Incompatible type - ")?;
    let shown = words.split_once(" (value was ").or_else(|| words.split_once(" (response was "));
    let Some((_, shown)) = shown else { return last() };
    let shown = shown.strip_suffix(')')?.as_bytes();
    if shown.len() > SHOWN {
        return None;
    }
    RECENT
        .try_with(|recent| {
            let RecentReplies { key, kept } = &mut *recent.borrow_mut();
            let hash = key.hash_one(shown);
            let newest = kept.iter().rposition(|reply| reply.shown.contains(&hash))?;
            let found = kept.get(newest)?;
            let fit = || kept.iter().filter(|reply| reply.may_show(shown, hash));
            if fit().any(|reply| reply.read_only != found.read_only) {
                return None;
            }
            let is_one = fit().all(|reply| reply.name() == found.name());
            let name = is_one.then(|| String::from_utf8_lossy(found.name()).into_owned());
            let applied = if found.read_only { Applied::No } else { Applied::Yes };
            let result = (name, found.kind, applied);
            // An answer fails to be decoded once.
            kept.remove(newest);
            Some(result)
        })
        .ok()?
}

/// The command that was answered last.
fn last() -> Option<(Option<String>, &'static str, Applied)> {
    RECENT
        .try_with(|recent| {
            let kept = &mut recent.borrow_mut().kept;
            let found = kept.last()?;
            let applied = match kept.iter().all(|reply| reply.read_only == found.read_only) {
                false => Applied::Unknown,
                true if found.read_only => Applied::No,
                true => Applied::Yes,
            };
            let name = String::from_utf8_lossy(found.name()).into_owned();
            let result = (Some(name), found.kind, applied);
            kept.pop();
            Some(result)
        })
        .ok()?
}

struct Hashing<'a> {
    key: &'a RandomState,
    to: &'a mut Vec<u64>,
    bytes: usize,
    is_partial: bool,
}

impl Hashing<'_> {
    /// The value and all that are in it.
    fn add(&mut self, value: &Value) {
        if self.is_partial {
            return;
        }
        match value {
            // It is shown in more bytes than it has.
            Value::BulkString(bytes) if bytes.len() > SHOWN => return,
            Value::BulkString(bytes)
                if bytes.len() > BINARY && std::str::from_utf8(bytes).is_err() =>
            {
                return;
            }
            value => self.add_text(format_args!("{value:?}")),
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

    fn add_text(&mut self, text: fmt::Arguments<'_>) {
        let mut shown = Shown { bytes: [0; SHOWN], length: 0 };
        let fits = shown.write_fmt(text).is_ok();
        let left = self.bytes.checked_sub(shown.length);
        let Some(left) = left.filter(|_| self.to.len() < VALUES) else {
            self.is_partial = true;
            return;
        };
        self.bytes = left;
        if fits {
            let shown = shown.bytes.get(..shown.length).unwrap_or_default();
            self.to.push(self.key.hash_one(shown));
        }
    }
}

/// A text that ends with an error where it gets too long.
struct Shown {
    bytes: [u8; SHOWN],
    length: usize,
}

impl Write for Shown {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let to = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        to.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(shown: &Value) -> String {
        format!("Incompatible type - \"Not a number.\" (value was {shown:?})")
    }

    #[test]
    fn an_answer_is_found_by_the_value_that_the_error_shows() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let found = |name: &str, kind, applied| Some((Some(name.to_owned()), kind, applied));
        note("GETDEL", false, &[text("a \"(value was) b")], true);
        note("GET", true, &[text("b")], true);
        note("LPOP", false, &[Value::Array(vec![text("c"), Value::Nil])], true);
        assert_eq!(find(&error(&text("none"))), None);
        let deleted = find(&error(&text("a \"(value was) b")));
        assert_eq!(deleted, found("GETDEL", "a bulk string", Applied::Yes));
        assert_eq!(find(&error(&text("a \"(value was) b"))), None, "found once");
        assert_eq!(find(&error(&Value::Nil)), found("LPOP", "an array", Applied::Yes));
        assert_eq!(find(&error(&text("b"))), found("GET", "a bulk string", Applied::No));
        assert_eq!(find("mine"), None);
        // Of two commands that read, and then of one that wrote.
        note("GET", true, &[Value::Nil], true);
        note("HGET", true, &[Value::Nil], true);
        assert_eq!(find(&error(&Value::Nil)), Some((None, "nil", Applied::No)));
        note("LPOP", false, &[Value::Nil], true);
        assert_eq!(find(&error(&Value::Nil)), None);
        forget();
        // What is too long is in no error that is compared; an answer with too much in it is in any.
        let long = text(&"x".repeat(SHOWN));
        note("GETSET", false, std::slice::from_ref(&long), true);
        note("GET", true, &[text("b")], true);
        assert_eq!(find(&error(&long)), None);
        assert_eq!(find(&error(&text("b"))), found("GET", "a bulk string", Applied::No));
        note("LPOP", false, &[Value::Array(vec![Value::Int(1); VALUES + 1])], true);
        note("GET", true, &[text("b")], true);
        assert_eq!(find(&error(&text("b"))), None);
        forget();
        // A user's own words show no value.
        let mine = "Incompatible type - mine";
        assert_eq!(find(mine), None);
        note("GET", true, &[text("b")], true);
        assert_eq!(find(mine), found("GET", "a bulk string", Applied::No));
        note("SET", false, &[Value::Okay], true);
        note("GET", true, &[text("b")], true);
        assert_eq!(find(mine), found("GET", "a bulk string", Applied::Unknown));
        forget();
    }
}
