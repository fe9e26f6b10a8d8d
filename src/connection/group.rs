//! One write for several callers: whoever has a link sends along what others wait to send.
//!
//! Never: a caller taken along whom nobody tells what came of it.

use redis::Value;

use super::checkout::Abandoned;
use super::deadline::Deadline;
use super::link::Link;
use super::pool::Lease;
use crate::error::LinkError;
use crate::wire::encode::UNWATCH;
use crate::wire::exec::{Collector, Verdict};
use crate::wire::group::{Broken, Job, Settled, What};
use crate::wire::reply::Reply;
use crate::wire::state::{Expect, Taint};

/// The one who took it along panicked, or is held up: nobody can say how far he has come.
impl Abandoned for Settled {
    fn abandoned() -> Self {
        let cause = LinkError::timed_out("whoever took it along did not say what came of it");
        Self::Broken(Broken { left: true, cause })
    }
}

/// Sends the own job and those that wait first, tells everybody, and gives the link on.
pub(crate) fn lead(mut lease: Lease, own: &Job) -> Settled {
    let mut members = lease.pool().take_jobs(own.bytes.len());
    let mut parcels = Parcels::new(&mut lease, 1 + members.len());
    parcels.pack(own);
    // Whoever is let go of here is told that nobody can say.
    members.retain(|member| member.with_job(|job| parcels.pack(job)).is_some());
    let mut settled = exchange(&mut lease, &parcels).into_iter();
    parcels.unpack(&mut lease);
    let own = settled.next();
    for (member, settled) in members.into_iter().zip(settled) {
        member.settle(settled);
    }
    // Last: some of those who were just told will be waiting again by the time that the next
    // leader runs, and travel with him.
    drop(lease);
    own.unwrap_or_else(Settled::abandoned)
}

/// What goes in one write.
struct Parcels {
    bytes: Vec<u8>,
    expected: Vec<(Expect, u32)>,
    /// What each of them is, and where its bytes end.
    jobs: Vec<(What, usize)>,
    /// The link watches its register, and that may have expired, which is nothing to these.
    unwatches: bool,
}

impl Parcels {
    fn new(lease: &mut Lease, jobs: usize) -> Self {
        let link = lease.current();
        let unwatches = link.as_ref().is_some_and(|link| link.state().is_armed());
        let mut parcels = Self {
            bytes: link.map(Link::take_scratch).unwrap_or_default(),
            expected: Vec::with_capacity(1 + 3 * jobs),
            jobs: Vec::with_capacity(jobs),
            unwatches,
        };
        if unwatches {
            parcels.bytes.extend_from_slice(UNWATCH);
            parcels.expected.push((Expect::Unwatch, 1));
        }
        parcels
    }

    fn pack(&mut self, job: &Job) {
        self.bytes.extend_from_slice(&job.bytes);
        self.expected.extend(job.what.expected());
        self.jobs.push((job.what, self.bytes.len()));
    }

    /// The link keeps the memory for the next ones.
    fn unpack(self, lease: &mut Lease) {
        if let Some(link) = lease.current() {
            link.keep_scratch(self.bytes);
        }
    }
}

/// One write and all its replies: what came of the jobs, in their order.
fn exchange(lease: &mut Lease, parcels: &Parcels) -> Vec<Settled> {
    let Parcels { bytes, expected, jobs, unwatches } = parcels;
    let deadline = lease.response_deadline();
    let Some(link) = lease.current() else { return Vec::new() };
    let mut settled = Vec::with_capacity(jobs.len());
    let mut replies = Replies::new(link, deadline);
    if let Err((left, cause)) = replies.link.send_counted(bytes, expected, deadline) {
        settled.extend(jobs.iter().map(|(_, end)| {
            // The write that failed did not take its last byte.
            let left = *end <= left && *end < bytes.len();
            Settled::Broken(Broken { left, cause: cause.clone() })
        }));
        replies.lost = Some(cause);
    } else {
        if *unwatches {
            replies.next();
        }
        settled.extend(jobs.iter().map(|(what, _)| replies.of(*what)));
    }
    replies.conclude();
    let Replies { lost, refusals, .. } = replies;
    refusals.iter().for_each(|code| lease.heed(code));
    if let Some(cause) = lost {
        lease.found_dead(&cause);
    }
    settled
}

/// The replies to one write, as long as they come.
struct Replies<'l> {
    link: &'l mut Link,
    deadline: Deadline,
    lost: Option<LinkError>,
    /// The codes of what was refused.
    refusals: Vec<String>,
    wrote: bool,
    nil: bool,
}

impl<'l> Replies<'l> {
    fn new(link: &'l mut Link, deadline: Deadline) -> Self {
        Self { link, deadline, lost: None, refusals: Vec::new(), wrote: false, nil: false }
    }

    fn next(&mut self) -> Option<Reply> {
        if self.lost.is_some() {
            return None;
        }
        match self.link.receive(self.deadline) {
            Ok(reply) => {
                if let Reply::Value(Value::ServerError(error)) = &reply {
                    self.refusals.push(error.code().to_owned());
                }
                Some(reply)
            }
            Err(cause) => {
                self.lost = Some(cause);
                None
            }
        }
    }

    fn of(&mut self, what: What) -> Settled {
        let settled = match what {
            What::Read => self.next().map(|reply| Settled::Read(reply.into_value())),
            What::Block { commands } => match self.verdict(commands) {
                Verdict::Unknown if self.lost.is_some() => None,
                verdict => Some(Settled::Block(verdict)),
            },
        };
        settled.unwrap_or_else(|| match &self.lost {
            Some(cause) => Settled::Broken(Broken { left: true, cause: cause.clone() }),
            None => Settled::abandoned(),
        })
    }

    /// What the replies that come prove of a block.
    fn verdict(&mut self, commands: u32) -> Verdict {
        let mut collector = Collector::new(commands, 0);
        if let Some(reply) = self.next() {
            collector.multi(reply);
        }
        for _ in 0..commands {
            let Some(reply) = self.next() else { break };
            collector.queued(reply);
        }
        if let Some(reply) = self.next() {
            collector.exec(reply);
        }
        let verdict = collector.verdict();
        self.wrote |= matches!(verdict, Verdict::Applied(_));
        self.nil |= verdict == Verdict::Nil;
        verdict
    }

    /// What they say of the link.
    fn conclude(&mut self) {
        if self.wrote {
            self.link.wrote();
        }
        if self.nil {
            // It watched something that nobody here asked for.
            self.link.taint(Taint::LeftDirty);
        }
        if self.lost.is_none() {
            self.link.has_answered();
        }
    }
}
