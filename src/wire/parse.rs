//! Replies out of bytes, in whatever pieces those come.
//!
//! Never: a wait. Never: memory because of a length alone, before what it announces has come.

use redis::Value;

use super::reply::Reply;

/// What is read at once. Longer strings grow in a place of their own.
const ROOM: usize = 16 * 1024;
/// The room is given back to this size once a long line has passed.
const MOST_KEPT: usize = 4 * ROOM;
/// Statuses, errors and numbers: a peer that ends no line is not the server.
const LONGEST_LINE: usize = 1024 * 1024;
/// As deep as redis-rs reads. Values are dropped recursively, so there must be an end.
const DEEPEST: usize = 100;
/// For so many elements memory is taken ahead of their arrival.
const AHEAD: usize = 1024;

const QUEUED: &[u8] = b"+QUEUED\r\n";

/// What came is not the Redis protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Replies out of bytes, in whatever pieces those come.
#[derive(Default)]
pub(crate) struct Parser {
    room: Vec<u8>,
    /// What was read and not yet understood is `start..end` of the room.
    start: usize,
    end: usize,
    /// The aggregates that are not complete, the innermost last.
    open: Vec<Open>,
    /// A string that is longer than the room, as far as it came.
    long: Option<Long>,
}

struct Open {
    shape: Shape,
    left: usize,
    items: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Array,
    Set,
    Map,
    /// Told without being asked for; nobody here wants any of it.
    Push,
    /// Says something about the reply behind it, which stands for itself.
    Attribute,
}

struct Long {
    mark: u8,
    bytes: Vec<u8>,
    /// Its last two are the end of the line.
    left: usize,
}

enum Token {
    Value(Value),
    Open(Shape, usize),
}

impl Parser {
    /// Where the next bytes go: never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.room.len() > MOST_KEPT {
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
        self.start == self.end && self.open.is_empty() && self.long.is_none()
    }

    /// The next whole reply, if it has come: several QUEUED are one, `most` at once. After an error
    /// nothing is to be understood any more.
    pub(crate) fn next(&mut self, most: u32) -> Result<Option<Reply>, Malformed> {
        match self.queued(most) {
            0 => self.whole(),
            count => Ok(Some(Reply::Queued(count))),
        }
    }

    /// Takes as many QUEUED as come next, which is most of what a transaction is answered.
    fn queued(&mut self, most: u32) -> u32 {
        if !self.open.is_empty() || self.long.is_some() {
            return 0;
        }
        let came = self.room.get(self.start..self.end).unwrap_or_default();
        let lines = came.chunks_exact(QUEUED.len()).take(most as usize);
        let count = lines.take_while(|line| *line == QUEUED).count();
        self.start += count * QUEUED.len();
        count as u32
    }

    fn whole(&mut self) -> Result<Option<Reply>, Malformed> {
        loop {
            let mut value = match self.token()? {
                None => return Ok(None),
                Some(Token::Value(value)) => value,
                Some(Token::Open(shape, 0)) => match shape.closed(Vec::new()) {
                    Some(value) => value,
                    None => continue,
                },
                Some(Token::Open(shape, left)) => {
                    if self.open.len() == DEEPEST {
                        return Err(Malformed);
                    }
                    let items = Vec::with_capacity(left.min(AHEAD));
                    self.open.push(Open { shape, left, items });
                    continue;
                }
            };
            loop {
                let Some(open) = self.open.last_mut() else {
                    return Ok(Some(Reply::from(value)));
                };
                open.items.push(value);
                open.left -= 1;
                if open.left > 0 {
                    break;
                }
                let closed = self.open.pop().and_then(|open| open.shape.closed(open.items));
                match closed {
                    Some(closed) => value = closed,
                    None => break,
                }
            }
        }
    }

    fn token(&mut self) -> Result<Option<Token>, Malformed> {
        if let Some(long) = &mut self.long {
            let came = self.room.get(self.start..self.end).unwrap_or_default();
            let taken = came.len().min(long.left);
            long.bytes.extend_from_slice(came.get(..taken).unwrap_or_default());
            long.left -= taken;
            self.start += taken;
            return match self.long.take_if(|long| long.left == 0) {
                None => Ok(None),
                Some(Long { mark, bytes, .. }) => string(mark, bytes).map(Some),
            };
        }
        let came = self.room.get(self.start..self.end).unwrap_or_default();
        // What nearly every element is, or begins with.
        if let [mark @ (b':' | b'$' | b'*'), text @ ..] = came
            && let Some((number, line)) = digits(text)
        {
            let (mark, taken) = (*mark, 1 + line);
            return self.counted(mark, number, taken);
        }
        let Some(length) = end_of_line(came) else {
            return if came.len() < LONGEST_LINE { Ok(None) } else { Err(Malformed) };
        };
        let line = came.get(..length + 2).unwrap_or_default();
        let [mark, text @ .., b'\r', b'\n'] = line else { return Err(Malformed) };
        let (mark, taken) = (*mark, line.len());
        let token = match mark {
            b'+' => match text {
                b"OK" => Token::Value(Value::Okay),
                _ => Token::Value(Value::SimpleString(utf8(text)?.to_owned())),
            },
            b':' | b'$' | b'=' | b'!' | b'*' | b'~' | b'%' | b'>' | b'|' => {
                let number = number(text)?;
                return self.counted(mark, number, taken);
            }
            b'_' => Token::Value(Value::Nil),
            b'#' => Token::Value(Value::Boolean(match text {
                b"t" => true,
                b"f" => false,
                _ => return Err(Malformed),
            })),
            b',' => Token::Value(Value::Double(utf8(text)?.trim().parse().map_err(|_| Malformed)?)),
            b'-' | b'(' => by_redis(line)?,
            _ => return Err(Malformed),
        };
        self.start += taken;
        Ok(Some(token))
    }

    /// What a line of so many bytes begins that says no more than a number.
    fn counted(&mut self, mark: u8, number: i64, taken: usize) -> Result<Option<Token>, Malformed> {
        let token = match (mark, usize::try_from(number)) {
            (b':', _) => Token::Value(Value::Int(number)),
            (b'$' | b'=' | b'!', Ok(length)) => return self.string(mark, length, taken),
            // These have no nil in the protocol.
            (b'=' | b'!', Err(_)) => return Err(Malformed),
            (_, Err(_)) => Token::Value(Value::Nil),
            (_, Ok(length)) => {
                let shape = Shape::of(mark);
                let pairs = matches!(shape, Shape::Map | Shape::Attribute);
                let length = if pairs { length.checked_mul(2) } else { Some(length) };
                Token::Open(shape, length.ok_or(Malformed)?)
            }
        };
        self.start += taken;
        Ok(Some(token))
    }

    /// A string of this length, whose first line has so many bytes.
    fn string(
        &mut self,
        mark: u8,
        length: usize,
        taken: usize,
    ) -> Result<Option<Token>, Malformed> {
        let whole = length.checked_add(2).ok_or(Malformed)?;
        let came = self.room.get(self.start + taken..self.end).unwrap_or_default();
        let Some(bytes) = came.get(..whole) else {
            if taken + whole > ROOM {
                self.start += taken;
                let bytes = Vec::with_capacity(whole.min(ROOM));
                self.long = Some(Long { mark, bytes, left: whole });
                return self.token();
            }
            return Ok(None);
        };
        let token = match bytes {
            [text @ .., b'\r', b'\n'] if mark == b'$' => {
                Token::Value(Value::BulkString(text.to_vec()))
            }
            _ => string(mark, bytes.to_vec())?,
        };
        self.start += taken + whole;
        Ok(Some(token))
    }
}

impl Shape {
    fn of(mark: u8) -> Self {
        match mark {
            b'~' => Self::Set,
            b'%' => Self::Map,
            b'>' => Self::Push,
            b'|' => Self::Attribute,
            _ => Self::Array,
        }
    }

    /// The value, where there is one for whoever asked.
    fn closed(self, items: Vec<Value>) -> Option<Value> {
        match self {
            Self::Array => Some(Value::Array(items)),
            Self::Set => Some(Value::Set(items)),
            Self::Map => {
                let mut pairs = Vec::with_capacity(items.len() / 2);
                let mut items = items.into_iter();
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    pairs.push((key, value));
                }
                Some(Value::Map(pairs))
            }
            Self::Push | Self::Attribute => None,
        }
    }
}

/// Where the first line's `\r\n` begins.
fn end_of_line(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let end = from + bytes.get(from..)?.iter().position(|byte| *byte == b'\n')?;
        match end.checked_sub(1) {
            Some(before) if bytes.get(before) == Some(&b'\r') => return Some(before),
            _ => from = end + 1,
        }
    }
}

fn string(mark: u8, mut bytes: Vec<u8>) -> Result<Token, Malformed> {
    if !bytes.ends_with(b"\r\n") {
        return Err(Malformed);
    }
    if mark == b'$' {
        bytes.truncate(bytes.len() - 2);
        return Ok(Token::Value(Value::BulkString(bytes)));
    }
    let head = format!("{}{}\r\n", char::from(mark), bytes.len() - 2);
    by_redis(&[head.as_bytes(), &bytes].concat())
}

/// What is rare, or has no constructor outside redis-rs: errors, big numbers, verbatim text.
fn by_redis(bytes: &[u8]) -> Result<Token, Malformed> {
    redis::parse_redis_value(bytes).map(Token::Value).map_err(|_| Malformed)
}

fn utf8(text: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(text).map_err(|_| Malformed)
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

fn number(text: &[u8]) -> Result<i64, Malformed> {
    utf8(text)?.trim().parse().map_err(|_| Malformed)
}

/// Shows how much waits, never what.
impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes not understood yet", self.end - self.start)
    }
}

#[cfg(test)]
mod tests;
