//! The core of every transaction: its queued commands, and its first failure.
//!
//! No command is sent past an open part, and a failure is kept to the end.
//!
//! A future that is dropped before its end may have sent any part of its bytes. A connection that
//! awaits replies is then closed, and a later call of the scope fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::commit::batch;
use crate::commit::commit;
#[cfg(feature = "tokio")]
use crate::commit::outcome::succeeded;
use crate::commit::outcome::{Committed, count};
use crate::commit::prepare;
use crate::commit::side::Side;
use crate::error::any::{CommitError, Error};
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
#[cfg(feature = "tokio")]
use crate::error::token_cell::TokenCell;
use crate::logging::rate_limit::LimitedEvent;
#[cfg(feature = "tokio")]
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::cleanup;
use crate::pool::own_writes;
#[cfg(feature = "tokio")]
use crate::protocol::batch::RequestKind;
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::route::Redirect;
use crate::protocol::cluster::slot::SlotBinding;
#[cfg(feature = "tokio")]
use crate::protocol::exec::Verdict;
use crate::protocol::queue::{CommandQueue, QueueError};
use crate::reply::replies::Replies;
use crate::settings::settings::Settings;
#[cfg(feature = "tokio")]
use crate::status::counters::Counters;
use crate::status::metrics::Started;
use crate::sync::boxed::boxed;
use crate::transaction::buffer_pool;
use crate::transaction::pinned::{CONFLICT, Pinned};
use crate::transaction::redirects::CheckoutBudget;

/// Number of the next transaction; it distinguishes the handles of different transactions.
static TRANSACTIONS: AtomicU64 = AtomicU64::new(1);

impl Drop for Pending {
    fn drop(&mut self) {
        buffer_pool::put(self.queue.take_bytes());
    }
}

/// The queued commands of a transaction, and the failure that is kept until the end. The scope that
/// sends them is an argument: a watching closure queues while its scope still reads.
#[derive(Debug)]
pub(crate) struct Pending {
    queue: CommandQueue,
    failed: Option<CommitError>,
    /// What became of the commands on a lane, if they are not applied without a failure.
    #[cfg(feature = "tokio")]
    carried: Option<Box<Carried>>,
    begun: Started,
}

/// What became of a block on a lane.
#[cfg(feature = "tokio")]
#[derive(Debug)]
struct Carried {
    response: Result<BatchResponse, CheckoutError>,
    /// When another connection is no longer waited for.
    deadline: Instant,
}

impl Pending {
    #[inline]
    pub(crate) fn new(settings: &Settings, binding: SlotBinding) -> Self {
        let transaction = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        let mut queue = CommandQueue::new(transaction, settings.limits(), buffer_pool::take());
        queue.bind(binding);
        queue.show_full_text(settings.server_messages);
        Self {
            queue,
            failed: None,
            #[cfg(feature = "tokio")]
            carried: None,
            begun: Started::now(),
        }
    }

    /// Whether the commands can be sent with those of other blocks in one EXEC.
    pub(crate) fn can_be_merged(&mut self) -> bool {
        self.queue.rollback_deeper(0);
        self.failed.is_none() && self.queue.can_be_merged()
    }

    /// Has the transaction count from the begin of its first attempt.
    pub(crate) fn begun_at(&mut self, begun: Started) {
        self.begun = begun;
    }

    /// Whether a lane may carry the commands, with those of other blocks.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_for_lane(&mut self) -> bool {
        self.queue.rollback_deeper(0);
        self.failed.is_none() && self.queue.error().is_none() && self.queue.is_batchable()
    }

    /// The slot of the commands in a cluster, if a key has shown it.
    #[cfg(feature = "tokio")]
    pub(crate) fn slot(&self) -> Option<u16> {
        self.queue.binding().slot()
    }

    /// The request for a lane, which has the commands' bytes until [`carried`](Self::carried).
    #[cfg(feature = "tokio")]
    pub(crate) fn lane_request(
        &mut self,
        settings: &Settings,
        exactly_once: bool,
        slot: Option<u16>,
        token: Option<TokenCell>,
    ) -> BatchRequest {
        own_writes::record(settings, self.queue.body());
        let kind = RequestKind::Block { commands: self.queue.commands() };
        let (bytes, skipped) = self.queue.take_block();
        BatchRequest { bytes, skipped, kind, exactly_once, slot, token }
    }

    /// Returns the replies to a block that a lane has carried, if it was applied and no command failed.
    /// Otherwise the response is kept for [`attempt`](Self::attempt), which decides.
    #[cfg(feature = "tokio")]
    pub(crate) fn carried(
        &mut self,
        counters: &Counters,
        (response, bytes): (Result<BatchResponse, CheckoutError>, Vec<u8>),
        deadline: Instant,
    ) -> Option<Replies> {
        self.queue.put_back(bytes);
        let response = match response {
            Ok(BatchResponse::Block(Verdict::Applied(values))) => {
                match succeeded(&mut self.queue, values) {
                    Ok(replies) => {
                        counters.commits.add();
                        counters.metrics.ended(COMMITTED, 1, self.begun);
                        tracing::debug!(outcome = COMMITTED, "commit");
                        return Some(replies);
                    }
                    Err(values) => Ok(BatchResponse::Block(Verdict::Applied(values))),
                }
            }
            other => other,
        };
        self.carried = Some(Box::new(Carried { response, deadline }));
        None
    }

    /// The deadline of a block that a lane has carried.
    pub(crate) fn carried_deadline(&self) -> Option<Instant> {
        #[cfg(feature = "tokio")]
        return self.carried.as_ref().map(|carried| carried.deadline);
        #[cfg(not(feature = "tokio"))]
        None
    }

    /// What became of the commands on a lane, once.
    fn take_carried(&mut self) -> Option<Result<BatchResponse, CheckoutError>> {
        #[cfg(feature = "tokio")]
        return self.carried.take().map(|carried| carried.response);
        #[cfg(not(feature = "tokio"))]
        None
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
    pub(crate) async fn begin<P: Side>(&mut self, pinned: &mut Pinned<P>) -> Result<(), Error> {
        let deadline = pinned.checkout_deadline();
        if self.queue.binding() == SlotBinding::Pending {
            // The first key will have the slot.
            return Ok(());
        }
        pinned.pin(self.queue.binding().slot(), deadline).await?;
        pinned.log_on_return(tracing::Level::DEBUG, || tracing::debug!("begin"));
        if !pinned.plan().immediate {
            return Ok(());
        }
        let mut line = pinned.line::<Error>()?;
        let begun = prepare::prepare(&mut *line, &self.queue, pinned.plan(), deadline).await;
        begun.map_err(|error| match error {
            CommitError::NotSent { source } => *source,
            error => error.into(),
        })
    }

    /// Called after each command. Returns whether enough commands are queued to send a chunk.
    pub(crate) fn is_chunk_due<P: Side>(&mut self, pinned: &Pinned<P>) -> bool {
        pinned.touch();
        if self.failed.is_some() {
            self.queue.drop_pending();
            return false;
        }
        let due = self.queue.pending_bytes() >= pinned.settings().flush_bytes
            && self.queue.binding() != SlotBinding::Pending;
        due && !self.queue.has_open_savepoint() && self.queue.error().is_none()
    }

    /// Returns whether commands are queued that can be sent ahead of the commit.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_flush_due<P: Side>(&mut self, pinned: &Pinned<P>) -> bool {
        pinned.touch();
        self.queue.rollback_deeper(0);
        self.failure().is_none()
            && self.queue.unsent() > 0
            && self.queue.binding() != SlotBinding::Pending
    }

    /// Keeps a failure to the end.
    pub(crate) fn fail(&mut self, error: CommitError) {
        self.failed.get_or_insert(error);
    }

    /// Sends the queued commands, and keeps the failure to the end. Dropped before its end, it leaves a
    /// transaction that can only be discarded.
    pub(crate) async fn flush<P: Side>(&mut self, pinned: &mut Pinned<P>) {
        let text = "a flush was dropped before its end";
        let left = ConnectionError::new(ConnectionErrorKind::Io, text);
        self.failed = Some(CommitError::lost_before_exec(left));
        self.failed = self.send_chunk(pinned).await.err();
    }

    /// If the first chunk is redirected, it is sent again, unless a guard holds the connection.
    async fn send_chunk<P: Side>(&mut self, pinned: &mut Pinned<P>) -> Result<(), CommitError> {
        pinned.here()?;
        let free = !pinned.is_pinned();
        let mut budget = CheckoutBudget::new(pinned.settings(), pinned.plan().wait);
        loop {
            let deadline = budget.deadline;
            let Err(error) = self.try_chunk(pinned, deadline).await else { return Ok(()) };
            let next = match free && !self.queue.is_flushed() {
                true => pinned.redirect_for(&error, deadline).await,
                false => None,
            };
            let Some(route) = budget.follow::<P::Io>(next).await else { return Err(error) };
            pinned.release_or_log().await;
            pinned.set_route(route);
        }
    }

    async fn try_chunk<P: Side>(
        &mut self,
        pinned: &mut Pinned<P>,
        deadline: Instant,
    ) -> Result<(), CommitError> {
        own_writes::record(pinned.settings(), self.queue.body());
        pinned.pin(self.queue.binding().slot(), deadline).await?;
        let mut line = pinned.line::<CommitError>()?;
        commit::flush(&mut *line, &mut self.queue, pinned.plan(), deadline).await
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
        self.queue.has_its_bytes() && !self.queue.is_flushed() && self.failed.is_none()
    }

    /// Commits, and returns the connection to the pool before this returns. Dropped before its end,
    /// it may have sent EXEC. A connection that awaits replies is then closed.
    pub(crate) async fn commit<P: Side>(
        &mut self,
        pinned: &mut Pinned<P>,
    ) -> Result<Committed, CommitError> {
        let deadline = pinned.checkout_deadline();
        let committed = self.attempt(pinned, deadline).await;
        if let Err(error) = &committed {
            // The redirect is not followed here, but a later attempt knows it.
            let _: Option<Redirect> = boxed(pinned.redirect_for(error, deadline)).await;
        }
        self.record(pinned, &committed, 1);
        committed
    }

    /// The same, if commands that were not sent may be attempted again.
    pub(crate) async fn attempt<P: Side>(
        &mut self,
        pinned: &mut Pinned<P>,
        deadline: Instant,
    ) -> Result<Committed, CommitError> {
        let committed = self.attempt_unlogged(pinned, deadline).await;
        log(outcome(&committed), committed.as_ref().err());
        committed
    }

    /// The same for a caller that [logs](log) the outcome when no other one waits for it any more.
    pub(crate) async fn attempt_unlogged<P: Side>(
        &mut self,
        pinned: &mut Pinned<P>,
        deadline: Instant,
    ) -> Result<Committed, CommitError> {
        pinned.here()?;
        self.queue.rollback_deeper(0);
        own_writes::record(pinned.settings(), self.queue.body());
        if let Some(failure) = self.failure().or_else(|| self.missing_slot_error()) {
            boxed(pinned.release_or_log()).await;
            Err(failure)
        } else {
            if !pinned.is_pinned() && self.queue.binding() == SlotBinding::Pending {
                let slot =
                    pinned.router().and_then(|router| pinned.plan().slot_without_keys(&router));
                self.queue.bind(slot.map_or(SlotBinding::Pending, SlotBinding::Slot));
            }
            let committed = if pinned.plan().watched || pinned.is_pinned() {
                // The connection is returned with the scope's last call.
                match pinned.last_call::<CommitError>() {
                    Ok(mut line) => {
                        let (line, queue, plan) = (&mut *line, &mut self.queue, pinned.plan());
                        let committed = commit::commit(line, queue, plan, deadline).await;
                        if cleanup::is_needed(line) {
                            let place = pinned.owner().place;
                            boxed(cleanup::clean_or_log(line, Some(place))).await;
                        }
                        committed
                    }
                    Err(error) => Err(error),
                }
            } else if self.queue.commands() == 0 && pinned.plan().idempotency_key.is_none() {
                Ok(Committed::Applied(Replies::none(self.queue.transaction())))
            } else {
                // The connection is borrowed for the commit only. No code of the caller's runs
                // meanwhile, so there is no scope to reclaim.
                match pinned.router() {
                    Some(router) => {
                        pinned.set_slot(self.queue.binding().slot());
                        let to = (&router, pinned.route());
                        let carried = if P::HAS_LANES { self.take_carried() } else { None };
                        let queue = &mut self.queue;
                        batch::commit_block(to, queue, pinned.plan(), deadline, carried).await
                    }
                    None => Err(CheckoutError::Closed.into()),
                }
            };
            if let Some(router) = pinned.router() {
                count(router.counters(), &committed);
            }
            committed.map_err(|error| self.cross_slot_error(error))
        }
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

    /// Records the outcome in the span and the metrics.
    pub(crate) fn record<P: Side>(
        &self,
        pinned: &Pinned<P>,
        committed: &Result<Committed, CommitError>,
        attempts: u32,
    ) {
        let span = pinned.span();
        if pinned.here().is_err() {
            return;
        }
        let outcome = outcome(committed);
        pinned.metrics(|metrics| metrics.ended(outcome, attempts, self.begun));
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
fn raise<P: Side>(pinned: &Pinned<P>, error: &CommitError, outcome: &str) {
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
    tracing::warn!(outcome, name, %place, error = %format_args!("{error:#}"), suppressed, "transaction {outcome}");
}

/// The word of a transaction that was applied.
const COMMITTED: &str = "committed";

/// Logs the outcome of an attempt.
pub(crate) fn log(outcome: &str, error: Option<&CommitError>) {
    match error {
        None => tracing::debug!(outcome, "commit"),
        Some(error) => tracing::debug!(outcome, error = %format_args!("{error:#}"), "commit"),
    }
}

/// Returns one word for a report.
pub(crate) fn outcome(committed: &Result<Committed, CommitError>) -> &'static str {
    match committed {
        Ok(Committed::Applied(_)) => COMMITTED,
        Ok(Committed::Conflict) => CONFLICT,
        Err(error) => error.word(),
    }
}
