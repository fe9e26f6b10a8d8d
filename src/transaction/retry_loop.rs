//! The loops of `run` and `watch(..).run`, which send or run a block again.
//!
//! They never do so after the block's commands may have been applied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::commit::options::CommitOptions;
use crate::commit::outcome::Committed;
use crate::connection::deadline;
use crate::error::any::CommitError;
use crate::error::any::Error;
use crate::error::in_doubt::Resolution;
use crate::pool::router::Router;
use crate::pool::scopes::ScopeOrigin;
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::retry::{Attempts, RetryPolicy};
use crate::reply::replies::Replies;
use crate::reply::resolve::Resolve;
use crate::transaction::block::Block;
use crate::transaction::hot_keys::{ContentionLimiter, Turn};
use crate::transaction::keys::Keys;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::{Pinned, transaction_span};
use crate::transaction::redirects::{CheckoutBudget, is_checkout, redirect_after};
use crate::transaction::watch_scope::Watching;
use crate::transaction::watched_reads::WatchReads;

/// Conflicts retried without backoff by an admitted block. Beyond this, contention comes from
/// another process.
const MAX_IMMEDIATE_RETRIES: u32 = 8;

/// Runs a block once and commits it. Bytes that were not sent are sent again.
pub(crate) fn run_block<R: Resolve, E: From<Error>>(
    router: &Router,
    owner: ScopeOrigin,
    commit_options: CommitOptions,
    policy: RetryPolicy,
    closure: impl FnOnce(&mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let mut block = Block::new(Pending::new(router, owner, commit_options));
    let handles = closure(&mut block)?;
    // The closure may have forked.
    router.here().map_err(Error::from)?;
    let mut pending = block.into_pending();
    pending.closure_returned();
    let replies = commit_with_retries(router, &mut pending, policy)?;
    handles.resolve(&replies).map_err(|error| pending.named(error).into())
}

fn commit_with_retries(
    router: &Router,
    pending: &mut Pending,
    policy: RetryPolicy,
) -> Result<Replies, Error> {
    let (mut attempts, mut budget) = (None, CheckoutBudget::new(router.settings()));
    loop {
        pending.set_checkout_deadline(budget.deadline);
        let committed = resolve_in_doubt(pending.attempt(), pending);
        if let Err(error) = &committed
            && pending.can_resend()
            && let Some(redirect) = pending.redirect_for(error)
            && budget.try_redirect(&redirect, is_checkout(error))
        {
            pending.set_route(redirect);
            continue;
        }
        if committed.as_ref().is_err_and(|error| is_repeatable(error, router))
            && pending.can_resend()
        {
            let attempts = attempts.get_or_insert_with(|| policy.begin(Instant::now()));
            if backoff(router, attempts, pending.span(), "not sent", false) {
                budget.restart();
                continue;
            }
        }
        pending.record(&committed);
        return match committed {
            Ok(Committed::Applied(replies)) => Ok(replies),
            Ok(Committed::Conflict) => Err(Error::RetriesExhausted { attempts: 1 }),
            Err(error) => Err(error.into()),
        };
    }
}

/// The parts of a watching run.
pub(crate) struct WatchRun<'w> {
    pub(crate) owner: ScopeOrigin,
    pub(crate) commit_options: CommitOptions,
    pub(crate) policy: RetryPolicy,
    pub(crate) keys: Option<&'w Keys>,
    /// In a cluster: the slot of the keys.
    pub(crate) slot: Option<u16>,
    pub(crate) reads: &'w Arc<WatchReads>,
    /// `None`: all blocks attempt at once.
    pub(crate) limiter: Option<&'w ContentionLimiter>,
}

/// Runs a watching block until it commits, or until the policy ends it.
pub(crate) fn run_watch<R: Resolve, E: From<Error>>(
    router: &Router,
    run: &WatchRun<'_>,
    mut closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let WatchRun { owner, commit_options, policy, .. } = run;
    let (keys, reads, limiter) = (run.keys, run.reads, run.limiter);
    let span = transaction_span(router, owner);
    let unpinned = || Pinned::within(span.clone(), router, owner.clone());
    let mut route = Route::to(run.slot);
    let mut attempts = policy.begin(Instant::now());
    // The permit comes before the connection, so that a waiting block holds no connection.
    let mut turn =
        limiter.zip(keys).map(|(limiter, keys)| limiter.enter(keys.buckets(), attempts.deadline()));
    let mut budget = CheckoutBudget::new(router.settings());
    loop {
        let watch = keys.map(Keys::watch);
        let mut reading = unpinned();
        reading.set_route(route.clone());
        reading.set_checkout_deadline(Some(budget.deadline));
        let begun =
            Watching::begin(reading, watch, commit_options.clone(), reads, attempts.number());
        let mut watching = match begun {
            Ok(watching) => watching,
            Err(error) => match redirect_after(router, &route, &error, budget.deadline) {
                Some(redirect)
                    if budget.try_redirect(&redirect, matches!(error, Error::Checkout(_))) =>
                {
                    route = redirect.route();
                    continue;
                }
                _ => return Err(error.into()),
            },
        };
        // A failed condition is no conflict with another block.
        if let Some(turn) = &mut turn {
            turn.attempted();
        }
        let mut writing = unpinned();
        writing.set_slot(watching.binding().slot());
        let pending = Pending::on(writing, commit_options.clone(), watch.is_some());
        let mut block = Block::new(pending.without_flushing());
        let runs = router.is_cluster().then(Instant::now);
        let result = closure(&mut watching, &mut block);
        budget.extend(runs.map(|runs| runs.elapsed()));
        // The closure may have forked.
        router.here().map_err(Error::from)?;
        let connection_lost = watching.is_connection_lost();
        let redirect = watching.take_redirect();
        let handles = match result {
            Ok(handles) => handles,
            Err(error) => {
                drop(watching);
                // Nor is an error that the closure made from a redirect.
                if let Some(redirect) =
                    redirect.filter(|redirect| budget.try_redirect(redirect, false))
                {
                    route = redirect.route();
                    continue;
                }
                // An error that the closure made from a lost connection is not its own result.
                if connection_lost
                    && backoff(router, &mut attempts, &span, "connection lost", false)
                {
                    budget.restart();
                    continue;
                }
                return Err(error);
            }
        };
        let mut pending = block.into_pending();
        pending.set_pinned(watching.into_pinned());
        pending.closure_returned();
        pending.set_checkout_deadline(match pending.is_pinned() {
            true => deadline::after(budget.limit),
            false => budget.deadline,
        });
        let committed = resolve_in_doubt(pending.attempt(), &pending);
        if let Err(error) = &committed
            && let Some(redirect) =
                pending.redirect_for(error).map(|redirect| without_ask(redirect, watch.is_some()))
            && budget.try_redirect(&redirect, is_checkout(error))
        {
            route = redirect.route();
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
            && attempts.number() <= MAX_IMMEDIATE_RETRIES;
        if why.is_some_and(|why| backoff(router, &mut attempts, &span, why, queued)) {
            budget.restart();
            continue;
        }
        pending.record(&committed);
        return match committed {
            Ok(Committed::Applied(replies)) => {
                if let Some(turn) = &turn {
                    turn.committed();
                }
                handles.resolve(&replies).map_err(|error| pending.named(error).into())
            }
            Ok(Committed::Conflict) => {
                Err(Error::RetriesExhausted { attempts: attempts.number() }.into())
            }
            Err(error) => Err(E::from(error.into())),
        };
    }
}

/// Resolves an exactly-once transaction in doubt: either it was applied, with its replies lost, or
/// it counts as not sent.
fn resolve_in_doubt(
    committed: Result<Committed, CommitError>,
    pending: &Pending,
) -> Result<Committed, CommitError> {
    let Err(CommitError::InDoubt(doubt)) = &committed else { return committed };
    if doubt.token().is_none() {
        return committed;
    }
    match doubt.resolve() {
        // The commit may have been applied without one of its commands.
        Resolution::Committed if doubt.is_incomplete() => committed,
        Resolution::Committed => match pending.options().durability {
            None => Ok(Committed::Applied(pending.lost_replies())),
            Some(durability) => Err(CommitError::NotReplicated {
                wanted: durability.wanted(),
                got: ReplicaAcks::default(),
                refused: None,
                replies: pending.lost_replies(),
            }),
        },
        Resolution::NotCommitted => Err(CommitError::lost_before_exec(doubt.cause().clone())),
        Resolution::StillUnknown { .. } => committed,
    }
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
fn without_ask(redirect: Redirect, watches: bool) -> Redirect {
    match redirect {
        Redirect::Immediately(route) if route.ask && !watches => {
            Redirect::AfterDelay(Route::to(route.slot))
        }
        redirect => redirect,
    }
}

/// Sleeps until the next attempt. Returns false if the policy allows none.
fn backoff(
    router: &Router,
    attempts: &mut Attempts,
    span: &tracing::Span,
    why: &str,
    immediately: bool,
) -> bool {
    let Some(wait) = attempts.next(Instant::now()) else { return false };
    let wait = if immediately { Duration::ZERO } else { wait };
    router.counters().retries.add();
    span.in_scope(|| tracing::debug!(attempt = attempts.number(), ?wait, why, "retry"));
    if wait > Duration::ZERO {
        std::thread::sleep(wait);
    }
    true
}
