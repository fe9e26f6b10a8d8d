//! The queued commands of a transaction as bytes, with savepoints.
//!
//! The bytes always begin with UNWATCH and MULTI. So a transaction on a trusted connection is one
//! write, whatever prefix it needs; the others send the rest of the same bytes. A half-encoded
//! command is never sent, and no identifier is given out twice.

#[cfg(test)]
#[path = "../../tests/unit/queue.rs"]
mod tests;

use redis::Cmd;

use crate::protocol::batch;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::blocking::blocks_in_multi;
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::fan_out;
use crate::protocol::command::float::{adds_float, float_hint, is_float};
use crate::protocol::command::keys::{self, CrossSlot, KeySlots};
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::refused::{SendContext, is_refused, refusal_hint};
use crate::protocol::resp::encode::{self, Args, EXEC, EncodedCommand, MULTI, UNWATCH};

/// Bytes before the first command.
const PREFIX_LEN: usize = UNWATCH.len() + MULTI.len();

/// The beginning of a transaction's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    Unwatch,
    Multi,
    Commands,
}

/// The write that ends a transaction.
#[derive(Debug)]
pub(crate) struct FinalWrite<'b> {
    pub(crate) bytes: &'b [u8],
    /// Bytes up to the end of EXEC.
    pub(crate) with_exec: usize,
}

/// Maximum size of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) commands: u32,
    pub(crate) bytes: usize,
}

/// Why a command was not queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueueError {
    Refused { command: String, hint: &'static str },
    TooLarge { what: &'static str, limit: usize, setting: &'static str },
    CrossSlot(CrossSlot),
}

/// The state of the queue at a savepoint.
#[derive(Clone, Copy, Debug)]
struct SavepointState {
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
    /// End of the last whole command. If an argument type panics while it is encoded, half a
    /// command follows it, which is cut off before anything else.
    end: usize,
    /// Bytes already flushed.
    flushed_bytes: usize,
    commands: u32,
    flushed: u32,
    ids: u32,
    /// Identifiers of rolled back commands: ascending, disjoint, half open.
    dropped_ids: Vec<(u32, u32)>,
    savepoints: Vec<SavepointState>,
    error: Option<QueueError>,
    binding: SlotBinding,
    /// Whether a queued command's keys are unknown.
    has_unknown_keys: bool,
    /// Whether a queued command must not be batched.
    unbatchable: bool,
    /// Numbers of commands of the other transactions that were appended.
    parts: Vec<u32>,
    /// Names of the flushed commands, each after its length.
    names: Vec<u8>,
    /// Whether errors show the server's texts unredacted.
    full_text: bool,
}

impl CommandQueue {
    /// Writes into `bytes` and keeps its capacity.
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
            parts: Vec::new(),
            names: Vec::new(),
            full_text: false,
        }
    }

    /// Sets which slot the keys must be of.
    pub(crate) fn bind(&mut self, binding: SlotBinding) {
        self.binding = binding;
    }

    /// The slot of the keys so far.
    pub(crate) fn binding(&self) -> SlotBinding {
        self.binding
    }

    /// Whether the slot is unknown: a command's keys are not known, and no other command has set
    /// it.
    pub(crate) fn has_unknown_slot(&self) -> bool {
        self.has_unknown_keys && self.binding == SlotBinding::Pending
    }

    /// Whether errors of its commands show the server's texts unredacted.
    pub(crate) fn show_full_text(&mut self, full_text: bool) {
        self.full_text = full_text;
    }

    pub(crate) fn shows_full_text(&self) -> bool {
        self.full_text
    }

    /// Returns the memory. The queue is empty afterwards.
    pub(crate) fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    pub(crate) fn transaction(&self) -> u64 {
        self.transaction
    }

    /// Appends a command within the savepoint at `depth` and returns its identifier.
    pub(crate) fn push(
        &mut self,
        depth: usize,
        head: &EncodedCommand,
        args: impl FnOnce(&mut Args<'_>),
    ) -> u32 {
        self.unbatchable |= !head.batchable;
        let (check, adds_to_integer) = (head.may_block, head.adds_to_integer);
        self.append(depth, check, adds_to_integer, |bytes| encode::command(bytes, head, args))
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
            // May panic; the identifier is then not returned, and the next command gets it.
            encode(&mut self.bytes);
            self.keep(check, adds_to_integer);
        }
        let id = self.ids;
        self.ids = id.saturating_add(1);
        id
    }

    /// Keeps the command that was just encoded, or rejects it. Not generic, so that it is compiled
    /// once.
    fn keep(&mut self, check: bool, adds_to_integer: bool) {
        if self.commands >= self.limits.commands {
            let (limit, setting) = (self.limits.commands as usize, "max_commands");
            self.reject(QueueError::TooLarge { what: "commands", limit, setting });
        } else if self.flushed_bytes + self.bytes.len() - UNWATCH.len() > self.limits.bytes {
            let (limit, setting) = (self.limits.bytes, "max_bytes");
            self.reject(QueueError::TooLarge { what: "bytes", limit, setting });
        } else if let Some(error) = self.check(check || adds_to_integer && self.ends_with_float()) {
            self.reject(error);
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

    /// Checks the bytes of the command that was just encoded.
    fn check(&mut self, check: bool) -> Option<QueueError> {
        if !check && self.binding == SlotBinding::None {
            return None;
        }
        let encoded = self.bytes.get(self.end..)?;
        let args = CommandReader::new(encoded).next().and_then(Result::ok).unwrap_or_default();
        let name = args.first().copied().unwrap_or_default();
        if name.is_empty() {
            let command = "a command without a name".to_owned();
            return Some(QueueError::Refused { command, hint: "build it with redis::cmd(name)" });
        }
        let refused = |hint: fn(&str) -> &'static str| {
            let command = display_name(name);
            Some(QueueError::Refused { hint: hint(&command), command })
        };
        if is_refused(name, args.get(1).copied(), SendContext::InMulti) || blocks_in_multi(&args) {
            return refused(|command| refusal_hint(command, SendContext::InMulti));
        }
        if adds_float(&args) {
            return refused(float_hint);
        }
        if self.binding == SlotBinding::None {
            return None;
        }
        match keys::bind_to(&mut self.binding, &args) {
            Ok(KeySlots::None) if fan_out::is_everywhere(&args) => {
                return refused(|_| {
                    "it concerns every node of the cluster, and a transaction is on one; use the \
                     pooled handle"
                });
            }
            Ok(KeySlots::Unknown) => self.has_unknown_keys = true,
            Ok(_) => {}
            Err(error) => return Some(QueueError::CrossSlot(error)),
        }
        None
    }

    fn reject(&mut self, error: QueueError) {
        self.bytes.truncate(self.end);
        self.error = Some(error);
    }

    /// Why the first rejected command was not queued.
    pub(crate) fn error(&self) -> Option<&QueueError> {
        self.error.as_ref()
    }

    /// Begins a savepoint within the one at `depth` and returns the new depth.
    pub(crate) fn savepoint(&mut self, depth: usize) -> usize {
        self.rollback_deeper(depth);
        self.savepoints.push(SavepointState {
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

    /// Releases the savepoint at `depth`; deeper ones are rolled back.
    pub(crate) fn release(&mut self, depth: usize) {
        self.rollback_deeper(depth);
        if self.savepoints.len() == depth {
            self.savepoints.pop();
        }
    }

    /// Rolls back the savepoint at `depth` and all within it.
    pub(crate) fn rollback_local(&mut self, depth: usize) {
        self.rollback_deeper(depth.saturating_sub(1));
    }

    /// Rolls back all savepoints deeper than `depth`. Their guards were forgotten without `Drop`.
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

    /// Whether the transaction may be batched: small, not flushed, and of batchable commands only.
    pub(crate) fn is_batchable(&self) -> bool {
        !self.unbatchable
            && !self.is_flushed()
            && self.commands > 0
            && batch::fits_in_batch(self.commands, self.pending_bytes())
    }

    /// Whether the transaction is small, or empty, and others can be sent with it.
    pub(crate) fn can_be_merged(&self) -> bool {
        self.error.is_none() && (self.is_batchable() || (self.commands == 0 && !self.is_flushed()))
    }

    /// Appends the commands of another transaction.
    pub(crate) fn append_all(&mut self, body: &[u8], commands: u32) {
        self.bytes.truncate(self.end);
        self.bytes.extend_from_slice(body);
        self.end = self.bytes.len();
        self.commands += commands;
        self.parts.push(commands);
    }

    /// Numbers of commands of the transactions that were [appended](Self::append_all).
    pub(crate) fn parts(&self) -> &[u32] {
        &self.parts
    }

    /// Number of commands to be applied.
    pub(crate) fn commands(&self) -> u32 {
        self.commands
    }

    /// Number of those that are not flushed.
    pub(crate) fn unsent(&self) -> u32 {
        self.commands - self.flushed
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.flushed > 0
    }

    /// Bytes of the commands that are not flushed.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.end - PREFIX_LEN
    }

    /// The commands that are not flushed, without MULTI.
    pub(crate) fn body(&self) -> &[u8] {
        self.bytes.get(PREFIX_LEN..self.end).unwrap_or_default()
    }

    /// The final write: the commands, the library's `own` ones, EXEC, and those `behind`.
    pub(crate) fn finish(&mut self, start: Prefix, own: &[u8], behind: &[&[u8]]) -> FinalWrite<'_> {
        let from = match start {
            Prefix::Unwatch => 0,
            Prefix::Multi => UNWATCH.len(),
            Prefix::Commands => PREFIX_LEN,
        };
        self.bytes.truncate(self.end);
        self.bytes.extend_from_slice(own);
        self.bytes.extend_from_slice(EXEC);
        let with_exec = self.bytes.len() - from;
        behind.iter().for_each(|bytes| self.bytes.extend_from_slice(bytes));
        FinalWrite { bytes: self.bytes.get(from..).unwrap_or_default(), with_exec }
    }

    /// UNWATCH, MULTI and the commands that are not flushed.
    pub(crate) fn with_prefix(&self) -> &[u8] {
        self.bytes.get(..self.end).unwrap_or_default()
    }

    /// Returns the whole transaction, from MULTI to EXEC.
    pub(crate) fn block(&self) -> Vec<u8> {
        let commands = self.bytes.get(UNWATCH.len()..self.end).unwrap_or_default();
        [commands, EXEC].concat()
    }

    /// Takes out the whole transaction, from MULTI to EXEC, and the number of bytes before it. The queue
    /// sends and names nothing until they are [put back](Self::put_back).
    #[cfg(feature = "tokio")]
    pub(crate) fn take_block(&mut self) -> (Vec<u8>, usize) {
        self.bytes.truncate(self.end);
        self.bytes.extend_from_slice(EXEC);
        (self.take_bytes(), UNWATCH.len())
    }

    /// Whether it has its bytes, so that they can be sent.
    pub(crate) fn has_its_bytes(&self) -> bool {
        self.bytes.len() >= self.end
    }

    /// Puts back what [`take_block`](Self::take_block) has returned. It may be empty, if the one that
    /// sends it has kept it: the block is then [not whole](Self::has_its_bytes), and not sent again.
    #[cfg(feature = "tokio")]
    pub(crate) fn put_back(&mut self, mut block: Vec<u8>) {
        debug_assert!(block.is_empty() || block.len() >= self.end, "the block is whole");
        block.truncate(self.end);
        self.bytes = block;
    }

    /// Call after the commands were sent and queued: keeps their names and drops their bytes.
    pub(crate) fn flushed(&mut self) {
        for command in CommandReader::new(self.bytes.get(PREFIX_LEN..self.end).unwrap_or_default())
        {
            let name = command.ok().and_then(|args| args.first().copied()).unwrap_or_default();
            let name = name.get(..name.len().min(u8::MAX.into())).unwrap_or_default();
            self.names.push(name.len() as u8);
            self.names.extend_from_slice(name);
        }
        self.flushed_bytes += self.pending_bytes();
        self.flushed = self.commands;
        self.end = PREFIX_LEN;
        self.bytes.truncate(self.end);
    }

    /// The transaction has failed: drops the commands that will not be sent.
    pub(crate) fn drop_pending(&mut self) {
        self.end = PREFIX_LEN;
        self.bytes.truncate(self.end);
    }

    /// The commands' names in order, flushed or not.
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

    /// The name of the command at `index`, flushed or not.
    pub(crate) fn name(&self, index: u32) -> Option<String> {
        self.names().nth(index as usize).map(display_name)
    }

    /// Identifiers of rolled back commands, by which [`Replies`](crate::Replies) numbers its
    /// values.
    pub(crate) fn take_dropped_ids(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.dropped_ids)
    }
}

/// Shows sizes only: the bytes are keys and values.
impl std::fmt::Debug for CommandQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandQueue")
            .field("transaction", &self.transaction)
            .field("commands", &self.commands)
            .field("flushed", &self.flushed)
            .field("pending_bytes", &self.pending_bytes())
            .field("savepoints", &self.savepoints.len())
            .finish_non_exhaustive()
    }
}
