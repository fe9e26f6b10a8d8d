//! The loops of `run` and `watch(..).run`, which send or run a block again.
//!
//! They never do so after the block's commands may have been applied.

use std::time::{Duration, Instant};

use tracing::Span;

use crate::commit::outcome::Committed;
use crate::commit::plan::CommitPlan;
use crate::connection::deadline;
use crate::error::any::{CommitError, Error};
use crate::error::checkout::CheckoutError;
use crate::error::in_doubt::Resolution;
use crate::pool::router::Router;
use crate::pool::scopes::ScopeOrigin;
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::retry::{Attempts, RetryPolicy};
use crate::reply::replies::Replies;
use crate::transaction::block::Block;
use crate::transaction::hot_keys::{ContentionLimiter, Turn};
use crate::transaction::pending::Pending;
use crate::transaction::pinned::{Pinned, transaction_span};
use crate::transaction::redirects::{CheckoutBudget, redirect_after};
use crate::transaction::resolve::Resolve;
use crate::transaction::watch_scope::{WatchTarget, Watching};

/// Conflicts retried without backoff by an admitted block. Beyond this, contention comes from
/// another process.
const MAX_IMMEDIATE_RETRIES: u32 = 8;

/// The limits of one run: its attempts, and its time for connections.
struct RunLimits<'r> {
    router: &'r Router,
    policy: RetryPolicy,
    /// `None` before the first attempt that counts.
    attempts: Option<Attempts>,
    checkout: CheckoutBudget,
}

impl RunLimits<'_> {
    fn new(router: &Router, policy: RetryPolicy) -> RunLimits<'_> {
        let checkout = CheckoutBudget::new(router.settings());
        RunLimits { router, policy, attempts: None, checkout }
    }

    fn attempts(&mut self) -> &mut Attempts {
        self.attempts.get_or_insert_with(|| self.policy.begin(Instant::now()))
    }

    /// Sleeps until the next attempt. Returns false if the policy allows none.
    fn retry(&mut self, span: &Span, why: &str, immediately: bool) -> bool {
        let attempts = self.attempts();
        let Some(wait) = attempts.next(Instant::now()) else { return false };
        let (wait, attempt) = (if immediately { Duration::ZERO } else { wait }, attempts.number());
        self.router.counters().retries.add();
        span.in_scope(|| tracing::debug!(attempt, ?wait, why, "retry"));
        if wait > Duration::ZERO {
            std::thread::sleep(wait);
        }
        self.checkout.restart();
        true
    }
}

/// Runs a block once and commits it. Bytes that were not sent are sent again.
pub(crate) fn run_block<R: Resolve, E: From<Error>>(
    router: &Router,
    owner: ScopeOrigin,
    plan: CommitPlan,
    policy: RetryPolicy,
    closure: impl FnOnce(&mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let mut block = Block::new(router, owner, plan);
    let handles = closure(&mut block)?;
    let replies = commit_block(router, policy, &mut block)?;
    Ok(handles.resolve(&replies).map_err(|error| block.pending.named(error))?)
}

/// Commits a block whose closure has returned.
fn commit_block(router: &Router, policy: RetryPolicy, block: &mut Block) -> Result<Replies, Error> {
    // The closure may have forked.
    router.here()?;
    let Block { pending, pinned: Some(pinned) } = block else {
        return Err(CheckoutError::Closed.into());
    };
    pinned.closure_returned();
    let mut limits = RunLimits::new(router, policy);
    loop {
        let deadline = limits.checkout.deadline;
        let mut committed = pending.attempt(pinned, deadline);
        resolve_in_doubt(&mut committed, pending, pinned.plan());
        if let Err(error) = &committed
            && pending.can_resend()
        {
            if let Some(route) = limits.checkout.follow(pinned.redirect_for(error, deadline)) {
                pinned.set_route(route);
                continue;
            }
            if is_repeatable(error, router) && limits.retry(pinned.span(), "not sent", false) {
                continue;
            }
        }
        pending.record(pinned, &committed);
        return replies(committed, 1);
    }
}

/// The replies of a transaction that was applied.
fn replies(committed: Result<Committed, CommitError>, attempts: u32) -> Result<Replies, Error> {
    match committed? {
        Committed::Applied(replies) => Ok(replies),
        Committed::Conflict => Err(Error::RetriesExhausted { attempts }),
    }
}

/// The parts of a watching run.
pub(crate) struct WatchRun<'w> {
    pub(crate) owner: ScopeOrigin,
    pub(crate) plan: CommitPlan,
    pub(crate) policy: RetryPolicy,
    pub(crate) target: WatchTarget<'w>,
    /// `None`: all blocks attempt at once.
    pub(crate) limiter: Option<&'w ContentionLimiter>,
}

/// Runs a watching block until it commits, or until the policy ends it.
pub(crate) fn run_watch<R: Resolve, E: From<Error>>(
    router: &Router,
    run: &WatchRun<'_>,
    mut closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let WatchRun { owner, plan, policy, target, limiter } = run;
    let mut route = Route::to(target.binding.slot());
    let span = transaction_span(router, owner);
    let mut limits = RunLimits::new(router, *policy);
    let wait_until = limits.attempts().deadline();
    // The permit comes before the connection, so that a waiting block holds no connection.
    let mut turn =
        limiter.zip(target.keys).map(|(limiter, keys)| limiter.enter(keys.buckets(), wait_until));
    loop {
        let (attempt, deadline) = (limits.attempts().number(), limits.checkout.deadline);
        let mut pinned = Pinned::within(span.clone(), router, owner.clone(), plan.clone());
        pinned.set_route(route.clone());
        let mut watching = match Watching::begin(pinned, *target, attempt, deadline) {
            Ok(watching) => watching,
            Err(error) => {
                let next = redirect_after(router, &route, &error, deadline);
                route = limits.checkout.follow(next).ok_or(error)?;
                continue;
            }
        };
        // A failed condition is no conflict with another block.
        if let Some(turn) = &mut turn {
            turn.attempted();
        }
        let mut block = watching.block();
        let runs = router.is_cluster().then(Instant::now);
        let result = closure(&mut watching, &mut block);
        limits.checkout.extend(runs.map(|runs| runs.elapsed()));
        // The closure may have forked.
        router.here().map_err(Error::from)?;
        let connection_lost = watching.is_connection_lost();
        let redirect = watching.take_redirect();
        let handles = match result {
            Ok(handles) => handles,
            Err(error) => {
                drop(watching);
                // If a read was redirected, the closure's error only follows from that.
                if let Some(next) = limits.checkout.follow(redirect) {
                    route = next;
                    continue;
                }
                // If the connection was lost, the closure's error only follows from that.
                if connection_lost && limits.retry(&span, "connection lost", false) {
                    continue;
                }
                return Err(error);
            }
        };
        let mut pending = block.pending;
        let (mut pinned, bound) = watching.into_pinned();
        pending.bind(bound);
        pinned.closure_returned();
        let deadline = match pinned.is_pinned() {
            true => deadline::after(limits.checkout.limit),
            false => limits.checkout.deadline,
        };
        let mut committed = pending.attempt(&mut pinned, deadline);
        resolve_in_doubt(&mut committed, &pending, plan);
        let next = committed.as_ref().err().and_then(|error| pinned.redirect_for(error, deadline));
        let next = next.map(|next| if plan.watched { next } else { without_ask(next) });
        if let Some(next) = limits.checkout.follow(next) {
            route = next;
            continue;
        }
        let why = match &committed {
            Ok(Committed::Conflict) => Some("conflict"),
            Err(error) if is_repeatable(error, router) => Some("not sent"),
            _ => None,
        };
        // If few blocks are admitted at a time, a backoff would only delay the next one.
        let queued = turn.as_ref().is_some_and(Turn::queued)
            && matches!(committed, Ok(Committed::Conflict))
            && attempt <= MAX_IMMEDIATE_RETRIES;
        if why.is_some_and(|why| limits.retry(&span, why, queued)) {
            continue;
        }
        pending.record(&pinned, &committed);
        if let (Ok(Committed::Applied(_)), Some(turn)) = (&committed, &turn) {
            turn.committed();
        }
        let replies = replies(committed, attempt)?;
        return Ok(handles.resolve(&replies).map_err(|error| pending.named(error))?);
    }
}

/// Resolves an exactly-once transaction in doubt: either it was applied, with its replies lost, or
/// it counts as not sent.
fn resolve_in_doubt(
    committed: &mut Result<Committed, CommitError>,
    pending: &Pending,
    plan: &CommitPlan,
) {
    let Err(CommitError::InDoubt(doubt)) = committed else { return };
    if doubt.token().is_none() {
        return;
    }
    *committed = match doubt.resolve() {
        // The commit may have been applied without one of its commands.
        Resolution::Committed if doubt.is_incomplete() => return,
        Resolution::Committed => match plan.durability {
            None => Ok(Committed::Applied(pending.lost_replies())),
            Some(durability) => Err(CommitError::NotReplicated {
                wanted: durability.wanted(),
                got: ReplicaAcks::default(),
                refused: None,
                replies: pending.lost_replies(),
            }),
        },
        Resolution::NotCommitted => Err(CommitError::lost_before_exec(doubt.cause().clone())),
        Resolution::StillUnknown { .. } => return,
    };
}

/// Returns whether another attempt may succeed after one that failed without an effect.
///
/// It may if the connection failed before EXEC's last byte was sent, or led to a former master.
/// Other failures, such as a full pool or a refused command, would only repeat.
fn is_repeatable(error: &CommitError, router: &Router) -> bool {
    match error {
        CommitError::NotSent { source } => matches!(**source, Error::Lost { .. }),
        CommitError::Rejected { .. } => error.code() == Some("READONLY") && router.may_switch(),
        _ => false,
    }
}

/// Replaces an ASK redirect for a scope that reads without a watch. Some keys may not have arrived
/// at the new node yet, so the block waits until the slot has arrived.
fn without_ask(redirect: Redirect) -> Redirect {
    match redirect {
        Redirect::Immediately(route) if route.ask => Redirect::AfterDelay(Route::to(route.slot)),
        redirect => redirect,
    }
}
