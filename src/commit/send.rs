//! One write that ends with EXEC and what must follow it, and its replies.
//!
//! Never: a reply left unread on a link that is kept.

use crate::commit::CommitOptions;
use crate::connection::connection::Link;
use crate::connection::deadline::Deadline;
use crate::error::connection::ConnectionError;
use crate::protocol::connection_state::Expect;
use crate::protocol::exec::Collector;
use crate::protocol::queue::{CommandQueue, Prefix};
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::resp::encode::ASKING;
use crate::protocol::server_error::ServerError;
use crate::settings::Settings;

pub(crate) struct Answers {
    pub(crate) collector: Collector,
    pub(crate) acks: Option<Result<ReplicaAcks, ServerError>>,
}

pub(crate) enum Lost {
    BeforeExec(ConnectionError),
    AfterExec(ConnectionError, Box<Collector>),
}

/// Sends what is left of the transaction with EXEC, and reads all of its replies.
pub(crate) fn exchange(
    link: &mut Link,
    queue: &mut CommandQueue,
    options: &CommitOptions,
    settings: &Settings,
    asks: bool,
) -> Result<Answers, Lost> {
    let Around { own, own_commands, behind } =
        around(link, options, settings, asks).map_err(Lost::BeforeExec)?;
    let exactly_once = options.resolver.is_some();
    let start = match (link.state().is_in_multi(), link.state().watches_marker() && !exactly_once) {
        (true, _) => Prefix::Commands,
        // Its register may have expired, and that is nothing to this transaction.
        (false, true) if !link.state().is_watching() => Prefix::Unwatch,
        (false, _) => Prefix::Multi,
    };
    let (commands, unsent) = (queue.commands(), queue.unsent());
    let expected = [
        (Expect::Unwatch, u32::from(start == Prefix::Unwatch)),
        (Expect::Multi, u32::from(start != Prefix::Commands)),
        (Expect::Queued, unsent + own_commands),
        (Expect::Exec, 1),
        (Expect::Plain, u32::from(exactly_once && asks)),
        (Expect::WatchMarker, u32::from(exactly_once)),
        (Expect::Plain, u32::from(options.durability.is_some())),
    ];
    let waits = options.durability.map(|durability| durability.timeout()).unwrap_or_default();
    let deadline = Deadline::after(settings.response_timeout + waits);
    let mut collector = Collector::new(commands + own_commands, commands - unsent);
    let closed = queue.finish(start, &own, &behind);
    let (bytes, with_exec) = (closed.bytes, closed.with_exec);
    if let Err((left, cause)) = link.send_counted(bytes, &expected, deadline) {
        // What stands behind EXEC may be all that did not leave.
        let whole = behind.is_empty() || left < with_exec;
        return Err(match whole {
            true => Lost::BeforeExec(cause),
            false => Lost::AfterExec(cause, Box::new(collector)),
        });
    }
    let mut acks = None;
    let came = link.receive_each(&expected, deadline, |expect, reply| match expect {
        Expect::Plain => {
            let value = reply.into_value();
            acks = options.durability.map(|wanted| wanted.acks(&value));
        }
        _ => collector.take(expect, reply),
    });
    match came {
        Ok(()) => Ok(Answers { collector, acks }),
        Err(cause) => Err(Lost::AfterExec(cause, Box::new(collector))),
    }
}

/// What is sent around EXEC for the transaction's options.
struct Around {
    /// Commands that are queued behind the user's.
    own: Vec<u8>,
    own_commands: u32,
    /// Commands behind EXEC.
    behind: Vec<u8>,
}

fn around(
    link: &mut Link,
    options: &CommitOptions,
    settings: &Settings,
    asks: bool,
) -> Result<Around, ConnectionError> {
    let mut around = Around { own: Vec::new(), own_commands: 0, behind: Vec::new() };
    if let Some(exists) = &options.cluster.exists {
        around.own.extend_from_slice(exists);
        around.own_commands += 1;
    }
    if options.resolver.is_some() {
        let marker = link.marker(&settings.prefix)?;
        marker.advance();
        if let Some(once) = &options.once {
            once.set(&mut around.own, marker);
            around.own_commands += 1;
        }
        marker.set(&mut around.own, settings.register_ttl);
        around.own_commands += 1;
        if asks {
            around.behind.extend_from_slice(ASKING);
        }
        marker.watch(&mut around.behind);
    }
    if let Some(durability) = &options.durability {
        durability.write(&mut around.behind);
    }
    Ok(around)
}

/// Sends the waiting commands without EXEC and reads that they were queued.
pub(crate) fn send_queued(
    link: &mut Link,
    queue: &CommandQueue,
    deadline: Deadline,
) -> (Collector, Result<(), ConnectionError>) {
    let (commands, unsent) = (queue.commands(), queue.unsent());
    let mut collector = Collector::new(commands, commands - unsent);
    let expected = [(Expect::Queued, unsent)];
    let answered = link.send(queue.body(), &expected, deadline).and_then(|()| {
        link.receive_each(&expected, deadline, |expect, reply| collector.take(expect, reply))
    });
    if answered.is_ok() {
        link.has_answered();
    }
    (collector, answered)
}
