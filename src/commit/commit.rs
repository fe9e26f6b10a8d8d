//! Commits a transaction on one connection; each result is one row of the contract.
//!
//! No command is sent again after EXEC's last byte may have been sent, unless it is proven that
//! nothing was applied.

use std::sync::Arc;
use std::time::Instant;

use crate::commit::last_write::{Exchanged, LastReplies, LastWrite};
use crate::commit::outcome::{Committed, classify, refused, replies, unproven};
use crate::commit::plan::CommitPlan;
use crate::commit::prepare;
use crate::connection::connection::Interruption;
use crate::connection::endpoint::Endpoint;
use crate::connection::wire::Wire;
use crate::error::any::CommitError;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::in_doubt::{CommitToken, InDoubt};
use crate::error::token_cell::TOKEN_WAS_READ;
use crate::pool::early_watch::EarlyWatch;
use crate::pool::line::Line;
use crate::protocol::connection_state::{CloseReason, Expect};
use crate::protocol::exec::{Collector, Unproven, Verdict};
use crate::protocol::queue::{CommandQueue, FinalWrite};
use crate::sync::boxed::boxed;

/// Maximum number of times that a transaction is sent if a watched key of its own changed. This is
/// a register or a lock. A register lives for an hour, and no other client writes it. Renewals and
/// other holders change a lock from time to time.
pub(crate) const MAX_ATTEMPTS: u32 = 4;

/// Commits the commands of `queue`. Dropped before its end, it may have sent EXEC, and the connection
/// awaits replies.
pub(crate) async fn commit<L: Line>(
    line: &mut L,
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    checkout_deadline: Instant,
) -> Result<Committed, CommitError> {
    // Nothing was queued and nothing was sent: there is nothing to commit. (If keys are watched,
    // EXEC is sent to find out whether they changed.)
    let idle = line.current().is_none_or(|connection| connection.state().is_clean());
    if queue.commands() == 0 && idle && !plan.watched && plan.idempotency_key.is_none() {
        return Ok(Committed::Applied(replies(queue, Vec::new())));
    }
    for _ in 0..MAX_ATTEMPTS {
        if let Some(preparing) = prepare::begin(line, queue, plan, checkout_deadline)? {
            boxed(preparing.finish(line)).await?;
        }
        let (settings, needs_asking) = (Arc::clone(line.context().settings()), line.needs_asking());
        let endpoint = plan.token.as_ref().map(|_| Box::new(line.context().endpoint().clone()));
        let ahead = line.current().and_then(|connection| connection.sent_ahead());
        let watch = match plan.can_carry() && !needs_asking {
            true if ahead.is_none() => line.take_early_watch(plan.armed(queue.binding())),
            _ => None,
        };
        let Some(connection) = line.current() else { return Err(CheckoutError::Closed.into()) };
        let sent = plan.resolver.as_ref().map(|_| ahead.unwrap_or_else(Instant::now));
        let mut token = None;
        let exchanged = match LastWrite::new(connection, queue, plan, &settings, needs_asking) {
            Ok(last) => {
                let behind = watch.as_deref().map(EarlyWatch::expected);
                if !queue.parts().is_empty() {
                    let (arrays, replies) = last.shared_replies(queue.parts());
                    connection.wire_mut().share_replies(arrays, replies);
                }
                let mut replies = LastReplies::new(&last, queue, plan);
                if let Some(endpoint) = endpoint {
                    token = give_token(&last, queue, plan, &endpoint);
                }
                let early_watch = watch.as_deref().map_or(&[][..], EarlyWatch::bytes);
                let FinalWrite { bytes, with_exec } =
                    queue.finish(last.start, &last.internal, &[&last.after_exec, early_watch]);
                let with_exec = (with_exec < bytes.len()).then_some(with_exec);
                let mut take = |expect, reply| replies.take(expect, reply);
                let behind = behind.as_ref().map_or(&[][..], |behind| behind);
                let (expected, deadline) = (&last.expected, last.deadline);
                let mut sent =
                    connection.exchange_all(bytes, expected, behind, deadline, &mut take).await;
                if sent.is_ok() && watch.is_some() && !replies.have_array() {
                    sent = boxed(connection.wait_for_early_watch(deadline)).await;
                }
                if watch.is_some()
                    && plan.resolver.is_some()
                    && !connection.state().watches_marker()
                {
                    // WATCH of the register was refused, so the WATCH behind it proves nothing.
                    connection.taint(CloseReason::LeftDirty);
                }
                replies.exchanged(sent, with_exec)
            }
            Err(cause) => Err(cause),
        };
        match outcome_of(line, queue, plan, exchanged, (sent, token))? {
            // The changed key is one that the connection watches for itself.
            Committed::Conflict if !plan.watched && !plan.may_send_again() => {
                return Err(token_was_read());
            }
            Committed::Conflict if !plan.watched => {
                // Its replies are due on this connection, which is needed again.
                line.leave_early_watch();
                if queue.is_flushed() {
                    break;
                }
            }
            committed => return Ok(committed),
        }
    }
    Err(always_changed())
}

/// Sets the cell of a transaction whose token is given out, before its bytes leave.
#[cold]
fn give_token(
    last: &LastWrite,
    queue: &CommandQueue,
    plan: &CommitPlan,
    endpoint: &Endpoint,
) -> Option<Box<CommitToken>> {
    let (register, number) = last.named.as_deref()?;
    let token = new_token(register, *number, endpoint, queue.binding().slot());
    plan.token.as_ref()?.fill(&token, || true);
    Some(Box::new(token))
}

/// The error after [`MAX_ATTEMPTS`].
#[cold]
pub(crate) fn always_changed() -> CommitError {
    CommitError::lost_before_exec(ConnectionError::unexpected(
        "its own register, or the lock it is fenced by, was changed every time",
    ))
}

/// The error of a block that would be sent again with another token, if the user has read the first one.
#[cold]
pub(crate) fn token_was_read() -> CommitError {
    CommitError::lost_before_exec(ConnectionError::unexpected(TOKEN_WAS_READ))
}

/// Records what the last write's replies show, and returns the outcome that they mean.
fn outcome_of<L: Line>(
    line: &mut L,
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    exchanged: Result<Exchanged, ConnectionError>,
    (sent, token): (Option<Instant>, Option<Box<CommitToken>>),
) -> Result<Committed, CommitError> {
    let Exchanged { verdict, acks, register_refused, lost } = exchanged.map_err(|cause| {
        line.on_lost(&cause);
        CommitError::lost_before_exec(cause)
    })?;
    if lost.is_none() {
        // A register that was not written proves nothing about the next transaction.
        record_verdict(line, plan, &verdict, sent.filter(|_| !register_refused));
    }
    let slot = queue.binding().slot();
    let committed = classify(queue, plan, verdict, acks, |doubt| {
        let cause = lost.clone().unwrap_or_else(|| unproven(doubt));
        in_doubt(line, plan, (slot, token), cause, doubt)
    });
    if let Some(cause) = &lost {
        line.on_lost(cause);
    }
    match &committed {
        Err(CommitError::Rejected { code, .. }) => line.on_server_error(code),
        Err(CommitError::KeyNotKept { .. }) => line.taint(CloseReason::LeftDirty),
        _ => {}
    }
    committed
}

/// Records on the connection what the transaction's replies show of its state.
fn record_verdict<L: Line>(
    line: &mut L,
    plan: &CommitPlan,
    verdict: &Verdict,
    sent: Option<Instant>,
) {
    let Some(connection) = line.current() else { return };
    connection.mark_alive();
    // Another register was written behind EXEC, whatever became of the block.
    let begins_register = plan.resolver.is_some() && plan.token.is_some();
    if begins_register && !matches!(verdict, Verdict::Unknown(_)) {
        connection.set_marker_written(sent);
    }
    match verdict {
        Verdict::Applied(_) => {
            connection.mark_written();
            if plan.resolver.is_some() {
                connection.set_marker_written(sent);
            }
        }
        Verdict::Nil if plan.watched || begins_register => {}
        Verdict::Nil if plan.watches_internal_key() => connection.set_marker_written(None),
        // The connection watched a key that no scope watched.
        Verdict::Nil => connection.taint(CloseReason::LeftDirty),
        Verdict::Unknown(doubt) => {
            // After a reply that does not fit, the next one may belong to another connection too.
            connection.taint(CloseReason::Protocol);
            if let Some(error) = &doubt.exec {
                line.on_server_error(error.code());
            }
        }
        Verdict::RepliesLost | Verdict::Rejected(_) | Verdict::WithoutMulti(_) => {}
    }
}

fn in_doubt<L: Line>(
    line: &mut L,
    plan: &CommitPlan,
    (slot, given): (Option<u16>, Option<Box<CommitToken>>),
    cause: ConnectionError,
    doubt: &Unproven,
) -> InDoubt {
    let Some(resolver) = plan.resolver_of(doubt) else { return InDoubt::new(cause) };
    let endpoint = line.context().endpoint().clone();
    let marker = line.current().and_then(|connection| connection.known_marker());
    let token = given.map(|given| *given).or_else(|| {
        marker.map(|marker| new_token(marker.register(), marker.number(), &endpoint, slot))
    });
    match token {
        Some(token) => InDoubt::resolvable(cause, token, Arc::clone(resolver)),
        None => InDoubt::new(cause),
    }
}

fn new_token(register: &str, number: u64, endpoint: &Endpoint, slot: Option<u16>) -> CommitToken {
    let mut token = CommitToken::new(register, number, endpoint.db(), &endpoint.address());
    token.slot = slot;
    token
}

/// Sends the queued commands of a large transaction and reads that they were queued. Dropped before
/// its end, it leaves a connection that awaits replies.
pub(crate) async fn flush<L: Line>(
    line: &mut L,
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    checkout_deadline: Instant,
) -> Result<(), CommitError> {
    let immediate = CommitPlan { immediate: true, ..plan.clone() };
    prepare::prepare(line, queue, &immediate, checkout_deadline).await?;
    let deadline = line.response_deadline();
    let Some(connection) = line.current() else {
        return Err(CheckoutError::Closed.into());
    };
    let (commands, unsent) = (queue.commands(), queue.unsent());
    let mut collector = Collector::new(commands, commands - unsent);
    let expected = [(Expect::Queued, unsent)];
    let mut take = |expect, reply| collector.take(expect, reply);
    let answered = connection.exchange(queue.body(), &expected, deadline, &mut take).await;
    let refusal = collector.into_refusal();
    match answered {
        Ok(()) => connection.mark_alive(),
        Err(Interruption { cause, .. }) => {
            line.on_lost(&cause);
            // A command that was refused before would be refused again.
            if refusal.is_none() {
                return Err(CommitError::lost_before_exec(cause));
            }
        }
    }
    if let Some(refusal) = refusal {
        line.on_server_error(refusal.error.code());
        return Err(refused(queue, refusal));
    }
    queue.flushed();
    Ok(())
}
