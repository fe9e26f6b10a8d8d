//! The core of every transaction: its queued commands, its scope, and its first failure.
//!
//! No command is sent past an open part, and a failure is kept to the end.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::commit::batch;
use crate::commit::commit;
use crate::commit::options::{CommitOptions, CommitPlan};
use crate::commit::outcome::Committed;
use crate::error::any::CommitError;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::logging::rate_limit::LimitedEvent;
use crate::pool::router::Router;
use crate::pool::scopes::ScopeOrigin;
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::route::Redirect;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::refused::SendContext;
use crate::protocol::queue::{CommandQueue, QueueError};
use crate::reply::replies::Replies;
use crate::transaction::pinned::Pinned;
use crate::transaction::redirects;
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

/// The queued commands of a transaction, the scope that sends them, and the failure that is kept
/// until the end.
#[derive(Debug)]
pub(crate) struct Pending {
    queue: CommandQueue,
    pinned: Pinned,
    failed: Option<CommitError>,
    options: CommitOptions,
    watched: bool,
    /// Size of the queued commands at which they are sent ahead; `None`: never.
    flush_bytes: Option<usize>,
}

impl Pending {
    pub(crate) fn new(router: &Router, owner: ScopeOrigin, options: CommitOptions) -> Self {
        Self::on(Pinned::new(router, owner), options, false)
    }

    /// Creates the transaction of an existing scope, which watches if `watched` is true.
    pub(crate) fn on(pinned: Pinned, options: CommitOptions, watched: bool) -> Self {
        let settings = pinned.settings();
        let transaction = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        let mut queue = CommandQueue::new(transaction, settings.limits(), pooled_buffer());
        let lock = options.lock_check.as_ref().map(|lock_check| lock_check.lock.slot());
        queue.bind(match (pinned.binding(), lock) {
            (SlotBinding::Pending, Some(lock)) => SlotBinding::Slot(lock),
            (binding, _) => binding,
        });
        queue.show_full_text(settings.server_messages);
        if watched || !options.is_batchable() {
            queue.disable_batching();
        }
        Self {
            queue,
            flush_bytes: Some(settings.flush_bytes),
            pinned,
            failed: None,
            options,
            watched,
        }
    }

    /// Queues everything until the commit.
    pub(crate) fn without_flushing(mut self) -> Self {
        self.flush_bytes = None;
        self
    }

    pub(crate) fn queue(&mut self) -> &mut CommandQueue {
        &mut self.queue
    }

    pub(crate) fn span(&self) -> &tracing::Span {
        self.pinned.span()
    }

    /// Excludes this scope from deadlock detection, because the closure has returned.
    pub(crate) fn closure_returned(&mut self) {
        self.pinned.closure_returned();
    }

    /// Replaces the scope: a watching closure queues while it still reads on its own scope.
    pub(crate) fn set_pinned(&mut self, pinned: Pinned) {
        if let (SlotBinding::Slot(bound), SlotBinding::Slot(other)) =
            (pinned.binding(), self.queue.binding())
            && bound != other
        {
            let command = "the block".to_owned();
            let error = CommitError::not_sent(Error::CrossSlot { command, bound, other });
            self.failed.get_or_insert(error);
        }
        if self.queue.binding() == SlotBinding::Pending {
            self.queue.bind(pinned.binding());
        }
        self.pinned = pinned;
    }

    /// Binds the transaction to a slot, before its first key does.
    pub(crate) fn bind(&mut self, slot: u16) -> Result<(), Error> {
        let mut binding = self.queue.binding();
        binding.bind(slot).map_err(|bound| {
            let command = "begin_at".to_owned();
            Error::CrossSlot { command, bound, other: slot }
        })?;
        self.queue.bind(binding);
        Ok(())
    }

    /// Passes the slot of the keys to the scope and the options.
    fn sync_slot(&mut self) {
        let slot = self.queue.binding().slot();
        self.pinned.set_slot(slot);
        self.options.cluster.slot = slot;
    }

    /// Returns the next step after a server rejected the slot; `None`: there is none.
    pub(crate) fn redirect_for(&self, error: &CommitError) -> Option<Redirect> {
        let router = self.pinned.router()?;
        redirects::redirect_for(
            &router,
            self.pinned.route(),
            error,
            self.pinned.checkout_deadline(),
        )
    }

    /// Sets the checkout deadline of all later calls.
    pub(crate) fn set_checkout_deadline(&mut self, deadline: Instant) {
        self.pinned.set_checkout_deadline(Some(deadline));
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.is_pinned()
    }

    /// Follows the redirect; all commands are still queued.
    pub(crate) fn set_route(&mut self, redirect: Redirect) {
        self.pinned.set_route(redirect.route());
    }

    /// Takes a connection now, and sends MULTI if it is to be sent at once.
    pub(crate) fn begin(&mut self) -> Result<(), Error> {
        let begun = self.try_begin();
        if let Err(error) = &begun {
            self.pinned.record_failure(error);
        }
        begun
    }

    fn try_begin(&mut self) -> Result<(), Error> {
        self.pinned.here()?;
        let deadline = self.pinned.checkout_deadline();
        let span = self.span().clone();
        let _in = span.enter();
        self.sync_slot();
        if !self.pinned.has_slot() {
            // The first key will have the slot.
            return Ok(());
        }
        self.pinned.pin(deadline)?;
        self.pinned.log_on_return(tracing::Level::DEBUG, || tracing::debug!("begin"));
        if self.options.immediate {
            let plan = CommitPlan {
                options: &self.options,
                watched: self.watched,
                checkout_deadline: deadline,
            };
            let queue = &self.queue;
            self.pinned.call(|checkout| commit::begin(checkout, queue, plan)).map_err(|error| {
                match error {
                    CommitError::NotSent { source } => *source,
                    error => error.into(),
                }
            })?;
        }
        Ok(())
    }

    /// Sends a chunk if enough commands are queued. This is called after each command.
    pub(crate) fn queued(&mut self) {
        self.pinned.touch();
        if self.failed.is_some() {
            self.queue.drop_pending();
            return;
        }
        let due = self.flush_bytes.is_some_and(|limit| self.queue.pending_bytes() >= limit);
        let due = due && self.queue.binding() != SlotBinding::Pending;
        if due && !self.queue.has_open_savepoint() && self.queue.error().is_none() {
            self.failed = self.flush().err();
        }
    }

    /// If the first chunk is redirected, it is sent again, unless a guard holds the connection.
    fn flush(&mut self) -> Result<(), CommitError> {
        self.pinned.here()?;
        let free = !self.pinned.is_pinned();
        let flushed = self.flush_on(free);
        self.pinned.set_checkout_deadline(None);
        flushed
    }

    fn flush_on(&mut self, free: bool) -> Result<(), CommitError> {
        let mut budget = CheckoutBudget::new(self.pinned.settings());
        loop {
            self.set_checkout_deadline(budget.deadline);
            let Err(error) = self.flush_once() else { return Ok(()) };
            let redirect =
                (free && !self.queue.is_flushed()).then(|| self.redirect_for(&error)).flatten();
            match redirect {
                Some(redirect)
                    if budget.try_redirect(&redirect, redirects::is_checkout(&error)) =>
                {
                    if let Err(error) = self.pinned.release() {
                        tracing::debug!(error = %format_args!("{error:#}"), "cleaning failed, connection replaced");
                    }
                    self.set_route(redirect);
                }
                _ => return Err(error),
            }
        }
    }

    fn flush_once(&mut self) -> Result<(), CommitError> {
        let deadline = self.pinned.checkout_deadline();
        let span = self.span().clone();
        let _in = span.enter();
        self.sync_slot();
        self.pinned.pin(deadline)?;
        let plan = CommitPlan {
            options: &self.options,
            watched: self.watched,
            checkout_deadline: deadline,
        };
        let queue = &mut self.queue;
        self.pinned.call(|checkout| commit::flush(checkout, queue, plan))
    }

    /// Returns the failure that the commit will return, if there is one already.
    pub(crate) fn failure(&self) -> Option<CommitError> {
        if let Err(error) = self.pinned.here() {
            return Some(error.into());
        }
        self.failed.clone().or_else(|| {
            self.queue.error().map(|refusal| {
                CommitError::not_sent(match refusal {
                    QueueError::Command(command) => Error::refused(command.clone(), SendContext::InMulti),
                    QueueError::Float(command) => Error::Refused {
                        command: command.clone(),
                        hint: match command.as_str() {
                            "HINCRBY" => "it adds integers; hincr_float adds a float",
                            "DECRBY" => {
                                "it subtracts integers; incr_float adds a float, also a negative one"
                            }
                            _ => "it adds integers; incr_float adds a float",
                        },
                    },
                    QueueError::Empty => Error::Refused {
                        command: "a command without a name".to_owned(),
                        hint: "build it with redis::cmd(name)",
                    },
                    QueueError::TooManyCommands { limit } => Error::TooLarge {
                        what: "commands",
                        limit: *limit as usize,
                        setting: "max_commands",
                    },
                    QueueError::TooManyBytes { limit } => {
                        Error::TooLarge { what: "bytes", limit: *limit, setting: "max_bytes" }
                    }
                    QueueError::OtherSlot { command, bound, other } => {
                        Error::CrossSlot { command: command.clone(), bound: *bound, other: *other }
                    }
                    QueueError::Everywhere(command) => Error::Refused {
                        command: command.clone(),
                        hint: "it concerns every node of the cluster, and a transaction is on \
                               one; use the pooled handle",
                    },
                })
            })
        })
    }

    /// Returns whether all commands are still queued, so that they can be sent again.
    pub(crate) fn can_resend(&self) -> bool {
        !self.queue.is_flushed() && self.failed.is_none()
    }

    /// Commits, and returns the connection to the pool before this returns.
    pub(crate) fn commit(&mut self) -> Result<Committed, CommitError> {
        self.set_checkout_deadline(self.pinned.checkout_deadline());
        let committed = self.attempt();
        if let Err(error) = &committed {
            // The redirect is not followed here, but a later attempt knows it.
            let _: Option<Redirect> = self.redirect_for(error);
        }
        self.record(&committed);
        committed
    }

    /// The same, if commands that were not sent may be attempted again.
    pub(crate) fn attempt(&mut self) -> Result<Committed, CommitError> {
        self.pinned.here()?;
        let span = self.span().clone();
        let _in = span.enter();
        self.queue.rollback_deeper(0);
        let committed = match self.failure().or_else(|| self.missing_slot_error()) {
            Some(failure) => {
                if let Err(error) = self.pinned.release() {
                    tracing::debug!(error = %format_args!("{error:#}"), "cleaning failed, connection replaced");
                }
                Err(failure)
            }
            None => self.send().map_err(|error| self.cross_slot_error(error)),
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

    fn send(&mut self) -> Result<Committed, CommitError> {
        self.sync_slot();
        let deadline = self.pinned.checkout_deadline();
        let once = self.options.idempotency_key.is_some();
        if self.queue.commands() == 0 && !self.watched && !once && !self.pinned.is_pinned() {
            return Ok(Committed::Applied(Replies::none(self.queue.transaction())));
        }
        if !self.watched && !self.pinned.is_pinned() {
            return self.send_unpinned(deadline);
        }
        let plan = CommitPlan {
            options: &self.options,
            watched: self.watched,
            checkout_deadline: deadline,
        };
        let queue = &mut self.queue;
        self.pinned.finish(|checkout| commit::commit(checkout, queue, plan))
    }

    /// Commits on a connection that is borrowed for the commit only. No code of the caller's runs
    /// meanwhile, so there is no scope to reclaim.
    fn send_unpinned(&mut self, checkout_deadline: Instant) -> Result<Committed, CommitError> {
        let Some(router) = self.pinned.router() else { return Err(CheckoutError::Closed.into()) };
        let target = (&router, self.pinned.route());
        batch::commit_block(target, &mut self.queue, &self.options, checkout_deadline)
    }

    /// Returns the options of the commit.
    pub(crate) fn options(&self) -> &CommitOptions {
        &self.options
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
    pub(crate) fn record(&self, committed: &Result<Committed, CommitError>) {
        let span = self.span();
        if self.pinned.here().is_err() {
            return;
        }
        let outcome = outcome(committed);
        if let Err(error) = committed {
            self.raise(error, outcome);
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

    /// Logs a warning for the operator. The connection was returned before.
    fn raise(&self, error: &CommitError, outcome: &str) {
        let alarm = match error {
            CommitError::InDoubt(_) => LimitedEvent::InDoubt,
            CommitError::NotIsolated { .. } => LimitedEvent::NotIsolated,
            CommitError::PartlyApplied { .. } => LimitedEvent::PartlyApplied,
            _ => return,
        };
        let Some(router) = self.pinned.router() else { return };
        let Some(suppressed) = router.rate_limits().allow(alarm) else { return };
        let owner = self.pinned.owner();
        let (name, place) = (owner.name.as_deref(), owner.place);
        let _in = self.span().enter();
        tracing::warn!(outcome, name, %place, error = %format_args!("{error:#}"), suppressed, "transaction {outcome}");
    }

    /// Discards the transaction.
    pub(crate) fn discard(&mut self) -> Result<(), Error> {
        self.pinned.discard()
    }
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
