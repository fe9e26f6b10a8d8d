//! The queued part of a transaction as bytes, with the parts of it that can be forgotten.
//!
//! The buffer always begins with UNWATCH and MULTI, so that a transaction on a trusted link leaves
//! in one write, whatever it has to begin with; the others send the rest of the same bytes.
//!
//! Never: a half-encoded command in what is handed out. Never: an identifier given out twice.

#[cfg(test)]
#[path = "../../tests/unit/queue.rs"]
mod tests;

use redis::Cmd;

use crate::protocol::batch;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::blocking::blocks_in_multi;
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::fan_out;
use crate::protocol::command::float::adds_float;
use crate::protocol::command::float::is_float;
use crate::protocol::command::keys;
use crate::protocol::command::keys::KeySlots;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::refused::SendContext;
use crate::protocol::command::refused::is_refused;
use crate::protocol::resp::encode;
use crate::protocol::resp::encode::EncodedCommand;
use crate::protocol::resp::encode::{Args, EXEC, MULTI, UNWATCH};

/// How much stands before the first command.
const HEAD: usize = UNWATCH.len() + MULTI.len();

/// What a transaction's one write begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    Unwatch,
    Multi,
    Commands,
}

/// One write that ends a transaction.
#[derive(Debug)]
pub(crate) struct FinalWrite<'b> {
    pub(crate) bytes: &'b [u8],
    /// How many of them end with EXEC's last one.
    pub(crate) with_exec: usize,
}

/// How much one transaction may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) commands: u32,
    pub(crate) bytes: usize,
}

/// Why a command was not taken into the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueueError {
    /// Refused by name.
    Command(String),
    /// It adds a float to an integer.
    Float(String),
    /// A `Cmd` without a name.
    Empty,
    TooManyCommands {
        limit: u32,
    },
    TooManyBytes {
        limit: usize,
    },
    /// Its key is of another slot than the transaction.
    OtherSlot {
        command: String,
        bound: u16,
        other: u16,
    },
    /// It concerns every node of a cluster, and the transaction is on one.
    Everywhere(String),
}

/// Where an open part began.
#[derive(Clone, Copy, Debug)]
struct Mark {
    end: usize,
    commands: u32,
    ids: u32,
    dropped_ids: usize,
    refused: bool,
    binding: SlotBinding,
    has_unknown_keys: bool,
}

/// The queued commands of one transaction.
pub struct CommandQueue {
    transaction: u64,
    limits: Limits,
    bytes: Vec<u8>,
    /// End of the last whole command: an argument type that panics while it is encoded leaves
    /// half a command behind it, which is cut off before anything else happens.
    end: usize,
    /// Bytes that were already handed out by [`flushed`](Self::flushed).
    flushed_bytes: usize,
    commands: u32,
    flushed: u32,
    ids: u32,
    /// Identifiers of forgotten commands: ascending, disjoint, half open.
    dropped_ids: Vec<(u32, u32)>,
    savepoints: Vec<Mark>,
    error: Option<QueueError>,
    binding: SlotBinding,
    /// It holds a command whose keys nobody here knows.
    has_unknown_keys: bool,
    /// It holds a command that must not travel with other blocks.
    unbatchable: bool,
    /// Names of the commands whose bytes are gone, each behind its length.
    names: Vec<u8>,
    /// A server's sentences are shown as they come.
    full: bool,
}

impl CommandQueue {
    /// Writes into `bytes`, whose capacity it takes over.
    pub(crate) fn new(transaction: u64, limits: Limits, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.reserve(256);
        bytes.extend_from_slice(UNWATCH);
        bytes.extend_from_slice(MULTI);
        Self {
            transaction,
            limits,
            end: bytes.len(),
            bytes,
            flushed_bytes: 0,
            commands: 0,
            flushed: 0,
            ids: 0,
            dropped_ids: Vec::new(),
            savepoints: Vec::new(),
            error: None,
            binding: SlotBinding::None,
            has_unknown_keys: false,
            unbatchable: false,
            names: Vec::new(),
            full: false,
        }
    }

    /// Its keys must be of this slot, or of any one.
    pub(crate) fn bind(&mut self, binding: SlotBinding) {
        self.binding = binding;
    }

    /// Which slot its keys are of, so far.
    pub(crate) fn binding(&self) -> SlotBinding {
        self.binding
    }

    /// It holds a command whose keys nobody here knows, and none that tells where it belongs.
    pub(crate) fn has_unknown_slot(&self) -> bool {
        self.has_unknown_keys && self.binding == SlotBinding::Pending
    }

    /// It will not travel with other blocks, whatever it holds.
    pub(crate) fn disable_batching(&mut self) {
        self.unbatchable = true;
    }

    /// Whether errors of its commands are to show the server's sentences as they come.
    pub(crate) fn show_messages(&mut self, full: bool) {
        self.full = full;
    }

    pub(crate) fn shows_messages(&self) -> bool {
        self.full
    }

    /// Gives the memory back. What was queued is forgotten.
    pub(crate) fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    pub(crate) fn transaction(&self) -> u64 {
        self.transaction
    }

    /// Appends a command of the part at `depth` and gives it an identifier.
    pub(crate) fn push(
        &mut self,
        depth: usize,
        head: &EncodedCommand,
        args: impl FnOnce(&mut Args<'_>),
    ) -> u32 {
        self.unbatchable |= !head.batchable();
        let (check, adds_to_integer) = (head.may_block(), head.adds_to_integer());
        self.append(depth, check, adds_to_integer, |bytes| encode::entry(bytes, head, args))
    }

    /// The same for a command that the caller built.
    pub(crate) fn push_cmd(&mut self, depth: usize, cmd: &Cmd) -> u32 {
        self.unbatchable = true;
        self.append(depth, true, false, |bytes| cmd.write_packed_command(bytes))
    }

    fn append(
        &mut self,
        depth: usize,
        check: bool,
        adds_to_integer: bool,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> u32 {
        self.rollback_deeper(depth);
        if self.error.is_none() {
            self.bytes.truncate(self.end);
            // May panic; then nobody has the identifier, and the next command gets it.
            encode(&mut self.bytes);
            self.keep(check, adds_to_integer);
        }
        let id = self.ids;
        self.ids = id.saturating_add(1);
        id
    }

    /// Keeps the command that was just encoded, or refuses it. Not generic: it is there once.
    fn keep(&mut self, check: bool, adds_to_integer: bool) {
        if self.commands >= self.limits.commands {
            self.refuse(QueueError::TooManyCommands { limit: self.limits.commands });
        } else if self.flushed_bytes + self.bytes.len() - UNWATCH.len() > self.limits.bytes {
            self.refuse(QueueError::TooManyBytes { limit: self.limits.bytes });
        } else if let Some(error) = self.verdict(check || adds_to_integer && self.ends_with_float())
        {
            self.refuse(error);
        } else {
            self.end = self.bytes.len();
            self.commands += 1;
        }
    }

    /// Whether the last argument of the command that was just encoded is a float.
    fn ends_with_float(&self) -> bool {
        let encoded = self.bytes.get(self.end..).and_then(|bytes| bytes.strip_suffix(b"\r\n"));
        let last = encoded.and_then(|bytes| bytes.rsplit(|byte| *byte == b'\n').next());
        last.is_some_and(is_float)
    }

    /// Judges the command that was just encoded, by what will really be sent.
    fn verdict(&mut self, check: bool) -> Option<QueueError> {
        if !check && self.binding == SlotBinding::None {
            return None;
        }
        let encoded = self.bytes.get(self.end..)?;
        let Some(Ok(args)) = CommandReader::new(encoded).next() else {
            return Some(QueueError::Empty);
        };
        let name = args.first().copied().filter(|name| !name.is_empty());
        let Some(name) = name else { return Some(QueueError::Empty) };
        let refused =
            is_refused(name, args.get(1).copied(), SendContext::InMulti) || blocks_in_multi(&args);
        if refused {
            return Some(QueueError::Command(display_name(name)));
        }
        if adds_float(&args) {
            return Some(QueueError::Float(display_name(name)));
        }
        if self.binding == SlotBinding::None {
            return None;
        }
        let name = || display_name(name);
        let (bound, other) = match keys::slot_of(&args) {
            KeySlots::None if fan_out::is_everywhere(&args) => {
                return Some(QueueError::Everywhere(name()));
            }
            KeySlots::None => return None,
            KeySlots::Unknown => {
                self.has_unknown_keys = true;
                return None;
            }
            KeySlots::One(slot) => (self.binding.bind(slot).err()?, slot),
            KeySlots::Several(one, other) => (one, other),
        };
        Some(QueueError::OtherSlot { command: name(), bound, other })
    }

    fn refuse(&mut self, error: QueueError) {
        self.bytes.truncate(self.end);
        self.error = Some(error);
    }

    /// The first command that was not taken, if one was not.
    pub(crate) fn error(&self) -> Option<&QueueError> {
        self.error.as_ref()
    }

    /// Opens a part inside the part at `depth` and returns the new depth.
    pub(crate) fn savepoint(&mut self, depth: usize) -> usize {
        self.rollback_deeper(depth);
        self.savepoints.push(Mark {
            end: self.end,
            commands: self.commands,
            ids: self.ids,
            dropped_ids: self.dropped_ids.len(),
            refused: self.error.is_some(),
            binding: self.binding,
            has_unknown_keys: self.has_unknown_keys,
        });
        self.savepoints.len()
    }

    /// Keeps the part at `depth`; a deeper one that is still open is forgotten.
    pub(crate) fn release(&mut self, depth: usize) {
        self.rollback_deeper(depth);
        if self.savepoints.len() == depth {
            self.savepoints.pop();
        }
    }

    /// Forgets the part at `depth` and every one inside it.
    pub(crate) fn rollback_local(&mut self, depth: usize) {
        self.rollback_deeper(depth.saturating_sub(1));
    }

    /// Forgets every part deeper than `depth`: whoever owned one has let go of it without a word.
    pub(crate) fn rollback_deeper(&mut self, depth: usize) {
        let Some(mark) = self.savepoints.get(depth).copied() else { return };
        self.savepoints.truncate(depth);
        self.end = mark.end;
        self.bytes.truncate(mark.end);
        self.commands = mark.commands;
        self.dropped_ids.truncate(mark.dropped_ids);
        (self.binding, self.has_unknown_keys) = (mark.binding, mark.has_unknown_keys);
        if mark.ids < self.ids {
            self.dropped_ids.push((mark.ids, self.ids));
        }
        if !mark.refused {
            self.error = None;
        }
    }

    pub(crate) fn has_open_savepoint(&self) -> bool {
        !self.savepoints.is_empty()
    }

    /// Whether it may travel with other blocks: small, whole, and of listed commands only.
    pub(crate) fn is_batchable(&self) -> bool {
        !self.unbatchable
            && !self.is_flushed()
            && self.commands > 0
            && batch::fits_in_batch(self.commands, self.pending_bytes())
    }

    /// Commands that will be applied: queued and not forgotten.
    pub(crate) fn commands(&self) -> u32 {
        self.commands
    }

    /// Of those, the ones whose bytes are still here.
    pub(crate) fn unsent(&self) -> u32 {
        self.commands - self.flushed
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.flushed > 0
    }

    /// Bytes of the commands waiting here.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.end - HEAD
    }

    /// The waiting commands without MULTI.
    pub(crate) fn body(&self) -> &[u8] {
        self.bytes.get(HEAD..self.end).unwrap_or_default()
    }

    /// One write: the commands, `own` ones behind them, EXEC, and what is to follow it.
    pub(crate) fn finish(&mut self, start: Prefix, own: &[u8], behind: &[u8]) -> FinalWrite<'_> {
        let from = match start {
            Prefix::Unwatch => 0,
            Prefix::Multi => UNWATCH.len(),
            Prefix::Commands => HEAD,
        };
        self.bytes.truncate(self.end);
        self.bytes.extend_from_slice(own);
        self.bytes.extend_from_slice(EXEC);
        let with_exec = self.bytes.len() - from;
        self.bytes.extend_from_slice(behind);
        FinalWrite { bytes: self.bytes.get(from..).unwrap_or_default(), with_exec }
    }

    /// The waiting commands were sent and queued: keeps their names, lets their bytes go.
    pub(crate) fn flushed(&mut self) {
        for command in CommandReader::new(self.bytes.get(HEAD..self.end).unwrap_or_default()) {
            let name = command.ok().and_then(|args| args.first().copied()).unwrap_or_default();
            let name = name.get(..name.len().min(u8::MAX.into())).unwrap_or_default();
            self.names.push(name.len() as u8);
            self.names.extend_from_slice(name);
        }
        self.flushed_bytes += self.pending_bytes();
        self.flushed = self.commands;
        self.end = HEAD;
        self.bytes.truncate(self.end);
    }

    /// The transaction has failed: what waits will never be sent, and need not be kept.
    pub(crate) fn drop_pending(&mut self) {
        self.end = HEAD;
        self.bytes.truncate(self.end);
    }

    /// The commands' names in their order, sent or not.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mut kept = self.names.as_slice();
        let sent = std::iter::from_fn(move || {
            let (length, rest) = kept.split_first()?;
            let (name, rest) = rest.split_at_checked((*length).into())?;
            kept = rest;
            Some(name)
        });
        let name = |args: Result<Vec<_>, _>| args.ok()?.first().copied();
        sent.chain(CommandReader::new(self.body()).map(move |args| name(args).unwrap_or_default()))
    }

    /// The name of the command at `index`, sent or not.
    pub(crate) fn name(&self, index: u32) -> Option<String> {
        self.names().nth(index as usize).map(display_name)
    }

    /// Forgotten identifiers, for [`Replies`](crate::Replies) to number its values by.
    pub(crate) fn take_dropped_ids(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.dropped_ids)
    }
}

/// Shows how much, never what: the bytes are keys and values.
impl std::fmt::Debug for CommandQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandQueue")
            .field("transaction", &self.transaction)
            .field("commands", &self.commands)
            .field("flushed", &self.flushed)
            .field("pending_bytes", &self.pending_bytes())
            .field("open_parts", &self.savepoints.len())
            .finish_non_exhaustive()
    }
}
