//! Encodes commands.

use std::io;

use redis::{RedisWrite, ToRedisArgs};

use crate::protocol::batch;

pub(crate) const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
pub(crate) const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";
pub(crate) const DISCARD: &[u8] = b"*1\r\n$7\r\nDISCARD\r\n";
pub(crate) const UNWATCH: &[u8] = b"*1\r\n$7\r\nUNWATCH\r\n";
pub(crate) const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";
pub(crate) const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
pub(crate) const ROLE: &[u8] = b"*1\r\n$4\r\nROLE\r\n";

/// The arguments of one command, encoded directly into the output.
pub struct Args<'b> {
    bytes: &'b mut Vec<u8>,
    /// Start of the command.
    start: usize,
    count: usize,
}

impl<'b> Args<'b> {
    fn begin(bytes: &'b mut Vec<u8>, head: &EncodedCommand) -> Self {
        let start = bytes.len();
        bytes.reserve(SHORT_COMMAND);
        bytes.extend_from_slice(head.bytes());
        Self { bytes, start, count: head.words }
    }

    // Not generic, so that it is compiled once and not in every command.
    fn end(self) {
        let Self { bytes, start, count } = self;
        if let Some(digit) = bytes.get_mut(start + 1)
            && count < 10
        {
            *digit = b'0' + count as u8;
        } else {
            let mut line = Vec::with_capacity(8);
            header(&mut line, b'*', count);
            bytes.splice(start..start + 4, line);
        }
    }

    /// Appends one argument, or each of a list.
    pub fn arg(&mut self, value: impl ToRedisArgs) -> &mut Self {
        value.write_redis_args(self);
        self
    }
}

/// Shows the number only.
impl std::fmt::Debug for Args<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} arguments", self.count)
    }
}

impl RedisWrite for Args<'_> {
    fn write_arg(&mut self, arg: &[u8]) {
        self.count += 1;
        // Reserves space for the header too, so that the appends below do not grow it again.
        self.bytes.reserve(arg.len() + MAX_HEADER);
        bulk(self.bytes, arg);
    }

    fn writer_for_next_arg(&mut self) -> impl io::Write + '_ {
        PendingArgument { bytes: Vec::new(), args: self }
    }
}

/// An argument whose length is known once it is written.
struct PendingArgument<'p, 'b> {
    bytes: Vec<u8>,
    args: &'p mut Args<'b>,
}

impl Drop for PendingArgument<'_, '_> {
    fn drop(&mut self) {
        self.args.write_arg(&self.bytes);
    }
}

impl io::Write for PendingArgument<'_, '_> {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Space for a command with a short argument, so that its parts need no further memory.
const SHORT_COMMAND: usize = 96;

/// Maximum bytes of an encoded string besides its own.
const MAX_HEADER: usize = 32;

fn bulk(bytes: &mut Vec<u8>, text: &[u8]) {
    let digit = |number: usize| b'0' + number as u8;
    match text.len() {
        len @ 0..10 => bytes.extend_from_slice(&[b'$', digit(len), b'\r', b'\n']),
        len @ 10..100 => {
            let line = [b'$', digit(len / 10), digit(len % 10), b'\r', b'\n'];
            bytes.extend_from_slice(&line);
        }
        len => header(bytes, b'$', len),
    }
    bytes.extend_from_slice(text);
    bytes.extend_from_slice(b"\r\n");
}

/// Encodes a command of redis-rs as that does, in half the time. `None`: it has a cursor.
#[cfg(feature = "tokio")]
pub(crate) fn packed(command: &redis::Cmd) -> Option<Vec<u8>> {
    let args = command.args_iter();
    let simple = |arg| if let redis::Arg::Simple(text) = arg { Some(text) } else { None };
    let size: usize = args.clone().filter_map(simple).map(|text| text.len() + MAX_HEADER).sum();
    let mut bytes = Vec::with_capacity(MAX_HEADER + size);
    header(&mut bytes, b'*', args.len());
    for arg in args {
        bulk(&mut bytes, simple(arg)?);
    }
    Some(bytes)
}

fn header(bytes: &mut Vec<u8>, mark: u8, mut number: usize) {
    let mut digits = [0_u8; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    bytes.push(mark);
    bytes.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
    bytes.extend_from_slice(b"\r\n");
}

/// The words of a command, encoded at build time.
macro_rules! words {
    ($($word:expr),*) => {
        const { &$crate::protocol::resp::encode::EncodedCommand::new(&[$($word),*]) }
    };
}

pub(crate) use words;

/// Appends one command: its words, then what `args` writes.
pub(crate) fn command(
    bytes: &mut Vec<u8>,
    words: &EncodedCommand,
    args: impl FnOnce(&mut Args<'_>),
) {
    let mut writer = Args::begin(bytes, words);
    args(&mut writer);
    writer.end();
}

/// The same with arguments that are values.
pub(crate) fn command_with(bytes: &mut Vec<u8>, words: &EncodedCommand, args: impl ToRedisArgs) {
    command(bytes, words, |writer| _ = writer.arg(args));
}

/// Maximum length of the encoded words.
const MAX_LENGTH: usize = 64;

/// The words of a command, usually encoded at build time, and its properties.
#[derive(Debug)]
pub struct EncodedCommand {
    bytes: [u8; MAX_LENGTH],
    len: usize,
    words: usize,
    /// Whether it may be batched.
    pub(crate) batchable: bool,
    /// Whether its arguments can make it block. No other command of the table can.
    pub(crate) may_block: bool,
    /// Whether its last argument is added to an integer, and so must not be a float.
    pub(crate) adds_to_integer: bool,
}

impl EncodedCommand {
    /// Takes fewer than ten words that fit, each shorter than a hundred bytes.
    #[expect(clippy::indexing_slicing, reason = "words that do not fit do not build")]
    pub(crate) const fn new(words: &[&str]) -> Self {
        // The first line is the number of words and arguments, nearly always one digit.
        let mut head = Self {
            bytes: [0; MAX_LENGTH],
            len: 0,
            words: words.len(),
            batchable: batch::is_batchable(words),
            may_block: matches!(
                words,
                [word, ..] if matches!(word.as_bytes(), b"XREAD" | b"XREADGROUP")
            ),
            adds_to_integer: matches!(
                words,
                [word] if matches!(word.as_bytes(), b"INCRBY" | b"DECRBY" | b"HINCRBY")
            ),
        };
        head.push(b"*0\r\n");
        let mut nth = 0;
        while nth < words.len() {
            let word = words[nth].as_bytes();
            let (tens, ones) = (b'0' + (word.len() / 10) as u8, b'0' + (word.len() % 10) as u8);
            if word.len() < 10 {
                head.push(&[b'$', ones]);
            } else {
                head.push(&[b'$', tens, ones]);
            }
            head.push(b"\r\n");
            head.push(word);
            head.push(b"\r\n");
            nth += 1;
        }
        head
    }

    #[expect(clippy::indexing_slicing, reason = "as above")]
    const fn push(&mut self, bytes: &[u8]) {
        let mut nth = 0;
        while nth < bytes.len() {
            self.bytes[self.len] = bytes[nth];
            self.len += 1;
            nth += 1;
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(all(test, feature = "tokio"))]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_encoded_as_redis_rs_encodes_it() {
        for length in [0, 1, 9, 10, 99, 100, 12_345] {
            for count in [0, 1, 8, 9, 10, 120] {
                let mut command = redis::cmd("SET");
                (0..count).for_each(|_| _ = command.arg("x".repeat(length)));
                assert_eq!(packed(&command), Some(command.get_packed_command()));
            }
        }
        assert_eq!(packed(redis::cmd("SCAN").cursor_arg(0)), None);
    }
}
