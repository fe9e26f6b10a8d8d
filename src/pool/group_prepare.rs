//! What is sent on a connection before the requests of a group, and the refusals that end them.
//!
//! No request is sent before the replies were read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use redis::Value;

use crate::connection::connection::Interruption;
use crate::connection::deadline::Deadline;
use crate::error::connection::ConnectionError;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::group;
use crate::pool::group_request::{GroupJob, settle};
use crate::pool::line::Line;
use crate::protocol::connection_state::Expect;
use crate::protocol::exec::{RejectedCommand, Verdict};
use crate::protocol::marker::CommitMarker;
use crate::protocol::resp::encode::{DISCARD, MULTI, UNWATCH};
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;

/// A refusal, and the command that it is the reply to.
type Refusal = (Expect, ServerError);

/// Whether an exactly-once block waits.
pub(crate) fn awaits_register<S>(waiting: &VecDeque<Arc<GroupJob<S>>>) -> bool {
    waiting.iter().any(|job| job.look(|request| request.batch.exactly_once) == Some(true))
}

/// Sends MULTI alone and reads its reply: the server replies, and it does not refuse MULTI. If it did,
/// the commands of a block behind it would run one by one. Returns the refusal.
///
/// # Errors
/// The connection was lost.
pub(crate) async fn open_multi<L: Line>(
    line: &mut L,
    keeps_watch: bool,
    deadline: Deadline,
) -> Result<Option<ServerError>, ConnectionError> {
    let Some(connection) = line.current() else { return Err(ConnectionError::timed_out(NONE)) };
    let ends_watch = connection.state().watches_marker() && !keeps_watch;
    let bytes = [if ends_watch { UNWATCH } else { &[] }, MULTI].concat();
    let expected = [(Expect::Unwatch, u32::from(ends_watch)), (Expect::Multi, 1)];
    let mut refused = None;
    let mut take = |expect, reply| {
        if let (Expect::Multi, Reply::Value(Value::ServerError(error))) = (expect, reply) {
            refused = Some(ServerError::from_reply(&error, false));
        }
    };
    let opened = connection.exchange(&bytes, &expected, deadline, &mut take).await;
    if let Err(Interruption { cause, .. }) = opened {
        return Err(cause);
    }
    match &refused {
        // A refused UNWATCH concerns no request: they go to the next connection.
        None if connection.state().tainted().is_some() => return Err(not_cleaned()),
        None => connection.mark_alive(),
        // The next block asks again.
        Some(error) => line.on_server_error(error.code()),
    }
    Ok(refused)
}

const NONE: &str = "there is no connection";

#[cold]
fn not_cleaned() -> ConnectionError {
    ConnectionError::unexpected("a refused UNWATCH or DISCARD")
}

/// Ends the waiting blocks because the server refuses MULTI. `count` is called before each.
pub(crate) fn reject_blocks<S>(
    waiting: &mut VecDeque<Arc<GroupJob<S>>>,
    error: ServerError,
    count: impl Fn(),
) {
    let rejected = RejectedCommand { index: None, word: "MULTI", error };
    reject(waiting, count, |batch| batch.kind.is_block().then(|| rejected.clone()));
}

/// Whether the connection watches its register.
pub(crate) fn is_armed(line: &mut impl Line) -> bool {
    let age = line.context().settings().register_ttl / 2;
    line.current().is_some_and(|connection| connection.is_armed(age))
}

/// Returns the hash tag of the register that the next exactly-once block needs. `None`: the connection
/// watches that register, or no such block waits.
pub(crate) fn must_arm<S>(
    line: &mut impl Line,
    waiting: &VecDeque<Arc<GroupJob<S>>>,
) -> Option<Option<u32>> {
    let is_armed = is_armed(line);
    let armed = line.current()?.known_marker().map(CommitMarker::tag);
    // Without slots there is one register, and no need to look for the block.
    if is_armed && armed == Some(None) {
        return None;
    }
    group::next_tag(waiting).filter(|next| !is_armed || armed != Some(*next))
}

/// Writes the connection's register and watches it, and reads both replies: no EXEC of an exactly-once
/// block is sent before. Returns the refusal.
///
/// # Errors
/// The connection was lost.
pub(crate) async fn arm<L: Line>(
    line: &mut L,
    tag: Option<u32>,
    deadline: Deadline,
) -> Result<Option<Refusal>, ConnectionError> {
    let settings = Arc::clone(line.context().settings());
    let Some(connection) = line.current() else { return Err(ConnectionError::timed_out(NONE)) };
    let mut bytes = Vec::new();
    // MULTI was sent for a block that did not need the register, and DISCARD ends a watch too.
    let discards = connection.state().is_in_multi();
    let unwatches = !discards && connection.state().watches_marker();
    bytes.extend_from_slice(if discards { DISCARD } else { &[] });
    bytes.extend_from_slice(if unwatches { UNWATCH } else { &[] });
    let marker = connection.begin_register(&settings.prefix, tag, false)?;
    marker.set(&mut bytes, settings.register_ttl);
    marker.watch(&mut bytes);
    let expected = [
        (Expect::Discard, u32::from(discards)),
        (Expect::Unwatch, u32::from(unwatches)),
        (Expect::Plain, 1),
        (Expect::WatchMarker, 1),
    ];
    let (asked, mut refused) = (Instant::now(), None);
    let mut take = |expect, reply| {
        let is_cleanup = matches!(expect, Expect::Unwatch | Expect::Discard);
        if let (false, Reply::Value(Value::ServerError(error))) = (is_cleanup, reply) {
            refused.get_or_insert((expect, ServerError::from_reply(&error, false)));
        }
    };
    let armed = connection.exchange(&bytes, &expected, deadline, &mut take).await;
    if let Err(Interruption { cause, .. }) = armed {
        return Err(cause);
    }
    if refused.is_none() && connection.state().tainted().is_some() {
        return Err(not_cleaned());
    }
    connection.mark_alive();
    match &refused {
        None => connection.set_marker_written(Some(asked)),
        Some((_, error)) => line.on_server_error(error.code()),
    }
    Ok(refused)
}

/// Ends the waiting exactly-once blocks because the server refuses their register; in a cluster, those
/// of its slot. `count` is called before each.
pub(crate) fn reject_exactly_once<S>(
    waiting: &mut VecDeque<Arc<GroupJob<S>>>,
    tag: Option<u32>,
    (expect, error): &Refusal,
    count: impl Fn(),
) {
    let is_set = *expect == Expect::Plain;
    reject(waiting, count, |batch| {
        // SET of the register follows the block's commands.
        let index = is_set.then_some(batch.kind.commands());
        let (word, error) = ("WATCH of the register", error.clone());
        let needs = batch.exactly_once && group::tag(batch.slot) == tag;
        needs.then_some(RejectedCommand { index, word, error })
    });
}

/// Ends the waiting requests that the server refuses.
fn reject<S>(
    waiting: &mut VecDeque<Arc<GroupJob<S>>>,
    count: impl Fn(),
    rejection: impl Fn(&BatchRequest) -> Option<RejectedCommand>,
) {
    waiting.retain(|job| {
        let Some(Some(refusal)) = job.look(|request| rejection(&request.batch)) else {
            return true;
        };
        if let Some(request) = job.take() {
            count();
            settle(job, request, Ok(BatchResponse::Block(Verdict::Rejected(refusal))));
        }
        false
    });
}
