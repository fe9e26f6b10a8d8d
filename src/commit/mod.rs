//! Did it happen? The forms of a commit, each ending in one row of the contract.
//!
//! Never: the user's closure. Never: a command re-sent once EXEC's last byte may have left.

use std::time::Instant;

use redis::Value;

use crate::connection::link::{Deadline, Link};
use crate::connection::pool::Lease;
use crate::error::{
    CheckoutError, CommitError, Error, InDoubt, LinkError, LinkErrorKind, ServerError,
};
use crate::observe::Replaced;
use crate::reply::Replies;
use crate::wire::buffer::Buffer;
use crate::wire::encode::{DISCARD, UNWATCH};
use crate::wire::exec::{self, Collector, Refusal, Verdict};
use crate::wire::state::{Expect, Taint};

/// How a transaction is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// MULTI is answered before any command leaves, however lately the link was heard of.
    pub(crate) immediate: bool,
    /// The link must still watch what it was told to: a fresh one would protect nothing.
    pub(crate) watched: bool,
    /// By when a dead link must have been replaced.
    pub(crate) checkout: Instant,
}

/// What became of a transaction that did not fail.
#[derive(Debug)]
pub(crate) enum Committed {
    Applied(Replies),
    Conflict,
}

/// Commits what `buffer` holds.
pub(crate) fn commit(
    lease: &mut Lease,
    buffer: &mut Buffer,
    form: Form,
) -> Result<Committed, CommitError> {
    let counted = attempt(lease, buffer, form);
    let counters = lease.pool().counters();
    match &counted {
        Ok(Committed::Applied(_)) | Err(CommitError::PartlyApplied { .. }) => {
            counters.commits.add()
        }
        Ok(Committed::Conflict) => counters.conflicts.add(),
        Err(CommitError::InDoubt(_)) => counters.in_doubt.add(),
        Err(_) => {}
    }
    counted
}

fn attempt(lease: &mut Lease, buffer: &mut Buffer, form: Form) -> Result<Committed, CommitError> {
    // Nothing was queued and nothing was asked of the server: there is nothing to commit. (Where
    // keys are watched the server is asked whether they changed.)
    let idle = lease.current().is_none_or(|link| link.state().is_clean());
    if buffer.commands() == 0 && idle && !form.watched {
        return Ok(Committed::Applied(replies(buffer, Vec::new())));
    }
    prove(lease, buffer, form)?;
    let deadline = lease.response_deadline();
    let Some(link) = lease.current() else {
        return Err(CheckoutError::Closed.into());
    };
    let watching = link.state().is_watching();
    let verdict = match exchange(link, buffer, deadline) {
        Ok(collector) => {
            link.has_answered();
            collector.verdict()
        }
        Err(Lost::BeforeExec(cause)) => {
            lease.found_dead(&cause);
            return Err(CommitError::lost_before_exec(cause));
        }
        Err(Lost::AfterExec(cause, collector)) => {
            lease.found_dead(&cause);
            match collector.verdict() {
                Verdict::Unknown => return Err(CommitError::InDoubt(InDoubt::new(cause))),
                known => known,
            }
        }
    };
    judge(lease, buffer, verdict, watching)
}

fn judge(
    lease: &mut Lease,
    buffer: &mut Buffer,
    verdict: Verdict,
    watching: bool,
) -> Result<Committed, CommitError> {
    match verdict {
        Verdict::Applied(values) => {
            if let Some(link) = lease.current() {
                link.wrote();
            }
            let replies = replies(buffer, values);
            match replies.failures() {
                0 => Ok(Committed::Applied(replies)),
                _ => Err(CommitError::PartlyApplied { replies }),
            }
        }
        Verdict::Nil if watching => Ok(Committed::Conflict),
        // The link watched something that nobody here asked for.
        Verdict::Nil => {
            lease.taint(Taint::LeftDirty);
            Err(CommitError::lost_before_exec(LinkError::unexpected(
                "a conflict on a connection that watched nothing",
            )))
        }
        Verdict::Rejected(refusal) => Err(rejected(lease, buffer, refusal)),
        Verdict::Bare(values) => Err(CommitError::NotIsolated { replies: replies(buffer, values) }),
        Verdict::Unknown => {
            lease.taint(Taint::Protocol);
            Err(CommitError::InDoubt(InDoubt::new(LinkError::unexpected(
                "EXEC's reply does not fit the transaction",
            ))))
        }
    }
}

fn rejected(lease: &mut Lease, buffer: &Buffer, refusal: Refusal) -> CommitError {
    note_server_change(lease, &refusal.error);
    let command = refusal
        .index
        .and_then(|index| buffer.name(index))
        .unwrap_or_else(|| refusal.word.to_owned());
    CommitError::rejected(refusal.index.map(|index| index as usize), command, &refusal.error)
}

pub(crate) fn note_server_change(lease: &mut Lease, error: &ServerError) {
    if matches!(error.code(), "READONLY" | "MASTERDOWN") {
        lease.server_changed();
    }
}

fn replies(buffer: &mut Buffer, values: Vec<Value>) -> Replies {
    let failures = exec::failures(&values, buffer.names());
    Replies::new(buffer.transaction(), values, buffer.take_holes(), failures)
}

/// Brings the link to where the commands may leave: it was heard of within the trust window, or
/// it has just answered MULTI.
///
/// A dead link is replaced as long as nothing of the user's was sent on it and it watches nothing.
fn prove(lease: &mut Lease, buffer: &Buffer, form: Form) -> Result<(), CommitError> {
    let (must_watch, must_be_in_multi) = (form.watched, buffer.is_flushed());
    let kept = lease.current().is_some_and(|link| {
        let state = link.state();
        (state.is_watching() || !must_watch) && (state.is_in_multi() || !must_be_in_multi)
    });
    if (must_watch || must_be_in_multi) && !kept {
        return Err(CommitError::lost_before_exec(LinkError::new(
            LinkErrorKind::Closed,
            "the connection was lost earlier in the scope",
        )));
    }
    loop {
        let trusted = lease.is_trusted();
        let deadline = lease.response_deadline().capped(form.checkout);
        let link = lease.link(form.checkout).map_err(CommitError::not_sent)?;
        let (multi, watching) = (link.state().is_in_multi(), link.state().is_watching());
        let answer = match (multi, trusted) {
            (true, true) => return Ok(()),
            // It has waited in MULTI since `begin`; asking anew is only free of consequences
            // while nothing is queued and nothing is watched.
            (true, false) if buffer.is_flushed() || watching => return Ok(()),
            (true, false) => link.multi_again(deadline),
            (false, true) if !form.immediate && !buffer.is_flushed() => return Ok(()),
            (false, _) => link.multi(deadline),
        };
        match answer {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => {
                note_server_change(lease, &error);
                return Err(CommitError::rejected(None, "MULTI".to_owned(), &error));
            }
            Err(cause) => {
                lease.found_dead(&cause);
                if watching || Instant::now() >= form.checkout {
                    return Err(CommitError::lost_before_exec(cause));
                }
                tracing::debug!(%cause, reason = Replaced::Closed.as_str(), "dead connection replaced before use");
            }
        }
    }
}

/// MULTI, awaited, for a scope that begins with it.
pub(crate) fn begin(lease: &mut Lease, buffer: &Buffer, form: Form) -> Result<(), CommitError> {
    prove(lease, buffer, Form { immediate: true, ..form })
}

enum Lost {
    BeforeExec(LinkError),
    AfterExec(LinkError, Box<Collector>),
}

/// One write that ends with EXEC, and its replies.
fn exchange(link: &mut Link, buffer: &mut Buffer, deadline: Deadline) -> Result<Collector, Lost> {
    let multi = !link.state().is_in_multi();
    let (commands, unsent) = (buffer.commands(), buffer.unsent());
    let expected = [(Expect::Multi, u32::from(multi)), (Expect::Queued, unsent), (Expect::Exec, 1)];
    link.send(buffer.with_exec(multi), &expected, deadline).map_err(Lost::BeforeExec)?;
    let mut collector = Collector::new(commands, commands - unsent);
    for (expect, count) in expected {
        for _ in 0..count {
            match (link.receive(deadline), expect) {
                (Ok(value), Expect::Multi) => collector.multi(value),
                (Ok(value), Expect::Queued) => collector.queued(value),
                (Ok(value), _) => collector.exec(value),
                (Err(cause), _) => return Err(Lost::AfterExec(cause, Box::new(collector))),
            }
        }
    }
    Ok(collector)
}

/// Sends the waiting commands of a large transaction and reads that they were queued.
pub(crate) fn flush(lease: &mut Lease, buffer: &mut Buffer, form: Form) -> Result<(), CommitError> {
    prove(lease, buffer, Form { immediate: true, ..form })?;
    let deadline = lease.response_deadline();
    let Some(link) = lease.current() else {
        return Err(CheckoutError::Closed.into());
    };
    let (commands, unsent) = (buffer.commands(), buffer.unsent());
    let mut collector = Collector::new(commands, commands - unsent);
    let mut answered = link.send(buffer.body(), &[(Expect::Queued, unsent)], deadline);
    for _ in 0..unsent {
        let Ok(()) = answered else { break };
        answered = link.receive(deadline).map(|value| collector.queued(value));
    }
    if let Err(cause) = answered {
        lease.found_dead(&cause);
        return Err(CommitError::lost_before_exec(cause));
    }
    link.has_answered();
    if let Some(refusal) = collector.refusal().cloned() {
        return Err(rejected(lease, buffer, refusal));
    }
    buffer.flushed();
    Ok(())
}

/// Leaves nothing of the scope behind on its link: DISCARD, UNWATCH, or the link is closed.
///
/// # Errors
/// How cleaning failed. The link is closed then.
pub(crate) fn clean(lease: &mut Lease) -> Result<(), Error> {
    let limit = lease.pool().settings().cleanup_timeout;
    let Some(link) = lease.current() else { return Ok(()) };
    let state = link.state();
    let (during, bytes, expect) = if state.is_clean() || state.tainted().is_some() {
        return Ok(());
    } else if !state.is_in_step() || std::thread::panicking() {
        link.taint(Taint::LeftDirty);
        return Ok(());
    } else if state.is_in_multi() {
        ("DISCARD", DISCARD, Expect::Discard)
    } else {
        ("UNWATCH", UNWATCH, Expect::Unwatch)
    };
    match link.call(bytes, expect, Deadline::after(limit)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::Command { command: during.to_owned(), error }),
        Err(source) => Err(Error::Lost {
            during: during.to_owned(),
            applied: crate::error::Applied::No,
            source,
        }),
    }
}
