//! One write that ends with EXEC and the commands after it, and its replies. No reply is left
//! unread on a connection that is kept.

use redis::Value;

use crate::commit::plan::CommitPlan;
use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::wire::Wire;
use crate::error::connection::ConnectionError;
use crate::protocol::connection_state::Expect;
use crate::protocol::exec::{Collector, Verdict};
use crate::protocol::queue::{CommandQueue, Prefix};
use crate::protocol::replication::{Durability, ReplicaAcks};
use crate::protocol::resp::decode::SharedArrays;
use crate::protocol::resp::encode::ASKING;
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;

/// The replies to the last write of a transaction.
pub(crate) struct Exchanged {
    pub(crate) verdict: Verdict,
    pub(crate) acks: Option<Result<ReplicaAcks, ServerError>>,
    /// The next register was not written.
    pub(crate) register_refused: bool,
    /// The connection was lost before all replies arrived.
    pub(crate) lost: Option<ConnectionError>,
}

/// What surrounds the user's commands in the last write of a transaction, and its replies.
pub(crate) struct LastWrite {
    pub(crate) start: Prefix,
    /// Commands that are queued after the user's.
    pub(crate) internal: Vec<u8>,
    pub(crate) after_exec: Vec<u8>,
    pub(crate) expected: [(Expect, u32); 7],
    pub(crate) deadline: Deadline,
    /// The register and the number of a transaction whose token is given out. No other transaction
    /// uses that register.
    pub(crate) named: Option<Box<(String, u64)>>,
    /// Number of commands that are queued after the user's.
    internal_commands: u32,
}

/// The replies to the last write, as far as they arrived.
pub(crate) struct LastReplies {
    collector: Collector,
    durability: Option<Durability>,
    acks: Option<Result<ReplicaAcks, ServerError>>,
    /// Whether the write of the next register is still to be replied to.
    awaits_register: bool,
    register_refused: bool,
}

impl LastWrite {
    /// The rest of the transaction with EXEC. For the transaction's options, other commands
    /// surround EXEC.
    #[inline(always)]
    pub(crate) fn new<W: Wire>(
        connection: &mut Connection<W>,
        queue: &CommandQueue,
        plan: &CommitPlan,
        settings: &Settings,
        needs_asking: bool,
    ) -> Result<Self, ConnectionError> {
        // Commands that are queued after the user's, and commands after EXEC.
        let (mut internal, mut internal_commands, mut after_exec) = (Vec::new(), 0, Vec::new());
        let mut named = None;
        if let Some(exists) = &plan.exists {
            internal.extend_from_slice(exists);
            internal_commands += 1;
        }
        let exactly_once = plan.resolver.is_some();
        if exactly_once {
            let was_sent = connection.sent_ahead().is_some();
            let marker = connection.marker(&settings.prefix)?;
            if !was_sent {
                marker.advance();
            }
            if let Some(key) = &plan.idempotency_key {
                key.set(&mut internal, marker);
                internal_commands += 1;
            }
            marker.set(&mut internal, settings.register_ttl);
            internal_commands += 1;
            if needs_asking {
                after_exec.extend_from_slice(ASKING);
            }
            match plan.token {
                None => marker.watch(&mut after_exec),
                Some(_) => {
                    named = Some(Box::new((marker.register().to_owned(), marker.number())));
                    let tag = marker.tag();
                    let marker = connection.begin_register(&settings.prefix, tag, true)?;
                    marker.set(&mut after_exec, settings.register_ttl);
                    if needs_asking {
                        after_exec.extend_from_slice(ASKING);
                    }
                    marker.watch(&mut after_exec);
                }
            }
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
        let unsent = queue.unsent();
        let asking_behind = u32::from(exactly_once && needs_asking);
        let expected = [
            (Expect::Unwatch, u32::from(start == Prefix::Unwatch)),
            (Expect::Multi, u32::from(start != Prefix::Commands)),
            (Expect::Queued, unsent + internal_commands),
            (Expect::Exec, 1),
            (Expect::Plain, asking_behind + u32::from(named.is_some()) * (1 + asking_behind)),
            (Expect::WatchMarker, u32::from(exactly_once)),
            (Expect::Plain, u32::from(plan.durability.is_some())),
        ];
        let replication_wait =
            plan.durability.map(|durability| durability.timeout()).unwrap_or_default();
        let deadline = Deadline::after(settings.response_timeout + replication_wait);
        Ok(Self { start, internal, after_exec, expected, deadline, named, internal_commands })
    }

    /// The parts of EXEC's array that are for one caller each, with the number of replies before it, and the
    /// number of all replies. `parts`: number
    /// of commands of each caller.
    #[cold]
    pub(crate) fn shared_replies(&self, parts: &[u32]) -> (SharedArrays, u64) {
        let parts = parts.iter().copied().chain([self.internal_commands]).collect();
        let count = |(_, count): &(Expect, u32)| u64::from(*count);
        let before = self.expected.iter().take_while(|(expect, _)| *expect != Expect::Exec);
        let before = before.map(count).sum();
        (vec![(before, parts)], self.expected.iter().map(count).sum())
    }
}

impl LastReplies {
    #[inline(always)]
    pub(crate) fn new(last: &LastWrite, queue: &CommandQueue, plan: &CommitPlan) -> Self {
        let (commands, unsent) = (queue.commands(), queue.unsent());
        let collector = Collector::new(commands + last.internal_commands, commands - unsent);
        let awaits_register = last.named.is_some();
        Self {
            collector,
            durability: plan.durability,
            acks: None,
            awaits_register,
            register_refused: false,
        }
    }

    pub(crate) fn take(&mut self, expect: Expect, reply: Reply) {
        match expect {
            Expect::Plain if self.awaits_register => {
                self.register_refused |= reply.into_value() != Value::Okay;
            }
            // A missing key is watched too.
            Expect::WatchMarker => {
                self.awaits_register = false;
                self.collector.take(expect, reply);
            }
            Expect::Plain => {
                let value = reply.into_value();
                self.acks = self.durability.map(|wanted| wanted.acks(&value));
            }
            _ => self.collector.take(expect, reply),
        }
    }

    /// Whether EXEC has returned its array, or its length.
    pub(crate) fn have_array(&self) -> bool {
        self.collector.has_array()
    }

    /// Returns what the replies show. `with_exec`: number of bytes up to EXEC's last one, if
    /// further bytes follow.
    ///
    /// # Errors
    /// The connection was lost before EXEC's last byte was sent.
    #[inline(always)]
    pub(crate) fn exchanged(
        self,
        exchanged: Result<(), Interruption>,
        with_exec: Option<usize>,
    ) -> Result<Exchanged, ConnectionError> {
        let lost = match exchanged {
            Ok(()) => None,
            // If the bytes up to the end of EXEC were sent, EXEC may run.
            Err(Interruption { left: Some(sent), cause })
                if with_exec.is_none_or(|with_exec| sent < with_exec) =>
            {
                return Err(cause);
            }
            Err(Interruption { cause, .. }) => Some(cause),
        };
        let Self { collector, acks, register_refused, .. } = self;
        let verdict = match &lost {
            Some(cause) if cause.is_misfit() => collector.verdict().beside_misfit(),
            _ => collector.verdict(),
        };
        // They are the last reply, so if anything is wrong they may be another one.
        let acks = acks.filter(|_| lost.is_none());
        Ok(Exchanged { verdict, acks, register_refused, lost })
    }
}
