//! One write that ends with EXEC and what must follow it, and its replies.
//!
//! Never: a reply left unread on a link that is kept.

use crate::commit::Terms;
use crate::connection::connection::Link;
use crate::connection::deadline::Deadline;
use crate::error::connection::ConnectionError;
use crate::protocol::connection_state::Expect;
use crate::protocol::exec::Collector;
use crate::protocol::queue::{Buffer, Start};
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
    buffer: &mut Buffer,
    terms: &Terms,
    settings: &Settings,
    asks: bool,
) -> Result<Answers, Lost> {
    let Around { own, own_commands, behind } =
        around(link, terms, settings, asks).map_err(Lost::BeforeExec)?;
    let fenced = terms.fence.is_some();
    let start = match (link.state().is_in_multi(), link.state().is_armed() && !fenced) {
        (true, _) => Start::Commands,
        // Its register may have expired, and that is nothing to this transaction.
        (false, true) if !link.state().is_watching() => Start::Unwatch,
        (false, _) => Start::Multi,
    };
    let (commands, unsent) = (buffer.commands(), buffer.unsent());
    let expected = [
        (Expect::Unwatch, u32::from(start == Start::Unwatch)),
        (Expect::Multi, u32::from(start != Start::Commands)),
        (Expect::Queued, unsent + own_commands),
        (Expect::Exec, 1),
        (Expect::Plain, u32::from(fenced && asks)),
        (Expect::Arm, u32::from(fenced)),
        (Expect::Plain, u32::from(terms.durability.is_some())),
    ];
    let waits = terms.durability.map(|durability| durability.timeout()).unwrap_or_default();
    let deadline = Deadline::after(settings.response_timeout + waits);
    let mut collector = Collector::new(commands + own_commands, commands - unsent);
    let closed = buffer.closed(start, &own, &behind);
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
            acks = terms.durability.map(|wanted| wanted.acks(&value));
        }
        _ => collector.take(expect, reply),
    });
    match came {
        Ok(()) => Ok(Answers { collector, acks }),
        Err(cause) => Err(Lost::AfterExec(cause, Box::new(collector))),
    }
}

/// What is sent around EXEC for the transaction's terms.
struct Around {
    /// Commands that are queued behind the user's.
    own: Vec<u8>,
    own_commands: u32,
    /// Commands behind EXEC.
    behind: Vec<u8>,
}

fn around(
    link: &mut Link,
    terms: &Terms,
    settings: &Settings,
    asks: bool,
) -> Result<Around, ConnectionError> {
    let mut around = Around { own: Vec::new(), own_commands: 0, behind: Vec::new() };
    if let Some(touch) = &terms.place.touch {
        around.own.extend_from_slice(touch);
        around.own_commands += 1;
    }
    if terms.fence.is_some() {
        let fence = link.fence(&settings.prefix)?;
        fence.advance();
        if let Some(once) = &terms.once {
            once.set(&mut around.own, fence);
            around.own_commands += 1;
        }
        fence.set(&mut around.own, settings.register_ttl);
        around.own_commands += 1;
        if asks {
            around.behind.extend_from_slice(ASKING);
        }
        fence.watch(&mut around.behind);
    }
    if let Some(durability) = &terms.durability {
        durability.write(&mut around.behind);
    }
    Ok(around)
}

/// Sends the waiting commands without EXEC and reads that they were queued.
pub(crate) fn queue(
    link: &mut Link,
    buffer: &Buffer,
    deadline: Deadline,
) -> (Collector, Result<(), ConnectionError>) {
    let (commands, unsent) = (buffer.commands(), buffer.unsent());
    let mut collector = Collector::new(commands, commands - unsent);
    let expected = [(Expect::Queued, unsent)];
    let answered = link.send(buffer.body(), &expected, deadline).and_then(|()| {
        link.receive_each(&expected, deadline, |expect, reply| collector.take(expect, reply))
    });
    if answered.is_ok() {
        link.has_answered();
    }
    (collector, answered)
}
