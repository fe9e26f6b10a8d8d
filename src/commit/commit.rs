//! Commits a transaction on one connection; each result is one row of the contract.
//!
//! No command is sent again after EXEC's last byte may have been sent, unless it is proven that
//! nothing was applied.

use std::sync::Arc;
use std::time::Instant;

use redis::Value;

use crate::commit::options::{CommitOptions, CommitPlan};
use crate::commit::outcome::{
    Committed, applied, count, not_isolated, refused, replies, split_internal, unproven, unread,
};
use crate::commit::prepare::prepare;
use crate::commit::send::{CommitReplies, ConnectionLost, exchange, send_queued};
use crate::error::any::CommitError;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::in_doubt::{CommitToken, InDoubt};
use crate::pool::checkout::Checkout;
use crate::protocol::connection_state::Taint;
use crate::protocol::exec::{RejectedCommand, Unproven, Verdict};
use crate::protocol::queue::CommandQueue;
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::server_error::ServerError;

/// Commits the commands of `queue`.
pub(crate) fn commit(
    checkout: &mut Checkout,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<Committed, CommitError> {
    let counted = commit_repeatedly(checkout, queue, plan);
    count(checkout.pool().counters(), &counted);
    counted
}

/// Maximum number of times that a transaction is sent if a watched key of its own changed. This is
/// a register or a lock. A register lives for an hour, and no other client writes it. Renewals and
/// other holders change a lock from time to time.
const MAX_ATTEMPTS: u32 = 4;

fn commit_repeatedly(
    checkout: &mut Checkout,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<Committed, CommitError> {
    // Nothing was queued and nothing was sent: there is nothing to commit. (If keys are watched,
    // EXEC is sent to find out whether they changed.)
    let idle = checkout.current().is_none_or(|connection| connection.state().is_clean());
    if queue.commands() == 0 && idle && !plan.watched && plan.options.idempotency_key.is_none() {
        return Ok(Committed::Applied(replies(queue, Vec::new())));
    }
    for _ in 0..MAX_ATTEMPTS {
        prepare(checkout, queue, plan)?;
        match commit_once(checkout, queue, plan) {
            Err(Unapplied::InternalKeyChanged) if !queue.is_flushed() => {}
            Err(Unapplied::InternalKeyChanged) => break,
            Err(Unapplied::Failed(error)) => return Err(error),
            Ok(committed) => return Ok(committed),
        }
    }
    Err(CommitError::lost_before_exec(ConnectionError::unexpected(
        "its own register, or the lock it is fenced by, was changed every time",
    )))
}

enum Unapplied {
    /// The changed key is one that the connection watches for itself.
    InternalKeyChanged,
    Failed(CommitError),
}

impl From<CommitError> for Unapplied {
    fn from(error: CommitError) -> Self {
        Self::Failed(error)
    }
}

fn commit_once(
    checkout: &mut Checkout,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<Committed, Unapplied> {
    let (settings, needs_asking) =
        (Arc::clone(checkout.pool().settings()), checkout.needs_asking());
    let Some(connection) = checkout.current() else {
        return Err(CommitError::from(CheckoutError::Closed).into());
    };
    let sent = plan.options.resolver.as_ref().map(|_| Instant::now());
    let (verdict, acks) = match exchange(connection, queue, plan.options, &settings, needs_asking) {
        Ok(CommitReplies { collector, acks }) => {
            connection.mark_alive();
            (collector.verdict(), acks)
        }
        Err(ConnectionLost::BeforeExec(cause)) => {
            checkout.on_lost(&cause);
            return Err(CommitError::lost_before_exec(cause).into());
        }
        Err(ConnectionLost::AfterExec(cause, collector)) => match collector.verdict() {
            Verdict::Unknown(doubt) => {
                let in_doubt = in_doubt(checkout, plan.options, cause.clone(), &doubt);
                checkout.on_lost(&cause);
                return Err(CommitError::InDoubt(in_doubt).into());
            }
            known => {
                checkout.on_lost(&cause);
                (known, None)
            }
        },
    };
    classify(checkout, queue, plan, verdict, acks, sent)
}

fn in_doubt(
    checkout: &mut Checkout,
    options: &CommitOptions,
    cause: ConnectionError,
    doubt: &Unproven,
) -> InDoubt {
    let endpoint = checkout.pool().endpoint().clone();
    // The register is written last. It proves nothing about commands that ran one by one.
    let resolver = options.resolver.as_ref().filter(|_| !doubt.bare);
    let in_doubt =
        match (resolver, checkout.current().and_then(|connection| connection.known_marker())) {
            (Some(resolver), Some(marker)) => {
                let (register, number) = (marker.register(), marker.number());
                let mut token =
                    CommitToken::new(register, number, endpoint.db(), &endpoint.address());
                token.slot = options.cluster.slot;
                InDoubt::resolvable(cause, token, Arc::clone(resolver))
            }
            _ => InDoubt::new(cause),
        };
    in_doubt.incomplete(doubt.incomplete)
}

fn classify(
    checkout: &mut Checkout,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
    verdict: Verdict,
    acks: Option<Result<ReplicaAcks, ServerError>>,
    sent: Option<Instant>,
) -> Result<Committed, Unapplied> {
    let error = match verdict {
        Verdict::Applied(values) => {
            let (values, internal) = split_internal(queue, values);
            if let Some(connection) = checkout.current() {
                connection.mark_written();
                if plan.options.resolver.is_some() {
                    connection.set_marker_written(sent);
                }
            }
            let touched = usize::from(plan.options.cluster.exists.is_some());
            let failed = internal.iter().skip(touched).find(|value| !matches!(value, Value::Okay));
            if failed.is_some() {
                checkout.taint(Taint::LeftDirty);
            }
            return Ok(Committed::Applied(applied(queue, values, plan.options, acks, failed)?));
        }
        Verdict::RepliesLost => return Ok(Committed::Applied(unread(queue, plan.options)?)),
        Verdict::Nil if plan.watched => return Ok(Committed::Conflict),
        Verdict::Nil if plan.options.resolver.is_some() || plan.options.lock_check.is_some() => {
            if let Some(connection) = checkout.current() {
                connection.set_marker_written(None);
            }
            return Err(Unapplied::InternalKeyChanged);
        }
        // The connection watched a key that no scope watched.
        Verdict::Nil => {
            checkout.taint(Taint::LeftDirty);
            CommitError::lost_before_exec(ConnectionError::unexpected(
                "a conflict on a connection that watched nothing",
            ))
        }
        Verdict::Rejected(refusal) => rejected(checkout, queue, refusal),
        Verdict::WithoutMulti(bare) => match bare.outcome(queue.names()) {
            Ok(refusal) => rejected(checkout, queue, refusal),
            Err(values) => not_isolated(queue, values),
        },
        Verdict::Unknown(doubt) => {
            let in_doubt = in_doubt(checkout, plan.options, unproven(&doubt), &doubt);
            // After a reply that does not fit, the next one may belong to another connection too.
            checkout.taint(Taint::Protocol);
            if let Some(error) = &doubt.exec {
                checkout.on_server_error(error.code());
            }
            CommitError::InDoubt(in_doubt)
        }
    };
    Err(error.into())
}

fn rejected(
    checkout: &mut Checkout,
    queue: &CommandQueue,
    refusal: RejectedCommand,
) -> CommitError {
    checkout.on_server_error(refusal.error.code());
    refused(queue, refusal)
}

/// Sends MULTI and awaits its reply, for a scope that begins with it.
pub(crate) fn begin(
    checkout: &mut Checkout,
    queue: &CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<(), CommitError> {
    prepare(checkout, queue, CommitPlan { options: &plan.options.immediately(), ..plan })
}

/// Sends the queued commands of a large transaction and reads that they were queued.
pub(crate) fn flush(
    checkout: &mut Checkout,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<(), CommitError> {
    begin(checkout, queue, plan)?;
    let deadline = checkout.response_deadline();
    let Some(connection) = checkout.current() else {
        return Err(CheckoutError::Closed.into());
    };
    let (collector, answered) = send_queued(connection, queue, deadline);
    let refusal = collector.refusal().cloned();
    if let Err(cause) = answered {
        checkout.on_lost(&cause);
        // A command that was refused before would be refused again.
        return Err(match refusal {
            Some(refusal) => rejected(checkout, queue, refusal),
            None => CommitError::lost_before_exec(cause),
        });
    }
    if let Some(refusal) = refusal {
        return Err(rejected(checkout, queue, refusal));
    }
    queue.flushed();
    Ok(())
}
