//! Did it happen? The forms of a commit, each ending in one row of the contract.
//!
//! Never: the user's closure. Never: a command re-sent once EXEC's last byte may have left, unless
//! it is proven that nothing was applied.

pub(crate) mod batch;
pub(crate) mod cleanup;
pub(crate) mod lock_check;
pub(crate) mod prepare;
pub(crate) mod resolve;
pub(crate) mod send;

use std::sync::Arc;
use std::time::Instant;

use redis::Value;

use crate::commit::lock_check::LockCheck;
use crate::commit::prepare::prepare;
use crate::commit::send::{CommitReplies, ConnectionLost, exchange, send_queued};
use crate::error::any::CommitError;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::in_doubt::{CommitToken, InDoubt, ResolveCommit};
use crate::pool::checkout::Lease;
use crate::protocol::cluster::slot;
use crate::protocol::connection_state::Taint;
use crate::protocol::exec::{RejectedCommand, Unproven, Verdict};
use crate::protocol::idempotency_key::IdempotencyKey;
use crate::protocol::queue::CommandQueue;
use crate::protocol::replication::{Durability, ReplicaAcks};
use crate::protocol::server_error::ServerError;
use crate::reply::failures;
use crate::reply::replies::Replies;
use crate::status::Counters;

/// What a transaction asks of its commit.
#[derive(Clone, Default)]
pub(crate) struct CommitOptions {
    /// MULTI is answered before any command leaves, however lately the link was heard of.
    pub(crate) immediate: bool,
    /// A lost answer can be asked for afterwards: here.
    pub(crate) resolver: Option<Arc<dyn ResolveCommit>>,
    /// At most one transaction with this key is ever applied.
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    /// It is applied only while this lock is held.
    pub(crate) lock_check: Option<LockCheck>,
    pub(crate) durability: Option<Durability>,
    /// It may travel with others.
    pub(crate) grouped: bool,
    /// In a cluster: where its keys are.
    pub(crate) cluster: ClusterKeys,
}

impl CommitOptions {
    /// The server answered that the lock is lost: its guard is, from now on.
    fn lock_lost(&self) -> CommitError {
        if let Some(lock_check) = &self.lock_check {
            lock_check.mark_lost();
        }
        CommitError::LockLost
    }
}

/// Where a transaction's keys are, in a cluster.
#[derive(Clone, Default)]
pub(crate) struct ClusterKeys {
    pub(crate) slot: Option<u16>,
    /// EXISTS of what is watched. A slot that is on its way has two masters, and one of them does
    /// not hear of a watched key that is made on the other; so EXEC is to need it.
    pub(crate) exists: Option<Arc<[u8]>>,
}

impl ClusterKeys {
    /// The hash tag of keys of ours that must be beside the caller's.
    fn tag(&self) -> Option<u32> {
        self.slot.and_then(slot::tag_of)
    }
}

impl CommitOptions {
    /// Whether nothing is asked for that concerns the link as such.
    pub(crate) fn is_batchable(&self) -> bool {
        let plain =
            self.resolver.is_none() && self.lock_check.is_none() && self.durability.is_none();
        self.grouped && !self.immediate && plain
    }
}

/// How a transaction is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitPlan<'t> {
    pub(crate) options: &'t CommitOptions,
    /// The link must still watch what it was told to: a fresh one would protect nothing.
    pub(crate) watched: bool,
    /// By when a dead link must have been replaced.
    pub(crate) checkout_deadline: Instant,
}

/// What became of a transaction that did not fail.
#[derive(Debug)]
pub(crate) enum Committed {
    Applied(Replies),
    Conflict,
}

/// Commits what `buffer` holds.
pub(crate) fn commit(
    checkout: &mut Lease,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<Committed, CommitError> {
    let counted = commit_repeatedly(checkout, queue, plan);
    count(checkout.pool().counters(), &counted);
    counted
}

fn count(counters: &Counters, committed: &Result<Committed, CommitError>) {
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

/// How often a transaction is sent under which a key was changed that it watches for itself: a
/// register, which lives for an hour and which nobody else writes to, or a lock, which renewals and
/// other holders touch from time to time.
const MAX_ATTEMPTS: u32 = 4;

fn commit_repeatedly(
    checkout: &mut Lease,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<Committed, CommitError> {
    // Nothing was queued and nothing was asked of the server: there is nothing to commit. (Where
    // keys are watched the server is asked whether they changed.)
    let idle = checkout.current().is_none_or(|link| link.state().is_clean());
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
    /// What changed was a key that the link watches for itself.
    InternalKeyChanged,
    Failed(CommitError),
}

impl From<CommitError> for Unapplied {
    fn from(error: CommitError) -> Self {
        Self::Failed(error)
    }
}

fn commit_once(
    checkout: &mut Lease,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<Committed, Unapplied> {
    let (settings, asks) = (Arc::clone(checkout.pool().settings()), checkout.asks());
    let Some(link) = checkout.current() else {
        return Err(CommitError::from(CheckoutError::Closed).into());
    };
    let sent = plan.options.resolver.as_ref().map(|_| Instant::now());
    let (verdict, acks) = match exchange(link, queue, plan.options, &settings, asks) {
        Ok(CommitReplies { collector, acks }) => {
            link.has_answered();
            (collector.verdict(), acks)
        }
        Err(ConnectionLost::BeforeExec(cause)) => {
            checkout.found_dead(&cause);
            return Err(CommitError::lost_before_exec(cause).into());
        }
        Err(ConnectionLost::AfterExec(cause, collector)) => match collector.verdict() {
            Verdict::Unknown(doubt) => {
                let in_doubt = in_doubt(checkout, plan.options, cause.clone(), &doubt);
                checkout.found_dead(&cause);
                return Err(CommitError::InDoubt(in_doubt).into());
            }
            known => {
                checkout.found_dead(&cause);
                (known, None)
            }
        },
    };
    classify(checkout, queue, plan, verdict, acks, sent)
}

fn in_doubt(
    checkout: &mut Lease,
    options: &CommitOptions,
    cause: ConnectionError,
    doubt: &Unproven,
) -> InDoubt {
    let endpoint = checkout.pool().endpoint().clone();
    // The register is written last. Of commands that ran one by one it proves nothing.
    let resolver = options.resolver.as_ref().filter(|_| !doubt.bare);
    let in_doubt = match (resolver, checkout.current().and_then(|link| link.known_marker())) {
        (Some(resolver), Some(marker)) => {
            let (register, number) = (marker.register(), marker.number());
            let mut token = CommitToken::new(register, number, endpoint.db(), &endpoint.address());
            token.slot = options.cluster.slot;
            InDoubt::resolvable(cause, token, Arc::clone(resolver))
        }
        _ => InDoubt::new(cause),
    };
    in_doubt.incomplete(doubt.incomplete)
}

/// What a transaction's replies are that came and prove nothing.
fn unproven(doubt: &Unproven) -> ConnectionError {
    match &doubt.exec {
        Some(error) if !doubt.bare => ConnectionError::unproven(error.clone()),
        _ => ConnectionError::unexpected("EXEC's reply does not fit the transaction"),
    }
}

fn classify(
    checkout: &mut Lease,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
    verdict: Verdict,
    acks: Option<Result<ReplicaAcks, ServerError>>,
    sent: Option<Instant>,
) -> Result<Committed, Unapplied> {
    let error = match verdict {
        Verdict::Applied(values) => {
            let (values, internal) = split_internal(queue, values);
            if let Some(link) = checkout.current() {
                link.wrote();
                if plan.options.resolver.is_some() {
                    link.registered(sent);
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
            if let Some(link) = checkout.current() {
                link.registered(None);
            }
            return Err(Unapplied::InternalKeyChanged);
        }
        // The link watched something that nobody here asked for.
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
            // Whichever reply does not fit, the next one may not be this connection's either.
            checkout.taint(Taint::Protocol);
            if let Some(error) = &doubt.exec {
                checkout.heed(error.code());
            }
            CommitError::InDoubt(in_doubt)
        }
    };
    Err(error.into())
}

/// What the user's commands answered, and what ours behind them did.
fn split_internal(queue: &CommandQueue, mut values: Vec<Value>) -> (Vec<Value>, Vec<Value>) {
    let internal = values.split_off(values.len().min(queue.commands() as usize));
    (values, internal)
}

/// `failed`: the answer of a command of ours behind the user's, if one failed.
fn applied(
    queue: &mut CommandQueue,
    values: Vec<Value>,
    options: &CommitOptions,
    acks: Option<Result<ReplicaAcks, ServerError>>,
    failed: Option<&Value>,
) -> Result<Replies, CommitError> {
    let (got, refused) = match acks {
        Some(Err(refused)) => {
            (ReplicaAcks::default(), Some(refused.in_full(queue.shows_messages())))
        }
        Some(Ok(acks)) => (acks, None),
        None => (ReplicaAcks::default(), None),
    };
    let replies = replies(queue, values).acknowledged_by(options.durability.map(|_| got));
    if let Some(failed) = failed {
        let error = match failed {
            Value::ServerError(error) => ServerError::from_reply(error, false),
            _ => ServerError::own("ERR", "SET was not answered OK"),
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

/// The replies of an applied transaction that could not be read. Their connection is closed, so it is
/// not known how far the transaction has spread.
fn unread(queue: &CommandQueue, options: &CommitOptions) -> Result<Replies, CommitError> {
    let replies = Replies::lost(queue.transaction());
    let Some(durability) = options.durability else { return Ok(replies) };
    let (wanted, got) = (durability.wanted(), ReplicaAcks::default());
    let replies = replies.acknowledged_by(Some(got));
    Err(CommitError::NotReplicated { wanted, got, refused: None, replies })
}

/// MULTI was refused, and at least one command may have run by itself.
fn not_isolated(queue: &mut CommandQueue, values: Vec<Value>) -> CommitError {
    let (values, _) = split_internal(queue, values);
    CommitError::NotIsolated { replies: replies(queue, values) }
}

fn rejected(checkout: &mut Lease, queue: &CommandQueue, refusal: RejectedCommand) -> CommitError {
    checkout.heed(refusal.error.code());
    refused(queue, refusal)
}

fn refused(queue: &CommandQueue, refusal: RejectedCommand) -> CommitError {
    let named = refusal.index.and_then(|index| Some((index as usize, queue.name(index)?)));
    let (index, command) = match named {
        Some((index, command)) => (Some(index), command),
        None if refusal.index.is_some() => (None, MARKER_SET.to_owned()),
        None => (None, refusal.word.to_owned()),
    };
    CommitError::rejected(index, command, &refusal.error.in_full(queue.shows_messages()))
}

/// What our own part of a transaction is called in an error.
const MARKER_SET: &str = "SET of the register";

fn replies(queue: &mut CommandQueue, values: Vec<Value>) -> Replies {
    let (failures, changed_nothing) =
        failures::failures(&values, queue.names(), queue.shows_messages());
    let failed = !failures.is_empty();
    let replies = Replies::new(queue.transaction(), values, queue.take_dropped_ids(), failures);
    let replies = if failed { replies.named(queue.names()) } else { replies };
    replies.changing_nothing(changed_nothing)
}

/// MULTI, awaited, for a scope that begins with it.
pub(crate) fn begin(
    checkout: &mut Lease,
    queue: &CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<(), CommitError> {
    prepare(checkout, queue, CommitPlan { options: &plan.options.immediately(), ..plan })
}

/// Sends the waiting commands of a large transaction and reads that they were queued.
pub(crate) fn flush(
    checkout: &mut Lease,
    queue: &mut CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<(), CommitError> {
    begin(checkout, queue, plan)?;
    let deadline = checkout.response_deadline();
    let Some(link) = checkout.current() else {
        return Err(CheckoutError::Closed.into());
    };
    let (collector, answered) = send_queued(link, queue, deadline);
    let refusal = collector.refusal().cloned();
    if let Err(cause) = answered {
        checkout.found_dead(&cause);
        // What was refused before stays refused, and would be again.
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

impl CommitOptions {
    fn immediately(&self) -> Self {
        Self { immediate: true, ..self.clone() }
    }
}

impl std::fmt::Debug for CommitOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitOptions")
            .field("immediate", &self.immediate)
            .field("exactly_once", &self.resolver.is_some())
            .field("fenced", &self.lock_check.is_some())
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

impl From<RefusedStep> for Error {
    fn from(refused: RefusedStep) -> Self {
        Self::Command { command: refused.command.to_owned(), error: refused.error }
    }
}

/// What the server refused before any of the user's commands left.
#[derive(Debug)]
pub(crate) struct RefusedStep {
    pub(crate) command: &'static str,
    pub(crate) error: ServerError,
}
