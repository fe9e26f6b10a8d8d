//! Splits one direction of a RESP connection into whole values while the bytes are still coming.

/// Which way bytes travel. Doubles as an index into per-direction pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Requests = 0,
    Replies = 1,
}

/// What begins with a [`Piece`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Head {
    /// A command, by its first argument in capitals (empty when there is none).
    Command(String),
    Reply,
    /// A RESP3 push: it is no reply to a command, so it is not counted as one.
    Push,
}

/// Consecutive bytes that belong to one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Set on the first piece of a value.
    pub(super) head: Option<Head>,
    pub(super) bytes: Vec<u8>,
    /// Set on the last piece of a value.
    pub(super) ends: bool,
}

/// Maximum length of a command name. Longer first arguments are passed on at once.
const LONGEST_NAME: usize = 64;
/// Maximum number of bytes within which a command has its name.
const LONGEST_HEAD: usize = 4096;

#[derive(Debug)]
pub(super) struct Splitter {
    direction: Direction,
    /// Bytes that arrived and were not yet given out: the head of a command without its name.
    waiting: Vec<u8>,
    inside: bool,
    scanner: Scanner,
}

impl Splitter {
    pub(super) fn new(direction: Direction) -> Self {
        Self { direction, waiting: Vec::new(), inside: false, scanner: Scanner::default() }
    }

    /// Takes bytes as they came and returns what can be given out now. The bytes of a command are
    /// withheld until its name is known: a rule about the name may want to act before them.
    pub(super) fn feed(&mut self, data: &[u8]) -> Vec<Piece> {
        self.waiting.extend_from_slice(data);
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < self.waiting.len() {
            let rest = &self.waiting[at..];
            let mut head = None;
            if !self.inside {
                match head_of(self.direction, rest) {
                    Some(known) => head = Some(known),
                    None => break,
                }
            }
            let inline = head.is_some() && self.direction == Direction::Requests && rest[0] != b'*';
            let (taken, ends) = if inline { line_end(rest) } else { self.scanner.scan(rest) };
            self.inside = !ends;
            pieces.push(Piece { head, bytes: rest[..taken].to_vec(), ends });
            at += taken;
        }
        self.waiting.drain(..at);
        pieces
    }

    /// Whether a value has begun and not ended.
    pub(super) fn is_inside(&self) -> bool {
        self.inside
    }

    /// What is still withheld when the stream ends: the beginning of a command that never came.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.waiting)
    }
}

/// What begins at the front of `bytes`; `None` while that is not decided.
fn head_of(direction: Direction, bytes: &[u8]) -> Option<Head> {
    match direction {
        Direction::Replies if bytes[0] == b'>' => Some(Head::Push),
        Direction::Replies => Some(Head::Reply),
        Direction::Requests => {
            let nameless = || (bytes.len() > LONGEST_HEAD).then(String::new);
            command_name(bytes).or_else(nameless).map(Head::Command)
        }
    }
}

fn command_name(bytes: &[u8]) -> Option<String> {
    let (first, after_count) = split_line(bytes)?;
    let name = if first.first() == Some(&b'*') {
        if number(&first[1..]).is_none_or(|count| count < 1) {
            return Some(String::new());
        }
        let (length, body) = split_line(after_count)?;
        let Some(length) = length.strip_prefix(b"$").and_then(number) else {
            return Some(String::new());
        };
        match usize::try_from(length) {
            Ok(length) if length <= LONGEST_NAME => body.get(..length)?,
            _ => &[],
        }
    } else {
        first.split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default()
    };
    Some(String::from_utf8_lossy(name).to_ascii_uppercase())
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

fn line_end(bytes: &[u8]) -> (usize, bool) {
    match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) => (end + 1, true),
        None => (bytes.len(), false),
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The first bytes of all RESP values.
const KINDS: &[u8] = b"+-:_,#($!=*~>%|";

/// Finds where one RESP value ends. Requests are arrays of bulk strings, so this serves both ways.
#[derive(Debug, Default)]
struct Scanner {
    /// The aggregates around the current position, outermost first.
    open: Vec<Aggregate>,
    /// The header line being read.
    line: Vec<u8>,
    /// What is left of a bulk string, its line end included.
    body: u64,
    /// Not RESP (TLS, say): everything passes as one value without an end.
    opaque: bool,
}

#[derive(Debug)]
struct Aggregate {
    missing: u64,
    /// An attribute stands before the value it describes and is no element itself.
    attribute: bool,
}

impl Scanner {
    /// How many of `data`'s bytes belong to the current value, and whether it ends with them.
    fn scan(&mut self, data: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while at < data.len() && !self.opaque {
            let ended = if self.body > 0 {
                let taken = data.len().saturating_sub(at).min(saturated(self.body));
                self.body -= taken as u64;
                at += taken;
                self.body == 0 && self.element_ended()
            } else {
                let byte = data[at];
                at += 1;
                self.line.push(byte);
                self.opaque |= self.line.len() == 1 && !KINDS.contains(&byte);
                byte == b'\n' && {
                    let line = std::mem::take(&mut self.line);
                    self.header(&line)
                }
            };
            if ended {
                return (at, true);
            }
        }
        (data.len(), false)
    }

    /// Reads a header line; true when the whole value ended with it.
    fn header(&mut self, line: &[u8]) -> bool {
        let kind = line[0];
        let size = number(line[1..].trim_ascii_end());
        match (kind, size) {
            (b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(', _) => self.element_ended(),
            (b'$' | b'!' | b'=' | b'*' | b'~' | b'>' | b'%', Some(..=-1)) => self.element_ended(),
            (b'$' | b'!' | b'=', Some(length)) => {
                self.body = length.unsigned_abs() + 2;
                false
            }
            (b'*' | b'~' | b'>', Some(count)) => self.enter(count.unsigned_abs(), false),
            (b'%', Some(pairs)) => self.enter(2 * pairs.unsigned_abs(), false),
            (b'|', Some(pairs)) => self.enter(2 * pairs.unsigned_abs(), true),
            _ => {
                self.opaque = true;
                false
            }
        }
    }

    fn enter(&mut self, missing: u64, attribute: bool) -> bool {
        match (missing, attribute) {
            (0, true) => false,
            (0, false) => self.element_ended(),
            _ => {
                self.open.push(Aggregate { missing, attribute });
                false
            }
        }
    }

    /// Counts one finished element; true when it was the last of the outermost value.
    fn element_ended(&mut self) -> bool {
        while let Some(around) = self.open.last_mut() {
            around.missing -= 1;
            if around.missing > 0 {
                return false;
            }
            let attribute = around.attribute;
            self.open.pop();
            if attribute {
                return false;
            }
        }
        true
    }
}

fn saturated(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
