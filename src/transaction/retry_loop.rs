//! The loops behind `run` and `watch(..).run`: when a block is sent or run again.
//!
//! Never: again after its commands may have been applied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::commit::{CommitOptions, Committed};
use crate::connection::deadline;
use crate::error::any::CommitError;
use crate::error::any::Error;
use crate::error::in_doubt::Resolution;
use crate::pool::redirect_pause;
use crate::pool::router::Nodes;
use crate::pool::scopes::Owner;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route};
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::retry::{Attempts, RetryPolicy};
use crate::reply::replies::Replies;
use crate::reply::resolve::Resolve;
use crate::settings::Settings;
use crate::transaction::block::Block;
use crate::transaction::hot_keys::{Admission, Admitted};
use crate::transaction::keys::Keys;
use crate::transaction::pending::Body;
use crate::transaction::pinned::{Scope, transaction_span};
use crate::transaction::watch_scope::Watching;
use crate::transaction::watched_reads::Reads;

/// So often whoever is admitted repeats a conflict without a pause. After that it is somebody else,
/// another process perhaps, who is in the way.
const AT_ONCE: u32 = 8;

/// Runs a block once and commits it; the same bytes are sent again where they were not sent.
pub(crate) fn plain<R: Resolve, E: From<Error>>(
    nodes: &Nodes,
    owner: Owner,
    commit_options: CommitOptions,
    policy: RetryPolicy,
    closure: impl FnOnce(&mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let mut block = Block::new(Body::new(nodes, owner, commit_options));
    let handles = closure(&mut block)?;
    // The closure may have forked.
    nodes.here().map_err(Error::from)?;
    let mut body = block.into_body();
    body.leaves_closure();
    let replies = commit_again(nodes, &mut body, policy)?;
    handles.resolve(&replies).map_err(|error| E::from(body.named(error).into()))
}

fn commit_again(nodes: &Nodes, body: &mut Body, policy: RetryPolicy) -> Result<Replies, Error> {
    let (mut attempts, mut waits) = (None, Waits::new(nodes.settings()));
    loop {
        body.connects_by(waits.deadline);
        let committed = resolved(body.attempt(), body);
        if let Err(error) = &committed
            && body.is_whole()
            && let Some(redirect) = body.redirect_for(error)
            && waits.allows(&redirect, is_checkout(error))
        {
            body.go(redirect);
            continue;
        }
        if committed.as_ref().is_err_and(|error| may_repeat(error, nodes)) && body.is_whole() {
            let attempts = attempts.get_or_insert_with(|| policy.begin(Instant::now()));
            if again(nodes, attempts, body.span(), "not sent", false) {
                waits.renew();
                continue;
            }
        }
        body.record(&committed);
        return match committed {
            Ok(Committed::Applied(replies)) => Ok(replies),
            Ok(Committed::Conflict) => Err(Error::RetriesExhausted { attempts: 1 }),
            Err(error) => Err(error.into()),
        };
    }
}

/// What a watching block is run by.
pub(crate) struct Plan<'w> {
    pub(crate) owner: Owner,
    pub(crate) commit_options: CommitOptions,
    pub(crate) policy: RetryPolicy,
    pub(crate) keys: Option<&'w Keys>,
    /// In a cluster: where they are.
    pub(crate) slot: Option<u16>,
    pub(crate) reads: &'w Arc<Reads>,
    /// `None`: everybody tries at once.
    pub(crate) admission: Option<&'w Admission>,
}

/// Runs a watching block until it commits, or until the policy ends it.
pub(crate) fn watching<R: Resolve, E: From<Error>>(
    nodes: &Nodes,
    plan: &Plan<'_>,
    mut closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let Plan { owner, commit_options, policy, .. } = plan;
    let (keys, reads, admission) = (plan.keys, plan.reads, plan.admission);
    let span = transaction_span(nodes, owner);
    let scope = || Scope::within(span.clone(), nodes, owner.clone());
    let mut route = Route::to(plan.slot);
    let mut attempts = policy.begin(Instant::now());
    // Before a connection is taken, so that none is held by who waits here.
    let mut admitted = admission
        .zip(keys)
        .map(|(admission, keys)| admission.enter(keys.lanes(), attempts.deadline()));
    let mut waits = Waits::new(nodes.settings());
    loop {
        let watch = keys.map(Keys::watch);
        let mut begins = scope();
        begins.go(route.clone());
        begins.connects_by(Some(waits.deadline));
        let begun =
            Watching::begin(begins, watch, commit_options.clone(), reads, attempts.number());
        let mut watching = match begun {
            Ok(watching) => watching,
            Err(error) => match redirect_after(nodes, &route, &error, waits.deadline) {
                Some(redirect) if waits.allows(&redirect, matches!(error, Error::Checkout(_))) => {
                    route = redirect.route();
                    continue;
                }
                _ => return Err(error.into()),
            },
        };
        // What a condition stops is no try that somebody else undid.
        if let Some(admitted) = &mut admitted {
            admitted.tried();
        }
        let mut queues = scope();
        queues.head_for(watching.binding().slot());
        let body = Body::on(queues, commit_options.clone(), watch.is_some());
        let mut block = Block::new(body.unflushed());
        let runs = nodes.is_cluster().then(Instant::now);
        let result = closure(&mut watching, &mut block);
        waits.postpone(runs.map(|runs| runs.elapsed()));
        // The closure may have forked.
        nodes.here().map_err(Error::from)?;
        let broken = watching.is_broken();
        let redirect = watching.take_redirect();
        let handles = match result {
            Ok(handles) => handles,
            Err(error) => {
                drop(watching);
                // Nor is what it makes of a node that is not the one to ask.
                if let Some(redirect) = redirect.filter(|redirect| waits.allows(redirect, false)) {
                    route = redirect.route();
                    continue;
                }
                // What the closure makes of a lost connection is no answer of its own.
                if broken && again(nodes, &mut attempts, &span, "connection lost", false) {
                    waits.renew();
                    continue;
                }
                return Err(error);
            }
        };
        let mut body = block.into_body();
        body.set_scope(watching.into_scope());
        body.leaves_closure();
        body.connects_by(match body.is_pinned() {
            true => deadline::after(waits.limit),
            false => waits.deadline,
        });
        let committed = resolved(body.attempt(), &body);
        if let Err(error) = &committed
            && let Some(redirect) =
                body.redirect_for(error).map(|redirect| settled(redirect, watch.is_some()))
            && waits.allows(&redirect, is_checkout(error))
        {
            route = redirect.route();
            continue;
        }
        let why = match &committed {
            Ok(Committed::Conflict) => Some("conflict"),
            Err(error) if may_repeat(error, nodes) => Some("not sent"),
            _ => None,
        };
        // Where few are let in at a time, a pause would only keep the next one out.
        let in_turn = admitted.as_ref().is_some_and(Admitted::in_turn)
            && matches!(committed, Ok(Committed::Conflict))
            && attempts.number() <= AT_ONCE;
        if why.is_some_and(|why| again(nodes, &mut attempts, &span, why, in_turn)) {
            waits.renew();
            continue;
        }
        body.record(&committed);
        return match committed {
            Ok(Committed::Applied(replies)) => {
                if let Some(admitted) = &admitted {
                    admitted.committed();
                }
                handles.resolve(&replies).map_err(|error| E::from(body.named(error).into()))
            }
            Ok(Committed::Conflict) => {
                Err(Error::RetriesExhausted { attempts: attempts.number() }.into())
            }
            Err(error) => Err(E::from(error.into())),
        };
    }
}

/// An exactly-once transaction in doubt, asked for: applied, its replies lost; or not sent, for all
/// that it did.
fn resolved(
    committed: Result<Committed, CommitError>,
    body: &Body,
) -> Result<Committed, CommitError> {
    let Err(CommitError::InDoubt(doubt)) = &committed else { return committed };
    if doubt.token().is_none() {
        return committed;
    }
    match doubt.resolve() {
        // Not the whole of it.
        Resolution::Committed if doubt.is_incomplete() => committed,
        Resolution::Committed => match body.options().durability {
            None => Ok(Committed::Applied(body.lost_replies())),
            Some(durability) => Err(CommitError::NotReplicated {
                wanted: durability.wanted(),
                got: ReplicaAcks::default(),
                refused: None,
                replies: body.lost_replies(),
            }),
        },
        Resolution::NotCommitted => Err(CommitError::lost_before_exec(doubt.cause().clone())),
        Resolution::StillUnknown { .. } => committed,
    }
}

/// Whether the connection failed before EXEC's last byte left, or led to a server that is no longer
/// the master where another one is. (Other failures that left nothing behind, such as a full pool or
/// a refused command, would fail in the same way again.)
fn may_repeat(error: &CommitError, nodes: &Nodes) -> bool {
    match error {
        CommitError::NotSent { source } => matches!(**source, Error::Lost { .. }),
        CommitError::Rejected { .. } => error.code() == Some("READONLY") && nodes.may_switch(),
        _ => false,
    }
}

/// What is to be done where a server that is not the one to ask refused a transaction.
///
/// The map of the cluster is asked for by `deadline` where no server was reached.
pub(crate) fn redirect_for(
    nodes: &Nodes,
    route: &Route,
    error: &CommitError,
    deadline: Instant,
) -> Option<Redirect> {
    match error {
        CommitError::Rejected { code, message, .. } => nodes.redirect_for(route, code, message),
        CommitError::NotSent { source } => redirect_after(nodes, route, source, deadline),
        _ => None,
    }
}

fn redirect_after(
    nodes: &Nodes,
    route: &Route,
    error: &Error,
    deadline: Instant,
) -> Option<Redirect> {
    match error {
        Error::Command { error, .. } => nodes.redirect_for(route, error.code(), error.message()),
        Error::Checkout(error) => nodes.on_unreachable(route, error, deadline),
        Error::Commit(error) => redirect_for(nodes, route, error, deadline),
        _ => None,
    }
}

/// What reads without a watch does not go where its slot will be: some of what it reads may not be
/// there yet. It waits until the slot has arrived.
fn settled(redirect: Redirect, watches: bool) -> Redirect {
    match redirect {
        Redirect::Immediately(route) if route.ask && !watches => {
            Redirect::AfterDelay(Route::to(route.slot))
        }
        redirect => redirect,
    }
}

/// Whether no connection could be had.
pub(crate) fn is_checkout(error: &CommitError) -> bool {
    matches!(error, CommitError::NotSent { source } if matches!(**source, Error::Checkout(_)))
}

/// How long a block waits for a connection and for a cluster that is in motion: one
/// `checkout_timeout`, which attempts share that were sent on or reached no node. An attempt after a
/// conflict or a lost connection has a `checkout_timeout` of its own for its connection.
pub(crate) struct Waits {
    limit: Duration,
    /// What an attempt gets at least that a server sent on: its last answer is the one to report, and
    /// not that no time was left to ask again.
    least: Duration,
    /// By when the next connection must be had.
    pub(crate) deadline: Instant,
    budget: Option<RedirectBudget>,
}

impl Waits {
    pub(crate) fn new(settings: &Settings) -> Self {
        let limit = settings.checkout_timeout;
        let least = limit.min(settings.connect_timeout + settings.response_timeout);
        Self { limit, least, deadline: deadline::after(limit), budget: None }
    }

    /// Pauses where the way on needs it. False: no time is left.
    ///
    /// Time that passed until a server sent the block on is no time that was waited for a node.
    pub(crate) fn allows(&mut self, redirect: &Redirect, unreached: bool) -> bool {
        let (limit, deadline) = (self.limit, self.deadline);
        let budget = self.budget.get_or_insert_with(|| {
            RedirectBudget::until(if unreached { deadline } else { deadline::after(limit) })
        });
        if !redirect_pause::try_next(budget, redirect) {
            return false;
        }
        self.deadline = match unreached {
            true => budget.deadline(),
            false => budget.deadline().max(deadline::after(self.least)),
        };
        true
    }

    fn renew(&mut self) {
        self.deadline = deadline::after(self.limit);
    }

    /// The time that a closure ran is no time that was waited for a connection.
    fn postpone(&mut self, ran: Option<Duration>) {
        let Some(ran) = ran else { return };
        self.deadline = deadline::later(self.deadline, ran);
    }
}

/// Waits for the next attempt, if there is to be one.
fn again(
    nodes: &Nodes,
    attempts: &mut Attempts,
    span: &tracing::Span,
    why: &str,
    at_once: bool,
) -> bool {
    let Some(wait) = attempts.next(Instant::now()) else { return false };
    let wait = if at_once { Duration::ZERO } else { wait };
    nodes.counters().retries.add();
    span.in_scope(|| tracing::debug!(attempt = attempts.number(), ?wait, why, "retry"));
    if wait > Duration::ZERO {
        std::thread::sleep(wait);
    }
    true
}
