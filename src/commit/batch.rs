//! Blocks without a connection of their own. Each borrows one for its commit, or joins a batch, as
//! isolated as alone. Each gets its own outcome, from its own replies.

use std::time::Instant;

use crate::commit::cleanup::clean_or_log;
use crate::commit::commit::commit;
use crate::commit::outcome::{Committed, classify, unproven};
use crate::commit::plan::CommitPlan;
use crate::error::any::CommitError;
use crate::error::in_doubt::InDoubt;
use crate::pool::batch::send_batch;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::checkout::{BatchCheckout, Checkout};
use crate::pool::line::ensure_alive;
use crate::pool::router::Router;
use crate::protocol::batch::{BatchRequest, RequestKind};
use crate::protocol::cluster::route::Route;
use crate::protocol::exec::{Unproven, Verdict};
use crate::protocol::queue::{CommandQueue, Prefix};
use crate::sync::now::now;

/// Commits the commands of `queue`; in a batch with others, if it may and has to wait for a
/// connection.
pub(crate) fn commit_block(
    (router, route): (&Router, &Route),
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    checkout_deadline: Instant,
) -> Result<Committed, CommitError> {
    if !queue.is_batchable() {
        let checkout = router.checkout(route, checkout_deadline)?;
        return commit_alone(checkout, queue, plan, checkout_deadline);
    }
    let commands = queue.commands();
    let job = || {
        let bytes = queue.finish(Prefix::Multi, b"", b"").bytes.to_vec();
        BatchRequest { bytes, kind: RequestKind::Block { commands } }
    };
    let response = match router.checkout_batched(route, checkout_deadline, job)? {
        BatchCheckout::Alone(checkout) => {
            return commit_alone(checkout, queue, plan, checkout_deadline);
        }
        BatchCheckout::Response(response) => response,
        BatchCheckout::Lead(mut checkout, own) => {
            now(ensure_alive(&mut checkout, checkout_deadline)).map_err(CommitError::not_sent)?;
            send_batch(checkout, &own)
        }
    };
    let verdict = match response {
        BatchResponse::Block(verdict) => Ok(verdict),
        BatchResponse::Read(_) | BatchResponse::Calls(_) => {
            Ok(Verdict::Unknown(Unproven::default()))
        }
        BatchResponse::Interrupted(Interrupted { left, cause }) => Err(match left {
            true => CommitError::InDoubt(InDoubt::new(cause)),
            false => CommitError::lost_before_exec(cause),
        }),
    };
    verdict.and_then(|verdict| {
        classify(queue, plan, verdict, None, |doubt| InDoubt::new(unproven(doubt)))
    })
}

fn commit_alone(
    mut checkout: Checkout,
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    checkout_deadline: Instant,
) -> Result<Committed, CommitError> {
    let committed = now(commit(&mut checkout, queue, plan, checkout_deadline));
    now(clean_or_log(&mut checkout, None));
    committed
}
