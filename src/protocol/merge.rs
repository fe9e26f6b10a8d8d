//! One write for the requests of several callers, and each caller's part of the replies.
//!
//! Blocks are merged into one MULTI … EXEC, so EXEC's array is cut into the blocks' own replies. A
//! command that fails at run time concerns its own block. A command that is rejected while it is
//! queued ends the whole group, and nothing is applied: its own block gets the rejection, and the
//! others are sent again. Replies that prove nothing are a doubt for all blocks of the group.

#[cfg(test)]
#[path = "../../tests/unit/merge.rs"]
mod tests;

use std::mem;

use redis::Value;

use crate::protocol::batch::RequestKind;
use crate::protocol::connection_state::Expect;
use crate::protocol::exec::{Collector, RejectedCommand, Unproven, Verdict};
use crate::protocol::resp::decode::SharedArrays;
use crate::protocol::resp::encode::{EXEC, MULTI};
use crate::protocol::resp::reply::{Reply, is_too_large};
use crate::protocol::server_error::ServerError;

/// One write for several requests.
#[derive(Default)]
pub(crate) struct MergedWrite {
    bytes: Vec<u8>,
    expected: Vec<(Expect, u32)>,
    parts: Vec<Part>,
    /// Number of commands of each block, in the order of the blocks.
    blocks: Vec<u32>,
    /// Whether the connection is in MULTI before the write.
    in_multi: bool,
}

/// A part of a write, whose replies belong together.
struct Part {
    kind: PartKind,
    /// End of its bytes.
    end: usize,
}

#[derive(Clone, Copy)]
enum PartKind {
    /// A command of this crate's own.
    Internal,
    /// Blocks in one MULTI … EXEC. `commands`: of all blocks. `internal`: commands of this crate's
    /// own that follow them.
    Group {
        blocks: usize,
        commands: u32,
        internal: u32,
        /// Whether MULTI is a part of the write.
        opens: bool,
    },
    Read,
    Calls {
        count: u32,
    },
}

impl PartKind {
    /// Number of its replies. Of a group the last one is that of EXEC.
    fn replies(self) -> u32 {
        match self {
            Self::Internal | Self::Read => 1,
            Self::Calls { count } => count,
            Self::Group { commands, internal, opens, .. } => {
                1 + u32::from(opens) + commands + internal
            }
        }
    }
}

/// What the replies to a write show about one of its requests.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    Block(Verdict),
    Read(Value),
    Calls(Vec<Value>),
    /// A block that was not applied, because another one of its group was rejected, or because EXEC
    /// was. `alone`: not to be merged with other blocks.
    Again {
        alone: bool,
    },
    /// The connection was lost. `sent`: all bytes of the request may have been sent.
    Lost {
        sent: bool,
        doubt: Unproven,
    },
}

/// What the replies to a write show.
#[derive(Debug)]
pub(crate) struct MergedOutcome {
    /// In the order of the requests.
    pub(crate) pieces: Vec<Piece>,
    /// Codes of all errors, in their order.
    pub(crate) errors: Vec<String>,
    /// Whether a command of this crate's own outside of the groups was rejected, or has no reply.
    pub(crate) internal_failed: bool,
}

impl Piece {
    /// Whether the request is to be sent again. `unsent`: nothing of the write was sent.
    pub(crate) fn is_sent_again(&self, unsent: bool) -> bool {
        match self {
            Self::Again { .. } => true,
            Self::Lost { sent, .. } => unsent && !sent,
            Self::Block(_) | Self::Read(_) | Self::Calls(_) => false,
        }
    }
}

impl Piece {
    /// What is left of it if a reply has arrived that fits no request: each one before it may be another
    /// request's.
    fn beside_misfit(self) -> Self {
        let doubt = match self {
            Self::Lost { .. } => return self,
            Self::Read(_) | Self::Calls(_) => Unproven::default(),
            Self::Again { .. } => Unproven { incomplete: true, ..Unproven::default() },
            Self::Block(verdict) => match verdict.beside_misfit() {
                Verdict::Unknown(doubt) => doubt,
                proven => return Self::Block(proven),
            },
        };
        Self::Lost { sent: true, doubt }
    }
}

impl MergedWrite {
    /// Begins a write in `bytes`, whose capacity is kept.
    pub(crate) fn new(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self { bytes, ..Self::default() }
    }

    /// Prepares for this many requests.
    pub(crate) fn reserve(&mut self, requests: usize) {
        self.parts.reserve(requests);
    }

    /// The server has accepted the MULTI of the first group.
    pub(crate) fn follow_multi(&mut self) {
        self.in_multi = true;
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn expected(&self) -> &[(Expect, u32)] {
        &self.expected
    }

    /// The parts of each group's replies that are for one block, by their lengths, with the number of replies
    /// before that of the group's EXEC.
    pub(crate) fn shared_replies(&self) -> SharedArrays {
        let (mut commands, mut behind) = (self.blocks.iter().copied(), 0);
        let arrays = self.parts.iter().filter_map(|part| {
            behind += u64::from(part.kind.replies());
            let PartKind::Group { blocks, internal, .. } = part.kind else { return None };
            let parts = commands.by_ref().take(blocks).chain([internal]).collect();
            Some((behind - 1, parts))
        });
        arrays.collect()
    }

    /// Returns the buffer.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Adds a command of this crate's own.
    pub(crate) fn push_internal(&mut self, expect: Expect, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.expected.push((expect, 1));
        self.end_part(PartKind::Internal);
    }

    /// Adds one command that changes nothing, or calls.
    pub(crate) fn push(&mut self, kind: RequestKind, bytes: &[u8]) {
        match kind {
            RequestKind::Block { commands } => {
                self.push_group([(bytes, commands)].into_iter(), None);
            }
            RequestKind::Read => {
                self.expect_plain(1);
                self.bytes.extend_from_slice(bytes);
                self.end_part(PartKind::Read);
            }
            RequestKind::Calls { count } => {
                self.expect_plain(count);
                self.bytes.extend_from_slice(bytes);
                self.end_part(PartKind::Calls { count });
            }
        }
    }

    /// Adds blocks as one MULTI … EXEC. Each block has its own MULTI and EXEC, and a number of
    /// commands. `internal`: the last command, which is this crate's own.
    pub(crate) fn push_group<'b>(
        &mut self,
        blocks: impl Iterator<Item = (&'b [u8], u32)>,
        internal: Option<&[u8]>,
    ) {
        let (mut count, mut commands) = (0, 0);
        let opens = !mem::take(&mut self.in_multi);
        if opens {
            self.bytes.extend_from_slice(MULTI);
            self.expected.push((Expect::Multi, 1));
        }
        for (block, of_block) in blocks {
            self.bytes.extend_from_slice(body(block));
            self.blocks.push(of_block);
            commands += of_block;
            count += 1;
        }
        self.bytes.extend_from_slice(internal.unwrap_or_default());
        self.bytes.extend_from_slice(EXEC);
        let internal = u32::from(internal.is_some());
        let queued = (Expect::Queued, commands + internal);
        self.expected.extend([queued, (Expect::Exec, 1)]);
        self.end_part(PartKind::Group { blocks: count, commands, internal, opens });
    }

    fn expect_plain(&mut self, count: u32) {
        match self.expected.last_mut() {
            Some((Expect::Plain, plain)) => *plain += count,
            _ => self.expected.push((Expect::Plain, count)),
        }
    }

    fn end_part(&mut self, kind: PartKind) {
        self.parts.push(Part { kind, end: self.bytes.len() });
    }
}

/// Returns the commands of a block without its MULTI and EXEC.
fn body(block: &[u8]) -> &[u8] {
    let commands = block.strip_prefix(MULTI).and_then(|rest| rest.strip_suffix(EXEC));
    debug_assert!(commands.is_some(), "a block begins with MULTI and ends with EXEC");
    commands.unwrap_or_default()
}

/// The replies to a write, as far as they arrived.
pub(crate) struct MergedReplies<'w> {
    write: &'w MergedWrite,
    /// Index of the part that the next reply belongs to.
    next: usize,
    /// The replies of that part, and the number that are left; `None`: none has arrived.
    current: Option<(PartReplies, u32)>,
    /// Index of the first block of that part.
    block: usize,
    outcome: MergedOutcome,
}

/// The replies to one part.
enum PartReplies {
    Internal {
        failed: bool,
    },
    Group(GroupReplies),
    /// Its only reply ends it.
    Read,
    Calls(Vec<Value>),
}

/// The replies to a group.
struct GroupReplies {
    collector: Collector,
    /// The rejected commands, by their index in the group.
    rejected: Vec<(u32, ServerError)>,
    seen: u32,
}

impl<'w> MergedReplies<'w> {
    pub(crate) fn new(write: &'w MergedWrite) -> Self {
        let pieces = Vec::with_capacity(write.parts.len().max(write.blocks.len()));
        let outcome = MergedOutcome { pieces, errors: Vec::new(), internal_failed: false };
        Self { write, next: 0, current: None, block: 0, outcome }
    }

    /// Takes the next reply.
    pub(crate) fn take(&mut self, expect: Expect, reply: Reply) {
        if let Reply::Value(Value::ServerError(error)) = &reply {
            self.outcome.errors.push(error.code().to_owned());
        }
        let Some(part) = self.write.parts.get(self.next) else { return };
        if matches!(part.kind, PartKind::Read) {
            self.next += 1;
            self.outcome.pieces.push(Piece::Read(reply.into_value()));
            return;
        }
        let (replies, left) = self.current.get_or_insert_with(|| PartReplies::of(part.kind));
        *left = left.saturating_sub(reply.count());
        let complete = *left == 0;
        replies.take(expect, reply);
        if complete && let Some((replies, _)) = self.current.take() {
            self.end(part, replies, 0, None);
        }
    }

    /// Ends a part. `left`: number of its replies that did not arrive. `lost`: the connection was
    /// lost, after this many bytes if not all of them were sent.
    fn end(&mut self, part: &Part, replies: PartReplies, left: u32, lost: Option<Option<usize>>) {
        self.next += 1;
        // The write that failed did not take its last byte.
        let sent = || match lost {
            Some(Some(sent)) => part.end <= sent && part.end < self.write.bytes.len(),
            Some(None) | None => true,
        };
        let missing = |doubt| Piece::Lost { sent: sent(), doubt };
        let pieces = &mut self.outcome.pieces;
        match replies {
            PartReplies::Internal { failed } => self.outcome.internal_failed |= failed || left > 0,
            PartReplies::Calls(values) if left == 0 => pieces.push(Piece::Calls(values)),
            PartReplies::Read | PartReplies::Calls(_) => {
                pieces.push(missing(Unproven::default()));
            }
            PartReplies::Group(group) => {
                let PartKind::Group { blocks, internal, .. } = part.kind else { return };
                let of_blocks = self.write.blocks.get(self.block..).unwrap_or_default();
                let of_blocks = of_blocks.get(..blocks).unwrap_or_default();
                self.block += blocks;
                match group.collector.verdict() {
                    Verdict::Unknown(doubt) if lost.is_some() => {
                        pieces.extend(of_blocks.iter().map(|_| missing(doubt.clone())));
                    }
                    verdict => cut(verdict, &group.rejected, of_blocks, internal, pieces),
                }
            }
        }
    }

    /// Returns what the replies show, in the order of the requests. `lost`: the connection was lost;
    /// the number of bytes that may have been sent, or `None` for all of them. `is_misfit`: by a reply that
    /// fits no command.
    pub(crate) fn finish(mut self, lost: Option<Option<usize>>, is_misfit: bool) -> MergedOutcome {
        while let Some(part) = self.write.parts.get(self.next) {
            let current = self.current.take().unwrap_or_else(|| PartReplies::of(part.kind));
            self.end(part, current.0, current.1, lost);
        }
        if is_misfit {
            self.outcome.pieces =
                self.outcome.pieces.into_iter().map(Piece::beside_misfit).collect();
        }
        self.outcome
    }
}

impl PartReplies {
    /// No replies yet, and the number that are awaited.
    fn of(kind: PartKind) -> (Self, u32) {
        let none = match kind {
            PartKind::Internal => Self::Internal { failed: false },
            PartKind::Read => Self::Read,
            PartKind::Calls { count } => Self::Calls(Vec::with_capacity(count as usize)),
            PartKind::Group { commands, internal, .. } => {
                let collector = Collector::new(commands + internal, 0);
                Self::Group(GroupReplies { collector, rejected: Vec::new(), seen: 0 })
            }
        };
        (none, kind.replies())
    }

    fn take(&mut self, expect: Expect, reply: Reply) {
        match self {
            Self::Internal { failed } => *failed |= reply.is_refused(),
            Self::Read => {}
            Self::Calls(values) => values.push(reply.into_value()),
            Self::Group(group) => {
                if expect == Expect::Queued {
                    if let Reply::Value(Value::ServerError(error)) = &reply {
                        let error = ServerError::from_reply(error, false);
                        group.rejected.push((group.seen, error));
                    }
                    group.seen += reply.count();
                }
                group.collector.take(expect, reply);
            }
        }
    }
}

/// Cuts the verdict of a group into those of its blocks. `rejected`: the commands that were rejected
/// while they were queued, by their index in the group.
fn cut(
    verdict: Verdict,
    rejected: &[(u32, ServerError)],
    blocks: &[u32],
    internal: u32,
    pieces: &mut Vec<Piece>,
) {
    let mut push = |verdict| pieces.push(Piece::Block(verdict));
    match verdict {
        Verdict::Applied(mut values) => {
            let commands = values.len().saturating_sub(internal as usize);
            let own = values.split_off(commands);
            if let [_] = blocks {
                values.extend(own);
                return push(applied(values));
            }
            let mut values = values.into_iter();
            for commands in blocks {
                let mut piece = Vec::with_capacity((commands + internal) as usize);
                piece.extend(values.by_ref().take(*commands as usize));
                piece.extend_from_slice(&own);
                push(applied(piece));
            }
        }
        Verdict::RepliesLost => blocks.iter().for_each(|_| push(Verdict::RepliesLost)),
        Verdict::Nil => blocks.iter().for_each(|_| push(Verdict::Nil)),
        Verdict::Unknown(doubt) => {
            blocks.iter().for_each(|_| push(Verdict::Unknown(doubt.clone())));
        }
        Verdict::WithoutMulti(bare) => {
            for bare in bare.cut(blocks, internal as usize) {
                push(Verdict::WithoutMulti(bare));
            }
        }
        Verdict::Rejected(exec) if rejected.is_empty() => {
            let for_all = blocks.len() == 1 || concerns_all(exec.error.code(), internal > 0);
            pieces.extend(blocks.iter().map(|_| match for_all {
                true => Piece::Block(Verdict::Rejected(exec.clone())),
                false => Piece::Again { alone: true },
            }));
        }
        Verdict::Rejected(_) => cut_rejected(rejected, blocks, pieces),
    }
}

/// The verdict of a block that was applied.
fn applied(replies: Vec<Value>) -> Verdict {
    match replies.iter().any(is_too_large) {
        true => Verdict::RepliesLost,
        false => Verdict::Applied(replies),
    }
}

/// Gives each block its own rejection. The others are sent again, unless a command of this crate's own
/// was rejected, which follows all blocks, or the slot of all blocks has moved.
fn cut_rejected(rejected: &[(u32, ServerError)], blocks: &[u32], pieces: &mut Vec<Piece>) {
    let commands: u32 = blocks.iter().sum();
    let of_all =
        rejected.iter().find(|(index, error)| *index >= commands || error.code() == "MOVED");
    // While a slot migrates, the server rejects the keys that it does not have any more.
    let alone = rejected.iter().any(|(_, error)| matches!(error.code(), "ASK" | "TRYAGAIN"));
    let mut begin = 0;
    for of_block in blocks {
        let end = begin + of_block;
        let own = rejected.iter().find(|(index, _)| (begin..end).contains(index));
        pieces.push(match own.or(of_all) {
            Some((index, error)) => {
                // A command of this crate's own follows those of each block. One of another block is none of
                // this block's.
                let is_own = own.is_some() || *index >= commands;
                let index = is_own.then(|| (*index).min(end) - begin);
                let error = error.clone();
                Piece::Block(Verdict::Rejected(RejectedCommand { index, word: "EXEC", error }))
            }
            None => Piece::Again { alone },
        });
        begin = end;
    }
}

/// Returns whether a rejection of EXEC holds for every block of the group by itself. `writes`: each
/// of them would also write a register.
fn concerns_all(code: &str, writes: bool) -> bool {
    match code {
        "MOVED" | "CLUSTERDOWN" => true,
        // While a slot migrates, the server has the keys of some blocks only. A block whose keys are all
        // here must not go to the other server.
        "ASK" | "TRYAGAIN" | "CROSSSLOT" => false,
        // The rights depend on the commands and keys of each block.
        "NOPERM" => false,
        // The server checks the commands of the whole group, of which some may only read.
        _ => writes,
    }
}
