//! One write for several callers: the leader of a batch sends the requests of waiting callers
//! with its own, and passes each its outcome.

use redis::Value;

use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::error::connection::ConnectionError;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::checkout::Checkout;
use crate::pool::line::Line;
use crate::pool::semaphore::{Batchable, OutcomeUnknown};
use crate::protocol::batch::RequestKind;
use crate::protocol::connection_state::{CloseReason, Expect};
use crate::protocol::exec::{Collector, Verdict};
use crate::protocol::resp::encode::UNWATCH;
use crate::protocol::resp::reply::Reply;
use crate::sync::now::now;

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
/// connection. After the deadline the connection is lost for all requests.
pub(crate) fn send_batch(
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
        self.bytes.extend_from_slice(request.sent_bytes());
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
    let Some(connection) = checkout.current() else { return (Vec::new(), false) };
    let mut replies = BatchReplies::new(requests, *unwatches);
    let exchanged = now(connection
        .exchange(bytes, expected, deadline, &mut |expect, reply| replies.take(expect, reply)));
    let refusals = std::mem::take(&mut replies.refusals);
    let response: Vec<_> = match &exchanged {
        Err(Interruption { left: Some(left), cause }) => {
            let interrupted = requests.iter().map(|(_, end)| {
                // The write that failed did not take its last byte.
                let left = *end <= *left && *end < bytes.len();
                BatchResponse::Interrupted(Interrupted { left, cause: cause.clone() })
            });
            interrupted.collect()
        }
        Err(Interruption { cause, .. }) => replies.responses(Some(cause)),
        Ok(()) => replies.responses(None),
    };
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
    match exchanged {
        Ok(()) => connection.mark_alive(),
        Err(Interruption { cause, .. }) => checkout.context().distrust_idle(&cause),
    }
    // The first such refusal already replaces the connections.
    let changed = refusals.iter().any(|code| checkout.on_server_error_quiet(code));
    (response, changed)
}

/// The replies to one write, as far as they arrived.
struct BatchReplies<'b> {
    /// The requests whose first reply has not arrived yet.
    requests: std::slice::Iter<'b, (RequestKind, usize)>,
    /// The replies to the request that the next reply belongs to, and the number that are left.
    current: Option<(RequestReplies, u32)>,
    responses: Vec<BatchResponse>,
    /// Whether the next reply is UNWATCH's.
    unwatches: bool,
    refusals: Vec<String>,
}

/// The replies to one request.
enum RequestReplies {
    Read(Option<Value>),
    Calls(Vec<Value>),
    Block(Collector),
}

impl<'b> BatchReplies<'b> {
    fn new(requests: &'b [(RequestKind, usize)], unwatches: bool) -> Self {
        let responses = Vec::with_capacity(requests.len());
        let requests = requests.iter();
        Self { requests, current: None, responses, unwatches, refusals: Vec::new() }
    }

    fn take(&mut self, expect: Expect, reply: Reply) {
        if let Reply::Value(Value::ServerError(error)) = &reply {
            self.refusals.push(error.code().to_owned());
        }
        if std::mem::take(&mut self.unwatches) {
            return;
        }
        if self.current.is_none() {
            self.current = self.requests.next().map(|(kind, _)| RequestReplies::new(*kind));
        }
        let Some((replies, left)) = &mut self.current else { return };
        *left = left.saturating_sub(reply.count());
        let complete = *left == 0;
        match replies {
            RequestReplies::Read(read) => *read = Some(reply.into_value()),
            RequestReplies::Calls(values) => values.push(reply.into_value()),
            RequestReplies::Block(collector) => collector.take(expect, reply),
        }
        if complete && let Some((replies, _)) = self.current.take() {
            self.responses.push(replies.response(0, None));
        }
    }

    /// Returns the outcome of each request. `lost`: the connection was lost before all replies
    /// arrived.
    fn responses(mut self, lost: Option<&ConnectionError>) -> Vec<BatchResponse> {
        let incomplete = self.requests.map(|(kind, _)| RequestReplies::new(*kind));
        let incomplete = self.current.into_iter().chain(incomplete);
        self.responses.extend(incomplete.map(|(replies, left)| replies.response(left, lost)));
        self.responses
    }
}

impl RequestReplies {
    /// No replies yet, and the number that are awaited.
    fn new(kind: RequestKind) -> (Self, u32) {
        let replies = match kind {
            RequestKind::Read => Self::Read(None),
            RequestKind::Calls { count } => Self::Calls(Vec::with_capacity(count as usize)),
            RequestKind::Block { commands } => Self::Block(Collector::new(commands, 0)),
        };
        (replies, kind.expected().iter().map(|(_, count)| count).sum())
    }

    /// `left`: number of replies that did not arrive.
    fn response(self, left: u32, lost: Option<&ConnectionError>) -> BatchResponse {
        let response = match self {
            Self::Read(read) => read.map(BatchResponse::Read),
            Self::Calls(values) => (left == 0).then_some(BatchResponse::Calls(values)),
            Self::Block(collector) => match collector.verdict() {
                Verdict::Unknown(_) if lost.is_some() => None,
                verdict => Some(BatchResponse::Block(verdict)),
            },
        };
        response.unwrap_or_else(|| match lost {
            Some(cause) => {
                BatchResponse::Interrupted(Interrupted { left: true, cause: cause.clone() })
            }
            None => BatchResponse::outcome_unknown(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_reply_is_judged_by_itself_whatever_is_lost_behind_it() {
        let requests = [(RequestKind::Block { commands: 1 }, 10), (RequestKind::Read, 20)];
        let mut replies = BatchReplies::new(&requests, false);
        replies.take(Expect::Multi, Reply::Value(Value::Okay));
        replies.take(Expect::Queued, Reply::Queued(1));
        // Not a reply of EXEC's.
        replies.take(Expect::Exec, Reply::Value(Value::Int(1)));
        let lost = ConnectionError::timed_out("lost");
        let responses = replies.responses(Some(&lost));
        let [BatchResponse::Block(Verdict::Unknown(_)), BatchResponse::Interrupted(read)] =
            &*responses
        else {
            panic!("{responses:?}")
        };
        assert!(read.left);
    }
}
