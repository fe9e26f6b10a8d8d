//! Runs the decisions of transactions on the caller's thread. The functions without a type parameter
//! keep the protocol's code out of the user's crate.

use std::pin::pin;

use crate::commit::plan::CommitPlan;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::pool::pool::Pool;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::protocol::retry::RetryPolicy;
use crate::reply::replies::Replies;
use crate::sync::now::now_in;
use crate::transaction::block::Block;
use crate::transaction::hot_keys::OuterBlock;
use crate::transaction::pending::Pending;
use crate::transaction::resolve::Resolve;
use crate::transaction::retry_loop::{self, WatchAttempts, WatchRun};
use crate::transaction::watch_scope::Watching;

/// Runs a block once and commits it. Bytes that were not sent are sent again.
#[inline]
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

fn commit_block(router: &Router, policy: RetryPolicy, block: &mut Block) -> Result<Replies, Error> {
    let Block { pending, pinned: Some(pinned) } = block else {
        return Err(CheckoutError::Closed.into());
    };
    // The closure may have forked.
    router.here()?;
    let span = pinned.span().clone();
    now_in(&span, pin!(retry_loop::commit_block(router, policy, pending, pinned)))
}

/// Runs a watching block until it commits, or until the policy ends it.
pub(crate) fn run_watch<R: Resolve, E: From<Error>>(
    router: &Router,
    run: &WatchRun<'_>,
    mut closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let outer = run.limiter.zip(run.target.keys).and_then(|_| OuterBlock::enter());
    let mut attempts = attempts(router, run, outer.as_ref());
    loop {
        let mut watching = next(&mut attempts)?;
        let mut block = watching.block();
        let begun = attempts.closure_begins();
        let result = closure(&mut watching, &mut block);
        attempts.closure_ran(begun);
        // The closure may have forked.
        router.here().map_err(Error::from)?;
        match result {
            Ok(handles) => {
                if let Some(replies) = commit_watched(&mut attempts, watching, &mut block.pending)?
                {
                    let resolved = handles.resolve(&replies);
                    return Ok(resolved.map_err(|error| block.pending.named(error))?);
                }
            }
            Err(error) => {
                if !failed(&mut attempts, watching) {
                    return Err(error);
                }
            }
        }
    }
}

fn attempts<'w>(
    router: &'w Router,
    run: &'w WatchRun<'w>,
    outer: Option<&OuterBlock>,
) -> WatchAttempts<'w, Pool> {
    let mut attempts = WatchAttempts::new(router, run);
    let deadline = attempts.turn_deadline();
    let hot = run.limiter.zip(run.target.keys);
    attempts.set_turn(hot.map(|(limiter, keys)| limiter.enter(keys.buckets(), outer, deadline)));
    attempts
}

fn next(attempts: &mut WatchAttempts<'_, Pool>) -> Result<Watching, Error> {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.next())).map(Watching::new)
}

fn failed(attempts: &mut WatchAttempts<'_, Pool>, watching: Watching) -> bool {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.failed(watching.into_reading())))
}

fn commit_watched(
    attempts: &mut WatchAttempts<'_, Pool>,
    watching: Watching,
    pending: &mut Pending,
) -> Result<Option<Replies>, Error> {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.commit(watching.into_reading(), pending)))
}
