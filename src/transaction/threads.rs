//! Runs the decisions of transactions on the caller's thread. The functions without a type parameter
//! keep the protocol's code out of the user's crate.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use crate::commit::outcome::Committed;
use crate::commit::plan::CommitPlan;
use crate::error::any::{CommitError, Error};
use crate::error::checkout::CheckoutError;
use crate::pool::own_writes;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::protocol::effects::ReadValues;
use crate::protocol::retry::RetryPolicy;
use crate::reply::replies::Replies;
use crate::sync::now::now_in;
use crate::transaction::block::Block;
use crate::transaction::hot_keys::{ContentionLimiter, OuterBlock};
use crate::transaction::keys::Keys;
use crate::transaction::merge::{Commands, MergeEntry, Piece, Step};
use crate::transaction::pending::Pending;
use crate::transaction::reading::WatchTarget;
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

/// Runs a watching block until it commits, or until the policy ends it. `limiter`: the block waits
/// for its turn on its keys.
pub(crate) fn run_watch<R: Resolve, E: From<Error>>(
    router: &Router,
    run: WatchRun,
    target: WatchTarget<'_>,
    limiter: Option<&Arc<ContentionLimiter>>,
    mut closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let outer = limiter.zip(target.keys).and_then(|_| OuterBlock::enter());
    let mut attempts = attempts(router, run);
    if let (Some(limiter), Some(keys), Some(outer)) = (limiter, target.keys, &outer)
        && attempts.can_be_merged(router, target)
    {
        let hot = (limiter, keys, outer);
        if let Some(output) = run_merged(&mut attempts, router, target, hot, &mut closure)? {
            return Ok(output);
        }
    }
    if let Some((limiter, keys)) = limiter.zip(target.keys) {
        enter(&mut attempts, limiter, keys, outer.as_ref());
    }
    loop {
        let mut watching = next(&mut attempts, router, target)?;
        let mut block = watching.block();
        let begun = attempts.closure_begins(router);
        let result =
            own_writes::during(attempts.own_writes(), || closure(&mut watching, &mut block));
        attempts.closure_ran(begun);
        let result = result.and_then(|handles| watching.unless_again(handles));
        // The closure may have forked.
        router.here().map_err(Error::from)?;
        match result {
            Ok(handles) => {
                let pending = &mut block.pending;
                if let Some(replies) =
                    commit_watched(&mut attempts, router, target.keys, watching, pending)?
                {
                    let resolved = handles.resolve(&replies);
                    return Ok(resolved.map_err(|error| block.pending.named(error))?);
                }
            }
            Err(error) => {
                if !failed(&mut attempts, router, watching) {
                    return Err(error);
                }
            }
        }
    }
}

/// What a closure has returned, and queued.
struct Ran<R, E> {
    result: Result<R, E>,
    block: Block,
}

/// Runs a watching block merged with others on the same keys. `None`: the block goes alone.
fn run_merged<R: Resolve, E: From<Error>>(
    attempts: &mut WatchAttempts,
    router: &Router,
    target: WatchTarget<'_>,
    (limiter, keys, outer): (&Arc<ContentionLimiter>, &Keys, &OuterBlock),
    closure: &mut impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
) -> Result<Option<R::Output>, E> {
    let (reads, most) = (target.reads.bytes(), router.settings().max_merged);
    let Some(mut place) = limiter.merges.arrive(keys.watch(), reads, most as usize) else {
        return Ok(None);
    };
    let mut run = |attempts: &mut WatchAttempts, watching: &mut Watching| {
        let mut block = watching.block();
        let result = own_writes::during(attempts.own_writes(), || closure(watching, &mut block));
        // The closure may have forked.
        router.here().map_err(Error::from)?;
        Ok::<_, E>(Ran { result, block })
    };
    let mut ran: Option<Ran<R, E>> = None;
    let in_vain = |attempts: &mut WatchAttempts, ran: Option<Ran<R, E>>| {
        if ran.is_some() {
            attempts.ran_in_vain(router);
        }
    };
    loop {
        let committed = match wait(attempts, router, &mut place) {
            Step::Alone => {
                in_vain(attempts, ran);
                return Ok(None);
            }
            Step::Again => {
                in_vain(attempts, ran.take());
                place.rejoin();
                continue;
            }
            Step::Run(..) if attempts.is_last() => return Ok(None),
            Step::Run(values, _) => {
                let mut watching = predicted(attempts, router, target, &values)?;
                let mut new = run(attempts, &mut watching)?;
                if let Some(error) = watching.reading().wants_again() {
                    if !failed(attempts, router, watching) {
                        return Err(error.into());
                    }
                    return Ok(None);
                }
                let pending = new.result.is_ok().then_some(&mut new.block.pending);
                match append(&mut place, watching, pending, &values) {
                    Appended::Valid => ran = Some(new),
                    Appended::Void => {
                        in_vain(attempts, Some(new));
                        place.rejoin();
                    }
                    Appended::Alone => {
                        in_vain(attempts, Some(new));
                        return Ok(None);
                    }
                }
                continue;
            }
            Step::Lead => {
                enter(attempts, limiter, keys, Some(outer));
                let mut watching = next(attempts, router, target)?;
                let found = ReadValues::of(reads, watching.reading().declared.values());
                let has_run = place.has_run_on(found.as_ref());
                let mut own = match ran.take() {
                    Some(own) if has_run => own,
                    void => {
                        in_vain(attempts, void);
                        watching.reading().attempt = attempts.number();
                        run(attempts, &mut watching)?
                    }
                };
                own.result = own.result.and_then(|handles| watching.unless_again(handles));
                if let Err(error) = own.result {
                    let has_next = failed(attempts, router, watching);
                    attempts.end_turn();
                    if !has_next {
                        return Err(error);
                    }
                    place.end_lead(false, false);
                    place.rejoin();
                    continue;
                }
                let pending = &mut own.block.pending;
                let committed =
                    lead(attempts, router, &mut place, watching, pending, (has_run, found));
                ran = Some(own);
                committed
            }
            Step::Ended(piece) => match &mut ran {
                Some(own) => attempts.outcome_of(&mut own.block.pending, piece),
                None => None,
            },
        };
        let (committed, Some(Ran { result, mut block })) = (committed, ran.take()) else {
            return Ok(None);
        };
        let Some(committed) = committed else {
            attempts.ran_in_vain(router);
            return Ok(None);
        };
        let replies = end_block(attempts, router, &mut block.pending, committed, result.is_err())?;
        let Some(replies) = replies else {
            if attempts.conflicts_with_itself(router, keys) {
                return Ok(None);
            }
            place.rejoin();
            continue;
        };
        let resolved = result?.resolve(&replies);
        return Ok(Some(resolved.map_err(|error| block.pending.named(error))?));
    }
}

/// Waits for the next step of a block that is merged with others.
fn wait(attempts: &mut WatchAttempts, router: &Router, place: &mut MergeEntry<'_>) -> Step {
    let settings = router.settings();
    let late = settings.checkout_timeout + 2 * settings.response_timeout;
    place.wait(attempts.turn_deadline(), || Instant::now() + late)
}

fn predicted(
    attempts: &mut WatchAttempts,
    router: &Router,
    target: WatchTarget<'_>,
    values: &ReadValues,
) -> Result<Watching, Error> {
    attempts.predicted(router, target, values).map(Watching::new)
}

/// What became of a closure that has run on predicted values.
enum Appended {
    Valid,
    /// The values are void.
    Void,
    /// It needs a connection of its own.
    Alone,
}

/// Appends what a closure has queued. `pending`: `None` if it has failed.
fn append(
    place: &mut MergeEntry<'_>,
    mut watching: Watching,
    pending: Option<&mut Pending>,
    values: &ReadValues,
) -> Appended {
    if watching.reading().is_connection_lost() {
        return Appended::Alone;
    }
    let (commands, after) = match pending {
        None => (Commands::default(), Some(values.clone())),
        Some(pending) => match pending.can_be_merged() {
            true => Commands::of(pending.queue(), Some(values)),
            false => return Appended::Alone,
        },
    };
    if place.append(commands, after) { Appended::Valid } else { Appended::Void }
}

/// Commits the leader's block and those that follow it. `has_run`: it was appended already; else its
/// closure has run on what was found. `None`: it goes alone.
fn lead(
    attempts: &mut WatchAttempts,
    router: &Router,
    place: &mut MergeEntry<'_>,
    watching: Watching,
    pending: &mut Pending,
    (has_run, found): (bool, Option<ReadValues>),
) -> Option<Result<Committed, CommitError>> {
    let (span, mut reading) = (attempts.span().clone(), watching.into_reading());
    let is_merged = has_run || pending.can_be_merged();
    if is_merged && !has_run {
        let found = found.filter(|_| place.is_followed());
        let (commands, after) = Commands::of(pending.queue(), found.as_ref());
        place.append_first(commands, after);
    }
    let taken = is_merged.then(|| place.take()).filter(|(_, followers)| !followers.is_empty());
    let Some((own, mut followers)) = taken else {
        let committed = now_in(&span, pin!(attempts.attempt(&mut reading, pending)));
        attempts.end_turn();
        let conflict = matches!(committed, Ok(Committed::Conflict));
        place.end_lead(committed.is_ok() && !conflict, conflict);
        return Some(committed);
    };
    let merged = attempts.commit_merged(router, &mut reading, &own, &mut followers);
    let mut pieces = now_in(&span, pin!(merged)).into_iter();
    let piece = pieces.next().unwrap_or(Piece::Alone);
    attempts.end_turn();
    // The next block is led before the others wake.
    place.end_lead(piece.is_applied(), matches!(piece, Piece::Conflict));
    followers.end(pieces);
    attempts.outcome_of(pending, piece)
}

/// Returns the replies to a block; `None`: it runs again. `has_failed`: its closure has, and has queued
/// nothing.
fn end_block(
    attempts: &mut WatchAttempts,
    router: &Router,
    pending: &mut Pending,
    committed: Result<Committed, CommitError>,
    has_failed: bool,
) -> Result<Option<Replies>, Error> {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.end_block(router, pending, committed, has_failed)))
}

fn attempts(router: &Router, run: WatchRun) -> WatchAttempts {
    WatchAttempts::new(router, run)
}

/// Waits for the turn of a run on its keys.
fn enter(
    attempts: &mut WatchAttempts,
    limiter: &Arc<ContentionLimiter>,
    keys: &Keys,
    outer: Option<&OuterBlock>,
) {
    let deadline = attempts.turn_deadline();
    attempts.set_turn(limiter.enter(keys.buckets(), outer, deadline));
}

fn next(
    attempts: &mut WatchAttempts,
    router: &Router,
    target: WatchTarget<'_>,
) -> Result<Watching, Error> {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.next(router, target))).map(Watching::new)
}

fn failed(attempts: &mut WatchAttempts, router: &Router, watching: Watching) -> bool {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.failed(router, watching.into_reading())))
}

fn commit_watched(
    attempts: &mut WatchAttempts,
    router: &Router,
    keys: Option<&Keys>,
    watching: Watching,
    pending: &mut Pending,
) -> Result<Option<Replies>, Error> {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.commit(router, keys, watching.into_reading(), pending)))
}
