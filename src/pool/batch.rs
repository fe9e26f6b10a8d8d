//! One write for several callers: whoever has a link sends along what others wait to send.
//!
//! Never: a caller taken along whom nobody tells what came of it.

use redis::Value;

use crate::connection::connection::Link;
use crate::connection::deadline::Deadline;
use crate::error::connection::ConnectionError;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::checkout::Lease;
use crate::pool::semaphore::{Abandoned, Errand};
use crate::protocol::batch::{BatchRequest, RequestKind};
use crate::protocol::connection_state::{Expect, Taint};
use crate::protocol::exec::{Collector, Verdict};
use crate::protocol::resp::encode::UNWATCH;
use crate::protocol::resp::reply::Reply;

impl Errand for BatchRequest {
    fn yields_before_wait(&self) -> bool {
        self.kind.yields_before_wait()
    }
}

/// The one who took it along panicked, or is held up: nobody can say how far he has come.
impl Abandoned for BatchResponse {
    fn abandoned() -> Self {
        let cause = ConnectionError::timed_out("whoever took it along did not say what came of it");
        Self::Interrupted(Interrupted { left: true, cause })
    }
}

/// Sends the own job and those that wait first, tells everybody, and gives the link on.
pub(crate) fn lead(lease: Lease, own: &BatchRequest) -> BatchResponse {
    let deadline = lease.response_deadline();
    lead_within(lease, own, deadline)
}

/// The same, where the exchange has a deadline of its own. Past it the link is lost for all jobs.
pub(crate) fn lead_within(
    mut lease: Lease,
    own: &BatchRequest,
    deadline: Deadline,
) -> BatchResponse {
    let mut members = lease.pool().take_jobs(own.bytes.len());
    let mut parcels = Parcels::new(&mut lease, 1 + members.len());
    parcels.pack(own);
    // Whoever is let go of here is told that nobody can say.
    members.retain(|member| member.with_job(|job| parcels.pack(job)).is_some());
    let (settled, changed) = exchange(&mut lease, &parcels, deadline);
    let mut settled = settled.into_iter();
    let own = settled.next();
    for (member, settled) in members.into_iter().zip(settled) {
        member.settle(settled);
    }
    // From here on a log may be written, which is the user's and may take its time.
    if changed {
        lease.tell_of_change();
    }
    parcels.unpack(&mut lease);
    // Last: some of those who were just told will be waiting again by the time that the next
    // leader runs, and travel with him. A link that was lost is closed here.
    drop(lease);
    own.unwrap_or_else(BatchResponse::abandoned)
}

/// What goes in one write.
struct Parcels {
    bytes: Vec<u8>,
    expected: Vec<(Expect, u32)>,
    /// What each of them is, and where its bytes end.
    jobs: Vec<(RequestKind, usize)>,
    /// The link watches its register, and that may have expired, which is nothing to these.
    unwatches: bool,
}

impl Parcels {
    fn new(lease: &mut Lease, jobs: usize) -> Self {
        let link = lease.current();
        let unwatches = link.as_ref().is_some_and(|link| link.state().watches_marker());
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

    fn pack(&mut self, job: &BatchRequest) {
        self.bytes.extend_from_slice(&job.bytes);
        self.expected.extend(job.kind.expected());
        self.jobs.push((job.kind, self.bytes.len()));
    }

    /// The link keeps the memory for the next ones.
    fn unpack(self, lease: &mut Lease) {
        if let Some(link) = lease.current() {
            link.keep_scratch(self.bytes);
        }
    }
}

/// One write and all its replies: what came of the jobs, in their order, and whether a refusal said
/// that the server has changed. What follows for the other links is noted when this returns: whoever
/// is told may try again at once.
fn exchange(
    lease: &mut Lease,
    parcels: &Parcels,
    deadline: Deadline,
) -> (Vec<BatchResponse>, bool) {
    let Parcels { bytes, expected, jobs, unwatches } = parcels;
    let mut settled = Vec::with_capacity(jobs.len());
    let Some(link) = lease.current() else { return (settled, false) };
    let mut incoming = Incoming { link, deadline, lost: None, refusals: Vec::new() };
    if let Err((left, cause)) = incoming.link.send_counted(bytes, expected, deadline) {
        settled.extend(jobs.iter().map(|(_, end)| {
            // The write that failed did not take its last byte.
            let left = *end <= left && *end < bytes.len();
            BatchResponse::Interrupted(Interrupted { left, cause: cause.clone() })
        }));
        incoming.lost = Some(cause);
    } else {
        incoming.read(&[(Expect::Unwatch, u32::from(*unwatches))], |_, _| {});
        settled.extend(jobs.iter().map(|(what, _)| incoming.of(*what)));
    }
    let Incoming { link, lost, refusals, .. } = incoming;
    if settled.iter().any(|settled| {
        matches!(settled, BatchResponse::Block(Verdict::Applied(_)) | BatchResponse::Calls(_))
    }) {
        link.wrote();
    }
    if settled.contains(&BatchResponse::Block(Verdict::Nil)) {
        // It watched something that was not asked for here.
        link.taint(Taint::LeftDirty);
    }
    if settled.iter().any(|settled| matches!(settled, BatchResponse::Block(Verdict::Unknown(_)))) {
        // Whichever reply does not fit, the next one may not be this connection's either.
        link.taint(Taint::Protocol);
    }
    match lost {
        None => link.has_answered(),
        Some(cause) => lease.distrust_others(&cause),
    }
    // The first that says so has done it all.
    let changed = refusals.iter().any(|code| lease.note(code));
    (settled, changed)
}

/// The replies to one write, as far as they come.
struct Incoming<'l> {
    link: &'l mut Link,
    deadline: Deadline,
    lost: Option<ConnectionError>,
    refusals: Vec<String>,
}

impl Incoming<'_> {
    /// Hands out the replies that come.
    fn read(&mut self, expected: &[(Expect, u32)], mut take: impl FnMut(Expect, Reply)) {
        if self.lost.is_some() {
            return;
        }
        let came = self.link.receive_each(expected, self.deadline, |expect, reply| {
            if let Reply::Value(Value::ServerError(error)) = &reply {
                self.refusals.push(error.code().to_owned());
            }
            take(expect, reply);
        });
        self.lost = came.err();
    }

    fn of(&mut self, what: RequestKind) -> BatchResponse {
        let settled = match what {
            RequestKind::Read => {
                let mut read = None;
                self.read(&what.expected(), |_, reply| read = Some(reply.into_value()));
                read.map(BatchResponse::Read)
            }
            RequestKind::Calls { count } => {
                let mut values = Vec::with_capacity(count as usize);
                self.read(&what.expected(), |_, reply| values.push(reply.into_value()));
                (values.len() == count as usize).then_some(BatchResponse::Calls(values))
            }
            RequestKind::Block { commands } => {
                let mut collector = Collector::new(commands, 0);
                self.read(&what.expected(), |expect, reply| collector.take(expect, reply));
                match collector.verdict() {
                    Verdict::Unknown(_) if self.lost.is_some() => None,
                    verdict => Some(BatchResponse::Block(verdict)),
                }
            }
        };
        settled.unwrap_or_else(|| match &self.lost {
            Some(cause) => {
                BatchResponse::Interrupted(Interrupted { left: true, cause: cause.clone() })
            }
            None => BatchResponse::abandoned(),
        })
    }
}
