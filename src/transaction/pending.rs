//! The core of every transaction: its queued commands, and its first failure.
//!
//! No command is sent past an open part, and a failure is kept to the end.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::commit::batch;
use crate::commit::commit;
use crate::commit::outcome::{Committed, count};
use crate::commit::plan::CommitPlan;
use crate::commit::prepare::prepare;
use crate::error::any::{CommitError, Error};
use crate::error::checkout::CheckoutError;
use crate::logging::rate_limit::LimitedEvent;
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::route::Redirect;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::queue::{CommandQueue, QueueError};
use crate::reply::replies::Replies;
use crate::settings::settings::Settings;
use crate::sync::now::now;
use crate::transaction::pinned::Pinned;
use crate::transaction::redirects::CheckoutBudget;

/// Number of the next transaction; it distinguishes the handles of different transactions.
static TRANSACTIONS: AtomicU64 = AtomicU64::new(1);

/// Maximum size of the buffer that a thread keeps from one transaction to the next.
const MAX_POOLED_BUFFER: usize = 64 * 1024;

thread_local! {
    /// The buffer of the thread's last transaction, for its next one.
    static BUFFER_POOL: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn pooled_buffer() -> Vec<u8> {
    BUFFER_POOL.try_with(Cell::take).unwrap_or_default()
}

impl Drop for Pending {
    fn drop(&mut self) {
        let bytes = self.queue.take_bytes();
        if bytes.capacity() <= MAX_POOLED_BUFFER {
            let _: Result<(), _> = BUFFER_POOL.try_with(|buffer| buffer.set(bytes));
        }
    }
}

/// The queued commands of a transaction, and the failure that is kept until the end. The scope that
/// sends them is an argument: a watching closure queues while its scope still reads.
#[derive(Debug)]
pub(crate) struct Pending {
    queue: CommandQueue,
    failed: Option<CommitError>,
}

impl Pending {
    #[inline]
    pub(crate) fn new(settings: &Settings, plan: &CommitPlan, binding: SlotBinding) -> Self {
        let transaction = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        let mut queue = CommandQueue::new(transaction, settings.limits(), pooled_buffer());
        queue.bind(binding);
        queue.show_full_text(settings.server_messages);
        if !plan.is_batchable() {
            queue.disable_batching();
        }
        Self { queue, failed: None }
    }

    pub(crate) fn queue(&mut self) -> &mut CommandQueue {
        &mut self.queue
    }

    /// Binds the commands to the slot of the scope that will send them.
    pub(crate) fn bind(&mut self, scope: SlotBinding) {
        let (Some(bound), mut binding) = (scope.slot(), self.queue.binding()) else { return };
        match binding.bind(bound) {
            Ok(()) => self.queue.bind(binding),
            Err(other) => {
                let command = "the block".to_owned();
                let error = CommitError::not_sent(Error::CrossSlot { command, bound, other });
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Takes a connection now, and sends MULTI if it is to be sent at once.
    pub(crate) fn begin(&mut self, pinned: &mut Pinned) -> Result<(), Error> {
        let deadline = pinned.checkout_deadline();
        let span = pinned.span().clone();
        let _in = span.enter();
        if self.queue.binding() == SlotBinding::Pending {
            // The first key will have the slot.
            return Ok(());
        }
        pinned.pin(self.queue.binding().slot(), deadline)?;
        pinned.log_on_return(tracing::Level::DEBUG, || tracing::debug!("begin"));
        if !pinned.plan().immediate {
            return Ok(());
        }
        let begun =
            pinned.call(|checkout, plan| now(prepare(checkout, &self.queue, plan, deadline)));
        begun.map_err(|error| match error {
            CommitError::NotSent { source } => *source,
            error => error.into(),
        })
    }

    /// Sends a chunk if enough commands are queued. This is called after each command.
    pub(crate) fn queued(&mut self, pinned: &mut Pinned) {
        pinned.touch();
        if self.failed.is_some() {
            self.queue.drop_pending();
            return;
        }
        let due = self.queue.pending_bytes() >= pinned.settings().flush_bytes
            && self.queue.binding() != SlotBinding::Pending;
        if due && !self.queue.has_open_savepoint() && self.queue.error().is_none() {
            self.failed = self.flush(pinned).err();
        }
    }

    /// If the first chunk is redirected, it is sent again, unless a guard holds the connection.
    fn flush(&mut self, pinned: &mut Pinned) -> Result<(), CommitError> {
        pinned.here()?;
        let free = !pinned.is_pinned();
        let mut budget = CheckoutBudget::new(pinned.settings());
        loop {
            let deadline = budget.deadline;
            let Err(error) = self.flush_once(pinned, deadline) else { return Ok(()) };
            let redirectable = free && !self.queue.is_flushed();
            let next = redirectable.then(|| pinned.redirect_for(&error, deadline)).flatten();
            let Some(route) = budget.follow(next) else { return Err(error) };
            pinned.release_or_log();
            pinned.set_route(route);
        }
    }

    fn flush_once(&mut self, pinned: &mut Pinned, deadline: Instant) -> Result<(), CommitError> {
        let span = pinned.span().clone();
        let _in = span.enter();
        pinned.pin(self.queue.binding().slot(), deadline)?;
        pinned.call(|checkout, plan| now(commit::flush(checkout, &mut self.queue, plan, deadline)))
    }

    /// Returns the failure that the commit will return, if there is one already.
    pub(crate) fn failure(&self) -> Option<CommitError> {
        self.failed.clone().or_else(|| {
            let error = match self.queue.error()?.clone() {
                QueueError::Refused { command, hint } => Error::Refused { command, hint },
                QueueError::TooLarge { what, limit, setting } => {
                    Error::TooLarge { what, limit, setting }
                }
                QueueError::CrossSlot(error) => error.into(),
            };
            Some(CommitError::not_sent(error))
        })
    }

    /// Returns whether all commands are still queued, so that they can be sent again.
    pub(crate) fn can_resend(&self) -> bool {
        !self.queue.is_flushed() && self.failed.is_none()
    }

    /// Commits, and returns the connection to the pool before this returns.
    pub(crate) fn commit(&mut self, pinned: &mut Pinned) -> Result<Committed, CommitError> {
        let deadline = pinned.checkout_deadline();
        let committed = self.attempt(pinned, deadline);
        if let Err(error) = &committed {
            // The redirect is not followed here, but a later attempt knows it.
            let _: Option<Redirect> = pinned.redirect_for(error, deadline);
        }
        self.record(pinned, &committed);
        committed
    }

    /// The same, if commands that were not sent may be attempted again.
    pub(crate) fn attempt(
        &mut self,
        pinned: &mut Pinned,
        deadline: Instant,
    ) -> Result<Committed, CommitError> {
        pinned.here()?;
        let span = pinned.span().clone();
        let _in = span.enter();
        self.queue.rollback_deeper(0);
        let committed = match self.failure().or_else(|| self.missing_slot_error()) {
            Some(failure) => {
                pinned.release_or_log();
                Err(failure)
            }
            None => self.send(pinned, deadline).map_err(|error| self.cross_slot_error(error)),
        };
        let outcome = outcome(&committed);
        match &committed {
            Ok(_) => tracing::debug!(outcome, "commit"),
            Err(error) => tracing::debug!(outcome, error = %format_args!("{error:#}"), "commit"),
        }
        committed
    }

    /// The error of a transaction without a command whose slot is known.
    fn missing_slot_error(&self) -> Option<CommitError> {
        self.queue.has_unknown_slot().then(|| {
            CommitError::not_sent(Error::Refused {
                command: "a command whose keys are not known here".to_owned(),
                hint: "name the cluster's slot with begin_at(key), or by another command's key",
            })
        })
    }

    /// The error of a key with another slot that is unknown to the command table.
    fn cross_slot_error(&self, error: CommitError) -> CommitError {
        let CommitError::Rejected { code, message, command, .. } = &error else { return error };
        let bound = self.queue.binding().slot();
        match (RedirectReply::of(code, message).and_then(|redirect| redirect.slot()), bound) {
            (Some(other), Some(bound)) if other != bound => {
                let command = command.clone();
                CommitError::not_sent(Error::CrossSlot { command, bound, other })
            }
            _ => error,
        }
    }

    fn send(&mut self, pinned: &mut Pinned, deadline: Instant) -> Result<Committed, CommitError> {
        let (queue, plan) = (&mut self.queue, pinned.plan());
        let committed = if plan.watched || pinned.is_pinned() {
            pinned.finish(|checkout, plan| now(commit::commit(checkout, queue, plan, deadline)))
        } else if queue.commands() == 0 && plan.idempotency_key.is_none() {
            return Ok(Committed::Applied(Replies::none(queue.transaction())));
        } else {
            // The connection is borrowed for the commit only. No code of the caller's runs
            // meanwhile, so there is no scope to reclaim.
            let router = pinned.router().ok_or(CheckoutError::Closed)?;
            pinned.set_slot(queue.binding().slot());
            now(batch::commit_block((&router, pinned.route()), queue, pinned.plan(), deadline))
        };
        if let Some(router) = pinned.router() {
            count(router.counters(), &committed);
        }
        committed
    }

    /// Returns the replies of a transaction that was applied, but whose replies are lost.
    pub(crate) fn lost_replies(&self) -> Replies {
        Replies::lost(self.queue.transaction())
    }

    /// Adds the name of the command whose reply could not be decoded.
    pub(crate) fn named(&self, error: Error) -> Error {
        match error {
            Error::Reply(error) => error.with_command(|index| self.queue.name(index)).into(),
            error => error,
        }
    }

    /// Adds the commands' names to the replies, for a caller that keeps them.
    pub(crate) fn keep(&self, replies: Replies) -> Replies {
        replies.with_names(self.queue.names())
    }

    /// Records the outcome in the span.
    pub(crate) fn record(&self, pinned: &Pinned, committed: &Result<Committed, CommitError>) {
        let span = pinned.span();
        if pinned.here().is_err() {
            return;
        }
        let outcome = outcome(committed);
        if let Err(error) = committed {
            raise(pinned, error, outcome);
        }
        if span.is_disabled() {
            return;
        }
        span.record("db.operation.batch.size", self.queue.commands());
        span.record("rediscope.outcome", outcome);
        if let Err(error) = committed {
            span.record("error.type", outcome);
            if let Some(code) = error.code() {
                span.record("db.response.status_code", code);
            }
        }
    }
}

/// Logs a warning for the operator. The connection was returned before.
fn raise(pinned: &Pinned, error: &CommitError, outcome: &str) {
    let alarm = match error {
        CommitError::InDoubt(_) => LimitedEvent::InDoubt,
        CommitError::NotIsolated { .. } => LimitedEvent::NotIsolated,
        CommitError::PartlyApplied { .. } => LimitedEvent::PartlyApplied,
        _ => return,
    };
    let Some(router) = pinned.router() else { return };
    let Some(suppressed) = router.rate_limits().allow(alarm) else { return };
    let owner = pinned.owner();
    let (name, place) = (owner.name.as_deref(), owner.place);
    let _in = pinned.span().enter();
    tracing::warn!(outcome, name, %place, error = %format_args!("{error:#}"), suppressed, "transaction {outcome}");
}

/// Returns one word for a report.
fn outcome(committed: &Result<Committed, CommitError>) -> &'static str {
    match committed {
        Ok(Committed::Applied(_)) => "committed",
        Ok(Committed::Conflict) => "conflict",
        Err(CommitError::Rejected { .. }) => "rejected",
        Err(CommitError::PartlyApplied { .. }) => "partly applied",
        Err(CommitError::NotSent { source }) if matches!(**source, Error::PinExpired(_)) => {
            "pin expired"
        }
        Err(CommitError::NotSent { .. }) => "not sent",
        Err(CommitError::InDoubt(_)) => "in doubt",
        Err(CommitError::NotIsolated { .. }) => "not isolated",
        Err(CommitError::NotReplicated { .. }) => "not replicated",
        Err(CommitError::KeyNotKept { .. }) => "key not kept",
        Err(CommitError::AlreadyCommitted) => "already committed",
        Err(CommitError::LockLost) => "lock lost",
    }
}
