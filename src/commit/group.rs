//! Blocks that travel together: who gets a link sends those that wait with him along.
//!
//! Each is its own MULTI…EXEC, so each is as isolated as alone and is told its own outcome.
//!
//! Never: a block taken along that nobody tells what came of it.

use std::time::Instant;

use super::{Committed, count, note_server_change, refused, replies};
use crate::connection::checkout::Member;
use crate::connection::link::Deadline;
use crate::connection::pool::{Joined, Lease, Pool};
use crate::error::{CheckoutError, CommitError, InDoubt, LinkError};
use crate::wire::buffer::{Buffer, Start};
use crate::wire::encode::UNWATCH;
use crate::wire::exec::{Collector, Verdict};
use crate::wire::group::{Job, Settled};
use crate::wire::state::{Expect, Taint};

/// Commits what `buffer` holds, alone or with others.
pub(crate) fn commit(
    pool: &Pool,
    buffer: &mut Buffer,
    checkout: Instant,
) -> Result<Committed, CommitError> {
    let bytes = buffer.closed(Start::Multi, b"", b"").bytes.to_vec();
    let job = Job { bytes, commands: buffer.commands() };
    let settled = match pool.join(job, checkout)? {
        Joined::Settled(settled) => settled,
        Joined::Lead(lease, own) => lead(lease, own, checkout)?,
    };
    let committed = told(buffer, settled);
    count(pool.counters(), &committed);
    committed
}

/// What the replies of one block say to who queued it.
fn told(buffer: &mut Buffer, settled: Settled) -> Result<Committed, CommitError> {
    let error = match settled {
        Settled::Answered(Verdict::Applied(values)) => {
            let replies = replies(buffer, values);
            match replies.failures() {
                0 => return Ok(Committed::Applied(replies)),
                _ => CommitError::PartlyApplied { replies },
            }
        }
        Settled::Answered(Verdict::Rejected(refusal)) => refused(buffer, refusal),
        Settled::Answered(Verdict::Bare(values)) => {
            CommitError::NotIsolated { replies: replies(buffer, values) }
        }
        Settled::Answered(Verdict::Nil) => CommitError::lost_before_exec(LinkError::unexpected(
            "a conflict on a connection that watched nothing",
        )),
        Settled::Answered(Verdict::Unknown) => CommitError::InDoubt(InDoubt::new(
            LinkError::unexpected("EXEC's reply does not fit the transaction"),
        )),
        Settled::NotSent(cause) => CommitError::lost_before_exec(cause),
        Settled::InDoubt(cause) => CommitError::InDoubt(InDoubt::new(cause)),
    };
    Err(error)
}

/// Sends the own block and those that wait first, and tells everybody.
///
/// # Errors
/// No link that answers was to be had; nobody was taken along.
fn lead(mut lease: Lease, own: Job, checkout: Instant) -> Result<Settled, CommitError> {
    lease.answering(checkout).map_err(CommitError::not_sent)?;
    let members = lease.pool().take_jobs(own.bytes.len());
    let (own, settled) = exchange(&mut lease, &own, &members);
    // The link goes to the next leader before anybody here does anything else.
    drop(lease);
    for (member, settled) in members.into_iter().zip(settled) {
        member.settle(settled);
    }
    Ok(own)
}

/// One write and all its replies: what came of the own block, and of the others in their order.
fn exchange(
    lease: &mut Lease,
    own: &Job,
    members: &[Member<Job, Settled>],
) -> (Settled, Vec<Settled>) {
    let deadline = lease.response_deadline();
    let jobs = || std::iter::once(own).chain(members.iter().map(|member| &member.job));
    let Some(link) = lease.current() else {
        let closed = LinkError::unexpected(&CheckoutError::Closed.to_string());
        let lost = members.iter().map(|_| Settled::NotSent(closed.clone())).collect();
        return (Settled::NotSent(closed), lost);
    };
    // Its register may have expired, and that is nothing to these blocks.
    let unwatch = if link.state().is_armed() { UNWATCH } else { b"" };
    let mut bytes = Vec::new();
    let mut expected = Vec::with_capacity(1 + 3 * (1 + members.len()));
    expected.push((Expect::Unwatch, u32::from(!unwatch.is_empty())));
    if members.is_empty() && unwatch.is_empty() {
        // Nothing to put together.
    } else {
        bytes.reserve(unwatch.len() + jobs().map(|job| job.bytes.len()).sum::<usize>());
        bytes.extend_from_slice(unwatch);
        jobs().for_each(|job| bytes.extend_from_slice(&job.bytes));
    }
    for job in jobs() {
        expected.extend([(Expect::Multi, 1), (Expect::Queued, job.commands), (Expect::Exec, 1)]);
    }
    let whole = if bytes.is_empty() { &own.bytes } else { &bytes };
    let mut answers = Answers::default();
    if let Err((left, cause)) = link.send_counted(whole, &expected, deadline) {
        let (mut end, last) = (unwatch.len(), whole.len());
        for job in jobs() {
            end += job.bytes.len();
            // The write that failed did not take its last byte, which is the last EXEC's.
            answers.settled.push(match end > left || end == last {
                true => Settled::NotSent(cause.clone()),
                false => Settled::InDoubt(cause.clone()),
            });
        }
        answers.lost = Some(cause);
    } else {
        if !unwatch.is_empty() {
            answers.lost = link.receive(deadline).err();
        }
        for job in jobs() {
            answers.read(link, job, deadline);
        }
    }
    answers.conclude(lease)
}

/// What came of each block, and what that says of the link.
#[derive(Default)]
struct Answers {
    settled: Vec<Settled>,
    lost: Option<LinkError>,
}

impl Answers {
    fn read(&mut self, link: &mut crate::connection::link::Link, job: &Job, deadline: Deadline) {
        let mut collector = Collector::new(job.commands, 0);
        let expected = [(Expect::Multi, 1), (Expect::Queued, job.commands), (Expect::Exec, 1)];
        for (expect, count) in expected {
            for _ in 0..count {
                if self.lost.is_some() {
                    break;
                }
                match (link.receive(deadline), expect) {
                    (Ok(value), Expect::Multi) => collector.multi(value),
                    (Ok(value), Expect::Queued) => collector.queued(value),
                    (Ok(value), _) => collector.exec(value),
                    (Err(cause), _) => self.lost = Some(cause),
                }
            }
        }
        self.settled.push(match (collector.verdict(), &self.lost) {
            (Verdict::Unknown, Some(cause)) => Settled::InDoubt(cause.clone()),
            (verdict, _) => Settled::Answered(verdict),
        });
    }

    fn conclude(mut self, lease: &mut Lease) -> (Settled, Vec<Settled>) {
        if let Some(cause) = &self.lost {
            lease.found_dead(cause);
        } else if let Some(link) = lease.current() {
            link.has_answered();
        }
        for settled in &self.settled {
            match settled {
                Settled::Answered(Verdict::Applied(_)) => {
                    if let Some(link) = lease.current() {
                        link.wrote();
                    }
                }
                Settled::Answered(Verdict::Rejected(refusal)) => {
                    note_server_change(lease, &refusal.error);
                }
                Settled::Answered(Verdict::Nil) => lease.taint(Taint::LeftDirty),
                Settled::Answered(Verdict::Unknown) => lease.taint(Taint::Protocol),
                _ => {}
            }
        }
        let others = self.settled.split_off(self.settled.len().min(1));
        let own = self.settled.pop();
        (own.unwrap_or(Settled::InDoubt(LinkError::panicked())), others)
    }
}
