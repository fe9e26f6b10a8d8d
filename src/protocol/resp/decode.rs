//! Replies out of bytes, in whatever pieces those come.
//!
//! Every reply of RESP2 and RESP3 is read, without recursion, and no byte is looked at twice because
//! a reply came in pieces. (Streamed strings and aggregates, which no server sends, are not.)
//!
//! Never: a wait. Never: memory because of a length alone, before what it announces has come.

#[cfg(test)]
#[path = "../../../tests/unit/decode.rs"]
mod tests;

use std::borrow::Cow;

use redis::{Value, VerbatimFormat};

use crate::protocol::resp::reply::Reply;

/// What is read at once. Longer strings and lines grow in a place of their own.
const ROOM: usize = 16 * 1024;
/// Maximum nesting of a reply. The parser itself needs no bound. A `redis::Value` is cloned,
/// compared, shown and dropped recursively: a clone takes about 1.4 KB of stack a level without
/// optimisation, and a thread has 2 MiB.
pub(crate) const DEEPEST: usize = 512;
/// For so many elements memory is taken ahead of their arrival.
const AHEAD: usize = 1024;
/// What an element of an aggregate counts for, besides its own bytes.
const ELEMENT: usize = size_of::<Value>();
/// An error's text beyond this is cut. It is copied three times while it is taken over.
const LONGEST_ERROR: usize = 64 * 1024;
/// The longest line that holds a length, inside what is thrown away.
const LONGEST_LENGTH: usize = 64;
/// Maximum bytes of one reply by default, which is the default of `max_reply_bytes`.
const MOST: usize = 1 << 30;

/// The bytes of the end of a line.
const END: usize = 2;
const QUEUED: &[u8] = b"+QUEUED\r\n";

/// Why the rest of what comes cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It is not the Redis protocol.
    Malformed,
    /// The reply is larger than the bound.
    TooLarge,
    /// The reply is nested deeper than [`DEEPEST`].
    TooDeep,
}

/// A reply that cannot be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) why: Why,
    /// The length of the reply, if the reply is an array.
    pub(crate) array: Option<usize>,
}

/// What has come while no reply was awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// Nothing, or nothing but whole pushes and attributes, which are dropped.
    Nothing,
    /// A part of a push or an attribute.
    Push,
    /// A reply, or a part of one.
    Reply,
}

/// Replies out of bytes, in whatever pieces those come.
pub(crate) struct Parser {
    room: Vec<u8>,
    /// What was read and not yet understood is `start..end` of the room.
    start: usize,
    end: usize,
    /// How many bytes behind `start` hold no end of a line.
    looked: usize,
    /// The aggregates that are not complete, the innermost last.
    open: Vec<Open>,
    /// The string or line that is under way and does not wait in the room.
    partial: Option<Partial>,
    /// How many values are still to be thrown away.
    skip: u64,
    /// Maximum bytes of a reply, and how many the one under way has.
    limit: usize,
    spent: usize,
    /// The length of the reply under way, if it is an array.
    outer: Option<usize>,
}

struct Open {
    left: usize,
    items: Items,
}

enum Items {
    Array(Vec<Value>),
    Set(Vec<Value>),
    Map(Vec<(Value, Value)>, Option<Value>),
}

enum Partial {
    /// A string longer than the room. Its last two bytes are the end of the line.
    Text { mark: u8, bytes: Vec<u8>, left: usize },
    /// A line longer than the room, with its mark.
    Line(Vec<u8>),
    /// A string that is thrown away, its end of line included.
    SkippedText { left: usize },
    /// A line that is thrown away, and whether its last byte so far is a carriage return.
    SkippedLine { ends: bool },
}

enum Token {
    Value(Value),
    /// An array, a set or a map of so many elements (of a map keys and values).
    Open(u8, usize),
    /// A push or an attribute, of so many values. The first was not asked for; the second is about
    /// the reply behind it, which stands for itself.
    Skip(u64),
}

impl Parser {
    /// What has come and is not understood yet.
    pub(crate) fn rest(&self) -> &[u8] {
        self.room.get(self.start..self.end).unwrap_or_default()
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            room: Vec::new(),
            start: 0,
            end: 0,
            looked: 0,
            open: Vec::new(),
            partial: None,
            skip: 0,
            limit: MOST,
            spent: 0,
            outer: None,
        }
    }
}

impl Parser {
    /// Maximum bytes of one reply: its strings and lines, and the size of a value for each element.
    pub(crate) fn bound(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// Where the next bytes go: never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.room.len() > ROOM {
                self.room = Vec::new();
            }
        } else if self.end == self.room.len() && self.start > 0 {
            self.room.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.room.len() {
            self.room.resize((2 * self.room.len()).max(ROOM), 0);
        }
        self.room.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were put into the room.
    pub(crate) fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.room.len());
    }

    /// Whether nothing is left of what came: not a byte, not half a reply.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end && self.open.is_empty() && self.partial.is_none() && self.skip == 0
    }

    /// Judges what has come while no reply is awaited.
    pub(crate) fn unasked(&mut self) -> Result<Unasked, Fault> {
        if self.next(1)?.is_some() || !self.open.is_empty() {
            return Ok(Unasked::Reply);
        }
        Ok(match (self.came().first(), &self.partial) {
            _ if self.skip > 0 => Unasked::Push,
            (_, Some(_)) => Unasked::Reply,
            (None, None) => Unasked::Nothing,
            (Some(b'>' | b'|'), None) => Unasked::Push,
            (Some(_), None) => Unasked::Reply,
        })
    }

    /// The next whole reply, if it has come: several QUEUED are one, `most` at once. After an error
    /// nothing is to be understood any more.
    pub(crate) fn next(&mut self, most: u32) -> Result<Option<Reply>, Fault> {
        match self.queued(most) {
            0 => self.whole().map_err(|why| Fault { why, array: self.outer }),
            count => Ok(Some(Reply::Queued(count))),
        }
    }

    /// Takes as many QUEUED as come next, which is most of what a transaction is answered.
    fn queued(&mut self, most: u32) -> u32 {
        if !self.open.is_empty() || self.partial.is_some() || self.skip > 0 {
            return 0;
        }
        let lines = self.came().chunks_exact(QUEUED.len()).take(most as usize);
        let count = lines.take_while(|line| *line == QUEUED).count();
        if count > 0 {
            self.consume(count * QUEUED.len());
        }
        count as u32
    }

    fn whole(&mut self) -> Result<Option<Reply>, Why> {
        loop {
            if self.skip > 0 && !self.skipped()? {
                return Ok(None);
            }
            let mut value = match self.token()? {
                None => return Ok(None),
                Some(Token::Value(value)) => value,
                Some(Token::Skip(values)) => {
                    self.skip = values;
                    continue;
                }
                Some(Token::Open(mark, left)) => {
                    if self.open.is_empty() {
                        self.outer = (mark == b'*').then_some(left);
                    }
                    charge(&mut self.spent, self.limit, left.saturating_mul(ELEMENT))?;
                    let items = Items::new(mark, left.min(AHEAD));
                    if left > 0 {
                        if self.open.len() == DEEPEST {
                            return Err(Why::TooDeep);
                        }
                        self.open.push(Open { left, items });
                        continue;
                    }
                    items.closed()
                }
            };
            loop {
                let Some(open) = self.open.last_mut() else {
                    (self.spent, self.outer) = (0, None);
                    return Ok(Some(Reply::from(value)));
                };
                open.items.push(value);
                open.left -= 1;
                if open.left > 0 {
                    break;
                }
                match self.open.pop() {
                    Some(open) => value = open.items.closed(),
                    None => break,
                }
            }
        }
    }

    /// What was read and is not understood yet.
    fn came(&self) -> &[u8] {
        self.room.get(self.start..self.end).unwrap_or_default()
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        self.looked = 0;
    }

    fn token(&mut self) -> Result<Option<Token>, Why> {
        if self.partial.is_some() {
            return self.resumed();
        }
        let came = self.room.get(self.start..self.end).unwrap_or_default();
        // What nearly every element is, or begins with.
        if let [mark @ (b':' | b'$' | b'*'), text @ ..] = came
            && let Some((number, line)) = digits(text)
        {
            let (mark, taken) = (*mark, 1 + line);
            return self.counted(mark, number, taken);
        }
        let Some(length) = end_of_line(came, &mut self.looked) else {
            if came.len() >= ROOM {
                charge(&mut self.spent, self.limit.saturating_add(END), came.len() - 1)?;
                self.partial = Some(Partial::Line(came.to_vec()));
                self.consume(self.end - self.start);
            } else if came.len() > (self.limit - self.spent).saturating_add(1 + END) {
                return Err(Why::TooLarge);
            }
            return Ok(None);
        };
        let line = came.get(..length).unwrap_or_default();
        let [mark, text @ ..] = line else { return Err(Why::Malformed) };
        let (mark, taken) = (*mark, length + 2);
        if is_counted(mark) {
            let number = number(text)?;
            return self.counted(mark, number, taken);
        }
        charge(&mut self.spent, self.limit, text.len())?;
        let value = simple(mark, Cow::Borrowed(text))?;
        self.consume(taken);
        Ok(Some(Token::Value(value)))
    }

    /// Goes on with the string or line that is under way.
    fn resumed(&mut self) -> Result<Option<Token>, Why> {
        let came = self.room.get(self.start..self.end).unwrap_or_default();
        match &mut self.partial {
            Some(Partial::Text { bytes, left, .. }) => {
                let taken = came.len().min(*left);
                bytes.extend_from_slice(came.get(..taken).unwrap_or_default());
                *left -= taken;
                let whole = *left == 0;
                self.consume(taken);
                if !whole {
                    return Ok(None);
                }
            }
            Some(Partial::Line(line)) => {
                let mut from = 0;
                let whole = loop {
                    let rest = came.get(from..).unwrap_or_default();
                    let feed = rest.iter().position(|byte| *byte == b'\n');
                    let piece = feed.and_then(|at| rest.get(..=at)).unwrap_or(rest);
                    charge(&mut self.spent, self.limit.saturating_add(END), piece.len())?;
                    line.extend_from_slice(piece);
                    from += piece.len();
                    if feed.is_none() || line.ends_with(b"\r\n") {
                        break feed.is_some();
                    }
                };
                self.consume(from);
                if !whole {
                    return Ok(None);
                }
                self.spent = self.spent.saturating_sub(END);
            }
            Some(Partial::SkippedText { .. } | Partial::SkippedLine { .. }) | None => {}
        }
        let value = match self.partial.take() {
            Some(Partial::Text { mark, bytes, .. }) => text(mark, bytes)?,
            Some(Partial::Line(mut line)) => {
                line.truncate(line.len().saturating_sub(2));
                let mark = line.first().copied().unwrap_or_default();
                line.drain(..1);
                if is_counted(mark) {
                    let number = number(&line)?;
                    return self.counted(mark, number, 0);
                }
                simple(mark, Cow::Owned(line))?
            }
            Some(Partial::SkippedText { .. } | Partial::SkippedLine { .. }) | None => {
                return Ok(None);
            }
        };
        Ok(Some(Token::Value(value)))
    }

    /// What a line of so many bytes begins that holds no more than a number.
    fn counted(&mut self, mark: u8, number: i64, taken: usize) -> Result<Option<Token>, Why> {
        let token = match (mark, usize::try_from(number)) {
            (b':', _) => Token::Value(Value::Int(number)),
            (b'$' | b'=' | b'!', Ok(length)) => return self.string(mark, length, taken),
            (b'>', Err(_)) => Token::Skip(0),
            (b'$' | b'*' | b'~', Err(_)) => Token::Value(Value::Nil),
            // These have no nil in the protocol.
            (_, Err(_)) => return Err(Why::Malformed),
            (b'>', Ok(length)) => Token::Skip(length as u64),
            (b'|', Ok(pairs)) => Token::Skip(doubled(pairs)? as u64),
            (b'%', Ok(pairs)) => Token::Open(mark, doubled(pairs)?),
            (_, Ok(length)) => Token::Open(mark, length),
        };
        self.consume(taken);
        Ok(Some(token))
    }

    /// A string of this length, whose first line has so many bytes.
    fn string(&mut self, mark: u8, length: usize, taken: usize) -> Result<Option<Token>, Why> {
        let whole = length.saturating_add(2);
        let came = self.room.get(self.start + taken..self.end).unwrap_or_default();
        let Some(bytes) = came.get(..whole) else {
            // The bound is looked at before the string has come.
            if length > self.limit.saturating_sub(self.spent) {
                return Err(Why::TooLarge);
            }
            if taken + whole > ROOM {
                self.spent += length;
                self.consume(taken);
                let bytes = Vec::with_capacity(whole.min(ROOM));
                self.partial = Some(Partial::Text { mark, bytes, left: whole });
                return self.resumed();
            }
            return Ok(None);
        };
        charge(&mut self.spent, self.limit, length)?;
        let value = match bytes {
            [text @ .., b'\r', b'\n'] if mark == b'$' => Value::BulkString(text.to_vec()),
            _ => text(mark, bytes.to_vec())?,
        };
        self.consume(taken + whole);
        Ok(Some(Token::Value(value)))
    }

    /// Throws away what has come of the values that are not wanted, and keeps nothing but how many
    /// are left. Whether that is none.
    fn skipped(&mut self) -> Result<bool, Why> {
        while self.skip > 0 {
            let came = self.room.get(self.start..self.end).unwrap_or_default();
            match &mut self.partial {
                Some(Partial::SkippedText { left }) => {
                    let taken = came.len().min(*left);
                    *left -= taken;
                    let end = came.get(..taken).unwrap_or_default();
                    let ends = match *left {
                        0 => end.ends_with(b"\r\n") || end == b"\n" || end.is_empty(),
                        1 => end.ends_with(b"\r") || end.is_empty(),
                        _ => true,
                    };
                    let whole = *left == 0;
                    self.consume(taken);
                    match (ends, whole) {
                        (false, _) => return Err(Why::Malformed),
                        (true, false) => return Ok(false),
                        (true, true) => self.skip -= 1,
                    }
                    self.partial = None;
                }
                Some(Partial::SkippedLine { ends }) => {
                    let mut end = None;
                    for (at, byte) in came.iter().enumerate() {
                        if *ends && *byte == b'\n' {
                            end = Some(at + 1);
                            break;
                        }
                        *ends = *byte == b'\r';
                    }
                    self.consume(end.unwrap_or(came.len()));
                    if end.is_none() {
                        return Ok(false);
                    }
                    self.partial = None;
                    self.skip -= 1;
                }
                _ => {
                    let Some(mark) = came.first().copied() else { return Ok(false) };
                    if !is_counted(mark) {
                        if !matches!(mark, b'+' | b'-' | b'_' | b'#' | b',' | b'(') {
                            return Err(Why::Malformed);
                        }
                        self.partial = Some(Partial::SkippedLine { ends: false });
                        self.consume(1);
                        continue;
                    }
                    let Some(length) = end_of_line(came, &mut self.looked) else {
                        return match came.len() > LONGEST_LENGTH {
                            true => Err(Why::Malformed),
                            false => Ok(false),
                        };
                    };
                    let number = number(came.get(1..length).unwrap_or_default())?;
                    self.consume(length + 2);
                    self.skip_counted(mark, number)?;
                }
            }
        }
        Ok(true)
    }

    fn skip_counted(&mut self, mark: u8, number: i64) -> Result<(), Why> {
        let within = match (mark, u64::try_from(number)) {
            (b'$' | b'=' | b'!', Ok(length)) => {
                let left = usize::try_from(length).map_err(|_| Why::Malformed)?;
                self.partial = Some(Partial::SkippedText { left: left.saturating_add(2) });
                return Ok(());
            }
            (b'*' | b'~' | b'>', Ok(length)) => length,
            (b'%', Ok(pairs)) => pairs.checked_mul(2).ok_or(Why::Malformed)?,
            // And the value it is about.
            (b'|', Ok(pairs)) => {
                pairs.checked_mul(2).and_then(|n| n.checked_add(1)).ok_or(Why::Malformed)?
            }
            (b'=' | b'!' | b'%' | b'|', Err(_)) => return Err(Why::Malformed),
            _ => 0,
        };
        self.skip = (self.skip - 1).checked_add(within).ok_or(Why::Malformed)?;
        Ok(())
    }
}

impl Items {
    fn new(mark: u8, capacity: usize) -> Self {
        match mark {
            b'~' => Self::Set(Vec::with_capacity(capacity)),
            b'%' => Self::Map(Vec::with_capacity(capacity / 2), None),
            _ => Self::Array(Vec::with_capacity(capacity)),
        }
    }

    fn push(&mut self, value: Value) {
        match self {
            Self::Array(items) | Self::Set(items) => items.push(value),
            Self::Map(pairs, key) => match key.take() {
                Some(key) => pairs.push((key, value)),
                None => *key = Some(value),
            },
        }
    }

    fn closed(self) -> Value {
        match self {
            Self::Array(items) => Value::Array(items),
            Self::Set(items) => Value::Set(items),
            Self::Map(pairs, _) => Value::Map(pairs),
        }
    }
}

/// Counts bytes of the reply under way.
fn charge(spent: &mut usize, limit: usize, bytes: usize) -> Result<(), Why> {
    *spent = spent.saturating_add(bytes);
    if *spent > limit { Err(Why::TooLarge) } else { Ok(()) }
}

fn doubled(pairs: usize) -> Result<usize, Why> {
    pairs.checked_mul(2).ok_or(Why::Malformed)
}

/// Whether a line of this mark holds no more than a number.
fn is_counted(mark: u8) -> bool {
    matches!(mark, b':' | b'$' | b'=' | b'!' | b'*' | b'~' | b'%' | b'>' | b'|')
}

/// Where the first line's `\r\n` begins. The first `looked` bytes are known to hold no end of it.
fn end_of_line(bytes: &[u8], looked: &mut usize) -> Option<usize> {
    loop {
        let rest = bytes.get(*looked..).unwrap_or_default();
        let Some(feed) = rest.iter().position(|byte| *byte == b'\n') else {
            *looked = bytes.len();
            return None;
        };
        let feed = *looked + feed;
        if let Some(end) = feed.checked_sub(1)
            && bytes.get(end) == Some(&b'\r')
        {
            // From here it is found at once, if it is asked for again.
            *looked = end;
            return Some(end);
        }
        *looked = feed + 1;
    }
}

/// A line that is a value of its own. Bytes that are not text stay as they are.
fn simple(mark: u8, line: Cow<'_, [u8]>) -> Result<Value, Why> {
    Ok(match mark {
        b'+' if &*line == b"OK" => Value::Okay,
        b'+' => match String::from_utf8(line.into_owned()) {
            Ok(text) => Value::SimpleString(text),
            Err(other) => Value::BulkString(other.into_bytes()),
        },
        b'-' => return error(&line),
        b'_' => Value::Nil,
        b'#' => Value::Boolean(match &*line {
            b"t" => true,
            b"f" => false,
            _ => return Err(Why::Malformed),
        }),
        b',' => Value::Double(utf8(&line)?.trim().parse().map_err(|_| Why::Malformed)?),
        b'(' => by_redis(&[b"(", &*line, b"\r\n"].concat())?,
        _ => return Err(Why::Malformed),
    })
}

/// A string with the end of its line.
fn text(mark: u8, mut bytes: Vec<u8>) -> Result<Value, Why> {
    if !bytes.ends_with(b"\r\n") {
        return Err(Why::Malformed);
    }
    bytes.truncate(bytes.len() - 2);
    match mark {
        b'!' => error(&bytes),
        b'=' => Ok(verbatim(bytes)),
        _ => Ok(Value::BulkString(bytes)),
    }
}

/// Bytes that name no format stay as they are.
fn verbatim(bytes: Vec<u8>) -> Value {
    let Some(colon) = bytes.iter().position(|byte| *byte == b':') else {
        return Value::BulkString(bytes);
    };
    let (format, text) = bytes.split_at(colon);
    let format = match String::from_utf8_lossy(format) {
        format if format == "txt" => VerbatimFormat::Text,
        format if format == "mkd" => VerbatimFormat::Markdown,
        format => VerbatimFormat::Unknown(format.into_owned()),
    };
    let text = String::from_utf8_lossy(text.get(1..).unwrap_or_default()).into_owned();
    Value::VerbatimString { format, text }
}

/// An error, whose text need not be UTF-8. It has no constructor outside redis-rs's parser.
fn error(text: &[u8]) -> Result<Value, Why> {
    let text = String::from_utf8_lossy(text.get(..LONGEST_ERROR).unwrap_or(text));
    by_redis(format!("!{}\r\n{text}\r\n", text.len()).as_bytes())
}

/// One value without others in it, which has no constructor of its own: an error or a big number.
fn by_redis(bytes: &[u8]) -> Result<Value, Why> {
    redis::parse_redis_value(bytes).map_err(|_| Why::Malformed)
}

fn utf8(text: &[u8]) -> Result<&str, Why> {
    std::str::from_utf8(text).map_err(|_| Why::Malformed)
}

/// A number and the end of its line, where both are there and nothing is unusual about either: its
/// value, and how many bytes that is.
fn digits(text: &[u8]) -> Option<(i64, usize)> {
    let mut number = 0;
    // Eighteen digits fit whatever they are.
    for (at, byte) in text.iter().enumerate().take(19) {
        match byte.wrapping_sub(b'0') {
            digit @ 0..=9 if at < 18 => number = 10 * number + i64::from(digit),
            _ => {
                let ends = at > 0 && text.get(at..at + 2) == Some(b"\r\n");
                return ends.then_some((number, at + 2));
            }
        }
    }
    None
}

fn number(text: &[u8]) -> Result<i64, Why> {
    utf8(text)?.trim().parse().map_err(|_| Why::Malformed)
}

/// Shows how much waits, never what.
impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes not understood yet", self.end - self.start)
    }
}
