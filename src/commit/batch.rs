//! Blocks without a connection of their own. Each borrows one for its commit, or joins a batch, as
//! isolated as alone. Each gets its own outcome, from its own replies.

use std::sync::Arc;
use std::time::Instant;

use crate::commit::commit::{MAX_ATTEMPTS, always_changed, commit, token_was_read};
use crate::commit::outcome::{Committed, classify, unproven};
use crate::commit::plan::CommitPlan;
use crate::error::any::CommitError;
use crate::error::checkout::CheckoutError;
use crate::error::in_doubt::InDoubt;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::{BatchDoubt, BatchResponse, Interrupted};
use crate::pool::cleanup::{self, clean_or_log};
use crate::pool::router::{Joined, Router};
use crate::pool::server_pool::ServerPool;
use crate::protocol::batch::RequestKind;
use crate::protocol::cluster::route::Route;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::exec::{Unproven, Verdict};
use crate::protocol::queue::CommandQueue;
use crate::sync::boxed::boxed;

/// Commits the commands of `queue`; in a batch with others, if it may and has to wait for a
/// connection. Dropped before its end, it may have sent EXEC, or another caller may still send it.
/// `carried`: what became of it on a lane.
pub(crate) async fn commit_block<P: ServerPool>(
    (router, route): (&Router<P>, &Route),
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    checkout_deadline: Instant,
    mut carried: Option<Result<BatchResponse, CheckoutError>>,
) -> Result<Committed, CommitError> {
    // Without a slot, a lane could not name the register that the block writes.
    let has_slot = plan.resolver.is_none() || queue.binding() != SlotBinding::Pending;
    let mut line = if queue.is_batchable() && plan.is_batchable::<P>() && has_slot {
        let mut attempts = 0;
        loop {
            let response = match carried.take() {
                Some(carried) => carried?,
                None => match join(router, route, queue, plan, checkout_deadline).await? {
                    Joined::Alone(line) => break line,
                    Joined::Response(response) => response,
                },
            };
            attempts += 1;
            match batched_outcome(response, queue, plan)? {
                // The changed key is the register, so nothing was applied.
                Committed::Conflict if !plan.may_send_again() => return Err(token_was_read()),
                Committed::Conflict if attempts < MAX_ATTEMPTS => {}
                Committed::Conflict => return Err(always_changed()),
                committed => return Ok(committed),
            }
        }
    } else {
        let packet = || plan.first_packet(queue);
        match router.only_pool()? {
            Some(pool) => pool.checkout_with(checkout_deadline, &packet).await?,
            None => boxed(router.checkout_with(route, checkout_deadline, &packet)).await?,
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
    plan: &CommitPlan,
    checkout_deadline: Instant,
) -> Result<Joined<P::Line>, CommitError> {
    let commands = queue.commands();
    let request = || BatchRequest {
        exactly_once: plan.resolver.is_some(),
        slot: queue.binding().slot(),
        token: plan.token.as_deref().cloned(),
        ..BatchRequest::new(queue.block(), RequestKind::Block { commands })
    };
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
        BatchResponse::InDoubt(in_doubt) => return Err(doubt(*in_doubt, plan)),
        BatchResponse::Read(_) | BatchResponse::Calls(_) => Verdict::Unknown(Unproven::default()),
        BatchResponse::Interrupted(Interrupted { left: true, cause, .. }) => {
            return Err(CommitError::InDoubt(InDoubt::new(cause)));
        }
        BatchResponse::Interrupted(Interrupted { left: false, cause, .. }) => {
            return Err(CommitError::lost_before_exec(cause));
        }
    };
    classify(queue, plan, verdict, None, |doubt| InDoubt::new(unproven(doubt)))
}

/// The error of an exactly-once block whose replies prove nothing.
#[cold]
fn doubt(BatchDoubt { doubt, lost, token }: BatchDoubt, plan: &CommitPlan) -> CommitError {
    let cause = lost.unwrap_or_else(|| unproven(&doubt));
    let in_doubt = match plan.resolver_of(&doubt) {
        Some(resolver) => InDoubt::resolvable(cause, token, Arc::clone(resolver)),
        None => InDoubt::new(cause),
    };
    CommitError::InDoubt(in_doubt.incomplete(doubt.incomplete))
}
