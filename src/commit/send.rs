//! One write that ends with EXEC and the commands after it, and its replies. No reply is left
//! unread on a connection that is kept.

use crate::commit::options::CommitOptions;
use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::error::connection::ConnectionError;
use crate::protocol::connection_state::Expect;
use crate::protocol::exec::Collector;
use crate::protocol::queue::{CommandQueue, Prefix};
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::resp::encode::ASKING;
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;

pub(crate) struct CommitReplies {
    pub(crate) collector: Collector,
    pub(crate) acks: Option<Result<ReplicaAcks, ServerError>>,
}

pub(crate) enum ConnectionLost {
    BeforeExec(ConnectionError),
    AfterExec(ConnectionError, Box<Collector>),
}

/// Sends the rest of the transaction with EXEC, and reads all of its replies.
pub(crate) fn exchange(
    connection: &mut Connection,
    queue: &mut CommandQueue,
    options: &CommitOptions,
    settings: &Settings,
    needs_asking: bool,
) -> Result<CommitReplies, ConnectionLost> {
    let Envelope { internal, internal_commands, after_exec } =
        envelope(connection, options, settings, needs_asking)
            .map_err(ConnectionLost::BeforeExec)?;
    let exactly_once = options.resolver.is_some();
    let start = match (
        connection.state().is_in_multi(),
        connection.state().watches_marker() && !exactly_once,
    ) {
        (true, _) => Prefix::Commands,
        // The register may have expired, which does not concern this transaction.
        (false, true) if !connection.state().is_watching() => Prefix::Unwatch,
        (false, _) => Prefix::Multi,
    };
    let (commands, unsent) = (queue.commands(), queue.unsent());
    let expected = [
        (Expect::Unwatch, u32::from(start == Prefix::Unwatch)),
        (Expect::Multi, u32::from(start != Prefix::Commands)),
        (Expect::Queued, unsent + internal_commands),
        (Expect::Exec, 1),
        (Expect::Plain, u32::from(exactly_once && needs_asking)),
        (Expect::WatchMarker, u32::from(exactly_once)),
        (Expect::Plain, u32::from(options.durability.is_some())),
    ];
    let replication_wait =
        options.durability.map(|durability| durability.timeout()).unwrap_or_default();
    let deadline = Deadline::after(settings.response_timeout + replication_wait);
    let mut collector = Collector::new(commands + internal_commands, commands - unsent);
    let closed = queue.finish(start, &internal, &after_exec);
    let (bytes, with_exec) = (closed.bytes, closed.with_exec);
    if let Err((sent, cause)) = connection.send_counted(bytes, &expected, deadline) {
        // If the bytes up to the end of EXEC were sent, EXEC may run.
        let exec_not_sent = after_exec.is_empty() || sent < with_exec;
        return Err(match exec_not_sent {
            true => ConnectionLost::BeforeExec(cause),
            false => ConnectionLost::AfterExec(cause, Box::new(collector)),
        });
    }
    let mut acks = None;
    let received = connection.receive_each(&expected, deadline, |expect, reply| match expect {
        Expect::Plain => {
            let value = reply.into_value();
            acks = options.durability.map(|wanted| wanted.acks(&value));
        }
        _ => collector.take(expect, reply),
    });
    match received {
        Ok(()) => Ok(CommitReplies { collector, acks }),
        Err(cause) => Err(ConnectionLost::AfterExec(cause, Box::new(collector))),
    }
}

/// The commands around EXEC for the transaction's options.
struct Envelope {
    /// Commands that are queued after the user's.
    internal: Vec<u8>,
    internal_commands: u32,
    /// Commands after EXEC.
    after_exec: Vec<u8>,
}

fn envelope(
    connection: &mut Connection,
    options: &CommitOptions,
    settings: &Settings,
    needs_asking: bool,
) -> Result<Envelope, ConnectionError> {
    let mut envelope =
        Envelope { internal: Vec::new(), internal_commands: 0, after_exec: Vec::new() };
    if let Some(exists) = &options.cluster.exists {
        envelope.internal.extend_from_slice(exists);
        envelope.internal_commands += 1;
    }
    if options.resolver.is_some() {
        let marker = connection.marker(&settings.prefix)?;
        marker.advance();
        if let Some(key) = &options.idempotency_key {
            key.set(&mut envelope.internal, marker);
            envelope.internal_commands += 1;
        }
        marker.set(&mut envelope.internal, settings.register_ttl);
        envelope.internal_commands += 1;
        if needs_asking {
            envelope.after_exec.extend_from_slice(ASKING);
        }
        marker.watch(&mut envelope.after_exec);
    }
    if let Some(durability) = &options.durability {
        durability.write(&mut envelope.after_exec);
    }
    Ok(envelope)
}

/// Sends the queued commands without EXEC, and reads that they were queued.
pub(crate) fn send_queued(
    connection: &mut Connection,
    queue: &CommandQueue,
    deadline: Deadline,
) -> (Collector, Result<(), ConnectionError>) {
    let (commands, unsent) = (queue.commands(), queue.unsent());
    let mut collector = Collector::new(commands, commands - unsent);
    let expected = [(Expect::Queued, unsent)];
    let answered = connection.send(queue.body(), &expected, deadline).and_then(|()| {
        connection.receive_each(&expected, deadline, |expect, reply| collector.take(expect, reply))
    });
    if answered.is_ok() {
        connection.mark_alive();
    }
    (collector, answered)
}
