//! The reads of a watching scope on its pinned connection.
//!
//! It sends no write outside MULTI: such a write would make every attempt a conflict.
//!
//! A future that is dropped before its end may leave a connection that awaits replies. That one is
//! closed when the scope ends.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use redis::Value;

use crate::commit::plan::CommitPlan;
use crate::commit::prepare;
use crate::commit::side::Side;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool;
use crate::pool::ask::Question;
use crate::pool::early_watch::WatchOffer;
use crate::pool::line::Line;
use crate::pool::pool::Pool;
use crate::pool::retry_budget::RetryBudget;
use crate::pool::server_pool::TurnOf;
use crate::protocol::cluster::redirect::{self, RedirectReply};
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::keys;
use crate::protocol::resp::encode::ASKING;
use crate::protocol::server_error::ServerError;
use crate::sync::boxed::boxed;
use crate::text::condition_label;
use crate::transaction::keys::Keys;
use crate::transaction::pinned::Pinned;
use crate::transaction::watched_reads::{ReadReplies, WatchReads};

/// A scope that reads on its pinned connection under WATCH before it writes.
pub(crate) struct Reading<P: Side = Pool> {
    pub(crate) pinned: Pinned<P>,
    pub(crate) binding: SlotBinding,
    pub(crate) attempt: u32,
    pub(crate) declared: ReadReplies,
    connection_lost: bool,
    /// Whether the closure has asked for another attempt.
    again: bool,
    /// The redirect of a read that reached a node which does not serve the slot.
    redirect: Option<Redirect>,
    /// The whole WATCH command, if its slot is being migrated.
    watch: Box<[u8]>,
    /// The declared values are predicted, so there is no connection to read on.
    is_predicted: bool,
}

impl<P: Side> Reading<P> {
    /// Takes a connection and sends WATCH on it; a dead connection is replaced first. If a required
    /// condition does not hold, the scope stops watching. Dropped before its end, the future leaves
    /// the connection to the drop of the scope.
    pub(crate) async fn begin(
        mut pinned: Pinned<P>,
        target: WatchTarget<'_>,
        attempt: u32,
        deadline: Instant,
    ) -> Result<Self, Error> {
        match arm(&mut pinned, target, attempt, deadline, None).await {
            Ok(declared) => Ok(Self::new(pinned, target, attempt, declared)),
            Err(error) => {
                boxed(stop(&mut pinned, &error)).await;
                Err(error)
            }
        }
    }

    #[inline(always)]
    pub(crate) fn new(
        pinned: Pinned<P>,
        WatchTarget { keys, binding, .. }: WatchTarget<'_>,
        attempt: u32,
        declared: ReadReplies,
    ) -> Self {
        let watch = keys.map(Keys::watch).filter(|_| pinned.route().ask).unwrap_or_default().into();
        Self {
            pinned,
            binding,
            attempt,
            declared,
            connection_lost: false,
            again: false,
            redirect: None,
            watch,
            is_predicted: false,
        }
    }

    /// A scope without a connection, whose declared reads have predicted values. Another read fails, and
    /// the attempt is then repeated on a connection.
    pub(crate) fn predicted(
        pinned: Pinned<P>,
        target: WatchTarget<'_>,
        attempt: u32,
        values: Vec<Value>,
    ) -> Result<Self, Error> {
        let declared = ReadReplies::of(Arc::clone(target.reads), values)?;
        Ok(Self { is_predicted: true, ..Self::new(pinned, target, attempt, declared) })
    }

    /// Sends one read, and returns its reply.
    pub(crate) async fn reply_to(&mut self, name: &str, bytes: &[u8]) -> Result<Value, Error> {
        self.pinned.here()?;
        if self.is_predicted {
            self.connection_lost = true;
            let none = ConnectionError::unexpected("this attempt is repeated on a connection");
            return Err(lost(name, none));
        }
        let (watched, deadline) = (self.pinned.plan().watched, self.pinned.checkout_deadline());
        keys::bind(&mut self.binding, bytes)?;
        if !self.pinned.is_pinned() && self.binding == SlotBinding::Pending {
            let mut line = boxed(self.elsewhere(&Route::default(), deadline)).await?;
            return boxed(ask(&mut line, name, bytes, RetryBudget::never(deadline))).await;
        }
        // In a cluster, the first key of a scope that watches nothing has the slot.
        self.pinned.pin(self.binding.slot(), deadline).await?;
        if let Err(error) = has_arrived(&self.pinned, &self.watch, bytes, name) {
            boxed(self.record_redirect("TRYAGAIN", "")).await;
            return Err(error);
        }
        let mut line = self.pinned.line::<Error>()?;
        if watched && !line.current().is_some_and(|connection| connection.state().is_watching()) {
            self.connection_lost = true;
            let gone = ConnectionError::unexpected("the connection was lost earlier in the scope");
            return Err(lost(name, gone));
        }
        // A scope that watches nothing may read on another connection.
        let budget = match watched {
            true => RetryBudget::never(deadline),
            false => line.retry_budget(deadline),
        };
        let asked = ask(&mut *line, name, bytes, budget).await;
        drop(line);
        let value = asked.inspect_err(|error| {
            // A reply that is too large is as large on another connection.
            self.connection_lost |= matches!(error, Error::Lost { source, .. }
                if source.kind() != ConnectionErrorKind::TooLarge);
        })?;
        if let Value::ServerError(error) = &value {
            let text = error.details().unwrap_or_default();
            boxed(self.record_redirect(error.code(), text)).await;
            // A read without a WATCH may be sent to another node; the scope's own binding stays.
            if let (false, Some(Redirect::Immediately(route))) = (watched, &self.redirect)
                && route.ask
            {
                let route = route.clone();
                let mut line = boxed(self.elsewhere(&route, deadline)).await?;
                self.redirect = None;
                return boxed(ask(&mut line, name, bytes, RetryBudget::never(deadline))).await;
            }
        }
        Ok(value)
    }

    /// Takes a connection that is not the scope's, for one read.
    async fn elsewhere(&self, route: &Route, deadline: Instant) -> Result<P::Line, Error> {
        let router = self.pinned.router().ok_or(CheckoutError::Closed)?;
        Ok(router.checkout(route, deadline).await?)
    }

    /// Records the redirect in a refused read's error: the node that serves the scope's slot.
    async fn record_redirect(&mut self, code: &str, text: &str) {
        if let Some(router) = self.pinned.router() {
            self.redirect = router.redirect_for(self.pinned.route(), code, text).await;
        }
    }

    /// Returns the redirect of a read, if there was one.
    pub(crate) fn take_redirect(&mut self) -> Option<Redirect> {
        self.redirect.take()
    }

    /// Ends the attempt without a commit, and asks for another one. Returns the error of a run that has
    /// no further attempt.
    pub(crate) fn run_again(&mut self) -> Error {
        self.again = true;
        Error::RetriesExhausted { attempts: self.attempt }
    }

    /// Returns the error of an attempt whose closure has asked for another one, whatever it returned.
    pub(crate) fn wants_again(&self) -> Option<Error> {
        self.again.then_some(Error::RetriesExhausted { attempts: self.attempt })
    }

    /// Returns whether it is a scope of this watch, and not one that the closure has swapped in.
    pub(crate) fn is_of(&self, target: WatchTarget<'_>) -> bool {
        self.declared.are_of(target.reads)
    }

    /// Returns whether the scope's connection failed. Nothing of this attempt can then be committed,
    /// and the whole attempt may be repeated.
    pub(crate) fn is_connection_lost(&self) -> bool {
        self.connection_lost
    }
}

/// What a scope watches, and the reads that it sends along.
#[derive(Clone, Copy)]
pub(crate) struct WatchTarget<'w> {
    /// `None`: it watches nothing.
    pub(crate) keys: Option<&'w Keys>,
    /// The slot of the keys.
    pub(crate) binding: SlotBinding,
    pub(crate) reads: &'w Arc<WatchReads>,
}

impl<'w> WatchTarget<'w> {
    /// WATCH and the reads. They do not travel if they need more than another caller's connection, or may take
    /// long, for which that caller would wait. `None`: nothing is watched.
    pub(crate) fn offer<T>(
        &self,
        plan: &CommitPlan,
        route: &Route,
        turn: Option<&'w Arc<T>>,
    ) -> Option<WatchOffer<'w, T>> {
        let is_plain = plan.idempotency_key.is_none() && plan.lock_check.is_none();
        let travels = is_plain && !route.ask && self.reads.are_small();
        let watch = self.keys.map(Keys::watch)?;
        let reads = (self.reads.bytes(), self.reads.len());
        Some(WatchOffer { watch, travels, reads, needs: plan.armed(self.binding), turn })
    }
}

/// Takes a connection and waits for the replies to WATCH, the declared reads and the conditions'
/// reads. `turn`: the caller's turn on hot keys, which may have come with a connection.
pub(crate) async fn arm<P: Side>(
    pinned: &mut Pinned<P>,
    target: WatchTarget<'_>,
    attempt: u32,
    deadline: Instant,
    turn: Option<&Arc<TurnOf<P>>>,
) -> Result<ReadReplies, Error> {
    let WatchTarget { keys, binding, reads } = target;
    if binding == SlotBinding::Pending {
        // The first key will have the slot.
        return Ok(ReadReplies::default());
    }
    let watch = keys.map(Keys::watch);
    let offer = target.offer(pinned.plan(), pinned.route(), turn);
    pinned.pin_watching(binding.slot(), deadline, offer).await?;
    pinned.log_on_return(tracing::Level::DEBUG, move || tracing::debug!(attempt, "begin"));
    if watch.is_none() && reads.len() == 0 {
        return Ok(ReadReplies::default());
    }
    has_arrived(pinned, watch.unwrap_or_default(), reads.bytes(), "a read")?;
    let (sent, slot) = ((reads.bytes(), reads.len()), binding.slot());
    let mut line = pinned.line::<Error>()?;
    let values = prepare::watch(&mut *line, watch, sent, pinned.plan(), slot, deadline).await?;
    drop(line);
    if let (Some(_), Some(error)) = (slot, values.iter().find_map(refused)) {
        return Err(Error::Command { command: "a read".to_owned(), error });
    }
    let full = pinned.settings().server_messages;
    let answers =
        ReadReplies::of(Arc::clone(reads), values).map_err(|error| error.with_full_text(full));
    answers.inspect_err(|error| {
        if let Error::ConditionFailed { index, kind, name } = error {
            let which = condition_label(*index, kind, *name);
            pinned.log_on_return(tracing::Level::DEBUG, move || {
                tracing::debug!(attempt, which, "condition failed")
            });
        }
    })
}

/// Ends a scope that could not be armed.
pub(crate) async fn stop<P: Side>(pinned: &mut Pinned<P>, error: &Error) {
    pinned.record_failure(error);
    if pinned.release_after(error).await {
        pinned.record_early_failure(error);
    }
}

/// Error of a node that does not serve the slot.
fn refused(answer: &Value) -> Option<ServerError> {
    let Value::ServerError(error) = answer else { return None };
    RedirectReply::of(error.code(), error.details().unwrap_or_default())
        .map(|_| ServerError::from_reply(error, false))
}

/// Fails if a watched key may not have arrived yet while its slot is being migrated. This is known
/// only for watched keys: the old master replied with a redirect, or the key was found.
fn has_arrived<P: Side>(
    pinned: &Pinned<P>,
    watch: &[u8],
    reads: &[u8],
    name: &str,
) -> Result<(), Error> {
    if !pinned.route().ask || keys::are_among(reads, watch) {
        return Ok(());
    }
    let error = ServerError::synthetic(
        "TRYAGAIN",
        "the key may not have arrived at the slot's new node yet",
    );
    Err(Error::Command { command: name.to_owned(), error })
}

/// Sends one read, on other connections while `budget` allows it.
async fn ask<L: Line>(
    line: &mut L,
    name: &str,
    bytes: &[u8],
    budget: RetryBudget,
) -> Result<Value, Error> {
    let (bytes, replies) = match line.needs_asking() {
        true => (Cow::Owned([ASKING, bytes].concat()), 2),
        false => (Cow::Borrowed(bytes), 1),
    };
    let (bytes, read_only) = (&*bytes, true);
    let question = Question { name, bytes, replies, read_only, single: true, blocking: None };
    let (mut asked, mut answer) = (Value::Nil, Value::Nil);
    let mut take = |_, reply| asked = std::mem::replace(&mut answer, reply);
    pool::ask::ask(line, &question, budget, &mut take).await?;
    Ok(redirect::after_asking(asked, answer))
}

/// Reads and WATCH change nothing, so a lost command was not applied.
fn lost(during: &str, source: ConnectionError) -> Error {
    Error::Lost { during: during.to_owned(), applied: Applied::No, source }
}
