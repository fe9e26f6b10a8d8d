//! A whole transaction in one request, as redis-rs's `pipe().atomic()` sends it. It is run as a block of the
//! transactional pool, with the outcomes of a block.

use redis::{Cmd, Value};

use crate::error::any::{CommitError, Error};
use crate::pooled::fan_out::Responses;
use crate::pooled::request::Request;
use crate::pooled::tag_errors::{self, CallKind};
use crate::protocol::command::reader::CommandReader;
use crate::reply::replies::Replies;
use crate::transaction::block::Block;
use crate::transaction::commands::queue_commands::QueueCommands;
use crate::transaction::resolve::Resolve;

/// The request of a whole transaction.
pub(crate) struct AtomicRequest<'b> {
    /// The commands between MULTI and EXEC.
    body: &'b [u8],
    /// Number of these.
    commands: usize,
}

impl<'b> AtomicRequest<'b> {
    /// `None`: the request is not one transaction, from MULTI to EXEC. `replies`: the number that it asks
    /// for, and skips.
    pub(crate) fn find(bytes: &'b [u8], replies: usize) -> Option<Self> {
        let is =
            |args: &[&[u8]], name: &[u8]| matches!(args, [only] if only.eq_ignore_ascii_case(name));
        let mut reader = CommandReader::new(bytes);
        if !is(&reader.next()?.ok()?, b"MULTI") {
            return None;
        }
        let begin = reader.rest();
        let (mut commands, mut last, mut from_last) = (0, Vec::new(), begin);
        while !reader.rest().is_empty() {
            from_last = reader.rest();
            last = reader.next()?.ok()?;
            commands += 1;
        }
        // MULTI is not counted yet.
        if !is(&last, b"EXEC") || commands + 1 != replies {
            return None;
        }
        let body = begin.get(..begin.len() - from_last.len())?;
        Some(Self { body, commands: commands - 1 })
    }

    /// The error of a handle that reads from replicas.
    pub(crate) fn refused_by_replicas() -> Error {
        let hint = "this handle reads from replicas: use SessionManager::pooled";
        Error::Refused { command: "MULTI".to_owned(), hint }
    }

    /// Queues the commands.
    pub(crate) fn queue(&self, tx: &mut Block) -> EachReply {
        for args in CommandReader::new(self.body).flatten() {
            let mut cmd = Cmd::with_capacity(args.len(), args.iter().map(|arg| arg.len()).sum());
            for arg in args {
                cmd.arg(arg);
            }
            tx.queue::<Value>(cmd);
        }
        EachReply
    }

    /// Returns the replies to the request's commands after the first `offset` ones, as the server sends
    /// them. `full`: errors show the server's own texts.
    pub(crate) fn replies(
        &self,
        block: Result<Vec<Value>, Error>,
        offset: usize,
        full: bool,
    ) -> Result<Vec<Value>, Error> {
        let values = match block {
            Ok(values) => values,
            // redis-rs makes its error of the failed commands, with their effect.
            Err(Error::Commit(CommitError::PartlyApplied { replies })) => values_of(&replies)?,
            Err(error) => return Err(error),
        };
        let request = Request::of_block(self.body);
        let mut sent = Responses { replies: values, in_part: Vec::new() };
        tag_errors::tag_errors(&request, &mut sent, (self.body, 0), CallKind::Pipeline, full);
        let queued = || Value::SimpleString("QUEUED".to_owned());
        let mut replies = vec![Value::Okay];
        replies.extend(std::iter::repeat_with(queued).take(self.commands));
        replies.push(Value::Array(sent.replies));
        replies.drain(..offset.min(replies.len()));
        Ok(replies)
    }
}

/// The replies to all commands of a block.
pub(crate) struct EachReply;

impl Resolve for EachReply {
    type Output = Vec<Value>;

    fn resolve(self, replies: &Replies) -> Result<Vec<Value>, Error> {
        values_of(replies)
    }
}

fn values_of(replies: &Replies) -> Result<Vec<Value>, Error> {
    if replies.is_empty() {
        // Either there was no command, or the replies are lost.
        return match replies.value_at(0) {
            Err(error @ crate::reply::error::ReplyError::Lost) => Err(error.into()),
            _ => Ok(Vec::new()),
        };
    }
    (0..replies.len()).map(|index| Ok(replies.value_at(index)?.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_found_only_from_multi_to_exec() {
        let found = |lines: &[&str], replies: usize| {
            let mut bytes = Vec::new();
            for line in lines {
                let mut cmd = Cmd::new();
                line.split(' ').for_each(|arg| {
                    cmd.arg(arg);
                });
                bytes.extend(cmd.get_packed_command());
            }
            let found = AtomicRequest::find(&bytes, replies)?;
            Some((found.commands, CommandReader::new(found.body).count()))
        };
        assert_eq!(found(&["MULTI", "SET a 1", "GET a", "EXEC"][..], 4), Some((2, 2)));
        assert_eq!(found(&["multi", "exec"][..], 2), Some((0, 0)));
        for (lines, replies) in [
            (&["MULTI", "SET a 1", "EXEC"][..], 2),
            (&["MULTI", "SET a 1"][..], 2),
            (&["SET a 1", "EXEC"][..], 2),
            (&["MULTI x", "EXEC"][..], 2),
            (&["MULTI", "EXEC x"][..], 2),
            (&["MULTI"][..], 1),
            (&["GET a", "MULTI", "EXEC"][..], 3),
        ] {
            assert_eq!(found(lines, replies), None, "{lines:?}");
        }
        assert!(AtomicRequest::find(b"*1\r\n$5\r\nMULTI\r\n*1\r\n$4\r\nEX", 2).is_none());
        assert!(AtomicRequest::find(b"", 0).is_none());
    }
}
