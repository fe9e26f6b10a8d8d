//! From the server's replies to `Committed` or `CommitError`, on one connection and in a batch.

use redis::Value;

use crate::commit::plan::CommitPlan;
use crate::error::any::CommitError;
use crate::error::connection::ConnectionError;
use crate::error::in_doubt::InDoubt;
use crate::protocol::exec::{RejectedCommand, Unproven, Verdict};
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

/// Returns the outcome that a verdict means; `in_doubt` is the error of one that proves nothing.
pub(crate) fn classify(
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    verdict: Verdict,
    acks: Option<Result<ReplicaAcks, ServerError>>,
    in_doubt: impl FnOnce(&Unproven) -> InDoubt,
) -> Result<Committed, CommitError> {
    match verdict {
        Verdict::Applied(values) => applied(queue, values, plan, acks).map(Committed::Applied),
        Verdict::RepliesLost => unread(queue, plan).map(Committed::Applied),
        Verdict::Nil if plan.watched || plan.watches_internal_key() => Ok(Committed::Conflict),
        Verdict::Nil => Err(CommitError::lost_before_exec(ConnectionError::unexpected(
            "a conflict on a connection that watched nothing",
        ))),
        Verdict::Rejected(refusal) => Err(refused(queue, refusal)),
        Verdict::WithoutMulti(bare) => Err(match bare.outcome(queue.names()) {
            Ok(refusal) => refused(queue, refusal),
            // At least one command may have run by itself.
            Err(mut values) => {
                values.truncate(queue.commands() as usize);
                CommitError::NotIsolated { replies: replies(queue, values) }
            }
        }),
        Verdict::Unknown(doubt) => {
            Err(CommitError::InDoubt(in_doubt(&doubt).incomplete(doubt.incomplete)))
        }
    }
}

/// Returns the replies to a transaction that was applied, if no command of it failed. Its plan asks for nothing
/// beyond its commands and the register. Otherwise returns the values.
#[cfg(feature = "tokio")]
pub(crate) fn succeeded(
    queue: &mut CommandQueue,
    mut values: Vec<Value>,
) -> Result<Replies, Vec<Value>> {
    let commands = queue.commands() as usize;
    // The replies to this crate's own commands follow those to the user's.
    let succeeded = values.split_at_checked(commands).is_some_and(|(own, internal)| {
        !own.iter().any(|value| matches!(value, Value::ServerError(_)))
            && internal.iter().all(|value| matches!(value, Value::Okay))
    });
    if !succeeded {
        return Err(values);
    }
    values.truncate(commands);
    Ok(Replies::new(queue.transaction(), values, queue.take_dropped_ids(), Vec::new()))
}

/// Returns the outcome of an applied transaction.
fn applied(
    queue: &mut CommandQueue,
    mut values: Vec<Value>,
    plan: &CommitPlan,
    acks: Option<Result<ReplicaAcks, ServerError>>,
) -> Result<Replies, CommitError> {
    // The replies to this crate's own commands follow those to the user's.
    let internal = values.split_off(values.len().min(queue.commands() as usize));
    let touched = usize::from(plan.exists.is_some());
    let key = plan.idempotency_key.as_ref().and(internal.get(touched));
    let kept_key = matches!(key, Some(Value::Okay));
    let failed = internal.iter().skip(touched).find(|value| !matches!(value, Value::Okay));
    let (got, refused) = match acks.transpose() {
        Ok(acks) => (acks.unwrap_or_default(), None),
        Err(refused) => {
            (ReplicaAcks::default(), Some(refused.with_full_text(queue.shows_full_text())))
        }
    };
    let replies = replies(queue, values).with_acks(plan.durability.map(|_| got));
    let replies = replies.with_kept_key(kept_key);
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
    match plan.durability {
        Some(durability) if refused.is_some() || !durability.is_met_by(got) => {
            Err(CommitError::NotReplicated { wanted: durability.wanted(), got, refused, replies })
        }
        _ => Ok(replies),
    }
}

/// The outcome of an applied transaction whose replies could not be read. Its connection is closed,
/// so it is not known how many replicas have it.
fn unread(queue: &CommandQueue, plan: &CommitPlan) -> Result<Replies, CommitError> {
    let replies = Replies::lost(queue.transaction());
    let Some(durability) = plan.durability else { return Ok(replies) };
    let (wanted, got) = (durability.wanted(), ReplicaAcks::default());
    let replies = replies.with_acks(Some(got));
    Err(CommitError::NotReplicated { wanted, got, refused: None, replies })
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
