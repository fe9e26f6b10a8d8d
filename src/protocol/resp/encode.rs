//! Commands as bytes.
//!
//! Never: sends.

use std::io;

use redis::{RedisWrite, ToRedisArgs};

use crate::protocol::resp::encoded_command::EncodedCommand;

pub(crate) const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
pub(crate) const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";
pub(crate) const DISCARD: &[u8] = b"*1\r\n$7\r\nDISCARD\r\n";
pub(crate) const UNWATCH: &[u8] = b"*1\r\n$7\r\nUNWATCH\r\n";
pub(crate) const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";
pub(crate) const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
pub(crate) const ROLE: &[u8] = b"*1\r\n$4\r\nROLE\r\n";

/// The arguments of one command, written straight into the buffer.
pub struct Args<'b> {
    bytes: &'b mut Vec<u8>,
    /// Where the command begins.
    start: usize,
    count: usize,
}

impl<'b> Args<'b> {
    fn begin(bytes: &'b mut Vec<u8>, head: &EncodedCommand) -> Self {
        let start = bytes.len();
        bytes.extend_from_slice(head.bytes());
        Self { bytes, start, count: head.words() }
    }

    // Not generic: it is there once, and not in every command.

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

    /// Appends one argument, or the several of a list.
    pub fn arg(&mut self, value: impl ToRedisArgs) -> &mut Self {
        value.write_redis_args(self);
        self
    }
}

/// Shows how many, never what.
impl std::fmt::Debug for Args<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} arguments", self.count)
    }
}

impl RedisWrite for Args<'_> {
    fn write_arg(&mut self, arg: &[u8]) {
        self.count += 1;
        // Room for the header too, so that none of these looks for it again.
        self.bytes.reserve(arg.len() + 32);
        let digit = |number: usize| b'0' + number as u8;
        match arg.len() {
            len @ 0..10 => self.bytes.extend_from_slice(&[b'$', digit(len), b'\r', b'\n']),
            len @ 10..100 => {
                let line = [b'$', digit(len / 10), digit(len % 10), b'\r', b'\n'];
                self.bytes.extend_from_slice(&line);
            }
            len => header(self.bytes, b'$', len),
        }
        self.bytes.extend_from_slice(arg);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn writer_for_next_arg(&mut self) -> impl io::Write + '_ {
        Pending { bytes: Vec::new(), args: self }
    }
}

/// An argument whose length is known only once it was written.
struct Pending<'p, 'b> {
    bytes: Vec<u8>,
    args: &'p mut Args<'b>,
}

impl Drop for Pending<'_, '_> {
    fn drop(&mut self) {
        self.args.write_arg(&self.bytes);
    }
}

impl io::Write for Pending<'_, '_> {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

/// Appends one whole command: its words, then what `args` writes. Words are the crate's own: a user's
/// might not fit into a [`Head`].
pub(crate) fn command(
    bytes: &mut Vec<u8>,
    words: &[&'static str],
    args: impl FnOnce(&mut Args<'_>),
) {
    entry(bytes, &EncodedCommand::new(words), args);
}

/// The same for a command whose words are encoded already.
pub(crate) fn entry(bytes: &mut Vec<u8>, head: &EncodedCommand, args: impl FnOnce(&mut Args<'_>)) {
    let mut writer = Args::begin(bytes, head);
    args(&mut writer);
    writer.end();
}
