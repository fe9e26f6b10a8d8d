//! One write that ends with EXEC and the commands after it, and its replies. No reply is left
//! unread on a connection that is kept.

use crate::commit::plan::CommitPlan;
use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::wire::Wire;
use crate::error::connection::ConnectionError;
use crate::protocol::connection_state::Expect;
use crate::protocol::exec::{Collector, Verdict};
use crate::protocol::queue::{CommandQueue, Prefix};
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::resp::encode::ASKING;
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;

/// The replies to the last write of a transaction.
pub(crate) struct Exchanged {
    pub(crate) verdict: Verdict,
    pub(crate) acks: Option<Result<ReplicaAcks, ServerError>>,
    /// The connection was lost before all replies arrived.
    pub(crate) lost: Option<ConnectionError>,
}

/// Sends the rest of the transaction with EXEC, and reads all of its replies. For the
/// transaction's options, other commands surround EXEC.
///
/// # Errors
/// The connection was lost before EXEC's last byte was sent.
pub(crate) async fn exchange<W: Wire>(
    connection: &mut Connection<W>,
    queue: &mut CommandQueue,
    plan: &CommitPlan,
    settings: &Settings,
    needs_asking: bool,
) -> Result<Exchanged, ConnectionError> {
    // Commands that are queued after the user's, and commands after EXEC.
    let (mut internal, mut internal_commands, mut after_exec) = (Vec::new(), 0, Vec::new());
    if let Some(exists) = &plan.exists {
        internal.extend_from_slice(exists);
        internal_commands += 1;
    }
    let exactly_once = plan.resolver.is_some();
    if exactly_once {
        let marker = connection.marker(&settings.prefix)?;
        marker.advance();
        if let Some(key) = &plan.idempotency_key {
            key.set(&mut internal, marker);
            internal_commands += 1;
        }
        marker.set(&mut internal, settings.register_ttl);
        internal_commands += 1;
        if needs_asking {
            after_exec.extend_from_slice(ASKING);
        }
        marker.watch(&mut after_exec);
    }
    if let Some(durability) = &plan.durability {
        durability.write(&mut after_exec);
    }
    let state = connection.state();
    let start = match (state.is_in_multi(), state.watches_marker() && !exactly_once) {
        (true, _) => Prefix::Commands,
        // The register may have expired, which does not concern this transaction.
        (false, true) if !state.is_watching() => Prefix::Unwatch,
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
        (Expect::Plain, u32::from(plan.durability.is_some())),
    ];
    let replication_wait =
        plan.durability.map(|durability| durability.timeout()).unwrap_or_default();
    let deadline = Deadline::after(settings.response_timeout + replication_wait);
    let mut collector = Collector::new(commands + internal_commands, commands - unsent);
    let mut acks = None;
    let last = queue.finish(start, &internal, &after_exec);
    let exchanged =
        connection.exchange(last.bytes, &expected, deadline, |expect, reply| match expect {
            Expect::Plain => {
                let value = reply.into_value();
                acks = plan.durability.map(|wanted| wanted.acks(&value));
            }
            _ => collector.take(expect, reply),
        });
    let lost = match exchanged.await {
        Ok(()) => None,
        // If the bytes up to the end of EXEC were sent, EXEC may run.
        Err(Interruption { left: Some(sent), cause })
            if after_exec.is_empty() || sent < last.with_exec =>
        {
            return Err(cause);
        }
        Err(Interruption { cause, .. }) => Some(cause),
    };
    Ok(Exchanged { verdict: collector.verdict(), acks, lost })
}
