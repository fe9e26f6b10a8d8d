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
use crate::pool::checkout::Lease;
use crate::pool::router::Nodes;
use crate::protocol::batch::{Broken, Job, Settled, What};
use crate::protocol::cluster::route::Route;
use crate::protocol::exec::{Doubt, Verdict};
use crate::protocol::queue::{Buffer, Start};
use crate::reply::replies::Replies;

/// Commits what `buffer` holds: with others, where it may and has to wait for a link.
pub(crate) fn block(
    (nodes, route): (&Nodes, &Route),
    buffer: &mut Buffer,
    terms: &Terms,
    checkout: Instant,
) -> Result<Committed, CommitError> {
    if !buffer.may_join() {
        return alone(nodes.lease(route, checkout)?, buffer, terms, checkout);
    }
    let commands = buffer.commands();
    let job = || {
        let bytes = buffer.closed(Start::Multi, b"", b"").bytes.to_vec();
        Job { bytes, what: What::Block { commands } }
    };
    let settled = match nodes.join(route, checkout, job)? {
        Joined::Alone(lease) => return alone(lease, buffer, terms, checkout),
        Joined::Settled(settled) => settled,
        Joined::Lead(mut lease, own) => {
            lease.answering(checkout).map_err(CommitError::not_sent)?;
            lead(lease, &own)
        }
    };
    let committed = told(buffer, settled);
    count(nodes.counters(), &committed);
    committed
}

fn alone(
    mut lease: Lease,
    buffer: &mut Buffer,
    terms: &Terms,
    checkout: Instant,
) -> Result<Committed, CommitError> {
    let form = Form { terms, watched: false, checkout };
    let committed = commit(&mut lease, buffer, form);
    if let Err(error) = clean(&mut lease) {
        lease.tell(tracing::Level::DEBUG, move || {
            tracing::debug!(error = %format_args!("{error:#}"), "cleaning failed, connection replaced");
        });
    }
    committed
}

fn told(buffer: &mut Buffer, settled: Settled) -> Result<Committed, CommitError> {
    let error = match settled {
        Settled::Block(Verdict::Applied(values)) => {
            let replies = replies(buffer, values);
            match replies.failures() {
                0 => return Ok(Committed::Applied(replies)),
                _ => CommitError::PartlyApplied { replies },
            }
        }
        Settled::Block(Verdict::Unread) => {
            return Ok(Committed::Applied(Replies::lost(buffer.transaction())));
        }
        Settled::Block(Verdict::Rejected(refusal)) => refused(buffer, refusal),
        Settled::Block(Verdict::Bare(bare)) => match bare.outcome(buffer.names()) {
            Ok(refusal) => refused(buffer, refusal),
            Err(values) => not_isolated(buffer, values),
        },
        Settled::Block(Verdict::Nil) => CommitError::lost_before_exec(ConnectionError::unexpected(
            "a conflict on a connection that watched nothing",
        )),
        Settled::Block(Verdict::Unknown(doubt)) => {
            let in_doubt = InDoubt::new(unproven(&doubt));
            CommitError::InDoubt(in_doubt.incomplete(doubt.incomplete))
        }
        Settled::Read(_) | Settled::Calls(_) => {
            CommitError::InDoubt(InDoubt::new(unproven(&Doubt::default())))
        }
        Settled::Broken(Broken { left: false, cause }) => CommitError::lost_before_exec(cause),
        Settled::Broken(Broken { left: true, cause }) => CommitError::InDoubt(InDoubt::new(cause)),
    };
    Err(error)
}
