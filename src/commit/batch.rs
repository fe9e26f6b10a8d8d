//! Blocks that hold no link: each borrows one for its commit, or travels with others, as isolated
//! as alone and told its own outcome.
//!
//! Never: a block told what another one's replies prove.

use std::time::Instant;

use crate::commit::cleanup::clean;
use crate::commit::{
    Committed, Form, Terms, commit, count, not_isolated, refused, replies, unproven,
};
use crate::error::any::CommitError;
use crate::error::connection::ConnectionError;
use crate::error::in_doubt::InDoubt;
use crate::pool::Joined;
use crate::pool::batch::lead;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::checkout::Lease;
use crate::pool::router::Nodes;
use crate::protocol::batch::{BatchRequest, RequestKind};
use crate::protocol::cluster::route::Route;
use crate::protocol::exec::{Unproven, Verdict};
use crate::protocol::queue::{CommandQueue, Prefix};
use crate::reply::replies::Replies;

/// Commits what `buffer` holds: with others, where it may and has to wait for a link.
pub(crate) fn block(
    (nodes, route): (&Nodes, &Route),
    queue: &mut CommandQueue,
    terms: &Terms,
    checkout: Instant,
) -> Result<Committed, CommitError> {
    if !queue.is_batchable() {
        return alone(nodes.lease(route, checkout)?, queue, terms, checkout);
    }
    let commands = queue.commands();
    let job = || {
        let bytes = queue.finish(Prefix::Multi, b"", b"").bytes.to_vec();
        BatchRequest { bytes, what: RequestKind::Block { commands } }
    };
    let settled = match nodes.join(route, checkout, job)? {
        Joined::Alone(lease) => return alone(lease, queue, terms, checkout),
        Joined::Settled(settled) => settled,
        Joined::Lead(mut lease, own) => {
            lease.answering(checkout).map_err(CommitError::not_sent)?;
            lead(lease, &own)
        }
    };
    let committed = told(queue, settled);
    count(nodes.counters(), &committed);
    committed
}

fn alone(
    mut lease: Lease,
    queue: &mut CommandQueue,
    terms: &Terms,
    checkout: Instant,
) -> Result<Committed, CommitError> {
    let form = Form { terms, watched: false, checkout };
    let committed = commit(&mut lease, queue, form);
    if let Err(error) = clean(&mut lease) {
        lease.tell(tracing::Level::DEBUG, move || {
            tracing::debug!(error = %format_args!("{error:#}"), "cleaning failed, connection replaced");
        });
    }
    committed
}

fn told(queue: &mut CommandQueue, settled: BatchResponse) -> Result<Committed, CommitError> {
    let error = match settled {
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
