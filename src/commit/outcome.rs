//! From the server's replies to `Committed` or `CommitError`, on one connection and in a batch.

use redis::Value;

use crate::commit::options::CommitOptions;
use crate::error::any::CommitError;
use crate::error::connection::ConnectionError;
use crate::protocol::exec::{RejectedCommand, Unproven};
use crate::protocol::queue::CommandQueue;
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::server_error::ServerError;
use crate::reply::failures;
use crate::reply::replies::Replies;
use crate::status::counters::Counters;

/// The outcome of a transaction that did not fail.
#[derive(Debug)]
pub(crate) enum Committed {
    Applied(Replies),
    Conflict,
}

pub(crate) fn count(counters: &Counters, committed: &Result<Committed, CommitError>) {
    match committed {
        Ok(Committed::Applied(_))
        | Err(
            CommitError::PartlyApplied { .. }
            | CommitError::NotReplicated { .. }
            | CommitError::KeyNotKept { .. },
        ) => {
            counters.commits.add();
        }
        Ok(Committed::Conflict) => counters.conflicts.add(),
        Err(CommitError::InDoubt(_)) => counters.in_doubt.add(),
        Err(_) => {}
    }
}

/// Describes replies that arrived and prove nothing.
pub(crate) fn unproven(doubt: &Unproven) -> ConnectionError {
    match &doubt.exec {
        Some(error) if !doubt.bare => ConnectionError::unproven(error.clone()),
        _ => ConnectionError::unexpected("EXEC's reply does not fit the transaction"),
    }
}

/// Splits the replies into those to the user's commands and those to this crate's own after them.
pub(crate) fn split_internal(
    queue: &CommandQueue,
    mut values: Vec<Value>,
) -> (Vec<Value>, Vec<Value>) {
    let internal = values.split_off(values.len().min(queue.commands() as usize));
    (values, internal)
}

/// Returns the outcome of an applied transaction. `failed`: the error of one of this crate's own
/// commands.
pub(crate) fn applied(
    queue: &mut CommandQueue,
    values: Vec<Value>,
    options: &CommitOptions,
    acks: Option<Result<ReplicaAcks, ServerError>>,
    failed: Option<&Value>,
) -> Result<Replies, CommitError> {
    let (got, refused) = match acks {
        Some(Err(refused)) => {
            (ReplicaAcks::default(), Some(refused.with_full_text(queue.shows_full_text())))
        }
        Some(Ok(acks)) => (acks, None),
        None => (ReplicaAcks::default(), None),
    };
    let replies = replies(queue, values).with_acks(options.durability.map(|_| got));
    if let Some(failed) = failed {
        let error = match failed {
            Value::ServerError(error) => ServerError::from_reply(error, false),
            _ => ServerError::synthetic("ERR", "the reply to SET was not OK"),
        };
        return Err(CommitError::KeyNotKept { error, replies });
    }
    if replies.failures() > 0 {
        return Err(CommitError::PartlyApplied { replies });
    }
    match options.durability {
        Some(durability) if refused.is_some() || !durability.is_met_by(got) => {
            Err(CommitError::NotReplicated { wanted: durability.wanted(), got, refused, replies })
        }
        _ => Ok(replies),
    }
}

/// The outcome of an applied transaction whose replies could not be read. Its connection is closed,
/// so it is not known how many replicas have it.
pub(crate) fn unread(
    queue: &CommandQueue,
    options: &CommitOptions,
) -> Result<Replies, CommitError> {
    let replies = Replies::lost(queue.transaction());
    let Some(durability) = options.durability else { return Ok(replies) };
    let (wanted, got) = (durability.wanted(), ReplicaAcks::default());
    let replies = replies.with_acks(Some(got));
    Err(CommitError::NotReplicated { wanted, got, refused: None, replies })
}

/// MULTI was refused, and at least one command may have run by itself.
pub(crate) fn not_isolated(queue: &mut CommandQueue, values: Vec<Value>) -> CommitError {
    let (values, _) = split_internal(queue, values);
    CommitError::NotIsolated { replies: replies(queue, values) }
}

pub(crate) fn refused(queue: &CommandQueue, refusal: RejectedCommand) -> CommitError {
    let named = refusal.index.and_then(|index| Some((index as usize, queue.name(index)?)));
    let (index, command) = match named {
        Some((index, command)) => (Some(index), command),
        None if refusal.index.is_some() => (None, MARKER_SET.to_owned()),
        None => (None, refusal.word.to_owned()),
    };
    CommitError::rejected(index, command, &refusal.error.with_full_text(queue.shows_full_text()))
}

/// Name of this crate's own part of a transaction in an error.
pub(crate) const MARKER_SET: &str = "SET of the register";

pub(crate) fn replies(queue: &mut CommandQueue, values: Vec<Value>) -> Replies {
    let (failures, changed_nothing) =
        failures::failures(&values, queue.names(), queue.shows_full_text());
    let failed = !failures.is_empty();
    let replies = Replies::new(queue.transaction(), values, queue.take_dropped_ids(), failures);
    let replies = if failed { replies.with_names(queue.names()) } else { replies };
    replies.with_no_effect(changed_nothing)
}
