//! The loops behind `run` and `watch(..).run`: when a block is sent or run again.
//!
//! Never: again after its commands may have been applied.

use std::time::{Duration, Instant};

use crate::commit::Committed;
use crate::connection::pool::Pool;
use crate::connection::registry::Owner;
use crate::error::{CommitError, Error};
use crate::reply::{Replies, Resolve};
use crate::retry::{Attempts, RetryPolicy};
use crate::transaction::block::Block;
use crate::transaction::body::{Body, transaction_span};
use crate::transaction::keys::Keys;
use crate::transaction::scope::Scope;
use crate::transaction::watching::Watching;

/// Runs a block once and commits it; the same bytes are sent again where they were not sent.
pub(crate) fn plain<R: Resolve, E: From<Error>>(
    pool: &Pool,
    owner: Owner,
    immediate: bool,
    policy: RetryPolicy,
    closure: impl FnOnce(&mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let mut block = Block::new(Body::new(pool, owner, immediate));
    let handles = closure(&mut block)?;
    let mut body = block.into_body();
    body.leaves_closure();
    let replies = commit_again(pool, &mut body, policy)?;
    handles.resolve(&replies).map_err(|error| E::from(error.into()))
}

fn commit_again(pool: &Pool, body: &mut Body, policy: RetryPolicy) -> Result<Replies, Error> {
    let mut attempts = None;
    loop {
        match body.commit() {
            Ok(Committed::Applied(replies)) => return Ok(replies),
            Ok(Committed::Conflict) => return Err(Error::RetriesExhausted { attempts: 1 }),
            Err(error) if may_repeat(&error) && body.is_whole() => {
                let attempts = attempts.get_or_insert_with(|| policy.begin(Instant::now()));
                let span = body.span().clone();
                if !again(pool, attempts, &span, "not sent") {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs a watching block until it commits, or until the policy ends it.
pub(crate) fn watching<R: Resolve, E: From<Error>>(
    pool: &Pool,
    owner: &Owner,
    immediate: bool,
    policy: RetryPolicy,
    keys: Option<&Keys>,
    mut closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let span = transaction_span(pool, owner);
    let mut attempts = policy.begin(Instant::now());
    loop {
        let scope = Scope::new(pool.clone(), owner.clone());
        let watch = keys.map(Keys::watch);
        let mut watching =
            Watching::begin(scope, watch, immediate, attempts.number(), span.clone())?;
        let empty = Scope::new(pool.clone(), owner.clone());
        let body = Body::on(empty, immediate, watch.is_some(), span.clone());
        let mut block = Block::new(body.unflushed());
        let result = closure(&mut watching, &mut block);
        let broken = watching.is_broken();
        let handles = match result {
            Ok(handles) => handles,
            Err(error) => {
                drop(watching);
                // What the closure makes of a lost connection is no answer of its own.
                if broken && again(pool, &mut attempts, &span, "connection lost") {
                    continue;
                }
                return Err(error);
            }
        };
        let mut body = block.into_body();
        body.set_scope(watching.into_scope());
        body.leaves_closure();
        let (why, end) = match body.commit() {
            Ok(Committed::Applied(replies)) => {
                return handles.resolve(&replies).map_err(|error| E::from(error.into()));
            }
            Ok(Committed::Conflict) => {
                ("conflict", Error::RetriesExhausted { attempts: attempts.number() })
            }
            Err(error) if may_repeat(&error) => ("not sent", error.into()),
            Err(error) => return Err(E::from(error.into())),
        };
        if !again(pool, &mut attempts, &span, why) {
            return Err(end.into());
        }
    }
}

/// Whether the connection failed before EXEC's last byte left. (Other failures that left nothing
/// behind, such as a full pool or a refused command, would fail in the same way again.)
fn may_repeat(error: &CommitError) -> bool {
    match error {
        CommitError::NotSent { source } => matches!(**source, Error::Lost { .. }),
        _ => false,
    }
}

/// Waits for the next attempt, if there is to be one.
fn again(pool: &Pool, attempts: &mut Attempts, span: &tracing::Span, why: &str) -> bool {
    let Some(wait) = attempts.next(Instant::now()) else { return false };
    pool.counters().retries.add();
    span.in_scope(|| tracing::debug!(attempt = attempts.number(), ?wait, why, "retry"));
    if wait > Duration::ZERO {
        std::thread::sleep(wait);
    }
    true
}
