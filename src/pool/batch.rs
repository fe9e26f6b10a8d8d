//! One write for several callers: the leader of a batch sends the requests of waiting callers
//! with its own, and passes each its outcome.

use redis::Value;

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::error::connection::ConnectionError;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::checkout::Checkout;
use crate::pool::semaphore::{Batchable, OutcomeUnknown};
use crate::protocol::batch::{BatchRequest, RequestKind};
use crate::protocol::connection_state::{CloseReason, Expect};
use crate::protocol::exec::{Collector, Verdict};
use crate::protocol::resp::encode::UNWATCH;
use crate::protocol::resp::reply::Reply;

impl Batchable for BatchRequest {
    fn yields_before_wait(&self) -> bool {
        self.kind.yields_before_wait()
    }
}

/// The leader panicked or is delayed, so the outcome is unknown.
impl OutcomeUnknown for BatchResponse {
    fn outcome_unknown() -> Self {
        let cause = ConnectionError::timed_out("the caller that sent the batch returned no result");
        Self::Interrupted(Interrupted { left: true, cause })
    }
}

/// Sends the leader's request and the first waiting ones, passes on the responses, and returns the
/// connection.
pub(crate) fn send_batch(checkout: Checkout, own: &BatchRequest) -> BatchResponse {
    let deadline = checkout.response_deadline();
    send_batch_within(checkout, own, deadline)
}

/// The same with a deadline for the exchange. After it the connection is lost for all requests.
pub(crate) fn send_batch_within(
    mut checkout: Checkout,
    own: &BatchRequest,
    deadline: Deadline,
) -> BatchResponse {
    let mut members = checkout.pool().take_batch(own.bytes.len());
    let mut batch = Batch::new(&mut checkout, 1 + members.len());
    batch.push(own);
    // Dropped members get "outcome unknown".
    members.retain(|member| member.with_request(|request| batch.push(request)).is_some());
    let (response, changed) = exchange(&mut checkout, &batch, deadline);
    let mut response = response.into_iter();
    let own = response.next();
    for (member, response) in members.into_iter().zip(response) {
        member.settle(response);
    }
    // From here on a log may be written; it belongs to the user and may take its time.
    if changed {
        checkout.log_server_change();
    }
    batch.finish(&mut checkout);
    // This comes last: some of these callers wait again before the next leader runs, and join its
    // batch. A lost connection is closed here.
    drop(checkout);
    own.unwrap_or_else(BatchResponse::outcome_unknown)
}

/// The requests of one write.
struct Batch {
    bytes: Vec<u8>,
    expected: Vec<(Expect, u32)>,
    /// The kind of each request, and the end of its bytes.
    requests: Vec<(RequestKind, usize)>,
    /// The connection watches its register, which may have expired; these requests do not depend on
    /// it.
    unwatches: bool,
}

impl Batch {
    fn new(checkout: &mut Checkout, requests: usize) -> Self {
        let connection = checkout.current();
        let unwatches =
            connection.as_ref().is_some_and(|connection| connection.state().watches_marker());
        let mut batch = Self {
            bytes: connection.map(Connection::take_scratch).unwrap_or_default(),
            expected: Vec::with_capacity(1 + 3 * requests),
            requests: Vec::with_capacity(requests),
            unwatches,
        };
        if unwatches {
            batch.bytes.extend_from_slice(UNWATCH);
            batch.expected.push((Expect::Unwatch, 1));
        }
        batch
    }

    fn push(&mut self, request: &BatchRequest) {
        self.bytes.extend_from_slice(&request.bytes);
        self.expected.extend(request.kind.expected());
        self.requests.push((request.kind, self.bytes.len()));
    }

    /// Returns the buffer to the connection, for the next batch.
    fn finish(self, checkout: &mut Checkout) {
        if let Some(connection) = checkout.current() {
            connection.keep_scratch(self.bytes);
        }
    }
}

/// Sends one write and reads all its replies. Returns the responses in their order, and whether a
/// refusal shows that the server has changed. The caller acts on that after this returns, because a
/// member may start its next attempt at once.
fn exchange(
    checkout: &mut Checkout,
    batch: &Batch,
    deadline: Deadline,
) -> (Vec<BatchResponse>, bool) {
    let Batch { bytes, expected, requests, unwatches } = batch;
    let mut response = Vec::with_capacity(requests.len());
    let Some(connection) = checkout.current() else { return (response, false) };
    let mut replies = BatchReplies { connection, deadline, lost: None, refusals: Vec::new() };
    if let Err((left, cause)) = replies.connection.send_counted(bytes, expected, deadline) {
        response.extend(requests.iter().map(|(_, end)| {
            // The write that failed did not take its last byte.
            let left = *end <= left && *end < bytes.len();
            BatchResponse::Interrupted(Interrupted { left, cause: cause.clone() })
        }));
        replies.lost = Some(cause);
    } else {
        replies.read(&[(Expect::Unwatch, u32::from(*unwatches))], |_, _| {});
        response.extend(requests.iter().map(|(what, _)| replies.of(*what)));
    }
    let BatchReplies { connection, lost, refusals, .. } = replies;
    if response.iter().any(|response| {
        matches!(response, BatchResponse::Block(Verdict::Applied(_)) | BatchResponse::Calls(_))
    }) {
        connection.mark_written();
    }
    if response.contains(&BatchResponse::Block(Verdict::Nil)) {
        // The connection watched a key that no request here watched.
        connection.taint(CloseReason::LeftDirty);
    }
    if response.iter().any(|response| matches!(response, BatchResponse::Block(Verdict::Unknown(_))))
    {
        // After a reply that does not fit, the next one may belong to another connection too.
        connection.taint(CloseReason::Protocol);
    }
    match lost {
        None => connection.mark_alive(),
        Some(cause) => checkout.distrust_idle(&cause),
    }
    // The first such refusal already replaces the connections.
    let changed = refusals.iter().any(|code| checkout.on_server_error_quiet(code));
    (response, changed)
}

/// The replies to one write, as far as they arrive.
struct BatchReplies<'l> {
    connection: &'l mut Connection,
    deadline: Deadline,
    lost: Option<ConnectionError>,
    refusals: Vec<String>,
}

impl BatchReplies<'_> {
    /// Passes the replies to `take` as they arrive.
    fn read(&mut self, expected: &[(Expect, u32)], mut take: impl FnMut(Expect, Reply)) {
        if self.lost.is_some() {
            return;
        }
        let came = self.connection.receive_each(expected, self.deadline, |expect, reply| {
            if let Reply::Value(Value::ServerError(error)) = &reply {
                self.refusals.push(error.code().to_owned());
            }
            take(expect, reply);
        });
        self.lost = came.err();
    }

    fn of(&mut self, what: RequestKind) -> BatchResponse {
        let response = match what {
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
        response.unwrap_or_else(|| match &self.lost {
            Some(cause) => {
                BatchResponse::Interrupted(Interrupted { left: true, cause: cause.clone() })
            }
            None => BatchResponse::outcome_unknown(),
        })
    }
}
