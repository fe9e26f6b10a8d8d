//! Blocks without a connection of their own. Each borrows one for its commit, or joins a batch, as
//! isolated as alone. Each gets its own outcome, from its own replies.

use std::time::Instant;

use crate::commit::commit::commit;
use crate::commit::outcome::{Committed, classify, unproven};
use crate::commit::plan::CommitPlan;
use crate::error::any::CommitError;
use crate::error::in_doubt::InDoubt;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::cleanup::{self, clean_or_log};
use crate::pool::router::{Joined, Router};
use crate::pool::server_pool::ServerPool;
use crate::protocol::batch::{BatchRequest, RequestKind};
use crate::protocol::cluster::route::Route;
use crate::protocol::exec::{Unproven, Verdict};
use crate::protocol::queue::CommandQueue;
use crate::sync::boxed::boxed;

/// Commits the commands of `queue`; in a batch with others, if it may and has to wait for a
/// connection. Dropped before its end, it may have sent EXEC, or another caller may still send it.
pub(crate) async fn commit_block<P: ServerPool>(
    (router, route): (&Router<P>, &Route),
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    checkout_deadline: Instant,
) -> Result<Committed, CommitError> {
    let mut line = if queue.is_batchable() {
        match join(router, route, queue, checkout_deadline).await? {
            Joined::Alone(line) => line,
            Joined::Response(response) => return batched_outcome(response, queue, plan),
        }
    } else {
        match router.only_pool()? {
            Some(pool) => pool.checkout(checkout_deadline).await?,
            None => boxed(router.checkout(route, checkout_deadline)).await?,
        }
    };
    let committed = commit(&mut line, queue, plan, checkout_deadline).await;
    if cleanup::is_needed(&mut line) {
        boxed(clean_or_log(&mut line, None)).await;
    }
    committed
}

/// Takes a connection, or has another caller send the commands.
async fn join<P: ServerPool>(
    router: &Router<P>,
    route: &Route,
    queue: &CommandQueue,
    checkout_deadline: Instant,
) -> Result<Joined<P::Line>, CommitError> {
    let commands = queue.commands();
    let request = || BatchRequest { bytes: queue.block(), kind: RequestKind::Block { commands } };
    router.join(route, checkout_deadline, request).await.map_err(CommitError::not_sent)
}

/// Returns the outcome of a block that was sent in a batch.
fn batched_outcome(
    response: BatchResponse,
    queue: &mut CommandQueue,
    plan: &CommitPlan,
) -> Result<Committed, CommitError> {
    let verdict = match response {
        BatchResponse::Block(verdict) => verdict,
        BatchResponse::Read(_) | BatchResponse::Calls(_) => Verdict::Unknown(Unproven::default()),
        BatchResponse::Interrupted(Interrupted { left: true, cause }) => {
            return Err(CommitError::InDoubt(InDoubt::new(cause)));
        }
        BatchResponse::Interrupted(Interrupted { left: false, cause }) => {
            return Err(CommitError::lost_before_exec(cause));
        }
    };
    classify(queue, plan, verdict, None, |doubt| InDoubt::new(unproven(doubt)))
}
