//! Blocks without a connection of their own. Each borrows one for its commit, or joins a batch, as
//! isolated as alone. Each gets its own outcome, from its own replies.

use std::time::Instant;

use crate::commit::cleanup::clean;
use crate::commit::commit::commit;
use crate::commit::options::{CommitOptions, CommitPlan};
use crate::commit::outcome::{Committed, count, not_isolated, refused, replies, unproven};
use crate::error::any::CommitError;
use crate::error::connection::ConnectionError;
use crate::error::in_doubt::InDoubt;
use crate::pool::batch::send_batch;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::checkout::BatchCheckout;
use crate::pool::checkout::Checkout;
use crate::pool::router::Router;
use crate::protocol::batch::{BatchRequest, RequestKind};
use crate::protocol::cluster::route::Route;
use crate::protocol::exec::{Unproven, Verdict};
use crate::protocol::queue::{CommandQueue, Prefix};
use crate::reply::replies::Replies;

/// Commits the commands of `queue`; in a batch with others, if it may and has to wait for a
/// connection.
pub(crate) fn commit_block(
    (router, route): (&Router, &Route),
    queue: &mut CommandQueue,
    options: &CommitOptions,
    checkout_deadline: Instant,
) -> Result<Committed, CommitError> {
    if !queue.is_batchable() {
        return commit_alone(
            router.checkout(route, checkout_deadline)?,
            queue,
            options,
            checkout_deadline,
        );
    }
    let commands = queue.commands();
    let job = || {
        let bytes = queue.finish(Prefix::Multi, b"", b"").bytes.to_vec();
        BatchRequest { bytes, kind: RequestKind::Block { commands } }
    };
    let response = match router.checkout_batched(route, checkout_deadline, job)? {
        BatchCheckout::Alone(checkout) => {
            return commit_alone(checkout, queue, options, checkout_deadline);
        }
        BatchCheckout::Response(response) => response,
        BatchCheckout::Lead(mut checkout, own) => {
            checkout.ensure_alive(checkout_deadline).map_err(CommitError::not_sent)?;
            send_batch(checkout, &own)
        }
    };
    let committed = into_outcome(queue, response);
    count(router.counters(), &committed);
    committed
}

fn commit_alone(
    mut checkout: Checkout,
    queue: &mut CommandQueue,
    options: &CommitOptions,
    checkout_deadline: Instant,
) -> Result<Committed, CommitError> {
    let plan = CommitPlan { options, watched: false, checkout_deadline };
    let committed = commit(&mut checkout, queue, plan);
    if let Err(error) = clean(&mut checkout) {
        checkout.log_later(tracing::Level::DEBUG, move || {
            tracing::debug!(error = %format_args!("{error:#}"), "cleaning failed, connection replaced");
        });
    }
    committed
}

fn into_outcome(
    queue: &mut CommandQueue,
    response: BatchResponse,
) -> Result<Committed, CommitError> {
    let error = match response {
        BatchResponse::Block(Verdict::Applied(values)) => {
            let replies = replies(queue, values);
            match replies.failures() {
                0 => return Ok(Committed::Applied(replies)),
                _ => CommitError::PartlyApplied { replies },
            }
        }
        BatchResponse::Block(Verdict::RepliesLost) => {
            return Ok(Committed::Applied(Replies::lost(queue.transaction())));
        }
        BatchResponse::Block(Verdict::Rejected(refusal)) => refused(queue, refusal),
        BatchResponse::Block(Verdict::WithoutMulti(bare)) => match bare.outcome(queue.names()) {
            Ok(refusal) => refused(queue, refusal),
            Err(values) => not_isolated(queue, values),
        },
        BatchResponse::Block(Verdict::Nil) => CommitError::lost_before_exec(
            ConnectionError::unexpected("a conflict on a connection that watched nothing"),
        ),
        BatchResponse::Block(Verdict::Unknown(doubt)) => {
            let in_doubt = InDoubt::new(unproven(&doubt));
            CommitError::InDoubt(in_doubt.incomplete(doubt.incomplete))
        }
        BatchResponse::Read(_) | BatchResponse::Calls(_) => {
            CommitError::InDoubt(InDoubt::new(unproven(&Unproven::default())))
        }
        BatchResponse::Interrupted(Interrupted { left: false, cause }) => {
            CommitError::lost_before_exec(cause)
        }
        BatchResponse::Interrupted(Interrupted { left: true, cause }) => {
            CommitError::InDoubt(InDoubt::new(cause))
        }
    };
    Err(error)
}
