//! What a command of the table begins with, encoded when the crate is built.
//!
//! Never: an argument.

use crate::protocol::batch;

/// Longer than any of the table.
const ROOM: usize = 64;

/// The words of a command as bytes, and what is known of it by these alone.
#[derive(Debug)]
pub struct EncodedCommand {
    bytes: [u8; ROOM],
    len: usize,
    words: usize,
    joins: bool,
    may_block: bool,
    adds: bool,
}

impl EncodedCommand {
    /// Fewer than ten words, each shorter than a hundred bytes, that fit.
    #[expect(clippy::indexing_slicing, reason = "words that do not fit do not build")]
    pub(crate) const fn new(words: &[&str]) -> Self {
        // The first line is for the sum of words and arguments, which has one digit nearly always.
        let mut head = Self {
            bytes: [0; ROOM],
            len: 0,
            words: words.len(),
            joins: batch::may_join(words),
            may_block: matches!(
                words,
                [word, ..] if matches!(word.as_bytes(), b"XREAD" | b"XREADGROUP")
            ),
            adds: matches!(
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

    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// Whether it may travel with other blocks.
    pub(crate) fn joins(&self) -> bool {
        self.joins
    }

    /// Whether its last argument is added to an integer, and so must not be a float.
    pub(crate) fn adds(&self) -> bool {
        self.adds
    }

    /// Whether its arguments can ask to wait: every other command of the table is known not to.
    pub(crate) fn may_block(&self) -> bool {
        self.may_block
    }
}
