//! Decodes replies from bytes that arrive in pieces.
//!
//! Reads every reply of RESP2 and RESP3 without recursion. No byte is scanned twice because a reply
//! arrived in pieces. (Streamed strings and aggregates, which no server sends, are not read.) A
//! length alone allocates no memory for what has not arrived.

#[cfg(test)]
#[path = "../../../tests/unit/decode.rs"]
mod tests;

use std::borrow::Cow;
use std::mem;

use redis::{Value, VerbatimFormat};

use crate::protocol::resp::reply::{Reply, too_large};

/// Size of the read buffer. Longer strings and lines grow in a buffer of their own.
const READ_BUFFER: usize = 16 * 1024;
/// Maximum nesting of a reply. The parser itself needs no bound, but a `redis::Value` is cloned,
/// compared, shown and dropped recursively: a clone takes about 1.4 KB of stack per level without
/// optimisation, and a thread has 2 MiB.
pub(crate) const MAX_DEPTH: usize = 512;
/// Maximum number of elements for which memory is allocated before they arrive.
const MAX_PREALLOCATED: usize = 1024;
/// Bytes that an element of an aggregate counts for, besides its own.
const ELEMENT_SIZE: usize = size_of::<Value>();
/// Maximum length of an error's text, which is copied three times. The rest is cut.
const MAX_ERROR_TEXT: usize = 64 * 1024;
/// Maximum length of a line with a number.
const MAX_LENGTH_LINE: usize = 64;
/// Maximum bytes of one reply by default: the default of `max_reply_bytes`.
const DEFAULT_MAX_BYTES: usize = 1 << 30;

/// Length of `\r\n`.
const CRLF: usize = 2;
const QUEUED: &[u8] = b"+QUEUED\r\n";

/// Why no further reply can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The bytes are not the Redis protocol.
    Malformed,
    /// The reply is larger than the bound.
    TooLarge,
    /// The reply is nested deeper than [`MAX_DEPTH`].
    TooDeep,
}

/// A reply that cannot be read completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// The reply's length if it is an array.
    pub(crate) array: Option<usize>,
}

/// Bytes that arrived while no reply was awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsolicited {
    /// Nothing, or whole pushes and attributes, which are dropped.
    Nothing,
    /// A part of a push or an attribute.
    Push,
    /// A reply or a part of one.
    Reply,
}

/// Decodes replies from bytes that arrive in pieces.
pub(crate) struct Parser {
    read_buffer: Vec<u8>,
    /// The unparsed bytes are `start..end` of the read buffer.
    start: usize,
    end: usize,
    /// Number of bytes after `start` that contain no end of a line.
    scanned: usize,
    /// The incomplete aggregates, the innermost last.
    open: Vec<OpenAggregate>,
    /// The incomplete string or line that is not in the read buffer.
    partial: Option<Partial>,
    /// Number of values still to be skipped.
    skip: u64,
    /// Maximum bytes of a reply, and the bytes of the incomplete one.
    limit: usize,
    spent: usize,
    /// Length of the incomplete reply if it is an array.
    array_length: Option<usize>,
    /// Whether a push is a reply, an array, and is not skipped.
    keeps_pushes: bool,
    /// If the replies are for several callers, whom a reply that is too large must not concern.
    shared: Option<SharedReplies>,
}

/// The arrays that are for several callers: the number of replies before each, and the lengths of its parts.
pub(crate) type SharedArrays = Vec<(u64, Vec<u32>)>;

/// Replies for several callers. A part that is larger than the bound is read and dropped, and
/// [`too_large`] stands for it.
#[derive(Default)]
struct SharedReplies {
    /// Number of the replies that are still to come.
    left: u64,
    /// The parts of each array that is for several callers, by their lengths, in reverse, with the number of
    /// replies that are still to come when it comes.
    arrays: SharedArrays,
    /// The parts of the incomplete reply, in reverse; the last one is incomplete.
    parts: Vec<u32>,
    /// Whether a value was skipped because it is too large.
    skipped: bool,
}

struct OpenAggregate {
    left: usize,
    elements: Aggregate,
}

enum Aggregate {
    Array(Vec<Value>),
    Set(Vec<Value>),
    Map(Vec<(Value, Value)>, Option<Value>),
}

enum Partial {
    /// A string longer than the read buffer, with its `\r\n`.
    Text { mark: u8, bytes: Vec<u8>, left: usize },
    /// A line longer than the read buffer, with its type byte.
    Line(Vec<u8>),
    /// A skipped string, with its `\r\n`.
    SkippedText { left: usize },
    /// A skipped line, and whether its last byte so far is `\r`.
    SkippedLine { ends: bool },
}

enum Token {
    Value(Value),
    /// An array, a set or a map with this many elements (of a map keys and values).
    Open(u8, usize),
    /// A push or an attribute with this many values. A push was not requested; an attribute
    /// describes the reply after it, which does not need it.
    Skip(u64),
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            read_buffer: Vec::new(),
            start: 0,
            end: 0,
            scanned: 0,
            open: Vec::new(),
            partial: None,
            skip: 0,
            limit: DEFAULT_MAX_BYTES,
            spent: 0,
            array_length: None,
            shared: None,
            keeps_pushes: false,
        }
    }
}

impl Parser {
    /// From now on a push is a reply of its own: an array.
    #[cfg(feature = "tokio")]
    pub(crate) fn keep_pushes(&mut self) {
        self.keeps_pushes = true;
    }

    /// The next replies, of this number, are for several callers: each reply counts by itself, and of the
    /// next arrays, each behind so many replies, each part, whose lengths these are.
    pub(crate) fn share(&mut self, mut arrays: SharedArrays, replies: u64) {
        arrays.reverse();
        for (at, parts) in &mut arrays {
            *at = replies.saturating_sub(*at);
            parts.reverse();
        }
        let shared = self.shared.get_or_insert_default();
        (shared.arrays, shared.left) = (arrays, replies);
    }

    /// Sets the maximum bytes of one reply: its strings and lines, and the size of a value for each
    /// element.
    pub(crate) fn set_max_bytes(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// The bytes that are not parsed yet.
    pub(crate) fn unparsed(&self) -> &[u8] {
        self.read_buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The space for the next bytes: never empty.
    pub(crate) fn read_buffer(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.read_buffer.len() > READ_BUFFER {
                self.read_buffer = Vec::new();
            }
        } else if self.end == self.read_buffer.len() && self.start > 0 {
            self.read_buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.read_buffer.len() {
            self.read_buffer.resize((2 * self.read_buffer.len()).max(READ_BUFFER), 0);
        }
        self.read_buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Call after this many bytes were written to the read buffer.
    pub(crate) fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.read_buffer.len());
    }

    /// Whether all bytes were parsed and no reply is incomplete.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end && self.open.is_empty() && self.partial.is_none() && self.skip == 0
    }

    /// Checks the bytes that arrived while no reply was awaited.
    pub(crate) fn check_unsolicited(&mut self) -> Result<Unsolicited, Fault> {
        if self.next(1)?.is_some() || !self.open.is_empty() {
            return Ok(Unsolicited::Reply);
        }
        Ok(match (self.unparsed().first(), &self.partial) {
            _ if self.skip > 0 => Unsolicited::Push,
            (_, Some(_)) => Unsolicited::Reply,
            (None, None) => Unsolicited::Nothing,
            (Some(b'>' | b'|'), None) => Unsolicited::Push,
            (Some(_), None) => Unsolicited::Reply,
        })
    }

    /// The next complete reply, if there is one; up to `most` QUEUED in a row are one reply. No
    /// reply can be read after an error.
    pub(crate) fn next(&mut self, most: u32) -> Result<Option<Reply>, Fault> {
        let next = match self.queued(most) {
            0 => self.next_value().map_err(|kind| Fault { kind, array: self.array_length })?,
            count => Some(Reply::Queued(count)),
        };
        if let (Some(shared), Some(reply)) = (&mut self.shared, &next) {
            shared.left = shared.left.saturating_sub(reply.count().into());
            self.shared.take_if(|shared| shared.left == 0);
        }
        Ok(next)
    }

    /// Takes all QUEUED that come next, the most frequent replies of a transaction.
    fn queued(&mut self, most: u32) -> u32 {
        let may_come = self.unparsed().first() == Some(&b'+');
        if !may_come || !self.open.is_empty() || self.partial.is_some() || self.skip > 0 {
            return 0;
        }
        let lines = self.unparsed().chunks_exact(QUEUED.len()).take(most as usize);
        let count = lines.take_while(|line| *line == QUEUED).count();
        if count > 0 {
            self.consume(count * QUEUED.len());
        }
        count as u32
    }

    fn next_value(&mut self) -> Result<Option<Reply>, FaultKind> {
        loop {
            if self.skip > 0 && !self.skipped()? {
                return Ok(None);
            }
            let is_line = self.partial.is_some();
            let token = match self.shared.as_mut().map(|shared| mem::take(&mut shared.skipped)) {
                Some(true) => Some(Token::Value(too_large())),
                Some(false) | None => match self.token() {
                    // Its first bytes are not there any more.
                    Err(FaultKind::TooLarge) if !is_line && self.skip_large(1) => continue,
                    token => token?,
                },
            };
            let mut value = match token {
                None => return Ok(None),
                Some(Token::Value(value)) => value,
                Some(Token::Skip(values)) => {
                    self.skip = values;
                    continue;
                }
                Some(Token::Open(mark, left)) => {
                    if self.open.is_empty() {
                        self.array_length = (mark == b'*').then_some(left);
                    }
                    if !self.begins_shared(mark, left) {
                        let bytes = left.saturating_mul(ELEMENT_SIZE);
                        match charge(&mut self.spent, self.limit, bytes) {
                            Err(FaultKind::TooLarge) if self.skip_large(left as u64) => continue,
                            charged => charged?,
                        }
                    }
                    let elements = Aggregate::new(mark, left.min(MAX_PREALLOCATED));
                    if left > 0 {
                        if self.open.len() == MAX_DEPTH {
                            return Err(FaultKind::TooDeep);
                        }
                        self.open.push(OpenAggregate { left, elements });
                        continue;
                    }
                    elements.finish()
                }
            };
            loop {
                let Some(open) = self.open.last_mut() else {
                    (self.spent, self.array_length) = (0, None);
                    return Ok(Some(Reply::from(value)));
                };
                open.elements.push(value);
                open.left -= 1;
                let has_more = open.left > 0;
                if self.shared.is_some() && self.open.len() == 1 {
                    self.end_shared_element();
                }
                if has_more {
                    break;
                }
                match self.open.pop() {
                    Some(open) => value = open.elements.finish(),
                    None => break,
                }
            }
        }
    }

    /// Whether this begins an array whose parts are for several callers.
    fn begins_shared(&mut self, mark: u8, length: usize) -> bool {
        let Some(shared) = self.shared.as_mut().filter(|_| self.open.is_empty()) else {
            return false;
        };
        shared.parts.clear();
        // The replies of groups that were rejected were no arrays.
        while shared.arrays.pop_if(|(at, _)| *at > shared.left).is_some() {}
        let is_this = |(at, parts): &mut (u64, Vec<u32>)| {
            let parts = parts.iter().map(|part| *part as usize);
            mark == b'*' && *at == shared.left && parts.sum::<usize>() == length
        };
        let Some((_, parts)) = shared.arrays.pop_if(is_this) else { return false };
        shared.parts = parts;
        shared.parts.retain(|part| *part > 0);
        true
    }

    /// An element of the reply is complete. If it was the last one of its part, the next part begins.
    fn end_shared_element(&mut self) {
        let Some(SharedReplies { parts, .. }) = &mut self.shared else { return };
        let Some(left) = parts.last_mut() else { return };
        *left -= 1;
        if *left == 0 {
            parts.pop();
            self.spent = 0;
        }
    }

    /// Skips the value that begins here, or this many values of the aggregate that begins here,
    /// and the rest of what it is a part of. False: it is not known to be one caller's.
    #[cold]
    fn skip_large(&mut self, values: u64) -> bool {
        let Some(shared) = &mut self.shared else { return false };
        let outer = usize::from(!shared.parts.is_empty()).min(self.open.len());
        shared.skipped = true;
        let inner = self.open.drain(outer..).map(|open| open.left as u64 - 1);
        self.skip = inner.fold(values, u64::saturating_add);
        self.scanned = 0;
        true
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        self.scanned = 0;
    }

    fn token(&mut self) -> Result<Option<Token>, FaultKind> {
        if self.partial.is_some() {
            return self.resumed();
        }
        let unparsed = self.read_buffer.get(self.start..self.end).unwrap_or_default();
        // The fast path for nearly all elements.
        if let [mark @ (b':' | b'$' | b'*'), text @ ..] = unparsed
            && let Some((number, line)) = digits(text)
        {
            let (mark, taken) = (*mark, 1 + line);
            return self.counted(mark, number, taken);
        }
        let Some(length) = end_of_line(unparsed, &mut self.scanned) else {
            if unparsed.len() >= READ_BUFFER {
                charge(&mut self.spent, self.limit.saturating_add(CRLF), unparsed.len() - 1)?;
                self.partial = Some(Partial::Line(unparsed.to_vec()));
                self.consume(self.end - self.start);
            } else if unparsed.len() > MAX_LENGTH_LINE
                && unparsed.len() > self.limit.saturating_sub(self.spent).saturating_add(1 + CRLF)
            {
                return Err(FaultKind::TooLarge);
            }
            return Ok(None);
        };
        let line = unparsed.get(..length).unwrap_or_default();
        let [mark, text @ ..] = line else { return Err(FaultKind::Malformed) };
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

    /// Continues the incomplete string or line.
    fn resumed(&mut self) -> Result<Option<Token>, FaultKind> {
        let unparsed = self.read_buffer.get(self.start..self.end).unwrap_or_default();
        let value = match self.partial.take() {
            Some(Partial::Text { mark, mut bytes, left }) => {
                let taken = unparsed.len().min(left);
                bytes.extend_from_slice(unparsed.get(..taken).unwrap_or_default());
                self.consume(taken);
                if taken < left {
                    self.partial = Some(Partial::Text { mark, bytes, left: left - taken });
                    return Ok(None);
                }
                text(mark, bytes)?
            }
            Some(Partial::Line(mut line)) => {
                let mut from = 0;
                let whole = loop {
                    let rest = unparsed.get(from..).unwrap_or_default();
                    let feed = rest.iter().position(|byte| *byte == b'\n');
                    let piece = feed.and_then(|at| rest.get(..=at)).unwrap_or(rest);
                    charge(&mut self.spent, self.limit.saturating_add(CRLF), piece.len())?;
                    line.extend_from_slice(piece);
                    from += piece.len();
                    if feed.is_none() || line.ends_with(b"\r\n") {
                        break feed.is_some();
                    }
                };
                self.consume(from);
                if !whole {
                    self.partial = Some(Partial::Line(line));
                    return Ok(None);
                }
                self.spent = self.spent.saturating_sub(CRLF);
                line.truncate(line.len().saturating_sub(CRLF));
                let mark = line.first().copied().unwrap_or_default();
                line.drain(..1);
                if is_counted(mark) {
                    let number = number(&line)?;
                    return self.counted(mark, number, 0);
                }
                simple(mark, Cow::Owned(line))?
            }
            skipped => {
                self.partial = skipped;
                return Ok(None);
            }
        };
        Ok(Some(Token::Value(value)))
    }

    /// Takes a line of `taken` bytes that contains only a number.
    #[inline]
    fn counted(&mut self, mark: u8, number: i64, taken: usize) -> Result<Option<Token>, FaultKind> {
        let token = match (mark, usize::try_from(number)) {
            (b':', _) => Token::Value(Value::Int(number)),
            (b'$' | b'=' | b'!', Ok(length)) => return self.string(mark, length, taken),
            (b'>', Err(_)) => Token::Skip(0),
            (b'$' | b'*' | b'~', Err(_)) => Token::Value(Value::Nil),
            // The protocol has no nil of these types.
            (_, Err(_)) => return Err(FaultKind::Malformed),
            (b'>', Ok(length)) if self.keeps_pushes => Token::Open(mark, length),
            (b'>', Ok(length)) => Token::Skip(length as u64),
            (b'|', Ok(pairs)) => Token::Skip(doubled(pairs)? as u64),
            (b'%', Ok(pairs)) => Token::Open(mark, doubled(pairs)?),
            (_, Ok(length)) => Token::Open(mark, length),
        };
        self.consume(taken);
        Ok(Some(token))
    }

    /// Takes a string of this length, after its first line of `taken` bytes.
    fn string(
        &mut self,
        mark: u8,
        length: usize,
        taken: usize,
    ) -> Result<Option<Token>, FaultKind> {
        let whole = length.saturating_add(2);
        let unparsed = self.read_buffer.get(self.start + taken..self.end).unwrap_or_default();
        let Some(bytes) = unparsed.get(..whole) else {
            // The limit is checked before the string arrives.
            if length > self.limit.saturating_sub(self.spent) {
                return Err(FaultKind::TooLarge);
            }
            if taken + whole > READ_BUFFER {
                self.spent += length;
                self.consume(taken);
                let bytes = Vec::with_capacity(whole.min(READ_BUFFER));
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

    /// Skips the bytes of unwanted values and keeps only their number. True: none is left.
    fn skipped(&mut self) -> Result<bool, FaultKind> {
        while self.skip > 0 {
            let unparsed = self.read_buffer.get(self.start..self.end).unwrap_or_default();
            match &mut self.partial {
                Some(Partial::SkippedText { left }) => {
                    let taken = unparsed.len().min(*left);
                    *left -= taken;
                    let end = unparsed.get(..taken).unwrap_or_default();
                    let ends = match *left {
                        0 => end.ends_with(b"\r\n") || end == b"\n" || end.is_empty(),
                        1 => end.ends_with(b"\r") || end.is_empty(),
                        _ => true,
                    };
                    let whole = *left == 0;
                    self.consume(taken);
                    match (ends, whole) {
                        (false, _) => return Err(FaultKind::Malformed),
                        (true, false) => return Ok(false),
                        (true, true) => self.skip -= 1,
                    }
                    self.partial = None;
                }
                Some(Partial::SkippedLine { ends }) => {
                    let mut end = None;
                    for (at, byte) in unparsed.iter().enumerate() {
                        if *ends && *byte == b'\n' {
                            end = Some(at + 1);
                            break;
                        }
                        *ends = *byte == b'\r';
                    }
                    self.consume(end.unwrap_or(unparsed.len()));
                    if end.is_none() {
                        return Ok(false);
                    }
                    self.partial = None;
                    self.skip -= 1;
                }
                _ => {
                    let Some(mark) = unparsed.first().copied() else { return Ok(false) };
                    if !is_counted(mark) {
                        if !matches!(mark, b'+' | b'-' | b'_' | b'#' | b',' | b'(') {
                            return Err(FaultKind::Malformed);
                        }
                        self.partial = Some(Partial::SkippedLine { ends: false });
                        self.consume(1);
                        continue;
                    }
                    let Some(length) = end_of_line(unparsed, &mut self.scanned) else {
                        return match unparsed.len() > MAX_LENGTH_LINE {
                            true => Err(FaultKind::Malformed),
                            false => Ok(false),
                        };
                    };
                    let number = number(unparsed.get(1..length).unwrap_or_default())?;
                    self.consume(length + 2);
                    self.skip_counted(mark, number)?;
                }
            }
        }
        Ok(true)
    }

    fn skip_counted(&mut self, mark: u8, number: i64) -> Result<(), FaultKind> {
        let within = match (mark, u64::try_from(number)) {
            (b'$' | b'=' | b'!', Ok(length)) => {
                let left = usize::try_from(length).map_err(|_| FaultKind::Malformed)?;
                self.partial = Some(Partial::SkippedText { left: left.saturating_add(2) });
                return Ok(());
            }
            (b'*' | b'~' | b'>', Ok(length)) => length,
            (b'%', Ok(pairs)) => pairs.checked_mul(2).ok_or(FaultKind::Malformed)?,
            // And the value that it describes.
            (b'|', Ok(pairs)) => {
                pairs.checked_mul(2).and_then(|n| n.checked_add(1)).ok_or(FaultKind::Malformed)?
            }
            (b'=' | b'!' | b'%' | b'|', Err(_)) => return Err(FaultKind::Malformed),
            _ => 0,
        };
        self.skip = (self.skip - 1).checked_add(within).ok_or(FaultKind::Malformed)?;
        Ok(())
    }
}

impl Aggregate {
    fn new(mark: u8, capacity: usize) -> Self {
        match mark {
            b'~' => Self::Set(Vec::with_capacity(capacity)),
            b'%' => Self::Map(Vec::with_capacity(capacity / 2), None),
            _ => Self::Array(Vec::with_capacity(capacity)),
        }
    }

    fn push(&mut self, value: Value) {
        match self {
            Self::Array(elements) | Self::Set(elements) => elements.push(value),
            Self::Map(pairs, key) => match key.take() {
                Some(key) => pairs.push((key, value)),
                None => *key = Some(value),
            },
        }
    }

    fn finish(self) -> Value {
        match self {
            Self::Array(elements) => Value::Array(elements),
            Self::Set(elements) => Value::Set(elements),
            Self::Map(pairs, _) => Value::Map(pairs),
        }
    }
}

/// Counts bytes of the incomplete reply.
fn charge(spent: &mut usize, limit: usize, bytes: usize) -> Result<(), FaultKind> {
    *spent = spent.saturating_add(bytes);
    if *spent > limit { Err(FaultKind::TooLarge) } else { Ok(()) }
}

fn doubled(pairs: usize) -> Result<usize, FaultKind> {
    pairs.checked_mul(2).ok_or(FaultKind::Malformed)
}

/// Whether a line of this type contains only a number.
fn is_counted(mark: u8) -> bool {
    matches!(mark, b':' | b'$' | b'=' | b'!' | b'*' | b'~' | b'%' | b'>' | b'|')
}

/// Position of the first `\r\n`. The first `scanned` bytes contain no end of a line.
fn end_of_line(bytes: &[u8], scanned: &mut usize) -> Option<usize> {
    loop {
        let rest = bytes.get(*scanned..).unwrap_or_default();
        let Some(feed) = rest.iter().position(|byte| *byte == b'\n') else {
            *scanned = bytes.len();
            return None;
        };
        let feed = *scanned + feed;
        if let Some(end) = feed.checked_sub(1)
            && bytes.get(end) == Some(&b'\r')
        {
            // The next call finds it at once.
            *scanned = end;
            return Some(end);
        }
        *scanned = feed + 1;
    }
}

/// A line that is a value. Bytes that are not UTF-8 stay bytes.
fn simple(mark: u8, line: Cow<'_, [u8]>) -> Result<Value, FaultKind> {
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
            _ => return Err(FaultKind::Malformed),
        }),
        b',' => Value::Double(utf8(&line)?.trim().parse().map_err(|_| FaultKind::Malformed)?),
        b'(' => parse_with_redis(&[b"(", &*line, b"\r\n"].concat())?,
        _ => return Err(FaultKind::Malformed),
    })
}

/// A string with its `\r\n`.
fn text(mark: u8, mut bytes: Vec<u8>) -> Result<Value, FaultKind> {
    if !bytes.ends_with(b"\r\n") {
        return Err(FaultKind::Malformed);
    }
    bytes.truncate(bytes.len() - 2);
    match mark {
        b'!' => error(&bytes),
        b'=' => Ok(verbatim(bytes)),
        _ => Ok(Value::BulkString(bytes)),
    }
}

/// Bytes without a format stay bytes.
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

/// An error, whose text need not be UTF-8. Only redis-rs's parser can make one.
fn error(text: &[u8]) -> Result<Value, FaultKind> {
    let text = String::from_utf8_lossy(text.get(..MAX_ERROR_TEXT).unwrap_or(text));
    parse_with_redis(format!("!{}\r\n{text}\r\n", text.len()).as_bytes())
}

/// A value without elements that has no constructor: an error or a big number.
fn parse_with_redis(bytes: &[u8]) -> Result<Value, FaultKind> {
    redis::parse_redis_value(bytes).map_err(|_| FaultKind::Malformed)
}

fn utf8(text: &[u8]) -> Result<&str, FaultKind> {
    std::str::from_utf8(text).map_err(|_| FaultKind::Malformed)
}

/// A plain number with its `\r\n`, and their length in bytes. `None` for any unusual form.
fn digits(text: &[u8]) -> Option<(i64, usize)> {
    let mut number = 0;
    // Eighteen digits always fit.
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

fn number(text: &[u8]) -> Result<i64, FaultKind> {
    utf8(text)?.trim().parse().map_err(|_| FaultKind::Malformed)
}

/// Shows the number of unparsed bytes.
impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes not understood yet", self.end - self.start)
    }
}
