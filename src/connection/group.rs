//! One write for several callers: whoever has a link sends along what others wait to send.
//!
//! Never: a caller taken along whom nobody tells what came of it.

use super::checkout::{Abandoned, Member};
use super::deadline::Deadline;
use super::link::Link;
use super::pool::Lease;
use crate::error::LinkError;
use crate::wire::encode::UNWATCH;
use crate::wire::group::{Broken, Job, Settled, What};
use crate::wire::reply::Reply;
use crate::wire::state::{Expect, Taint};

/// The one who took it along panicked, or is held up: nobody can say how far he has come.
impl Abandoned for Settled {
    fn abandoned() -> Self {
        let cause = LinkError::timed_out("whoever took it along did not say what came of it");
        let broken = Broken { left: true, cause };
        Self { replies: Vec::new(), broken: Some(broken) }
    }
}

/// Sends the own job and those that wait first, gives the link on, and tells everybody.
pub(crate) fn lead(mut lease: Lease, own: &Job) -> Settled {
    let members = lease.pool().take_jobs(own.bytes.len());
    let mut settled = exchange(&mut lease, own, &members).into_iter();
    // The link goes to the next leader before anybody here does anything else.
    drop(lease);
    let own = settled.next().unwrap_or_else(Settled::abandoned);
    for (member, settled) in members.into_iter().zip(settled) {
        member.settle(settled);
    }
    own
}

/// One write and all its replies: what came of the own job, and of the others in their order.
fn exchange(lease: &mut Lease, own: &Job, members: &[Member<Job, Settled>]) -> Vec<Settled> {
    let deadline = lease.response_deadline();
    let jobs = || std::iter::once(own).chain(members.iter().map(|member| &member.job));
    let Some(link) = lease.current() else { return Vec::new() };
    // Its register may have expired, and that is nothing to these.
    let unwatch = if link.state().is_armed() { UNWATCH } else { b"" };
    let mut bytes =
        Vec::with_capacity(unwatch.len() + jobs().map(|job| job.bytes.len()).sum::<usize>());
    bytes.extend_from_slice(unwatch);
    jobs().for_each(|job| bytes.extend_from_slice(&job.bytes));
    let mut expected = Vec::with_capacity(1 + 3 * (1 + members.len()));
    expected.push((Expect::Unwatch, u32::from(!unwatch.is_empty())));
    jobs().for_each(|job| expected.extend(job.what.expected()));
    let mut settled = Vec::with_capacity(1 + members.len());
    let mut lost = None;
    if let Err((left, cause)) = link.send_counted(&bytes, &expected, deadline) {
        let mut end = unwatch.len();
        for job in jobs() {
            end += job.bytes.len();
            // The write that failed did not take its last byte.
            let left = end <= left && end < bytes.len();
            let broken = Some(Broken { left, cause: cause.clone() });
            settled.push(Settled { replies: Vec::new(), broken });
        }
        lost = Some(cause);
    } else {
        if !unwatch.is_empty() {
            lost = link.receive(deadline).err();
        }
        settled.extend(jobs().map(|job| read(link, job.what, deadline, &mut lost)));
    }
    conclude(lease, own, members, &settled, lost);
    settled
}

fn read(link: &mut Link, what: What, deadline: Deadline, lost: &mut Option<LinkError>) -> Settled {
    let count = what.expected().iter().map(|(_, count)| *count as usize).sum();
    let mut replies = Vec::with_capacity(if lost.is_none() { count } else { 0 });
    while lost.is_none() && replies.len() < count {
        match link.receive(deadline) {
            Ok(reply) => replies.push(reply),
            Err(cause) => *lost = Some(cause),
        }
    }
    let broken = lost.clone().filter(|_| replies.len() < count);
    Settled { replies, broken: broken.map(|cause| Broken { left: true, cause }) }
}

/// What the answers say of the link, and of the server.
fn conclude(
    lease: &mut Lease,
    own: &Job,
    members: &[Member<Job, Settled>],
    settled: &[Settled],
    lost: Option<LinkError>,
) {
    use redis::Value;

    let blocks = std::iter::once(own).chain(members.iter().map(|member| &member.job));
    let blocks = blocks.zip(settled).filter(|(job, _)| job.what != What::Read);
    let last = blocks.filter_map(|(_, settled)| settled.replies.last());
    let (mut wrote, mut nil) = (false, false);
    last.for_each(|reply| {
        wrote |= matches!(reply, Reply::Value(Value::Array(_)));
        nil |= *reply == Reply::Value(Value::Nil);
    });
    if let Some(link) = lease.current() {
        if wrote {
            link.wrote();
        }
        if nil {
            // It watched something that nobody here asked for.
            link.taint(Taint::LeftDirty);
        }
        if lost.is_none() {
            link.has_answered();
        }
    }
    for reply in settled.iter().flat_map(|settled| &settled.replies) {
        if let Reply::Value(Value::ServerError(error)) = reply {
            lease.heed(error.code());
        }
    }
    if let Some(cause) = lost {
        lease.found_dead(&cause);
    }
}
